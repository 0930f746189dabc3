"""Environments in which somebody acts, step by step, and the score."""

from __future__ import annotations

from collections import deque
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from sim.environment import BatchEnvironment

_RETURNS_KEPT = 20


class Actor(Protocol):
    """What decides on the actions."""

    def act(self, observation: NDArray[np.float32]) -> NDArray[np.float64]:
        """Return actions (N, act_dim) in [-1, 1] for the observations (N, obs_dim)."""

    def restart(self, ids: NDArray[np.int64]) -> None:
        """Forget the episodes of environments ``ids``, which ended."""


class Rollout:
    """N environments, the actor that acts in them, and the score.

    Args:
        environment: the environments; their first episodes begin here.
        actor: acts in them.

    Attributes:
        environment: the environments.
        steps: control steps since the start.
        reward: (N,) rewards of the last step.
        returns: (N,) sums of the rewards in the present episodes.
        finished: number of episodes that ended.
        last_returns: those of the last ended episodes.
    """

    def __init__(self, environment: BatchEnvironment, actor: Actor) -> None:
        self.environment, self._actor = environment, actor
        self.steps = 0
        self.reward: NDArray[np.float32] = np.zeros(environment.num_envs, dtype=np.float32)
        self.returns = np.zeros(environment.num_envs)
        self.finished = 0
        self.last_returns: deque[float] = deque(maxlen=_RETURNS_KEPT)
        self._observation = environment.reset()

    @property
    def time_s(self) -> float:
        """Simulated time since the start."""
        return self.steps * self.environment.control_timestep

    def step(self) -> None:
        """Act once in all environments."""
        step = self.environment.step(self._actor.act(self._observation))
        self._observation, self.reward = step.obs, step.reward
        self.steps += 1
        self.returns += step.reward
        ended = np.flatnonzero(step.terminal | step.timeout)
        if len(ended):
            self.finished += len(ended)
            self.last_returns.extend(self.returns[ended].tolist())
            self.returns[ended] = 0.0
            self._actor.restart(ended)

    def restart(self) -> None:
        """Begin new episodes in all environments; those under way do not count."""
        self._observation = self.environment.reset()
        self._actor.restart(np.arange(self.environment.num_envs))
        self.returns[:] = 0.0
