from __future__ import annotations

import numpy as np
import pytest
import torch

from dpg_robot.contract import Contract
from dpg_robot.host.judgement import compare_policies
from dpg_robot.learning.learner import Learner, LearnerConfig
from dpg_robot.learning.replay import Batch

SMALL = LearnerConfig(hidden_sizes=(16,), batch_size=32)


@pytest.fixture
def held_out(contract: Contract) -> tuple[Batch, np.ndarray]:
    """Five episodes of twenty transitions."""
    generator = torch.Generator().manual_seed(0)
    observation = torch.randn(101, contract.observation_size, generator=generator)
    zeros = torch.zeros(100)
    batch = Batch(observation[:-1], torch.zeros(100, contract.num_actions), zeros, observation[1:], zeros, zeros + 1)
    return batch, np.repeat(np.arange(5), 20)


def learner_with_some_policy(contract: Contract, seed: int = 0) -> Learner:
    """A new policy does nothing anywhere; this one does something."""
    learner = Learner(contract, SMALL, seed=seed)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in learner.policy.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))
    return learner


def prefer(learner: Learner, wanted: float) -> None:
    """Let the baseline value an action by its distance from ``wanted``, its second member a little higher."""

    def value(observation: torch.Tensor, action: torch.Tensor, sigma: torch.Tensor) -> torch.Tensor:
        worth = -(action - wanted).square().sum(-1) * learner.config.reward_scale
        return torch.stack([worth, 1.1 * worth])

    learner.baseline.forward = value  # type: ignore[method-assign]


def test_equal_policies_differ_in_nothing(contract: Contract, held_out: tuple[Batch, np.ndarray]) -> None:
    learner = learner_with_some_policy(contract)
    found = compare_policies(learner, learner.policy, *held_out)
    assert (found.action_distance, found.advantage, found.advantage_interval) == (0.0, 0.0, (0.0, 0.0))
    assert found.jitter == found.current_jitter > 0
    assert found.episodes == 5


def test_distance_and_worth_are_those_of_the_actions(contract: Contract, held_out: tuple[Batch, np.ndarray]) -> None:
    learner, current = learner_with_some_policy(contract, 1), learner_with_some_policy(contract, 2).policy
    prefer(learner, 0.5)
    found = compare_policies(learner, current, *held_out)
    with torch.no_grad():
        ours, theirs = (policy.mean_action(held_out[0].observation) for policy in (learner.policy, current))
    assert found.action_distance == pytest.approx(float((ours - theirs).square().mean().sqrt()), rel=1e-5)
    expected = 1.05 * float((-(ours - 0.5).square() + (theirs - 0.5).square()).sum(-1).mean())
    assert found.advantage == pytest.approx(expected, rel=1e-4)
    low, high = found.advantage_interval
    assert low < found.advantage < high


def test_the_comparison_is_repeatable(contract: Contract, held_out: tuple[Batch, np.ndarray]) -> None:
    learner, current = learner_with_some_policy(contract, 1), learner_with_some_policy(contract, 2).policy
    assert compare_policies(learner, current, *held_out) == compare_policies(learner, current, *held_out)
