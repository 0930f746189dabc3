#!/usr/bin/env python
"""The operator's dashboard: one web page that shows how robots, fine-tuning and releases fare, and rolls back."""

from __future__ import annotations

import argparse
import os
import signal
import ssl
import sys
import threading
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path

from dpg_robot.errors import ConfigError, DpgError
from dpg_robot.host.dashboard.key import OperatorKey
from dpg_robot.host.dashboard.server import Board, DashboardServer, Operator
from dpg_robot.host.dashboard.status import Collector, Places, to_json
from dpg_robot.release import SigningKey, TrustedKey
from dpg_robot.shipping.piece import require_robot_name

LOCAL = ("127.0.0.1", "::1", "localhost")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit code."""
    args = build_parser().parse_args(arguments)
    try:
        return int(args.run(args))
    except (DpgError, OSError) as error:
        print(f"dashboard: {error}", file=sys.stderr)
        return 1


def build_parser() -> argparse.ArgumentParser:
    """Return the parser with all commands."""
    parser = argparse.ArgumentParser(prog="dashboard.py", description=f"{__doc__} docs/dashboard.md tells more.")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    serve = commands.add_parser("serve", help="serve the page until Ctrl-C or SIGTERM")
    serve.set_defaults(run=_serve)
    _add_places(serve)
    rollback = serve.add_argument_group("rolling back")
    rollback.add_argument("--operator-key", type=Path, metavar="FILE", help="let who has this key roll back (default: nobody)")
    rollback.add_argument("--sign", type=Path, metavar="KEY", help="private key that signs releases (default: none is made)")
    rollback.add_argument(
        "--for", action="append", default=[], dest="robots", metavar="NAME", help="robot that releases are for; several times"
    )
    page = serve.add_argument_group("page")
    page.add_argument("--host", default="127.0.0.1", help="address to serve at (default: %(default)s, this machine alone)")
    page.add_argument("--port", type=_port, default=8090, help="port to serve at; 0 for any free one (default: %(default)s)")
    page.add_argument(
        "--name", action="append", default=[], dest="names", help="host name by which browsers call this machine; several times"
    )
    page.add_argument("--tls-cert", type=Path, metavar="FILE", help="certificate of this machine, PEM")
    page.add_argument("--tls-key", type=Path, metavar="FILE", help="the certificate's private key, PEM")
    page.add_argument("--insecure", action="store_true", help="let other machines in without TLS")
    page.add_argument("--interval", type=float, default=0.5, metavar="S", help="time between two looks (default: %(default)s)")
    view = serve.add_argument_group("live view (extra 'view')")
    view.add_argument("--view", metavar="TASK", help="show the measured pose on the model of this task (default: no view)")
    view.add_argument("--view-port", type=_port, default=8091, help="of the view; 0 for any free one (default: %(default)s)")
    status = commands.add_parser("status", help="print the figures once, as JSON")
    status.set_defaults(run=_status)
    _add_places(status)
    token = commands.add_parser("token", help="make an operator's key: print it, and write into FILE what knows it again")
    token.set_defaults(run=_token)
    token.add_argument("file", type=Path, metavar="FILE", help="new file, for its owner alone")
    return parser


def _add_places(parser: argparse.ArgumentParser) -> None:
    places = parser.add_argument_group("what is shown")
    places.add_argument("--logs", type=Path, metavar="DIR", help="store of shipped logs, or log folder of a single robot")
    places.add_argument("--store", type=Path, metavar="DIR", help="model store")
    places.add_argument("--learning", type=Path, metavar="DIR", help="folder of the fine-tuning service (its --run)")
    places.add_argument(
        "--sender",
        action="append",
        default=[],
        type=_sender,
        dest="senders",
        metavar="NAME=DIR",
        help="log folder of a robot, where this machine can read it: tells what waits there; several times",
    )
    places.add_argument(
        "--trust",
        action="append",
        default=[],
        type=Path,
        metavar="KEY.pub",
        help="key by which releases are checked; several times",
    )


def _port(value: str) -> int:
    port = int(value)
    if not 0 <= port <= 65535:
        raise argparse.ArgumentTypeError(f"a port is from 0 to 65535, got {port}")
    return port


def _sender(value: str) -> tuple[str, Path]:
    name, separator, folder = value.partition("=")
    if not separator or not folder:
        raise argparse.ArgumentTypeError(f"expected NAME=DIR, got {value!r}")
    return require_robot_name(name), Path(folder)


def _collector(args: argparse.Namespace, signing: SigningKey | None = None) -> Collector:
    if not (args.logs or args.store or args.learning):
        raise ConfigError("what shall be shown? Give --logs, --store or --learning")
    trusted = [TrustedKey.load(path) for path in args.trust] + ([signing.public] if signing else [])
    return Collector(Places(args.logs, args.store, args.learning, dict(args.senders)), trusted)


def _serve(args: argparse.Namespace) -> int:
    if not 0.05 <= args.interval <= 60:
        raise ConfigError(f"--interval must be from 0.05 to 60 s, got {args.interval}")
    tls = _tls(args)
    signing = SigningKey.load(args.sign) if args.sign else None
    operator = _operator(args, signing)
    collector = _collector(args, signing)
    stop = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: stop.set())
    with ExitStack() as stack:
        view_port = None
        if args.view:
            view_port = _start_view(args, collector, stack)
        features = {"rollback": operator is not None, "signs": signing is not None, "view_port": view_port}
        board = Board(collector, args.interval, features)
        names = [*args.names, *([] if args.host in LOCAL else [args.host])]
        server = DashboardServer(args.host, args.port, board, operator, names, view_port, tls=tls)
        stack.callback(server.server_close)
        board.start()
        stack.callback(board.close)
        threading.Thread(target=server.serve_forever, name="server", daemon=True).start()
        stack.callback(server.shutdown)
        print(f"dashboard: {server.url}; Ctrl-C ends it", flush=True)
        stop.wait()
    return 0


def _tls(args: argparse.Namespace) -> ssl.SSLContext | None:
    if (args.tls_cert is None) != (args.tls_key is None):
        raise ConfigError("--tls-cert and --tls-key belong together")
    if args.tls_cert is None:
        if args.host not in LOCAL and not args.insecure:
            raise ConfigError(
                f"{args.host} lets other machines in, and without TLS whoever listens there gets the operator's key: give "
                "--tls-cert and --tls-key, or say by --insecure that nobody else is in that network"
            )
        return None
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    try:
        context.load_cert_chain(args.tls_cert, args.tls_key)
    except ssl.SSLError as error:
        raise ConfigError(f"{args.tls_cert} and {args.tls_key} are no certificate and its key: {error}") from error
    return context


def _operator(args: argparse.Namespace, signing: SigningKey | None) -> Operator | None:
    if args.operator_key is None:
        if args.sign:
            raise ConfigError("--sign signs what the operator rolls back to; give --operator-key, too")
        return None
    if args.store is None:
        raise ConfigError("--operator-key needs --store, in which to roll back")
    from dpg_robot.host.dashboard.rollback import make_roll_back  # loads torch, which nothing else here needs

    return Operator(OperatorKey.load(args.operator_key), make_roll_back(args.store, signing, args.robots))


def _start_view(args: argparse.Namespace, collector: Collector, stack: ExitStack) -> int:
    os.environ.setdefault("MUJOCO_GL", "disable")  # or dm_control looks for a display
    try:
        from sim.pose_view import PoseView
    except ImportError as error:
        if error.name not in ("viser", "trimesh", "mujoco"):
            raise
        raise ConfigError(f"the live view needs the extra 'view': pip install 'dpg-robot[view]' ({error})") from error
    view = PoseView(args.view, collector.poses, args.host, args.view_port)
    stack.callback(view.close)
    return view.port


def _status(args: argparse.Namespace) -> int:
    print(to_json(_collector(args).collect().figures()).decode())
    return 0


def _token(args: argparse.Namespace) -> int:
    key = OperatorKey.make(args.file)
    print(f"operator's key: {key}", flush=True)
    print(
        f"It is shown only now; keep it where you keep passwords. {args.file} knows it again, and does not hold it.",
        file=sys.stderr,
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
