"""The identification program, run as a user runs it."""

import importlib.util
import json
from pathlib import Path

import pytest

from dpg_robot.config import load_config
from sim.benchmarks.identification_robots import record
from sim.randomization import Randomization

ROOT = Path(__file__).parents[2]
SETTINGS = ["windows=16", "particles=16", "final_sweeps=2", "window_s=0.2"]


@pytest.fixture(scope="module")
def program():
    spec = importlib.util.spec_from_file_location("launch_identify", ROOT / "launch" / "identify.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.main


@pytest.fixture(scope="module")
def log(tmp_path_factory, write_run):
    """A log of two runs of a cart-pole with a weak motor."""
    folder = tmp_path_factory.mktemp("robot") / "log"
    for number in range(2):
        recording = record({"actuator_gain/slide": 0.7}, seconds=8, seed=number)
        write_run(folder, f"run{number}", recording.transitions, recording.contract)
    return folder


def test_ranges_report_and_picture_are_written(program, log, tmp_path, capsys):
    prior = tmp_path / "prior.yaml"
    prior.write_text("actuator_gain: [0.5, 2.0]\n")
    out = tmp_path / "fitted.yaml"
    code = program(
        ["--log", str(log), "--randomization", str(prior), "--out", str(out), "--json", str(tmp_path / "found.json"),
         "--figure", str(tmp_path / "found.png"), "--seed", "3", "--quiet", *SETTINGS]
    )  # fmt: skip
    said = capsys.readouterr()
    assert code == 0, said.err
    assert said.err == ""
    assert "actuator_gain/slide" in said.out
    text = out.read_text()
    assert "run0, run1" in text
    assert "# Made by: launch/identify.py --log" in text
    low, high = load_config(Randomization, out).actuator_gain.bounds
    assert 0.55 < low < high < 0.9
    found = json.loads((tmp_path / "found.json").read_text())
    assert found["parameters"][0]["name"] == "actuator_gain/slide"
    assert found["predictions"]["posterior mean"]["end_share"] < found["predictions"]["nominal"]["end_share"]
    assert (tmp_path / "found.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--task", "cartpole-balance"], "the log is of task cartpole-swingup"),
        (["--randomization", "defualt"], "Did you mean 'default'?"),
        (["windows=3"], "windows must be 16 or more"),
        (["particle=64"], "Did you mean 'particles'?"),
    ],
)
def test_mistakes_are_explained_and_nothing_is_written(program, log, tmp_path, capsys, options, message):
    assert program(["--log", str(log), "--out", str(tmp_path / "fitted.yaml"), "--quiet", *options]) == 1
    assert message in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_a_folder_without_a_log_is_refused(program, tmp_path, capsys):
    assert program(["--log", str(tmp_path), "--out", str(tmp_path / "fitted.yaml"), "--quiet"]) == 1
    assert "holds no robot log" in capsys.readouterr().err
