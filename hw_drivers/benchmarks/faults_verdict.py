"""What went wrong in a run with faults: its log against the emulator's trace. Pure functions; each returns violations in words.

Times are of the monotonic clock, which all processes of a computer share, and in which the emulated servos live.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dpg_robot.data.robot_log import check_log
from dpg_robot.data.transition import LoopState
from dpg_robot.errors import DpgError
from hw_drivers.benchmarks.faults_stack import RobotRun, Stack
from hw_drivers.servo_config import resolve_measurement

STILL_RAD_PER_S = 0.1
_STOPPED = (LoopState.STOPPING, LoopState.FAULT)
_CLOCK_SLACK_NS = 200_000
_MOST_MESSAGES = 5
_FEWEST_TICKS = 3
_TICK_NS = 15_000_000  # longer than a tick waits for its measurements

Event = dict[str, Any]


@dataclass(frozen=True)
class Blind:
    """A span of time in which the wrong values of a servo's sensor look right."""

    servo: int
    begin_ns: int
    end_ns: int


def check_values(
    stack: Stack, records: NDArray[np.void], events: Sequence[Event], blind: Sequence[Blind] = ()
) -> tuple[int, list[str]]:
    """Compare every valid measurement of a log with the true one, and return how many there were.

    A tick asks the servos after ``measurement_time_ns`` and has read them by ``time_ns``. A value is right if, between the two, a
    servo was asked when its joint was there; it may differ by the servo's resolution and not by more, as the trace has the very
    moments in which servos measured. A value from before is wrong as soon as the joint has moved.
    """
    reads = [event for event in events if event["what"] == "read"]
    times = [event["t"] for event in reads]
    servos = list(stack.servos.servos.items())
    models = list(stack.servos.models().values())
    names = [name for name, _ in servos]
    checked, wrong = 0, []
    for column, channel in enumerate(stack.contract.measurement_names):
        source = resolve_measurement(channel, stack.servos)
        if source.quantity not in ("position", "velocity") or not source.joint:
            continue
        number, key = names.index(source.joint), "x" if source.quantity == "position" else "v"
        register, config = models[number].register(f"present_{source.quantity}"), servos[number][1]
        tolerance = abs(register.to_si(1) - register.to_si(0)) * 1.01 + 1e-5
        for record in records[records["valid"][:, column]]:
            asked_ns, end_ns = int(record["measurement_time_ns"][column]), int(record["time_ns"])
            if any(span.servo == number and span.begin_ns <= end_ns and asked_ns <= span.end_ns for span in blind):
                continue
            checked += 1
            value = float(record["measurement"][column])
            shown = value * config.gear + (config.zero if key == "x" else 0.0)
            first, last = bisect_left(times, asked_ns - _CLOCK_SLACK_NS), bisect_left(times, end_ns + _CLOCK_SLACK_NS)
            true = [reads[place][key][number] for place in range(first, last)]
            if not any(abs(shown - one) <= tolerance for one in true):
                wrong.append(f"record {record['sequence']}: {channel} = {value:.4f} is valid, but the servo was at {true}")
    return checked, _some(wrong, "wrong values accepted")


def check_goals(stack: Stack, events: Sequence[Event]) -> tuple[int, list[str]]:
    """Check all goals that reached the bus: within the limits, and with torque no further from the last than the rate allows.

    A goal may follow an earlier one than the last, if that was lost on the way; the rate then counts for the time between them.
    """
    servos, models = list(stack.servos.servos.values()), list(stack.servos.models().values())
    limits = [servo.settings() for servo in servos]
    numbers = {servo.id: number for number, servo in enumerate(servos)}
    steps = [abs(model.register("goal_position").to_si(1) - model.register("goal_position").to_si(0)) for model in models]
    speeds = [stack.max_goal_speeds[name] for name in stack.servos.servos]
    on = [False] * len(servos)
    last: dict[int, tuple[int, float]] = {}
    checked, wrong = 0, []
    for event in events:
        if event["what"] == "torque":
            on = event["on"]
            last = {number: goal for number, goal in last.items() if on[number]}
        elif event["what"] == "goals":
            for servo_id, goal in event["goals"]:
                checked += 1
                if servo_id not in numbers:
                    wrong.append(f"a goal for ID {servo_id}, which the robot does not have")
                    continue
                number = numbers[servo_id]
                limit, step = limits[number], steps[number] * 1.01
                if not limit.low - step <= goal <= limit.high + step:
                    wrong.append(f"servo {number}: goal {goal:.4f} rad is outside {limit.low:.4f} to {limit.high:.4f}")
                if number in last and on[number]:
                    before_ns, before = last[number]
                    periods = max(1, round((event["t"] - before_ns) * 1e-9 * stack.robot.rate_hz))
                    most = speeds[number] / stack.robot.rate_hz * periods * abs(servos[number].gear) + 2 * step
                    if abs(goal - before) > most:
                        wrong.append(
                            f"servo {number}: goal {goal:.4f} rad is {abs(goal - before):.4f} from the last, allowed {most:.4f}"
                        )
                last[number] = (event["t"], goal)
    return checked, _some(wrong, "commands outside of the limits")


def check_log_complete(run: RobotRun, lacks: frozenset[str]) -> list[str]:
    """Check that the log is contiguous and readable, ends with a closing record, and has a summary that agrees with it."""
    folder = run.log_folder
    if folder is None or not list(folder.glob("*.mcap")):
        return ["there is no log"]
    wrong = []
    try:
        report = check_log(folder)
    except DpgError as error:
        return [f"the log cannot be read: {error}"]
    wrong += [f"log: {problem}" for each in report.runs for problem in each.problems]
    if not report.contiguous and not wrong:
        wrong.append("the log is not contiguous")
    records, summary = run.records(), run.summary
    if records is None:
        return [*wrong, "the log's records cannot be read"]
    if "closing" not in lacks and (not len(records) or records["state"][-1] not in _STOPPED):
        wrong.append("the log does not end with a closing record")
    if "summary" not in lacks and summary is None:
        wrong.append("there is no summary")
    if summary is not None and "closing" not in lacks and summary["log"]["records"] != len(records):
        wrong.append(f"the log has {len(records)} records, the summary says {summary['log']['records']}")
    return wrong


def torque_off_ns(events: Sequence[Event], after_ns: int, servos: Sequence[int]) -> int | None:
    """Return since when, at ``after_ns`` or later, the torque of all these servos was off to the end; None if it is not off."""
    since: int | None = None
    for event in events:
        if event["what"] == "torque":
            off = not any(event["on"][number] for number in servos)
            since = None if not off else since or event["t"]
    return None if since is None else max(since, after_ns)


def still_ns(events: Sequence[Event], after_ns: int, servos: Sequence[int]) -> int | None:
    """Return since when, at ``after_ns`` or later, those of these joints stood still that had torque; None if they do not."""
    since: int | None = after_ns
    on = [True] * (max(servos, default=0) + 1)
    for event in events:
        if event["what"] == "torque":
            on = event["on"]
        elif event["what"] == "state" and event["t"] >= after_ns:
            if any(on[number] and abs(event["v"][number]) > STILL_RAD_PER_S for number in servos):
                since = None
            elif since is None:
                since = event["t"]
    return since


def begun_to_stop_ns(records: NDArray[np.void] | None) -> int | None:
    """Return when the robot began to stop, as its log's closing record says; None if there is none."""
    if records is None or not len(records) or records["state"][-1] not in _STOPPED:
        return None
    return int(records["time_ns"][-1])


def last_blind_ticks(records: NDArray[np.void]) -> list[tuple[int, int]]:
    """Return begin and end of the ticks before the stop, in a row, that lacked a measurement; at least the last three."""
    count = 0
    for valid in records["valid"][::-1]:
        if count >= _FEWEST_TICKS and valid.all():
            break
        count += 1
    ticks = records[len(records) - count :]
    begins = ticks["time_ns"] - np.maximum(ticks["compute_ns"], _TICK_NS)
    return [(int(begin), int(end)) for begin, end in zip(begins, ticks["time_ns"], strict=True)]


def torque_switched_on(events: Sequence[Event], first: int) -> bool:
    """Return whether a servo's torque went on at or after the event of index ``first``.

    What was on before may stay: a robot whose adapter was unplugged cannot be told to let go, and the next run may find it so.
    """
    before: list[bool] | None = None
    for index, event in enumerate(events):
        if event["what"] != "torque":
            continue
        on: list[bool] = event["on"]
        if index >= first and any(now and not was for now, was in zip(on, before or [False] * len(on), strict=True)):
            return True
        before = on
    return False


def stalled_s(events: Sequence[Event], begin_ns: int, end_ns: int) -> float:
    """Return for how long the emulator got no time in a span of time, s."""
    stalls = [(event["t"] - round(event["gap_s"] * 1e9), event["t"]) for event in events if event["what"] == "stall"]
    total_ns: int = sum(max(0, min(end, end_ns) - max(begin, begin_ns)) for begin, end in stalls)
    return total_ns * 1e-9


def _some(wrong: list[str], what: str) -> list[str]:
    """Return few of many messages."""
    if len(wrong) <= _MOST_MESSAGES:
        return wrong
    return [*wrong[:_MOST_MESSAGES], f"... in all {len(wrong)} {what}"]
