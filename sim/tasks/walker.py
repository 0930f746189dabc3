"""Walker: dm_control's planar biped (Tassa et al., 2018, arXiv 1801.00690; model after Lillicrap et al., 2015)."""

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

STAND_HEIGHT = 1.2  # m, torso above ground
WALK_SPEED = 1.0  # m/s
RUN_SPEED = 8.0  # m/s

# entries of a rotation matrix, stored row by row
_XX, _XZ, _ZZ = 0, 2, 8


def stand() -> Task:
    """Return the task of standing upright."""
    return Walker("walker-stand", move_speed=0.0)


def walk() -> Task:
    """Return the task of walking at 1 m/s."""
    return Walker("walker-walk", move_speed=WALK_SPEED)


def run() -> Task:
    """Return the task of running at 8 m/s."""
    return Walker("walker-run", move_speed=RUN_SPEED)


class Walker(Task):
    """Stand, walk or run.

    Args:
        name: name of the task.
        move_speed: forward speed from which the reward does not grow any more, m/s; with 0 standing is all that counts.
    """

    time_limit_s = 25.0
    control_timestep_s = 0.025

    def __init__(self, name: str, move_speed: float) -> None:
        self.name = name
        self._move_speed = move_speed

    def load_spec(self) -> mujoco.MjSpec:
        """Return dm_control's planar walker."""
        return load_suite_spec("walker")

    def observation_names(self, model: mujoco.MjModel) -> tuple[str, ...]:
        """Return cosine and sine of each body's angle, the height of the torso, and velocities of all joints."""
        bodies = [model.body(index).name for index in range(1, model.nbody)]
        joints = [model.joint(index).name for index in range(model.njnt)]
        orientations = [f"orientations/{body}_{function}" for body in bodies for function in ("cosine", "sine")]
        return (*orientations, "height", *(f"velocity/{joint}" for joint in joints))

    def bind(self, physics: Physics) -> None:
        """Keep the bodies' orientations, the height of the torso and the velocities."""
        torso = physics.body("torso")
        self._orientations = physics.data("xmat")
        self._torso_height = physics.data("xpos")[:, torso, 2]
        self._torso_upright = self._orientations[:, torso, _ZZ]
        self._velocity = physics.sensor("torso_subtreelinvel")
        self._height_column = int(physics.model.joint("rootz").qposadr[0])
        self._leg = [physics.body(f"right_{part}") for part in ("thigh", "leg", "foot")]
        self._physics = physics

    def initialize(self, ids: NDArray[np.int64], random: np.random.Generator) -> None:
        """Draw all joint angles, the orientation of the torso included; legs longer than nominal begin that much higher."""
        random_joint_positions(self._physics, ids, random)
        offsets = self._physics.current("body_pos")[ids][:, self._leg, 2]
        lengthening = self._physics.model.body_pos[self._leg, 2].sum() - offsets.sum(axis=1)
        self._physics.qpos[ids, self._height_column] += np.maximum(lengthening, 0.0)

    def observe(self, out: NDArray[np.float32]) -> None:
        """Write the orientations of all bodies, the height of the torso and the velocities (N, 24)."""
        height = 2 * (self._physics.model.nbody - 1)
        out[:, 0:height:2] = self._orientations[:, 1:, _XX]
        out[:, 1:height:2] = self._orientations[:, 1:, _XZ]
        out[:, height] = self._torso_height
        out[:, height + 1 :] = self._physics.qvel

    def reward(self, control: NDArray[np.float64]) -> NDArray[np.float64]:
        """Return (N,) rewards in [0, 1]: standing upright, times forward speed."""
        standing = tolerance(self._torso_height, bounds=(STAND_HEIGHT, math.inf), margin=STAND_HEIGHT / 2)
        upright = (1 + self._torso_upright) / 2
        stand_reward = np.asarray((3 * standing + upright) / 4)
        if self._move_speed == 0:
            return stand_reward
        moving = tolerance(
            self.speed(),
            bounds=(self._move_speed, math.inf),
            margin=self._move_speed / 2,
            value_at_margin=0.5,
            sigmoid="linear",
        )
        return np.asarray(stand_reward * (5 * moving + 1) / 6)

    def speed(self) -> NDArray[np.float64]:
        """Return (N,) forward velocities of the centre of mass, m/s."""
        return self._velocity[:, 0]
