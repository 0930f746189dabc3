"""The gradient benchmark as figures: cosine to the true gradient against the world's noise, and gains of following it."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

_COLORS = {"critic": "black", "random direction": "darkgray", "true gradient": "gold"}
_GAINS = {"gain": "true gain of r + discount V(s')", "return_gain": "true gain of the return"}


def draw_cosines(report: Mapping[str, Any]) -> bytes:
    """Return a PNG: a panel for each task, a line for each variant with the range of its seeds; dashed, the noise ceiling."""
    entries = report["simulated"]
    tasks, colors = list(dict.fromkeys(entry["task"] for entry in entries)), _colors(entries)
    figure = _figure(len(tasks), 1)
    for column, task in enumerate(tasks):
        axes = figure.add_subplot(1, len(tasks), column + 1)
        own = [entry for entry in entries if entry["task"] == task]
        for variant, color in colors.items():
            points = [(entry["noise"], entry["comparisons"][-1]["cosine"]) for entry in own if entry["variant"] == variant]
            _draw_line(axes, points, color, variant)
        ceilings = sorted({(entry["noise"], entry["truth"]["split_half_cosine"]) for entry in own})
        axes.plot(*zip(*ceilings, strict=True), color="gray", linestyle="--", marker=".", linewidth=1, label="ceiling")
        axes.set_xscale("log")
        axes.set_xticks([noise for noise, _ in ceilings], [f"{noise:g}" for noise, _ in ceilings], minor=False)
        axes.set(title=task, xlabel="noise of the actuators", ylabel="cosine to the true gradient" if column == 0 else "")
        axes.set_ylim(top=1)
    return _finish(figure)


def draw_robustness(report: Mapping[str, Any]) -> bytes:
    """Return a PNG of gains against steps along a gradient: a row of panels for each world and a line for each variant.

    The columns are, for each sigma, the gain of the target, true and (dotted) as the followed network predicts it, then the true
    gain of the return. References have no sigma and are in all panels.
    """
    entries = report["walks"]
    colors, worlds = _colors(entries), list(dict.fromkeys((entry["task"], entry["noise"]) for entry in entries))
    sigmas = sorted({entry["sigma"] for entry in entries if entry["sigma"] is not None})
    columns = [(measure, sigma) for measure in _GAINS for sigma in sigmas]
    figure = _figure(len(columns), len(worlds))
    for row, (task, noise) in enumerate(worlds):
        for column, (measure, sigma) in enumerate(columns):
            axes = figure.add_subplot(len(worlds), len(columns), row * len(columns) + column + 1)
            for entry in entries:
                if (entry["task"], entry["noise"]) == (task, noise) and entry["sigma"] in (sigma, None):
                    _draw_walk(axes, entry, measure, colors[entry["variant"]])
            axes.axhline(0, color="gray", linewidth=0.8)
            axes.set_title(f"{task}, noise {noise:g}, sigma {sigma:g}", fontsize=9)
            axes.set(xlabel="steps" if row == len(worlds) - 1 else "", ylabel=_GAINS[measure])
    return _finish(figure)


def _draw_walk(axes: Axes, entry: Mapping[str, Any], measure: str, color: Any) -> None:
    """Draw a true gain, and dotted the gain of the target that the network predicts."""
    rows = entry["rows"]
    _draw_line(axes, [(row["steps"], row[measure]) for row in rows], color, entry["variant"])
    if measure == "gain" and "predicted_gain" in rows[0]:
        predicted = [row["predicted_gain"]["mean"] for row in rows]
        axes.plot([row["steps"] for row in rows], predicted, color=color, linestyle=":", linewidth=1)


def _colors(entries: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Return a color for each variant; those of the critic and of the references are always the same."""
    variants = list(dict.fromkeys(entry["variant"] for entry in entries))
    palette = colormaps["tab20" if len(variants) > 11 else "tab10"]
    others = [variant for variant in variants if variant not in _COLORS]
    return _COLORS | {variant: palette(index % palette.N) for index, variant in enumerate(others)}


def _figure(columns: int, rows: int) -> Figure:
    figure = Figure(figsize=(3.4 * max(1, columns) + 0.4, 2.7 * max(1, rows) + 1.0), layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def _draw_line(axes: Axes, points: Sequence[tuple[float, Mapping[str, Any]]], color: Any, label: str) -> None:
    if points:
        places = [place for place, _ in points]
        axes.plot(places, [summary["mean"] for _, summary in points], color=color, marker=".", label=label)
        low, high = ([edge(summary["values"]) for _, summary in points] for edge in (min, max))
        axes.fill_between(places, low, high, color=color, alpha=0.15, linewidth=0)


def _finish(figure: Figure) -> bytes:
    handles: dict[str, Any] = {}
    for axes in figure.axes:
        handles |= dict(zip(*reversed(axes.get_legend_handles_labels()), strict=True))
    if handles:
        columns = max(1, min(len(handles), int(figure.get_figwidth() / 2.4)))
        figure.legend(handles.values(), handles.keys(), loc="outside lower center", ncols=columns, frameon=False)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=120)
    return buffer.getvalue()
