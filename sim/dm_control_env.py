"""Any `dm_env` environment, stepped in worker processes, behind the interface of :class:`sim.environment.BatchEnvironment`.

For the tasks of dm_control's suite that do not step natively, and for environments of one's own; docs/tasks.md says what
differs.
"""

from __future__ import annotations

import functools
import os
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from dpg_robot.config import config_to_dict
from dpg_robot.contract import CommandChannel, Contract, Feature, MeasurementChannel
from dpg_robot.errors import ConfigError, DpgError, unknown_name
from sim.disturbance import DISTURBANCE_PRESETS, Disturbance, Disturbances
from sim.presets import resolve_preset
from sim.random_state import random_state, set_random_state
from sim.saved_state import header, require_fitting
from sim.single_environment import Factory
from sim.step_result import StepResult, check_actions, check_state
from sim.suite_model import suite
from sim.tasks import find_attribute
from sim.worker import WorkerPool

SUITE_PREFIX = "suite:"
_STATE, _DISTURBANCES = "environment.", "disturbances."


class NotOfferedError(DpgError, NotImplementedError):
    """Something that the wrapped environment cannot do."""


def suite_names() -> tuple[str, ...]:
    """Return the names ``domain-task`` of all tasks of dm_control's suite."""
    return tuple(f"{domain}-{task}" for domain, task in suite().ALL_TASKS)


@dataclass(frozen=True)
class SuiteFactory:
    """Makes environments of a task of dm_control's suite."""

    domain: str
    task: str

    def __call__(self, seed: int) -> Any:
        """Return a new environment."""
        return suite().load(self.domain, self.task, task_kwargs={"random": seed})


@dataclass(frozen=True)
class ReferenceFactory:
    """Makes environments with the callable that ``module:attribute`` or ``file.py:attribute`` names."""

    reference: str

    def __call__(self, seed: int) -> Any:
        """Return a new environment."""
        return _load(self.reference)(seed)


def find_factory(reference: str) -> Factory:
    """Return what makes an environment from a seed, in a form that can be passed to another process.

    Args:
        reference: ``module:attribute`` or ``file.py:attribute`` of a callable; or ``suite:domain-task``.

    Raises:
        UnknownNameError: no such task in dm_control's suite, with a 'did you mean'.
        ConfigError: a reference that does not lead to a callable.
    """
    if reference.startswith(SUITE_PREFIX):
        name = reference.removeprefix(SUITE_PREFIX)
        names = suite_names()
        if name not in names:
            raise unknown_name("dm_control task", name, names)
        return SuiteFactory(*name.split("-", maxsplit=1))
    _load(reference)
    return ReferenceFactory(reference)


class DmControlEnvironment:
    """N ``dm_env`` environments in worker processes. Ended episodes start anew by themselves.

    Environment i gets a seed of its own, derived from ``seed``, so results do not depend on the number of workers. Call
    :meth:`close`, or use it in a ``with`` statement, to end the workers early; they end with the program in any case.

    Args:
        factory: takes a seed and returns a ``dm_env.Environment`` with a ``control_timestep()``; a callable that other processes
            can import, or a reference, see :func:`find_factory`.
        num_envs: number of environments N.
        seed: seed of everything random.
        num_workers: number of processes; 0 for one per processor. Never more than environments.
        action_repeat: steps of the environment per action.
        disturbance: what comes between agent and world; pushes are not offered.

    Attributes:
        name: what the environments are called in a contract.
        control_timestep: time between two actions, s.
        observation_names: a name for each number of the observation.
        restores_episodes: whether :meth:`state_dict` holds the episodes under way.
        fault_count: how often an environment diverged so far.

    Raises:
        ConfigError: a factory or environments that cannot be used, or a disturbance with pushes.
        WorkerError: an environment that raises an error when it is made.
    """

    def __init__(
        self,
        factory: str | Factory,
        num_envs: int,
        seed: int,
        num_workers: int = 0,
        action_repeat: int = 1,
        disturbance: Disturbance = DISTURBANCE_PRESETS["none"],
    ) -> None:
        for name, value, least in (
            ("num_envs", num_envs, 1),
            ("num_workers", num_workers, 0),
            ("action_repeat", action_repeat, 1),
        ):
            if value < least:
                raise ValueError(f"{name} must be {least} or more, got {value}")
        self.name = _name(factory)
        self.num_envs = num_envs
        self.action_repeat = action_repeat
        self.fault_count = 0
        self._seed = seed
        workers = min(num_workers or _num_processors(), num_envs)
        self._pool = WorkerPool(find_factory(factory) if isinstance(factory, str) else factory, self._seeds(seed), workers)
        self._description = description = self._pool.description
        self._low, self._high = np.array(description.low), np.array(description.high)
        self._random = np.random.Generator(np.random.SFC64(seed))
        self.act_dim = len(description.low)
        self.control_timestep = description.control_timestep_s * action_repeat
        self.restores_episodes = description.has_state
        names = description.observation_names
        self._disturbances = Disturbances(disturbance, num_envs, self.act_dim, len(names), description.control_timestep_s)
        self.observation_names = names + self._disturbances.dummy_names
        self.obs_dim = len(self.observation_names)
        self._last_obs = np.zeros((num_envs, self.obs_dim), dtype=np.float32)
        self._num_steps = 0
        self._started = False
        self._made_of = {
            "task": self.name,
            "num_envs": num_envs,
            "action_repeat": action_repeat,
            "disturbance": config_to_dict(disturbance),
        }

    def __enter__(self) -> DmControlEnvironment:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        """End the worker processes. Calling it again does nothing."""
        self._pool.close()

    @property
    def pids(self) -> tuple[int, ...]:
        """Ids of the worker processes."""
        return self._pool.pids

    @property
    def qpos(self) -> NDArray[np.float64]:
        """(N, nq) float64, the generalized positions in MuJoCo's order; NotOfferedError without MuJoCo's physics."""
        return self._positions()[0]

    @property
    def qvel(self) -> NDArray[np.float64]:
        """(N, nv) float64, the generalized velocities in MuJoCo's order; NotOfferedError without MuJoCo's physics."""
        return self._positions()[1]

    @property
    def dynamics(self) -> NDArray[np.float64]:
        """(N, 0): no dynamics are drawn here."""
        return np.zeros((self.num_envs, 0))

    @property
    def dynamics_names(self) -> tuple[str, ...]:
        """No names, as in :attr:`dynamics`."""
        return ()

    @property
    def obs(self) -> NDArray[np.float32]:
        """(N, obs_dim) float32, a copy of what the agent sees now, which the last step or reset returned."""
        return self._last_obs.copy()

    @property
    def true_obs(self) -> NDArray[np.float32]:
        """(N, environment's numbers) float32, a copy of the undisturbed observations of the present states."""
        return self._pool.shared.obs.copy()

    def contract(self, history: int = 0) -> Contract:
        """Return the contract of a policy trained here; each observation is a measurement of its own, of unknown unit."""
        limits = zip(self._description.command_names, self._description.low, self._description.high, strict=True)
        return Contract(
            task=self.name,
            measurements=tuple(MeasurementChannel(name, "1") for name in self.observation_names),
            features=tuple(Feature("identity", name) for name in self.observation_names),
            commands=tuple(CommandChannel(name, "1", low, high) for name, low, high in limits),
            rate_hz=1.0 / self.control_timestep,
            history=history,
            action_repeat=self.action_repeat,
        )

    def reseed(self, seed: int | None) -> None:
        """Make all environments anew with another seed, from the system's entropy if None; a reset must follow."""
        self._seed = int(np.random.SeedSequence().generate_state(1)[0]) if seed is None else seed
        self._random = np.random.Generator(np.random.SFC64(self._seed))
        self._pool.call_each("make", self._seeds(self._seed))
        self._num_steps, self._started = 0, False

    def reset(self) -> NDArray[np.float32]:
        """Start a new episode in every environment and return the observations (N, obs_dim)."""
        self._last_obs[:] = self._restart(np.arange(self.num_envs))
        self._started = True
        return self._last_obs.copy()

    def set_state(self, qpos: NDArray[Any], qvel: NDArray[Any]) -> NDArray[np.float32]:
        """Continue from positions (N, nq) and velocities (N, nv), with all else at rest and nothing delayed under way.

        Returns:
            The undisturbed observations (N, environment's numbers).

        Raises:
            NotOfferedError: not a plain environment of dm_control.
            ValueError: wrong shape, or values that are not finite.
        """
        if not self._description.has_task:
            raise NotOfferedError(f"{self.name} cannot be put into a state: it is not a plain dm_control.rl.control.Environment")
        check_state(qpos, qvel, *self._positions())
        if not self._started:
            self.reset()
        self._pool.call_each("set_positions", list(zip(np.asarray(qpos), np.asarray(qvel), strict=True)))
        self._last_obs = self._disturbances.restart(np.arange(self.num_envs), self._pool.shared.obs, self._random)
        return self._pool.shared.obs.copy()

    def step(self, actions: NDArray[Any]) -> StepResult:
        """Apply actions (N, act_dim) in [-1, 1] for ``action_repeat`` steps; values outside are clipped.

        Raises:
            ValueError: wrong shape or type, or actions that are not finite (names the environments).
            RuntimeError: before the first ``reset`` or ``set_state``, or after ``close``.
            WorkerError: an environment raised an error, or its process ended. The environments are closed then.
        """
        if not self._started:
            raise RuntimeError("the environments have no state yet; call reset() or set_state() before step()")
        reward, terminal, timeout, fault, final_obs = self._repeat(check_actions(actions, self.num_envs, self.act_dim))
        self._num_steps += 1
        self.fault_count += int(fault.sum())
        obs = final_obs.copy()
        ended = np.flatnonzero(terminal | timeout)
        if len(ended):
            reward[ended] += self._disturbances.undelivered(ended)
            obs[ended] = self._restart(ended)
        self._last_obs = obs.copy()  # the caller may write into what it gets
        return StepResult(obs, reward.astype(np.float32), terminal, timeout, final_obs, fault)

    def state_dict(self) -> dict[str, NDArray[Any]]:
        """Return what the next steps depend on, as arrays.

        Where the environments cannot give their states (``restores_episodes`` is false), it only says how to go on with new
        episodes.
        """
        states = self._pool.call_each("state", [None] * self.num_envs)
        return (
            header(self._made_of)
            | {f"{_STATE}{index}.{name}": value for index, state in enumerate(states) for name, value in state.items()}
            | {f"{_DISTURBANCES}{name}": value for name, value in self._disturbances.state_dict().items()}
            | {
                "seed": np.frombuffer(str(self._seed).encode(), dtype=np.uint8).copy(),
                "num_steps": np.array([self._num_steps]),
                "fault_count": np.array([self.fault_count]),
                "started": np.array([self._started]),
                "last_obs": self._last_obs.copy(),
                "true_obs": self._pool.shared.obs.copy(),
                "random": random_state(self._random),
            }
        )

    def load_state_dict(self, state: dict[str, NDArray[Any]]) -> None:
        """Put back what :meth:`state_dict` returned; further steps are then the same, bit for bit.

        Where ``restores_episodes`` is false, the environments are made anew and begin new episodes. A state from before the first
        step then gives the same episodes each time; a later one gives episodes that did not occur before.

        Raises:
            CheckpointError: a state from environments of another kind; nothing was changed then.
        """
        require_fitting(state, header(self._made_of))
        seed = int(bytes(state["seed"]))
        if seed != self._seed or not self.restores_episodes:
            number = 0 if self.restores_episodes else int(state["num_steps"][0])
            self._pool.call_each("make", self._seeds(seed, number))
            self._seed = seed
        self._num_steps, self.fault_count = int(state["num_steps"][0]), int(state["fault_count"][0])
        self._started = bool(state["started"][0])
        set_random_state(self._random, state["random"])
        if not self.restores_episodes:
            if self._started:
                self.reset()
            return
        states: list[dict[str, NDArray[Any]]] = [{} for _ in range(self.num_envs)]
        for key, value in state.items():
            if key.startswith(_STATE):
                index, _, name = key.removeprefix(_STATE).partition(".")
                states[int(index)][name] = value
        self._pool.call_each("load_state", states)
        self._disturbances.load_state_dict(
            {key.removeprefix(_DISTURBANCES): value for key, value in state.items() if key.startswith(_DISTURBANCES)}
        )
        self._last_obs[:] = state["last_obs"]
        self._pool.shared.obs[:] = state["true_obs"]

    def _repeat(
        self, actions: NDArray[np.float64]
    ) -> tuple[NDArray[np.float64], NDArray[np.bool_], NDArray[np.bool_], NDArray[np.bool_], NDArray[np.float32]]:
        """Run the steps of one action; an environment that ends on the way stays where it is.

        Returns:
            Reward (N,), terminal (N,), timeout (N,), fault (N,) and observations (N, obs_dim).
        """
        shared, disturbances = self._pool.shared, self._disturbances
        reward = np.zeros(self.num_envs)
        terminal, timeout, fault = np.zeros((3, self.num_envs), dtype=np.bool_)
        obs = self._last_obs
        for index in range(self.action_repeat):
            running = ~(terminal | timeout)
            _, noisy = disturbances.act(actions, self._random)
            shared.action[:] = self._low + (noisy + 1.0) * (0.5 * (self._high - self._low))
            shared.active[:] = running
            self._pool.call("step")
            fault |= shared.fault & running
            reward += disturbances.deliver(np.where(running, shared.reward, 0.0))
            if disturbances.remembers or index == self.action_repeat - 1:
                sensed = disturbances.sense(shared.obs, self._random)
                keep = fault | ~running if disturbances.remembers else fault
                sensed[keep] = obs[keep]
                obs = sensed
            terminal |= shared.terminal & running
            timeout |= shared.timeout & running
        return reward, terminal, timeout, fault, obs

    def _restart(self, ids: NDArray[np.int64]) -> NDArray[np.float32]:
        """Start new episodes in environments ``ids`` and return their first observations (n, obs_dim)."""
        self._pool.shared.active[:] = False
        self._pool.shared.active[ids] = True
        self._pool.call("reset")
        return self._disturbances.restart(ids, self._pool.shared.obs[ids], self._random)

    def _positions(self) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        if not self._description.has_physics:
            raise NotOfferedError(f"{self.name} has no qpos and qvel: its environments have no MuJoCo physics")
        qpos, qvel = zip(*self._pool.call_each("positions", [None] * self.num_envs), strict=True)
        return np.stack(qpos), np.stack(qvel)

    def _seeds(self, seed: int, number: int = 0) -> list[int]:
        """Return a seed for each environment; ``number`` gives others."""
        children = np.random.SeedSequence(seed, spawn_key=(number,) if number else ()).spawn(self.num_envs)
        return [int(child.generate_state(1)[0]) for child in children]


def make_dm_control(
    task: str,
    num_envs: int = 1,
    seed: int = 0,
    num_threads: int = 0,
    action_repeat: int = 1,
    disturbance: str | Path | Disturbance = "none",
) -> DmControlEnvironment:
    """Make environments of a task of dm_control's suite, or of a factory of one's own, in worker processes.

    Args:
        task: name such as ``fish-swim``, or a reference, see :func:`find_factory`.
        num_envs: number of environments N.
        seed: seed of everything random.
        num_threads: number of worker processes; 0 for one per processor.
        action_repeat: steps of the environment per action; rewards are summed over them.
        disturbance: name of a preset, path of a YAML file, or the settings themselves.

    Raises:
        UnknownNameError: unknown task or preset, with a 'did you mean'.
        ConfigError: a factory, environments or disturbance that cannot be used.
        WorkerError: an environment that raises an error when it is made.
    """
    return DmControlEnvironment(
        task if ":" in task else SUITE_PREFIX + task,
        num_envs,
        seed,
        num_threads,
        action_repeat,
        resolve_preset("disturbance", disturbance, Disturbance, DISTURBANCE_PRESETS),
    )


@functools.cache  # a file is run once, not once per environment
def _load(reference: str) -> Factory:
    place, _, attribute = reference.rpartition(":")
    if not place:
        raise ConfigError(
            f"{reference!r} is not a reference; expected 'module:attribute', 'file.py:attribute' or 'suite:domain-task'"
        )
    return cast(Factory, find_attribute(place, attribute, reference))


def _name(factory: str | Factory) -> str:
    if isinstance(factory, str):
        return factory.removeprefix(SUITE_PREFIX)
    return getattr(factory, "__qualname__", type(factory).__name__)


def _num_processors() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
