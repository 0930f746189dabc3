"""Serve an emulated robot on a pseudo-terminal, to try the robot side without hardware."""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

from dpg_robot.deploy.clock import request_real_time
from dpg_robot.files import write_atomically

_REAL_TIME_PRIORITY = 50


class Server(Protocol):
    """An emulated device behind a pseudo-terminal.

    Attributes:
        path: path of the pseudo-terminal.
    """

    path: str

    def serve(self, should_stop: Callable[[], bool]) -> None:
        """Answer requests until ``should_stop()``."""
        ...


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit code."""
    args = build_parser().parse_args(arguments)
    try:
        return int(args.run(args))
    except OSError as error:
        print(f"emulate: {error}", file=sys.stderr)
        return 1


def build_parser() -> argparse.ArgumentParser:
    """Return the parser with one subcommand per emulated device; each sets ``run`` to the function that serves it."""
    parser = argparse.ArgumentParser(
        prog="emulate.py",
        description="Serve an emulated robot on a pseudo-terminal. The first line printed is the path of the port to open; "
        "hosts may come and go. Ends with exit code 0 on Ctrl-C or SIGTERM.",
    )
    devices = parser.add_subparsers(dest="device", required=True, metavar="DEVICE")
    _add_cartpole(devices)
    return parser


def serve_until_interrupted(server: Server, link: Path | None) -> None:
    """Print the port's path, keep ``link`` pointing at it, and serve until SIGINT or SIGTERM."""
    interrupted = False

    def interrupt(*_: object) -> None:
        nonlocal interrupted
        interrupted = True

    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, interrupt)
    request_real_time(_REAL_TIME_PRIORITY)  # where the system grants it: a real board has a processor of its own
    with _symlink(link, server.path):
        print(server.path, flush=True)
        server.serve(lambda: interrupted)


def _add_cartpole(devices: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    parser = devices.add_parser(
        "cartpole",
        help="cart-pole on a microcontroller",
        description="A cart-pole on a microcontroller that speaks docs/microcontroller-protocol.md. It hangs at rest at first; "
        "masses, friction, motor and disturbances are drawn from the seed and differ from what policies are trained on.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument("--seed", type=int, default=0, help="seed of the robot's hidden parameters and disturbances")
    parser.add_argument(
        "--watchdog-ms", type=float, default=60.0, help="time without a command after which the force is taken away, milliseconds"
    )
    parser.add_argument("--link", type=Path, metavar="PATH", help="symbolic link to make to the port, removed at the end")
    parser.add_argument(
        "--trace", type=Path, metavar="FILE", help="CSV file for the true course: time, applied force, true state"
    )
    parser.add_argument("--truth", metavar="FILE", help="JSON file for the hidden parameters; - writes them to stderr")
    parser.set_defaults(run=_run_cartpole)


def _run_cartpole(args: argparse.Namespace) -> int:
    from hw_drivers.emulators.microcontroller import MicrocontrollerServer
    from sim.virtual_robot import VirtualCartpole

    if not args.watchdog_ms > 0:
        raise SystemExit(f"emulate: --watchdog-ms must be positive, got {args.watchdog_ms:g}")
    plant = VirtualCartpole(args.seed)
    if args.truth is not None:
        _write_truth(args.truth, plant.parameters)
    with MicrocontrollerServer(plant, watchdog_s=args.watchdog_ms * 1e-3, trace=args.trace) as server:
        serve_until_interrupted(server, args.link)
    if plant.stalls:
        print(
            f"emulate: this process got no CPU time for too long {plant.stalls} times; "
            f"{plant.skipped_s:.3f} s of the robot's time were skipped",
            file=sys.stderr,
        )
    return 0


def _write_truth(target: str, parameters: Any) -> None:
    text = json.dumps(dataclasses.asdict(parameters), indent=2) + "\n"
    if target == "-":
        sys.stderr.write(text)
    else:
        write_atomically(target, text.encode())


@contextmanager
def _symlink(link: Path | None, target: str) -> Iterator[None]:
    """Keep a symbolic link while the block runs. Raises FileExistsError if something else is in its place."""
    if link is None:
        yield
        return
    if link.is_symlink():
        link.unlink()  # of an emulator that was killed
    link.symlink_to(target)
    try:
        yield
    finally:
        if link.is_symlink() and os.readlink(link) == target:
            link.unlink()


if __name__ == "__main__":
    sys.exit(main())
