"""What goes into a step of many environments, and what comes out."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class StepResult:
    """What a step gave, one row per environment.

    Attributes:
        obs: (N, obs_dim) float32; where an episode ended, the first observation of the next one.
        reward: (N,) float32, summed over the action repeats.
        terminal: (N,) bool, the episode ended in a state without a future.
        timeout: (N,) bool, the episode was cut by its time limit.
        final_obs: (N, obs_dim) float32, the observation that the action led to, also where an episode ended.
        fault: (N,) bool, the physics diverged, or a reward or observation was not finite. The episode ends as terminal; the
            control step in which it happened earns nothing, and ``final_obs`` is the observation before it. What earlier control
            steps of this action earned, and what a reward delay still held, is paid.
    """

    obs: NDArray[np.float32]
    reward: NDArray[np.float32]
    terminal: NDArray[np.bool_]
    timeout: NDArray[np.bool_]
    final_obs: NDArray[np.float32]
    fault: NDArray[np.bool_]


def check_state(
    qpos: NDArray[Any], qvel: NDArray[Any], own_qpos: NDArray[Any], own_qvel: NDArray[Any], limit: float = math.inf
) -> None:
    """Refuse positions and velocities that do not fit the present ones.

    Raises:
        ValueError: wrong shape, or values that are not finite or not below ``limit``.
    """
    bound = f" and below {limit:g}" if math.isfinite(limit) else ""
    for name, value, own in (("qpos", qpos, own_qpos), ("qvel", qvel, own_qvel)):
        if np.shape(value) != own.shape:
            raise ValueError(f"{name} must have shape {own.shape} (environments, MuJoCo's order), got {np.shape(value)}")
        if not (np.abs(value) < limit).all():
            raise ValueError(f"{name} must be finite{bound}")


def check_actions(actions: NDArray[Any], num_envs: int, act_dim: int) -> NDArray[np.float64]:
    """Return actions (num_envs, act_dim) clipped to [-1, 1], a new array.

    Raises:
        ValueError: wrong shape or type, or actions that are not finite (names the environments).
    """
    actions = np.asarray(actions)
    if actions.shape != (num_envs, act_dim):
        raise ValueError(f"actions must have shape ({num_envs}, {act_dim}), got {actions.shape}")
    if actions.dtype.kind not in "fiu":
        raise ValueError(f"actions must be numbers, got an array of {actions.dtype}")
    if not np.isfinite(actions).all():
        broken = np.flatnonzero(~np.isfinite(actions).all(axis=1))
        raise ValueError(f"actions must be finite; those of environment(s) {broken[:10].tolist()} are not")
    clipped: NDArray[np.float64] = np.clip(actions, -1.0, 1.0, dtype=np.float64)
    return clipped
