"""The service fits its simulation to the robot that it follows, and judges candidates there."""

from __future__ import annotations

import importlib.util
import itertools
import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest

from dpg_robot.host.model_store import ModelStore
from dpg_robot.host.service import ServiceConfig
from dpg_robot.learning.distributed import Processes
from sim.benchmarks.identification_robots import record
from sim.identification import IdentificationSettings
from sim.robot_fitting import FittingConfig

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def host() -> ModuleType:
    spec = importlib.util.spec_from_file_location("launch_host", ROOT / "launch" / "host.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules["launch_host"] = module  # its dataclasses look themselves up
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("pretrained") / "run"
    settings = ["learner.hidden_sizes=[16,16]", "learner.batch_size=32", "num_envs=8", "torch_threads=1", "evaluation_episodes=2"]
    steps = ["trainer.updates=20", "trainer.warmup_transitions=200", "trainer.evaluate_every=20", "trainer.replay_capacity=1000"]
    command = [sys.executable, ROOT / "launch" / "pretrain.py", "--run", folder, "--quiet", *settings, *steps]
    subprocess.run(command, env=os.environ | {"MUJOCO_GL": "disable"}, check=True, timeout=120)
    return next((folder / "checkpoints").iterdir())


def test_a_robot_is_fitted_from_its_log_and_the_next_candidate_is_judged_as_that_robot(
    host: ModuleType, checkpoint: Path, tmp_path: Path, write_run: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    judged_in = []
    make = host.FittedSimulation.returns

    def returns(self: object, policy: object) -> object:
        judged_in.append(self.robots)
        return make(self, policy)

    monkeypatch.setattr(host.FittedSimulation, "returns", returns)
    config = host.HostConfig(
        evaluation_episodes=2,
        torch_threads=1,
        service=ServiceConfig(
            first_updates_after=50, updates_per_transition=0.05, candidate_every=50, held_out_every=2, poll_interval_s=0.05
        ),
        fitting=FittingConfig(
            first_after=100, identification=IdentificationSettings(windows=16, particles=16, final_sweeps=2, window_s=0.2)
        ),
    )
    log, folder, store = tmp_path / "log", tmp_path / "service", ModelStore(tmp_path / "store")
    recording = record({"actuator_gain/slide": 0.6}, seconds=12, seed=0)
    write_run(log, "run-1", recording.transitions, recording.contract)
    stop = threading.Event()
    service = threading.Thread(target=host.serve, args=(config, log, checkpoint, store, folder, stop, Processes()))
    service.start()
    try:
        wait(lambda: (folder / "fitted" / "robot.json").exists(), service)
        more = record({"actuator_gain/slide": 0.6}, seconds=2, seed=1)
        names = (f"run-{number}" for number in itertools.count(2))

        def judged_as_robot() -> bool:
            write_run(log, next(names), more.transitions, more.contract)  # the process of the fit may take a while to end
            return ("robot",) in judged_in

        wait(judged_as_robot, service, pause_s=1.0)
    finally:
        stop.set()
        service.join()
    status = json.loads((folder / "status.json").read_text())
    assert status["state"] == "stopped"
    low, middle, high = (json.loads((folder / "fitted" / "robot.json").read_text())["parameters"][-2]["quantiles"])[::2]
    assert low < middle < high


def wait(condition: Callable[[], bool], service: threading.Thread, pause_s: float = 0.05) -> None:
    end_s = time.monotonic() + 90
    while not condition():
        assert service.is_alive(), "the service ended"
        assert time.monotonic() < end_s, "it did not happen"
        time.sleep(pause_s)
