"""The command ``gradient`` of the benchmark program: learned action gradients beside the exact ones."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

from tqdm import tqdm

from dpg_robot.config import add_config_arguments, config_from_arguments, describe_settings
from dpg_robot.files import write_atomically
from sim.benchmarks.gradient_figures import draw_cosines, draw_robustness
from sim.benchmarks.gradient_protocol import ReportedRun, needed_runs, plan_runs, select_runs
from sim.benchmarks.gradient_report import build_report, describe_report, to_csv
from sim.benchmarks.gradient_results import read_results
from sim.benchmarks.gradient_runs import execute_all
from sim.benchmarks.gradient_settings import GradientProtocol, VariantConfig
from sim.benchmarks.run_commands import add_run_arguments, require_jobs


def add_gradient_arguments(commands: Any, default_config: Path | None = None) -> None:
    """Add the command ``gradient`` and its options."""
    parser = commands.add_parser(
        "gradient",
        help="how good the learned action gradients are, beside a closed form and the true gradient in simulation",
        description="Compare the action gradients that the learner's variants learn with the exact one: in linear-Gaussian "
        "worlds, where it has a closed form, and in simulation, where it is measured with common random numbers. There each is "
        "also followed for many small steps, beside the true gradient and a random direction, to see what it truly gains. "
        "Each run leaves a file; runs that are there already are not done again.",
    )
    add_config_arguments(parser, GradientProtocol, default_config)
    named = "\n".join(f"  {line}" for line in describe_settings(VariantConfig, "variants.NAME."))
    parser.epilog += f"\n\nsettings of each variant:\n{named}"
    keys = "part (linear, simulated), actions, noise, task, variant (also 'true gradient' and 'random direction') or seed"
    add_run_arguments(parser, "runs/gradient", keys)
    parser.add_argument("--csv", type=Path, metavar="FILE", help="write all numbers to FILE, a line for each")
    parser.add_argument("--figure", type=Path, metavar="FILE", help="draw cosines against noise to FILE, a PNG")
    parser.add_argument("--robustness-figure", type=Path, metavar="FILE", help="draw gains against steps to FILE, a PNG")
    parser.set_defaults(run=run_gradient)


def run_gradient(arguments: argparse.Namespace) -> dict[str, Any]:
    """Do the runs that are missing, then print the report and return it."""
    protocol = config_from_arguments(GradientProtocol, arguments)
    runs = select_runs(plan_runs(protocol), arguments.only)
    failed = [] if arguments.report else _measure_missing(runs, arguments)
    results = read_results(arguments.results, runs)
    report = build_report(protocol, runs, results)
    print(describe_report(report))
    if arguments.csv:
        write_atomically(arguments.csv, to_csv(results).encode())
    for path, draw in ((arguments.figure, draw_cosines), (arguments.robustness_figure, draw_robustness)):
        if path:
            write_atomically(path, draw(report))
    return report | {"failed": failed}


def _measure_missing(runs: Sequence[ReportedRun], arguments: argparse.Namespace) -> list[str]:
    """Carry out the runs whose results are not there yet, and those that they need; returns the titles of those that failed."""
    require_jobs(arguments)
    wanted = [run for run in runs if not (arguments.results / run.place).exists()]
    missing = [[run for run in stage if not (arguments.results / run.place).exists()] for stage in needed_runs(wanted)]
    print(f"{sum(map(len, missing))} runs to do, {len(runs) - len(wanted)} of {len(runs)} are there already", file=sys.stderr)
    failed = []
    with tqdm(total=sum(map(len, missing)), unit="run", disable=arguments.quiet, file=sys.stderr) as bar:
        for stage in missing:
            with closing(execute_all(stage, arguments.results, arguments.jobs)) as endings:
                for ending in endings:
                    outcome = f"FAILED\n{ending.error.rstrip()}" if ending.error else "done"
                    tqdm.write(f"{ending.run.title}: {outcome} ({ending.elapsed_s:.0f} s)", file=sys.stderr)
                    failed += [ending.run.title] if ending.error else []
                    bar.update()
    return failed
