"""Point mass, dm_control's ``point_mass`` domain (Tassa et al., 2018, arXiv 1801.00690).

A mass on a plane is pushed along both axes and has to come to rest at the middle, with little force.
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


def easy() -> PointMass:
    """Reach the middle; each actuator pushes along one axis."""
    return PointMass()


class PointMass(Task):
    """Reaching the target in the middle."""

    name = "point_mass-easy"
    time_limit_s = 20.0
    control_timestep_s = 0.02
    # the target lies at the origin, so the joint positions are the vector from it
    stage = mujoco.mjtStage.mjSTAGE_NONE

    def load_spec(self) -> mujoco.MjSpec:
        """Return dm_control's point mass model."""
        return load_suite_spec("point_mass")

    def observation_names(self, model: mujoco.MjModel) -> tuple[str, ...]:
        """Return a name for each number of the observation, in order."""
        return "position/x", "position/y", "velocity/x", "velocity/y"

    def bind(self, physics: Physics) -> None:
        """Keep the live arrays that the task reads."""
        self._physics = physics
        self._qpos, self._qvel = physics.qpos, physics.qvel
        self._target_radius = float(physics.model.geom("target").size[0])

    def initialize(self, ids: NDArray[np.int64], random: np.random.Generator) -> None:
        """Start from rest anywhere."""
        random_joint_positions(self._physics, ids, random)

    def observe(self, out: NDArray[np.float32]) -> None:
        """Write (N, 4): position and velocity."""
        out[:, 0:2] = self._qpos
        out[:, 2:4] = self._qvel

    def reward(self, control: NDArray[np.float64]) -> NDArray[np.float64]:
        """Return the rewards (N,) of the present states under the ``control`` (N, 2) in [-1, 1]."""
        distance = np.linalg.norm(self._qpos, axis=1)
        near_target = tolerance(distance, bounds=(0.0, self._target_radius), margin=self._target_radius)
        small_control = tolerance(control, margin=1.0, value_at_margin=0.0, sigmoid="quadratic").mean(axis=1)
        return np.asarray(near_target * (4 + small_control) / 5)
