"""The picture of the canonical nine: ten classes beside each other, the walks of each method below each other."""

from __future__ import annotations

import io
from pathlib import Path

from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from dpg_robot.files import write_atomically
from dpg_robot.learning.digits.experiment import METHODS, STARTS, FigureRow
from dpg_robot.learning.digits.images import CLASSES

_IMAGE, _BAR, _ROW, _GROUP_GAP = 0.92, 0.07, 1.30, 0.24  # sizes in columns
_INK, _MUTED, _TRACK = "#1f2933", "#6b7a8f", "#e4e9ef"
_LABELS_WIDTH = 4.3
_PANEL_GAP = 0.8


def draw_canonical_nine(rows: dict[str, list[FigureRow]], path: str | Path) -> None:
    """Draw the walks and write them as a PNG.

    Args:
        rows: kind of start -> rows, the same methods for each kind.
        path: where to write.
    """
    tops = _row_tops(next(iter(rows.values())))
    width = _LABELS_WIDTH + len(rows) * (CLASSES + _PANEL_GAP)
    height = 2.6 - tops[-1] + _ROW
    figure = Figure(figsize=(0.56 * width, 0.56 * height), dpi=130, facecolor="white")
    axis = figure.add_axes((0.0, 0.0, 1.0, 1.0))
    for panel, (kind, panel_rows) in enumerate(rows.items()):
        left = _LABELS_WIDTH + panel * (CLASSES + _PANEL_GAP)
        axis.text(left + CLASSES / 2, 1.85, f"starting from {STARTS[kind]}", ha="center", size=14, color=_INK)
        for digit in range(CLASSES):
            axis.text(left + digit + _IMAGE / 2, 0.75, str(digit), ha="center", va="center", size=17, weight="bold", color=_INK)
        for row, top in zip(panel_rows, tops, strict=True):
            _draw_row(axis, row, left, top)
    axis.text(_LABELS_WIDTH - 0.35, 0.75, "walk towards class", ha="right", va="center", size=10, color=_MUTED)
    _draw_labels(axis, next(iter(rows.values())), tops)
    axis.set(xlim=(0, width), ylim=(tops[-1] - _ROW - 0.1, 2.5), aspect="equal")
    axis.set_axis_off()
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png")
    write_atomically(path, buffer.getvalue())


def _row_tops(rows: list[FigureRow]) -> list[float]:
    """Return the upper edge of each row; there is a gap between methods."""
    tops, top = [], 0.3
    for index, row in enumerate(rows):
        if index:
            top -= _ROW + (_GROUP_GAP if row.method != rows[index - 1].method else 0.0)
        tops.append(top)
    return tops


def _draw_row(axis: Axes, row: FigureRow, left: float, top: float) -> None:
    for digit, (image, confidence) in enumerate(zip(row.images, row.confidence, strict=True)):
        x, y = left + digit, top - _IMAGE
        axis.imshow(image, extent=(x, x + _IMAGE, y, top), cmap="gray_r", vmin=-1, vmax=1, interpolation="nearest", zorder=1)
        axis.add_patch(Rectangle((x, y), _IMAGE, _IMAGE, fill=False, edgecolor=_TRACK, linewidth=0.6, zorder=2))
        color = colormaps["RdYlGn"](0.05 + 0.9 * float(confidence))
        axis.add_patch(Rectangle((x, y - 0.04 - _BAR), _IMAGE, _BAR, color=_TRACK, linewidth=0))
        axis.add_patch(Rectangle((x, y - 0.04 - _BAR), _IMAGE * float(confidence), _BAR, color=color, linewidth=0))
        axis.text(x + _IMAGE / 2, y - 0.225, f"{confidence:.2f}", ha="center", va="center", size=6.5, color=_MUTED)


def _draw_labels(axis: Axes, rows: list[FigureRow], tops: list[float]) -> None:
    for index, (row, top) in enumerate(zip(rows, tops, strict=True)):
        if not index or row.method != rows[index - 1].method:
            title = METHODS.get(row.method, row.method).replace(": ", ":\n").replace(", ", ",\n").replace("trained ", "trained\n")
            last = max(place for place, other in enumerate(rows) if other.method == row.method)
            middle = (top + tops[last] - _IMAGE) / 2
            axis.text(0.15, middle, title, ha="left", va="center", size=10, color=_INK, linespacing=1.25)
        if row.method != "start":
            text = "end" if row.share == 1 else f"{row.share:.0%}"
            axis.text(_LABELS_WIDTH - 0.15, top - _IMAGE / 2, text, ha="right", va="center", size=8, color=_MUTED)
