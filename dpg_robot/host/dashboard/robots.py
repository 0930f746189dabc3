"""What a store of shipped logs says about each robot: when it was last heard of, how its loop keeps time, what went wrong."""

from __future__ import annotations

import itertools
import time
from collections import Counter, deque
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dpg_robot.contract import Contract
from dpg_robot.data.log_format import SEGMENT_PATTERN
from dpg_robot.data.transition import LoopState
from dpg_robot.deploy.safety import SafetyFlag
from dpg_robot.host.dashboard.files import number, read_json, text, whole
from dpg_robot.host.dashboard.log_tail import RunTail
from dpg_robot.shipping.ledger import SHIPPING_FOLDER
from dpg_robot.shipping.status_file import STATUS_NAME

FRESH_S = 5.0  # what is older does not say how things are now
MAX_ROBOTS = 200
_WINDOW_S = 10.0  # of the loop's rate and jitter
_WINDOW_RECORDS = 10_000
_POINTS = 720
_POINT_EVERY_S = 2.0
_EARLIER_SEGMENTS = 30  # of which a point of the timing is taken at the start
_FAULTS = 50
_BEFORE_FAULT = 10  # records whose safety flags belong to a fault
_FLAGS = [(flag.value, (flag.name or "").lower()) for flag in SafetyFlag]


@dataclass(frozen=True)
class Timing:
    """How regular a loop was.

    Attributes:
        wall_s: Unix time of the last record, by the robot's clock.
        rate_hz: ticks per second.
        p50_us: half of the ticks began later than that, microseconds.
        p99_us: one of a hundred began later than that, microseconds.
    """

    wall_s: float
    rate_hz: float
    p50_us: float
    p99_us: float


@dataclass(frozen=True)
class Fault:
    """A robot stopped by itself.

    Attributes:
        wall_s: when, Unix time by the robot's clock.
        run: the run.
        flags: the safety layers that acted just before, in words.
    """

    wall_s: float
    run: str
    flags: str


@dataclass(frozen=True)
class RobotStatus:
    """What is known of a robot. None and empty texts stand for what is not known.

    Attributes:
        name: of the robot.
        link: state of the way from the robot to the store, in words.
        link_ok: whether it is as it should be.
        last_seen_s: Unix time at which the newest of its log arrived, by the host's clock.
        fresh: whether that was in the last seconds; if not, the figures of the loop are old.
        queue_bytes: what waits on the robot.
        queue_told_s: Unix time at which the robot said so.
        acknowledged_sequence: last record of the newest run that the robot knows to be on the host's disk.
        stored_sequence: last record of the newest run in the store.
        run: the newest run.
        task: the task of its policy.
        wanted_rate_hz: ticks per second that its loop should make.
        state: of its loop in the last record.
        timing: of the last seconds.
        watched_records: records of the newest run that were looked at.
        watched_since_s: Unix time of the first of them, by the robot's clock.
        safety: of these, how many each safety layer acted in.
        faults: that were seen in this run and those before, newest first.
        problem: why something is missing, in words.
    """

    name: str
    link: str
    link_ok: bool
    last_seen_s: float | None
    fresh: bool
    queue_bytes: int | None
    queue_told_s: float | None
    acknowledged_sequence: int | None
    stored_sequence: int | None
    run: str
    task: str
    wanted_rate_hz: float | None
    state: str
    timing: Timing | None
    watched_records: int
    watched_since_s: float | None
    safety: dict[str, int]
    faults: tuple[Fault, ...]
    problem: str


@dataclass(frozen=True)
class ReceiverStatus:
    """What the receiving process of the store says about itself.

    Attributes:
        state: in words; ``missing`` if it has never written a status.
        fresh: whether it said so in the last seconds.
        told_s: Unix time at which it did.
        queue_depth: pieces that wait in the server.
        problems: what it found wrong.
        robots: last confirmed sequence number of each robot, with the run.
        senders: what each robot's sender told last, as in its status file, with the ``time`` at which it arrived.
    """

    state: str
    fresh: bool
    told_s: float | None
    queue_depth: int | None
    problems: tuple[str, ...]
    robots: dict[str, tuple[str, int]]
    senders: dict[str, dict[str, Any]]


@dataclass(frozen=True)
class Pose:
    """The measurements of the last seconds of a robot, for who wants to show it.

    Attributes:
        run: the run.
        contract: names of the channels.
        time_ns: (n,) monotonic times on the robot, nanoseconds.
        measurement: (n, M).
    """

    run: str
    contract: Contract
    time_ns: NDArray[np.int64]
    measurement: NDArray[np.float64]


class RobotWatch:
    """Follows the newest run of one robot.

    Args:
        folder: the robot's folder in the store, with a folder for each run.
        name: of the robot.
    """

    def __init__(self, folder: Path, name: str) -> None:
        self.name = text(name, 80)
        self.timing: deque[Timing] = deque(maxlen=_POINTS)
        self._folder = folder
        self._tail: RunTail | None = None
        self._recent: NDArray[np.void] | None = None
        self._problem = ""
        self._faults: deque[Fault] = deque(maxlen=_FAULTS)
        self._begin(None)

    def _begin(self, tail: RunTail | None) -> None:
        self._tail, self._recent = tail, None
        self._watched, self._since_s = 0, 0.0
        self._safety: Counter[str] = Counter()

    @property
    def last_seen_s(self) -> float | None:
        """Unix time at which the newest of the log arrived."""
        return self._tail.changed_s or None if self._tail else None

    @property
    def pose(self) -> Pose | None:
        """What was measured in the last seconds."""
        recent, tail = self._recent, self._tail
        if recent is None or tail is None or tail.info is None:
            return None
        return Pose(tail.folder.name, tail.info.contract, recent["time_ns"], recent["measurement"])

    def poll(self) -> None:
        """Look for what is new."""
        try:
            newest = _newest_run(self._folder)
            if newest is None:
                self._problem = "no run in its folder"
                return
            if self._tail is None or self._tail.folder != newest:
                self._begin(RunTail(newest))
                self._look_back()
            assert self._tail is not None
            records = self._tail.poll()
            self._problem = self._tail.problem
        except OSError as error:
            self._problem = text(error)
            return
        if len(records):
            self._take(records)

    def status(
        self, receiver: ReceiverStatus, sender: Mapping[str, Any] | None, sender_problem: str, now_s: float
    ) -> RobotStatus:
        """Return what is known.

        Args:
            receiver: of the store.
            sender: status of the robot's sender, read or told; None if nothing is known of it.
            sender_problem: why it cannot be read, in words; empty if nothing is wrong.
            now_s: Unix time.
        """
        tail, recent = self._tail, self._recent
        run = tail.folder.name if tail else ""
        fresh = self.last_seen_s is not None and now_s - self.last_seen_s <= FRESH_S
        link, link_ok = _link(fresh, receiver, sender, now_s)
        confirmed_run, confirmed = receiver.robots.get(self.name, ("", None))
        acknowledged = confirmed if confirmed_run == run else None
        if acknowledged is None and sender is not None:
            acknowledged = whole(sender.get("last_confirmed_sequence"))
        contract = tail.info.contract if tail and tail.info else None
        warning = text(sender.get("warning")) if sender else ""
        return RobotStatus(
            name=self.name,
            link=link,
            link_ok=link_ok,
            last_seen_s=self.last_seen_s,
            fresh=fresh,
            queue_bytes=whole(sender.get("backlog_bytes")) if sender else None,
            queue_told_s=number(sender.get("time")) if sender else None,
            acknowledged_sequence=acknowledged,
            stored_sequence=None if recent is None else int(recent["sequence"][-1]),
            run=text(run, 140),
            task=text(contract.task, 80) if contract else "",
            wanted_rate_hz=number(contract.rate_hz) if contract else None,
            state="" if recent is None else _state_name(int(recent["state"][-1])),
            timing=None if recent is None else measure_timing(recent),
            watched_records=self._watched,
            watched_since_s=self._since_s or None,
            safety=dict(self._safety),
            faults=tuple(reversed(self._faults)),
            problem="; ".join(part for part in (self._problem, sender_problem, warning) if part),
        )

    def _look_back(self) -> None:
        """Take one point of the timing from each of the segments before, so that a curve is there from the start."""
        assert self._tail is not None
        tail = RunTail(self._tail.folder)
        for path in sorted(tail.folder.glob(SEGMENT_PATTERN))[-1 - _EARLIER_SEGMENTS : -1]:
            self._add_point(tail.sample(path))

    def _take(self, records: NDArray[np.void]) -> None:
        before = self._recent[-_BEFORE_FAULT:] if self._recent is not None else records[:0]
        self._note_faults(np.concatenate([before, records]), len(before))
        for value, name in _FLAGS:
            if count := int(np.count_nonzero(records["safety"] & value)):
                self._safety[name] += count
        if not self._watched:
            self._since_s = float(records["wall_ns"][0]) / 1e9
        self._watched += len(records)
        recent = records if self._recent is None else np.concatenate([self._recent, records])
        recent = recent[-_WINDOW_RECORDS:]
        self._recent = recent[recent["time_ns"] >= recent["time_ns"][-1] - int(_WINDOW_S * 1e9)]
        self._add_point(self._recent)

    def _add_point(self, records: NDArray[np.void]) -> None:
        point = measure_timing(records)
        if point is not None and (not self.timing or abs(point.wall_s - self.timing[-1].wall_s) >= _POINT_EVERY_S):
            self.timing.append(point)

    def _note_faults(self, records: NDArray[np.void], first: int) -> None:
        """Note each record from ``first`` on in which the loop went into the state of fault."""
        assert self._tail is not None
        is_fault = records["state"] == LoopState.FAULT
        for index in np.flatnonzero(is_fault[first:]) + first:
            if index == 0 or not is_fault[index - 1]:
                bits = int(np.bitwise_or.reduce(records["safety"][max(0, index - _BEFORE_FAULT) : index + 1]))
                flags = ", ".join(name for value, name in _FLAGS if bits & value)
                self._faults.append(Fault(float(records["wall_ns"][index]) / 1e9, text(self._tail.folder.name, 140), flags))


def measure_timing(records: NDArray[np.void]) -> Timing | None:
    """Return rate and lateness of records (n,) that follow each other; None if they are too few or make no sense."""
    if len(records) < 2:
        return None
    span_ns = float(records["time_ns"][-1]) - float(records["time_ns"][0])
    if span_ns <= 0:
        return None
    p50, p99 = np.percentile(records["wakeup_latency_ns"].astype(np.float64), (50, 99)) / 1e3
    rate_hz = (len(records) - 1) / span_ns * 1e9
    return Timing(float(records["wall_ns"][-1]) / 1e9, round(rate_hz, 3), round(float(p50), 1), round(float(p99), 1))


def find_robots(store: Path) -> dict[str, Path]:
    """Return the folders of a store's robots by their names; the log folder of a single robot counts as robot ``robot``.

    Raises:
        OSError: the store cannot be read.
    """
    folders = sorted(each for each in store.iterdir() if not each.name.startswith(".") and each.is_dir())
    if any(next(each.glob(SEGMENT_PATTERN), None) for each in folders[-3:]):
        return {"robot": store}
    return {each.name: each for each in itertools.islice(folders, MAX_ROBOTS)}


def read_receiver(store: Path) -> ReceiverStatus:
    """Return what the receiving process of a store says."""
    try:
        values = read_json(store / STATUS_NAME)
    except FileNotFoundError:
        return ReceiverStatus("missing", False, None, None, (), {}, {})
    except (OSError, ValueError) as error:
        return ReceiverStatus("unreadable", False, None, None, (text(error),), {}, {})
    told_s = number(values.get("time"))
    robots, problems = values.get("robots"), values.get("problems")
    confirmed = {
        text(name, 80): (str(each.get("run")), sequence)
        for name, each in (robots.items() if isinstance(robots, dict) else ())
        if isinstance(each, dict) and (sequence := whole(each.get("last_confirmed_sequence"))) is not None
    }
    return ReceiverStatus(
        state=text(values.get("state"), 80),
        fresh=told_s is not None and abs(time.time() - told_s) < FRESH_S,
        told_s=told_s,
        queue_depth=whole(values.get("queue_depth")),
        problems=tuple(text(each) for each in problems[:20]) if isinstance(problems, list) else (),
        robots=confirmed,
        senders=_senders(values.get("senders")),
    )


def _senders(told: Any) -> dict[str, dict[str, Any]]:
    """Return what senders told the receiver, as :meth:`RobotWatch.status` takes it."""
    return {
        text(name, 80): {
            "time": number(each.get("time")),
            "state": text(each.get("state"), 80),
            "backlog_bytes": whole(each.get("backlog_bytes")),
            "last_confirmed_sequence": whole(each.get("last_confirmed_sequence")),
            "warning": text(each.get("warning")),
        }
        for name, each in (itertools.islice(told.items(), MAX_ROBOTS) if isinstance(told, dict) else ())
        if isinstance(each, dict)
    }


def read_sender(log: Path) -> tuple[dict[str, Any] | None, str]:
    """Return the status that a sender wrote into its log folder, and why there is none, in words."""
    try:
        return read_json(log / SHIPPING_FOLDER / STATUS_NAME), ""
    except (OSError, ValueError) as error:
        return None, f"the sender's status cannot be read: {text(error)}"


def _newest_run(folder: Path) -> Path | None:
    """Return the run of the last name, which is the newest, as names of runs begin with the time."""
    runs = sorted((each for each in folder.iterdir() if not each.name.startswith(".")), reverse=True)
    return next((run for run in runs[:20] if next(run.glob(SEGMENT_PATTERN), None)), None)


def _link(fresh: bool, receiver: ReceiverStatus, sender: Mapping[str, Any] | None, now_s: float) -> tuple[str, bool]:
    """Return the state of the way from the robot to the store, and whether it is as it should be."""
    if sender is not None:
        told_s = number(sender.get("time")) or 0.0
        state = text(sender.get("state"), 80)
        if now_s - told_s > FRESH_S:
            return "the sender is silent", False
        if state not in ("connected", "sending"):
            return f"sender: {state}", False
    if receiver.told_s is not None and not receiver.fresh:
        return "the receiver does not run", False
    if receiver.told_s is not None and receiver.state != "connected":
        return f"receiver: {receiver.state}", False
    if fresh:
        return "data arrives", True
    return ("connected, nothing new", True) if sender is not None else ("nothing new arrives", False)


def _state_name(value: int) -> str:
    return LoopState(value).name.lower() if value in {int(each) for each in LoopState} else str(value)
