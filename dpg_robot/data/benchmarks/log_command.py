"""The command ``log`` of the benchmark program: kills of processes that record, and what of their logs is left."""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path
from statistics import median
from typing import Any

from tqdm import tqdm

from dpg_robot.data.benchmarks.log_kills import MOST_LOST_S, VICTIMS, Kill, carry_out


def add_log_arguments(commands: Any) -> None:
    """Add the command ``log`` to the sub-commands of a parser."""
    parser = commands.add_parser(
        "log",
        help="robot logs of which the writer, the robot or both were killed: what is lost?",
        description="A robot of made-up values records through the real ring and log process, and one of them, or both, is "
        f"killed (SIGKILL) at a random time. At most {MOST_LOST_S:g} s before the kill may be missing, nothing in between; the "
        "log must be recovered without help, and MCAP's own reader must open what was recovered.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument("--kills", type=int, default=100, metavar="N", help="number of kills, each of a new run")
    parser.add_argument("--seed", type=int, default=0, help="seed of victims and times")
    parser.add_argument("--rate", type=float, default=1000.0, metavar="HZ", help="records per second, Hz")
    parser.add_argument("--channels", type=int, default=64, metavar="N", help="measurements in a record")
    parser.add_argument("--quiet", action="store_true", help="show no progress")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the results and facts about the machine to FILE too")
    parser.set_defaults(run=run_log_kills)


def run_log_kills(arguments: argparse.Namespace) -> dict[str, Any]:
    """Carry out all kills, print the table, and return everything; ``failed`` names all violations."""
    for name in ("kills", "rate", "channels"):
        if getattr(arguments, name) <= 0:
            raise ValueError(f"{name} must be more than 0, got {getattr(arguments, name)}")
    kills = []
    for number in tqdm(range(arguments.kills), unit="kill", disable=arguments.quiet):
        with tempfile.TemporaryDirectory(prefix="dpg-log-") as folder:
            kills.append(carry_out(arguments.seed, number, arguments.rate, arguments.channels, Path(folder)))
    print(describe(kills))
    return {
        "settings": {name: getattr(arguments, name) for name in ("kills", "seed", "rate", "channels")},
        "kills": [kill.to_dict() for kill in kills],
        "failed": [f"kill {number}: {violation}" for number, kill in enumerate(kills) for violation in kill.violations],
    }


def describe(kills: list[Kill]) -> str:
    """Return the table of what was lost, and every violation."""
    lines = []
    for victim in VICTIMS:
        lost = [1e3 * kill.lost_s for kill in kills if kill.victim == victim]
        if lost:
            lines.append(f"{victim}: {len(lost)} kills, lost before it: {median(lost):.0f} ms (p50), {max(lost):.0f} ms (max)")
    total = sum(len(kill.violations) for kill in kills)
    lines.append(
        f"{sum(kill.records for kill in kills):,} records in {sum(kill.segments for kill in kills)} segments, {total} violations"
    )
    lines += [f"  kill {number} ({kill.victim}): {text}" for number, kill in enumerate(kills) for text in kill.violations]
    return "\n".join(lines)
