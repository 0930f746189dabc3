"""Finding whole records in the bytes of an MCAP file that is still being written. No I/O here."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass

from google.protobuf.message import DecodeError
from mcap.opcode import Opcode
from mcap.writer import MCAP0_MAGIC

from dpg_robot.data.tick_pb2 import Tick

PREFIX = struct.Struct("<BQ")  # of each record: opcode, length of what follows
MAX_RECORD_BYTES = 64 * 1024**2
_CHUNK_HEADER = struct.Struct("<QQQIIQ")  # begin, end, size, checksum, length of the (empty) name of the compression, size
_MESSAGE_HEADER_BYTES = 22
_OPCODES = frozenset(int(opcode) for opcode in Opcode)


@dataclass(frozen=True)
class Ticks:
    """How many whole tick records some bytes hold, and the sequence numbers of the first and the last (None without any)."""

    count: int = 0
    first: int | None = None
    last: int | None = None


def record_length(prefix: bytes) -> int | None:
    """Return the length of a record, with its prefix, from its first 9 bytes; None if they cannot begin a record."""
    if len(prefix) < PREFIX.size:
        return None
    opcode, length = PREFIX.unpack_from(prefix)
    if opcode not in _OPCODES or length > MAX_RECORD_BYTES:
        return None
    return PREFIX.size + int(length)


def count_ticks(data: bytes, begins_file: bool) -> Ticks:
    """Return what tick records are in ``data``, which begins at a record of the file or, if so said, with the whole file."""
    begin = len(MCAP0_MAGIC) if begins_file else 0
    messages = [message for payload in _chunk_payloads(data, begin) for message in _messages(payload)]
    sequences = [_sequence(messages[index]) for index in ((0, -1) if messages else ())]
    known = [sequence for sequence in sequences if sequence is not None]
    return Ticks(len(messages), known[0], known[-1]) if known else Ticks()


def whole_chunks(data: bytes) -> Iterator[tuple[int, int, memoryview | None]]:
    """Yield (opcode, end, payload of a chunk or None) of the records of a file as far as they are whole."""
    view, offset = memoryview(data), len(MCAP0_MAGIC)
    while (length := record_length(data[offset : offset + PREFIX.size])) is not None and offset + length <= len(data):
        is_chunk = data[offset] == Opcode.CHUNK and length >= PREFIX.size + _CHUNK_HEADER.size
        yield data[offset], offset + length, view[offset + PREFIX.size : offset + length] if is_chunk else None
        offset += length


def chunk_parts(content: memoryview) -> tuple[int, memoryview] | None:
    """Return (CRC-32, records) of the content of an uncompressed chunk; None if it is compressed."""
    *_, checksum, compression, _ = _CHUNK_HEADER.unpack_from(content)
    return None if compression else (int(checksum), content[_CHUNK_HEADER.size :])


def _chunk_payloads(data: bytes, offset: int) -> Iterator[bytes]:
    """Yield the records of each uncompressed chunk; of the last one, which may be cut off, those that are there."""
    while (length := record_length(data[offset : offset + PREFIX.size])) is not None:
        if data[offset] == Opcode.CHUNK and len(data) >= offset + PREFIX.size + _CHUNK_HEADER.size:
            parts = chunk_parts(memoryview(data)[offset + PREFIX.size : offset + length])
            if parts is not None:
                yield bytes(parts[1])
        offset += length


def _messages(payload: bytes) -> Iterator[bytes]:
    offset = 0
    while offset + PREFIX.size <= len(payload):
        opcode, length = PREFIX.unpack_from(payload, offset)
        end = offset + PREFIX.size + length
        if end > len(payload):
            return
        if opcode == Opcode.MESSAGE:
            yield payload[offset + PREFIX.size + _MESSAGE_HEADER_BYTES : end]
        offset = end


def _sequence(message: bytes) -> int | None:
    try:
        return int(Tick.FromString(message).sequence)
    except DecodeError:
        return None
