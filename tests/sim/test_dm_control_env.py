"""Wrapped dm_env environments: what dm_control itself gives, loud failures, and workers that end with their parent."""

import dataclasses
import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import psutil
import pytest

from dpg_robot.errors import ConfigError, UnknownNameError
from sim.disturbance import Disturbance
from sim.dm_control_env import DmControlEnvironment, NotOfferedError, make_dm_control, suite_names
from sim.step_result import StepResult
from sim.worker import WorkerError

FIELDS = [field.name for field in dataclasses.fields(StepResult)]
RESTLESS = Disturbance(action_delay=(0, 3), action_noise=0.1, observation_noise=0.01, stuck_probability=0.1, stuck_steps=3)

WORLD = '''
"""A world of one number, which shows the last action; what the action is decides what happens."""
import os
import dm_env, numpy as np
from dm_control.rl.control import PhysicsError
from dm_env import specs

class World(dm_env.Environment):
    def __init__(self, seed, low=0.0, high=10.0):
        self._random, self._low, self._high, self._steps = np.random.default_rng(seed), low, high, 0

    def control_timestep(self):
        return 0.05

    def action_spec(self):
        return specs.BoundedArray((1,), np.float32, self._low, self._high)

    def observation_spec(self):
        return {"action": specs.Array((), np.float64), "place": specs.Array((2,), np.float64)}

    def reset(self):
        self._steps, self._place = 0, self._random.uniform(size=2)
        return dm_env.restart({"action": -1.0, "place": self._place})

    def step(self, action):
        value = float(action[0])
        self._steps += 1
        if value == 1.0:
            raise ValueError("the gripper is on fire")
        if value == 2.0:
            os._exit(3)
        if value == 3.0 or (value == 8.0 and self._steps == 3):
            raise PhysicsError("diverged")
        observation = {"action": np.nan if value == 4.0 else value, "place": self._place}
        if value == 10.0:
            return dm_env.termination(7.0, observation)
        if self._steps == 4:
            return dm_env.truncation(1.0, observation)
        return dm_env.transition(1.0, observation)

def unbounded(seed):
    return World(seed, high=np.inf)

def nothing(seed):
    return 42

def broken(seed):
    raise RuntimeError("no licence for this world")
'''


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    path = tmp_path_factory.mktemp("world") / "world.py"
    path.write_text(WORLD)
    return path


@pytest.fixture(scope="module")
def fish():
    with make_dm_control("fish-swim", num_envs=3, seed=0, num_threads=2) as env:
        yield env


@pytest.fixture(scope="module")
def worlds(world):
    with make_dm_control(f"{world}:World", num_envs=3, seed=0, num_threads=2) as env:
        yield env


def reference_environments(domain, task, seed, count):
    """Return environments of dm_control itself, with the seeds that are documented."""
    from dm_control import suite

    seeds = [int(child.generate_state(1)[0]) for child in np.random.SeedSequence(seed).spawn(count)]
    return [suite.load(domain, task, task_kwargs={"random": each}) for each in seeds]


def flatten(observation):
    return np.concatenate([np.ravel(value) for value in observation.values()]).astype(np.float32)


def worlds_actions(*values):
    """Return the actions (N, 1) in [-1, 1] that come out as ``values`` in the world."""
    return np.array(values)[:, None] / 5.0 - 1.0


def test_episodes_are_those_of_dm_control_itself_one_seed_per_environment(fish):
    fish.reseed(0)
    direct = reference_environments("fish", "swim", 0, 3)
    np.testing.assert_array_equal(fish.reset(), [flatten(env.reset().observation) for env in direct])
    assert len(np.unique(fish.qpos[:, 3])) == 3
    random = np.random.default_rng(0)
    for _ in range(20):
        actions = random.uniform(-1, 1, (3, fish.act_dim))
        step = fish.step(actions)
        wanted = [env.step(action) for env, action in zip(direct, actions, strict=True)]
        np.testing.assert_array_equal(step.obs, [flatten(one.observation) for one in wanted])
        np.testing.assert_array_equal(step.reward, np.float32([one.reward for one in wanted]))
    np.testing.assert_array_equal(fish.qpos, [env.physics.data.qpos for env in direct])
    np.testing.assert_array_equal(fish.qvel, [env.physics.data.qvel for env in direct])


def test_specs_become_names_sizes_rate_and_limits(fish, worlds):
    assert (fish.obs_dim, fish.act_dim, fish.control_timestep) == (24, 5, 0.04)
    assert fish.observation_names[:2] == ("joint_angles_0", "joint_angles_1")
    assert "upright" in fish.observation_names
    assert fish.contract(2).command_names == ("tail", "tail_twist", "fins_flap", "finleft_pitch", "finright_pitch")
    assert fish.contract(2).rate_hz == 25.0
    contract = worlds.contract()
    assert contract.measurement_names == ("action", "place_0", "place_1")
    assert [(c.name, c.low, c.high) for c in contract.commands] == [("action_0", 0.0, 10.0)]


def test_a_state_can_be_set_and_observed_as_dm_control_does(fish):
    fish.reset()
    (direct,) = reference_environments("fish", "upright", 0, 1)
    direct.reset()
    qpos, qvel = fish.qpos, fish.qvel
    qpos[:, 7:] += 0.1
    obs = fish.set_state(qpos, qvel)
    np.testing.assert_array_equal(fish.qpos, qpos)
    with direct.physics.reset_context():
        direct.physics.data.qpos[:], direct.physics.data.qvel[:] = qpos[1], qvel[1]
    np.testing.assert_array_equal(obs[1, :7], np.float32(direct.physics.joint_angles()))
    with pytest.raises(ValueError, match=r"qpos must have shape \(3, 14\)"):
        fish.set_state(qpos[:2], qvel)


def test_physics_that_diverges_ends_only_that_environment(fish):
    fish.reset()
    before = fish.fault_count
    qvel = fish.qvel
    qvel[1] = 1e14
    first = fish.set_state(fish.qpos, qvel)
    step = fish.step(np.zeros((3, 5)))
    np.testing.assert_array_equal(step.fault, [False, True, False])
    np.testing.assert_array_equal(step.terminal, step.fault)
    assert step.reward[1] == 0
    np.testing.assert_array_equal(step.final_obs[1], first[1])
    assert np.isfinite(step.obs).all()
    assert fish.fault_count == before + 1
    assert not fish.step(np.zeros((3, 5))).fault.any()


@pytest.mark.parametrize(("task", "varied"), [("point_mass-hard", "wrap_prm"), ("lqr-lqr_2_1", "task")])
def test_a_saved_state_goes_on_bit_for_bit_in_environments_of_another_seed(task, varied):
    def roll(env):
        random, results = np.random.default_rng(1), []
        for _ in range(15):
            step = env.step(random.uniform(-1, 1, (3, env.act_dim)))
            results.append([getattr(step, name) for name in FIELDS])
        return [np.stack(column) for column in [*zip(*results, strict=True), [env.qpos], [env.reset()]]]

    with make_dm_control(task, 3, 0, 2, action_repeat=2, disturbance=RESTLESS) as env:
        env.reset()
        roll(env)
        env.step(np.ones((3, env.act_dim)))
        state = {name: np.ascontiguousarray(value) for name, value in env.state_dict().items()}
        assert all(value.dtype.kind in "biuf" for value in state.values())
        assert any(varied in name for name in state)
        wanted = roll(env)
        env.reseed(7)
        env.reset()
        assert not np.isin(roll(env)[0], wanted[0]).all()
        env.load_state_dict(state)
        for got, expected in zip(roll(env), wanted, strict=True):
            np.testing.assert_array_equal(got, expected)
        assert len(np.unique(wanted[0][:, :, 0])) > 3, "the environments must move"


def test_actions_are_scaled_to_the_bounds_and_noise_stays_within_them(worlds):
    worlds.reset()
    assert worlds.step(worlds_actions(0.0, 5.0, 9.0)).obs[:, 0].tolist() == [0.0, 5.0, 9.0]
    assert worlds.step(np.array([[-7.0], [0.0], [0.5]])).obs[:, 0].tolist() == [0.0, 5.0, 7.5]


def test_ended_episodes_start_anew_and_say_how_they_ended(worlds):
    start = worlds.reset()
    for index in range(4):
        step = worlds.step(worlds_actions(6.0, 6.0, 10.0 if index == 1 else 6.0))
        assert step.terminal.tolist() == [False, False, index == 1]
        assert step.timeout.tolist() == [index == 3, index == 3, False]
        if index == 1:
            assert step.reward.tolist() == [1.0, 1.0, 7.0]
            assert step.final_obs[2].tolist() == [10.0, *start[2, 1:]]
            assert step.obs[2, 0] == -1.0
            assert (step.obs[2, 1:] != start[2, 1:]).all()
    assert step.final_obs[0].tolist() == [6.0, *start[0, 1:]]
    assert step.obs[:2, 0].tolist() == [-1.0, -1.0]


def test_physics_errors_and_numbers_that_are_not_finite_are_faults(worlds):
    worlds.reset()
    before = worlds.step(worlds_actions(6.0, 6.0, 6.0)).obs
    step = worlds.step(worlds_actions(3.0, 4.0, 6.0))
    assert step.fault.tolist() == step.terminal.tolist() == [True, True, False]
    assert step.reward.tolist() == [0.0, 0.0, 1.0]
    np.testing.assert_array_equal(step.final_obs[:2], before[:2])
    assert step.obs[:, 0].tolist() == [-1.0, -1.0, 6.0]


def test_action_repeat_and_dummies_stop_with_the_episode(world):
    with DmControlEnvironment(
        f"{world}:World", num_envs=2, seed=0, num_workers=1, action_repeat=3, disturbance=Disturbance(dummy_observations=2)
    ) as env:
        assert env.control_timestep == pytest.approx(0.15)
        assert env.obs_dim == 5
        env.reset()
        assert env.step(worlds_actions(6.0, 10.0)).reward.tolist() == [3.0, 7.0]
        step = env.step(worlds_actions(6.0, 6.0))  # the first has one step left
        assert step.reward.tolist() == [1.0, 3.0]
        assert step.timeout.tolist() == [True, False]
        first = env.reset()
        step = env.step(worlds_actions(6.0, 8.0))
        assert step.fault.tolist() == [False, True]
        np.testing.assert_array_equal(step.final_obs[1], first[1])  # the dummies too


def test_worlds_without_a_state_begin_anew_after_loading(worlds):
    assert not worlds.restores_episodes
    worlds.reseed(5)
    fresh = worlds.state_dict()
    starts = worlds.reset()
    worlds.step(worlds_actions(6.0, 6.0, 6.0))
    later = worlds.state_dict()
    worlds.load_state_dict(later)
    resumed = worlds.step(worlds_actions(6.0, 6.0, 6.0)).obs
    assert not np.isin(resumed[:, 1:], starts[:, 1:]).any()
    worlds.load_state_dict(later)
    np.testing.assert_array_equal(worlds.step(worlds_actions(6.0, 6.0, 6.0)).obs, resumed)
    worlds.load_state_dict(fresh)
    np.testing.assert_array_equal(worlds.reset(), starts)


def test_what_a_world_cannot_do_is_said_so(worlds):
    with pytest.raises(NotOfferedError, match="no qpos and qvel"):
        _ = worlds.qpos
    with pytest.raises(NotOfferedError, match=r"not a plain dm_control\.rl\.control\.Environment"):
        worlds.set_state(np.zeros((3, 1)), np.zeros((3, 1)))
    worlds.reset()
    with pytest.raises(ValueError, match=r"environment\(s\) \[1\] are not"):
        worlds.step(np.array([[0.0], [np.nan], [0.0]]))


def test_an_error_in_an_environment_is_passed_on_with_its_number_and_traceback(world):
    env = make_dm_control(f"{world}:World", num_envs=4, num_threads=2)
    env.reset()
    with pytest.raises(WorkerError, match=r"(?s)environment 2 raised.*world\.py.*ValueError: the gripper is on fire"):
        env.step(worlds_actions(6.0, 6.0, 1.0, 6.0))
    with pytest.raises(RuntimeError, match="closed"):
        env.step(worlds_actions(6.0, 6.0, 6.0, 6.0))


def test_a_worker_that_dies_is_named_with_its_environments(world):
    env = make_dm_control(f"{world}:World", num_envs=4, num_threads=2)
    pids = env.pids
    env.reset()
    with pytest.raises(WorkerError, match="the process of environments 2 to 3 ended with exit code 3"):
        env.step(worlds_actions(6.0, 6.0, 2.0, 6.0))
    assert not any(psutil.pid_exists(pid) for pid in pids)


@pytest.mark.parametrize(
    ("attribute", "error", "message"),
    [
        ("unbounded", ConfigError, r"action\(s\) \[0\] have no usable bounds, got minimum \[0.0\] and maximum \[inf\]"),
        ("nothing", ConfigError, "gave int, expected a dm_env.Environment"),
        ("broken", WorkerError, "(?s)environment 0 raised.*no licence for this world"),
        ("absent", ConfigError, "absent"),
    ],
)
def test_factories_that_cannot_be_used_are_refused(world, attribute, error, message):
    with pytest.raises(error, match=message):
        make_dm_control(f"{world}:{attribute}", num_threads=1)


def test_names_functions_and_pushes_that_cannot_be_used_are_refused():
    assert len(suite_names()) == len(set(suite_names())) > 40
    with pytest.raises(UnknownNameError, match="Did you mean 'fish-swim'"):
        make_dm_control("fish-swin")
    with pytest.raises(ConfigError, match="at the top level of a module"):
        DmControlEnvironment(lambda seed: None, num_envs=1, seed=0)
    with pytest.raises(ConfigError, match="pushes need a task that steps natively"):
        make_dm_control("fish-swim", disturbance=Disturbance(push_rate_hz=1.0, push_force=1.0))
    with pytest.raises(ValueError, match="num_envs must be 1 or more"):
        make_dm_control("fish-swim", num_envs=0)


PARENT = """
import signal
import sys
import numpy as np
from sim.dm_control_env import make_dm_control
if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs inherit that it is ignored
    env = make_dm_control(sys.argv[1], num_envs=2, num_threads=2)
    env.reset()
    print(*env.pids, flush=True)
    while True:
        env.step(np.full((2, 1), 0.2))
"""


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGINT])
def test_workers_end_quietly_with_their_parent(world, tmp_path, how):
    script = tmp_path / "parent.py"
    script.write_text(PARENT)
    root = Path(__file__).resolve().parents[2]
    parent = subprocess.Popen(
        [sys.executable, script, f"{world}:World"],
        env={**os.environ, "PYTHONPATH": str(root)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    workers = [psutil.Process(int(pid)) for pid in parent.stdout.readline().split()]
    assert len(workers) == 2
    if how == signal.SIGINT:
        os.killpg(parent.pid, how)  # as Ctrl-C in a terminal does
    else:
        parent.kill()
    _, alive = psutil.wait_procs(workers, timeout=30)
    _, errors = parent.communicate(timeout=30)
    assert not alive
    assert errors.count("Traceback") == (1 if how == signal.SIGINT else 0), errors
    assert "leaked" not in errors
