#!/usr/bin/env python
"""Robot logs and data sets: check, recover, describe, convert, plot, and report what looks wrong in them."""

from __future__ import annotations

import argparse
import dataclasses
import json
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from dpg_robot.config import describe_settings, load_config
from dpg_robot.data.csv_format import write_csv
from dpg_robot.data.datasets import Dataset, DatasetError, first_difference
from dpg_robot.data.episode_source import Survey, read_all, survey
from dpg_robot.data.lerobot_format import write_lerobot
from dpg_robot.data.lerobot_source import LeRobotSource
from dpg_robot.data.log_figure import draw_log
from dpg_robot.data.log_recovery import recover_log
from dpg_robot.data.log_source import RewardFunction
from dpg_robot.data.log_summary import summarize_log
from dpg_robot.data.mapping import DatasetMapping
from dpg_robot.data.minari_format import read_dataset, write_dataset
from dpg_robot.data.open_source import find_kind, open_source
from dpg_robot.data.robot_log import check_log, find_runs, read_contract
from dpg_robot.data.validity import examine, examine_log
from dpg_robot.deploy.safety import SafetyFlag
from dpg_robot.errors import DpgError
from dpg_robot.files import write_atomically

_FORMATS = ("minari", "lerobot", "csv")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit code."""
    args = build_parser().parse_args(arguments)
    try:
        code, facts = args.run(args)
        if getattr(args, "json", None) is not None:
            write_atomically(args.json, (json.dumps(facts, indent=1) + "\n").encode())
        return int(code)
    except (DpgError, OSError) as error:
        print(f"data: {error}", file=sys.stderr)
        return 1
    except MemoryError as error:
        print(f"data: {args.path} is too large for the memory of this machine, or damaged: {error}", file=sys.stderr)
        return 1


def build_parser() -> argparse.ArgumentParser:
    """Return the parser with all subcommands."""
    parser = argparse.ArgumentParser(prog="data.py", description=__doc__)
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    check = _command(commands, "check", _check, "is everything there and undamaged? Exit code 1 if anything is lost")
    check.add_argument("path", type=Path, help="robot log (log or run folder) or data set")
    info = _command(commands, "info", _info, "what is it: run ids, channels, duration, counts, policies")
    info.add_argument("path", type=Path, help="robot log or data set")
    recover = _command(commands, "recover", _recover, "write a clean copy of what can be read of a damaged robot log")
    recover.add_argument("path", type=Path, help="robot log; it is only read")
    recover.add_argument("--out", type=Path, required=True, metavar="DIR", help="new log folder; must not exist")
    plot = _command(commands, "plot", _plot, "draw a run: channels over time (s), commands and safety events")
    plot.add_argument("path", type=Path, help="run folder")
    plot.add_argument("--out", type=Path, required=True, metavar="PNG", help="picture to write; must not exist")
    report = _command(commands, "report", _report, "what looks wrong: gaps, jumps, saturation, units. Exit code 1 at errors")
    report.add_argument("path", type=Path, help="robot log or data set")
    _add_conversion_commands(commands)
    for command in (check, info, report):
        _add_reading_arguments(command)
    return parser


def _command(commands: Any, name: str, run: Any, help: str) -> argparse.ArgumentParser:
    command: argparse.ArgumentParser = commands.add_parser(name, help=help, description=f"{help[0].upper()}{help[1:]}.")
    command.set_defaults(run=run)
    command.add_argument("--json", type=Path, metavar="FILE", help="write what was found as JSON")
    return command


def _add_conversion_commands(commands: Any) -> None:
    export = _command(commands, "export", _convert, "convert a robot log or a data set, and read the result back to compare")
    export.add_argument("path", type=Path, help="robot log or data set")
    export.add_argument("--to", choices=_FORMATS, required=True, help="format to write")
    taken = _command(commands, "import", _convert, "take in a file of others, and read the result back to compare")
    taken.add_argument(
        "path", type=Path, help="LeRobot folder (v3.0, v2.1), D4RL or robomimic HDF5 file, MCAP file, Minari folder"
    )
    taken.add_argument("--to", choices=_FORMATS, default="minari", help="format to write (default: %(default)s)")
    for command in (export, taken):
        command.add_argument(
            "--out",
            type=Path,
            required=True,
            metavar="PATH",
            help="minari: folder of all data sets; lerobot: the data set's folder; csv: the file. Nothing is overwritten",
        )
        command.add_argument("--name", metavar="ID", help="id of the data set, such as cartpole-swingup/robot-v0")
        command.add_argument("--task", metavar="NAME", help="robot log: task that gives the rewards (default: the contract's)")
        command.add_argument("--without-rewards", action="store_true", help="robot log: leave rewards unknown")
        command.add_argument("--skip-damage", action="store_true", help="robot log: use what can be read of a damaged one")
        _add_reading_arguments(command)


def _add_reading_arguments(command: argparse.ArgumentParser) -> None:
    command.add_argument("--mapping", type=Path, metavar="YAML", help="what the columns of somebody else's file mean")
    command.add_argument(
        "--rate-hz", type=float, default=20.0, metavar="HZ", help="control rate where nothing else says it (default: %(default)s)"
    )
    command.formatter_class = argparse.RawDescriptionHelpFormatter
    settings = "\n".join(f"  {line}" for line in describe_settings(DatasetMapping))
    command.epilog = f"a mapping (--mapping, see configs/datasets and docs/datasets.md):\n{settings}"


def _check(args: argparse.Namespace) -> tuple[int, dict[str, Any]]:
    if find_kind(args.path) == "log":
        report = check_log(args.path)
        print(report)
        runs = [{**dataclasses.asdict(run), "folder": str(run.folder)} for run in report.runs]
        return (0 if report.contiguous else 1), {"contiguous": report.contiguous, "runs": runs}
    found = survey(open_source(args.path, _mapping(args), rate_hz=args.rate_hz))
    print(found)
    _print_notes(found.notes)
    return 0, _facts(found)


def _info(args: argparse.Namespace) -> tuple[int, dict[str, Any]]:
    kind = find_kind(args.path)
    if kind == "log":
        runs = summarize_log(args.path)
        for run in runs:
            print(run)
            events = ", ".join(f"{_SAFETY_NAMES.get(bit, bit)} {count}" for bit, count in run.safety.items())
            print(f"  safety: {events or 'no events'}")
        return 0, {"kind": kind, "runs": [run.to_dict() for run in runs]}
    found = survey(open_source(args.path, _mapping(args), rate_hz=args.rate_hz))
    contract = found.contract
    print(f"{kind}: {found}")
    print(f"  observed: {', '.join(f'{each.kind} {each.channel}' for each in contract.features)}")
    print(f"  actions: {', '.join(f'{each.name} {each.low:g} to {each.high:g} {each.unit}' for each in contract.commands)}")
    _print_notes(found.notes)
    return 0, {"kind": kind, **_facts(found), "contract": contract.to_dict(), "settings": found.settings}


def _recover(args: argparse.Namespace) -> tuple[int, dict[str, Any]]:
    recovery = recover_log(args.path, args.out)
    print(recovery)
    print(f"nothing is lost; copy in {args.out}" if recovery.complete else f"copy of what could be read in {args.out}")
    after = {
        run.run_id: {"records": run.records, "missing": run.missing} for run in (recovery.after.runs if recovery.after else ())
    }
    problems = {run.run_id: run.problems for run in recovery.before.runs}
    facts = {"complete": recovery.complete, "recovered": after, "problems": problems, "not_recovered": recovery.without_contract}
    return (0 if recovery.complete else 1), facts


def _plot(args: argparse.Namespace) -> tuple[int, dict[str, Any]]:
    print(draw_log(args.path, args.out, _SAFETY_NAMES))
    return 0, {"picture": str(args.out)}


def _report(args: argparse.Namespace) -> tuple[int, dict[str, Any]]:
    if find_kind(args.path) == "log":
        report = examine_log(args.path)
    else:
        report = examine(open_source(args.path, _mapping(args), rate_hz=args.rate_hz))
    print(report)
    return (1 if report.count("error") else 0), report.to_dict()


def _convert(args: argparse.Namespace) -> tuple[int, dict[str, Any]]:
    is_log = find_kind(args.path) == "log"
    reward = _find_reward(args) if is_log and not args.without_rewards else None
    on_damage = "skip" if args.skip_damage else "raise"
    source = open_source(args.path, _mapping(args), reward=reward, rate_hz=args.rate_hz, on_damage=on_damage)  # type: ignore[arg-type]
    dataset, notes = read_all(source, args.name or _default_name(source.name, source.contract.task, is_log))
    written = _write(dataset, args.to, args.out)
    if args.to != "csv":
        back = read_dataset(written) if args.to == "minari" else read_all(LeRobotSource(written))[0]
        if difference := first_difference(dataset, back):
            raise DatasetError(f"what was written to {written} does not read back the same: {difference}; do not use it")
    print(dataset.describe())
    _print_notes(notes)
    print(written)
    counts = {"name": dataset.name, "transitions": len(dataset), "episodes": len(dataset.episodes)}
    return 0, {**counts, "returns": dataset.returns.tolist(), "notes": notes, "written": str(written)}


def _write(dataset: Dataset, form: str, out: Path) -> Path:
    if form == "minari":
        return write_dataset(dataset, out)
    return write_lerobot(dataset, out) if form == "lerobot" else write_csv(dataset, out)


def _find_reward(args: argparse.Namespace) -> RewardFunction:
    """Return the reward of a robot log's task; only this needs the simulation."""
    task = args.task or read_contract(find_runs(args.path)[0]).task
    try:
        from sim.tasks import make_task
        from sim.tasks.task import NoMeasuredRewardError
    except ImportError as error:
        raise DatasetError(
            f"rewards come from the task's definition, which needs the simulation ({error}); use --without-rewards"
        ) from error
    measured_reward = make_task(task).measured_reward

    def reward(next_measurement: Any, action: Any) -> Any:
        try:
            return measured_reward(next_measurement, action)
        except NoMeasuredRewardError as error:
            raise DatasetError(f"{error}; or use --without-rewards") from error

    return reward


def _mapping(args: argparse.Namespace) -> DatasetMapping | None:
    return None if args.mapping is None else load_config(DatasetMapping, args.mapping)


def _default_name(name: str, task: str, is_log: bool) -> str:
    """Return an id of Minari's form: the data set's own where it has that form."""
    if re.fullmatch(r"([-\w]+/)*[-\w]+-v\d+", name):
        return name
    group = re.sub(r"[^-\w]+", "-", task).strip("-") or "unknown"
    return f"{group}/{'robot' if is_log else 'imported'}-v0"


def _facts(found: Survey) -> dict[str, Any]:
    counts = {"name": found.name, "transitions": found.transitions, "episodes": found.episodes}
    return {**counts, "returns": found.returns, "notes": found.notes}


def _print_notes(notes: dict[str, int]) -> None:
    for note, count in notes.items():
        print(f"note: {count} times: {note}")


_SAFETY_NAMES = {int(flag): (flag.name or str(int(flag))).lower() for flag in SafetyFlag}


if __name__ == "__main__":
    sys.exit(main())
