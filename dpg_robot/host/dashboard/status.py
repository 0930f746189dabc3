"""Everything that the dashboard shows, gathered from the folders of a host. Nothing is ever written there.

What is missing or broken is said in the field ``problem`` of its part; the other parts are shown all the same.
"""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from dpg_robot.host.dashboard.files import text
from dpg_robot.host.dashboard.learning import METRICS_FILE, LearningStatus, MetricsFollower, read_learning
from dpg_robot.host.dashboard.models import ModelStatus, ModelWatch
from dpg_robot.host.dashboard.robots import (
    Pose,
    ReceiverStatus,
    RobotStatus,
    RobotWatch,
    find_robots,
    read_receiver,
    read_sender,
)
from dpg_robot.release import TrustedKey


@dataclass(frozen=True)
class Places:
    """The folders that are looked at; None for what there is not.

    Attributes:
        logs: the store of shipped logs, or the log folder of a single robot.
        models: the model store.
        learning: the folder of the fine-tuning service.
        senders: log folders of robots that this machine can read itself, by the robots' names.
    """

    logs: Path | None = None
    models: Path | None = None
    learning: Path | None = None
    senders: Mapping[str, Path] | None = None


@dataclass(frozen=True)
class HostStatus:
    """What is known at a moment.

    Attributes:
        now_s: Unix time of this machine.
        robots: one for each robot, by name.
        logs_problem: why robots are missing, in words.
        receiver: what takes the logs in; None where no logs are looked at.
        models: None where no model store is looked at.
        learning: None where no service is looked at.
        learning_curves: metric -> [(update, value), ...].
        timing_curves: robot -> [(Unix time s, rate Hz, p50 us, p99 us), ...].
    """

    now_s: float
    robots: tuple[RobotStatus, ...]
    logs_problem: str
    receiver: ReceiverStatus | None
    models: ModelStatus | None
    learning: LearningStatus | None
    learning_curves: dict[str, list[tuple[float, float]]]
    timing_curves: dict[str, list[tuple[float, float, float, float]]]

    def figures(self) -> dict[str, Any]:
        """Return everything but the curves as plain values for JSON."""
        values = asdict(self)
        del values["learning_curves"], values["timing_curves"]
        return values

    def curves(self) -> dict[str, Any]:
        """Return the curves as plain values for JSON."""
        return {"learning": self.learning_curves, "timing": self.timing_curves}


class Collector:
    """Looks at all places again and again.

    Args:
        places: what to look at.
        trusted: keys by which releases are checked.
    """

    def __init__(self, places: Places, trusted: Sequence[TrustedKey] = ()) -> None:
        self._places = places
        self._robots: dict[str, RobotWatch] = {}
        self._models = ModelWatch(places.models, trusted) if places.models else None
        self._metrics = MetricsFollower(places.learning / METRICS_FILE) if places.learning else None

    def collect(self) -> HostStatus:
        """Return how things are now. Each look costs about the same, however large the logs are."""
        receiver, logs_problem = None, ""
        if self._places.logs is not None:
            logs_problem = self._look_at_logs(self._places.logs)
            receiver = read_receiver(self._places.logs)
        now_s = time.time()
        return HostStatus(
            now_s=now_s,
            robots=tuple(self._robot_statuses(receiver, now_s)) if receiver else (),
            logs_problem=logs_problem,
            receiver=receiver,
            models=self._models.poll() if self._models else None,
            learning=self._look_at_learning(),
            learning_curves={name: curve.points for name, curve in self._metrics.curves.items()} if self._metrics else {},
            timing_curves={
                watch.name: [(each.wall_s, each.rate_hz, each.p50_us, each.p99_us) for each in watch.timing]
                for watch in self._robots.values()
            },
        )

    def poses(self) -> dict[str, Pose]:
        """Return what was measured in the last seconds, by robot. May be called from another thread."""
        return {watch.name: pose for watch in list(self._robots.values()) if (pose := watch.pose) is not None}

    def _look_at_logs(self, store: Path) -> str:
        try:
            folders = find_robots(store)
        except OSError as error:
            return text(error)
        self._robots = {name: self._robots.get(name) or RobotWatch(folder, name) for name, folder in folders.items()}
        for watch in self._robots.values():
            watch.poll()
        return ""

    def _robot_statuses(self, receiver: ReceiverStatus, now_s: float) -> list[RobotStatus]:
        statuses = []
        for name, watch in self._robots.items():
            log = (self._places.senders or {}).get(name)
            sender, problem = read_sender(log) if log is not None else (receiver.senders.get(name), "")
            statuses.append(watch.status(receiver, sender, problem, now_s))
        return statuses

    def _look_at_learning(self) -> LearningStatus | None:
        if self._places.learning is None or self._metrics is None:
            return None
        self._metrics.poll()
        status = read_learning(self._places.learning)
        problems = [problem for problem in (status.problem, self._metrics.problem) if problem]
        return LearningStatus(**{**vars(status), "problem": "; ".join(problems)})


def to_json(values: Mapping[str, Any]) -> bytes:
    """Return values as JSON that every reader takes: without numbers that are not finite."""
    return json.dumps(values, allow_nan=False, separators=(",", ":")).encode()
