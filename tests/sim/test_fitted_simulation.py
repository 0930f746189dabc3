"""The gate's simulation: the same episodes for all policies, and robots as they were fitted."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import sim
from dpg_robot.errors import ConfigError
from dpg_robot.learning.policy import Policy
from sim.fitted_simulation import FittedDynamics, FittedSimulation
from sim.randomization import Randomization

TASK = "cartpole-swingup"
PRIOR = Randomization(actuator_gain=(0.1, 2.0))
CONTRACT = sim.make(TASK, action_repeat=2).contract()


def dynamics(*gains: float) -> FittedDynamics:
    return FittedDynamics(PRIOR, ("actuator_gain/slide",), np.array(gains)[:, None])


def simulation(episodes: int = 4, randomization: str | Randomization = "none") -> FittedSimulation:
    return FittedSimulation(CONTRACT, TASK, episodes, 5, randomization, "none", num_threads=1)


@pytest.fixture(scope="module")
def policy() -> Policy:
    policy = Policy(CONTRACT.observation_size, CONTRACT.num_actions, (16,))
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in policy.network.parameters():  # one that moves
            parameter.copy_(torch.randn(parameter.shape, generator=generator))
    return policy


def test_episodes_are_the_same_at_each_call(policy: Policy) -> None:
    mine = simulation()
    assert np.array_equal(mine.returns(policy).returns, mine.returns(policy).returns)
    assert len(mine.returns(policy).returns) == 4


def test_a_robot_is_simulated_with_its_own_parameters(policy: Policy) -> None:
    def drawn(gain: float) -> np.ndarray:
        return simulation(randomization=Randomization(actuator_gain=(gain, gain))).returns(policy).returns

    mine = simulation()
    assert not np.allclose(drawn(0.3), drawn(1.0))
    for gain in (1.0, 0.3):
        mine.use("robot", dynamics(gain))
        assert np.allclose(mine.returns(policy).returns, drawn(gain))


def test_robots_share_the_episodes_equally(policy: Policy) -> None:
    mine = simulation(episodes=5)
    mine.use("b", dynamics(0.3))
    mine.use("a", dynamics(1.0))
    assert mine.robots == ("a", "b")
    assert len(mine.returns(policy).returns) == 5
    one = simulation(episodes=1)
    for name, gain in (("a", 1.0), ("b", 0.3), ("c", 0.5)):
        one.use(name, dynamics(gain))
    assert len(one.returns(policy).returns) == 1  # fewer episodes than robots


@pytest.mark.parametrize(("count", "chosen"), [(2, [0.1, 0.5]), (3, [0.1, 0.3, 0.5]), (7, [0.1, 0.2, 0.3, 0.4, 0.5, 0.1, 0.2])])
def test_draws_are_spread_over_the_posterior(count: int, chosen: list[float]) -> None:
    assert np.allclose(dynamics(0.1, 0.2, 0.3, 0.4, 0.5).some(count)[:, 0], chosen)


def test_a_fit_of_other_parameters_is_refused(policy: Policy) -> None:
    mine = simulation()
    mine.use("robot", FittedDynamics(PRIOR, ("mass/cart",), np.ones((1, 1))))
    with pytest.raises(ConfigError, match="the fit knows mass/cart"):
        mine.returns(policy)
