"""The pretraining program: a killed and resumed run is the uninterrupted one, and refusals are one clear line."""

import importlib.util
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml

from dpg_robot.config import load_config
from sim.tasks import TASKS

ROOT = Path(__file__).parents[2]
PROGRAM = ROOT / "launch" / "pretrain.py"
TINY = (
    "num_envs=4",
    "num_threads=1",
    "torch_threads=1",
    "action_repeat=20",
    "history=1",
    "evaluation_episodes=2",
    "learner.hidden_sizes=[32, 32]",
    "learner.batch_size=32",
    "trainer.updates=190",
    "trainer.updates_per_step=4",
    "trainer.warmup_transitions=100",
    "trainer.replay_capacity=300",
    "trainer.evaluate_every=62",
    "trainer.log_every=50",
)


def start(folder, *arguments):
    command = [sys.executable, PROGRAM, "--run", folder, "--quiet", *arguments]
    return subprocess.Popen([str(part) for part in command], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def finish(process):
    output, errors = process.communicate(timeout=200)
    assert process.returncode == 0, errors
    return output, errors


def wait_for_checkpoint(process, folder):
    """Wait until a first checkpoint is there."""
    deadline = time.monotonic() + 120
    while not list((folder / "checkpoints").glob("[0-9]*")):
        assert process.poll() is None, process.stderr.read()
        assert time.monotonic() < deadline, "no checkpoint appeared"
        time.sleep(0.005)


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Folders of a straight run and of one that was killed and resumed, and what the two programs printed."""
    base = tmp_path_factory.mktemp("runs")
    straight = start(base / "straight", "--json", base / "straight.json", *TINY)
    killed = start(base / "killed", *TINY)
    wait_for_checkpoint(killed, base / "killed")
    time.sleep(int.from_bytes(os.urandom(1)) / 2560)  # anywhere up to a tenth of a second later
    killed.send_signal(signal.SIGKILL)
    killed.communicate(timeout=60)
    assert killed.returncode == -signal.SIGKILL, "it must have been killed before its end"
    # settings stand on both sides of the options, as people type them
    resumed = start(base / "killed", "--resume", *TINY[:4], "--json", base / "killed.json", *TINY[4:])
    return base, finish(resumed), finish(straight)


def weights(folder):
    newest = folder / "checkpoints" / "000000190"
    return {item.name: item.read_bytes() for item in newest.iterdir()}


def test_a_run_that_was_killed_and_resumed_gives_the_same_weights_bit_for_bit(runs):
    base, (_, errors), _ = runs
    assert "resumed" in errors
    ours, wanted = weights(base / "killed"), weights(base / "straight")
    assert {"networks.safetensors", "replay.safetensors", "optimizer_policy.safetensors", "state.json"} <= set(wanted)
    assert [name for name in wanted if ours[name] != wanted[name]] == []


def test_a_run_that_was_killed_and_resumed_reports_the_same(runs):
    base, (ours, _), (wanted, _) = runs
    reports = [json.loads((base / f"{name}.json").read_text()) for name in ("killed", "straight")]
    assert reports[0]["return"] == reports[1]["return"]
    assert reports[0]["evaluations"] == reports[1]["evaluations"]
    assert [item["updates"] for item in reports[1]["evaluations"]] == [62, 124, 186, 190]
    assert ours.splitlines()[0] == wanted.splitlines()[0]
    assert ours.startswith(f"return {reports[1]['return']['mean']:.1f} +- ")
    assert Path(reports[1]["checkpoint"]).is_dir()


def test_a_run_folder_holds_its_settings_and_nothing_half_written(runs):
    base, _, _ = runs
    for name in ("straight", "killed"):
        names = {item.name for item in (base / name).iterdir()}
        assert names == {"best.json", "checkpoints", "config.yaml", "evaluations.json", "tensorboard"}
        assert all(item.name.isdecimal() for item in (base / name / "checkpoints").iterdir())
    config = yaml.safe_load((base / "straight" / "config.yaml").read_text())
    assert config["learner"]["hidden_sizes"] == [32, 32]
    assert config["history"] == 1


@pytest.fixture(scope="module")
def program():
    spec = importlib.util.spec_from_file_location("launch_pretrain", PROGRAM)
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def call(program, monkeypatch, capsys):
    """Return a function that runs the program in this process and returns exit code, output and errors."""

    def run(*arguments):
        monkeypatch.setattr(sys, "argv", ["pretrain.py", *map(str, arguments)])
        with pytest.raises(SystemExit) as left:
            program.main()
        shown = capsys.readouterr()
        return left.value.code or 0, shown.out, shown.err

    return run


def test_the_settings_shown_are_those_that_would_be_used(call, program, tmp_path):
    code, shown, _ = call("--show-config", "seed=7", "--run", tmp_path / "run", "learner.discount=0.9")
    assert code == 0
    (tmp_path / "shown.yaml").write_text(shown)
    config = load_config(program.PretrainConfig, tmp_path / "shown.yaml")
    assert config == load_config(program.PretrainConfig, ROOT / "configs/pretrain.yaml", ["seed=7", "learner.discount=0.9"])
    assert not (tmp_path / "run").exists()


def test_help_explains_every_setting_with_its_unit(call):
    code, shown, _ = call("--help")
    assert code == 0
    assert "trainer.evaluate_every=2000 updates  updates between evaluations" in shown
    assert "learner.hidden_sizes=[256, 256]" in shown
    assert "--resume" in shown


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["sede=1"], "unknown key 'sede'"),
        (["learner.sigma_min=0.9"], "need 0 < sigma_min <= sigma_max"),
        (["trainer.updates=0"], "updates must be 1 or more"),
        (["num_envs=0"], "num_envs must be 1 or more, got 0"),
        (["evaluation_episodes=1"], "evaluation_episodes must be 2 or more, got 1"),
        (["seed=-1"], "seed must be 0 or more, got -1"),
        (["task=cartpole-swingpu"], "Did you mean 'cartpole-swingup'?"),
        (["randomization=nothing"], "unknown randomization preset"),
        (["disturbance=missing.yaml"], "missing.yaml does not exist"),
        (["--config", "missing.yaml"], "missing.yaml does not exist"),
    ],
)
def test_the_program_says_what_is_wrong_in_one_line(call, tmp_path, arguments, expected):
    code, output, errors = call("--run", tmp_path / "run", *arguments)
    assert code == 1
    assert output == ""
    assert errors.startswith("pretrain: ")
    assert expected in errors
    assert "Traceback" not in errors
    assert not (tmp_path / "run").exists(), "a refused run leaves nothing behind"


def test_a_folder_in_use_is_not_trained_into(call, runs):
    base, _, _ = runs
    before = weights(base / "straight")
    code, _, errors = call("--run", base / "straight", *TINY)
    assert code == 1
    assert "is not empty; continue it with --resume, or choose another --run folder" in errors
    assert weights(base / "straight") == before


def test_a_run_is_not_resumed_with_other_settings(call, runs):
    base, _, _ = runs
    code, _, errors = call("--run", base / "straight", "--resume", *TINY, "learner.discount=0.9", "seed=3")
    assert code == 1
    assert "was started with other settings (seed, learner differ)" in errors
    assert "config.yaml" in errors


@pytest.mark.parametrize("path", sorted((ROOT / "configs").glob("pretrain*.yaml")), ids=lambda path: path.stem)
def test_the_settings_that_come_along_can_be_loaded_and_name_a_task(path, program):
    config = load_config(program.PretrainConfig, path)
    assert config.task in TASKS
    assert config.trainer.updates >= 10_000
