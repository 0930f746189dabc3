"""Swimmer, dm_control's ``swimmer`` domain (Tassa et al., 2018, arXiv 1801.00690; after Coulom, 2002).

A chain of links in a viscous plane, with a motor in each joint, has to bring its nose to a target, drawn anew for each episode.
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

ROOT_JOINTS = 3  # x, y and heading of the head
CLOSE_TARGET_PROBABILITY = 0.2
# half the side of the square in which the target lies
CLOSE_TARGET_M, FAR_TARGET_M = 0.3, 2.0


def swimmer6() -> Swimmer:
    """Swim with six links."""
    return Swimmer(num_links=6)


class Swimmer(Task):
    """Swimming to a target.

    Args:
        num_links: number of links, head included.
    """

    time_limit_s = 30.0
    control_timestep_s = 0.03

    def __init__(self, num_links: int) -> None:
        self.name = f"swimmer-swimmer{num_links}"
        self._num_links = num_links

    def load_spec(self) -> mujoco.MjSpec:
        """Return dm_control's swimmer model."""
        return load_suite_spec("swimmer", n_joints=self._num_links)

    def observation_names(self, model: mujoco.MjModel) -> tuple[str, ...]:
        """Return a name for each number of the observation, in order."""
        joints = [f"joints/{model.joint(index).name}" for index in range(ROOT_JOINTS, model.njnt)]
        links = ["head", *(f"segment_{index}" for index in range(self._num_links - 1))]
        velocities = [f"body_velocities/{link}_{axis}" for link in links for axis in ("x", "y", "turn")]
        return (*joints, "to_target/x", "to_target/y", *velocities)

    def bind(self, physics: Physics) -> None:
        """Keep the live arrays that the task reads."""
        self._physics = physics
        model, links = physics.model, self._num_links
        self._joints = physics.qpos[:, ROOT_JOINTS:]
        target = model.geom("target")
        self._target_xyz = physics.data("geom_xpos")[:, target.id]
        self._nose_xyz = physics.data("geom_xpos")[:, model.geom("nose").id]
        self._head_rotation = physics.data("xmat")[:, physics.body("head")].reshape(-1, 3, 3)
        self._target_place = physics.parameter("geom_pos")[:, target.id]
        self._target_radius = float(target.size[0])
        # each link has a velocimeter and a gyroscope, one after the other; their planar readings are x, y and turn about z
        first = int(model.sensor("head_vel").adr[0])
        readings = physics.data("sensordata")[:, first:].reshape(-1, links, 6)
        self._linear_velocities, self._turn_velocities = readings[:, :, :2], readings[:, :, 5]

    def initialize(self, ids: NDArray[np.int64], random: np.random.Generator) -> None:
        """Start from rest at any joint positions and heading; one target in five lies in a small square."""
        random_joint_positions(self._physics, ids, random)
        close = random.random((len(ids), 1)) < CLOSE_TARGET_PROBABILITY
        half_side = np.where(close, CLOSE_TARGET_M, FAR_TARGET_M)
        self._target_place[ids, :2] = random.uniform(-half_side, half_side, (len(ids), 2))

    def observe(self, out: NDArray[np.float32]) -> None:
        """Write (N, 25 for six links): joint angles, target from the nose in the head's frame, and velocities of all links."""
        num_joints = self._num_links - 1
        out[:, :num_joints] = self._joints
        out[:, num_joints : num_joints + 2] = self._nose_to_target()
        velocities = out[:, num_joints + 2 :].reshape(-1, self._num_links, 3)
        velocities[:, :, :2] = self._linear_velocities
        velocities[:, :, 2] = self._turn_velocities

    def reward(self, control: NDArray[np.float64]) -> NDArray[np.float64]:
        """Return the rewards (N,) of the present states."""
        distance = np.linalg.norm(self._nose_to_target(), axis=1)
        radius = self._target_radius
        return tolerance(distance, bounds=(0.0, radius), margin=5 * radius, sigmoid="long_tail")

    def _nose_to_target(self) -> NDArray[np.float64]:
        """Return (N, 2), the vector from nose to target in the head's frame."""
        vector = self._target_xyz - self._nose_xyz
        return np.asarray(np.einsum("ni,nij->nj", vector, self._head_rotation[:, :, :2]))
