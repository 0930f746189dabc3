"""The command ``offline`` of the benchmark program: ours and d3rlpy's algorithms on the same data sets."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from dpg_robot.config import add_config_arguments, config_from_arguments, config_to_dict
from sim.benchmarks.learning_statistics import standard_error
from sim.benchmarks.offline_data import prepare_datasets
from sim.benchmarks.offline_protocol import OfflineProtocol, OfflineRun, select_runs
from sim.benchmarks.offline_runs import OfflineResult, execute_all
from sim.benchmarks.run_commands import add_run_arguments, do_runs, require_jobs, say_what_is_missing
from sim.benchmarks.run_store import read_same_results
from sim.benchmarks.tables import markdown_table


def add_offline_arguments(commands: Any, default_config: Path | None = None) -> None:
    """Add the command ``offline`` and its options to the sub-commands of a parser."""
    parser = commands.add_parser(
        "offline",
        help="returns of policies learned from data sets alone, by ours and by published algorithms",
        description="Train ours and algorithms of d3rlpy on the same data sets with all seeds, and compare returns in our "
        "simulation. Data sets are made when they are needed; runs that are there already are not done again.",
    )
    add_config_arguments(parser, OfflineProtocol, default_config)
    add_run_arguments(parser, "runs/offline-benchmark", "task, kind, algorithm or seed", holds="data sets and results")
    parser.add_argument("--d3rlpy-python", type=Path, metavar="FILE", help="a Python that has d3rlpy, for the peers")
    parser.set_defaults(run=run_offline)


def run_offline(arguments: argparse.Namespace) -> dict[str, Any]:
    """Do the runs that are missing, then print the table and return all that was measured."""
    require_jobs(arguments)
    protocol = config_from_arguments(OfflineProtocol, arguments)
    runs = select_runs(protocol, arguments.only)
    there = read_same_results(arguments.results, runs, OfflineResult)
    failed: list[str] = []
    if not arguments.report:
        prepare_datasets(protocol, runs, arguments.results, not arguments.quiet)
        missing = say_what_is_missing(runs, there)
        failed = do_runs(
            lambda progress: execute_all(missing, arguments.results, arguments.d3rlpy_python, arguments.jobs, progress),
            there,
            lambda finished, result: f"return {result.final_return:.1f}",
            total=sum(run.updates for run in missing),
            unit="update",
            quiet=arguments.quiet,
        )
    report = build_report(runs, there)
    print(describe_report(report))
    return {"settings": config_to_dict(protocol), **report, "failed": failed}


def build_report(runs: list[OfflineRun], results: Mapping[OfflineRun, OfflineResult]) -> dict[str, Any]:
    """Return mean and standard error over seeds of the last return, for each data set and algorithm."""
    cells: dict[str, dict[str, Any]] = {}
    for run in runs:
        if run not in results:
            continue
        cell = cells.setdefault(f"{run.task} {run.kind}", {"behaviour_return": results[run].behaviour_return, "algorithms": {}})
        entry = cell["algorithms"].setdefault(run.algorithm, {"seeds": [], "final_returns": [], "training_s": []})
        entry["seeds"].append(run.seed)
        entry["final_returns"].append(results[run].final_return)
        entry["training_s"].append(results[run].training_s)
    for cell in cells.values():
        for entry in cell["algorithms"].values():
            error = standard_error(entry["final_returns"])
            entry |= {"mean": float(np.mean(entry["final_returns"])), "standard_error": error if np.isfinite(error) else None}
    return {"cells": cells, "missing": [run.title for run in runs if run not in results]}


def describe_report(report: dict[str, Any]) -> str:
    """Return the table as text, with what is missing below it."""
    names = list(dict.fromkeys(name for cell in report["cells"].values() for name in cell["algorithms"]))
    rows = [["data set", "behaviour", *names]]
    for title, cell in report["cells"].items():
        entries = [cell["algorithms"].get(name) for name in names]
        rows.append([title, f"{cell['behaviour_return']:.0f}", *(_describe_entry(entry) for entry in entries)])
    lines = ["return of the last policy, mean +- standard error over seeds", "", *markdown_table(rows)]
    if report["missing"]:
        lines += ["", f"not there yet: {len(report['missing'])} runs, such as {report['missing'][0]}"]
    return "\n".join(lines)


def _describe_entry(entry: dict[str, Any] | None) -> str:
    if entry is None:
        return "-"
    error = "?" if entry["standard_error"] is None else f"{entry['standard_error']:.0f}"
    return f"{entry['mean']:.0f} +- {error} ({len(entry['seeds'])})"
