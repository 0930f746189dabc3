"""What offline starts saved: frames until returns were reached, beside those of the first start, seed by seed.

A run that never reached a return within its frames is censored: all that is known is that it takes longer. Its frames count as
the frames of a run, for every start alike, so means and differences are of restricted times: the frames spent below the return,
within the frames of a run. Where runs were censored this is said.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from scipy import stats

from sim.benchmarks.learning_report import frames_to_reach, mean_returns
from sim.benchmarks.learning_statistics import standard_error
from sim.benchmarks.offline_start_protocol import OfflineStartProtocol, OfflineStartRun
from sim.benchmarks.offline_start_runs import OfflineStartResult
from sim.benchmarks.tables import markdown_table

NOTES = """\
Mean +- standard error over seeds. Frames are reward steps on the robot, those of the log not counted. (n of m): runs that
reached the return; '>' where one did not: it counts as all frames of a run, so the true mean is larger.
Saved: frames of the first start minus those of the other, in pairs of the same seed, with the 95% interval of Student's t."""
_RETURNS = {"area": "in the mean return of all evaluations", "final": "in the last return"}

Results = Mapping[OfflineStartRun, OfflineStartResult]


def build_report(protocol: OfflineStartProtocol, runs: Sequence[OfflineStartRun], results: Results) -> dict[str, Any]:
    """Return for each task and start how fast it learned, and for each start after the first what that saved; plain values."""
    tasks = list(dict.fromkeys(run.task for run in runs))
    reference = next(iter(protocol.starts))
    cells, savings = [], []
    for task in tasks:
        by_start = {
            start: {run.seed: results[run] for run in runs if (run.task, run.start) == (task, start) and run in results}
            for start in protocol.starts
        }
        thresholds = protocol.thresholds.get(task, ())
        cells += [_describe_cell(protocol, task, start, found, thresholds) for start, found in by_start.items() if found]
        for start, found in by_start.items():
            seeds = sorted(found.keys() & by_start[reference].keys())
            if start != reference and seeds:
                pairs = [(by_start[reference][seed], found[seed]) for seed in seeds]
                savings.append({"task": task, "start": start, "seeds": seeds, **_compare(pairs, thresholds, protocol.frames)})
    return {
        "reference": reference,
        "cells": cells,
        "savings": savings,
        "missing": [run.title for run in runs if run not in results],
    }


def _describe_cell(
    protocol: OfflineStartProtocol, task: str, start: str, found: Mapping[int, OfflineStartResult], thresholds: Sequence[float]
) -> dict[str, Any]:
    seeds = sorted(found)
    curves = np.array([mean_returns(found[seed]) for seed in seeds])
    reached = {threshold: [frames_to_reach(found[seed], threshold) for seed in seeds] for threshold in thresholds}
    return {
        "task": task,
        "start": start,
        "seeds": seeds,
        "frames_to_reach": [
            {"threshold": threshold, "frames": frames, "restricted": _summary(_restricted(frames, protocol.frames))}
            for threshold, frames in reached.items()
        ],
        "area": _summary(curves.mean(axis=1)),
        "final": _summary(curves[:, -1]),
        "curve": {
            "frames": [entry["frames"] for entry in found[seeds[0]].curve],
            "mean": curves.mean(axis=0).round(2).tolist(),
            "standard_error": [_finite(standard_error(each)) for each in curves.T],
        },
        "explained": [before["explained"] for seed in seeds if (before := found[seed].before)],
    }


def _compare(
    pairs: Sequence[tuple[OfflineStartResult, OfflineStartResult]], thresholds: Sequence[float], budget: int
) -> dict[str, Any]:
    """Return what the second of each pair saved, and how much more it returned."""
    saved = []
    for threshold in thresholds:
        sides = [[frames_to_reach(pair[side], threshold) for pair in pairs] for side in (0, 1)]
        first, other = (np.array(_restricted(frames, budget)) for frames in sides)
        entry = _summary(first - other)
        censored = sum(None in frames for frames in zip(*sides, strict=True))
        saved.append(
            {
                "threshold": threshold,
                **entry,
                "share": entry["mean"] / float(first.mean()),
                "censored_pairs": censored,
                "verdict": _verdict(entry),
            }
        )
    more = np.array([mean_returns(other) - mean_returns(first) for first, other in pairs])
    return {"saved": saved, "more": {"area": _summary(more.mean(axis=1)), "final": _summary(more[:, -1])}}


def _restricted(frames: Sequence[float | None], budget: int) -> list[float]:
    return [float(budget) if each is None else each for each in frames]


def _summary(values: Any) -> dict[str, Any]:
    """Return values, their mean, its standard error and 95% interval; None where one value tells nothing of these."""
    values = np.asarray(values, dtype=np.float64)
    mean, error = float(values.mean()), standard_error(values)
    half = float(stats.t.ppf(0.975, len(values) - 1)) * error if len(values) > 1 else math.nan
    return {
        "values": values.round(3).tolist(),
        "mean": mean,
        "standard_error": _finite(error),
        "low": _finite(mean - half),
        "high": _finite(mean + half),
    }


def _finite(value: float) -> float | None:
    return float(value) if math.isfinite(value) else None


def _verdict(saved: Mapping[str, Any]) -> str:
    """Return in words what the interval of saved frames says."""
    if saved["low"] is None:
        return "one seed says nothing"
    if saved["low"] > 0:
        return "saved"
    return "lost" if saved["high"] < 0 else "neither shown"


def describe_report(report: Mapping[str, Any]) -> str:
    """Return the tables as text, with what is missing below them."""
    lines = [*_cell_table(report["cells"]), ""]
    if report["savings"]:
        lines += [f"Beside {report['reference']}", "", *_savings_table(report["savings"]), ""]
        for each in report["savings"]:
            more = " and ".join(f"{_with_error(each['more'][name], '+.0f')} {text}" for name, text in _RETURNS.items())
            lines.append(f"{each['task']}, {each['start']}: {more}")
        lines.append("")
    lines.append(NOTES)
    for cell in report["cells"]:
        if cell["explained"]:
            lines.append(
                f"{cell['task']}, {cell['start']}: knowing what came next takes {np.mean(cell['explained']):.0%} off the squared "
                "error of denoised actions in episodes of the log that were held out"
            )
    if report["missing"]:
        lines += ["", f"not there yet: {len(report['missing'])} runs, such as {report['missing'][0]}"]
    return "\n".join(lines)


def _cell_table(cells: Sequence[Mapping[str, Any]]) -> list[str]:
    rows = [["task", "start", "return", "frames to it", "mean return of all evaluations", "last return"]]
    for cell in cells:
        returns = [_with_error(cell[name], ".0f") for name in ("area", "final")]
        for entry in cell["frames_to_reach"] or [None]:
            texts = [f"{entry['threshold']:g}", _frames_text(entry)] if entry else ["-", "-"]
            rows.append([cell["task"], cell["start"], *texts, *returns])
    return markdown_table(rows)


def _frames_text(entry: Mapping[str, Any]) -> str:
    frames = entry["frames"]
    reached = sum(each is not None for each in frames)
    sign = "" if reached == len(frames) else "> "
    return f"{sign}{_with_error(entry['restricted'], ',.0f')} ({reached} of {len(frames)})"


def _savings_table(savings: Sequence[Mapping[str, Any]]) -> list[str]:
    rows = [["task", "start", "return", "frames saved", "95% interval", "share", "pairs", "verdict"]]
    for each in savings:
        for entry in each["saved"]:
            pairs = f"{len(each['seeds'])}" + (f", {entry['censored_pairs']} censored" if entry["censored_pairs"] else "")
            interval = "-" if entry["low"] is None else f"{entry['low']:,.0f} to {entry['high']:,.0f}"
            share = f"{round(entry['share'], 2) + 0.0:.0%}"  # no negative zero
            figures = [_with_error(entry, ",.0f"), interval, share, pairs, entry["verdict"]]
            rows.append([each["task"], each["start"], f"{entry['threshold']:g}", *figures])
    return markdown_table(rows)


def _with_error(figure: Mapping[str, Any], form: str) -> str:
    error = figure["standard_error"]
    return f"{figure['mean']:{form}}" + ("" if error is None else f" +- {error:{form.lstrip('+')}}")
