"""The command ``learn`` of the benchmark program: our learner and its peers on the same tasks, frames and seeds."""

from __future__ import annotations

import argparse
import sys
from contextlib import closing
from pathlib import Path
from typing import Any

from tqdm import tqdm

from dpg_robot.config import add_config_arguments, config_from_arguments, describe_settings
from dpg_robot.files import write_atomically
from sim.benchmarks.learning_figures import draw_figure
from sim.benchmarks.learning_peers import require_peers
from sim.benchmarks.learning_protocol import LearningProtocol, OurConfig, PeerConfig, Run, plan_runs, restrict
from sim.benchmarks.learning_report import build_report, describe_report, to_csv
from sim.benchmarks.learning_results import Result
from sim.benchmarks.learning_runs import execute_all
from sim.benchmarks.processes import Finished
from sim.benchmarks.run_commands import add_run_arguments, require_jobs
from sim.benchmarks.run_store import ResultError, read_results


def add_learn_arguments(commands: Any, default_config: Path | None = None) -> None:
    """Add the command ``learn`` and its options."""
    parser = commands.add_parser(
        "learn",
        help="returns of our learner and of published ones, on the same tasks, frames and seeds",
        description="Train our learner and its peers on all cells (task and disturbance) with all seeds, and compare returns. "
        "Each run leaves a small file; runs that are there already are not done again.",
    )
    add_config_arguments(parser, LearningProtocol, default_config)
    named = [*describe_settings(OurConfig, "ours.NAME."), *describe_settings(PeerConfig, "peers.NAME.")]
    parser.epilog += "\n\nsettings of each variant of ours and of each peer:\n" + "\n".join(f"  {line}" for line in named)
    add_run_arguments(parser, "runs/learn", "task, disturbance, algorithm or seed")
    parser.add_argument("--redo", action="store_true", help="replace results of other settings (to repeat one, remove its file)")
    parser.add_argument("--csv", type=Path, metavar="FILE", help="write all evaluations to FILE, a line for each")
    parser.add_argument("--figure", type=Path, metavar="FILE", help="draw learning curves and aggregated scores to FILE, a PNG")
    parser.set_defaults(run=run_learn)


def run_learn(arguments: argparse.Namespace) -> dict[str, Any]:
    """Do the runs that are missing, then print the report and return it."""
    protocol = restrict(config_from_arguments(LearningProtocol, arguments), arguments.only)
    failed = [] if arguments.report else _train_missing(protocol, arguments)
    stored = read_results(arguments.results, plan_runs(protocol), Result)
    report = build_report(protocol, stored)
    print(describe_report(report))
    if arguments.csv:
        write_atomically(arguments.csv, to_csv(stored.results).encode())
    if arguments.figure:
        write_atomically(arguments.figure, draw_figure(protocol, stored, report))
    return report | {"failed": failed}


def _train_missing(protocol: LearningProtocol, arguments: argparse.Namespace) -> list[str]:
    """Carry out the runs of a protocol whose results are not there yet; returns the titles of those that failed."""
    require_jobs(arguments)
    require_peers(protocol.peers.values())
    runs = plan_runs(protocol)
    stored = read_results(arguments.results, runs, Result)
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
            tqdm.write(_describe_finished(finished), file=sys.stderr)
            if finished.value is None:
                failed.append(finished.run.title)
    return failed


def _describe_finished(finished: Finished[Run, Result]) -> str:
    """Return how a run ended, in a line (and the traceback of a failure)."""
    if finished.value is None:
        return f"{finished.run.title}: FAILED after {finished.elapsed_s:.0f} s\n{finished.error.rstrip()}"
    returns = finished.value.curve[-1]["returns"]
    return f"{finished.run.title}: return {sum(returns) / len(returns):.1f} in {finished.elapsed_s:.0f} s"
