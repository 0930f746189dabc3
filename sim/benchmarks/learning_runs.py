"""Carries out learning runs, several at once, each in a process of its own."""

from __future__ import annotations

import multiprocessing
import os
import signal
import time
import traceback
from collections import deque
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any

import torch

from sim.benchmarks.learning_evaluation import Evaluator
from sim.benchmarks.learning_ours import train_ours
from sim.benchmarks.learning_peers import train_peer
from sim.benchmarks.learning_protocol import OurConfig, Run
from sim.benchmarks.learning_results import Result, describe_code, describe_versions, now, write_result

_REPORT_EVERY_S = 0.5
_THREAD_VARIABLES = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")


@dataclass(frozen=True)
class Finished:
    """How a run ended.

    Attributes:
        run: the run.
        elapsed_s: time from start to end, evaluations and start of the process included, s.
        result: None when it failed.
        error: why it failed, a traceback where there is one; empty when it did not.
    """

    run: Run
    elapsed_s: float
    result: Result | None
    error: str = ""


def execute(run: Run, progress: Callable[[int], object]) -> Result:
    """Carry out one run in this process.

    Args:
        run: what to run.
        progress: called with the frames used since its last call.
    """
    torch.set_num_threads(1)
    code = describe_code()  # before the run: files may change while it is on its way
    started = time.perf_counter()
    evaluator = Evaluator(run)
    if isinstance(run.settings, OurConfig):
        updates = train_ours(run, run.settings, evaluator, progress)
    else:
        updates = train_peer(run, run.settings, evaluator, progress)
    training_s = time.perf_counter() - started - evaluator.elapsed_s
    return Result(evaluator.curve, round(training_s, 3), updates, describe_versions(), code, now())


def execute_all(
    runs: Sequence[Run], folder: Path, jobs: int, progress: Callable[[int], object]
) -> Generator[Finished, None, None]:
    """Carry out runs in up to ``jobs`` processes at once and yield each as it ends; a failing one does not stop the others.

    Results are written to ``folder`` when a run is over; what is stopped before leaves nothing. When the iteration is left
    early (as by Ctrl-C), all processes are ended.

    Args:
        runs: what to run, in this order.
        folder: folder of all results.
        jobs: number of processes.
        progress: called with the frames used since its last call, and with a negative number when a run failed.
    """
    waiting, active = deque(runs), list[_Process]()
    try:
        while waiting or active:
            while waiting and len(active) < jobs:
                active.append(_Process(waiting.popleft(), folder))
            ready = wait([process.connection for process in active])
            for process in [each for each in active if each.connection in ready]:
                finished = process.receive(progress)
                if finished is not None:
                    active.remove(process)
                    yield finished
    finally:
        for process in active:
            process.end()


class _Process:
    """One run in a fresh process, which has today's code, no threads of others, and takes only itself down."""

    def __init__(self, run: Run, folder: Path) -> None:
        self._run = run
        self._frames = 0
        self._started = time.perf_counter()
        context = multiprocessing.get_context("spawn")
        self.connection, theirs = context.Pipe(duplex=False)
        self._process = context.Process(target=_work, args=(run, folder, theirs), name=run.title, daemon=True)
        with _one_thread_for_children():
            self._process.start()
        theirs.close()

    def receive(self, progress: Callable[[int], object]) -> Finished | None:
        """Take in one message; returns how the run ended once it has."""
        try:
            kind, value = self.connection.recv()
        except EOFError:
            self._process.join()
            kind, value = "error", f"its process ended with exit code {self._process.exitcode}"
        if kind == "frames":
            self._frames += value
            progress(value)
            return None
        elapsed_s = time.perf_counter() - self._started
        self._process.join()
        self.connection.close()
        if kind == "error":
            progress(-self._frames)
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


def _work(run: Run, folder: Path, connection: Connection) -> None:
    """Carry out a run in this process and send how it goes."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches everyone; the process that started this one ends it
    report = _Throttled(connection)
    message: tuple[str, Any]
    with suppress(BrokenPipeError):  # nobody waits for this run any more
        try:
            result = execute(run, report.add)
            write_result(folder, run, result)
            message = ("result", result)
        except BrokenPipeError:
            raise
        except Exception:
            message = ("error", traceback.format_exc())
        report.flush()
        connection.send(message)


class _Throttled:
    """Sends frames, summed up over a while."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._frames = 0
        self._sent = time.monotonic()

    def add(self, frames: int) -> None:
        self._frames += frames
        if time.monotonic() - self._sent > _REPORT_EVERY_S:
            self.flush()

    def flush(self) -> None:
        self._connection.send(("frames", self._frames))
        self._frames, self._sent = 0, time.monotonic()
