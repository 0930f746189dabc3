"""The robot's side, without any transport: which piece is next, what is on its way, and what the host has confirmed.

Everything that is not confirmed is read again from the robot log when it must be sent again, so the memory is bounded whatever
the link does. Runs are sent in the order of their names, which is that of their starts; each run in order.
"""

from __future__ import annotations

import time
from collections import deque
from dataclasses import dataclass, field
from pathlib import Path

from dpg_robot.data.log_format import SEGMENT_PATTERN, segment_name, segment_number
from dpg_robot.shipping.ledger import SHIPPING_FOLDER, Ledger
from dpg_robot.shipping.piece import PIECE_BYTES, Confirmation, Piece, PieceError, require_robot_name, require_run_id
from dpg_robot.shipping.segment_follower import IDLE_S, SegmentFollower, Span

WINDOW_BYTES = 16 * 1024**2
_PIECE_COST = 32 * 1024  # bytes that a piece counts in addition, so that the window also bounds the number of pieces
_FRESH_NS = 2_000_000_000  # a folder that changed so recently may change again without a new time of change

Place = tuple[int, int]  # segment, offset


@dataclass
class _Run:
    """How far one run is sent and confirmed."""

    folder: Path
    generation: int
    segments: list[int] = field(default_factory=list)
    listed_ns: int = -1
    sent: Place = (0, 0)
    confirmed: Place = (0, 0)
    known: bool = False  # whether its last confirmation was looked up
    asked: bool = False  # whether the host was asked, with a piece without data
    answered: bool = False  # whether it has said how far it is
    on_the_way: deque[tuple[Place, int]] = field(default_factory=deque)  # place behind each piece, and its cost
    follower: SegmentFollower | None = None
    following: int = -1

    @property
    def name(self) -> str:
        return self.folder.name

    def list_segments(self) -> None:
        """Look for segments, if the folder may have changed."""
        changed_ns = self.folder.stat().st_mtime_ns
        if changed_ns == self.listed_ns:
            return
        self.segments = sorted(segment_number(path) for path in self.folder.glob(SEGMENT_PATTERN))
        self.listed_ns = changed_ns if time.time_ns() - changed_ns > _FRESH_NS else -1

    def go_to(self, place: Place) -> None:
        """Take ``place`` for all that the host has, and send from there."""
        self.sent = self.confirmed = place
        self.on_the_way.clear()

    def ask_again(self) -> None:
        """Take nothing for granted that is on its way."""
        self.known = self.asked = self.answered = False
        self.generation += 1  # so that no server takes what is sent again for a repetition, and no late answer for a new one
        self.go_to(self.confirmed)

    @property
    def is_waiting(self) -> bool:
        """Whether the host was asked and has not answered."""
        return self.asked and not self.answered

    def settle(self, place: Place) -> None:
        """Note that the host has everything before ``place``."""
        self.confirmed = max(self.confirmed, place)
        while self.on_the_way and self.on_the_way[0][0] <= self.confirmed:
            self.on_the_way.popleft()
        self.sent = max(self.sent, self.confirmed)

    def close(self) -> None:
        if self.follower is not None:
            self.follower.close()
        self.follower, self.following = None, -1


class Outbox:
    """What a robot has to send.

    A transport asks in turn for :meth:`unknown` (and answers with :meth:`resume`) and :meth:`next_piece`, and passes on what the
    host says with :meth:`confirm`.

    Attributes:
        last_sequence: last sequence number that the host confirmed, of the run that it confirmed last; None before.
    """

    def __init__(
        self,
        log_folder: Path,
        robot: str,
        ledger: Ledger,
        *,
        piece_bytes: int = PIECE_BYTES,
        window_bytes: int = WINDOW_BYTES,
        idle_s: float = IDLE_S,
    ) -> None:
        """Look at the log folder.

        Args:
            log_folder: the robot log, with a folder for each run.
            robot: name of the robot.
            ledger: that of the folder.
            piece_bytes: most bytes in a piece.
            window_bytes: most bytes on their way.
            idle_s: as in :class:`SegmentFollower`.
        """
        self.last_sequence: int | None = None
        self._folder = log_folder
        self._robot = require_robot_name(robot)
        self._ledger = ledger
        self._piece_bytes = piece_bytes
        self._window_bytes = window_bytes
        self._idle_s = idle_s
        self._runs: dict[str, _Run] = {}
        self._active: list[_Run] = []  # those with segments that the host does not have yet
        self.scan()

    def scan(self) -> None:
        """Look for new runs and segments."""
        for path in sorted(self._folder.iterdir()) if self._folder.is_dir() else ():
            if path.name in self._runs or path.name == SHIPPING_FOLDER or not path.is_dir():
                continue
            try:
                require_run_id(path.name)
            except PieceError:
                continue  # not a folder of the log writer
            # Greater than all of a process that ended, so that no server takes what is sent again for a repetition.
            self._runs[path.name] = _Run(path, generation=time.time_ns() // 1_000_000)
        for name, run in list(self._runs.items()):
            try:
                run.list_segments()
            except FileNotFoundError:
                run.close()
                del self._runs[name]
        self._runs = dict(sorted(self._runs.items()))
        self._active = [run for run in self._runs.values() if self._first_open(run) is not None]

    @property
    def bytes_on_the_way(self) -> int:
        """Bytes that were sent and are not confirmed."""
        return sum(sum(cost for _, cost in run.on_the_way) + run.is_waiting * _PIECE_COST for run in self._active)

    @property
    def pieces_on_the_way(self) -> int:
        """Pieces that were sent and are not confirmed."""
        return sum(len(run.on_the_way) + run.is_waiting for run in self._active)

    def backlog_bytes(self) -> int:
        """Return how many bytes of the log the host has not confirmed."""
        total = 0
        for run in self._active:
            for segment in self._open_segments(run):
                confirmed = run.confirmed[1] if run.confirmed[0] == segment else 0
                total += max(0, _size(run.folder / segment_name(segment)) - confirmed)
        return total

    def is_empty(self) -> bool:
        """Return whether the host has confirmed, or refused, every segment that there is, and all of them are closed."""
        self.scan()
        return not self._active

    def forget_connection(self) -> None:
        """Take nothing for granted that is on its way; ask the host how far it is before anything else is sent."""
        for run in self._runs.values():
            run.ask_again()

    def go_back(self) -> None:
        """Do the same with all runs that wait for a confirmation."""
        for run in self._runs.values():
            if run.on_the_way or run.is_waiting:
                run.ask_again()

    def unknown(self) -> tuple[str, int] | None:
        """Return run and segment of which the host should be asked how far it is, None if there is nothing to ask."""
        for run in self._active:
            if not run.known and (segment := self._first_open(run)) is not None:
                return run.name, segment
        return None

    def resume(self, name: str, confirmation: Confirmation | None) -> None:
        """Begin with a run where the host is, according to its last confirmation of the segment from :meth:`unknown`."""
        run = self._runs[name]
        segment = self._first_open(run)
        if not run.known and segment is not None and run.confirmed[0] != segment:
            run.go_to((segment, 0))
        run.known = True
        if confirmation is not None and confirmation.kind != "refused":
            self._confirm_stored(run, confirmation)

    def next_piece(self) -> Piece | None:
        """Return the next piece, None if there is nothing now or enough is on its way.

        Raises:
            OSError: when the log cannot be read.
        """
        if self.bytes_on_the_way >= self._window_bytes:
            return None
        for run in self._active:
            if run.known and (piece := self._next_of(run)) is not None:
                return piece
        return None

    def confirm(self, confirmation: Confirmation) -> None:
        """Take notice of what the host says."""
        run = self._runs.get(confirmation.run)
        if run is None or confirmation.robot != self._robot:
            return
        if confirmation.generation == run.generation:
            run.answered = True
        if confirmation.kind == "stored":
            self._confirm_stored(run, confirmation)
        elif confirmation.kind == "refused":
            if self._ledger.entry(run.name, confirmation.segment) is None:
                self._ledger.record(confirmation)
            if run.confirmed < (confirmation.segment + 1, 0):
                run.go_to((confirmation.segment + 1, 0))
                run.generation += 1
        elif confirmation.generation == run.generation:  # otherwise it is about pieces from before
            self._ledger.remove(run.name, confirmation.segment)
            run.go_to((confirmation.segment, confirmation.offset))
            run.generation += 1

    def close(self) -> None:
        """Close all files."""
        for run in self._runs.values():
            run.close()

    def _confirm_stored(self, run: _Run, confirmation: Confirmation) -> None:
        place = (confirmation.segment, confirmation.offset)
        if confirmation.seal is not None:
            place = (confirmation.segment + 1, 0)
            if self._ledger.entry(run.name, confirmation.segment) is None:
                self._ledger.record(confirmation)
        run.settle(place)
        if confirmation.last_sequence is not None:
            self.last_sequence = confirmation.last_sequence

    def _open_segments(self, run: _Run) -> list[int]:
        return [segment for segment in run.segments if self._ledger.entry(run.name, segment) is None]

    def _first_open(self, run: _Run) -> int | None:
        return next(iter(self._open_segments(run)), None)

    def _next_of(self, run: _Run) -> Piece | None:
        # everything from the place on that is not done with, whatever was deleted in between
        segment = next((each for each in self._open_segments(run) if each >= run.sent[0]), None)
        if segment is None:
            return None
        offset = run.sent[1] if segment == run.sent[0] else 0
        if not run.answered:
            return None if run.asked else self._question(run, segment, offset)
        span = self._read(run, segment, offset)
        if span is None:
            return None
        piece = Piece(
            robot=self._robot,
            run=run.name,
            segment=segment,
            offset=offset if span.data or span.seal is None else min(offset, span.seal.size),
            data=span.data,
            previous=_previous(run, segment),
            seal=span.seal,
            records=span.ticks.count,
            first_sequence=span.ticks.first,
            last_sequence=span.ticks.last,
            generation=run.generation,
        )
        run.sent = (segment + 1, 0) if span.seal is not None else (segment, piece.end)
        run.on_the_way.append((run.sent, len(piece.data) + _PIECE_COST))
        return piece

    def _question(self, run: _Run, segment: int, offset: int) -> Piece:
        """Return a piece without data, to which the host answers how far it is."""
        run.asked = True
        return Piece(self._robot, run.name, segment, offset, b"", _previous(run, segment), generation=run.generation)

    def _read(self, run: _Run, segment: int, offset: int) -> Span | None:
        try:
            if run.follower is None or run.following != segment:
                run.close()
                run.follower, run.following = SegmentFollower(run.folder / segment_name(segment), idle_s=self._idle_s), segment
            return run.follower.read(offset, self._piece_bytes, has_successor=segment < run.segments[-1])
        except FileNotFoundError:  # deleted since the folder was listed
            run.listed_ns = -1
            run.segments = [each for each in run.segments if each != segment]
            return None


def _previous(run: _Run, segment: int) -> int | None:
    return max((each for each in run.segments if each < segment), default=None)


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except FileNotFoundError:
        return 0
