#!/usr/bin/env python
"""Compare a robot with its simulation: replay what the robot did, and see where the simulation goes elsewhere."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path

from dpg_robot.data.robot_log import find_runs, load_transitions, read_contract
from dpg_robot.errors import DpgError, LogError
from dpg_robot.files import write_atomically
from sim.robot_comparison import Comparison, compare_with_simulation


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit code."""
    args = build_parser().parse_args(arguments)
    try:
        runs = find_runs(args.log)
        if len(runs) > 1:
            names = ", ".join(run.name for run in runs)
            raise LogError(f"{args.log} holds {len(runs)} runs; give the folder of one of them: {names}")
        comparison = compare_with_simulation(
            load_transitions(runs[0]), read_contract(runs[0]), window_s=args.window, num_threads=args.threads
        )
        for line in describe(comparison):
            print(line)
        if args.json is not None:
            write_atomically(args.json, (json.dumps(comparison.to_dict(), indent=1) + "\n").encode())
        if args.figure is not None:
            from sim.robot_comparison_figure import draw_comparison

            draw_comparison(comparison, args.figure)
    except DpgError as error:
        print(f"compare: {error}", file=sys.stderr)
        return 1
    return 0


def build_parser() -> argparse.ArgumentParser:
    """Return the parser."""
    parser = argparse.ArgumentParser(
        prog="compare.py",
        description="Cuts a robot's log into pieces, starts the nominal simulation of its task where each piece began, and "
        "replays the actions that the robot carried out. Tells, for each channel, how far the simulation goes elsewhere, and by "
        "how much the robot's actions act later. The first thing to look at when a policy works in simulation only.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument("--log", type=Path, required=True, metavar="DIR", help="folder of one run")
    parser.add_argument(
        "--window", type=float, default=0.5, metavar="S", help="length of the pieces, s: short ones tell of delays and forces"
    )
    parser.add_argument("--threads", type=int, default=2, metavar="N", help="threads that step the simulation")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write everything that was found as JSON")
    parser.add_argument("--figure", type=Path, metavar="FILE", help="draw it to FILE, a PNG")
    return parser


def describe(comparison: Comparison) -> list[str]:
    """Return the report as lines of text."""
    lines = [
        f"{comparison.task}: {comparison.windows} pieces of {comparison.window_s:.3g} s",
        f"{'channel':24} {'error at the end':>18} {'motion':>12} {'bias':>12} {'explained':>10}",
    ]
    explained = comparison.explained
    for index, (name, unit) in enumerate(zip(comparison.channels, comparison.units, strict=True)):
        error, drift, bias = comparison.error[-1, index], comparison.drift[-1, index], comparison.bias[index]
        lines.append(f"{name:24} {error:11.4g} {unit:>6} {drift:12.4g} {bias:12.3g} {explained[index]:10.2f}")
    lines.append(f"the robot's actions act {1e3 * comparison.delay_s:.1f} ms later than the simulation's")
    return lines


if __name__ == "__main__":
    sys.exit(main())
