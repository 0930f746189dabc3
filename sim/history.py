"""History stacking: observations that hold the last frames too, so that worlds with delays can be learned."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dpg_robot.contract import Contract
from dpg_robot.observation import HistoryStack
from sim.environment import BatchEnvironment
from sim.step_result import StepResult

_PREFIX = "history."


class HistoryEnvironment:
    """A batch of environments whose observations hold the last ``frames`` pairs of observation and action, newest first.

    The layout is that of a policy's own history (:class:`dpg_robot.observation.HistoryStack`): the present observation, then for
    each frame the observation and the action that was taken on it; zeros before an episode's first step. In a world with delays
    of up to d control steps, d frames make the observations Markovian again.

    All other attributes are those of the environment inside.

    Args:
        environment: what to wrap.
        frames: number of previous frames, 1 or more.
    """

    def __init__(self, environment: BatchEnvironment, frames: int) -> None:
        if frames < 1:
            raise ValueError(f"frames must be 1 or more, got {frames}")
        self.environment = environment
        self.frames = frames
        self._stack = HistoryStack(environment.contract(frames), environment.num_envs)
        names = environment.observation_names
        frame = (*names, *(f"action_{index}" for index in range(environment.act_dim)))
        past = tuple(f"{name}@-{age}" for age in range(1, frames + 1) for name in frame)
        self.observation_names = names + past
        self.obs_dim = len(self.observation_names)
        self._features = np.zeros((environment.num_envs, len(names)), dtype=np.float32)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_") or name == "environment":  # as when it is copied, before it has one
            raise AttributeError(name)
        return getattr(self.environment, name)

    def contract(self, history: int | None = None) -> Contract:
        """Return the contract of a policy trained here; its history is ``frames``.

        Raises:
            ValueError: another number of frames was asked for.
        """
        if history not in (None, self.frames):
            raise ValueError(f"these observations hold {self.frames} frames, so the policy's history cannot be {history}")
        return self.environment.contract(self.frames)

    def reset(self) -> NDArray[np.float32]:
        """Start a new episode in every environment and return the observations (N, obs_dim)."""
        self._features = self.environment.reset()
        self._stack.clear(np.arange(self.environment.num_envs))
        return self._stack.observe(self._features)

    def set_state(self, qpos: NDArray[Any], qvel: NDArray[Any]) -> NDArray[np.float32]:
        """Continue from positions (N, nq) and velocities (N, nv), with an empty history; see ``BatchEnvironment.set_state``.

        Returns:
            What the agent sees (N, obs_dim), which is disturbed.
        """
        self.environment.set_state(qpos, qvel)
        self._features = self.environment.obs
        self._stack.clear(np.arange(self.environment.num_envs))
        return self._stack.observe(self._features)

    def step(self, actions: NDArray[Any]) -> StepResult:
        """Apply actions (N, act_dim); see ``BatchEnvironment.step``. Ended episodes begin with an empty history."""
        step = self.environment.step(actions)
        self._stack.push(self._features, np.clip(actions, -1.0, 1.0))
        final_obs = self._stack.observe(step.final_obs)
        self._stack.clear(np.flatnonzero(step.terminal | step.timeout))
        self._features = step.obs
        return dataclasses.replace(step, obs=self._stack.observe(step.obs), final_obs=final_obs)

    def state_dict(self) -> dict[str, NDArray[Any]]:
        """Return everything that the next steps depend on, as arrays."""
        memory = {"frames": self._stack.frames.copy(), "features": self._features.copy()}
        return self.environment.state_dict() | {_PREFIX + name: value for name, value in memory.items()}

    def load_state_dict(self, state: dict[str, NDArray[Any]]) -> None:
        """Put back what :meth:`state_dict` returned; further steps are then the same, bit for bit."""
        self.environment.load_state_dict({name: value for name, value in state.items() if not name.startswith(_PREFIX)})
        self._stack.frames = np.array(state[_PREFIX + "frames"])
        self._features = np.array(state[_PREFIX + "features"])
