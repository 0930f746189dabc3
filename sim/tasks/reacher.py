"""Reacher, dm_control's ``reacher`` domain (Tassa et al., 2018, arXiv 1801.00690).

A planar arm with two motors has to keep its finger at a target, whose place is drawn anew for each episode.
"""

from __future__ import annotations

import mujoco
import numpy as np
from numpy.typing import NDArray

from sim.physics import Physics
from sim.suite_model import load_suite_spec
from sim.tasks.initial_states import random_joint_positions
from sim.tasks.rewards import tolerance
from sim.tasks.task import Task

TARGET_DISTANCE_M = (0.05, 0.20)


def easy() -> Reacher:
    """Reach a large target."""
    return Reacher("reacher-easy", target_radius_m=0.05)


def hard() -> Reacher:
    """Reach a small target."""
    return Reacher("reacher-hard", target_radius_m=0.015)


class Reacher(Task):
    """Reaching; rewarded only while finger and target touch.

    Args:
        name: name of the task.
        target_radius_m: radius of the target.
    """

    time_limit_s = 20.0
    control_timestep_s = 0.02
    stage = mujoco.mjtStage.mjSTAGE_POS

    def __init__(self, name: str, target_radius_m: float) -> None:
        self.name = name
        self._target_radius_m = target_radius_m

    def load_spec(self) -> mujoco.MjSpec:
        """Return dm_control's reacher model with the target's size."""
        spec = load_suite_spec("reacher")
        spec.geom("target").size[0] = self._target_radius_m
        return spec

    def observation_names(self, model: mujoco.MjModel) -> tuple[str, ...]:
        """Return a name for each number of the observation, in order."""
        return "position/shoulder", "position/wrist", "to_target/x", "to_target/y", "velocity/shoulder", "velocity/wrist"

    def bind(self, physics: Physics) -> None:
        """Keep the live arrays that the task reads."""
        self._physics = physics
        self._qpos, self._qvel = physics.qpos, physics.qvel
        finger, target = physics.model.geom("finger"), physics.model.geom("target")
        self._finger_xy = physics.data("geom_xpos")[:, finger.id, :2]
        self._target_xy = physics.data("geom_xpos")[:, target.id, :2]
        self._target_place = physics.parameter("geom_pos")[:, target.id]
        self._reach = float(finger.size[0] + target.size[0])

    def initialize(self, ids: NDArray[np.int64], random: np.random.Generator) -> None:
        """Start from rest at any joint positions, with the target in a ring around the shoulder."""
        random_joint_positions(self._physics, ids, random)
        angle = random.uniform(0.0, 2 * np.pi, len(ids))
        distance = random.uniform(*TARGET_DISTANCE_M, len(ids))
        self._target_place[ids, 0] = distance * np.sin(angle)
        self._target_place[ids, 1] = distance * np.cos(angle)

    def observe(self, out: NDArray[np.float32]) -> None:
        """Write (N, 6): joint angles, vector from finger to target, joint velocities."""
        out[:, 0:2] = self._qpos
        np.subtract(self._target_xy, self._finger_xy, out=out[:, 2:4])
        out[:, 4:6] = self._qvel

    def reward(self, control: NDArray[np.float64]) -> NDArray[np.float64]:
        """Return the rewards (N,) of the present states."""
        distance = np.linalg.norm(self._target_xy - self._finger_xy, axis=1)
        return tolerance(distance, bounds=(0.0, self._reach))
