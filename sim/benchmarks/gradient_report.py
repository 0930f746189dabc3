"""The gradient benchmark's results: as plain values, as Markdown tables and as CSV."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from dpg_robot.config import config_to_dict
from sim.benchmarks.gradient_protocol import LinearRun, ReportedRun, VariantRun
from sim.benchmarks.gradient_results import Results
from sim.benchmarks.gradient_settings import GradientProtocol
from sim.benchmarks.gradient_summary import summarize, summary_text
from sim.benchmarks.gradient_walk_report import describe_walks, summarize_walks
from sim.benchmarks.tables import markdown_table

MEASURES = ("cosine", "cosine_per_state", "relative_error", "norm_ratio")
COSINE_WANTED, NORM_WANTED = 0.99, 0.05
_PLACES = ("updates", "sigma", "steps")
LINEAR_NOTES = f"""\
cosine, norm, bias: of the mean of the estimates with learned denoisers, beside the exact gradient; bias is relative, +- one \
standard error.
!: cosine below {COSINE_WANTED} or norm off by more than {NORM_WANTED:.0%}, where exact denoisers are unbiased.
variance: trace of the covariance of one-sample estimates over the squared norm of the gradient. exact: with exact denoisers."""
SIMULATED_NOTES = """\
Mean +- standard error over seeds (n) after the last update. cosine: to the true gradient, all states and actions as one vector.
ceiling: cosine of the true gradient from one half of the draws of the noise to that from the other half.
relative error: distance to the true gradient over its norm (0 is perfect, 1 is what a gradient of zero has)."""


def build_report(protocol: GradientProtocol, planned: Sequence[ReportedRun], results: Results) -> dict[str, Any]:
    """Aggregate the results of the planned runs; returns plain values."""
    groups: dict[tuple[str, float, str], list[dict[str, Any]]] = {}
    behaviours: dict[str, set[str]] = {}
    for run, result in results.items():
        if isinstance(run, VariantRun):
            groups.setdefault((run.task, run.noise, run.variant), []).append(result | {"seed": run.seed})
        if not isinstance(run, LinearRun):
            behaviours.setdefault(f"{run.task}, noise {run.noise:g}", set()).add(result["behaviour"])
    return {
        "settings": config_to_dict(protocol),
        "runs": {"planned": len(planned), "done": len(results)},
        "linear": [
            {"actions": run.actions, "noise": run.noise, **row}
            for run, result in results.items()
            if isinstance(run, LinearRun)
            for row in result["linear"]
        ],
        "simulated": [
            {"task": task, "noise": noise, "variant": variant, **_summarize(group)}
            for (task, noise, variant), group in sorted(groups.items(), key=lambda item: _rank(protocol, item[0]))
        ],
        "walks": summarize_walks(protocol, results),
        "mixed_behaviours": [world for world, found in behaviours.items() if len(found) > 1],
        "learner_digests": sorted({result["code"]["learner_digest"] for result in results.values()}),
    }


def _rank(protocol: GradientProtocol, key: tuple[str, float, str]) -> tuple[int, float, int]:
    return list(protocol.tasks).index(key[0]), key[1], list(protocol.variants).index(key[2])


def _summarize(group: list[dict[str, Any]]) -> dict[str, Any]:
    """Return means and standard errors over seeds of everything that was measured."""
    return {
        "seeds": [result["seed"] for result in group],
        "truth": group[0]["truth"],
        "comparisons": [
            {"updates": entries[0]["updates"]} | {name: summarize(entry[name] for entry in entries) for name in MEASURES}
            for entries in zip(*(result["comparisons"] for result in group), strict=True)
        ],
    }


def describe_report(report: Mapping[str, Any]) -> str:
    """Return the results as Markdown."""
    runs, simulated = report["runs"], report["simulated"]
    lines = [f"{runs['done']} of {runs['planned']} runs"]
    if report["linear"]:
        lines += ["", "Learned denoisers in linear-Gaussian worlds", "", *_linear_table(report["linear"]), "", LINEAR_NOTES]
    if simulated:
        lines += ["", f"Cosine to the true gradient after {simulated[0]['comparisons'][-1]['updates']} updates", ""]
        lines += [*_noise_table(simulated, "cosine", ceiling=True), "", "Relative error", ""]
        lines += [*_noise_table(simulated, "relative_error"), "", SIMULATED_NOTES, "", "All update counts", ""]
        lines += _update_table(simulated)
    if report["walks"]:
        lines += ["", *describe_walks(report)]
    if report["mixed_behaviours"]:
        lines += ["", f"the runs are of different behaviours, remove the old ones: {'; '.join(report['mixed_behaviours'])}"]
    if len(report["learner_digests"]) > 1:
        lines += ["", f"the runs are of different states of the learner's code ({', '.join(report['learner_digests'])})"]
    return "\n".join(lines)


def _linear_table(rows: Iterable[Mapping[str, Any]]) -> list[str]:
    table = [["actions", "noise", "variant", "cosine", "norm", "bias", "exact bias", "variance", "exact variance"]]
    for row in rows:
        missed = not row["biased"] and (row["cosine"] < COSINE_WANTED or abs(row["norm_ratio"] - 1) > NORM_WANTED)
        table.append(
            [
                str(row["actions"]),
                f"{row['noise']:g}",
                row["variant"],
                f"{row['cosine']:.4f}{' !' * missed}",
                f"{row['norm_ratio']:.3f}",
                f"{row['relative_bias']:.3f} +- {row['standard_error']:.3f}",
                f"{row['exact_relative_bias']:.3f}",
                f"{row['relative_variance']:.3g}",
                f"{row['exact_relative_variance']:.3g}",
            ]
        )
    return markdown_table(table)


def _noise_table(entries: Sequence[Mapping[str, Any]], measure: str, *, ceiling: bool = False) -> list[str]:
    """Return a table of variants by noises, for each task."""
    noises = sorted({entry["noise"] for entry in entries})
    variants = dict.fromkeys(entry["variant"] for entry in entries)
    found = {(entry["task"], entry["variant"], entry["noise"]): entry for entry in entries}
    ceilings = {(entry["task"], entry["noise"]): entry["truth"]["split_half_cosine"] for entry in entries}
    rows = [["task", "variant", *(f"noise {noise:g}" for noise in noises)]]
    for task in dict.fromkeys(entry["task"] for entry in entries):
        for variant in variants:
            cells = [found.get((task, variant, noise)) for noise in noises]
            texts = [
                f"{summary_text(cell['comparisons'][-1][measure])} ({len(cell['seeds'])})" if cell else "- (0)" for cell in cells
            ]
            rows.append([task, variant, *texts])
        if ceiling:
            own = [ceilings.get((task, noise)) for noise in noises]
            rows.append([task, "ceiling", *("-" if value is None else f"{value:.3f}" for value in own)])
    return markdown_table(rows)


def _update_table(entries: Iterable[Mapping[str, Any]]) -> list[str]:
    rows = [["task", "noise", "variant", "updates", *(name.replace("_", " ") for name in MEASURES)]]
    for entry in entries:
        for each in entry["comparisons"]:
            measured = [summary_text(each[name]) for name in MEASURES]
            rows.append([entry["task"], f"{entry['noise']:g}", entry["variant"], str(each["updates"]), *measured])
    return markdown_table(rows)


def to_csv(results: Results) -> str:
    """Return one line for each number: of linear worlds, of comparisons (at ``updates``) of walks (at ``sigma``, ``steps``)."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["part", "task", "actions", "noise", "variant", "seed", "updates", "sigma", "steps", "measure", "value"])
    for run, result in results.items():
        if isinstance(run, LinearRun):
            for row in result["linear"]:
                key = ["linear", "", run.actions, run.noise, row["variant"], run.config.seed, "", "", ""]
                writer.writerows([*key, name, value] for name, value in row.items() if isinstance(value, float))
            continue
        key = [run.task, "", run.noise, run.labels["variant"], run.seed]
        for part in ("comparisons", "robustness"):
            for entry in result.get(part, []):
                at = [entry.get(place) for place in _PLACES]
                writer.writerows([part, *key, *at, name, value] for name, value in entry.items() if name not in _PLACES)
    return text.getvalue()
