"""Ball in cup, dm_control's ``ball_in_cup`` domain (Tassa et al., 2018, arXiv 1801.00690).

A cup, moved by two motors in a vertical plane, has to catch a ball that hangs on a string below it.
"""

from __future__ import annotations

import mujoco
import numpy as np
from numpy.typing import NDArray

from sim.physics import Physics
from sim.suite_model import load_suite_spec
from sim.tasks.initial_states import redraw_until_free
from sim.tasks.task import Task

# the ball's place at the start, relative to the model's own
BALL_X_RANGE_M = (-0.2, 0.2)
BALL_Z_RANGE_M = (0.2, 0.5)


def catch() -> BallInCup:
    """Catch the ball."""
    return BallInCup()


class BallInCup(Task):
    """Catching; rewarded only while the ball is in the cup."""

    name = "ball_in_cup-catch"
    time_limit_s = 20.0
    control_timestep_s = 0.02
    stage = mujoco.mjtStage.mjSTAGE_POS

    def load_spec(self) -> mujoco.MjSpec:
        """Return dm_control's model of cup and ball."""
        return load_suite_spec("ball_in_cup")

    def observation_names(self, model: mujoco.MjModel) -> tuple[str, ...]:
        """Return a name for each number of the observation, in order."""
        joints = [model.joint(index).name for index in range(model.njnt)]
        return (*(f"position/{name}" for name in joints), *(f"velocity/{name}" for name in joints))

    def bind(self, physics: Physics) -> None:
        """Keep the live arrays that the task reads."""
        self._physics = physics
        self._qpos, self._qvel = physics.qpos, physics.qvel
        model = physics.model
        self._ball_columns = [int(model.joint(name).qposadr[0]) for name in ("ball_x", "ball_z")]
        target = model.site("target")
        self._target_xz = physics.data("site_xpos")[:, target.id, ::2]
        self._ball_xz = physics.data("xpos")[:, physics.body("ball"), ::2]
        # how far the ball's centre may be from the middle of the target, along x and z
        self._room = target.size[::2] - model.geom("ball").size[0]

    def initialize(self, ids: NDArray[np.int64], random: np.random.Generator) -> None:
        """Let the cup rest and put the ball anywhere around it, free of contact."""
        redraw_until_free(self._physics, ids, random, self._draw_ball)

    def observe(self, out: NDArray[np.float32]) -> None:
        """Write (N, 8): positions, then velocities, of cup and ball."""
        out[:, 0:4] = self._qpos
        out[:, 4:8] = self._qvel

    def reward(self, control: NDArray[np.float64]) -> NDArray[np.float64]:
        """Return the rewards (N,) of the present states."""
        inside = np.abs(self._target_xz - self._ball_xz) < self._room
        return np.asarray(inside.all(axis=1), dtype=np.float64)

    def _draw_ball(self, ids: NDArray[np.int64], random: np.random.Generator) -> None:
        column_x, column_z = self._ball_columns
        self._qpos[ids, column_x] = random.uniform(*BALL_X_RANGE_M, len(ids))
        self._qpos[ids, column_z] = random.uniform(*BALL_Z_RANGE_M, len(ids))
