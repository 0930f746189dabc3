"""Cart-pole swing-up is dm_control's: the same physics, observations and rewards, for many environments at once."""

import numpy as np
import pytest
from dm_control import suite

import sim
from dpg_robot.contract import Contract
from sim.tasks import make_task
from sim.tasks.rewards import tolerance

STATES = 1000


@pytest.fixture(scope="module")
def reference():
    return suite.load("cartpole", "swingup", task_kwargs={"random": 0})


def flatten(observation):
    return np.concatenate([observation["position"], observation["velocity"]])


def exact_actions(random, shape):
    """Actions of few binary digits, so that mapping them to the control range and back is exact."""
    return random.integers(-64, 65, shape) / 64


def test_a_thousand_states_and_actions_step_as_in_dm_control(reference):
    random = np.random.default_rng(0)
    qpos = np.stack([random.uniform(-2, 2, STATES), random.uniform(-7, 7, STATES)], axis=1)
    qvel = random.normal(0, [2.0, 6.0], (STATES, 2))
    actions = exact_actions(random, (STATES, 1))
    env = sim.make("cartpole-swingup", num_envs=STATES, num_threads=2)
    env.reset()
    before = env.set_state(qpos, qvel)
    step = env.step(actions)
    physics, task = reference.physics, reference.task
    for index in range(STATES):
        with physics.reset_context():
            physics.data.qpos[:], physics.data.qvel[:] = qpos[index], qvel[index]
        np.testing.assert_allclose(before[index], flatten(task.get_observation(physics)), rtol=1e-6, atol=1e-6)
        task.before_step(actions[index], physics)
        physics.step(reference._n_sub_steps)
        np.testing.assert_allclose(env.qpos[index], physics.data.qpos, rtol=1e-9, atol=1e-9)
        np.testing.assert_allclose(env.qvel[index], physics.data.qvel, rtol=1e-9, atol=1e-9)
        np.testing.assert_allclose(step.final_obs[index], flatten(task.get_observation(physics)), rtol=1e-5, atol=1e-5)
        assert step.reward[index] == pytest.approx(task.get_reward(physics), rel=1e-6)
    assert np.ptp(step.reward) > 0.3


def test_a_whole_episode_is_dm_controls_to_the_last_step(reference):
    random = np.random.default_rng(1)
    env = sim.make("cartpole-swingup", num_envs=1, num_threads=1)
    env.reset()
    first = reference.reset()
    env.set_state(reference.physics.data.qpos[None], reference.physics.data.qvel[None])
    np.testing.assert_allclose(env.task.observe(env._batch)[0], flatten(first.observation), atol=1e-12)
    for count in range(1, 1001):
        action = exact_actions(random, (1, 1))
        theirs, ours = reference.step(action[0]), env.step(action)
        assert bool(ours.timeout[0]) == theirs.last() == (count == 1000)
        assert not ours.terminal[0]
        np.testing.assert_allclose(ours.final_obs[0], flatten(theirs.observation), rtol=1e-5, atol=1e-5)
        assert ours.reward[0] == pytest.approx(theirs.reward, abs=1e-6)
    assert theirs.discount == 1.0, "dm_control's episode is cut too, it does not end"


def test_episodes_start_as_dm_controls_do():
    env = sim.make("cartpole-swingup", num_envs=4000, seed=3)
    env.reset()
    for values, mean in ((env.qpos, [0.0, np.pi]), (env.qvel, [0.0, 0.0])):
        np.testing.assert_allclose(values.mean(0), mean, atol=4 * 0.01 / np.sqrt(4000))
        np.testing.assert_allclose(values.std(0), 0.01, rtol=0.05)


def test_names_and_sizes_are_as_documented():
    env = sim.make("cartpole-swingup", num_envs=3, action_repeat=2)
    assert env.observation_names == ("cart_position", "pole_angle_cosine", "pole_angle_sine", "cart_velocity", "pole_velocity")
    assert (env.obs_dim, env.act_dim, env.num_envs) == (5, 1, 3)
    assert env.control_timestep == pytest.approx(0.02)
    assert env.qpos.shape == env.qvel.shape == (3, 2)


@pytest.mark.parametrize("repeat", [1, 2])
def test_the_contract_describes_what_the_environment_does(repeat):
    env = sim.make("cartpole-swingup", num_envs=50, action_repeat=repeat)
    contract = env.contract(history=2)
    assert contract.rate_hz == pytest.approx(1 / env.control_timestep)
    assert contract.action_repeat == repeat
    assert contract.num_features == env.obs_dim
    assert contract.num_actions == env.act_dim
    assert contract.task == "cartpole-swingup"
    assert Contract.from_dict(contract.to_dict()) == contract
    # features of what the robot measures are the observations of the simulation
    random = np.random.default_rng(2)
    env.reset()
    obs = env.set_state(random.normal(0, [1, 5], (50, 2)), random.normal(0, 3, (50, 2)))
    np.testing.assert_allclose(contract.compute_features(np.concatenate([env.qpos, env.qvel], axis=1)), obs, atol=2e-6)


def test_an_action_of_one_is_the_largest_force_of_the_contract():
    env = sim.make("cartpole-swingup", num_envs=1)
    env.reset()
    env.step(np.ones((1, 1)))
    force = env._batch.get_data(0).ctrl[0] * env._batch.get_model(0).actuator_gear[0, 0]
    assert force == env.contract().commands[0].high == 10.0


def test_rewards_from_logged_measurements_are_those_of_the_simulation():
    env, random = sim.make("cartpole-swingup", num_envs=STATES), np.random.default_rng(4)
    env.reset()
    env.set_state(random.normal(0, [1, 3], (STATES, 2)), random.normal(0, 3, (STATES, 2)))
    actions = random.uniform(-1, 1, (STATES, 1))
    step = env.step(actions)
    measured = make_task("cartpole-swingup").measured_reward(np.concatenate([env.qpos, env.qvel], axis=1), actions)
    np.testing.assert_allclose(measured, step.reward, atol=1e-6)
    assert np.ptp(measured) > 0.3


@pytest.mark.parametrize(("x", "expected"), [(0.0, 1.0), (1.0, 0.1), (-1.0, 0.1), (0.5, 0.1**0.25), (3.0, 1e-9)])
def test_a_gaussian_tolerance_falls_to_its_value_at_the_margin(x, expected):
    assert tolerance(np.array([x]), margin=1.0)[0] == pytest.approx(expected)


def test_tolerances_are_those_of_dm_control():
    from dm_control.utils import rewards

    x = np.linspace(-5, 5, 1001)
    for sigmoid, value in (("gaussian", 0.1), ("gaussian", 0.5), ("quadratic", 0.0), ("quadratic", 0.3)):
        for bounds in ((0.0, 0.0), (-1.0, 2.0)):
            ours = tolerance(x, margin=1.5, bounds=bounds, value_at_margin=value, sigmoid=sigmoid)
            theirs = rewards.tolerance(x, bounds, 1.5, sigmoid, value)
            np.testing.assert_allclose(ours, theirs, atol=1e-12)
