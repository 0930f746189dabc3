"""What a servo robot needs to know of a family of servos: its language, its registers, and what a reading means."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from dpg_robot.errors import unknown_name
from hw_drivers.servo_bus import BusLanguage

FAMILIES = ("dynamixel", "feetech")


@dataclass(frozen=True, slots=True)
class Block:
    """Registers that are read as one piece.

    Attributes:
        address: of the first byte.
        length: number of bytes.
        spare: how many bytes behind them may be read as well.
    """

    address: int
    length: int
    spare: int


@dataclass(frozen=True, slots=True)
class ServoReading:
    """What a servo says of itself, in the servo's own terms; None where it was not asked for.

    Attributes:
        position: angle of its horn, rad; 0 in the middle of its range.
        velocity: rad/s.
        current: A, positive in the direction of positive angles; None where it measures none.
        load: share of its largest torque, -1 to 1; None where it does not tell.
        voltage: of its supply, V.
        temperature: deg C.
        torque_on: whether its motor has power.
        watchdog_tripped: whether it stopped because nobody talked to it.
    """

    position: float
    velocity: float
    current: float | None = None
    load: float | None = None
    voltage: float | None = None
    temperature: float | None = None
    torque_on: bool | None = None
    watchdog_tripped: bool = False


class ServoRegister(Protocol):
    """One entry of a control table; raw numbers are what the servo keeps."""

    @property
    def name(self) -> str: ...  # noqa: D102
    @property
    def address(self) -> int: ...  # noqa: D102
    @property
    def size(self) -> int: ...  # noqa: D102
    @property
    def low(self) -> int: ...  # noqa: D102
    @property
    def high(self) -> int: ...  # noqa: D102
    def decode(self, data: bytes) -> int: ...  # noqa: D102
    def encode(self, number: int, /) -> bytes: ...  # noqa: D102
    def to_si(self, number: int, /) -> float: ...  # noqa: D102
    def to_raw(self, value: float) -> int: ...  # noqa: D102


class ServoModel(Protocol):
    """One kind of servo."""

    @property
    def name(self) -> str: ...  # noqa: D102
    @property
    def number(self) -> int: ...  # noqa: D102
    @property
    def max_velocity(self) -> float: ...  # noqa: D102
    @property
    def voltage(self) -> float: ...  # noqa: D102
    @property
    def baud_rates(self) -> Sequence[int]: ...  # noqa: D102
    @property
    def registers(self) -> Mapping[str, ServoRegister]: ...  # noqa: D102
    def register(self, name: str) -> ServoRegister: ...  # noqa: D102


@dataclass(frozen=True, slots=True)
class ServoSettings:
    """How a servo shall behave, in the servo's own terms.

    Attributes:
        low: least angle that it may go to, rad.
        high: largest one, rad.
        max_velocity: rad/s.
        max_acceleration: rad/s^2; 0 for as fast as it can.
        p_gain: of its position controller, raw; None to leave it.
        i_gain: likewise.
        d_gain: likewise.
    """

    low: float
    high: float
    max_velocity: float
    max_acceleration: float = 0.0
    p_gain: int | None = None
    i_gain: int | None = None
    d_gain: int | None = None


class ServoFamily(Protocol):
    """What differs between Dynamixel and Feetech above the bus.

    Attributes:
        name: ``dynamixel`` or ``feetech``.
        max_id: largest ID of a servo.
        torque_limit: register that bounds the torque, ``torque_limit_full`` being all of it.
        torque_limit_full: raw number in it that stands for the whole torque.
        has_watchdog: whether the servos stop by themselves when nobody talks to them.
    """

    name: str
    max_id: int
    torque_limit: str
    torque_limit_full: int
    has_watchdog: bool

    def language(self) -> BusLanguage:
        """Return a new language for a bus."""
        ...

    def models(self) -> Sequence[ServoModel]:
        """Return all models."""
        ...

    def find_model(self, name: str) -> ServoModel:
        """Return a model by its name. Raises UnknownNameError."""
        ...

    def find_model_number(self, number: int) -> ServoModel:
        """Return a model by its number. Raises UnknownNameError."""
        ...

    def block(self, model: ServoModel) -> Block:
        """Return what is read in every tick, once :meth:`preparation` is done."""
        ...

    def slow_block(self, model: ServoModel) -> Block | None:
        """Return what is read now and then; None if the other block has it all."""
        ...

    def decode(self, model: ServoModel, data: bytes) -> ServoReading:
        """Return what the bytes of :meth:`block` mean."""
        ...

    def decode_torque(self, model: ServoModel, data: bytes) -> bool:
        """Return from the bytes of :meth:`slow_block` whether the motor has power."""
        ...

    def lasting_settings(self, model: ServoModel, settings: ServoSettings) -> dict[str, int]:
        """Return raw numbers of registers that outlast the power and are written while the torque is off, in this order."""
        ...

    def settings(self, model: ServoModel, settings: ServoSettings) -> dict[str, int]:
        """Return raw numbers of registers that are written at every start, in this order."""
        ...

    def preparation(self, model: ServoModel) -> list[tuple[int, bytes]]:
        """Return addresses and bytes to write, with the torque off, before :meth:`block` can be read."""
        ...

    def unlock(self, *, locked: bool) -> tuple[str, int] | None:
        """Return the register and number that lock what outlasts the power or open it; None if the torque does that."""
        ...

    def watchdog(self, seconds: float) -> tuple[str, int] | None:
        """Return the register and number that start the watchdog (0 s: stop it); None if there is none."""
        ...

    def motion(self, model: ServoModel, position: int, velocity: float) -> tuple[int, bytes]:
        """Return address and bytes that send a servo to a raw position, at most at ``velocity`` (rad/s, positive)."""
        ...

    def centering(self, model: ServoModel, position: int, offset: int) -> int | None:
        """Return the homing offset with which a raw position, read with ``offset``, becomes the middle.

        None if the middle cannot be moved.
        """
        ...

    def error_names(self, error: int) -> list[str]:
        """Return in words what an error byte of an answer says."""
        ...


def find_family(name: str) -> ServoFamily:
    """Return the family of servos called ``name``. Raises UnknownNameError with the nearest name."""
    from hw_drivers.dynamixel.family import DynamixelFamily
    from hw_drivers.feetech.family import FeetechFamily

    families: dict[str, type[ServoFamily]] = {"dynamixel": DynamixelFamily, "feetech": FeetechFamily}
    if name not in families:
        raise unknown_name("family of servos", name, families)
    return families[name]()
