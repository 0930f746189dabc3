"""The speed benchmark: both sides do the same decisions and updates, and the command reports them."""

import json
import runpy
import sys
from pathlib import Path

import pytest
import torch

from dpg_robot.learning.learner import LearnerConfig
from sim.benchmarks.learning_speed import OurMethod, Sac, SpeedConfig, count_work, measure_speed

pytest.importorskip("stable_baselines3")

SCRIPT = Path(__file__).parents[2] / "launch" / "benchmark.py"
TINY = SpeedConfig(
    task="cartpole-swingup",
    learner=LearnerConfig(hidden_sizes=(8, 16), batch_size=16),
    decisions=5,
    rounds=2,
    warmup_decisions=3,
)


def test_both_sides_do_one_update_for_each_decision_with_networks_of_equal_size():
    ours, sac = OurMethod(TINY, "reward_and_next_state"), Sac(TINY)
    for method in (ours, sac):
        method.learn(20)
        method.update(7)
        method.learn(5)
    learner, model = ours._training.learner, sac._model
    assert ours._training.replay.added == 25
    assert int(learner.updates) == 25 - 16 + 7
    assert model.num_timesteps == 25
    assert model._n_updates == 25 - 16 + 7
    assert model.batch_size == learner.config.batch_size == 16
    assert [layer.out_features for layer in model.actor.latent_pi if hasattr(layer, "out_features")] == [8, 16]


def test_ratios_are_taken_within_rounds():
    threads, heard = torch.get_num_threads(), []
    times = measure_speed(TINY, heard.append)
    assert torch.get_num_threads() == threads
    assert len(heard) == count_work(TINY) == 9
    for every in times.values():
        assert set(every) == {"denoised", "critic", "sac"}
        for entry in every.values():
            assert len(entry["rounds"]) == 2
            assert 0 < entry["low"] <= entry["median"] <= entry["high"]
            expected = [peer / ours for peer, ours in zip(every["sac"]["rounds"], entry["rounds"], strict=True)]
            assert entry["ratio"]["rounds"] == expected


def test_the_command_prints_a_table_and_writes_all(tmp_path, monkeypatch, capsys):
    file = tmp_path / "speed.json"
    settings = ["task=cartpole-swingup", "decisions=2", "rounds=1", "warmup_decisions=1", "learner.batch_size=8"]
    monkeypatch.setattr(sys, "argv", [str(SCRIPT), "speed", *settings, "learner.hidden_sizes=[8]", "--json", str(file)])
    runpy.run_path(str(SCRIPT), run_name="__main__")
    out, err = capsys.readouterr()
    assert out.startswith("cartpole-swingup, layers 8, batch 8, 1 threads")
    assert "| sac " in out
    assert "round 1, sac" in err
    result = json.loads(file.read_text())
    assert result["settings"]["task"] == "cartpole-swingup"
    assert result["update_ms"]["critic"]["ratio"]["median"] > 0
    assert result["machine"]["cpu"]


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("task=cheetah-rum", "Did you mean 'cheetah-run'?"),
        ("rounds=0", "rounds must be 1 or more, got 0"),
        ("variants={sac: critic}", "must not be named sac"),
        ("variants={a: critc}", "Did you mean 'critic'?"),
    ],
)
def test_what_cannot_be_measured_is_refused(setting, message, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", [str(SCRIPT), "speed", setting])
    with pytest.raises(SystemExit) as left:
        runpy.run_path(str(SCRIPT), run_name="__main__")
    assert left.value.code == 1
    assert message in capsys.readouterr().err
