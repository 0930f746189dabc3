"""Walks along a gradient: a step has one length, a value of closed form gains what it should, and returns are measured alike."""

import dataclasses
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from dpg_robot.learning.policy import Policy
from dpg_robot.learning.settings import LearnerConfig
from sim.benchmarks.gradient_behaviour import States, make_environment
from sim.benchmarks.gradient_protocol import BehaviourRun
from sim.benchmarks.gradient_settings import BehaviourConfig, RobustnessConfig
from sim.benchmarks.gradient_truth import Consequences
from sim.benchmarks.gradient_walks import Walks, follow_learned, learned_gradient, walk

BEST = torch.tensor([[0.9, 0.1], [-0.3, -0.8]])
START = torch.tensor([[0.0, 0.1], [-0.3, 0.2]])  # 0.9 and 1.0 from the best
CONFIG = RobustnessConfig(states=2, step_size=0.1 / 2**0.5, steps=(1, 3, 8), sigmas=(0.0, 0.5), gradient_draws=4)  # steps of 0.1
RUN = BehaviourRun("cartpole-swingup", 2, 0.3, LearnerConfig(hidden_sizes=(8,)), BehaviourConfig())


def quadratic(action):
    """The value -|a - best|^2 (S,)."""
    return -(action - BEST).square().sum(1)


def uphill(action):
    """Its exact gradient (S, A)."""
    return -2 * (action - BEST)


def measure_quadratic(action):
    """The value as the target, and 3 times the value as the return."""
    return np.stack([quadratic(action).numpy(), 3 * quadratic(action).numpy()]).astype(np.float64)


QUADRATIC = Walks(CONFIG, torch.zeros(2, 1), START, measure_quadratic, reward_scale=0.5)


def consequences(noise, draws=2, target=lambda reward, observation, terminal: reward, seed=1_000):
    """Three states of the cartpole, 4 random steps after a reset."""
    run = dataclasses.replace(RUN, noise=noise)
    environment = make_environment(run, 3, seed=5)
    environment.reset()
    for _ in range(4):
        environment.step(np.random.default_rng(0).uniform(-1, 1, (3, 1)))
    states = States(torch.from_numpy(environment.obs), environment.qpos, environment.qvel, environment.physics.act.copy())
    return Consequences(run, states, target, draws, seed), states


def make_policy():
    """An untrained policy of the cartpole."""
    torch.manual_seed(0)
    return Policy(5, 1, (8,)).requires_grad_(False)


def test_the_exact_gradient_of_a_quadratic_gains_exactly_what_it_should():
    rows = QUADRATIC.gains(uphill)
    for row in rows:
        left = np.array([0.9, 1.0]) - 0.1 * row["steps"]
        expected = np.mean(np.array([0.9, 1.0]) ** 2 - left**2)
        assert row["gain"] == pytest.approx(expected, abs=1e-5)
        assert row["return_gain"] == pytest.approx(3 * expected, abs=1e-5)
        assert row["distance"] == pytest.approx(0.1 * row["steps"] / 2**0.5, rel=1e-5)  # over two actions
        assert row["improved"] == 1
        assert row["predicted_gain"] is None
    assert [row["steps"] for row in rows] == [1, 3, 8]


def test_a_gradient_of_wrong_sign_loses_exactly_what_it_should():
    first = QUADRATIC.gains(lambda action: -uphill(action))[0]
    assert first["gain"] == pytest.approx(np.mean(np.array([0.9, 1.0]) ** 2 - np.array([1.0, 1.1]) ** 2), abs=1e-5)
    assert first["improved"] == 0


def test_a_direction_across_loses_only_in_second_order():
    across = uphill(START).flip(1) * torch.tensor([-1.0, 1.0])
    rows = QUADRATIC.gains(lambda action: across)
    assert [row["gain"] for row in rows] == pytest.approx([-((0.1 * steps) ** 2) for steps in CONFIG.steps], abs=1e-5)


def test_gains_have_the_standard_error_over_states():
    row = QUADRATIC.gains(uphill)[1]
    gains = np.array([0.9, 1.0]) ** 2 - (np.array([0.9, 1.0]) - 0.3) ** 2
    assert row["gain_standard_error"] == pytest.approx(np.std(gains, ddof=1) / 2**0.5, rel=1e-4)


def test_the_gradient_is_taken_anew_at_each_action_and_the_asked_for_steps_are_given():
    seen = []

    def gradient(action):
        seen.append(action)
        return torch.tensor([[1e-6, 0.0]])  # its size does not count

    taken = dict(walk(gradient, torch.zeros(1, 2), 0.25, (3, 1)))
    assert list(taken) == [1, 3]
    assert [float(action[0, 0]) for action in seen] == pytest.approx([0.0, 0.25, 0.5])
    assert float(taken[3][0, 0]) == pytest.approx(0.75)


def test_actions_stay_in_their_box_and_where_the_gradient_is_zero():
    gradient = torch.tensor([[3.0, 4.0], [0.0, 0.0]])
    taken = dict(walk(lambda action: gradient, torch.tensor([[0.9, -0.9], [0.3, 0.2]]), 0.5, (1, 2, 9)))
    assert taken[1].tolist() == [[1.0, pytest.approx(-0.5)], pytest.approx([0.3, 0.2])]
    assert taken[2].tolist() == [[1.0, pytest.approx(-0.1)], pytest.approx([0.3, 0.2])]
    assert taken[9].tolist() == [[1.0, 1.0], pytest.approx([0.3, 0.2])]


def cubic(observation, action, sigma):
    """Values (2, N) of an ensemble: a^3 + sigma * a, of which the second member says 1 more."""
    value = (action**3 + sigma * action).sum(1)
    return torch.stack([value, value + 1])


@pytest.fixture
def cubic_estimator():
    """Stands in for a learned gradient: the slope of the cubic."""

    def action_gradient(observation, action):
        return 3 * action**2

    config = SimpleNamespace(amortization="slope")
    return SimpleNamespace(config=config, baseline=cubic, action_gradient=action_gradient)


def test_a_learned_gradient_is_averaged_over_noised_copies_that_are_told_their_sigma(cubic_estimator):
    action, noise = torch.tensor([[0.2], [-0.5], [0.0]]), torch.tensor([[1.0], [-2.0], [0.5], [0.1]])
    averaged = learned_gradient(cubic_estimator, torch.zeros(3, 1), action, 0.3, noise)
    expected = (3 * (action + 0.3 * noise.T) ** 2).mean(1, keepdim=True) + 0.3
    torch.testing.assert_close(averaged, expected)
    torch.testing.assert_close(learned_gradient(cubic_estimator, torch.zeros(3, 1), action, 0.0, noise), 3 * action**2)


def test_a_learned_gradient_is_followed_once_for_each_sigma_with_what_the_network_predicts(cubic_estimator):
    walks = Walks(
        CONFIG, torch.zeros(1, 1), torch.tensor([[0.1]]), lambda action: np.zeros((2, 1)) + float(action), reward_scale=0.5
    )
    rows = follow_learned(cubic_estimator, walks)
    assert [(row["sigma"], row["steps"]) for row in rows] == [(sigma, steps) for sigma in (0.0, 0.5) for steps in (1, 3, 8)]
    reached = 0.1 + 3 * CONFIG.step_size
    assert rows[1]["gain"] == pytest.approx(reached - 0.1, rel=1e-5)
    assert rows[1]["predicted_gain"] == pytest.approx((reached**3 - 0.1**3) / 0.5, rel=1e-4)


def test_a_return_is_the_discounted_sum_of_rewards():
    world, states = consequences(noise=0.0)
    policy, action = make_policy(), np.array([[0.5], [-0.2], [1.0]])
    one, two, three = (world.mean_returns(action, policy, steps, discount=1.0) for steps in (1, 2, 3))
    discounted = world.mean_returns(action, policy, 3, discount=0.5)
    np.testing.assert_allclose(discounted, one + 0.5 * (two - one) + 0.25 * (three - two), rtol=1e-6)
    environment = make_environment(dataclasses.replace(RUN, noise=0.0), 3, seed=0)
    environment.set_state(states.qpos, states.qvel)
    np.testing.assert_allclose(one, np.tile(environment.step(action).reward / 2, (2, 1)), rtol=1e-6)


def test_a_return_does_not_depend_on_what_was_measured_before():
    world, _ = consequences(noise=0.3)  # an episode has 500 decisions: the third return would not fit
    policy, action = make_policy(), np.zeros((3, 1))
    first = world.mean_returns(action, policy, 200, discount=0.99)
    assert not np.array_equal(world.mean_returns(action + 0.5, policy, 200, discount=0.99), first)
    for _ in range(2):
        np.testing.assert_array_equal(world.mean_returns(action, policy, 200, discount=0.99), first)


def test_a_return_is_not_longer_than_an_episode():
    world, _ = consequences(noise=0.0)
    with pytest.raises(ValueError, match="steps must be from 1 to 500, an episode, got 501"):
        world.mean_returns(np.zeros((3, 1)), make_policy(), 501, discount=0.99)


def test_consequences_of_another_seed_have_other_noise():
    action = np.zeros((3, 1))

    def speed(reward, observation, terminal):
        return observation[:, 3]

    one, other = (consequences(0.3, target=speed, seed=seed)[0].mean_targets(action) for seed in (1_000, 1_000_000))
    assert not np.isclose(one, other, rtol=1e-6).any()


@pytest.mark.parametrize("wrong", [{"sigmas": ()}, {"sigmas": (-0.1,)}, {"steps": (0, 1)}, {"return_steps": 0}, {"states": -1}])
def test_settings_of_walks_that_cannot_be_are_refused(wrong):
    with pytest.raises(ValueError, match="must be"):
        RobustnessConfig(**wrong)
