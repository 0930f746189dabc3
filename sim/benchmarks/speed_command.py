"""The command ``speed`` of the benchmark program: time per decision and update, ours beside SAC."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

from tqdm import tqdm

from dpg_robot.config import add_config_arguments, config_from_arguments, config_to_dict
from sim.benchmarks.learning_speed import SpeedConfig, count_work, measure_speed
from sim.benchmarks.tables import markdown_table

_TITLES = {"decision_ms": "decision with its update", "update_ms": "update alone"}


def add_speed_arguments(commands: Any, default_config: Path | None = None) -> None:
    """Add the command ``speed`` and its options to the sub-commands of a parser."""
    parser = commands.add_parser(
        "speed",
        help="time per decision and update of our learner, beside Stable-Baselines3's SAC",
        description="Measure the time of a decision and an update, ours beside Stable-Baselines3's SAC, with networks and "
        "batches of equal size, in turns on the same processor.",
    )
    add_config_arguments(parser, SpeedConfig, default_config)
    parser.add_argument("--quiet", action="store_true", help="no progress bar")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the results and facts about the machine to FILE too")
    parser.set_defaults(run=run_speed)


def run_speed(arguments: argparse.Namespace) -> dict[str, Any]:
    """Measure, print the table, and return all that was measured."""
    config = config_from_arguments(SpeedConfig, arguments)
    with tqdm(total=count_work(config), disable=arguments.quiet, file=sys.stderr) as bar:

        def progress(what: str) -> None:
            bar.set_description(what, refresh=False)
            bar.update()

        times = measure_speed(config, progress)
    print(describe(config, times))
    return {"settings": config_to_dict(config), **times}


def describe(config: SpeedConfig, times: dict[str, Any]) -> str:
    """Return the results as a table, with what it shows above it."""
    sizes = " x ".join(map(str, config.learner.hidden_sizes))
    rows = [["ms, and SAC's time over it", *(text for title in _TITLES.values() for text in (title, "SAC / it"))]]
    for name in times["decision_ms"]:
        row = [name]
        for kind in _TITLES:
            entry = times[kind][name]
            row += [_text(entry, ".1f"), _text(entry["ratio"], ".2f")]
        rows.append(row)
    title = (
        f"{config.task}, layers {sizes}, batch {config.learner.batch_size}, {config.threads} threads; "
        f"median of {config.rounds} rounds [lowest, highest]"
    )
    return "\n".join([title, "", *markdown_table(rows)])


def _text(summary: dict[str, Any], form: str) -> str:
    return f"{summary['median']:{form}} [{summary['low']:{form}}, {summary['high']:{form}}]"
