"""launch/host.py as a user calls it: real processes, real logs, a real checkpoint."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file

import sim
from dpg_robot.contract import Contract
from dpg_robot.data.log_writer import LogWriter
from dpg_robot.data.transition import EpisodeEnd, LoopState, tick_dtype
from dpg_robot.learning.checkpoint import load_checkpoint
from dpg_robot.learning.trainer import newest_checkpoint

ROOT = Path(__file__).resolve().parents[2]
ENVIRONMENT = os.environ | {"MUJOCO_GL": "disable"}
SMALL = [
    "evaluation_episodes=2",
    "torch_threads=1",
    "finetune.updates=60",
    "finetune.improve_policy_after=60",
    "finetune.learning_rate_factor=1",
]


def launch(script: str, *arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(ROOT / "launch" / script), *map(str, arguments)]
    return subprocess.run(command, env=ENVIRONMENT, capture_output=True, text=True, timeout=120, check=False)


@pytest.fixture(scope="module")
def pretrained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run folder with a briefly trained checkpoint and its policy.onnx."""
    folder = tmp_path_factory.mktemp("pretrained") / "run"
    settings = ["learner.hidden_sizes=[16,16]", "learner.batch_size=32", "num_envs=8", "torch_threads=1", "evaluation_episodes=2"]
    steps = ["trainer.updates=40", "trainer.warmup_transitions=200", "trainer.evaluate_every=40", "trainer.replay_capacity=1000"]
    for script, arguments in (("pretrain.py", ["--run", folder, "--quiet", *settings, *steps]), ("export.py", ["--run", folder])):
        result = launch(script, *arguments)
        assert result.returncode == 0, result.stderr
    return folder


@pytest.fixture
def log(tmp_path: Path) -> Path:
    """A log of four short episodes of small random actions, in two runs."""
    contract = sim.make("cartpole-swingup", action_repeat=2).contract()
    for run, seed in (("run-a", 1), ("run-b", 2)):
        writer = LogWriter(tmp_path / "log", run, contract)
        writer.append(records(contract, seed))
        writer.close()
    return tmp_path / "log"


def records(contract: Contract, seed: int, episodes: int = 2, steps: int = 30) -> np.ndarray:
    random = np.random.default_rng(seed)
    environment = sim.make("cartpole-swingup", seed=seed, action_repeat=2)
    rows = np.zeros(episodes * (steps + 1), dtype=tick_dtype(contract.num_measurements, contract.num_actions))
    for index, row in enumerate(rows):
        if index % (steps + 1) == 0:
            environment.reset()
        row["sequence"] = row["period"] = index
        row["episode"], row["step"] = divmod(index, steps + 1)
        row["state"], row["valid"], row["time_ns"] = LoopState.RUNNING, True, index * contract.period_ns
        row["measurement"] = np.concatenate([environment.qpos[0], environment.qvel[0]])
        if row["step"] == steps:
            row["episode_end"] = EpisodeEnd.TIMEOUT
        else:
            row["action"] = 0.2 * np.tanh(random.standard_normal(1))
            environment.step(row["action"][None])
    return rows


def once(log: Path, pretrained: Path, folder: Path) -> list[object]:
    """Return the arguments that fine-tune once."""
    checkpoint = next((pretrained / "checkpoints").iterdir())
    places = ["--log", log, "--checkpoint", checkpoint, "--store", folder / "store", "--run", folder / "finetune"]
    return ["finetune", "--once", *places, "--quiet", "--json", folder / "result.json", *SMALL]


def finetune(log: Path, pretrained: Path, folder: Path, *more: str) -> subprocess.CompletedProcess[str]:
    return launch("host.py", *once(log, pretrained, folder), *more)


def start(*arguments: object, **environment: str) -> subprocess.Popen[str]:
    """Start a Python program that reads its arguments and more of the environment."""
    command, pipe = [sys.executable, *map(str, arguments)], subprocess.PIPE
    return subprocess.Popen(command, env=ENVIRONMENT | environment, stdout=pipe, stderr=pipe, text=True)


def test_a_log_is_taken_in_learned_from_judged_and_a_better_policy_published(pretrained: Path, log: Path, tmp_path: Path) -> None:
    published = launch("host.py", "publish", "--policy", pretrained / "policy.onnx", "--store", tmp_path / "store")
    assert published.returncode == 0, published.stderr
    first = (tmp_path / "store" / "policy.onnx").read_bytes()

    result = finetune(log, pretrained, tmp_path, "gate.max_return_loss=1")
    assert result.returncode == 0, result.stderr
    report = json.loads((tmp_path / "result.json").read_text())
    assert report["transitions"]["received"] == report["transitions"]["used"] == 120
    assert report["transitions"]["trained_on"] + report["transitions"]["held_out"] == 120
    assert report["after"]["denoising_error"] < report["before"]["denoising_error"]
    assert report["verdict"]["passed"], report["verdict"]
    assert (tmp_path / "store" / "policy.onnx").read_bytes() != first
    assert json.loads((tmp_path / "store/versions/000002/verdict.json").read_text())["verdict"]["passed"]
    assert (tmp_path / "finetune" / "config.yaml").exists()
    assert (tmp_path / "finetune" / "checkpoint" / "state.json").exists()


def test_a_candidate_that_did_not_earn_it_is_kept_but_not_published(pretrained: Path, log: Path, tmp_path: Path) -> None:
    launch("host.py", "publish", "--policy", pretrained / "policy.onnx", "--store", tmp_path / "store")
    first = (tmp_path / "store" / "policy.onnx").read_bytes()
    # so small a step changes no weight, and errors that did not fall do not pass
    result = finetune(log, pretrained, tmp_path, "finetune.updates=1", "finetune.learning_rate_factor=1e-20")
    assert result.returncode == 0, result.stderr
    assert "not published" in result.stdout
    assert "FAILED" in result.stdout
    assert (tmp_path / "store" / "policy.onnx").read_bytes() == first
    assert (tmp_path / "store/versions/000002/policy.onnx").exists()


def test_a_log_with_a_gap_is_refused_and_nothing_is_written(pretrained: Path, log: Path, tmp_path: Path) -> None:
    contract = sim.make("cartpole-swingup", action_repeat=2).contract()
    shutil.rmtree(log / "run-b")
    writer = LogWriter(log, "run-b", contract)
    writer.append(np.delete(records(contract, 2), slice(10, 15)))
    writer.close()
    result = finetune(log, pretrained, tmp_path)
    assert result.returncode == 1
    assert "run-b" in result.stderr
    assert "sequences 10 to 14 are missing" in result.stderr
    assert not (tmp_path / "finetune").exists()
    assert not list((tmp_path / "store" / "versions").iterdir())


def test_a_damaged_checkpoint_is_refused(pretrained: Path, log: Path, tmp_path: Path) -> None:
    broken = tmp_path / "broken"
    shutil.copytree(pretrained, broken)
    (network,) = broken.glob("checkpoints/*/networks.safetensors")
    network.write_bytes(network.read_bytes()[:-10])
    result = finetune(log, broken, tmp_path)
    assert result.returncode == 1
    assert "networks.safetensors is not as it was written" in result.stderr


def test_a_second_fine_tuning_into_the_same_folder_is_refused(pretrained: Path, log: Path, tmp_path: Path) -> None:
    assert finetune(log, pretrained, tmp_path).returncode == 0
    result = finetune(log, pretrained, tmp_path)
    assert result.returncode == 1
    assert "choose another --run folder" in result.stderr


def test_two_processes_fine_tune_as_one_does_and_one_of_them_writes(pretrained: Path, log: Path, tmp_path: Path) -> None:
    more = ["finetune.improve_policy_after=20", "finetune.compare_policy_every=20", "finetune.standard_errors=0"]
    one, two = tmp_path / "one", tmp_path / "two"
    for folder in (one, two):
        folder.mkdir()
    result = finetune(log, pretrained, one, *more)
    assert result.returncode == 0, result.stderr
    torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "--"]
    program = [Path(__file__).with_name("host_process.py"), *once(log, pretrained, two), *more]
    processes = start(*torchrun, *program, OMP_NUM_THREADS="1")
    try:
        out, err = processes.communicate(timeout=280)
        assert processes.returncode == 0, err
        assert out.count("transitions: 120 received, 120 used, 0 excluded") == 1
        ours, theirs = (load_file(folder / "finetune/checkpoint/networks.safetensors") for folder in (two, one))
        for name, expected in theirs.items():
            difference = np.abs(ours[name].astype(float) - expected).max(initial=0)
            assert difference <= 1e-4 * max(np.abs(expected).max(initial=0), 1e-3), name
        facts, wanted = (json.loads((folder / "result.json").read_text()) for folder in (two, one))
        assert facts["transitions"] == wanted["transitions"]
        assert facts["after"]["denoising_error"] == pytest.approx(wanted["after"]["denoising_error"], rel=1e-4)
        assert [path.name for path in (two / "store/versions").iterdir()] == ["000001"]
    finally:
        processes.kill()
        processes.wait()


SERVICE = [
    "evaluation_episodes=2",
    "torch_threads=1",
    "service.first_updates_after=30",
    "service.improve_policy_after=10",
    "service.updates_per_round=20",
    "service.candidate_every=100",
    "service.held_out_every=2",
    "service.poll_interval_s=0.05",
]


def service_arguments(log: Path, pretrained: Path, folder: Path) -> list[object]:
    checkpoint = next((pretrained / "checkpoints").iterdir())
    places = ["--log", log, "--checkpoint", checkpoint, "--store", folder / "store", "--run", folder / "service"]
    return ["finetune", *places, *SERVICE]


def start_service(log: Path, pretrained: Path, folder: Path, *more: str) -> subprocess.Popen[str]:
    return start(ROOT / "launch" / "host.py", *service_arguments(log, pretrained, folder), *more)


def wait_for(
    service: subprocess.Popen[str], folder: Path, *, used: int, candidates: int = 0, limit_s: float = 60.0
) -> dict[str, Any]:
    """Wait until the service has learned from so many transitions, and return its status."""
    end_s = time.monotonic() + limit_s
    status = None
    while time.monotonic() < end_s:
        assert service.poll() is None, service.communicate()
        with contextlib.suppress(OSError):
            status = json.loads((folder / "service" / "status.json").read_text())
            if (status["transitions"]["used"], status["state"]) == (used, "waiting") and status["candidate"] >= candidates:
                return status
        time.sleep(0.05)
    raise AssertionError(f"the service came to {status}")


def test_the_service_follows_logs_survives_its_own_death_and_ends_with_everything_saved(
    pretrained: Path, log: Path, tmp_path: Path
) -> None:
    contract = sim.make("cartpole-swingup", action_repeat=2).contract()
    service = start_service(log, pretrained, tmp_path, "service.checkpoint_every_s=0.01")
    try:
        status = wait_for(service, tmp_path, used=120, candidates=1)
        assert status["updates"] == 120
        assert status["robots"] == {"robot": 120}
        with contextlib.closing(LogWriter(tmp_path / "log", "run-c", contract, flush_interval_s=0.0)) as writer:
            written = records(contract, seed=3)
            writer.append(written[:40])
            assert wait_for(service, tmp_path, used=150)["updates"] == 150
            time.sleep(0.2)  # it saves between two rounds
            service.kill()
            service.communicate()
            writer.append(written[40:])
        service = start_service(log, pretrained, tmp_path)
        status = wait_for(service, tmp_path, used=180)
        assert status["updates"] == 180
        assert status["transitions"]["robot"] == 180  # nothing was taken in twice
        service.send_signal(signal.SIGTERM)
        out, err = service.communicate(timeout=30)
    finally:
        service.kill()
    assert service.returncode == 0, err
    assert "going on after 150 updates and 150 transitions" in out
    assert json.loads((tmp_path / "service" / "status.json").read_text())["state"] == "stopped"
    assert len(list((tmp_path / "service" / "checkpoints").iterdir())) == 1
    versions = [json.loads((path / "verdict.json").read_text()) for path in sorted((tmp_path / "store/versions").iterdir())]
    assert versions[0]["verdict"]["reasons"] == ["ok: the pretrained policy, without comparison"]
    assert len(versions[1]["verdict"]["reasons"]) == 8


def test_the_service_runs_in_two_processes_until_the_first_one_is_told_to_stop(
    pretrained: Path, log: Path, tmp_path: Path
) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        rendezvous = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free.getsockname()[1])}
    # without torchrun, which kills what has not ended after some time
    program = [Path(__file__).with_name("host_process.py"), *service_arguments(log, pretrained, tmp_path)]
    first, second = (start(*program, RANK=rank, LOCAL_RANK=rank, **rendezvous) for rank in "01")
    try:
        assert wait_for(first, tmp_path, used=120, candidates=1, limit_s=200.0)["updates"] == 120
        first.send_signal(signal.SIGTERM)
        out, err = first.communicate(timeout=60)
        assert first.returncode == 0, err
        assert out.count("following") == 1
        out, err = second.communicate(timeout=60)
        assert (second.returncode, out) == (0, ""), err
        assert json.loads((tmp_path / "service" / "status.json").read_text())["state"] == "stopped"
        _, state = load_checkpoint(newest_checkpoint(tmp_path / "service"))
        assert state["service"]["counts"]["updates"] == 120
    finally:
        for process in (first, second):
            process.kill()
            process.wait()


def test_the_service_says_that_its_results_are_no_single_json(pretrained: Path, log: Path, tmp_path: Path) -> None:
    service = start_service(log, pretrained, tmp_path, "--json", str(tmp_path / "x.json"))
    _, err = service.communicate(timeout=60)
    assert service.returncode == 1
    assert "--json needs --once" in err
