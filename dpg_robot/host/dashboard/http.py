"""A small HTTP server for hostile surroundings, on the standard library's: nobody can hold it up, fill it, or make it grow.

One request a connection; a request must be there whole within a few seconds and bytes, however slowly it comes; connections are
counted, all together and by address; with TLS, hands are shaken in the connection's own thread.
"""

from __future__ import annotations

import io
import json
import socket
import socketserver
import ssl
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from http import HTTPStatus
from http.client import HTTPException
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

_HEADERS = {
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cache-Control": "no-store",
    "Connection": "close",
}
_SEND_BUFFER = 64 * 1024  # bytes: who does not read is noticed soon, and takes no more than that
_CONTENT_POLICY = "default-src 'none'; frame-ancestors 'none'; base-uri 'none'; form-action 'none'"


@dataclass(frozen=True)
class Limits:
    """What a client may take.

    Attributes:
        request_s: time in which a request must be there whole, hands shaken.
        write_s: time in which an answer, or a part of a stream, must be taken.
        request_bytes: of line, headers and body together.
        body_bytes: of the body.
        connections: at a time.
        connections_each: at a time, from one address.
    """

    request_s: float = 5.0
    write_s: float = 10.0
    request_bytes: int = 32 * 1024
    body_bytes: int = 4096
    connections: int = 96
    connections_each: int = 32


class RefusalError(Exception):
    """A request that is not carried out.

    Args:
        status: the answer's status.
        message: why, for the one who asks.
        headers: of the answer.
    """

    def __init__(self, status: HTTPStatus, message: str, headers: Mapping[str, str] | None = None) -> None:
        super().__init__(message)
        self.status, self.message, self.headers = status, message, dict(headers or {})


class _BoundedReader(io.RawIOBase):
    """Reads from a connection until a time has come or too much has."""

    def __init__(self, connection: socket.socket, limits: Limits) -> None:
        self._connection = connection
        self._end_s = time.monotonic() + limits.request_s
        self._left = limits.request_bytes

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        left_s = self._end_s - time.monotonic()
        if left_s <= 0:
            raise TimeoutError("the request was not there in time")
        if self._left <= 0:
            raise RefusalError(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, "the request is too large")
        self._connection.settimeout(left_s)
        count = self._connection.recv_into(memoryview(buffer)[: self._left])
        self._left -= count
        return count


class BoundedServer(ThreadingHTTPServer):
    """Serves at an address until :meth:`shutdown`.

    Args:
        host: address to listen at.
        port: to listen at; 0 for any free one.
        handler: answers requests; gets this server.
        tls: context with the server's certificate; None for no TLS.
        limits: what clients may take.

    Raises:
        OSError: the address cannot be listened at.
    """

    daemon_threads = True
    request_queue_size = 128

    def __init__(
        self,
        host: str,
        port: int,
        handler: type[BoundedHandler],
        tls: ssl.SSLContext | None = None,
        limits: Limits | None = None,
    ) -> None:
        self.limits = limits or Limits()
        self.tls = tls
        self._open: Counter[str] = Counter()
        self._lock = threading.Lock()
        self.address_family = socket.AF_INET6 if ":" in host else socket.AF_INET
        super().__init__((host, port), handler)

    @property
    def url(self) -> str:
        """Of the page."""
        host, port = self.server_address[:2]
        shown = f"[{host!s}]" if self.address_family == socket.AF_INET6 else str(host)
        return f"{'https' if self.tls else 'http'}://{shown}:{port}"

    def server_bind(self) -> None:
        """Bind without asking a name server for this machine's name, as http.server would."""
        socketserver.TCPServer.server_bind(self)
        self.server_name, self.server_port = str(self.server_address[0]), int(self.server_address[1])

    def process_request(self, request: Any, client_address: Any) -> None:
        """Begin a thread for a connection, or close it if there are too many."""
        address = str(client_address[0])
        with self._lock:
            is_full = self._open.total() >= self.limits.connections or self._open[address] >= self.limits.connections_each
            if not is_full:
                self._open[address] += 1
        if is_full:
            self.shutdown_request(request)
            return
        super().process_request(request, client_address)

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        """Serve one connection, in its own thread."""
        try:
            if self.tls is not None:
                request.settimeout(self.limits.request_s)  # of the whole handshake
                try:
                    request = self.tls.wrap_socket(request, server_side=True)
                except OSError:
                    self.shutdown_request(request)
                    return
            super().process_request_thread(request, client_address)
        finally:
            with self._lock:
                self._open[str(client_address[0])] -= 1
                self._open += Counter()  # forgets addresses without connections

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Say what went wrong here; what clients do to their connections is no news."""
        error = sys.exception()
        if not isinstance(error, OSError):
            print(f"dashboard: a request failed: {type(error).__name__}: {error}", file=sys.stderr, flush=True)


class BoundedHandler(BaseHTTPRequestHandler):
    """Reads one request within its bounds and answers it; subclasses say how by :meth:`answer`."""

    server: BoundedServer
    server_version = "dpg-robot"
    sys_version = ""
    default_request_version = "HTTP/1.0"  # so that every answer has a status
    content_policy = _CONTENT_POLICY

    def setup(self) -> None:
        """Take the connection."""
        super().setup()
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _SEND_BUFFER)
        self.rfile = io.BufferedReader(_BoundedReader(self.connection, self.server.limits), 4096)

    def handle(self) -> None:
        """Read and answer one request."""
        self.close_connection = True
        self.command, self.request_version, self.requestline = "", "HTTP/1.0", ""
        try:
            try:
                self.raw_requestline = self.rfile.readline(8192)
                if not self.raw_requestline or not self.parse_request():
                    return
                if self.command not in ("GET", "HEAD", "POST"):
                    raise RefusalError(
                        HTTPStatus.METHOD_NOT_ALLOWED, "only GET, HEAD and POST are answered", {"Allow": "GET, HEAD, POST"}
                    )
                self.answer()
            except RefusalError as refusal:
                self.send_json({"error": refusal.message}, refusal.status, refusal.headers)
        except (HTTPException, UnicodeError):
            return

    def answer(self) -> None:
        """Answer the request; raises RefusalError."""
        raise NotImplementedError

    def read_body(self) -> bytes:
        """Return the body; raises RefusalError if it is too large or of unknown length."""
        length = self.headers.get("Content-Length", "")
        if "Transfer-Encoding" in self.headers or not (length.isascii() and length.isdigit() and len(length) < 10):
            raise RefusalError(HTTPStatus.LENGTH_REQUIRED, "say the length of the body by one Content-Length")
        if int(length) > self.server.limits.body_bytes:
            raise RefusalError(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, f"a body has at most {self.server.limits.body_bytes} bytes")
        return self.rfile.read(int(length))

    def send(
        self, content: bytes, kind: str, status: HTTPStatus = HTTPStatus.OK, headers: Mapping[str, str] | None = None
    ) -> None:
        """Send an answer."""
        self.begin(kind, status, {"Content-Length": str(len(content)), **(headers or {})})
        if self.command != "HEAD":
            self.wfile.write(content)

    def send_json(
        self, values: Mapping[str, Any], status: HTTPStatus = HTTPStatus.OK, headers: Mapping[str, str] | None = None
    ) -> None:
        """Send JSON."""
        self.send(json.dumps(values).encode(), "application/json", status, headers)

    def begin(self, kind: str, status: HTTPStatus, headers: Mapping[str, str]) -> None:
        """Send status and headers of an answer."""
        self.connection.settimeout(self.server.limits.write_s)
        self.send_response(status)
        for name, value in {**_HEADERS, "Content-Security-Policy": self.content_policy, "Content-Type": kind, **headers}.items():
            self.send_header(name, value)
        self.end_headers()

    def send_error(self, code: int, message: str | None = None, explain: str | None = None) -> None:
        """Answer a request that is none, without repeating any of it."""
        status = HTTPStatus(code)
        self.send_json({"error": status.phrase}, status)

    def log_message(self, format: str, *args: Any) -> None:
        """Keep quiet about requests: a log of them would be a way to fill the disk."""


class RateLimit:
    """Lets so many things happen in a time, for each of those that do them.

    Args:
        count: how many.
        period_s: in which time.
        clock: monotonic time, s.
    """

    _MAX_NAMES = 1000

    def __init__(self, count: int, period_s: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._count, self._period_s, self._clock = count, period_s, clock
        self._times: dict[str, list[float]] = {}
        self._lock = threading.Lock()

    def allows(self, name: str) -> bool:
        """Count one thing more of ``name`` and return whether it may happen; one that may not does not count."""
        now_s = self._clock()
        with self._lock:
            times = [each for each in self._times.pop(name, []) if now_s - each < self._period_s]
            is_allowed = len(times) < self._count
            self._times[name] = [*times, now_s] if is_allowed else times
            if len(self._times) > self._MAX_NAMES:
                del self._times[next(iter(self._times))]
        return is_allowed
