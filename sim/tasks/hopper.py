"""Hopper: dm_control's planar one-legged robot (Tassa et al., 2018, arXiv 1801.00690; model after Lillicrap et al., 2015)."""

from __future__ import annotations

import math

import mujoco
import numpy as np
from numpy.typing import NDArray

from sim.physics import Physics
from sim.suite_model import load_suite_spec
from sim.tasks.initial_states import random_joint_positions
from sim.tasks.rewards import tolerance
from sim.tasks.task import Task

STAND_HEIGHT = 0.6  # m, torso above foot
MAX_HEIGHT = 2.0  # m
HOP_SPEED = 2.0  # m/s
FOOT_PARTS = ("toe", "heel")


def stand() -> Task:
    """Return the task of standing upright with little effort."""
    return Hopper("hopper-stand", hopping=False)


def hop() -> Task:
    """Return the task of hopping forward at 2 m/s."""
    return Hopper("hopper-hop", hopping=True)


class Hopper(Task):
    """Stand or hop.

    Args:
        name: name of the task.
        hopping: whether forward speed is rewarded; otherwise little control is.
    """

    time_limit_s = 20.0
    control_timestep_s = 0.02

    def __init__(self, name: str, hopping: bool) -> None:
        self.name = name
        self._hopping = hopping

    def load_spec(self) -> mujoco.MjSpec:
        """Return dm_control's hopper."""
        return load_suite_spec("hopper")

    def observation_names(self, model: mujoco.MjModel) -> tuple[str, ...]:
        """Return positions of all joints but the one along the track, velocities of all joints, and touch of toe and heel."""
        joints = [model.joint(index).name for index in range(model.njnt)]
        return (
            *(f"position/{joint}" for joint in joints[1:]),
            *(f"velocity/{joint}" for joint in joints),
            *(f"touch/{part}" for part in FOOT_PARTS),
        )

    def bind(self, physics: Physics) -> None:
        """Keep the state, the bodies' centres, speed and touch."""
        self._physics = physics
        self._centers = physics.data("xipos")
        self._torso, self._foot = physics.body("torso"), physics.body("foot")
        self._velocity = physics.sensor("torso_subtreelinvel")
        self._touch = [physics.sensor(f"touch_{part}")[:, 0] for part in FOOT_PARTS]

    def initialize(self, ids: NDArray[np.int64], random: np.random.Generator) -> None:
        """Draw all joint angles, the orientation of the torso included."""
        random_joint_positions(self._physics, ids, random)

    def observe(self, out: NDArray[np.float32]) -> None:
        """Write positions without the one along the track, velocities, and the logarithms of 1 + touch forces (N, 15)."""
        nq, nv = self._physics.model.nq, self._physics.model.nv
        out[:, : nq - 1] = self._physics.qpos[:, 1:]
        out[:, nq - 1 : nq - 1 + nv] = self._physics.qvel
        for column, force in enumerate(self._touch, start=nq - 1 + nv):
            np.log1p(force, out=out[:, column])

    def reward(self, control: NDArray[np.float64]) -> NDArray[np.float64]:
        """Return (N,) rewards in [0, 1]: standing, times speed or small control."""
        standing = tolerance(self.height(), bounds=(STAND_HEIGHT, MAX_HEIGHT))
        if self._hopping:
            hopping = tolerance(
                self.speed(), bounds=(HOP_SPEED, math.inf), margin=HOP_SPEED / 2, value_at_margin=0.5, sigmoid="linear"
            )
            return standing * hopping
        small_control = tolerance(control, margin=1.0, value_at_margin=0.0, sigmoid="quadratic").mean(axis=1)
        return np.asarray(standing * (4 + small_control) / 5)

    def height(self) -> NDArray[np.float64]:
        """Return (N,) heights of the torso's centre above the foot's, m."""
        return np.asarray(self._centers[:, self._torso, 2] - self._centers[:, self._foot, 2])

    def speed(self) -> NDArray[np.float64]:
        """Return (N,) forward velocities of the centre of mass, m/s."""
        return self._velocity[:, 0]
