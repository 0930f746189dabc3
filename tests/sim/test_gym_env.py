"""Gymnasium: all tasks are registered, keep its rules, and are the same data one at a time, in a loop and in a native batch."""

import subprocess
import sys
import warnings

import gymnasium
import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env
from gymnasium.vector import AutoresetMode, SyncVectorEnv
from gymnasium.wrappers.vector import DictInfoToList, RecordEpisodeStatistics

import sim
from sim.gym_env import GymVectorEnvironment, register_environments
from sim.tasks import TASKS

register_environments()
IDS = [f"dpg/{task}-v0" for task in TASKS]
RESTLESS = {"randomization": "hard", "disturbance": "hard"}


def shorten(environment, steps=5):
    """Make the episodes of gymnasium environments short."""
    environment.unwrapped.environment._steps_per_episode = steps
    return environment


def make_vec(num_envs=3, steps=5, **arguments):
    return shorten(gymnasium.make_vec("dpg/cartpole-swingup-v0", num_envs=num_envs, num_threads=1, **arguments), steps)


@pytest.mark.parametrize("environment_id", IDS)
def test_environments_pass_the_checks_of_gymnasium(environment_id):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        # true of gymnasium's own MuJoCo environments as well: velocities have no bounds
        warnings.filterwarnings("ignore", message=".*A Box observation space m.* value is -?infinity")
        check_env(gymnasium.make(environment_id, **RESTLESS).unwrapped, skip_render_check=True)


def test_environments_are_registered_where_sim_is_imported():
    program = (
        "import gymnasium, sim; print(gymnasium.make('dpg/cartpole-swingup-v0', disturbance='hard').reset(seed=1)[0].dtype, "
        "gymnasium.make_vec('dpg/cartpole-swingup-v0', num_envs=4).reset()[0].shape)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.stdout.split() == ["float32", "(4,", "5)"], done.stderr


def test_sim_works_without_gymnasium():
    program = (
        "import sys; sys.modules['gymnasium'] = None\n"
        "import sim; print(sim.make('cartpole-swingup', 2, num_threads=1).reset().shape)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.stdout.strip() == "(2, 5)", done.stderr


def test_make_vec_gives_the_native_batch():
    environments = make_vec(num_envs=7)
    assert type(environments) is GymVectorEnvironment
    assert environments.metadata["autoreset_mode"] is AutoresetMode.SAME_STEP
    assert environments.observation_space.shape == (7, 5)
    assert environments.action_space.shape == (7, 1)
    assert environments.action_space.dtype == environments.observation_space.dtype == np.float32
    obs, _ = environments.reset(seed=0)
    assert environments.observation_space.contains(obs)


def test_one_environment_and_a_batch_of_one_give_the_same_data_over_several_episodes():
    single = shorten(gymnasium.make("dpg/cartpole-swingup-v0", **RESTLESS))
    batch = make_vec(num_envs=1, **RESTLESS)
    obs, info = single.reset(seed=3)
    rows, infos = batch.reset(seed=3)
    ends = 0
    for _ in range(17):
        np.testing.assert_array_equal(obs, rows[0])
        action = single.action_space.sample()
        obs, reward, terminated, truncated, _ = single.step(action)
        rows, rewards, terminations, truncations, infos = batch.step(action[None])
        assert (reward, terminated, truncated) == (rewards[0], terminations[0], truncations[0])
        if truncated:
            ends += 1
            np.testing.assert_array_equal(obs, infos["final_obs"][0])
            obs, info = single.reset()
            assert info["dynamics"] == {name: infos["dynamics"][name][0] for name in info["dynamics"]}
            assert info["dynamics"], "the randomization must have drawn something"
    assert ends == 3


def test_infos_are_laid_out_as_gymnasium_lays_them_out():
    """Our batch against gymnasium's own loop over our single environments."""
    names = {"randomization": "medium"}
    loop = SyncVectorEnv(
        [lambda: shorten(gymnasium.make("dpg/cartpole-swingup-v0", **names)) for _ in range(3)],
        autoreset_mode=AutoresetMode.SAME_STEP,
    )
    native = make_vec(**names)
    assert layout(loop.reset(seed=0)) == layout(native.reset(seed=0))
    actions = np.zeros((3, 1), dtype=np.float32)
    for step in range(6):
        broken = {2: 1, 4: 0}.get(step)  # diverges: at first alone, then in the step that is the last of another one
        if broken is not None:
            loop.envs[broken].unwrapped.environment.physics.qvel[:] = 1e20
            native.environment.physics.qvel[broken] = 1e20
        one, other = loop.step(actions), native.step(actions)
        assert layout(one[:1] + one[2:]) == layout(other[:1] + other[2:]), step  # rewards are float64 there
        if step in (2, 4):
            assert one[4]["_final_obs"].any()


def layout(data):
    """Return keys, shapes and types of nested data, with the values of all that is not a float."""
    if isinstance(data, dict):
        return {key: layout(value) for key, value in data.items()}
    if isinstance(data, tuple):
        return [layout(value) for value in data]
    if data.dtype == object:
        return [None if item is None else layout(item) for item in data]
    return data.shape, data.dtype, data.tolist() if data.dtype == np.bool_ else None


def test_wrappers_of_gymnasium_work_on_the_batch():
    environments = DictInfoToList(RecordEpisodeStatistics(make_vec(randomization="medium", steps=4)))
    environments.reset(seed=0)
    rewards = 0.0
    for _ in range(4):
        _, reward, _, truncated, infos = environments.step(np.zeros((3, 1), dtype=np.float32))
        rewards += reward
    assert truncated.all()
    for index, info in enumerate(infos):
        assert info["episode"]["l"] == 4
        assert info["episode"]["r"] == pytest.approx(rewards[index])
        assert info["final_obs"].shape == (5,)
        assert all(isinstance(value, float) for value in info["dynamics"].values())


@pytest.mark.parametrize("vectorized", [False, True])
def test_seeds_determine_everything_that_follows(vectorized):
    def run(seed):
        environment = make_vec(**RESTLESS) if vectorized else shorten(gymnasium.make("dpg/cartpole-swingup-v0", **RESTLESS))
        episodes = []
        for first in (seed, None):
            episodes.append(environment.reset(seed=first)[0])
            episodes += [environment.step(np.full(environment.action_space.shape, 0.3, np.float32))[0] for _ in range(5)]
        return np.stack(episodes)

    np.testing.assert_array_equal(run(5), run(5))
    assert not np.array_equal(run(5), run(6))
    assert not np.array_equal(run(None), run(None)), "without a seed, runs differ"


def test_a_seed_in_mid_life_counts_as_much_as_at_the_start():
    environment = shorten(gymnasium.make("dpg/cartpole-swingup-v0", **RESTLESS))
    first, _ = environment.reset(seed=1)
    for _ in range(5):  # to the end, where the next episode has been drawn already
        environment.step(np.zeros(1, dtype=np.float32))
    again, _ = environment.reset(seed=1)
    np.testing.assert_array_equal(first, again)


def test_stepping_past_the_end_is_refused():
    environment = shorten(gymnasium.make("dpg/cartpole-swingup-v0"), steps=1)
    environment.reset()
    assert environment.step(np.zeros(1, dtype=np.float32))[3], "the only step is the last"
    with pytest.raises(gymnasium.error.ResetNeeded, match=r"reset\(\)"):
        environment.step(np.zeros(1, dtype=np.float32))


def test_a_fault_ends_the_episode_and_is_told():
    environment = gymnasium.make("dpg/cartpole-swingup-v0")
    environment.reset(seed=0)
    environment.unwrapped.environment.physics.qvel[:] = 1e20
    obs, _, terminated, truncated, info = environment.step(np.zeros(1, dtype=np.float32))
    assert (terminated, truncated, info) == (True, False, {"fault": True})
    assert np.isfinite(obs).all()


def test_action_repeat_and_settings_reach_the_simulation():
    environments = make_vec(action_repeat=4, disturbance="hard")
    plain = sim.make("cartpole-swingup", 1, num_threads=1)
    assert environments.environment.control_timestep == pytest.approx(4 * plain.control_timestep)
    assert environments.metadata["render_fps"] == 25
    assert environments.environment.obs_dim > plain.obs_dim, "hard disturbances add dummy readings"


def test_a_reset_of_some_environments_alone_is_refused():
    with pytest.raises(ValueError, match="reset_mask"):
        make_vec().reset(options={"reset_mask": np.array([True, False, False])})


def test_observations_hold_the_history_that_was_asked_for():
    env = gymnasium.make("dpg/cartpole-swingup-v0", history=2)
    check_env(env.unwrapped, skip_render_check=True)
    first, _ = env.reset(seed=0)
    assert first.shape == (5 + 2 * 6,)
    assert not first[5:].any()
    action = np.array([0.5], dtype=np.float32)
    second = env.step(action)[0]
    np.testing.assert_array_equal(second[5:11], [*first[:5], 0.5])
    many = gymnasium.make_vec("dpg/cartpole-swingup-v0", num_envs=3, history=2)
    assert many.reset(seed=0)[0].shape == (3, 17)
    assert many.step(np.zeros((3, 1), dtype=np.float32))[0].shape == (3, 17)
