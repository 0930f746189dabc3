#!/usr/bin/env python
"""Ship robot logs to a host: make keys, run the server, receive on the host, send from the robot, look how it fares."""

from __future__ import annotations

import argparse
import asyncio
import json
import signal
import sys
from collections.abc import Callable, Coroutine, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

from dpg_robot.config import add_config_arguments, config_from_arguments
from dpg_robot.errors import ConfigError, DpgError
from dpg_robot.release import TrustedKey
from dpg_robot.shipping.folder_sender import send_to_folder
from dpg_robot.shipping.keys import make_key
from dpg_robot.shipping.nats_link import HOST_NAME, Link
from dpg_robot.shipping.nats_receiver import NatsReceiver
from dpg_robot.shipping.nats_releases import ReleaseFetcher, ReleasePublisher
from dpg_robot.shipping.nats_sender import NatsSender
from dpg_robot.shipping.nats_server import Server, Tls
from dpg_robot.shipping.piece import require_robot_name
from dpg_robot.shipping.sender_state import SenderState
from dpg_robot.shipping.settings import ShippingSettings
from dpg_robot.shipping.status_file import read_status
from dpg_robot.shipping.store import Store

CONFIGS = Path(__file__).resolve().parent.parent / "configs"
LOCAL = "nats://127.0.0.1:4222"
KEYS = Path("keys")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit code."""
    args = build_parser().parse_args(arguments)
    try:
        return int(args.run(args))
    except (DpgError, OSError) as error:
        print(f"ship: {error}", file=sys.stderr)
        return 1


def build_parser() -> argparse.ArgumentParser:
    """Return the parser with all subcommands."""
    parser = argparse.ArgumentParser(prog="ship.py", description=__doc__)
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    keys = commands.add_parser(
        "keys",
        help="make keys for the host and for robots",
        description="Writes NAME.seed, which only the computer that uses it should have, and NAME.pub, which the server needs. "
        "The host's is called 'host'. A running server takes new public keys by itself.",
    )
    keys.set_defaults(run=_keys)
    keys.add_argument("names", nargs="+", metavar="NAME", help="host, or the name of a robot")
    keys.add_argument("--folder", type=Path, default=KEYS, metavar="DIR", help="where to write (default: %(default)s)")
    _add_serve(commands)
    _add_receive(commands)
    _add_send(commands)
    status = commands.add_parser("status", help="print the counters of a log folder that is sent, or of a store")
    status.set_defaults(run=_status)
    status.add_argument("folder", type=Path, metavar="DIR", help="log folder or store")
    return parser


def _add_serve(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    serve = commands.add_parser("serve", help="run the NATS server between robots and host")
    add_config_arguments(serve, ShippingSettings, CONFIGS / "shipping.yaml")
    serve.set_defaults(run=_serve)
    serve.add_argument(
        "--folder", type=Path, default=Path("server"), metavar="DIR", help="the server's data (default: %(default)s)"
    )
    serve.add_argument("--keys", type=Path, default=KEYS, metavar="DIR", help="folder with public keys (default: %(default)s)")
    serve.add_argument("--tls-cert", type=Path, metavar="FILE", help="the server's certificate, PEM")
    serve.add_argument("--tls-key", type=Path, metavar="FILE", help="the certificate's private key, PEM")
    serve.add_argument("--insecure", action="store_true", help="listen to other machines without TLS")


def _add_receive(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    receive = commands.add_parser("receive", help="on the host: take logs from the server into a store")
    add_config_arguments(receive, ShippingSettings, CONFIGS / "shipping.yaml")
    receive.set_defaults(run=_receive)
    receive.add_argument("--store", type=Path, default=Path("store"), metavar="DIR", help="the store (default: %(default)s)")
    receive.add_argument("--releases", type=Path, metavar="DIR", help="model store whose signed releases are offered to robots")
    _add_link(receive, KEYS / f"{HOST_NAME}.seed")


def _add_send(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    send = commands.add_parser(
        "send",
        help="on the robot: send a log folder, also while it is written",
        description="Sends the log to the server or, with --to-folder, into a store that this computer can write. "
        "Exit code: 0 done or stopped by a signal; 3 if the host refused something or the disk is over its limit.",
    )
    add_config_arguments(send, ShippingSettings, CONFIGS / "shipping.yaml")
    send.set_defaults(run=_send)
    send.add_argument("--robot", required=True, metavar="NAME", help="name of the robot; its key has the same")
    send.add_argument("--log", type=Path, default=Path("log"), metavar="DIR", help="log folder (default: %(default)s)")
    send.add_argument("--to-folder", type=Path, metavar="DIR", help="store to write into, without any server; must exist")
    send.add_argument("--once", action="store_true", help="end when everything is confirmed and no segment is open")
    send.add_argument("--offer-all", action="store_true", help="offer the host everything again, also what it once confirmed")
    send.add_argument(
        "--releases", type=Path, metavar="DIR", help="folder into which new releases are fetched (for robot.py run --store)"
    )
    send.add_argument(
        "--trust",
        type=Path,
        action="append",
        default=[],
        metavar="KEY.pub",
        help="public key of who signs releases; several times",
    )
    _add_link(send, None)


def _add_link(parser: argparse.ArgumentParser, key: Path | None) -> None:
    parser.add_argument("--server", default=LOCAL, metavar="URL", help="nats://... or tls://... (default: %(default)s)")
    parser.add_argument("--key", type=Path, default=key, metavar="FILE", help="seed of the key (default: %(default)s)")
    parser.add_argument("--tls-ca", type=Path, metavar="FILE", help="certificate of the server's authority, PEM")


def _keys(args: argparse.Namespace) -> int:
    for name in args.names:
        print(f"{require_robot_name(name)} {make_key(args.folder, name)}")
    return 0


def _serve(args: argparse.Namespace) -> int:
    settings = config_from_arguments(ShippingSettings, args).serve
    if (args.tls_cert is None) != (args.tls_key is None):
        raise ConfigError("--tls-cert and --tls-key belong together")
    tls = Tls(args.tls_cert, args.tls_key) if args.tls_cert else None
    server = Server(settings, args.folder, args.keys, tls, insecure=args.insecure)
    server.run(_stop_on_signals(), lambda: print(f"listening on {settings.host}:{settings.port}", flush=True))
    return 0


def _receive(args: argparse.Namespace) -> int:
    settings = config_from_arguments(ShippingSettings, args).receive
    stop = _stop_on_signals()
    with closing(Store(args.store, min_free_bytes=settings.min_free_bytes)) as store:
        parts = [NatsReceiver(store, settings, _link(args)).run(stop)]
        if args.releases is not None:
            parts.append(ReleasePublisher(args.releases, _link(args)).run(stop))
        asyncio.run(_all(parts))
    return 0


def _send(args: argparse.Namespace) -> int:
    settings = config_from_arguments(ShippingSettings, args).send
    robot = require_robot_name(args.robot)
    if robot == HOST_NAME:
        raise ConfigError(f"a robot cannot be called {HOST_NAME!r}; that is the host's name")
    if not args.log.is_dir():
        raise ConfigError(f"the log folder {args.log} does not exist")
    if (args.releases is None) == bool(args.trust):
        raise ConfigError("--releases and --trust belong together: no release is taken that nobody trusted has signed")
    if args.releases is not None and (args.to_folder is not None or args.once):
        raise ConfigError(
            "--releases are fetched from a server for as long as it runs, so neither --to-folder nor --once goes with it"
        )
    trusted = [TrustedKey.load(path) for path in args.trust]
    stop = _stop_on_signals()
    state = SenderState(args.log, robot, settings, offer_all=args.offer_all)
    try:
        if args.to_folder is not None:
            send_to_folder(state, args.to_folder, robot, once=args.once, stop=stop)
        else:
            parts = [NatsSender(state, robot, _link(args)).run(once=args.once, stop=stop)]
            if args.releases is not None:
                parts.append(ReleaseFetcher(args.releases, trusted, robot, _link(args)).run(stop))
            asyncio.run(_all(parts))
    finally:
        state.close("stopped")
    if state.failure:
        print(f"ship: {state.failure}", file=sys.stderr)
    return 3 if state.failure else 0


def _status(args: argparse.Namespace) -> int:
    print(json.dumps(read_status(args.folder), indent=1))
    return 0


async def _all(parts: Sequence[Coroutine[Any, Any, None]]) -> None:
    """Run all parts to their ends, or until one of them fails."""
    await asyncio.gather(*parts)


def _link(args: argparse.Namespace) -> Link:
    if args.key is None:
        raise ConfigError("which key? Give --key FILE, the robot's seed from 'ship.py keys'")
    return Link(args.server, args.key, args.tls_ca)


def _stop_on_signals() -> Callable[[], bool]:
    """Return a function that says whether SIGINT or SIGTERM has come."""
    received: list[int] = []
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda number, frame: received.append(number))
    return lambda: bool(received)


if __name__ == "__main__":
    sys.exit(main())
