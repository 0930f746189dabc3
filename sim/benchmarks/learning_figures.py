"""The learning benchmark as a figure: learning curves of every cell, and the aggregated scores."""

from __future__ import annotations

import io
from collections.abc import Mapping
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from sim.benchmarks.learning_protocol import LearningProtocol, Run, disturbance_label
from sim.benchmarks.learning_report import Scores, mean_returns
from sim.benchmarks.learning_results import Result
from sim.benchmarks.learning_statistics import interquartile_mean
from sim.benchmarks.run_store import Stored

_PEER_COLORS = ("#ff7f0e", "#2ca02c", "#9467bd", "#8c564b", "#e377c2", "#7f7f7f", "#bcbd22", "#17becf")
_OUR_COLORS = ("#1f4fd8", "#d62728", "#000000", "#00a0a0")
_CURVE_REPETITIONS = 2_000


def draw_figure(protocol: LearningProtocol, stored: Stored[Run, Result], report: Mapping[str, Any]) -> bytes:
    """Return a PNG: a panel of learning curves for each cell, and a panel of inter-quartile means with 95% intervals.

    Args:
        protocol: what was run.
        stored: the results.
        report: what ``build_report`` made of them.
    """
    labels = [disturbance_label(disturbance) for disturbance in protocol.disturbances]
    tasks, colors = list(protocol.tasks), _colors(protocol)
    figure = Figure(figsize=(3.1 * len(tasks) + 4.2, max(2.5 * len(labels), 3.4) + 0.6), layout="constrained")
    FigureCanvasAgg(figure)
    grid = figure.add_gridspec(len(labels), len(tasks) + 1, width_ratios=[*[1.0] * len(tasks), 1.35])
    scores = Scores(stored.results)
    for row, disturbance in enumerate(labels):
        for column, task in enumerate(tasks):
            axes = figure.add_subplot(grid[row, column])
            for algorithm, color in colors.items():
                results = scores.results(task, disturbance, algorithm)
                _draw_curve(axes, results, color, thick=algorithm in protocol.ours)
            axes.set(xlim=(0, protocol.frames / 1000), ylim=(0, None))
            axes.set_title(f"{task}, disturbance {disturbance}", fontsize=9)
            axes.set_xlabel("thousand frames" if row == len(labels) - 1 else "")
            axes.set_ylabel("return" if column == 0 else "")
    _draw_bars(figure.add_subplot(grid[:, len(tasks)]), labels, colors, report)
    handles = [figure.axes[0].plot([], [], color=color, linewidth=2, label=name)[0] for name, color in colors.items()]
    figure.legend(handles=handles, loc="outside lower center", ncols=max(1, len(handles)), frameon=False)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=120)
    return buffer.getvalue()


def _colors(protocol: LearningProtocol) -> dict[str, str]:
    ours = {name: _OUR_COLORS[index % len(_OUR_COLORS)] for index, name in enumerate(protocol.ours)}
    return ours | {name: _PEER_COLORS[index % len(_PEER_COLORS)] for index, name in enumerate(protocol.peers)}


def _draw_curve(axes: Axes, results: Mapping[int, Result], color: str, thick: bool) -> None:
    """Draw the inter-quartile mean over seeds, with its interval where there are two seeds or more."""
    if not results:
        return
    frames = [entry["frames"] / 1000 for entry in next(iter(results.values())).curve]
    returns = np.array([mean_returns(result) for result in results.values()])
    estimates = [interquartile_mean([column], _CURVE_REPETITIONS) for column in returns.T]
    axes.plot(frames, [estimate.value for estimate in estimates], color=color, linewidth=2.2 if thick else 1.2, zorder=2 + thick)
    low, high = ([getattr(estimate, name) for estimate in estimates] for name in ("low", "high"))
    axes.fill_between(frames, low, high, color=color, alpha=0.15, linewidth=0)


def _draw_bars(axes: Axes, labels: list[str], colors: Mapping[str, str], report: Mapping[str, Any]) -> None:
    """Draw the inter-quartile means of the final scores, a group of bars for each disturbance."""
    width = 0.8 / max(1, len(colors))
    names = list(colors)
    for entry in report["algorithms"]:
        estimate = entry.get("iqm_final")
        if estimate is None:
            continue
        place = labels.index(entry["disturbance"]) + (names.index(entry["algorithm"]) - 0.5 * (len(names) - 1)) * width
        axes.bar(place, estimate["value"], width, color=colors[entry["algorithm"]], alpha=1.0 if entry["complete"] else 0.4)
        if estimate["low"] is not None:
            axes.vlines(place, estimate["low"], estimate["high"], color="black", linewidth=1)
    axes.set_xticks(range(len(labels)), labels)
    axes.set_title("inter-quartile mean over tasks and seeds\n(pale: runs are missing)", fontsize=9)
    axes.set(xlabel="disturbance", ylabel="last return / 1000", ylim=(0, None))
