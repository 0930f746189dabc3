"""Serves emulated servos as :class:`~hw_drivers.emulators.servo_server.ServoServer` does, with faults on command and a trace.

Commands are lines of JSON with the fields of :class:`~hw_drivers.emulators.fault_schedule.BusFault`. The trace is a file with a
line of JSON for each thing that happened, whose ``t`` is the monotonic time in ns and ``what`` one of:

- ``read``: servos were asked; ``x`` and ``v`` are the true angles (rad) and velocities (rad/s) of all at that moment.
- ``state``: the same, from time to time, whether asked or not.
- ``goals``: ``goals`` were received: pairs of an ID and a goal (rad, as the servo counts).
- ``torque``: ``on`` says of each servo whether its motor has power, ``share`` which share of its torque it may use.
- ``fault``: fault ``number`` of ``kind`` has begun or ended (``begins``).
- ``stall``: this process got no time for ``gap_s``.
- ``port``: the port has a new ``path``.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import termios
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from types import TracebackType
from typing import IO, Any

from hw_drivers.dynamixel import packets as dynamixel
from hw_drivers.emulators.dynamixel import DynamixelBus, EmulatedServo
from hw_drivers.emulators.fault_schedule import BusFault, FaultSchedule, FaultyJoints
from hw_drivers.emulators.feetech import FeetechBus, FeetechServo
from hw_drivers.emulators.joints import Answer
from hw_drivers.emulators.pseudo_terminal import open_pseudo_terminal
from hw_drivers.emulators.servo_server import ServoServer
from hw_drivers.feetech import packets as feetech

_STATE_NS = 40_000_000
_STALL_NS = 3_000_000  # it wakes up every millisecond
_FULL_PWM, _FULL_TORQUE = 885, 1000
_READ_BYTES = 65_536
_FRAME_GAP_NS = 20_000_000

_READS = (dynamixel.SyncRead, dynamixel.Read, feetech.SyncRead, feetech.Read)


class BusTrace:
    """Writes what happens on a bus."""

    def __init__(self, file: IO[str], joints: FaultyJoints, servos: Sequence[FeetechServo | EmulatedServo]) -> None:
        self._file, self._joints, self._servos = file, joints, servos
        self._torque: tuple[list[bool], list[float]] | None = None
        self._state_ns = 0

    def write(self, time_ns: int, what: str, **values: Any) -> None:
        """Write one line."""
        self._file.write(json.dumps({"t": time_ns, "what": what, **values}, separators=(",", ":")) + "\n")

    def joints(self, time_ns: int, what: str) -> None:
        """Write angles and velocities of all joints."""
        numbers = range(len(self._servos))
        x = [round(self._joints.true.position(number), 6) for number in numbers]
        v = [round(self._joints.true.velocity(number), 6) for number in numbers]
        self.write(time_ns, what, x=x, v=v)

    def look(self, time_ns: int) -> None:
        """Write what has changed, and now and then the joints."""
        torque = [_has_torque(servo) for servo in self._servos], [_torque_share(servo) for servo in self._servos]
        if torque != self._torque:
            self._torque = torque
            self.write(time_ns, "torque", on=torque[0], share=torque[1])
        if time_ns - self._state_ns >= _STATE_NS:
            self._state_ns = time_ns
            self.joints(time_ns, "state")
            self._file.flush()


class TracedBus:
    """A bus whose instructions are written into a trace on their way to the servos; it hears what they hear."""

    def __init__(self, bus: DynamixelBus | FeetechBus, trace: BusTrace) -> None:
        self.bus, self._trace = bus, trace
        self._decoder = dynamixel.InstructionDecoder() if isinstance(bus, DynamixelBus) else feetech.InstructionDecoder()
        self._heard_ns = 0

    @property
    def baud_rate(self) -> int:
        """Bits per second at which the host talks."""
        return self.bus.baud_rate

    @baud_rate.setter
    def baud_rate(self, baud_rate: int) -> None:
        self.bus.baud_rate = baud_rate

    def receive(self, data: bytes, now_ns: int) -> list[Answer]:
        """Hear bytes, as the bus does."""
        self.bus.advance(now_ns)
        if now_ns - self._heard_ns > _FRAME_GAP_NS:
            self._decoder.reset()
        self._heard_ns = now_ns
        for instruction in self._decoder.feed(data):
            if isinstance(instruction, _READS):
                self._trace.joints(now_ns, "read")
            goals = self._goals(instruction)
            if goals:
                self._trace.write(now_ns, "goals", goals=goals)
        answers = self.bus.receive(data, now_ns)
        self._trace.look(now_ns)
        return answers

    def advance(self, now_ns: int) -> None:
        """Let time pass."""
        self.bus.advance(now_ns)
        self._trace.look(now_ns)

    def silence(self, index: int) -> None:
        """Let a servo hear and answer nothing any more."""
        self.bus.silence(index)

    def with_other_id(self, data: bytes) -> bytes:
        """Return an answer as another servo would have sent it."""
        return self.bus.with_other_id(data)

    def _goals(self, instruction: Any) -> list[tuple[int, float]]:
        """Return the goals that an instruction has for servos by ID, whatever they make of it."""
        writes: list[tuple[int, int, bytes]] = []
        match instruction:
            case dynamixel.SyncWrite(address=address, data=pieces) | feetech.SyncWrite(address=address, data=pieces):
                writes = [(servo_id, address, data) for servo_id, data in pieces]
            case dynamixel.Write(id=servo_id, address=address, data=data):
                writes = [(servo_id, address, data)]
            case feetech.Write(servo_id=servo_id, address=address, data=data):
                writes = [(servo_id, address, data)]
            case dynamixel.BulkWrite(data=whole):
                writes = list(whole)
        register = self.bus.servos[0].model.register("goal_position")
        goals = []
        for servo_id, address, data in writes:
            begin = register.address - address
            if begin >= 0 and begin + register.size <= len(data):
                goals.append((servo_id, round(register.to_si(register.decode(data[begin : begin + register.size])), 6)))
        return goals


class FaultyServer(ServoServer):
    """Serves a bus in real time on a pseudo-terminal and does faults as commands come.

    Attributes:
        schedule: the faults.
        path: path of the pseudo-terminal; another one after the port was unplugged.
    """

    def __init__(
        self,
        bus: DynamixelBus | FeetechBus,
        joints: FaultyJoints,
        trace: IO[str],
        *,
        commands: int = -1,
        link: Path | None = None,
        seed: int = 0,
    ) -> None:
        """Open the pseudo-terminal.

        Args:
            bus: the servos, which move ``joints``.
            joints: the joints.
            trace: file for the trace.
            commands: file descriptor that faults are read from; -1 for none.
            link: symbolic link to the port, which follows it to its new name.
            seed: seed of the random bytes.
        """
        self.schedule = FaultSchedule(bus, joints, seed=seed)
        self._trace = BusTrace(trace, joints, bus.servos)
        self._trace_file, self._link, self._commands, self._line = trace, link, commands, b""
        super().__init__(TracedBus(bus, self._trace), faults=self.schedule)
        self.schedule.on_change = self._note
        self._held = bytearray()
        self._passed_on_ns = 0
        self._unplugged = False
        if commands >= 0:
            os.set_blocking(commands, False)

    def serve(self, should_stop: Callable[[], bool]) -> None:
        """Answer requests, with the faults that are due, until ``should_stop()``."""
        last_ns = time.monotonic_ns()
        while not should_stop():
            received = b""
            if self._unplugged:
                time.sleep(0.001)
            else:
                received = self._wait()
            now_ns = time.monotonic_ns()
            if now_ns - last_ns > _STALL_NS:
                self._trace.write(now_ns, "stall", gap_s=(now_ns - last_ns) * 1e-9)
            last_ns = now_ns
            self._read_commands(now_ns)
            self.schedule.advance(now_ns)
            self._exchange(received, now_ns)

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        super().__exit__(kind, error, trace)
        self._trace_file.flush()

    def _exchange(self, received: bytes, now_ns: int) -> None:
        if self._connected:
            with contextlib.suppress(OSError):
                self._wire.set_baud_rate(self._baud_rate())
        if received and not self.schedule.active("deaf"):
            self._wire.send(received, now_ns)
            if self.schedule.active("echo"):
                self._held += received
        self._held += self._wire.advance(now_ns)
        latency = self.schedule.active("latency")
        if latency is not None and now_ns - self._passed_on_ns < latency.amount * 1e9:
            return
        self._passed_on_ns = now_ns
        if self._held and self._connected:
            # The host does not read, or has gone: a real adapter loses these bytes too.
            with contextlib.suppress(OSError):
                os.write(self._master, self._held)
        self._held.clear()

    def _read_commands(self, now_ns: int) -> None:
        if self._commands < 0:
            return
        try:
            self._line += os.read(self._commands, _READ_BYTES)
        except OSError as error:
            if error.errno not in (errno.EAGAIN, errno.EINTR):
                self._commands = -1
            return
        *lines, self._line = self._line.split(b"\n")
        for line in lines:
            self.schedule.add(BusFault(**json.loads(line)), now_ns)

    def _note(self, time_ns: int, fault: BusFault, begins: bool) -> None:
        if fault.kind == "block":
            self._block(begins)
        elif fault.kind == "unplug":
            self._unplug() if begins else self._plug(time_ns)
        self._trace.write(time_ns, "fault", number=fault.number, kind=fault.kind, begins=begins)
        self._trace_file.flush()

    def _block(self, blocked: bool) -> None:
        """Let the port take no bytes from the host, as if its adapter hung; or let it take them again."""
        with contextlib.suppress(OSError, termios.error):
            port = os.open(self.path, os.O_RDWR | os.O_NOCTTY | os.O_NONBLOCK)
            try:
                termios.tcflow(port, termios.TCOOFF if blocked else termios.TCOON)
            finally:
                os.close(port)

    def _unplug(self) -> None:
        fresh = open_pseudo_terminal()  # before the old one goes, whose name would be used again
        self._wire.hang_up()
        os.close(self._master)
        self._master, self.path, self._poll = fresh
        self._unplugged, self._connected = True, False

    def _plug(self, now_ns: int) -> None:
        self._unplugged = False
        if self._link is not None:
            fresh = self._link.with_name(self._link.name + ".new")
            fresh.symlink_to(self.path)
            fresh.replace(self._link)
        self._trace.write(now_ns, "port", path=self.path)


def _has_torque(servo: FeetechServo | EmulatedServo) -> bool:
    if isinstance(servo, FeetechServo):
        return servo.powered and servo.registers["torque_enable"] == 1
    return servo.torque_on


def _torque_share(servo: FeetechServo | EmulatedServo) -> float:
    if isinstance(servo, FeetechServo):
        return servo.registers["torque_limit"] / _FULL_TORQUE
    return servo.table["goal_pwm"] / _FULL_PWM
