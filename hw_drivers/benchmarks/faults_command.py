"""The command ``faults`` of the benchmark program: campaigns of faults against the whole stack, in real processes."""

from __future__ import annotations

import argparse
import json
import sys
import traceback
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path
from random import Random
from statistics import median
from threading import Event
from typing import Any

from dpg_robot.errors import DpgError, unknown_name
from hw_drivers.benchmarks.faults_campaign import STACKS, run_campaign
from hw_drivers.benchmarks.faults_catalogue import all_kinds
from hw_drivers.benchmarks.text_table import text_table

_Key = tuple[int, int, str, tuple[str, ...]]


def add_fault_arguments(commands: Any, launch: Path) -> None:
    """Add the command ``faults`` to the sub-commands of a parser; ``launch`` is the folder of the programs."""
    parser = commands.add_parser(
        "faults",
        help="random faults against the robot's program on emulated servos: does every one end safely?",
        description="Each campaign starts emulated servos (an SO-101 with its physics, or Dynamixels) and the robot's program in "
        "real processes, and lets faults drawn from the seed happen at random times: on the wire, in servos and sensors, at the "
        "port, and to the processes. Checked are: no wrong value is taken for valid, no command is outside of the limits, every "
        "stop is in time and names its cause, the log is whole, and the next run starts. Results are kept, and continued from, "
        "in a file with a line for each campaign.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument("--seed", type=int, default=0, help="seed of all campaigns")
    parser.add_argument("--campaigns", type=int, default=10, metavar="K", help="number of campaigns")
    parser.add_argument("--faults", type=int, default=10, metavar="N", help="faults in each campaign")
    parser.add_argument("--jobs", type=int, default=1, metavar="N", help="campaigns at once; each takes some four processes")
    parser.add_argument("--stack", choices=STACKS, help="only this robot (default: they take turns)")
    parser.add_argument("--only", action="append", default=[], metavar="FAULT", help="only this fault; several times")
    parser.add_argument("--list", action="store_true", help="list the faults and end")
    parser.add_argument(
        "--results",
        type=Path,
        default=Path("faults.jsonl"),
        metavar="FILE",
        help="a line for each campaign; what is there is kept",
    )
    parser.add_argument("--keep", type=Path, metavar="DIR", help="keep logs and traces of campaigns with violations here")
    parser.add_argument("--quiet", action="store_true", help="show no progress")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the results and facts about the machine to FILE too")
    parser.set_defaults(run=lambda arguments: run_faults(arguments, launch))


def run_faults(arguments: argparse.Namespace, launch: Path) -> dict[str, Any]:
    """Carry out the campaigns that are not in the file of results yet, print the tables, and return all that was found."""
    kinds = all_kinds()
    for name in arguments.only:
        if name not in kinds:
            raise unknown_name("fault", name, kinds)
    for name in ("campaigns", "faults", "jobs"):
        if getattr(arguments, name) < 1:
            raise ValueError(f"{name} must be 1 or more, got {getattr(arguments, name)}")
    if arguments.list:
        print("\n".join(f"{name}: {kind.text} ({kind.expected})" for name, kind in kinds.items()))
        return {}
    plans = [plan_campaign(arguments, number) for number in range(arguments.campaigns)]
    done = {_key(line): line for line in _read(arguments.results)}
    left = [plan for plan in plans if _key(plan) not in done]
    failed = _carry_out(left, arguments, launch, done)
    lines = [done[_key(plan)] for plan in plans if _key(plan) in done]
    print(report(lines))
    result: dict[str, Any] = {"settings": {"seed": arguments.seed, "faults": arguments.faults}, "campaigns": lines}
    bad = [f"campaign {line['campaign']}: {line['violations']} violations" for line in lines if line["violations"]]
    return result | {"failed": [*failed, *bad]}


def _carry_out(
    left: Sequence[dict[str, Any]], arguments: argparse.Namespace, launch: Path, done: dict[_Key, dict[str, Any]]
) -> list[str]:
    """Carry out campaigns and keep their results as they come; returns those that could not be carried out."""
    failed, interrupted = [], Event()
    with ThreadPoolExecutor(arguments.jobs) as pool:
        futures = {
            pool.submit(
                run_campaign, plan["seed"], plan["campaign"], plan["stack"], plan["plan"], launch, arguments.keep, interrupted
            ): plan
            for plan in left
        }
        try:
            for count, future in enumerate(as_completed(futures), start=1):
                plan = futures[future]
                try:
                    line = {**future.result(), "plan": plan["plan"]}
                except (DpgError, OSError, AssertionError):
                    failed.append(f"campaign {plan['campaign']}")
                    traceback.print_exc()
                    continue
                done[_key(line)] = line
                _append(arguments.results, line)
                if not arguments.quiet:
                    print(f"{count} of {len(left)}: {_campaign_text(line)}", file=sys.stderr, flush=True)
        except BaseException:
            interrupted.set()
            pool.shutdown(wait=True, cancel_futures=True)
            raise
    return failed


def plan_campaign(arguments: argparse.Namespace, number: int) -> dict[str, Any]:
    """Return the stack and the names of the faults of a campaign, which follow from the seed and its number alone."""
    kinds = all_kinds()
    stack = arguments.stack or STACKS[number % len(STACKS)]
    names = [name for name in arguments.only or kinds if stack in kinds[name].stacks]
    random = Random(f"{arguments.seed} {number} {stack} plan")
    plan: list[str] = []
    while names and len(plan) < arguments.faults:
        plan += random.sample(names, min(len(names), arguments.faults - len(plan)))
    return {"seed": arguments.seed, "campaign": number, "stack": stack, "plan": plan}


def report(lines: Sequence[dict[str, Any]]) -> str:
    """Return the table of all faults, and every violation."""
    kinds = all_kinds()
    rows = [["fault", "robot", "expected", "done", "rode", "stopped", "starved", "p50 s", "max s", "bound s", "violations"]]
    for name, kind in kinds.items():
        for stack in STACKS:
            results = [each for line in lines if line["stack"] == stack for each in line["faults"] if each["kind"] == name]
            if results:
                rows.append([name, stack, kind.expected, *_cells(results)])
    faults = [each for line in lines for each in line["faults"]]
    violations = [
        f"campaign {line['campaign']} ({line['stack']}), {each['kind']}: {violation}"
        for line in lines
        for each in line["faults"]
        for violation in each["violations"]
    ]
    violations += [f"campaign {line['campaign']}: {each}" for line in lines for each in line["general_violations"]]
    total = (
        f"{len(lines)} campaigns, {len(faults)} faults, {sum(line['runs'] for line in lines)} runs, "
        f"{sum(line['values'] for line in lines):,} valid values compared, "
        f"{sum(line['goals'] for line in lines):,} goals checked, {len(violations)} violations"
    )
    return "\n".join([*text_table(rows), "", total, *violations])


def _cells(results: Sequence[dict[str, Any]]) -> list[str]:
    outcomes = [each["outcome"] for each in results]
    stops = [each["stop_s"] for each in results if each["stop_s"] is not None and each["outcome"] == "stops"]
    bound = max(each["bound_s"] for each in results)
    times = [f"{median(stops):.3f}", f"{max(stops):.3f}", f"{bound:.3f}"] if stops else ["", "", ""]
    counts = [len(results), *(outcomes.count(name) for name in ("rides", "stops", "starved"))]
    return [*map(str, counts), *times, str(sum(len(each["violations"]) for each in results))]


def _campaign_text(line: dict[str, Any]) -> str:
    what = f"{line['violations']} violations" if line["violations"] else "in order"
    return f"campaign {line['campaign']} ({line['stack']}), {len(line['faults'])} faults in {line['seconds']:.0f} s: {what}"


def _key(line: dict[str, Any]) -> _Key:
    return line["seed"], line["campaign"], line["stack"], tuple(line["plan"])


def _read(path: Path) -> Iterable[dict[str, Any]]:
    if not path.exists():
        return []
    # a line without an end was being written when the program was ended
    return [json.loads(line) for line in path.read_text().splitlines(keepends=True) if line.endswith("\n")]


def _append(path: Path, line: dict[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a") as file:
        file.write(json.dumps(line) + "\n")
