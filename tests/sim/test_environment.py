"""Batched environments: the same whatever the threads, restorable in mid-episode, and strict about what they are given."""

import dataclasses
import os
import subprocess
import sys

import numpy as np
import pytest

import sim
from dpg_robot.errors import CheckpointError, ConfigError, UnknownNameError
from sim.disturbance import Disturbance
from sim.mjcf import ModelError
from sim.physics import Physics
from sim.randomization import Randomization
from sim.suite_model import load_suite_spec
from sim.tasks import make_task
from sim.tasks.cartpole import Cartpole
from sim.variation import Variation

RESTLESS = Disturbance(
    action_delay=(0, 3),
    action_loss_probability=0.1,
    action_repetition=1,
    action_noise=0.2,
    action_noise_time_s=0.05,
    observation_delay=(1, 4),
    observation_noise=0.01,
    observation_noise_time_s=0.03,
    stuck_probability=0.05,
    stuck_steps=3,
    dropped_probability=0.02,
    dropped_steps=2,
    reward_delay=(2, 5),
    push_rate_hz=20.0,
    push_force=2.0,
    push_duration_s=0.07,
)
VARIED = Randomization(mass=(0.5, 2.0), damping=(0.5, 2.0), actuator_gain=(0.8, 1.2), control_delay_s=(0.0, 0.03))
FIELDS = [field.name for field in dataclasses.fields(sim.StepResult)]


def make(
    num_envs=6,
    seed=0,
    num_threads=1,
    action_repeat=1,
    randomization=VARIED,
    disturbance=RESTLESS,
    episode_steps=None,
    task="cartpole-swingup",
):
    env = sim.make(task, num_envs, seed, num_threads, action_repeat, randomization, disturbance)
    env._steps_per_episode = episode_steps or env._steps_per_episode
    return env


def roll(env, steps, seed=1):
    """Return everything that a number of steps with random actions gave, as arrays (steps, N, ...)."""
    random, results = np.random.default_rng(seed), []
    for _ in range(steps):
        step = env.step(random.uniform(-1, 1, (env.num_envs, env.act_dim)))
        results.append([*(getattr(step, name) for name in FIELDS), env.qpos, env.qvel])
    return [np.stack(column) for column in zip(*results, strict=True)]


def assert_same(one, other):
    for left, right in zip(one, other, strict=True):
        np.testing.assert_array_equal(left, right)


# swinging, contacts with targets of their own, contacts with actuator states, and an episode start with steps of its own
KINDS = ["cartpole-swingup", "finger-turn_hard", "quadruped-walk", "cheetah-run"]


@pytest.mark.parametrize("task", KINDS)
def test_results_do_not_depend_on_the_number_of_threads(task):
    runs = []
    for count in (1, 2, 4):
        env = make(task=task, num_envs=16, num_threads=count, action_repeat=2, episode_steps=15)
        runs.append([env.reset(), *roll(env, 32)])  # past the end of an episode
    assert runs[0][4].any(), "an episode must have ended"
    assert_same(runs[0], runs[1])
    assert_same(runs[0], runs[2])


@pytest.mark.parametrize("task", KINDS)
def test_an_episode_goes_on_bit_for_bit_from_a_state_saved_in_its_middle(task):
    env, other = (make(task=task, num_envs=5, seed=seed, num_threads=threads) for seed, threads in ((0, 1), (9, 2)))
    for one in (env, other):
        one.reset()
    roll(env, 7, seed=5)
    other.load_state_dict(env.state_dict())
    assert_same(roll(env, 40), roll(other, 40))


def test_results_depend_on_the_seed_alone():
    first, again, other = (make(seed=seed) for seed in (0, 0, 1))
    starts = [env.reset() for env in (first, again, other)]
    np.testing.assert_array_equal(starts[0], starts[1])
    assert not np.array_equal(starts[0], starts[2])
    assert_same(roll(first, 20), roll(again, 20))


def test_environments_of_one_batch_differ_and_do_not_touch_each_other():
    env = make(num_envs=3, randomization="none", disturbance="none")
    assert len(np.unique(env.reset()[:, 0])) == 3
    before = env.qpos
    qpos = before.copy()
    qpos[1] = [0.5, 0.5]
    env.set_state(qpos, env.qvel)
    np.testing.assert_array_equal(env.qpos[[0, 2]], before[[0, 2]])


def test_action_repeat_sums_the_rewards_of_its_steps():
    single, repeated = (make(action_repeat=repeat, disturbance="none") for repeat in (1, 3))
    for env in (single, repeated):
        env.reset()
    random = np.random.default_rng(0)
    for _ in range(15):
        action = random.uniform(-1, 1, (6, 1))
        steps = [single.step(action) for _ in range(3)]
        step = repeated.step(action)
        np.testing.assert_allclose(step.reward, sum(one.reward for one in steps), rtol=1e-6)
        np.testing.assert_array_equal(step.final_obs, steps[-1].final_obs)


@pytest.mark.parametrize(("repeat", "steps"), [(1, 1000), (4, 250), (100, 10)])
def test_an_episode_lasts_ten_seconds_and_is_cut_then(repeat, steps):
    env = make(num_envs=2, action_repeat=repeat, disturbance="none")
    env.reset()
    for index in range(1, steps + 1):
        last = env.qpos[:, 0]
        step = env.step(np.zeros((2, 1)))
        assert step.timeout.all() == (index == steps)
        assert not step.terminal.any()
    # final_obs belongs to the old episode, obs to the new one
    assert (np.abs(step.final_obs[:, 0] - last) < 0.2).all()
    np.testing.assert_allclose(step.obs[:, 0], env.qpos[:, 0], atol=1e-7)
    assert not np.allclose(step.obs, step.final_obs)
    assert not env.step(np.zeros((2, 1))).timeout.any()


@pytest.mark.parametrize("after", [0, 3, 37])
def test_a_saved_state_goes_on_bit_for_bit_in_another_environment(after):
    env = make(action_repeat=3, episode_steps=50)
    env.reset()
    roll(env, after, seed=5)
    if after:
        assert np.abs(env.state_dict()["physics.xfrc_applied"]).max() > 0, "pushes must be under way"
    state = {name: value.copy() for name, value in env.state_dict().items()}
    wanted = roll(env, 60)
    other = make(seed=99, num_threads=2, action_repeat=3, episode_steps=50)
    other.reset()
    roll(other, 7)
    other.load_state_dict(state)
    assert_same(roll(other, 60), wanted)
    assert wanted[3].any(), "an episode must have ended, so that new dynamics were drawn"
    env.load_state_dict(state)
    assert_same(roll(env, 60), wanted)


def test_a_state_saved_while_the_cart_presses_on_the_end_of_its_rail_goes_on_bit_for_bit():
    env, other = (make(randomization="none", disturbance="none") for _ in range(2))
    for one in (env, other):
        one.reset()
    env.set_state(np.tile([1.78, 2.0], (6, 1)), np.tile([3.0, 5.0], (6, 1)))
    push = np.ones((6, 1))
    for _ in range(5):
        env.step(push)
    assert (env.qpos[:, 0] > 1.8).all(), "the cart must be at the end"
    other.load_state_dict(env.state_dict())
    for _ in range(20):
        np.testing.assert_array_equal(env.step(push).obs, other.step(push).obs)
        np.testing.assert_array_equal(env.qvel, other.qvel)


def test_a_saved_state_does_not_change_with_the_environment():
    env = make()
    env.reset()
    state = env.state_dict()
    kept = {name: value.copy() for name, value in state.items()}
    roll(env, 5)
    for name, value in kept.items():
        np.testing.assert_array_equal(state[name], value)
    env.load_state_dict(state)
    roll(env, 5)
    for name, value in kept.items():
        np.testing.assert_array_equal(state[name], value)


def test_positions_and_velocities_are_copies():
    env = make(disturbance="none")
    env.reset()
    before = env.qpos
    env.qpos[:] = 7.0
    env.qvel[:] = 7.0
    np.testing.assert_array_equal(env.qpos, before)
    roll(env, 1)
    assert not np.array_equal(env.qpos, before)


def test_a_set_state_is_observed_without_noise_and_stepped_from():
    env = make(randomization="none", disturbance="none")
    env.reset()
    qpos, qvel = np.tile([0.5, 1.0], (6, 1)), np.tile([-1.0, 2.0], (6, 1))
    obs = env.set_state(qpos, qvel)
    assert obs.dtype == np.float32
    np.testing.assert_allclose(obs, np.tile([0.5, np.cos(1.0), np.sin(1.0), -1.0, 2.0], (6, 1)), atol=1e-7)
    results = [env.step(np.full((6, 1), 0.3)).final_obs]
    env.set_state(qpos, qvel)
    results.append(env.step(np.full((6, 1), 0.3)).final_obs)
    np.testing.assert_allclose(*results, atol=1e-6)
    assert np.ptp(results[0], axis=0).max() == 0


@pytest.mark.parametrize(
    ("qpos", "qvel", "expected"),
    [
        (np.zeros((6, 3)), np.zeros((6, 2)), r"qpos must have shape \(6, 2\).*got \(6, 3\)"),
        (np.zeros(2), np.zeros((6, 2)), "qpos must have shape"),
        (np.zeros((6, 2)), np.zeros((5, 2)), "qvel must have shape"),
        (np.full((6, 2), np.nan), np.zeros((6, 2)), "qpos must be finite"),
        (np.zeros((6, 2)), np.full((6, 2), np.inf), "qvel must be finite"),
    ],
)
def test_a_state_that_is_none_is_refused_and_nothing_changes(qpos, qvel, expected):
    env = make()
    env.reset()
    before = env.qpos
    with pytest.raises(ValueError, match=expected):
        env.set_state(qpos, qvel)
    np.testing.assert_array_equal(env.qpos, before)


@pytest.mark.parametrize("shape", [(6,), (1, 6), (6, 2), (5, 1), ()])
def test_actions_of_another_shape_are_refused(shape):
    env = make()
    env.reset()
    with pytest.raises(ValueError, match=r"actions must have shape \(6, 1\)"):
        env.step(np.zeros(shape))


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_actions_that_are_not_finite_are_refused_by_environment(value):
    env = make()
    env.reset()
    before, actions = env.qpos, np.zeros((6, 1))
    actions[[2, 4]] = value
    with pytest.raises(ValueError, match=r"environment\(s\) \[2, 4\]"):
        env.step(actions)
    np.testing.assert_array_equal(env.qpos, before)


def test_actions_beyond_the_range_are_clipped():
    results = []
    for action in (1.0, 5.0):
        env = make(disturbance="none")
        env.reset()
        results.append(env.step(np.full((6, 1), action)))
    for name in FIELDS:
        np.testing.assert_array_equal(getattr(results[0], name), getattr(results[1], name))


def test_results_have_the_documented_types():
    env = make()
    assert env.reset().dtype == np.float32
    step = env.step(np.zeros((6, 1), dtype=np.float32))
    expected = {
        "obs": np.float32,
        "reward": np.float32,
        "terminal": np.bool_,
        "timeout": np.bool_,
        "final_obs": np.float32,
        "fault": np.bool_,
    }
    assert {name: getattr(step, name).dtype.type for name in FIELDS} == expected
    assert step.obs.shape == step.final_obs.shape == (6, 5)
    assert step.reward.shape == step.terminal.shape == step.timeout.shape == step.fault.shape == (6,)


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ({"task": "cartpole-swingpu"}, "unknown task 'cartpole-swingpu'; known: .* Did you mean 'cartpole-swingup'"),
        ({"randomization": "defualt"}, "unknown randomization preset .* Did you mean 'default'"),
        ({"disturbance": "nine"}, "unknown disturbance preset .* Did you mean 'none'"),
    ],
)
def test_unknown_names_are_refused_with_a_suggestion(arguments, expected):
    with pytest.raises(UnknownNameError, match=expected):
        sim.make(**({"task": "cartpole-swingup"} | arguments))


@pytest.mark.parametrize("name", ["num_envs", "action_repeat"])
def test_fewer_than_one_environment_or_step_is_refused(name):
    with pytest.raises(ValueError, match=f"{name} must be a whole number, 1 or more, got 0"):
        sim.make("cartpole-swingup", **{name: 0})


def test_presets_may_be_files(tmp_path):
    (tmp_path / "d.yaml").write_text("push_force: 3\npush_rate_hz: 1\n")
    (tmp_path / "r.yaml").write_text("mass: [0.5, 2]\n")
    env = sim.make("cartpole-swingup", disturbance=tmp_path / "d.yaml", randomization=str(tmp_path / "r.yaml"))
    env.reset()
    pushed = np.zeros(200)
    for index in range(200):
        env.step(np.zeros((1, 1)))
        pushed[index] = np.linalg.norm(env.state_dict()["physics.xfrc_applied"])
    np.testing.assert_allclose(pushed[pushed > 0], 3.0)
    assert pushed.any()
    assert env.dynamics_names == ("mass/cart", "mass/pole_1")
    with pytest.raises(ConfigError, match=r"does not exist. Did you mean 'r.yaml'"):
        sim.make("cartpole-swingup", randomization=tmp_path / "rr.yaml")
    (tmp_path / "d.yaml").write_text("push_forse: 3\n")
    with pytest.raises(ConfigError, match=r"d.yaml:1: unknown key 'push_forse'"):
        sim.make("cartpole-swingup", disturbance=tmp_path / "d.yaml")
    (tmp_path / "r.yaml").write_text("mass: [2, 0.5]\n")
    with pytest.raises(ConfigError, match=r"r.yaml:1: mass: low must not be above high, got low 2 and high 0.5"):
        sim.make("cartpole-swingup", randomization=tmp_path / "r.yaml")


def test_it_works_without_a_display(tmp_path):
    environment = {name: value for name, value in os.environ.items() if name not in ("MUJOCO_GL", "DISPLAY")}
    program = "import numpy, sim; env = sim.make('cartpole-swingup'); env.reset(); print(env.step(numpy.zeros((1, 1))).obs.shape)"
    child = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=120, env=environment)
    assert child.returncode == 0, child.stderr
    assert child.stdout.strip() == "(1, 5)"


def test_spread_ages_let_episodes_end_one_after_the_other():
    env = make(num_envs=5, episode_steps=10)
    env.reset()
    env.spread_ages()
    ends = np.stack([env.step(np.zeros((5, 1))).timeout for _ in range(20)])
    np.testing.assert_array_equal(np.flatnonzero(ends.any(axis=1)), [1, 3, 5, 7, 9, 11, 13, 15, 17, 19])
    np.testing.assert_array_equal(ends.sum(axis=0), 2)


def test_a_task_that_starts_from_nowhere_is_refused():
    task = make_task("cartpole-swingup")
    task.initialize = lambda ids, random: task._qpos.__setitem__(ids[1:], np.nan)
    env = sim.make(task, 3)
    with pytest.raises(ModelError, match=r"cartpole-swingup: initialize wrote qpos that are not finite in environments \[1 2\]"):
        env.reset()


def test_stepping_before_a_start_is_refused() -> None:
    environment = sim.make("cartpole-swingup")
    with pytest.raises(RuntimeError, match="call reset"):
        environment.step(np.zeros((1, 1)))


# ---- diverged physics ----


class Counted(Cartpole):
    """Cart-pole that counts its starts, and can be broken."""

    name = "counted"
    starts = 0
    velocity = 0.0  # at the start
    bad_reward = bad_observation = ()

    def __init__(self):
        super().__init__(swing_up=True, sparse=False)
        self.name = "counted"

    def initialize(self, ids, random):
        self.starts += len(ids)
        super().initialize(ids, random)
        self._qvel[ids] += self.velocity

    def reward(self, control):
        reward = super().reward(control).copy()
        reward[list(self.bad_reward)] = np.nan
        return reward

    def observe(self, out):
        super().observe(out)
        out[list(self.bad_observation)] = np.inf


def test_diverged_physics_ends_that_episode_alone_and_starts_it_once_anew():
    settings = Randomization(gravity=Variation("random_walk", low=0.5, high=1.5, start=1.0, std=0.1))
    env, calm = (sim.make(Counted(), 4, randomization=settings) for _ in range(2))
    before = env.reset()
    calm.reset()
    zero = np.zeros((4, 1))
    for expected_faults in (1, 2):
        env.physics.qvel[2] = 1e12
        step, other = env.step(zero), calm.step(zero)
        assert step.fault.tolist() == step.terminal.tolist() == [False, False, True, False]
        assert not step.timeout.any()
        assert step.reward[2] == 0
        np.testing.assert_array_equal(step.final_obs[2], before[2])
        assert not np.array_equal(step.obs[2], before[2])
        assert env.fault_count == expected_faults
        assert env.task.starts == 4 + expected_faults
        for name in FIELDS:
            np.testing.assert_array_equal(getattr(step, name)[[0, 1, 3]], getattr(other, name)[[0, 1, 3]])
        before = step.obs
        step = env.step(zero)
        calm.step(zero)
        assert not step.fault.any()
        before = step.obs
    assert env.dynamics[2] != env.dynamics[1]


def test_a_start_that_always_diverges_is_an_error_and_not_another_start():
    task = Counted()
    task.velocity = 1e11
    env = sim.make(task, 2)
    with pytest.raises(
        ModelError, match=r"counted: the physics of 2 environment\(s\) diverged in 10 attempts to start an episode"
    ):
        env.reset()
    assert task.starts == 20


def test_a_fault_under_way_is_not_blamed_on_what_is_loaded_after_it():
    env = sim.make(Counted(), 2)
    env.reset()
    state = env.state_dict()
    env.physics.qvel[:] = 1e12
    env.physics.step(1)
    env.load_state_dict(state)
    assert not env.step(np.zeros((2, 1))).fault.any()


@pytest.mark.parametrize("repeat", [1, 3])
@pytest.mark.parametrize("what", ["bad_reward", "bad_observation"])
def test_numbers_that_are_not_finite_are_a_fault_of_their_environment(what, repeat):
    env = sim.make(Counted(), 3, action_repeat=repeat, disturbance=Disturbance(reward_delay=2, observation_delay=1))
    before = env.reset()
    setattr(env.task, what, (1,))
    stepped = env._repeat(np.zeros((3, 1)))
    assert stepped[1].tolist() == stepped[2].tolist() == [False, True, False]
    assert np.isfinite(stepped[0]).all()
    np.testing.assert_array_equal(stepped[3][1], before[1])
    assert env.fault_count == 1


def test_first_observations_that_are_not_finite_are_an_error():
    env = sim.make(Counted(), 3)
    env.task.bad_observation = (0, 2)
    with pytest.raises(ModelError, match=r"the first observations of environments \[0 2\] are not finite"):
        env.reset()


def test_a_state_beyond_what_mujoco_simulates_is_refused():
    env = make(num_envs=1)
    with pytest.raises(ValueError, match=r"qvel must be finite and below 1e\+10"):
        env.set_state(np.zeros((1, 2)), np.full((1, 2), 1e11))


# ---- saved states ----


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ({"num_envs": 1}, "num_envs 6, here 1"),
        ({"action_repeat": 2}, "action_repeat 1, here 2"),
        ({"task": "cartpole-balance"}, "task 'cartpole-swingup', here 'cartpole-balance'"),
        ({"randomization": "none"}, "randomization"),
        ({"disturbance": "medium"}, "disturbance"),
    ],
)
def test_a_state_of_other_environments_is_refused_and_nothing_changes(arguments, expected):
    env, other = make(), make(**arguments)
    env.reset()
    start = other.reset()
    with pytest.raises(CheckpointError, match=expected):
        other.load_state_dict(env.state_dict())
    np.testing.assert_array_equal(other.obs, start)


def test_a_damaged_state_is_refused_with_the_names_of_what_does_not_fit():
    env = make()
    env.reset()
    before, state = env.qpos, env.state_dict()
    del state["physics.qvel"]
    state["physics.qpos"] = state["physics.qpos"][:1] + 1
    with pytest.raises(CheckpointError, match=r"physics.qpos \(1, 2\), expected \(6, 2\), physics.qvel missing"):
        env.load_state_dict(state)
    with pytest.raises(CheckpointError, match="not the saved state of an environment"):
        env.load_state_dict({})
    np.testing.assert_array_equal(env.qpos, before)


def test_an_environment_that_has_not_started_is_restored_as_such():
    env, other = make(), make()
    state = env.state_dict()
    other.reset()
    other.load_state_dict(state)
    with pytest.raises(RuntimeError, match="call reset"):
        other.step(np.zeros((6, 1)))


def test_all_of_the_state_of_mujoco_is_saved():
    spec = load_suite_spec("cartpole")
    goal = spec.worldbody.add_body(name="goal", mocap=True)
    goal.add_geom(size=[0.1, 0, 0], contype=0, conaffinity=0)
    physics, other = (Physics(spec.copy().compile(), 2, 1) for _ in range(2))
    places = other.data("xpos")[:, other.body("goal")]
    physics.data("mocap_pos")[:, 0] = [[1, 2, 3], [4, 5, 6]]
    other.load_state_dict(physics.state_dict())
    np.testing.assert_array_equal(other.data("mocap_pos")[:, 0], [[1, 2, 3], [4, 5, 6]])
    np.testing.assert_array_equal(places, [[1, 2, 3], [4, 5, 6]])


def test_a_new_seed_gives_the_same_again_also_where_dynamics_evolve():
    env = make(randomization=Randomization(gravity=Variation("random_walk", low=0.1, high=3.0, start=1.0, std=0.2)))
    runs = []
    for _ in range(2):
        env.reseed(4)
        runs.append([env.reset(), env.dynamics, env.reset(), env.dynamics])
    assert_same(*runs)
    assert not np.array_equal(runs[0][1], runs[0][3])


def test_a_task_serves_one_environment_only():
    task = make_task("cartpole-swingup")
    sim.make(task, 2)
    with pytest.raises(ValueError, match="task cartpole-swingup is in use by another environment"):
        sim.make(task, 2)


def test_settings_of_another_kind_are_refused():
    with pytest.raises(ConfigError, match=r"disturbance must be the name of a preset.* got a Randomization"):
        make(disturbance=VARIED)
