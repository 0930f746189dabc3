"""One kill of a recording robot: what of its log is left, can it be recovered, and do MCAP's own readers open it then?"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import psutil
from mcap.reader import make_reader

from dpg_robot.data.benchmarks.processor_time import processor_wait_s
from dpg_robot.data.log_format import SEGMENT_PATTERN
from dpg_robot.data.log_recovery import recover_log
from dpg_robot.data.robot_log import check_log, read_records
from dpg_robot.errors import DpgError

VICTIMS = ("log process", "robot", "both")
MOST_LOST_S = 0.25
_MODULE = "dpg_robot.data.benchmarks.synthetic_robot"
_LOG_MODULE = "dpg_robot.data.log_process"
_RUN = "run"
_PATIENCE_S = 60.0
_WINDOW_S = 2.0  # within which the kill comes, from the first record on disk; the log is flushed every 0.2 s


@dataclass
class Kill:
    """What one kill did.

    Attributes:
        victim: who was killed: the log process, the robot whose records it writes, or both at once.
        after_s: time from the first record on disk to the kill, s.
        segment_s: length of the log's segments, s.
        records: records that can be read.
        segments: files that they are in.
        lost_s: from the last of them to the kill, s.
        starved_s: for how long robot and log process had to wait for a processor in the half second before the kill, s.
        violations: what should not have been.
    """

    victim: str
    after_s: float
    segment_s: float
    records: int = 0
    segments: int = 0
    lost_s: float = 0.0
    starved_s: float = 0.0
    violations: list[str] = field(default_factory=list)

    def to_dict(self) -> dict[str, Any]:
        """Return plain values for JSON."""
        return asdict(self)


def carry_out(seed: int, number: int, rate_hz: float, channels: int, folder: Path) -> Kill:
    """Let a robot record, kill as seed and number say, and judge what is left.

    Args:
        seed: of all kills.
        number: of this one.
        rate_hz: records per second.
        channels: measurements in a record.
        folder: where files go; must be empty.
    """
    random = Random(f"{seed} {number}")
    kill = Kill(VICTIMS[number % len(VICTIMS)], random.uniform(0.0, _WINDOW_S), random.choice((0.3, 0.7, 30.0)))
    log = folder / "log"
    command = [sys.executable, "-m", _MODULE, str(log), _RUN, "3600", str(rate_hz), str(channels), str(number)]
    with (folder / "said.txt").open("w") as said:
        robot = subprocess.Popen([*command, str(kill.segment_s)], stdout=said, stderr=said, start_new_session=True)
    try:
        writer = _wait_for_log(robot, log / _RUN)
        time.sleep(max(0.0, kill.after_s - 0.5))
        waited_s = _waited_s(robot.pid) + _waited_s(writer.pid)
        time.sleep(min(0.5, kill.after_s))
        kill.starved_s = _waited_s(robot.pid) + _waited_s(writer.pid) - waited_s
        killed_ns = _kill(kill.victim, robot, writer)
    finally:
        with suppress(ProcessLookupError):
            os.killpg(robot.pid, signal.SIGKILL)
        robot.wait()
    _judge(kill, log, killed_ns, folder / "recovered")
    return kill


def _wait_for_log(robot: subprocess.Popen[bytes], run: Path) -> psutil.Process:
    """Return the log process once its first records are on disk."""
    end_s = time.monotonic() + _PATIENCE_S
    while time.monotonic() < end_s:
        if robot.poll() is not None:
            said = (run.parents[1] / "said.txt").read_text()
            raise RuntimeError(f"the synthetic robot ended with exit code {robot.returncode}: {said}")
        with suppress(DpgError):
            if run.exists() and any(len(records) for records in read_records(run)):
                return next(
                    child
                    for child in psutil.Process(robot.pid).children()
                    if any(_LOG_MODULE in part for part in child.cmdline())
                )
        time.sleep(0.02)
    raise TimeoutError(f"no record within {_PATIENCE_S:g} s")


def _kill(victim: str, robot: subprocess.Popen[bytes], writer: psutil.Process) -> int:
    """Kill, and return the Unix time at which that was, ns; the log process may go on to the end of what it has."""
    if victim == "both":
        robot.send_signal(signal.SIGSTOP)  # so that both die at once
    killed_ns = time.time_ns()
    if victim != "robot":
        writer.kill()
    robot.kill()
    psutil.wait_procs([writer], timeout=_PATIENCE_S)
    return killed_ns


def _judge(kill: Kill, log: Path, killed_ns: int, copy: Path) -> None:
    try:
        records = np.concatenate(list(read_records(log)))
        report = check_log(log)
    except (DpgError, ValueError) as error:
        kill.violations.append(f"the log cannot be read: {error}")
        return
    kill.records, kill.segments = len(records), report.runs[0].segments
    kill.lost_s = max(0.0, (killed_ns - int(records["wall_ns"][-1])) * 1e-9)
    if not np.array_equal(records["sequence"], np.arange(len(records))):
        kill.violations.append("the records are not those from 0 on without a gap")
    kill.violations += report.runs[0].problems
    if kill.lost_s - kill.starved_s > MOST_LOST_S:
        kill.violations.append(f"the last {kill.lost_s:.3f} s are lost, allowed are {MOST_LOST_S:g} s")
    recover_log(log, copy)
    if np.concatenate(list(read_records(copy))).tobytes() != records.tobytes():
        kill.violations.append("the recovered log differs")
    messages = 0
    for path in sorted(copy.glob(f"*/{SEGMENT_PATTERN}")):
        with path.open("rb") as file:
            messages += sum(1 for _ in make_reader(file, validate_crcs=True).iter_messages())
    if messages != len(records):
        kill.violations.append(f"MCAP's own reader finds {messages} messages in the recovered log, ours {len(records)}")


def _waited_s(pid: int) -> float:
    """Return for how long a process could not run because others did, s; 0 where the system does not tell."""
    with suppress(OSError, IndexError):
        return processor_wait_s(pid)
    return 0.0
