"""A robot of servos on one bus: implements :class:`dpg_robot.deploy.robot.Robot` for Dynamixel X and Feetech STS.

What protects the robot, below the safety layers of the control loop:

- the servos themselves keep to the limits of angle, velocity and torque that are written into them, and verified, at every start;
- torque comes on only where goal and present position are the same, and grows from little to its limit;
- a reading counts only if it is possible: within the range, and no further from the last than the servo could have turned;
- torque lost (a servo restarted), alarms, heat and a weak supply become the robot's flags, with the joint's name;
- a safe stop lowers the torque step by step to nothing, and says which servos did not confirm it.
"""

from __future__ import annotations

import contextlib
import logging
import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from dpg_robot.config import config_from_dict
from dpg_robot.contract import Contract
from dpg_robot.deploy.robot import DeviceFlag, JointState
from dpg_robot.deploy.run_config import RobotConfig
from dpg_robot.errors import ConfigError, ContractError, LinkError
from dpg_robot.kinematics import tip_position
from hw_drivers.joint_homing import JointHoming
from hw_drivers.serial_link import SerialLink
from hw_drivers.serial_ports import find_port
from hw_drivers.servo_bus import BusLink, ServoBus
from hw_drivers.servo_config import (
    COMMANDS,
    QUANTITIES,
    ServoRobotConfig,
    resolve_command,
    resolve_measurement,
)
from hw_drivers.servo_registers import ServoRegisters
from hw_drivers.servo_watch import ServoWatch

_WRITE_TIMEOUT_S = 0.01
_RAMP_STEP_S = 0.02
_FIRST_TORQUE = 0.2  # share of the limit with which a soft start begins
_RELEASE_ATTEMPTS = 5
_WATCHDOG_PERIODS = 3
_SLOWEST_RAD_PER_S = 0.3  # at which a goal that stands still is approached, so that a joint that sags is lifted

_log = logging.getLogger(__name__)


def make_servo_robot(config: RobotConfig, contract: Contract) -> tuple[ServoRobot, JointHoming]:
    """Make the robot and its homing from a robot configuration; nothing is opened yet.

    Raises:
        ConfigError: there is no port, or the servos' description cannot be used.
        ContractError: the robot has no such measurement or command.
    """
    if not config.port:
        raise ConfigError(f"robot {config.name!r} has no port; give it in the configuration or with --port /dev/...")
    servos = config_from_dict(ServoRobotConfig, config.device, source=f"device of robot {config.name!r}")
    robot = ServoRobot(config.port, servos, contract, baud_rate=config.baud_rate, read_timeout_s=config.read_timeout_s)
    return robot, JointHoming.from_config(config, servos, contract, robot)


class ServoLink(BusLink, Protocol):
    """What carries bytes and can be opened; :class:`~hw_drivers.serial_link.SerialLink` is one."""

    low_latency: bool

    @property
    def is_open(self) -> bool: ...  # noqa: D102
    def open(self) -> None: ...  # noqa: D102
    def close(self) -> None: ...  # noqa: D102


@dataclass
class ServoCounters:
    """What went wrong on a servo robot.

    Attributes:
        missed: answers that did not come in time.
        unasked: answers that nobody had asked for: late, copied, or from another servo; they were dropped.
        retries: reads that were repeated without a silent servo.
        crc_errors: answers dropped because of their check sum.
        barriers: requests for the IDs of suspect servos, which tell their late answers from new ones.
        silent_barriers: those that not all of them answered in time.
        alarms: answers with an error set.
        implausible: answers with a value that cannot be; they were dropped.
    """

    missed: int = 0
    unasked: int = 0
    retries: int = 0
    crc_errors: int = 0
    barriers: int = 0
    silent_barriers: int = 0
    alarms: int = 0
    implausible: int = 0


class ServoRobot:
    """Servos on one serial bus, each of which moves a joint to goal positions.

    Measurements are ``<joint>_<quantity>`` (see :data:`~hw_drivers.servo_config.QUANTITIES`), the place of the tip, and the goals
    that the task gives. Commands are ``<joint>_goal``, rad, or ``<joint>_speed``, rad/s, at which the joint's goal moves for one
    period. Joints with ``hold`` are kept where that says.

    Attributes:
        config: the servos.
        port: the port that was opened.
    """

    def __init__(
        self,
        port: str,
        config: ServoRobotConfig,
        contract: Contract,
        *,
        baud_rate: int = 1_000_000,
        read_timeout_s: float = 0.004,
        link: ServoLink | None = None,
        clock: Callable[[], int] = time.monotonic_ns,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        """Describe the robot; nothing is opened yet.

        Args:
            port: path of the serial port, or ``usb:SERIAL`` for the adapter with that serial number, whatever its path.
            config: the servos.
            contract: names, order and units of the channels; the limits of the commands must be within those of the joints.
            baud_rate: bits per second.
            read_timeout_s: longest time that ``read`` takes.
            link: carries the bytes in place of the serial port.
            clock: monotonic time, ns; the one that the link's deadlines are on.
            sleep: lets time pass, s.

        Raises:
            ContractError: a channel that the robot does not have, or in another unit; a command beyond a joint's limits.
            ConfigError: a watchdog that would trip when a request is lost.
        """
        self.config, self.port, self._wanted_port = config, port, port
        self.measurement_names, self.command_names = contract.measurement_names, contract.command_names
        self._family = config.find_family()
        self._servos = {
            name: ServoWatch(name, servo, model)
            for (name, servo), model in zip(config.servos.items(), config.models().values(), strict=True)
        }
        self._by_id = {servo.id: servo for servo in self._servos.values()}
        self._check_baud_rate(baud_rate)
        self._check_watchdog(contract.rate_hz)
        self._sources = [resolve_measurement(name, config) for name in contract.measurement_names]
        self._check_units(contract)
        commands = [resolve_command(name, config) for name in contract.command_names]
        self._commanded = [self._servos[command.joint] for command in commands]
        self._is_speed = [command.quantity == "speed" for command in commands]
        self._moved = {servo.id for servo, is_speed in zip(self._commanded, self._is_speed, strict=True) if is_speed}
        self._period_s = 1.0 / contract.rate_hz
        self._low, self._high = contract.command_low, contract.command_high
        self._check_limits(contract)
        self._held = [servo for servo in self._servos.values() if servo.config.hold is not None]
        self._goals = dict.fromkeys(config.goals.channels, 0.0)
        self._tip: dict[str, float] = {}
        self._given: dict[str, float] = {}
        self._episode = -1  # before the first, whose goals stand already
        self._set_goals(0)
        self._read_timeout_ns = round(read_timeout_s * 1e9)
        self._given_link, self._clock, self._sleep, self._baud_rate = link, clock, sleep, baud_rate
        self._link: ServoLink = link or SerialLink(port, baud_rate)
        self._registers = ServoRegisters(self._family, clock=clock, sleep=sleep)
        self._bus: ServoBus | None = None
        self._language = self._family.language()
        self._blocks = self._group_blocks()
        self._implausible = 0
        self._health_ns = 0
        self._enabled_ns: int | None = None
        self._torque_written = 1.0
        self._touched = False  # whether torque may be on because of us

    @property
    def counters(self) -> ServoCounters:
        """What went wrong since ``connect``; a copy."""
        if self._bus is None:
            return ServoCounters()
        bus = self._bus.counters
        return ServoCounters(
            missed=bus.missed,
            unasked=bus.unasked,
            retries=bus.retries,
            crc_errors=self._language.crc_errors,
            barriers=bus.barriers,
            silent_barriers=bus.silent_barriers,
            alarms=bus.alarms,
            implausible=self._implausible,
        )

    @property
    def low_latency(self) -> bool:
        """Whether the port's driver granted low-latency mode."""
        return self._link.low_latency

    def next_goals(self) -> None:
        """Take the values of the next episode for the channels that the task gives."""
        self._episode += 1
        self._set_goals(self._episode)

    def connect(self) -> None:
        """Open the port and check that the servos are those of the configuration. Nothing moves.

        Raises:
            LinkError: the port cannot be opened, or servos do not answer; the message names both.
            ContractError: a servo is another model.
        """
        self._open()
        try:
            self._implausible, self._enabled_ns = 0, None
            for servo in self._servos.values():
                servo.forget()
            self._check_models()
            self._registers.prepare()
        except BaseException:
            self._link.close()
            raise

    def enable(self) -> None:
        """Write all limits into the servos, set their goals to where they are, and let them hold that, with little torque.

        The torque then grows to its limit while commands are written. Raises LinkError if a servo does not take a setting.
        """
        registers = self._registers
        self._touched = True
        registers.write_all(self._family.watchdog(0.0))
        self._write_settings()
        self._torque_written = _FIRST_TORQUE
        self._write_torque_limit()
        goals = {servo.id: self._present_goal(servo) for servo in self._servos.values()}
        for servo in self._servos.values():
            servo.start_following(servo.config.to_joint(servo.model.register("goal_position").to_si(goals[servo.id])))
        registers.write(goals, "goal_position")
        registers.write(dict.fromkeys(self._by_id, 1), "torque_enable")
        registers.write_all(self._family.watchdog(self.config.watchdog_s))
        self._enabled_ns = self._clock()

    def read(self, state: JointState) -> None:
        """Overwrite ``state`` with the newest measurements, within the read timeout.

        Channels of servos that did not answer, or not plausibly, are not valid and keep value and time. Raises LinkError when the
        port is gone.
        """
        bus = self._open_bus()
        asked_ns = self._clock()
        deadline_ns = asked_ns + self._read_timeout_ns
        state.valid[:] = False
        for address, length, spare, ids in self._blocks:
            for servo_id, data in bus.read(address, length, deadline_ns, ids=ids, spare=spare).items():
                self._take(bus, self._by_id[servo_id], data, asked_ns)
        self._look_at_health(bus, asked_ns, deadline_ns)
        self._find_tip(asked_ns)
        for index, source in enumerate(self._sources):
            self._fill(state, index, source.joint, source.quantity, asked_ns)
        state.flags, state.alarm = self._flags(asked_ns)

    def write(self, command: NDArray[np.float64]) -> None:
        """Send goals (C,), rad, to the servos.

        Raises:
            ValueError: a goal that is not finite or beyond the limits; nothing is sent then.
            LinkError: the port is gone or does not take the bytes.
        """
        if command.shape != self._low.shape:
            raise ValueError(f"got a command of shape {command.shape}, expected {self._low.shape}")
        if not ((command >= self._low) & (command <= self._high)).all():
            raise ValueError(
                f"commands {', '.join(self.command_names)} must be within {self._low.tolist()} to {self._high.tolist()}, "
                f"got {command.tolist()}"
            )
        address, data = 0, {}
        for servo, value, is_speed in zip(self._commanded, command.tolist(), self._is_speed, strict=True):
            address, data[servo.id] = self._move(servo, value) if is_speed else self._go(servo, value)
        for servo in self._held:
            assert servo.config.hold is not None
            address, data[servo.id] = self._go(servo, servo.config.hold)
        self._open_bus().write(address, data, self._clock() + round(_WRITE_TIMEOUT_S * 1e9))
        self._continue_soft_start()

    def disable(self) -> None:
        """Stop as the configuration says. Never raises; logs which servos did not confirm that their torque is off."""
        if self._bus is None or not self._link.is_open or not self._touched:
            return
        self._touched = False
        if self.config.stop == "hold":
            if self._enabled_ns is not None:
                with contextlib.suppress(LinkError):  # they would let go of the joints they are to hold
                    self._registers.write_all(self._family.watchdog(0.0))
            self._enabled_ns = None
            return
        if self._enabled_ns is not None:
            self._lower_torque()
        self._enabled_ns = None
        self._release()

    def rescue(self) -> None:
        """Take the torque from all servos that answer, after the process that controlled them died. Never raises."""
        if self.config.stop == "hold":
            return
        try:
            self._open()
            self._release()
        except LinkError as error:
            _log.warning("the torque could not be taken from the servos: %s", error)
        finally:
            self._link.close()

    def close(self) -> None:
        """Stop and give the port back. Never raises; may be called at any time."""
        self.disable()
        self._link.close()

    def _set_goals(self, episode: int) -> None:
        goals = self.config.goals
        if goals.channels:
            self._goals = dict(zip(goals.channels, goals.values[episode % len(goals.values)], strict=True))

    def _open(self) -> None:
        """Open the port, wherever it is now, and begin a new bus on it."""
        if self._given_link is None:
            self.port = find_port(self._wanted_port)
            self._link = SerialLink(self.port, self._baud_rate)
        self._link.open()
        self._language = self._family.language()
        self._bus = ServoBus(self._link, self._language, list(self._by_id), clock=self._clock)
        self._registers.attach(self._bus, {servo.id: servo.model for servo in self._servos.values()})

    def _open_bus(self) -> ServoBus:
        if self._bus is None:
            raise LinkError(f"serial port {self.port} is not open; call connect() first")
        return self._bus

    def _check_baud_rate(self, baud_rate: int) -> None:
        for servo in self._servos.values():
            if baud_rate not in servo.model.baud_rates:
                rates = ", ".join(map(str, servo.model.baud_rates))
                raise ConfigError(f"baud_rate {baud_rate} is none of a {servo.model.name}'s: {rates}")

    def _check_units(self, contract: Contract) -> None:
        for channel, source in zip(contract.measurements, self._sources, strict=True):
            if source.joint and channel.unit != QUANTITIES[source.quantity]:
                raise ContractError(f"{channel.name} is measured in {QUANTITIES[source.quantity]}, got the unit {channel.unit!r}")
        for command in contract.commands:
            unit = COMMANDS[resolve_command(command.name, self.config).quantity]
            if command.unit != unit:
                raise ContractError(f"{command.name} is in {unit}, got the unit {command.unit!r}")

    def _check_watchdog(self, rate_hz: float) -> None:
        if self._family.watchdog(self.config.watchdog_s) is not None and self.config.watchdog_s * rate_hz < _WATCHDOG_PERIODS:
            raise ConfigError(
                f"watchdog_s must be at least {_WATCHDOG_PERIODS} periods, which are {_WATCHDOG_PERIODS / rate_hz:g} s at "
                f"{rate_hz:g} Hz, or a lost request trips it; got {self.config.watchdog_s:g} s"
            )

    def _check_limits(self, contract: Contract) -> None:
        for command, servo, is_speed in zip(contract.commands, self._commanded, self._is_speed, strict=True):
            if is_speed:
                if max(-command.low, command.high) > servo.config.max_velocity + 1e-9:
                    raise ContractError(
                        f"{command.name} ranges from {command.low:g} to {command.high:g} rad/s, but joint {servo.name} may move "
                        f"at {servo.config.max_velocity:g} rad/s at most"
                    )
            elif command.low < servo.config.low - 1e-9 or command.high > servo.config.high + 1e-9:
                raise ContractError(
                    f"{command.name} ranges from {command.low:g} to {command.high:g} rad, but joint {servo.name} may go from "
                    f"{servo.config.low:g} to {servo.config.high:g} rad only"
                )
        others = [servo.name for servo in self._servos.values() if servo not in self._commanded and servo.config.hold is None]
        if others:
            raise ContractError(f"no command for {', '.join(others)}; give them an angle to 'hold', or a policy that moves them")

    def _group_blocks(self) -> list[tuple[int, int, int, list[int]]]:
        """Return address, length, spare bytes and IDs of the reads of a tick; models with other addresses need one more."""
        groups: dict[tuple[int, int, int], list[int]] = {}
        for servo in self._servos.values():
            block = self._family.block(servo.model)
            groups.setdefault((block.address, block.length, block.spare), []).append(servo.id)
        return [(*block, ids) for block, ids in groups.items()]

    def _check_models(self) -> None:
        numbers = self._registers.read("model_number", self.config.connect_timeout_s)
        silent = [servo for servo in self._servos.values() if servo.id not in numbers]
        if silent:
            missing = ", ".join(servo.label for servo in silent)
            raise LinkError(
                f"no answer from {missing} on {self.port} at {self._baud_rate} baud; answers came from the IDs "
                f"{sorted(numbers) or '(none)'}. Check power, cable, IDs and baud rate with 'launch/robot.py scan'."
            )
        for servo_id, number in numbers.items():
            servo = self._by_id[servo_id]
            if number != servo.model.number:
                raise ContractError(
                    f"servo {servo.name} (ID {servo_id}) has the model number {number}, expected {servo.model.number} "
                    f"({servo.model.name}). Check the IDs and the robot's configuration."
                )

    def _write_settings(self) -> None:
        """Write what differs from the settings; what outlasts the power needs the torque off, so the joint may give way."""
        lasting = {s.id: self._family.lasting_settings(s.model, s.settings) for s in self._servos.values()}
        self._registers.write_lasting(lasting)
        settings = {s.id: self._family.settings(s.model, s.settings) for s in self._servos.values()}
        for name in dict.fromkeys(name for values in settings.values() for name in values):
            self._registers.write({servo_id: values[name] for servo_id, values in settings.items() if name in values}, name)

    def _write_torque_limit(self) -> None:
        full = self._family.torque_limit_full
        share = self._torque_written
        values = {servo.id: round(share * servo.config.max_torque * full) for servo in self._servos.values()}
        self._registers.send(values, self._family.torque_limit)

    def _continue_soft_start(self) -> None:
        if self._enabled_ns is None or self._torque_written >= 1.0:
            return
        elapsed_s = (self._clock() - self._enabled_ns) * 1e-9
        grown = 1.0 if elapsed_s >= self.config.soft_start_s else elapsed_s / self.config.soft_start_s
        self._torque_written = max(self._torque_written, _FIRST_TORQUE + (1.0 - _FIRST_TORQUE) * grown)
        self._write_torque_limit()

    def _present_goal(self, servo: ServoWatch) -> int:
        """Return the goal at which a servo stays where it is: its position, or the nearest that its limits allow."""
        settings, goal = servo.settings, servo.model.register("goal_position")
        position = self._registers.read_one(servo.id, "present_position")
        return min(max(position, goal.to_raw(settings.low)), goal.to_raw(settings.high))

    def _go(self, servo: ServoWatch, angle: float) -> tuple[int, bytes]:
        """Return what sends a joint to an angle, rad."""
        return self._motion(servo, angle, servo.config.max_velocity)

    def _move(self, servo: ServoWatch, speed: float) -> tuple[int, bytes]:
        """Return what moves a joint's goal on at a speed, rad/s, for the time of one period."""
        config = servo.config
        goal = servo.goal + speed * self._period_s
        if servo.reading is not None:
            goal = min(max(goal, servo.angle - config.max_lead), servo.angle + config.max_lead)
        servo.goal = min(max(goal, config.low), config.high)
        return self._motion(servo, servo.goal, max(abs(speed), _SLOWEST_RAD_PER_S))

    def _motion(self, servo: ServoWatch, angle: float, velocity: float) -> tuple[int, bytes]:
        raw = servo.model.register("goal_position").to_raw(servo.config.to_servo(angle))
        return self._family.motion(servo.model, raw, velocity * abs(servo.config.gear))

    def _take(self, bus: ServoBus, servo: ServoWatch, data: bytes, asked_ns: int) -> None:
        """Keep a reading if it is possible, and see what it complains about."""
        enabled = self._enabled_ns is not None
        if not servo.take(self._family.decode(servo.model, data), asked_ns, enabled=enabled):
            self._implausible += 1
            return
        errors = self._family.error_names(bus.errors[servo.id])
        servo.judge(errors, self._clock(), enabled=enabled, follows=servo.id in self._moved)

    def _look_at_health(self, bus: ServoBus, now_ns: int, deadline_ns: int) -> None:
        if now_ns - self._health_ns < self.config.health_interval_s * 1e9:
            return
        self._health_ns = now_ns
        model = next(iter(self._servos.values())).model
        block = self._family.slow_block(model)
        if block is None:
            return
        for servo_id, data in bus.read(block.address, block.length, deadline_ns, spare=block.spare).items():
            if self._by_id[servo_id].take_torque(torque_on=self._family.decode_torque(model, data)):
                self._health_ns = 0

    def _find_tip(self, asked_ns: int) -> None:
        """Compute where the tip is, and the way to the goals, if the angles of all joints up to it were read in this call."""
        config = self.config.tip
        angles = [
            servo.angle
            for servo in (self._servos[name] for name in config.joints)
            if servo.reading is not None and servo.read_ns == asked_ns
        ]
        self._tip = {}
        self._given = {} if self.config.goals.from_tip else dict(self._goals)
        if config.channels and len(angles) == len(config.joints):
            place = tip_position(list(config.joints.values()), config.offset, angles)
            self._tip = dict(zip(config.channels, place, strict=True))
            if self.config.goals.from_tip:
                self._given = {name: goal - here for (name, goal), here in zip(self._goals.items(), place, strict=True)}

    def _fill(self, state: JointState, index: int, joint: str, quantity: str, asked_ns: int) -> None:
        if not joint:
            given = self._given.get(quantity, self._tip.get(quantity))
            if given is not None:
                state.values[index], state.valid[index], state.time_ns[index] = given, True, asked_ns
            return
        servo = self._servos[joint]
        reading = servo.reading
        if reading is None or servo.read_ns != asked_ns:
            return
        value = getattr(reading, quantity)
        if value is None:
            return
        if quantity == "position":
            value = servo.angle
        elif quantity == "velocity":
            value /= servo.config.gear
        elif quantity in ("current", "load"):
            value = math.copysign(value, value * servo.config.gear)
        state.values[index], state.valid[index], state.time_ns[index] = value, True, asked_ns

    def _flags(self, now_ns: int) -> tuple[DeviceFlag, str]:
        flags = DeviceFlag(0) if self._enabled_ns is None else DeviceFlag.ENABLED
        alarms = [servo.alarm for servo in self._servos.values() if servo.alarm]
        if self._enabled_ns is not None:
            for servo in self._servos.values():
                silence_s = (now_ns - max(servo.read_ns, self._enabled_ns)) * 1e-9
                if silence_s > self.config.silence_s:
                    alarms.append(f"{servo.label}: no valid answer for {silence_s:.2f} s")
        return flags | DeviceFlag.HARDWARE_FAULT if alarms else flags, "; ".join(alarms)

    def _lower_torque(self) -> None:
        """Let the torque limits fall to nothing, so that the joints sink and do not drop."""
        steps = round(self.config.stop_ramp_s / _RAMP_STEP_S)
        full = self._torque_written
        for step in range(1, steps + 1):
            self._torque_written = full * (1.0 - step / steps)
            with contextlib.suppress(LinkError):
                self._write_torque_limit()
            self._sleep(_RAMP_STEP_S)

    def _release(self) -> None:
        """Take the torque away, from as many servos as can be reached."""
        left = list(self._by_id)
        for _ in range(_RELEASE_ATTEMPTS):
            with contextlib.suppress(LinkError):
                left = self._registers.try_write(dict.fromkeys(left, 0), "torque_enable")
            if not left:
                return
        names = ", ".join(self._by_id[servo_id].label for servo_id in left)
        remedy = "their watchdog must stop them" if self._family.has_watchdog else "switch off their supply"
        _log.warning("the torque of %s was not confirmed to be off; %s", names, remedy)
