"""The gradient benchmark: the true gradient is right, runs name all they depend on, and what is there is not done again."""

import dataclasses
import json
import runpy
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from dpg_robot.config import dump_config, load_config
from dpg_robot.errors import ConfigError, UnknownNameError
from dpg_robot.learning.settings import LearnerConfig
from sim.benchmarks.gradient_behaviour import States, make_environment
from sim.benchmarks.gradient_figures import draw_cosines, draw_robustness
from sim.benchmarks.gradient_protocol import BehaviourRun, ReferenceRun, VariantRun, needed_runs, plan_runs, select_runs
from sim.benchmarks.gradient_report import build_report, describe_report, to_csv
from sim.benchmarks.gradient_results import read_results
from sim.benchmarks.gradient_runs import execute, execute_all
from sim.benchmarks.gradient_settings import (
    BehaviourConfig,
    GradientProtocol,
    LinearConfig,
    RobustnessConfig,
    TruthConfig,
    VariantConfig,
)
from sim.benchmarks.gradient_truth import Consequences, compare, true_gradient
from sim.benchmarks.run_store import ResultError

SCRIPT = Path(__file__).parents[2] / "launch" / "benchmark.py"
LEARNER = LearnerConfig(hidden_sizes=(8,), batch_size=16)
TINY = GradientProtocol(
    linear=LinearConfig((1,), (1.0,), hidden_sizes=(8,), updates=3, batch_size=16, samples=100),
    tasks={"quadruped-walk": 2},  # its actuators have activations, a part of the state
    noises=(0.3,),
    learner=LEARNER,
    behaviour=BehaviourConfig(num_envs=4, decisions=60, warmup_decisions=50, transitions=40, states=10),
    truth=TruthConfig(states=2, noise_draws=4, policy_draws=2),
    variants={"critic": VariantConfig("critic"), "head": VariantConfig("next_state", "head")},
    updates=(2, 4),
    seeds=(0,),
    robustness=RobustnessConfig(states=3, noise_draws=4, return_draws=2, return_steps=2, steps=(1, 2)),
)


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A folder with all results of the tiny protocol."""
    folder = tmp_path_factory.mktemp("results")
    for stage in needed_runs(plan_runs(TINY)):
        for run in stage:
            execute(run, folder)
    return folder


def states_of(run, count):
    """Full states after a few random steps."""
    environment = make_environment(run, count, seed=5)
    environment.reset()
    for _ in range(3):
        environment.step(np.random.default_rng(0).uniform(-1, 1, (count, environment.act_dim)))
    activation = environment.physics.act.copy()
    return States(torch.from_numpy(environment.obs), environment.qpos, environment.qvel, activation)


def test_the_true_gradient_is_that_of_a_target_that_is_smooth_in_the_next_state():
    # Without noise the cart's next speed is smooth in the force, and the chain rule gives the gradient of its square.
    run = BehaviourRun("cartpole-swingup", 2, 0.0, LEARNER, TINY.behaviour)
    states = states_of(run, 3)
    speed = Consequences(run, states, lambda reward, observation, terminal: observation[:, 3], 2)
    squared = Consequences(run, states, lambda reward, observation, terminal: observation[:, 3] ** 2, 2)
    actions = np.array([[-0.5], [0.2], [0.97]])  # the last difference ends at 1
    slope, value = true_gradient(speed, actions, 0.05).mean(0), speed.mean_targets(actions).mean(0)
    full, none = (speed.mean_targets(np.full_like(actions, force)).mean(0) for force in (1.0, -1.0))
    assert (full - none > 0.02).all(), "force to the right makes it faster to the right"
    np.testing.assert_allclose(slope[:, 0], (full - none) / 2, rtol=0.02)
    np.testing.assert_allclose(true_gradient(squared, actions, 0.05).mean(0), 2 * value[:, None] * slope, rtol=0.01, atol=1e-5)


def test_random_numbers_are_common_to_all_actions_and_new_in_each_round():
    run = plan_runs(TINY)[1].truth.behaviour
    states = states_of(run, 2)
    consequences = Consequences(run, states, lambda reward, observation, terminal: observation.square().sum(1), 4)
    actions = np.zeros((2, 12))
    first = consequences.mean_targets(actions)
    consequences.mean_targets(actions + 0.5)
    np.testing.assert_array_equal(first, consequences.mean_targets(actions))
    assert consequences.rounds == 2
    assert not np.isclose(first[0], first[1], rtol=1e-9).any()


def test_activations_are_part_of_the_state_from_which_actions_are_tried():
    run = dataclasses.replace(plan_runs(TINY)[1].truth.behaviour, noise=0.0)
    states = states_of(run, 1)
    assert np.abs(states.activation).max() > 0.01
    started = dataclasses.replace(states, activation=states.activation + 0.5)
    one, other = (
        Consequences(run, each, lambda reward, observation, terminal: observation.square().sum(1), 2).mean_targets(
            np.zeros((1, 12))
        )
        for each in (states, started)
    )
    assert abs(one - other).max() > 1e-6


def test_the_comparison_by_hand():
    result = compare(torch.tensor([[3.0, 0.0], [0.0, 4.0]]), torch.tensor([[1.0, 0.0], [2.0, 0.0]]))
    assert result["cosine"] == pytest.approx(3 / (5 * 5**0.5))
    assert result["cosine_per_state"] == pytest.approx(0.5)
    assert result["relative_error"] == pytest.approx((24 / 5) ** 0.5)
    assert result["norm_ratio"] == pytest.approx(5**0.5)


def test_all_stages_give_a_report_with_tables_csv_and_figures(finished):
    runs = plan_runs(TINY)
    results = read_results(finished, runs)
    report = build_report(TINY, runs, results)
    assert report["runs"] == {"planned": 5, "done": 5}
    assert len(report["linear"]) == 7
    assert [entry["variant"] for entry in report["simulated"]] == ["critic", "head"]
    critic = report["simulated"][0]
    assert [entry["updates"] for entry in critic["comparisons"]] == [2, 4]
    walks = {(entry["variant"], entry["sigma"]): entry["rows"] for entry in report["walks"]}
    learned = [(variant, sigma) for variant in ("critic", "head") for sigma in (0.0, 0.2)]
    assert list(walks) == [*learned, ("true gradient", None), ("random direction", None)]
    assert all([row["steps"] for row in rows] == [1, 2] for rows in walks.values())
    assert all(row["gain"]["mean"] != 0 != row["return_gain"]["mean"] for rows in walks.values() for row in rows)
    assert "predicted_gain" in walks["head", 0.2][0]
    assert "predicted_gain" not in walks["true gradient", None][0]
    assert not report["mixed_behaviours"]
    json.dumps(report)
    text = describe_report(report)
    assert "5 of 5 runs" in text
    assert "| quadruped-walk | ceiling |" in " ".join(text.split())
    assert "| quadruped-walk | 0.3 | random direction | | 1 |" in " ".join(text.split())
    lines = to_csv(results).splitlines()
    assert len({len(line.split(",")) for line in lines if "baseline of" not in line}) == 1
    for figure in (draw_cosines(report), draw_robustness(report)):
        assert figure.startswith(b"\x89PNG")


def test_the_command_does_nothing_again_and_writes_what_it_reports(finished, tmp_path, monkeypatch, capsys):
    dump_config(TINY, tmp_path / "tiny.yaml")
    files = {name: tmp_path / f"report.{name}" for name in ("json", "csv", "png")}
    options = ["--config", tmp_path / "tiny.yaml", "--results", finished, "--only", "part=simulated", "--quiet"]
    options += ["--json", files["json"], "--csv", files["csv"], "--figure", files["png"]]
    monkeypatch.setattr(sys, "argv", [str(SCRIPT), "gradient", *map(str, options)])
    runpy.run_path(str(SCRIPT), run_name="__main__")
    out, err = capsys.readouterr()
    assert "0 runs to do, 4 of 4 are there already" in err
    assert "4 of 4 runs" in out
    assert json.loads(files["json"].read_text())["simulated"][0]["variant"] == "critic"
    assert all(path.stat().st_size for path in files.values())


def test_the_same_run_gives_the_same_numbers(finished, tmp_path):
    run = plan_runs(TINY)[2]
    for needed in (run.truth.behaviour, run.truth):
        target = tmp_path / needed.place
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes((finished / needed.place).read_bytes())
    execute(run, tmp_path)
    again, before = (read_results(folder, [run])[run] for folder in (tmp_path, finished))
    assert {name: again[name] for name in ("comparisons", "robustness")} == {
        name: before[name] for name in ("comparisons", "robustness")
    }


def test_a_truth_of_another_behaviour_is_refused(finished, tmp_path):
    run = plan_runs(TINY)[1]
    (tmp_path / run.place).parent.mkdir(parents=True)
    (tmp_path / run.truth.place).write_bytes((finished / run.truth.place).read_bytes())
    execute(run.truth.behaviour, tmp_path)
    execute(run, tmp_path)  # the same behaviour, run again
    content = (finished / run.truth.place).read_bytes()
    position = content.index(b'"behaviour":"') + len(b'"behaviour":"')
    (tmp_path / run.truth.place).write_bytes(content[:position] + b"0" * 64 + content[position + 64 :])
    with pytest.raises(ResultError, match="measured for another behaviour run; remove it"):
        execute(run, tmp_path)


def test_a_report_names_worlds_whose_runs_are_of_different_behaviours(finished):
    results = read_results(finished, plan_runs(TINY))
    next(result for run, result in results.items() if isinstance(run, ReferenceRun))["behaviour"] = "another"
    report = build_report(TINY, plan_runs(TINY), results)
    assert report["mixed_behaviours"] == ["quadruped-walk, noise 0.3"]
    assert "the runs are of different behaviours" in describe_report(report)


def test_walks_can_be_left_out(finished, tmp_path):
    without = dataclasses.replace(TINY, robustness=RobustnessConfig(states=0))
    runs = plan_runs(without)
    assert [type(run) for run in runs[1:]] == [VariantRun, VariantRun]
    for needed in (runs[1].truth.behaviour, runs[1].truth):
        (tmp_path / needed.place).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / needed.place).write_bytes((finished / needed.place).read_bytes())
    execute(runs[1], tmp_path)
    report = build_report(without, runs, read_results(tmp_path, runs))
    assert report["walks"] == []
    assert "True gain" not in describe_report(report)


def test_a_run_that_fails_says_why_and_stops_no_other(tmp_path):
    linear, variant, *_ = plan_runs(TINY)
    endings = {ending.run: ending for ending in execute_all([variant, linear], tmp_path, jobs=2)}
    assert "is not there, as its run failed or was removed" in endings[variant].error
    assert endings[linear].error == ""
    assert list(read_results(tmp_path, [linear, variant])) == [linear]


def test_files_of_other_settings_lie_beside_each_other():
    changed = dataclasses.replace(TINY, learner=dataclasses.replace(LEARNER, sigma_min=0.2))
    (linear, first, *_), (other_linear, second, *_) = plan_runs(TINY), plan_runs(changed)
    assert linear.place == other_linear.place
    assert first.place.parent == second.place.parent
    assert first.place != second.place
    more_seeds = plan_runs(dataclasses.replace(TINY, seeds=(0, 1)))
    assert {run.place for run in plan_runs(TINY)} < {run.place for run in more_seeds}, "a benchmark can be grown"


def test_runs_share_behaviour_and_truth():
    behaviours, truths, last = needed_runs(plan_runs(dataclasses.replace(TINY, seeds=(0, 1))))
    assert [len(behaviours), len(truths), len(last)] == [1, 1, 9]


def test_runs_are_chosen_by_labels():
    runs = plan_runs(TINY)
    assert [run.variant for run in select_runs(runs, ["variant=head"]) if isinstance(run, VariantRun)] == ["head"]
    assert len(select_runs(runs, ["part=simulated"])) == 4
    assert [run.seed for run in select_runs(runs, ["variant=true gradient"]) if isinstance(run, ReferenceRun)] == [0]
    assert len(select_runs(runs, ["part=linear", "actions=1"])) == 1
    with pytest.raises(UnknownNameError, match="Did you mean 'critic'"):
        select_runs(runs, ["variant=critik"])
    with pytest.raises(ConfigError, match="expected KEY=NAME"):
        select_runs(runs, ["variant"])


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["truth.largest_action=1.5"], "largest_action must be at most 1"),
        (["behaviour.states=10"], "behaviour.states must be at least"),
        (["behaviour.transitions=1_000_000"], "transitions must be at most decisions"),
        (["updates=[]"], "updates must be positive"),
        (["variants={../x: {}}"], "names a file"),
    ],
)
def test_settings_that_cannot_be_are_refused(overrides, message):
    with pytest.raises(ConfigError, match=message):
        load_config(GradientProtocol, None, overrides)
