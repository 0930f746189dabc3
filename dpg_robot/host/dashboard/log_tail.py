"""Reading the end of a run of the robot log again and again: each look costs the same, however long the run is.

Other than :mod:`dpg_robot.data.log_following`, which misses nothing, this leaves out what does not fit into a look.
"""

from __future__ import annotations

import json
import os
from io import BytesIO
from pathlib import Path

import numpy as np
from mcap.data_stream import ReadDataStream
from mcap.exceptions import McapError
from mcap.opcode import Opcode
from mcap.records import Chunk, Message, Metadata
from mcap.stream_reader import breakup_chunk
from mcap.writer import MCAP0_MAGIC
from numpy.typing import NDArray

from dpg_robot.contract import Contract
from dpg_robot.data.log_format import RUN_METADATA, SEGMENT_PATTERN, decode_ticks, metadata_checksum
from dpg_robot.data.log_segment import SegmentInfo
from dpg_robot.data.transition import tick_dtype
from dpg_robot.host.dashboard.files import open_for_reading
from dpg_robot.shipping.mcap_walk import PREFIX, record_length

LOOK_BYTES = 1024**2  # most bytes whose records are decoded in a look
_SAMPLE_BYTES = 128 * 1024
_LOOK_RECORDS = 20_000  # most records of the file that are passed in a look
_NOTHING: NDArray[np.void] = np.zeros(0, tick_dtype(0, 0))


class RunTail:
    """The end of one run.

    The first look takes the end of the newest segment, each further one what was added.

    Args:
        folder: of the run.

    Attributes:
        info: what the run says about itself; None before it was found.
        problem: why nothing more comes out of the present segment, in words; empty if there is no reason.
        changed_s: Unix time at which the newest segment was last written to; 0 before the first look.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.info: SegmentInfo | None = None
        self.problem = ""
        self.changed_s = 0.0
        self._path: Path | None = None
        self._offset = 0
        self._last_sequence = -1

    def poll(self) -> NDArray[np.void]:
        """Return the records (n,) that are new.

        Raises:
            OSError: the run cannot be read.
        """
        paths = sorted(self.folder.glob(SEGMENT_PATTERN))
        if not paths:
            return _NOTHING
        parts = [] if self._path is None or self._path == paths[-1] else [self._read(LOOK_BYTES)]
        if self._path != paths[-1]:
            self._path, self._offset, self.problem = paths[-1], 0, ""
        parts.append(self._read(LOOK_BYTES))
        parts = [part for part in parts if len(part)]
        return np.concatenate(parts) if parts else _NOTHING

    def sample(self, path: Path) -> NDArray[np.void]:
        """Return the last records (n,) of an earlier segment, some dozens; the look after goes on where the last one was."""
        before = self._path, self._offset, self._last_sequence, self.problem, self.changed_s
        self._path, self._offset, self._last_sequence = path, 0, -1
        try:
            return self._read(_SAMPLE_BYTES)
        finally:
            self._path, self._offset, self._last_sequence, self.problem, self.changed_s = before

    def _read(self, decoded_bytes: int) -> NDArray[np.void]:
        """Read on in the present segment; of what is new, the last ``decoded_bytes`` are decoded."""
        assert self._path is not None
        try:
            descriptor = open_for_reading(self._path)
        except FileNotFoundError:  # it was removed to make room
            return _NOTHING
        except ValueError as error:
            self.problem = str(error)
            return _NOTHING
        try:
            status = os.fstat(descriptor)
            self.changed_s = status.st_mtime
            if status.st_size < self._offset:  # it was cut back
                self._offset, self.problem = 0, ""
            if self.problem:
                return _NOTHING
            messages = self._walk(descriptor, status.st_size, decoded_bytes)
        except (McapError, ValueError, ArithmeticError) as error:
            self.problem = f"{self._path.name} is damaged at byte {self._offset}: {type(error).__name__} {error}".strip()
            return _NOTHING
        finally:
            os.close(descriptor)
        if self.info is None:
            return _NOTHING
        return self._rising(decode_ticks(messages, self.info.dtype, self.info.run_id))

    def _walk(self, descriptor: int, size: int, decoded_bytes: int) -> list[bytes]:
        """Pass the whole records from the present place on; returns the messages in those that are near the end."""
        if self._offset == 0:
            if size < len(MCAP0_MAGIC):
                return []
            if os.pread(descriptor, len(MCAP0_MAGIC), 0) != MCAP0_MAGIC:
                raise ValueError("it does not begin as an MCAP file")
            self._offset = len(MCAP0_MAGIC)
        messages: list[bytes] = []
        for _ in range(_LOOK_RECORDS):
            prefix = os.pread(descriptor, PREFIX.size, self._offset)
            if len(prefix) < PREFIX.size or (prefix.startswith(MCAP0_MAGIC) and self._offset + len(MCAP0_MAGIC) == size):
                break
            length = record_length(prefix)
            if length is None:
                raise ValueError("no record begins there")
            end = self._offset + length
            if end > size:
                break
            is_near = end > size - decoded_bytes and length <= LOOK_BYTES
            if prefix[0] == Opcode.METADATA and self.info is None and length <= LOOK_BYTES:
                self.info = _parse_info(os.pread(descriptor, length, self._offset)[PREFIX.size :])
            elif prefix[0] == Opcode.CHUNK and is_near:
                messages += _chunk_messages(os.pread(descriptor, length, self._offset)[PREFIX.size :])
            self._offset = end
        return messages

    def _rising(self, records: NDArray[np.void]) -> NDArray[np.void]:
        """Return the records that were not given out before."""
        records = records[records["sequence"].astype(np.int64) > self._last_sequence]
        if len(records):
            self._last_sequence = int(records["sequence"][-1])
        return records


def _chunk_messages(content: bytes) -> list[bytes]:
    chunk = Chunk.read(ReadDataStream(BytesIO(content)))
    if chunk.compression:
        raise ValueError(f"its chunks are compressed with {chunk.compression[:20]!r}; robot logs are not")
    return [bytes(record.data) for record in breakup_chunk(chunk, validate_crc=True) if isinstance(record, Message)]


def _parse_info(content: bytes) -> SegmentInfo | None:
    metadata = Metadata.read(ReadDataStream(BytesIO(content)))
    values = metadata.metadata
    if metadata.name != RUN_METADATA:
        return None
    if values.get("checksum") != metadata_checksum(values):
        raise ValueError("its description of the run has another checksum")
    try:
        return SegmentInfo(values["run_id"], Contract.from_dict(json.loads(values["contract"])), values)
    except (KeyError, RecursionError) as error:
        raise ValueError(f"its description of the run cannot be read: {error}") from error
