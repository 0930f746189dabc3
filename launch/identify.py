#!/usr/bin/env python
"""Fit the ranges of a randomization to a robot's log: simulations that resemble this robot, for pretraining and for the gate."""

from __future__ import annotations

import argparse
import json
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path

from tqdm import tqdm

from dpg_robot.config import add_config_arguments, config_from_arguments
from dpg_robot.contract import Contract
from dpg_robot.data.robot_log import find_runs, load_transitions, read_contract
from dpg_robot.errors import DpgError, LogError
from dpg_robot.files import write_atomically
from sim.identification import IdentificationSettings, identify


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit code."""
    args = build_parser().parse_intermixed_args(arguments)
    try:
        settings = config_from_arguments(IdentificationSettings, args)
        contract = common_contract(args.log)
        with tqdm(bar_format="{desc} {elapsed}", disable=args.quiet) as bar:
            posterior = identify(
                load_transitions(args.log),
                contract,
                args.task or contract.task,
                args.randomization,
                settings,
                args.seed,
                lambda text: bar.set_description_str(text),
            )
        given = sys.argv[1:] if arguments is None else arguments
        posterior.write(args.out, f"launch/identify.py {shlex.join(given)}")
        for line in posterior.report():
            print(line)
        if args.json is not None:
            write_atomically(args.json, (json.dumps(posterior.to_dict(), indent=1) + "\n").encode())
        if args.figure is not None:
            from sim.identification_figure import draw_identification

            draw_identification(posterior, args.figure)
    except (DpgError, OSError) as error:
        print(f"identify: {error}", file=sys.stderr)
        return 1
    return 0


def common_contract(log: Path) -> Contract:
    """Return the contract that all runs of a log have in common; raises LogError where they are of different robots."""
    runs = find_runs(log)
    contracts = [read_contract(run) for run in runs]
    first = contracts[0]
    for run, contract in zip(runs, contracts, strict=True):
        differ = first.robot_differences(contract)
        if differ:
            raise LogError(f"runs {runs[0].name} and {run.name} differ in {', '.join(differ)}; give logs of one robot and task")
    return first


def build_parser() -> argparse.ArgumentParser:
    """Return the parser."""
    parser = argparse.ArgumentParser(
        prog="identify.py",
        description="Simulates pieces of a robot's log with many parameters of its model and keeps what measures as the robot "
        "did: a posterior within the ranges of a randomization. Writes its ranges as a randomization for launch/pretrain.py, and "
        "tells which parameters the log determines, and how much better the simulation predicts pieces that were held out.",
    )
    add_config_arguments(parser, IdentificationSettings, None)
    parser.add_argument("--log", type=Path, required=True, metavar="FOLDER", help="folder of one run, or of several of one robot")
    parser.add_argument("--task", default="", metavar="TASK", help="task, or a reference to one's own (default: that of the log)")
    parser.add_argument(
        "--randomization", default="default", metavar="PRIOR", help="prior ranges: a preset or YAML file (default: %(default)s)"
    )
    parser.add_argument("--out", type=Path, required=True, metavar="FITTED.yaml", help="randomization to write")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write everything that was found as JSON, with all draws")
    parser.add_argument("--figure", type=Path, metavar="FILE", help="draw it to FILE, a PNG")
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="seed of everything random (default: %(default)s)")
    parser.add_argument("--quiet", action="store_true", help="no progress")
    return parser


if __name__ == "__main__":
    sys.exit(main())
