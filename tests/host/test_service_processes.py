"""The fine-tuning service in two processes: it comes to what it comes to in one, and one of them alone writes."""

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import torch
from safetensors.torch import load_file

from dpg_robot.learning.distributed import ONE_PROCESS

PROGRAM = Path(__file__).with_name("service_process.py")
_spec = importlib.util.spec_from_file_location("service_process", PROGRAM)
shared = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(shared)

TOLERANCE = 1e-4  # what rounding makes of 50 updates, in units of each tensor's largest number; measured: 9e-7


def verdicts(run):
    return (run / "verdicts").read_text().split()


def metrics(run):
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def largest_difference(ours, theirs):
    """Return the largest difference in any tensor, in units of its largest number."""
    assert ours.keys() == theirs.keys()
    return max(
        float((ours[name].double() - expected.double()).abs().max() / expected.abs().max().clamp(min=1e-3))
        for name, expected in theirs.items()
    )


def test_two_processes_serve_as_one_does_and_one_of_them_writes(tmp_path):
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", PROGRAM, tmp_path]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(list(map(str, command)), env=environment, capture_output=True, text=True, timeout=280)
    assert done.returncode == 0, done.stderr
    service, alone = shared.learn(ONE_PROCESS, tmp_path / "alone")
    assert service.counts.updates > 40
    assert verdicts(tmp_path / "alone") == ["passed", "failed", "failed", "failed"], "accepted, begun anew, gone on"

    first, second = (load_file(tmp_path / f"{rank}.safetensors") for rank in range(2))
    for name, value in first.items():
        assert torch.equal(second[name], value), f"{name} must be the same in both, bit by bit"
    assert largest_difference(first, alone) < TOLERANCE
    assert torch.equal(first["counts"], alone["counts"])
    assert torch.equal(first["sampling"], alone["sampling"])

    run = tmp_path / "run"
    assert verdicts(run) == verdicts(tmp_path / "alone")
    assert [line["update"] for line in metrics(run)] == [line["update"] for line in metrics(tmp_path / "alone")]
    assert len(list((run / "tensorboard").iterdir())) == 2, "one for each time that the service was started"
    assert json.loads((run / "status.json").read_text())["state"] == "stopped"
