"""The command ``offline`` of the benchmark program: ours and d3rlpy's algorithms on the same data sets."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from dpg_robot.config import add_config_arguments, config_from_arguments, config_to_dict
from sim.benchmarks.learning_statistics import standard_error
from sim.benchmarks.offline_data import prepare_datasets
from sim.benchmarks.offline_protocol import OfflineProtocol, OfflineRun, select_runs
from sim.benchmarks.offline_runs import OfflineResult, execute_all, read_results
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
    parser.add_argument(
        "--results", type=Path, default=Path("runs/offline-benchmark"), metavar="FOLDER",
        help="folder of data sets and results (default: %(default)s)",
    )  # fmt: skip
    parser.add_argument("--d3rlpy-python", type=Path, metavar="FILE", help="a Python that has d3rlpy, for the peers")
    parser.add_argument(
        "--only", action="append", default=[], metavar="KEY=NAME,...",
        help="run and report only these; KEY is task, kind, algorithm or seed; may be given several times",
    )  # fmt: skip
    parser.add_argument("--jobs", type=int, default=1, metavar="N", help="runs at once, one process each (default: %(default)s)")
    parser.add_argument("--report", action="store_true", help="run nothing, report on the results that are there")
    parser.add_argument("--quiet", action="store_true", help="no progress bar")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write everything that is reported to FILE too")
    parser.set_defaults(run=run_offline)


def run_offline(arguments: argparse.Namespace) -> dict[str, Any]:
    """Do the runs that are missing, then print the table and return all that was measured."""
    if arguments.jobs < 1:
        raise ValueError(f"--jobs must be 1 or more, got {arguments.jobs}")
    protocol = config_from_arguments(OfflineProtocol, arguments)
    runs = select_runs(protocol, arguments.only)
    there = read_results(arguments.results, runs)
    failed: list[str] = []
    if not arguments.report:
        prepare_datasets(protocol, runs, arguments.results, not arguments.quiet)
        missing = [run for run in runs if run not in there]
        print(f"{len(missing)} runs to do, {len(there)} are there already", file=sys.stderr)
        updates = sum(run.updates for run in missing)
        bar = tqdm(total=updates, unit="update", unit_scale=True, disable=arguments.quiet, file=sys.stderr)
        endings = execute_all(missing, arguments.results, arguments.d3rlpy_python, arguments.jobs, bar.update)
        with bar, closing(endings):
            for finished in endings:
                if finished.value is None:
                    failed.append(finished.run.title)
                    tqdm.write(f"{finished.run.title}: FAILED\n{finished.error.rstrip()}", file=sys.stderr)
                else:
                    there[finished.run] = finished.value
                    tqdm.write(f"{finished.run.title}: return {finished.value.final_return:.1f}", file=sys.stderr)
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
