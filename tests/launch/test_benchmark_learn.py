"""The learning benchmark's command line: runs what is missing, reports what is there, and stops when told."""

import csv
import json
import os
import runpy
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from dpg_robot.config import load_config
from sim.benchmarks.learning_protocol import LearningProtocol, plan_runs
from sim.benchmarks.learning_results import Result
from sim.benchmarks.run_store import write_result

SCRIPT = Path(__file__).parents[2] / "launch" / "benchmark.py"
CONFIG = SCRIPT.parents[1] / "configs" / "benchmark" / "learn.yaml"
FEW = [
    "ours={dpg: {}}",
    "tasks={cartpole-swingup: 4, cheetah-run: 4}",
    "disturbances={none: 0, hard: 5}",
    "peers={sac: {algorithm: SAC}, ppo: {algorithm: PPO}}",
]


def run(monkeypatch, capsys, *arguments):
    """Run the command in this process and return exit code, stdout and stderr."""
    monkeypatch.setattr(sys, "argv", [str(SCRIPT), "learn", *arguments])
    code = 0
    try:
        runpy.run_path(str(SCRIPT), run_name="__main__")
    except SystemExit as error:
        code = error.code or 0
    out, err = capsys.readouterr()
    return code, out, err


def store(folder, runs):
    """Store made-up results: the same return in all episodes of an evaluation, growing with frames, seed and algorithm."""
    for each in runs:
        best = 100.0 * (each.seed + 1) + {"dpg": 200.0, "sac": 0.0, "ppo": 50.0}[each.algorithm]
        curve = [{"frames": frames, "returns": [best * frames / 100_000] * 10} for frames in range(10_000, 100_001, 10_000)]
        code = {"commit": None, "dirty": None, "learner_digest": f"digest-{each.seed}"}
        write_result(folder, each, Result(curve, 60.0, 24_000, {}, code, "today"))


def test_missing_runs_are_counted_out_of_every_number(tmp_path, monkeypatch, capsys):
    runs = plan_runs(load_config(LearningProtocol, CONFIG, FEW))
    there = [each for each in runs if (each.task, each.disturbance) == ("cartpole-swingup", "none") and each.algorithm != "ppo"]
    store(tmp_path, [each for each in there if (each.algorithm, each.seed) != ("sac", 2)])
    files = {name: tmp_path / f"report.{name}" for name in ("json", "csv", "png")}
    code, out, err = run(
        monkeypatch,
        capsys,
        *FEW,
        "thresholds={cartpole-swingup: 350}",
        "--report",
        *("--results", str(tmp_path), "--json", str(files["json"])),
        *("--csv", str(files["csv"]), "--figure", str(files["png"])),
    )
    assert code == 0, err
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in out.splitlines() if line.startswith("|")]
    assert "5 of 36 runs" in out
    assert ["cartpole-swingup", "none", "400 +- 58 (3)", "150 +- 50 (2)", "- (0)"] in rows
    assert ["cheetah-run", "hard", "- (0)", "- (0)", "- (0)"] in rows
    # 350 is never reached by the first of three seeds, and then a mean over the others would flatter
    assert ["cartpole-swingup", "none", "dpg", "350", "-", "2 of 3"] in rows
    # 300, 400, 500 against 100, 200, all of two common seeds: 350 / 150
    comparison = next(row for row in rows if row[:3] == ["none", "dpg", "sac"])
    assert comparison[3:] == ["1.00 [1.00, 1.00]", "2.33 [1.50, 4.00]", "2 (1)"]
    assert "dpg: its runs are of 3 different states of the learner's code" in out
    report = json.loads(files["json"].read_text())
    assert report["runs"] == {"planned": 36, "done": 5, "with_other_settings": 0}
    scores = {(entry["disturbance"], entry["algorithm"]): entry for entry in report["algorithms"]}
    assert scores["none", "dpg"]["iqm_final"]["value"] == pytest.approx(0.4)
    assert scores["none", "dpg"]["iqm_area"]["value"] == pytest.approx(0.4 * 0.55)
    assert scores["none", "dpg"]["complete"] is False
    lines = list(csv.DictReader(files["csv"].open()))
    assert len(lines) == 5 * 10
    assert lines[9]["frames"] == "100000"
    assert float(lines[9]["mean_return"]) == pytest.approx(300)
    assert files["png"].read_bytes().startswith(b"\x89PNG")


def test_what_is_there_is_not_run_again_and_other_settings_are_refused(tmp_path, monkeypatch, capsys):
    store(tmp_path, plan_runs(load_config(LearningProtocol, CONFIG, FEW)))
    code, out, err = run(monkeypatch, capsys, *FEW, "--results", str(tmp_path), "--jobs", "2")
    assert code == 0
    assert "0 runs to do, 36 are there already" in err
    assert "36 of 36 runs" in out
    assert "*" not in out.partition("n: runs")[0], "nothing is missing"
    shorter = [*FEW, "frames=50_000", "--only", "algorithm=sac", "--only", "seed=0,1", "--results", str(tmp_path)]
    code, out, err = run(monkeypatch, capsys, *shorter)
    assert code == 1
    assert "cartpole-swingup/none/sac/0.json and 7 more are results of other settings" in err
    assert "frames: stored 100000, wanted 50000" in err
    assert "--redo" in err
    code, out, err = run(monkeypatch, capsys, *shorter, "--report")
    assert code == 0
    assert "8 results of other settings are left out" in out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--only", "algorithm=sacc"], "Did you mean 'sac'?"),
        (["--jobs", "0"], "--jobs must be 1 or more, got 0"),
        (["frame=1"], "Did you mean 'frames'?"),
        (["--config", "nowhere.yaml"], "does not exist"),
    ],
)
def test_what_cannot_be_run_is_refused(arguments, message, tmp_path, monkeypatch, capsys):
    code, _, err = run(monkeypatch, capsys, *arguments, "--results", str(tmp_path))
    assert code == 1
    assert message in err
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL])
def test_runs_are_done_in_processes_of_their_own_and_stop_with_the_program(tmp_path, number):
    arguments = ["--only", "task=cartpole-swingup", "--only", "disturbance=none", "--only", "algorithm=dpg", "--quiet"]
    tiny = ["frames=100_000_000", "evaluate_every=100_000_000", "ours.dpg.learner.hidden_sizes=[8]"]
    command = [sys.executable, SCRIPT, "learn", *tiny, *arguments, "--results", tmp_path, "--jobs", "2"]
    with subprocess.Popen([str(item) for item in command], stderr=subprocess.PIPE, text=True, env=os.environ) as process:
        children = []
        deadline = time.monotonic() + 60
        while len(children) < 2 and time.monotonic() < deadline:
            children = [each for each in psutil.Process(process.pid).children() if "spawn_main" in " ".join(each.cmdline())]
            time.sleep(0.05)
        assert len(children) == 2
        process.send_signal(number)
        _, err = process.communicate(timeout=60)
    if number == signal.SIGINT:
        assert process.returncode == 130
        assert err.rstrip().endswith("benchmark: interrupted")
        assert "Traceback" not in err
    assert psutil.wait_procs(children, timeout=10)[1] == []
    assert list(tmp_path.rglob("*.json")) == []
