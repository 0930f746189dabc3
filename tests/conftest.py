"""Tests in real time are repeated where this computer, not the code, failed to keep it: ``pytest --retry-stalled 5``.

A robot's loop must stop where its computer gives it no time. So on a shared machine that stands still for a moment a test that
expects the loop to go on fails, rightly, and says nothing. With the option one watcher per processor notes each such moment, and
a test that failed is repeated only where one fell into it; any other failure stands at once.
"""

import contextlib
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from dpg_robot.contract import Contract
from dpg_robot.data.log_writer import LogWriter
from dpg_robot.data.transition import EpisodeEnd, LoopState, tick_dtype
from dpg_robot.data.transition_arrays import TransitionArrays

STALL_S = 0.03  # half of the shortest patience with a sensor in these tests
WATCHER = Path(__file__).with_name("stall_watch.py")
WATCH = pytest.StashKey["StallWatch"]()
BEGAN_S = pytest.StashKey[float]()


class StallWatch:
    """The moments in which a processor of this computer gave an ordinary process no time."""

    def __init__(self) -> None:
        self.longest_s = 0.0
        self._stalls: list[tuple[float, float]] = []
        self._watchers = [self._start(processor) for processor in sorted(os.sched_getaffinity(0))]

    def _start(self, processor: int) -> subprocess.Popen[str]:
        command = [sys.executable, str(WATCHER), str(processor), str(STALL_S)]
        watcher = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        threading.Thread(target=self._read, args=(watcher,), daemon=True).start()
        return watcher

    def _read(self, watcher: subprocess.Popen[str]) -> None:
        assert watcher.stdout is not None
        for line in watcher.stdout:
            start_s, end_s = map(float, line.split())
            self._stalls.append((start_s, end_s))
            self.longest_s = max(self.longest_s, end_s - start_s)

    def stalled_since(self, start_s: float) -> bool:
        """Whether a processor stood still at any time after ``start_s`` (s of ``time.monotonic``)."""
        time.sleep(2 * STALL_S)  # a stall is told at its end
        return any(end_s > start_s for _, end_s in list(self._stalls))

    def summary(self) -> str:
        least_ms, longest_ms = STALL_S * 1e3, self.longest_s * 1e3
        return f"this computer stood still {len(self._stalls)} times for more than {least_ms:g} ms, at most {longest_ms:.0f} ms"

    def close(self) -> None:
        for watcher in self._watchers:
            with contextlib.suppress(ProcessLookupError):
                watcher.kill()
            watcher.wait()


def pytest_addoption(parser: pytest.Parser) -> None:
    explanation = "repeat a failed test up to N times if this computer stood still while it ran (default 0: never)"
    parser.addoption("--retry-stalled", type=int, default=0, metavar="N", help=explanation)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    retries = config.getoption("--retry-stalled")
    if not retries or config.option.collectonly:
        return
    watch = config.stash[WATCH] = StallWatch()
    for item in items:
        item.add_marker(pytest.mark.flaky(reruns=retries, reruns_delay=2, condition=_Stalled(item, watch)))


class _Stalled:
    """Whether the computer stood still in the present attempt of one test."""

    def __init__(self, item: pytest.Item, watch: StallWatch) -> None:
        self._item = item
        self._watch = watch

    def __call__(self) -> bool:
        return self._watch.stalled_since(self._item.stash[BEGAN_S])


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item: pytest.Item) -> None:
    item.stash[BEGAN_S] = time.monotonic()


@pytest.hookimpl(wrapper=True)
def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> Iterator[None]:
    if WATCH in config.stash:
        terminalreporter.write_line(config.stash[WATCH].summary())
    return (yield)


def pytest_unconfigure(config: pytest.Config) -> None:
    if WATCH in config.stash:
        config.stash[WATCH].close()


def _write_run(folder: Path, name: str, transitions: TransitionArrays, contract: Contract) -> None:
    """Write transitions of one episode as a run of a robot log."""
    count = len(transitions)
    records = np.zeros(count + 1, tick_dtype(contract.num_measurements, contract.num_actions))
    records["sequence"] = records["period"] = records["step"] = np.arange(count + 1)
    records["state"], records["valid"] = LoopState.RUNNING, True
    records["episode_end"] = EpisodeEnd.NOT_ENDED
    records["episode_end"][-1] = EpisodeEnd.TIMEOUT
    records["time_ns"] = records["wall_ns"] = np.arange(count + 1) * contract.period_ns
    records["measurement"][:-1], records["measurement"][-1] = transitions.measurement, transitions.next_measurement[-1]
    for field in ("action", "intended_action", "command"):
        records[field][:-1] = getattr(transitions, field)
    writer = LogWriter(folder, name, contract)
    writer.append(records)
    writer.close()


@pytest.fixture(scope="session")
def write_run() -> Callable[[Path, str, TransitionArrays, Contract], None]:
    """A function that writes transitions of one episode as run ``name`` into a log folder."""
    return _write_run
