#!/usr/bin/env python
"""Measure ours beside what others offer for the same work: speed of simulation, learning, and the action gradient."""

from __future__ import annotations

import argparse
import dataclasses
import json
import platform
import sys
from collections.abc import Sequence
from contextlib import closing
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import psutil
from tqdm import tqdm

from dpg_robot.config import (
    add_config_arguments,
    config_from_arguments,
    config_from_dict,
    config_to_dict,
    describe_settings,
)
from dpg_robot.errors import DpgError
from dpg_robot.files import write_atomically
from sim.benchmark import BenchmarkSettings, count_work, measure_task, usable_cores
from sim.benchmarks.gradient_figures import draw_cosines, draw_robustness
from sim.benchmarks.gradient_protocol import GradientProtocol, LinearRun, VariantConfig, VariantRun, needed_runs, select_runs
from sim.benchmarks.gradient_protocol import plan_runs as plan_gradient_runs
from sim.benchmarks.gradient_report import build_report as build_gradient_report
from sim.benchmarks.gradient_report import describe_report as describe_gradient_report
from sim.benchmarks.gradient_report import to_csv as gradients_to_csv
from sim.benchmarks.gradient_results import read_results as read_gradient_results
from sim.benchmarks.gradient_runs import execute_all as execute_gradient_runs
from sim.benchmarks.learning_figures import draw_figure
from sim.benchmarks.learning_peers import require_peers
from sim.benchmarks.learning_protocol import LearningProtocol, OurConfig, PeerConfig, plan_runs, restrict
from sim.benchmarks.learning_report import build_report, describe_report, to_csv
from sim.benchmarks.learning_results import ResultError, read_results
from sim.benchmarks.learning_runs import Finished, execute_all
from sim.benchmarks.offline_command import add_offline_arguments
from sim.benchmarks.tables import markdown_table

CONFIGS = Path(__file__).resolve().parent.parent / "configs"
PACKAGES = ("dpg-robot", "mujoco", "dm-control", "gymnasium", "numpy")
TITLES = {
    "ours": "ours",
    "staggered": "ours, staggered",
    "bare": "bare MuJoCo",
    "dm_control": "dm_control",
    "processes": "in processes",
    "envpool": "EnvPool",
}
NOTES = """\
ours: {environments} environments on {threads} threads, randomization and disturbance medium, resets included
ours, staggered: the same with episodes that end one by one instead of together
bare MuJoCo: mujoco.batch.Batch of the nominal model with random controls; no outputs, no resets, same threads
dm_control: its own environment in one process, resets included
in processes: {processes} dm_control environments, each in a process of its own under gymnasium's AsyncVectorEnv
EnvPool: {envpool_environments} environments on {threads} threads, its own version of MuJoCo, no randomization"""


def main() -> None:
    """Parse the command line and run."""
    parser = argparse.ArgumentParser(description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True, metavar="WHAT")
    add_sim_arguments(commands)
    add_learn_arguments(commands)
    add_gradient_arguments(commands)
    add_offline_arguments(commands)
    arguments = parser.parse_args()
    try:
        result = arguments.run(arguments)
        if arguments.json:
            whole = {"command": arguments.command, "time": datetime.now(UTC).isoformat(), "machine": machine_facts(), **result}
            write_atomically(arguments.json, json.dumps(whole, indent=1).encode())
    except (DpgError, ValueError, OSError) as error:
        parser.exit(1, f"benchmark: {error}\n")
    except KeyboardInterrupt:
        parser.exit(130, "benchmark: interrupted\n")
    if failed := result.get("failed"):
        parser.exit(1, f"benchmark: {len(failed)} runs failed: {'; '.join(failed)}\n")


def add_sim_arguments(commands: Any) -> None:
    """Add the command ``sim`` and its options."""
    parser = commands.add_parser(
        "sim",
        help="control steps per second of simulated environments",
        description="Measure control steps per second of simulated environments, and their memory.",
    )
    for field in dataclasses.fields(BenchmarkSettings):
        add_option(parser, field, getattr(BenchmarkSettings(), field.name))
    parser.add_argument("--quiet", action="store_true", help="no progress bar")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the results and facts about the machine to FILE too")
    parser.set_defaults(run=run_sim)


def add_option(parser: argparse.ArgumentParser, field: dataclasses.Field[Any], default: Any) -> None:
    """Add the option of one setting, with its default and unit in the help."""
    several = isinstance(default, tuple)
    unit = f" {field.metadata['unit']}" if field.metadata["unit"] else ""
    shown = " ".join(default) if several else f"{default}{unit}"
    parser.add_argument(
        "--" + field.name.replace("_", "-"),
        type=type(default) if isinstance(default, int | float) else str,
        nargs="+" if several else None,
        default=str(default) if isinstance(default, Path) else default,
        metavar=field.name.removesuffix("s").upper() if several else None,
        help=f"{field.metadata['help']} (default: {shown})",
    )


def run_sim(arguments: argparse.Namespace) -> dict[str, Any]:
    """Measure task after task, print the table, and return all that was measured."""
    values = {field.name: getattr(arguments, field.name) for field in dataclasses.fields(BenchmarkSettings)}
    plain = {name: list(value) if isinstance(value, tuple) else value for name, value in values.items()}
    settings = config_from_dict(BenchmarkSettings, plain, "command line")
    tasks = {}
    with tqdm(total=count_work(settings) * len(settings.tasks), disable=arguments.quiet, file=sys.stderr) as bar:

        def progress(what: str) -> None:
            bar.set_description(what, refresh=False)
            bar.update()

        for task in settings.tasks:
            tasks[task] = measure_task(task, settings, progress)
    print(describe(settings, tasks))
    resolved = config_to_dict(settings)
    del resolved["envpool_python"]  # where it lies on this machine is nobody else's business
    return {"settings": resolved, "tasks": tasks}


def add_learn_arguments(commands: Any) -> None:
    """Add the command ``learn`` and its options."""
    parser = commands.add_parser(
        "learn",
        help="returns of our learner and of published ones, on the same tasks, frames and seeds",
        description="Train our learner and its peers on all cells (task and disturbance) with all seeds, and compare returns. "
        "Each run leaves a small file; runs that are there already are not done again.",
    )
    add_config_arguments(parser, LearningProtocol, CONFIGS / "benchmark" / "learn.yaml")
    named = [*describe_settings(OurConfig, "ours.NAME."), *describe_settings(PeerConfig, "peers.NAME.")]
    parser.epilog += "\n\nsettings of each variant of ours and of each peer:\n" + "\n".join(f"  {line}" for line in named)
    parser.add_argument(
        "--results", type=Path, default=Path("runs/learn"), metavar="FOLDER", help="folder of all results (default: %(default)s)"
    )
    parser.add_argument(
        "--only",
        action="append",
        default=[],
        metavar="KEY=NAME,...",
        help="run and report only these; KEY is task, disturbance, algorithm or seed; may be given several times",
    )
    parser.add_argument("--jobs", type=int, default=1, metavar="N", help="runs at once, one process each (default: %(default)s)")
    parser.add_argument("--redo", action="store_true", help="replace results of other settings (to repeat one, remove its file)")
    parser.add_argument("--report", action="store_true", help="run nothing, report on the results that are there")
    parser.add_argument("--quiet", action="store_true", help="no progress bar")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write everything that is reported to FILE too")
    parser.add_argument("--csv", type=Path, metavar="FILE", help="write all evaluations to FILE, a line for each")
    parser.add_argument("--figure", type=Path, metavar="FILE", help="draw learning curves and aggregated scores to FILE, a PNG")
    parser.set_defaults(run=run_learn)


def run_learn(arguments: argparse.Namespace) -> dict[str, Any]:
    """Do the runs that are missing, then print the report and return it."""
    protocol = restrict(config_from_arguments(LearningProtocol, arguments), arguments.only)
    failed = [] if arguments.report else train_missing(protocol, arguments)
    stored = read_results(arguments.results, plan_runs(protocol))
    report = build_report(protocol, stored)
    print(describe_report(report))
    if arguments.csv:
        write_atomically(arguments.csv, to_csv(stored.results).encode())
    if arguments.figure:
        write_atomically(arguments.figure, draw_figure(protocol, stored, report))
    return report | {"failed": failed}


def train_missing(protocol: LearningProtocol, arguments: argparse.Namespace) -> list[str]:
    """Carry out the runs of a protocol whose results are not there yet; returns the titles of those that failed."""
    if arguments.jobs < 1:
        raise ValueError(f"--jobs must be 1 or more, got {arguments.jobs}")
    require_peers(protocol.peers.values())
    runs = plan_runs(protocol)
    stored = read_results(arguments.results, runs)
    if stored.other and not arguments.redo:
        run, differing = next(iter(stored.other.items()))
        raise ResultError(
            f"{arguments.results / run.place} and {len(stored.other) - 1} more are results of other settings "
            f"({'; '.join(differing[:3])}); give --redo to replace them, or another folder with --results"
        )
    missing = [run for run in runs if run not in stored.results]
    frames = sum(run.frames for run in missing)
    print(f"{len(missing)} runs to do, {len(stored.results)} are there already", file=sys.stderr)
    failed = []
    interval = 1.0 if sys.stderr.isatty() else 60.0  # seconds; a log file need not hold thousands of bars
    bar = tqdm(total=frames, unit="frame", unit_scale=True, disable=arguments.quiet, file=sys.stderr, mininterval=interval)
    with bar, closing(execute_all(missing, arguments.results, arguments.jobs, bar.update)) as endings:
        for finished in endings:
            tqdm.write(describe_finished(finished), file=sys.stderr)
            if finished.result is None:
                failed.append(finished.run.title)
    return failed


def describe_finished(finished: Finished) -> str:
    """Return how a run ended, in a line (and the traceback of a failure)."""
    if finished.result is None:
        return f"{finished.run.title}: FAILED after {finished.elapsed_s:.0f} s\n{finished.error.rstrip()}"
    returns = finished.result.curve[-1]["returns"]
    return f"{finished.run.title}: return {sum(returns) / len(returns):.1f} in {finished.elapsed_s:.0f} s"


def add_gradient_arguments(commands: Any) -> None:
    """Add the command ``gradient`` and its options."""
    parser = commands.add_parser(
        "gradient",
        help="how good the learned action gradients are, beside a closed form and the true gradient in simulation",
        description="Compare the action gradients that the learner's variants learn with the exact one: in linear-Gaussian "
        "worlds, where it has a closed form, and in simulation, where it is measured with common random numbers. "
        "Each run leaves a file; runs that are there already are not done again.",
    )
    add_config_arguments(parser, GradientProtocol, CONFIGS / "benchmark" / "gradient.yaml")
    named = "\n".join(f"  {line}" for line in describe_settings(VariantConfig, "variants.NAME."))
    parser.epilog += f"\n\nsettings of each variant:\n{named}"
    parser.add_argument(
        "--results",
        type=Path,
        default=Path("runs/gradient"),
        metavar="FOLDER",
        help="folder of all results (default: %(default)s)",
    )
    parser.add_argument(
        "--only",
        action="append",
        default=[],
        metavar="KEY=NAME,...",
        help="run and report only these; KEY is part (linear, simulated), actions, noise, task, variant or seed; several times",
    )
    parser.add_argument("--jobs", type=int, default=1, metavar="N", help="runs at once, one process each (default: %(default)s)")
    parser.add_argument("--report", action="store_true", help="run nothing, report on the results that are there")
    parser.add_argument("--quiet", action="store_true", help="no progress bar")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write everything that is reported to FILE too")
    parser.add_argument("--csv", type=Path, metavar="FILE", help="write all numbers to FILE, a line for each")
    parser.add_argument("--figure", type=Path, metavar="FILE", help="draw cosines against noise to FILE, a PNG")
    parser.add_argument("--robustness-figure", type=Path, metavar="FILE", help="draw gains against steps to FILE, a PNG")
    parser.set_defaults(run=run_gradient)


def run_gradient(arguments: argparse.Namespace) -> dict[str, Any]:
    """Do the runs that are missing, then print the report and return it."""
    protocol = config_from_arguments(GradientProtocol, arguments)
    runs = select_runs(plan_gradient_runs(protocol), arguments.only)
    failed = [] if arguments.report else measure_missing_gradients(runs, arguments)
    results = read_gradient_results(arguments.results, runs)
    report = build_gradient_report(protocol, runs, results)
    print(describe_gradient_report(report))
    if arguments.csv:
        write_atomically(arguments.csv, gradients_to_csv(results).encode())
    for path, draw in ((arguments.figure, draw_cosines), (arguments.robustness_figure, draw_robustness)):
        if path:
            write_atomically(path, draw(report))
    return report | {"failed": failed}


def measure_missing_gradients(runs: Sequence[LinearRun | VariantRun], arguments: argparse.Namespace) -> list[str]:
    """Carry out the runs whose results are not there yet, and those that they need; returns the titles of those that failed."""
    if arguments.jobs < 1:
        raise ValueError(f"--jobs must be 1 or more, got {arguments.jobs}")
    wanted = [run for run in runs if not (arguments.results / run.place).exists()]
    missing = [[run for run in stage if not (arguments.results / run.place).exists()] for stage in needed_runs(wanted)]
    print(f"{sum(map(len, missing))} runs to do, {len(runs) - len(wanted)} of {len(runs)} are there already", file=sys.stderr)
    failed = []
    with tqdm(total=sum(map(len, missing)), unit="run", disable=arguments.quiet, file=sys.stderr) as bar:
        for stage in missing:
            with closing(execute_gradient_runs(stage, arguments.results, arguments.jobs)) as endings:
                for ending in endings:
                    outcome = f"FAILED\n{ending.error.rstrip()}" if ending.error else "done"
                    tqdm.write(f"{ending.run.title}: {outcome} ({ending.elapsed_s:.0f} s)", file=sys.stderr)
                    failed += [ending.run.title] if ending.error else []
                    bar.update()
    return failed


def describe(settings: BenchmarkSettings, tasks: dict[str, dict[str, Any]]) -> str:
    """Return the results as two tables, with what each column is below them."""
    titles = [TITLES[name] for name in settings.methods]
    speeds = [["control steps per second", *titles] + ["memory per environment"] * bool(settings.memory_environments)]
    others = [name for name in settings.methods if name != "ours"] if "ours" in settings.methods else []
    ratios = [["ratio of ours to", *(TITLES[name] for name in others)]]
    for task, result in tasks.items():
        rates, unavailable = result["steps_per_s"], result["unavailable"]
        row = [unavailable.get(name) or format_summary(rates[name], ",.0f") for name in settings.methods]
        if settings.memory_environments:
            row.append(f"{result['memory_bytes_per_environment'] / 1024:.1f} KiB")
        speeds.append([task, *row])
        ratios.append([task, *(unavailable.get(name) or format_summary(result["ratio"][name], ".3g") for name in others)])
    notes = [note for note in NOTES.format(**vars(settings)).splitlines() if note.split(":")[0] in titles]
    title = f"median of {settings.rounds} rounds [lowest, highest]"
    return "\n".join([title, "", *markdown_table(speeds), "", *(markdown_table(ratios) if others else []), "", *notes])


def format_summary(summary: dict[str, Any], form: str) -> str:
    """Return a median with its spread as text."""
    return f"{summary['median']:{form}} [{summary['low']:{form}}, {summary['high']:{form}}]"


def machine_facts() -> dict[str, Any]:
    """Return what the numbers depend on: processor, memory, system and versions."""
    return {
        "cpu": cpu_model(),
        "logical_cores": psutil.cpu_count(),
        "usable_cores": usable_cores(),
        "memory_bytes": psutil.virtual_memory().total,
        "load_average": list(psutil.getloadavg()),
        "system": platform.platform(),
        "versions": {"python": platform.python_version()} | {name: package_version(name) for name in PACKAGES},
    }


def cpu_model() -> str:
    """Return the name of the processor."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def package_version(name: str) -> str | None:
    """Return the installed version of a package, None if it is not installed."""
    try:
        return version(name)
    except PackageNotFoundError:
        return None


if __name__ == "__main__":
    main()
