"""The same targets in simulation and on the emulated arm, through the robot's own program."""

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
