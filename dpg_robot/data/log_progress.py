"""Putting the segments of a run behind each other: which records are new, and what is missing between them."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from dpg_robot.data.log_format import segment_name
from dpg_robot.data.log_segment import Segment, SegmentInfo


@dataclass(frozen=True)
class Piece:
    """What one segment adds to its run.

    Attributes:
        run_id: the run.
        records: those with new, rising sequence numbers; None when the segment could not be read.
        duplicates: how many others there are.
        missing: (first, last) sequence numbers of each gap before and among them.
        problems: everything that is not as it should be, in words.
        truncated_tail: how a last segment is cut off, in words. This is no problem.
    """

    run_id: str
    records: NDArray[np.void] | None
    duplicates: int = 0
    missing: tuple[tuple[int, int], ...] = ()
    problems: tuple[str, ...] = ()
    truncated_tail: str = ""


@dataclass
class RunProgress:
    """How far a run has been read.

    Attributes:
        info: what the run says about itself.
        next_segment: number of the segment that comes next.
        next_sequence: sequence number of the record that comes next.
    """

    info: SegmentInfo | None = None
    next_segment: int = 0
    next_sequence: int = 0

    def add(self, segment: Segment, *, is_last: bool) -> Piece:
        """Put ``segment`` behind what was read before and say what does not fit."""
        name = segment.path.name
        problems = [f"{name}: {damage}" for damage in segment.damage]
        tail = f"{name} is cut off, {segment.tail_bytes} bytes after its last whole chunk" if segment.cut_off else ""
        if tail and not is_last:
            problems.append(f"{tail}, although segments follow it")
        problems += self._missing_segments(name)
        self.info = self.info or segment.info
        if self.info is None or segment.info is None:
            return Piece("", None, problems=tuple(problems), truncated_tail=tail)
        if (segment.info.run_id, segment.info.contract) != (self.info.run_id, self.info.contract):
            problems.append(f"{name} belongs to run {segment.info.run_id}, not to run {self.info.run_id}, and is left out")
            return Piece(self.info.run_id, None, problems=tuple(problems))
        records, missing, duplicates = self._rising(segment.records)
        problems += [
            f"sequences {first} to {last} are missing ({last - first + 1} records), noticed in {name}" for first, last in missing
        ]
        return Piece(self.info.run_id, records, duplicates, missing, tuple(problems), tail if is_last else "")

    def _missing_segments(self, name: str) -> list[str]:
        missing = []
        while segment_name(self.next_segment) != name:
            missing.append(f"{segment_name(self.next_segment)} is missing")
            self.next_segment += 1
        self.next_segment += 1
        return missing

    def _rising(self, records: NDArray[np.void]) -> tuple[NDArray[np.void], tuple[tuple[int, int], ...], int]:
        """Return the records whose sequence numbers rise, the gaps before and among them, and how many others there are."""
        sequences = records["sequence"].astype(np.int64)
        highest = np.maximum.accumulate(np.concatenate([[self.next_sequence - 1], sequences]))
        rising = sequences > highest[:-1]
        before, after = highest[:-1][rising], sequences[rising]
        gaps = after - before > 1
        missing = tuple((int(last) + 1, int(first) - 1) for last, first in zip(before[gaps], after[gaps], strict=True))
        self.next_sequence = int(highest[-1]) + 1
        return records[rising], missing, int(np.count_nonzero(~rising))
