"""Runs of the control loop as a user makes them, and of the bare loop, in turns.

Every slice runs ``launch/robot.py`` with its supervisor, control process and log process, and what it did is read from the log
that it wrote: wake-ups, times to the command, measurements, and whether a record is missing.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dpg_robot.config import dump_config
from dpg_robot.data.robot_log import read_records
from dpg_robot.data.transition import EpisodeEnd, LoopState
from hw_drivers.benchmarks.loop_bare import run_bare_loop
from hw_drivers.benchmarks.loop_programs import ProgramError, busy_processes, served
from hw_drivers.benchmarks.loop_robot import emulator_arguments, make_contract, make_robot_config, remove_return_delay
from hw_drivers.benchmarks.loop_wakeups import PERCENTILES, Wakeups, percentiles_us, summarize_wakeups

CONDITIONS = {"idle": "nothing is added", "load": "an always busy process for each core"}
"""What runs beside the loops, and what that is."""

BARE = "bare"
_START_STOP_S = 60.0  # of a run's processes, on a busy machine


@dataclass(frozen=True)
class Plan:
    """What is run in every slice.

    Attributes:
        rates_hz: rates.
        conditions: of :data:`CONDITIONS`.
        robots: what the loop controls.
        servos: how many it has.
        slice_s: length of a run, s.
        slices: how many of each.
        priority: under SCHED_FIFO; 0 asks for no real time.
        policies: policy file for each rate.
    """

    rates_hz: Sequence[float]
    conditions: Sequence[str]
    robots: Sequence[str]
    servos: int
    slice_s: float
    slices: int
    priority: int
    policies: Mapping[float, Path]

    @property
    def runs(self) -> list[tuple[str, float, str]]:
        """Condition, rate and what runs, in turns: the bare loop and the others follow each other."""
        return [
            (condition, rate, what)
            for _ in range(self.slices)
            for condition in self.conditions
            for rate in self.rates_hz
            for what in (BARE, *self.robots)
        ]


@dataclass(frozen=True)
class Slice:
    """What one run did; from ``compute_ns`` on it is what only control loops do.

    Attributes:
        wakeups: while the policy acted.
        grants: what the system granted.
        load_average: over the last minute, at the beginning.
        compute_ns: (n,) int64 time from the beginning of a tick to its command.
        fresh: share of the measurements that were read freshly.
        pushed: records that went into the ring.
        refused: records that did not, as it was full.
        logged: records that were found in the log.
        stopped: why it ended before its time; empty if it did not.
    """

    wakeups: Wakeups
    grants: dict[str, str]
    load_average: float
    compute_ns: NDArray[np.int64] | None = None
    fresh: float = 0.0
    pushed: int = 0
    refused: int = 0
    logged: int = 0
    stopped: str = ""


class Runner:
    """Makes the runs of a plan.

    Args:
        plan: the plan.
        programs: folder with ``robot.py`` and ``emulate.py``.
        bare_loop: the compiled bare loop.
        folder: for the runs' files.
    """

    def __init__(self, plan: Plan, programs: Path, bare_loop: Path, folder: Path) -> None:
        self._plan, self._programs, self._bare_loop, self._folder = plan, programs, bare_loop, folder

    def run(self, progress: Callable[[str], None]) -> dict[tuple[str, float, str], list[Slice]]:
        """Make all runs and return them by condition, rate and what ran. Raises ProgramError if one does not even begin."""
        slices: dict[tuple[str, float, str], list[Slice]] = {}
        for condition, rate_hz, what in self._plan.runs:
            progress(f"{condition}, {rate_hz:g} Hz, {what}")
            busy = len(os.sched_getaffinity(0)) if condition == "load" else 0
            with busy_processes(busy):
                done = self._run_bare(rate_hz) if what == BARE else self._run_loop(what, rate_hz)
            slices.setdefault((condition, rate_hz, what), []).append(done)
        return slices

    def _run_bare(self, rate_hz: float) -> Slice:
        load_average = os.getloadavg()[0]
        wakeups, grants = run_bare_loop(self._bare_loop, rate_hz, self._plan.slice_s, self._plan.priority)
        return Slice(wakeups, grants, load_average)

    def _run_loop(self, what: str, rate_hz: float) -> Slice:
        folder = self._folder / f"run-{time.monotonic_ns()}"
        folder.mkdir()
        robot, summary, port = folder / "robot.yaml", folder / "summary.json", folder / "port"
        dump_config(make_robot_config(what, make_contract(self._plan.servos, rate_hz), self._plan.priority, str(port)), robot)
        command = [sys.executable, str(self._programs / "robot.py"), "run", "--quiet"]
        command += ["--robot", str(robot), "--policy", str(self._plan.policies[rate_hz]), "--log", str(folder / "log")]
        command += ["--episode-seconds", str(self._plan.slice_s), "--json", str(summary)]
        load_average = os.getloadavg()[0]
        with ExitStack() as stack:
            if what == "servos":
                emulator = [sys.executable, str(self._programs / "emulate.py"), *emulator_arguments(self._plan.servos, port)]
                stack.enter_context(served(emulator))
                remove_return_delay(self._plan.servos, str(port))
            patience_s = 2 * self._plan.slice_s + _START_STOP_S
            done = subprocess.run(command, capture_output=True, text=True, timeout=patience_s, check=False)
        if not summary.exists():
            raise ProgramError(f"robot.py ended with exit code {done.returncode}:\n{done.stderr.strip()}")
        slice_ = _read_slice(json.loads(summary.read_text()), folder / "log", rate_hz, load_average)
        shutil.rmtree(folder)
        return slice_


def summarize(slices: Sequence[Slice]) -> dict[str, Any]:
    """Return what runs of the same kind did, together; times in microseconds where the name says so."""
    result = {"slices": len(slices), **summarize_wakeups([each.wakeups for each in slices]), "grants": slices[-1].grants}
    result["load_averages"] = [round(each.load_average, 2) for each in slices]
    result["slice_p99_us"] = [(percentiles_us([each.wakeups.late_ns]) or {}).get("p99") for each in slices]
    loops = [(each, each.compute_ns) for each in slices if each.compute_ns is not None]
    if not loops:
        return result
    half_ns = loops[0][0].wakeups.period_ns // 2
    return result | {
        "compute_us": percentiles_us([compute_ns for _, compute_ns in loops]),
        "late_commands": sum(int((compute_ns > half_ns).sum()) for _, compute_ns in loops),
        "fresh_measurements": float(np.mean([each.fresh for each, _ in loops])),
        "records": {name: sum(getattr(each, name) for each, _ in loops) for name in ("pushed", "refused", "logged")},
        "records_lost": sum(each.pushed + each.refused - each.logged for each, _ in loops),
        "stopped": [each.stopped for each, _ in loops if each.stopped],
    }


def compare(loop: Mapping[str, Any], bare: Mapping[str, Any]) -> dict[str, float | None]:
    """Return the loop's wake-up latencies over those of the bare loop."""
    ours, theirs = loop["latency_us"], bare["latency_us"]
    if not ours or not theirs:
        return dict.fromkeys(PERCENTILES)
    return {name: round(ours[name] / theirs[name], 3) for name in PERCENTILES}


def _read_slice(summary: dict[str, Any], log: Path, rate_hz: float, load_average: float) -> Slice:
    """Return what a run's summary and log say."""
    loop, counts, period_ns = summary["loop"], summary["log"], round(1e9 / rate_hz)
    if loop is None or not loop["episodes"]:  # the computer was too busy to start it in time, for example
        nothing = np.empty(0, np.int64)
        return Slice(Wakeups(period_ns, nothing, nothing, 0), {}, load_average, nothing, stopped=summary["exit_reason"])
    records = np.concatenate(list(read_records(log, on_damage="skip")))
    acting = records[(records["state"] == LoopState.RUNNING) & (records["episode_end"] == EpisodeEnd.NOT_ENDED)]
    points = acting["period"]
    due = int(points[-1] - points[0]) + 1 if len(points) else 0
    return Slice(
        wakeups=Wakeups(period_ns, points, np.maximum(acting["wakeup_latency_ns"], 0), due),
        grants={
            grant["name"]: f"{'granted' if grant['granted'] else 'refused'} ({grant['detail']})" for grant in loop["real_time"]
        },
        load_average=load_average,
        compute_ns=acting["compute_ns"],
        fresh=float(acting["valid"].mean()) if len(acting) else 0.0,
        pushed=counts["records"],
        refused=counts["overruns"],
        logged=len(records),
        stopped="" if summary["exit_code"] == 0 else summary["exit_reason"],
    )
