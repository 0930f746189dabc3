"""The command ``bus`` of the benchmark program: late answers, and the time of a control cycle, on servo buses."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from statistics import fmean
from typing import Any

from dpg_robot.errors import unknown_name
from dpg_robot.versions import installed_versions
from hw_drivers.benchmarks import bus_cycle
from hw_drivers.benchmarks.bus_cycle import CYCLES_BEFORE, Setup
from hw_drivers.benchmarks.families import DYNAMIXEL, FEETECH
from hw_drivers.benchmarks.late_answers import (
    BAUD_RATE,
    PERIOD_NS,
    SCENARIO_TEXTS,
    SCENARIOS,
    Outcome,
    run_on_terminal,
    run_simulated,
)
from hw_drivers.benchmarks.readers import DEADLINE_NS, READERS, Reader
from hw_drivers.benchmarks.text_table import text_table

_PACKAGES = ("dpg-robot", "pyserial", "dynamixel-sdk", "feetech-servo-sdk")
_MOST_SERVOS = 20
_DELAY_UNIT_US = 2
_MOST_DELAY_US = 508
_CYCLE_BUSES = ((DYNAMIXEL, 1_000_000), (DYNAMIXEL, 4_000_000), (FEETECH, 1_000_000))

Progress = Callable[[int], object]


def add_bus_arguments(commands: Any) -> None:
    """Add the command ``bus`` and its parts to the sub-commands of a parser."""
    parser = commands.add_parser(
        "bus", help="servo buses: wrong values from late answers, and the time of a control cycle, on emulated servos"
    )
    parts = parser.add_subparsers(dest="part", required=True, metavar="PART")
    _add_late(parts)
    _add_cycle(parts)


def run_late(arguments: argparse.Namespace) -> dict[str, Any]:
    """Run the campaigns, print a table for each, and return all that was counted."""
    for name in arguments.scenarios:
        if name not in SCENARIOS:
            raise unknown_name("scenario", name, SCENARIOS)
    _check_servos([arguments.servos])
    _check_counts(reads=arguments.reads)
    readers, absent = _available_readers()
    campaigns = [("simulated", name, run_simulated, arguments.reads) for name in arguments.scenarios]
    if arguments.terminal_reads:
        campaigns.append(("terminal", "late", run_on_terminal, arguments.terminal_reads))
    results = []
    with _progress(len(readers) * sum(reads for *_, reads in campaigns), arguments.quiet) as progress:
        for time, name, run, reads in campaigns:
            done = {reader: run(reader, SCENARIOS[name], reads, arguments.servos, arguments.seed, progress) for reader in readers}
            results.append({"time": time, "scenario": name, "faults": SCENARIO_TEXTS[name], "outcomes": _named(done)})
    print("\n\n".join(_late_text(entry, arguments.servos) for entry in results))
    print("".join(f"\nleft out: {text}" for text in absent), end="")
    settings = {name: getattr(arguments, name) for name in ("reads", "servos", "scenarios", "terminal_reads", "seed")}
    settings |= {"baud_rate": BAUD_RATE, "period_s": PERIOD_NS * 1e-9, "deadline_s": DEADLINE_NS * 1e-9}
    return _provenance(arguments) | {"settings": settings, "left_out": absent, "campaigns": results}


def run_cycle(arguments: argparse.Namespace) -> dict[str, Any]:
    """Measure the cycles, print the tables, and return all that was measured."""
    _check_servos(arguments.servos)
    _check_counts(cycles=arguments.cycles)
    for delay in arguments.return_delays_us:
        if not 0 <= delay <= _MOST_DELAY_US or delay % _DELAY_UNIT_US:
            raise ValueError(f"a return delay must be an even number of microseconds up to {_MOST_DELAY_US}, got {delay}")
    setups = [
        Setup(family, servos, baud_rate, delay // _DELAY_UNIT_US)
        for family, baud_rate in _CYCLE_BUSES
        for servos in arguments.servos
        for delay in arguments.return_delays_us
    ]
    buses = []
    with _progress(len(setups) * (arguments.cycles + arguments.terminal_cycles), arguments.quiet) as progress:
        for setup in setups:
            buses.append(_measure_bus(setup, arguments.cycles, arguments.terminal_cycles, progress))
    print(_cycle_text(buses), _silence_text(buses), sep="\n\n")
    settings = {name: getattr(arguments, name) for name in ("servos", "cycles", "return_delays_us", "terminal_cycles")}
    return _provenance(arguments) | {"settings": settings, "buses": buses}


def _add_late(parts: Any) -> None:
    parser = parts.add_parser(
        "late",
        help="how many wrong values are taken for valid when answers come late, split, twice or not at all",
        description="Read emulated servos through faults and count the wrong values that are accepted: ours, and the vendors' "
        "libraries (dynamixel-sdk, feetech-servo-sdk) where they are installed. The k-th answer of a servo has the same fault "
        "for all. Time is simulated; a smaller campaign runs in real time through a pseudo-terminal.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument("--reads", type=int, default=10_000, metavar="N", help="reads of all servos in each campaign")
    parser.add_argument("--servos", type=int, default=6, metavar="N", help="servos on the bus")
    text = "; ".join(f"{name}: {text}" for name, text in SCENARIO_TEXTS.items()).replace("%", "%%")
    parser.add_argument("--scenarios", nargs="+", default=list(SCENARIOS), metavar="NAME", help=text)
    parser.add_argument(
        "--terminal-reads", type=int, default=500, metavar="N", help="reads in real time, with the faults 'late'; 0 for none"
    )
    parser.add_argument("--seed", type=int, default=0, help="seed of the faults")
    _add_output(parser, run_late)


def _add_cycle(parts: Any) -> None:
    parser = parts.add_parser(
        "cycle",
        help="time of a control cycle beside the least that its bytes need on the wire, also with a silent servo",
        description="Read position, velocity and current of all servos and write all goals, again and again: time in simulated "
        "time, exact, beside the least time of the bytes on the wire and the return delays; with a servo that falls silent; and "
        "in real time through a pseudo-terminal, which depends on this machine.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument("--servos", type=int, nargs="+", default=[6, 12], metavar="N", help="servos on the bus")
    parser.add_argument("--cycles", type=int, default=1000, metavar="N", help="cycles in simulated time")
    parser.add_argument(
        "--return-delays-us", type=int, nargs="+", default=[0, 500], metavar="TIME", help="return delay of each servo, us"
    )
    parser.add_argument("--terminal-cycles", type=int, default=1000, metavar="N", help="cycles in real time; 0 for none")
    _add_output(parser, run_cycle)


def _add_output(parser: argparse.ArgumentParser, run: Callable[[argparse.Namespace], dict[str, Any]]) -> None:
    parser.add_argument("--quiet", action="store_true", help="show no progress")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the results and facts about the machine to FILE too")
    parser.set_defaults(run=run)


def _available_readers() -> tuple[list[Reader], list[str]]:
    absent = [f"{reader.family.name}, {reader.name} (not installed; {reader.missing})" for reader in READERS if reader.missing]
    return [reader for reader in READERS if not reader.missing], absent


def _named(outcomes: dict[Reader, Outcome]) -> list[dict[str, Any]]:
    return [{"family": reader.family.name, "reader": reader.name, **outcome.to_dict()} for reader, outcome in outcomes.items()]


def _measure_bus(setup: Setup, cycles: int, terminal_cycles: int, progress: Progress) -> dict[str, Any]:
    simulated = bus_cycle.simulate(setup, cycles)
    progress(cycles)
    silences = {
        name: [asdict(cycle) for cycle in bus_cycle.simulate_silence(setup, silent)]
        for name, silent in (("first", 0), ("last", setup.servos - 1))
    }
    return {
        "family": setup.family.name,
        "model": setup.family.model,
        "servos": setup.servos,
        "baud_rate": setup.baud_rate,
        "return_delay_s": setup.return_delay * _DELAY_UNIT_US * 1e-6,
        "least_s": setup.least_s(),
        "least_with_fast_sync_read_s": setup.least_fast_s(),
        "simulated": asdict(simulated),
        "ratio": simulated.mean_s / setup.least_s(),
        "largest_ratio": simulated.longest_s / setup.least_s(),
        "silent_servo": silences,
        "terminal": asdict(bus_cycle.measure(setup, terminal_cycles, progress)) if terminal_cycles else None,
    }


def _late_text(entry: dict[str, Any], servos: int) -> str:
    outcomes = entry["outcomes"]
    kinds = list(outcomes[0]["wrong"])
    rows = [["family", "read by", "asked", "accepted", "wrong", *kinds, "raised", "mean ms", "longest ms"]]
    for outcome in outcomes:
        counts = [outcome["asked"], outcome["accepted"], outcome["wrong_accepted"], *(outcome["wrong"][kind] for kind in kinds)]
        times = [f"{outcome[name] * 1e3:.1f}" for name in ("mean_s", "longest_s")]
        row = [outcome["family"], outcome["reader"], *(f"{count:,}" for count in (*counts, outcome["raised"])), *times]
        rows.append(row)
    title = f"{entry['scenario']}, {entry['time']} time: {outcomes[0]['reads']:,} reads of {servos} servos; {entry['faults']}"
    return "\n".join([title, "", *text_table(rows)])


def _cycle_text(buses: Sequence[dict[str, Any]]) -> str:
    rows = [
        [
            *("family", "Mbit/s", "servos", "delay us", "least ms", "mean ms", "longest ms", "ratio", "largest"),
            *("least, fast read ms", "terminal p50 ms", "p99 ms", "read"),
        ]
    ]
    for bus in buses:
        fast, terminal = bus["least_with_fast_sync_read_s"], bus["terminal"]
        times = (bus["least_s"], bus["simulated"]["mean_s"], bus["simulated"]["longest_s"])
        real = (
            [_ms(terminal["p50_s"]), _ms(terminal["p99_s"]), f"{terminal['valid'] / terminal['asked']:.2%}"] if terminal else []
        )
        rows.append(
            [
                *(*_bus_cells(bus), *map(_ms, times), f"{bus['ratio']:.3f}", f"{bus['largest_ratio']:.3f}"),
                *("" if fast is None else _ms(fast), *(real or [""] * 3)),
            ]
        )
    return "\n".join(["read all and write all; 'ratio' is mean over least, in simulated time", "", *text_table(rows)])


def _silence_text(buses: Sequence[dict[str, Any]]) -> str:
    """Return, for a servo that falls silent, the times of cycles and how many servos were read in them."""
    rows = [["family", "Mbit/s", "servos", "delay us", "silent", "before", "falls silent", "next", "second", "later, mean"]]
    for bus in buses:
        for name, cycles in bus["silent_servo"].items():
            before, after = cycles[:CYCLES_BEFORE], cycles[CYCLES_BEFORE:]
            cells = [f"{_ms(cycle['time_s'])} ms, {cycle['valid']} read" for cycle in after[:3]]
            steady = [
                f"{_ms(fmean(cycle['time_s'] for cycle in some))} ms, {min(cycle['valid'] for cycle in some)} read"
                for some in (before, after[3:])
            ]
            rows.append([*_bus_cells(bus), name, steady[0], *cells, steady[1]])
    return "\n".join(["one servo falls silent, in simulated time", "", *text_table(rows)])


def _bus_cells(bus: dict[str, Any]) -> list[str]:
    delay = f"{bus['return_delay_s'] * 1e6:.0f}"
    return [bus["family"], f"{bus['baud_rate'] / 1e6:g}", str(bus["servos"]), delay]


def _ms(seconds: float) -> str:
    return f"{seconds * 1e3:.2f}"


def _provenance(arguments: argparse.Namespace) -> dict[str, Any]:
    return {"part": arguments.part, "versions": installed_versions(_PACKAGES)}


def _check_servos(counts: Sequence[int]) -> None:
    for count in counts:
        if not 1 <= count <= _MOST_SERVOS:
            raise ValueError(f"servos must be 1 to {_MOST_SERVOS}, got {count}")


def _check_counts(**counts: int) -> None:
    for name, count in counts.items():
        if count < 1:
            raise ValueError(f"{name} must be 1 or more, got {count}")


@contextmanager
def _progress(total: int, quiet: bool) -> Iterator[Progress]:
    """Give a function that takes the work done since its last call and keeps a line on stderr up to date."""
    done, shown = 0, -1

    def add(count: int) -> None:
        nonlocal done, shown
        done += count
        percent = 100 * done // total
        if percent != shown and not quiet:
            shown = percent
            print(f"\r{percent:3d} %", end="", file=sys.stderr, flush=True)

    try:
        yield add
    finally:
        if not quiet:
            print(file=sys.stderr)
