"""SO-101, a table-top arm with six hobby servos (TheRobotStudio, 2025): bring the tip of the gripper to a given place.

The model, ``so101.xml``, is our own, in primitive shapes from published dimensions; its sources are named there.

Actions are the speeds at which the servos' goals move, at most 2 rad/s; at 0 the arm holds where it is. A policy that jumps does
not make the arm jump, and one that stops is safe. The gripper's servo gets no commands: it adds nothing to reaching, and stays
where it is. The policy sees the way from the tip to the target: a robot computes the tip from its joint angles, and gets the
target from whoever gives the task, in metres from the middle of the base on the table (x forward, y left).
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import mujoco
import numpy as np
from numpy.typing import NDArray

from dpg_robot.contract import CommandChannel, Contract, Feature, MeasurementChannel
from sim.mjcf import load_mjcf
from sim.physics import Physics
from sim.tasks.initial_states import redraw_until_free
from sim.tasks.rewards import tolerance
from sim.tasks.task import MeasuredState, Task

JOINT_LIMITS_RAD = {
    name: (math.radians(low), math.radians(high))
    for name, low, high in (
        ("shoulder_pan", -110.0, 110.0),
        ("shoulder_lift", -100.0, 100.0),
        ("elbow_flex", -96.83, 96.83),
        ("wrist_flex", -95.0, 95.0),
        ("wrist_roll", -157.21, 162.79),
    )
}
"""Limits of the joints that are commanded, in the order of all channels."""

SUCCESS_DISTANCE_M = 0.02
"""Distance between tip and target within which the task counts as done."""

MEASUREMENTS = (
    *(MeasurementChannel(f"{joint}_position", "rad") for joint in JOINT_LIMITS_RAD),
    *(MeasurementChannel(f"{joint}_velocity", "rad/s") for joint in JOINT_LIMITS_RAD),
    *(MeasurementChannel(f"tip_{axis}", "m") for axis in "xyz"),
    *(MeasurementChannel(f"to_target_{axis}", "m") for axis in "xyz"),
)
FEATURES = tuple(Feature("identity", channel.name) for channel in MEASUREMENTS)
MAX_SPEED_RAD_PER_S = 2.0
COMMANDS = tuple(
    CommandChannel(f"{joint}_speed", "rad/s", -MAX_SPEED_RAD_PER_S, MAX_SPEED_RAD_PER_S) for joint in JOINT_LIMITS_RAD
)

_MEASURED_STATE: MeasuredState = {
    **{f"{joint}_position": ("qpos", index) for index, joint in enumerate(JOINT_LIMITS_RAD)},
    **{f"{joint}_velocity": ("qvel", index) for index, joint in enumerate(JOINT_LIMITS_RAD)},
}
_JOINTS = len(JOINT_LIMITS_RAD)
_POSITIONS, _VELOCITIES = slice(0, _JOINTS), slice(_JOINTS, 2 * _JOINTS)
_TIP, _TO_TARGET = slice(2 * _JOINTS, 2 * _JOINTS + 3), slice(2 * _JOINTS + 3, 2 * _JOINTS + 6)

# (x, z) in m from one joint to the next with all joints at 0, as in the model; all lie in the middle plane, where y is 0
_BASE_TO_PAN = (0.0388, 0.0624)
_PAN_TO_LIFT = (0.0304, 0.0542)
_LIFT_TO_ELBOW = (0.0280, 0.1126)
_ELBOW_TO_WRIST = (0.1349, 0.0052)
_WRIST_TO_TIP = (0.0611 + 0.0981, -0.0079)  # the axis of the wrist's roll is at the height of the wrist's flexion

# where postures are drawn, as a share of each joint's range: at the ends, a servo that sags under gravity has nowhere to go
_POSTURE_SHARE = 0.85
_TARGET_LOWEST_M = 0.03
_TARGET_NEAREST_M = 0.12  # from the shoulder's vertical axis, to the side that the arm faces: it does not reach over its back

_CLOSENESS_MARGINS_M = (0.4, 0.12, 0.03)
_VELOCITY_MARGIN = 2.0  # rad/s
_COMMAND_MARGIN = 2.0  # rad/s


def reach() -> SO101Reach:
    """Bring the tip of the gripper to a target that is somewhere else in each episode."""
    return SO101Reach()


class SO101Reach(Task):
    """Reaching; the reward grows as the tip comes closer, and a little more where the joints are calm."""

    name = "so101-reach"
    time_limit_s = 4.0
    control_timestep_s = 0.02
    stage = mujoco.mjtStage.mjSTAGE_POS
    measured_state = _MEASURED_STATE

    def load_spec(self) -> mujoco.MjSpec:
        """Return the model of the arm."""
        return load_mjcf(Path(__file__).with_name("so101.xml"))

    def observation_names(self, model: mujoco.MjModel) -> tuple[str, ...]:
        """Return a name for each number of the observation, in order: those of the measurements."""
        return tuple(channel.name for channel in MEASUREMENTS)

    def bind(self, physics: Physics) -> None:
        """Keep the live arrays that the task reads."""
        model = physics.model
        self._physics = physics
        self._qpos, self._qvel = physics.qpos, physics.qvel  # the gripper's is the last joint, behind those of the contract
        self._goals = physics.act
        self._tip = physics.data("site_xpos")[:, model.site("tip").id]
        self._target = physics.parameter("site_pos")[:, model.site("target").id]
        self._posture_range = _POSTURE_SHARE * model.jnt_range[:_JOINTS]

    def initialize(self, ids: NDArray[np.int64], random: np.random.Generator) -> None:
        """Start from rest in any posture, with a target where the tip is in another one; both are free of contacts."""
        redraw_until_free(self._physics, ids, random, self._draw_target_postures)
        self._target[ids] = self._tip[ids]
        redraw_until_free(self._physics, ids, random, self._draw_postures)
        self._goals[ids] = self._qpos[ids, :_JOINTS]  # servos hold the posture that they are switched on in

    def observe(self, out: NDArray[np.float32]) -> None:
        """Write (N, 16): joint angles and velocities, tip (as a robot computes it from its angles), way to the target."""
        out[:, _POSITIONS] = self._qpos[:, :_JOINTS]
        out[:, _VELOCITIES] = self._qvel[:, :_JOINTS]
        out[:, _TIP] = forward_kinematics(self._qpos[:, :_JOINTS])
        out[:, _TO_TARGET] = self._target - out[:, _TIP]

    def reward(self, control: NDArray[np.float64]) -> NDArray[np.float64]:
        """Return the rewards (N,) of the present states under the speeds of the goals ``control`` (N, 5), rad/s."""
        return _reward(self._tip - self._target, self._qvel[:, :_JOINTS], control)

    def complete_state(self) -> None:
        """Let the servos hold the joints where they were put."""
        self._goals[:] = self._qpos[:, :_JOINTS]

    def contract(self, model: mujoco.MjModel, action_repeat: int, history: int) -> Contract:
        """Return the contract of a policy that measures joints, is given a target, and commands goals of the joints."""
        return Contract(
            task=self.name,
            measurements=MEASUREMENTS,
            features=FEATURES,
            commands=COMMANDS,
            rate_hz=1.0 / (self.control_timestep_s * action_repeat),
            history=history,
            action_repeat=action_repeat,
        )

    def measured_reward(self, next_measurement: NDArray[Any], action: NDArray[Any]) -> NDArray[np.float64]:
        """Return (N,) rewards per reward step, from logged measurements (N, 16)."""
        measurement = np.asarray(next_measurement, dtype=np.float64)
        speeds = MAX_SPEED_RAD_PER_S * np.clip(np.asarray(action, dtype=np.float64), -1.0, 1.0)
        return _reward(measurement[..., _TO_TARGET], measurement[..., _VELOCITIES], speeds)

    def _draw_postures(self, ids: NDArray[np.int64], random: np.random.Generator) -> None:
        low, high = self._posture_range.T
        self._qpos[ids, :_JOINTS] = random.uniform(low, high, (len(ids), _JOINTS))

    def _draw_target_postures(self, ids: NDArray[np.int64], random: np.random.Generator) -> None:
        remaining = ids
        while len(remaining):
            self._draw_postures(remaining, random)
            pan = self._qpos[remaining, 0]
            x, y, z = forward_kinematics(self._qpos[remaining, :_JOINTS]).T
            forward = (x - _BASE_TO_PAN[0]) * np.cos(pan) - y * np.sin(pan)
            remaining = remaining[(z < _TARGET_LOWEST_M) | (forward < _TARGET_NEAREST_M)]


def forward_kinematics(joints: NDArray[Any]) -> NDArray[np.float64]:
    """Return the place (..., 3) of the gripper's tip in m from the middle of the base on the table, x forward and z up.

    Args:
        joints: (..., 5) angles in rad, in the order of ``JOINT_LIMITS_RAD``.
    """
    pan, lift, elbow, wrist, roll = np.moveaxis(np.asarray(joints, dtype=np.float64), -1, 0)
    # in the plane of the arm, in which positive angles bend it down
    forward, up = np.zeros_like(pan), np.zeros_like(pan)
    pitch = np.zeros_like(pan)
    wrist_to_tip = (_WRIST_TO_TIP[0], _WRIST_TO_TIP[1] * np.cos(roll))
    for bend, (x, z) in ((0.0, _PAN_TO_LIFT), (lift, _LIFT_TO_ELBOW), (elbow, _ELBOW_TO_WRIST), (wrist, wrist_to_tip)):
        pitch = pitch + bend
        forward = forward + x * np.cos(pitch) + z * np.sin(pitch)
        up = up - x * np.sin(pitch) + z * np.cos(pitch)
    left = _WRIST_TO_TIP[1] * np.sin(roll)
    # positive angles of the pan turn it to the right
    x = _BASE_TO_PAN[0] + forward * np.cos(pan) + left * np.sin(pan)
    y = left * np.cos(pan) - forward * np.sin(pan)
    return np.stack([x, y, _BASE_TO_PAN[1] + up], axis=-1)


def _reward(difference: NDArray[np.float64], velocity: NDArray[np.float64], command: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return (N,) rewards of the way (N, 3) from target to tip, and of the joints' (N, 5) and their goals' (N, 5) speeds."""
    distance = np.linalg.norm(difference, axis=-1)
    # hills of three widths: to find the target from anywhere, and to come to rest in its middle
    close = np.mean([tolerance(distance, margin=margin) for margin in _CLOSENESS_MARGINS_M], axis=0)
    slow = tolerance(velocity, margin=_VELOCITY_MARGIN).mean(axis=-1)
    # a command that stays small where the arm has arrived does not tear at the gears
    gentle = tolerance(command, margin=_COMMAND_MARGIN).mean(axis=-1)
    return np.asarray(close * (6 + slow + gentle) / 8)
