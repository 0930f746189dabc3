"""Checking the records of complete segments of a store, apart from the receiver, because it takes much longer than the shipping.

Program: ``python -m dpg_robot.shipping.segment_check SEGMENT...`` prints a JSON object for each segment.
"""

from __future__ import annotations

import dataclasses
import json
import os
import sys
from dataclasses import dataclass
from pathlib import Path

from dpg_robot.data.log_format import SEGMENT_PATTERN
from dpg_robot.data.log_segment import read_segment
from dpg_robot.errors import LogError

_NICE = 10


@dataclass(frozen=True)
class SegmentCheck:
    """What the records of a complete segment are.

    Attributes:
        path: the segment's file.
        records: whole records.
        first: sequence number of the first, None without records.
        last: sequence number of the last, None without records.
        problems: what is wrong with it, in words; shipping did not cause it, because the bytes are the robot's.
    """

    path: str
    records: int
    first: int | None
    last: int | None
    problems: tuple[str, ...]


def check_segment(path: Path, before: int | None) -> SegmentCheck:
    """Check the records' own checksums, the run they belong to, and that no sequence number is missing.

    Args:
        path: a complete segment of a store.
        before: last sequence number of the segment before, None if there is none.
    """
    try:
        segment = read_segment(path)
    except (LogError, OSError) as error:
        return SegmentCheck(str(path), 0, None, None, (str(error),))
    problems = list(segment.damage)
    if segment.info is not None and segment.info.run_id != path.parent.name:
        problems.append(f"it says that it belongs to run {segment.info.run_id!r}")
    sequences = segment.records["sequence"]
    if not len(sequences):
        return SegmentCheck(str(path), 0, None, None, tuple(problems))
    first, last = int(sequences[0]), int(sequences[-1])
    if last - first + 1 != len(sequences) or (sequences[1:] <= sequences[:-1]).any():
        problems.append(f"its {len(sequences)} records from sequence {first} to {last} are not contiguous")
    if before is not None and first != before + 1:
        problems.append(f"it begins with sequence {first}, the segment before ends with {before}")
    return SegmentCheck(str(path), len(sequences), first, last, tuple(problems))


def last_before(path: Path) -> int | None:
    """Return the last sequence number in the segment before ``path``; None if there is no segment, or no record in it."""
    earlier = [each for each in sorted(path.parent.glob(SEGMENT_PATTERN)) if each.name < path.name]
    if not earlier:
        return None
    sequences = read_segment(earlier[-1]).records["sequence"]
    return int(sequences[-1]) if len(sequences) else None


def main() -> None:
    """Check the segments of the command line, in order."""
    os.nice(_NICE)
    checks: dict[Path, SegmentCheck] = {}
    for path in map(Path, sys.argv[1:]):
        known = [check.last for other, check in checks.items() if other.parent == path.parent and other < path]
        checks[path] = check_segment(path, known[-1] if known else last_before(path))
        print(json.dumps(dataclasses.asdict(checks[path])), flush=True)


if __name__ == "__main__":
    main()
