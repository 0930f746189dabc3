from __future__ import annotations

import itertools
from collections.abc import Callable

import numpy as np
import pytest
import torch

import sim
from dpg_robot.contract import Contract
from dpg_robot.host.finetune import FinetuneConfig, PolicySelection, finetune
from dpg_robot.host.intake import take_in
from dpg_robot.host.judgement import judge
from dpg_robot.learning.learner import Learner, LearnerConfig
from dpg_robot.learning.replay import Batch, ReplayBuffer
from dpg_robot.learning.trainer import Collector, Evaluation
from sim.tasks import make_task

REWARD = make_task("cartpole-swingup").measured_reward
SMALL = LearnerConfig(hidden_sizes=(32, 32), batch_size=64)


def no_gain() -> Evaluation:
    return Evaluation(np.arange(4.0))


def growing_gain() -> Callable[[], Evaluation]:
    """Return a judge to whom each policy is better than the one before."""
    calls = itertools.count()
    return lambda: Evaluation(np.arange(4.0) + 10.0 * next(calls))


@pytest.fixture
def learner(contract: Contract) -> Learner:
    learner = Learner(contract, SMALL, seed=0)
    learner.observe(simulation(contract).all())
    return learner


def simulation(contract: Contract) -> ReplayBuffer:
    """Transitions of uniformly random actions."""
    collector = Collector(sim.make("cartpole-swingup", num_envs=8, action_repeat=2), contract)
    replay = ReplayBuffer(400, contract.observation_size, contract.num_actions)
    generator = torch.Generator().manual_seed(0)
    for _ in range(50):
        replay.add(collector.step(2 * torch.rand(8, 1, generator=generator) - 1))
    return replay


@pytest.fixture
def robot(make_records: Callable, write_log: Callable, contract: Contract) -> tuple[Batch, Batch]:
    """Training and held-out transitions of a robot with a narrow behaviour that simulation did not show."""
    return take_in(write_log(make_records(episodes=6, steps=40, action_scale=0.2)), contract, REWARD).split(3)


def test_fine_tuning_lowers_denoising_and_td_error_on_episodes_it_did_not_see(
    learner: Learner, robot: tuple[Batch, Batch], contract: Contract
) -> None:
    training, held_out = robot
    before = judge(learner, held_out)
    finetune(
        learner,
        training,
        simulation(contract),
        FinetuneConfig(updates=300, improve_policy_after=300, learning_rate_factor=1.0),
        no_gain,
        show_progress=False,
    )
    after = judge(learner, held_out)
    assert after.denoising_error < 0.8 * before.denoising_error
    assert after.denoising_error_without_outcome < 0.9 * before.denoising_error_without_outcome
    assert after.td_error < before.td_error


def test_judging_is_repeatable_and_leaves_the_learner_as_it_was(learner: Learner, robot: tuple[Batch, Batch]) -> None:
    state = learner.generator.get_state().clone()
    assert judge(learner, robot[1]) == judge(learner, robot[1])
    assert torch.equal(learner.generator.get_state(), state)


def test_the_denoising_error_is_that_of_the_best_constant_guess_for_a_denoiser_that_gives_it(
    learner: Learner, robot: tuple[Batch, Batch]
) -> None:
    held_out = robot[1]
    mean = held_out.action.mean(0)
    learner.denoiser.forward = lambda noised_action, *_: mean.expand_as(noised_action)  # type: ignore[method-assign]
    expected = held_out.action.std(correction=0).item()
    assert judge(learner, held_out).denoising_error == pytest.approx(expected, rel=1e-5)


def test_the_policy_follows_only_after_denoiser_and_baseline(
    learner: Learner, robot: tuple[Batch, Batch], contract: Contract
) -> None:
    def policy_weights() -> torch.Tensor:
        return torch.cat([parameter.detach().flatten().clone() for parameter in learner.policy.parameters()])

    start = policy_weights()
    config = FinetuneConfig(updates=20, improve_policy_after=20)
    finetune(learner, robot[0], simulation(contract), config, growing_gain(), show_progress=False)
    assert torch.equal(policy_weights(), start)
    config = FinetuneConfig(updates=20, improve_policy_after=10)
    finetune(learner, robot[0], simulation(contract), config, growing_gain(), show_progress=False)
    assert not torch.equal(policy_weights(), start)


def test_fine_tuning_is_repeatable(learner: Learner, robot: tuple[Batch, Batch], contract: Contract) -> None:
    start, random = {k: v.clone() for k, v in learner.state_dict().items()}, learner.generator.get_state().clone()
    config = FinetuneConfig(updates=10, improve_policy_after=0)
    results = []
    for _ in range(2):
        fresh = Learner(contract, SMALL)
        fresh.load_state_dict(start)
        fresh.generator.set_state(random)
        finetune(fresh, robot[0], simulation(contract), config, growing_gain(), show_progress=False)
        results.append(torch.cat([parameter.detach().flatten() for parameter in fresh.parameters()]))
    assert torch.equal(*results)


@pytest.mark.parametrize(("gains", "kept"), [([0.0, 30.0, 20.0], 1), ([0.0, 1.0, -5.0], 0), ([0.0, 20.0, 30.0], 2)])
def test_the_best_policy_is_kept_and_the_first_one_unless_another_is_better_beyond_noise(
    learner: Learner, gains: list[float], kept: int
) -> None:
    noise = np.array([-2.0, 2.0, -1.0, 1.0])
    weight = next(learner.policy.parameters())
    torch.nn.init.zeros_(weight)
    judged = iter([Evaluation(100.0 + gain + (noise if gain else 0 * noise)) for gain in gains])
    selection = PolicySelection(learner, lambda: next(judged), standard_errors=2.0)
    for number in range(1, len(gains)):
        torch.nn.init.constant_(weight, number)
        selection.consider()
    selection.restore_best()
    assert weight.detach().unique().tolist() == [float(kept)]
    assert selection.changed == (kept > 0)
