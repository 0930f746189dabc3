"""The dashboard's pages and interfaces: what is answered to whom.

Everybody who reaches the server may read. Only who has the operator's key may roll back, and only from the dashboard's own page
or from a program: never on the word of another page that a browser has open.
"""

from __future__ import annotations

import ipaddress
import json
import re
import sys
import threading
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from http import HTTPStatus
from importlib import resources
from typing import Any
from urllib.parse import urlsplit

from dpg_robot.errors import DpgError
from dpg_robot.host.dashboard.http import BoundedHandler, BoundedServer, RateLimit, RefusalError
from dpg_robot.host.dashboard.key import OperatorKey
from dpg_robot.host.dashboard.metrics import CONTENT_TYPE, to_prometheus
from dpg_robot.host.dashboard.status import Collector, HostStatus, to_json

MAX_REASON = 300
_STREAMS, _STREAMS_EACH = 32, 12  # far fewer than connections, so that streams never take all of them
_CURVES_EVERY_S = 2.0
_FILES = {
    "/": ("index.html", "text/html; charset=utf-8"),
    "/dashboard.js": ("dashboard.js", "text/javascript; charset=utf-8"),
    "/dashboard.css": ("dashboard.css", "text/css; charset=utf-8"),
}
_WRONG_KEYS_PER_MINUTE = 10
_ROLLBACKS_PER_MINUTE = 10

RollBack = Callable[[int, str], None]


@dataclass(frozen=True)
class Operator:
    """Who may roll back, and how.

    Attributes:
        key: knows the operator's key.
        roll_back: makes a version current, with a reason; raises DpgError or OSError.
    """

    key: OperatorKey
    roll_back: RollBack


class Board:
    """Looks at the host in a thread of its own and keeps the last status for all who ask.

    Args:
        collector: looks.
        interval_s: time between two looks.
        features: what the page needs to know about this server.
    """

    def __init__(self, collector: Collector, interval_s: float, features: dict[str, Any]) -> None:
        self._collector, self._interval_s, self._features = collector, interval_s, features
        self._changed = threading.Condition()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="collector", daemon=True)
        self._number = 0
        self._publish(collector.collect())

    def start(self) -> None:
        """Begin to look again and again."""
        self._thread.start()

    def close(self) -> None:
        """End the thread and all streams."""
        self._stop.set()
        with self._changed:
            self._changed.notify_all()
        if self._thread.is_alive():
            self._thread.join(timeout=10.0)

    @property
    def is_closed(self) -> bool:
        """Whether it was closed."""
        return self._stop.is_set()

    def refresh(self) -> None:
        """Look now."""
        self._publish(self._collector.collect())

    def wait(self, number: int, timeout_s: float) -> int:
        """Wait for a newer status than ``number``; returns the number of the present one."""
        with self._changed:
            self._changed.wait_for(lambda: self._number > number or self.is_closed, timeout_s)
            return self._number

    def _run(self) -> None:
        while not self._stop.wait(self._interval_s):
            try:
                self.refresh()
            except Exception as error:  # the page goes on, and its age shows
                print(f"dashboard: the host cannot be looked at: {type(error).__name__}: {error}", file=sys.stderr, flush=True)

    def _publish(self, status: HostStatus) -> None:
        figures, curves = to_json(status.figures() | {"features": self._features}), to_json(status.curves())
        with self._changed:
            self.status, self.figures, self.curves = status, figures, curves
            self._number += 1
            self._changed.notify_all()


class DashboardServer(BoundedServer):
    """Serves one board.

    Args:
        host: address to listen at.
        port: to listen at; 0 for any free one.
        board: what is shown.
        operator: who may roll back; None for nobody.
        names: host names by which browsers may call this server, besides addresses and localhost.
        view_port: of the three-dimensional view on the same machine; None if there is none.
        options: of :class:`BoundedServer`.
    """

    def __init__(
        self,
        host: str,
        port: int,
        board: Board,
        operator: Operator | None = None,
        names: Iterable[str] = (),
        view_port: int | None = None,
        **options: Any,
    ) -> None:
        self.board, self.operator, self.view_port = board, operator, view_port
        self.names = {"localhost", *(name.lower() for name in names)}
        folder = resources.files("dpg_robot.host.dashboard") / "page"
        self.pages = {path: ((folder / name).read_bytes(), kind) for path, (name, kind) in _FILES.items()}
        self.wrong_keys, self.rollbacks = RateLimit(_WRONG_KEYS_PER_MINUTE, 60.0), RateLimit(_ROLLBACKS_PER_MINUTE, 60.0)
        self.streams = StreamCount()
        self.one_rollback = threading.Lock()
        super().__init__(host, port, DashboardHandler, **options)


class StreamCount:
    """Counts the streams of events, all together and by address."""

    def __init__(self) -> None:
        self._open: dict[str, int] = {}
        self._lock = threading.Lock()

    def enter(self, address: str) -> bool:
        """Return whether one more may begin."""
        with self._lock:
            if sum(self._open.values()) >= _STREAMS or self._open.get(address, 0) >= _STREAMS_EACH:
                return False
            self._open[address] = self._open.get(address, 0) + 1
            return True

    def leave(self, address: str) -> None:
        """Note that one has ended."""
        with self._lock:
            self._open[address] -= 1
            if not self._open[address]:
                del self._open[address]


class DashboardHandler(BoundedHandler):
    """Answers one request."""

    server: DashboardServer

    def answer(self) -> None:
        """Answer by the path; only exactly these there are, so no path leads anywhere else."""
        host = self._require_own_name()
        path = self.path.partition("?")[0]
        if path != "/":
            self._require_no_other_site()
        if path == "/api/rollback":
            self._require(self.command == "POST", HTTPStatus.METHOD_NOT_ALLOWED, "POST rolls back", {"Allow": "POST"})
            self._roll_back()
            return
        self._require(self.command != "POST", HTTPStatus.METHOD_NOT_ALLOWED, "only GET and HEAD here", {"Allow": "GET, HEAD"})
        board = self.server.board
        if path in self.server.pages:
            self.content_policy = _page_policy(host, self.server.view_port)
            self.send(*self.server.pages[path])
        elif path == "/api/status":
            self.send(board.figures, "application/json")
        elif path == "/api/curves":
            self.send(board.curves, "application/json")
        elif path == "/metrics":
            self.send(to_prometheus(board.status), CONTENT_TYPE)
        elif path == "/api/events":
            self._stream()
        else:
            raise RefusalError(HTTPStatus.NOT_FOUND, "there is nothing here")

    def _require_own_name(self) -> str:
        """Return the host that the request names, without port.

        A page of another name that lets its name point here (DNS rebinding) would name itself.
        """
        host = _host_name(self.headers.get_all("Host") or [])
        is_own = host in self.server.names or _is_address(host)
        self._require(is_own, HTTPStatus.MISDIRECTED_REQUEST, "this server does not have that name; start it with --name")
        return host

    def _require_no_other_site(self) -> None:
        """Refuse what a browser asks for in the name of another site's page."""
        site = self.headers.get("Sec-Fetch-Site", "same-origin")
        self._require(site in ("same-origin", "none"), HTTPStatus.FORBIDDEN, "another site's page may not ask for this")

    @staticmethod
    def _require(condition: bool, status: HTTPStatus, message: str, headers: dict[str, str] | None = None) -> None:
        if not condition:
            raise RefusalError(status, message, headers)

    def _stream(self) -> None:
        """Send each new status as an event, and the curves where they changed, until the client leaves."""
        board, address = self.server.board, str(self.client_address[0])
        if not self.server.streams.enter(address):
            raise RefusalError(HTTPStatus.SERVICE_UNAVAILABLE, "too many pages are open", {"Retry-After": "10"})
        try:
            self.begin("text/event-stream", HTTPStatus.OK, {})
            number, curves, curves_s = 0, b"", -_CURVES_EVERY_S
            while self.command != "HEAD" and not board.is_closed:
                number = board.wait(number, timeout_s=10.0)
                event = b"event: status\ndata: %b\n\n" % board.figures
                now_s = time.monotonic()
                if board.curves != curves and now_s - curves_s >= _CURVES_EVERY_S:
                    curves, curves_s = board.curves, now_s
                    event += b"event: curves\ndata: %b\n\n" % curves
                self.wfile.write(event)
        finally:
            self.server.streams.leave(address)

    def _roll_back(self) -> None:
        body = self.read_body()
        self._require_own_page()
        operator = self.server.operator
        if operator is None:
            raise RefusalError(
                HTTPStatus.FORBIDDEN, "this server was started without an operator's key: nobody can roll back here"
            )
        self._require_key(operator.key)
        number, reason = _parse_rollback(body)
        self._require(
            self.server.rollbacks.allows(""),
            HTTPStatus.TOO_MANY_REQUESTS,
            "too many rollbacks; wait a minute",
            {"Retry-After": "60"},
        )
        try:
            with self.server.one_rollback:
                operator.roll_back(number, reason)
        except (DpgError, OSError) as error:
            raise RefusalError(HTTPStatus.CONFLICT, str(error)) from error
        print(f"dashboard: {self.client_address[0]} rolled back to version {number}: {reason!r}", file=sys.stderr, flush=True)
        self.server.board.refresh()
        self.send_json({"done": f"version {number} is the current one"})

    def _require_own_page(self) -> None:
        """Refuse what does not come from the dashboard's own page or from a program that is no browser."""
        kind = self.headers.get("Content-Type", "").partition(";")[0].strip().lower()
        self._require(kind == "application/json", HTTPStatus.UNSUPPORTED_MEDIA_TYPE, "send application/json")
        origin = self.headers.get("Origin")
        if origin is not None:
            own = f"{'https' if self.server.tls else 'http'}://{self.headers['Host']}"
            self._require(origin.lower() == own.lower(), HTTPStatus.FORBIDDEN, "another site's page may not ask for this")

    def _require_key(self, key: OperatorKey) -> None:
        """Refuse a wrong key, and hear nobody out who tries many; who has the right one is never kept waiting by others."""
        scheme, _, given = self.headers.get("Authorization", "").partition(" ")
        if scheme.lower() == "bearer" and key.matches(given.strip()):
            return
        if not self.server.wrong_keys.allows(str(self.client_address[0])):
            raise RefusalError(HTTPStatus.TOO_MANY_REQUESTS, "too many wrong keys; wait a minute", {"Retry-After": "60"})
        print(f"dashboard: {self.client_address[0]} has tried a wrong key", file=sys.stderr, flush=True)
        raise RefusalError(
            HTTPStatus.UNAUTHORIZED, "that is not the operator's key; nothing was changed", {"WWW-Authenticate": "Bearer"}
        )


def _page_policy(host: str, view_port: int | None) -> str:
    """Return what the page may load: its own parts and the view, in a frame; nobody may put the page itself into a frame."""
    frame = "'none'" if view_port is None else f"http://{host}:{view_port}"
    return (
        "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src 'self' data:; "
        f"frame-src {frame}; frame-ancestors 'none'; base-uri 'none'; form-action 'none'; require-trusted-types-for 'script'"
    )


def _host_name(values: list[str]) -> str:
    """Return the name in a request's only Host header, in lower case; empty if there is none that can be."""
    if len(values) != 1 or not re.fullmatch(
        r"[A-Za-z0-9.-]{1,253}(:[0-9]{1,5})?|\[[0-9A-Fa-f:.]{2,45}\](:[0-9]{1,5})?", values[0]
    ):
        return ""
    try:
        name = urlsplit(f"//{values[0]}").hostname or ""
    except ValueError:
        return ""
    return f"[{name}]" if ":" in name else name


def _is_address(host: str) -> bool:
    """Return whether it is an address and no name: nobody else's name can be made to point at it."""
    try:
        ipaddress.ip_address(host.strip("[]"))
    except ValueError:
        return False
    return True


def _parse_rollback(body: bytes) -> tuple[int, str]:
    try:
        values = json.loads(body)
        number, reason = values["to"], values["reason"]
        if set(values) != {"to", "reason"} or type(number) is not int or not isinstance(reason, str):
            raise ValueError("not the fields that are expected")
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise RefusalError(HTTPStatus.BAD_REQUEST, 'send {"to": number of the version, "reason": why}') from error
    reason = reason.strip()
    if not reason or len(reason) > MAX_REASON or not reason.isprintable():
        raise RefusalError(HTTPStatus.BAD_REQUEST, f"say the reason in 1 to {MAX_REASON} printable characters")
    return number, reason
