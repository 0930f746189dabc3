"""Quadruped: dm_control's four-legged robot, driven by position servos with filters (Tassa et al., 2018, arXiv 1801.00690)."""

from __future__ import annotations

import math

import mujoco
import numpy as np
from numpy.typing import NDArray

from sim.physics import Physics
from sim.suite_model import suite_module
from sim.tasks.initial_states import NoFreeStateError
from sim.tasks.rewards import tolerance
from sim.tasks.task import Task

TIME_LIMIT_S = 20.0
WALK_SPEED = 0.5  # m/s
RUN_SPEED = 5.0  # m/s
START_HEIGHT_STEP = 0.01  # m, grid of the heights at which episodes start
START_HEIGHTS = 1024

# numbers of the free joint in qpos and qvel, which are not part of the egocentric state
_ROOT_QPOS, _ROOT_QVEL = 7, 6
_ZZ = 8  # entry of a rotation matrix, stored row by row
_IMU = (mujoco.mjtSensor.mjSENS_ACCELEROMETER, mujoco.mjtSensor.mjSENS_GYRO)
_FORCE_TORQUE = (mujoco.mjtSensor.mjSENS_FORCE, mujoco.mjtSensor.mjSENS_TORQUE)


def walk() -> Task:
    """Return the task of walking at 0.5 m/s."""
    return Quadruped("quadruped-walk", desired_speed=WALK_SPEED)


def run() -> Task:
    """Return the task of running at 5 m/s."""
    return Quadruped("quadruped-run", desired_speed=RUN_SPEED)


class Quadruped(Task):
    """Walk or run: be upright, times the torso's velocity along its own x axis.

    Args:
        name: name of the task.
        desired_speed: speed from which the reward does not grow any more, m/s; positive.
    """

    time_limit_s = TIME_LIMIT_S
    control_timestep_s = 0.02

    def __init__(self, name: str, desired_speed: float) -> None:
        self.name = name
        self._desired_speed = desired_speed

    def load_spec(self) -> mujoco.MjSpec:
        """Return dm_control's quadruped on a plane that it cannot leave within an episode at the desired speed."""
        domain = suite_module("quadruped")
        xml = domain.make_model(floor_size=self._desired_speed * self.time_limit_s)
        return mujoco.MjSpec.from_string(xml.decode(), dict(domain.common.ASSETS))

    def observation_names(self, model: mujoco.MjModel) -> tuple[str, ...]:
        """Return leg joints, activations, velocity and uprightness of the torso, inertial sensors, and the load of the toes."""
        joints = [model.joint(index).name for index in range(1, model.njnt)]
        return (
            *(f"egocentric_state/{joint}_position" for joint in joints),
            *(f"egocentric_state/{joint}_velocity" for joint in joints),
            *(f"egocentric_state/{model.actuator(index).name}_activation" for index in range(model.nu)),
            *(f"torso_velocity/{axis}" for axis in "xyz"),
            "torso_upright",
            *(f"imu/{name}" for name in _axis_names(model, _IMU)),
            *(f"force_torque/{name}" for name in _axis_names(model, _FORCE_TORQUE)),
        )

    def bind(self, physics: Physics) -> None:
        """Keep the state, the sensors and the uprightness of the torso."""
        self._physics = physics
        self._contacts = physics.data("ncon").reshape(-1)
        self._torso_velocity = physics.sensor("velocimeter")
        self._torso_upright = physics.data("xmat")[:, physics.body("torso"), _ZZ]
        sensors = physics.data("sensordata")
        self._force_torque = sensors[:, _columns(physics.model, _FORCE_TORQUE)]
        parts = (
            physics.qpos[:, _ROOT_QPOS:],
            physics.qvel[:, _ROOT_QVEL:],
            physics.act,
            self._torso_velocity,
            self._torso_upright[:, None],
            sensors[:, _columns(physics.model, _IMU)],
        )
        self._parts: list[tuple[slice, NDArray[np.float64]]] = []
        self._state_dim = 0  # of all that is observed as it is
        for part in parts:
            end = self._state_dim + part.shape[1]
            self._parts.append((slice(self._state_dim, end), part))
            self._state_dim = end

    def initialize(self, ids: NDArray[np.int64], random: np.random.Generator) -> None:
        """Draw uniform orientations, and put each robot as low as it can be without contacts, in steps of 1 cm."""
        quaternions = random.standard_normal((len(ids), 4))
        quaternions /= np.linalg.norm(quaternions, axis=1, keepdims=True)
        self._physics.qpos[ids, :2] = 0.0
        self._physics.qpos[ids, 3:_ROOT_QPOS] = quaternions
        self._lift_off_the_ground(ids)

    def observe(self, out: NDArray[np.float32]) -> None:
        """Write the egocentric state, velocity and uprightness of the torso, inertial sensors, forces and torques (N, 78)."""
        for columns, part in self._parts:
            out[:, columns] = part
        force_torque = out[:, self._state_dim :]
        force_torque[:] = self._force_torque
        np.arcsinh(force_torque, out=force_torque)

    def reward(self, control: NDArray[np.float64]) -> NDArray[np.float64]:
        """Return (N,) rewards in [0, 1]."""
        upright = tolerance(self._torso_upright, bounds=(1.0, math.inf), margin=2.0, value_at_margin=0.0, sigmoid="linear")
        moving = tolerance(
            self.speed(),
            bounds=(self._desired_speed, math.inf),
            margin=self._desired_speed,
            value_at_margin=0.5,
            sigmoid="linear",
        )
        return upright * moving

    def speed(self) -> NDArray[np.float64]:
        """Return (N,) velocities of the torso along its own x axis, m/s."""
        return self._torso_velocity[:, 0]

    def _lift_off_the_ground(self, ids: NDArray[np.int64]) -> None:
        """Find the lowest height without contacts by bisection: what touches the ground also does so at all lower heights."""
        physics = self._physics
        in_contact = np.zeros(len(ids), dtype=np.int64)  # how many heights of the grid are known to be too low
        stride = START_HEIGHTS // 2
        while stride:
            physics.qpos[ids, 2] = START_HEIGHT_STEP * (in_contact + stride - 1)
            physics.batch.forward(ids, stage=mujoco.mjtStage.mjSTAGE_POS)
            in_contact += stride * (self._contacts[ids] > 0)
            stride //= 2
        stuck = ids[in_contact == START_HEIGHTS - 1]
        if len(stuck):
            raise NoFreeStateError(
                f"environments {stuck[:10].tolist()} have contacts at every height up to {START_HEIGHT_STEP * START_HEIGHTS} m; "
                "the robot touches itself: check the sizes of the model (randomized dynamics may have changed them)"
            )
        physics.qpos[ids, 2] = START_HEIGHT_STEP * in_contact


def _sensors(model: mujoco.MjModel, types: tuple[mujoco.mjtSensor, ...]) -> NDArray[np.int64]:
    return np.flatnonzero(np.isin(model.sensor_type, [int(kind) for kind in types]))


def _columns(model: mujoco.MjModel, types: tuple[mujoco.mjtSensor, ...]) -> slice:
    """Return where the readings of all sensors of the given types are; in this model they follow one another."""
    sensors = _sensors(model, types)
    start = int(model.sensor_adr[sensors[0]])
    return slice(start, start + int(model.sensor_dim[sensors].sum()))


def _axis_names(model: mujoco.MjModel, types: tuple[mujoco.mjtSensor, ...]) -> list[str]:
    return [f"{model.sensor(index).name}_{axis}" for index in _sensors(model, types) for axis in "xyz"]
