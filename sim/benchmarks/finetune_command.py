"""The command ``finetune`` of the benchmark program: what fine-tuning regains on robots that differ from their simulation."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from dpg_robot.config import add_config_arguments, config_from_arguments, config_to_dict
from sim.benchmarks.finetune_protocol import FinetuneProtocol, FinetuneRun, select_runs
from sim.benchmarks.finetune_runs import FinetuneResult, execute_all, pretrain
from sim.benchmarks.learning_statistics import standard_error
from sim.benchmarks.run_commands import add_run_arguments, do_runs, require_jobs, say_what_is_missing
from sim.benchmarks.run_store import read_same_results
from sim.benchmarks.tables import markdown_table

_SIMULATIONS = {"first": "before it was fitted", "fitted": "after it was fitted"}
_LEAST_PAIRS = 3


def add_finetune_arguments(commands: Any, default_config: Path | None = None) -> None:
    """Add the command ``finetune`` and its options to the sub-commands of a parser."""
    parser = commands.add_parser(
        "finetune",
        help="return regained by fine-tuning on virtual robots with shifted dynamics",
        description="Pretrain in simulation, run the policy on virtual robots whose dynamics are others, and let the fine-tuning "
        "service learn from them minute by minute, with the denoised gradient and with the critic's derivative. Pretraining and "
        "runs that are there already are not done again.",
    )
    add_config_arguments(parser, FinetuneProtocol, default_config)
    add_run_arguments(parser, "runs/finetune-benchmark", "variant, shift or seed", holds="pretrained learners and results")
    parser.set_defaults(run=run_finetune)


def run_finetune(arguments: argparse.Namespace) -> dict[str, Any]:
    """Do the runs that are missing, then print the tables and return all that was measured."""
    require_jobs(arguments)
    protocol = config_from_arguments(FinetuneProtocol, arguments)
    runs = select_runs(protocol, arguments.only)
    there = read_same_results(arguments.results, runs, FinetuneResult)
    failed: list[str] = []
    if not arguments.report:
        missing = say_what_is_missing(runs, there)
        for variant in dict.fromkeys(run.variant for run in missing):
            pretrain(protocol, variant, arguments.results, not arguments.quiet)
        failed = do_runs(
            lambda progress: execute_all(missing, arguments.results, arguments.jobs, progress),
            there,
            lambda finished, result: _curve_in_words(result),
            total=sum(run.steps for run in missing),
            unit="step",
            quiet=arguments.quiet,
        )
    report = build_report(runs, there)
    print(describe_report(report))
    return {"settings": config_to_dict(protocol), **report, "failed": failed}


def build_report(runs: list[FinetuneRun], results: Mapping[FinetuneRun, FinetuneResult]) -> dict[str, Any]:
    """Return for each robot and learner: returns before, half-way and at the end, what was regained, and what the gate did."""
    cells: dict[str, dict[str, Any]] = {}
    for run in runs:
        if run in results:
            cell = cells.setdefault(f"{run.shift} | {run.variant}", {"shift": run.shift, "variant": run.variant, "runs": []})
            cell["runs"].append({"seed": run.seed} | _summary(results[run]))
    for cell in cells.values():
        for name in ("in_simulation", "before", "half_way", "after", "gain"):
            values = [each[name] for each in cell["runs"]]
            error = standard_error(values)
            cell[name] = {"mean": float(np.mean(values)), "standard_error": error if np.isfinite(error) else None}
        lost = cell["in_simulation"]["mean"] - cell["before"]["mean"]
        cell["regained"] = cell["gain"]["mean"] / lost if lost > 0 else None
    found = [results[run] for run in runs if run in results]
    gate = _gate_summary(found) | {"simulation": {name: _agreement(found, fitted=name == "fitted") for name in _SIMULATIONS}}
    return {"cells": cells, "gate": gate, "missing": [run.title for run in runs if run not in results]}


def _summary(result: FinetuneResult) -> dict[str, float]:
    """Return the figures of one run."""
    means = [float(np.mean(point["returns"])) for point in result.curve]
    gains = np.subtract(result.curve[-1]["returns"], result.curve[0]["returns"])
    return {
        "in_simulation": float(np.mean(result.simulation)),
        "before": means[0],
        "half_way": means[len(means) // 2],
        "after": means[-1],
        "gain": float(gains.mean()),
        "gain_error": standard_error(gains.tolist()),
        "lowest": min(means),
    }


def _gate_summary(results: list[FinetuneResult]) -> dict[str, Any]:
    """Return how often the gate let candidates pass, by what they were worth on the robot beside the policy before.

    Besides, the largest share of the robot's return that a candidate lost which passed, and the lowest point of any robot's curve
    beside its beginning, as a share.
    """
    lost, lowest = 0.0, 0.0
    counts = {"passed_better": 0, "passed_worse": 0, "stopped_better": 0, "stopped_worse": 0, "poisoned_stopped": 0}
    for result in results:
        current = np.array(result.curve[0]["returns"])
        for candidate in result.candidates:
            gains = np.array(candidate["returns"]) - current
            worse = gains.mean() < -2 * gains.std(ddof=1) / np.sqrt(len(gains))
            verdict = "passed" if candidate["passed"] else "stopped"
            counts[f"{verdict}_{'worse' if worse else 'better'}"] += 1
            if candidate["passed"]:
                lost = max(lost, -float(gains.mean() / current.mean()))
                current = np.array(candidate["returns"])
        means = [float(np.mean(point["returns"])) for point in result.curve]
        lowest = max(lowest, 1.0 - min(means) / means[0])
        counts["poisoned_stopped"] += not result.poisoned["passed"]
    return counts | {"poisoned": len(results), "largest_loss_passed": lost, "largest_loss_since_start": lowest}


def _agreement(results: list[FinetuneResult], *, fitted: bool) -> dict[str, float | int | None]:
    """Return how the gate's simulation agrees with the robots on candidates, judged before the first fit or after it."""
    pairs = np.array(
        [
            (candidate["gate_return"], np.mean(candidate["returns"]))
            for result in results
            for candidate in result.candidates
            if fitted == any(fit["minutes"] <= candidate["minutes"] for fit in result.fits)
        ]
    ).reshape(-1, 2)
    if len(pairs) < _LEAST_PAIRS:
        return {"candidates": len(pairs), "error": None, "correlation": None}
    difference, correlation = np.abs(pairs[:, 0] - pairs[:, 1]).mean(), np.corrcoef(pairs.T)[0, 1]
    return {"candidates": len(pairs), "error": float(difference), "correlation": float(correlation)}


def describe_report(report: dict[str, Any]) -> str:
    """Return the tables as text, with what is missing below them."""
    rows = [["robot", "learner", "in simulation", "before", "half-way", "after", "gain", "regained"]]
    for cell in report["cells"].values():
        figures = [_with_error(cell[name]) for name in ("in_simulation", "before", "half_way", "after", "gain")]
        rows.append([cell["shift"], cell["variant"], *figures, "-" if cell["regained"] is None else f"{cell['regained']:.0%}"])
    gate = report["gate"]
    lines = [
        "returns on the robot without exploration, mean +- standard error over seeds; regained: share of what the shift cost",
        "",
        *markdown_table(rows),
        "",
        f"the gate let pass {gate['passed_better']} candidates that were as good or better on the robot and "
        f"{gate['passed_worse']} that were worse beyond noise; it stopped {gate['stopped_worse']} worse ones and "
        f"{gate['stopped_better']} others, and {gate['poisoned_stopped']} of {gate['poisoned']} spoilt ones",
        f"the largest loss that passed was {gate['largest_loss_passed']:.1%}; no robot was ever more than "
        f"{gate['largest_loss_since_start']:.1%} below its beginning",
    ]
    for name, agreement in gate["simulation"].items():
        if agreement["error"] is not None:
            lines.append(
                f"the gate's simulation {_SIMULATIONS[name]}, beside the robots, {agreement['candidates']} candidates: mean "
                f"difference of returns {agreement['error']:.1f}, correlation {agreement['correlation']:.3f}"
            )
    if report["missing"]:
        lines += ["", f"not there yet: {len(report['missing'])} runs, such as {report['missing'][0]}"]
    return "\n".join(lines)


def _with_error(figure: dict[str, Any]) -> str:
    error = figure["standard_error"]
    return f"{figure['mean']:.1f} +- {'?' if error is None else f'{error:.1f}'}"


def _curve_in_words(result: FinetuneResult) -> str:
    means = [float(np.mean(point["returns"])) for point in result.curve]
    return f"return {means[0]:.1f} before, {means[len(means) // 2]:.1f} half-way, {means[-1]:.1f} after"
