"""Ways to read all servos of a bus: our driver, and the vendors' libraries in their usual use."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any

from hw_drivers.benchmarks.families import DYNAMIXEL, FEETECH, Family
from hw_drivers.benchmarks.transport import Transport
from hw_drivers.servo_bus import ServoBus

DEADLINE_NS = 5_000_000
"""Time that our driver is given for a read. The vendors' libraries take no deadline."""

Read = Callable[[], Mapping[int, bytes]]
"""Reads all servos once; returns the bytes that it takes for valid, by ID."""


@dataclass(frozen=True)
class Reader:
    """One way to read.

    Attributes:
        name: of the way; that of our driver begins with "ours".
        family: which servos it reads.
        open: makes the function that reads, from a transport and the IDs.
    """

    name: str
    family: Family
    open: Callable[[Transport, Sequence[int]], Read]

    @property
    def missing(self) -> str:
        """What to install first; empty if nothing."""
        ours = self.name.startswith("ours")
        return "" if ours or find_spec(self.family.sdk) is not None else f"pip install {self.family.package}"


def _ours(family: Family, **settings: float) -> Callable[[Transport, Sequence[int]], Read]:
    def open_bus(transport: Transport, ids: Sequence[int]) -> Read:
        bus = ServoBus(transport.link(), family.language(0), ids, clock=transport.now_ns, **settings)
        address, length = family.stamp
        return lambda: bus.read(address, length, transport.now_ns() + DEADLINE_NS)

    return open_bus


def _group(family: Family, protocol: Any, *, checked: bool) -> Callable[[Transport, Sequence[int]], Read]:
    """Return the reader with GroupSyncRead; unless ``checked``, a failed read is reported only, and what is available counts."""

    def open_group(transport: Transport, ids: Sequence[int]) -> Read:
        sdk = importlib.import_module(family.sdk)
        address, length = family.stamp
        group = sdk.GroupSyncRead(transport.vendor_port(family), sdk.PacketHandler(protocol), address, length)
        for servo in ids:
            if not group.addParam(servo):
                raise ValueError(f"{family.package} does not take the ID {servo}")

        def read() -> dict[int, bytes]:
            if group.txRxPacket() != sdk.COMM_SUCCESS and checked:
                return {}
            available = [servo for servo in ids if group.isAvailable(servo, address, length)]
            return {servo: group.getData(servo, address, length).to_bytes(length, "little") for servo in available}

        return read

    return open_group


def _single(family: Family, protocol: Any) -> Callable[[Transport, Sequence[int]], Read]:
    """Return the reader with one read for each servo."""

    def open_single(transport: Transport, ids: Sequence[int]) -> Read:
        sdk = importlib.import_module(family.sdk)
        port, handler, (address, length) = transport.vendor_port(family), sdk.PacketHandler(protocol), family.stamp

        def read() -> dict[int, bytes]:
            answers = {servo: handler.read4ByteTxRx(port, servo, address) for servo in ids}
            return {
                servo: value.to_bytes(length, "little")
                for servo, (value, result, _) in answers.items()
                if result == sdk.COMM_SUCCESS
            }

        return read

    return open_single


_DYNAMIXEL_PROTOCOL, _FEETECH_LITTLE_ENDIAN = 2.0, 0
READERS = (
    Reader("ours", DYNAMIXEL, _ours(DYNAMIXEL)),
    Reader("ours, longest_delay_s=0.4", DYNAMIXEL, _ours(DYNAMIXEL, longest_delay_s=0.4)),
    Reader("dynamixel-sdk, GroupSyncRead", DYNAMIXEL, _group(DYNAMIXEL, _DYNAMIXEL_PROTOCOL, checked=True)),
    Reader("dynamixel-sdk, single reads", DYNAMIXEL, _single(DYNAMIXEL, _DYNAMIXEL_PROTOCOL)),
    Reader("ours", FEETECH, _ours(FEETECH)),
    Reader("ours, longest_delay_s=0.4", FEETECH, _ours(FEETECH, longest_delay_s=0.4)),
    Reader("feetech-servo-sdk, GroupSyncRead", FEETECH, _group(FEETECH, _FEETECH_LITTLE_ENDIAN, checked=True)),
    Reader(
        "feetech-servo-sdk, GroupSyncRead as in its examples", FEETECH, _group(FEETECH, _FEETECH_LITTLE_ENDIAN, checked=False)
    ),
    Reader("feetech-servo-sdk, single reads", FEETECH, _single(FEETECH, _FEETECH_LITTLE_ENDIAN)),
)
