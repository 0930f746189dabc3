"""Writing a clean copy of a damaged robot log; the original is only read."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from dpg_robot.data.log_format import SEGMENT_PATTERN
from dpg_robot.data.log_segment import SegmentInfo, read_segment
from dpg_robot.data.log_writer import LogWriter
from dpg_robot.data.robot_log import LogPath, LogReport, check_log, find_runs, read_segments
from dpg_robot.errors import LogError
from dpg_robot.files import new_folder

# what a writer says of itself; in a copy it is kept under another name
_OF_THE_WRITER = ("begin_wall_ns", "begin_time_ns", "software", "host")
_NOT_COPIED = ("format_version", "run_id", "segment", "contract", "checksum")


@dataclass(frozen=True)
class Recovery:
    """What was recovered.

    Attributes:
        before: the check of the original.
        after: the check of the copy; None where nothing could be recovered.
        without_contract: runs of which no segment says what they are, so that none of their records can be read.
    """

    before: LogReport
    after: LogReport | None
    without_contract: tuple[str, ...]

    @property
    def complete(self) -> bool:
        """Whether nothing is lost."""
        return self.before.contiguous and not self.without_contract

    def __str__(self) -> str:
        lines = [f"run {run}: nothing recovered, no segment says which robot it belongs to" for run in self.without_contract]
        for run in self.after.runs if self.after else ():
            lines += [f"run {run.run_id}: {run.records} records and {run.transitions} transitions recovered"]
            lines += [f"  lost: {loss}" for loss in _problems(self.before, run.run_id)]
        return "\n".join(lines)


def recover_log(path: LogPath, out: str | Path) -> Recovery:
    """Copy every record that is intact into a new log of whole segments.

    Records keep run id, sequence numbers and times, so what is missing between others stays visible as a gap. A copied run says
    in its metadata what was wrong with the original (``recovered``), and when, where and with what it was written
    (``original_...``).

    Args:
        path: a run folder or a log folder.
        out: the new log folder; must not exist.

    Raises:
        LogError: there is no log, ``out`` exists, or nothing could be recovered.
    """
    out = Path(out)
    if out.exists():
        raise LogError(f"{out} exists already; choose another folder for the recovered log")
    before = check_log(path)
    runs = [(run, _find_info(run)) for run in find_runs(path)]
    known = [(run, info) for run, info in runs if info is not None]
    lost = tuple(run.name for run, info in runs if info is None)
    if not known:
        raise LogError(f"nothing of {path} can be recovered: no segment says which robot it belongs to")
    out.parent.mkdir(parents=True, exist_ok=True)
    with new_folder(out) as temporary:
        for run, info in known:
            metadata = _describe(info.metadata) | {"recovered": "; ".join(_problems(before, info.run_id)) or "nothing was lost"}
            with LogWriter(temporary, info.run_id, info.contract, metadata) as writer:
                for _, _, records in read_segments(run, on_damage="skip"):
                    if len(records):
                        writer.append(records)
    return Recovery(before, check_log(out), lost)


def _find_info(run: Path) -> SegmentInfo | None:
    return next((info for path in sorted(run.glob(SEGMENT_PATTERN)) if (info := read_segment(path).info)), None)


def _describe(original: Mapping[str, str]) -> dict[str, str]:
    kept = {key: value for key, value in original.items() if key not in (*_OF_THE_WRITER, *_NOT_COPIED)}
    return {**kept, **{f"original_{key}": original[key] for key in _OF_THE_WRITER if key in original}}


def _problems(report: LogReport, run_id: str) -> list[str]:
    """Return what the check of a run found, its cut-off end included."""
    return [text for run in report.runs if run.run_id == run_id for text in (*run.problems, run.truncated_tail) if text]
