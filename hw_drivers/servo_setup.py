"""Dialogues with a person at the robot: scanning ports, giving servos their IDs, and calibrating joints by hand."""

from __future__ import annotations

import dataclasses
import select
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Protocol

from dpg_robot.config import config_from_dict, config_to_dict, dump_config
from dpg_robot.deploy.run_config import RobotConfig
from dpg_robot.errors import ConfigError, LinkError
from hw_drivers.serial_link import SerialLink
from hw_drivers.serial_ports import find_port, list_serial_ports
from hw_drivers.servo_bus import ServoBus
from hw_drivers.servo_calibration import Range, RangeRecorder, calibrate_servo
from hw_drivers.servo_config import ServoConfig, ServoRobotConfig
from hw_drivers.servo_family import ServoFamily
from hw_drivers.servo_registers import ServoRegisters
from hw_drivers.servo_scan import FoundServo, change_servo, scan_port

_CONNECT_TIMEOUT_S = 1.0
_POLL_S = 0.02
_TORQUE_OFF = 0


Connect = Callable[[RobotConfig, ServoRobotConfig], AbstractContextManager[ServoRegisters]]


class Console(Protocol):
    """The person at the robot."""

    def say(self, text: str) -> None:
        """Tell something."""
        ...

    def ask(self, text: str) -> None:
        """Tell what to do, and wait until it is done."""
        ...

    def show(self, text: str) -> bool:
        """Show what changes all the time; returns whether the person is done."""
        ...


class Terminal:
    """A person who reads stderr and presses Enter."""

    def say(self, text: str) -> None:
        """Print."""
        print(text, file=sys.stderr, flush=True)

    def ask(self, text: str) -> None:
        """Print, and wait for Enter. Raises LinkError when nobody can press it."""
        print(f"{text}, then press Enter ", end="", file=sys.stderr, flush=True)
        if not sys.stdin.readline():
            raise LinkError("there is nobody to press Enter (stdin has ended); run this at a terminal")

    def show(self, text: str) -> bool:
        """Print over the last line; returns whether Enter was pressed."""
        print(f"\r{text:100}", end="", file=sys.stderr, flush=True)
        if not select.select([sys.stdin], [], [], 0.0)[0]:
            return False
        if not sys.stdin.readline():
            raise LinkError("there is nobody to press Enter (stdin has ended); run this at a terminal")
        return True


def scan(
    ports: Sequence[str], families: Sequence[ServoFamily], baud_rates: Sequence[int], console: Console
) -> dict[str, list[FoundServo]]:
    """Look for servos on ports (all of this computer when none are given), and return them by port. Nothing is changed.

    A port that cannot be opened is told and left out.

    Args:
        ports: paths, or ``usb:SERIAL``.
        families: whose protocols to speak.
        baud_rates: bits per second to try; all that the families have when empty.
        console: is told what is going on.
    """
    known = {port.path: port for port in list_serial_ports()}
    found: dict[str, list[FoundServo]] = {}
    for given in ports or list(known):
        try:
            path = find_port(given)
            found[path] = list(scan_port(path, families, baud_rates or all_baud_rates(families), note=console.say))
        except LinkError as error:
            console.say(str(error))
    if not ports and not known:
        console.say("no serial port on this computer; is the adapter plugged in?")
    return found


def all_baud_rates(families: Sequence[ServoFamily]) -> list[int]:
    """Return all baud rates of the families' servos, the most usual first."""
    rates = {rate for family in families for model in family.models() for rate in model.baud_rates}
    return sorted(rates, key=lambda rate: (rate not in (1_000_000, 57_600), rate))


@contextmanager
def opened(port: str, baud_rate: int) -> Iterator[SerialLink]:
    """Open a serial port for the length of a ``with``. Raises LinkError."""
    link = SerialLink(port, baud_rate)
    link.open()
    try:
        yield link
    finally:
        link.close()


def set_up_robot(robot: RobotConfig, joints: Sequence[str], console: Console) -> None:
    """Give the servos of a robot their IDs and baud rate, one after the other, each alone on the port.

    Args:
        robot: the robot.
        joints: joints whose servos are to be set up; all when empty.
        console: the person who connects the servos.

    Raises:
        LinkError: not exactly one servo is connected, or it does not take a setting.
        ConfigError: a joint that the robot does not have, or a servo of another model.
    """
    servos = servo_config(robot)
    family, port = servos.find_family(), find_port(robot.port)
    for joint in joints:
        if joint not in servos.servos:
            raise ConfigError(f"no joint {joint!r} on robot {robot.name!r}; it has {', '.join(servos.servos)}")
    for joint in joints or list(servos.servos):
        wanted = servos.servos[joint]
        console.ask(f"Connect only the servo of {joint} ({wanted.model}) to {port}, and its power")
        servo = only_servo(list(scan_port(port, [family], all_baud_rates([family]), note=console.say)), port)
        if servo.model != family.find_model(wanted.model).name:
            raise ConfigError(f"the servo of {joint} must be a {wanted.model}, got {servo.model or servo.model_number}")
        change_servo(lambda rate: opened(port, rate), family, servo, new_id=wanted.id, new_baud_rate=robot.baud_rate)
        console.say(f"{joint}: ID {servo.id} -> {wanted.id}, {servo.baud_rate} -> {robot.baud_rate} baud")


def only_servo(found: Sequence[FoundServo], port: str) -> FoundServo:
    """Return the one servo that was found. Raises LinkError if there are none or several."""
    if len(found) != 1:
        what = ", ".join(f"ID {servo.id} at {servo.baud_rate} baud" for servo in found) or "none"
        raise LinkError(f"expected exactly one servo on {port}, found: {what}. Check its power and cable; disconnect the others")
    return found[0]


def calibrate_robot(robot: RobotConfig, console: Console, *, margin: float, connect: Connect | None = None) -> RobotConfig:
    """Learn zero, range and direction of all joints from a person who moves them by hand; returns the robot with them.

    The torque is off all the time. Servos that can, get the middle of their range as the middle of their scale.

    Args:
        robot: the robot as it is described now.
        console: the person.
        margin: what to stay away from the ends of the ranges, rad.
        connect: finds the robot's servos, in place of opening its port.

    Raises:
        LinkError: servos that do not answer.
        SafetyError: a joint that was not moved as asked.
    """
    servos = servo_config(robot)
    with (connect or _registers)(robot, servos) as registers:
        registers.write(dict.fromkeys(_ids(servos), _TORQUE_OFF), "torque_enable")
        console.ask("The torque is off. Bring every joint to about the middle of its range")
        _centre(registers, servos)
        ranges = _record_ranges(registers, servos, console)
        console.ask("Bring every joint to where it is at 0 (the zero pose of the robot's documentation)")
        zeros = _positions(registers, servos)
        pushed = {}
        for joint in servos.servos:
            console.ask(f"Push {joint} a little in its positive direction, and keep it there")
            pushed[joint] = _positions(registers, servos)[joint]
    calibrated = {
        joint: calibrate_servo(joint, servo, ranges[joint], zeros[joint], pushed[joint], margin=margin)
        for joint, servo in servos.servos.items()
    }
    _warn_of_short_ranges(robot, calibrated, console)
    device = config_to_dict(dataclasses.replace(servos, servos=calibrated))
    return dataclasses.replace(robot, device=device)


def write_robot(robot: RobotConfig, path: Path) -> None:
    """Write a robot's YAML file, whole or not at all."""
    dump_config(robot, path)


def servo_config(robot: RobotConfig) -> ServoRobotConfig:
    """Return the servos of a robot. Raises ConfigError if it has none, or no port."""
    if not robot.driver.startswith("hw_drivers.servo_robot:"):
        raise ConfigError(f"robot {robot.name!r} is no servo robot (its driver is {robot.driver}); there is nothing to set up")
    if not robot.port:
        raise ConfigError(f"robot {robot.name!r} has no port; give it in its file or with --port /dev/...")
    return config_from_dict(ServoRobotConfig, robot.device, source=f"device of robot {robot.name!r}")


def _ids(servos: ServoRobotConfig) -> list[int]:
    return [servo.id for servo in servos.servos.values()]


@contextmanager
def _registers(robot: RobotConfig, servos: ServoRobotConfig) -> Iterator[ServoRegisters]:
    """Open the port and find all servos there."""
    family = servos.find_family()
    with opened(find_port(robot.port), robot.baud_rate) as link:
        registers = ServoRegisters(family)
        models = {servo.id: family.find_model(servo.model) for servo in servos.servos.values()}
        registers.attach(ServoBus(link, family.language(), list(models)), models)
        answered = registers.read("model_number", _CONNECT_TIMEOUT_S)
        silent = [f"{joint} (ID {servo.id})" for joint, servo in servos.servos.items() if servo.id not in answered]
        if silent:
            raise LinkError(f"no answer from {', '.join(silent)} on {link.port}; check power and cable, or set them up first")
        yield registers


def _positions(registers: ServoRegisters, servos: ServoRobotConfig) -> dict[str, float]:
    """Return the servos' angles by joint, rad. Raises LinkError if one does not answer."""
    raw = registers.read("present_position")
    models = servos.models()
    silent = [joint for joint, servo in servos.servos.items() if servo.id not in raw]
    if silent:
        raise LinkError(f"no answer from {', '.join(silent)}; check the cable")
    return {joint: models[joint].register("present_position").to_si(raw[servo.id]) for joint, servo in servos.servos.items()}


def _centre(registers: ServoRegisters, servos: ServoRobotConfig) -> None:
    """Make the present angles the middle of the servos' scales, where the family can."""
    family, models = servos.find_family(), servos.models()
    settings = {}
    for joint, servo in servos.servos.items():
        if "homing_offset" not in models[joint].registers:
            continue
        position = registers.read_one(servo.id, "present_position")
        offset = family.centering(models[joint], position, registers.read_one(servo.id, "homing_offset"))
        if offset is not None:
            settings[servo.id] = {"homing_offset": offset}
    registers.write_lasting(settings)


def _record_ranges(registers: ServoRegisters, servos: ServoRobotConfig, console: Console) -> dict[str, Range]:
    console.say("Move every joint slowly from one end of its range to the other, then press Enter.")
    recorder, done = RangeRecorder(), False
    while not done:
        recorder.add(_positions(registers, servos))
        ranges = "  ".join(f"{joint} {seen.low:.2f}..{seen.high:.2f}" for joint, seen in recorder.ranges.items())
        done = console.show(ranges)
        time.sleep(_POLL_S)
    return recorder.ranges


def _warn_of_short_ranges(robot: RobotConfig, calibrated: Mapping[str, ServoConfig], console: Console) -> None:
    for command in robot.commands:
        joint, _, kind = command.name.rpartition("_")
        servo = calibrated.get(joint) if kind == "goal" else None
        if servo is not None and (command.low < servo.low or command.high > servo.high):
            console.say(
                f"warning: {command.name} ranges from {command.low:g} to {command.high:g} rad, but the joint reaches "
                f"{servo.low:g} to {servo.high:g} rad. Was the zero pose right? If so, policies must be trained for that range."
            )
