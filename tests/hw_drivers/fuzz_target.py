"""A decoder as the fuzzers see it: what it is fed, an independent reference, and what must hold for any input.

An input is one byte that chooses a variant (the request awaited, the longest packet allowed) and the stream that the decoder
receives. ``Target.check`` feeds it at once and in random pieces and demands that

- nothing raises, and both ways give the same packets, counts and held bytes;
- the packets are those that the reference finds, a plain search of the whole stream at once;
- each packet encodes to exactly the bytes of the stream that it came from;
- the counts add up: each byte is part of a packet, part of a skipped piece (``resyncs`` of them) or held;
- never more bytes than those of one longest frame are held.
"""

from __future__ import annotations

import random
import zlib
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

Span = tuple[int, int]


class ViolationError(AssertionError):
    """A decoder does not keep what it promises."""


def demand(holds: bool, message: str) -> None:
    """Raise ViolationError unless ``holds``; unlike ``assert`` also under ``python -O``."""
    if not holds:
        raise ViolationError(message)


@dataclass(frozen=True)
class Parsed:
    """What the reference finds in a stream.

    Attributes:
        frames: where each frame begins and ends.
        begins: where the search for frames begins.
        checked: complete frames, right or wrong, whose check sum had to be looked at.
    """

    frames: list[Span]
    begins: int
    checked: int


def in_pieces(stream: bytes, draw: random.Random) -> Iterator[bytes]:
    """Cut a stream at random places."""
    at = 0
    while at < len(stream):
        size = draw.choice((1, 1, 2, 3, 7, 64, 1100))
        yield stream[at : at + size]
        at += size


def stretched(content: bytes, draw: random.Random) -> bytes:
    """Cut some bytes off, or add some."""
    count = draw.randrange(1, 9)
    return content[:-count] if draw.random() < 0.5 else content + draw.randbytes(count)


class Target(ABC):
    """A decoder under test.

    Attributes:
        name: what it is called on the command line.
        sum_bits: width of the check sum.
        longest: most bytes that may be held.
        variants: number of ways to set it up.
        in_order: a frame that is accepted may close the door to frames before it in the order asked.
    """

    name: str
    sum_bits: int
    longest: int
    variants = 1
    in_order = False

    @abstractmethod
    def frames(self, variant: int, draw: random.Random) -> list[bytes]:
        """Return frames, as encoded by the other side, that this decoder accepts one after the other."""

    def prologue(self, variant: int, draw: random.Random) -> bytes:
        """Return what comes before everything else."""
        return b""

    @abstractmethod
    def planted(self, variant: int, draw: random.Random) -> bytes:
        """Return random bytes in the shape of a frame, check sum included, so that the check sum alone can tell."""

    @abstractmethod
    def resized(self, frame: bytes, draw: random.Random) -> bytes:
        """Return a frame with some bytes more or less at its end and the right length and check sum."""

    @abstractmethod
    def seal(self, stream: bytes) -> bytes:
        """Give everything that has the shape of a frame the right check sum."""

    @abstractmethod
    def parse(self, variant: int, stream: bytes) -> Parsed:
        """Find the frames by searching the whole stream."""

    @abstractmethod
    def check(self, data: bytes) -> Parsed:
        """Run one input, variant byte first. Raises ViolationError, or whatever the decoder raised."""

    def intact(self, start: int, end: int) -> Span:
        """Return where ``parse`` reports a frame that was put at ``start`` to ``end``."""
        return start, end


class HeaderTarget(Target):
    """A servo protocol: frames that begin with a header and tell their length."""

    def parse(self, variant: int, stream: bytes) -> Parsed:
        """Take every frame that is one, and go on one byte further wherever there is none."""
        at = begins = self._begins(variant, stream)
        frames: list[Span] = []
        checked = 0
        while at < len(stream):
            size = self._size(variant, stream, at, [stream[start:end] for start, end in frames] if self.in_order else [])
            if size is not None and at + size > len(stream):
                break  # perhaps a frame when more comes
            if size is None or not self._sum_is_right(stream[at : at + size]):
                checked += size is not None
                at += 1
                continue
            checked += 1
            if self._is_meaningful(stream[at : at + size]):
                frames.append((at, at + size))
                at += size
            else:
                at += 1
        return Parsed(frames, begins, checked)

    def check(self, data: bytes) -> Parsed:
        """Run one input, variant byte first. Raises ViolationError, or whatever the decoder raised."""
        variant, stream = data[0] % self.variants, data[1:]
        parsed = self.parse(variant, stream)
        decoder, again = self._decoder(variant), self._decoder(variant)
        packets = decoder.feed(stream)
        packets_again = []
        for piece in in_pieces(stream, random.Random(zlib.crc32(data))):
            packets_again += again.feed(piece)
            demand(len(again._buffer) <= self.longest, f"{len(again._buffer)} bytes held, at most {self.longest} are needed")
        demand(packets == packets_again, f"at once {packets}, in pieces {packets_again}")
        demand(self._counts(decoder) == self._counts(again), f"at once {self._counts(decoder)}, in pieces {self._counts(again)}")
        expected = [stream[start:end] for start, end in parsed.frames]
        demand(len(packets) == len(expected), f"got {packets}, the reference finds {[frame.hex() for frame in expected]}")
        for packet, frame in zip(packets, expected, strict=True):
            self._same(packet, frame)
        self._adds_up(decoder, stream, parsed)
        return parsed

    def _adds_up(self, decoder: Any, stream: bytes, parsed: Parsed) -> None:
        held = bytes(decoder._buffer)
        demand(stream.endswith(held) and len(held) <= self.longest, f"holds {held.hex()}, which is not how the stream ends")
        edges = [(parsed.begins, parsed.begins), *parsed.frames, (len(stream) - len(held), len(stream))]
        if parsed.begins == len(stream):
            edges = []
        gaps = sum(end < start for (_, end), (start, _) in pairwise(edges))
        demand(decoder.resyncs == gaps, f"resyncs is {decoder.resyncs}, {gaps} pieces belong to no frame")
        wrong, errors = parsed.checked - self._right_sums(stream, parsed), self._counts(decoder)[0]
        demand(errors == wrong, f"{errors} wrong check sums counted, the reference finds {wrong}")

    def _right_sums(self, stream: bytes, parsed: Parsed) -> int:
        return len(parsed.frames)

    def _begins(self, variant: int, stream: bytes) -> int:
        return 0

    def _is_meaningful(self, frame: bytes) -> bool:
        return True

    def _same(self, packet: Any, frame: bytes) -> None:
        demand(packet.to_bytes() == frame, f"{packet} is {packet.to_bytes().hex()}, received was {frame.hex()}")

    @abstractmethod
    def _size(self, variant: int, stream: bytes, at: int, taken: Sequence[bytes]) -> int | None:
        """Return how many bytes a frame has that begins here, more than there are if that is not yet known; None if none can."""

    @abstractmethod
    def _sum_is_right(self, frame: bytes) -> bool: ...

    @abstractmethod
    def _decoder(self, variant: int) -> Any: ...

    @abstractmethod
    def _counts(self, decoder: Any) -> tuple[int, ...]:
        """Return the counters, wrong check sums first."""
