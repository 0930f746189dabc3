"""Control tables of Dynamixel X servos, and what their numbers mean in SI units.

Facts: https://emanual.robotis.com/docs/en/dxl/x/xl330-m288/ and the pages beside it. Angles are 0 rad at the raw position 2048,
the middle of a turn, and positive counterclockwise.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum, IntEnum, IntFlag
from types import MappingProxyType

from dpg_robot.errors import UnknownNameError, unknown_name

BAUD_RATES = (9_600, 57_600, 115_200, 1_000_000, 2_000_000, 3_000_000, 4_000_000, 4_500_000)
"""Bits per second; the register ``baud_rate`` holds an index of this. X330 servos have not the last one."""

_RPM = 2 * math.pi / 60
_VELOCITY = 0.229 * _RPM
_ACCELERATION = 214.577 * 2 * math.pi / 3600  # turns/min^2 to rad/s^2
_STEPS_PER_TURN = 4096
_MIDDLE = _STEPS_PER_TURN // 2
_MAX_MULTI_TURN = 1_048_575


class Area(Enum):
    """Part of the control table."""

    EEPROM = "EEPROM"  # kept without power, locked while the torque is on
    RAM = "RAM"  # initial values at every start


class OperatingMode(IntEnum):
    """What the servo controls."""

    CURRENT = 0
    VELOCITY = 1
    POSITION = 3
    EXTENDED_POSITION = 4
    CURRENT_BASED_POSITION = 5
    PWM = 16


class DriveMode(IntFlag):
    """Bits of the register ``drive_mode``."""

    REVERSE = 0x01
    TIME_BASED_PROFILE = 0x04
    TORQUE_ON_BY_GOAL = 0x08


class HardwareError(IntFlag):
    """Bits of the registers ``hardware_error_status`` and ``shutdown``."""

    INPUT_VOLTAGE = 0x01
    OVERHEATING = 0x04
    ENCODER = 0x08
    ELECTRICAL_SHOCK = 0x10
    OVERLOAD = 0x20


@dataclass(frozen=True, slots=True)
class Register:
    """One entry of a control table.

    Attributes:
        name: what the manual calls it, in lower case.
        address: of its first byte.
        size: bytes, little endian.
        area: EEPROM or RAM.
        writable: whether a host may write it.
        signed: whether it is a two's complement number.
        unit: SI unit, empty for numbers without one.
        scale: SI units per count.
        zero: raw number that is 0 in SI units.
        initial: raw factory value (EEPROM) or value at start (RAM).
        low: least raw number that may be written.
        high: largest one.
        limited_by: registers whose present values narrow the range: from the first, or minus the only one, to the last.
    """

    name: str
    address: int
    size: int
    area: Area
    writable: bool = False
    signed: bool = False
    unit: str = ""
    scale: float = 1.0
    zero: int = 0
    initial: int = 0
    low: int = 0
    high: int = 0
    limited_by: tuple[str, ...] = ()

    @property
    def end(self) -> int:
        """Address behind its last byte."""
        return self.address + self.size

    def decode(self, data: bytes) -> int:
        """Return the raw number in ``size`` bytes. Raises ValueError for another number of bytes."""
        if len(data) != self.size:
            raise ValueError(f"register {self.name!r} has {self.size} bytes, got {len(data)}")
        return int.from_bytes(data, "little", signed=self.signed)

    def encode(self, raw: int) -> bytes:
        """Return the bytes of a raw number. Raises ValueError if it does not fit into them."""
        try:
            return raw.to_bytes(self.size, "little", signed=self.signed)
        except OverflowError:
            kind = "a signed" if self.signed else "an unsigned"
            raise ValueError(f"{raw} does not fit into register {self.name!r}, {kind} number of {self.size} bytes") from None

    def to_si(self, raw: int) -> float:
        """Return a raw number in ``unit``."""
        return (raw - self.zero) * self.scale

    def to_raw(self, value: float) -> int:
        """Return the raw number nearest to a value in ``unit``. Raises ValueError if the value is not finite."""
        if not math.isfinite(value):
            raise ValueError(f"register {self.name!r} needs a finite value, got {value}")
        return round(value / self.scale) + self.zero


@dataclass(frozen=True, slots=True)
class IndirectBlock:
    """Registers by which addresses far apart can be read and written as one piece.

    Attributes:
        addresses: address of the first indirect address, 2 bytes each.
        data: address of the first indirect data byte; byte ``i`` stands for the byte at the address in indirect address ``i``.
        count: how many there are.
    """

    addresses: int
    data: int
    count: int


@dataclass(frozen=True)
class ServoModel:
    """What the manual says about one kind of servo.

    Attributes:
        name: as the manual writes it.
        number: contents of the register ``model_number``.
        registers: control table by name, in the order of the addresses, indirect ones aside.
        indirect: where the indirect addresses and data are.
        operating_modes: what it can control.
        baud_rates: bits per second that it can be set to, in the order of the register ``baud_rate``.
        voltage: recommended supply, V; the next three hold for it.
        max_velocity: without load, rad/s.
        stall_torque: N m.
        stall_current: A.
        steps_per_turn: of the position registers.
    """

    name: str
    number: int
    registers: Mapping[str, Register]
    indirect: tuple[IndirectBlock, ...]
    operating_modes: frozenset[OperatingMode]
    baud_rates: tuple[int, ...]
    voltage: float
    max_velocity: float
    stall_torque: float
    stall_current: float
    steps_per_turn: int = _STEPS_PER_TURN
    table_size: int = field(init=False)
    """Bytes of the control table."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "table_size", max(block.data + block.count for block in self.indirect))

    def register(self, name: str) -> Register:
        """Return a register by its name. Raises UnknownNameError with the nearest name."""
        if name not in self.registers:
            raise unknown_name(f"register of {self.name}", name, self.registers)
        return self.registers[name]


def find_model(name: str) -> ServoModel:
    """Return a model by its name, such as ``XL330-M288``. Raises UnknownNameError with the nearest name."""
    model = next((model for model in MODELS if model.name == name.upper()), None)
    if model is None:
        raise unknown_name("Dynamixel model", name, [model.name for model in MODELS])
    return model


def find_model_number(number: int) -> ServoModel:
    """Return the model with this model number. Raises UnknownNameError if we have no control table for it."""
    model = next((model for model in MODELS if model.number == number), None)
    if model is None:
        known = ", ".join(f"{model.number} ({model.name})" for model in MODELS)
        raise UnknownNameError(
            f"unknown Dynamixel model number {number}; known: {known}. Is it the servo that you meant to connect?"
        )
    return model


@dataclass(frozen=True, slots=True)
class _Values:
    """What differs between the control tables of the models."""

    number: int
    max_baud_index: int
    temperature_limit: int
    voltage_limits: tuple[int, int]
    min_voltage: int
    current_limit: int | None  # None: it measures load in place of current
    current_unit: float
    velocity_limit: int
    max_velocity_limit: int
    shutdown: int
    velocity_gains: tuple[int, int]  # I, P
    position_gains: tuple[int, int, int]  # D, I, P


def _eeprom(values: _Values) -> list[Register]:
    def read_only(name: str, address: int, size: int, initial: int = 0) -> Register:
        return Register(name, address, size, Area.EEPROM, initial=initial)

    def number(
        name: str, address: int, size: int, initial: int, low: int, high: int, unit: str = "", scale: float = 1.0
    ) -> Register:
        return Register(name, address, size, Area.EEPROM, True, low < 0, unit, scale, initial=initial, low=low, high=high)

    def position(name: str, address: int, initial: int) -> Register:
        scale = 2 * math.pi / _STEPS_PER_TURN
        return Register(name, address, 4, Area.EEPROM, True, False, "rad", scale, _MIDDLE, initial, 0, _STEPS_PER_TURN - 1)

    low_voltage, high_voltage = values.voltage_limits
    registers = [
        read_only("model_number", 0, 2, values.number),
        read_only("model_information", 2, 4),
        read_only("firmware_version", 6, 1, 46),
        number("id", 7, 1, 1, 0, 252),
        number("baud_rate", 8, 1, 1, 0, values.max_baud_index),
        number("return_delay_time", 9, 1, 250, 0, 254, "s", 2e-6),
        number("drive_mode", 10, 1, 0, 0, 13),
        number("operating_mode", 11, 1, OperatingMode.POSITION, 0, 16),
        number("secondary_id", 12, 1, 255, 0, 255),
        number("protocol_type", 13, 1, 2, 1, 22),
        number("homing_offset", 20, 4, 0, -1_044_479, 1_044_479, "rad", 2 * math.pi / _STEPS_PER_TURN),
        number("moving_threshold", 24, 4, 10, 0, 1023, "rad/s", _VELOCITY),
        number("temperature_limit", 31, 1, values.temperature_limit, 0, 100, "deg C"),
        number("max_voltage_limit", 32, 2, high_voltage, low_voltage, high_voltage, "V", 0.1),
        number("min_voltage_limit", 34, 2, values.min_voltage, low_voltage, high_voltage, "V", 0.1),
        number("pwm_limit", 36, 2, 885, 0, 885, "", 0.00113),
        number("velocity_limit", 44, 4, values.velocity_limit, 0, values.max_velocity_limit, "rad/s", _VELOCITY),
        position("max_position_limit", 48, _STEPS_PER_TURN - 1),
        position("min_position_limit", 52, 0),
        number("startup_configuration", 60, 1, 0, 0, 3),
        number("shutdown", 63, 1, values.shutdown, 0, 0x3D),
    ]
    if values.current_limit is not None:
        limit = values.current_limit
        registers.append(number("current_limit", 38, 2, limit, 0, limit, "A", values.current_unit))
    return registers


def _ram(values: _Values) -> list[Register]:
    def number(
        name: str, address: int, size: int, initial: int, low: int, high: int, unit: str = "", scale: float = 1.0, *limits: str
    ) -> Register:
        return Register(name, address, size, Area.RAM, True, low < 0, unit, scale, 0, initial, low, high, limits)

    def measured(
        name: str, address: int, size: int, unit: str = "", scale: float = 1.0, *, signed: bool = False, zero: int = 0
    ) -> Register:
        return Register(name, address, size, Area.RAM, False, signed, unit, scale, zero)

    def gain(name: str, address: int, initial: int) -> Register:
        return number(name, address, 2, initial, 0, 16_383)

    radian = 2 * math.pi / _STEPS_PER_TURN
    top_velocity, pwm, tick = values.max_velocity_limit, 885, 1e-3
    registers = [
        number("torque_enable", 64, 1, 0, 0, 1),
        number("led", 65, 1, 0, 0, 1),
        number("status_return_level", 68, 1, 2, 0, 2),
        measured("registered_instruction", 69, 1),
        measured("hardware_error_status", 70, 1),
        gain("velocity_i_gain", 76, values.velocity_gains[0]),
        gain("velocity_p_gain", 78, values.velocity_gains[1]),
        gain("position_d_gain", 80, values.position_gains[0]),
        gain("position_i_gain", 82, values.position_gains[1]),
        gain("position_p_gain", 84, values.position_gains[2]),
        gain("feedforward_2nd_gain", 88, 0),
        gain("feedforward_1st_gain", 90, 0),
        # reads -1 after it tripped, but only 0 to 127 may be written
        Register("bus_watchdog", 98, 1, Area.RAM, True, True, "s", 0.02, high=127),
        number("goal_pwm", 100, 2, pwm, -pwm, pwm, "", 0.00113, "pwm_limit"),
        number("goal_velocity", 104, 4, 0, -top_velocity, top_velocity, "rad/s", _VELOCITY, "velocity_limit"),
        number("profile_acceleration", 108, 4, 0, 0, 32_767, "rad/s^2", _ACCELERATION),
        number("profile_velocity", 112, 4, 0, 0, 32_767, "rad/s", _VELOCITY),
        Register(
            *("goal_position", 116, 4, Area.RAM, True, True, "rad", radian, _MIDDLE, _MIDDLE, -_MAX_MULTI_TURN, _MAX_MULTI_TURN),
            limited_by=("min_position_limit", "max_position_limit"),
        ),
        measured("realtime_tick", 120, 2, "s", tick),
        measured("moving", 122, 1),
        measured("moving_status", 123, 1),
        measured("present_pwm", 124, 2, "", 0.00113, signed=True),
        measured("present_velocity", 128, 4, "rad/s", _VELOCITY, signed=True),
        measured("present_position", 132, 4, "rad", radian, signed=True, zero=_MIDDLE),
        measured("velocity_trajectory", 136, 4, "rad/s", _VELOCITY, signed=True),
        measured("position_trajectory", 140, 4, "rad", radian, signed=True, zero=_MIDDLE),
        measured("present_input_voltage", 144, 2, "V", 0.1),
        measured("present_temperature", 146, 1, "deg C"),
        measured("backup_ready", 147, 1),
    ]
    if values.current_limit is None:
        return [*registers, measured("present_load", 126, 2, "", 0.001, signed=True)]
    limit, unit = values.current_limit, values.current_unit
    goal = number("goal_current", 102, 2, limit, -limit, limit, "A", unit, "current_limit")
    return [*registers, goal, measured("present_current", 126, 2, "A", unit, signed=True)]


def _table(values: _Values, *extra: Register) -> Mapping[str, Register]:
    registers = sorted([*_eeprom(values), *_ram(values), *extra], key=lambda register: register.address)
    return MappingProxyType({register.name: register for register in registers})


_PWM_SLOPE = Register("pwm_slope", 62, 1, Area.EEPROM, True, False, "V/s", 1.977, initial=140, low=1, high=255)
_INDIRECT_X330 = (IndirectBlock(addresses=168, data=208, count=20),)
_INDIRECT_X430 = (IndirectBlock(addresses=168, data=224, count=28), IndirectBlock(addresses=578, data=634, count=28))
_ALL_MODES = frozenset(OperatingMode)
_WITHOUT_CURRENT = _ALL_MODES - {OperatingMode.CURRENT, OperatingMode.CURRENT_BASED_POSITION}

XL330_M077 = ServoModel(
    name="XL330-M077",
    number=1190,
    registers=_table(
        _Values(
            number=1190,
            max_baud_index=6,
            temperature_limit=70,
            voltage_limits=(31, 70),
            min_voltage=35,
            current_limit=1750,
            current_unit=1e-3,
            velocity_limit=1620,
            max_velocity_limit=2047,
            shutdown=53,
            velocity_gains=(400, 40),
            position_gains=(0, 400, 400),
        ),
        _PWM_SLOPE,
    ),
    indirect=_INDIRECT_X330,
    operating_modes=_ALL_MODES,
    baud_rates=BAUD_RATES[:7],
    voltage=5.0,
    max_velocity=383 * _RPM,
    stall_torque=0.215,
    stall_current=1.47,
)
XL330_M288 = ServoModel(
    name="XL330-M288",
    number=1200,
    registers=_table(
        _Values(
            number=1200,
            max_baud_index=6,
            temperature_limit=70,
            voltage_limits=(31, 70),
            min_voltage=35,
            current_limit=1750,
            current_unit=1e-3,
            velocity_limit=445,
            max_velocity_limit=2047,
            shutdown=53,
            velocity_gains=(1600, 180),
            position_gains=(0, 0, 400),
        ),
        _PWM_SLOPE,
    ),
    indirect=_INDIRECT_X330,
    operating_modes=_ALL_MODES,
    baud_rates=BAUD_RATES[:7],
    voltage=5.0,
    max_velocity=103 * _RPM,
    stall_torque=0.52,
    stall_current=1.47,
)
XL430_W250 = ServoModel(
    name="XL430-W250",
    number=1060,
    registers=_table(
        _Values(
            number=1060,
            max_baud_index=7,
            temperature_limit=72,
            voltage_limits=(60, 140),
            min_voltage=60,
            current_limit=None,
            current_unit=0.0,
            velocity_limit=265,
            max_velocity_limit=1023,
            shutdown=52,
            velocity_gains=(1000, 100),
            position_gains=(4000, 0, 640),
        )
    ),
    indirect=_INDIRECT_X430,
    operating_modes=_WITHOUT_CURRENT,
    baud_rates=BAUD_RATES,
    voltage=12.0,
    max_velocity=61 * _RPM,
    stall_torque=1.5,
    stall_current=1.4,
)


def _xm430(name: str, number: int, velocity_limit: int, max_velocity_rpm: float, stall_torque: float) -> ServoModel:
    """Return an XM430, whose kinds differ in their gears alone."""
    return ServoModel(
        name=name,
        number=number,
        registers=_table(
            _Values(
                number=number,
                max_baud_index=7,
                temperature_limit=80,
                voltage_limits=(95, 160),
                min_voltage=95,
                current_limit=1193,
                current_unit=2.69e-3,
                velocity_limit=velocity_limit,
                max_velocity_limit=1023,
                shutdown=52,
                velocity_gains=(1920, 100),
                position_gains=(0, 0, 800),
            )
        ),
        indirect=_INDIRECT_X430,
        operating_modes=_ALL_MODES,
        baud_rates=BAUD_RATES,
        voltage=12.0,
        max_velocity=max_velocity_rpm * _RPM,
        stall_torque=stall_torque,
        stall_current=2.3,
    )


XM430_W350 = _xm430("XM430-W350", 1020, velocity_limit=200, max_velocity_rpm=46, stall_torque=4.1)
XM430_W210 = _xm430("XM430-W210", 1030, velocity_limit=330, max_velocity_rpm=77, stall_torque=3.0)
MODELS = (XL330_M077, XL330_M288, XL430_W250, XM430_W350, XM430_W210)
