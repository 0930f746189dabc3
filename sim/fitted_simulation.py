"""Simulated episodes in which policies are compared, with dynamics that were fitted to the robots' own logs."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dpg_robot.contract import Contract
from dpg_robot.errors import ConfigError
from dpg_robot.learning.policy import Policy
from dpg_robot.learning.trainer import Evaluation, evaluate
from sim.environment import BatchEnvironment
from sim.factory import make
from sim.identification_posterior import Posterior
from sim.randomization import Randomization


@dataclass(frozen=True)
class FittedDynamics:
    """What is known of one robot.

    Attributes:
        prior: randomization that varies the parameters, for the environment.
        names: of the P parameters, as in ``BatchEnvironment.dynamics_names``.
        samples: (K, P) draws from the posterior.
    """

    prior: Randomization
    names: tuple[str, ...]
    samples: NDArray[np.float64]

    @classmethod
    def of(cls, posterior: Posterior) -> FittedDynamics:
        """Return what a posterior says."""
        names = tuple(column.name for column in posterior.prior.columns)
        return cls(posterior.prior.randomization, names, posterior.samples)

    def some(self, count: int) -> NDArray[np.float64]:
        """Return ``count`` of the draws (count, P), evenly spread over them; again from the first where they are too few."""
        if count > len(self.samples):
            return np.resize(self.samples, (count, self.samples.shape[1]))
        return np.asarray(self.samples[np.linspace(0, len(self.samples) - 1, count).round().astype(int)])


class FittedSimulation:
    """Simulated episodes that are the same for all policies until another robot, or a better fit, comes along.

    Before anything was fitted, dynamics are those of ``randomization``. Then each fitted robot gets an equal share of the
    episodes, with parameters drawn from its posterior, so that what goes together stays together.

    Args:
        contract: of the policies.
        task: the task, or a reference to one's own.
        episodes: number of episodes.
        seed: of everything random in them.
        randomization: dynamics before anything was fitted: a preset's name, a YAML file, or the settings.
        disturbance: noise and pushes, likewise.
        num_threads: threads that step the simulation.
    """

    def __init__(
        self,
        contract: Contract,
        task: str,
        episodes: int,
        seed: int,
        randomization: str | Path | Randomization,
        disturbance: str,
        num_threads: int = 0,
    ) -> None:
        self._contract, self._task, self._episodes, self._seed = contract, task, episodes, seed
        self._randomization, self._disturbance, self._num_threads = randomization, disturbance, num_threads
        self._robots: dict[str, FittedDynamics] = {}

    @property
    def robots(self) -> tuple[str, ...]:
        """Names of the robots that are simulated."""
        return tuple(self._robots)

    def use(self, robot: str, dynamics: FittedDynamics) -> None:
        """Simulate a robot as it was fitted from now on."""
        self._robots = dict(sorted((self._robots | {robot: dynamics}).items()))

    def returns(self, policy: Policy) -> Evaluation:
        """Return the policy's returns in the episodes."""
        if not self._robots:
            return evaluate(policy, self._contract, self._make(self._randomization, self._episodes, self._seed))
        shares = np.diff(np.linspace(0, self._episodes, len(self._robots) + 1).round().astype(int))
        found = []
        for number, (dynamics, count) in enumerate(zip(self._robots.values(), shares, strict=True)):
            if count:
                environment = self._make(dynamics.prior, int(count), self._seed + number)
                found.append(evaluate(policy, self._contract, _WithDynamics(environment, dynamics)).returns)
        return Evaluation(np.concatenate(found))

    def _make(self, randomization: str | Path | Randomization, episodes: int, seed: int) -> Any:
        return make(
            self._task,
            num_envs=episodes,
            seed=seed,
            num_threads=self._num_threads,
            action_repeat=self._contract.action_repeat,
            randomization=randomization,
            disturbance=self._disturbance,
        )


class _WithDynamics:
    """An environment whose episodes, one in each, have given dynamics."""

    def __init__(self, environment: BatchEnvironment, dynamics: FittedDynamics) -> None:
        if environment.dynamics_names != dynamics.names:
            raise ConfigError(f"the fit knows {', '.join(dynamics.names)}; the simulation varies {environment.dynamics_names}")
        self._environment, self._dynamics = environment, dynamics
        self.num_envs = environment.num_envs
        self.step = environment.step
        self.state_dict, self.load_state_dict = environment.state_dict, environment.load_state_dict

    @property
    def dynamics(self) -> NDArray[np.float64]:
        return self._environment.dynamics

    def reset(self) -> NDArray[np.float32]:
        features = self._environment.reset()
        self._environment.set_dynamics(self._dynamics.some(self.num_envs))
        return features
