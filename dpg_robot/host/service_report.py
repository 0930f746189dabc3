"""What the fine-tuning service tells while it runs: a status, metrics line by line, and TensorBoard's events."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from torch.utils.tensorboard import SummaryWriter

from dpg_robot.files import write_atomically

if TYPE_CHECKING:
    from dpg_robot.host.service import ServiceCounts

_STATUS_INTERVAL_S = 1.0


class ServiceReport:
    """Writes ``status.json``, ``metrics.jsonl`` and TensorBoard's events into a folder.

    Args:
        folder: the service's folder; None to write nothing, as where another process writes.
    """

    def __init__(self, folder: Path | None) -> None:
        self._folder = folder
        self._writer = None if folder is None else SummaryWriter(str(folder / "tensorboard"))
        self._complaints: dict[str, str] = {}
        self._told: tuple[str, float] = ("", 0.0)

    def metrics(self, update: int, values: Mapping[str, float]) -> None:
        """Add a point to the curves."""
        if self._folder is None or self._writer is None:
            return
        line = json.dumps({"update": update, "wall_ns": time.time_ns()} | dict(values))
        with (self._folder / "metrics.jsonl").open("a") as file:
            file.write(f"{line}\n")
        for name, value in values.items():
            self._writer.add_scalar(f"finetune/{name}", value, update)
        self._writer.flush()

    def complain(self, what: str, why: str) -> None:
        """Tell of something that was left out, and why."""
        self._complaints[what] = why

    def status(self, state: str, counts: ServiceCounts, robots: Mapping[str, int], held_out: int) -> None:
        """Write the status, at most once a second unless the state is another one."""
        if self._folder is None:
            return
        if state == self._told[0] and time.monotonic() - self._told[1] < _STATUS_INTERVAL_S:
            return
        self._told = (state, time.monotonic())
        status = {
            "state": state,
            "updates": counts.updates,
            "candidate": counts.candidates,
            "transitions": {
                "robot": counts.received,
                "used": counts.used,
                "excluded": counts.excluded,
                "refused": counts.refused,
                "held_out": held_out,
            },
            "robots": dict(robots),
            "wall_ns": time.time_ns(),
            "error": "; ".join(f"{what}: {why}" for what, why in self._complaints.items()) or None,
        }
        write_atomically(self._folder / "status.json", json.dumps(status, indent=1).encode())

    def close(self) -> None:
        """End the events file."""
        if self._writer is not None:
            self._writer.close()
