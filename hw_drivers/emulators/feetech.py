"""Emulated Feetech STS and SCS servos on one bus: pure logic, time is an argument.

What the joints do comes from a :class:`~hw_drivers.emulators.joints.Joints`. Where the vendor's public papers say nothing, a
servo does here what is harder on the host:

- A number outside its register's range is not stored and a write to a read-only register has no effect. Neither is reported, for
  the error byte has no bit for it.
- A goal written while the torque is off is kept, and moves the joint only when the torque is switched on.
- Overload and overheating switch the torque off, where a real servo may hold on with its protective torque. An overload is a
  joint that stands still under at least the overload torque for the protection time; its bit stays until the torque is switched
  on again.
- Answering a sync read, a servo waits for all before it in the list, so a silent servo silences those behind it.
- An EEPROM register takes a new number at once, but loses it with the power unless the lock was open.

Not emulated: gains, dead zones, ``goal_time`` as a duration, the phase register's units of speed, current protection. These
servos have no watchdog.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from hw_drivers.emulators.joints import Answer, Joints, checked_ids
from hw_drivers.feetech.models import Register, ServoModel
from hw_drivers.feetech.packets import (
    BROADCAST_ID,
    MAX_ID,
    Action,
    ErrorFlag,
    Instruction,
    InstructionDecoder,
    OffsetCalibration,
    Ping,
    Read,
    RegWrite,
    Reset,
    Status,
    SyncRead,
    SyncWrite,
    Write,
    checksum,
)

POSITION_MODE, VELOCITY_MODE, PWM_MODE, STEP_MODE = range(4)
CALIBRATE_MIDDLE = 128
"""Written to ``torque_enable`` of an STS: the present position becomes the middle."""
FULL_TURN_FEEDBACK = 1 << 4
"""Bit of ``phase``: positions count whole turns."""

_AIMING = frozenset(
    {"goal_position", "torque_enable", "operating_mode", "min_position_limit", "max_position_limit", "homing_offset", "phase"}
)
_STEP_NS = 4_000_000
_MAX_CATCH_UP_NS = 10_000_000_000  # after a longer silence, such as before the first call, the firmware starts afresh
_FRAME_GAP_NS = 20_000_000  # after such a pause in the middle of a frame, servos wait for a new one
_STALLED_STEPS_PER_S = 20.0
_BITS_PER_BYTE = 10  # with start and stop bit
_ROOM_TEMPERATURE = 25
_STALL_CURRENT_A = 2.5  # roughly; published numbers differ between versions


class RegisterFile:
    """The raw numbers in the registers of one servo, and the bytes that they are on the wire.

    Attributes:
        model: whose registers they are.
    """

    def __init__(self, model: ServoModel, servo_id: int, baud_rate: int) -> None:
        self.model = model
        self._numbers = {name: register.initial for name, register in model.registers.items()}
        self._numbers |= {"id": servo_id, "baud_rate": model.baud_rates.index(baud_rate)}
        self._saved = dict(self._numbers)

    def __getitem__(self, name: str) -> int:
        return self._numbers[name]

    def __setitem__(self, name: str, number: int) -> None:
        self._numbers[name] = number

    def __contains__(self, name: str) -> bool:
        return name in self._numbers

    def si(self, name: str) -> float:
        """Return a register in SI units."""
        return self.model.register(name).to_si(self._numbers[name])

    def set_clipped(self, name: str, number: float) -> None:
        """Store the nearest number that the register takes."""
        register = self.model.register(name)
        self._numbers[name] = min(max(round(number), register.low), register.high)

    def read(self, address: int, count: int) -> bytes:
        """Return ``count`` bytes from ``address`` on; those that belong to no register are zero."""
        image = bytearray(address + count)
        for register in self._touched(address, count):
            image[register.address : register.end] = register.encode(self._numbers[register.name])
        return bytes(image[address : address + count])

    def write(self, address: int, data: bytes) -> dict[str, int]:
        """Store what may be stored; returns the raw numbers of the registers that were written."""
        written = {}
        for register in self._touched(address, len(data)):
            stored = bytearray(register.encode(self._numbers[register.name]))
            for position in range(max(address, register.address), min(address + len(data), register.end)):
                stored[position - register.address] = data[position - address]
            number = register.decode(stored)
            if register.writable and register.low <= number <= register.high:
                self._numbers[register.name] = written[register.name] = number
                if register.area == "eeprom" and not self["lock"]:
                    self.save(register.name)
        return written

    def save(self, name: str) -> None:
        """Keep a register's number when the power goes."""
        self._saved[name] = self._numbers[name]

    def restore(self) -> None:
        """Return to what was saved, as when the power comes back."""
        self._numbers = dict(self._saved)
        if "torque_limit" in self:
            self["torque_limit"] = self["max_torque_limit"]

    def _touched(self, address: int, count: int) -> list[Register]:
        registers = self.model.registers.values()
        return [register for register in registers if register.address < address + count and address < register.end]


class FeetechServo:
    """One servo: its registers, and what it makes its joint do.

    Attributes:
        registers: its control table.
        voltage: supply, V; set it to cause alarms.
        temperature: deg C; set it to cause alarms.
        silent: whether it neither hears nor answers, as if its data line had broken.
        joint: number of the joint that it moves.
    """

    def __init__(self, model: ServoModel, servo_id: int, baud_rate: int, joints: Joints, joint: int) -> None:
        self.model = model
        self.joint = joint
        self.registers = RegisterFile(model, servo_id, baud_rate)
        self.voltage = model.voltage
        self.temperature: float = _ROOM_TEMPERATURE
        self.silent = False
        self._joints = joints
        self._powered = True
        self._turns = 0
        self._pending: Write | None = None
        self._target = 0.0
        self._profile_velocity = 0.0
        self._stalled_ns = 0
        self._overloaded = False
        self._start()

    @property
    def powered(self) -> bool:
        """Whether it has a supply. Without, it is silent and slack; when it comes back, its RAM is as from the factory."""
        return self._powered

    @powered.setter
    def powered(self, powered: bool) -> None:
        if powered and not self._powered:
            self.registers.restore()
            self._start()
        self._powered = powered
        self._drive(0.0)

    @property
    def servo_id(self) -> int:
        """ID that it answers to."""
        return self.registers["id"]

    @property
    def baud_rate(self) -> int:
        """Bits per second at which it listens."""
        return self.model.baud_rates[self.registers["baud_rate"]]

    @property
    def return_delay_ns(self) -> int:
        """Pause before it answers."""
        return round(self.registers.si("return_delay_time") * 1e9)

    @property
    def alarms(self) -> ErrorFlag:
        """What its next answer warns of."""
        registers, alarms = self.registers, ErrorFlag(0)
        if not registers.si("min_voltage_limit") <= self.voltage <= registers.si("max_voltage_limit"):
            alarms |= ErrorFlag.VOLTAGE
        if self.temperature > registers["max_temperature_limit"]:
            alarms |= ErrorFlag.OVERHEATING
        return alarms | ErrorFlag.OVERLOAD if self._overloaded else alarms

    def hears(self, baud_rate: int) -> bool:
        """Say whether it understands what is sent at this rate."""
        return self._powered and not self.silent and baud_rate == self.baud_rate

    def read(self, address: int, length: int) -> bytes:
        """Return ``length`` bytes from ``address`` on, as measured now."""
        self._measure()
        return self.registers.read(address, length)

    def handle(self, instruction: Instruction) -> Status | None:
        """Carry out an instruction to this servo or to all; returns the answer, None if there is none."""
        servo_id = self.servo_id  # the answer to a write of another one still has the old one
        match instruction:
            case Ping():
                return Status(servo_id, self.alarms)
            case Read(address=address, length=length):
                return Status(servo_id, self.alarms, self.read(address, length))
            case RegWrite():
                self._pending = instruction
            case Write(address=address, data=data):
                self._write(address, data)
            case SyncWrite(address=address, data=pieces):
                self._write(address, dict(pieces)[servo_id])
            case Action():
                if self._pending is not None:
                    self._write(self._pending.address, self._pending.data)
                    self._pending = None
            case Reset():
                self._forget_turns()
            case OffsetCalibration(data=data):
                self._calibrate(data)
            case _:
                return None
        silent = instruction.servo_id == BROADCAST_ID or not self.registers["response_status_level"]
        return None if silent else Status(servo_id, self.alarms)

    def advance(self, step_ns: int) -> None:
        """Let the servo's firmware run for ``step_ns``; the joints move after that."""
        if self._powered:
            self._protect(step_ns)
            self._drive(step_ns * 1e-9)

    def _start(self) -> None:
        """Begin as after power-on: slack, with the present position as the goal."""
        self._pending, self._overloaded, self._stalled_ns, self._turns = None, False, 0, 0
        self.registers.set_clipped("goal_position", self._position())
        self._aim()
        self._drive(0.0)

    def _mode(self) -> int:
        if "operating_mode" in self.registers:
            return self.registers["operating_mode"]
        return POSITION_MODE if self._limits() is not None else PWM_MODE

    def _limits(self) -> tuple[int, int] | None:
        """Return the lowest and highest goal; None if both are zero, which stands for no limits."""
        limits = self.registers["min_position_limit"], self.registers["max_position_limit"]
        return limits if any(limits) else None

    def _position(self) -> float:
        """Return the present position in steps, not rounded."""
        registers, model = self.registers, self.model
        steps = self._joints.position(self.joint) / model.rad_per_step + model.steps // 2
        if not model.continuous:
            return steps
        steps -= registers["homing_offset"] + self._turns * model.steps
        return steps if registers["phase"] & FULL_TURN_FEEDBACK else steps % model.steps

    def _measure(self) -> None:
        """Bring the registers of what is measured up to date."""
        registers, model = self.registers, self.model
        velocity = self._joints.velocity(self.joint) / model.rad_per_step
        position = round(self._position())
        if model.continuous and not registers["phase"] & FULL_TURN_FEEDBACK:
            position %= model.steps
        registers.set_clipped("present_position", position)
        registers.set_clipped("present_velocity", velocity)
        registers.set_clipped("present_load", 1000 * self._load())
        registers.set_clipped("present_input_voltage", self.voltage / 0.1)
        registers.set_clipped("present_temperature", self.temperature)
        registers["registered_write"] = int(self._pending is not None)
        registers["status"] = int(self.alarms)
        registers["moving"] = int(abs(velocity) > _STALLED_STEPS_PER_S)
        if "present_current" in registers:
            current = self._load() * _STALL_CURRENT_A
            registers.set_clipped("present_current", current / model.register("present_current").scale)

    def _largest_load(self) -> float:
        return self.registers.si("torque_limit" if "torque_limit" in self.registers else "max_torque_limit")

    def _load(self) -> float:
        """Return the duty of the motor, -1 to 1."""
        effort = self._joints.effort(self.joint)
        return math.copysign(min(abs(effort), self._largest_load()), effort)

    def _write(self, address: int, data: bytes) -> None:
        torque = self.registers["torque_enable"]
        written = self.registers.write(address, data)
        if written.get("torque_enable") == CALIBRATE_MIDDLE:
            self.registers["torque_enable"] = torque
            self._calibrate(b"")
        elif written.get("torque_enable") == 1:
            self._overloaded, self._stalled_ns = False, 0
        if written.keys() & _AIMING:
            self._aim(new_goal="goal_position" in written)
        self._drive(0.0)

    def _calibrate(self, data: bytes) -> None:
        """Choose the homing offset so that the present position becomes the middle or the number in ``data``; hold it."""
        if "homing_offset" not in self.registers:
            return
        registers, steps = self.registers, self.model.steps
        wanted = self.model.register("present_position").decode(data) if data else steps // 2
        offset = registers["homing_offset"] + round(self._position()) - wanted
        registers.set_clipped("homing_offset", (offset + steps // 2) % steps - steps // 2)
        registers.save("homing_offset")
        self._turns = 0
        self._turns = round((self._position() - wanted) / steps)
        registers.set_clipped("goal_position", self._position())
        self._aim()

    def _forget_turns(self) -> None:
        """Count positions from the present turn on; the joint stays where it is."""
        if self.model.continuous:
            turns = math.floor(self._position() / self.model.steps)
            self._turns += turns
            self.registers.set_clipped("goal_position", self.registers["goal_position"] - turns * self.model.steps)

    def _aim(self, *, new_goal: bool = False) -> None:
        """Work out which joint angle the goal stands for."""
        goal = self.registers["goal_position"]
        if self._mode() == STEP_MODE:
            steps: float = goal if new_goal else 0
        else:
            limits = self._limits()
            steps = (goal if limits is None else min(max(goal, limits[0]), limits[1])) - self._position()
        self._target = self._joints.position(self.joint) + steps * self.model.rad_per_step

    def _protect(self, step_ns: int) -> None:
        """Watch load and temperature, and switch the torque off where ``unloading_condition`` says so."""
        registers = self.registers
        velocity = self._joints.velocity(self.joint) / self.model.rad_per_step
        stalled = abs(velocity) < _STALLED_STEPS_PER_S and abs(self._load()) >= registers.si("overload_torque")
        self._stalled_ns = self._stalled_ns + step_ns if stalled else 0
        if self._stalled_ns > registers.si("protection_time") * 1e9:
            self._overloaded = True
        lasting = self.alarms & (ErrorFlag.OVERLOAD | ErrorFlag.OVERHEATING)
        if lasting & registers["unloading_condition"]:
            registers["torque_enable"] = 0

    def _drive(self, step_s: float) -> None:
        """Tell the joint what to do for the next step."""
        registers = self.registers
        unloaded = self.alarms & ErrorFlag.VOLTAGE & registers["unloading_condition"]
        if not self._powered or registers["torque_enable"] != 1 or unloaded or not self._largest_load():
            self._profile_velocity = 0.0
            self._joints.release(self.joint)
            return
        self._joints.limit_torque(self.joint, min(self._largest_load(), 1.0))
        mode = self._mode()
        if mode == VELOCITY_MODE:
            velocity = registers.si("goal_velocity")
        elif mode == PWM_MODE:
            velocity = registers.si("goal_time") * self.model.max_velocity
        else:
            velocity = abs(registers.si("goal_velocity")) or math.inf
        if mode in (POSITION_MODE, STEP_MODE):
            target = self._target
        else:
            target = math.copysign(math.inf, velocity) if velocity else self._joints.position(self.joint)
        self._joints.set_goal(self.joint, target, self._profiled(abs(velocity), target, step_s))

    def _profiled(self, velocity: float, target: float, step_s: float) -> float:
        """Return the velocity limit that keeps to the acceleration on the way to ``target``; 0 stands for any acceleration."""
        acceleration = self.registers.si("acceleration") if "acceleration" in self.registers else 0.0
        if not acceleration:
            return velocity
        distance = target - self._joints.position(self.joint)
        if distance * self._joints.velocity(self.joint) < 0:
            self._profile_velocity = 0.0  # it turns round
        # v <= sqrt(2 a d), so that it can still stop
        braking = math.sqrt(2 * acceleration * abs(distance))
        self._profile_velocity = min(self._profile_velocity + acceleration * step_s, velocity, braking)
        return self._profile_velocity


class FeetechBus:
    """Feetech servos on one half-duplex wire, an :class:`~hw_drivers.emulators.joints.EmulatedBus`.

    Attributes:
        baud_rate: bits per second at which the host talks.
        servos: in the order of the joints that they move.
    """

    def __init__(
        self,
        joints: Joints,
        models: Sequence[ServoModel],
        ids: Sequence[int] | None = None,
        *,
        baud_rate: int = 1_000_000,
        start_ns: int = 0,
    ) -> None:
        """Connect servos of these models, with IDs 1, 2, ... if not given. Raises ValueError for what they cannot be set to."""
        ids = checked_ids(models, ids, MAX_ID, baud_rate)
        self.baud_rate = baud_rate
        self._joints = joints
        self._decoder = InstructionDecoder()
        self._heard_ns = self._next_step_ns = start_ns
        joints.advance(start_ns)
        self.servos = [
            FeetechServo(model, servo_id, baud_rate, joints, joint)
            for joint, (model, servo_id) in enumerate(zip(models, ids, strict=True))
        ]

    def advance(self, now_ns: int) -> None:
        """Let time pass up to ``now_ns``; the servos' firmware runs at its own rate."""
        self._next_step_ns = max(self._next_step_ns, now_ns - _MAX_CATCH_UP_NS)
        while self._next_step_ns <= now_ns:
            self._joints.advance(self._next_step_ns)
            for servo in self.servos:
                servo.advance(_STEP_NS)
            self._next_step_ns += _STEP_NS
        self._joints.advance(now_ns)

    def receive(self, data: bytes, now_ns: int) -> list[Answer]:
        """Hear bytes whose last bit arrives at ``now_ns``; returns the answers that they cause, in the order of their times."""
        self.advance(now_ns)
        if now_ns - self._heard_ns > _FRAME_GAP_NS:
            self._decoder.reset()
        self._heard_ns = now_ns
        answers = []
        for instruction in self._decoder.feed(data):
            hearing = [servo for servo in self.servos if servo.hears(self.baud_rate)]
            if isinstance(instruction, SyncRead):
                answers += self._sync_read(instruction, hearing, now_ns)
            else:
                answers += _carry_out(instruction, hearing, now_ns)
        return sorted(answers, key=lambda answer: answer.due_ns)

    def silence(self, index: int) -> None:
        """Let servo ``index``, from 0, hear and answer nothing any more; it keeps its torque."""
        self.servos[index].silent = True

    def with_other_id(self, data: bytes) -> bytes:
        """Return a status packet with the ID one higher and the right checksum."""
        body = bytes([(data[2] + 1) % (MAX_ID + 1)]) + data[3:-1]
        return data[:2] + body + bytes([checksum(body)])

    def _sync_read(self, instruction: SyncRead, hearing: Sequence[FeetechServo], now_ns: int) -> list[Answer]:
        """Answer one after the other; a servo waits for the one before it, for ever if that is silent."""
        answers, due_ns = [], now_ns
        for servo_id in instruction.ids:
            servos = [servo for servo in hearing if servo.servo_id == servo_id and servo.model.supports_sync_read]
            if not servos:
                break
            due_ns += max(servo.return_delay_ns for servo in servos)
            for servo in servos:
                status = Status(servo_id, servo.alarms, servo.read(instruction.address, instruction.length))
                answers.append(Answer(due_ns, status.to_bytes()))
            due_ns += len(answers[-1].data) * _BITS_PER_BYTE * 1_000_000_000 // self.baud_rate
        return answers


def _carry_out(instruction: Instruction, hearing: Sequence[FeetechServo], now_ns: int) -> list[Answer]:
    if isinstance(instruction, SyncWrite):
        addressed = {servo_id for servo_id, _ in instruction.data}
        servos = [servo for servo in hearing if servo.servo_id in addressed]
    else:
        servos = [servo for servo in hearing if instruction.servo_id in (BROADCAST_ID, servo.servo_id)]
    answers = []
    for servo in servos:
        delay_ns = servo.return_delay_ns
        status = servo.handle(instruction)
        if status is not None:
            answers.append(Answer(now_ns + delay_ns, status.to_bytes()))
    return answers
