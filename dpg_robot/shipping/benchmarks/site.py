"""The programs of shipping as processes on this machine: server, receiver and sender, started again when they end."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import psutil

from dpg_robot.data.log_format import SEGMENT_PATTERN
from dpg_robot.errors import LogError
from dpg_robot.shipping.keys import make_key
from dpg_robot.shipping.nats_link import HOST_NAME, Link

ROBOT = "robot"
_END_S = 15.0
_POLL_S = 0.05


class Site:
    """Keys, folders and processes of a host and a robot in one folder.

    Attributes:
        log: the robot's log folder.
        store: the host's store.
        port: the server's.
    """

    def __init__(self, folder: Path, program: Path) -> None:
        """Make keys and folders; ``program`` is ``launch/ship.py``."""
        self.log, self.store = folder / "log", folder / "store"
        self._folder, self._keys, self._program = folder, folder / "keys", program
        self._processes: dict[str, subprocess.Popen[bytes]] = {}
        self._commands: dict[str, list[str]] = {}
        self.port = _free_port()
        self.log.mkdir(parents=True)
        for name in (HOST_NAME, ROBOT):
            make_key(self._keys, name)

    def link(self, name: str) -> Link:
        """Return how a user reaches the server."""
        return Link(f"nats://127.0.0.1:{self.port}", self._keys / f"{name}.seed")

    def serve(self) -> None:
        """Start the server."""
        self._start("server", "serve", "--folder", self._folder / "server", "--keys", self._keys, f"serve.port={self.port}")
        wait_for(self._is_reachable, "the server")

    def receive(self) -> None:
        """Start the host's side."""
        link = self.link(HOST_NAME)
        arguments = ["--store", self.store, "--server", link.url, "--key", link.key, "receive.min_free_bytes=100000000"]
        self._start("receiver", "receive", *arguments)

    def send(self, port: int) -> None:
        """Start the robot's side, which reaches the server at ``port``."""
        arguments = ["--robot", ROBOT, "--log", self.log, "--key", self.link(ROBOT).key]
        self._start("sender", "send", *arguments, "--server", f"nats://127.0.0.1:{port}")

    def kill(self, name: str, *, program_of_server: bool = True) -> None:
        """Kill a process; of the server either its own program, or the one of ours that watches it."""
        process = self._processes[name]
        if name == "server" and program_of_server:
            for child in psutil.Process(process.pid).children():
                child.kill()
            return
        process.kill()
        process.wait()

    def restart_ended(self) -> None:
        """Start again what has ended."""
        for name, process in self._processes.items():
            if process.poll() is not None:
                self._spawn(name)

    def is_complete(self) -> bool:
        """Whether the store has every segment of the log whole."""
        return len(list(self.store.glob(f"{ROBOT}/*/*.seal.json"))) == len(list(self.log.glob(f"*/{SEGMENT_PATTERN}")))

    def stop(self) -> None:
        """End all processes in good order."""
        for name in reversed(self._processes):
            process = self._processes[name]
            process.send_signal(signal.SIGTERM)
            try:
                process.wait(_END_S)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        self._processes.clear()

    def last_words(self) -> str:
        """Return what the processes said last."""
        return "; ".join(f"{path.stem}: {path.read_text(errors='replace')[-300:]!r}" for path in self._folder.glob("*.txt"))

    def _start(self, name: str, *arguments: object) -> None:
        self._commands[name] = [sys.executable, str(self._program), *map(str, arguments)]
        self._spawn(name)

    def _spawn(self, name: str) -> None:
        with (self._folder / f"{name}.txt").open("ab") as output:
            self._processes[name] = subprocess.Popen(self._commands[name], stdout=output, stderr=output, env=os.environ)

    def _is_reachable(self) -> bool:
        try:
            with socket.create_connection(("127.0.0.1", self.port), timeout=1.0) as connection:
                return connection.recv(4) == b"INFO"
        except OSError:
            return False


def wait_for(condition: Callable[[], bool], what: str, seconds: float = 60.0) -> None:
    """Poll until something is so; raises LogError when it takes too long."""
    end_s = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > end_s:
            raise LogError(f"waited {seconds:.0f} s in vain for {what}")
        time.sleep(_POLL_S)


def _free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])
