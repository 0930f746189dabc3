from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from dpg_robot.host.gate import GateConfig, decide
from dpg_robot.host.judgement import Judgement, PolicyComparison
from dpg_robot.learning.trainer import Evaluation

CURRENT = Judgement(denoising_error=0.2, denoising_error_without_outcome=0.3, td_error=0.5, transitions=100)
BETTER = Judgement(denoising_error=0.1, denoising_error_without_outcome=0.2, td_error=0.4, transitions=100)
RETURNS = Evaluation(np.linspace(700.0, 800.0, 20))


def shifted(by: float) -> Evaluation:
    return Evaluation(RETURNS.returns + by)


def test_a_candidate_that_is_better_in_everything_passes() -> None:
    verdict = decide(CURRENT, BETTER, RETURNS, shifted(5.0), GateConfig())
    assert verdict.passed
    assert all(reason.startswith("ok") for reason in verdict.reasons)


@pytest.mark.parametrize("name", ["denoising_error", "denoising_error_without_outcome", "td_error"])
def test_a_candidate_with_any_higher_error_is_stopped_and_the_reason_named(name: str) -> None:
    worse = dataclasses.replace(BETTER, **{name: 1.0})
    verdict = decide(CURRENT, worse, RETURNS, shifted(5.0), GateConfig())
    assert not verdict.passed
    assert sum(reason.startswith("FAILED") for reason in verdict.reasons) == 1


@pytest.mark.parametrize("error", [float("nan"), float("inf")])
def test_a_candidate_whose_errors_are_not_finite_is_stopped(error: float) -> None:
    broken = dataclasses.replace(BETTER, td_error=error)
    assert not decide(CURRENT, broken, RETURNS, RETURNS, GateConfig()).passed


def test_a_candidate_that_loses_return_in_simulation_is_stopped() -> None:
    assert not decide(CURRENT, BETTER, RETURNS, shifted(-40.0), GateConfig()).passed


def test_a_candidate_whose_returns_are_not_finite_is_stopped() -> None:
    assert not decide(CURRENT, BETTER, RETURNS, shifted(float("nan")), GateConfig()).passed


def test_a_small_loss_within_the_allowance_passes() -> None:
    assert decide(CURRENT, BETTER, RETURNS, shifted(-10.0), GateConfig(max_return_loss=0.02)).passed
    assert not decide(CURRENT, BETTER, RETURNS, shifted(-10.0), GateConfig(max_return_loss=0.0)).passed


def test_noise_of_the_paired_difference_is_allowed_for() -> None:
    noise = np.random.default_rng(0).normal(0.0, 60.0, 20)
    noisy = Evaluation(RETURNS.returns + noise - noise.mean() - 10.0)
    assert decide(CURRENT, BETTER, RETURNS, noisy, GateConfig(max_return_loss=0.0, standard_errors=2.0)).passed
    assert not decide(CURRENT, BETTER, RETURNS, noisy, GateConfig(max_return_loss=0.0, standard_errors=0.1)).passed


SAME = PolicyComparison(
    action_distance=0.1, jitter=0.05, current_jitter=0.05, advantage=0.02, advantage_interval=(-0.01, 0.05), episodes=10
)


def test_a_growth_of_the_errors_within_the_allowance_passes() -> None:
    for name, setting in (("td_error", "max_td_error_growth"), ("denoising_error", "max_error_growth")):
        slightly_worse = dataclasses.replace(BETTER, **{name: getattr(CURRENT, name) * 1.01})
        assert decide(CURRENT, slightly_worse, RETURNS, RETURNS, GateConfig(**{setting: 0.02})).passed
        assert not decide(CURRENT, slightly_worse, RETURNS, RETURNS, GateConfig(**{setting: 0.0})).passed


def test_policies_that_are_alike_at_the_robots_states_pass() -> None:
    verdict = decide(CURRENT, BETTER, RETURNS, RETURNS, GateConfig(), SAME)
    assert verdict.passed
    assert len(verdict.reasons) == 8


@pytest.mark.parametrize(
    ("change", "word"),
    [
        ({"action_distance": 0.9}, "differ"),
        ({"jitter": 0.5}, "step to step"),
        ({"advantage_interval": (-0.3, -0.1)}, "worth"),
        ({"action_distance": float("nan")}, "differ"),
    ],
)
def test_actions_that_are_far_away_chatter_or_are_worth_less_are_stopped_and_named(change: dict, word: str) -> None:
    verdict = decide(CURRENT, BETTER, RETURNS, RETURNS, GateConfig(), dataclasses.replace(SAME, **change))
    assert not verdict.passed
    (failed,) = [reason for reason in verdict.reasons if reason.startswith("FAILED")]
    assert word in failed


def test_a_candidate_that_is_the_same_as_the_current_policy_is_not_released() -> None:
    verdict = decide(CURRENT, CURRENT, RETURNS, RETURNS, GateConfig())
    assert not verdict.passed
    assert "neither denoising nor return is better" in verdict.reasons[-1]
