"""The robot log as a data set: episodes of valid transitions, with observations that have no history, segment by segment."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dpg_robot.contract import Contract
from dpg_robot.data.datasets import DatasetError, Episode, with_history
from dpg_robot.data.episode_source import FoundEpisode
from dpg_robot.data.log_segment import SegmentInfo, read_segment
from dpg_robot.data.robot_log import LogPath, OnDamage, find_runs, read_contract, read_segments
from dpg_robot.data.transition_arrays import TransitionArrays, pair_records

RewardFunction = Callable[[NDArray[Any], NDArray[Any]], NDArray[np.float64]]

_CUT = "episode cut where a measurement was stale or not finite, or a period was skipped"
_OPEN = "episode without a closing record (the run was killed) ended as cut"


@dataclass(frozen=True)
class _Part:
    """One segment: the episodes that begin in it, and where they go on.

    Attributes:
        path: the segment.
        info: what it belongs to.
        after: highest sequence number before it; records up to there are repetitions.
        first_episode: episode of its first record.
        last_episode: episode of its last record.
    """

    path: Path
    info: SegmentInfo
    after: int
    first_episode: int
    last_episode: int


class LogSource:
    """The episodes of a robot log; those that begin in one segment make one part.

    An episode is cut where a transition is not valid, so that what stands next to each other happened next to each other.
    ``intended_action``, commands, times and device flags are not part of a data set.

    Args:
        path: a run folder or a log folder; all runs must have the same contract.
        reward: rewards (N,) per reward step from measurements (N, M) after actions (N, A); None where they are not known.
        on_damage: whether missing and damaged records raise LogError or are skipped.

    Raises:
        LogError: no log, or damage.
        DatasetError: runs of different contracts, or no records.
    """

    def __init__(self, path: LogPath, reward: RewardFunction | None = None, *, on_damage: OnDamage = "raise") -> None:
        self._reward = reward
        self._parts: list[_Part] = []
        self.name = Path(path).resolve().name
        runs = find_runs(path)
        self.run_contract: Contract = read_contract(runs[0])
        for run in runs:
            contract = read_contract(run)
            if contract != self.run_contract:
                raise DatasetError(f"the runs {runs[0].name} and {run.name} have different contracts; convert them one by one")
            self._parts += _index(run, contract, on_damage)
        if not self._parts:
            raise DatasetError(f"the robot log {path} has no records")
        self.contract = with_history(self.run_contract, 0)
        self.settings: dict[str, Any] = {"source": "robot log", "runs": [run.name for run in runs]}

    def __len__(self) -> int:
        return len(self._parts)

    def read_part(self, index: int) -> list[FoundEpisode]:
        """Return the episodes that begin in one segment, read on to their ends."""
        part = self._parts[index]
        records = self._records(index)
        if index and self._goes_on(index - 1):
            records = records[_leading(records, part.first_episode) :]
        pieces = [records]
        following = index
        while len(records) and self._goes_on(following):
            following += 1
            after = self._records(following)
            count = _leading(after, self._parts[following].first_episode)
            pieces.append(after[:count])
            if count < len(after):
                break
        return self._episodes(part, pair_records(part.info.run_id, np.concatenate(pieces)))

    def _goes_on(self, index: int) -> bool:
        """Return whether the last episode of a part goes on in the next."""
        if index + 1 >= len(self._parts):
            return False
        part, after = self._parts[index], self._parts[index + 1]
        return part.info.run_id == after.info.run_id and part.last_episode == after.first_episode

    def _records(self, index: int) -> NDArray[np.void]:
        part = self._parts[index]
        records = read_segment(part.path, part.info).records
        sequences = records["sequence"].astype(np.int64)
        highest = np.maximum.accumulate(np.concatenate([[part.after], sequences]))
        return records[sequences > highest[:-1]]

    def _episodes(self, part: _Part, steps: TransitionArrays) -> list[FoundEpisode]:
        usable = steps.valid & np.isfinite(steps.measurement).all(1) & np.isfinite(steps.next_measurement).all(1)
        usable &= np.isfinite(steps.action).all(1)
        kept = np.flatnonzero(usable)
        joined = (np.diff(kept) == 1) & (np.diff(steps.episode[kept]) == 0) & (np.diff(steps.sequence[kept]) == 1)
        groups = np.split(kept, np.flatnonzero(~joined) + 1) if len(kept) else []
        return [self._episode(part, steps, group) for group in groups]

    def _episode(self, part: _Part, steps: TransitionArrays, group: NDArray[np.int64]) -> FoundEpisode:
        last = group[-1]
        action, ended = steps.action[group], steps.terminal[last] or steps.timeout[last]
        measured = np.concatenate([steps.measurement[group], steps.next_measurement[last][None]])
        rewards = None
        if self._reward is not None:
            # the log knows one measurement per control step; all reward steps in it are taken to be paid as the last
            rewards = (self.contract.action_repeat * self._reward(measured[1:], action)).astype(np.float32)
        terminations = np.zeros(len(group), np.bool_)
        terminations[-1] = steps.terminal[last]
        truncations = np.zeros(len(group), np.bool_)
        truncations[-1] = not steps.terminal[last]
        goes_on = last + 1 < len(steps) and steps.episode[last + 1] == steps.episode[last]
        notes = () if ended else ((_CUT,) if goes_on else (_OPEN,))
        times_s = np.append(steps.time_ns[group], steps.next_time_ns[last]) / 1e9
        episode = Episode(self.contract.compute_features(measured), action.astype(np.float32), rewards, terminations, truncations)
        label = f"run {part.info.run_id}, episode {steps.episode[last]} from step {steps.step[group[0]]}"
        return FoundEpisode(label, episode, times_s, notes)


def _index(run: Path, contract: Contract, on_damage: OnDamage) -> list[_Part]:
    """Read a run once, one segment in memory at a time, and note which episodes are where."""
    parts = []
    after = -1
    for path, run_id, records in read_segments(run, on_damage=on_damage):
        if len(records):
            first, last = (int(records["episode"][index]) for index in (0, -1))
            parts.append(_Part(path, SegmentInfo(run_id, contract, {}), after, first, last))
            after = int(records["sequence"].max())
    return parts


def _leading(records: NDArray[np.void], episode: int) -> int:
    """Return how many records at the beginning belong to an episode."""
    others = np.flatnonzero(records["episode"] != episode)
    return int(others[0]) if len(others) else len(records)
