"""The policy: its actions, and that its log probability is that of its actions."""

import pytest
import torch
from torch.distributions import Normal, TanhTransform, TransformedDistribution

from dpg_robot.learning.policy import Policy


def make_policy(actions):
    torch.manual_seed(actions)
    policy = Policy(4, actions, (16,)).double()
    torch.nn.init.normal_(policy.network[-1].weight, std=0.7)
    return policy


@torch.no_grad()
def test_before_training_actions_are_squashed_standard_normals():
    policy, noise = Policy(4, 2, (8,)), torch.randn(5, 2)
    torch.testing.assert_close(policy(torch.randn(5, 4), noise)[0], torch.tanh(noise))


@pytest.mark.parametrize("actions", [1, 3])
@torch.no_grad()
def test_the_log_probability_is_that_of_a_normal_distribution_squashed_by_tanh(actions):
    policy = make_policy(actions)
    observation, noise = torch.randn(200, 4).double(), torch.randn(200, actions).double()
    action, log_probability = policy(observation, noise)
    mean, log_std = policy._mean_and_log_std(observation)
    before = mean + log_std.exp() * noise
    torch.testing.assert_close(action, torch.tanh(before))
    squashed = TransformedDistribution(Normal(mean, log_std.exp()), TanhTransform(cache_size=1))
    squashed.transforms[0]._cached_x_y = before, action  # the inverse of tanh is inexact near its ends
    torch.testing.assert_close(log_probability, squashed.log_prob(action).sum(-1))


@torch.no_grad()
def test_the_probability_of_one_action_integrates_to_one():
    policy = make_policy(1)
    noise = torch.linspace(-9, 9, 20_001, dtype=torch.float64)[:, None]
    for observation in torch.randn(5, 4).double():
        action, log_probability = policy(observation.expand(len(noise), 4), noise)
        assert (action.diff(dim=0) >= 0).all()
        assert float(torch.trapezoid(log_probability.exp(), action[:, 0])) == pytest.approx(1.0, abs=1e-4)


@torch.no_grad()
def test_log_probabilities_stay_finite_at_the_ends_of_the_range():
    policy = Policy(1, 1, ())
    policy.network[-1].bias.copy_(torch.tensor([30.0, 10.0]))
    action, log_probability = policy(torch.zeros(3, 1), torch.tensor([[-8.0], [0.0], [8.0]]))
    assert torch.isfinite(log_probability).all()
    assert action.abs().max() <= 1


def test_the_gradient_flows_through_the_sampled_action():
    policy = make_policy(2)
    action, log_probability = policy(torch.randn(6, 4).double(), torch.randn(6, 2).double())
    (action.sum() + log_probability.sum()).backward()
    assert all(parameter.grad is not None and parameter.grad.abs().max() > 0 for parameter in policy.parameters())


@torch.no_grad()
def test_the_action_on_the_robot_is_the_one_without_noise():
    policy, observation = make_policy(2), torch.randn(6, 4).double()
    assert torch.equal(policy.mean_action(observation), policy(observation, torch.zeros(6, 2).double())[0])
