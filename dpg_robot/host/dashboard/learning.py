"""What the fine-tuning service tells: its status, and the curves of its metrics, thinned out so that they stay small."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dpg_robot.host.dashboard.files import number, open_for_reading, parse_object, read_json, text, wall_s, whole

STATUS_FILE = "status.json"
METRICS_FILE = "metrics.jsonl"
_READ_BYTES = 8 * 1024**2  # most that is read in a look; of what is there at first, the end
_LINE_BYTES = 64 * 1024
_MAX_CURVES = 64
_MAX_POINTS = 600


@dataclass(frozen=True)
class LearningStatus:
    """What the service does. None and empty texts stand for what is not known.

    Attributes:
        state: ``learning``, ``waiting``, ``judging`` or ``stopped``.
        updates: of the learner so far.
        candidate: number of candidates so far.
        transitions: counts of transitions, by name.
        robots: transitions of each robot.
        told_s: Unix time at which the service said so.
        error: what it complains of.
        problem: why something is missing, in words.
    """

    state: str = ""
    updates: int | None = None
    candidate: int | None = None
    transitions: dict[str, int] | None = None
    robots: dict[str, int] | None = None
    told_s: float | None = None
    error: str = ""
    problem: str = ""


class Curve:
    """The points of a metric; when there are too many, each second one is left out from then on."""

    def __init__(self) -> None:
        self._points: list[tuple[float, float]] = []
        self._newest: tuple[float, float] | None = None
        self._stride, self._seen = 1, 0

    def add(self, update: float, value: float) -> None:
        """Add a point."""
        self._newest = (update, value)
        if self._seen % self._stride == 0:
            self._points.append(self._newest)
        self._seen += 1
        if len(self._points) > _MAX_POINTS:
            self._points = self._points[::2]
            self._stride *= 2

    @property
    def points(self) -> list[tuple[float, float]]:
        """(update, value), the newest one last."""
        if self._newest is None or self._points[-1] == self._newest:
            return list(self._points)
        return [*self._points, self._newest]


class MetricsFollower:
    """Reads what is added to ``metrics.jsonl``.

    Attributes:
        curves: by the metrics' names.
        problem: what could not be read, in words.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._begin()

    def _begin(self) -> None:
        self.curves: dict[str, Curve] = {}
        self.problem = ""
        self._offset = self._file = self._broken = 0
        self._left_out = False

    def poll(self) -> bool:
        """Look for new lines; returns whether there were any."""
        try:
            descriptor = open_for_reading(self._path)
        except FileNotFoundError:
            self._begin()
            return False
        except (OSError, ValueError) as error:
            self.problem = text(error)
            return False
        with os.fdopen(descriptor, "rb") as file:
            status = os.fstat(descriptor)
            if status.st_ino != self._file or status.st_size < self._offset:
                self._begin()
                self._file = status.st_ino
            start = max(self._offset, status.st_size - _READ_BYTES)
            is_cut = start > self._offset
            self._left_out |= is_cut
            file.seek(start)
            content = file.read(_READ_BYTES)
        lines = content.split(b"\n")
        rest = lines.pop()  # a line that is being written
        self._offset = start + len(content) - (len(rest) if len(rest) <= _LINE_BYTES else 0)
        for line in lines[is_cut:]:
            self._take(line)
        notes = [f"{self._broken} lines of {METRICS_FILE} cannot be read"] if self._broken else []
        notes += ["only the end of the metrics was read, they are large"] if self._left_out else []
        self.problem = "; ".join(notes)
        return bool(lines)

    def _take(self, line: bytes) -> None:
        if not line.strip():
            return
        try:
            if len(line) > _LINE_BYTES:
                raise ValueError("the line is too long")
            values = parse_object(line, METRICS_FILE)
        except ValueError:
            self._broken += 1
            return
        update = number(values.get("update"))
        if update is None:
            self._broken += 1
            return
        for key, value in values.items():
            if key in ("update", "wall_ns") or number(value) is None:
                continue
            name = text(key, 80)
            if name not in self.curves and len(self.curves) < _MAX_CURVES:
                self.curves[name] = Curve()
            if name in self.curves:
                self.curves[name].add(update, value)


def read_learning(folder: Path) -> LearningStatus:
    """Return the status in the folder of the service."""
    try:
        values = read_json(folder / STATUS_FILE)
    except FileNotFoundError:
        return LearningStatus(problem=f"there is no {STATUS_FILE} in {text(folder)}; is that the service's --run folder?")
    except (OSError, ValueError) as error:
        return LearningStatus(problem=text(error))
    return LearningStatus(
        state=text(values.get("state"), 80),
        updates=whole(values.get("updates")),
        candidate=whole(values.get("candidate")),
        transitions=_counts(values.get("transitions")),
        robots=_counts(values.get("robots")),
        told_s=wall_s(values.get("wall_ns")),
        error=text(values.get("error"), 2000),
    )


def _counts(values: Any) -> dict[str, int]:
    if not isinstance(values, dict):
        return {}
    return {text(name, 80): count for name, value in list(values.items())[:200] if (count := whole(value)) is not None}
