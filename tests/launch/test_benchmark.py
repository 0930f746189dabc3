"""Benchmark: the command line measures everything end to end, prints a table, and writes all of it to a file."""

import json
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from sim.benchmark import METHODS, BenchmarkSettings, OurEnvironments, StaggeredEnvironments, count_work, measure_task

SCRIPT = Path(__file__).parents[2] / "launch" / "benchmark.py"
TINY = ["--environments", "8", "--threads", "1", "--processes", "1", "--seconds", "0.01", "--rounds", "2"]


def run(*arguments):
    return subprocess.run([sys.executable, SCRIPT, *arguments], capture_output=True, text=True, check=False)


def test_the_file_has_all_that_was_measured_and_on_which_machine(tmp_path):
    path = tmp_path / "benchmark.json"
    arguments = ["--tasks", "cartpole-balance", "--memory-environments", "64", "--envpool-environments", "2"]
    done = run("sim", *TINY, *arguments, "--json", str(path))
    assert done.returncode == 0, done.stderr
    result = json.loads(path.read_text())
    assert result["command"] == "sim"
    assert result["settings"]["environments"] == 8
    machine = result["machine"]
    assert machine["cpu"]
    assert machine["usable_cores"] >= 1
    assert machine["versions"]["mujoco"]
    task = result["tasks"]["cartpole-balance"]
    assert set(task["steps_per_s"]) | set(task["unavailable"]) == set(METHODS)
    assert set(METHODS) - {"envpool"} <= set(task["steps_per_s"])
    for summary in task["steps_per_s"].values():
        assert len(summary["rounds"]) == 2
        assert 0 < summary["low"] <= summary["median"] <= summary["high"]
    rounds = {name: summary["rounds"] for name, summary in task["steps_per_s"].items()}
    assert task["ratio"]["bare"]["rounds"] == pytest.approx(
        [ours / bare for ours, bare in zip(rounds["ours"], rounds["bare"], strict=True)]
    )
    assert 0 < task["memory_bytes_per_environment"] < 10e6
    assert f"{task['steps_per_s']['ours']['median']:,.0f} [" in done.stdout, "the table shows what the file holds"
    assert "cartpole-balance: measured memory" in done.stderr, "progress is shown"


def test_help_shows_units_and_defaults():
    done = run("sim", "--help")
    assert "2.0 s" in done.stdout
    assert "(default: 1024)" in done.stdout.replace("\n", " ").replace("  ", " ")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--tasks", "cheetah-rum"], "Did you mean 'cheetah-run'?"),
        (["--methods", "our"], "Did you mean 'ours'?"),
        (["--rounds", "0"], "rounds must be 1 or more, got 0"),
        (["--seconds", "0"], "seconds must be positive"),
    ],
)
def test_what_cannot_be_measured_is_refused(arguments, message):
    done = run("sim", *arguments)
    assert done.returncode == 1
    assert message in done.stderr
    assert "Traceback" not in done.stderr


def test_what_is_not_installed_is_named_and_the_rest_is_measured(tmp_path):
    python = tmp_path / "python"  # one that has no packages at all, whatever is installed here
    python.write_text(f'#!/bin/sh\nexec "{sys.executable}" -S "$@"\n')
    python.chmod(0o755)
    settings = BenchmarkSettings(
        tasks=("cartpole-balance",),
        methods=("ours", "envpool"),
        environments=4,
        threads=1,
        seconds=0.01,
        rounds=1,
        memory_environments=0,
        envpool_python=python,
    )
    work = []
    result = measure_task("cartpole-balance", settings, work.append)
    assert list(result["steps_per_s"]) == ["ours"]
    assert result["unavailable"] == {"envpool": "not installed"}
    assert result["memory_bytes_per_environment"] is None
    assert len(work) == count_work(settings)


def test_staggered_episodes_end_one_by_one_at_their_rate():
    method = StaggeredEnvironments("cartpole-balance", BenchmarkSettings(environments=100, threads=1))
    ended = sum(int(method._environment.step(np.zeros((100, 1))).timeout.sum()) for _ in range(500))
    assert ended == 50, "half an episode of 1,000 steps ends half of all episodes"


def test_the_time_of_an_episode_is_that_of_its_reset_and_all_of_its_steps(monkeypatch):
    clock = [0.0]
    method = OurEnvironments("cartpole-balance", BenchmarkSettings(environments=100, threads=1))
    environment = method._environment

    def take(seconds, call):
        def taking(*arguments):
            clock[0] += seconds
            return call(*arguments)

        return taking

    monkeypatch.setattr(time, "perf_counter", lambda: clock[0])
    monkeypatch.setattr(environment, "reset", take(5.0, environment.reset))
    monkeypatch.setattr(environment, "step", take(0.01, environment.step))
    monkeypatch.setattr(environment, "load_state_dict", take(100.0, environment.load_state_dict))
    timeouts = []
    step = environment.step
    monkeypatch.setattr(environment, "step", lambda action: timeouts.append(step(action).timeout.any()))
    # 9 s are 900 steps, and there are 850 up to the end of an episode: no second reset may be in them
    assert method.measure(9.0) == pytest.approx(100 * 1000 / (5.0 + 1000 * 0.01))
    assert not any(timeouts)
    assert len(timeouts) == 900
