"""The built wheel, installed as on a robot computer: alone with the 'robot' extra, in an environment of its own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

import sim
from dpg_robot.deploy.policy_session import PolicySession
from dpg_robot.learning.export import export_policy
from dpg_robot.learning.learner import Learner, LearnerConfig

ROOT = Path(__file__).resolve().parent.parent
CLEAN_ENVIRONMENT = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "VIRTUAL_ENV")}


@pytest.fixture(scope="module")
def robot_python(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Python of an environment in which only the wheel and its robot extra are installed."""
    folder = tmp_path_factory.mktemp("wheel")
    run([sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--wheel-dir", str(folder), str(ROOT)], cwd=folder)
    (wheel,) = folder.glob("dpg_robot-*.whl")
    run([sys.executable, "-m", "venv", str(folder / "env")], cwd=folder)
    python = folder / "env" / "bin" / "python"
    install = [str(python), "-m", "pip", "install", "--quiet", "--no-compile", "--disable-pip-version-check"]
    run([*install, "--constraint", str(ROOT / "constraints.txt"), f"{wheel}[robot]"], cwd=folder)
    return python


@pytest.fixture(scope="module")
def policy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    contract = sim.make("cartpole-swingup", action_repeat=2).contract(history=1)
    path = tmp_path_factory.mktemp("policy") / "policy.onnx"
    trained = Learner(contract, LearnerConfig(hidden_sizes=(32, 32)), seed=3).policy
    torch.nn.init.normal_(trained.network[-1].weight, std=0.1)  # the last layer starts at zero
    export_policy(trained, contract, path, parity_samples=100)
    return path


@pytest.fixture
def port(tmp_path: Path) -> Iterator[Path]:
    """Serial port of a virtual cart-pole that runs in this environment."""
    link = tmp_path / "port"
    command = [sys.executable, str(ROOT / "launch" / "emulate.py"), "cartpole", "--seed", "1", "--link", str(link)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline().startswith("/dev/")
        yield link
        process.terminate()


def run(command: list[str], cwd: Path) -> str:
    result = subprocess.run(command, cwd=cwd, env=CLEAN_ENVIRONMENT, capture_output=True, text=True, timeout=280, check=False)
    assert result.returncode == 0, f"{command} failed:\n{result.stdout}\n{result.stderr}"
    return result.stdout


def test_the_robot_extra_brings_neither_torch_nor_mujoco(robot_python: Path, tmp_path: Path) -> None:
    program = "import importlib.util as u; print([n for n in ('torch', 'mujoco', 'dm_control') if u.find_spec(n)])"
    assert run([str(robot_python), "-c", program], tmp_path).strip() == "[]"


def test_the_wheel_runs_a_policy_session_with_the_same_result_as_here(robot_python: Path, policy: Path, tmp_path: Path) -> None:
    program = (
        "import json, sys, numpy as np; from dpg_robot.deploy.policy_session import PolicySession\n"
        "session = PolicySession.load(sys.argv[1])\n"
        "print(json.dumps([session.step(np.array([0.1, 3.0, -0.2, 0.5]) * k).tolist() for k in range(1, 6)]))"
    )
    there = json.loads(run([str(robot_python), "-c", program, str(policy)], tmp_path))
    session = PolicySession.load(policy)
    here = [session.step(np.array([0.1, 3.0, -0.2, 0.5]) * k).copy() for k in range(1, 6)]
    np.testing.assert_allclose(there, here, atol=1e-4)
    assert np.ptp(here) > 0


def test_the_wheel_runs_the_control_loop_against_an_emulator_of_another_environment(
    robot_python: Path, policy: Path, port: Path, tmp_path: Path
) -> None:
    result = tmp_path / "result.json"
    command = [str(robot_python), str(ROOT / "launch" / "robot.py"), "run", "--policy", str(policy), "--port", str(port)]
    run([*command, "--log", str(tmp_path / "log"), "--episode-seconds", "1", "--json", str(result), "--quiet"], tmp_path)
    summary = json.loads(result.read_text())
    assert summary["exit_reason"] == "finished"
    assert summary["transitions"] == 50
    assert summary["log"]["written"] == summary["log"]["records"] >= 50
