"""Finding a serial port by the serial number of its USB adapter, which stays when the path changes."""

from __future__ import annotations

from dataclasses import dataclass

from serial.tools import list_ports

from dpg_robot.errors import LinkError

PREFIX = "usb:"


@dataclass(frozen=True)
class SerialPort:
    """A serial port of this computer.

    Attributes:
        path: for example ``/dev/ttyUSB0``.
        serial_number: of its USB adapter; empty if it has none.
        description: what the adapter calls itself.
    """

    path: str
    serial_number: str
    description: str


def list_serial_ports() -> list[SerialPort]:
    """Return the serial ports of this computer, in the order of their paths; built-in ports that are not there are left out."""
    ports = [
        SerialPort(info.device, info.serial_number or "", info.description or "")
        for info in list_ports.comports()
        if info.description != "n/a" or info.serial_number
    ]
    return sorted(ports, key=lambda port: port.path)


def find_port(port: str) -> str:
    """Return the path of a port, which may be given as ``usb:SERIAL``.

    Raises:
        LinkError: no adapter, or more than one, has this serial number.
    """
    if not port.startswith(PREFIX):
        return port
    number = port.removeprefix(PREFIX)
    ports = list_serial_ports()
    found = [candidate.path for candidate in ports if candidate.serial_number == number]
    if len(found) == 1:
        return found[0]
    known = ", ".join(f"{candidate.path} ({candidate.serial_number or 'no serial number'})" for candidate in ports) or "none"
    count = "no USB adapter has" if not found else f"{len(found)} USB adapters have"
    raise LinkError(f"{count} the serial number {number!r}; ports on this computer: {known}")
