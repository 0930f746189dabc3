"""Reading one segment of the robot log, also when it is cut off or damaged.

MCAP's own readers stop at the first fault. This one goes on behind it: each record of the log carries a checksum of its own, so
what comes out is what went in, bit for bit, wherever in the file it was found. What does not come out is said.
"""

from __future__ import annotations

import json
import struct
import zlib
from dataclasses import dataclass, field
from io import BytesIO
from pathlib import Path

import numpy as np
from mcap.data_stream import ReadDataStream
from mcap.exceptions import EndOfFile
from mcap.opcode import Opcode
from mcap.records import Metadata
from mcap.writer import MCAP0_MAGIC
from numpy.typing import NDArray

from dpg_robot.contract import Contract
from dpg_robot.data.log_format import FORMAT_VERSION, RUN_METADATA, decode_ticks, metadata_checksum
from dpg_robot.data.transition import tick_dtype
from dpg_robot.errors import ContractError, LogError

_PREFIX = struct.Struct("<BQ")  # of each record of the file: opcode, length of what follows
_CHUNK_HEADER = struct.Struct("<QQQIIQ")  # begin, end, size, checksum, length of the (empty) name of the compression, size
_MESSAGE_HEADER_BYTES = 22
_OPCODES = frozenset(int(opcode) for opcode in Opcode)


@dataclass(frozen=True)
class SegmentInfo:
    """What a segment says about itself.

    Attributes:
        run_id: the run that it belongs to.
        contract: names and units of the channels.
        metadata: all facts about the run, as they were written.
    """

    run_id: str
    contract: Contract
    metadata: dict[str, str]

    @property
    def dtype(self) -> np.dtype[np.void]:
        """The dtype of the records."""
        return tick_dtype(self.contract.num_measurements, self.contract.num_actions)


@dataclass(frozen=True)
class Segment:
    """What could be read of one segment.

    Attributes:
        path: the file.
        info: what it says about itself, or else the known info; None when there is neither, and then there are no records.
        records: (n,) intact records, in the order of the file.
        damage: what did not come out, in words; empty for a segment that is whole or only cut off.
        cut_off: whether the end of the file is missing, as after a kill or a loss of power.
        tail_bytes: bytes after the last whole chunk of a cut-off segment; whole records in them are among the records.
    """

    path: Path
    info: SegmentInfo | None
    records: NDArray[np.void]
    damage: tuple[str, ...]
    cut_off: bool
    tail_bytes: int


def read_segment(path: Path, known_info: SegmentInfo | None = None) -> Segment:
    """Read all records of the segment ``path`` that are intact.

    Args:
        path: the file.
        known_info: what another segment of the same run says, used when this one's own description is damaged.

    Raises:
        LogError: when it was written in another version of the format.
        OSError: when the file cannot be read.
    """
    scan = _Scan(path.read_bytes(), path, known_info)
    scan.run()
    info = scan.own_info or known_info
    records = np.concatenate([np.zeros(0, info.dtype if info else tick_dtype(0, 0)), *scan.records])
    tail_bytes = len(scan.data) - scan.whole_bytes if scan.cut_off else 0
    return Segment(path, info, records, tuple(scan.damage), scan.cut_off, tail_bytes)


@dataclass
class _Scan:
    """One pass over the bytes of a segment."""

    data: bytes
    path: Path
    known_info: SegmentInfo | None
    own_info: SegmentInfo | None = None
    records: list[NDArray[np.void]] = field(default_factory=list)
    damage: list[str] = field(default_factory=list)
    cut_off: bool = False
    whole_bytes: int = 0
    # Faults that are only the cut-off end of the file, unless something whole follows.
    faults: list[str] = field(default_factory=list)

    def run(self) -> None:
        offset = len(MCAP0_MAGIC)
        self.cut_off = len(self.data) <= offset or not self.data.endswith(MCAP0_MAGIC)
        content_bytes = len(self.data) - (0 if self.cut_off else len(MCAP0_MAGIC))
        if not self.data.startswith(MCAP0_MAGIC[: len(self.data)]):
            self.faults.append("it does not begin as an MCAP file")
        while offset < content_bytes:
            end = _record_end(self.data, offset)
            if end is None:
                end = self._skip_fault(offset)
            else:
                self._read_record(offset, end)
            offset = end
        if not self.cut_off:
            self._settle(offset)
        if self.own_info is None and (self.damage or not self.cut_off):
            self.damage.append("its description of the run is missing or damaged")

    def _settle(self, offset: int) -> None:
        """Something whole ends at ``offset``, so the faults before it are damage and not the cut-off end."""
        self.damage += self.faults
        self.faults.clear()
        self.whole_bytes = offset

    def _read_record(self, offset: int, end: int) -> None:
        opcode = self.data[offset]
        content = self.data[offset + _PREFIX.size : end]
        if opcode == Opcode.CHUNK:
            self._read_chunk(offset, end)
            return
        if opcode == Opcode.METADATA:
            self.own_info = self.own_info or _parse_info(content, self.path)
        elif opcode == Opcode.DATA_END:
            expected = int.from_bytes(content[:4], "little")
            if expected not in (0, zlib.crc32(self.data[:offset])) and not self.faults and not self.damage:
                self.faults.append("its checksum does not fit, although that of each chunk does")
        if not self.faults:
            self.whole_bytes = end

    def _read_chunk(self, offset: int, end: int) -> None:
        checksum = _CHUNK_HEADER.unpack_from(self.data, offset + _PREFIX.size)[3]
        payload = self.data[offset + _PREFIX.size + _CHUNK_HEADER.size : end]
        found, decoded = self._decode(payload)
        if checksum != zlib.crc32(payload):
            self.faults.append(f"the checksum of the chunk at byte {offset} does not fit; {decoded} of its records are intact")
            return
        if decoded < found:
            self.faults.append(f"{found - decoded} of {found} records of the chunk at byte {offset} cannot be read")
        self._settle(end)

    def _decode(self, payload: bytes) -> tuple[int, int]:
        """Take the messages of a chunk; return how many there seem to be and how many are intact."""
        messages = _messages(payload)
        info = self.own_info or self.known_info
        if info is None:
            return len(messages), 0
        records = decode_ticks(messages, info.dtype, info.run_id)
        self.records.append(records)
        return len(messages), len(records)

    def _skip_fault(self, offset: int) -> int:
        """Take what is intact up to the next chunk and return where that is, or the end of the file."""
        following = _find_chunk(self.data, offset + 1)
        end = len(self.data) if following is None else following
        decoded = 0
        if self.data[offset] == Opcode.CHUNK:
            _, decoded = self._decode(self.data[offset + _PREFIX.size + _CHUNK_HEADER.size : end])
        self.faults.append(f"bytes {offset} to {end} are damaged; {decoded} records of them are intact")
        return end


def _record_end(data: bytes, offset: int) -> int | None:
    """Return where the record of the file at ``offset`` ends; None if it is cut off or cannot be what it says."""
    if offset + _PREFIX.size > len(data):
        return None
    opcode, length = _PREFIX.unpack_from(data, offset)
    end = offset + _PREFIX.size + length
    if opcode not in _OPCODES or end > len(data):
        return None
    if opcode == Opcode.CHUNK and not _is_chunk(data, offset):
        return None
    return int(end)


def _is_chunk(data: bytes, offset: int) -> bool:
    """Return whether a whole, uncompressed chunk whose lengths agree with each other is at ``offset``."""
    if offset + _PREFIX.size + _CHUNK_HEADER.size > len(data):
        return False
    opcode, length = _PREFIX.unpack_from(data, offset)
    _, _, uncompressed, _, compression, size = _CHUNK_HEADER.unpack_from(data, offset + _PREFIX.size)
    lengths_agree = compression == 0 and uncompressed == size and length == _CHUNK_HEADER.size + size
    return bool(opcode == Opcode.CHUNK and lengths_agree and offset + _PREFIX.size + length <= len(data))


def _find_chunk(data: bytes, offset: int) -> int | None:
    """Return where the next whole chunk at or after ``offset`` begins."""
    while (offset := data.find(bytes([Opcode.CHUNK]), offset)) >= 0:
        if _is_chunk(data, offset):
            return offset
        offset += 1
    return None


def _messages(payload: bytes) -> list[bytes]:
    """Return the contents of the whole messages in a chunk."""
    messages = []
    offset = 0
    while offset + _PREFIX.size <= len(payload):
        opcode, length = _PREFIX.unpack_from(payload, offset)
        offset += _PREFIX.size
        if offset + length > len(payload):
            break
        if opcode == Opcode.MESSAGE:
            messages.append(payload[offset + _MESSAGE_HEADER_BYTES : offset + length])
        offset += length
    return messages


def _parse_info(content: bytes, path: Path) -> SegmentInfo | None:
    """Return what the segment says about itself, None if this is damaged or about something else."""
    try:
        metadata = Metadata.read(ReadDataStream(BytesIO(content)))
        values = metadata.metadata
        if metadata.name != RUN_METADATA or values.get("checksum") != metadata_checksum(values):
            return None
        if values["format_version"] != str(FORMAT_VERSION):
            raise LogError(
                f"{path} is of log format version {values['format_version']}; this program reads version {FORMAT_VERSION}. "
                "Read it with the version of dpg-robot that wrote it."
            )
        return SegmentInfo(values["run_id"], Contract.from_dict(json.loads(values["contract"])), values)
    except (EndOfFile, struct.error, UnicodeDecodeError, KeyError, ContractError) as error:
        if isinstance(error, ContractError):
            raise LogError(f"{path} holds a contract that this program cannot read: {error}") from error
        return None
