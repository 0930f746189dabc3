"""Several processes that learn together: they do what one does, they notice when they do not, and when one is lost."""

import importlib.util
import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from dpg_robot.errors import ConfigError
from dpg_robot.learning.distributed import ONE_PROCESS, Processes, process_group_from_environment
from dpg_robot.learning.learner import Learner, LearnerConfig

PROGRAM = Path(__file__).with_name("learning_process.py")
_spec = importlib.util.spec_from_file_location("learning_process", PROGRAM)
shared = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(shared)

# What rounding makes of 20 updates, in units of each tensor's largest number; measured: 1e-6 and 8e-14.
TOLERANCES = {"float32": 1e-5, "float64": 1e-10}


@pytest.fixture(scope="module")
def learned(tmp_path_factory):
    """The folder in which two processes, started by torchrun, left what they learned."""
    folder = tmp_path_factory.mktemp("learned")
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", str(PROGRAM), str(folder)]
    tasks = ["learn_all", "learn_without", "say_different_things"]
    done = subprocess.run([*command, *tasks], env=environment(), capture_output=True, text=True, timeout=280)
    assert done.returncode == 0, done.stderr
    return folder


def environment(**more):
    return {**os.environ, "OMP_NUM_THREADS": "1", **more}


def start(folder, *tasks):
    """Start two processes without torchrun, which would end the one when the other fails."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    common = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    return [
        subprocess.Popen(
            [sys.executable, str(PROGRAM), str(folder), *tasks],
            env=environment(RANK=str(rank), LOCAL_RANK=str(rank), **common),
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(2)
    ]


def end(processes):
    for process in processes:
        process.kill()
        process.wait()
        process.stderr.close()


def one_process(variant, precision, updates=shared.UPDATES):
    before = torch.get_default_dtype()
    torch.set_default_dtype(getattr(torch, precision))
    try:
        return shared.learn(variant, updates=updates)
    finally:
        torch.set_default_dtype(before)


def largest_difference(ours, theirs):
    """Return the largest difference in any tensor, in units of its largest number."""
    assert ours.keys() == theirs.keys()
    return max(
        float((ours[name] - expected).abs().max() / expected.abs().max().clamp(min=1e-3))
        for name, expected in theirs.items()
        if expected.numel()
    )


CASES = [*((name, "float64") for name in shared.VARIANTS), *((name, "float32") for name in shared.IN_SINGLE_PRECISION)]


@pytest.mark.parametrize(("variant", "precision"), CASES)
def test_two_processes_learn_what_one_learns(variant, precision, learned):
    first, second = (load_file(learned / f"{variant}-{precision}-{rank}.safetensors") for rank in range(2))
    assert largest_difference(first, one_process(variant, precision)) < TOLERANCES[precision]
    for name, value in first.items():
        assert torch.equal(second[name], value), f"{name} must be the same in both, bit by bit"


@pytest.mark.parametrize(
    ("exchange", "variant"),
    [
        ("gradients", "default"),
        ("statistics", "default"),
        ("statistics_of_features", "features"),
        ("statistics_offline", "offline_denoiser"),
        ("noise", "default"),
    ],
)
def test_without_one_of_the_exchanges_they_would_not(exchange, variant, learned):
    broken = load_file(learned / f"without_{exchange}.safetensors")
    assert largest_difference(broken, one_process(variant, "float64", shared.FEW_UPDATES)) > 1e4 * TOLERANCES["float64"]


def test_processes_that_begin_differently_are_refused_and_bytes_come_from_the_first(learned):
    for rank in range(2):
        said = json.loads((learned / f"said-{rank}.json").read_text())
        for what in ("weights", "generator"):
            assert "not the same in all 2 processes; start all from the same checkpoint" in said[what]
        assert said["bytes"] == "from 0"
        assert said["nothing"] == ""
        rows, matrices = said["gathered"]
        assert rows == [0, 1, 2, 3, 4, 5]
        assert matrices == [[[row] * 3] * 2 for row in rows]


def test_a_process_that_hangs_is_an_error_in_time(tmp_path):
    processes = start(tmp_path, "hang")
    try:
        for process in processes:
            process.communicate(timeout=100)
        message = (tmp_path / "given_up").read_text()
        assert "process 0 of 2 lost another one" in message
        assert "start all again" in message
    finally:
        end(processes)


def test_a_process_that_ends_is_an_error_at_once(tmp_path):
    first, second = start(tmp_path, "end_early")
    try:
        _, message = first.communicate(timeout=50)  # less than the time that a silent one is given
        assert first.returncode == 3
        assert "process 0 of 2 lost another one" in message
        assert second.wait(timeout=50) == 9
    finally:
        end([first, second])


def test_one_process_exchanges_nothing():
    values = [torch.ones(3), torch.zeros(2, 2)]
    assert all(ours is theirs for ours, theirs in zip(ONE_PROCESS.means(values), values, strict=True))
    assert all(ours is theirs for ours, theirs in zip(ONE_PROCESS.gather(values), values, strict=True))
    assert ONE_PROCESS.from_first(values[0]) is values[0]
    assert ONE_PROCESS.bytes_from_first(lambda: b"mine") == b"mine"
    batch = shared.make_batch(0)
    assert ONE_PROCESS.share_of_batch(batch) is batch
    assert ONE_PROCESS.batch_from_first(batch) is batch


def test_each_row_of_a_batch_belongs_to_one_process():
    batch = shared.make_batch(0)
    shares = [Processes(rank, 4).share_of_batch(batch) for rank in range(4)]
    assert [len(share) for share in shares] == [8, 8, 8, 8]
    assert torch.equal(torch.stack([share.reward for share in shares], dim=1).flatten(), batch.reward)
    with pytest.raises(ConfigError, match="32 transitions, which 3 processes cannot share equally"):
        Processes(0, 3).share_of_batch(batch)


@pytest.mark.parametrize("change", [{"batch_size": 33}, {"batch_size": 32, "gradient_share": 0.9}])
def test_a_learner_whose_batches_cannot_be_shared_equally_is_refused(change):
    learner = Learner(shared.CONTRACT, LearnerConfig(hidden_sizes=(8,), **change))
    with pytest.raises(ConfigError, match="cannot share equally"):
        learner.share_updates(Processes(0, 2))
    assert learner.processes is learner.estimator.processes is ONE_PROCESS


def test_without_torchrun_this_is_the_only_process(monkeypatch):
    for name in ("RANK", "WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)
    with process_group_from_environment("cpu") as processes:
        assert processes == ONE_PROCESS
        assert processes.first


@pytest.mark.parametrize(
    ("variables", "device", "message"),
    [
        ({"RANK": "0"}, "cpu", "WORLD_SIZE"),
        ({"RANK": "0", "WORLD_SIZE": "two", "LOCAL_RANK": "0"}, "cpu", "whole numbers"),
        ({"RANK": "0", "WORLD_SIZE": "2", "LOCAL_RANK": "0"}, "cuda:1", "cuda for a GPU each, got 'cuda:1'"),
        ({"RANK": "3", "WORLD_SIZE": "2", "LOCAL_RANK": "0"}, "cpu", "RANK must be in"),
    ],
)
def test_what_cannot_be_joined_is_refused(variables, device, message, monkeypatch):
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK"):
        monkeypatch.delenv(name, raising=False)
    if len(variables) > 1:
        variables = {**variables, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "1"}
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(ConfigError, match=message), process_group_from_environment(device):
        pass
