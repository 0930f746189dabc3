"""One campaign: faults drawn from a seed happen one after the other to a robot that runs; after a stop it is started again."""

from __future__ import annotations

import dataclasses
import re
import resource
import shutil
import signal
import tempfile
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from threading import Event
from typing import Any

import psutil

from dpg_robot.errors import DpgError
from hw_drivers.benchmarks.faults_catalogue import (
    COLLAPSE_S,
    PERIOD_S,
    DiskFault,
    FaultKind,
    Injection,
    PolicyFault,
    SignalFault,
    WallClockFault,
    all_kinds,
)
from hw_drivers.benchmarks.faults_stack import STARTED_S, Emulator, RobotRun, dynamixel_stack, so101_stack, wait_until
from hw_drivers.benchmarks.faults_verdict import (
    Blind,
    begun_to_stop_ns,
    check_goals,
    check_log_complete,
    check_values,
    last_blind_ticks,
    stalled_s,
    still_ns,
    torque_off_ns,
    torque_switched_on,
)
from hw_drivers.emulators.fault_schedule import BusFault

STACKS = ("so101", "dynamixel")
_POLL_S = 0.025
_FIRST_S, _LAST_S = 0.2, 0.8  # of a run before its next fault
_SETTLE_S = 0.4  # after a fault that a run rides through
_ENDED_S = 30.0
_AFTER_END_S = 0.15
_STARVED_S = 0.002
"""Time without a processor that makes a tick of a healthy run miss its measurement: its answers have so long to spare."""
_ATTEMPTS = 4
_MEMORY = "/dev/shm"
_HOMING_SHARE = 0.4  # of the faults that may happen there, if the robot happens to home

_WALL_CLOCK = """import os, time
_time, _time_ns = time.time, time.time_ns
def _jump():
    try:
        with open({path!r}) as file:
            return float(file.read() or 0)
    except OSError:
        return 0.0
time.time = lambda: _time() + _jump()
time.time_ns = lambda: _time_ns() + round(_jump() * 1e9)
"""


@dataclass
class FaultResult:
    """What one fault did.

    Attributes:
        kind: its name in the catalogue.
        injection: what happened, in numbers.
        phase: what the robot was doing.
        outcome: rides, stops, refused, or starved: the run stopped because a process got no time, as the clocks prove.
        reason: what the run said when it stopped.
        stop_s: from the beginning of the fault until the torque was off, or the joints still; None if it did not stop.
        bound_s: in which time that must be.
        starved_s: for how long whoever stops the robot, and the emulator, got no time meanwhile.
        violations: what should not have been.
    """

    kind: str
    injection: dict[str, Any]
    phase: str = "running"
    outcome: str = ""
    reason: str = ""
    stop_s: float | None = None
    bound_s: float = 0.0
    starved_s: float = 0.0
    violations: list[str] = field(default_factory=list)


@dataclass
class _Suffered:
    """A fault that a run has had, until the run is judged."""

    result: FaultResult
    kind: FaultKind
    injection: Injection
    begin_ns: int
    end_ns: int


class InterruptedCampaignError(DpgError):
    """A campaign was to end early; it has no result."""


class Campaign:
    """One campaign; use it once."""

    def __init__(
        self, seed: int, number: int, stack: str, faults: Sequence[str], launch: Path, folder: Path, interrupted: Event
    ) -> None:
        """Draw what will happen.

        Args:
            seed: seed of all campaigns.
            number: of this one.
            stack: one of :data:`STACKS`.
            faults: names of the faults, in order.
            launch: folder of the programs.
            folder: where files go; must be empty.
            interrupted: when it is set, the campaign ends with InterruptedCampaignError.
        """
        self._interrupted = interrupted
        self._kinds = all_kinds()
        self._stack = so101_stack(launch.parent / "configs") if stack == "so101" else dynamixel_stack()
        self._random = Random(f"{seed} {number} {stack}")
        self._faults, self._launch, self._folder = faults, launch, folder
        self._servos = len(self._stack.servos.servos)
        self._policy = self._stack.write_policy(folder / "policy.onnx")
        self._jump = folder / "jump.txt"
        clock = folder / "clock"
        clock.mkdir()
        (clock / "sitecustomize.py").write_text(_WALL_CLOCK.format(path=str(self._jump)))
        self._clock = str(clock)
        self._run: RobotRun | None = None
        self._runs, self._first_event = 0, 0
        self._suffered: list[_Suffered] = []
        self.results: list[FaultResult] = []
        self.values = self.goals = self.runs = self.starved_starts = 0
        self.general_violations: list[str] = []
        self._emulator = Emulator(self._stack, folder, launch, number)

    def carry_out(self) -> None:
        """Let all faults happen, and check at the end that the robot starts once more.

        A fault that meets a run which stops for want of processor time happens again.
        """
        try:
            for name in self._faults:
                kind = self._kinds[name]
                injection = kind.draw(self._random, self._servos, self._stack.followers)
                early = kind.starts_anywhere and self._random.random() < _HOMING_SHARE
                wait_s = self._random.uniform(_FIRST_S, _LAST_S)
                for _ in range(_ATTEMPTS):
                    if self._suffer(name, injection, early, wait_s).outcome != "starved":
                        break
            self._require_run()
            self._end_run()
        finally:
            if self._run is not None:
                self._run.kill()
            self._emulator.close()

    def _suffer(self, name: str, injection: Injection, early: bool, wait_s: float) -> FaultResult:
        """Let one fault happen."""
        kind = self._kinds[name]
        if isinstance(injection, BusFault):
            injection = dataclasses.replace(injection, number=len(self.results))
        result = FaultResult(name, dataclasses.asdict(injection), bound_s=kind.bound_s(injection))
        self.results.append(result)
        if kind.expected == "refused":
            self._be_refused(kind, injection, result)
            return result
        if isinstance(injection, PolicyFault):
            self._end_run()
            path = self._folder / f"policy-{len(self.results)}.onnx"
            self._start(self._stack.write_policy(path, injection.failure, injection.at_step))
        if self._run is None:
            self._start(self._policy)
        run = self._run
        assert run is not None
        if early and not run.is_running:
            result.phase = "homing"
            self._watch(lambda run: run.homes or run.is_running)
            wait_s *= 0.5
        else:
            self._watch(lambda run: run.is_running)
        if not isinstance(injection, PolicyFault):
            self._wait(wait_s)
        if not run.alive and not isinstance(injection, PolicyFault):
            self._note_early_end(result)
            return result
        begin_ns, end_ns = self._inject(injection, run)
        self._suffered.append(_Suffered(result, kind, injection, begin_ns, end_ns))
        self._await_outcome(self._suffered[-1])
        return result

    def _require_run(self) -> None:
        """See that the robot starts, as it must after every fault."""
        if self._run is None:
            self._start(self._policy)

    def _start(self, policy: Path) -> None:
        """Start the robot until its policy acts or, when that is to be seen, until it homes; again if it gets no time."""
        for _ in range(_ATTEMPTS):
            self._begin_run(policy)
            self._watch(lambda run: run.homes or run.is_running)
            run = self._run
            assert run is not None
            if run.alive and not run.stops:
                return
            self._watch(lambda run: False, _ENDED_S)
            if not self._is_starved():
                break
            self.starved_starts += 1
            self._end_run()
        assert self._run is not None
        self._blame(f"the robot did not start again: {_reason(self._run)}")

    def _begin_run(self, policy: Path) -> None:
        self._emulator.look()
        self._first_event = len(self._emulator.events)
        folder = self._folder / f"run-{self._runs}"
        self._runs += 1
        self._run = RobotRun(self._stack, folder, self._launch, self._emulator.port, policy, extra_path=self._clock)

    def _watch(self, condition: Any, timeout_s: float = STARTED_S) -> bool:
        """Look at all processes until ``condition(run)``, or the run has ended."""
        run = self._run
        assert run is not None

        def done() -> bool:
            if self._interrupted.is_set():
                raise InterruptedCampaignError("the campaign was interrupted")
            self._emulator.look()
            run.look()
            return bool(condition(run)) or not run.alive

        return wait_until(done, timeout_s, _POLL_S)

    def _wait(self, seconds: float) -> None:
        """Let the robot run for a while."""
        end_s = time.monotonic() + seconds
        self._watch(lambda run: time.monotonic() >= end_s, seconds + 1.0)

    def _inject(self, injection: Injection, run: RobotRun) -> tuple[int, int]:
        """Let a fault happen; returns when it began and when it ends, ns."""
        match injection:
            case BusFault():
                self._emulator.give(injection)
                begin = self._find_fault(injection.number, begins=True)
                return begin, begin + round(injection.duration_s * 1e9)
            case SignalFault():
                return self._send_signal(injection, run)
            case PolicyFault(failure=failure):
                if failure == "out_of_range":
                    self._wait(injection.at_step * PERIOD_S)
                    now_ns = time.monotonic_ns()
                    return now_ns, now_ns + 500_000_000
                self._watch(lambda run: False, _ENDED_S)
                last_ns = self._last_goal_ns(run)
                return last_ns, last_ns
            case DiskFault(spare_bytes=spare):
                process, folder = run.child("robot-log"), run.log_folder
                assert process is not None
                assert folder is not None
                size = max((file.stat().st_size for file in folder.glob("*.mcap")), default=0) + spare
                process.rlimit(psutil.RLIMIT_FSIZE, (size, resource.RLIM_INFINITY))
            case WallClockFault(jump_s=jump_s):
                self._jump.write_text(str(jump_s))
        now_ns = time.monotonic_ns()
        return now_ns, now_ns

    def _last_goal_ns(self, run: RobotRun) -> int:
        """Return when the last goal of a policy that failed reached the servos: after it the stop has begun."""
        stop_ns = begun_to_stop_ns(run.records())
        events = self._emulator.events[self._first_event :]
        goals: list[int] = [event["t"] for event in events if event["what"] == "goals"]
        return [goal_ns for goal_ns in goals if stop_ns is None or goal_ns <= stop_ns][-1]

    def _find_fault(self, number: int, *, begins: bool) -> int:
        """Return when the emulator began or ended a fault, ns, once it has."""
        found: list[int] = []

        def look() -> bool:
            self._emulator.look()
            found[:] = [
                event["t"]
                for event in self._emulator.events
                if event["what"] == "fault" and event["number"] == number and event["begins"] == begins
            ]
            return bool(found)

        wait_until(look, _ENDED_S, 0.005)
        return found[-1]

    def _send_signal(self, fault: SignalFault, run: RobotRun) -> tuple[int, int]:
        names = ["supervisor", "robot-control", "robot-log"] if fault.process == "all" else [fault.process]
        processes = [psutil.Process(run.process.pid) if name == "supervisor" else run.child(name) for name in names]
        for process in processes:
            if process is not None and fault.process == "all":
                process.suspend()  # so that all die at once
        begin_ns = time.monotonic_ns()
        for process in processes:
            with suppress(psutil.NoSuchProcess):
                if process is not None:
                    process.send_signal(fault.number)
        if fault.number == signal.SIGSTOP:
            time.sleep(fault.duration_s)
            for process in processes:
                with suppress(psutil.NoSuchProcess):
                    if process is not None:
                        process.resume()
        return begin_ns, time.monotonic_ns()

    def _await_outcome(self, suffered: _Suffered) -> None:
        """Wait until a fault has had its effect, and judge the run if it has ended."""
        kind, result, run = suffered.kind, suffered.result, self._run
        assert run is not None
        if kind.expected == "stops":
            self._watch(lambda run: False, _ENDED_S)
        else:
            settled_s = max(0.0, (suffered.end_ns - time.monotonic_ns()) * 1e-9) + _SETTLE_S
            if kind.expected == "either":
                settled_s += kind.detection_s
            self._wait(settled_s)
            if run.stops or self._is_torque_off():
                self._watch(lambda run: False, _ENDED_S)
        if run.alive:
            result.outcome = "rides"
            if kind.expected == "stops":
                result.violations.append(f"the run did not stop within {_ENDED_S:g} s")
                self._end_run()
            if isinstance(suffered.injection, PolicyFault | WallClockFault):
                self._jump.unlink(missing_ok=True)
                self._end_run()
            return
        self._wait_for_trace(suffered)
        began_ns = begun_to_stop_ns(run.records())
        if began_ns is not None and began_ns < suffered.begin_ns:
            self._suffered.pop()
            self._note_early_end(result)
            return
        self._judge_stop(suffered)
        self._end_run()

    def _is_torque_off(self) -> bool:
        looks = [event["on"] for event in self._emulator.events[self._first_event :] if event["what"] == "torque"]
        return not looks or not any(looks[-1])

    def _wait_for_trace(self, suffered: _Suffered) -> None:
        """Let the trace go on past the end of the run, and of the fault."""
        if isinstance(suffered.injection, BusFault):
            self._find_fault(suffered.injection.number, begins=False)
        until_ns = max(time.monotonic_ns(), suffered.begin_ns + round(suffered.result.bound_s * 1e9)) + round(_AFTER_END_S * 1e9)

        def reached() -> bool:
            self._emulator.look()
            return bool(self._emulator.events) and self._emulator.events[-1]["t"] > until_ns

        wait_until(reached, _ENDED_S)

    def _judge_stop(self, suffered: _Suffered) -> None:
        kind, result, run = suffered.kind, suffered.result, self._run
        assert run is not None
        events = self._emulator.events
        result.outcome, result.reason = "stops", _reason(run)
        out_of_reach = {suffered.injection.servo} if kind.cut_off and isinstance(suffered.injection, BusFault) else set()
        reachable = [number for number in range(self._servos) if number not in out_of_reach]
        recent = events[self._first_event :]
        if kind.still:
            stopped_ns = still_ns(recent, suffered.begin_ns, range(self._servos))
        else:
            stopped_ns = torque_off_ns(recent, suffered.begin_ns, reachable)
        if stopped_ns is None:
            result.violations.append("the robot did not come to rest")
            return
        result.stop_s = (stopped_ns - suffered.begin_ns) * 1e-9
        result.starved_s = run.waited_s(kind.limits, suffered.begin_ns, stopped_ns)
        result.starved_s += stalled_s(events, suffered.begin_ns, stopped_ns)
        if out_of_reach:
            rest_ns = still_ns(recent, suffered.begin_ns, sorted(out_of_reach))
            latest_ns = suffered.begin_ns + round((result.bound_s + result.starved_s + COLLAPSE_S) * 1e9)
            if rest_ns is None or rest_ns > latest_ns:
                result.violations.append("the servo that cannot be reached did not come to rest")
        if kind.expected == "rides":
            self._judge_unexpected(result, f"the run stopped: {result.reason}")
        elif result.stop_s - result.starved_s > result.bound_s and kind.detection_s:
            result.violations.append(f"it took {result.stop_s:.3f} s to stop, allowed are {result.bound_s:.3f} s")
        if kind.expected != "rides" and kind.reason and not re.search(kind.reason, result.reason):
            self._judge_unexpected(result, f"the reason does not name the cause: {result.reason}")

    def _judge_unexpected(self, result: FaultResult, violation: str) -> None:
        """Decide whether a stop that should not have been is proved to come from want of processor time."""
        if self._is_starved():
            result.outcome = "starved"
        else:
            result.violations.append(violation)

    def _is_starved(self) -> bool:
        """Say whether a tick without a measurement, just before the stop, met a time without processor.

        That is the control process waiting for one, or the emulator not coming round for longer than the answers have to spare.
        """
        run = self._run
        assert run is not None
        records = run.records()
        if records is None or not len(records):
            return False
        ticks = last_blind_ticks(records)
        return any(
            stalled_s(self._emulator.events, begin_ns, end_ns) > _STARVED_S
            or run.waited_s("robot-control", begin_ns, end_ns) > _STARVED_S
            for begin_ns, end_ns in ticks
        )

    def _be_refused(self, kind: FaultKind, injection: Injection, result: FaultResult) -> None:
        """Let a fault be there before a run starts, which must refuse to move."""
        assert isinstance(injection, BusFault)
        self._end_run()
        result.phase = "start"
        self._emulator.give(injection)
        self._find_fault(injection.number, begins=True)
        self._emulator.look()
        first = len(self._emulator.events)
        self._begin_run(self._policy)
        run = self._run
        assert run is not None
        self._watch(lambda run: run.is_running, STARTED_S)
        result.outcome, result.reason = ("stops", _reason(run)) if not run.alive else ("rides", "")
        if run.alive or not re.search(kind.reason, result.reason):
            result.violations.append(f"the start was not refused for the right reason: {result.reason}")
        if torque_switched_on(self._emulator.events, first):
            result.violations.append("a torque was switched on")
        self._suffered.append(_Suffered(result, kind, injection, time.monotonic_ns(), time.monotonic_ns()))
        self._end_run()
        self._emulator.give(BusFault("repair", number=-1 - injection.number))
        self._find_fault(-1 - injection.number, begins=True)

    def _note_early_end(self, result: FaultResult) -> None:
        """Judge a run that stopped before the fault that was to happen to it."""
        run = self._run
        assert run is not None
        result.outcome, result.reason, result.stop_s = "early", _reason(run), None
        self._judge_unexpected(result, f"the run stopped by itself before the fault: {result.reason}")
        self._end_run()

    def _end_run(self) -> None:
        """Stop a run as a person does, and judge all of it."""
        run = self._run
        if run is None:
            return
        if run.alive:
            if run.process.poll() is None:
                run.process.send_signal(signal.SIGINT)
            if not self._watch(lambda run: False, _ENDED_S):
                self._blame(f"the run did not end within {_ENDED_S:g} s after SIGINT")
                run.kill()
        run.process.wait()
        self._emulator.look()
        self._judge_run(run)
        self._run = None
        self._suffered.clear()

    def _judge_run(self, run: RobotRun) -> None:
        """Check log, values and goals of a run that has ended."""
        events = self._emulator.events[self._first_event :]
        lacks = frozenset().union(*(each.kind.lacks for each in self._suffered))
        wrong = check_log_complete(run, lacks) if not self._was_refused() else []
        records = run.records()
        if records is not None:
            blind = [
                Blind(each.injection.servo, each.begin_ns, each.end_ns + 500_000_000)
                for each in self._suffered
                if each.kind.blind and isinstance(each.injection, BusFault)
            ]
            values, wrong_values = check_values(self._stack, records, events, blind)
            self.values += values
            wrong += wrong_values
        goals, wrong_goals = check_goals(self._stack, events)
        self.goals += goals
        self.runs += 1
        for violation in [*wrong, *wrong_goals]:
            self._blame(violation)

    def _was_refused(self) -> bool:
        return any(each.kind.expected == "refused" for each in self._suffered)

    def _blame(self, violation: str) -> None:
        """Note a violation with the last fault, if there was one."""
        happened = [result for result in self.results if result.outcome]
        (happened[-1].violations if happened else self.general_violations).append(violation)


def run_campaign(
    seed: int, number: int, stack: str, faults: Sequence[str], launch: Path, keep: Path | None, interrupted: Event
) -> dict[str, Any]:
    """Carry out a campaign and return its line in the results; files of one with violations are kept in ``keep``.

    Raises:
        InterruptedCampaignError: ``interrupted`` was set.
        LinkError: the emulator did not start, or ended.
    """
    begin_s = time.monotonic()
    # in memory where there is such a place, as a busy disk would hold up the emulator that writes its trace
    memory = _MEMORY if Path(_MEMORY).is_dir() else None
    with tempfile.TemporaryDirectory(prefix=f"faults-{number}-", dir=memory) as name:
        folder = Path(name)
        campaign = Campaign(seed, number, stack, faults, launch, folder, interrupted)
        campaign.carry_out()
        violations = [*campaign.general_violations, *(each for result in campaign.results for each in result.violations)]
        if keep is not None and violations:
            shutil.copytree(folder, keep / f"{seed}-{number}-{stack}", symlinks=True, dirs_exist_ok=True)
    return {
        "seed": seed,
        "campaign": number,
        "stack": stack,
        "seconds": round(time.monotonic() - begin_s, 2),
        "runs": campaign.runs,
        "values": campaign.values,
        "goals": campaign.goals,
        "starved_starts": campaign.starved_starts,
        "violations": len(violations),
        "general_violations": campaign.general_violations,
        "faults": [dataclasses.asdict(result) for result in campaign.results],
    }


def _reason(run: RobotRun) -> str:
    """Return why a run ended, as its summary or its last words say."""
    summary = run.summary
    if summary is not None:
        return str(summary["exit_reason"])
    lines = run.said.strip().splitlines()
    return lines[-1] if lines else ""
