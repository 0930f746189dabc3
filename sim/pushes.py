"""Random pushes: Cartesian forces on the bodies of a model, each lasting a while."""

from __future__ import annotations

import math
from typing import Any

import mujoco
import numpy as np
from numpy.typing import NDArray

from sim.physics import Physics


class Pushes:
    """Pushes at random times; at most one at a time in each environment.

    A push is a constant force through the centre of mass of one moving body, drawn anew for each push. Its direction is uniform
    among those in which the model can move: on the circle for a model that moves in a plane, on the sphere otherwise.

    Args:
        rate_hz: mean number of pushes per second without one.
        force: smallest and largest size, N; uniform between them.
        duration_s: shortest and longest duration; uniform between them, then rounded to whole steps, at least one.
        physics: the simulations; their ``xfrc_applied`` is written.
        timestep_s: time between two calls of :meth:`step`.

    Raises:
        ValueError: a model without a body that can be pushed.
    """

    def __init__(
        self,
        rate_hz: float,
        force: tuple[float, float],
        duration_s: tuple[float, float],
        physics: Physics,
        timestep_s: float,
    ) -> None:
        self._probability = -math.expm1(-rate_hz * timestep_s)  # of one or more in a step of a Poisson process
        self._force = force
        self._duration_s = duration_s
        self._timestep_s = timestep_s
        self._applied = physics.data("xfrc_applied")
        self._bodies = pushable_bodies(physics.model)
        if not len(self._bodies):
            raise ValueError("push_rate_hz must be 0 for this model: none of its bodies moves and has a mass")
        self._directions = directions_of_motion(physics.model)
        self._remaining = np.zeros(physics.num_envs, dtype=np.int64)
        self._body = np.zeros(physics.num_envs, dtype=np.int64)
        self.memory: dict[str, NDArray[Any]] = {"remaining": self._remaining, "body": self._body}

    def step(self, random: np.random.Generator) -> None:
        """Start and end pushes; to be called before each control step of the physics."""
        over = np.flatnonzero(self._remaining == 1)
        self._applied[over, self._body[over]] = 0.0
        np.maximum(self._remaining - 1, 0, out=self._remaining)
        starting = np.flatnonzero((random.random(len(self._remaining)) < self._probability) & (self._remaining == 0))
        if len(starting):
            self._start(starting, random)

    def restart(self, ids: NDArray[np.int64]) -> None:
        """End the pushes of environments ``ids``."""
        self._applied[ids, self._body[ids]] = 0.0
        self._remaining[ids] = 0

    def _start(self, ids: NDArray[np.int64], random: np.random.Generator) -> None:
        direction = random.standard_normal((len(ids), 3)) * self._directions
        direction /= np.linalg.norm(direction, axis=1, keepdims=True)
        self._body[ids] = self._bodies[random.integers(len(self._bodies), size=len(ids))]
        self._applied[ids, self._body[ids], :3] = random.uniform(*self._force, (len(ids), 1)) * direction
        steps = np.rint(random.uniform(*self._duration_s, len(ids)) / self._timestep_s)
        self._remaining[ids] = np.maximum(steps, 1)


def pushable_bodies(model: mujoco.MjModel) -> NDArray[np.int64]:
    """Return the numbers of the bodies that move with the joints and have a mass."""
    return np.flatnonzero((model.body_weldid != 0) & (model.body_mocapid < 0) & (model.body_mass > 0))


def directions_of_motion(model: mujoco.MjModel) -> NDArray[np.float64]:
    """Return (3,), 1 for each world axis that the model can move along; 0 for the normal of a model that moves in a plane.

    A model moves in a plane if each of its joints is a hinge about the normal or a slide across it.
    """
    everywhere = np.ones(3)
    types = model.jnt_type
    if np.any((types == mujoco.mjtJoint.mjJNT_FREE) | (types == mujoco.mjtJoint.mjJNT_BALL)):
        return everywhere
    data = mujoco.MjData(model)
    mujoco.mj_kinematics(model, data)
    along = np.abs(data.xaxis)
    hinge = (types == mujoco.mjtJoint.mjJNT_HINGE)[:, None]
    fits = np.where(hinge, along > 1 - 1e-6, along < 1e-6).all(axis=0)
    for normal in (1, 2, 0):  # most planar models move in x and z
        if fits[normal]:
            everywhere[normal] = 0.0
            break
    return everywhere
