"""Reading and checking the robot log: records, transitions, and a report of what is missing.

A log folder holds one folder per run, a run folder the run's segments. Wherever a ``path`` is asked for, either will do. A last
segment that is cut off (the writer was killed, or is still writing) is read up to its last whole record; anything else that is
missing or damaged is an error unless it is asked for to be skipped. The format is described in docs/robot-log.md.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from dpg_robot.contract import Contract
from dpg_robot.data.log_format import SEGMENT_PATTERN, segment_name
from dpg_robot.data.log_progress import Piece, RunProgress
from dpg_robot.data.log_segment import read_segment
from dpg_robot.data.transition import Transition, tick_dtype
from dpg_robot.data.transition_arrays import TransitionArrays, pair_records
from dpg_robot.errors import LogError

OnDamage = Literal["raise", "skip"]
LogPath = str | os.PathLike[str]


def find_runs(path: LogPath) -> list[Path]:
    """Return the run folders at ``path``, sorted by name; raises LogError when there are none."""
    folder = Path(path)
    if any(folder.glob(SEGMENT_PATTERN)):
        return [folder]
    runs = sorted({segment.parent for segment in folder.glob(f"*/{SEGMENT_PATTERN}")})
    if not runs:
        raise LogError(
            f"{folder} holds no robot log; expected a run folder with {segment_name(0)} in it, or a log folder with run folders"
        )
    return runs


def read_records(path: LogPath, *, on_damage: OnDamage = "raise") -> Iterator[NDArray[np.void]]:
    """Yield the records of all runs as arrays (n,) of :func:`~dpg_robot.data.transition.tick_dtype`, one array per segment.

    Sequence numbers rise within a run; records that are there twice are yielded once.

    Args:
        path: a run folder or a log folder.
        on_damage: whether missing and damaged records raise LogError when they are reached, or are skipped.
    """
    for folder in find_runs(path):
        for _, records in _read_run(folder, on_damage):
            yield records


def read_segments(run: LogPath, *, on_damage: OnDamage = "raise") -> Iterator[tuple[Path, str, NDArray[np.void]]]:
    """Yield path, run id and records of each segment of one run folder; no records where it has none that can be used.

    Raises:
        LogError: at the first problem, unless ``on_damage`` is ``skip``.
    """
    folder = Path(run)
    for path, piece in zip(sorted(folder.glob(SEGMENT_PATTERN)), _read_pieces(folder), strict=True):
        if piece.problems and on_damage == "raise":
            raise LogError(
                f"the robot log {folder} is not contiguous: {'; '.join(piece.problems)}. "
                "check_log reports all problems; on_damage='skip' reads what is left."
            )
        yield path, piece.run_id, np.zeros(0, tick_dtype(0, 0)) if piece.records is None else piece.records


def read_contract(run: LogPath) -> Contract:
    """Return the contract of the policy that ran, from a run folder. Raises LogError if no segment holds it."""
    segments = sorted(Path(run).glob(SEGMENT_PATTERN))
    info = next((segment.info for path in segments if (segment := read_segment(path)).info), None)
    if info is None:
        raise LogError(f"no segment of {run} says which robot and task it belongs to; it cannot be used")
    return info.contract


def read_transitions(path: LogPath, *, on_damage: OnDamage = "raise") -> Iterator[Transition]:
    """Yield the transitions of all runs in order; :func:`pair_records` says which records make one.

    Args:
        path: a run folder or a log folder.
        on_damage: whether missing and damaged records raise LogError when they are reached, or are skipped. No transition
            spans missing records.
    """
    for folder in find_runs(path):
        for arrays in _read_run_transitions(folder, on_damage):
            yield from arrays


def load_transitions(path: LogPath, *, on_damage: OnDamage = "raise") -> TransitionArrays:
    """Return what :func:`read_transitions` yields as stacked arrays.

    Raises:
        LogError: when records are missing or damaged, or there is no transition at all.
        ContractError: when the runs differ in their numbers of measurements or actions.
    """
    parts = [arrays for folder in find_runs(path) for arrays in _read_run_transitions(folder, on_damage) if len(arrays)]
    if not parts:
        raise _no_transitions(path)
    return TransitionArrays.concatenate(parts)


def load_newest_transitions(path: LogPath, count: int, *, on_damage: OnDamage = "raise") -> tuple[TransitionArrays, Contract]:
    """Return the newest transitions of a robot, and the contract that they were made with.

    Args:
        path: a run folder, or a log folder of one robot.
        count: how many are wanted; fewer come where there are no more, or where an earlier run was another robot's.
        on_damage: as for :func:`read_transitions`.

    Raises:
        LogError: as :func:`load_transitions` does.
    """
    found: list[TransitionArrays] = []
    contract: Contract | None = None
    for folder in reversed(find_runs(path)):
        parts = [arrays for arrays in _read_run_transitions(folder, on_damage) if len(arrays)]
        if not parts:
            continue
        theirs = read_contract(folder)
        if contract is not None and contract.robot_differences(theirs):
            break
        contract = contract or theirs
        found.insert(0, TransitionArrays.concatenate(parts))
        if sum(map(len, found)) >= count:
            break
    if contract is None:
        raise _no_transitions(path)
    return TransitionArrays.concatenate(found).last(count), contract


def _no_transitions(path: LogPath) -> LogError:
    return LogError(f"the robot log {path} holds no transitions; they are recorded while the robot is running an episode")


@dataclass(frozen=True)
class RunReport:
    """What one run holds and what is wrong with it.

    Attributes:
        run_id: the run; the name of its folder if no segment could say it.
        folder: where it is.
        segments: number of its segments.
        records: records that could be read, repeated ones not counted.
        episodes: episodes that have at least one record.
        transitions: transitions that the records make.
        invalid_transitions: those among them with a stale measurement or a skipped period.
        skipped_periods: control periods that the loop skipped.
        duplicates: records that were there more than once.
        missing: (first, last) sequence numbers of each gap.
        problems: everything that makes the run incomplete, in words; empty for a contiguous run.
        truncated_tail: how the last segment is cut off, in words; empty if it was completed. This is no problem.
        seconds: time from the first record to the last.
    """

    run_id: str
    folder: Path
    segments: int
    records: int
    episodes: int
    transitions: int
    invalid_transitions: int
    skipped_periods: int
    duplicates: int
    missing: tuple[tuple[int, int], ...]
    problems: tuple[str, ...]
    truncated_tail: str
    seconds: float

    def __str__(self) -> str:
        lines = [
            f"run {self.run_id}: {self.records} records in {self.segments} segments, {self.seconds:.1f} s",
            f"  {self.episodes} episodes; {self.transitions} transitions, {self.invalid_transitions} of them invalid; "
            f"{self.skipped_periods} skipped periods; {self.duplicates} duplicates",
            *(f"  problem: {problem}" for problem in self.problems),
        ]
        return "\n".join([*lines, f"  note: {self.truncated_tail}"] if self.truncated_tail else lines)


@dataclass(frozen=True)
class LogReport:
    """Reports of all runs of a log."""

    runs: tuple[RunReport, ...]

    @property
    def contiguous(self) -> bool:
        """Whether no run has a problem."""
        return not any(run.problems for run in self.runs)

    def __str__(self) -> str:
        return "\n".join(str(run) for run in self.runs)


def check_log(path: LogPath) -> LogReport:
    """Read the whole log at ``path`` and report what it holds and what is missing or damaged."""
    return LogReport(tuple(_check_run(folder) for folder in find_runs(path)))


def require_contiguous(path: LogPath) -> LogReport:
    """Return the report of a log without gaps or damage; raises LogError naming runs, segments and sequence numbers otherwise."""
    report = check_log(path)
    if not report.contiguous:
        problems = [f"run {run.run_id}: {problem}" for run in report.runs for problem in run.problems]
        raise LogError(f"the robot log {path} is not contiguous:\n  " + "\n  ".join(problems))
    return report


def _read_pieces(folder: Path) -> Iterator[Piece]:
    paths = sorted(folder.glob(SEGMENT_PATTERN))
    progress = RunProgress()
    for path in paths:
        segment = read_segment(path, progress.info)
        if segment.info is None and segment.damage:
            known = (read_segment(other).info for other in paths if other != path)
            segment = read_segment(path, next(filter(None, known), None))
        yield progress.add(segment, is_last=path == paths[-1])


def _read_run(folder: Path, on_damage: OnDamage) -> Iterator[tuple[str, NDArray[np.void]]]:
    """Yield (run id, records) of each segment that has records; raises LogError as :func:`read_segments`."""
    for _, run_id, records in read_segments(folder, on_damage=on_damage):
        if len(records):
            yield run_id, records


def _read_run_transitions(folder: Path, on_damage: OnDamage) -> Iterator[TransitionArrays]:
    last: NDArray[np.void] | None = None
    for run_id, records in _read_run(folder, on_damage):
        joined = records if last is None else np.concatenate([last, records])
        last = records[-1:]
        yield pair_records(run_id, joined)


def _check_run(folder: Path) -> RunReport:
    pieces: list[Piece] = []
    counts = {"records": 0, "transitions": 0, "invalid_transitions": 0, "skipped_periods": 0}
    episodes: set[int] = set()
    first = last = None
    for piece in _read_pieces(folder):
        pieces.append(replace(piece, records=None))  # the records of a whole run may not fit into memory
        if piece.records is None or not len(piece.records):
            continue
        records = piece.records if last is None else np.concatenate([last, piece.records])
        transitions = pair_records(piece.run_id, records)
        steps = np.diff(records["period"])[np.diff(records["sequence"]) == 1]
        counts["records"] += len(piece.records)
        counts["transitions"] += len(transitions)
        counts["invalid_transitions"] += int(np.count_nonzero(~transitions.valid))
        counts["skipped_periods"] += int(np.maximum(steps - 1, 0).sum())
        episodes.update(np.unique(piece.records["episode"][piece.records["episode"] >= 0]).tolist())
        first = piece.records[:1] if first is None else first
        last = piece.records[-1:]
    return RunReport(
        run_id=next((piece.run_id for piece in pieces if piece.run_id), folder.name),
        folder=folder,
        segments=len(pieces),
        episodes=len(episodes),
        duplicates=sum(piece.duplicates for piece in pieces),
        missing=tuple(gap for piece in pieces for gap in piece.missing),
        problems=tuple(problem for piece in pieces for problem in piece.problems),
        truncated_tail=pieces[-1].truncated_tail,
        seconds=0.0 if first is None or last is None else float(last["time_ns"][0] - first["time_ns"][0]) / 1e9,
        **counts,
    )
