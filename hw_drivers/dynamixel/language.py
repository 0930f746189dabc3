"""Dynamixel protocol 2.0 as the language of a :class:`~hw_drivers.servo_bus.ServoBus`."""

from __future__ import annotations

from collections.abc import Sequence

from hw_drivers.dynamixel.packets import Status, StatusDecoder, SyncRead, SyncWrite
from hw_drivers.servo_bus import BusAnswer

_OVERHEAD_BYTES = 11  # header, ID, length, instruction, error, CRC
_STUFFING_BYTES = 2  # more than a block of present values ever needs
_LONGEST_BLOCK = 64
_RETURN_DELAY_UNIT_NS = 2_000


class DynamixelLanguage:
    """Sync reads and sync writes of protocol 2.0.

    Args:
        return_delay: the servos' register ``return_delay_time``, the largest of all on the bus, in its units of 2 us.
    """

    id_address = 7
    overhead_bytes = _OVERHEAD_BYTES + _STUFFING_BYTES

    def __init__(self, return_delay: int = 250) -> None:
        self.return_delay_ns = return_delay * _RETURN_DELAY_UNIT_NS
        self._decoder = StatusDecoder(max_length=_LONGEST_BLOCK)

    @property
    def crc_errors(self) -> int:
        """Answers dropped because of their CRC."""
        return self._decoder.crc_errors

    def read(self, address: int, length: int, ids: Sequence[int]) -> bytes:
        """Return one request that all these servos answer, in this order."""
        return SyncRead.of(address, length, ids).to_bytes()

    def write(self, address: int, data: dict[int, bytes]) -> bytes:
        """Return one request that nobody answers; all data have the same length."""
        return SyncWrite.of(address, list(data.items())).to_bytes()

    def feed(self, data: bytes) -> list[BusAnswer]:
        """Take received bytes and return the answers that they complete."""
        packets = self._decoder.feed(data)
        return [BusAnswer(packet.id, packet.data, packet.error_byte) for packet in packets if isinstance(packet, Status)]

    def reset(self) -> None:
        """Forget an answer that has begun."""
        self._decoder.reset()
