"""Many environments of one task at once, on MuJoCo's native batch of simulations."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import mujoco
import mujoco.batch
import numpy as np
from numpy.typing import NDArray

from dpg_robot.contract import Contract
from sim.disturbance import DISTURBANCE_PRESETS, Disturbance, Pushes
from sim.presets import resolve_preset
from sim.randomization import RANDOMIZATION_PRESETS, DynamicsRandomizer, Randomization
from sim.tasks import Task, make_task

_STATE_FIELDS = ("qpos", "qvel", "act", "time", "ctrl", "qacc_warmstart", "qfrc_applied")


@dataclass(frozen=True)
class StepResult:
    """What a step gave, one row per environment.

    Attributes:
        obs: (N, obs_dim) float32; where an episode ended, the first observation of the next one.
        reward: (N,) float32, summed over the action repeats.
        terminal: (N,) bool, the episode ended in a state without a future.
        timeout: (N,) bool, the episode was cut by its time limit.
        final_obs: (N, obs_dim) float32, the observation that the action led to, also where an episode ended.
    """

    obs: NDArray[np.float32]
    reward: NDArray[np.float32]
    terminal: NDArray[np.bool_]
    timeout: NDArray[np.bool_]
    final_obs: NDArray[np.float32]


class BatchEnvironment:
    """N environments of one task. Ended episodes start anew by themselves, with newly drawn dynamics.

    All randomness comes from one generator with the given seed, so results do not depend on the number of threads.

    Args:
        task: the task.
        num_envs: number of environments N.
        seed: seed of everything random.
        num_threads: native threads that step the simulations; 0 for all processors.
        action_repeat: reward steps per action.
        randomization: ranges of the randomized dynamics.
        disturbance: noise and pushes.
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
        for name, value in (("num_envs", num_envs), ("action_repeat", action_repeat)):
            if value < 1:
                raise ValueError(f"{name} must be 1 or more, got {value}")
        self.task = task
        self.num_envs = num_envs
        self.action_repeat = action_repeat
        self.control_timestep = task.control_timestep_s * action_repeat
        self.observation_names = task.observation_names
        self.obs_dim = len(task.observation_names)
        model = task.load_model()
        self.act_dim = int(model.nu)
        self._substeps = round(task.control_timestep_s / model.opt.timestep)
        self._steps_per_episode = round(task.time_limit_s / self.control_timestep)
        self._batch = mujoco.batch.Batch(model, num_envs, num_threads)
        self._control_low, self._control_high = model.actuator_ctrlrange.T.copy()
        self._random = np.random.default_rng(seed)
        self._randomizer = DynamicsRandomizer(self._batch, randomization)
        self._disturbance = disturbance
        self._pushes = Pushes(disturbance, num_envs, model.nv, task.control_timestep_s)
        self._steps = np.zeros(num_envs, dtype=np.int64)
        self._started = False

    @property
    def qpos(self) -> NDArray[np.float64]:
        """(N, nq) float64, a copy of the generalized positions in MuJoCo's order."""
        return np.array(self._batch.qpos)

    @property
    def qvel(self) -> NDArray[np.float64]:
        """(N, nv) float64, a copy of the generalized velocities in MuJoCo's order."""
        return np.array(self._batch.qvel)

    def contract(self, history: int = 0) -> Contract:
        """Return the contract of a policy trained here with ``history`` previous frames."""
        return self.task.contract(self.action_repeat, history)

    def reset(self) -> NDArray[np.float32]:
        """Start a new episode in every environment and return the observations (N, obs_dim)."""
        self._restart(np.arange(self.num_envs))
        self._started = True
        return self._observe()

    def set_state(self, qpos: NDArray[Any], qvel: NDArray[Any]) -> NDArray[np.float32]:
        """Continue from positions (N, nq) and velocities (N, nv); returns the observations (N, obs_dim), without noise.

        Raises:
            ValueError: wrong shape, or values that are not finite.
        """
        for name, value in (("qpos", qpos), ("qvel", qvel)):
            expected = getattr(self._batch, name).shape
            if np.shape(value) != expected:
                raise ValueError(f"{name} must have shape {expected} (environments, MuJoCo's order), got {np.shape(value)}")
            if not np.isfinite(value).all():  # MuJoCo would silently start from its own default state instead
                raise ValueError(f"{name} must be finite")
        self._batch.qpos[:] = qpos
        self._batch.qvel[:] = qvel
        self._batch.forward()
        self._started = True
        return self.task.observe(self._batch).astype(np.float32)

    def step(self, actions: NDArray[Any]) -> StepResult:
        """Apply actions (N, act_dim) in [-1, 1] for one control step; values outside are clipped.

        Raises:
            ValueError: wrong shape, or actions that are not finite (names the environments).
            RuntimeError: before the first ``reset`` or ``set_state``.
        """
        if not self._started:
            raise RuntimeError("the environments have no state yet; call reset() or set_state() before step()")
        actions = self._check_actions(actions)
        low, high = self._control_low, self._control_high
        control = low + (np.clip(actions, -1.0, 1.0) + 1.0) * 0.5 * (high - low)
        reward = np.zeros(self.num_envs)
        for _ in range(self.action_repeat):
            self._advance(control)
            reward += self.task.reward(self._batch, control)
        self._steps += 1
        terminal = self.task.terminal(self._batch)
        timeout = (self._steps >= self._steps_per_episode) & ~terminal
        final_obs = self._observe()
        obs = final_obs
        ended = np.flatnonzero(terminal | timeout)
        if len(ended):
            self._restart(ended)
            obs = final_obs.copy()
            obs[ended] = self._observe()[ended]
        return StepResult(obs, reward.astype(np.float32), terminal, timeout, final_obs)

    def state_dict(self) -> dict[str, NDArray[Any]]:
        """Return everything that the next steps depend on, as arrays (random states as bytes)."""
        state = {f"physics.{name}": np.array(getattr(self._batch, name)) for name in _STATE_FIELDS}
        state |= {f"model.{name}": values for name, values in self._randomizer.parameters().items()}
        random = json.dumps(self._random.bit_generator.state).encode()
        return state | {
            "steps": self._steps.copy(),
            "push.force": self._pushes.force.copy(),
            "push.remaining": self._pushes.remaining.copy(),
            "random": np.frombuffer(random, dtype=np.uint8).copy(),
        }

    def load_state_dict(self, state: dict[str, NDArray[Any]]) -> None:
        """Put back what :meth:`state_dict` returned; further steps are then the same, bit for bit."""
        self._randomizer.set_parameters({k.removeprefix("model."): v for k, v in state.items() if k.startswith("model.")})
        for name in _STATE_FIELDS:
            getattr(self._batch, name)[:] = state[f"physics.{name}"]
        self._steps[:] = state["steps"]
        self._started = True
        self._pushes.force[:] = state["push.force"]
        self._pushes.remaining[:] = state["push.remaining"]
        self._random.bit_generator.state = json.loads(bytes(state["random"]))
        self._batch.forward()
        self._batch.qacc_warmstart[:] = state["physics.qacc_warmstart"]

    def _check_actions(self, actions: NDArray[Any]) -> NDArray[np.float64]:
        actions = np.asarray(actions, dtype=np.float64)
        if actions.shape != (self.num_envs, self.act_dim):
            raise ValueError(f"actions must have shape ({self.num_envs}, {self.act_dim}), got {actions.shape}")
        broken = np.flatnonzero(~np.isfinite(actions).all(axis=1))
        if len(broken):
            raise ValueError(f"actions must be finite; those of environment(s) {broken[:10].tolist()} are not")
        return actions

    def _advance(self, control: NDArray[np.float64]) -> None:
        noise = self._disturbance.action_noise
        if noise > 0:
            half_range = 0.5 * (self._control_high - self._control_low)
            control = control + noise * half_range * self._random.standard_normal(control.shape)
        self._batch.ctrl[:] = np.clip(control, self._control_low, self._control_high)
        force = self._pushes.draw(self._random)
        if force is not None:
            self._batch.qfrc_applied[:] = force
        self._batch.step(nstep=self._substeps)

    def _restart(self, ids: NDArray[np.int64]) -> None:
        self._batch.reset(ids, stage=mujoco.mjtStage.mjSTAGE_NONE)
        self._randomizer.draw(ids, self._random)
        self._pushes.clear(ids)
        self.task.initialize(self._batch, ids, self._random)
        self._batch.forward(ids)
        self._steps[ids] = 0

    def _observe(self) -> NDArray[np.float32]:
        obs = self.task.observe(self._batch)
        if self._disturbance.observation_noise > 0:
            obs = obs + self._disturbance.observation_noise * self._random.standard_normal(obs.shape)
        return obs.astype(np.float32)


def make(
    task: str,
    num_envs: int = 1,
    seed: int = 0,
    num_threads: int = 0,
    action_repeat: int = 1,
    randomization: str | Path | Randomization = "none",
    disturbance: str | Path | Disturbance = "none",
) -> BatchEnvironment:
    """Make ``num_envs`` environments of a task.

    Args:
        task: name such as ``cartpole-swingup``.
        num_envs: number of environments N.
        seed: seed of everything random.
        num_threads: native threads that step the simulations; 0 for all processors.
        action_repeat: reward steps per action; rewards are summed over them.
        randomization: name of a preset, path of a YAML file, or the ranges themselves.
        disturbance: likewise.

    Raises:
        UnknownNameError: unknown task or preset, with a 'did you mean'.
        ConfigError: a YAML file that cannot be used.
    """
    return BatchEnvironment(
        make_task(task),
        num_envs,
        seed,
        num_threads,
        action_repeat,
        resolve_preset("randomization", randomization, Randomization, RANDOMIZATION_PRESETS),
        resolve_preset("disturbance", disturbance, Disturbance, DISTURBANCE_PRESETS),
    )
