"""A task of one's own: the worked example through the usual door, clear errors on the way in, and physics that goes wrong."""

import importlib
import os
from pathlib import Path

import mujoco
import numpy as np
import pytest

import sim
from dpg_robot.errors import ConfigError, DpgError, UnknownNameError
from sim.disturbance import DISTURBANCE_PRESETS
from sim.mjcf import ModelError
from sim.tasks import Task

EXAMPLE = Path(__file__).resolve().parents[2] / "examples" / "two_link_arm.py"
TWO_LINK_REACH = f"{EXAMPLE}:TwoLinkReach"
MODEL = EXAMPLE.with_suffix(".xml")


def make(num_envs=4, seed=0, **settings):
    return sim.make(TWO_LINK_REACH, num_envs=num_envs, seed=seed, num_threads=1, **settings)


def servo_actions(env, angles):
    """Return the actions that send the servos to joint ``angles`` (N, 2)."""
    contract = env.contract()
    return np.stack([contract.unscale_command(each) for each in angles])


def inverse_kinematics(target, upper_arm=0.15, forearm=0.12):
    """Return joint angles (N, 2) that bring the tip to ``target`` (N, 2)."""
    x, y = target.T
    elbow = np.arccos((x**2 + y**2 - upper_arm**2 - forearm**2) / (2 * upper_arm * forearm))
    return np.stack([np.arctan2(y, x) - np.arctan2(forearm * np.sin(elbow), upper_arm + forearm * np.cos(elbow)), elbow], axis=1)


def test_the_reward_is_one_at_the_target_and_falls_with_the_distance():
    env = make(num_envs=8)
    obs = env.reset()
    there = inverse_kinematics(obs[:, 4:].astype(np.float64))
    env.set_state(there, np.zeros((8, 2)))
    np.testing.assert_array_equal(env.step(servo_actions(env, there)).reward, np.ones(8))
    rewards = []
    for offset in (0.2, 0.5, 1.0):
        beside = there + np.array([offset, 0.0])
        env.set_state(beside, np.zeros((8, 2)))
        rewards.append(env.step(servo_actions(env, beside)).reward)
    assert (np.diff([np.ones(8), *rewards], axis=0) < 0).all()
    assert (np.array(rewards) > 0).all()


def test_servos_bring_the_tip_to_the_target_within_the_episode():
    env = make(num_envs=8)
    obs = env.reset()
    action = servo_actions(env, inverse_kinematics(obs[:, 4:].astype(np.float64)))
    rewards = np.array([env.step(action).reward for _ in range(199)])
    assert (rewards[:100].mean(axis=0) < rewards[100:].mean(axis=0)).all()
    assert (rewards[-50:] > 0.95).all()
    assert env.step(action).timeout.all()


def test_the_reward_of_a_log_is_that_of_the_simulation():
    env = make(num_envs=16)
    env.reset()
    action = np.random.default_rng(0).uniform(-1, 1, (16, 2))
    step = env.step(action)
    # float32 measurements: 1e-7 of 0.3 m, on a slope of at most 15 per metre
    np.testing.assert_allclose(env.task.measured_reward(step.final_obs, action), step.reward, atol=1e-5)


def test_targets_differ_between_environments_and_episodes_and_stay_within_one():
    env = make(num_envs=16)
    first = env.reset()[:, 4:]
    assert len(np.unique(first, axis=0)) == 16
    for _ in range(199):
        step = env.step(np.zeros((16, 2)))
        np.testing.assert_array_equal(step.obs[:, 4:], first)
    second = env.step(np.zeros((16, 2))).obs[:, 4:]
    assert (second != first).all()
    radius = np.linalg.norm(np.concatenate([first, second]), axis=1)
    assert radius.min() > 0.119
    assert radius.max() < 0.251


@pytest.mark.parametrize("randomization", ["none", "default"])
@pytest.mark.parametrize("disturbance", sorted(DISTURBANCE_PRESETS))
def test_the_example_lives_with_all_presets_and_goes_on_from_a_saved_state(randomization, disturbance):
    env, other = (make(seed=seed, randomization=randomization, disturbance=disturbance, action_repeat=2) for seed in (0, 1))
    env.reset()
    actions = np.random.default_rng(0).uniform(-1, 1, (130, 4, 2))
    for action in actions[:30]:
        env.step(action)
    other.load_state_dict(env.state_dict())
    for action in actions[30:]:
        step, again = env.step(action), other.step(action)
        np.testing.assert_array_equal(step.obs, again.obs)
        np.testing.assert_array_equal(step.reward, again.reward)
        assert np.isfinite(step.obs).all()
        # two rewards of at most 1 each, but late ones come all at once where an episode ends
        assert (step.reward >= 0).all()
        assert (step.reward[~step.timeout] <= 2).all()
    assert env.fault_count == 0
    assert env.contract().num_measurements == env.obs_dim


def test_the_model_agrees_with_the_contract_of_the_example():
    env = make()
    contract, model = env.contract(), env.physics.model
    assert contract.rate_hz == pytest.approx(50.0)
    assert contract.command_names == tuple(model.actuator(index).name for index in range(model.nu))
    np.testing.assert_array_equal(np.stack([contract.command_low, contract.command_high], axis=1), model.actuator_ctrlrange)
    assert contract.measurement_names[:4] == tuple(model.sensor(index).name for index in range(model.nsensor))
    links = model.body("forearm").pos[0], model.site("tip").pos[0]
    module = importlib.import_module(type(env.task).__module__)
    assert links == (module.UPPER_ARM_M, module.FOREARM_M)


# ---- clear errors on the way in ----


def write_task(folder, xml, body=""):
    """Write a task in ``folder`` whose model is ``xml``, and return a reference to it."""
    (folder / "robot.xml").write_text(xml)
    (folder / "robot.py").write_text(
        "import pathlib, sys\n"
        f"sys.path.insert(0, {str(EXAMPLE.parent)!r})\n"
        "import mujoco, two_link_arm\n"
        "from sim.mjcf import load_mjcf\n"
        "sys.path.pop(0)\n"
        "class Robot(two_link_arm.TwoLinkReach):\n"
        "    def load_spec(self):\n"
        "        return load_mjcf(pathlib.Path(__file__).with_suffix('.xml'))\n" + body
    )
    return f"{folder / 'robot.py'}:Robot"


@pytest.mark.parametrize(
    ("old", "new", "messages"),
    [
        ('<joint name="elbow"', '<joint name="shoulder"', ["robot.xml", "repeated name 'shoulder'", "line 18"]),
        ('size="0.012"', 'sizes="0.012"', ["unrecognized attribute: 'sizes'", "robot.xml", "line 6"]),
        ('joint="elbow" ctrlrange', 'joint="elbo" ctrlrange', ["unknown transmission target 'elbo'", "robot.xml", "line 28"]),
        ("</mujoco>", "", ["robot.xml", "XML parse error"]),
        ('timestep="0.005"', 'timestep="0.007"', ["control_timestep_s 0.02 must be a whole multiple", "0.007"]),
    ],
    ids=["name twice", "unknown attribute", "unknown joint", "cut off", "odd timestep"],
)
def test_a_model_that_cannot_be_used_is_refused_with_the_message_of_mujoco(tmp_path, old, new, messages):
    xml = MODEL.read_text()
    assert old in xml
    with pytest.raises(ModelError) as caught:
        sim.make(write_task(tmp_path, xml.replace(old, new)))
    for message in messages:
        assert message in str(caught.value)


def test_an_actuator_without_limits_is_refused(tmp_path):
    xml = MODEL.read_text().replace(' ctrlrange="-2.4 2.4"', "")
    with pytest.raises(DpgError, match="elbow_servo have no limits; give them a ctrlrange"):
        sim.make(write_task(tmp_path, xml))


@pytest.mark.parametrize(
    ("reference", "error", "message"),
    [
        ("absent.py:Robot", ConfigError, r"there is no file absent\.py"),
        (f"{EXAMPLE}:TwoLinkReech", ConfigError, "TwoLinkReech"),
        (f"{EXAMPLE}:TARGET_RADIUS_M", ConfigError, "TARGET_RADIUS_M is not a class or function"),
        ("no_such_package.robot:Robot", ConfigError, "no_such_package"),
        ("collections:OrderedDict", ConfigError, "gave OrderedDict, expected"),
        ("cartpole-swingupp", UnknownNameError, "Did you mean 'cartpole-swingup'"),
    ],
)
def test_references_that_lead_to_no_task_are_refused(reference, error, message):
    with pytest.raises(error, match=message):
        sim.make(reference)


# ---- while it runs ----


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_actions_that_are_not_finite_are_refused_with_the_environments(value):
    env = make()
    env.reset()
    before = env.qpos
    actions = np.zeros((4, 2))
    actions[[1, 3], [0, 1]] = value
    with pytest.raises(ValueError, match=r"environment\(s\) \[1, 3\] are not"):
        env.step(actions)
    np.testing.assert_array_equal(env.qpos, before)


def test_physics_that_diverges_ends_only_its_own_environment(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    env, undisturbed = make(num_envs=6), make(num_envs=6)
    start = env.reset()
    undisturbed.reset()
    qvel = env.qvel
    qvel[[2, 5]] = 1e9
    before = env.set_state(env.qpos, qvel)
    undisturbed.set_state(undisturbed.qpos, undisturbed.qvel)
    actions = np.random.default_rng(0).uniform(-1, 1, (30, 6, 2))
    for index, action in enumerate(actions):
        step, wanted = env.step(action), undisturbed.step(action)
        failed = np.isin(np.arange(6), [2, 5]) & (index == 0)
        np.testing.assert_array_equal(step.fault, failed)
        np.testing.assert_array_equal(step.terminal, failed)
        assert not step.timeout.any()
        if index == 0:
            assert (step.reward[failed] == 0).all()
            np.testing.assert_array_equal(step.final_obs[failed], before[failed])
            assert (step.obs[failed, 4:] != start[failed, 4:]).all(), "a new episode has a new target"
        for name in ("obs", "reward", "final_obs"):
            np.testing.assert_array_equal(getattr(step, name)[[0, 1, 3, 4]], getattr(wanted, name)[[0, 1, 3, 4]])
            assert np.isfinite(getattr(step, name)).all()
    assert env.fault_count == 2
    assert undisturbed.fault_count == 0
    assert os.listdir(tmp_path) == [], "MuJoCo must not write its log into the working directory"


def test_the_base_class_names_what_a_task_lacks():
    class Unfinished(Task):
        name = "unfinished"

        def load_spec(self):
            return mujoco.MjSpec()

    with pytest.raises(TypeError, match="initialize"):
        Unfinished()
