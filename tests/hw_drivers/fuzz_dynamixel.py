"""The decoders of Dynamixel packets under the fuzzers."""

from __future__ import annotations

import random
import struct
from collections.abc import Callable, Sequence
from typing import Any

from fuzz_target import HeaderTarget, stretched

from hw_drivers.dynamixel import packets as dynamixel


class DynamixelTarget(HeaderTarget):
    """What both ends of protocol 2.0 have in common."""

    sum_bits = 16
    longest = 7 + dynamixel.MAX_LENGTH
    variants = 2
    shortest_length: int
    decoder_class: type[dynamixel.StatusDecoder | dynamixel.InstructionDecoder]

    def seal(self, stream: bytes) -> bytes:
        """Give everything that has the shape of a frame the right check sum."""
        sealed = bytearray(stream)
        at = -1
        while (at := sealed.find(dynamixel.HEADER, at + 1)) >= 0:
            end = at + 7 + int.from_bytes(sealed[at + 5 : at + 7], "little")
            if at + 10 <= end <= min(len(sealed), at + self.longest):
                sealed[end - 2 : end] = struct.pack("<H", dynamixel.crc16(bytes(sealed[at : end - 2])))
        return bytes(sealed)

    def planted(self, variant: int, draw: random.Random) -> bytes:
        """Return random bytes in the shape of a frame, check sum included, so that the check sum alone can tell."""
        longest = self._most(variant) + 1  # one too long
        length = draw.randrange(self.shortest_length, 30) if draw.random() < 0.98 else draw.choice((longest - 1, longest))
        content = draw.randbytes(length - 1)
        return dynamixel.HEADER + struct.pack("<BHB", draw.randrange(253), len(content) + 1, self._code(draw)) + content

    def resized(self, frame: bytes, draw: random.Random) -> bytes:
        """Return a frame with some bytes more or less at its end and the right length and check sum."""
        content = frame[7:8] + stretched(frame[8:-2], draw)
        return self.seal(frame[:5] + struct.pack("<H", len(content) + 2) + content + bytes(2))

    def _most(self, variant: int) -> int:
        return 1024 if variant == 0 else 40

    def _content(self, count: int, draw: random.Random) -> bytes:
        """Return random bytes, now and then such as headers consist of."""
        return draw.randbytes(count) if draw.random() < 0.9 else bytes(draw.choices(b"\xff\xfd\x00", (5, 3, 1), k=count))

    def _code(self, draw: random.Random) -> int:
        return draw.choice(list(dynamixel.Instruction))

    def _is_ours(self, instruction: int) -> bool:
        raise NotImplementedError

    def _size(self, variant: int, stream: bytes, at: int, taken: Sequence[bytes]) -> int | None:
        header = stream[at : at + 4]
        if not b"\xff\xff\xfd\x00".startswith(header):
            return None
        if len(stream) - at < 8:
            return 8
        servo_id, length, instruction = struct.unpack_from("<BHB", stream, at + 4)
        allowed = (
            servo_id not in (253, 255) and self.shortest_length <= length <= self._most(variant) and self._is_ours(instruction)
        )
        return 7 + length if allowed else None

    def _sum_is_right(self, frame: bytes) -> bool:
        return dynamixel.crc16(frame[:-2]).to_bytes(2, "little") == frame[-2:]

    def _decoder(self, variant: int) -> Any:
        return self.decoder_class() if variant == 0 else self.decoder_class(40)

    def _counts(self, decoder: Any) -> tuple[int, ...]:
        return decoder.crc_errors, decoder.resyncs, decoder.packets

    def _same(self, packet: Any, frame: bytes) -> None:
        """No servo sends a packet with ``FF FF FD`` in it and no extra ``FD`` behind; it is taken all the same."""
        is_stuffed = b"\xff\xff\xfd" not in frame[7:-2].replace(b"\xff\xff\xfd\xfd", b"....")
        if is_stuffed or isinstance(packet, dynamixel.FastStatus):
            super()._same(packet, frame)


class DynamixelHost(DynamixelTarget):
    """Status packets."""

    name = "dynamixel-host"
    shortest_length = 4
    decoder_class = dynamixel.StatusDecoder

    def frames(self, variant: int, draw: random.Random) -> list[bytes]:
        """Return answers of one and of several servos."""
        return [self._frame(draw) for _ in range(draw.randrange(1, 12))]

    def _frame(self, draw: random.Random) -> bytes:
        parts = [
            dynamixel.Status(
                draw.randrange(253), draw.randrange(8), draw.random() < 0.1, self._content(draw.choice((0, 4, 6)), draw)
            )
            for _ in range(draw.choice((1, 3)))
        ]
        return parts[0].to_bytes() if len(parts) == 1 else dynamixel.FastStatus.of(parts).to_bytes()

    def _code(self, draw: random.Random) -> int:
        return dynamixel.Instruction.STATUS

    def _is_ours(self, instruction: int) -> bool:
        return instruction == 0x55


class DynamixelDevice(DynamixelTarget):
    """Instruction packets."""

    name = "dynamixel-device"
    shortest_length = 3
    decoder_class = dynamixel.InstructionDecoder

    def frames(self, variant: int, draw: random.Random) -> list[bytes]:
        """Return instructions of all kinds."""
        return [self._packet(draw).to_bytes() for _ in range(draw.randrange(1, 12))]

    def _packet(self, draw: random.Random) -> dynamixel.InstructionPacket:
        ids, data = sorted(draw.sample(range(253), 3)), self._content(4, draw)
        make: list[Callable[[], dynamixel.InstructionPacket]] = [
            lambda: dynamixel.Ping(ids[0]),
            lambda: dynamixel.Read(ids[0], 132, 4),
            lambda: dynamixel.Write(ids[0], 116, data),
            lambda: dynamixel.RegWrite(ids[0], 116, data),
            lambda: dynamixel.Action(dynamixel.BROADCAST_ID),
            lambda: dynamixel.FactoryReset(ids[0], dynamixel.ResetOption.ALL_BUT_ID),
            lambda: dynamixel.Reboot(ids[0]),
            lambda: dynamixel.Clear(ids[0]),
            lambda: dynamixel.SyncRead.of(132, 4, ids),
            lambda: dynamixel.FastSyncRead.of(132, 4, ids),
            lambda: dynamixel.SyncWrite.of(116, [(servo, data) for servo in ids]),
            lambda: dynamixel.BulkRead.of([(servo, 132, 4) for servo in ids]),
            lambda: dynamixel.FastBulkRead.of([(servo, 132, 4) for servo in ids]),
            lambda: dynamixel.BulkWrite.of([(servo, 116, data) for servo in ids]),
            lambda: dynamixel.OtherInstruction(ids[0], draw.choice((0x20, 0xFF)), data),
        ]
        return draw.choice(make)()

    def _is_ours(self, instruction: int) -> bool:
        return instruction != 0x55
