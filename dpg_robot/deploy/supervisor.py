"""The parent of a run: starts the control process and the log process, watches both, and reports how it went.

The robot is owned by the control process and the log by the log process, so that neither can hold up the other. Whichever dies,
the rest ends in order: the robot stops first, then the log is closed.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

from dpg_robot.data.log_process import run_log_process
from dpg_robot.data.log_writer import new_run_id
from dpg_robot.data.ring import Ring
from dpg_robot.data.transition import LoopState, tick_dtype
from dpg_robot.deploy.control_block import ControlBlock, Progress, StopRequest
from dpg_robot.deploy.control_process import STOP_SIGNALS, ControlArguments, name_process, run_control_process
from dpg_robot.deploy.policy_updates import UpdateState
from dpg_robot.deploy.release_watch import ReleaseThread, ReleaseWatch
from dpg_robot.deploy.robot import Robot
from dpg_robot.deploy.run_config import RunSettings
from dpg_robot.errors import DpgError
from dpg_robot.files import write_atomically
from dpg_robot.policy_file import PolicyMetadata, read_policy_file

_RING_SECONDS = 4.0
_POLL_S = 0.2
_STOP_BOUND_S = 5.0  # for a process to end after it was asked to; only a hanging driver or disk takes so long
_DRAIN_BOUND_S = 15.0  # for the log process to write what is left, on a slow disk


@dataclass(frozen=True)
class RunResult:
    """How a run ended.

    Attributes:
        exit_code: 0 when all went well, 128 + number of the signal that stopped it, 1 for anything else.
        exit_reason: one line.
        folder: the run's folder in the log.
        summary: what ``summary.json`` in that folder says.
    """

    exit_code: int
    exit_reason: str
    folder: Path
    summary: dict[str, Any]


def supervise(settings: RunSettings, *, quiet: bool = False, releases: ReleaseWatch | None = None) -> RunResult:
    """Run the robot as ``settings`` say, until all episodes are done or something stops it.

    SIGINT and SIGTERM stop the robot. Must be called in the main thread, by a program whose main module may be imported (with
    ``if __name__ == "__main__"``), because the processes of the run are spawned.

    Args:
        settings: the run.
        quiet: do not show progress on stderr.
        releases: where new policies come from while the robot runs, its ``begin_run`` called; None: the run keeps the one that
            it begins with.

    Raises:
        PolicyFileError: the policy file cannot be used.
        ContractError: the policy was not made for this robot. Nothing was started in either case.
    """
    _, metadata = read_policy_file(settings.policy)
    settings.robot.require_fit(metadata.contract, settings.policy)
    return _Run(settings, metadata, quiet, None if settings.shadow else releases).carry_out()


class _Run:
    """The processes of one run and what is known about them."""

    def __init__(self, settings: RunSettings, metadata: PolicyMetadata, quiet: bool, releases: ReleaseWatch | None) -> None:
        self._settings, self._metadata, self._releases = settings, metadata, releases
        self._progress = _ProgressLine(settings.episodes, enabled=not quiet)
        self._run_id = new_run_id()
        self._started_wall_s = time.time()
        self._signal: signal.Signals | None = None
        self._stop_since_s: float | None = None
        self._log_died_first = False
        self._loop: dict[str, Any] | None = None
        self._rescuer: Robot | None = None
        self._no_rescue = ""

    def carry_out(self) -> RunResult:
        """Start the processes, wait for their end in order, and write the summary."""
        contract = self._metadata.contract
        capacity = max(64, round(_RING_SECONDS * contract.rate_hz))
        context = multiprocessing.get_context("spawn")
        with ExitStack() as stack:
            self._ring = stack.enter_context(Ring.create(tick_dtype(contract.num_measurements, contract.num_actions), capacity))
            self._block = stack.enter_context(closing(ControlBlock.create()))
            results, sender = context.Pipe(duplex=False)
            offers, self._offers = context.Pipe(duplex=False)
            self._log = context.Process(target=_run_log_process, kwargs=self._log_arguments(), name="robot-log")
            control_arguments = ControlArguments(self._settings, self._ring.name, self._block.name, os.getpid())
            self._control = context.Process(
                target=run_control_process, args=(control_arguments, sender, offers), name="robot-control"
            )
            with self._signals_stop_the_robot():
                with _stop_signals_blocked():  # until the children can act on them
                    self._log.start()
                    stack.callback(_end, self._log, 0.0)
                    self._control.start()
                    stack.callback(_end, self._control, 0.0)
                sender.close()
                offers.close()
                self._prepare_rescue()
                thread = None if self._releases is None else self._follow_releases(self._releases)
                self._watch(results)
                if self._loop is None and not self._settings.shadow:
                    self._rescue()
                self._ring.finish()
                _end(self._log, _DRAIN_BOUND_S)
                if thread is not None:
                    self._end_releases(thread)
            return self._report()

    def _prepare_rescue(self) -> None:
        """Load the driver now: when the control process has died, a busy computer takes seconds to do so."""
        try:
            self._rescuer, _ = self._settings.robot.make(self._metadata.contract)
        except DpgError as error:
            self._no_rescue = str(error)  # the control process says so too, and ends

    def _rescue(self) -> None:
        """Stop the robot from here, because the process that should have done it died."""
        if self._rescuer is None:
            print(f"robot: it could not be stopped: {self._no_rescue}", file=sys.stderr)
            return
        self._rescuer.rescue()

    def _log_arguments(self) -> dict[str, Any]:
        contract, robot = self._metadata.contract, self._settings.robot
        return {
            "ring_name": self._ring.name,
            "num_measurements": contract.num_measurements,
            "num_actions": contract.num_actions,
            "folder": str(self._settings.log_folder),
            "run_id": self._run_id,
            "contract_dict": contract.to_dict(),
            "metadata": {"policy_id": self._metadata.policy_id, "robot": robot.name, "seed": str(self._settings.seed)},
        }

    @contextmanager
    def _signals_stop_the_robot(self) -> Iterator[None]:
        previous = {number: signal.signal(number, self._on_signal) for number in STOP_SIGNALS}
        try:
            yield
        finally:
            for number, handler in previous.items():
                signal.signal(number, handler)

    def _on_signal(self, number: int, frame: object) -> None:
        self._signal = self._signal or signal.Signals(number)
        self._request_stop(StopRequest.USER)

    def _request_stop(self, request: StopRequest) -> None:
        self._block.request_stop(request)
        self._stop_since_s = self._stop_since_s or time.monotonic()
        if self._control.pid is not None:
            self._control.terminate()  # wakes it up if it sleeps

    def _watch(self, results: Connection) -> None:
        """Wait until the control process has ended; stop it when the log process dies, and by force when it does not stop."""
        sources: list[Any] = [self._control.sentinel, self._log.sentinel, results]
        while self._control.exitcode is None:
            ready = wait(sources, timeout=_POLL_S)
            if results in ready:
                sources.remove(results)
                self._loop = _receive(results)
            if self._log.sentinel in ready:
                sources.remove(self._log.sentinel)
                if not self._ring.finished:
                    self._log_died_first = True
                    self._request_stop(StopRequest.LOG_PROCESS_DIED)
            if self._stop_since_s is not None and time.monotonic() - self._stop_since_s > _STOP_BOUND_S:
                self._control.kill()  # the device's own watchdog stops the motors
            self._progress.show(self._block.progress)
        if results in sources and results.poll():
            self._loop = _receive(results)
        self._progress.end()

    def _follow_releases(self, releases: ReleaseWatch) -> ReleaseThread:
        rate_hz = self._metadata.contract.rate_hz

        def look() -> tuple[UpdateState, int, float]:
            state, release, watched = self._block.update
            return state, release, watched / rate_hz

        return ReleaseThread(releases, look, self._offers.send_bytes, self._settings.robot.updates.poll_s)

    def _end_releases(self, thread: ReleaseThread) -> None:
        """Let it remember how the run ended for a policy on trial."""
        exit_code, reason = self._outcome()
        events = self._loop["updates"] if self._loop is not None else []
        refused = {event["release"]: event["reason"] for event in events if event["state"] == UpdateState.REFUSED.name.lower()}
        has_acted = bool(self._transitions())
        thread.end(reason if exit_code == 1 else "", has_acted=has_acted, reasons=refused)

    def _report(self) -> RunResult:
        exit_code, reason = self._outcome()
        folder = self._settings.log_folder / self._run_id
        status, loop = self._ring.status, self._loop
        summary = {
            "run_id": self._run_id,
            "exit_code": exit_code,
            "exit_reason": reason,
            "robot": self._settings.robot.name,
            "policy": str(self._settings.policy),
            "policy_id": self._metadata.policy_id,
            "exploration": self._settings.exploration,
            "shadow": self._settings.shadow,
            "seed": self._settings.seed,
            "started_wall_s": round(self._started_wall_s, 3),
            "duration_s": round(time.time() - self._started_wall_s, 3),
            "transitions": self._transitions(),
            "log": {
                "records": self._ring.pushed,
                "written": status.acknowledged_sequence + 1,
                "overruns": self._ring.overruns,
                "torn": status.torn,
                "state": status.state.name.lower(),
            },
            "loop": loop,
        }
        try:
            folder.mkdir(parents=True, exist_ok=True)
            write_atomically(folder / "summary.json", (json.dumps(summary, indent=2) + "\n").encode())
        except OSError as error:
            reason += f"; the summary cannot be written to {folder}: {error.strerror or error}"
            exit_code = exit_code or 1
        return RunResult(exit_code, reason, folder, summary)

    def _transitions(self) -> int | None:
        """Return how many transitions were recorded; None if that is not known. What a shadow would have done is none."""
        if self._loop is None:
            return None
        return 0 if self._settings.shadow else sum(episode["steps"] for episode in self._loop["episodes"])

    def _outcome(self) -> tuple[int, str]:
        log_end, loop = _describe_end("log process", self._log), self._loop
        problems = []
        if self._log_died_first:
            problems.append(f"{log_end or 'the log process ended'} while the robot was running, so the robot was stopped")
        elif loop is None:
            problems.append(_describe_end("control process", self._control) or "the control process ended without a report")
        elif loop["fault"]:
            problems.append(loop["reason"])
        if log_end and not self._log_died_first:
            problems.append(log_end)
        if problems:
            return 1, "; ".join(problems)
        if self._signal is not None:
            return 128 + self._signal, f"stopped by {self._signal.name}"
        finished = loop is not None and loop["reason"] == "finished"
        return (0, "finished") if finished else (1, loop["reason"] if loop else "unknown")


class _ProgressLine:
    """One line on stderr: kept up to date on a terminal, written when the episode changes elsewhere."""

    def __init__(self, episodes: int, *, enabled: bool) -> None:
        self._episodes, self._enabled, self._live = episodes, enabled, sys.stderr.isatty()
        self._last: tuple[LoopState, int] | None = None
        self._ticks, self._time_s, self._rate_hz = 0, time.monotonic(), 0.0

    def show(self, progress: Progress) -> None:
        """Show how far the loop is."""
        now_s = time.monotonic()
        if now_s - self._time_s >= 1.0:
            self._rate_hz = (progress.ticks - self._ticks) / (now_s - self._time_s)
            self._ticks, self._time_s = progress.ticks, now_s
        changed = (progress.state, progress.episode) != self._last
        self._last = (progress.state, progress.episode)
        if not self._enabled or not (self._live or changed):
            return
        episode = f"episode {progress.episode + 1}/{self._episodes}, step {progress.step}, " if progress.episode >= 0 else ""
        line = f"{progress.state.name.lower()}: {episode}{self._rate_hz:.1f} Hz, {progress.missed} periods missed"
        print(f"\r{line:79}" if self._live else line, end="" if self._live else "\n", file=sys.stderr, flush=True)

    def end(self) -> None:
        """Leave the line."""
        if self._enabled and self._live:
            print(file=sys.stderr)


def _run_log_process(**arguments: Any) -> None:
    """Run the log process, which the supervisor starts with stop signals blocked; Ctrl-C is not for it."""
    name_process("robot-log")
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, STOP_SIGNALS)
    try:
        run_log_process(**arguments)
    except DpgError as error:
        raise SystemExit(f"log process: {error}") from error


@contextmanager
def _stop_signals_blocked() -> Iterator[None]:
    previous = signal.pthread_sigmask(signal.SIG_BLOCK, STOP_SIGNALS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, previous)


def _receive(results: Connection) -> dict[str, Any] | None:
    try:
        report: dict[str, Any] = json.loads(results.recv_bytes())
    except EOFError:  # it died before it could report
        return None
    return report


def _end(process: BaseProcess, patience_s: float) -> None:
    """Wait for the end of a process, then ask for it, then force it."""
    process.join(patience_s)
    for force in (process.terminate, process.kill):
        if process.exitcode is None:
            force()
            process.join(_STOP_BOUND_S)


def _describe_end(name: str, process: BaseProcess) -> str:
    """Return how a process failed, empty if it did not."""
    code = process.exitcode
    if code == 0:
        return ""
    if code is not None and code < 0:
        return f"the {name} was killed by {signal.Signals(-code).name}"
    return f"the {name} failed with exit code {code}"
