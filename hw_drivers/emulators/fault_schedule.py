"""Faults of emulated servos at chosen times: answers that are damaged, servos that fail, sensors that lie, a port that goes.

A :class:`BusFault` says what happens and for how long; a :class:`FaultSchedule` does it while the bus is served. Times are
those of whoever advances it, so it works in real and in simulated time.
"""

from __future__ import annotations

import random
import struct
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

from dpg_robot.errors import unknown_name
from hw_drivers.dynamixel.packets import HEADER as DYNAMIXEL_HEADER
from hw_drivers.dynamixel.packets import Reboot, crc16
from hw_drivers.emulators.dynamixel import DynamixelBus, EmulatedServo
from hw_drivers.emulators.feetech import FeetechBus, FeetechServo
from hw_drivers.emulators.joints import Answer, Joints
from hw_drivers.emulators.servo_server import ServoFaults
from hw_drivers.feetech.packets import checksum

ALL = -1
"""Number that stands for all servos."""

DAMAGES = {
    "drop": "answers are lost",
    "late": "answers come 'amount' seconds late",
    "corrupt": "one bit of each answer is flipped",
    "truncate": "the ends of answers are missing",
    "split": "answers come in two pieces, 'amount' seconds apart",
    "garbage": "random bytes come before answers",
    "header": "the beginning of an answer stands in the middle of answers, at the share 'amount' of their length",
    "wrong_id": "answers name the next servo",
    "duplicate": "answers are sent twice",
    "oversized": "the length field of answers says the most that it can",
    "error": "answers carry the error byte 'amount'",
}
BREAKDOWNS = {
    "silent": "the servo neither hears nor answers; it keeps its torque",
    "same_id": "the servo has the ID of the one before it",
    "wrong_baud": "the servo listens at another baud rate",
    "reboot": "the servo restarts: its torque is off and its RAM as from the factory",
    "brown_out": "the second half of the servos has no power, and restarts",
    "hot": "the servo has 'amount' deg C",
    "weak_supply": "all servos have 'amount' V",
    "jam": "the servo pushes with all its torque and does not move",
    "refuse": "the servo does not take another lower limit of its position",
    "stuck": "the servo's encoder shows what it showed when this began",
    "jump": "the servo's encoder shows 'amount' rad more",
}
PORT_FAULTS = {
    "unplug": "the port is gone, and comes back under another name",
    "block": "the port takes no bytes from the host",
    "deaf": "what the host sends is lost",
    "latency": "the adapter passes answers on only every 'amount' seconds",
    "echo": "the host receives its own bytes",
}
REPAIR = "repair"
KINDS = DAMAGES | BREAKDOWNS | PORT_FAULTS | {REPAIR: "all other faults end"}
"""What each kind of fault is."""


@dataclass(frozen=True)
class BusFault:
    """One fault of a bus.

    Attributes:
        kind: one of :data:`KINDS`.
        after_s: when it begins, from when it is given, s.
        duration_s: how long it lasts, s.
        servo: number of the servo that it happens to, from 0; :data:`ALL` for all of them.
        amount: how much, in the unit that the kind says.
        number: names this fault in traces.
    """

    kind: str
    after_s: float = 0.0
    duration_s: float = 0.0
    servo: int = ALL
    amount: float = 0.0
    number: int = 0

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise unknown_name("fault", self.kind, KINDS)
        if not (self.after_s >= 0 and self.duration_s >= 0):
            raise ValueError(f"after_s and duration_s must be 0 or more, got {self.after_s} and {self.duration_s}")


class FaultyJoints:
    """Joints whose sensors may lie; what is true stays in ``true``.

    Attributes:
        true: the joints.
        shown: angles that are shown instead of the true ones, by number, rad.
        added: what is added to the angles that are shown, by number, rad.
        jammed: numbers of joints that push and seem to stand still.
    """

    def __init__(self, joints: Joints) -> None:
        self.true = joints
        self.shown: dict[int, float] = {}
        self.added: dict[int, float] = {}
        self.jammed: set[int] = set()

    def advance(self, until_ns: int) -> None:
        """Let time pass."""
        self.true.advance(until_ns)

    def position(self, index: int) -> float:
        """Return the angle that the sensor shows, rad."""
        return self.shown.get(index, self.true.position(index)) + self.added.get(index, 0.0)

    def velocity(self, index: int) -> float:
        """Return the velocity that the sensor shows, rad/s."""
        return 0.0 if index in self.shown or index in self.jammed else self.true.velocity(index)

    def effort(self, index: int) -> float:
        """Return the torque as a share of the largest."""
        return 1.0 if index in self.jammed else self.true.effort(index)

    def set_goal(self, index: int, position: float, velocity_limit: float) -> None:
        """Switch the torque on and move to an angle, rad, at most at ``velocity_limit``, rad/s."""
        self.true.set_goal(index, position, velocity_limit)

    def limit_torque(self, index: int, share: float) -> None:
        """Bound the torque to a share of the largest."""
        self.true.limit_torque(index, share)

    def release(self, index: int) -> None:
        """Switch the torque off."""
        self.true.release(index)


class _Frames(Protocol):
    """Where things are in the answers of a family."""

    id_place: int
    head_bytes: int  # up to and with the length

    def with_error(self, data: bytes, error: int) -> bytes: ...
    def oversized(self, data: bytes) -> bytes: ...


class _DynamixelFrames:
    id_place, head_bytes = 4, 7

    def with_error(self, data: bytes, error: int) -> bytes:
        if not data.startswith(DYNAMIXEL_HEADER):
            return data
        body = data[:8] + bytes([error]) + data[9:-2]
        return body + struct.pack("<H", crc16(body))

    def oversized(self, data: bytes) -> bytes:
        return data[:5] + b"\xff\xff" + data[7:]


class _FeetechFrames:
    id_place, head_bytes = 2, 4

    def with_error(self, data: bytes, error: int) -> bytes:
        body = data[2:4] + bytes([error]) + data[5:-1]
        return data[:2] + body + bytes([checksum(body)])

    def oversized(self, data: bytes) -> bytes:
        return data[:3] + b"\xff" + data[4:]


class FaultSchedule(ServoFaults):
    """Does faults at their times; it is what damages the answers on a :class:`~hw_drivers.emulators.servo_server.ServoWire`.

    Attributes:
        on_change: called with the time (ns), a fault and whether it begins, when it has begun or ended.
    """

    def __init__(self, bus: DynamixelBus | FeetechBus, joints: FaultyJoints, *, seed: int = 0) -> None:
        """Watch over a bus whose servos move ``joints``; ``seed`` is that of the random bytes."""
        super().__init__(seed=seed)
        self.on_change: Callable[[int, BusFault, bool], None] = lambda time_ns, fault, begins: None
        self._servos: Sequence[FeetechServo | EmulatedServo] = bus.servos
        self._joints = joints
        self._frames: _Frames = _DynamixelFrames() if isinstance(bus, DynamixelBus) else _FeetechFrames()
        self._waiting: list[tuple[int, BusFault]] = []
        self._active: list[tuple[int, BusFault]] = []
        self._undo: dict[BusFault, list[Callable[[int], None]]] = {}

    def add(self, fault: BusFault, now_ns: int) -> None:
        """Let a fault happen, ``fault.after_s`` from now. Raises ValueError for a servo that there is not."""
        if not ALL <= fault.servo < len(self._servos):
            raise ValueError(f"servo must be {ALL} to {len(self._servos) - 1}, got {fault.servo}")
        self._waiting.append((now_ns + round(fault.after_s * 1e9), fault))

    def advance(self, now_ns: int) -> None:
        """Begin and end what is due."""
        due = [entry for entry in self._waiting if entry[0] <= now_ns]
        repaired = any(fault.kind == REPAIR for _, fault in due)
        for end_ns, fault in [entry for entry in self._active if repaired or entry[0] <= now_ns]:
            self._active.remove((end_ns, fault))
            for undo in self._undo.pop(fault, []):
                undo(now_ns)
            self.on_change(now_ns, fault, False)
        for begin_ns, fault in due:
            self._waiting.remove((begin_ns, fault))
            self._active.append((now_ns + round(fault.duration_s * 1e9), fault))
            if fault.kind in BREAKDOWNS:
                self._undo[fault] = self._break(fault, now_ns)
            self.on_change(now_ns, fault, True)

    def active(self, kind: str) -> BusFault | None:
        """Return a fault of this kind that is on now, None if there is none."""
        return next((fault for _, fault in self._active if fault.kind == kind), None)

    def apply(
        self, answer: Answer, chance: random.Random, byte_ns: float, with_other_id: Callable[[bytes], bytes]
    ) -> list[Answer]:
        """Return what the host gets of an answer now."""
        pieces = [answer]
        for _, fault in self._active:
            if fault.kind in DAMAGES and self._concerns(fault, answer.data):
                pieces = [
                    piece
                    for before in pieces
                    for piece in self._damage(fault, before, chance, byte_ns, with_other_id)
                    if piece.data
                ]
        return pieces

    def _concerns(self, fault: BusFault, data: bytes) -> bool:
        place = self._frames.id_place
        return fault.servo == ALL or (len(data) > place and data[place] == self._servos[fault.servo].servo_id)

    def _damage(
        self,
        fault: BusFault,
        answer: Answer,
        chance: random.Random,
        byte_ns: float,
        with_other_id: Callable[[bytes], bytes],
    ) -> list[Answer]:
        data, frames = answer.data, self._frames
        if fault.kind == "header":
            place = min(int(fault.amount * len(data)), len(data))
            data = data[:place] + data[: frames.head_bytes] + data[place:]
        elif fault.kind == "oversized":
            data = frames.oversized(data)
        elif fault.kind == "error":
            data = frames.with_error(data, int(fault.amount))
        else:
            certain = ServoFaults(**{fault.kind: 1.0}, late_s=fault.amount, split_gap_s=fault.amount)  # type: ignore[arg-type]
            return certain.apply(answer, chance, byte_ns, with_other_id)
        return [Answer(answer.due_ns, data)]

    def _break(self, fault: BusFault, now_ns: int) -> list[Callable[[int], None]]:
        """Let servos or sensors fail; returns what repairs them."""
        count = len(self._servos)
        numbers = [fault.servo] if fault.servo != ALL else list(range(count))
        if fault.kind == "brown_out":
            numbers = list(range(count - count // 2, count))
        return [self._break_one(fault, number, self._servos[number], now_ns) for number in numbers]

    def _break_one(self, fault: BusFault, number: int, servo: FeetechServo | EmulatedServo, now_ns: int) -> Callable[[int], None]:
        registers, joints = _registers(servo), self._joints
        match fault.kind:
            case "silent":
                servo.silent = True
                return lambda now_ns: setattr(servo, "silent", False)
            case "same_id":
                return _set(registers, "id", self._servos[number - 1].servo_id)
            case "wrong_baud":
                return _set(registers, "baud_rate", (registers["baud_rate"] + 1) % 4)
            case "reboot" | "brown_out":
                _cut_power(servo, now_ns)
                return lambda now_ns: _give_power(servo, now_ns)
            case "hot":
                cold, servo.temperature = servo.temperature, fault.amount
                return lambda now_ns: _repair(servo, "temperature", cold, now_ns)
            case "weak_supply":
                name = "voltage" if isinstance(servo, FeetechServo) else "input_voltage"
                good = getattr(servo, name)
                setattr(servo, name, fault.amount)
                return lambda now_ns: _repair(servo, name, good, now_ns)
            case "jam":
                joints.jammed.add(number)
                return _in_turn(lambda now_ns: joints.jammed.discard(number), lambda now_ns: _restart(servo, now_ns))
            case "stuck":
                joints.shown[number] = joints.true.position(number)
                return lambda now_ns: joints.shown.__delitem__(number)
            case "jump":
                joints.added[number] = fault.amount
                return lambda now_ns: joints.added.__delitem__(number)
            case _:
                return _freeze(servo, "min_position_limit", int(fault.amount))


class _Registers(Protocol):
    def __getitem__(self, name: str, /) -> int: ...
    def __setitem__(self, name: str, number: int, /) -> None: ...


def _registers(servo: FeetechServo | EmulatedServo) -> _Registers:
    return servo.registers if isinstance(servo, FeetechServo) else servo.table


def _set(registers: _Registers, name: str, number: int) -> Callable[[int], None]:
    """Set a register and return what sets it back."""
    before = registers[name]
    registers[name] = number
    return lambda now_ns: registers.__setitem__(name, before)


def _freeze(servo: FeetechServo | EmulatedServo, name: str, number: int) -> Callable[[int], None]:
    """Let a register have a number, whatever is written into it; returns what ends that."""
    thaw = _set(_registers(servo), name, number)
    if isinstance(servo, FeetechServo):
        registers, write = servo.registers, servo.registers.write

        def write_others(address: int, data: bytes) -> dict[str, int]:
            written = write(address, data)
            registers[name] = number
            return {other: value for other, value in written.items() if other != name}

        _override(registers, "write", write_others)
        return _in_turn(lambda now_ns: _restore(registers, "write"), thaw)
    table, set_any = servo.table, servo.table.set
    _override(table, "set", lambda register, raw: None if register.name == name else set_any(register, raw))
    return _in_turn(lambda now_ns: _restore(table, "set"), thaw)


def _in_turn(*repairs: Callable[[int], None]) -> Callable[[int], None]:
    def repair(now_ns: int) -> None:
        for each in repairs:
            each(now_ns)

    return repair


def _override(thing: object, method: str, function: Callable[..., object]) -> None:
    """Replace a method of one object."""
    vars(thing)[method] = function


def _restore(thing: object, method: str) -> None:
    del vars(thing)[method]


def _cut_power(servo: FeetechServo | EmulatedServo, now_ns: int) -> None:
    if isinstance(servo, FeetechServo):
        servo.powered = False
    else:
        servo.silent = True
        _restart(servo, now_ns)


def _give_power(servo: FeetechServo | EmulatedServo, now_ns: int) -> None:
    if isinstance(servo, FeetechServo):
        servo.powered = True
    else:
        servo.silent = False
        _restart(servo, now_ns)


def _repair(servo: FeetechServo | EmulatedServo, name: str, value: float, now_ns: int) -> None:
    setattr(servo, name, value)
    _restart(servo, now_ns)


def _restart(servo: FeetechServo | EmulatedServo, now_ns: int) -> None:
    """Switch a servo off and on, as a person does after an alarm: Dynamixels keep their torque off until then."""
    if isinstance(servo, EmulatedServo):
        servo.carry_out(Reboot(servo.servo_id), now_ns)
