"""The command ``ship`` of the benchmark program: is anything lost or doubled on the way, how long does it take, how much goes?"""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path
from typing import Any

from dpg_robot.data.log_writer import FLUSH_INTERVAL_S
from dpg_robot.shipping.benchmarks.calm_measurements import measure_latency, measure_throughput, median
from dpg_robot.shipping.benchmarks.kill_campaign import Campaign, run_campaign

PARTS = ("kills", "latency", "throughput")


def add_ship_arguments(commands: Any, launch: Path) -> None:
    """Add the command ``ship`` to the sub-commands of a parser; ``launch`` is the folder of the programs."""
    parser = commands.add_parser(
        "ship",
        help="shipping of robot logs: kills and cuts, latency, throughput",
        description="Three measurements in real processes on this machine, over a NATS server. kills: a robot records through "
        "the real ring and log process while sender, server and receiver are killed at random, started again, and the link is "
        "cut; at the end every record of the log must be in the store once, in order, in files that are equal byte for byte. "
        "latency: from the time of a record until the robot knows that it is on the host's disk. throughput: shipping of an "
        "existing log, beside a bare JetStream publish of the same bytes.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument("--seed", type=int, default=0, help="seed of the records and of the campaign")
    parser.add_argument("--only", choices=PARTS, action="append", default=[], help="only this measurement; several times")
    parser.add_argument("--seconds", type=float, default=60.0, metavar="S", help="time that the robot records under kills, s")
    parser.add_argument("--kills", type=int, default=5, metavar="N", help="kills of each of the three processes")
    parser.add_argument("--cut", type=float, default=20.0, metavar="S", help="time that the link is cut, s")
    parser.add_argument("--rate", type=float, default=1000.0, metavar="HZ", help="records per second, Hz")
    parser.add_argument("--channels", type=int, default=64, metavar="N", help="measurements in a record")
    parser.add_argument("--latency-seconds", type=float, default=20.0, metavar="S", help="time that the robot records in calm, s")
    parser.add_argument("--records", type=int, default=40_000, metavar="N", help="records of the log for the throughput")
    parser.add_argument("--rounds", type=int, default=3, metavar="N", help="rounds of the throughput, ours and bare in turn")
    parser.add_argument("--quiet", action="store_true", help="show no progress")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the results and facts about the machine to FILE too")
    parser.set_defaults(run=lambda arguments: run_ship(arguments, launch / "ship.py"))


def run_ship(arguments: argparse.Namespace, program: Path) -> dict[str, Any]:
    """Carry out what was asked for, print it, and return it; ``failed`` names all violations."""
    for name in ("seconds", "rate", "channels", "latency_seconds", "records", "rounds"):
        if getattr(arguments, name) <= 0:
            raise ValueError(f"{name} must be more than 0, got {getattr(arguments, name)}")
    if arguments.kills < 0 or arguments.cut < 0:
        raise ValueError("kills and cut must not be negative")
    names = ("seed", "seconds", "kills", "cut", "rate", "channels", "latency_seconds", "records", "rounds")
    result: dict[str, Any] = {"settings": {name: getattr(arguments, name) for name in names}, "failed": []}
    measurements = {"kills": _kills, "latency": _latency, "throughput": _throughput}
    for part in arguments.only or PARTS:
        with tempfile.TemporaryDirectory(prefix="dpg-ship-") as folder:
            _progress(arguments, f"{part}:")
            result[part] = measurements[part](arguments, Path(folder) / part, program, result["failed"])
    return result


def _kills(arguments: argparse.Namespace, folder: Path, program: Path, failed: list[str]) -> dict[str, Any]:
    campaign = Campaign(arguments.seed, arguments.seconds, arguments.rate, arguments.channels, arguments.kills, arguments.cut)
    done = run_campaign(campaign, folder, program, lambda text: _progress(arguments, text))
    failed += done["violations"]
    events = ", ".join(f"{name} {count}" for name, count in done["events"].items() if name != "mend")
    print(f"kills: {done['pushed']:,} records, {done['bytes'] / 1e6:.0f} MB; {events}; link cut for {arguments.cut:.0f} s")
    print(f"  all confirmed {done['drained_s']:.1f} s after the robot's end; {len(done['violations'])} violations")
    for violation in done["violations"]:
        print(f"  violation: {violation}")
    return done


def _latency(arguments: argparse.Namespace, folder: Path, program: Path, failed: list[str]) -> dict[str, Any]:
    found = measure_latency(folder, program, arguments.latency_seconds, arguments.rate, arguments.channels, arguments.seed)
    if found["unconfirmed"]:
        failed.append(f"latency: {found['unconfirmed']} records were not confirmed")
    times = ", ".join(f"{name} {1e3 * found[name]:.0f} ms" for name in ("p50", "p90", "p99", "max"))
    print(f"latency of {found['records']:,} records: {times}; the log itself is flushed every {1e3 * FLUSH_INTERVAL_S:.0f} ms")
    return found


def _throughput(arguments: argparse.Namespace, folder: Path, program: Path, failed: list[str]) -> dict[str, Any]:
    found = measure_throughput(folder, program, arguments.records, arguments.channels, arguments.seed, arguments.rounds)
    ours, bare = median(found["ours_per_s"]), median(found["bare_per_s"])
    per_record = found["bytes"] / found["records"]
    found |= {"ratio": ours / bare}
    print(
        f"throughput: {ours:,.0f} transitions/s ({ours * per_record / 1e6:.0f} MB/s) until on the host's disk and confirmed; "
        f"bare publish {bare:,.0f} ({bare * per_record / 1e6:.0f} MB/s); ratio {ours / bare:.2f}"
    )
    return found


def _progress(arguments: argparse.Namespace, text: str) -> None:
    if not arguments.quiet:
        print(text, file=sys.stderr, flush=True)
