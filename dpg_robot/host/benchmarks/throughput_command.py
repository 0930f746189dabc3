"""The command ``throughput`` of the benchmark program: transitions per second that fine-tuning learns from."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

from dpg_robot.config import add_config_arguments, config_from_arguments, config_to_dict
from dpg_robot.host.benchmarks.finetune_throughput import Arrangement, ThroughputConfig, measure_throughput


def add_throughput_arguments(commands: Any) -> None:
    """Add the command ``throughput`` and its options to the sub-commands of a parser."""
    parser = commands.add_parser(
        "throughput",
        help="transitions per second that fine-tuning learns from, and its share of the machine's limits",
        description="Measure draws and updates of the learner, by batch size, with one process and with several, beside what a "
        "large matrix product and a large copy reach in the same run.",
    )
    add_config_arguments(parser, ThroughputConfig, None)
    parser.add_argument("--quiet", action="store_true", help="show no progress")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the results and facts about the machine to FILE too")
    parser.set_defaults(run=run_throughput)


def run_throughput(arguments: argparse.Namespace) -> dict[str, Any]:
    """Measure, print the table, and return all that was measured."""
    config = config_from_arguments(ThroughputConfig, arguments)

    def progress(text: str) -> None:
        if not arguments.quiet:
            print(f"{text} ...", file=sys.stderr, flush=True)

    measured = measure_throughput(config, progress)
    print(describe(config, measured))
    return {"settings": config_to_dict(config), **measured}


def describe(config: ThroughputConfig, measured: dict[str, Any]) -> str:
    """Return the results as a table, with what it shows above it."""
    sizes = " x ".join(map(str, config.learner.hidden_sizes))
    lines = [
        f"{measured['device_name'] or config.device}, layers {sizes}, {config.features} features, {config.actions} actions, "
        f"history {config.history}; median of {config.rounds} rounds",
        "",
        "| arrangement | variant | precision | batch | transitions/s | ms per update | of arithmetic | of memory |",
        "|---|---|---|---:|---:|---:|---:|---:|",
    ]
    for each in measured["results"]:
        arrangement = Arrangement(each["processes"], each["threads"])
        lines.append(
            f"| {arrangement} | {each['variant']} | {each['precision']} | {each['batch_size']} | "
            f"{each['transitions_per_s']:,.0f} | {each['update_ms']:.1f} | {each['arithmetic_share']:.0%} | "
            f"{each['memory_share']:.0%} |"
        )
    return "\n".join(lines)
