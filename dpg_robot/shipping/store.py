"""The host's side, without any transport: a folder ``<store>/<robot>/<run id>/segment-000000.mcap``, equal to the robots' own.

Each robot's folder is a robot log that all readers open. Beside a segment that is complete stands ``segment-000000.seal.json``
with size and SHA-256 of the robot's file; beside one that the store refuses to go on with, ``segment-000000.refused.json``.
Bytes are confirmed only after they are synchronized with the disk. A piece may come any number of times and in any order.
"""

from __future__ import annotations

import dataclasses
import errno
import hashlib
import json
import os
import shutil
import zlib
from dataclasses import dataclass, field
from pathlib import Path

from mcap.opcode import Opcode
from mcap.writer import MCAP0_MAGIC

from dpg_robot.data.log_format import segment_name
from dpg_robot.files import sync_folder, write_atomically
from dpg_robot.shipping.folder_lock import FolderLock
from dpg_robot.shipping.mcap_walk import chunk_parts, whole_chunks
from dpg_robot.shipping.piece import Confirmation, ConfirmationKind, Piece, Seal

ASIDE_FOLDER = ".aside"
MAX_ASIDE_PIECES = 100  # kept for each robot; more are only counted
_OPEN_SEGMENTS = 256


@dataclass
class StoreCounts:
    """What a store has done since it was opened."""

    pieces: int = 0
    bytes: int = 0
    records: int = 0
    duplicates: int = 0
    wanted: int = 0
    refused: int = 0
    set_aside: int = 0
    completed_segments: int = 0


@dataclass
class _Segment:
    """One segment of the store."""

    path: Path
    size: int = 0
    synchronized: int = 0
    seal: Seal | None = None
    refused: str = ""
    descriptor: int = -1
    last_sequence: int | None = None
    predecessors: set[int] = field(default_factory=set)  # those that are known to be complete

    def note(self, kind: str) -> Path:
        return self.path.with_suffix(f".{kind}.json")

    @property
    def is_finished(self) -> bool:
        return self.seal is not None or bool(self.refused)

    def close(self) -> None:
        if self.descriptor >= 0:
            os.close(self.descriptor)
            self.descriptor = -1


class Store:
    """Takes in pieces of all robots. Only one process at a time may have it."""

    def __init__(self, folder: Path, *, min_free_bytes: int = 0) -> None:
        """Open a store.

        Args:
            folder: made if it does not exist.
            min_free_bytes: nothing is taken while the disk has less room than that.
        """
        self.folder = folder
        self.counts = StoreCounts()
        self._min_free_bytes = min_free_bytes
        self._segments: dict[tuple[str, str, int], _Segment] = {}
        self._lock = FolderLock(folder / ".lock", f"writes the store {folder}")

    def write(self, piece: Piece) -> Confirmation:
        """Take a piece; the confirmation that is returned may be passed on only after :meth:`synchronize`.

        Raises:
            OSError: when the disk is full or fails; nothing of the piece counts as taken.
        """
        self.counts.pieces += 1
        segment = self._open(piece.robot, piece.run, piece.segment)
        if segment.refused:
            return self._answer(piece, segment, "refused", segment.refused)
        if (unfinished := self._unfinished_predecessor(piece, segment)) is not None:
            self.counts.wanted += 1
            return dataclasses.replace(unfinished, kind="wanted", generation=piece.generation)
        if piece.offset > segment.size or (piece.seal is not None and piece.seal.size > max(segment.size, piece.end)):
            self.counts.wanted += 1
            return self._answer(piece, segment, "wanted")
        fault = self._contradiction(piece, segment)
        if fault:
            return self._refuse(piece, segment, fault)
        self._append(piece, segment)
        if piece.seal is not None and segment.seal is None:
            fault = self._complete(piece.seal, segment)
            if fault:
                return self._refuse(piece, segment, fault)
        if piece.last_sequence is not None:
            segment.last_sequence = max(piece.last_sequence, segment.last_sequence or 0)
        return self._answer(piece, segment)

    def synchronize(self) -> None:
        """Bring everything that was taken to the disk.

        Raises:
            OSError: when that fails; what was not synchronized is cut off again and must be sent again.
        """
        for segment in self._segments.values():
            if segment.synchronized < segment.size:
                self._synchronize(segment)
        finished = [key for key, segment in self._segments.items() if segment.is_finished]
        excess = list(self._segments)[: max(0, len(self._segments) - _OPEN_SEGMENTS)]
        for key in {*finished, *excess}:
            self._segments.pop(key).close()

    def state(self, robot: str, run: str, segment: int) -> Confirmation | None:
        """Return what the store has of a segment, None if it has nothing. For the robot itself, on the same machine."""
        if not (self.folder / robot / run / segment_name(segment)).exists():
            return None
        opened = self._open(robot, run, segment)
        self.synchronize()
        return _confirm(robot, run, segment, opened)

    def set_aside(self, robot: str, content: bytes, reason: str) -> None:
        """Keep something that cannot be taken, for people to look at; bounded, so that nobody can fill the disk with it."""
        self.counts.set_aside += 1
        folder = self.folder / ASIDE_FOLDER / robot
        folder.mkdir(parents=True, exist_ok=True)
        number = sum(1 for _ in folder.glob("*.piece"))
        if number < MAX_ASIDE_PIECES:
            write_atomically(folder / f"{number:03d}.piece", content)
            write_atomically(folder / f"{number:03d}.reason.txt", f"{reason}\n".encode())

    def close(self) -> None:
        """Synchronize and close all files."""
        self.synchronize()
        for segment in self._segments.values():
            segment.close()
        self._segments.clear()
        self._lock.close()

    def _open(self, robot: str, run: str, number: int) -> _Segment:
        key = robot, run, number
        if key in self._segments:
            return self._segments[key]
        segment = _Segment(self.folder / robot / run / segment_name(number))
        self._make_folders(segment.path.parent)
        if segment.note("seal").exists():
            segment.seal = Seal(**json.loads(segment.note("seal").read_bytes()))
        if segment.note("refused").exists():
            segment.refused = json.loads(segment.note("refused").read_bytes())["reason"]
        if segment.path.exists() and not segment.is_finished:
            _cut_back(segment.path)
        if segment.path.exists():
            segment.size = segment.path.stat().st_size
            # What an earlier process wrote may not have reached the disk yet.
            segment.synchronized = segment.size if segment.is_finished else 0
        self._segments[key] = segment
        return segment

    def _make_folders(self, folder: Path) -> None:
        for each in (folder.parent, folder):
            if not each.is_dir():
                each.mkdir(exist_ok=True)
                sync_folder(each.parent)

    def _unfinished_predecessor(self, piece: Piece, segment: _Segment) -> Confirmation | None:
        """Return how far the segment before is, if it is not complete, so that no segment is begun before its time."""
        if piece.previous is None or piece.previous in segment.predecessors or segment.size > 0:
            return None
        before = self._open(piece.robot, piece.run, piece.previous)
        if before.is_finished:
            segment.predecessors.add(piece.previous)
            return None
        return _confirm(piece.robot, piece.run, piece.previous, before)

    def _contradiction(self, piece: Piece, segment: _Segment) -> str:
        """Return in words how the piece contradicts what is stored; empty if it does not."""
        if segment.seal is not None and piece.seal is not None and piece.seal != segment.seal:
            return f"the segment is complete with {segment.seal}, the robot says {piece.seal}"
        if segment.seal is not None and piece.end > segment.size:
            return f"the segment is complete with {segment.size} bytes, the piece ends at byte {piece.end}"
        overlap = min(piece.end, segment.size) - piece.offset
        if overlap > 0:
            with segment.path.open("rb") as file:
                file.seek(piece.offset)
                if file.read(overlap) != piece.data[:overlap]:
                    return f"bytes {piece.offset} to {piece.offset + overlap} differ from those that are stored"
        return ""

    def _append(self, piece: Piece, segment: _Segment) -> None:
        new = piece.data[segment.size - piece.offset :] if piece.end > segment.size else b""
        if not new and (segment.path.exists() or piece.seal is None):
            self.counts.duplicates += bool(piece.data) and (piece.seal is None or segment.seal is not None)
            return
        if shutil.disk_usage(self.folder).free - len(new) < self._min_free_bytes:
            raise OSError(errno.ENOSPC, f"less than {self._min_free_bytes} bytes would be left on the disk", str(self.folder))
        if segment.descriptor < 0:
            is_new = not segment.path.exists()
            segment.descriptor = os.open(segment.path, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o644)
            if is_new:
                sync_folder(segment.path.parent)
        try:
            _write_at(segment.descriptor, new, segment.size)
        except OSError:
            os.ftruncate(segment.descriptor, segment.size)
            raise
        segment.size += len(new)
        self.counts.bytes += len(new)
        self.counts.records += piece.records if len(new) == len(piece.data) else 0

    def _complete(self, seal: Seal, segment: _Segment) -> str:
        """Seal the segment if its digest is the robot's; returns in words what is wrong otherwise.

        The robot's file may be shorter than the store's: after a loss of power, or a failed write, it lost what it had sent.
        """
        with segment.path.open("rb") as file:
            digest, left = hashlib.sha256(), seal.size
            while left and (block := file.read(min(left, 1024**2))):
                digest.update(block)
                left -= len(block)
        if digest.hexdigest() != seal.sha256:
            return f"the first {seal.size} bytes have the digest {digest.hexdigest()}, the robot says {seal.sha256}"
        self._synchronize(segment)
        write_atomically(segment.note("seal"), json.dumps(dataclasses.asdict(seal)).encode())
        segment.seal = seal
        self.counts.completed_segments += 1
        return ""

    def _refuse(self, piece: Piece, segment: _Segment, reason: str) -> Confirmation:
        self.counts.refused += 1
        self.set_aside(piece.robot, piece.to_bytes(), f"{segment.path.parent.name}/{segment.path.name}: {reason}")
        if segment.seal is None:  # a complete segment stays what it is
            segment.refused = reason
            write_atomically(segment.note("refused"), json.dumps({"reason": reason}).encode())
        return self._answer(piece, segment, "refused", reason)

    def _synchronize(self, segment: _Segment) -> None:
        if segment.descriptor < 0:
            segment.descriptor = os.open(segment.path, os.O_WRONLY | os.O_CLOEXEC)
        try:
            os.fsync(segment.descriptor)
        except OSError:
            # After a failed fsync the pages may be gone although the next one succeeds.
            os.ftruncate(segment.descriptor, segment.synchronized)
            segment.size = segment.synchronized
            raise
        segment.synchronized = segment.size

    def _answer(self, piece: Piece, segment: _Segment, kind: ConfirmationKind = "stored", reason: str = "") -> Confirmation:
        stored = _confirm(piece.robot, piece.run, piece.segment, segment)
        seal = segment.seal if kind == "stored" else None
        return dataclasses.replace(stored, kind=kind, seal=seal, generation=piece.generation, reason=reason)


def _confirm(robot: str, run: str, number: int, segment: _Segment) -> Confirmation:
    return Confirmation(robot, run, number, segment.size, seal=segment.seal, last_sequence=segment.last_sequence)


def _write_at(descriptor: int, data: bytes, offset: int) -> None:
    view = memoryview(data)
    while view:
        count = os.pwrite(descriptor, view, offset)
        view, offset = view[count:], offset + count


def _cut_back(path: Path) -> None:
    """Cut an incomplete segment back to its last whole record: what follows may be anything after a loss of power."""
    data = path.read_bytes()
    end = len(MCAP0_MAGIC) if data.startswith(MCAP0_MAGIC) else 0
    for opcode, record_end, chunk in whole_chunks(data) if end else ():
        if chunk is not None and (parts := chunk_parts(chunk)) is not None and zlib.crc32(parts[1]) != parts[0]:
            break
        end = record_end
        if opcode == Opcode.FOOTER and data.startswith(MCAP0_MAGIC, end):
            end += len(MCAP0_MAGIC)
            break
    if end < len(data):
        os.truncate(path, end)
