"""Acrobot, dm_control's ``acrobot`` domain (Tassa et al., 2018, arXiv 1801.00690; model of Coulom, 2002).

Two arms hang from a fixed shoulder; only the elbow has a motor. The tip has to reach a target above, where both arms stand up.
"""

from __future__ import annotations

import mujoco
import numpy as np
from numpy.typing import NDArray

from sim.physics import Physics
from sim.suite_model import load_suite_spec
from sim.tasks.rewards import tolerance
from sim.tasks.task import Task

# elements of a flattened rotation matrix: horizontal and vertical component of the body's z axis
XZ, ZZ = 2, 8


def swingup() -> Acrobot:
    """Bring the tip to the target; the reward grows as it comes near."""
    return Acrobot(sparse=False)


def swingup_sparse() -> Acrobot:
    """Bring the tip to the target; rewarded only there."""
    return Acrobot(sparse=True)


class Acrobot(Task):
    """Swing-up from random angles.

    Args:
        sparse: reward 1 at the target and 0 elsewhere, instead of a smooth one.
    """

    time_limit_s = 10.0
    control_timestep_s = 0.01
    stage = mujoco.mjtStage.mjSTAGE_POS

    def __init__(self, sparse: bool) -> None:
        self.name = "acrobot-swingup_sparse" if sparse else "acrobot-swingup"
        self._margin = 0.0 if sparse else 1.0

    def load_spec(self) -> mujoco.MjSpec:
        """Return dm_control's acrobot model."""
        return load_suite_spec("acrobot")

    def observation_names(self, model: mujoco.MjModel) -> tuple[str, ...]:
        """Return a name for each number of the observation, in order."""
        return (
            "orientations/upper_arm_sine",
            "orientations/lower_arm_sine",
            "orientations/upper_arm_cosine",
            "orientations/lower_arm_cosine",
            "velocity/shoulder",
            "velocity/elbow",
        )

    def bind(self, physics: Physics) -> None:
        """Keep the live arrays that the task reads."""
        self._qpos, self._qvel = physics.qpos, physics.qvel
        upper, lower = physics.body("upper_arm"), physics.body("lower_arm")
        self._orientations = physics.data("xmat")[:, upper : lower + 1]
        self._tip = physics.data("site_xpos")[:, physics.model.site("tip").id]
        self._target = physics.data("site_xpos")[:, physics.model.site("target").id]
        self._target_radius = float(physics.model.site("target").size[0])

    def initialize(self, ids: NDArray[np.int64], random: np.random.Generator) -> None:
        """Start from rest at any two angles."""
        self._qpos[ids] = random.uniform(-np.pi, np.pi, (len(ids), 2))

    def observe(self, out: NDArray[np.float32]) -> None:
        """Write (N, 6): sines, then cosines of both arms' angles from upright, and the joint velocities."""
        out[:, 0:2] = self._orientations[:, :, XZ]
        out[:, 2:4] = self._orientations[:, :, ZZ]
        out[:, 4:6] = self._qvel

    def reward(self, control: NDArray[np.float64]) -> NDArray[np.float64]:
        """Return the rewards (N,) of the present states."""
        distance = np.linalg.norm(self._target - self._tip, axis=1)
        return tolerance(distance, bounds=(0.0, self._target_radius), margin=self._margin)
