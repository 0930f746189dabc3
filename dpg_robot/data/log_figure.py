"""A picture of a run of the robot log: channels over time, commands, and what the safety layers did."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dpg_robot.data.robot_log import LogPath, check_log, find_runs, read_contract, read_segments
from dpg_robot.data.transition import LoopState
from dpg_robot.errors import LogError
from dpg_robot.files import write_atomically

_MOST_POINTS = 20_000
_STATE_COLORS = {
    LoopState.RUNNING: "#dcecd9",
    LoopState.HOMING: "#e3e9f2",
    LoopState.STOPPING: "#f6e3c5",
    LoopState.FAULT: "#f3cccc",
}


def draw_log(path: LogPath, out: str | Path, safety_names: Mapping[int, str]) -> Path:
    """Draw one run as a PNG: one panel per unit of the measurements, one per unit of the commands, one of safety events.

    Long runs are thinned to some 20,000 points per channel; safety events are all kept. What is damaged is left out.

    Args:
        path: a run folder, or a log folder with one run.
        out: the file to write; must not exist.
        safety_names: name of each bit of the safety layers.

    Raises:
        LogError: no run, several runs, no records, ``out`` exists, or matplotlib is not installed.
    """
    out = Path(out)
    if out.exists():
        raise LogError(f"{out} exists already; choose another file")
    runs = find_runs(path)
    if len(runs) > 1:
        raise LogError(f"{path} has {len(runs)} runs; name one of them: {', '.join(run.name for run in runs[:10])}")
    contract = read_contract(runs[0])
    records, events = _read(runs[0])
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise LogError(f"pictures need matplotlib ({error}); install it with: pip install matplotlib") from error
    times_s = (records["time_ns"] - records["time_ns"][0]) / 1e9
    measured, commanded = _panels(contract.measurements), _panels(contract.commands)
    figure = Figure(figsize=(12, 2.2 * (len(measured) + len(commanded) + 1)), layout="constrained", dpi=110)
    axes = figure.subplots(len(measured) + len(commanded) + 1, 1, sharex=True, squeeze=False)[:, 0]
    for axis, (name, panels) in zip(
        axes, [("measurement", p) for p in measured] + [("command", p) for p in commanded], strict=False
    ):
        _draw_panel(axis, times_s, records[name], panels, name)
        _shade_states(axis, times_s, records["state"])
    _draw_events(axes[-1], records["time_ns"][0], events, safety_names)
    axes[0].set_title(f"{contract.task}, run {runs[0].name} (running green, homing blue, stopping orange, fault red)")
    axes[-1].set_xlabel("time, s")
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png")
    out.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(out, buffer.getvalue())
    return out


def _read(run: Path) -> tuple[NDArray[np.void], NDArray[np.void]]:
    """Return thinned records, and all records in which a safety layer did something."""
    count = check_log(run).runs[0].records
    if not count:
        raise LogError(f"the run {run} has no records to draw")
    stride = -(-count // _MOST_POINTS)
    thinned, events = [], []
    for _, _, records in read_segments(run, on_damage="skip"):
        if len(records):
            thinned.append(records[::stride].copy())
            events.append(records[records["safety"] != 0])
    return np.concatenate(thinned), np.concatenate(events)


def _panels(channels: Sequence[Any]) -> list[list[tuple[int, Any]]]:
    """Group channels by their unit, with their columns."""
    groups: dict[str, list[tuple[int, Any]]] = {}
    for column, channel in enumerate(channels):
        groups.setdefault(channel.unit, []).append((column, channel))
    return list(groups.values())


def _draw_panel(axis: Any, times_s: NDArray[np.float64], values: NDArray[np.float64], channels: Any, what: str) -> None:
    for column, channel in channels:
        axis.plot(times_s, values[:, column], linewidth=0.8, label=channel.name)
    axis.set_ylabel(f"{what}, {channels[0][1].unit}")
    axis.legend(frameon=False, fontsize="small", ncols=6, loc="upper right")
    axis.spines[["top", "right"]].set_visible(False)


def _shade_states(axis: Any, times_s: NDArray[np.float64], states: NDArray[np.uint8]) -> None:
    starts = np.concatenate([[0], np.flatnonzero(np.diff(states.astype(int))) + 1])
    ends = np.concatenate([starts[1:], [len(states) - 1]])
    for first, last in zip(starts.tolist(), ends.tolist(), strict=True):
        color = _STATE_COLORS.get(int(states[first]))  # type: ignore[call-overload]
        if color is not None:
            axis.axvspan(times_s[first], times_s[last], color=color, zorder=0, linewidth=0)


def _draw_events(axis: Any, begin_ns: int, events: NDArray[np.void], names: Mapping[int, str]) -> None:
    bits = [1 << shift for shift in range(16) if (events["safety"] & (1 << shift)).any()]
    for row, bit in enumerate(bits):
        times_s = (events["time_ns"][(events["safety"] & bit) != 0] - begin_ns) / 1e9
        axis.plot(times_s, np.full(len(times_s), row), "|", markersize=9)
    axis.set_yticks(range(len(bits)), [names.get(bit, f"bit {bit}").lower().replace("_", " ") for bit in bits])
    axis.set_ylim(-0.5, max(len(bits), 1) - 0.5)
    axis.set_ylabel("safety" if bits else "safety: no events")
    axis.spines[["top", "right"]].set_visible(False)
