"""The dashboard's server: what it answers, and everything that somebody may try against it."""

from __future__ import annotations

import http.client
import importlib.util
import json
import re
import socket
import ssl
import stat
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, suppress
from pathlib import Path
from threading import Thread
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from dpg_robot.errors import ConfigError, PolicyFileError
from dpg_robot.host.dashboard.http import Limits, RateLimit
from dpg_robot.host.dashboard.key import OperatorKey
from dpg_robot.host.dashboard.rollback import make_roll_back
from dpg_robot.host.dashboard.server import Board, DashboardServer, Operator
from dpg_robot.host.dashboard.status import Collector, Places
from dpg_robot.release import SigningKey, read_release

DEADLINE_S = 20.0
LIMITS = Limits(request_s=1.0, write_s=1.0, connections=24, connections_each=16)


def _load_site() -> Any:
    spec = importlib.util.spec_from_file_location("dashboard_site", Path(__file__).with_name("dashboard_site.py"))
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


SITE = _load_site()


class Host:
    """A running dashboard and how to talk to it."""

    def __init__(self, folder: Path, stack: ExitStack, **options: Any) -> None:
        self.folder, self.models = folder, folder / "models"
        self.signing = SigningKey.generate()
        self.store = SITE.make_model_store(self.models, self.signing, (True, False, True))
        SITE.write_learning(folder / "learning", 10)
        self.writer = SITE.write_run(folder / "logs", "arm-1", "run", SITE.make_ticks(0, 100))
        self.key = OperatorKey.make(folder / "operator.key")
        operator = Operator(OperatorKey.load(folder / "operator.key"), make_roll_back(self.models, self.signing))
        collector = Collector(Places(folder / "logs", self.models, folder / "learning"), [self.signing.public])
        self.board = Board(collector, 0.05, {"rollback": True})
        self.server = DashboardServer("127.0.0.1", 0, self.board, operator, **{"limits": LIMITS, **options})
        self.port = self.server.server_port
        self.board.start()
        Thread(target=self.server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
        for end in (self.writer.close, self.server.server_close, self.server.shutdown, self.board.close):
            stack.callback(end)

    def ask(
        self, method: str, path: str, body: bytes | str | None = None, headers: dict[str, str] | None = None
    ) -> tuple[int, dict[str, str], bytes]:
        """Return status, headers and body of the answer."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=DEADLINE_S)
        with closing(connection):
            connection.request(method, path, body, headers or {})
            response = connection.getresponse()
            return response.status, dict(response.getheaders()), response.read()

    def roll_back(self, to: Any = 1, reason: Any = "it trembled", key: str | None = None, **headers: str) -> tuple[int, str]:
        """Return status and message of an attempt; names of headers with ``_`` for ``-``."""
        sent = {"Content-Type": "application/json", "Authorization": f"Bearer {self.key if key is None else key}"}
        sent |= {name.replace("_", "-"): value for name, value in headers.items()}
        status, _, answer = self.ask("POST", "/api/rollback", json.dumps({"to": to, "reason": reason}), sent)
        said = json.loads(answer)
        return status, said.get("error") or said["done"]

    def send(self, content: bytes, address: str = "127.0.0.1") -> socket.socket:
        """Open a connection and send bytes."""
        connection = socket.create_connection(("127.0.0.1", self.port), timeout=DEADLINE_S, source_address=(address, 0))
        connection.sendall(content)
        return connection

    @property
    def unchanged(self) -> bool:
        """Whether nothing was released since the start."""
        return self.store.releases() == [1, 2] and self.store.current.read_bytes() == self.policy(3)

    def policy(self, version: int) -> bytes:
        return (self.models / "versions" / f"{version:06d}" / "policy.onnx").read_bytes()


@pytest.fixture
def host(tmp_path: Path) -> Iterator[Host]:
    with ExitStack() as stack:
        yield Host(tmp_path, stack)


@pytest.fixture(scope="module")
def steady_host(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Host]:
    """A host to which nothing happens that lasts."""
    with ExitStack() as stack:
        host = Host(tmp_path_factory.mktemp("host"), stack)
        yield host
        assert host.unchanged


def wait_for(condition: Callable[[], Any], what: str) -> Any:
    end_s = time.monotonic() + DEADLINE_S
    while not (value := condition()):
        assert time.monotonic() < end_s, f"waited in vain for {what}"
        time.sleep(0.02)
    return value


def read_all(connection: socket.socket) -> bytes:
    """Return what comes until the other side ends; a connection that it cut ends, too."""
    parts = []
    with closing(connection):
        try:
            while part := connection.recv(65536):
                parts.append(part)
        except ConnectionError:
            pass
    return b"".join(parts)


# what it answers


def test_page_status_curves_and_metrics_are_served(steady_host: Host) -> None:
    for path, kind, part in (
        ("/", "text/html", b"<title>dpg-robot dashboard</title>"),
        ("/?from=bookmark", "text/html", b"dashboard.js"),
        ("/dashboard.js", "text/javascript", b"EventSource"),
        ("/dashboard.css", "text/css", b"prefers-color-scheme"),
        ("/api/status", "application/json", b'"name":"arm-1"'),
        ("/api/curves", "application/json", b'"denoiser/loss":[[10,'),
        ("/metrics", "text/plain", b'dpg_robot_gate_candidates{verdict="passed"} 2'),
    ):
        status, headers, body = steady_host.ask("GET", path)
        assert (status, headers["Content-Type"].split(";")[0]) == (200, kind)
        assert part in body
        head_status, head, nothing = steady_host.ask("HEAD", path)
        assert (head_status, nothing) == (200, b"")
        assert int(head["Content-Length"]) > 0


def test_events_tell_what_changes(host: Host) -> None:
    connection = http.client.HTTPConnection("127.0.0.1", host.port, timeout=DEADLINE_S)
    with closing(connection):
        connection.request("GET", "/api/events")
        stream = connection.getresponse()
        assert stream.getheader("Content-Type") == "text/event-stream"

        def next_event(kind: str) -> Any:
            while True:
                event, data = stream.readline(), stream.readline()
                assert stream.readline() == b"\n"
                if event == f"event: {kind}\n".encode():
                    return json.loads(data.removeprefix(b"data: "))

        assert next_event("status")["robots"][0]["stored_sequence"] == 99
        assert len(next_event("curves")["learning"]["denoiser/loss"]) == 1
        SITE.append(host.writer, SITE.make_ticks(100, 50))
        SITE.write_learning(host.folder / "learning", 20)
        end_s = time.monotonic() + DEADLINE_S
        while (status := next_event("status"))["robots"][0]["stored_sequence"] != 149 or status["learning"]["updates"] != 20:
            assert time.monotonic() < end_s
        assert next_event("curves")["learning"]["denoiser/loss"][-1][0] == 20


def test_with_the_key_an_older_version_becomes_current_by_a_signed_release(host: Host) -> None:
    assert host.roll_back() == (200, "version 1 is the current one")
    release = read_release(host.models, [host.signing.public])
    assert (release.number, release.reason) == (3, "version 1: it trembled")
    assert host.store.current.read_bytes() == host.policy(1)
    models = json.loads(host.ask("GET", "/api/status")[2])["models"]
    assert [version["number"] for version in models["versions"] if version["is_current"]] == [1], "at once"
    assert (models["releases"][0]["number"], models["releases"][0]["signature"]) == (3, "right")


def test_a_version_that_did_not_pass_or_is_not_there_is_refused(host: Host) -> None:
    status, message = host.roll_back(to=2)
    assert (status, "did not pass the gate" in message) == (409, True)
    status, message = host.roll_back(to=17)
    assert (status, "no version 17" in message) == (409, True)
    assert host.unchanged


def test_a_place_that_is_no_store_cannot_be_rolled_back(tmp_path: Path) -> None:
    with pytest.raises(PolicyFileError, match="no model store"):
        make_roll_back(tmp_path, None)
    assert list(tmp_path.iterdir()) == []


# the operator's key


def test_without_the_operators_key_nothing_is_rolled_back(host: Host) -> None:
    body = json.dumps({"to": 1, "reason": "mine"})
    kind = {"Content-Type": "application/json"}
    attempts = [
        "",
        "Bearer",
        "Bearer ",
        f"Basic {host.key}",
        host.key,
        f"Bearer {host.key[:-1]}",
        f"Bearer {host.key}x",
        "Bearer \xff",
    ]
    for attempt in attempts:
        headers = kind | ({"Authorization": attempt} if attempt else {})
        status, answer_headers, answer = host.ask("POST", "/api/rollback", body, headers)
        assert (status, answer_headers["WWW-Authenticate"]) == (401, "Bearer"), attempt
        assert b"nothing was changed" in answer
    assert host.unchanged


def test_the_hash_that_the_server_keeps_is_not_the_key(host: Host) -> None:
    kept = (host.folder / "operator.key").read_text().strip()
    assert host.key not in kept
    for stolen in (kept, kept.removeprefix("sha256:")):
        assert host.roll_back(key=stolen)[0] == 401
    assert host.unchanged


def test_who_tries_many_keys_is_not_heard_out_and_does_not_lock_out_the_operator(host: Host) -> None:
    answers = [host.roll_back(key=f"guess-{number}")[0] for number in range(15)]
    assert answers == [401] * 10 + [429] * 5
    assert host.unchanged
    assert host.roll_back()[0] == 200


def test_even_the_operator_can_only_roll_back_so_often(host: Host) -> None:
    answers = [host.roll_back(to=1 + 2 * (number % 2))[0] for number in range(12)]
    assert answers == [200] * 10 + [429] * 2
    assert max(host.store.releases()) == 12


def test_without_an_operators_key_file_nobody_can_roll_back(tmp_path: Path) -> None:
    with ExitStack() as stack:
        host = Host(tmp_path, stack)
        host.server.operator = None
        status, message = host.roll_back()
        assert (status, "without an operator's key" in message) == (403, True)
        assert host.unchanged


def test_the_file_of_the_operators_key_is_private_is_not_overwritten_and_is_checked(tmp_path: Path) -> None:
    path = tmp_path / "operator.key"
    key = OperatorKey.make(path)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert OperatorKey.load(path).matches(key)
    assert not OperatorKey.load(path).matches(key + "=")
    with pytest.raises(FileExistsError):
        OperatorKey.make(path)
    path.chmod(0o640)
    with pytest.raises(ConfigError, match="chmod 600"):
        OperatorKey.load(path)
    path.chmod(0o600)
    for content in (b"", b"sha256:", key.encode(), b"sha256:" + b"0" * 63, b"\x80\x04" * 100):
        path.write_bytes(content)
        with pytest.raises(ConfigError, match="no operator's key"):
            OperatorKey.load(path)


def test_a_rate_limit_forgets_and_stays_small() -> None:
    now_s = [0.0]
    limit = RateLimit(2, 60.0, lambda: now_s[0])
    assert [limit.allows("a") for _ in range(3)] == [True, True, False]
    assert limit.allows("b")
    now_s[0] = 61.0
    assert limit.allows("a")
    for number in range(5000):
        limit.allows(f"address {number}")
    assert len(limit._times) <= 1000


# other sites


@pytest.mark.parametrize(
    "headers",
    [
        {"Origin": "http://evil.example"},
        {"Origin": "null"},
        {"Origin": "https://127.0.0.1:{port}"},
        {"Origin": "http://127.0.0.1:1"},
        {"Sec_Fetch_Site": "cross-site"},
        {"Sec_Fetch_Site": "same-site"},
        {"Content_Type": "text/plain"},
        {"Content_Type": "application/x-www-form-urlencoded"},
    ],
    ids=str,
)
def test_another_sites_page_cannot_roll_back_even_with_the_key(steady_host: Host, headers: dict[str, str]) -> None:
    sent = {name: value.format(port=steady_host.port) for name, value in headers.items()}
    assert steady_host.roll_back(**sent)[0] in (403, 415)


def test_no_other_origin_is_let_in_by_cors(steady_host: Host) -> None:
    for method in ("GET", "OPTIONS"):
        status, headers, _ = steady_host.ask(method, "/api/status", headers={"Origin": "http://evil.example"})
        assert status == (200 if method == "GET" else 405)
        assert not [name for name in headers if name.lower().startswith("access-control")]
        assert headers["Cross-Origin-Resource-Policy"] == "same-origin"


@pytest.mark.parametrize("path", ["/api/status", "/api/events", "/metrics", "/dashboard.js"])
def test_a_browser_asks_for_nothing_in_the_name_of_another_site(steady_host: Host, path: str) -> None:
    assert steady_host.ask("GET", path, headers={"Sec-Fetch-Site": "cross-site"})[0] == 403


@pytest.mark.parametrize(
    "name", ["evil.example", "evil.example:80", "127.0.0.1.evil.example", "localhost.evil.example", "", "[::1", "a@localhost"]
)
def test_a_name_that_is_made_to_point_here_is_refused(steady_host: Host, name: str) -> None:
    for path in ("/", "/api/status"):
        status, _, body = steady_host.ask("GET", path, headers={"Host": name})
        assert (status, b"arm-1" in body) == (421, False)
    assert steady_host.roll_back(Host=name)[0] == 421


@pytest.mark.parametrize("name", ["localhost:1234", "LOCALHOST", "192.168.1.5:80", "[::1]:80"])
def test_addresses_and_own_names_are_answered(steady_host: Host, name: str) -> None:
    assert steady_host.ask("GET", "/", headers={"Host": name})[0] == 200


def test_two_host_headers_are_refused(steady_host: Host) -> None:
    answer = read_all(steady_host.send(b"GET / HTTP/1.1\r\nHost: localhost\r\nHost: evil.example\r\n\r\n"))
    assert b" 421 " in answer.splitlines()[0]


def test_the_page_allows_no_script_but_its_own_and_no_frame_around_it(steady_host: Host) -> None:
    _, headers, body = steady_host.ask("GET", "/")
    policy = dict(part.split(" ", 1) for part in headers["Content-Security-Policy"].split("; "))
    assert policy["default-src"] == policy["frame-ancestors"] == policy["base-uri"] == policy["form-action"] == "'none'"
    assert policy["script-src"] == policy["style-src"] == policy["connect-src"] == "'self'"
    assert policy["require-trusted-types-for"] == "'script'"
    assert headers["X-Frame-Options"] == "DENY"
    assert headers["X-Content-Type-Options"] == "nosniff"
    page = body.decode()
    assert not re.search(r"https?://|//[a-z]|<script(?! src=\"/)|\son[a-z]+=|\sstyle=", page), (
        "nothing inline, nothing from elsewhere"
    )
    script = steady_host.ask("GET", "/dashboard.js")[2].decode()
    assert not re.search(r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|\beval\b|new Function", script)
    for path in ("/api/status", "/metrics", "/nowhere"):
        assert steady_host.ask("GET", path)[1]["Content-Security-Policy"].startswith("default-src 'none'")


# paths and requests


@pytest.mark.parametrize(
    "path",
    [
        "/../../../../etc/passwd",
        "/..%2f..%2fetc/passwd",
        "/%2e%2e/dashboard_key.py",
        "/dashboard.js/../../dashboard_key.py",
        "/..\\..\\operator.key",
        "//etc/passwd",
        "/./",
        "/index.html",
        "/dashboard.js%00",
        "/api/status/",
        "/models/release.json",
        "http://evil.example/",
        "*",
        "etc/passwd",
    ],
)
def test_no_path_leads_out_of_the_page(steady_host: Host, path: str) -> None:
    answer = read_all(steady_host.send(f"GET {path} HTTP/1.1\r\nHost: localhost\r\n\r\n".encode()))
    assert b" 404 " in answer.splitlines()[0]
    assert b"root:" not in answer
    assert path.encode() not in answer, "nothing is repeated"


@pytest.mark.parametrize("method", ["PUT", "DELETE", "OPTIONS", "TRACE", "CONNECT", "PATCH", "get", "<script>"])
def test_other_methods_are_refused(steady_host: Host, method: str) -> None:
    answer = read_all(steady_host.send(f"{method} /api/rollback HTTP/1.1\r\nHost: localhost\r\n\r\n".encode()))
    assert answer.splitlines()[0].split()[1] in (b"405", b"501", b"400")
    assert b"<script>" not in answer


def test_rolling_back_is_no_get_and_reading_is_no_post(steady_host: Host) -> None:
    assert steady_host.ask("GET", "/api/rollback?to=1", headers={"Authorization": f"Bearer {steady_host.key}"})[0] == 405
    assert steady_host.ask("POST", "/api/status", b"{}")[0] == 405


BODIES = [
    b"",
    b"{",
    b"[]",
    b"[" * 4000,
    b"null",
    b'"x"',
    b'{"to": 1}',
    b'{"to": "1", "reason": "x"}',
    b'{"to": true, "reason": "x"}',
]
BODIES += [
    b'{"to": 1.0, "reason": "x"}',
    b'{"to": 1, "reason": ""}',
    b'{"to": 1, "reason": "a\\nb"}',
    b'{"to": 1, "reason": "\\ud800"}',
]
BODIES += [
    b'{"to": 1, "reason": 5}',
    b'{"to": 1, "reason": "x", "rejected": true}',
    b'{"to": 1, "reason": "%b"}' % (b"x" * 301),
    b"\xff",
]


@pytest.mark.parametrize("body", BODIES, ids=[str(body[:40]) for body in BODIES])
def test_a_body_that_is_no_rollback_is_refused(steady_host: Host, body: bytes) -> None:
    headers = {"Content-Type": "application/json", "Authorization": f"Bearer {steady_host.key}"}
    assert steady_host.ask("POST", "/api/rollback", body, headers)[0] == 400


@pytest.mark.parametrize(
    ("content", "statuses"),
    [
        (b"GET /" + b"a" * 100_000 + b" HTTP/1.1\r\n\r\n", (400, 413, 414)),
        (b"GET / HTTP/1.1\r\nHost: localhost\r\nX: " + b"a" * 100_000 + b"\r\n\r\n", (413, 431)),
        (b"GET / HTTP/1.1\r\n" + b"X: y\r\n" * 5000 + b"\r\n", (413, 431)),
        (b"POST /api/rollback HTTP/1.1\r\nHost: localhost\r\nContent-Length: 5000000000\r\n\r\n", (411, 413)),
        (b"POST /api/rollback HTTP/1.1\r\nHost: localhost\r\nContent-Length: 5000\r\n\r\n" + b"x" * 5000, (413,)),
        (b"POST /api/rollback HTTP/1.1\r\nHost: localhost\r\nContent-Length: -1\r\n\r\n", (411,)),
        (b"POST /api/rollback HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n", (411,)),
    ],
    ids=["line", "header", "headers", "announced body", "body", "negative body", "chunked body"],
)
def test_a_huge_request_is_refused_before_it_is_read(steady_host: Host, content: bytes, statuses: tuple[int, ...]) -> None:
    connection = socket.create_connection(("127.0.0.1", steady_host.port), timeout=DEADLINE_S)
    with suppress(ConnectionError):  # the server does not want all of it
        connection.sendall(content)
    answer = read_all(connection)
    assert not answer or int(answer.split()[1]) in statuses
    assert steady_host.ask("GET", "/")[0] == 200


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.binary(max_size=400), st.sampled_from([b"", b"GET ", b"POST /api/rollback HTTP/1.1\r\n", b"GET / HTTP/1.1\r\nHost: "]))
def test_any_other_bytes_get_an_answer_or_none_and_change_nothing(steady_host: Host, content: bytes, begin: bytes) -> None:
    connection = steady_host.send(begin + content)
    connection.shutdown(socket.SHUT_WR)
    answer = read_all(connection)
    assert not answer or answer.startswith((b"HTTP/1.0 ", b'{"error"'))
    assert steady_host.unchanged


# slow and many connections


def test_a_request_that_comes_drop_by_drop_is_cut_off_in_time(steady_host: Host) -> None:
    connection = steady_host.send(b"GET / HTTP/1.1\r\nHost: localhost\r\nX: ")

    def drip() -> None:
        end_s = time.monotonic() + DEADLINE_S  # far more than a request may take
        while time.monotonic() < end_s:
            connection.sendall(b"y")
            time.sleep(0.1)

    with pytest.raises(ConnectionError), closing(connection):
        drip()


def test_slow_connections_from_one_address_hold_up_nobody_else_and_are_cut_off(steady_host: Host) -> None:
    slow = [steady_host.send(b"GET / HT", "127.0.0.2") for _ in range(3 * LIMITS.connections_each)]
    assert steady_host.ask("GET", "/api/status")[0] == 200, "from another address, at once"
    assert all(read_all(connection) == b"" for connection in slow)
    wait_for(lambda: not steady_host.server._open["127.0.0.2"], "the end of the slow connections")
    assert read_all(steady_host.send(b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n", "127.0.0.2"))


def test_streams_are_bounded_and_end_with_their_readers(steady_host: Host) -> None:
    request = b"GET /api/events HTTP/1.1\r\nHost: localhost\r\n\r\n"
    streams = [steady_host.send(request, "127.0.0.3") for _ in range(12)]
    assert all(stream.recv(12) == b"HTTP/1.0 200" for stream in streams)
    assert b" 503 " in read_all(steady_host.send(request, "127.0.0.3")).splitlines()[0]
    assert steady_host.ask("GET", "/")[0] == 200
    for stream in streams:
        stream.close()
    wait_for(lambda: not steady_host.server.streams._open, "the end of the streams")


def test_who_does_not_take_the_answer_is_left(steady_host: Host) -> None:
    connection = socket.socket()
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    connection.bind(("127.0.0.4", 0))
    connection.connect(("127.0.0.1", steady_host.port))
    connection.sendall(b"GET /api/events HTTP/1.1\r\nHost: localhost\r\n\r\n")
    wait_for(lambda: steady_host.server._open["127.0.0.4"], "the stream")
    wait_for(lambda: not steady_host.server._open["127.0.0.4"], "the server to leave a reader who does not read")
    connection.close()


# TLS


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    folder = tmp_path_factory.mktemp("certificate")
    command = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", "/CN=localhost"]
    command += ["-addext", "subjectAltName=DNS:localhost", "-keyout", str(folder / "key.pem"), "-out", str(folder / "cert.pem")]
    subprocess.run(command, check=True, capture_output=True, cwd=folder)
    return folder / "cert.pem", folder / "key.pem"


def test_with_tls_the_page_is_served_and_a_handshake_that_stalls_holds_up_nobody(
    tmp_path: Path, certificate: tuple[Path, Path]
) -> None:
    tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    tls.load_cert_chain(*certificate)
    with ExitStack() as stack:
        host = Host(tmp_path, stack, tls=tls)
        silent = [host.send(b"", "127.0.0.2") for _ in range(10)]
        context = ssl.create_default_context(cafile=str(certificate[0]))
        connection = http.client.HTTPSConnection("localhost", host.port, timeout=DEADLINE_S, context=context)
        with closing(connection):
            connection.request("GET", "/api/status")
            assert json.loads(connection.getresponse().read())["robots"][0]["name"] == "arm-1"
        body, headers = (
            json.dumps({"to": 1, "reason": "x"}),
            {"Authorization": f"Bearer {host.key}", "Content-Type": "application/json"},
        )
        for origin, status in ((f"http://localhost:{host.port}", 403), (f"https://localhost:{host.port}", 200)):
            connection = http.client.HTTPSConnection("localhost", host.port, timeout=DEADLINE_S, context=context)
            with closing(connection):
                connection.request("POST", "/api/rollback", body, headers | {"Origin": origin})
                assert connection.getresponse().status == status
        assert all(read_all(connection) == b"" for connection in silent), "each is cut off in time"
        assert not read_all(host.send(b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n")).startswith(b"HTTP"), "nothing without TLS"
