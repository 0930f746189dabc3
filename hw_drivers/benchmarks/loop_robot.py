"""The robots of the loop benchmark: emulated servos behind a serial port, and a robot that takes no time at all."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from dpg_robot.contract import CommandChannel, Contract, Feature, MeasurementChannel
from dpg_robot.deploy.homing import NoHoming
from dpg_robot.deploy.robot import DeviceFlag, JointState
from dpg_robot.deploy.run_config import RobotConfig
from dpg_robot.deploy.safety import SafetyConfig
from hw_drivers.benchmarks.families import DYNAMIXEL
from hw_drivers.dynamixel.family import DynamixelFamily
from hw_drivers.dynamixel.models import XL330_M288
from hw_drivers.serial_link import SerialLink
from hw_drivers.servo_bus import ServoBus
from hw_drivers.servo_registers import ServoRegisters

BAUD_RATE = 4_000_000
ROBOTS = {
    "servos": f"emulated {XL330_M288.name} at {BAUD_RATE / 1e6:g} Mbit/s without return delay, served by another process",
    "instant": "a robot in the loop's own process that takes no time: what is left is the loop's own",
}
"""What a loop can control here, and what that is."""

_RANGE_RAD = 1.0
_BITS_PER_BYTE = 10  # with start and stop bit
_READ_SHARE = 0.8  # of the period
_LONGEST_READ_S = 0.005
_PATIENCE_S = 1.0
_UNLIMITED = 1_000_000_000


def make_contract(servos: int, rate_hz: float) -> Contract:
    """Return what the policy measures and commands: position, velocity and goal of each joint, and two frames of history."""
    joints = [_joint(number) for number in _ids(servos)]
    measurements = (
        *(MeasurementChannel(f"{joint}_position", "rad") for joint in joints),
        *(MeasurementChannel(f"{joint}_velocity", "rad/s") for joint in joints),
    )
    return Contract(
        task="loop-benchmark",
        measurements=measurements,
        features=tuple(Feature("identity", channel.name) for channel in measurements),
        commands=tuple(CommandChannel(f"{joint}_goal", "rad", -_RANGE_RAD, _RANGE_RAD) for joint in joints),
        rate_hz=rate_hz,
        history=2,
    )


def make_robot_config(robot: str, contract: Contract, priority: int, port: str = "") -> RobotConfig:
    """Return one of the :data:`ROBOTS`.

    It is patient: a run in which ticks are late or measurements missing goes on, so that they are counted. A robot would stop.
    """
    servos, rate_hz = robot == "servos", contract.rate_hz
    return RobotConfig(
        name=f"loop-benchmark-{robot}",
        driver="hw_drivers.servo_robot:make_servo_robot" if servos else f"{__name__}:make_instant_robot",
        rate_hz=rate_hz,
        measurements=contract.measurements,
        commands=contract.commands,
        port=port,
        baud_rate=BAUD_RATE,
        device=_describe_servos(contract.num_actions) if servos else {},
        read_timeout_s=min(_READ_SHARE / rate_hz, _LONGEST_READ_S),
        safety=SafetyConfig(
            zero_command_is_safe=False,
            stale_patience_periods=max(1, round(_PATIENCE_S * rate_hz)),
            max_overruns_in_row=_UNLIMITED,
        ),
        homing={"speed": 2.0, "rest_s": 0.0, "tolerance": 0.1} if servos else {},
        real_time_priority=priority,
    )


def wire_time_s(servos: int) -> float:
    """Return the least time of a tick's bytes on the wire, s: read all servos and write all goals, at ten bit times a byte."""
    family, language = DynamixelFamily(), DYNAMIXEL.language(return_delay=0)
    block, goal = family.block(XL330_M288), XL330_M288.register("goal_position")
    request = language.read(block.address, block.length, _ids(servos))
    goals = language.write(goal.address, {servo: bytes(goal.size) for servo in _ids(servos)})
    answers = servos * DYNAMIXEL.answer_bytes(block.length)
    return (len(request) + answers + len(goals)) * _BITS_PER_BYTE / BAUD_RATE


def emulator_arguments(servos: int, link: Path) -> list[str]:
    """Return the arguments with which ``launch/emulate.py`` serves the servos at the port ``link``."""
    ids = [str(servo) for servo in _ids(servos)]
    return ["dynamixel", "--model", XL330_M288.name, "--baud-rate", str(BAUD_RATE), "--link", str(link), "--ids", *ids]


def remove_return_delay(servos: int, port: str) -> None:
    """Set the return delay of all servos to nothing, as one would on a robot; they keep it. Raises LinkError."""
    ids, family = _ids(servos), DynamixelFamily()
    with _open(port) as link:
        bus = ServoBus(link, family.language(), list(ids))
        registers = ServoRegisters(family)
        registers.attach(bus, dict.fromkeys(ids, XL330_M288))
        registers.write_lasting({servo: {"return_delay_time": 0} for servo in ids})


def make_instant_robot(config: RobotConfig, contract: Contract) -> tuple[InstantRobot, NoHoming]:
    """Make the robot that takes no time; a driver for a robot's configuration."""
    return InstantRobot(contract), NoHoming()


class InstantRobot:
    """Joints that are at their goals at once."""

    def __init__(self, contract: Contract) -> None:
        self.measurement_names, self.command_names = contract.measurement_names, contract.command_names
        self._positions = np.zeros(contract.num_actions)
        self._enabled = DeviceFlag(0)

    def connect(self) -> None:
        """Do nothing."""

    def enable(self) -> None:
        """Follow commands from now on."""
        self._enabled = DeviceFlag.ENABLED

    def read(self, state: JointState) -> None:
        """Write the last goals as the positions, and velocities of 0."""
        state.values[: len(self._positions)] = self._positions
        state.valid[:] = True
        state.time_ns[:] = time.monotonic_ns()
        state.flags = self._enabled

    def write(self, command: NDArray[np.float64]) -> None:
        """Take goals (C,), rad."""
        self._positions[:] = command

    def disable(self) -> None:
        """Follow no more commands."""
        self._enabled = DeviceFlag(0)

    def close(self) -> None:
        """Follow no more commands."""
        self.disable()

    def rescue(self) -> None:
        """Do nothing."""


def _ids(servos: int) -> range:
    return range(1, servos + 1)


def _joint(number: int) -> str:
    return f"joint_{number}"


def _describe_servos(servos: int) -> dict[str, object]:
    """Return the part ``device`` of the robot's configuration. The watchdog is long, as late ticks must not trip it."""
    servo = {"model": XL330_M288.name, "low": -_RANGE_RAD, "high": _RANGE_RAD}
    return {
        "family": "dynamixel",
        "watchdog_s": _PATIENCE_S,
        "soft_start_s": 0.1,
        "stop_ramp_s": 0.1,
        "servos": {_joint(number): {"id": number, **servo} for number in _ids(servos)},
    }


@contextmanager
def _open(port: str) -> Iterator[SerialLink]:
    with closing(SerialLink(port, BAUD_RATE)) as link:
        link.open()
        yield link
