"""Reading a segment file while it is written: whole records only, until it is sure that the file will not change any more.

The log writer hands whole MCAP records to the operating system, but a reader may see half of a write, and when a write fails the
writer cuts the file back to where the write began. So only what lies before a moment in which the file ended with a whole
record is taken. A segment is closed when nobody has it open for writing, which the kernel knows: it grants a read lease only
then. What a closed file holds behind its last whole record is taken too, because a cut-off chunk holds whole messages.
"""

from __future__ import annotations

import bisect
import errno
import fcntl
import hashlib
import os
import time
from dataclasses import dataclass
from pathlib import Path

from mcap.opcode import Opcode
from mcap.writer import MCAP0_MAGIC

from dpg_robot.shipping.mcap_walk import PREFIX, Ticks, count_ticks, record_length
from dpg_robot.shipping.piece import PIECE_BYTES, Seal

IDLE_S = 60.0
_BLOCK_BYTES = 1024**2


@dataclass(frozen=True)
class Span:
    """Bytes of a segment file; ``seal`` is set when they are its last and the file will not change any more."""

    offset: int
    data: bytes
    ticks: Ticks
    seal: Seal | None


class SegmentFollower:
    """Reads one segment file as it grows.

    Attributes:
        path: the file.
    """

    def __init__(self, path: Path, *, idle_s: float = IDLE_S) -> None:
        """Open the file.

        Args:
            path: the file.
            idle_s: on a file system without leases, a file that did not change for so long counts as closed, seconds.

        Raises:
            OSError: when it cannot be opened.
        """
        self.path = path
        self._idle_s = idle_s
        self._descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        self._ends: list[int] = []  # of all whole records, and of the magic before the first
        self._settled_bytes = 0
        self._changed: tuple[int, float] = (-1, 0.0)  # size, and when it was first seen, seconds

    def read(self, offset: int, max_bytes: int = PIECE_BYTES, *, has_successor: bool = False) -> Span | None:
        """Return what can be taken at ``offset``, None if there is nothing yet.

        Args:
            offset: where to read; if the file has become shorter than that, and is closed, the span has no bytes but a seal.
            max_bytes: most bytes; a record that has more is cut.
            has_successor: whether the run has a later segment, begun only when this one was closed.

        Raises:
            OSError: when the file cannot be read.
        """
        closed = has_successor
        size = os.fstat(self._descriptor).st_size
        if not closed and offset >= self._limit(size):
            closed = self._is_closed(size)
            size = os.fstat(self._descriptor).st_size  # no more can come after that
        self._walk(size)
        limit = size if closed else self._limit(size)
        if offset >= limit and not closed:
            return None
        end = max(offset, self._cut(offset, limit, max_bytes))
        data = self._pread(offset, end - offset)
        if len(data) < end - offset:  # it was cut back since
            return None
        seal = self._seal(limit) if closed and end >= limit else None
        starts_record = offset == 0 or offset in self._ends[bisect.bisect_left(self._ends, offset) :][:1]
        return Span(offset, data, count_ticks(data, offset == 0) if starts_record else Ticks(), seal)

    def close(self) -> None:
        """Close the file. May be called any number of times."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1

    def _limit(self, size: int) -> int:
        """Return how many bytes of an open file may be taken: those before it last ended with a whole record."""
        self._walk(size)
        if self._ends and self._ends[-1] == size:
            self._settled_bytes = size
        self._settled_bytes = min(self._settled_bytes, size)
        return self._settled_bytes

    def _walk(self, size: int) -> None:
        """Find the ends of the records that are whole in a file of ``size`` bytes."""
        while self._ends and self._ends[-1] > size:
            self._ends.pop()
        if not self._ends:
            if size < len(MCAP0_MAGIC) or self._pread(0, len(MCAP0_MAGIC)) != MCAP0_MAGIC:
                return
            self._ends.append(len(MCAP0_MAGIC))
        while (begin := self._ends[-1]) < size:
            prefix = self._pread(begin, PREFIX.size)
            length = record_length(prefix)
            if length is None or begin + length > size:
                return
            end = begin + length
            if prefix[0] == Opcode.FOOTER:
                end += len(MCAP0_MAGIC)
                if end > size or self._pread(begin + length, len(MCAP0_MAGIC)) != MCAP0_MAGIC:
                    return
            self._ends.append(end)

    def _cut(self, offset: int, limit: int, max_bytes: int) -> int:
        """Return where to end: at a record if one ends within reach, so that the host's file is always readable."""
        if limit - offset <= max_bytes:
            return limit
        index = bisect.bisect_right(self._ends, offset + max_bytes) - 1
        return self._ends[index] if index >= 0 and self._ends[index] > offset else offset + max_bytes

    def _is_closed(self, size: int) -> bool:
        leased = _nobody_writes(self._descriptor)
        if leased is not None:
            return leased
        now_s = time.monotonic()
        if self._changed[0] != size:
            self._changed = (size, now_s)
        return now_s - self._changed[1] >= self._idle_s

    def _seal(self, size: int) -> Seal:
        digest, offset = hashlib.sha256(), 0
        while offset < size:
            block = self._pread(offset, min(_BLOCK_BYTES, size - offset))
            if not block:
                raise OSError(errno.EIO, "became shorter while it was read, although nobody writes it", str(self.path))
            digest.update(block)
            offset += len(block)
        return Seal(size, digest.hexdigest())

    def _pread(self, offset: int, count: int) -> bytes:
        parts = []
        while count > 0 and (part := os.pread(self._descriptor, count, offset)):
            parts.append(part)
            offset, count = offset + len(part), count - len(part)
        return b"".join(parts)


def _nobody_writes(descriptor: int) -> bool | None:
    """Return whether no process has the file open for writing; None where the kernel cannot say (not Linux, network disks)."""
    if not hasattr(fcntl, "F_SETLEASE"):
        return None
    try:
        fcntl.fcntl(descriptor, fcntl.F_SETLEASE, fcntl.F_RDLCK)
    except OSError as error:
        return False if error.errno == errno.EAGAIN else None
    fcntl.fcntl(descriptor, fcntl.F_SETLEASE, fcntl.F_UNLCK)
    return True
