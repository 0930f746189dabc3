"""The counters of a shipping process as a small JSON file, so that anybody can look how it fares."""

from __future__ import annotations

import json
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

from dpg_robot.errors import LogError
from dpg_robot.files import write_atomically

STATUS_NAME = "status.json"
INTERVAL_S = 1.0


class StatusFile:
    """Writes the counters, at most once an interval."""

    def __init__(self, path: Path, interval_s: float = INTERVAL_S) -> None:
        self.path = path
        self._interval_s = interval_s
        self._next_s = 0.0
        path.parent.mkdir(parents=True, exist_ok=True)

    @property
    def is_due(self) -> bool:
        """Whether an interval has passed."""
        return time.monotonic() >= self._next_s

    def write(self, values: dict[str, Any]) -> None:
        """Write ``values`` and the time; without room on the disk the old ones stay, whose age then shows."""
        self._next_s = time.monotonic() + self._interval_s
        with suppress(OSError):
            write_atomically(self.path, json.dumps({"time": time.time(), **values}, indent=1).encode())


def read_status(folder: Path) -> dict[str, Any]:
    """Return the counters of a log folder or a store; raises LogError when there are none."""
    paths = [folder / STATUS_NAME, folder / ".shipping" / STATUS_NAME, folder]
    path = next((each for each in paths if each.is_file()), None)
    if path is None:
        raise LogError(f"{folder} has no {STATUS_NAME}; name a log folder that is shipped, or a store that takes logs in")
    try:
        values: dict[str, Any] = json.loads(path.read_bytes())
    except ValueError as error:
        raise LogError(f"{path} cannot be read: {error}") from error
    return {**values, "age_s": round(time.time() - float(values.get("time", 0.0)), 1)}
