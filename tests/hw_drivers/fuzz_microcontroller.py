"""The decoder of the microcontroller protocol under the fuzzers."""

from __future__ import annotations

import random
import zlib
from collections.abc import Callable, Iterator

import numpy as np
from cobs import cobs
from fuzz_target import Parsed, Span, Target, demand, in_pieces, stretched

from dpg_robot.contract import CommandChannel, MeasurementChannel
from dpg_robot.deploy.robot import DeviceFlag
from hw_drivers import microcontroller


class Microcontroller(Target):
    """All messages of the microcontroller protocol."""

    name = "microcontroller"
    sum_bits = 32
    longest = 1029

    def frames(self, variant: int, draw: random.Random) -> list[bytes]:
        """Return messages of all types."""
        return [self._frame(draw).to_bytes() for _ in range(draw.randrange(1, 12))]

    def planted(self, variant: int, draw: random.Random) -> bytes:
        """Return random bytes in the shape of a frame, check sum included, so that the check sum alone can tell."""
        if draw.random() < 0.02:
            return self._without_zeros(draw)
        stuffed: bytes = cobs.encode(b"\x01\x05" + draw.randbytes(8 + 4 * draw.randrange(6)))
        return b"\0" + stuffed + b"\0"

    def resized(self, frame: bytes, draw: random.Random) -> bytes:
        """Return a frame with some bytes more or less at its end and the right length and check sum."""
        if draw.random() < 0.2:
            return self.seal(self._without_zeros(draw))
        body = unstuffed(frame[1:-1])
        assert body is not None
        return b"\0" + self._sealed(cobs.encode(body[:2] + stretched(body[2:-4], draw) + bytes(4))) + b"\0"

    def _without_zeros(self, draw: random.Random) -> bytes:
        """Return a long State or Command in the longest blocks that the stuffing knows; a few are just as long as allowed."""
        head = draw.choice((b"\x01\x82\1\1\1\1\1\1", b"\x01\x05"))
        stuffed: bytes = cobs.encode(head + bytes(draw.choices(range(1, 256), k=draw.choice((252, 256, 1016, 1020)))))
        return b"\0" + stuffed + b"\0"

    def seal(self, stream: bytes) -> bytes:
        """Give everything that has the shape of a frame the right check sum."""
        return b"\0".join(self._sealed(segment) for segment in stream.split(b"\0"))

    def intact(self, start: int, end: int) -> Span:
        """Leave the delimiters out."""
        return start + 1, end - 1

    def parse(self, variant: int, stream: bytes) -> Parsed:
        """Look at each piece between two delimiters."""
        frames, checked = [], 0
        for start, end in self._segments(stream):
            body = unstuffed(stream[start:end])
            if body is not None and len(body) >= 10 and end - start <= 1029:
                checked += 1
                if zlib.crc32(body[:-4]).to_bytes(4, "little") == body[-4:] and fits_the_protocol(body[:-4]):
                    frames.append((start, end))
        return Parsed(frames, 0, checked)

    def check(self, data: bytes) -> Parsed:
        """Run one input, variant byte first. Raises ViolationError, or whatever the decoder raised."""
        stream = data[1:]
        parsed = self.parse(0, stream)
        decoder, again = microcontroller.Decoder(), microcontroller.Decoder()
        frames, frames_again = decoder.feed(stream), []
        for piece in in_pieces(stream, random.Random(zlib.crc32(data))):
            frames_again += again.feed(piece)
            demand(len(again._buffer) <= self.longest, f"{len(again._buffer)} bytes held, at most {self.longest} are needed")
        demand(repr(frames) == repr(frames_again), f"at once {frames}, in pieces {frames_again}")
        demand(decoder.faults == again.faults, f"at once {decoder.faults}, in pieces {again.faults}")
        held = stream[stream.rfind(b"\0") + 1 :]
        demand(decoder._buffer in (held, b""), f"holds {decoder._buffer.hex()}, the stream ends with {held.hex()}")
        demand(decoder.bytes_received == len(stream), "bytes_received is not what was fed")
        pieces = sum(1 for _ in self._segments(stream))
        demand(len(frames) + decoder.faults.total() == pieces, f"{pieces} pieces, {len(frames)} frames, {decoder.faults}")
        expected = [stream[start:end] for start, end in parsed.frames]
        demand(len(frames) == len(expected), f"got {frames}, the reference finds {[frame.hex() for frame in expected]}")
        for frame, stuffed in zip(frames, expected, strict=True):
            body = unstuffed(stuffed)
            assert body is not None
            demand(unstuffed(frame.to_bytes()[1:-1]) == quieted(body), f"{frame} does not encode to {body.hex()}")
        return parsed

    def _frame(self, draw: random.Random) -> microcontroller.Frame:
        sequence, time_us = draw.randrange(1, 2**32), draw.randrange(2**40)
        values = tuple(draw.uniform(-1, 1) for _ in range(draw.choice((0, 2, 5, 70))))
        flags = DeviceFlag(draw.randrange(16))
        measurement, command = MeasurementChannel("angle", "rad"), CommandChannel("torque", "N m", -1.0, 1.0)
        make: list[Callable[[], microcontroller.Frame]] = [
            lambda: microcontroller.Hello(sequence),
            lambda: microcontroller.Enable(sequence),
            lambda: microcontroller.Disable(sequence),
            lambda: microcontroller.ReadState(sequence),
            lambda: microcontroller.Command(sequence, values),
            lambda: microcontroller.Identity(sequence, time_us, 60_000, "arm", "1.0", (measurement,), (command,)),
            lambda: microcontroller.State(sequence, time_us, flags, sequence - 1, values),
            lambda: microcontroller.Ack(sequence, time_us),
            lambda: microcontroller.Nack(sequence, time_us, draw.choice(list(microcontroller.NackReason))),
        ]
        return draw.choice(make)()

    def _segments(self, stream: bytes) -> Iterator[Span]:
        start = 0
        while (end := stream.find(b"\0", start)) >= 0:
            if end > start:
                yield start, end
            start = end + 1

    def _sealed(self, segment: bytes) -> bytes:
        body = unstuffed(segment)
        if body is None or len(body) < 4:
            return segment
        sealed: bytes = cobs.encode(body[:-4] + zlib.crc32(body[:-4]).to_bytes(4, "little"))
        return sealed


def unstuffed(segment: bytes) -> bytes | None:
    """Undo the byte stuffing as Cheshire and Baker describe it; None if it is none."""
    body, at = bytearray(), 0
    while at < len(segment):
        code = segment[at]
        block = segment[at + 1 : at + code]
        if code == 0 or len(block) < code - 1:
            return None
        at += code
        body += block if code == 255 or at == len(segment) else block + b"\0"
    return bytes(body)


def fits_the_protocol(body: bytes) -> bool:
    """Say whether the body without its CRC is a message of version 1; see docs/microcontroller-protocol.md."""
    version, kind, payload = body[0], body[1], body[6:]
    if version != 1:
        return False
    match kind:
        case 0x01 | 0x02 | 0x03 | 0x04:
            return not payload
        case 0x05:
            return len(payload) % 4 == 0
        case 0x81:
            return is_identity(payload)
        case 0x82:
            return len(payload) >= 14 and len(payload) % 4 == 2
        case 0x83:
            return len(payload) == 8
        case 0x84:
            return len(payload) == 9 and 1 <= payload[8] <= 6
        case _:
            return False


def is_identity(payload: bytes) -> bool:
    """Say whether these are a time, a watchdog time, two counts and as many texts and limits as they say."""
    if len(payload) < 14:
        return False
    at = 14
    for is_limits in [False] * 2 + [False] * 2 * payload[12] + [False, False, True] * payload[13]:
        size = 8 if is_limits else 1 + payload[at] if at < len(payload) else 1
        piece = payload[at : at + size]
        if len(piece) < size or (not is_limits and not is_text(piece[1:])):
            return False
        at += size
    return at == len(payload)


def is_text(data: bytes) -> bool:
    """Say whether the bytes are UTF-8."""
    try:
        data.decode()
    except UnicodeDecodeError:
        return False
    return True


def quieted(body: bytes) -> bytes:
    """Set the quiet bit of numbers that are not a number: processors do, when they convert between float32 and float64."""
    start = {0x05: 6, 0x82: 20}.get(body[1])
    if start is None:
        return body
    values = np.frombuffer(body[start:-4], "<u4").copy()
    values[(values & 0x7FFFFFFF) > 0x7F800000] |= 0x00400000
    content = body[:start] + values.tobytes()
    return content + zlib.crc32(content).to_bytes(4, "little")
