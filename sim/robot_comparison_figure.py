"""The picture of a robot beside its simulation."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from sim.robot_comparison import Comparison

_ROBOT, _SIMULATION = "#1f4e79", "#d1701f"
_COLUMN_INCHES, _ROW_INCHES = 4.0, 1.7


def draw_comparison(comparison: Comparison, path: str | Path) -> None:
    """Draw each channel of the median piece, its error over time beside its motion, and the error against the delay."""
    rows = len(comparison.channels)
    figure = Figure(figsize=(3 * _COLUMN_INCHES, max(2, rows) * _ROW_INCHES + 0.8), layout="constrained")
    grid = figure.add_gridspec(rows, 3)
    for row, (name, unit) in enumerate(zip(comparison.channels, comparison.units, strict=True)):
        _draw_channel(figure.add_subplot(grid[row, 0]), comparison, row, f"{name}\n({unit})", last=row == rows - 1)
        _draw_error(figure.add_subplot(grid[row, 1]), comparison, row, last=row == rows - 1)
    _draw_delay(figure.add_subplot(grid[: max(1, rows // 2), 2]), comparison)
    figure.suptitle(
        f"{comparison.task}: {comparison.windows} pieces of {comparison.window_s:.2g} s of the robot's log, in simulation"
    )
    figure.savefig(path, dpi=110)


def _draw_channel(axes: Axes, comparison: Comparison, index: int, label: str, *, last: bool) -> None:
    times = np.concatenate([[0.0], comparison.time_s])
    axes.plot(times, comparison.robot[:, index], color=_ROBOT, label="robot")
    axes.plot(times, comparison.simulated[:, index], color=_SIMULATION, label="simulation", linestyle="--")
    axes.set_ylabel(label)
    if index == 0:
        axes.set_title("the piece with the median error")
        axes.legend(frameon=False)
    if last:
        axes.set_xlabel("time (s)")


def _draw_error(axes: Axes, comparison: Comparison, index: int, *, last: bool) -> None:
    axes.plot(comparison.time_s, comparison.drift[:, index], color="0.6", label="motion of the robot")
    axes.plot(comparison.time_s, comparison.error[:, index], color=_SIMULATION, label="error of the simulation")
    axes.set_ylim(bottom=0)
    axes.text(0.98, 0.06, f"explained {comparison.explained[index]:.2f}", transform=axes.transAxes, ha="right")
    if index == 0:
        axes.set_title("root mean squares over all pieces")
        axes.legend(frameon=False)
    if last:
        axes.set_xlabel("time (s)")


def _draw_delay(axes: Axes, comparison: Comparison) -> None:
    milliseconds = 1e3 * comparison.delays_s
    axes.plot(milliseconds, comparison.delay_error, color=_SIMULATION, marker="o")
    axes.axvline(1e3 * comparison.delay_s, color=_ROBOT, linestyle=":", label=f"best: {1e3 * comparison.delay_s:.1f} ms")
    axes.set_ylim(bottom=0)
    axes.set_title("delay of the actions")
    axes.set_xlabel("delay in the simulation (ms)")
    axes.set_ylabel("squared error\n(shares of the motion)")
    axes.legend(frameon=False)
