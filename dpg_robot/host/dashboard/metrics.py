"""The dashboard's figures in the text format of Prometheus (version 0.0.4), for who watches many hosts."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from dpg_robot.host.dashboard.robots import RobotStatus
from dpg_robot.host.dashboard.status import HostStatus

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"

_Sample = tuple[dict[str, str], float | int | None]


def to_prometheus(status: HostStatus) -> bytes:
    """Return the figures of a host; what is not known is left out."""
    return "".join(_lines(status)).encode()


def _lines(status: HostStatus) -> Iterator[str]:
    for name, text, read in (
        ("queue_bytes", "Bytes of the log that wait on the robot.", lambda robot: robot.queue_bytes),
        (
            "acknowledged_sequence",
            "Last record that the robot knows to be on the host.",
            lambda robot: robot.acknowledged_sequence,
        ),
        ("stored_sequence", "Last record of the newest run in the store.", lambda robot: robot.stored_sequence),
        ("last_seen_seconds", "Unix time at which the newest of the log arrived.", lambda robot: robot.last_seen_s),
        ("link_up", "Whether the way from robot to store is as it should be.", lambda robot: int(robot.link_ok)),
        ("loop_rate_hz", "Ticks per second of the control loop.", lambda robot: robot.timing and robot.timing.rate_hz),
    ):
        yield from _metric(f"robot_{name}", "gauge", text, [({"robot": robot.name}, read(robot)) for robot in status.robots])
    lateness = [sample for robot in status.robots for sample in _lateness(robot)]
    yield from _metric("robot_loop_lateness_seconds", "gauge", "How late ticks of the control loop began.", lateness)
    faults = [({"robot": robot.name}, len(robot.faults)) for robot in status.robots]
    yield from _metric("robot_faults", "gauge", "Faults that were seen and are remembered.", faults)
    safety = [({"robot": robot.name, "layer": layer}, count) for robot in status.robots for layer, count in robot.safety.items()]
    yield from _metric("robot_safety_interventions", "gauge", "Records seen in which a safety layer acted.", safety)
    if status.learning is not None:
        transitions = [({"kind": kind}, count) for kind, count in (status.learning.transitions or {}).items()]
        yield from _metric("learner_updates_total", "counter", "Updates of the learner.", [({}, status.learning.updates)])
        yield from _metric("transitions", "gauge", "Transitions of robots, by what became of them.", transitions)
    if status.models is not None:
        verdicts: list[_Sample] = [
            ({"verdict": "passed"}, status.models.passed),
            ({"verdict": "rejected"}, status.models.rejected),
        ]
        yield from _metric("gate_candidates", "gauge", "Versions in the model store, by the gate's verdict.", verdicts)
        releases = [release.number for release in status.models.releases]
        yield from _metric("release_number", "gauge", "Number of the newest release.", [({}, max(releases, default=None))])


def _lateness(robot: RobotStatus) -> list[_Sample]:
    if robot.timing is None:
        return []
    return [
        ({"robot": robot.name, "quantile": quantile}, value / 1e6)
        for quantile, value in (("0.5", robot.timing.p50_us), ("0.99", robot.timing.p99_us))
    ]


def _metric(name: str, kind: str, text: str, samples: Iterable[_Sample]) -> Iterator[str]:
    known = [(labels, value) for labels, value in samples if value is not None]
    if known:
        yield f"# HELP dpg_robot_{name} {text}\n# TYPE dpg_robot_{name} {kind}\n"
    for labels, value in known:
        shown = ",".join(f'{label}="{_escape(each)}"' for label, each in labels.items())
        yield f"dpg_robot_{name}{{{shown}}} {value!r}\n" if shown else f"dpg_robot_{name} {value!r}\n"


def _escape(value: str) -> str:
    return value.replace("\\", r"\\").replace('"', r"\"").replace("\n", r"\n")
