"""The baseline: its slope is the derivative of its value, and can be trained."""

import pytest
import torch

from dpg_robot.learning.baseline import Baseline


@pytest.fixture
def case():
    torch.manual_seed(0)
    baseline = Baseline(5, 3, (16, 12), members=2).double()
    baseline.normalizer.update(3 * torch.randn(50, 5).double() + 1)
    for parameter in baseline.parameters():
        torch.nn.init.normal_(parameter, std=0.5)
    inputs = [torch.randn(7, 5), torch.randn(7, 3), torch.rand(7, 1), torch.randn(7, 3)]
    return baseline, [value.double() for value in inputs]


def slope_by_autograd(baseline, observation, action, sigma, direction):
    """Values and slopes (E, N) along a direction, by differentiating backwards once per member."""
    action = action.detach().requires_grad_(True)
    values = baseline(observation, action, sigma)
    slopes = [torch.autograd.grad(member.sum(), action, create_graph=True)[0] for member in values]
    return values, torch.stack([(slope * direction).sum(-1) for slope in slopes])


def test_value_and_slope_are_those_of_autograd(case):
    baseline, inputs = case
    guess = baseline.guess(*inputs)
    wanted_values, wanted_slopes = slope_by_autograd(baseline, *inputs)
    values = guess.value
    assert values.shape == guess.slope.shape == (2, 7)
    assert guess.response.shape == guess.gradient.shape == (2, 7, 3)
    torch.testing.assert_close(values, wanted_values, rtol=1e-11, atol=1e-11)
    torch.testing.assert_close(guess.slope, wanted_slopes, rtol=1e-11, atol=1e-11)
    torch.testing.assert_close(guess.gradient, baseline.gradient_head(*inputs[:3]), rtol=1e-11, atol=1e-11)


def test_gradients_of_a_loss_on_the_slope_are_those_of_differentiating_twice(case):
    baseline, inputs = case
    parameters = list(baseline.parameters())
    found = []
    guess = baseline.guess(*inputs)
    ours = (guess.value, guess.slope)
    for values, slopes in (ours, slope_by_autograd(baseline, *inputs)):
        found.append(torch.autograd.grad((slopes**3).sum() + (values * slopes).sum(), parameters))
    for ours, wanted in zip(*found, strict=True):
        assert wanted.abs().max() > 0
        torch.testing.assert_close(ours, wanted, rtol=1e-9, atol=1e-9)


def test_the_slope_is_a_difference_quotient_of_values(case):
    baseline, (observation, action, sigma, direction) = case
    step = 1e-6
    ahead = baseline(observation, action + step * direction, sigma)
    behind = baseline(observation, action - step * direction, sigma)
    slope = baseline.guess(observation, action, sigma, direction).slope
    torch.testing.assert_close(slope, (ahead - behind) / (2 * step), rtol=1e-5, atol=1e-6)
