#!/usr/bin/env python
"""Run a policy on a robot, check both without moving anything, or set up a robot of servos: scan, setup, calibrate."""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from dpg_robot.config import load_config
from dpg_robot.deploy.clock import Grant
from dpg_robot.deploy.release_watch import ReleaseWatch
from dpg_robot.deploy.robot_check import check_robot
from dpg_robot.deploy.run_config import RobotConfig, RunSettings
from dpg_robot.deploy.supervisor import supervise
from dpg_robot.errors import ConfigError, DpgError
from dpg_robot.files import write_atomically
from dpg_robot.release import TrustedKey
from hw_drivers.servo_family import FAMILIES, find_family
from hw_drivers.servo_scan import FoundServo
from hw_drivers.servo_setup import Terminal, calibrate_robot, scan, set_up_robot, write_robot

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
    """Return the parser with all subcommands."""
    parser = argparse.ArgumentParser(prog="robot.py", description=__doc__)
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    run = commands.add_parser(
        "run",
        help="run episodes and record them",
        description="Homes the robot, runs the policy for each episode, and records every tick. Ctrl-C stops the robot safely. "
        "With --store, new releases are tried while it runs: first in the shadow, then watched, with the old policy ready. "
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
        source = command.add_mutually_exclusive_group(required=True)
        source.add_argument("--policy", type=Path, metavar="FILE", help="policy.onnx")
        source.add_argument(
            "--store", type=Path, metavar="DIR", help="folder of signed releases: the policy that this robot has accepted last"
        )
        command.add_argument(
            "--trust",
            type=Path,
            action="append",
            default=[],
            metavar="KEY.pub",
            help="key whose releases are believed; several times",
        )
        command.add_argument(
            "--release-memory",
            type=Path,
            metavar="FILE",
            help="what this robot remembers of releases (default: NAME.json in ~/.local/state/dpg-robot, or in $XDG_STATE_HOME)",
        )
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
    run.add_argument(
        "--shadow",
        action="store_true",
        help="only watch: the policy runs and is recorded, nothing is sent, and the actuators stay as they are",
    )
    run.add_argument("--seed", type=int, default=0, metavar="N", help="seed of that noise (default: %(default)s)")
    run.add_argument("--quiet", action="store_true", help="do not show progress")
    _add_set_up_commands(commands)
    return parser


def _add_set_up_commands(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    scan = commands.add_parser(
        "scan",
        help="list the servos on serial ports",
        description="Asks every ID at every baud rate and lists who answers. Nothing is changed. "
        "Takes some 5 s for each family and baud rate.",
    )
    scan.set_defaults(run=_scan)
    scan.add_argument("--port", action="append", default=[], metavar="DEV", help="serial port; several times (default: all)")
    scan.add_argument("--family", choices=FAMILIES, help="only this family of servos (default: all)")
    scan.add_argument("--baud-rate", type=int, action="append", default=[], metavar="N", help="only these, bit/s (default: all)")
    scan.add_argument("--json", type=Path, metavar="FILE", help="write what was found as JSON")
    setup = commands.add_parser(
        "setup",
        help="give the servos of a robot their IDs and baud rate",
        description="For each joint of the robot's file: asks for its servo to be connected alone, finds it whatever its ID and "
        "baud rate, and gives it those of the file.",
    )
    setup.set_defaults(run=_set_up)
    setup.add_argument(
        "--joint", action="append", default=[], metavar="NAME", help="only this joint; several times (default: all)"
    )
    calibrate = commands.add_parser(
        "calibrate",
        help="learn zero, range and direction of all joints by hand",
        description="With the torque off, a person moves the joints: to the middle, from end to end, to the zero pose, and each "
        "a little in its positive direction. Writes the robot's file with what was learned.",
    )
    calibrate.set_defaults(run=_calibrate)
    calibrate.add_argument("--out", type=Path, required=True, metavar="FILE", help="robot file to write; must not exist")
    calibrate.add_argument(
        "--margin",
        type=float,
        default=0.03,
        metavar="RAD",
        help="to stay away from the ends of the ranges (default: %(default)s)",
    )
    for command in (setup, calibrate):
        command.add_argument("--robot", type=Path, required=True, metavar="FILE", help="the robot")
        command.add_argument("--port", metavar="DEV", help="serial port, instead of the one in the robot's file")


def _scan(args: argparse.Namespace) -> int:
    families = [find_family(name) for name in ([args.family] if args.family else FAMILIES)]
    found = scan(args.port, families, args.baud_rate, Terminal())
    for port, servos in found.items():
        print(f"{port}: {len(servos) or 'no'} servos")
        for servo in servos:
            print(f"  {_describe_servo(servo)}")
    if args.json is not None:
        _write_json(args.json, {port: [dataclasses.asdict(servo) for servo in servos] for port, servos in found.items()})
    return 0 if any(found.values()) else 1


def _describe_servo(servo: FoundServo) -> str:
    known = [servo.model or f"unknown model {servo.model_number}"]
    if servo.position is not None:
        known.append(f"at {servo.position:.3f} rad")
    if servo.voltage is not None:
        known.append(f"{servo.voltage:.1f} V")
    if servo.temperature is not None:
        known.append(f"{servo.temperature:.0f} deg C")
    if servo.torque_on:
        known.append("torque on")
    return f"ID {servo.id:3} at {servo.baud_rate} baud: {servo.family} {', '.join(known)}"


def _set_up(args: argparse.Namespace) -> int:
    set_up_robot(_load_robot(args), args.joint, Terminal())
    return 0


def _calibrate(args: argparse.Namespace) -> int:
    if args.out.exists():
        raise ConfigError(f"{args.out} exists already; choose another file, so that no calibration is lost")
    robot = calibrate_robot(_load_robot(args), Terminal(), margin=args.margin)
    write_robot(robot, args.out)
    print(args.out)
    return 0


def _find_policy(args: argparse.Namespace, robot: RobotConfig, *, runs: bool) -> tuple[Path, ReleaseWatch | None]:
    """Return the policy to begin with and, with a store, what looks for the next; only a run remembers what it sees."""
    if args.store is None:
        return args.policy, None
    if not args.trust:
        raise ConfigError("--store needs --trust KEY.pub: a release is only believed if a key that you trust has signed it")
    state = Path(os.environ.get("XDG_STATE_HOME") or Path.home() / ".local" / "state") / "dpg-robot"
    memory = args.release_memory or state / f"{robot.name}.json"
    releases = ReleaseWatch(args.store, [TrustedKey.load(path) for path in args.trust], robot, memory)
    if runs:
        releases.begin_run()
    return releases.first_policy(), releases


def _run(args: argparse.Namespace) -> int:
    robot = _load_robot(args)
    policy, releases = _find_policy(args, robot, runs=not args.shadow)
    settings = RunSettings(
        robot=robot,
        policy=policy,
        log_folder=args.log,
        episodes=args.episodes,
        episode_seconds=robot.episode_seconds if args.episode_seconds is None else args.episode_seconds,
        exploration=args.explore,
        seed=args.seed,
        shadow=args.shadow,
    )
    result = supervise(settings, quiet=args.quiet, releases=releases)
    if args.json is not None:
        _write_json(args.json, result.summary)
    for line in _describe(result.summary):
        print(line)
    print(f"robot: {result.exit_reason}; log in {result.folder}", file=sys.stderr)
    return result.exit_code


def _check(args: argparse.Namespace) -> int:
    robot = _load_robot(args)
    policy, _ = _find_policy(args, robot, runs=False)
    results = check_robot(robot, policy)
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
    periodicity = loop["periodicity"]
    lines.append(
        f"periodicity {periodicity['level']}: mean rate {periodicity['mean_error_hz']:.2f} Hz off, "
        f"standard deviation {periodicity['std_hz']:.2f} Hz"
    )
    return lines


def _write_json(path: Path, values: dict[str, Any]) -> None:
    write_atomically(path, (json.dumps(values, indent=2) + "\n").encode())


if __name__ == "__main__":
    sys.exit(main())
