"""The benchmark of offline starts: the robot's log, its plan, its report on made-up results, and a small run with all parts."""

from __future__ import annotations

import argparse
import dataclasses
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from dpg_robot.data.log_source import LogSource
from dpg_robot.data.robot_log import check_log
from dpg_robot.data.validity import examine_log
from dpg_robot.errors import ConfigError, UnknownNameError
from dpg_robot.learning.learner import Learner, LearnerConfig
from dpg_robot.learning.offline_trainer import OfflineTrainerConfig
from sim.benchmarks.learning_ours import OurTraining
from sim.benchmarks.learning_protocol import OurConfig
from sim.benchmarks.offline_start_command import add_offline_start_arguments
from sim.benchmarks.offline_start_log import measurements_of, to_dataset, write_log
from sim.benchmarks.offline_start_protocol import OfflineStartProtocol, OfflineStartRun, StartConfig, select_runs
from sim.benchmarks.offline_start_report import build_report, describe_report
from sim.benchmarks.offline_start_runs import OfflineStartResult, execute, explained_share, pretrain
from sim.benchmarks.run_store import ResultError, read_results, write_result
from sim.environment import BatchEnvironment, make_native

SMALL = OfflineStartProtocol(
    tasks={"cartpole-swingup": 10},
    thresholds={"cartpole-swingup": (100.0, 200.0)},
    starts={
        "scratch": StartConfig(minutes=0),
        "offline": StartConfig(minutes=1.0, trainer=OfflineTrainerConfig(updates=30, checkpoint_every=30)),
    },
    training=OurConfig(
        warmup_decisions=80, learner=LearnerConfig(batch_size=16, hidden_sizes=(16,), gradient="next_state", n_steps=1)
    ),
    seeds=(3,),
    frames=1_200,
    evaluate_every=600,
    evaluation_episodes=2,
)


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def robot(task: str = "cartpole-swingup") -> BatchEnvironment:
    return make_native(task, 1, 5, 1, 10, SMALL.robot, "default")


def run_of(start: str) -> OfflineStartRun:
    (run,) = select_runs(SMALL, [f"start={start}"])
    return run


@pytest.mark.parametrize("task", ["cartpole-swingup", "cheetah-run"])
def test_a_log_is_whole_and_becomes_a_data_set_without_rewards(task: str, tmp_path: Path) -> None:
    write_log(robot(task), tmp_path / "log", 250, (1, 4), seed=1)
    report = check_log(tmp_path / "log")
    assert report.contiguous
    assert [run.transitions for run in report.runs] == [250]
    assert examine_log(tmp_path / "log").count("error") == 0
    dataset = to_dataset(tmp_path / "log", tmp_path / "datasets", f"{task}/robot-v0")
    assert not dataset.has_rewards
    assert dataset.contract == robot(task).contract()
    assert [len(episode) for episode in dataset.episodes] == [100, 100, 50]
    assert all(episode.truncations[-1] and not episode.terminations.any() for episode in dataset.episodes)


def test_a_log_has_what_the_robot_did_and_saw(tmp_path: Path) -> None:
    write_log(robot(), tmp_path, 120, (2, 5), seed=1)
    episodes = [found.episode for found in LogSource(tmp_path).read_part(0)]
    again = robot()
    observation = again.reset()
    for episode in episodes:
        for seen, action in zip(episode.observations, episode.actions, strict=False):
            # the angle is logged, so noise that moved its cosine and sine off the circle is lost
            np.testing.assert_allclose(seen, observation[0], atol=0.03)
            observation = again.step(action[None]).obs
    actions = np.concatenate([episode.actions for episode in episodes])[:, 0]
    lengths = np.diff(np.flatnonzero(np.diff(actions, prepend=np.nan) != 0))
    assert lengths.min() == 2
    assert lengths.max() == 5


def test_angles_are_told_from_cosine_and_sine_and_count_turns() -> None:
    contract = robot().contract()
    angle = np.linspace(0.0, 15.0, 40)
    measured = np.stack([angle / 10, angle, -angle, np.ones(40)], axis=1)
    np.testing.assert_allclose(measurements_of(contract.compute_features(measured), contract), measured, atol=1e-5)


def test_filters_choose_runs_and_know_their_names() -> None:
    protocol = dataclasses.replace(SMALL, seeds=(0, 1))
    assert len(select_runs(protocol, [])) == 4
    assert [run.title for run in select_runs(protocol, ["start=offline", "seed=1"])] == ["cartpole-swingup, offline, seed 1"]
    with pytest.raises(UnknownNameError, match=r"Did you mean 'scratch'"):
        select_runs(protocol, ["start=scratsh"])
    with pytest.raises(ConfigError, match="KEY=NAME"):
        select_runs(protocol, ["offline"])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"evaluate_every": 605, "frames": 1_210}, "multiple of 10, the frames of a step"),
        ({"frames": 700}, "multiple of evaluate_every"),
        ({"starts": {}}, "at least one task, one start and one seed"),
        ({"training": OurConfig()}, "gradient must be next_state"),
    ],
)
def test_settings_that_cannot_be_run_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(SMALL, **changes)


def test_starts_differ_in_the_denoiser_alone() -> None:
    learner, before = pretrain(run_of("offline"))
    assert before["transitions"] == 600
    assert before["episodes"] == 6
    run = run_of("scratch").learning
    scratch, offline = OurTraining(run, SMALL.training), OurTraining(run, SMALL.training, learner)
    ours, theirs = offline.learner.state_dict(), scratch.learner.state_dict()
    changed = {name for name, value in ours.items() if not torch.equal(value, theirs[name])}
    assert changed
    assert all(name.startswith("estimator.denoiser.") for name in changed)
    assert offline.learner.estimator.denoiser.observation_normalizer.count == 500  # a tenth of the episodes was held out
    assert run_of("offline").learning.specification() == run.specification() | {"algorithm": "offline"}


def test_the_denoiser_learns_from_the_log_what_actions_did(tmp_path: Path) -> None:
    more = StartConfig(minutes=2.0, trainer=OfflineTrainerConfig(updates=150, checkpoint_every=150))
    settings = dataclasses.replace(SMALL.training.learner, batch_size=64, learning_rate=0.01)
    training = dataclasses.replace(SMALL.training, learner=settings)
    protocol = dataclasses.replace(SMALL, starts={"offline": more}, training=training)
    learner, before = pretrain(select_runs(protocol, [])[0])
    write_log(robot(), tmp_path / "log", 300, (1, 8), seed=9)
    fresh = to_dataset(tmp_path / "log", tmp_path / "datasets", "cartpole-swingup/robot-v0")
    untrained = Learner(learner.contract, learner.config)
    assert before["explained"] > 0.05
    assert explained_share(learner, fresh, 0, seed=0) > 0.05 > abs(explained_share(untrained, fresh, 0, seed=0))


def test_small_runs_count_only_frames_with_rewards_and_come_out_the_same_again(tmp_path: Path) -> None:
    results = {}
    for start in ("scratch", "offline"):
        run, frames = run_of(start), list[int]()
        results[start] = execute(run, frames.append)
        write_result(tmp_path, run, results[start])
        assert sum(frames) == 1_200
        assert [entry["frames"] for entry in results[start].curve] == [600, 1_200]
        assert results[start].updates == 40
    assert results["scratch"].before is None
    assert results["scratch"].curve != results["offline"].curve
    again = execute(run_of("offline"), lambda _: None)
    assert again.curve == results["offline"].curve
    stored = read_results(tmp_path, select_runs(SMALL, []), OfflineStartResult)
    assert {run.start: result for run, result in stored.results.items()} == results


def result(*returns: float, explained: float | None = None) -> OfflineStartResult:
    curve = [{"frames": 600 * (index + 1), "returns": [value]} for index, value in enumerate(returns)]
    before = None if explained is None else {"explained": explained}
    return OfflineStartResult(curve, 1.0, 40, {}, {}, "today", before)


MANY = dataclasses.replace(SMALL, seeds=(0, 1, 2), frames=2_400)


def made_up(scratch: list[list[float]], offline: list[list[float]]) -> dict[OfflineStartRun, OfflineStartResult]:
    known = {"scratch": scratch, "offline": offline}
    return {
        run: result(*known[run.start][run.seed], explained=0.4 if run.start == "offline" else None)
        for run in select_runs(MANY, [])
        if run.seed < len(known[run.start])
    }


def test_a_report_tells_frames_saved_in_pairs_of_seeds() -> None:
    found = made_up(
        [[0, 0, 100, 100], [0, 0, 50, 100], [0, 50, 100, 100]], [[0, 100, 100, 100], [0, 50, 100, 100], [0, 100, 100, 100]]
    )
    report = build_report(MANY, select_runs(MANY, []), found)
    scratch, offline = report["cells"]
    assert scratch["frames_to_reach"][0]["frames"] == [1_800, 2_400, 1_800]
    assert offline["frames_to_reach"][0]["frames"] == [1_200, 1_800, 1_200]
    (entry, never) = report["savings"][0]["saved"]
    assert entry["values"] == [600, 600, 600]
    assert entry["verdict"] == "saved"
    assert entry["share"] == pytest.approx(0.3)
    assert entry["censored_pairs"] == 0
    assert never["values"] == [0, 0, 0]
    assert never["censored_pairs"] == 3
    assert never["verdict"] == "neither shown"
    text = describe_report(report)
    assert "| 600 +- 0     | 600 to 600   | 30%   | 3             | saved         |" in text
    assert "> 2,400 +- 0 (0 of 3)" in text
    assert "takes 40% off" in text
    assert "cartpole-swingup, offline: +21 +- 4 in the mean return of all evaluations and +0 +- 0 in the last return" in text


def test_a_run_that_never_arrives_counts_as_its_frames_and_is_marked() -> None:
    found = made_up([[0, 0, 0, 0], [0, 0, 0, 100], [0, 100, 100, 100]], [[0, 0, 100, 100], [0, 0, 0, 0], [0, 100, 100, 100]])
    report = build_report(MANY, select_runs(MANY, []), found)
    assert report["cells"][0]["frames_to_reach"][0]["frames"] == [None, 2_400, 1_200]
    entry = report["savings"][0]["saved"][0]
    assert entry["values"] == [600, 0, 0]
    assert entry["censored_pairs"] == 2
    assert entry["verdict"] == "neither shown"
    assert entry["low"] == pytest.approx(200 - 4.3027 * 200, abs=0.1)  # Student's t with 2 degrees of freedom
    assert "> 2,000 +- 400 (2 of 3)" in describe_report(report)


def test_later_is_called_lost_and_a_single_pair_says_nothing() -> None:
    early, late = [0.0, 100.0, 100.0, 100.0], [0.0, 0.0, 0.0, 100.0]
    runs = select_runs(MANY, [])
    report = build_report(MANY, runs, made_up([early, early, early], [late, [0.0, 0.0, 100.0, 100.0], late]))
    assert report["savings"][0]["saved"][0]["verdict"] == "lost"
    assert report["savings"][0]["more"]["area"]["mean"] < 0
    report = build_report(MANY, runs, made_up([early, early], [late]))
    assert report["savings"][0]["seeds"] == [0]
    assert report["savings"][0]["saved"][0]["verdict"] == "one seed says nothing"
    assert report["missing"] == [
        f"cartpole-swingup, {name}" for name in ("offline, seed 1", "scratch, seed 2", "offline, seed 2")
    ]
    json.dumps(report, allow_nan=False)
    assert "not there yet: 3 runs, such as cartpole-swingup, offline, seed 1" in describe_report(report)


def test_the_command_reports_what_is_there_and_refuses_results_of_other_settings(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    parser = argparse.ArgumentParser()
    add_offline_start_arguments(parser.add_subparsers())
    arguments = ["offline-start", "--results", str(tmp_path), "--report", "--only", "seed=1", "--quiet"]
    for run in select_runs(OfflineStartProtocol(), ["seed=1"]):
        write_result(tmp_path, run, result(0.0, 350.0, explained=None if run.start == "scratch" else 0.3))
    parsed = parser.parse_args(arguments)
    report = parsed.run(parsed)
    assert report["missing"] == report["failed"] == []
    assert "| cartpole-swingup | offline | 300    | 1,114 (1 of 1)" in capsys.readouterr().out
    parsed = parser.parse_args([*arguments, "robot.mass=[1.2,1.2]"])
    with pytest.raises(ResultError, match=r"robot|randomization.mass: stored"):
        parsed.run(parsed)
