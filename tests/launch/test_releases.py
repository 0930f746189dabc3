"""New policies on a robot that runs: released by the host's program, tried in the shadow, watched, accepted or taken back."""

import hashlib
import importlib.util
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from dpg_robot.data.robot_log import check_log, read_records
from dpg_robot.data.transition import LoopState
from dpg_robot.policy_file import read_policy_file

ROOT = Path(__file__).parents[2]
DEADLINE_S = 120.0
UPDATES = """updates: {shadow_s: 0.5, watch_s: 1.0, max_difference: 0.5, poll_s: 0.1}
safety:
  stale_patience_periods: 10
  max_overruns_in_row: 50
"""


def wait_for(condition, what):
    end_s = time.monotonic() + DEADLINE_S
    while not (value := condition()):
        assert time.monotonic() < end_s, f"waited in vain for {what}"
        time.sleep(0.05)
    return value


def program(name, *arguments):
    return [sys.executable, str(ROOT / "launch" / name), *map(str, arguments)]


ENVIRONMENT = {**os.environ, "PYTHONPATH": str(ROOT), "MUJOCO_GL": "disable"}


def host(*arguments, code=0):
    result = subprocess.run(program("host.py", *arguments), env=ENVIRONMENT, capture_output=True, text=True, check=False)
    assert result.returncode == code, result.stderr
    return result.stdout + result.stderr


@pytest.fixture(scope="module")
def tiny_policy():
    spec = importlib.util.spec_from_file_location("tiny_policy", ROOT / "tests" / "deploy" / "tiny_policy.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def port(tmp_path_factory):
    path = tmp_path_factory.mktemp("virtual_robot") / "port"
    command = program("emulate.py", "cartpole", "--seed", 3, "--link", path)
    process = subprocess.Popen(command, env=ENVIRONMENT, stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline().startswith("/dev/")
    yield path
    process.terminate()
    process.communicate(timeout=DEADLINE_S)


class Robot:
    """A robot with a folder of its own, that follows a store."""

    def __init__(self, folder, port, tiny_policy):
        self.folder, self.port, self._tiny = folder, port, tiny_policy
        self.store, self.key, self.memory = folder / "store", folder / "host.key", folder / "releases.json"
        text = (ROOT / "configs" / "robots" / "cartpole.yaml").read_text()
        (folder / "robot.yaml").write_text(text.replace("safety:\n", UPDATES))
        host("key", self.key)

    def publish(self, bias):
        """Release a policy; returns the number by which logs name it."""
        path = self._tiny.write_policy(self.folder / "policy.onnx", gains=self._tiny.GENTLE | {"bias": bias})
        host("publish", "--policy", path, "--store", self.store, "--sign", self.key)
        return int(read_policy_file(path)[1].policy_id, 16)

    def start(self):
        command = program(
            "robot.py", "run", "--robot", self.folder / "robot.yaml", "--port", self.port, "--store", self.store, "--trust",
            f"{self.key}.pub", "--release-memory", self.memory, "--log", self.folder / "log", "--episode-seconds", 600,
        )  # fmt: skip
        self._errors = (self.folder / "stderr.txt").open("w")
        self.process = subprocess.Popen(command, env=ENVIRONMENT, stdout=self._errors, stderr=self._errors)
        wait_for(lambda: "running:" in self.said or self.process.poll() is not None, "the episode")
        assert self.process.poll() is None, self.said

    @property
    def said(self):
        return (self.folder / "stderr.txt").read_text()

    def wait_until(self, condition, what):
        def done():
            assert self.process.poll() is None, self.said
            return condition()

        wait_for(done, what)

    def remembers(self, name):
        return json.loads(self.memory.read_text())[name]

    def stop(self):
        self.process.send_signal(signal.SIGINT)
        self.process.communicate(timeout=DEADLINE_S)
        self._errors.close()
        run = max((self.folder / "log").iterdir())
        assert check_log(run).contiguous
        records = np.concatenate(list(read_records(run)))
        return json.loads((run / "summary.json").read_text()), records[records["state"] == LoopState.RUNNING]


@pytest.fixture
def robot(tmp_path, port, tiny_policy):
    robot = Robot(tmp_path, port, tiny_policy)
    yield robot
    if robot.process.poll() is None:
        robot.process.kill()
        robot.process.wait()


def sha256_of(path):
    return hashlib.sha256(path.read_bytes()).hexdigest()


def test_a_release_is_tried_and_accepted_between_two_ticks_and_the_next_one_is_taken_back(robot):
    first = robot.publish(bias=0.02)
    robot.start()
    second = robot.publish(bias=0.03)
    accepted = sha256_of(robot.store / "policy.onnx")
    robot.wait_until(lambda: robot.remembers("accepted") == accepted, "the acceptance")
    robot.publish(bias=0.9)  # wants quite another force
    robot.wait_until(lambda: robot.remembers("refused"), "the refusal")
    summary, records = robot.stop()
    assert [event["state"] for event in summary["loop"]["updates"]] == ["shadow", "watched", "accepted", "shadow", "refused"]
    names = records["policy"].tolist()
    swap = names.index(second)
    assert names == [first] * swap + [second] * (len(names) - swap)
    assert (np.diff(records["sequence"]) == 1).all(), "the robot went on through it all"
    watched = next(event for event in summary["loop"]["updates"] if event["state"] == "watched")
    assert watched["tick"] == records["sequence"][swap]
    assert "actions differ by" in next(iter(robot.remembers("refused").values()))


def test_the_next_run_begins_with_what_was_accepted_and_an_old_release_put_back_is_refused(robot):
    first = robot.publish(bias=0.02)
    old = (robot.store / "release.json").read_bytes()
    robot.start()
    robot.publish(bias=0.03)
    accepted = sha256_of(robot.store / "policy.onnx")
    robot.wait_until(lambda: robot.remembers("accepted") == accepted, "the acceptance")
    robot.stop()
    (robot.store / "release.json").write_bytes(old)
    robot.start()
    robot.wait_until(lambda: "is older than 2" in robot.said, "the refusal of the old release")
    host("rollback", "--to", 1, "--reason", "the cart trembled", "--store", robot.store, "--sign", robot.key)
    robot.wait_until(lambda: robot.remembers("accepted") != accepted, "the way back")
    _, records = robot.stop()
    assert records["policy"][0] != first
    assert records["policy"][-1] == first


def test_what_cannot_be_believed_is_refused_before_anything_moves(tmp_path, port, tiny_policy):
    robot = Robot(tmp_path, port, tiny_policy)
    robot.publish(bias=0.02)
    common = ["run", "--robot", tmp_path / "robot.yaml", "--port", port, "--store", robot.store, "--release-memory", robot.memory]

    def refused(*arguments):
        command = program("robot.py", *common, *arguments)
        result = subprocess.run(command, env=ENVIRONMENT, capture_output=True, text=True, check=False)
        assert result.returncode == 1
        return result.stderr

    assert "--store needs --trust" in refused()
    host("key", tmp_path / "other.key")
    assert "trusted are" in refused("--trust", tmp_path / "other.key.pub")
    assert "holds no public key" in refused("--trust", robot.key)
    assert not robot.memory.exists()
    assert "already" in host("key", tmp_path / "other.key", code=1)
