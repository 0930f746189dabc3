"""What every native task promises, whatever its domain."""

import functools

import numpy as np
import pytest

import sim
from dpg_robot.contract import Contract
from sim.tasks import TASKS, make_task

NUM_ENVS = 32
CONTACT_FREE_STARTS = ("ball_in_cup", "finger", "humanoid", "quadruped")


@functools.cache
def make_environment(name):
    return sim.make(name, num_envs=NUM_ENVS, num_threads=2)


@pytest.fixture(params=sorted(TASKS))
def env(request):
    environment = make_environment(request.param)
    environment.reset()
    return environment


@pytest.mark.parametrize("name", sorted(TASKS))
def test_a_task_has_the_name_by_which_it_is_made(name):
    assert make_task(name).name == name


def test_the_control_step_is_a_whole_number_of_physics_steps(env):
    substeps = env.task.control_timestep_s / env.physics.model.opt.timestep
    assert substeps == pytest.approx(round(substeps), abs=1e-9)
    assert round(substeps) >= 1
    steps = env.task.time_limit_s / env.task.control_timestep_s
    assert steps == pytest.approx(round(steps), abs=1e-9)


def test_each_number_of_the_observation_has_a_name_and_is_written(env):
    names = env.observation_names
    assert len(names) == len(set(names)) == env.obs_dim
    assert all(isinstance(name, str) and name for name in names)
    out = np.full((NUM_ENVS, env.obs_dim), np.nan, dtype=np.float32)
    env.task.observe(out)
    assert np.isfinite(out).all()


def test_first_states_are_finite_differ_and_are_free_of_contact_where_promised(env):
    obs = env.reset()
    assert obs.dtype == np.float32
    assert np.isfinite(obs).all()
    assert len(np.unique(obs, axis=0)) == NUM_ENVS
    if env.task.name.startswith(CONTACT_FREE_STARTS):
        assert (env.physics.data("ncon") == 0).all()


def test_a_start_leaves_the_other_environments_alone(env):
    chosen, others = np.arange(0, NUM_ENVS, 2), np.arange(1, NUM_ENVS, 2)
    before = env.physics.state_dict()
    env.physics.reset(chosen)
    env.task.initialize(chosen, np.random.default_rng(1))
    after = env.physics.state_dict()
    for field, values in before.items():
        np.testing.assert_array_equal(values[others], after[field][others], err_msg=field)
    assert (before["physics.qpos"][chosen] != after["physics.qpos"][chosen]).any(axis=1).all()


def test_rewards_are_between_zero_and_one(env):
    random = np.random.default_rng(2)
    low, high = env.physics.model.actuator_ctrlrange.T
    for velocity in (0.0, 3.0, 30.0):
        env.reset()
        env.set_state(env.qpos, random.normal(0.0, velocity, env.qvel.shape))
        reward = env.task.reward(random.uniform(low, high, (NUM_ENVS, env.act_dim)))
        assert reward.shape == (NUM_ENVS,)
        assert reward.dtype == np.float64
        assert (reward >= 0).all()
        assert (reward <= 1).all()


def test_a_task_ends_never_or_says_where(env):
    terminal = env.task.terminal()
    assert terminal is None or (terminal.shape == (NUM_ENVS,) and terminal.dtype == np.bool_)


def test_observations_follow_the_state_that_is_set(env):
    random = np.random.default_rng(3)
    qpos, qvel = env.qpos[::-1].copy(), random.normal(0.0, 1.0, env.qvel.shape)
    obs = env.set_state(qpos, qvel)
    out = np.empty_like(obs)
    env.task.observe(out)
    np.testing.assert_array_equal(out, obs)
    np.testing.assert_array_equal(env.qpos, qpos)
    env.step(random.uniform(-1, 1, (NUM_ENVS, env.act_dim)))
    env.task.observe(out)
    assert (out != obs).any(axis=1).all()


def test_the_contract_names_what_the_policy_reads_and_its_actions_cover_the_actuators_range(env):
    contract = env.contract(history=1)
    assert contract.task == env.task.name
    assert Contract.from_dict(contract.to_dict()) == contract
    assert contract.rate_hz == pytest.approx(1 / env.task.control_timestep_s)
    assert (contract.num_features, contract.num_actions) == (env.obs_dim, env.act_dim)
    low, high = env.physics.model.actuator_ctrlrange.T
    ends = np.array([contract.scale_action(-np.ones(env.act_dim)), contract.scale_action(np.ones(env.act_dim))])
    gear = np.abs(env.physics.model.actuator_gear[:, 0])
    in_actuator_units = np.allclose(ends, [low, high])
    in_forces = np.allclose(ends, [low * gear, high * gear])
    assert in_actuator_units or in_forces


def test_results_depend_on_the_seed_and_not_on_the_number_of_threads(env):
    name = env.task.name
    one, two = (sim.make(name, num_envs=4, seed=7, num_threads=threads) for threads in (1, 2))
    np.testing.assert_array_equal(one.reset(), two.reset())
    actions = np.random.default_rng(4).uniform(-1, 1, (5, 4, one.act_dim))
    for action in actions:
        ours, theirs = one.step(action), two.step(action)
        np.testing.assert_array_equal(ours.obs, theirs.obs)
        np.testing.assert_array_equal(ours.reward, theirs.reward)
    assert (sim.make(name, num_envs=4, seed=8, num_threads=1).reset() != one.reset()).any()
