#!/usr/bin/env python
"""Run a policy on a robot, or check a robot and a policy without moving anything."""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from dpg_robot.config import load_config
from dpg_robot.deploy.clock import Grant
from dpg_robot.deploy.robot_check import check_robot
from dpg_robot.deploy.run_config import RobotConfig, RunSettings
from dpg_robot.deploy.supervisor import supervise
from dpg_robot.errors import DpgError
from dpg_robot.files import write_atomically

CONFIGS = Path(__file__).resolve().parent.parent / "configs"


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit code."""
    args = build_parser().parse_args(arguments)
    try:
        return int(args.run(args))
    except DpgError as error:
        print(f"robot: {error}", file=sys.stderr)
        return 1


def build_parser() -> argparse.ArgumentParser:
    """Return the parser with the subcommands ``run`` and ``check``."""
    parser = argparse.ArgumentParser(prog="robot.py", description=__doc__)
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    run = commands.add_parser(
        "run",
        help="run episodes and record them",
        description="Homes the robot, runs the policy for each episode, and records every tick. Ctrl-C stops the robot safely. "
        "Exit code: 0 finished, 128 + signal when stopped by a signal, 1 for anything else, with the reason on stderr.",
    )
    run.set_defaults(run=_run)
    check = commands.add_parser(
        "check",
        help="check robot and policy without moving anything",
        description="Connects, reads the sensors, compares the policy's contract, replays its golden vectors and measures the "
        "rate. The motors stay off. Exit code 0 if everything is in order, else 1.",
    )
    check.set_defaults(run=_check)
    for command in (run, check):
        command.add_argument("--policy", type=Path, required=True, metavar="FILE", help="policy.onnx")
        command.add_argument(
            "--robot",
            type=Path,
            default=CONFIGS / "robots" / "cartpole.yaml",
            metavar="FILE",
            help="the robot (default: %(default)s)",
        )
        command.add_argument("--port", metavar="DEV", help="serial port, instead of the one in the robot's file")
        command.add_argument("--json", type=Path, metavar="FILE", help="write what was found as JSON")
    run.add_argument("--log", type=Path, default=Path("log"), metavar="DIR", help="log folder (default: %(default)s)")
    run.add_argument("--episodes", type=int, default=1, metavar="N", help="number of episodes (default: %(default)s)")
    run.add_argument("--episode-seconds", type=float, metavar="S", help="length of an episode (default: the robot's)")
    run.add_argument(
        "--explore",
        type=float,
        default=0.0,
        metavar="STD",
        help="noise on the actions, a share of half their range (default: 0)",
    )
    run.add_argument("--seed", type=int, default=0, metavar="N", help="seed of that noise (default: %(default)s)")
    run.add_argument("--quiet", action="store_true", help="do not show progress")
    return parser


def _run(args: argparse.Namespace) -> int:
    robot = _load_robot(args)
    settings = RunSettings(
        robot=robot,
        policy=args.policy,
        log_folder=args.log,
        episodes=args.episodes,
        episode_seconds=robot.episode_seconds if args.episode_seconds is None else args.episode_seconds,
        exploration=args.explore,
        seed=args.seed,
    )
    result = supervise(settings, quiet=args.quiet)
    if args.json is not None:
        _write_json(args.json, result.summary)
    for line in _describe(result.summary):
        print(line)
    print(f"robot: {result.exit_reason}; log in {result.folder}", file=sys.stderr)
    return result.exit_code


def _check(args: argparse.Namespace) -> int:
    results = check_robot(_load_robot(args), args.policy)
    for result in results:
        print(result)
    if args.json is not None:
        _write_json(args.json, {"checks": [dataclasses.asdict(result) for result in results]})
    return 0 if all(result.passed for result in results) else 1


def _load_robot(args: argparse.Namespace) -> RobotConfig:
    robot = load_config(RobotConfig, args.robot)
    return dataclasses.replace(robot, port=args.port) if args.port else robot


def _describe(summary: dict[str, Any]) -> list[str]:
    loop = summary["loop"]
    if loop is None:
        return []
    lines = [str(Grant(**grant)) for grant in loop["real_time"]]
    for episode in loop["episodes"]:
        interventions = ", ".join(f"{name} {count}" for name, count in episode["interventions"].items()) or "none"
        lines.append(
            f"episode {episode['episode'] + 1}: {episode['steps']} steps, {episode['end']}, "
            f"homing {episode['homing_s']:.1f} s, safety interventions: {interventions}"
        )
    wakeup = loop["wakeup_latency_us"]
    lines.append(
        f"{loop['rate_hz']:.2f} Hz over {loop['ticks']} ticks, {loop['missed_periods']} periods missed; woken up late by "
        f"{wakeup['p50']:.0f} us (p50), {wakeup['p99']:.0f} us (p99), {wakeup['max']:.0f} us (max)"
    )
    return lines


def _write_json(path: Path, values: dict[str, Any]) -> None:
    write_atomically(path, (json.dumps(values, indent=2) + "\n").encode())


if __name__ == "__main__":
    sys.exit(main())
