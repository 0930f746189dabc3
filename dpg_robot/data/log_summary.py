"""What a run of the robot log is about: robot and task, when, how long, which policies acted."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np

from dpg_robot.contract import Contract
from dpg_robot.data.log_format import SEGMENT_PATTERN
from dpg_robot.data.log_segment import read_segment
from dpg_robot.data.robot_log import LogPath, find_runs, read_contract, read_segments
from dpg_robot.data.transition import EpisodeEnd, LoopState


@dataclass(frozen=True)
class RunSummary:
    """One run.

    Attributes:
        run_id: the run.
        folder: where it is.
        contract: channels, limits and rate.
        metadata: what the writer said about the run.
        begin_wall_ns: Unix time of the first record, nanoseconds; 0 if there is none.
        seconds: time from the first record to the last.
        size_bytes: size of its segments.
        records: number of records.
        states: records in each state of the control loop.
        episode_ends: closing records of each kind.
        policies: records in which each policy acted, by its id (16 hexadecimal digits).
        safety: records with each bit of the safety layers, by the value of the bit.
    """

    run_id: str
    folder: Path
    contract: Contract
    metadata: dict[str, str]
    begin_wall_ns: int
    seconds: float
    size_bytes: int
    records: int
    states: dict[str, int]
    episode_ends: dict[str, int]
    policies: dict[str, int]
    safety: dict[int, int]

    def to_dict(self) -> dict[str, Any]:
        """Return plain values for JSON."""
        return {**self.__dict__, "folder": str(self.folder), "contract": self.contract.to_dict()}

    def __str__(self) -> str:
        contract = self.contract
        begin = datetime.fromtimestamp(self.begin_wall_ns / 1e9, UTC).isoformat(timespec="seconds") if self.records else "no time"
        commands = ", ".join(f"{each.name} {each.low:g} to {each.high:g} {each.unit}" for each in contract.commands)
        return "\n".join(
            [
                f"run {self.run_id}: {contract.task} at {contract.rate_hz:g} Hz, {self.seconds:.1f} s from {begin}",
                f"  {self.records} records, {self.size_bytes / 1e6:.1f} MB; states: {_counts(self.states)}",
                f"  episodes ended: {_counts(self.episode_ends)}; policies: {_counts(self.policies)}",
                f"  measurements: {', '.join(f'{each.name} [{each.unit}]' for each in contract.measurements)}",
                f"  commands: {commands}",
            ]
        )


def summarize_log(path: LogPath) -> list[RunSummary]:
    """Read a log once, one segment in memory at a time; what is damaged is left out (:func:`check_log` reports it).

    Raises:
        LogError: there is no log, or no segment of a run says what it is.
    """
    return [_summarize(run) for run in find_runs(path)]


def _summarize(run: Path) -> RunSummary:
    contract = read_contract(run)
    totals: dict[str, dict[int, int]] = {"state": {}, "episode_end": {}, "policy": {}}
    safety: dict[int, int] = {}
    begin_wall_ns = first_ns = last_ns = count = 0
    paths = sorted(run.glob(SEGMENT_PATTERN))
    for _, _, records in read_segments(run, on_damage="skip"):
        if not len(records):
            continue
        if not count:
            begin_wall_ns, first_ns = int(records["wall_ns"][0]), int(records["time_ns"][0])
        last_ns, count = int(records["time_ns"][-1]), count + len(records)
        for name, found in totals.items():
            chosen = records[records["state"] == LoopState.RUNNING] if name == "policy" else records
            for value, times in zip(*np.unique(chosen[name], return_counts=True), strict=True):
                found[int(value)] = found.get(int(value), 0) + int(times)
        for bit in (1 << shift for shift in range(16)):
            if times := int(np.count_nonzero(records["safety"] & bit)):
                safety[bit] = safety.get(bit, 0) + times
    infos = (read_segment(path).info for path in paths)
    info = next(each for each in infos if each is not None)
    return RunSummary(
        run_id=info.run_id,
        folder=run,
        contract=contract,
        metadata={key: value for key, value in info.metadata.items() if key not in ("contract", "checksum", "segment")},
        begin_wall_ns=begin_wall_ns,
        seconds=(last_ns - first_ns) / 1e9,
        size_bytes=sum(path.stat().st_size for path in paths),
        records=count,
        states={_name(LoopState, value): times for value, times in totals["state"].items()},
        episode_ends={_name(EpisodeEnd, value): times for value, times in totals["episode_end"].items() if value},
        policies={f"{value:016x}": times for value, times in totals["policy"].items()},
        safety=safety,
    )


def _name(kind: type[LoopState] | type[EpisodeEnd], value: int) -> str:
    return kind(value).name.lower() if value in {int(each) for each in kind} else str(value)


def _counts(values: dict[str, int]) -> str:
    return ", ".join(f"{name} {count}" for name, count in values.items()) or "none"
