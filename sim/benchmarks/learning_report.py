"""The learning benchmark's results, aggregated: as plain values, as Markdown tables and as CSV.

A return is normalized by the largest one that an episode of dm_control can give. A run is scored by its last evaluation
(``final``) and by the mean of all of its evaluations (``area``, the normalized area under its learning curve).
"""

from __future__ import annotations

import csv
import io
import itertools
import math
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dpg_robot.config import config_to_dict
from sim.benchmarks.learning_protocol import LearningProtocol, Run, disturbance_label
from sim.benchmarks.learning_results import Result
from sim.benchmarks.learning_statistics import (
    Estimate,
    interquartile_mean,
    interquartile_mean_ratio,
    probability_of_improvement,
    standard_error,
)
from sim.benchmarks.run_store import Stored
from sim.benchmarks.tables import markdown_table

LARGEST_RETURN = 1000.0
SCORES = ("final", "area")
_SCORE_TITLES = {"final": "last evaluation", "area": "mean of all evaluations (area under the curve)"}
NOTES = """\
n: runs (tasks that they are on), * where planned runs are missing. Comparisons take the tasks and seeds that both sides have run.
[]: 95% interval by stratified bootstrap; '-' where a task has fewer than two runs, or where a ratio is not defined.
score: return of the mean policy / 1000. IQM: mean of the middle half of all scores. P: probability that ours scores higher."""


def mean_returns(result: Result) -> NDArray[np.float64]:
    """Return the mean return (evaluations,) of each evaluation."""
    return np.array([np.mean(entry["returns"]) for entry in result.curve])


def score(result: Result, kind: str) -> float:
    """Return the score of a run, ``final`` or ``area``."""
    returns = mean_returns(result) / LARGEST_RETURN
    return float(returns[-1] if kind == "final" else returns.mean())


def frames_to_reach(result: Result, threshold: float) -> float | None:
    """Return after how many frames the mean return of an evaluation first was at ``threshold``, on a line between evaluations.

    None where it never was. Before the first evaluation nothing is known, so that one counts as it stands.
    """
    frames, returns = np.array([entry["frames"] for entry in result.curve]), mean_returns(result)
    reached = np.flatnonzero(returns >= threshold)
    if not len(reached):
        return None
    if reached[0] == 0:
        return float(frames[0])
    around = slice(reached[0] - 1, reached[0] + 1)
    return float(np.interp(threshold, returns[around], frames[around]))


class Scores:
    """The scores of all runs that are there, by cell, algorithm and seed."""

    def __init__(self, results: Mapping[Run, Result]) -> None:
        self._results: dict[tuple[str, str, str], dict[int, Result]] = {}
        for run, result in results.items():
            key = (run.task, disturbance_label(run.disturbance), run.algorithm)
            self._results.setdefault(key, {})[run.seed] = result

    def results(self, task: str, disturbance: str, algorithm: str) -> dict[int, Result]:
        """Return results by seed."""
        return self._results.get((task, disturbance, algorithm), {})

    def strata(self, tasks: Iterable[str], disturbance: str, algorithm: str, kind: str) -> list[NDArray[np.float64]]:
        """Return the scores (runs,) on each task that has any."""
        every = [self.results(task, disturbance, algorithm).values() for task in tasks]
        return [np.array([score(result, kind) for result in results]) for results in every if results]

    def common(self, tasks: Iterable[str], disturbance: str, ours: str, other: str, kind: str) -> list[list[NDArray[np.float64]]]:
        """Return the scores of both algorithms on the tasks and seeds that both have run, [ours, other][task] (runs,)."""
        both: list[list[NDArray[np.float64]]] = [[], []]
        for task in tasks:
            sides = [self.results(task, disturbance, algorithm) for algorithm in (ours, other)]
            seeds = sorted(sides[0].keys() & sides[1].keys())
            if seeds:
                for strata, side in zip(both, sides, strict=True):
                    strata.append(np.array([score(side[seed], kind) for seed in seeds]))
        return both


def build_report(protocol: LearningProtocol, stored: Stored[Run, Result]) -> dict[str, Any]:
    """Aggregate all results; returns plain values."""
    scores = Scores(stored.results)
    planned = len(protocol.cells) * len(protocol.algorithms) * len(protocol.seeds)
    return {
        "settings": config_to_dict(protocol),
        "runs": {"planned": planned, "done": len(stored.results), "with_other_settings": len(stored.other)},
        "cells": [
            _describe_cell(
                task, disturbance, algorithm, scores.results(task, disturbance, algorithm), protocol.thresholds.get(task)
            )
            for task, disturbance in protocol.cells
            for algorithm in protocol.algorithms
        ],
        "algorithms": _describe_algorithms(protocol, scores),
        "comparisons": _describe_comparisons(protocol, scores),
        "code": _describe_code(stored.results),
    }


def _describe_cell(
    task: str, disturbance: str, algorithm: str, results: Mapping[int, Result], threshold: float | None
) -> dict[str, Any]:
    entry: dict[str, Any] = {"task": task, "disturbance": disturbance, "algorithm": algorithm, "seeds": sorted(results)}
    if not results:
        return entry
    curves = np.array([mean_returns(results[seed]) for seed in sorted(results)])
    for kind, returns in (("final", curves[:, -1]), ("area", curves.mean(1))):
        error = standard_error(returns)
        entry[kind] = {
            "returns": [round(float(value), 3) for value in returns],
            "mean": float(returns.mean()),
            "standard_error": error if math.isfinite(error) else None,
        }
    if threshold is not None:
        frames = [frames_to_reach(results[seed], threshold) for seed in sorted(results)]
        entry["frames_to_reach"] = {"threshold": threshold, "frames": frames}
    entry["training_s"] = float(np.median([result.training_s for result in results.values()]))
    entry["updates"] = float(np.median([result.updates for result in results.values()]))
    return entry


def _labels(protocol: LearningProtocol) -> list[str]:
    return [disturbance_label(disturbance) for disturbance in protocol.disturbances]


def _describe_algorithms(protocol: LearningProtocol, scores: Scores) -> list[dict[str, Any]]:
    entries = []
    for disturbance, algorithm in itertools.product(_labels(protocol), protocol.algorithms):
        strata = {kind: scores.strata(protocol.tasks, disturbance, algorithm, kind) for kind in SCORES}
        entry: dict[str, Any] = {"disturbance": disturbance, "algorithm": algorithm, **_count(strata["final"])}
        entry["complete"] = entry["runs"] == len(protocol.tasks) * len(protocol.seeds)
        if entry["runs"]:
            entry |= {f"iqm_{kind}": interquartile_mean(strata[kind]).to_dict() for kind in SCORES}
        entries.append(entry)
    return entries


def _describe_comparisons(protocol: LearningProtocol, scores: Scores) -> list[dict[str, Any]]:
    variants = list(protocol.ours)
    pairs = [(ours, peer) for ours in variants for peer in protocol.peers] + list(itertools.combinations(variants, 2))
    statistics: dict[str, Callable[..., Estimate]] = {
        "probability_of_improvement": probability_of_improvement,
        "iqm_ratio": interquartile_mean_ratio,
    }
    entries = []
    for disturbance, (ours, other) in itertools.product(_labels(protocol), pairs):
        both = {kind: scores.common(protocol.tasks, disturbance, ours, other, kind) for kind in SCORES}
        entry: dict[str, Any] = {"disturbance": disturbance, "ours": ours, "other": other, **_count(both["final"][0])}
        if entry["runs"]:
            for (name, statistic), kind in itertools.product(statistics.items(), SCORES):
                entry[f"{name}_{kind}"] = statistic(*both[kind]).to_dict()
        entries.append(entry)
    return entries


def _count(strata: list[NDArray[np.float64]]) -> dict[str, int]:
    return {"runs": sum(map(len, strata)), "tasks": len(strata)}


def _describe_code(results: Mapping[Run, Result]) -> dict[str, list[dict[str, Any]]]:
    """Return the different states of the code that the runs of each algorithm were made with."""
    code: dict[str, list[dict[str, Any]]] = {}
    for run, result in results.items():
        states = code.setdefault(run.algorithm, [])
        if result.code not in states:
            states.append(result.code)
    return code


def describe_report(report: Mapping[str, Any]) -> str:
    """Return the aggregated results as Markdown."""
    runs = report["runs"]
    lines = [f"{runs['done']} of {runs['planned']} runs"]
    if runs["with_other_settings"]:
        lines.append(f"{runs['with_other_settings']} results of other settings are left out")
    lines += ["", "Return of the last evaluation, mean +- standard error over seeds (n)", "", *_cell_table(report["cells"])]
    if timed := [cell for cell in report["cells"] if "frames_to_reach" in cell]:
        lines += ["", "Frames to a return", "", *_frames_table(timed)]
    for kind in SCORES:
        lines += [
            "",
            f"Inter-quartile mean of the score: {_SCORE_TITLES[kind]}",
            "",
            *_algorithm_table(report["algorithms"], kind),
        ]
    for kind in SCORES:
        if report["comparisons"]:
            lines += ["", f"Comparisons: {_SCORE_TITLES[kind]}", "", *_comparison_table(report["comparisons"], kind)]
    lines += ["", NOTES, *_code_notes(report)]
    return "\n".join(lines)


def _cell_table(cells: list[dict[str, Any]]) -> list[str]:
    algorithms = list(dict.fromkeys(cell["algorithm"] for cell in cells))
    rows = [["task", "disturbance", *algorithms]]
    for (task, disturbance), group in itertools.groupby(cells, lambda cell: (cell["task"], cell["disturbance"])):
        rows.append([task, disturbance, *map(_cell_text, group)])
    return markdown_table(rows)


def _cell_text(cell: dict[str, Any]) -> str:
    if not cell["seeds"]:
        return "- (0)"
    final = cell["final"]
    error = "" if final["standard_error"] is None else f" +- {final['standard_error']:.0f}"
    return f"{final['mean']:.0f}{error} ({len(cell['seeds'])})"


def _frames_table(cells: list[dict[str, Any]]) -> list[str]:
    rows = [["task", "disturbance", "algorithm", "return", "frames, mean +- standard error", "runs that reached it"]]
    for cell in cells:
        threshold, frames = cell["frames_to_reach"]["threshold"], cell["frames_to_reach"]["frames"]
        reached = [each for each in frames if each is not None]
        text = "-"
        if reached and len(reached) == len(frames):  # a mean over those that reached it alone would flatter
            error = standard_error(reached)
            text = f"{np.mean(reached):,.0f}" + (f" +- {error:,.0f}" if math.isfinite(error) else "")
        names = [cell["task"], cell["disturbance"], cell["algorithm"], f"{threshold:g}"]
        rows.append([*names, text, f"{len(reached)} of {len(frames)}"])
    return markdown_table(rows)


def _algorithm_table(entries: list[dict[str, Any]], kind: str) -> list[str]:
    """Return a table of algorithms by disturbances."""
    disturbances = list(dict.fromkeys(entry["disturbance"] for entry in entries))
    rows = [["algorithm", *(text for name in disturbances for text in (name, "n"))]]
    for algorithm in dict.fromkeys(entry["algorithm"] for entry in entries):
        row = [algorithm]
        for entry in entries:
            if entry["algorithm"] == algorithm:
                row += [_estimate_text(entry.get(f"iqm_{kind}"), ".3f"), _count_text(entry)]
        rows.append(row)
    return markdown_table(rows)


def _comparison_table(entries: list[dict[str, Any]], kind: str) -> list[str]:
    rows = [["disturbance", "ours", "other", "P (ours > other)", "IQM ours / other", "n of each"]]
    for entry in entries:
        probability, ratio = (entry.get(f"{name}_{kind}") for name in ("probability_of_improvement", "iqm_ratio"))
        texts = [_estimate_text(probability, ".2f"), _estimate_text(ratio, ".2f"), _count_text(entry)]
        rows.append([entry["disturbance"], entry["ours"], entry["other"], *texts])
    return markdown_table(rows)


def _estimate_text(estimate: Mapping[str, float | None] | None, form: str) -> str:
    if estimate is None or estimate["value"] is None:
        return "-"
    bounds = ("-" if estimate[name] is None else f"{estimate[name]:{form}}" for name in ("low", "high"))
    return f"{estimate['value']:{form}} [{', '.join(bounds)}]"


def _count_text(entry: Mapping[str, Any]) -> str:
    missing = "" if entry.get("complete", True) else " *"
    return f"{entry['runs']} ({entry['tasks']}){missing}"


def _code_notes(report: Mapping[str, Any]) -> list[str]:
    states = {name: {code["learner_digest"] for code in report["code"].get(name, [])} for name in report["settings"]["ours"]}
    return [
        f"{name}: its runs are of {len(digests)} different states of the learner's code ({', '.join(sorted(digests))})"
        for name, digests in states.items()
        if len(digests) > 1
    ]


def to_csv(results: Mapping[Run, Result]) -> str:
    """Return one line for each run and evaluation; ``returns`` are those of the episodes, with spaces between."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["task", "disturbance", "algorithm", "seed", "frames", "mean_return", "returns", "training_s", "updates"])
    for run, result in results.items():
        for entry, mean in zip(result.curve, mean_returns(result), strict=True):
            cell = [run.task, disturbance_label(run.disturbance), run.algorithm, run.seed]
            returns = " ".join(str(value) for value in entry["returns"])
            writer.writerow([*cell, entry["frames"], round(float(mean), 3), returns, result.training_s, result.updates])
    return text.getvalue()
