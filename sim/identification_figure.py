"""The picture of an identification: what was known of each parameter before and after, and how well it predicts."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from sim.identification_posterior import Posterior

_PRIOR, _POSTERIOR, _NOMINAL = "0.85", "#1f4e79", "#d1701f"
_COLUMNS = 3
_INCHES = (3.6, 2.3)


def draw_identification(posterior: Posterior, path: str | Path) -> None:
    """Draw the posterior of each parameter in the range of its prior, and the errors on held-out pieces."""
    parameters = posterior.parameters()
    rows = math.ceil((len(parameters) + 1) / _COLUMNS)
    figure = Figure(figsize=(_COLUMNS * _INCHES[0], rows * _INCHES[1] + 0.6), layout="constrained")
    grid = np.atleast_1d(figure.subplots(rows, _COLUMNS, squeeze=False)).ravel()
    samples = posterior.samples[:, posterior.prior.free]
    for axes, each, values in zip(grid, parameters, samples.T, strict=False):
        low, high = each.prior
        axes.axvspan(*each.fitted, color=_PRIOR, label="fitted range")
        axes.hist(values, bins=np.linspace(low, high, 41), density=True, color=_POSTERIOR, label="posterior")
        axes.axvline(each.nominal, color=_NOMINAL, linestyle="--", label="nominal")
        axes.set_xlim(low, high)
        axes.set_yticks([])
        axes.set_title(each.name if each.known else f"{each.name}\n(not identifiable from this log)", fontsize=9)
    grid[0].legend(frameon=False, fontsize=7)
    _draw_errors(grid[len(parameters)], posterior)
    for axes in grid[len(parameters) + 1 :]:
        axes.set_axis_off()
    figure.suptitle(f"{posterior.task}: {posterior.transitions} transitions of the robot's log")
    figure.savefig(path, dpi=110)


def _draw_errors(axes: Axes, posterior: Posterior) -> None:
    names = list(posterior.predictions)
    values = [prediction.end_share for prediction in posterior.predictions.values()]
    axes.barh(range(len(names)), values, color=_POSTERIOR)
    axes.set_yticks(range(len(names)), names, fontsize=7)
    axes.invert_yaxis()
    axes.set_title(f"error after {posterior.window_s:.2g} s on held-out pieces\n(shares of the motion)", fontsize=9)
