"""The walks of the gradient benchmark: as plain values and as Markdown tables."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from sim.benchmarks.gradient_protocol import REFERENCES, LinearRun
from sim.benchmarks.gradient_results import Results
from sim.benchmarks.gradient_settings import GradientProtocol
from sim.benchmarks.gradient_summary import summarize, summary_text
from sim.benchmarks.tables import markdown_table

_MEASURES = ("gain", "return_gain", "improved", "predicted_gain", "distance")
_TABLES = {
    "gain": "True gain of r + discount V(s')",
    "return_gain": "True gain of the return of {steps} decisions, no value in it",
    "predicted_gain": "Gain of r + discount V(s') that the followed network itself predicts",
}
NOTES = """\
In hundredths of one reward, after so many steps of one length along a gradient from the policy's actions, the gradient taken anew
at each; mean +- standard error over seeds (n). sigma: noise on the actions at which a learned gradient is taken and averaged.
V is that of the behaviour, frozen, of which all variants' targets are made; the return has no learned value in it."""


def summarize_walks(protocol: GradientProtocol, results: Results) -> list[dict[str, Any]]:
    """Return an entry for each world, variant or reference, and sigma: means and standard errors over seeds, as plain values."""
    groups: dict[tuple[str, float, str, float | None], dict[int, list[dict[str, Any]]]] = {}
    for run, result in results.items():
        if isinstance(run, LinearRun):
            continue
        for row in result["robustness"]:
            key = run.task, run.noise, run.labels["variant"], row["sigma"]
            groups.setdefault(key, {}).setdefault(run.seed, []).append(row)
    tasks, variants = list(protocol.tasks), [*protocol.variants, *REFERENCES]

    def rank(key: tuple[str, float, str, float | None]) -> tuple[int, float, int, float]:
        return tasks.index(key[0]), key[1], variants.index(key[2]), key[3] or 0.0

    return [
        {
            "task": key[0],
            "noise": key[1],
            "variant": key[2],
            "sigma": key[3],
            "seeds": list(groups[key]),
            "rows": [_summarize_row(rows) for rows in zip(*groups[key].values(), strict=True)],
        }
        for key in sorted(groups, key=rank)
    ]


def _summarize_row(rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    measures = [name for name in _MEASURES if rows[0][name] is not None]
    return {"steps": rows[0]["steps"]} | {name: summarize(row[name] for row in rows) for name in measures}


def describe_walks(report: Mapping[str, Any]) -> list[str]:
    """Return the walks of a report as lines of Markdown."""
    lines = []
    for measure, title in _TABLES.items():
        title = title.format(steps=report["settings"]["robustness"]["return_steps"])
        lines += [title, "", *_table(report["walks"], measure), ""]
    return [*lines, *NOTES.splitlines()]


def _table(walks: Sequence[Mapping[str, Any]], measure: str) -> list[str]:
    rows = [["task", "noise", "along", "sigma", "n", *(f"{row['steps']} steps" for row in walks[0]["rows"])]]
    for entry in walks:
        if measure in entry["rows"][0]:
            sigma = "" if entry["sigma"] is None else f"{entry['sigma']:g}"
            texts = [summary_text(row[measure], 100.0) for row in entry["rows"]]
            rows.append([entry["task"], f"{entry['noise']:g}", entry["variant"], sigma, str(len(entry["seeds"])), *texts])
    return markdown_table(rows)
