"""Many environments of one task at once, on MuJoCo's native batch of simulations."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from types import TracebackType
from typing import Any

import mujoco
import numpy as np
from numpy.typing import NDArray

from dpg_robot.config import config_to_dict
from dpg_robot.contract import Contract, Feature, MeasurementChannel
from dpg_robot.errors import ContractError, DpgError
from sim.disturbance import DISTURBANCE_PRESETS, Disturbance, Disturbances
from sim.mjcf import ModelError, compile_spec
from sim.physics import Physics
from sim.presets import resolve_preset
from sim.random_state import random_state, set_random_state
from sim.randomization import DynamicsRandomizer, Randomization, prepare_spec, resolve_randomization
from sim.saved_state import header, require_fitting, require_same_shapes
from sim.step_result import StepResult, check_actions, check_state
from sim.tasks import Task, make_task

_START_ATTEMPTS = 10


class BatchEnvironment:
    """N environments of one task. Ended episodes start anew by themselves, with newly drawn dynamics.

    All randomness comes from one generator with the given seed, so results do not depend on the number of threads.

    Args:
        task: the task; each environment needs one of its own.
        num_envs: number of environments N.
        seed: seed of everything random.
        num_threads: native threads that step the simulations; 0 for all processors.
        action_repeat: control steps of the task per action.
        randomization: how the dynamics are drawn for each episode.
        disturbance: what comes between agent and world, and pushes.

    Attributes:
        task: the task.
        physics: the simulations.
        control_timestep: time between two actions, s.
        observation_names: a name for each number of the observation.
        fault_count: how often the physics of an environment diverged so far.

    Raises:
        ModelError: the model does not compile, or the task's control step is not a whole number of physics steps.
        ConfigError: a randomization that would make the model invalid.
    """

    def __init__(
        self,
        task: Task,
        num_envs: int,
        seed: int,
        num_threads: int,
        action_repeat: int,
        randomization: Randomization,
        disturbance: Disturbance,
    ) -> None:
        numbers = {"num_envs": (num_envs, 1), "action_repeat": (action_repeat, 1), "num_threads": (num_threads, 0)}
        for name, (value, least) in numbers.items():
            if not isinstance(value, (int, np.integer)) or value < least:
                raise ValueError(f"{name} must be a whole number, {least} or more, got {value!r}")
        if getattr(task, "_physics_of_its_own", False):
            raise ValueError(f"task {task.name} is in use by another environment; make a task of its own for each")
        model = _compile(task, randomization)
        self.task = task
        self.num_envs = num_envs
        self.action_repeat = action_repeat
        self.control_timestep = task.control_timestep_s * action_repeat
        self.physics = Physics(model, num_envs, num_threads, task.stage)
        task.bind(self.physics)
        task._physics_of_its_own = True
        self._substeps = _count_substeps(task, model)
        self._steps_per_episode = max(1, round(task.time_limit_s / self.control_timestep))
        self._control_low, self._control_high = model.actuator_ctrlrange.T.copy()
        self._random = np.random.Generator(np.random.SFC64(seed))
        self._randomizer = DynamicsRandomizer(self.physics, randomization, task.name)
        names = task.observation_names(model)
        self._disturbances = Disturbances(disturbance, num_envs, int(model.nu), len(names), task.control_timestep_s, self.physics)
        self.observation_names = names + self._disturbances.dummy_names
        self.obs_dim = len(self.observation_names)
        self.act_dim = int(model.nu)
        self.fault_count = 0
        self._true_obs = np.zeros((num_envs, len(names)), dtype=np.float32)
        self._last_obs = np.zeros((num_envs, self.obs_dim), dtype=np.float32)
        self._steps = np.zeros(num_envs, dtype=np.int64)
        self._started = False
        settings = {"randomization": config_to_dict(randomization), "disturbance": config_to_dict(disturbance)}
        self._made_of = {"task": task.name, "num_envs": num_envs, "action_repeat": action_repeat} | settings

    def __enter__(self) -> BatchEnvironment:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        """Do nothing; there for environments in worker processes, which have something to close."""

    @property
    def qpos(self) -> NDArray[np.float64]:
        """(N, nq) float64, a copy of the generalized positions in MuJoCo's order."""
        return self.physics.qpos.copy()

    @property
    def qvel(self) -> NDArray[np.float64]:
        """(N, nv) float64, a copy of the generalized velocities in MuJoCo's order."""
        return self.physics.qvel.copy()

    @property
    def steps_per_episode(self) -> int:
        """Steps after which an episode is cut, if it does not end before."""
        return self._steps_per_episode

    @property
    def dynamics(self) -> NDArray[np.float64]:
        """(N, P) float64, a copy of what was drawn for the present episodes, one column for each of ``dynamics_names``."""
        return self._randomizer.values.copy()

    @property
    def dynamics_names(self) -> tuple[str, ...]:
        """What each column of ``dynamics`` is, such as ``mass/pole_1``."""
        return self._randomizer.names

    @property
    def obs(self) -> NDArray[np.float32]:
        """(N, obs_dim) float32, a copy of what the agent sees now, which the last step or reset returned."""
        return self._last_obs.copy()

    @property
    def true_obs(self) -> NDArray[np.float32]:
        """(N, task's numbers) float32, a copy of the undisturbed observations of the present states."""
        self.task.observe(self._true_obs)
        return self._true_obs.copy()

    def contract(self, history: int = 0) -> Contract:
        """Return the contract of a policy trained here with ``history`` previous frames."""
        contract = self.task.contract(self.physics.model, self.action_repeat, history)
        dummies = self._disturbances.dummy_names
        if not dummies:
            return contract
        return dataclasses.replace(
            contract,
            measurements=contract.measurements + tuple(MeasurementChannel(name, "1") for name in dummies),
            features=contract.features + tuple(Feature("identity", name) for name in dummies),
        )

    def reseed(self, seed: int | None) -> None:
        """Seed everything random anew, from the system's entropy if None.

        Episodes under way go on; dynamics that evolve from episode to episode begin anew with the next one.
        """
        self._random = np.random.Generator(np.random.SFC64(seed))
        self._randomizer.restart()

    def reset(self) -> NDArray[np.float32]:
        """Start a new episode in every environment and return the observations (N, obs_dim)."""
        self._restart(np.arange(self.num_envs), self._last_obs)
        self._started = True
        return self._last_obs.copy()

    def spread_ages(self) -> None:
        """Let the present episodes end at evenly spread times instead of all at once; each keeps its place from then on."""
        self._steps[:] = self._steps_per_episode * np.arange(self.num_envs) // self.num_envs

    def set_state(self, qpos: NDArray[Any], qvel: NDArray[Any]) -> NDArray[np.float32]:
        """Continue from positions (N, nq) and velocities (N, nv), with all else at rest and nothing delayed under way.

        Dynamics, targets and time limit of the episode stay; the first call without a :meth:`reset` before draws them.

        Returns:
            The undisturbed observations (N, task's numbers), laid out as dm_control flattens its own; what the agent sees is in
            :attr:`obs`.

        Raises:
            ValueError: wrong shape, or values that are not finite or beyond what MuJoCo simulates.
        """
        physics = self.physics
        # beyond its limit, MuJoCo would silently start from its own default state instead
        check_state(qpos, qvel, physics.qpos, physics.qvel, limit=float(mujoco.mjMAXVAL))
        if not self._started:
            self.reset()
        everyone = np.arange(self.num_envs)
        physics.reset(everyone)
        physics.qpos[:] = qpos
        physics.qvel[:] = qvel
        self.task.complete_state()
        physics.forward(everyone)
        true_obs = self.true_obs
        self._last_obs = self._disturbances.restart(everyone, true_obs, self._random)
        return true_obs

    def set_dynamics(self, values: NDArray[np.float64]) -> None:
        """Let the present episodes go on with given dynamics instead of drawn ones; later episodes draw theirs as ever.

        Args:
            values: (N, P) factors, offsets or values, one column for each of ``dynamics_names``.

        Raises:
            ValueError: wrong shape, or values that are not finite.
        """
        expected = (self.num_envs, len(self.dynamics_names))
        if np.shape(values) != expected or not np.isfinite(values).all():
            raise ValueError(f"dynamics must be finite and of shape {expected} for {self.dynamics_names}, got {np.shape(values)}")
        if not self._started:
            self.reset()
        everyone = np.arange(self.num_envs)
        self._randomizer.assign(everyone, np.asarray(values, dtype=np.float64))
        self.task.model_changed(everyone)

    def step(self, actions: NDArray[Any]) -> StepResult:
        """Apply actions (N, act_dim) in [-1, 1] for one control step; values outside are clipped.

        Raises:
            ValueError: wrong shape or type, or actions that are not finite (names the environments).
            RuntimeError: before the first ``reset`` or ``set_state``.
        """
        if not self._started:
            raise RuntimeError("the environments have no state yet; call reset() or set_state() before step()")
        reward, terminal, fault, final_obs = self._repeat(check_actions(actions, self.num_envs, self.act_dim))
        self._steps += 1
        timeout = (self._steps >= self._steps_per_episode) & ~terminal
        obs = final_obs.copy()
        ended = np.flatnonzero(terminal | timeout)
        if len(ended):
            reward[ended] += self._disturbances.undelivered(ended)
            self._restart(ended, obs)
        self._last_obs = obs.copy()  # the caller may write into what it gets
        return StepResult(obs, reward.astype(np.float32), terminal, timeout, final_obs, fault)

    def state_dict(self) -> dict[str, NDArray[Any]]:
        """Return everything that the next steps depend on, as arrays (random states as bytes)."""
        parts = {"randomizer": self._randomizer.state_dict(), "disturbances": self._disturbances.state_dict()}
        state = {f"{part}.{name}": value for part, values in parts.items() for name, value in values.items()}
        return (
            self.physics.state_dict()
            | state
            | header(self._made_of)
            | {
                "started": np.array([self._started]),
                "steps": self._steps.copy(),
                "last_obs": self._last_obs.copy(),
                "fault_count": np.array([self.fault_count]),
                "random": random_state(self._random),
            }
        )

    def load_state_dict(self, state: dict[str, NDArray[Any]]) -> None:
        """Put back what :meth:`state_dict` returned; further steps are then the same, bit for bit.

        Raises:
            CheckpointError: a state from an environment of another kind; nothing was changed then.
        """
        own = self.state_dict()
        require_fitting(state, own)
        require_same_shapes(state, own)
        self.physics.load_state_dict(state)
        self.task.model_changed(np.arange(self.num_envs))
        for prefix, part in (("randomizer.", self._randomizer), ("disturbances.", self._disturbances)):
            part.load_state_dict({k.removeprefix(prefix): v for k, v in state.items() if k.startswith(prefix)})
        self._steps[:] = state["steps"]
        self._last_obs[:] = state["last_obs"]
        self.fault_count = int(state["fault_count"][0])
        set_random_state(self._random, state["random"])
        self._started = bool(state["started"][0])

    def _repeat(
        self, actions: NDArray[np.float64]
    ) -> tuple[NDArray[np.float64], NDArray[np.bool_], NDArray[np.bool_], NDArray[np.float32]]:
        """Run the control steps of one action; an environment that ends on the way stays where it is.

        Returns:
            Reward (N,), terminal (N,), fault (N,) and observations (N, obs_dim).
        """
        reward = np.zeros(self.num_envs)
        terminal, fault = np.zeros((2, self.num_envs), dtype=np.bool_)
        obs = self._last_obs
        remembers = self._disturbances.remembers
        for index in range(self.action_repeat):
            over = terminal.copy() if terminal.any() else None
            control = self._advance(actions, over)
            earned, diverged = self.task.reward(control), self.physics.faults()
            observed = remembers or index == self.action_repeat - 1
            if observed:
                self.task.observe(self._true_obs)
            broken = self._find_broken(earned, observed)
            if broken is not None:
                diverged = diverged | broken if over is None else diverged | (broken & ~over)
            fault |= diverged
            self.fault_count += int(diverged.sum())
            reward += self._disturbances.deliver(_zero_where(over, diverged, earned))
            if observed:
                sensed = self._disturbances.sense(self._true_obs, self._random)
                keep = fault | over if remembers and over is not None else fault
                if keep.any():
                    sensed[keep] = obs[keep]
                obs = sensed
            ended = self.task.terminal()
            terminal |= fault if ended is None else fault | ended
        return reward, terminal, fault, obs

    def _find_broken(self, earned: NDArray[np.float64], observed: bool) -> NDArray[np.bool_] | None:
        """Return (N,), where a reward or an observation is not finite, or None where all are."""
        # sums first: a number that is not finite makes its sum so, and finding which one is much slower
        if np.isfinite(earned.sum()) and not (observed and not np.isfinite(self._true_obs.sum(dtype=np.float64))):
            return None
        broken = ~np.isfinite(earned)
        if observed:
            broken |= ~np.isfinite(self._true_obs).all(axis=1)
            self._true_obs[broken] = 0.0
        return broken

    def _advance(self, actions: NDArray[np.float64], over: NDArray[np.bool_] | None) -> NDArray[np.float64]:
        """Run the physics of one control step where it is not ``over``; returns the controls (N, nu) that took effect."""
        in_effect, noisy = self._disturbances.act(actions, self._random)
        control = self._to_control(in_effect)
        self.physics.ctrl[:] = control if noisy is in_effect else self._to_control(noisy)
        self._disturbances.push(self._random)
        self.physics.step(self._substeps, None if over is None else np.flatnonzero(~over))
        return control

    def _to_control(self, actions: NDArray[np.float64]) -> NDArray[np.float64]:
        control: NDArray[np.float64] = self._control_low + (actions + 1.0) * (0.5 * (self._control_high - self._control_low))
        return control

    def _restart(self, ids: NDArray[np.int64], obs: NDArray[np.float32]) -> None:
        """Start new episodes in environments ``ids`` and write their first observations into rows of ``obs``."""
        pending = ids
        for _ in range(_START_ATTEMPTS):
            self.physics.reset(pending)
            self._randomizer.draw(pending, self._random)
            self.task.model_changed(pending)
            self.task.initialize(pending, self._random)
            self._require_finite_start(pending)
            self.physics.forward(pending)
            pending = pending[self.physics.faults()[pending]]  # drawn dynamics may not survive a start, as on uneven ground
            if not len(pending):
                break
        else:
            raise ModelError(
                f"task {self.task.name}: the physics of {len(pending)} environment(s) diverged in {_START_ATTEMPTS} attempts to "
                "start an episode; narrow the ranges of the randomization"
            )
        self._steps[ids] = 0
        self.task.observe(self._true_obs)
        first = self._true_obs[ids]
        if not np.isfinite(first).all():
            broken = ids[~np.isfinite(first).all(axis=1)]
            raise ModelError(f"task {self.task.name}: the first observations of environments {broken[:10]} are not finite")
        obs[ids] = self._disturbances.restart(ids, first, self._random)

    def _require_finite_start(self, ids: NDArray[np.int64]) -> None:
        """Refuse a state that MuJoCo would silently replace by the model's default."""
        for name, values in (("qpos", self.physics.qpos), ("qvel", self.physics.qvel)):
            broken = ids[~np.isfinite(values[ids]).all(axis=1)]
            if len(broken):
                raise ModelError(
                    f"task {self.task.name}: initialize wrote {name} that are not finite in environments {broken[:10]}"
                )


def _zero_where(over: NDArray[np.bool_] | None, diverged: NDArray[np.bool_], reward: NDArray[np.float64]) -> NDArray[np.float64]:
    if over is None and not diverged.any():
        return reward
    return np.where(diverged if over is None else diverged | over, 0.0, reward)


def _compile(task: Task, randomization: Randomization) -> mujoco.MjModel:
    try:
        spec = task.load_spec()
    except ValueError as error:
        raise error if isinstance(error, DpgError) else ModelError(f"task {task.name}: {error}") from error
    prepare_spec(spec, randomization)
    model = compile_spec(spec, f"task {task.name}")
    unlimited = [model.actuator(index).name or str(index) for index in range(model.nu) if not model.actuator_ctrllimited[index]]
    if unlimited:
        raise ContractError(
            f"task {task.name}: actuator(s) {', '.join(unlimited)} have no limits; give them a ctrlrange, to which actions in "
            "[-1, 1] are mapped"
        )
    return model


def _count_substeps(task: Task, model: mujoco.MjModel) -> int:
    exact = task.control_timestep_s / float(model.opt.timestep)
    if round(exact) < 1 or abs(exact - round(exact)) > 1e-6:
        raise ModelError(
            f"task {task.name}: control_timestep_s {task.control_timestep_s} must be a whole multiple of the model's timestep "
            f"{model.opt.timestep}"
        )
    return round(exact)


def make_native(
    task: str | Task,
    num_envs: int = 1,
    seed: int = 0,
    num_threads: int = 0,
    action_repeat: int = 1,
    randomization: str | Path | Randomization = "none",
    disturbance: str | Path | Disturbance = "none",
) -> BatchEnvironment:
    """Make ``num_envs`` environments of a task that steps natively; see :func:`sim.make`, which takes other tasks too.

    Args:
        task: name such as ``cartpole-swingup``, a reference such as ``my_robot.py:Reach``, or a task itself.
        num_envs: number of environments N.
        seed: seed of everything random.
        num_threads: native threads that step the simulations; 0 for all processors.
        action_repeat: control steps of the task per action; rewards are summed over them.
        randomization: name of a preset, path of a YAML file, or the settings themselves.
        disturbance: likewise.

    Raises:
        UnknownNameError: unknown task or preset, with a 'did you mean'.
        ConfigError: a YAML file that cannot be used, or a randomization that would make the model invalid.
        ModelError: a model that does not compile.
    """
    task = make_task(task) if isinstance(task, str) else task
    return BatchEnvironment(
        task,
        num_envs,
        seed,
        num_threads,
        action_repeat,
        resolve_randomization(randomization, task.name),
        resolve_preset("disturbance", disturbance, Disturbance, DISTURBANCE_PRESETS),
    )
