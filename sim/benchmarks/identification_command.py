"""The command ``identify`` of the benchmark program: cart-poles with known parameters, and what their logs tell of them."""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from dpg_robot.errors import ConfigError, did_you_mean
from sim.benchmarks.identification_robots import PRIOR, ROBOTS, TASK, record
from sim.benchmarks.tables import markdown_table
from sim.identification import IdentificationSettings, identify

_TRUTH = "true parameters"
_DELAY_STEP_S = 0.01
_ROUNDING = 1e-9
_MODELS = ("nominal", "draws from the prior's ranges", "draws from the fitted ranges", "posterior mean", _TRUTH)


def add_identification_arguments(commands: Any) -> None:
    """Add the command ``identify`` and its options to the sub-commands of a parser."""
    parser = commands.add_parser("identify", help="known parameters of virtual cart-poles, found again in their logs")
    _add_arguments(parser)
    parser.set_defaults(run=run_identification)


def run_identification(arguments: argparse.Namespace) -> dict[str, Any]:
    """Record, identify, print the tables, and return all that was measured."""
    for name in arguments.robots:
        if name not in ROBOTS:
            raise ConfigError(f"unknown robot {name!r}; known: {', '.join(ROBOTS)}.{did_you_mean(name, ROBOTS)}")
    runs: list[dict[str, Any]] = []
    for name in arguments.robots:
        for seed in range(arguments.seeds):
            runs.append(_identify(name, seed, arguments))
            print(f"{name}, seed {seed}: {runs[-1]['seconds']:.0f} s", file=sys.stderr, flush=True)
    print(describe(runs))
    return {"task": TASK, "log_s": arguments.seconds, "runs": runs}


def _identify(name: str, seed: int, arguments: argparse.Namespace) -> dict[str, Any]:
    robot = record(ROBOTS[name], arguments.seconds, seed)
    settings = IdentificationSettings(num_threads=arguments.threads)
    start_s = time.perf_counter()
    posterior = identify(robot.transitions, robot.contract, TASK, PRIOR, settings, seed, also={_TRUTH: robot.truth})
    result = posterior.to_dict()
    judge(result, dict(zip(robot.names, robot.truth.tolist(), strict=True)), robot.force_share)
    del result["samples"]
    return {"robot": name, "seed": seed, "seconds": time.perf_counter() - start_s, **result}


def judge(result: dict[str, Any], truth: dict[str, float], force_share: float) -> None:
    """Write the true values beside what was found, and whether they lie inside.

    Args:
        result: as ``Posterior.to_dict``, with its samples; gets ``truth`` and ``inside`` for each parameter, and
            ``gain_per_mass``, what forces and masses do together: the log tells of their ratio.
        truth: by parameter.
        force_share: see :class:`Recording`.
    """
    for each in result["parameters"]:
        each["truth"], (low, high) = truth[each["name"]], each["fitted"]
        if each["name"] == "control_delay_s":  # delays act in whole physics steps
            low, high = (round(end / _DELAY_STEP_S) * _DELAY_STEP_S for end in (low, high))
        each["inside"] = bool(low - _ROUNDING <= each["truth"] <= high + _ROUNDING)
    samples, names = np.array(result["samples"]), result["sample_names"]
    ratio = samples[:, names.index("actuator_gain/slide")] / samples[:, names.index("mass/cart")]
    low, high = np.quantile(ratio, (0.05, 0.95)).tolist()
    true_ratio = force_share * truth["actuator_gain/slide"] / truth["mass/cart"]
    result["gain_per_mass"] = {"truth": true_ratio, "interval": [low, high], "inside": low <= true_ratio <= high}


def describe(runs: Sequence[dict[str, Any]]) -> str:
    """Return the results as two tables: intervals by parameter, and errors by robot."""
    names = [each["name"] for each in runs[0]["parameters"]]
    rows = [["parameter", "true value inside", "identified", "median width (of the prior)"]]
    for index, name in enumerate(names):
        found = [run["parameters"][index] for run in runs]
        rows.append(
            [
                name,
                f"{sum(each['inside'] for each in found)} of {len(found)}",
                f"{sum(each['known'] for each in found)} of {len(found)}",
                f"{100 * np.median([each['share'] for each in found]):.0f} %",
            ]
        )
    ratios = [run["gain_per_mass"] for run in runs]
    width = np.median([(r["interval"][1] - r["interval"][0]) / r["truth"] for r in ratios])
    rows.append(
        ["gain / cart mass", f"{sum(r['inside'] for r in ratios)} of {len(ratios)}", "", f"{100 * width:.0f} % of its value"]
    )
    errors = [["robot", *_MODELS]]
    for robot in dict.fromkeys(run["robot"] for run in runs):
        mine = [run["predictions"] for run in runs if run["robot"] == robot]
        errors.append([robot, *(f"{np.mean([each[model]['end_share'] for each in mine]):.3f}" for model in _MODELS)])
    return "\n".join([*markdown_table(rows), "", *markdown_table(errors)])


def _add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.formatter_class = argparse.ArgumentDefaultsHelpFormatter
    parser.description = (
        "Lets virtual cart-poles with known parameters explore, with the noise and pushes of the default disturbance, fits the "
        "ranges of a wide randomization to their logs, and counts how often the true value lies in the fitted range."
    )
    parser.add_argument("--robots", nargs="+", default=list(ROBOTS), metavar="NAME", help="which of the robots")
    parser.add_argument("--seeds", type=int, default=3, metavar="N", help="logs of each robot")
    parser.add_argument("--seconds", type=float, default=300.0, metavar="S", help="length of a log, s")
    parser.add_argument("--threads", type=int, default=2, metavar="N", help="threads that step the simulation")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write everything that was measured to FILE")
