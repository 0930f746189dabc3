"""The two families of servos as the benchmarks use them, and joints whose registers tell when they were read."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from hw_drivers.dynamixel import packets as dynamixel
from hw_drivers.dynamixel.language import DynamixelLanguage
from hw_drivers.dynamixel.models import XL330_M288
from hw_drivers.emulators.dynamixel import DynamixelBus
from hw_drivers.emulators.feetech import FULL_TURN_FEEDBACK, FeetechBus
from hw_drivers.emulators.joints import EmulatedBus, Joints
from hw_drivers.feetech import packets as feetech
from hw_drivers.feetech.language import FeetechLanguage
from hw_drivers.feetech.models import STS3215
from hw_drivers.servo_bus import BusLanguage

STAMP_NS = 100_000
"""Resolution of the time that a servo's registers tell."""

_WORD = 1 << 15  # what a Feetech register with a sign holds


class StateRegister(Protocol):
    """A register of what is measured."""

    def to_si(self, raw: int) -> float:
        """Return a raw number in SI units."""
        ...


@dataclass(frozen=True)
class Family:
    """One family of servos.

    Attributes:
        name: of the family.
        model: name of the servos' model.
        baud_rates: that the model can be set to, bits per second.
        sdk: module of the vendor's library.
        package: what to install for it.
        stamp: address and length of the registers that tell the time at which they were read.
        state: address and length of the span from which position, velocity and current are read.
        goal: address and length of the goal position.
        id_offset: place of the ID in an answer.
    """

    name: str
    model: str
    baud_rates: Sequence[int]
    sdk: str
    package: str
    stamp: tuple[int, int]
    state: tuple[int, int]
    goal: tuple[int, int]
    id_offset: int

    def language(self, return_delay: int) -> BusLanguage:
        """Return our language for servos with this return delay, in units of 2 us."""
        return DynamixelLanguage(return_delay) if self is DYNAMIXEL else FeetechLanguage(return_delay)

    def make_bus(self, joints: Joints, servos: int, baud_rate: int, return_delay: int, start_ns: int = 0) -> EmulatedBus:
        """Return emulated servos with the IDs 1, 2, ...; ``return_delay`` is in units of 2 us."""
        if self is DYNAMIXEL:
            bus = DynamixelBus(joints, [XL330_M288] * servos, baud_rate=baud_rate, start_ns=start_ns)
            for servo in bus.servos:
                servo.table["return_delay_time"] = return_delay
            return bus
        other = FeetechBus(joints, [STS3215] * servos, baud_rate=baud_rate, start_ns=start_ns)
        for each in other.servos:
            each.registers["return_delay_time"] = return_delay
            each.registers["phase"] |= FULL_TURN_FEEDBACK  # the position may be any number
        return other

    def answer_bytes(self, length: int) -> int:
        """Return how many bytes an answer with ``length`` bytes of data has on the wire."""
        if self is DYNAMIXEL:
            return len(dynamixel.Status(1, data=bytes(length)).to_bytes())
        return len(feetech.Status(1, data=bytes(length)).to_bytes())

    def stamped(self, number: int) -> tuple[int, int]:
        """Return the raw position and velocity that stand for a number."""
        return (number, 0) if self is DYNAMIXEL else (number % _WORD, number // _WORD % _WORD)

    def number(self, data: bytes) -> int:
        """Return the number that the bytes of ``stamp`` stand for; -1 if they stand for none."""
        if len(data) != self.stamp[1]:
            return -1
        if self is DYNAMIXEL:
            return XL330_M288.register("present_position").decode(data)
        position, velocity = (STS3215.register(name) for name in ("present_position", "present_velocity"))
        low, high = position.decode(data[: position.size]), velocity.decode(data[position.size :])
        return low + _WORD * high if min(low, high) >= 0 else -1

    def registers(self) -> tuple[StateRegister, StateRegister]:
        """Return the registers of present position and velocity."""
        model = XL330_M288 if self is DYNAMIXEL else STS3215
        return model.register("present_position"), model.register("present_velocity")


DYNAMIXEL = Family(
    name="dynamixel",
    model=XL330_M288.name,
    baud_rates=XL330_M288.baud_rates,
    sdk="dynamixel_sdk",
    package="dynamixel-sdk",
    stamp=(132, 4),  # present position
    state=(126, 10),  # present current, velocity and position
    goal=(116, 4),
    id_offset=4,
)
FEETECH = Family(
    name="feetech",
    model=STS3215.name,
    baud_rates=STS3215.baud_rates,
    sdk="scservo_sdk",
    package="feetech-servo-sdk",
    stamp=(56, 4),  # present position and velocity
    state=(56, 15),  # present position and velocity, and what lies between them and the current
    goal=(42, 2),
    id_offset=2,
)
FAMILIES = {family.name: family for family in (DYNAMIXEL, FEETECH)}


class StampedJoints:
    """Joints whose position and velocity are a number that tells which joint it is and what time it was.

    The number is ``servos * stamp + index``, where the stamp counts time in units of :data:`STAMP_NS`. No two joints ever
    have the same number, and no joint has one twice.
    """

    def __init__(self, family: Family, servos: int, start_ns: int = 0) -> None:
        self._family, self._servos, self._start_ns, self._now_ns = family, servos, start_ns, start_ns
        self._position, self._velocity = family.registers()

    def advance(self, until_ns: int) -> None:
        """Let time pass up to ``until_ns``."""
        self._now_ns = max(self._now_ns, until_ns)

    def position(self, index: int) -> float:
        """Return what the position's register makes the first part of the number, rad."""
        return self._position.to_si(self._raw(index)[0])

    def velocity(self, index: int) -> float:
        """Return what the velocity's register makes the second part of the number, rad/s."""
        return self._velocity.to_si(self._raw(index)[1])

    def effort(self, index: int) -> float:
        """Return 0: nothing holds them."""
        return 0.0

    def set_goal(self, index: int, position: float, velocity_limit: float) -> None:
        """Do nothing: they go where they want."""

    def limit_torque(self, index: int, share: float) -> None:
        """Do nothing."""

    def release(self, index: int) -> None:
        """Do nothing."""

    def _raw(self, index: int) -> tuple[int, int]:
        stamp = (self._now_ns - self._start_ns) // STAMP_NS
        return self._family.stamped(self._servos * stamp + index)
