"""The benchmark of fine-tuning: its plan, its report on made-up results, and one small run with all of its parts."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest

from dpg_robot.errors import UnknownNameError
from dpg_robot.host.gate import GateConfig
from dpg_robot.host.service import ServiceConfig
from dpg_robot.learning.learner import LearnerConfig
from dpg_robot.learning.trainer import TrainerConfig
from sim.benchmarks.finetune_command import build_report, describe_report
from sim.benchmarks.finetune_protocol import FinetuneProtocol, FinetuneRun, PretrainingConfig, select_runs
from sim.benchmarks.finetune_runs import FinetuneResult, execute, pretrain
from sim.identification import IdentificationSettings
from sim.randomization import Randomization
from sim.robot_fitting import FittingConfig

SMALL = FinetuneProtocol(
    variants={"small": LearnerConfig(hidden_sizes=(16,), batch_size=16)},
    pretraining=PretrainingConfig(
        num_envs=4, trainer=TrainerConfig(updates=20, warmup_transitions=100, evaluate_every=20, replay_capacity=1_000)
    ),
    shifts={"heavy": Randomization(mass=(1.5, 1.5))},
    seeds=(0,),
    minutes=1,
    evaluation_episodes=2,
    fitting=FittingConfig(first_after=1_500, identification=IdentificationSettings(windows=16, particles=16)),
    service=ServiceConfig(candidate_every=1_000, held_out_every=3, updates_per_transition=0.02, improve_policy_after=5),
)


def result(before: float, after: float, simulation: float = 100.0, **candidate: object) -> FinetuneResult:
    curve = [{"minutes": minute, "returns": [value - 1, value + 1]} for minute, value in enumerate([before, before, after])]
    return FinetuneResult([simulation, simulation], curve, [], [candidate] if candidate else [], {"passed": False}, 1, {}, {}, "")


def test_all_robots_learners_and_seeds_are_run_and_filters_choose_among_them() -> None:
    protocol = FinetuneProtocol()
    assert len(select_runs(protocol, [])) == 2 * 4 * 3
    chosen = select_runs(protocol, ["variant=critic", "seed=0,2"])
    assert {(run.variant, run.seed) for run in chosen} == {("critic", 0), ("critic", 2)}
    assert chosen[0].steps == 30_000
    assert len({run.place for run in select_runs(protocol, [])}) == 24
    with pytest.raises(UnknownNameError, match=r"Did you mean .critic.\?"):
        select_runs(protocol, ["variant=critics"])


def test_a_stored_result_must_agree_with_the_runs_own_settings_only() -> None:
    run = select_runs(FinetuneProtocol(), [])[0]
    other = dataclasses.replace(FinetuneProtocol(), seeds=(0, 7))
    assert FinetuneRun(run.variant, run.shift, run.seed, other).specification() == run.specification()
    longer = dataclasses.replace(FinetuneProtocol(), minutes=11)
    assert FinetuneRun(run.variant, run.shift, run.seed, longer).specification() != run.specification()


def test_what_was_regained_is_a_share_of_what_the_shift_cost() -> None:
    protocol = dataclasses.replace(SMALL, seeds=(0, 1, 2))
    runs = select_runs(protocol, [])
    report = build_report(runs, {runs[0]: result(60.0, 80.0), runs[1]: result(80.0, 90.0)})
    cell = report["cells"]["heavy | small"]
    assert cell["before"]["mean"] == 70.0
    assert cell["gain"]["mean"] == 15.0
    assert cell["regained"] == pytest.approx(0.5)
    assert report["missing"] == ["small, heavy, seed 2"]
    assert "| heavy | small   | 100.0 +- 0.0  | 70.0 +- 10.0 |" in describe_report(report)


@pytest.mark.parametrize(
    ("passed", "returns", "counted"),
    [
        (True, [60.0, 62.1], "passed_better"),
        (True, [40.0, 42.1], "passed_worse"),
        (False, [40.0, 42.1], "stopped_worse"),
        (False, [70.0, 72.1], "stopped_better"),
    ],
)
def test_the_gate_is_judged_by_what_candidates_were_worth_on_the_robot(passed: bool, returns: list[float], counted: str) -> None:
    runs = select_runs(SMALL, [])
    candidate = {"minutes": 1.0, "gate_return": 60.0, "passed": passed, "returns": returns}
    report = build_report(runs, {runs[0]: result(60.0, 60.0, **candidate)})
    gate = report["gate"]
    assert gate.pop("simulation")["first"] == {"candidates": 1, "error": None, "correlation": None}
    loss = 1 - sum(returns) / 120 if counted == "passed_worse" else 0.0
    assert gate.pop("largest_loss_passed") == pytest.approx(loss)
    assert gate.pop("largest_loss_since_start") == 0.0
    assert gate == dict.fromkeys(gate, 0) | {counted: 1, "poisoned": 1, "poisoned_stopped": 1}


def test_the_gates_simulation_is_judged_before_and_after_its_first_fit() -> None:
    (run,) = select_runs(SMALL, [])
    found = result(60.0, 60.0)
    told = [(1.0, 50.0, 80.0), (2.0, 60.0, 90.0), (3.0, 40.0, 40.0), (4.0, 30.0, 33.0), (5.0, 20.0, 20.0)]
    for minutes, gate_return, on_robot in told:
        found.candidates.append({"minutes": minutes, "gate_return": gate_return, "returns": [on_robot] * 2, "passed": False})
    found.fits.append({"minutes": 3.0})
    gate = build_report([run], {run: found})["gate"]["simulation"]
    assert gate["first"] == {"candidates": 2, "error": None, "correlation": None}
    assert (gate["fitted"]["candidates"], gate["fitted"]["error"]) == (3, 1.0)
    assert gate["fitted"]["correlation"] == pytest.approx(np.corrcoef([40, 30, 20], [40, 33, 20])[0, 1])


def test_a_run_pretrains_learns_from_its_robot_and_tries_a_spoilt_candidate(tmp_path: Path) -> None:
    (run,) = select_runs(SMALL, [])
    checkpoint = pretrain(SMALL, "small", tmp_path, progress=False)
    before = checkpoint.stat().st_mtime_ns
    assert pretrain(SMALL, "small", tmp_path, progress=False) == checkpoint
    assert checkpoint.stat().st_mtime_ns == before  # it was there already
    steps: list[int] = []
    found = execute(run, tmp_path, steps.append)
    assert sum(steps) == run.steps == 3_000
    assert [point["minutes"] for point in found.curve] == [0, 1]
    assert all(len(point["returns"]) == 2 for point in found.curve)
    assert found.updates == 60
    assert found.candidates
    (fit,) = found.fits  # once there are enough transitions, when a candidate is due
    assert fit["minutes"] >= 0.5
    assert {"mass/cart", "actuator_gain/slide"} <= set(fit["parameters"])
    assert found.candidates[0]["gate_return"] != found.candidates[-1]["gate_return"]
    assert all(len(candidate["reasons"]) == 8 for candidate in found.candidates)
    assert len(found.poisoned["reasons"]) == 8
    json.dumps(dataclasses.asdict(found))
    again = execute(run, tmp_path, steps.append)
    assert (again.curve, again.candidates) == (found.curve, found.candidates)


def test_a_gate_that_lets_nothing_pass_leaves_the_robot_as_it_is(tmp_path: Path) -> None:
    protocol = dataclasses.replace(SMALL, gate=GateConfig(max_action_distance=0.0))
    (run,) = select_runs(protocol, [])
    pretrain(protocol, "small", tmp_path, progress=False)
    found = execute(run, tmp_path, lambda _: None)
    assert not any(candidate["passed"] for candidate in found.candidates)
    assert found.curve[0]["returns"] == found.curve[1]["returns"]
