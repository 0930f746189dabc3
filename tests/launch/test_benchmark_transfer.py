"""The same targets in simulation and on the emulated arm, through the robot's own program."""

import argparse
import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from dpg_robot.config import load_config
from dpg_robot.contract import Contract, Feature
from dpg_robot.deploy.run_config import RobotConfig
from dpg_robot.errors import SafetyError
from sim.benchmarks import transfer_command
from sim.benchmarks.reach_transfer import Reaching, draw_targets, reach_in_simulation
from sim.tasks.so101 import forward_kinematics

ROOT = Path(__file__).parents[2]
HOME = np.array([0.0, -0.6, 0.4, 0.4, 0.0])


@pytest.fixture(scope="module")
def policy(tmp_path_factory):
    """A policy that turns the shoulder, all joints alike, a little."""
    spec = importlib.util.spec_from_file_location("tiny_policy", ROOT / "tests" / "deploy" / "tiny_policy.py")
    tiny_policy = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(tiny_policy)
    robot = load_config(RobotConfig, ROOT / "configs" / "robots" / "so101.yaml")
    features = tuple(Feature("identity", channel.name) for channel in robot.measurements)
    contract = Contract(
        "so101-reach", robot.measurements, features, robot.commands, robot.rate_hz, action_repeat=2, latency_budget_s=0.02
    )
    return tiny_policy.write_policy(tmp_path_factory.mktemp("policy") / "policy.onnx", contract, {"bias": 0.05})


def test_success_is_to_stay_near_the_target_to_the_end():
    distance = np.full((3, 50), 0.01)
    distance[1, :40] = 0.3  # it came late, but in the last half second (12.5 steps) it was not there all the time
    distance[2, :30] = 0.3
    reaching = Reaching(distance, rate_hz=25.0)
    np.testing.assert_allclose(reaching.final, [0.01, 0.3, 0.01])
    assert reaching.success == pytest.approx(2 / 3)


def test_a_policy_that_hardly_moves_stays_as_far_away_as_home_is(policy):
    targets = draw_targets(6, seed=3)
    assert len(np.unique(targets, axis=0)) == 6
    reaching = reach_in_simulation(policy, targets, HOME, 0.4, randomization="none", seed=0)
    assert reaching.distance.shape == (6, 10)
    np.testing.assert_allclose(reaching.distance[:, 0], np.linalg.norm(forward_kinematics(HOME) - targets, axis=1), atol=0.01)


def run_reach_on_arm(monkeypatch, parts, count):
    """What comes of runs that end after these episodes."""
    asked, left = [], iter(parts)

    def run_episodes(arguments, launch, robot, port, number):
        asked.append(robot.device["goals"]["values"])
        assert number == len(asked[-1])
        return next(left)

    monkeypatch.setattr(transfer_command, "_run_episodes", run_episodes)
    robot = load_config(RobotConfig, ROOT / "configs" / "robots" / "so101.yaml")
    targets = np.arange(3.0 * count).reshape(count, 3)
    return targets, asked, transfer_command.reach_on_arm(argparse.Namespace(robot="r.yaml"), ROOT, robot, "", targets)


def test_after_a_stop_the_arm_goes_on_with_the_targets_that_are_left(monkeypatch):
    whole, stopped = np.zeros((100, 5)), np.zeros((100, 5))
    stopped[60:] = np.nan
    targets, asked, reaching = run_reach_on_arm(monkeypatch, [[whole, whole], [], [stopped], [whole, whole]], 5)
    assert asked == [targets.tolist(), targets[2:].tolist(), targets[2:].tolist(), targets[3:].tolist()]
    assert reaching.stops == 3
    expected = np.linalg.norm(forward_kinematics(np.zeros(5)) - targets, axis=1)
    expected[2] = np.nan
    np.testing.assert_allclose(reaching.final, expected)
    assert json.loads(json.dumps(reaching.to_dict()))["distance"][2] is None
    assert reaching.success == 0


def test_an_arm_that_is_stopped_again_and_again_is_given_up(monkeypatch):
    with pytest.raises(SafetyError, match="stopped 4 times, after 0 of 5 targets"):
        run_reach_on_arm(monkeypatch, [[]] * 9, 5)


def test_the_arm_reaches_for_the_same_targets_through_robot_py(policy, tmp_path):
    patient = (ROOT / "configs" / "robots" / "so101.yaml").read_text()
    patient = patient.replace("safety:\n", "safety:\n  stale_patience_periods: 10\n  max_overruns_in_row: 50\n")
    (tmp_path / "so101.yaml").write_text(patient)
    command = [
        sys.executable, str(ROOT / "launch" / "benchmark.py"), "transfer", "--policy", str(policy), "--targets", "2",
        "--episode-seconds", "1", "--json", str(tmp_path / "t.json"), "--robot", str(tmp_path / "so101.yaml"),
    ]  # fmt: skip
    environment = os.environ | {"MUJOCO_GL": "disable"}
    result = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120, check=False)
    assert result.returncode == 0, result.stderr[-3000:]
    assert "emulated arm 0" in result.stdout
    results = json.loads((tmp_path / "t.json").read_text())["results"]
    assert set(results) == {"simulation, nominal", "simulation, randomized", "emulated arm 0"}
    nominal, arm = (np.array(results[name]["distance"]) for name in ("simulation, nominal", "emulated arm 0"))
    assert np.abs(nominal - arm).max() < 0.05, "the same motion, but for the arm's own dynamics"
