"""Disturbances, measured from outside: noise on actions and observations, and pushes."""

import dataclasses
import math

import numpy as np
import pytest

import sim
from sim.disturbance import DISTURBANCE_PRESETS, Disturbance, Pushes

ENVS = 1500
DT = 0.01


def make(num_envs=ENVS, action_repeat=1, **disturbance):
    env = sim.make("cartpole-swingup", num_envs, 0, action_repeat=action_repeat, disturbance=Disturbance(**disturbance))
    env.reset()
    return env


def hang_still(env):
    """Put every pole straight down at rest, where force over mass is all that moves the cart."""
    env.set_state(np.tile([0.0, math.pi], (env.num_envs, 1)), np.zeros((env.num_envs, 2)))


def velocity_per_action():
    env = make(1)
    hang_still(env)
    env.step(np.full((1, 1), 0.5))
    return env.qvel[0, 0] / 0.5


@pytest.mark.parametrize("action", [0.0, 0.3])
def test_action_noise_has_its_mean_and_spread(action):
    env, scale = make(action_noise=0.15), velocity_per_action()
    hang_still(env)
    env.step(np.full((ENVS, 1), action))
    felt = env.qvel[:, 0] / scale
    assert felt.mean() == pytest.approx(action, abs=4 * 0.15 / math.sqrt(ENVS))
    assert felt.std() == pytest.approx(0.15, rel=4 / math.sqrt(2 * ENVS))


def test_action_noise_is_new_at_each_reward_step():
    # the mean of four independent draws has half the spread of one
    env, scale = make(action_repeat=4, action_noise=0.15), velocity_per_action()
    hang_still(env)
    env.step(np.zeros((ENVS, 1)))
    assert (env.qvel[:, 0] / (4 * scale)).std() == pytest.approx(0.15 / 2, rel=0.08)


def test_a_noisy_actuator_does_not_exceed_its_limits():
    env, scale = make(action_noise=0.5), velocity_per_action()
    hang_still(env)
    env.step(np.ones((ENVS, 1)))
    felt = env.qvel[:, 0] / scale
    assert felt.max() == pytest.approx(1.0, rel=1e-3)
    assert felt.min() < 0.5


def test_the_reward_is_that_of_the_commanded_action():
    env, action = make(50, action_noise=0.5), np.full((50, 1), 0.4)
    reward = env.step(action).reward
    state = np.concatenate([env.qpos, env.qvel], axis=1)
    np.testing.assert_allclose(reward, env.task.measured_reward(state, action), atol=1e-7)
    assert np.std(env.qvel[:, 0]) > 0.01, "the noise must have been felt"


def test_observation_noise_is_on_the_observations_and_not_in_the_world():
    env, quiet = make(observation_noise=0.02), make()
    hang_still(env)
    hang_still(quiet)
    step, truth = env.step(np.zeros((ENVS, 1))), quiet.step(np.zeros((ENVS, 1)))
    np.testing.assert_array_equal(env.qpos, quiet.qpos)
    error = step.obs - truth.obs
    np.testing.assert_allclose(error.mean(0), 0.0, atol=4 * 0.02 / math.sqrt(ENVS))
    np.testing.assert_allclose(error.std(0), 0.02, rtol=4 / math.sqrt(2 * ENVS))
    assert np.abs(np.corrcoef(error.T) - np.eye(5)).max() < 4 / math.sqrt(ENVS)


def push_forces(steps, num_envs=500, **settings):
    """Return the generalized forces (steps, N, 2) that the simulations felt."""
    env = make(num_envs, **settings)
    forces = []
    for _ in range(steps):
        env.step(np.zeros((num_envs, 1)))
        forces.append(np.array(env._batch.qfrc_applied))
    return np.stack(forces)


def test_pushes_come_as_often_last_as_long_and_are_as_strong_as_said():
    forces = push_forces(200, push_rate_hz=2.0, push_force=1.5, push_duration_s=0.05)
    pushed = (forces != 0).any(-1)
    new = pushed & (np.diff(forces, axis=0, prepend=0) != 0).any(-1)
    free = ~pushed | new
    rate = new.sum() / (free.sum() * DT)  # while no other push is under way
    assert rate == pytest.approx(2.0, rel=4 / math.sqrt(new.sum()))
    assert pushed.sum() / new.sum() == pytest.approx(5, rel=0.03), "five steps of 10 ms, but for those cut at the end"
    assert forces[new].mean(0) == pytest.approx([0, 0], abs=4 * 1.5 / math.sqrt(new.sum()))
    np.testing.assert_allclose(forces[new].std(0), 1.5, rtol=4 / math.sqrt(2 * new.sum()))


def test_a_push_is_one_force_from_beginning_to_end():
    forces = push_forces(100, num_envs=50, push_rate_hz=2.0, push_force=1.0, push_duration_s=0.03)[:, :, 0]
    for course in forces.T:
        starts = np.flatnonzero((course != 0) & (np.diff(course, prepend=0) != 0))
        for start in starts[starts < 97]:
            np.testing.assert_array_equal(course[start : start + 3], course[start])
            assert course[start + 3] != course[start]


def test_a_push_moves_the_cart():
    calm, pushed = make(200), make(200, push_rate_hz=100.0, push_force=3.0)
    for env in (calm, pushed):
        hang_still(env)
        env.step(np.zeros((200, 1)))
    assert np.abs(calm.qvel).max() < 1e-9
    assert np.abs(pushed.qvel[:, 0]).mean() > 0.01


def test_a_new_episode_begins_without_a_push():
    pushes, random = Pushes(Disturbance(push_rate_hz=1e3, push_force=1.0), 3, 2, DT), np.random.default_rng(0)
    assert (pushes.draw(random) != 0).all()
    pushes.clear(np.array([1]))
    assert (pushes.force[1] == 0).all()
    assert pushes.remaining.tolist() == [5, 0, 5]
    assert (pushes.force[[0, 2]] != 0).all()
    env = make(100, action_repeat=1000, push_rate_hz=1e3, push_force=1.0)
    assert env.step(np.zeros((100, 1))).timeout.all()
    assert (np.array(env._batch.qfrc_applied) == 0).all()
    assert (env.state_dict()["push.remaining"] == 0).all()
    assert (env.state_dict()["push.force"] == 0).all()


@pytest.mark.parametrize("settings", [{"push_rate_hz": 5.0}, {"push_force": 5.0}])
def test_pushes_without_rate_or_force_are_none(settings):
    assert (push_forces(20, num_envs=20, **settings) == 0).all()


@pytest.mark.parametrize("name", [field.name for field in dataclasses.fields(Disturbance)])
@pytest.mark.parametrize("value", [-0.1, math.nan, math.inf])
def test_disturbances_that_are_none_are_refused(name, value):
    with pytest.raises(ValueError, match=f"{name} must be finite and not negative"):
        Disturbance(**{name: value})


def test_the_presets_are_calm_and_restless():
    assert DISTURBANCE_PRESETS["none"] == Disturbance()
    default = DISTURBANCE_PRESETS["default"]
    assert min(default.action_noise, default.observation_noise, default.push_rate_hz, default.push_force) > 0
