"""What writer and reader of the robot log share: names, the metadata of a segment, and the coding of records as messages.

The format is described in docs/robot-log.md.
"""

from __future__ import annotations

import json
import zlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
from google.protobuf.descriptor_pb2 import FileDescriptorSet
from google.protobuf.message import DecodeError
from numpy.typing import NDArray

from dpg_robot.data.tick_pb2 import DESCRIPTOR, Tick

FORMAT_VERSION = 1
TOPIC = "/robot/tick"
SCHEMA_NAME = Tick.DESCRIPTOR.full_name
RUN_METADATA = "dpg_robot.run"
SEGMENT_PATTERN = f"segment-{'[0-9]' * 6}.mcap"


def segment_name(index: int) -> str:
    """Return the file name of segment ``index`` of a run."""
    return f"segment-{index:06d}.mcap"


def segment_number(path: Path) -> int:
    """Return the index of the segment at ``path``."""
    return int(path.stem.removeprefix("segment-"))


def schema_data() -> bytes:
    """Return the description of the message that is embedded in each segment: a serialized FileDescriptorSet."""
    descriptors = FileDescriptorSet()
    DESCRIPTOR.CopyToProto(descriptors.file.add())
    return descriptors.SerializeToString()


def metadata_checksum(values: Mapping[str, str]) -> str:
    """Return a CRC-32 (8 hexadecimal digits) over all values but ``checksum`` itself; MCAP has one only for chunks."""
    text = json.dumps({key: value for key, value in values.items() if key != "checksum"}, sort_keys=True)
    return f"{zlib.crc32(text.encode()):08x}"


def encode_ticks(records: NDArray[np.void], run_id: str) -> Iterator[tuple[int, int, bytes]]:
    """Yield (sequence, Unix time in nanoseconds, message) for each of the (n,) records."""
    names = records.dtype.names or ()
    columns = [records[name].tolist() for name in names]
    for row, *values in zip(_record_bytes(records), *columns, strict=True):
        fields = dict(zip(names, values, strict=True))
        tick = Tick(run_id=run_id, record_crc32=zlib.crc32(row.data), **fields)
        yield fields["sequence"], max(0, fields["wall_ns"]), tick.SerializeToString()


def decode_ticks(messages: Sequence[bytes], dtype: np.dtype[np.void], run_id: str) -> NDArray[np.void]:
    """Return the records (n,) of those messages that are intact and belong to ``run_id``; the others are left out.

    The CRC-32 that the writer took over the record in memory decides, so a record comes back bit for bit or not at all.
    """
    num_measurements, num_actions = dtype["measurement"].shape[0], dtype["action"].shape[0]
    lengths = {"measurement": num_measurements, "measurement_time_ns": num_measurements, "valid": num_measurements}
    lengths |= dict.fromkeys(("intended_action", "action", "command"), num_actions)
    ticks = []
    for message in messages:
        try:
            tick = Tick.FromString(message)
        except DecodeError:
            continue
        if tick.run_id == run_id and all(len(getattr(tick, name)) == length for name, length in lengths.items()):
            ticks.append(tick)

    records = np.zeros(len(ticks), dtype=dtype)
    for name in dtype.names or ():
        values = [list(getattr(tick, name)) if name in lengths else getattr(tick, name) for tick in ticks]
        field = dtype[name].base
        # Damaged values may be too large for the field: they are cut by astype and then found by the checksum.
        wide = np.int64 if field.kind in "iu" and field != np.uint64 else field
        records[name] = np.array(values, dtype=wide).reshape(records[name].shape).astype(field)
    intact = [tick.record_crc32 == zlib.crc32(row.data) for tick, row in zip(ticks, _record_bytes(records), strict=True)]
    return records[np.array(intact, dtype=np.bool_)]


def _record_bytes(records: NDArray[np.void]) -> NDArray[np.uint8]:
    """Return the bytes (n, itemsize) of (n,) records."""
    return np.ascontiguousarray(records).view(np.uint8).reshape(len(records), records.dtype.itemsize)
