"""The robot's program with real processes: a virtual robot on a pseudo-terminal, and whoever is killed in the middle of a run.

Where it matters whether the motor was off, the virtual robot's own trace tells, whose times are on the same monotonic clock.
"""

import dataclasses
import importlib.util
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import psutil
import pytest

from dpg_robot.data.robot_log import check_log, read_records, read_transitions
from dpg_robot.data.transition import EpisodeEnd, LoopState

ROOT = Path(__file__).parents[2]
DEADLINE_S = 60.0
STOP_NS = 100_000_000
TRACE_TAIL_BYTES = 300_000
SHARED_MEMORY = Path("/dev/shm")


def wait_for(condition, what):
    """Poll until ``condition()`` is true and return its value; fails when it does not come true in time."""
    end_s = time.monotonic() + DEADLINE_S
    while True:
        value = condition()
        if value:
            return value
        assert time.monotonic() < end_s, f"waited in vain for {what}"
        time.sleep(0.02)


def start(script, *arguments, **options):
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "MUJOCO_GL": "disable"}
    return subprocess.Popen(
        [sys.executable, str(ROOT / "launch" / script), *map(str, arguments)], env=environment, text=True, **options
    )


class VirtualRobot:
    """A running emulator."""

    def __init__(self, folder):
        self.port, self.trace = folder / "port", folder / "trace.csv"
        self.process = start(
            "emulate.py", "cartpole", "--seed", 3, "--trace", self.trace, "--link", self.port, stdout=subprocess.PIPE
        )
        assert self.process.stdout.readline().startswith("/dev/")

    def forces(self, begin_ns, end_ns):
        """Return (n, 2) times and forces on the motor in a stretch of time, once the trace has got that far."""
        wait_for(lambda: self._read()[-1, 0] > end_ns, "the trace")
        rows = self._read()
        return rows[(rows[:, 0] >= begin_ns) & (rows[:, 0] <= end_ns)]

    def _read(self):
        with self.trace.open("rb") as file:
            file.seek(max(0, self.trace.stat().st_size - TRACE_TAIL_BYTES))
            lines = file.read().split(b"\n")[1:-1]  # neither the header or a piece of a line, nor a line that is being written
        rows = [line.split(b",") for line in lines]
        return np.array([[int(row[0]), float(row[2])] for row in rows] or [[0, 0]])  # time_ns, enabled, command_cart_force, ...

    def close(self):
        self.process.terminate()
        self.process.communicate(timeout=DEADLINE_S)


@pytest.fixture(scope="module")
def virtual_robot(tmp_path_factory):
    robot = VirtualRobot(tmp_path_factory.mktemp("virtual_robot"))
    yield robot
    robot.close()


@pytest.fixture(scope="module")
def tiny_policy():
    spec = importlib.util.spec_from_file_location("tiny_policy", ROOT / "tests" / "deploy" / "tiny_policy.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def policy(tiny_policy, tmp_path_factory):
    return tiny_policy.write_policy(tmp_path_factory.mktemp("policy") / "policy.onnx")


class Run:
    """A running ``robot.py run``."""

    def __init__(self, folder, policy, port, *arguments):
        self.log, self._errors = folder / "log", folder / f"stderr-{time.monotonic_ns()}"
        common = ["run", "--policy", policy, "--port", port, "--log", self.log]
        with self._errors.open("w") as errors:
            self.process = start("robot.py", *common, *arguments, stdout=subprocess.PIPE, stderr=errors)

    @property
    def said(self):
        return self._errors.read_text()

    def wait_until_running(self):
        """Wait until the policy acts, and half a second longer, so that there is something in the log."""
        wait_for(lambda: "running:" in self.said or self.process.poll() is not None, "the episode")
        assert self.process.poll() is None, self.said
        time.sleep(0.5)
        return self

    def child(self, name):
        children = psutil.Process(self.process.pid).children()
        return next(child for child in children if child.name() == name)

    def end(self):
        """Wait for the end; returns the exit code."""
        self.process.communicate(timeout=DEADLINE_S)
        return self.process.returncode

    @property
    def folder(self):
        return max(self.log.iterdir())

    @property
    def summary(self):
        return json.loads((self.folder / "summary.json").read_text())

    def records(self):
        return np.concatenate(list(read_records(self.folder)))


@pytest.fixture
def run(tmp_path, policy, virtual_robot):
    """Start ``robot.py run``; in the end nothing of it may be left, neither processes nor shared memory."""
    before = set(SHARED_MEMORY.iterdir())
    started = []

    def begin(*arguments, port=virtual_robot.port, policy=policy):
        started.append(Run(tmp_path, policy, port, *arguments))
        return started[-1]

    yield begin
    for item in started:
        if item.process.poll() is None:
            item.process.kill()
        item.process.communicate()
    wait_for(lambda: not {path for path in SHARED_MEMORY.iterdir() if path not in before and "dpg" in path.name}, "clean memory")


def assert_motor_off(virtual_robot, killed_ns):
    """The motor pushed before the kill, and at the latest 100 ms after it never again."""
    assert (virtual_robot.forces(killed_ns - 300_000_000, killed_ns)[:, 1] != 0).any()
    after = virtual_robot.forces(killed_ns + STOP_NS, killed_ns + 5 * STOP_NS)
    assert len(after) > 10
    assert (after[:, 1] == 0).all()


def assert_log_reaches(records, killed_ns):
    """The log has no gap and misses less than the last half second before the kill."""
    np.testing.assert_array_equal(records["sequence"], np.arange(len(records)))
    assert records["time_ns"][-1] > killed_ns - 500_000_000


def assert_starts_again(run, port):
    again = run("--episode-seconds", 0.3, port=port)
    assert again.end() == 0, again.said
    assert check_log(again.folder).contiguous


def test_a_run_records_its_episodes_and_reports_them(run, virtual_robot, tmp_path):
    it = run("--episodes", 2, "--episode-seconds", 1, "--explore", 0.1, "--json", tmp_path / "run.json")
    assert it.end() == 0, it.said
    summary = it.summary
    assert json.loads((tmp_path / "run.json").read_text()) == summary
    assert summary["exit_reason"] == "finished"
    assert [(episode["steps"], episode["end"]) for episode in summary["loop"]["episodes"]] == [(50, "timeout")] * 2
    assert summary["transitions"] == len(list(read_transitions(it.log))) == 100
    report = check_log(it.log)
    assert report.contiguous
    assert report.runs[0].records == summary["log"]["records"] == summary["log"]["written"]
    assert summary["log"]["overruns"] == 0
    assert 49.0 < summary["loop"]["rate_hz"] < 51.0
    assert {grant["name"] for grant in summary["loop"]["real_time"]} == {"scheduler", "memory", "garbage collector"}
    assert summary["loop"]["link"]["crc_errors"] == 0
    assert "finished" in it.said
    last_ns = int(it.records()["time_ns"][-1])
    assert (virtual_robot.forces(last_ns + STOP_NS, last_ns + 2 * STOP_NS)[:, 1] == 0).all()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_stops_the_robot_and_closes_the_log(run, virtual_robot, number):
    it = run("--episode-seconds", 60).wait_until_running()
    sent_ns = time.monotonic_ns()
    it.process.send_signal(number)
    assert it.end() == 128 + number
    assert_motor_off(virtual_robot, sent_ns)
    assert it.summary["exit_reason"] == f"stopped by {number.name}"
    records = it.records()
    assert_log_reaches(records, sent_ns)
    assert records["episode_end"][-1] == EpisodeEnd.ABORTED
    assert records["state"][-1] == LoopState.STOPPING
    assert len(records) == it.summary["log"]["records"]


def test_a_killed_log_process_stops_the_robot(run, virtual_robot):
    it = run("--episode-seconds", 60).wait_until_running()
    process = it.child("robot-log")
    killed_ns = time.monotonic_ns()
    process.kill()
    assert it.end() == 1
    assert_motor_off(virtual_robot, killed_ns)
    assert_log_reaches(it.records(), killed_ns)
    assert "the log process was killed by SIGKILL" in it.said
    assert it.summary["loop"]["episodes"][0]["end"] == "aborted"
    assert_starts_again(run, virtual_robot.port)


def test_a_killed_control_process_leaves_the_motor_off_and_the_log_whole(run, virtual_robot):
    it = run("--episode-seconds", 60).wait_until_running()
    process = it.child("robot-control")
    killed_ns = time.monotonic_ns()
    process.kill()
    assert it.end() == 1
    assert_motor_off(virtual_robot, killed_ns)
    assert_log_reaches(it.records(), killed_ns)
    assert "the control process was killed by SIGKILL" in it.said
    assert it.summary["log"]["state"] == "closed"
    assert it.summary["loop"] is None
    assert_starts_again(run, virtual_robot.port)


def test_a_frozen_control_process_leaves_the_motor_off_and_does_not_go_on_afterwards(run, virtual_robot):
    it = run("--episode-seconds", 60).wait_until_running()
    process = it.child("robot-control")
    frozen_ns = time.monotonic_ns()
    process.suspend()
    assert_motor_off(virtual_robot, frozen_ns)
    process.resume()
    assert it.end() == 1
    assert "watchdog" in it.said
    assert check_log(it.folder).contiguous


def test_a_killed_supervisor_takes_everything_with_it(run, virtual_robot):
    it = run("--episode-seconds", 60).wait_until_running()
    children = psutil.Process(it.process.pid).children()
    killed_ns = time.monotonic_ns()
    it.process.kill()
    assert_motor_off(virtual_robot, killed_ns)
    wait_for(lambda: not any(child.is_running() for child in children), "the end of all processes")
    records = it.records()
    assert_log_reaches(records, killed_ns)
    assert records["episode_end"][-1] == EpisodeEnd.ABORTED


def test_a_killed_robot_ends_the_run_and_a_new_one_serves_the_next(run, tmp_path):
    robot = VirtualRobot(tmp_path)
    it = run("--episode-seconds", 60, port=robot.port).wait_until_running()
    killed_ns = time.monotonic_ns()
    robot.process.kill()
    assert it.end() == 1
    robot.process.communicate()
    assert time.monotonic_ns() - killed_ns < 10_000_000_000
    records = it.records()
    assert_log_reaches(records, killed_ns)
    assert records["episode_end"][-1] == EpisodeEnd.ABORTED
    assert str(robot.port) in it.summary["exit_reason"] or "/dev/" in it.summary["exit_reason"]
    robot = VirtualRobot(tmp_path)
    try:
        assert_starts_again(run, robot.port)
    finally:
        robot.close()


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["run", "--policy", "{fast}", "--port", "{port}"], "rate_hz"),
        (["check", "--policy", "{fast}", "--port", "{port}"], "rate_hz"),
        (["run", "--policy", "{policy}", "--port", "{port}", "--episodes", "0"], "episodes must be at least 1"),
        (["run", "--policy", "{policy}", "--port", "/dev/nothing"], "/dev/nothing"),
        (["check", "--policy", "{policy}", "--port", "/dev/nothing"], "/dev/nothing"),
        (["run", "--policy", "{policy}", "--robot", "nothing.yaml"], "nothing.yaml"),
        (["run", "--policy", "{policy}", "--port", "{port}", "--log", "/proc/log"], "log process"),
    ],
)
def test_what_cannot_run_is_refused_with_the_reason(tiny_policy, policy, virtual_robot, tmp_path, arguments, said):
    fast = tiny_policy.write_policy(tmp_path / "fast.onnx", dataclasses.replace(tiny_policy.CONTRACT, rate_hz=100.0))
    filled = [argument.format(fast=fast, policy=policy, port=virtual_robot.port) for argument in arguments]
    process = start("robot.py", *filled, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, cwd=tmp_path)
    output, _ = process.communicate(timeout=DEADLINE_S)
    assert process.returncode == 1, output
    assert said in output
    assert "Traceback" not in output


def test_check_finds_a_robot_in_order_without_enabling_it(policy, virtual_robot, tmp_path):
    begin_ns = time.monotonic_ns()
    process = start(
        "robot.py",
        "check",
        "--policy",
        policy,
        "--port",
        virtual_robot.port,
        "--json",
        tmp_path / "c.json",
        stdout=subprocess.PIPE,
    )
    output, _ = process.communicate(timeout=DEADLINE_S)
    checks = json.loads((tmp_path / "c.json").read_text())["checks"]
    assert [check["name"] for check in checks] == ["policy", "connection", "sensors", "rate", "real time"]
    assert all(check["passed"] for check in checks[:3]), output
    assert "cartpole-mcu" in output
    assert "SCHED_FIFO 80" in checks[4]["detail"]
    assert (virtual_robot.forces(begin_ns, time.monotonic_ns())[:, 1] == 0).all()
