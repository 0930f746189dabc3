"""Control tables of Feetech servos as data: where each number is kept, how it is stored, and what it is in SI units.

Registers and numbers are those of the vendor's public memory tables. Where public sources contradict each other a fact is left
out: baud rate indices 5 to 7 are 76800, 57600 and 38400 in the memory tables but 57600, 38400 and 19200 in widespread drivers.
Speeds are in steps per second; an STS whose phase register has bit 2 cleared counts in units of 50 of them. What ``goal_time``
does besides setting the duty of motor modes differs between versions. Initial values do, too: they are what an emulated servo
starts with, and say nothing about yours.

Position 0 rad is the middle of the range: raw 2048 of STS, 512 of SCS.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Literal, NamedTuple

from dpg_robot.errors import UnknownNameError, unknown_name

ByteOrder = Literal["little", "big"]

_RAM_BEGINS = 40


@dataclass(frozen=True, slots=True)
class Register:
    """One number of a control table.

    Attributes:
        name: the vendor's name in our spelling.
        address: of its first byte.
        size: bytes, 1 or 2.
        byte_order: which of two bytes comes first.
        sign_bit: bit that says that the number is negative, the bits below being its magnitude; None for numbers without sign.
        writable: whether a host may write it.
        initial: raw number that an emulated servo starts with.
        low: smallest raw number.
        high: largest raw number.
        scale: SI units per count.
        zero: raw number that is 0 in SI units.
        unit: SI unit; ``1`` for a fraction, empty for codes and for numbers whose unit is not published.
    """

    name: str
    address: int
    size: int
    byte_order: ByteOrder
    sign_bit: int | None
    writable: bool
    initial: int
    low: int
    high: int
    scale: float
    zero: int
    unit: str

    @property
    def area(self) -> Literal["eeprom", "ram"]:
        """Where it is kept; EEPROM outlasts the power only if it was written while the lock was open."""
        return "eeprom" if self.address < _RAM_BEGINS else "ram"

    @property
    def end(self) -> int:
        """Address behind its last byte."""
        return self.address + self.size

    def encode(self, number: int) -> bytes:
        """Return a raw number as stored. Raises ValueError if it is outside ``low`` to ``high``."""
        if not self.low <= number <= self.high:
            raise ValueError(f"{self.name}: raw number must be {self.low} to {self.high}, got {number}")
        if self.sign_bit is not None and number < 0:
            number = 1 << self.sign_bit | -number
        return number.to_bytes(self.size, self.byte_order)

    def decode(self, data: bytes | bytearray) -> int:
        """Return the raw number stored in ``data``, whatever its range. Raises ValueError for another number of bytes."""
        if len(data) != self.size:
            raise ValueError(f"{self.name}: expected {self.size} bytes, got {len(data)}")
        stored = int.from_bytes(data, self.byte_order)
        if self.sign_bit is None:
            return stored
        magnitude = stored & (1 << self.sign_bit) - 1
        return -magnitude if stored >> self.sign_bit & 1 else magnitude

    def to_si(self, number: int) -> float:
        """Return a raw number in SI units."""
        return (number - self.zero) * self.scale

    def to_raw(self, value: float) -> int:
        """Return the nearest raw number. Raises ValueError if the value is not finite or outside the range."""
        number = round(value / self.scale) + self.zero if math.isfinite(value) else None
        if number is None or not self.low <= number <= self.high:
            limits = sorted((self.to_si(self.low), self.to_si(self.high)))
            raise ValueError(f"{self.name}: expected {limits[0]:.6g} to {limits[1]:.6g} {self.unit}, got {value:g}".rstrip())
        return number


@dataclass(frozen=True, slots=True)
class ServoModel:
    """One kind of servo.

    Attributes:
        name: the vendor's name.
        number: what register ``model_number`` says.
        byte_order: of numbers of two bytes.
        steps: positions that the sensor tells apart.
        rad_per_step: angle between two of them.
        continuous: whether the sensor goes on from its last position to its first.
        voltage: usual supply, V; the next one holds for it.
        max_velocity: largest velocity without load, rad/s.
        supports_sync_read: whether it answers sync reads.
        baud_rates: bits per second that it can be set to, in the order of register ``baud_rate``.
        registers: all registers by name, in the order of their addresses.
    """

    name: str
    number: int
    byte_order: ByteOrder
    steps: int
    rad_per_step: float
    continuous: bool
    voltage: float
    max_velocity: float
    supports_sync_read: bool
    baud_rates: tuple[int, ...]
    registers: Mapping[str, Register]

    def register(self, name: str) -> Register:
        """Return a register. Raises UnknownNameError if this model has none of that name."""
        try:
            return self.registers[name]
        except KeyError:
            raise unknown_name(f"register of {self.name}", name, self.registers) from None


class _Quantity(NamedTuple):
    unit: str
    scale: float = 1.0
    zero: int = 0


_CODE = _Quantity("")
_CELSIUS = _Quantity("deg C")
_VOLTS = _Quantity("V", 0.1)
_AMPERES = _Quantity("A", 6.5e-3)
_PER_MILLE = _Quantity("1", 1e-3)
_PERCENT = _Quantity("1", 1e-2)
_BAUD_RATES = (1_000_000, 500_000, 250_000, 128_000, 115_200)


class _Table:
    """Collects the registers of one model."""

    def __init__(self, byte_order: ByteOrder, number: int, rad_per_step: float, middle: int) -> None:
        self.registers: dict[str, Register] = {}
        self._byte_order = byte_order
        self.position = _Quantity("rad", rad_per_step, middle)
        self.velocity = _Quantity("rad/s", rad_per_step)
        self._add_common(number)

    def add(
        self,
        address: int,
        name: str,
        quantity: _Quantity = _CODE,
        *,
        size: int = 1,
        sign_bit: int | None = None,
        initial: int = 0,
        low: int | None = None,
        high: int | None = None,
        writable: bool = True,
    ) -> None:
        """Add a register; its range is all that it can store unless told otherwise."""
        high = (1 << (8 * size if sign_bit is None else sign_bit)) - 1 if high is None else high
        low = (0 if sign_bit is None else -high) if low is None else low
        unit, scale, zero = quantity
        self.registers[name] = Register(
            name, address, size, self._byte_order, sign_bit, writable, initial, low, high, scale, zero, unit
        )

    def in_order(self) -> Mapping[str, Register]:
        """Return the registers in the order of their addresses."""
        ordered = sorted(self.registers.values(), key=lambda register: register.address)
        return MappingProxyType({register.name: register for register in ordered})

    def _add_common(self, number: int) -> None:
        """Add what STS and SCS have at the same addresses and in the same units."""
        self.add(0, "firmware_major_version", initial=3, writable=False)
        self.add(1, "firmware_minor_version", initial=10, writable=False)
        self.add(3, "model_number", size=2, initial=number, writable=False)
        self.add(5, "id", initial=1, high=253)
        self.add(6, "baud_rate", high=len(_BAUD_RATES) - 1)
        self.add(7, "return_delay_time", _Quantity("s", 2e-6), high=254)
        self.add(8, "response_status_level", initial=1, high=1)
        self.add(13, "max_temperature_limit", _CELSIUS, initial=70, high=100)
        self.add(15, "min_voltage_limit", _VOLTS, initial=40, high=254)
        self.add(16, "max_torque_limit", _PER_MILLE, size=2, initial=1000, high=1000)
        self.add(20, "led_alarm_condition", initial=37)
        self.add(21, "p_coefficient", initial=32)
        self.add(22, "d_coefficient", initial=32)
        self.add(23, "i_coefficient")
        self.add(26, "cw_dead_zone", initial=1)
        self.add(27, "ccw_dead_zone", initial=1)
        self.add(40, "torque_enable")
        self.add(58, "present_velocity", self.velocity, size=2, sign_bit=15, writable=False)
        self.add(60, "present_load", _PER_MILLE, size=2, sign_bit=10, writable=False)
        self.add(62, "present_input_voltage", _VOLTS, writable=False)
        self.add(63, "present_temperature", _CELSIUS, writable=False)
        self.add(64, "registered_write", writable=False)
        self.add(65, "status", writable=False)
        self.add(66, "moving", writable=False)


def _sts3215() -> ServoModel:
    steps, number = 4096, 777
    rad_per_step = math.tau / steps
    table = _Table("little", number, rad_per_step, steps // 2)
    table.add(9, "min_position_limit", table.position, size=2, high=steps - 1)
    table.add(11, "max_position_limit", table.position, size=2, initial=steps - 1, high=steps - 1)
    table.add(14, "max_voltage_limit", _VOLTS, initial=80, high=254)
    table.add(18, "phase", initial=12)  # speeds in steps per second, and speed 0 for the largest
    table.add(19, "unloading_condition", initial=44)
    table.add(24, "minimum_startup_force", _PER_MILLE, initial=16)
    table.add(28, "protection_current", _AMPERES, size=2, initial=511, high=2047)
    table.add(30, "angular_resolution", initial=1, low=1, high=128)
    table.add(31, "homing_offset", _Quantity("rad", rad_per_step), size=2, sign_bit=11)
    table.add(33, "operating_mode", high=3)
    table.add(34, "protective_torque", _PERCENT, initial=20, high=100)
    table.add(35, "protection_time", _Quantity("s", 0.01), initial=200, high=254)
    table.add(36, "overload_torque", _PERCENT, initial=80, high=100)
    table.add(37, "velocity_p_coefficient", initial=10)
    table.add(38, "overcurrent_protection_time", _Quantity("s", 0.01), initial=200, high=254)
    table.add(39, "velocity_i_coefficient", initial=10)
    table.add(41, "acceleration", _Quantity("rad/s^2", 100 * rad_per_step), high=254)
    table.add(42, "goal_position", table.position, size=2, sign_bit=15)
    table.add(44, "goal_time", _PER_MILLE, size=2, sign_bit=10, high=1000)
    table.add(46, "goal_velocity", table.velocity, size=2, sign_bit=15)
    table.add(48, "torque_limit", _PER_MILLE, size=2, initial=1000, high=1000)
    table.add(55, "lock", initial=1, high=1)
    table.add(56, "present_position", table.position, size=2, sign_bit=15, writable=False)
    table.add(69, "present_current", _AMPERES, size=2, sign_bit=15, writable=False)
    return ServoModel(
        name="STS3215",
        number=number,
        byte_order="little",
        steps=steps,
        rad_per_step=rad_per_step,
        continuous=True,
        voltage=7.4,
        max_velocity=3400 * rad_per_step,
        supports_sync_read=True,
        baud_rates=_BAUD_RATES,
        registers=table.in_order(),
    )


def _scs0009() -> ServoModel:
    steps, number = 1024, 1284
    rad_per_step = math.radians(300) / steps
    table = _Table("big", number, rad_per_step, steps // 2)
    table.add(9, "min_position_limit", table.position, size=2, initial=20, high=steps - 1)
    table.add(11, "max_position_limit", table.position, size=2, initial=1003, high=steps - 1)
    table.add(14, "max_voltage_limit", _VOLTS, initial=90, high=254)
    table.add(18, "phase", initial=8)  # speed 0 for the largest
    table.add(19, "unloading_condition", initial=36)
    table.add(24, "minimum_startup_force", _PER_MILLE, size=2, initial=30, high=1000)
    table.add(37, "protective_torque", _PERCENT, initial=20, high=100)
    table.add(38, "protection_time", _Quantity("s", 0.04), initial=50, high=254)
    table.add(39, "overload_torque", _PERCENT, initial=80, high=100)
    table.add(42, "goal_position", table.position, size=2, high=steps - 1)
    table.add(44, "goal_time", _PER_MILLE, size=2, sign_bit=10, high=1000)
    table.add(46, "goal_velocity", table.velocity, size=2, high=(1 << 15) - 1)
    table.add(48, "lock", initial=1, high=1)
    table.add(56, "present_position", table.position, size=2, high=steps - 1, writable=False)
    return ServoModel(
        name="SCS0009",
        number=number,
        byte_order="big",
        steps=steps,
        rad_per_step=rad_per_step,
        continuous=False,
        voltage=6.0,
        max_velocity=100 * math.tau / 60,
        supports_sync_read=False,
        baud_rates=_BAUD_RATES,
        registers=table.in_order(),
    )


STS3215 = _sts3215()
SCS0009 = _scs0009()
MODELS = (STS3215, SCS0009)


def find_model(name: str) -> ServoModel:
    """Return a model by its name, such as ``STS3215``. Raises UnknownNameError with the nearest name."""
    model = next((model for model in MODELS if model.name == name.upper()), None)
    if model is None:
        raise unknown_name("Feetech model", name, [model.name for model in MODELS])
    return model


def find_model_number(number: int) -> ServoModel:
    """Return the model with this model number. Raises UnknownNameError if we have no control table for it."""
    model = next((model for model in MODELS if model.number == number), None)
    if model is None:
        known = ", ".join(f"{model.number} ({model.name})" for model in MODELS)
        raise UnknownNameError(
            f"unknown Feetech model number {number}; known: {known}. Is it the servo that you meant to connect?"
        )
    return model
