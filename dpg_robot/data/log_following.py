"""Following robot logs while they are written: each finished episode comes out once, as soon as it is there."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from dpg_robot.contract import Contract
from dpg_robot.data.log_format import SEGMENT_PATTERN, segment_number
from dpg_robot.data.log_progress import RunProgress
from dpg_robot.data.log_segment import read_segment
from dpg_robot.data.transition import EpisodeEnd, tick_dtype
from dpg_robot.data.transition_arrays import TransitionArrays, pair_records
from dpg_robot.errors import LogError

_MAX_SEGMENTS = 64  # of a run that are read at once


@dataclass(frozen=True)
class FollowedEpisodes:
    """Episodes of one run that were finished since the last look.

    Attributes:
        robot: name of the robot; empty in the log folder of a single one.
        run: folder of the run.
        contract: of the policy that ran.
        transitions: those of the episodes, in order.
    """

    robot: str
    run: Path
    contract: Contract
    transitions: TransitionArrays


@dataclass
class _Run:
    """A run that is being followed."""

    folder: Path
    progress: RunProgress = field(default_factory=RunProgress)
    seen_sequence: int = -1  # of the newest record that was taken
    size: int = -1  # of all unread segments at the last look
    waiting: NDArray[np.void] | None = None  # records of the episode that is not finished


class LogFollower:
    """Looks into log folders again and again for what is new.

    An episode is finished when its closing record is there, when another one follows it, or when its run is over: the robot has
    begun another run. A run with a fault (a gap, a damaged segment) is left alone from there on: what it gave before is kept, the
    fault stands in :attr:`faults`, and other runs go on.

    Args:
        folder: a log folder of one robot, with run folders in it; or a store of several, ``<robot>/<run>``.
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)
        self.faults: dict[str, str] = {}
        self._runs: dict[Path, _Run] = {}

    def poll(self) -> list[FollowedEpisodes]:
        """Return what was finished since the last call, robot by robot, oldest runs first."""
        found = []
        for robot, folders in self._find_runs().items():
            for folder in folders:
                name = str(folder.relative_to(self.folder))
                if name in self.faults:
                    continue
                run = self._runs.setdefault(folder, _Run(folder))
                transitions, fault = _read_new(run, over=folder != folders[-1])
                if fault:
                    self.faults[name] = fault
                if len(transitions) and run.progress.info is not None:
                    found.append(FollowedEpisodes(robot, folder, run.progress.info.contract, transitions))
        return found

    def state_dict(self) -> dict[str, int]:
        """Return how far each run was given out, as the sequence number of its last record, by its path in the folder."""
        return {str(folder.relative_to(self.folder)): _given(run) for folder, run in self._runs.items()}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Go on behind what :meth:`state_dict` told: what was given out is not given again."""
        self._runs = {self.folder / name: _Run(self.folder / name, seen_sequence=given) for name, given in state.items()}
        self.faults = {}

    def _find_runs(self) -> dict[str, list[Path]]:
        """Return the run folders of each robot, in order of time."""
        runs: dict[str, list[Path]] = {}
        for pattern in (f"*/{SEGMENT_PATTERN}", f"*/*/{SEGMENT_PATTERN}"):
            for run in sorted({segment.parent for segment in self.folder.glob(pattern)}):
                parts = run.relative_to(self.folder).parts
                if not any(part.startswith(".") for part in parts):
                    runs.setdefault(parts[0] if len(parts) > 1 else "", []).append(run)
        return runs


def _read_new(run: _Run, *, over: bool) -> tuple[TransitionArrays, str]:
    """Return the transitions of the episodes that are finished now, and the fault at which the run ends, if any."""
    all_paths = [path for path in sorted(run.folder.glob(SEGMENT_PATTERN)) if segment_number(path) >= run.progress.next_segment]
    paths = all_paths[:_MAX_SEGMENTS]
    size = sum(path.stat().st_size for path in paths)
    fault = ""
    if size != run.size:
        run.size = size if len(paths) < 2 else -1  # of several, those that are complete are not looked at again
        fault = _read_segments(run, paths, all_paths[-1:])
    records = run.waiting
    if records is None or run.progress.info is None:
        return pair_records("", np.zeros(0, tick_dtype(0, 0))), fault
    finished = len(records) if fault or (over and paths == all_paths) else _finished(records)
    run.waiting = records[finished:]
    return pair_records(run.progress.info.run_id, records[:finished]), fault


def _read_segments(run: _Run, paths: list[Path], last: list[Path]) -> str:
    """Put the new records of some segments behind those that wait; returns the first fault, if any."""
    parts = [] if run.waiting is None else [run.waiting]
    fault = ""
    for path in paths:
        progress = dataclasses.replace(run.progress)
        try:
            segment = read_segment(path, run.progress.info)
            piece = progress.add(segment, is_last=path in last)
        except (LogError, OSError) as error:
            fault = str(error)
            break
        if piece.problems:
            fault = "; ".join(piece.problems)
            break
        run.progress.info = progress.info
        if piece.records is not None:
            parts.append(piece.records[piece.records["sequence"].astype(np.int64) > run.seen_sequence])
            run.seen_sequence = max([run.seen_sequence, *piece.records["sequence"][-1:].tolist()])
        if not segment.cut_off:
            run.progress = progress
    run.waiting = np.concatenate(parts) if parts else None
    return fault


def _finished(records: NDArray[np.void]) -> int:
    """Return how many of the records, from the first on, belong to finished episodes or to none."""
    closed = np.flatnonzero((records["episode_end"] != EpisodeEnd.NOT_ENDED) | (records["episode"] < 0))
    changed = np.flatnonzero(records["episode"][1:] != records["episode"][:-1])
    ends = np.concatenate([closed, changed]) + 1
    return int(ends.max(initial=0))


def _given(run: _Run) -> int:
    if run.waiting is None or not len(run.waiting):
        return run.seen_sequence
    return int(run.waiting["sequence"][0]) - 1
