"""Feetech's STS protocol as the language of a :class:`~hw_drivers.servo_bus.ServoBus`."""

from __future__ import annotations

from collections.abc import Sequence

from hw_drivers.feetech.packets import Instruction, StatusDecoder, SyncRead, SyncWrite
from hw_drivers.servo_bus import BusAnswer

_RETURN_DELAY_UNIT_NS = 2_000


class FeetechLanguage:
    """Sync reads and sync writes of STS servos; SCS servos have no sync read.

    Answers are weakly protected (see :mod:`hw_drivers.feetech.packets`), so none but those that are awaited are looked for.

    Args:
        return_delay: the servos' register ``return_delay_time``, the largest of all on the bus, in its units of 2 us.
        echo: whether the adapter receives what it sends.
    """

    id_address = 5
    overhead_bytes = 6

    def __init__(self, return_delay: int = 250, *, echo: bool = False) -> None:
        self.return_delay_ns = return_delay * _RETURN_DELAY_UNIT_NS
        self._decoder = StatusDecoder(echo=echo, repeats=True)  # the bus tells which of two answers it believes: none

    @property
    def crc_errors(self) -> int:
        """Answers dropped because of their check sum."""
        return self._decoder.checksum_errors

    def read(self, address: int, length: int, ids: Sequence[int]) -> bytes:
        """Return one request that all these servos answer, in this order."""
        return self._expect(SyncRead(address, length, tuple(ids)))

    def write(self, address: int, data: dict[int, bytes]) -> bytes:
        """Return one request that nobody answers; all data have the same length."""
        return SyncWrite(address, tuple(data.items())).to_bytes()

    def feed(self, data: bytes) -> list[BusAnswer]:
        """Take received bytes and return the answers that they complete."""
        return [BusAnswer(packet.servo_id, packet.data, int(packet.error)) for packet in self._decoder.feed(data)]

    def reset(self) -> None:
        """Forget an answer that has begun."""
        self._decoder.reset()

    def _expect(self, instruction: Instruction) -> bytes:
        self._decoder.expect(instruction)
        return instruction.to_bytes()
