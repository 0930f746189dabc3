"""Pendulum, dm_control's ``pendulum`` domain (Tassa et al., 2018, arXiv 1801.00690).

The motor is too weak to lift the pendulum at once, which has to be swung up and held within 8 degrees of upright.
"""

from __future__ import annotations

import mujoco
import numpy as np
from numpy.typing import NDArray

from sim.physics import Physics
from sim.suite_model import load_suite_spec
from sim.tasks.rewards import tolerance
from sim.tasks.task import Task

COSINE_RANGE = (float(np.cos(np.deg2rad(8.0))), 1.0)


def swingup() -> Pendulum:
    """Swing up the pendulum and hold it; rewarded only near upright."""
    return Pendulum()


class Pendulum(Task):
    """Swing-up from a random angle."""

    name = "pendulum-swingup"
    time_limit_s = 20.0
    control_timestep_s = 0.02
    stage = mujoco.mjtStage.mjSTAGE_NONE

    def load_spec(self) -> mujoco.MjSpec:
        """Return dm_control's pendulum model."""
        return load_suite_spec("pendulum")

    def observation_names(self, model: mujoco.MjModel) -> tuple[str, ...]:
        """Return a name for each number of the observation, in order."""
        return "orientation/cosine", "orientation/sine", "velocity/hinge"

    def bind(self, physics: Physics) -> None:
        """Keep the live arrays that the task reads."""
        self._angle, self._velocity = physics.qpos[:, 0], physics.qvel[:, 0]

    def initialize(self, ids: NDArray[np.int64], random: np.random.Generator) -> None:
        """Start from rest at any angle."""
        self._angle[ids] = random.uniform(-np.pi, np.pi, len(ids))

    def observe(self, out: NDArray[np.float32]) -> None:
        """Write (N, 3): cosine and sine of the angle from upright, and the velocity."""
        np.cos(self._angle, out=out[:, 0])
        np.sin(self._angle, out=out[:, 1])
        out[:, 2] = self._velocity

    def reward(self, control: NDArray[np.float64]) -> NDArray[np.float64]:
        """Return the rewards (N,) of the present states."""
        return tolerance(np.cos(self._angle), bounds=COSINE_RANGE)
