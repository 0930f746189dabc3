"""The command ``loop`` of the benchmark program: the control loop's timing beside that of a bare loop in C."""

from __future__ import annotations

import argparse
import platform
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from dpg_robot.contract import Contract
from dpg_robot.errors import unknown_name
from dpg_robot.versions import installed_versions
from hw_drivers.benchmarks.loop_alone import measure_memory, measure_step
from hw_drivers.benchmarks.loop_bare import compile_bare_loop
from hw_drivers.benchmarks.loop_robot import ROBOTS, make_contract, wire_time_s
from hw_drivers.benchmarks.loop_runs import BARE, CONDITIONS, Plan, Runner, compare, summarize
from hw_drivers.benchmarks.loop_wakeups import PERCENTILES
from hw_drivers.benchmarks.text_table import text_table

PolicyWriter = Callable[[Mapping[Path, Contract], Sequence[int]], None]

_PACKAGES = ("dpg-robot", "numpy", "onnxruntime", "mcap", "protobuf", "pyserial")
_NEVER_WAITING_HZ = 1e6  # no tick is done in its period
_MOST_HZ = 10_000
_MIB = 1 << 20
_NAMES = ("load", "Hz", "loop")
_MOST_SERVOS = 20


def add_loop_arguments(commands: Any, programs: Path, write_policies: PolicyWriter) -> None:
    """Add the command ``loop`` and its options to the sub-commands of a parser.

    Args:
        commands: the sub-commands.
        programs: folder with ``robot.py`` and ``emulate.py``.
        write_policies: writes a policy with given hidden layers to each path, for the contract there.
    """
    parser = commands.add_parser(
        "loop",
        help="the control loop's timing, memory and records beside a bare loop in C",
        description="Runs launch/robot.py, with its log, in turns with a C program that does nothing but clock_nanosleep on the "
        "same grid, with the same real-time requests: missed periods, wake-up latency and period. Besides: the time of the "
        "policy's step, the memory of a loop over many ticks, and records lost. The ratio to the bare loop of the same run says "
        "more than the times, which are the machine's.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument("--rates", type=float, nargs="+", default=[100, 500, 1000], metavar="HZ", help="control steps per second")
    parser.add_argument(
        "--seconds", type=float, default=60.0, metavar="S", help="time for each rate, robot and load, and for the bare loop, s"
    )
    parser.add_argument("--slices", type=int, default=3, metavar="N", help="pieces of that time; the loops take turns with them")
    parser.add_argument("--load", nargs="+", default=list(CONDITIONS), metavar="WHAT", help=_describe(CONDITIONS))
    parser.add_argument("--robots", nargs="+", default=list(ROBOTS), metavar="ROBOT", help=_describe(ROBOTS))
    parser.add_argument("--servos", type=int, default=6, metavar="N", help="number of servos, or of joints of the instant robot")
    parser.add_argument("--hidden", type=int, nargs="+", default=[256, 256, 256], metavar="N", help="hidden layers of the policy")
    parser.add_argument("--priority", type=int, default=80, metavar="N", help="under SCHED_FIFO; 0 asks for no real time")
    parser.add_argument("--steps", type=int, default=20_000, metavar="N", help="steps of the policy to be timed; 0 for none")
    parser.add_argument(
        "--ticks",
        type=int,
        default=360_000,
        metavar="N",
        help="ticks over which memory is watched (an hour at 100 Hz); 0 for none",
    )
    parser.add_argument("--quiet", action="store_true", help="show no progress")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the results and facts about the machine to FILE too")
    parser.set_defaults(run=lambda arguments: run_loop(arguments, programs, write_policies))


def run_loop(arguments: argparse.Namespace, programs: Path, write_policies: PolicyWriter) -> dict[str, Any]:
    """Measure, print the tables, and return all that was measured; ``failed`` names the runs that ended before their time."""
    _check(arguments)
    with tempfile.TemporaryDirectory(prefix="loop-benchmark-") as name:
        folder = Path(name)
        bare_loop = compile_bare_loop(folder)
        policies = {rate: folder / f"policy-{rate:g}.onnx" for rate in (*arguments.rates, _NEVER_WAITING_HZ)}
        write_policies({path: make_contract(arguments.servos, rate) for rate, path in policies.items()}, arguments.hidden)
        plan = Plan(
            rates_hz=arguments.rates,
            conditions=arguments.load,
            robots=arguments.robots,
            servos=arguments.servos,
            slice_s=arguments.seconds / arguments.slices,
            slices=arguments.slices,
            priority=arguments.priority,
            policies=policies,
        )
        progress = _Progress(len(plan.runs) + 2, quiet=arguments.quiet)
        progress("step of the policy")
        step = measure_step(policies[_NEVER_WAITING_HZ], arguments.steps, arguments.priority) if arguments.steps else None
        runs = _measure_runs(plan, Runner(plan, programs, bare_loop, folder), progress)
        progress("memory")
        memory = measure_memory(policies[_NEVER_WAITING_HZ], arguments.ticks) if arguments.ticks else None
    result = {
        "settings": {
            name: getattr(arguments, name)
            for name in ("rates", "seconds", "slices", "load", "robots", "servos", "hidden", "priority", "steps", "ticks")
        },
        "argv": sys.argv[1:],
        "kernel": f"{platform.release()} {platform.version()}",
        "versions": installed_versions(_PACKAGES),
        "wire_s_per_tick": wire_time_s(arguments.servos),
        "loops": runs,
        "step": step,
        "memory": memory,
        "failed": [
            f"{run['load']}, {run['rate_hz']:g} Hz, {run['loop']}: {why}" for run in runs for why in run.get("stopped", ())
        ],
    }
    print(describe(result))
    return result


def describe(result: Mapping[str, Any]) -> str:
    """Return the results as tables."""
    settings, wire_s = result["settings"], result["wire_s_per_tick"]
    lines = [
        "times in us; missed: periods without a tick; late: commands later than half a period after their tick began",
        *(f"{name}: {text}" for name, text in {**ROBOTS, BARE: "a loop in C that does nothing else"}.items()),
        f"on the wire, a tick of {settings['servos']} servos takes {wire_s * 1e3:.3f} ms, which allows {1 / wire_s:.0f} Hz",
        *(f"real time, {loop}: {grants}" for loop, grants in _grants(result["loops"]).items()),
        "",
        *_wakeup_table(result["loops"]),
        "",
        *_tick_table(result["loops"]),
    ]
    if step := result["step"]:
        times = ", ".join(f"{step['step_us'][name]:.1f} us ({name})" for name in PERCENTILES)
        lines += ["", f"a step of the policy alone, {' x '.join(map(str, settings['hidden']))}: {times}"]
    if memory := result["memory"]:
        samples = sorted((int(ticks), rss) for ticks, rss in memory["rss_bytes"].items())
        shown = [samples[round(share * len(samples)) - 1] for share in (0.1, 0.5, 1.0)]
        text = ", ".join(f"{rss / _MIB:.2f} MiB after {ticks:,}" for ticks, rss in shown)
        lines += ["", f"memory of a loop over {memory['ticks']:,} ticks at {memory['ticks_per_second']:,.0f} per s: {text}"]
    return "\n".join(lines)


def _wakeup_table(runs: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return how late the loops woke up, and that over what the bare loop of the same turns was."""
    rows = [[*_NAMES, "ticks", "missed", "woken up late by: p50", *PERCENTILES[1:], "over bare: p50", *PERCENTILES[1:3]]]
    for run in runs:
        latency, over = run["latency_us"] or {}, run.get("over_bare", {})
        counts = [f"{run['ticks']:,}", f"{run['missed']:,}"]
        times = [_number(latency.get(name)) for name in PERCENTILES]
        rows.append([*_cells(run), *counts, *times, *(_number(over.get(name), 2) for name in PERCENTILES[:3])])
    return text_table(rows, to_the_right=True)


def _tick_table(runs: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return periods, and for control loops the times to their commands, and what came of measurements and records."""
    command = ("command after: p50", *PERCENTILES[1:])
    rows = [[*_NAMES, "period: p50", *PERCENTILES[1:], *command, "late", "fresh measurements", "records", "lost"]]
    for run in runs:
        period, compute = run["period_us"] or {}, run.get("compute_us") or {}
        times = [_number(values.get(name)) for values in (period, compute) for name in PERCENTILES]
        tail = ["", "", "", ""]
        if run["loop"] != BARE:
            counts = (run["records"]["pushed"], run["records_lost"])
            tail = [f"{run['late_commands']:,}", f"{run['fresh_measurements']:.2%}", *(f"{count:,}" for count in counts)]
        rows.append([*_cells(run), *times, *tail])
    return text_table(rows, to_the_right=True)


def _measure_runs(plan: Plan, runner: Runner, progress: Callable[[str], None]) -> list[dict[str, Any]]:
    slices = runner.run(progress)
    summaries = {key: summarize(some) for key, some in slices.items()}
    runs = []
    for (condition, rate_hz, what), summary in summaries.items():
        run = {"load": condition, "rate_hz": rate_hz, "loop": what, **summary}
        if what != BARE:
            run["over_bare"] = compare(summary, summaries[condition, rate_hz, BARE])
        runs.append(run)
    return runs


def _cells(run: Mapping[str, Any]) -> list[str]:
    return [run["load"], f"{run['rate_hz']:g}", run["loop"]]


def _grants(runs: Sequence[Mapping[str, Any]]) -> dict[str, str]:
    return {run["loop"]: ", ".join(f"{name} {text}" for name, text in run["grants"].items()) for run in reversed(runs)}


def _check(arguments: argparse.Namespace) -> None:
    for what, names, known in (("load", arguments.load, CONDITIONS), ("robot", arguments.robots, ROBOTS)):
        for name in names:
            if name not in known:
                raise unknown_name(what, name, known)
    for rate in arguments.rates:
        if not 1 <= rate <= _MOST_HZ:
            raise ValueError(f"rates must be 1 to {_MOST_HZ} Hz, got {rate:g}")
    if arguments.slices < 1 or not arguments.seconds / arguments.slices * min(arguments.rates) >= 2:
        raise ValueError(f"every slice needs at least 2 ticks; got {arguments.seconds:g} s in {arguments.slices} slices")
    if not 1 <= arguments.servos <= _MOST_SERVOS:
        raise ValueError(f"servos must be 1 to {_MOST_SERVOS}, got {arguments.servos}")
    if not 0 <= arguments.priority <= 99:
        raise ValueError(f"priority must be 0 to 99, got {arguments.priority}")
    if min(arguments.hidden) < 1:
        raise ValueError(f"hidden layers must have 1 unit or more, got {arguments.hidden}")
    if arguments.steps < 0 or arguments.ticks < 0 or 0 < arguments.ticks < 100:
        raise ValueError(f"steps must be 0 or more and ticks 0 or at least 100, got {arguments.steps} and {arguments.ticks}")


def _describe(choices: Mapping[str, str]) -> str:
    return "; ".join(f"{name}: {text}" for name, text in choices.items())


def _number(value: float | None, digits: int = 0) -> str:
    return "" if value is None else f"{value:,.{digits}f}"


class _Progress:
    """A line on stderr for each thing that begins."""

    def __init__(self, total: int, *, quiet: bool) -> None:
        self._total, self._quiet, self._begun = total, quiet, 0

    def __call__(self, what: str) -> None:
        self._begun += 1
        if not self._quiet:
            print(f"{self._begun}/{self._total}: {what}", file=sys.stderr, flush=True)
