"""Carries out runs of a benchmark, several at once, each in a process of its own."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
import time
import traceback
from collections import deque
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from typing import Any, Generic, TypeVar

_REPORT_EVERY_S = 0.5
_THREAD_VARIABLES = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")

R = TypeVar("R")
V = TypeVar("V")
Progress = Callable[[int], object]


@dataclass(frozen=True)
class Finished(Generic[R, V]):
    """How a run ended.

    Attributes:
        run: the run.
        elapsed_s: time from start to end, the start of its process included, s.
        value: what its work returned, None when it failed.
        error: why it failed, a traceback where there is one; empty when it did not.
    """

    run: R
    elapsed_s: float
    value: V | None
    error: str = ""


def _ignore(_: int) -> None:
    pass


def run_in_processes(
    runs: Sequence[R], work: Callable[[R, Progress], V], jobs: int, progress: Progress = _ignore
) -> Generator[Finished[R, V], None, None]:
    """Carry out runs in up to ``jobs`` processes at once and yield each as it ends; a failing one does not stop the others.

    When the iteration is left early (as by Ctrl-C), all processes are ended.

    Args:
        runs: what to run, in this order.
        work: called in a fresh process with a run and a function that takes the progress made since its last call. It is sent
            there by pickle, as is what it returns.
        jobs: number of processes.
        progress: called with the progress made since its last call, and with a negative number when a run failed.
    """
    waiting, active = deque(runs), list[_Process[R, V]]()
    try:
        while waiting or active:
            while waiting and len(active) < jobs:
                active.append(_Process(waiting.popleft(), work))
            ready = wait([process.connection for process in active])
            for process in [each for each in active if each.connection in ready]:
                finished = process.receive(progress)
                if finished is not None:
                    active.remove(process)
                    yield finished
    finally:
        for process in active:
            process.end()


class _Process(Generic[R, V]):
    """One run in a fresh process, which has today's code, no threads of others, and takes only itself down."""

    def __init__(self, run: R, work: Callable[[R, Progress], V]) -> None:
        self._run = run
        self._progress = 0
        self._started = time.perf_counter()
        context = multiprocessing.get_context("spawn")
        self.connection, theirs = context.Pipe(duplex=False)
        name = str(getattr(run, "title", run))
        self._process = context.Process(target=_work, args=(run, work, theirs), name=name, daemon=True)
        with _one_thread_for_children():
            self._process.start()
        theirs.close()

    def receive(self, progress: Progress) -> Finished[R, V] | None:
        """Take in one message; returns how the run ended once it has."""
        try:
            kind, value = self.connection.recv()
        except EOFError:
            self._process.join()
            kind, value = "error", f"its process ended with exit code {self._process.exitcode}"
        if kind == "progress":
            self._progress += value
            progress(value)
            return None
        elapsed_s = time.perf_counter() - self._started
        self._process.join()
        self.connection.close()
        if kind == "error":
            progress(-self._progress)
            return Finished(self._run, elapsed_s, None, value)
        return Finished(self._run, elapsed_s, value)

    def end(self) -> None:
        """End the process at once."""
        self._process.terminate()
        self._process.join()
        self.connection.close()


@contextmanager
def _one_thread_for_children() -> Iterator[None]:
    """Let processes that start now compute with one thread; libraries read this when they are loaded."""
    before = {name: os.environ.get(name) for name in _THREAD_VARIABLES}
    os.environ.update(dict.fromkeys(_THREAD_VARIABLES, "1"))
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


def _work(run: R, work: Callable[[R, Progress], V], connection: Connection) -> None:
    """Carry out a run in this process and send how it goes."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches everyone; the process that started this one ends it
    threading.Thread(target=_end_with_parent, daemon=True).start()
    report = _Throttled(connection)
    message: tuple[str, Any]
    with suppress(BrokenPipeError):  # nobody waits for this run any more
        try:
            message = ("value", work(run, report.add))
        except BrokenPipeError:
            raise
        except Exception:
            message = ("error", traceback.format_exc())
        report.flush()
        connection.send(message)


def _end_with_parent() -> None:
    """End this process when the one that started it is killed, as nobody would see its progress or end it."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


class _Throttled:
    """Sends progress, summed up over a while."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._progress = 0
        self._sent = time.monotonic()

    def add(self, progress: int) -> None:
        self._progress += progress
        if time.monotonic() - self._sent > _REPORT_EVERY_S:
            self.flush()

    def flush(self) -> None:
        self._connection.send(("progress", self._progress))
        self._progress, self._sent = 0, time.monotonic()
