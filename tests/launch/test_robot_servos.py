"""An arm of servos with real processes: emulated servos move a simulated SO-101, the robot's program runs a policy on it."""

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

from dpg_robot.config import load_config
from dpg_robot.contract import Contract, Feature
from dpg_robot.data.robot_log import check_log, load_transitions, read_records
from dpg_robot.data.transition import LoopState
from dpg_robot.deploy.run_config import RobotConfig

ROOT = Path(__file__).parents[2]
ROBOT = ROOT / "configs" / "robots" / "so101.yaml"
DEADLINE_S = 60.0


def start(script, *arguments, **options):
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "MUJOCO_GL": "disable"}
    return subprocess.Popen(
        [sys.executable, str(ROOT / "launch" / script), *map(str, arguments)], env=environment, text=True, **options
    )


def run(script, *arguments):
    """Run a program to its end; returns exit code, stdout and stderr."""
    process = start(script, *arguments, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    out, err = process.communicate(timeout=DEADLINE_S)
    return process.returncode, out, err


@pytest.fixture(scope="module")
def arm(tmp_path_factory):
    """The port of an emulated arm."""
    port = tmp_path_factory.mktemp("arm") / "port"
    process = start("emulate.py", "so101", "--seed", 1, "--link", port, stdout=subprocess.PIPE)
    assert process.stdout.readline().startswith("/dev/")
    yield port
    process.terminate()
    process.communicate(timeout=DEADLINE_S)


@pytest.fixture(scope="module")
def policy(tmp_path_factory):
    """A policy that turns the shoulder with the place of its target."""
    spec = importlib.util.spec_from_file_location("tiny_policy", ROOT / "tests" / "deploy" / "tiny_policy.py")
    tiny_policy = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(tiny_policy)
    robot = load_config(RobotConfig, ROBOT)
    features = tuple(Feature("identity", channel.name) for channel in robot.measurements)
    contract = Contract("so101-reach", robot.measurements, features, robot.commands, robot.rate_hz, action_repeat=2)
    contract = dataclasses.replace(contract, latency_budget_s=0.02)
    return tiny_policy.write_policy(tmp_path_factory.mktemp("policy") / "policy.onnx", contract, {"to_target_y": -0.5})


@pytest.fixture
def robot_file(tmp_path):
    """The arm with more patience than on a computer of its own: this one may be busy with other tests."""
    text = ROBOT.read_text().replace("safety:\n", "safety:\n  stale_patience_periods: 10\n  max_overruns_in_row: 50\n")
    (tmp_path / "so101.yaml").write_text(text)
    return tmp_path / "so101.yaml"


def run_robot(folder, policy, arm, robot_file, *arguments):
    common = ["run", "--robot", robot_file, "--policy", policy, "--port", arm, "--log", folder / "log"]
    return [*common, "--json", folder / "summary.json", *arguments]


def servos(arm, folder):
    """Return what the servos say of themselves, by ID."""
    code, _, err = run(
        "robot.py", "scan", "--port", arm, "--family", "feetech", "--baud-rate", 1_000_000, "--json", folder / "scan"
    )
    assert code == 0, err
    return {servo["id"]: servo for servo in json.loads((folder / "scan").read_text())[str(arm)]}


def test_a_scan_lists_the_servos_of_the_arm(arm, tmp_path):
    found = servos(arm, tmp_path)
    assert list(found) == [1, 2, 3, 4, 5, 6]
    assert {servo["model"] for servo in found.values()} == {"STS3215"}
    assert not any(servo["torque_on"] for servo in found.values())


def test_a_shadow_leaves_the_arm_alone(arm, policy, robot_file, tmp_path):
    before = servos(arm, tmp_path)
    arguments = run_robot(tmp_path, policy, arm, robot_file, "--shadow", "--episode-seconds", 0.8)
    code, _, err = run("robot.py", *arguments)
    assert code == 0, err
    summary = json.loads((tmp_path / "summary.json").read_text())
    records = np.concatenate(list(read_records(tmp_path / "log" / summary["run_id"])))
    assert (records["state"] == LoopState.SHADOW).sum() == 21
    assert summary["transitions"] == 0
    assert {id: servo["position"] for id, servo in servos(arm, tmp_path).items()} == pytest.approx(
        {id: servo["position"] for id, servo in before.items()}, abs=0.01
    )


def test_the_arm_goes_home_follows_the_policy_parks_and_is_left_without_torque(arm, policy, robot_file, tmp_path):
    code, out, err = run("robot.py", *run_robot(tmp_path, policy, arm, robot_file, "--episodes", 2, "--episode-seconds", 1.2))
    assert code == 0, err
    assert "2: 30 steps, timeout" in out
    summary = json.loads((tmp_path / "summary.json").read_text())
    log = tmp_path / "log" / summary["run_id"]
    assert check_log(log).contiguous
    transitions = load_transitions(log)
    assert len(transitions) == 60
    firsts = [transitions.measurement[transitions.episode == episode][0] for episode in (0, 1)]
    targets = [first[10:13] + first[13:16] for first in firsts]
    np.testing.assert_allclose(targets, [[0.25, 0.0, 0.15], [0.2, 0.15, 0.1]], atol=1e-9, err_msg="each episode has its own")
    begins = [transitions.measurement[transitions.episode == episode][0, :5] for episode in (0, 1)]
    assert np.abs(begins[0] - [0.0, -0.6, 0.4, 0.4, 0.0]).max() < 0.2, "home"
    assert summary["loop"]["link"]["implausible"] == 0
    found = servos(arm, tmp_path)
    assert not any(servo["torque_on"] for servo in found.values())
    assert found[2]["position"] < -1.3, "parked: folded back"


def test_an_arm_whose_control_process_is_killed_is_released_by_the_supervisor(arm, policy, robot_file, tmp_path):
    arguments = run_robot(tmp_path, policy, arm, robot_file, "--episode-seconds", 30)
    process = start("robot.py", *arguments, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    control = wait_for_running(process, tmp_path / "log")
    os.kill(control, signal.SIGKILL)
    _, err = process.communicate(timeout=DEADLINE_S)
    assert process.returncode == 1
    assert "SIGKILL" in err or "killed" in err
    assert not any(servo["torque_on"] for servo in servos(arm, tmp_path).values())


def test_a_check_names_what_does_not_fit_and_moves_nothing(arm, policy, robot_file, tmp_path):
    code, out, err = run("robot.py", "check", "--robot", robot_file, "--policy", policy, "--port", arm)
    assert code == 0, out + err
    wrong = tmp_path / "wrong.yaml"
    wrong.write_text(robot_file.read_text().replace("gripper: {id: 6", "gripper: {id: 9"))
    code, out, _ = run("robot.py", "check", "--robot", wrong, "--policy", policy, "--port", arm)
    assert code == 1
    assert "no answer from gripper (ID 9)" in out
    assert "answers came from the IDs [1, 2, 3, 4, 5]" in out


def wait_for_running(process, log):
    """Wait until the policy acts; returns the control process."""
    end_s = time.monotonic() + DEADLINE_S
    while time.monotonic() < end_s:
        assert process.poll() is None, process.stderr.read()
        for segment in log.glob("*/segment-*.mcap"):
            states = [int(record["state"]) for records in read_records(segment.parent, on_damage="skip") for record in records]
            if LoopState.RUNNING in states:
                children = psutil.Process(process.pid).children()
                return next(child.pid for child in children if child.name() == "robot-control")
        time.sleep(0.2)
    raise AssertionError("the policy never ran")
