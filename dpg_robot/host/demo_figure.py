"""The demonstration's picture: learning curve, swing-up on the robot, and regularity of the control loop."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from dpg_robot.files import write_atomically
from dpg_robot.host.robot_report import EpisodeTrace, episode_trace, wakeup_latencies_us

_BEFORE, _AFTER, _MUTED = "#6b7a8f", "#d1495b", "#c9d1db"


def draw_demo_figure(report: dict[str, Any], path: str | Path) -> None:
    """Draw the report of the demonstration and write it as a PNG.

    Args:
        report: as ``launch/demo.py`` writes it to ``report.json``.
        path: where to write.
    """
    figure = Figure(figsize=(13, 8), layout="constrained", dpi=110)
    axes = figure.subplots(2, 3)
    runs = report["runs"]
    _draw_learning_curve(axes[0, 0], report)
    _draw_swing_up(axes[0, 1], axes[0, 2], {name: episode_trace(runs[name]) for name in ("before", "after")})
    _draw_returns(axes[1, 0], report)
    _draw_errors(axes[1, 1], report)
    _draw_jitter(axes[1, 2], report)
    for axis in axes.flat:
        axis.spines[["top", "right"]].set_visible(False)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png")
    write_atomically(path, buffer.getvalue())


def _draw_learning_curve(axis: Axes, report: dict[str, Any]) -> None:
    curve = report["learning_curve"]
    updates = np.array([point["updates"] for point in curve]) / 1000
    mean = np.array([point["mean"] for point in curve])
    lowest, highest = (np.array([function(point["returns"]) for point in curve]) for function in (np.min, np.max))
    axis.fill_between(updates, lowest, highest, color=_MUTED, label="lowest to highest episode")
    axis.plot(updates, mean, color=_AFTER, label="mean")
    axis.set(title="Pretraining in randomized simulation", xlabel="thousand gradient updates", ylabel="return", ylim=(0, 1000))
    axis.legend(frameon=False, loc="lower right")


def _draw_swing_up(angle_axis: Axes, position_axis: Axes, traces: dict[str, EpisodeTrace]) -> None:
    for (name, trace), color in zip(traces.items(), (_BEFORE, _AFTER), strict=True):
        angle_axis.plot(trace.time_s, np.cos(trace.measurement[:, 1]), color=color, label=f"{name} fine-tuning")
        position_axis.plot(trace.time_s, trace.measurement[:, 0], color=color)
    angle_axis.set(title="Swing-up on the robot", xlabel="time (s)", ylabel="cos(pole angle): -1 hanging, 1 upright")
    angle_axis.legend(frameon=False, loc="lower right")
    position_axis.set(title="Cart on its rail", xlabel="time (s)", ylabel="cart position (m)", ylim=(-1.8, 1.8))


def _draw_returns(axis: Axes, report: dict[str, Any]) -> None:
    random = np.random.default_rng(0)
    groups = {
        "simulation,\nrandomized": (report["return_in_simulation"], _MUTED),
        "robot,\nbefore": (report["return_on_robot"]["before"], _BEFORE),
        "robot,\nafter": (report["return_on_robot"]["after"], _AFTER),
    }
    for index, (value, color) in enumerate(groups.values()):
        returns = np.array(value["returns"])
        axis.bar(index, value["mean"], yerr=value["standard_error"], color=color, width=0.6, capsize=4)
        axis.plot(index + random.uniform(-0.12, 0.12, len(returns)), returns, "k.", markersize=5, alpha=0.6)
    axis.set_xticks(range(len(groups)), list(groups))
    axis.set(title="Return per episode (mean, standard error)", ylim=(0, 1000))


def _draw_errors(axis: Axes, report: dict[str, Any]) -> None:
    held_out = report["held_out_robot_data"]
    names = {
        "denoising_error": "denoising,\ntold outcome",
        "denoising_error_without_outcome": "denoising,\nnot told",
        "td_error": "TD error",
    }
    for offset, when, color in ((-0.2, "before", _BEFORE), (0.2, "after", _AFTER)):
        values = [held_out[when][name] / held_out["before"][name] for name in names]
        axis.bar(np.arange(len(names)) + offset, values, width=0.38, color=color, label=f"{when} fine-tuning")
    axis.set_xticks(range(len(names)), list(names.values()))
    axis.set(title="Errors on held-out robot episodes", ylabel="share of the error before", ylim=(0, 1.35))
    axis.legend(frameon=False, loc="upper right")


def _draw_jitter(axis: Axes, report: dict[str, Any]) -> None:
    latencies = np.concatenate([wakeup_latencies_us(run) for run in report["runs"].values()])
    axis.hist(np.maximum(latencies, 1.0), bins=np.geomspace(1.0, max(1e3, latencies.max() * 1.1), 60).tolist(), color=_BEFORE)
    axis.set(
        title="Control loop: how late ticks began", xlabel="wake-up latency (us)", ylabel="ticks", xscale="log", yscale="log"
    )
    axis.set_ylim(top=50 * len(latencies))
    missed = sum(loop["missed_periods"] for loop in report["loop"].values())
    rate = report["loop"]["after"]["rate_hz"]
    percentiles = ", ".join(f"p{p:g} {np.percentile(latencies, p):.0f}" for p in (50, 99, 99.9))
    axis.text(0.98, 0.97, f"{rate:.2f} Hz\n{percentiles} us\n{missed} missed deadlines",
              transform=axis.transAxes, ha="right", va="top")  # fmt: skip
