"""What cart-pole tasks have besides what all tasks have: a contract in SI units, and rewards from logged measurements."""

import numpy as np
import pytest

import sim
from sim.tasks import make_task

STATES = 1000
NAMES = ("cartpole-balance", "cartpole-balance_sparse", "cartpole-swingup", "cartpole-swingup_sparse")


def scattered(env, random):
    """Return positions and velocities where the pole stands, hangs and turns."""
    qpos = np.stack([random.uniform(-1, 1, env.num_envs), random.normal(0, 0.5, env.num_envs)], axis=1)
    qpos[::2, 1] += np.pi
    return qpos, random.normal(0, 3, (env.num_envs, 2))


@pytest.mark.parametrize(("name", "angle"), [("cartpole-balance", 0.0), ("cartpole-swingup", np.pi)])
def test_the_pole_starts_hanging_only_where_it_has_to_be_swung_up(name, angle):
    env = sim.make(name, num_envs=200)
    env.reset()
    np.testing.assert_allclose(env.qpos[:, 1], angle, atol=0.1)
    np.testing.assert_allclose(env.qpos[:, 0], 0.0, atol=0.11)


def test_names_and_sizes_are_as_documented():
    env = sim.make("cartpole-swingup", num_envs=3, action_repeat=2)
    assert env.observation_names == ("cart_position", "pole_angle_cosine", "pole_angle_sine", "cart_velocity", "pole_velocity")
    assert (env.obs_dim, env.act_dim, env.num_envs) == (5, 1, 3)
    assert env.control_timestep == pytest.approx(0.02)
    assert env.qpos.shape == env.qvel.shape == (3, 2)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("repeat", [1, 2])
def test_features_of_what_the_robot_measures_are_the_observations(name, repeat):
    env = sim.make(name, num_envs=50, action_repeat=repeat)
    contract = env.contract(history=2)
    assert contract.rate_hz == pytest.approx(1 / env.control_timestep)
    assert contract.action_repeat == repeat
    assert contract.task == name
    assert [(channel.name, channel.unit) for channel in contract.measurements] == [
        ("cart_position", "m"),
        ("pole_angle", "rad"),
        ("cart_velocity", "m/s"),
        ("pole_velocity", "rad/s"),
    ]
    obs = env.set_state(*scattered(env, np.random.default_rng(2)))
    measurements = np.concatenate([env.qpos, env.qvel], axis=1)
    np.testing.assert_allclose(contract.compute_features(measurements), obs, atol=2e-6)


def test_an_action_of_one_is_the_largest_force_of_the_contract():
    env = sim.make("cartpole-swingup", num_envs=1)
    env.reset()
    env.step(np.ones((1, 1)))
    force = env.physics.ctrl[0, 0] * env.physics.model.actuator_gear[0, 0]
    assert force == env.contract().commands[0].high == 10.0


@pytest.mark.parametrize("name", NAMES)
def test_rewards_from_logged_measurements_are_those_of_the_simulation(name):
    env, random = sim.make(name, num_envs=STATES), np.random.default_rng(4)
    env.set_state(*scattered(env, random))
    actions = random.uniform(-1, 1, (STATES, 1))
    step = env.step(actions)
    measured = make_task(name).measured_reward(np.concatenate([env.qpos, env.qvel], axis=1), actions)
    np.testing.assert_allclose(measured, step.reward, atol=1e-6)
    assert np.ptp(measured) > 0.3
