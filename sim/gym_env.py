"""Gymnasium environments ``dpg/<task>-v0``: one at a time, or natively vectorized.

``gymnasium.make`` gives a :class:`GymEnvironment`, ``gymnasium.make_vec`` a :class:`GymVectorEnvironment` that steps all of its
environments in one call on native threads. Both take the keyword arguments of :func:`sim.make`, but for the seed: as everywhere
in Gymnasium, ``reset(seed=...)`` seeds everything that is random, and what was never seeded starts from the system's entropy.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
from gymnasium import spaces
from gymnasium.vector import AutoresetMode, VectorEnv
from gymnasium.vector.utils import batch_space
from numpy.typing import NDArray

from sim.disturbance import Disturbance
from sim.environment import BatchEnvironment, make_native
from sim.history import HistoryEnvironment
from sim.randomization import Randomization
from sim.render import FrameRenderer
from sim.tasks import TASKS

FloatArray = NDArray[np.float32]


def register_environments() -> None:
    """Register ``dpg/<task>-v0`` for every task; a second call changes nothing."""
    for task in TASKS:
        environment_id = f"dpg/{task}-v0"
        if environment_id not in gymnasium.registry:
            gymnasium.register(
                environment_id,
                entry_point="sim.gym_env:GymEnvironment",
                vector_entry_point="sim.gym_env:GymVectorEnvironment",
                kwargs={"task": task},
            )


def environment_spaces(
    environment: BatchEnvironment | HistoryEnvironment,
) -> tuple[spaces.Box[np.float32], spaces.Box[np.float32]]:
    """Return the spaces of one observation (obs_dim,) and one action (act_dim,), both float32."""
    observation_space = spaces.Box(-np.inf, np.inf, (environment.obs_dim,), np.float32)
    return observation_space, spaces.Box(-1.0, 1.0, (environment.act_dim,), np.float32)


class Camera:
    """Draws environments; OpenGL is looked for when the first picture is wanted."""

    def __init__(self, environment: BatchEnvironment) -> None:
        self._environment = environment
        self._renderer: FrameRenderer | None = None

    def frame(self, index: int) -> NDArray[np.uint8]:
        """Return a picture (height, width, 3) of environment ``index``.

        Raises:
            RenderError: no OpenGL works here; the message says what to install.
        """
        if self._renderer is None:
            self._renderer = FrameRenderer(self._environment)
        return self._renderer.frame(index)

    def close(self) -> None:
        """Release what the pictures were drawn with."""
        if self._renderer is not None:
            self._renderer.close()
            self._renderer = None


class GymEnvironment(gymnasium.Env[FloatArray, FloatArray]):
    """One environment. Episodes are cut (``truncated``) at the task's own time limit, without a wrapper.

    ``info`` has ``dynamics`` after a reset (name of each randomized quantity -> its value in this episode), and ``fault`` (True)
    after a step in which the physics diverged, which also terminates the episode.

    Args:
        task: name such as ``cartpole-swingup`` or reference such as ``my_robot.py:Reach``; a registered id fills it in.
        action_repeat: control steps of the task per action; rewards are summed over them.
        randomization: preset, path of a YAML file, or the ranges themselves; see :func:`sim.make`.
        disturbance: likewise.
        history: number of previous observations and actions in each observation; see :class:`sim.history.HistoryEnvironment`.
        num_threads: native threads; more than one does not help a single environment.
        render_mode: ``rgb_array`` for :meth:`render`, or None.
    """

    metadata: dict[str, Any] = {"render_modes": ["rgb_array"]}  # noqa: RUF012 - declared so by the base class

    def __init__(
        self,
        task: str,
        *,
        action_repeat: int = 1,
        randomization: str | Path | Randomization = "none",
        disturbance: str | Path | Disturbance = "none",
        history: int = 0,
        num_threads: int = 1,
        render_mode: str | None = None,
    ) -> None:
        environment = make_native(task, 1, 0, num_threads, action_repeat, randomization, disturbance)
        self.environment = HistoryEnvironment(environment, history) if history else environment
        self.environment.reseed(None)
        self.observation_space, self.action_space = environment_spaces(self.environment)
        self.metadata = self.metadata | {"render_fps": round(1 / self.environment.control_timestep)}
        self.render_mode = render_mode
        self._camera = Camera(environment)
        self._ended = False
        self._first_obs: FloatArray | None = None

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[FloatArray, dict[str, Any]]:
        """Start an episode; ``seed`` seeds everything random, ``options`` are not used."""
        super().reset(seed=seed)
        if seed is not None:
            self.environment.reseed(seed)
            self._first_obs = None
        # the batch has already started the next episode when the last one ended; a second start would be drawn and paid twice
        obs = self.environment.reset()[0] if self._first_obs is None else self._first_obs
        self._ended, self._first_obs = False, None
        values = self.environment.dynamics[0].tolist()
        return obs, {"dynamics": dict(zip(self.environment.dynamics_names, values, strict=True))}

    def step(self, action: FloatArray) -> tuple[FloatArray, float, bool, bool, dict[str, Any]]:
        """Apply an action (act_dim,) in [-1, 1] for one control step.

        Raises:
            ResetNeeded: the episode has ended.
            ValueError: wrong shape, or an action that is not finite.
        """
        if self._ended:
            raise gymnasium.error.ResetNeeded("the episode has ended; call reset() before the next step()")
        result = self.environment.step(np.asarray(action)[None])
        terminated, truncated = bool(result.terminal[0]), bool(result.timeout[0])
        self._ended = terminated or truncated
        self._first_obs = result.obs[0] if self._ended else None
        info = {"fault": True} if result.fault[0] else {}
        return result.final_obs[0], float(result.reward[0]), terminated, truncated, info

    def render(self) -> NDArray[np.uint8] | None:
        """Return a picture (height, width, 3), or None without a ``render_mode``; after the end, of the next episode's start."""
        return None if self.render_mode is None else self._camera.frame(0)

    def close(self) -> None:
        """Release what drew the pictures."""
        self._camera.close()


class GymVectorEnvironment(VectorEnv[FloatArray, FloatArray, NDArray[Any]]):
    """N environments in one native batch, with same-step autoreset.

    Where an episode ended, ``obs`` is the first observation of the next one and ``infos`` has ``final_obs``, ``final_info`` (with
    ``fault`` where the physics diverged) and the ``dynamics`` of the new episode (name -> (N,), the present values of all
    environments). As usual, ``infos["_" + key]`` (N,) says for which environments ``infos[key]`` was written.

    Args:
        task: name such as ``cartpole-swingup`` or reference such as ``my_robot.py:Reach``; a registered id fills it in.
        num_envs: number of environments N.
        action_repeat: control steps of the task per action; rewards are summed over them.
        randomization: preset, path of a YAML file, or the ranges themselves; see :func:`sim.make`.
        disturbance: likewise.
        history: number of previous observations and actions in each observation; see :class:`sim.history.HistoryEnvironment`.
        num_threads: native threads that step the simulations; 0 for all processors.
        render_mode: ``rgb_array`` for :meth:`render`, or None.
    """

    metadata: dict[str, Any] = {"render_modes": ["rgb_array"], "autoreset_mode": AutoresetMode.SAME_STEP}  # noqa: RUF012 - as above

    def __init__(
        self,
        task: str,
        num_envs: int = 1,
        *,
        action_repeat: int = 1,
        randomization: str | Path | Randomization = "none",
        disturbance: str | Path | Disturbance = "none",
        history: int = 0,
        num_threads: int = 0,
        render_mode: str | None = None,
    ) -> None:
        environment = make_native(task, num_envs, 0, num_threads, action_repeat, randomization, disturbance)
        self.environment = HistoryEnvironment(environment, history) if history else environment
        self.environment.reseed(None)
        self.num_envs = num_envs
        self.metadata = self.metadata | {"render_fps": round(1 / self.environment.control_timestep)}
        self.render_mode = render_mode
        self._camera = Camera(environment)
        self.single_observation_space, self.single_action_space = environment_spaces(self.environment)
        self.observation_space = batch_space(self.single_observation_space, num_envs)
        self.action_space = batch_space(self.single_action_space, num_envs)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[FloatArray, dict[str, Any]]:
        """Start an episode in every environment; ``seed`` seeds everything random in all of them.

        Raises:
            ValueError: ``options`` ask for a reset of some environments alone, which autoreset leaves no use for.
        """
        if options and "reset_mask" in options:
            raise ValueError("reset_mask is for environments without autoreset; these start ended episodes anew by themselves")
        super().reset(seed=seed)
        if seed is not None:
            self.environment.reseed(seed)
        return self.environment.reset(), self._dynamics_info(np.ones(self.num_envs, dtype=np.bool_))

    def step(self, actions: FloatArray) -> tuple[FloatArray, NDArray[Any], NDArray[np.bool_], NDArray[np.bool_], dict[str, Any]]:
        """Apply actions (N, act_dim) in [-1, 1] for one control step.

        Raises:
            ValueError: wrong shape, or actions that are not finite.
        """
        result = self.environment.step(actions)
        ended = result.terminal | result.timeout
        infos: dict[str, Any] = {}
        if ended.any():
            final_info = {"fault": result.fault, "_fault": result.fault} if result.fault.any() else {}
            final_obs = np.full(self.num_envs, None, dtype=object)
            for index in np.flatnonzero(ended):
                final_obs[index] = result.final_obs[index]
            infos = {"final_obs": final_obs, "_final_obs": ended, "final_info": final_info, "_final_info": ended}
            infos |= self._dynamics_info(ended)
        return result.obs, result.reward, result.terminal, result.timeout, infos

    def render(self) -> tuple[NDArray[np.uint8], ...] | None:
        """Return a picture (height, width, 3) of each environment, or None without a ``render_mode``."""
        return None if self.render_mode is None else tuple(self._camera.frame(index) for index in range(self.num_envs))

    def close_extras(self) -> None:
        """Release what drew the pictures."""
        self._camera.close()

    def _dynamics_info(self, started: NDArray[np.bool_]) -> dict[str, Any]:
        """Return the entry ``dynamics`` of ``infos``, with its masks."""
        info: dict[str, Any] = {}
        for name, values in zip(self.environment.dynamics_names, self.environment.dynamics.T.copy(), strict=True):
            info[name], info[f"_{name}"] = values, started
        return {"dynamics": info, "_dynamics": started}
