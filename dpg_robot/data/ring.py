"""A ring of fixed-size records in shared memory, from one producer process to one consumer process.

The control loop pushes one record per tick; the log process drains them. Neither ever waits for the other: there is no lock,
and when the ring is full the new record is refused and counted.

Order of memory accesses. The producer writes the payload, then the slot's stamp (the record's position and a CRC-32 over
position and payload), then the head counter; the consumer reads head, copies the slot, checks the stamp against the copy and
only then moves the tail counter. Counters are aligned 8-byte words, stored and loaded whole by any 64-bit machine. x86 keeps the
producer's order. ARM may show the new head before the payload: the check of the copy then fails and the record stays in the
ring until it is whole. The other direction (a slot used again while it is still being read) needs no fence on either: the
store of tail depends on the check of the copy, and the producer's stores depend on its load of tail. A producer that dies in
the middle of a push has not moved head, so the consumer never looks at the unfinished slot.
"""

from __future__ import annotations

import hashlib
import os
import secrets
import sys
import threading
import zlib
from dataclasses import dataclass
from enum import IntEnum
from multiprocessing import resource_tracker
from multiprocessing.shared_memory import SharedMemory

import numpy as np
from numpy.typing import NDArray

from dpg_robot.errors import ContractError, LogError

_MAGIC = int.from_bytes(b"DPG-RING", "little")
_VERSION = 1

# Words of the header. What the producer writes and what the consumer writes lie on different cache lines.
_HEADER_WORDS = 24
_WORD_MAGIC, _WORD_VERSION, _WORD_ITEM_BYTES, _WORD_CAPACITY, _WORD_LAYOUT = range(5)
_WORD_HEAD, _WORD_OVERRUNS, _WORD_PRODUCER_PID, _WORD_PRODUCER_FINISHED = range(8, 12)
_WORD_TAIL, _WORD_TORN, _WORD_LOG_STATE, _WORD_LOG_ERROR, _WORD_ACKNOWLEDGED, _WORD_DURABLE = range(16, 22)

_STAMP_WORDS = 2  # position and checksum, in front of each payload
_STAMP_BYTES = 8 * _STAMP_WORDS
_POSITION_MASK = 0xFFFFFFFF

_tracker_lock = threading.Lock()


class LogState(IntEnum):
    """What the log process is doing."""

    STARTING = 0
    WRITING = 1
    CLOSED = 2
    FAILED = 3


@dataclass(frozen=True)
class LogStatus:
    """What the log process last published in the ring.

    Attributes:
        state: what it is doing.
        acknowledged_sequence: last sequence number handed to the operating system; survives the death of any process. -1: none.
        durable_sequence: last sequence number known to be on the disk; survives loss of power. -1: none.
        error: ``errno`` of the failed write, 0 if none failed.
        torn: records that were damaged in the ring and therefore not logged.
    """

    state: LogState = LogState.STARTING
    acknowledged_sequence: int = -1
    durable_sequence: int = -1
    error: int = 0
    torn: int = 0


class Ring:
    """One end of the ring; make it with :meth:`create` (the owner, which removes it) or :meth:`attach`.

    Any process may read the counters and the status. Only one may push and only one may drain.
    """

    def __init__(self, memory: SharedMemory, dtype: np.dtype[np.void], capacity: int, *, owner: bool) -> None:
        self.name = memory.name
        self.dtype = dtype
        self.capacity = capacity
        self._memory: SharedMemory | None = memory
        self._owner_pid = os.getpid() if owner else -1
        self._words = _buffer(memory)[: _ring_bytes(dtype, capacity)].cast("q")
        self._slot_words = _slot_bytes(dtype) // 8
        self._slots = np.frombuffer(self._words, dtype=np.uint8, offset=8 * _HEADER_WORDS).reshape(capacity, -1)
        self._payloads = self._slots[:, _STAMP_BYTES : _STAMP_BYTES + dtype.itemsize]

    @classmethod
    def create(cls, dtype: np.dtype[np.void], capacity: int) -> Ring:
        """Make a new, empty ring of ``capacity`` records; the caller owns it and removes it with :meth:`close`.

        The name is new each time, so the segment that a killed run may have left behind is never in the way.
        """
        if capacity < 1:
            raise ValueError(f"a ring needs room for at least 1 record, got capacity {capacity}")
        name = f"dpg-ring-{os.getpid()}-{secrets.token_hex(4)}"
        memory = SharedMemory(name, create=True, size=_ring_bytes(dtype, capacity))
        ring = cls(memory, dtype, capacity, owner=True)
        ring._slots[:] = 0  # so that the pages exist before the first tick
        words = ring._words
        words[_WORD_VERSION] = _VERSION
        words[_WORD_ITEM_BYTES] = dtype.itemsize
        words[_WORD_CAPACITY] = capacity
        words[_WORD_LAYOUT] = _layout_hash(dtype)
        ring.publish_status(LogStatus())
        words[_WORD_MAGIC] = _MAGIC
        return ring

    @classmethod
    def attach(cls, name: str, dtype: np.dtype[np.void]) -> Ring:
        """Open the ring ``name`` of another process.

        Raises:
            LogError: when there is no such ring.
            ContractError: when it is no ring, of another version, or of records laid out in another way.
        """
        try:
            memory = _open_untracked(name)
        except FileNotFoundError as error:
            raise LogError(
                f"there is no ring {name!r} in shared memory; it exists only while the process that made it runs"
            ) from error
        try:
            capacity = _checked_capacity(memory, name, dtype)
        except ContractError:
            memory.close()
            raise
        return cls(memory, dtype, capacity, owner=False)

    def push(self, record: NDArray[np.void] | np.void) -> bool:
        """Copy one record of the ring's dtype, shape () or (1,), into the ring; takes the same few microseconds each time.

        Returns:
            False when the ring was full; the record is not stored and :attr:`overruns` counts it.
        """
        if (record.dtype is not self.dtype and record.dtype != self.dtype) or record.size != 1:
            raise ContractError(f"a push takes one record of {self.dtype}, got shape {record.shape} of {record.dtype}")
        words = self._words
        head = words[_WORD_HEAD]
        if head - words[_WORD_TAIL] >= self.capacity:
            words[_WORD_OVERRUNS] += 1
            return False
        payload = np.frombuffer(record, dtype=np.uint8)
        slot = head % self.capacity
        self._payloads[slot] = payload
        stamp = _HEADER_WORDS + slot * self._slot_words
        words[stamp] = head
        words[stamp + 1] = zlib.crc32(payload.data, head & _POSITION_MASK)
        words[_WORD_HEAD] = head + 1
        return True

    def drain(self, maximum: int, *, skip_torn: bool = False) -> NDArray[np.void]:
        """Take up to ``maximum`` records out of the ring, oldest first.

        Args:
            maximum: most records to take.
            skip_torn: what to do with a record whose stamp does not fit: leave it and all after it for the next call, because
                it may not have arrived yet (False), or drop it and count it in the status (True). Pass True only when the
                producer has ended or the record has stayed so for long.

        Returns:
            (n,) records, a copy.
        """
        words = self._words
        tail = words[_WORD_TAIL]
        positions = range(tail, tail + min(words[_WORD_HEAD] - tail, maximum))
        # The copy is checked, not the ring: what is checked is what is returned.
        copy = self._slots[np.array(positions, dtype=np.int64) % self.capacity]
        stamps = np.ascontiguousarray(copy[:, :_STAMP_BYTES]).view(np.int64)
        payloads = np.ascontiguousarray(copy[:, _STAMP_BYTES : _STAMP_BYTES + self.dtype.itemsize])
        whole = np.array(
            [
                stamp[0] == position and stamp[1] == zlib.crc32(payload.data, position & _POSITION_MASK)
                for position, stamp, payload in zip(positions, stamps, payloads, strict=True)
            ],
            dtype=np.bool_,
        )
        taken = len(positions)
        if skip_torn:
            words[_WORD_TORN] += int(np.count_nonzero(~whole))
        elif not whole.all():
            taken = int(np.argmin(whole))
        words[_WORD_TAIL] = tail + taken
        return payloads[:taken][whole[:taken]].reshape(-1).view(self.dtype)

    def __len__(self) -> int:
        """Return how many records wait to be drained."""
        return int(self._words[_WORD_HEAD] - self._words[_WORD_TAIL])

    @property
    def pushed(self) -> int:
        """Records pushed since the ring was made."""
        return int(self._words[_WORD_HEAD])

    @property
    def overruns(self) -> int:
        """Records refused because the ring was full."""
        return int(self._words[_WORD_OVERRUNS])

    def register_producer(self) -> None:
        """Say that this process is the producer, so that the consumer notices its death."""
        self._words[_WORD_PRODUCER_PID] = os.getpid()

    @property
    def producer_pid(self) -> int:
        """Process id of the producer, 0 before it registered."""
        return int(self._words[_WORD_PRODUCER_PID])

    def finish(self) -> None:
        """Say that the producer will push no more, so that the consumer drains what is left and ends."""
        self._words[_WORD_PRODUCER_FINISHED] = 1

    @property
    def finished(self) -> bool:
        """Whether the producer said that it will push no more."""
        return bool(self._words[_WORD_PRODUCER_FINISHED])

    @property
    def status(self) -> LogStatus:
        """What the consumer last published."""
        words = self._words
        return LogStatus(
            state=LogState(words[_WORD_LOG_STATE]),
            acknowledged_sequence=words[_WORD_ACKNOWLEDGED],
            durable_sequence=words[_WORD_DURABLE],
            error=words[_WORD_LOG_ERROR],
            torn=words[_WORD_TORN],
        )

    def publish_status(self, status: LogStatus) -> None:
        """Publish ``status`` (by the consumer only); ``torn`` is left as :meth:`drain` counted it."""
        words = self._words
        words[_WORD_ACKNOWLEDGED] = status.acknowledged_sequence
        words[_WORD_DURABLE] = status.durable_sequence
        words[_WORD_LOG_ERROR] = status.error
        words[_WORD_LOG_STATE] = status.state

    def close(self) -> None:
        """Unmap the ring and, if this process made it, remove it. May be called any number of times."""
        if self._memory is None:
            return
        memory, self._memory = self._memory, None
        del self._slots, self._payloads, self._words  # nothing may point into the memory when it is unmapped
        memory.close()
        if self._owner_pid == os.getpid():  # not in a process forked from the owner
            memory.unlink()

    def __enter__(self) -> Ring:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()


def _buffer(memory: SharedMemory) -> memoryview:
    buffer = memory.buf
    assert buffer is not None  # only after close
    return buffer


def _slot_bytes(dtype: np.dtype[np.void]) -> int:
    return _STAMP_BYTES + -(-dtype.itemsize // 8) * 8


def _ring_bytes(dtype: np.dtype[np.void], capacity: int) -> int:
    return 8 * _HEADER_WORDS + capacity * _slot_bytes(dtype)


def _layout_hash(dtype: np.dtype[np.void]) -> int:
    digest = hashlib.sha256(repr(dtype.descr).encode()).digest()
    return int.from_bytes(digest[:8], "little", signed=True)


def _checked_capacity(memory: SharedMemory, name: str, dtype: np.dtype[np.void]) -> int:
    """Return the capacity of the ring in ``memory``; raises ContractError unless it holds records of ``dtype``."""
    if memory.size < 8 * _HEADER_WORDS:
        raise ContractError(f"shared memory {name!r} has {memory.size} bytes and is no ring of this program")
    header = np.frombuffer(_buffer(memory), dtype=np.int64, count=_HEADER_WORDS).tolist()
    for what, word, expected in (
        ("mark", _WORD_MAGIC, _MAGIC),
        ("version", _WORD_VERSION, _VERSION),
        ("bytes per record", _WORD_ITEM_BYTES, dtype.itemsize),
        ("layout of the record", _WORD_LAYOUT, _layout_hash(dtype)),
    ):
        if header[word] != expected:
            raise ContractError(
                f"ring {name!r} does not fit: its {what} is {header[word]}, expected {expected}. Both processes must come from "
                "the same version of the program and use the same numbers of measurements and actions."
            )
    capacity = int(header[_WORD_CAPACITY])
    if memory.size < _ring_bytes(dtype, capacity):
        raise ContractError(f"ring {name!r} has {memory.size} bytes, expected {_ring_bytes(dtype, capacity)} or more")
    return capacity


def _open_untracked(name: str) -> SharedMemory:
    """Open shared memory without making this process responsible for removing it.

    Python before 3.13 also registers segments that are only opened; the resource tracker of a program started by subprocess
    would then remove the owner's segment when that program ends.
    """
    if sys.version_info >= (3, 13):
        return SharedMemory(name, track=False)
    with _tracker_lock:
        register = resource_tracker.register
        resource_tracker.register = lambda name, rtype: None
        try:
            return SharedMemory(name)
        finally:
            resource_tracker.register = register
