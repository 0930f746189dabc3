"""Serve an emulated robot on a pseudo-terminal, to try the robot side without hardware."""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

from dpg_robot.deploy.clock import request_real_time
from dpg_robot.errors import ConfigError, DpgError
from dpg_robot.files import write_atomically
from hw_drivers.emulators.dynamixel import DynamixelBus
from hw_drivers.emulators.feetech import FeetechBus
from hw_drivers.emulators.joints import Joints

CONFIGS = Path(__file__).resolve().parent.parent / "configs"
_REAL_TIME_PRIORITY = 50
_FAMILIES = {
    "dynamixel": ("Dynamixel X servos, protocol 2.0", "XL330-M288"),
    "feetech": ("Feetech STS or SCS servos", "STS3215"),
}
_FAULTS = {
    "drop": "that it is not sent",
    "late": "that it comes late",
    "split": "that it comes in two pieces",
    "duplicate": "that it is sent twice",
    "corrupt": "that one bit of it is flipped",
    "garbage": "that random bytes come before it",
    "truncate": "that its end is missing",
    "wrong_id": "that it names another servo",
    "echo": "that the host receives its own request before it",
}


class Plant(Protocol):
    """What an emulated device moves, in real time.

    Attributes:
        stalls: how often it got no time for so long that it skipped some.
        skipped_s: time that it skipped, s.
    """

    stalls: int
    skipped_s: float


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
    _add_so101(devices)
    for family, text in _FAMILIES.items():
        _add_servos(devices, family, text)
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
    _report_stalls(plant)
    return 0


def _add_so101(devices: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    parser = devices.add_parser(
        "so101",
        help="SO-101 arm on Feetech servos",
        description="An SO-101 with six STS3215 on one bus. It lies folded without torque at first; masses, friction, stiffness "
        "and what a calibration by hand leaves are drawn from the seed and differ from what policies are trained on.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument(
        "--robot", type=Path, default=CONFIGS / "robots" / "so101.yaml", metavar="FILE", help="IDs, gears and zeros of the servos"
    )
    parser.add_argument("--truth", metavar="FILE", help="JSON file for the hidden parameters; - writes them to stderr")
    _add_bus_options(parser)
    parser.set_defaults(run=_run_so101)


def _run_so101(args: argparse.Namespace) -> int:
    from dpg_robot.config import config_from_dict, load_config
    from dpg_robot.deploy.run_config import RobotConfig
    from hw_drivers.servo_config import ServoRobotConfig
    from sim.virtual_arm import JOINT_NAMES, VirtualArm

    try:
        robot = load_config(RobotConfig, args.robot)
        servos = config_from_dict(ServoRobotConfig, robot.device, source=str(args.robot)).servos
        if tuple(servos) != JOINT_NAMES:
            raise ConfigError(f"{args.robot}: the servos must be {', '.join(JOINT_NAMES)}, got {', '.join(servos)}")
        mounts = list(servos.values())
        arm = VirtualArm(args.seed, gears=[mount.gear for mount in mounts], zeros=[mount.zero for mount in mounts])
        if args.truth is not None:
            _write_truth(args.truth, arm.parameters)
        code = _serve_servos(args, "feetech", "STS3215", [mount.id for mount in mounts], arm)
    except DpgError as error:
        print(f"emulate: {error}", file=sys.stderr)
        return 1
    _report_stalls(arm)
    return code


def _report_stalls(plant: Plant) -> None:
    if plant.stalls:
        print(
            f"emulate: this process got no CPU time for too long {plant.stalls} times; "
            f"{plant.skipped_s:.3f} s of the robot's time were skipped",
            file=sys.stderr,
        )


def _add_servos(devices: argparse._SubParsersAction[argparse.ArgumentParser], family: str, text: tuple[str, str]) -> None:
    what, model = text
    parser = devices.add_parser(
        family,
        help=what,
        description=f"{what}, on one bus: register files, wire time, and faults on demand. Each moves a joint without inertia.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument("--ids", type=int, nargs="+", default=[1], metavar="ID", help="IDs of the servos")
    parser.add_argument("--model", default=model, help="model of all of them")
    _add_bus_options(parser)
    parser.set_defaults(run=_run_servos)


def _add_bus_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--baud-rate", type=int, default=1_000_000, metavar="BAUD", help="what the servos are set to, bits per second"
    )
    parser.add_argument("--link", type=Path, metavar="PATH", help="symbolic link to make to the port, removed at the end")
    faults = parser.add_argument_group("faults of answers")
    for name, meaning in _FAULTS.items():
        option = f"--{name.replace('_', '-')}"
        faults.add_argument(option, type=float, default=0.0, metavar="P", help=f"probability {meaning}")
    faults.add_argument("--late-s", type=float, default=0.02, metavar="TIME", help="how late, seconds")
    faults.add_argument("--split-gap-s", type=float, default=0.003, metavar="TIME", help="time between the pieces, seconds")
    faults.add_argument("--seed", type=int, default=0, help="seed of all choices")
    parser.add_argument(
        "--trace",
        type=Path,
        metavar="FILE",
        help="file for the true course, as lines of JSON; with it, faults at chosen times are read from the standard input, as "
        "lines of JSON too (hw_drivers/emulators/faulty_server.py and fault_schedule.py describe both)",
    )


def _run_servos(args: argparse.Namespace) -> int:
    from hw_drivers.emulators.joints import FirstOrderJoints

    return _serve_servos(args, args.device, args.model, args.ids, FirstOrderJoints([0.0] * len(args.ids)))


def _serve_servos(args: argparse.Namespace, family: str, model: str, ids: Sequence[int], joints: Joints) -> int:
    from hw_drivers.emulators.servo_server import ServoFaults, ServoServer

    try:
        if args.trace is not None:
            return _serve_with_trace(args, family, model, ids, joints)
        values = {name: getattr(args, name) for name in (*_FAULTS, "late_s", "split_gap_s", "seed")}
        bus = _make_bus(family, model, ids, args.baud_rate, joints)
        server = ServoServer(bus, faults=ServoFaults(**values))
    except (DpgError, ValueError) as error:
        print(f"emulate: {error}", file=sys.stderr)
        return 1
    with server:
        serve_until_interrupted(server, args.link)
    return 0


def _serve_with_trace(args: argparse.Namespace, family: str, model: str, ids: Sequence[int], joints: Joints) -> int:
    from hw_drivers.emulators.fault_schedule import FaultyJoints
    from hw_drivers.emulators.faulty_server import FaultyServer

    if any(getattr(args, name) for name in _FAULTS):
        raise ValueError("with --trace, faults come from the standard input; leave the options for faults of answers out")
    faulty = FaultyJoints(joints)
    bus = _make_bus(family, model, ids, args.baud_rate, faulty)
    with (
        args.trace.open("w") as trace,
        FaultyServer(bus, faulty, trace, commands=sys.stdin.fileno(), link=args.link, seed=args.seed) as server,
    ):
        serve_until_interrupted(server, args.link)
    return 0


def _make_bus(family: str, model: str, ids: Sequence[int], baud_rate: int, joints: Joints) -> DynamixelBus | FeetechBus:
    """Return the emulated servos; raises UnknownNameError or ValueError for what there is not."""
    from hw_drivers.dynamixel.models import find_model as find_dynamixel
    from hw_drivers.feetech.models import find_model as find_feetech

    now_ns = time.monotonic_ns()
    if family == "dynamixel":
        return DynamixelBus(joints, [find_dynamixel(model)] * len(ids), ids, baud_rate=baud_rate, start_ns=now_ns)
    return FeetechBus(joints, [find_feetech(model)] * len(ids), ids, baud_rate=baud_rate, start_ns=now_ns)


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
