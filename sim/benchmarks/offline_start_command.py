"""The command ``offline-start`` of the benchmark program: frames that a denoiser saves which knows a robot's motion."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import numpy as np

from dpg_robot.config import add_config_arguments, config_from_arguments, config_to_dict
from sim.benchmarks.learning_report import mean_returns
from sim.benchmarks.offline_start_protocol import OfflineStartProtocol, select_runs
from sim.benchmarks.offline_start_report import build_report, describe_report
from sim.benchmarks.offline_start_runs import OfflineStartResult, execute_all
from sim.benchmarks.run_commands import add_run_arguments, do_runs, require_jobs, say_what_is_missing
from sim.benchmarks.run_store import read_same_results


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
    add_run_arguments(parser, "runs/offline-start-benchmark", "task, start or seed")
    parser.set_defaults(run=run_offline_start)


def run_offline_start(arguments: argparse.Namespace) -> dict[str, Any]:
    """Do the runs that are missing, then print the tables and return all that was measured."""
    require_jobs(arguments)
    protocol = config_from_arguments(OfflineStartProtocol, arguments)
    runs = select_runs(protocol, arguments.only)
    there = read_same_results(arguments.results, runs, OfflineStartResult)
    failed: list[str] = []
    if not arguments.report:
        missing = say_what_is_missing(runs, there)
        failed = do_runs(
            lambda progress: execute_all(missing, arguments.results, arguments.jobs, progress),
            there,
            lambda finished, result: f"{_curve_in_words(result)}, {finished.elapsed_s:.0f} s",
            total=sum(run.protocol.frames for run in missing),
            unit="frame",
            quiet=arguments.quiet,
        )
    report = build_report(protocol, runs, there)
    print(describe_report(report))
    return {"settings": config_to_dict(protocol), **report, "failed": failed}


def _curve_in_words(result: OfflineStartResult) -> str:
    returns = mean_returns(result)
    return f"return {returns[len(returns) // 2]:.0f} half-way, {returns[-1]:.0f} at the end, {np.mean(returns):.0f} on average"
