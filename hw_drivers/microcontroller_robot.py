"""A robot whose sensors and actuators hang on one microcontroller that speaks ``docs/microcontroller-protocol.md``."""

from __future__ import annotations

import dataclasses
import logging
import math
import secrets
import time
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from dpg_robot.contract import Contract
from dpg_robot.deploy.robot import JointState
from dpg_robot.errors import ContractError, DpgError, LinkError, LinkTimeoutError
from hw_drivers.microcontroller import (
    NO_SEQUENCE,
    PROTOCOL_VERSION,
    Ack,
    Command,
    Decoder,
    Disable,
    Enable,
    Frame,
    FrameFault,
    Hello,
    Identity,
    Nack,
    NackReason,
    ReadState,
    Reply,
    State,
)
from hw_drivers.serial_link import SerialLink

DEFAULT_BAUD_RATE = 1_000_000

_HELLO_INTERVAL_S = 0.1
_SWITCH_ATTEMPTS = 5
_SWITCH_TIMEOUT_S = 0.02
_WRITE_TIMEOUT_S = 0.002

_log = logging.getLogger(__name__)


@dataclass
class LinkCounters:
    """What went wrong on a link.

    Attributes:
        crc_errors: frames whose CRC did not match.
        resyncs: pieces of input that were skipped because they were no frame, CRC errors included.
        timeouts: reads without a valid answer in time.
        unmatched_answers: answers to no open request (late, duplicated, reordered or echoed); they were dropped.
        nacks: requests that the device refused.
        lost_commands: written commands that the next state says the device never accepted.
        nonfinite_values: measured values that were not finite.
    """

    crc_errors: int = 0
    resyncs: int = 0
    timeouts: int = 0
    unmatched_answers: int = 0
    nacks: int = 0
    lost_commands: int = 0
    nonfinite_values: int = 0


class MicrocontrollerRobot:
    """Implements :class:`dpg_robot.deploy.robot.Robot` over one serial port.

    One tick costs one round trip: ``read`` asks for the state and takes only the answer that carries the number of its own
    request; ``write`` does not wait, its acknowledgement is looked at by the following ``read``.

    After ``enable`` the device's watchdog runs: the first command must follow within its time (``identity.watchdog_us``).

    Attributes:
        identity: what the device said about itself, None before ``connect``.
        last_nack: why the device last refused a request, None if it never did.
    """

    def __init__(
        self,
        port: str,
        *,
        measurement_names: Sequence[str],
        command_names: Sequence[str],
        command_low: ArrayLike,
        command_high: ArrayLike,
        measurement_units: Sequence[str] | None = None,
        command_units: Sequence[str] | None = None,
        baud_rate: int = DEFAULT_BAUD_RATE,
        read_timeout_s: float = 0.004,
        connect_timeout_s: float = 2.0,
    ) -> None:
        """Describe the robot that is expected behind a port; nothing is opened yet.

        Args:
            port: path of the serial port, for example ``/dev/ttyACM0``.
            measurement_names: M channels that the device must measure, in this order.
            command_names: C channels that the device must command, in this order.
            command_low: (C,) lowest commands that will be written; the device must allow them.
            command_high: (C,) highest commands that will be written; the device must allow them.
            measurement_units: M units that the device must report, or None to leave them unchecked.
            command_units: C units that the device must report, or None to leave them unchecked.
            baud_rate: bits per second; USB and pseudo-terminals ignore it.
            read_timeout_s: longest time that ``read`` waits for its answer.
            connect_timeout_s: longest time that ``connect`` waits; boards that restart when the port opens need about 2 s.
        """
        self.measurement_names = tuple(measurement_names)
        self.command_names = tuple(command_names)
        self.identity: Identity | None = None
        self.last_nack: NackReason | None = None
        self._measurement_units = None if measurement_units is None else tuple(measurement_units)
        self._command_units = None if command_units is None else tuple(command_units)
        self._low = np.asarray(command_low, dtype=np.float64)
        self._high = np.asarray(command_high, dtype=np.float64)
        if not self._low.shape == self._high.shape == (len(self.command_names),):
            raise ValueError(
                f"got command limits of shapes {self._low.shape} and {self._high.shape}, expected {(len(self.command_names),)}"
            )
        self._read_timeout_ns = round(read_timeout_s * 1e9)
        self._connect_timeout_ns = round(connect_timeout_s * 1e9)
        self._link = SerialLink(port, baud_rate)
        self._decoder = Decoder()
        self._counters = LinkCounters()
        self._sequence = self._written = NO_SEQUENCE
        self._touched = False  # whether the device may be enabled because of us

    @classmethod
    def from_contract(
        cls,
        port: str,
        contract: Contract,
        *,
        baud_rate: int = DEFAULT_BAUD_RATE,
        read_timeout_s: float = 0.004,
        connect_timeout_s: float = 2.0,
    ) -> MicrocontrollerRobot:
        """Describe the robot that a policy's contract was made for: names, order, units and limits are all checked."""
        return cls(
            port,
            measurement_names=contract.measurement_names,
            command_names=contract.command_names,
            command_low=contract.command_low,
            command_high=contract.command_high,
            measurement_units=[channel.unit for channel in contract.measurements],
            command_units=[channel.unit for channel in contract.commands],
            baud_rate=baud_rate,
            read_timeout_s=read_timeout_s,
            connect_timeout_s=connect_timeout_s,
        )

    @property
    def counters(self) -> LinkCounters:
        """What went wrong on the link since ``connect``; a copy."""
        faults = self._decoder.faults
        return dataclasses.replace(self._counters, crc_errors=faults[FrameFault.BAD_CRC], resyncs=faults.total())

    @property
    def low_latency(self) -> bool:
        """Whether the port's driver granted low-latency mode."""
        return self._link.low_latency

    def connect(self) -> None:
        """Open the port and check who answers.

        Raises:
            LinkError: the port cannot be opened, or nothing on it speaks the protocol.
            ContractError: the device's channels, units or limits are not the expected ones.
        """
        self.identity = self.last_nack = None
        self._decoder = Decoder()
        self._counters = LinkCounters()
        # A random start keeps answers to an earlier program's requests from matching ours.
        self._sequence, self._written = secrets.randbits(32), NO_SEQUENCE
        self._link.open()
        try:
            self.identity = self._ask_identity()
            self._check_identity(self.identity)
        except BaseException:
            self._link.close()
            raise

    def enable(self) -> None:
        """Let the device follow commands, starting from zero effort. Raises LinkError if it refuses or does not answer."""
        self._touched = True
        reply = self._switch(Enable)
        if isinstance(reply, Nack):
            raise LinkError(f"the device on {self._link.port} refuses to enable its actuators: {reply.reason.name}")
        if reply is None:
            raise LinkTimeoutError(
                f"the device on {self._link.port} did not confirm Enable: no answer to {_SWITCH_ATTEMPTS} requests "
                f"of {_SWITCH_TIMEOUT_S * 1e3:.0f} ms each. Check the cable and the supply."
            )

    def read(self, state: JointState) -> None:
        """Overwrite ``state`` with the newest measurements, within the read timeout.

        Without a valid answer in time, and for values that are not finite, ``valid`` is false and value and time stay. The time
        of a value is when it was asked for, so its age is never underestimated. Raises LinkError when the port is gone.
        """
        state.valid[:] = False
        asked_ns = time.monotonic_ns()
        try:
            reply = self._exchange(ReadState(self._next_sequence()), asked_ns + self._read_timeout_ns)
        except LinkTimeoutError:
            reply = None
        if not isinstance(reply, State) or len(reply.values) != len(self.measurement_names):
            self._counters.timeouts += 1
            return
        for index, value in enumerate(reply.values):
            if math.isfinite(value):
                state.values[index] = value
                state.valid[index] = True
                state.time_ns[index] = asked_ns
            else:
                self._counters.nonfinite_values += 1
        state.device_time_ns = reply.device_time_us * 1000
        state.flags = reply.flags
        if self._written not in (NO_SEQUENCE, reply.last_command):
            self._counters.lost_commands += 1
        self._written = NO_SEQUENCE

    def write(self, command: NDArray[np.float64]) -> None:
        """Send commands (C,) in SI units, without waiting for the answer.

        Raises:
            ValueError: a command that is not finite or outside the limits; nothing is sent then.
            LinkError: the port is gone or does not take the bytes.
        """
        if command.shape != self._low.shape:
            raise ValueError(f"got a command of shape {command.shape}, expected {self._low.shape}")
        if not ((command >= self._low) & (command <= self._high)).all():
            raise ValueError(self._refusal(command))
        frame = Command(self._next_sequence(), tuple(command.tolist()))
        self._link.write(frame.to_bytes(), time.monotonic_ns() + round(_WRITE_TIMEOUT_S * 1e9))
        self._written = frame.sequence

    def disable(self) -> None:
        """Take the effort from the actuators; tries a few times, within 0.1 s, and logs when the device does not confirm."""
        if not self._link.is_open or not self._touched:
            return
        self._touched = False
        try:
            confirmed = isinstance(self._switch(Disable), Ack)
            problem = "no confirmation"
        except LinkError as error:
            confirmed, problem = False, str(error)
        if not confirmed:
            watchdog_ms = self.identity.watchdog_us * 1e-3 if self.identity else math.nan
            _log.warning("disable was not confirmed; the device's watchdog must stop it within %g ms: %s", watchdog_ms, problem)

    def close(self) -> None:
        """Disable and give the port back. Never raises; may be called at any time."""
        self.disable()
        self._link.close()

    def rescue(self) -> None:
        """Take the effort from the actuators after the process that controlled them died. Never raises."""
        try:
            self.connect()
            self._touched = True
        except DpgError as error:
            _log.warning("the device could not be reached to disable it; its watchdog must stop it: %s", error)
        self.close()

    def _next_sequence(self) -> int:
        self._sequence = (self._sequence + 1) & 0xFFFFFFFF or 1
        return self._sequence

    def _exchange(self, request: Frame, deadline_ns: int) -> Reply | None:
        """Send a request and return the reply that carries its number, or None when there is none by the deadline."""
        self._link.write(request.to_bytes(), deadline_ns)
        answer: Reply | None = None
        while answer is None:
            data = self._link.read(deadline_ns)
            for frame in self._decoder.feed(data):
                if answer is None and isinstance(frame, Reply) and frame.sequence == request.sequence:
                    answer = frame
                elif frame.sequence != self._written or not isinstance(frame, Ack | Nack):
                    self._counters.unmatched_answers += 1
                if isinstance(frame, Nack):
                    self._counters.nacks += 1
                    self.last_nack = frame.reason
            if time.monotonic_ns() >= deadline_ns:
                break
        return answer

    def _switch(self, request: type[Enable] | type[Disable]) -> Reply | None:
        """Send Enable or Disable until it is answered, a few times at most."""
        for _ in range(_SWITCH_ATTEMPTS):
            try:
                reply = self._exchange(request(self._next_sequence()), time.monotonic_ns() + round(_SWITCH_TIMEOUT_S * 1e9))
            except LinkTimeoutError:
                continue
            if reply is not None:
                return reply
        return None

    def _ask_identity(self) -> Identity:
        deadline_ns = time.monotonic_ns() + self._connect_timeout_ns
        while (now_ns := time.monotonic_ns()) < deadline_ns:
            attempt_ns = min(deadline_ns, now_ns + round(_HELLO_INTERVAL_S * 1e9))
            try:
                reply = self._exchange(Hello(self._next_sequence()), attempt_ns)
            except LinkTimeoutError:
                continue
            if isinstance(reply, Identity):
                return reply
        raise self._no_identity()

    def _no_identity(self) -> LinkError:
        decoder, link = self._decoder, self._link
        after = (
            f"no microcontroller answered on {link.port} within {self._connect_timeout_ns * 1e-9:g} s at {link.baud_rate} baud: "
        )
        got = f"{decoder.bytes_received} bytes received, {decoder.frames_received} valid frames in them"
        if decoder.bytes_received == 0:
            return LinkTimeoutError(
                f"{after}{got}. Check that the board is powered, the cable carries data and the firmware runs."
            )
        if decoder.faults[FrameFault.BAD_VERSION]:
            return LinkError(
                f"{after}{got}. It speaks another version than {PROTOCOL_VERSION} of the protocol; update its firmware."
            )
        if decoder.frames_received:
            return LinkError(f"{after}{got}, but no Identity. Check for an echoing cable or adapter, and the firmware.")
        return LinkError(
            f"{after}{got}. Check the baud rate on both sides, the cable (ground), and that this is the right firmware."
        )

    def _check_identity(self, identity: Identity) -> None:
        """Raise ContractError naming every way in which the device is not the expected one."""
        differences = [
            f"{what}: got {', '.join(got) or 'none'}; expected {', '.join(expected) or 'none'}"
            for what, got, expected in (
                ("measurement channels", tuple(c.name for c in identity.measurements), self.measurement_names),
                ("measurement units", tuple(c.unit for c in identity.measurements), self._measurement_units),
                ("command channels", tuple(c.name for c in identity.commands), self.command_names),
                ("command units", tuple(c.unit for c in identity.commands), self._command_units),
            )
            if expected is not None and got != expected
        ]
        if len(identity.commands) == len(self.command_names):
            # compared as float32, which is what goes over the wire
            differences += [
                f"limits of {channel.name}: got {channel.low:g} to {channel.high:g}; expected at least {low:g} to {high:g}"
                for channel, low, high in zip(identity.commands, self._low, self._high, strict=True)
                if np.float32(low) < channel.low or np.float32(high) > channel.high
            ]
        if differences:
            raise ContractError(
                f"the device {identity.name!r} (firmware {identity.firmware}) on {self._link.port} is not the expected robot. "
                f"{'; '.join(differences)}. Choose the right port, robot configuration or firmware."
            )

    def _refusal(self, command: NDArray[np.float64]) -> str:
        for name, value, low, high in zip(self.command_names, command, self._low, self._high, strict=True):
            if not math.isfinite(value):
                return f"command {name} must be finite, got {value}"
            if not low <= value <= high:
                return f"command {name} must be within {low:g} to {high:g}, got {value:g}"
        raise AssertionError("called for a command within its limits")
