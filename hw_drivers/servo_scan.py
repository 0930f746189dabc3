"""Finding the servos on a serial port, whatever their IDs and baud rates, and giving one another ID or rate."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass

from dpg_robot.errors import LinkError, UnknownNameError
from hw_drivers.serial_link import SerialLink
from hw_drivers.servo_bus import BusLink, ServoBus
from hw_drivers.servo_family import ServoFamily, ServoModel
from hw_drivers.servo_registers import ServoRegisters

_ANSWER_S = 0.02
_EEPROM_WRITE_S = 0.1
_MODEL_NUMBER = {"dynamixel": (0, 2), "feetech": (3, 2)}


@dataclass(frozen=True)
class FoundServo:
    """A servo that answered.

    Attributes:
        family: ``dynamixel`` or ``feetech``.
        baud_rate: at which it answers, bits per second.
        id: its ID.
        model_number: what it says that it is.
        model: the name of that, empty if we have no control table for it.
        position: angle of its horn, rad; None without a control table.
        voltage: of its supply, V; likewise.
        temperature: deg C; likewise.
        torque_on: whether its motor has power; likewise.
    """

    family: str
    baud_rate: int
    id: int
    model_number: int
    model: str = ""
    position: float | None = None
    voltage: float | None = None
    temperature: float | None = None
    torque_on: bool | None = None


def scan_link(link: BusLink, family: ServoFamily, ids: Iterable[int], clock: Callable[[], int]) -> Iterator[FoundServo]:
    """Ask one ID after the other, and yield the servos that answer. Nothing is changed.

    Args:
        link: an open link at one baud rate.
        family: whose protocol to speak.
        ids: IDs to ask.
        clock: monotonic time, ns; the link's.

    Raises:
        LinkError: the port is gone.
    """
    address, size = _MODEL_NUMBER[family.name]
    for servo_id in ids:
        bus = ServoBus(link, family.language(), [servo_id], clock=clock)
        data = bus.read(address, size, clock() + round(_ANSWER_S * 1e9)).get(servo_id)
        if data is not None:
            yield _describe(bus, family, servo_id, int.from_bytes(data, "little"), link.baud_rate, clock)


def scan_port(
    port: str, families: Sequence[ServoFamily], baud_rates: Sequence[int], *, note: Callable[[str], None] = lambda _: None
) -> Iterator[FoundServo]:
    """Look for servos of all families at all baud rates, and yield those that answer. Nothing is changed.

    Args:
        port: path of the serial port.
        families: whose protocols to speak.
        baud_rates: bits per second to try.
        note: is told what is tried.

    Raises:
        LinkError: the port cannot be opened.
    """
    for baud_rate in baud_rates:
        for family in families:
            note(f"{port}: {family.name} at {baud_rate} baud")
            link = SerialLink(port, baud_rate)
            link.open()
            try:
                yield from scan_link(link, family, range(family.max_id + 1), time.monotonic_ns)
            finally:
                link.close()


def change_servo(
    open_link: Callable[[int], AbstractContextManager[BusLink]],
    family: ServoFamily,
    servo: FoundServo,
    *,
    new_id: int,
    new_baud_rate: int,
    clock: Callable[[], int] = time.monotonic_ns,
    sleep: Callable[[float], None] = time.sleep,
) -> None:
    """Give a servo an ID and a baud rate, with its torque off. It must be the only one with its ID on the bus.

    Args:
        open_link: opens the port at a baud rate, for the length of a ``with``.
        family: the servo's family.
        servo: what a scan found.
        new_id: ID to give it.
        new_baud_rate: baud rate to give it, bits per second.
        clock: monotonic time, ns; the link's.
        sleep: lets time pass, s.

    Raises:
        LinkError: another servo has the new ID already, or the servo does not take a setting.
        ValueError: an ID or a baud rate that its model cannot have.
    """
    model = family.find_model(servo.model)
    if not 0 <= new_id <= family.max_id:
        raise ValueError(f"an ID must be 0 to {family.max_id}, got {new_id}")
    if new_baud_rate not in model.baud_rates:
        raise ValueError(f"{model.name} has no baud rate {new_baud_rate}; it has {', '.join(map(str, model.baud_rates))}")
    opened, closed = family.unlock(locked=False), family.unlock(locked=True)

    def registers_of(link: BusLink, servo_id: int) -> ServoRegisters:
        return _registers_of(ServoBus(link, family.language(), [servo_id], clock=clock), family, {servo_id: model}, clock, sleep)

    with open_link(servo.baud_rate) as link:
        if new_id != servo.id and any(True for _ in scan_link(link, family, [new_id], clock)):
            raise LinkError(f"another servo has the ID {new_id} already; give that one another ID first, or disconnect it")
        registers = registers_of(link, servo.id)
        registers.write({servo.id: 0}, "torque_enable")
        registers.write_all(opened)
        if new_id != servo.id:
            registers.send({servo.id: new_id}, "id")
            sleep(_EEPROM_WRITE_S)
            registers = registers_of(link, new_id)
        rate = list(model.baud_rates).index(new_baud_rate)
        if registers.read_one(new_id, "baud_rate") != rate:
            registers.send({new_id: rate}, "baud_rate")
            sleep(_EEPROM_WRITE_S)
    with open_link(new_baud_rate) as link:
        registers = registers_of(link, new_id)
        registers.write({new_id: rate}, "baud_rate")  # verifies that it answers at that rate, by its new ID
        registers.write_all(closed)


def _registers_of(
    bus: ServoBus,
    family: ServoFamily,
    models: dict[int, ServoModel],
    clock: Callable[[], int],
    sleep: Callable[[float], None],
) -> ServoRegisters:
    registers = ServoRegisters(family, clock=clock, sleep=sleep)
    registers.attach(bus, models)
    return registers


def _describe(
    bus: ServoBus, family: ServoFamily, servo_id: int, number: int, baud_rate: int, clock: Callable[[], int]
) -> FoundServo:
    """Return what a servo says of itself, as far as we know its control table."""
    found = FoundServo(family.name, baud_rate, servo_id, number)
    try:
        model = family.find_model_number(number)
    except (UnknownNameError, ValueError):
        return found
    registers = _registers_of(bus, family, {servo_id: model}, clock, time.sleep)

    def value(name: str) -> float | None:
        raw = registers.read(name).get(servo_id)
        return None if raw is None else model.register(name).to_si(raw)

    torque = value("torque_enable")
    return FoundServo(
        family.name, baud_rate, servo_id, number, model.name, value("present_position"), value("present_input_voltage"),
        value("present_temperature"), None if torque is None else torque == 1,
    )  # fmt: skip
