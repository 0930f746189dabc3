"""A task of one's own in one file: a two-link arm brings its tip to a target. Explained in docs/tasks.md.

Train it with ``python launch/pretrain.py task=examples/two_link_arm.py:TwoLinkReach``.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import mujoco
import numpy as np
from numpy.typing import NDArray

from dpg_robot.contract import CommandChannel, Contract, Feature, MeasurementChannel
from sim.mjcf import load_mjcf
from sim.physics import Physics
from sim.tasks import Task
from sim.tasks.rewards import tolerance

TARGET_RADIUS_M = 0.015
UPPER_ARM_M, FOREARM_M = 0.15, 0.12
MEASUREMENTS = (
    MeasurementChannel("shoulder_angle", "rad"),
    MeasurementChannel("elbow_angle", "rad"),
    MeasurementChannel("shoulder_velocity", "rad/s"),
    MeasurementChannel("elbow_velocity", "rad/s"),
    MeasurementChannel("target_x", "m"),
    MeasurementChannel("target_y", "m"),
)
COMMANDS = (CommandChannel("shoulder_servo", "rad", -2.1, 2.1), CommandChannel("elbow_servo", "rad", -2.4, 2.4))


class TwoLinkReach(Task):
    """Bring the tip to a target that is somewhere else in each episode."""

    name = "two_link_arm-reach"
    time_limit_s = 4.0
    control_timestep_s = 0.02  # four steps of the physics

    def load_spec(self) -> mujoco.MjSpec:
        """Return the model; randomization may still change it before it is compiled."""
        return load_mjcf(Path(__file__).with_suffix(".xml"))

    def observation_names(self, model: mujoco.MjModel) -> tuple[str, ...]:
        """Return the names of what :meth:`observe` writes."""
        return tuple(channel.name for channel in MEASUREMENTS)

    def bind(self, physics: Physics) -> None:
        """Keep live arrays, one row per environment: they follow every step, so nothing is fetched later."""
        self._qpos = physics.qpos
        self._encoders = physics.data("sensordata")
        self._tip = physics.data("site_xpos")[:, physics.model.site("tip").id]
        # a model field that may differ between environments; a fixed one would be read from physics.model
        self._target = physics.parameter("site_pos")[:, physics.model.site("target").id]

    def initialize(self, ids: NDArray[np.int64], random: np.random.Generator) -> None:
        """Draw a posture and a target within reach for environments ``ids``, all at once."""
        self._qpos[ids] = random.uniform(-1.0, 1.0, (len(ids), 2))
        radius, angle = random.uniform(0.12, 0.25, len(ids)), random.uniform(-1.5, 1.5, len(ids))
        self._target[ids, 0] = radius * np.cos(angle)
        self._target[ids, 1] = radius * np.sin(angle)

    def observe(self, out: NDArray[np.float32]) -> None:
        """Write what the robot will measure, and where it is to go."""
        out[:, :4] = self._encoders
        out[:, 4:] = self._target[:, :2]

    def reward(self, control: NDArray[np.float64]) -> NDArray[np.float64]:
        """Return 1 on the target, and less the farther the tip is away."""
        return _closeness(self._tip[:, :2] - self._target[:, :2])

    # What follows is for real robots: units and limits that the robot is checked against, and a reward for its logs.

    def contract(self, model: mujoco.MjModel, action_repeat: int, history: int) -> Contract:
        """Return the channels in SI units; here, the policy sees each measurement as it is."""
        features = tuple(Feature("identity", channel.name) for channel in MEASUREMENTS)
        rate_hz = 1.0 / (self.control_timestep_s * action_repeat)
        return Contract(self.name, MEASUREMENTS, features, COMMANDS, rate_hz, history, action_repeat=action_repeat)

    def measured_reward(self, next_measurement: NDArray[Any], action: NDArray[Any]) -> NDArray[np.float64]:
        """Return the rewards (N,) of logged measurements (N, 6), with the tip computed from the joint angles."""
        shoulder, elbow, _, _, x, y = np.moveaxis(np.asarray(next_measurement, dtype=np.float64), -1, 0)
        tip_x = UPPER_ARM_M * np.cos(shoulder) + FOREARM_M * np.cos(shoulder + elbow)
        tip_y = UPPER_ARM_M * np.sin(shoulder) + FOREARM_M * np.sin(shoulder + elbow)
        return _closeness(np.stack([tip_x - x, tip_y - y], axis=-1))


def _closeness(difference: NDArray[np.float64]) -> NDArray[np.float64]:
    return tolerance(np.linalg.norm(difference, axis=-1), bounds=(0.0, TARGET_RADIUS_M), margin=0.15)
