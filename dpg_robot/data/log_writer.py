"""Writing the robot log: one folder per run, MCAP segments of protobuf messages. The format is described in docs/robot-log.md.

Records are gathered into a chunk; every flush interval the chunk is finished and handed to the operating system, after which
the records in it are *acknowledged*: they survive the death of any process. A segment that is complete is synchronized with
the disk, after which its records are *durable*: they survive loss of power.
"""

from __future__ import annotations

import contextlib
import json
import os
import platform
import re
import secrets
import time
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from mcap.writer import CompressionType, Writer
from numpy.typing import NDArray

from dpg_robot.contract import Contract
from dpg_robot.data.log_format import (
    FORMAT_VERSION,
    RUN_METADATA,
    SCHEMA_NAME,
    TOPIC,
    encode_ticks,
    metadata_checksum,
    schema_data,
    segment_name,
)
from dpg_robot.data.transition import tick_dtype
from dpg_robot.errors import LogWriteError
from dpg_robot.files import sync_folder
from dpg_robot.versions import installed_version

SEGMENT_SECONDS = 30.0
SEGMENT_BYTES = 32 * 1024 * 1024
FLUSH_INTERVAL_S = 0.2

_CHUNK_BYTES = 64 * 1024
_SEQUENCE_MASK = 0xFFFFFFFF  # MCAP's own sequence number has 32 bits


def new_run_id() -> str:
    """Return a new run id that sorts by the time of the start, for example ``20250131T081502Z-3f9a1c``."""
    return time.strftime("%Y%m%dT%H%M%SZ", time.gmtime()) + "-" + secrets.token_hex(3)


class LogWriter:
    """Writes the records of one run.

    When a write fails, the segment is cut back to what was acknowledged and the writer takes no more records.

    Attributes:
        run_folder: ``<folder>/<run_id>``.
        acknowledged_sequence: last sequence number handed to the operating system, -1 if none.
        durable_sequence: last sequence number synchronized with the disk, -1 if none.
    """

    def __init__(
        self,
        folder: str | os.PathLike[str],
        run_id: str,
        contract: Contract,
        metadata: Mapping[str, str] | None = None,
        *,
        segment_seconds: float = SEGMENT_SECONDS,
        segment_bytes: int = SEGMENT_BYTES,
        flush_interval_s: float = FLUSH_INTERVAL_S,
    ) -> None:
        """Make the run's folder and its first segment.

        Args:
            folder: the log folder, made if it does not exist.
            run_id: name of the run; letters, digits, ``.``, ``_`` and ``-``. A run is never continued.
            contract: names and units of all channels; stored in each segment.
            metadata: further facts about the run, for example the id of its policy; stored in each segment.
            segment_seconds: age at which a segment is completed and the next begun, seconds.
            segment_bytes: size at which a segment is completed and the next begun.
            flush_interval_s: longest time that :meth:`append` keeps a record in this process, seconds.

        Raises:
            LogWriteError: when the run exists or the folder cannot be written.
        """
        if not re.fullmatch(r"[A-Za-z0-9_-][A-Za-z0-9._-]*", run_id):
            raise ValueError(f"a run id consists of letters, digits, '.', '_' and '-', got {run_id!r}")
        self.run_folder = Path(folder) / run_id
        self.acknowledged_sequence = -1
        self.durable_sequence = -1
        self._last_sequence = -1
        self._run_id = run_id
        self._dtype = tick_dtype(contract.num_measurements, contract.num_actions)
        self._run_metadata = {**(metadata or {}), **_describe_run(run_id, contract)}
        self._segment_seconds = segment_seconds
        self._segment_bytes = segment_bytes
        self._flush_interval_s = flush_interval_s
        self._num_segments = 0
        self._segment: _Segment | None = None
        self._closed = False
        try:
            Path(folder).mkdir(parents=True, exist_ok=True)
            self.run_folder.mkdir()
            sync_folder(Path(folder))
            self._begin_segment()
        except OSError as error:
            reason = error.strerror
            if isinstance(error, FileExistsError) and self.run_folder.exists():
                reason = "the run exists, and a run is never continued; take a new run id"
            raise LogWriteError(error.errno, f"cannot begin the robot log {self.run_folder}: {reason}") from error

    def append(self, records: NDArray[np.void]) -> None:
        """Add (n,) records of :func:`tick_dtype`, n >= 0, and flush if the flush interval has passed.

        Call it often, also without new records, so that the last ones are flushed in time.

        Raises:
            LogWriteError: naming the sequence numbers that are safe and those that are not.
        """
        if records.dtype != self._dtype:
            raise ValueError(f"expected records of {self._dtype}, got {records.dtype}")
        if self._closed:
            raise LogWriteError(f"the robot log {self.run_folder} is closed and takes no more records; begin a new run")
        if len(records):
            self._last_sequence = int(records["sequence"][-1])
        try:
            for sequence, wall_ns, message in encode_ticks(records, self._run_id):
                segment = self._segment or self._begin_segment()
                segment.add(sequence, wall_ns, message)
                if segment.size >= self._segment_bytes:
                    self._complete_segment(segment)
            if self._segment is not None and time.monotonic() >= self._next_flush_s:
                self._flush(self._segment)
                if time.monotonic() >= self._segment.begin_s + self._segment_seconds:
                    self._complete_segment(self._segment)
        except OSError as error:
            raise self._fail(error) from error

    def flush(self) -> None:
        """Hand everything appended so far to the operating system. Raises LogWriteError as :meth:`append` does."""
        try:
            if self._segment is not None:
                self._flush(self._segment)
        except OSError as error:
            raise self._fail(error) from error

    def close(self) -> None:
        """Complete the last segment and synchronize it with the disk. May be called any number of times."""
        self._closed = True
        try:
            if self._segment is not None:
                self._complete_segment(self._segment)
        except OSError as error:
            raise self._fail(error) from error

    def __enter__(self) -> LogWriter:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def _begin_segment(self) -> _Segment:
        values = {**self._run_metadata, "segment": str(self._num_segments)}
        segment = _Segment(self.run_folder / segment_name(self._num_segments))
        try:
            segment.begin({**values, "checksum": metadata_checksum(values)})
            sync_folder(self.run_folder)
        except OSError:
            segment.give_up()
            segment.path.unlink(missing_ok=True)
            raise
        self._segment = segment
        self._num_segments += 1
        self._next_flush_s = time.monotonic() + self._flush_interval_s
        return segment

    def _flush(self, segment: _Segment) -> None:
        segment.flush()
        self.acknowledged_sequence = max(self.acknowledged_sequence, segment.last_sequence)
        self._next_flush_s = time.monotonic() + self._flush_interval_s

    def _complete_segment(self, segment: _Segment) -> None:
        self._flush(segment)
        segment.complete()
        self.durable_sequence = self.acknowledged_sequence
        self._segment = None

    def _fail(self, error: OSError) -> LogWriteError:
        """Give up: keep what was acknowledged, close the file, and return the error that says what is safe."""
        self._closed = True
        where = self.run_folder
        if self._segment is not None:
            where = self._segment.path
            if self._segment.give_up():
                self.durable_sequence = self.acknowledged_sequence
            self._segment = None
        safe = f"up to {self.acknowledged_sequence}" if self.acknowledged_sequence >= 0 else "none"
        if 0 <= self.durable_sequence < self.acknowledged_sequence:
            safe += f" (up to {self.durable_sequence} also after loss of power)"
        elif self.durable_sequence < self.acknowledged_sequence:
            safe += " (none after loss of power)"
        lost = "none"
        if self._last_sequence > self.acknowledged_sequence:
            lost = f"{self.acknowledged_sequence + 1} to {self._last_sequence}"
        return LogWriteError(
            error.errno,
            f"cannot write the robot log {where}: {error.strerror or error}. "
            f"Run {self._run_id}: sequences safe on disk: {safe}; not written: {lost}.",
        )


class _Segment:
    """One MCAP file that is being written; nothing reaches the file before a flush."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.last_sequence = -1
        self.begin_s = time.monotonic()
        self._descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o644)
        self._file = _FlushedFile(self._descriptor)
        self._kept_bytes = 0
        self._synchronization_failed = False
        self._mcap = Writer(
            self._file,  # of a file it needs only write, tell and flush
            chunk_size=_CHUNK_BYTES,
            compression=CompressionType.NONE,  # so that each record of a damaged or cut-off chunk can be recovered
            enable_data_crcs=True,
        )

    @property
    def size(self) -> int:
        """Bytes of the file so far, without the chunk in progress."""
        return self._file.tell()

    def begin(self, metadata: dict[str, str]) -> None:
        self._mcap.start(profile="", library=f"dpg-robot {installed_version('dpg-robot') or 'unknown'}")
        self._mcap.add_metadata(RUN_METADATA, metadata)
        schema = self._mcap.register_schema(SCHEMA_NAME, "protobuf", schema_data())
        self._channel = self._mcap.register_channel(TOPIC, "protobuf", schema)
        self.flush()

    def add(self, sequence: int, wall_ns: int, message: bytes) -> None:
        self._mcap.add_message(self._channel, wall_ns, message, wall_ns, sequence & _SEQUENCE_MASK)
        self.last_sequence = sequence

    def flush(self) -> None:
        self._mcap.flush()
        self._kept_bytes = self._file.tell()

    def complete(self) -> None:
        self._mcap.finish()
        self._file.flush()
        self._synchronize()
        os.close(self._descriptor)

    def give_up(self) -> bool:
        """Cut the file back to the last successful flush and close it; return whether that is durable."""
        try:
            os.ftruncate(self._descriptor, self._kept_bytes)
            # After a failed fsync the pages may be gone although the next fsync succeeds.
            if self._synchronization_failed:
                return False
            self._synchronize()
            return True
        except OSError:
            return False
        finally:
            with contextlib.suppress(OSError):
                os.close(self._descriptor)

    def _synchronize(self) -> None:
        try:
            os.fsync(self._descriptor)
        except OSError:
            self._synchronization_failed = True
            raise


class _FlushedFile:
    """Append-only file that passes its data to the operating system at a flush, whole, and never otherwise."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor
        self._pending = bytearray()
        self._passed_bytes = 0

    def write(self, data: bytes) -> int:
        self._pending += data
        return len(data)

    def tell(self) -> int:
        return self._passed_bytes + len(self._pending)

    def flush(self) -> None:
        while self._pending:
            count = os.write(self._descriptor, self._pending)
            del self._pending[:count]
            self._passed_bytes += count


def _describe_run(run_id: str, contract: Contract) -> dict[str, str]:
    software = {name: installed_version(name) or "unknown" for name in ("dpg-robot", "numpy", "mcap", "protobuf")}
    return {
        "format_version": str(FORMAT_VERSION),
        "run_id": run_id,
        "contract": json.dumps(contract.to_dict()),
        "begin_wall_ns": str(time.time_ns()),
        "begin_time_ns": str(time.monotonic_ns()),
        "software": json.dumps({**software, "python": platform.python_version()}),
        "host": platform.node(),
    }
