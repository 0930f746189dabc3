"""Emulated Dynamixel X servos on one bus: the device side of protocol 2.0. Time is an argument, there is no I/O.

As the manual says: the control table with its access rules and limits, the EEPROM lock, indirect addresses, registered writes,
status return level, return delay, alert bit, shutdown, bus watchdog, reboot, factory reset, changes of ID and baud rate. Modes:
velocity, position, extended position and current-based position, the last without its limit of the current.

Not emulated, and refused with a data range error: current and PWM mode, other protocols than 2.0. Without effect: gains,
acceleration profiles, secondary ID, startup configuration. A packet with a wrong CRC is ignored. Answering a sync or bulk read, a
servo waits for all before it in the list, so a silent servo silences those behind it.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Sequence

from hw_drivers.dynamixel.models import (
    Area,
    DriveMode,
    HardwareError,
    OperatingMode,
    Register,
    ServoModel,
)
from hw_drivers.dynamixel.packets import (
    BROADCAST_ID,
    HEADER,
    MAX_ID,
    Action,
    BulkRead,
    BulkWrite,
    Clear,
    ErrorCode,
    FactoryReset,
    FastBulkRead,
    FastStatus,
    FastSyncRead,
    Instruction,
    InstructionDecoder,
    InstructionPacket,
    OtherInstruction,
    Ping,
    Read,
    Reboot,
    RegWrite,
    ResetOption,
    Status,
    SyncRead,
    SyncWrite,
    Write,
    crc16,
)
from hw_drivers.emulators.joints import Answer, Joints, checked_ids

BOOT_S = 0.2
"""How long a servo is deaf after a reboot."""
OVERLOAD_S = 1.0
"""How long a joint must push with all its torque until the servo reports an overload."""

_BITS_PER_BYTE = 10  # with start and stop bit
_PING_BYTES = 14
_PING_GAP_NS = 600_000  # above the largest return delay, so that answers to a broadcast ping never meet
_OVERLOAD_EFFORT = 0.95
_IN_POSITION_STEPS = 20
_WATCHDOG_TRIPPED = -1
_FULL_PWM = 885
_GOALS = frozenset({"goal_pwm", "goal_current", "goal_velocity", "goal_position"})
_EMULATED_MODES = frozenset(OperatingMode) - {OperatingMode.CURRENT, OperatingMode.PWM}


class _RefusedError(Exception):
    """An instruction that a servo does not carry out."""

    def __init__(self, code: ErrorCode) -> None:
        super().__init__(code.name)
        self.code = code


class ControlTable:
    """The memory behind the addresses of one servo. Bytes that no register covers read as 0."""

    def __init__(self, model: ServoModel) -> None:
        self.model = model
        self._memory = bytearray(model.table_size)
        self._numbers: dict[str, int] = {}  # what the registers' bytes mean
        self._registers = [*model.registers.values(), *_indirect_registers(model)]
        self._register_at = {address: entry for entry in self._registers for address in range(entry.address, entry.end)}
        self.restore(Area.EEPROM)
        self.restore(Area.RAM)

    def __getitem__(self, name: str) -> int:
        """Return the raw number in a register."""
        if name not in self._numbers:
            self.model.register(name)  # raises, with the nearest name
        return self._numbers[name]

    def __setitem__(self, name: str, raw: int) -> None:
        """Set a register, whatever its access rules."""
        self.set(self.model.register(name), raw)

    def set(self, register: Register, raw: int) -> None:
        """Set a register, whatever its access rules."""
        self._memory[register.address : register.end] = register.encode(raw)
        self._numbers[register.name] = raw

    def restore(self, area: Area, keep: Sequence[str] = ()) -> None:
        """Give an area its initial values, but for the registers in ``keep``."""
        for register in self._registers:
            if register.area is area and register.name not in keep:
                self.set(register, register.initial)

    def read(self, address: int, length: int) -> bytes:
        """Return ``length`` bytes, through the indirect addresses where they are meant."""
        self._check_span(address, length)
        return bytes(self._memory[self._resolve(at)] for at in range(address, address + length))

    def find(self, address: int, data: bytes) -> list[tuple[Register, int]]:
        """Return the registers that a write covers, with the raw numbers that it has for them."""
        self._check_span(address, len(data))
        values = {self._resolve(address + offset): byte for offset, byte in enumerate(data)}
        found: dict[Register, int] = {}
        for at in values:
            register = self._register_at.get(at)
            if register is None:
                raise _RefusedError(ErrorCode.ACCESS)
            span = range(register.address, register.end)
            if not all(covered in values for covered in span):
                raise _RefusedError(ErrorCode.DATA_LENGTH)
            found[register] = register.decode(bytes(values[covered] for covered in span))
        return list(found.items())

    def _check_span(self, address: int, length: int) -> None:
        if length == 0:
            raise _RefusedError(ErrorCode.DATA_LENGTH)
        if address + length > len(self._memory):
            raise _RefusedError(ErrorCode.ACCESS)

    def _resolve(self, address: int) -> int:
        for block in self.model.indirect:
            if block.data <= address < block.data + block.count:
                pointer = block.addresses + 2 * (address - block.data)
                return int.from_bytes(self._memory[pointer : pointer + 2], "little")
        return address


class EmulatedServo:
    """One servo: what it does when an instruction comes, and on its own as time passes.

    Attributes:
        model: kind of servo.
        table: its control table.
        input_voltage: of its supply, V; outside of its limits it reports an error.
        temperature: deg C; likewise.
        silent: it hears and answers nothing.
    """

    def __init__(self, model: ServoModel, servo_id: int, baud_rate: int, joints: Joints, index: int, now_ns: int) -> None:
        self.model = model
        self.table = ControlTable(model)
        self.table["id"] = servo_id
        self.table["baud_rate"] = model.baud_rates.index(baud_rate)
        self.input_voltage = model.voltage
        self.temperature = 30.0
        self.silent = False
        self._joints = joints
        self._index = index
        self._deaf_until_ns = self._started_ns = self._fed_ns = now_ns
        self._registered: tuple[int, bytes] | None = None
        self._shut_down = False
        self._overloaded_since_ns: int | None = None
        self._turns = 0
        self._restart()

    @property
    def servo_id(self) -> int:
        """ID that it answers to."""
        return self.table["id"]

    @property
    def baud_rate(self) -> int:
        """Bits per second that it is set to."""
        return self.model.baud_rates[self.table["baud_rate"]]

    @property
    def torque_on(self) -> bool:
        """Whether its motor has power."""
        return bool(self.table["torque_enable"])

    @property
    def return_delay_ns(self) -> int:
        """Time from the end of a request to its answer."""
        return self.table["return_delay_time"] * 2000

    @property
    def watchdog_expires_ns(self) -> int | None:
        """When the bus watchdog trips unless a packet comes before; None while it does not run."""
        periods = self.table["bus_watchdog"]
        return self._fed_ns + periods * 20_000_000 if periods > 0 and self.torque_on else None

    def hears(self, baud_rate: int, now_ns: int) -> bool:
        """Whether a packet sent at this rate reaches it."""
        return not self.silent and now_ns >= self._deaf_until_ns and baud_rate == self.baud_rate

    def feed_watchdog(self, now_ns: int) -> None:
        """Notice that a packet came, for this servo or another."""
        self._fed_ns = now_ns

    def step(self, now_ns: int) -> None:
        """Do what is due on its own at ``now_ns``, to which its joint has advanced."""
        expires_ns = self.watchdog_expires_ns
        if expires_ns is not None and expires_ns <= now_ns:
            self.table["bus_watchdog"] = _WATCHDOG_TRIPPED
            self._hold()
        if abs(self._joints.effort(self._index)) < _OVERLOAD_EFFORT:
            self._overloaded_since_ns = None
        elif self._overloaded_since_ns is None:
            self._overloaded_since_ns = now_ns
        errors = HardwareError(0)
        if self._overloaded_since_ns is not None and now_ns - self._overloaded_since_ns >= OVERLOAD_S * 1e9:
            errors |= HardwareError.OVERLOAD
        if self.temperature > self.table["temperature_limit"]:
            errors |= HardwareError.OVERHEATING
        if not self.table["min_voltage_limit"] <= round(self.input_voltage * 10) <= self.table["max_voltage_limit"]:
            errors |= HardwareError.INPUT_VOLTAGE
        if errors:
            self._report(errors)

    def answers(self, packet: InstructionPacket) -> bool:
        """Whether it sends a status packet when ``packet`` is for it alone."""
        level = self.table["status_return_level"]
        return isinstance(packet, Ping) or level == 2 or (level == 1 and isinstance(packet, Read))

    def carry_out(self, packet: InstructionPacket, now_ns: int) -> Status:
        """Do what ``packet`` asks for and return the answer, which comes from the ID that it had before."""
        servo_id, alert = self.servo_id, self._alert
        try:
            data = self._carry_out(packet, now_ns)
        except _RefusedError as refusal:
            return Status(servo_id, refusal.code, alert)
        return Status(servo_id, ErrorCode.NONE, alert, data)

    @property
    def _alert(self) -> bool:
        return self.table["hardware_error_status"] != 0

    @property
    def _mode(self) -> OperatingMode:
        return OperatingMode(self.table["operating_mode"])

    @property
    def _drive_mode(self) -> DriveMode:
        return DriveMode(self.table["drive_mode"])

    @property
    def _direction(self) -> int:
        return -1 if DriveMode.REVERSE in self._drive_mode else 1

    def _carry_out(self, packet: InstructionPacket, now_ns: int) -> bytes:
        match packet:
            case Ping():
                return struct.pack("<HB", self.model.number, self.table["firmware_version"])
            case Read(address=address, length=length):
                self._measure(now_ns)
                return self.table.read(address, length)
            case RegWrite(address=address, data=data):
                self._checked(address, data)
                self._registered = (address, data)
                self.table["registered_instruction"] = 1
            case Write(address=address, data=data):
                self._write(address, data)
            case Action():
                self._act()
            case FactoryReset(id=servo_id, option=option):
                self._factory_reset(servo_id, option, now_ns)
            case Reboot():
                self._reboot(now_ns)
            case Clear(parameters=parameters):
                self._clear(parameters)
            case OtherInstruction(code=code) if code in set(Instruction):
                raise _RefusedError(ErrorCode.DATA_LENGTH)
            case _:
                raise _RefusedError(ErrorCode.INSTRUCTION)
        return b""

    def _checked(self, address: int, data: bytes) -> list[tuple[Register, int]]:
        """Return the registers that a write sets. Raises _RefusedError if the servo refuses any of it."""
        found = self.table.find(address, data)
        for register, raw in found:
            self._check_access(register, raw)
            self._check_range(register, raw)
        return found

    def _check_access(self, register: Register, raw: int) -> None:
        locked = register.area is Area.EEPROM or register.name.startswith("indirect_address")
        if not register.writable or (locked and self.torque_on):
            raise _RefusedError(ErrorCode.ACCESS)
        tripped = self.table["bus_watchdog"] == _WATCHDOG_TRIPPED
        if tripped and (register.name in _GOALS or (register.name == "bus_watchdog" and raw != 0)):
            raise _RefusedError(ErrorCode.DATA_RANGE)
        if register.name == "torque_enable" and raw and self._shut_down:
            raise _RefusedError(ErrorCode.RESULT_FAIL)

    def _check_range(self, register: Register, raw: int) -> None:
        if not register.low <= raw <= register.high:
            raise _RefusedError(ErrorCode.DATA_RANGE)
        if register.name == "operating_mode" and raw not in self.model.operating_modes & _EMULATED_MODES:
            raise _RefusedError(ErrorCode.DATA_RANGE)
        if register.name == "protocol_type" and raw != 2:
            raise _RefusedError(ErrorCode.DATA_RANGE)
        if not register.limited_by or (register.name == "goal_position" and self._mode is not OperatingMode.POSITION):
            return
        limits = [self.table[name] for name in register.limited_by]
        low, high = limits if len(limits) == 2 else (-limits[0], limits[0])
        if not low <= raw <= high:
            raise _RefusedError(ErrorCode.DATA_LIMIT)

    def _write(self, address: int, data: bytes) -> None:
        was_on, turned_by = self.torque_on, self._direction
        written = {}
        for register, raw in self._checked(address, data):
            self.table.set(register, raw)
            written[register.name] = raw
        if written.keys() & {"goal_pwm", "torque_enable"}:
            self._joints.limit_torque(self._index, min(abs(self.table["goal_pwm"]) / _FULL_PWM, 1.0))
        if "operating_mode" in written or self._direction != turned_by:
            self._forget_turns()
        if self.torque_on and not was_on:
            self._switch_on(written)
        elif was_on and not self.torque_on:
            self._joints.release(self._index)
        if self._goal_name in written:
            if not self.torque_on and DriveMode.TORQUE_ON_BY_GOAL in self._drive_mode and not self._shut_down:
                self.table["torque_enable"] = 1
            if self.torque_on:
                self._follow()

    @property
    def _goal_name(self) -> str:
        return "goal_velocity" if self._mode is OperatingMode.VELOCITY else "goal_position"

    def _switch_on(self, written: dict[str, int]) -> None:
        """Hold the joint where it is; goals from before do not count."""
        if "goal_position" not in written:
            self.table["goal_position"] = self._position()
        if "goal_velocity" not in written:
            self.table["goal_velocity"] = 0
        self._hold()

    def _hold(self) -> None:
        self._joints.set_goal(self._index, self._joints.position(self._index), math.inf)

    def _follow(self) -> None:
        """Let the joint go where the goal register of the present mode says."""
        if self._mode is OperatingMode.VELOCITY:
            velocity = self.model.register("goal_velocity").to_si(self.table["goal_velocity"]) * self._direction
            if velocity:
                self._joints.set_goal(self._index, math.copysign(math.inf, velocity), abs(velocity))
            else:
                self._hold()
            return
        goal = self._angle(self.table["goal_position"])
        self._joints.set_goal(self._index, goal, self._profile_velocity(goal))

    def _profile_velocity(self, goal: float) -> float:
        """Return the velocity limit on the way to a goal, rad/s."""
        profile = self.table["profile_velocity"]
        if profile == 0:
            return math.inf
        if DriveMode.TIME_BASED_PROFILE in self._drive_mode:  # the register holds milliseconds
            return abs(goal - self._joints.position(self._index)) / (profile * 1e-3)
        return self.model.register("profile_velocity").to_si(profile)

    def _position(self) -> int:
        """Return the present position, raw."""
        register = self.model.register("present_position")
        steps = register.to_raw(self._joints.position(self._index) * self._direction)
        return steps + self.table["homing_offset"] - self._turns * self.model.steps_per_turn

    def _angle(self, position: int) -> float:
        """Return the joint's angle (rad) at a raw position."""
        steps = position - self.table["homing_offset"] + self._turns * self.model.steps_per_turn
        return self.model.register("present_position").to_si(steps) * self._direction

    def _forget_turns(self) -> None:
        """Count the position from within one turn again, as the encoder shows it."""
        self._turns = 0
        self._turns = (self._position() - self.table["homing_offset"]) // self.model.steps_per_turn

    def _measure(self, now_ns: int) -> None:
        """Bring the registers that measure up to date."""
        table, joints, index = self.table, self._joints, self._index
        effort = joints.effort(index) * self._direction
        velocity = self.model.register("present_velocity").to_raw(joints.velocity(index) * self._direction)
        position = self._position()
        table["realtime_tick"] = (now_ns - self._started_ns) // 1_000_000 % 32_768
        table["moving"] = abs(velocity) > table["moving_threshold"]
        table["moving_status"] = abs(table["goal_position"] - position) <= _IN_POSITION_STEPS
        table["present_pwm"] = round(effort * table["pwm_limit"])
        if "present_current" in self.model.registers:
            current = self.model.register("present_current").to_raw(effort * self.model.stall_current)
            table["present_current"] = current
        else:
            table["present_load"] = round(effort * 1000)
        table["present_velocity"] = velocity
        table["present_position"] = position
        table["velocity_trajectory"] = velocity
        table["position_trajectory"] = position
        table["present_input_voltage"] = round(self.input_voltage * 10)
        table["present_temperature"] = round(self.temperature)

    def _act(self) -> None:
        if self._registered is None:
            raise _RefusedError(ErrorCode.INSTRUCTION)
        address, data = self._registered
        self._registered = None
        self.table["registered_instruction"] = 0
        self._write(address, data)

    def _clear(self, parameters: bytes) -> None:
        if len(parameters) != len(Clear.MULTI_TURN):
            raise _RefusedError(ErrorCode.DATA_LENGTH)
        if parameters != Clear.MULTI_TURN:
            raise _RefusedError(ErrorCode.DATA_RANGE)
        if self._joints.velocity(self._index) != 0:
            raise _RefusedError(ErrorCode.RESULT_FAIL)
        self._forget_turns()

    def _factory_reset(self, servo_id: int, option: int, now_ns: int) -> None:
        if option not in set(ResetOption):
            raise _RefusedError(ErrorCode.DATA_RANGE)
        if servo_id == BROADCAST_ID and option == ResetOption.ALL:
            return  # it would leave several servos with one ID
        kept = {ResetOption.ALL: (), ResetOption.ALL_BUT_ID: ("id",), ResetOption.ALL_BUT_ID_AND_BAUD_RATE: ("id", "baud_rate")}
        self.table.restore(Area.EEPROM, kept[ResetOption(option)])
        self._reboot(now_ns)

    def _reboot(self, now_ns: int) -> None:
        self.table.restore(Area.RAM)
        self._deaf_until_ns = self._started_ns = now_ns + round(BOOT_S * 1e9)
        self._restart()

    def _restart(self) -> None:
        self._registered = None
        self._shut_down = False
        self._overloaded_since_ns = None
        self._joints.release(self._index)
        self._forget_turns()
        self.table["goal_position"] = self._position()

    def _report(self, errors: HardwareError) -> None:
        """Set the alert bit, and shut down if the errors are among those that the host asked to shut down at."""
        self.table["hardware_error_status"] |= errors
        if errors & self.table["shutdown"]:
            self._shut_down = True
            self.table["torque_enable"] = 0
            self._joints.release(self._index)


class DynamixelBus:
    """Dynamixel servos on one half-duplex wire, an :class:`~hw_drivers.emulators.joints.EmulatedBus`.

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
        baud_rate: int = 57_600,
        start_ns: int = 0,
    ) -> None:
        """Connect servos of these models, with IDs 1, 2, ... if not given. Raises ValueError for what they cannot be set to."""
        ids = checked_ids(models, ids, MAX_ID, baud_rate)
        self.baud_rate = baud_rate
        self._joints = joints
        self._decoder = InstructionDecoder()
        joints.advance(start_ns)
        self.servos = [
            EmulatedServo(model, servo_id, baud_rate, joints, index, start_ns)
            for index, (model, servo_id) in enumerate(zip(models, ids, strict=True))
        ]

    def advance(self, now_ns: int) -> None:
        """Let time pass up to ``now_ns``; watchdogs trip on the way, at their own times."""
        expiries = (servo.watchdog_expires_ns for servo in self.servos)
        for due_ns in sorted({at for at in expiries if at is not None and at < now_ns}):
            self._advance_all(due_ns)
        self._advance_all(now_ns)

    def receive(self, data: bytes, now_ns: int) -> list[Answer]:
        """Hear bytes whose last bit arrives at ``now_ns``; returns the answers that they cause, in the order of their times."""
        self.advance(now_ns)
        answers = []
        for packet in self._decoder.feed(data):
            listening = [servo for servo in self.servos if servo.hears(self.baud_rate, now_ns)]
            for servo in listening:
                servo.feed_watchdog(now_ns)
            answers += self._carry_out(packet, listening, now_ns)
        return sorted(answers, key=lambda answer: answer.due_ns)

    def silence(self, index: int) -> None:
        """Let servo ``index``, from 0, hear and answer nothing any more; it keeps its torque."""
        self.servos[index].silent = True

    def with_other_id(self, data: bytes) -> bytes:
        """Return a status packet with the ID one higher and the right CRC; parts of a fast status have no ID to change."""
        if not data.startswith(HEADER) or data[4] > MAX_ID:
            return data
        changed = data[:4] + bytes([(data[4] + 1) % (MAX_ID + 1)]) + data[5:-2]
        return changed + struct.pack("<H", crc16(changed))

    def _advance_all(self, now_ns: int) -> None:
        self._joints.advance(now_ns)
        for servo in self.servos:
            servo.step(now_ns)

    def _carry_out(self, packet: InstructionPacket, listening: list[EmulatedServo], now_ns: int) -> list[Answer]:
        match packet:
            case SyncWrite(address=address, data=data):
                self._write([(servo_id, address, piece) for servo_id, piece in data], listening, now_ns)
                return []
            case BulkWrite(data=pieces):
                self._write(pieces, listening, now_ns)
                return []
            case FastSyncRead(address=address, length=length, ids=ids):
                return self._fast_read([(servo_id, address, length) for servo_id in ids], listening, now_ns)
            case FastBulkRead(pieces=wanted):
                return self._fast_read(wanted, listening, now_ns)
            case SyncRead(address=address, length=length, ids=ids):
                return self._read([(servo_id, address, length) for servo_id in ids], listening, now_ns)
            case BulkRead(pieces=wanted):
                return self._read(wanted, listening, now_ns)
        if packet.id == BROADCAST_ID:
            return self._broadcast(packet, listening, now_ns)
        return self._single(packet, listening, now_ns)

    def _single(self, packet: InstructionPacket, listening: list[EmulatedServo], now_ns: int) -> list[Answer]:
        """Let the servo that has the packet's ID, or all of them, carry it out and answer as it was set before."""
        answers = []
        for servo in listening:
            if servo.servo_id == packet.id:
                due_ns, answered = now_ns + servo.return_delay_ns, servo.answers(packet)
                status = servo.carry_out(packet, now_ns)
                if answered:
                    answers.append(Answer(due_ns, status.to_bytes()))
        return answers

    def _broadcast(self, packet: InstructionPacket, listening: list[EmulatedServo], now_ns: int) -> list[Answer]:
        """Let all servos carry out a packet; only to a ping they answer, each in the time slot of its ID."""
        answers = []
        for servo in listening:
            due_ns = now_ns + servo.return_delay_ns + servo.servo_id * (self._wire_ns(_PING_BYTES) + _PING_GAP_NS)
            status = servo.carry_out(packet, now_ns)
            if isinstance(packet, Ping):
                answers.append(Answer(due_ns, status.to_bytes()))
        return answers

    def _write(self, pieces: Sequence[tuple[int, int, bytes]], listening: list[EmulatedServo], now_ns: int) -> None:
        for servo_id, address, data in pieces:
            for servo in listening:
                if servo.servo_id == servo_id:
                    servo.carry_out(Write(servo_id, address, data), now_ns)

    def _read(self, wanted: Sequence[tuple[int, int, int]], listening: list[EmulatedServo], now_ns: int) -> list[Answer]:
        """Let servos answer one after the other, each when the one before it has finished."""
        answers: list[Answer] = []
        free_ns = now_ns
        for servo_id, address, length in wanted:
            request = Read(servo_id, address, length)
            asked = [servo for servo in listening if servo.servo_id == servo_id and servo.answers(request)]
            if not asked:
                break
            turn = [Answer(free_ns + servo.return_delay_ns, servo.carry_out(request, now_ns).to_bytes()) for servo in asked]
            free_ns = max(answer.due_ns + self._wire_ns(len(answer.data)) for answer in turn)
            answers += turn
        return answers

    def _fast_read(self, wanted: Sequence[tuple[int, int, int]], listening: list[EmulatedServo], now_ns: int) -> list[Answer]:
        """Let servos write one packet together, each its part; without the part of one, those behind it stay silent."""
        parts: list[Status] = []
        present = 0
        delay_ns = 0
        for servo_id, address, length in wanted:
            request = Read(servo_id, address, length)
            servo = next((servo for servo in listening if servo.servo_id == servo_id and servo.answers(request)), None)
            status = Status(servo_id) if servo is None else servo.carry_out(request, now_ns)
            if servo is not None and present == len(parts):
                present += 1
                delay_ns = delay_ns or servo.return_delay_ns
            data = status.data.ljust(length, b"\0")  # also where the servo refused: the packet's length is fixed
            parts.append(Status(servo_id, status.error, status.alert, data))
        answers = []
        due_ns = now_ns + delay_ns
        for piece in FastStatus.pieces(parts)[:present]:
            answers.append(Answer(due_ns, piece))
            due_ns += self._wire_ns(len(piece))
        return answers

    def _wire_ns(self, count: int) -> int:
        """Return how long that many bytes take on the wire."""
        return count * _BITS_PER_BYTE * 1_000_000_000 // self.baud_rate


def _indirect_registers(model: ServoModel) -> list[Register]:
    """Return the registers of the indirect blocks; each indirect address points at its own data byte at first."""
    last = model.table_size - 1
    registers = []
    for block in model.indirect:
        for offset in range(block.count):
            data, address = block.data + offset, block.addresses + 2 * offset
            registers.append(
                Register(f"indirect_address_at_{address}", address, 2, Area.RAM, True, initial=data, low=64, high=last)
            )
            registers.append(Register(f"indirect_data_at_{data}", data, 1, Area.RAM, True, high=255))
    return registers
