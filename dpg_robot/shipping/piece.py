"""What travels: pieces of segment files from a robot to its host, and confirmations back. No I/O here.

A piece is a range of bytes of one segment file. On the wire it is ``DPGP``, a version byte, the length of the header (4 bytes,
little endian), the header as JSON, the bytes, and a CRC-32 over all of that. The format is described in docs/shipping.md.
"""

from __future__ import annotations

import dataclasses
import json
import re
import struct
import zlib
from dataclasses import dataclass
from typing import Any, Literal, cast, get_args

from dpg_robot.errors import DpgError

PIECE_BYTES = 256 * 1024
MAX_PIECE_BYTES = 768 * 1024  # with its header it stays below the server's limit of 1 MiB
MAX_SEGMENT_BYTES = 1024**3
MAX_SEGMENT = 999_999  # six digits in the file name
VERSION = 1

ConfirmationKind = Literal["stored", "wanted", "refused"]

_MAGIC = b"DPGP"
_PREFIX = struct.Struct("<4sBI")
_CRC = struct.Struct("<I")
_MAX_HEADER_BYTES = 4096
_MAX_SEQUENCE = 2**64 - 1
_MAX_GENERATION = 2**53  # what JSON numbers hold everywhere
_MAX_REASON = 500
# one token of a subject and one safe file name
_ROBOT = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,63}")
_RUN = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9._-]{0,127}")
_SHA256 = re.compile(r"[0-9a-f]{64}")


class PieceError(DpgError, ValueError):
    """A piece or confirmation that is damaged or not as the format says."""


def require_robot_name(name: str) -> str:
    """Return the name if a robot may have it; raises PieceError otherwise."""
    if not _ROBOT.fullmatch(name):
        raise PieceError(f"a robot's name has 1 to 64 letters, digits, '_' and '-', a letter or digit first; got {name!r}")
    return name


def require_run_id(run: str) -> str:
    """Return the run id if it is one of the robot log's; raises PieceError otherwise."""
    if not _RUN.fullmatch(run):
        raise PieceError(f"a run id has 1 to 128 letters, digits, '.', '_' and '-' and does not begin with '.', got {run!r}")
    return run


@dataclass(frozen=True)
class Seal:
    """What a segment file is once and for all: its size in bytes, and the SHA-256 of all of it as 64 hexadecimal digits."""

    size: int
    sha256: str

    def __post_init__(self) -> None:
        _require_integer("size", self.size, MAX_SEGMENT_BYTES)
        if not isinstance(self.sha256, str) or not _SHA256.fullmatch(self.sha256):
            raise PieceError(f"sha256 must be 64 hexadecimal digits, got {self.sha256!r}")


@dataclass(frozen=True)
class Piece:
    """Bytes of a segment file.

    Attributes:
        robot: the robot that recorded it.
        run: its run id.
        segment: number of the segment within the run.
        offset: where in the file the bytes begin.
        data: the bytes; none in a piece that only says that the segment is complete.
        previous: number of the segment before, None if the robot has none; the host wants that one complete first.
        seal: size and digest of the file if it will not change any more, and these are its last bytes.
        records: whole records in the bytes.
        first_sequence: sequence number of the first of them, None without records.
        last_sequence: sequence number of the last of them, None without records.
        generation: counts how often the robot went back to send again; a host that asks for that names it.

    Raises:
        PieceError: a name that could leave the store's folder, a number out of bounds, more bytes than a piece may have.
    """

    robot: str
    run: str
    segment: int
    offset: int
    data: bytes
    previous: int | None = None
    seal: Seal | None = None
    records: int = 0
    first_sequence: int | None = None
    last_sequence: int | None = None
    generation: int = 0

    def __post_init__(self) -> None:
        _require_place(self.robot, self.run, self.segment)
        _require_integer("offset", self.offset, MAX_SEGMENT_BYTES)
        if len(self.data) > MAX_PIECE_BYTES or self.end > MAX_SEGMENT_BYTES:
            raise PieceError(
                f"a piece has at most {MAX_PIECE_BYTES} bytes and a segment {MAX_SEGMENT_BYTES}, "
                f"got {len(self.data)} bytes from {self.offset}"
            )
        _require_integer("records", self.records, MAX_PIECE_BYTES)
        _require_integer("generation", self.generation, _MAX_GENERATION)
        for name in ("first_sequence", "last_sequence"):
            if getattr(self, name) is not None:
                _require_integer(name, getattr(self, name), _MAX_SEQUENCE)
        if self.previous is not None:
            _require_integer("previous", self.previous, self.segment - 1)
        # A seal below the end of the bytes can only be meant for a file that is shorter than what was sent before.
        if self.seal is not None and self.data and self.seal.size != self.end:
            raise PieceError(f"the piece ends at byte {self.end}, but completes a segment of {self.seal.size} bytes")

    @property
    def end(self) -> int:
        """Where in the file the bytes end."""
        return self.offset + len(self.data)

    @property
    def message_id(self) -> str:
        """A name by which a server may drop repetitions; what is sent again on purpose has another."""
        sealed = "sealed" if self.seal else "open"
        return f"{self.robot}/{self.run}/{self.segment}/{self.offset}/{len(self.data)}/{sealed}/{self.generation}"

    def to_bytes(self) -> bytes:
        """Return the piece as it travels."""
        header = {field.name: getattr(self, field.name) for field in dataclasses.fields(self) if field.name != "data"}
        header["seal"] = dataclasses.asdict(self.seal) if self.seal else None
        text = json.dumps(header).encode()
        content = _PREFIX.pack(_MAGIC, VERSION, len(text)) + text + self.data
        return content + _CRC.pack(zlib.crc32(content))

    @classmethod
    def from_bytes(cls, content: bytes) -> Piece:
        """Read :meth:`to_bytes` again. Raises PieceError for anything else."""
        if len(content) < _PREFIX.size + _CRC.size:
            raise PieceError(f"a piece has at least {_PREFIX.size + _CRC.size} bytes, got {len(content)}")
        magic, version, header_bytes = _PREFIX.unpack_from(content)
        if magic != _MAGIC or version != VERSION:
            raise PieceError(
                f"expected a piece of version {VERSION}, got {content[:5]!r}; run the same version of dpg-robot on robot and host"
            )
        end = len(content) - _CRC.size
        if zlib.crc32(memoryview(content)[:end]) != _CRC.unpack_from(content, end)[0]:
            raise PieceError("the checksum of the piece does not fit")
        if header_bytes > min(_MAX_HEADER_BYTES, end - _PREFIX.size):
            raise PieceError(f"the header of a piece has at most {_MAX_HEADER_BYTES} bytes, got {header_bytes}")
        begin = _PREFIX.size + header_bytes
        values = _parse_object(content[_PREFIX.size : begin], {field.name for field in dataclasses.fields(cls)} - {"data"})
        return cls(**values | {"data": content[begin:end], "seal": _parse_seal(values["seal"])})


@dataclass(frozen=True)
class Confirmation:
    """What the host has of a segment. ``stored`` is only said of what is synchronized with the host's disk.

    Attributes:
        robot: the robot.
        run: its run id.
        segment: number of the segment.
        offset: the host has all bytes before this one.
        kind: ``stored``; or ``wanted``: a piece did not fit, the robot shall go on from here, also if that is back;
            or ``refused``: the segment contradicts what the host has, and no more of it is taken.
        seal: size and digest of the robot's file if the host has all of it.
        last_sequence: last sequence number the host has of this run, None if unknown.
        generation: generation of the piece that this answers.
        reason: why it is refused, in words.
    """

    robot: str
    run: str
    segment: int
    offset: int
    kind: ConfirmationKind = "stored"
    seal: Seal | None = None
    last_sequence: int | None = None
    generation: int = 0
    reason: str = ""

    def __post_init__(self) -> None:
        _require_place(self.robot, self.run, self.segment)
        _require_integer("offset", self.offset, MAX_SEGMENT_BYTES)
        _require_integer("generation", self.generation, _MAX_GENERATION)
        if self.kind not in get_args(ConfirmationKind):
            raise PieceError(f"a confirmation is one of {', '.join(get_args(ConfirmationKind))}, got {self.kind!r}")
        if self.last_sequence is not None:
            _require_integer("last_sequence", self.last_sequence, _MAX_SEQUENCE)
        if not isinstance(self.reason, str):
            raise PieceError(f"reason must be a text, got {self.reason!r}")

    def to_bytes(self) -> bytes:
        """Return the confirmation as JSON."""
        return json.dumps(dataclasses.asdict(dataclasses.replace(self, reason=self.reason[:_MAX_REASON]))).encode()

    @classmethod
    def from_bytes(cls, content: bytes) -> Confirmation:
        """Read :meth:`to_bytes` again. Raises PieceError for anything else."""
        values = _parse_object(content[: _MAX_HEADER_BYTES + 1], {field.name for field in dataclasses.fields(cls)})
        return cls(**values | {"seal": _parse_seal(values["seal"])})


def _require_place(robot: Any, run: Any, segment: Any) -> None:
    if not isinstance(robot, str) or not isinstance(run, str):
        raise PieceError(f"robot and run must be texts, got {robot!r} and {run!r}")
    require_robot_name(robot)
    require_run_id(run)
    _require_integer("segment", segment, MAX_SEGMENT)


def _require_integer(name: str, value: Any, highest: int) -> None:
    if type(value) is not int or not 0 <= value <= highest:
        raise PieceError(f"{name} must be an integer from 0 to {highest}, got {value!r}")


def _parse_object(text: bytes, names: set[str]) -> dict[str, Any]:
    try:
        values = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise PieceError(f"expected JSON, got {text[:80]!r}") from error
    if not isinstance(values, dict) or set(values) != names:
        raise PieceError(f"expected an object with the keys {', '.join(sorted(names))}, got {str(values)[:200]}")
    return cast(dict[str, Any], values)


def _parse_seal(values: Any) -> Seal | None:
    if values is None:
        return None
    if not isinstance(values, dict) or set(values) != {"size", "sha256"}:
        raise PieceError(f"expected a seal with size and sha256, got {str(values)[:200]}")
    return Seal(**values)
