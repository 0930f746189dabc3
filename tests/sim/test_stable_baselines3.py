"""Stable-Baselines3: its algorithms learn in our environments, in native batches and one at a time."""

import gymnasium
import numpy as np
import pytest
import torch
from stable_baselines3 import PPO
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.vec_env import VecMonitor, VecNormalize

import sim
from sim.gym_env import register_environments
from sim.sb3_env import BatchVecEnv

register_environments()
RESTLESS = {"randomization": "hard", "disturbance": "hard"}


@pytest.fixture(autouse=True)
def _one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def make_batch(task="cartpole-balance", num_envs=3, seed=0, episode_steps=None, **arguments):
    environment = sim.make(task, num_envs, seed, num_threads=1, **arguments)
    environment._steps_per_episode = episode_steps or environment._steps_per_episode
    return environment


def test_ppo_learns_to_balance_the_pole():
    """Over eight seeds, returns rose from 317..361 to 559..951."""
    environments = VecMonitor(BatchVecEnv(make_batch(num_envs=16, action_repeat=5)))
    model = PPO(
        "MlpPolicy",
        VecNormalize(environments, norm_obs=False, gamma=0.95),
        n_steps=64,
        batch_size=256,
        n_epochs=20,
        learning_rate=1e-3,
        gamma=0.95,
        policy_kwargs={"log_std_init": -1.0},
        seed=0,
        device="cpu",
    )
    evaluation = VecMonitor(BatchVecEnv(make_batch(num_envs=10, seed=1000, action_repeat=5)))
    untrained, _ = evaluate_policy(model, evaluation, n_eval_episodes=10, deterministic=False)
    model.learn(15_360)
    trained, _ = evaluate_policy(model, evaluation, n_eval_episodes=10, deterministic=False)
    assert trained > 1.35 * untrained
    assert trained > 450
    assert len(model.ep_info_buffer) > 50, "their monitor must have seen the episodes end"


def test_the_batch_gives_what_the_environments_give():
    environments = BatchVecEnv(make_batch(episode_steps=5, **RESTLESS))
    batch = make_batch(episode_steps=5, **RESTLESS)
    np.testing.assert_array_equal(environments.reset(), batch.reset())
    random = np.random.default_rng(0)
    for step in range(1, 13):
        actions = random.uniform(-1, 1, (3, 1)).astype(np.float32)
        obs, rewards, ended, infos = environments.step(actions)
        result = batch.step(actions)
        np.testing.assert_array_equal(obs, result.obs)
        np.testing.assert_array_equal(rewards, result.reward)
        assert ended.tolist() == [step % 5 == 0] * 3
        for index, info in enumerate(infos):
            assert set(info) == ({"terminal_observation", "TimeLimit.truncated"} if ended[index] else set())
            if ended[index]:
                assert info["TimeLimit.truncated"] is True
                np.testing.assert_array_equal(info["terminal_observation"], result.final_obs[index])


def test_a_fault_is_an_end_that_is_not_a_time_limit():
    environments = BatchVecEnv(make_batch())
    environments.reset()
    environments.environment.physics.qvel[1] = 1e20
    _, _, ended, infos = environments.step(np.zeros((3, 1), dtype=np.float32))
    assert ended.tolist() == [False, True, False]
    assert infos[1]["TimeLimit.truncated"] is False
    assert infos[1]["fault"] is True


def test_a_seed_holds_from_the_next_reset_on():
    environments = BatchVecEnv(make_batch(seed=1, **RESTLESS))
    environments.seed(7)
    first, second = environments.reset(), environments.reset()
    assert not np.array_equal(first, second), "one seed is for one reset"
    environments.seed(7)
    np.testing.assert_array_equal(environments.reset(), first)


def test_environments_that_are_one_object_refuse_to_be_told_apart():
    environments = BatchVecEnv(make_batch())
    assert environments.get_attr("control_timestep") == [pytest.approx(0.01)] * 3
    assert environments.env_is_wrapped(gymnasium.wrappers.TimeLimit, indices=[0, 2]) == [False, False]
    with pytest.raises(NotImplementedError, match="no separate environments"):
        environments.set_attr("control_timestep", 1.0, indices=0)
    with pytest.raises(NotImplementedError, match=r"\.environment"):
        environments.env_method("reset")
    with pytest.raises(RuntimeError, match="step_async"):
        environments.step_wait()


def test_ids_work_where_stable_baselines_takes_a_name():
    model = PPO("MlpPolicy", "dpg/cartpole-balance-v0", n_steps=32, batch_size=32, n_epochs=1, device="cpu")
    assert model.learn(64).num_timesteps == 64
