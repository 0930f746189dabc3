"""Finger, dm_control's ``finger`` domain (Tassa et al., 2018, arXiv 1801.00690; idea of Tassa et al., 2010).

A finger with two motors turns a free body by touching it: to spin it fast, or to bring its tip to a target angle.
"""

from __future__ import annotations

import mujoco
import numpy as np
from numpy.typing import NDArray

from sim.physics import Physics
from sim.suite_model import load_suite_spec
from sim.tasks.initial_states import random_joint_positions, redraw_until_free
from sim.tasks.task import Task

SPIN_HINGE_DAMPING = 0.03  # N m s/rad
SPIN_VELOCITY = -15.0  # rad/s; at least as fast as this counts as spinning


def spin() -> Spin:
    """Spin the body fast."""
    return Spin()


def turn_easy() -> Turn:
    """Turn the body to a large target."""
    return Turn("finger-turn_easy", target_radius_m=0.07)


def turn_hard() -> Turn:
    """Turn the body to a small target."""
    return Turn("finger-turn_hard", target_radius_m=0.03)


class Finger(Task):
    """What all tasks of the domain share: the model, the first state, and the observation of finger and body."""

    time_limit_s = 20.0
    control_timestep_s = 0.02

    def load_spec(self) -> mujoco.MjSpec:
        """Return dm_control's finger model."""
        return load_suite_spec("finger")

    def observation_names(self, model: mujoco.MjModel) -> tuple[str, ...]:
        """Return a name for each number of the observation, in order."""
        return (
            "position/proximal",
            "position/distal",
            "position/tip_x",
            "position/tip_z",
            "velocity/proximal",
            "velocity/distal",
            "velocity/hinge",
            "touch/top",
            "touch/bottom",
        )

    def bind(self, physics: Physics) -> None:
        """Keep the live arrays that the task reads."""
        self._physics = physics
        self._proximal, self._distal = physics.sensor("proximal")[:, 0], physics.sensor("distal")[:, 0]
        self._tip_xz, self._spinner_xz = physics.sensor("tip")[:, ::2], physics.sensor("spinner")[:, ::2]
        self._velocities = [physics.sensor(f"{joint}_velocity")[:, 0] for joint in ("proximal", "distal", "hinge")]
        self._touch_top, self._touch_bottom = physics.sensor("touchtop")[:, 0], physics.sensor("touchbottom")[:, 0]

    def initialize(self, ids: NDArray[np.int64], random: np.random.Generator) -> None:
        """Start from rest at any joint positions where finger and body do not touch."""
        redraw_until_free(self._physics, ids, random, lambda free, random: random_joint_positions(self._physics, free, random))

    def observe(self, out: NDArray[np.float32]) -> None:
        """Write (N, 9): finger angles, tip from the hinge (x, z), joint velocities, log(1 + touch force) above and below."""
        out[:, 0] = self._proximal
        out[:, 1] = self._distal
        np.subtract(self._tip_xz, self._spinner_xz, out=out[:, 2:4])
        for column, velocity in enumerate(self._velocities, start=4):
            out[:, column] = velocity
        np.log1p(self._touch_top, out=out[:, 7])
        np.log1p(self._touch_bottom, out=out[:, 8])


class Spin(Finger):
    """Spinning; rewarded only while the body turns fast in one direction."""

    name = "finger-spin"

    def load_spec(self) -> mujoco.MjSpec:
        """Return dm_control's finger model with a hinge that turns easily."""
        spec = super().load_spec()
        spec.joint("hinge").damping[0] = SPIN_HINGE_DAMPING
        return spec

    def reward(self, control: NDArray[np.float64]) -> NDArray[np.float64]:
        """Return the rewards (N,) of the present states."""
        hinge_velocity = self._velocities[-1]
        return (hinge_velocity <= SPIN_VELOCITY).astype(np.float64)


class Turn(Finger):
    """Turning; rewarded only while the body's tip is at the target.

    Args:
        name: name of the task.
        target_radius_m: radius of the target.
    """

    def __init__(self, name: str, target_radius_m: float) -> None:
        self.name = name
        self._target_radius_m = target_radius_m

    def load_spec(self) -> mujoco.MjSpec:
        """Return dm_control's finger model with the target's size."""
        spec = super().load_spec()
        spec.site("target").size[0] = self._target_radius_m
        return spec

    def observation_names(self, model: mujoco.MjModel) -> tuple[str, ...]:
        """Return a name for each number of the observation, in order."""
        return (*super().observation_names(model), "target_position/x", "target_position/z", "dist_to_target")

    def bind(self, physics: Physics) -> None:
        """Keep the live arrays that the task reads."""
        super().bind(physics)
        model = physics.model
        self._target_xz = physics.sensor("target")[:, ::2]
        self._target_place = physics.parameter("site_pos")[:, model.site("target").id]
        self._hinge_xz = model.body("spinner").pos[::2].copy()
        # the target lies on the circle that the end of the body describes
        self._circle_radius = float(model.geom("cap1").size.sum())

    def initialize(self, ids: NDArray[np.int64], random: np.random.Generator) -> None:
        """Put the target at any angle around the hinge, and start as in all tasks of the domain."""
        angle = random.uniform(-np.pi, np.pi, len(ids))
        self._target_place[ids, 0] = self._hinge_xz[0] + self._circle_radius * np.sin(angle)
        self._target_place[ids, 2] = self._hinge_xz[1] + self._circle_radius * np.cos(angle)
        super().initialize(ids, random)

    def observe(self, out: NDArray[np.float32]) -> None:
        """Write (N, 12): as in all tasks of the domain, then target from the hinge (x, z), and distance of the tip from it."""
        super().observe(out)
        np.subtract(self._target_xz, self._spinner_xz, out=out[:, 9:11])
        out[:, 11] = self._distance_to_target()

    def reward(self, control: NDArray[np.float64]) -> NDArray[np.float64]:
        """Return the rewards (N,) of the present states."""
        return (self._distance_to_target() <= 0).astype(np.float64)

    def _distance_to_target(self) -> NDArray[np.float64]:
        """Return the distances (N,) of the tip from the target's surface, negative inside."""
        return np.asarray(np.linalg.norm(self._target_xz - self._tip_xz, axis=1) - self._target_radius_m)
