from __future__ import annotations

import pytest
import torch

from dpg_robot.contract import Contract
from dpg_robot.host.mixture import Mixture, MixtureConfig
from dpg_robot.learning.learner import Learner, LearnerConfig
from dpg_robot.learning.replay import Batch, ReplayBuffer


def filled(contract: Contract, rewards: torch.Tensor) -> ReplayBuffer:
    """Transitions told apart by their rewards, each an episode of its own."""
    count, size = len(rewards), contract.observation_size
    buffer = ReplayBuffer(1_000, size, contract.num_actions)
    observation = torch.randn(count, size)
    zeros, ones = torch.zeros(count), torch.ones(count)
    buffer.add(Batch(observation, torch.zeros(count, contract.num_actions), rewards, observation + 1, zeros, ones))
    return buffer


def mixture(contract: Contract, simulation: int, robot: int, config: MixtureConfig) -> Mixture:
    """Transitions of simulation have reward -1, those of robots count from 0."""
    return Mixture(filled(contract, -torch.ones(simulation)), filled(contract, torch.arange(robot).float()), config)


def test_batches_hold_the_shares_and_new_ones_are_the_newest(contract: Contract) -> None:
    learner = Learner(contract, LearnerConfig(hidden_sizes=(8,), batch_size=80, n_steps=1))
    mixed = mixture(contract, 50, 100, MixtureConfig(simulation=2, new=1, old=1, newest=20))
    batch = mixed.draw(learner, torch.Generator().manual_seed(0))
    assert len(batch) == 80
    assert (batch.reward == -1).sum() == 40
    assert (batch.reward >= 80).sum() == 20
    assert ((batch.reward >= 0) & (batch.reward < 80)).sum() == 20
    many = [mixed.draw(learner, torch.Generator().manual_seed(seed)).reward for seed in range(50)]
    assert set(torch.cat(many).int().tolist()) == {-1, *range(100)}


def test_any_part_of_a_batch_holds_all_sources(contract: Contract) -> None:
    """Learners take parts of a batch for the gradient."""
    learner = Learner(contract, LearnerConfig(hidden_sizes=(8,), batch_size=96, n_steps=1))
    first_third = mixture(contract, 50, 100, MixtureConfig(newest=20)).draw(learner, torch.Generator().manual_seed(0)).reward[:32]
    assert min((first_third == -1).sum(), (first_third >= 80).sum(), ((first_third >= 0) & (first_third < 80)).sum()) > 3


@pytest.mark.parametrize(
    ("simulation", "robot", "counts"), [(50, 0, (64, 0, 0)), (0, 10, (0, 64, 0)), (0, 30, (0, 32, 32)), (50, 10, (32, 32, 0))]
)
def test_what_a_source_does_not_have_yet_goes_to_the_others(
    contract: Contract, simulation: int, robot: int, counts: tuple[int, int, int]
) -> None:
    assert mixture(contract, simulation, robot, MixtureConfig(newest=20)).counts(64) == counts


def test_without_any_transitions_the_error_says_so(contract: Contract) -> None:
    with pytest.raises(ValueError, match="no transitions to learn from"):
        mixture(contract, 0, 0, MixtureConfig()).counts(64)


@pytest.mark.parametrize("wrong", [{"simulation": -1.0}, {"new": 0.0}, {"old": float("nan")}, {"newest": 0}])
def test_shares_that_make_no_sense_are_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=next(iter(wrong))):
        MixtureConfig(**wrong)  # type: ignore[arg-type]
