"""The command ``offline-start`` of the benchmark program: frames that a denoiser saves which knows a robot's motion."""

from __future__ import annotations

import argparse
import sys
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from dpg_robot.config import add_config_arguments, config_from_arguments, config_to_dict
from sim.benchmarks.learning_report import mean_returns
from sim.benchmarks.offline_start_protocol import OfflineStartProtocol, OfflineStartRun, select_runs
from sim.benchmarks.offline_start_report import build_report, describe_report
from sim.benchmarks.offline_start_runs import OfflineStartResult, execute_all
from sim.benchmarks.run_store import ResultError, read_results


def add_offline_start_arguments(commands: Any, default_config: Path | None = None) -> None:
    """Add the command ``offline-start`` and its options to the sub-commands of a parser."""
    parser = commands.add_parser(
        "offline-start",
        help="frames saved on a robot by a denoiser that learned its motion from a log without rewards",
        description="Let a virtual robot move at random, log it, make a data set without rewards of the log, pretrain the "
        "denoiser from that, and learn the task on the robot with it and from scratch, all else equal. Runs that are there "
        "already are not done again.",
    )
    add_config_arguments(parser, OfflineStartProtocol, default_config)
    parser.add_argument(
        "--results", type=Path, default=Path("runs/offline-start-benchmark"), metavar="FOLDER",
        help="folder of all results (default: %(default)s)",
    )  # fmt: skip
    parser.add_argument(
        "--only", action="append", default=[], metavar="KEY=NAME,...",
        help="run and report only these; KEY is task, start or seed; may be given several times",
    )  # fmt: skip
    parser.add_argument("--jobs", type=int, default=1, metavar="N", help="runs at once, one process each (default: %(default)s)")
    parser.add_argument("--report", action="store_true", help="run nothing, report on the results that are there")
    parser.add_argument("--quiet", action="store_true", help="no progress bar")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write everything that is reported to FILE too")
    parser.set_defaults(run=run_offline_start)


def run_offline_start(arguments: argparse.Namespace) -> dict[str, Any]:
    """Do the runs that are missing, then print the tables and return all that was measured."""
    if arguments.jobs < 1:
        raise ValueError(f"--jobs must be 1 or more, got {arguments.jobs}")
    protocol = config_from_arguments(OfflineStartProtocol, arguments)
    runs = select_runs(protocol, arguments.only)
    stored = read_results(arguments.results, runs, OfflineStartResult)
    if stored.other:
        run, differing = next(iter(stored.other.items()))
        raise ResultError(
            f"{arguments.results / run.place} is a result of other settings ({'; '.join(differing[:3])}); "
            "remove it, or choose another folder with --results"
        )
    there = dict(stored.results)
    failed = [] if arguments.report else _do_missing(arguments, runs, there)
    report = build_report(protocol, runs, there)
    print(describe_report(report))
    return {"settings": config_to_dict(protocol), **report, "failed": failed}


def _do_missing(
    arguments: argparse.Namespace, runs: list[OfflineStartRun], there: dict[OfflineStartRun, OfflineStartResult]
) -> list[str]:
    """Carry out the runs that are not there and add their results; returns the titles of those that failed."""
    failed: list[str] = []
    missing = [run for run in runs if run not in there]
    print(f"{len(missing)} runs to do, {len(there)} are there already", file=sys.stderr)
    frames = sum(run.protocol.frames for run in missing)
    bar = tqdm(total=frames, unit="frame", unit_scale=True, disable=arguments.quiet, file=sys.stderr)
    endings = execute_all(missing, arguments.results, arguments.jobs, bar.update)
    with bar, closing(endings):
        for finished in endings:
            if finished.value is None:
                failed.append(finished.run.title)
                tqdm.write(f"{finished.run.title}: FAILED\n{finished.error.rstrip()}", file=sys.stderr)
            else:
                there[finished.run] = finished.value
                text = f"{finished.run.title}: {_curve_in_words(finished.value)}, {finished.elapsed_s:.0f} s"
                tqdm.write(text, file=sys.stderr)
    return failed


def _curve_in_words(result: OfflineStartResult) -> str:
    returns = mean_returns(result)
    return f"return {returns[len(returns) // 2]:.0f} half-way, {returns[-1]:.0f} at the end, {np.mean(returns):.0f} on average"
