"""Registers of the servos of a bus by name: read, written, and read back, for set-up and start. Not for the ticks of a loop."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence

from dpg_robot.errors import LinkError, LinkTimeoutError
from hw_drivers.servo_bus import ServoBus
from hw_drivers.servo_family import ServoFamily, ServoModel, ServoRegister

_READ_TIMEOUT_S = 0.25
_EXCHANGE_S = 0.02
_WRITE_TIMEOUT_S = 0.05
_ATTEMPTS = 3
_EEPROM_WRITE_S = 0.01  # a servo may not answer while it writes


class ServoRegisters:
    """Registers of several servos; numbers are raw.

    Args:
        family: the servos' family.
        clock: monotonic time, ns; the bus's.
        sleep: lets time pass, s.
    """

    def __init__(
        self,
        family: ServoFamily,
        *,
        clock: Callable[[], int] = time.monotonic_ns,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self._family, self._clock, self._sleep = family, clock, sleep
        self._bus: ServoBus | None = None
        self._models: dict[int, ServoModel] = {}

    def attach(self, bus: ServoBus, models: Mapping[int, ServoModel]) -> None:
        """Use these servos, given by ID, from now on."""
        self._bus, self._models = bus, dict(models)

    def read(self, name: str, timeout_s: float = _READ_TIMEOUT_S, ids: Sequence[int] | None = None) -> dict[int, int]:
        """Return a register of all servos, or of ``ids``, that answer within ``timeout_s``."""
        wanted = list(self._models if ids is None else ids)
        values: dict[int, int] = {}
        for register, group in self._by_register(name, wanted):
            read = self._read_bytes(register.address, register.size, group, timeout_s)
            values |= {servo_id: self._models[servo_id].register(name).decode(data) for servo_id, data in read.items()}
        return values

    def read_one(self, servo_id: int, name: str) -> int:
        """Return a register of one servo. Raises LinkTimeoutError if it does not answer."""
        values = self.read(name, ids=[servo_id])
        if servo_id not in values:
            raise LinkTimeoutError(f"servo {servo_id} did not answer when asked for {name!r}; check its cable and power")
        return values[servo_id]

    def send(self, values: Mapping[int, int], name: str) -> None:
        """Write a register of some servos and leave it at that."""
        for register, group in self._by_register(name, values):
            data = {servo_id: register.encode(values[servo_id]) for servo_id in group}
            self._send_bytes(register.address, data)

    def try_write(self, values: Mapping[int, int], name: str) -> list[int]:
        """Write a register once and return the servos that do not have the number then."""
        self.send(values, name)
        read = self.read(name, ids=list(values))
        return [servo_id for servo_id, value in values.items() if read.get(servo_id) != value]

    def write(self, values: Mapping[int, int], name: str) -> None:
        """Write a register of the servos in which it differs. Raises LinkError naming those that do not take it."""
        present = self.read(name, ids=list(values))
        left = [servo_id for servo_id, value in values.items() if present.get(servo_id) != value]
        for _ in range(_ATTEMPTS):
            if not left:
                return
            left = self.try_write({servo_id: values[servo_id] for servo_id in left}, name)
        if left:
            present = self.read(name, ids=left)
            got = "; ".join(
                f"servo {servo_id}: {values[servo_id]} was written, {present.get(servo_id, 'no answer')} is there"
                for servo_id in left
            )
            raise LinkError(
                f"register {name!r} was not taken ({got}). Is the number within the servo's limits, and its power on?"
            )

    def write_all(self, setting: tuple[str, int] | None) -> None:
        """Write the same number into a register of all servos; None writes nothing. Raises LinkError as :meth:`write`."""
        if setting is not None:
            name, value = setting
            self.write(dict.fromkeys(self._models, value), name)

    def write_lasting(self, settings: Mapping[int, Mapping[str, int]]) -> None:
        """Write registers that outlast the power, where they differ, with the torque of these servos off.

        Raises:
            LinkError: a servo does not take a number.
        """
        names = dict.fromkeys(name for registers in settings.values() for name in registers)
        for name in names:
            wanted = {servo_id: registers[name] for servo_id, registers in settings.items() if name in registers}
            present = self.read(name, ids=list(wanted))
            different = {servo_id: value for servo_id, value in wanted.items() if present.get(servo_id) != value}
            if not different:
                continue
            self.write(dict.fromkeys(different, 0), "torque_enable")
            self._unlocked(different, name)

    def prepare(self) -> None:
        """Write what the family needs before its block can be read, where it is not there yet. Raises LinkError."""
        for servo_id, model in self._models.items():
            for address, data in self._family.preparation(model):
                if self._read_bytes(address, len(data), [servo_id], _READ_TIMEOUT_S).get(servo_id) == data:
                    continue
                self.write({servo_id: 0}, "torque_enable")
                self._send_bytes(address, {servo_id: data})
                if self._read_bytes(address, len(data), [servo_id], _READ_TIMEOUT_S).get(servo_id) != data:
                    raise LinkError(f"servo {servo_id} did not take what gathers its present values (from address {address})")

    def _unlocked(self, values: Mapping[int, int], name: str) -> None:
        opened, closed = self._family.unlock(locked=False), self._family.unlock(locked=True)
        try:
            if opened is not None:
                self.write(dict.fromkeys(values, opened[1]), opened[0])
            self.send(values, name)
            self._sleep(_EEPROM_WRITE_S)
            self.write(values, name)
        finally:
            if closed is not None:
                self.write(dict.fromkeys(values, closed[1]), closed[0])

    def _by_register(self, name: str, ids: Sequence[int] | Mapping[int, int]) -> list[tuple[ServoRegister, list[int]]]:
        """Return the servos by where they keep a register."""
        groups: dict[tuple[int, int], tuple[ServoRegister, list[int]]] = {}
        for servo_id in ids:
            register = self._models[servo_id].register(name)
            groups.setdefault((register.address, register.size), (register, []))[1].append(servo_id)
        return list(groups.values())

    def _read_bytes(self, address: int, length: int, ids: Sequence[int], timeout_s: float) -> dict[int, bytes]:
        bus, left, found = self._open(), list(ids), dict[int, bytes]()
        until_ns = self._clock() + round(timeout_s * 1e9)
        while left and self._clock() < until_ns:
            deadline_ns = self._clock() + round((_EXCHANGE_S + len(left) * 0.002) * 1e9)
            found |= bus.read(address, length, min(deadline_ns, until_ns), ids=left)
            left = [servo_id for servo_id in left if servo_id not in found]
        return found

    def _send_bytes(self, address: int, data: dict[int, bytes]) -> None:
        self._open().write(address, data, self._clock() + round(_WRITE_TIMEOUT_S * 1e9))

    def _open(self) -> ServoBus:
        if self._bus is None:
            raise LinkError("no bus; connect first")
        return self._bus
