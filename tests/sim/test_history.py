"""History stacking: the layout of a policy's own history, episode by episode, and enough to foresee a delayed world."""

import copy

import numpy as np
import pytest

import sim
from dpg_robot.observation import HistoryStack
from sim.disturbance import Disturbance
from sim.history import HistoryEnvironment


def make(frames, task="cartpole-balance", num_envs=4, **arguments):
    return HistoryEnvironment(sim.make(task, num_envs, **arguments), frames)


def test_observations_are_those_that_a_policy_with_history_sees():
    env, plain = make(3, action_repeat=20), sim.make("cartpole-balance", 4, action_repeat=20)
    stack = HistoryStack(plain.contract(3), 4)
    random = np.random.default_rng(0)
    obs, features = env.reset(), plain.reset()
    np.testing.assert_array_equal(obs, stack.observe(features))
    ended = False
    for _ in range(60):  # episodes last 50 steps
        action = random.uniform(-1.5, 1.5, (4, 1))
        step, plain_step = env.step(action), plain.step(action)
        stack.push(features, np.clip(action, -1, 1))
        np.testing.assert_array_equal(step.final_obs, stack.observe(plain_step.final_obs))
        stack.clear(np.flatnonzero(plain_step.timeout))
        features = plain_step.obs
        np.testing.assert_array_equal(step.obs, stack.observe(features))
        np.testing.assert_array_equal(step.reward, plain_step.reward)
        if step.timeout.any():
            ended = True
            assert not step.obs[:, 5:].any(), "an episode begins with an empty history"
            assert step.final_obs[:, 5:].all()
    assert ended


def test_names_and_sizes_and_contract_fit_together():
    env = make(2)
    assert env.obs_dim == len(env.observation_names) == 5 + 2 * (5 + 1) == env.contract().observation_size
    assert len(set(env.observation_names)) == env.obs_dim
    assert env.observation_names[5] == "cart_position@-1"
    assert env.observation_names[-1] == "action_0@-2"
    assert env.contract(2) == env.contract()
    assert env.num_envs == 4, "the rest is the environment's own"
    with pytest.raises(ValueError, match="hold 2 frames, so the policy's history cannot be 1"):
        env.contract(1)
    with pytest.raises(ValueError, match="frames must be 1 or more, got 0"):
        make(0)


def test_a_set_state_is_remembered_as_the_agent_sees_it():
    env = make(1, disturbance="easy")
    zero = np.zeros((4, 2))
    obs = env.set_state(zero, zero)
    assert obs.shape == (4, env.obs_dim)
    np.testing.assert_array_equal(obs, np.concatenate([env.environment.obs, np.zeros((4, 16))], axis=1))
    step = env.step(np.full((4, 1), 0.5))
    np.testing.assert_array_equal(step.obs[:, 15:], np.concatenate([obs[:, :15], np.full((4, 1), 0.5)], axis=1))


def test_it_can_be_copied():
    env = make(1)
    assert copy.copy(env).obs_dim == env.obs_dim
    with pytest.raises(AttributeError):
        _ = env._nothing


def test_it_goes_on_bit_for_bit_from_a_saved_state():
    env, other = make(2, seed=0, disturbance="medium"), make(2, seed=1, disturbance="medium")
    for one in (env, other):
        one.reset()
    random = np.random.default_rng(0)
    for _ in range(9):
        env.step(random.uniform(-1, 1, (4, 1)))
    other.load_state_dict(env.state_dict())
    for _ in range(20):
        action = random.uniform(-1, 1, (4, 1))
        np.testing.assert_array_equal(env.step(action).obs, other.step(action).obs)


def unexplained(frames):
    """Share of the variance of the next pole velocity that a linear guess from the observation leaves, commands 3 steps late."""
    world = sim.make("cartpole-balance", 50, disturbance=Disturbance(action_delay=3))
    env = HistoryEnvironment(world, frames) if frames else world
    random = np.random.default_rng(0)
    obs, seen, following = env.reset(), [], []
    for _ in range(30):
        action = random.uniform(-1, 1, (50, 1))
        step = env.step(action)
        seen.append(np.concatenate([obs, action, np.ones((50, 1))], axis=1))
        following.append(step.final_obs[:, 4] - obs[:, 4])
        obs = step.obs
    seen, following = np.concatenate(seen[5:]), np.concatenate(following[5:])
    guess = seen @ np.linalg.lstsq(seen, following, rcond=None)[0]
    return np.var(following - guess) / np.var(following)


def test_three_frames_are_enough_to_foresee_a_world_whose_commands_come_three_steps_late():
    assert unexplained(0) > 0.5
    assert unexplained(2) > 0.5
    assert unexplained(3) < 0.01
