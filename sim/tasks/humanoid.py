"""Humanoid: dm_control's humanoid with 21 joints (Tassa et al., 2018, arXiv 1801.00690; model after Tassa et al., 2012)."""

from __future__ import annotations

import math
from functools import partial

import mujoco
import numpy as np
from numpy.typing import NDArray

from sim.physics import Physics
from sim.suite_model import load_suite_spec
from sim.tasks.initial_states import random_joint_positions, redraw_until_free
from sim.tasks.rewards import tolerance
from sim.tasks.task import Task

STAND_HEIGHT = 1.4  # m, head above ground
WALK_SPEED = 1.0  # m/s
RUN_SPEED = 10.0  # m/s
EXTREMITIES = ("left_hand", "left_foot", "right_hand", "right_foot")

_ROOT_QPOS = 7  # numbers of the free joint in qpos, which are not observed


def stand() -> Task:
    """Return the task of standing still."""
    return Humanoid("humanoid-stand", move_speed=0.0)


def walk() -> Task:
    """Return the task of walking at 1 m/s."""
    return Humanoid("humanoid-walk", move_speed=WALK_SPEED)


def run() -> Task:
    """Return the task of running at 10 m/s."""
    return Humanoid("humanoid-run", move_speed=RUN_SPEED)


class Humanoid(Task):
    """Stand, walk or run, in any horizontal direction.

    Args:
        name: name of the task.
        move_speed: horizontal speed from which the reward does not grow any more, m/s; with 0 standing still is rewarded.
    """

    time_limit_s = 25.0
    control_timestep_s = 0.025

    def __init__(self, name: str, move_speed: float) -> None:
        self.name = name
        self._move_speed = move_speed

    def load_spec(self) -> mujoco.MjSpec:
        """Return dm_control's humanoid."""
        return load_suite_spec("humanoid")

    def observation_names(self, model: mujoco.MjModel) -> tuple[str, ...]:
        """Return joint angles, height of the head, extremities, the vertical, velocity of the centre of mass, and velocities."""
        joints = [model.joint(index).name for index in range(1, model.njnt)]
        root = [f"root_{kind}_{axis}" for kind in ("linear", "angular") for axis in "xyz"]
        return (
            *(f"joint_angles/{joint}" for joint in joints),
            "head_height",
            *(f"extremities/{body}_{axis}" for body in EXTREMITIES for axis in "xyz"),
            *(f"torso_vertical/{axis}" for axis in "xyz"),
            *(f"com_velocity/{axis}" for axis in "xyz"),
            *(f"velocity/{name}" for name in (*root, *joints)),
        )

    def bind(self, physics: Physics) -> None:
        """Keep the state, the frames of head, torso and extremities, and the velocity of the centre of mass."""
        torso = physics.body("torso")
        positions = physics.data("xpos")
        self._physics = physics
        self._positions = positions
        self._extremities = [physics.body(name) for name in EXTREMITIES]
        self._head_height = positions[:, physics.body("head"), 2]
        self._torso_position = positions[:, torso]
        self._torso_frame = physics.data("xmat").reshape(physics.num_envs, -1, 3, 3)[:, torso]
        self._velocity = physics.sensor("torso_subtreelinvel")

    def initialize(self, ids: NDArray[np.int64], random: np.random.Generator) -> None:
        """Draw orientation and joint angles until nothing touches."""
        redraw_until_free(self._physics, ids, random, partial(random_joint_positions, self._physics))

    def observe(self, out: NDArray[np.float32]) -> None:
        """Write joint angles, head height, extremities, vertical, velocity of the centre of mass, and velocities (N, 67)."""
        angles = self._physics.model.nq - _ROOT_QPOS
        extremities = angles + 1
        vertical = extremities + 3 * len(EXTREMITIES)
        out[:, :angles] = self._physics.qpos[:, _ROOT_QPOS:]
        out[:, angles] = self._head_height
        out[:, extremities:vertical] = self.extremities().reshape(len(out), -1)
        out[:, vertical : vertical + 3] = self._torso_frame[:, 2]
        out[:, vertical + 3 : vertical + 6] = self._velocity
        out[:, vertical + 6 :] = self._physics.qvel

    def reward(self, control: NDArray[np.float64]) -> NDArray[np.float64]:
        """Return (N,) rewards in [0, 1]: standing upright with small control, times speed, or times standing still."""
        standing = tolerance(self._head_height, bounds=(STAND_HEIGHT, math.inf), margin=STAND_HEIGHT / 4)
        upright = tolerance(self._torso_frame[:, 2, 2], bounds=(0.9, math.inf), margin=1.9, value_at_margin=0.0, sigmoid="linear")
        small_control = tolerance(control, margin=1.0, value_at_margin=0.0, sigmoid="quadratic").mean(axis=1)
        effort = (4 + small_control) / 5
        horizontal = self._velocity[:, :2]
        if self._move_speed == 0:
            still = tolerance(horizontal, margin=2.0).mean(axis=1)
            return np.asarray(effort * standing * upright * still)
        moving = tolerance(
            np.hypot(horizontal[:, 0], horizontal[:, 1]),
            bounds=(self._move_speed, math.inf),
            margin=self._move_speed,
            value_at_margin=0.0,
            sigmoid="linear",
        )
        return np.asarray(effort * standing * upright * (5 * moving + 1) / 6)

    def extremities(self) -> NDArray[np.float64]:
        """Return the positions (N, 4, 3) of hands and feet in the frame of the torso, m; order as in ``EXTREMITIES``."""
        from_torso = self._positions[:, self._extremities] - self._torso_position[:, None]
        return np.asarray(from_torso @ self._torso_frame)
