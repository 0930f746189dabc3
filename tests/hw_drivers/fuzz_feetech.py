"""The decoders of Feetech packets under the fuzzers."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from typing import Any

from fuzz_target import HeaderTarget, Parsed, stretched

from hw_drivers.feetech import packets as feetech


class FeetechTarget(HeaderTarget):
    """What both ends of the STS and SCS protocol have in common. Byte orders play no part: frames hold no number of two bytes."""

    sum_bits = 8
    longest = feetech.MAX_FRAME_BYTES

    def seal(self, stream: bytes) -> bytes:
        """Give everything that has the shape of a frame the right check sum."""
        sealed = bytearray(stream)
        at = -1
        while (at := sealed.find(b"\xff\xff", at + 1)) >= 0:
            if at + 4 <= len(sealed) and 2 <= sealed[at + 3] <= len(sealed) - at - 4:
                end = at + 4 + sealed[at + 3]
                sealed[end - 1] = ~sum(sealed[at + 2 : end - 1]) & 0xFF
        return bytes(sealed)

    def resized(self, frame: bytes, draw: random.Random) -> bytes:
        """Return a frame with some bytes more or less at its end and the right length and check sum."""
        content = frame[4:5] + stretched(frame[5:-1], draw)
        return self.seal(frame[:3] + bytes([len(content) + 1 & 0xFF]) + content + b"\0")

    def _sum_is_right(self, frame: bytes) -> bool:
        return sum(frame[2:]) % 256 == 255

    def _counts(self, decoder: Any) -> tuple[int, ...]:
        return decoder.checksum_errors, decoder.resyncs

    def _right_sums(self, stream: bytes, parsed: Parsed) -> int:
        return self._right

    def parse(self, variant: int, stream: bytes) -> Parsed:
        """Count the frames with a right check sum too, which are not all meaningful."""
        self._right = 0
        return super().parse(variant, stream)

    def _is_meaningful(self, frame: bytes) -> bool:
        self._right += 1
        return self._means_something(frame[2], frame[4], frame[5:-1])

    def _means_something(self, servo_id: int, code: int, parameters: bytes) -> bool:
        raise NotImplementedError


class FeetechDevice(FeetechTarget):
    """Instruction packets."""

    name = "feetech-device"

    def frames(self, variant: int, draw: random.Random) -> list[bytes]:
        """Return instructions of all kinds."""
        return [self._packet(draw).to_bytes() for _ in range(draw.randrange(1, 12))]

    def planted(self, variant: int, draw: random.Random) -> bytes:
        """Return random bytes in the shape of a frame, check sum included, so that the check sum alone can tell."""
        content = draw.randbytes(draw.randrange(2, 12))
        return b"\xff\xff" + bytes([draw.randrange(253), len(content) + 2, 3, draw.randrange(200)]) + content

    def _packet(self, draw: random.Random) -> feetech.Instruction:
        ids, data = tuple(draw.sample(range(254), 3)), draw.randbytes(6)
        make: list[Callable[[], feetech.Instruction]] = [
            lambda: feetech.Ping(ids[0]),
            lambda: feetech.Read(ids[0], 56, 8),
            lambda: feetech.Write(ids[0], 42, data),
            lambda: feetech.RegWrite(ids[0], 42, data),
            lambda: feetech.Action(feetech.BROADCAST_ID),
            lambda: feetech.Reset(ids[0]),
            lambda: feetech.OffsetCalibration(ids[0], draw.choice((b"", data[:2]))),
            lambda: feetech.SyncRead(56, 8, ids),
            lambda: feetech.SyncWrite(42, tuple((servo, data) for servo in ids)),
        ]
        return draw.choice(make)()

    def _size(self, variant: int, stream: bytes, at: int, taken: Sequence[bytes]) -> int | None:
        begun = stream[at : at + 4]
        if not b"\xff\xff".startswith(begun[:2]) or (len(begun) > 2 and begun[2] == 0xFF):
            return None
        if len(begun) < 4:
            return 4
        return 4 + begun[3] if 2 <= begun[3] <= 246 else None

    def _means_something(self, servo_id: int, code: int, parameters: bytes) -> bool:
        count = len(parameters)
        address = parameters[0] if count else 0
        match code:
            case 0x01 | 0x05 | 0x0A:
                return count == 0
            case 0x0B:
                return count in (0, 2)
            case 0x02:
                return count == 2 and servo_id != 254 and self._is_span(address, parameters[1])
            case 0x03 | 0x04:
                return self._is_span(address, count - 1)
            case 0x82:
                ids = parameters[2:]
            case 0x83:
                ids = parameters[2 :: parameters[1] + 1] if count > 1 else b""
                if count < 2 or count - 2 != len(ids) * (parameters[1] + 1):
                    return False
            case _:
                return False
        valid = 0 < len(ids) == len(set(ids)) and max(ids) <= 253
        return servo_id == 254 and valid and self._is_span(address, parameters[1])

    def _is_span(self, address: int, size: int) -> bool:
        return 1 <= size <= min(244, 256 - address)

    def _decoder(self, variant: int) -> Any:
        return feetech.InstructionDecoder()


class FeetechHost(FeetechTarget):
    """Status packets that answer one request, with and without an echo of it."""

    name = "feetech-host"
    in_order = True
    requests: tuple[feetech.Instruction, ...] = (
        feetech.SyncRead(56, 8, tuple(range(1, 13))),
        feetech.SyncRead(56, 2, tuple(range(60, 0, -1))),
        feetech.Read(1, 56, 2),
        feetech.Ping(1),
        feetech.Write(feetech.BROADCAST_ID, 40, b"\x01"),
        feetech.Read(7, 0, 200),
    )
    variants = 2 * len(requests)

    def frames(self, variant: int, draw: random.Random) -> list[bytes]:
        """Return answers of some of the awaited servos."""
        request, _ = self._request(variant)
        return [
            feetech.Status(servo, feetech.ErrorFlag(draw.choice((0, 0, 1, 32))), draw.randbytes(request.answer_bytes)).to_bytes()
            for servo in request.answering_ids
            if draw.random() < 0.8
        ]

    def prologue(self, variant: int, draw: random.Random) -> bytes:
        """Return the echo of the request, whole or with bytes lost."""
        request, echo = self._request(variant)
        echoed = request.to_bytes() if echo else b""
        lost = draw.randrange(len(echoed)) if echoed and draw.random() < 0.5 else 0
        return echoed[lost:]

    def planted(self, variant: int, draw: random.Random) -> bytes:
        """Return random bytes in the shape of a frame, check sum included, so that the check sum alone can tell."""
        request, _ = self._request(variant)
        servo = draw.choice(request.answering_ids or (1,))
        return b"\xff\xff" + bytes([servo, request.answer_bytes + 2, 0]) + draw.randbytes(request.answer_bytes + 1)

    def _request(self, variant: int) -> tuple[feetech.Instruction, bool]:
        return self.requests[variant // 2], variant % 2 == 1

    def _begins(self, variant: int, stream: bytes) -> int:
        request, echo = self._request(variant)
        echoed = request.to_bytes() if echo else b""
        return min(len(echoed), len(stream)) if echoed.startswith(stream[: len(echoed)]) else 0

    def _size(self, variant: int, stream: bytes, at: int, taken: Sequence[bytes]) -> int | None:
        request, _ = self._request(variant)
        awaited = request.answering_ids[request.answering_ids.index(taken[-1][2]) + 1 :] if taken else request.answering_ids
        begun = stream[at : at + 4]
        if not b"\xff\xff".startswith(begun[:2]) or (len(begun) > 2 and begun[2] not in awaited):
            return None
        if len(begun) < 4:
            return 4
        return 6 + request.answer_bytes if begun[3] == request.answer_bytes + 2 else None

    def _means_something(self, servo_id: int, code: int, parameters: bytes) -> bool:
        return code < 128

    def _decoder(self, variant: int) -> Any:
        request, echo = self._request(variant)
        decoder = feetech.StatusDecoder(echo=echo)
        decoder.expect(request)
        return decoder
