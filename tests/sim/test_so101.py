"""The SO-101: published figures, servos that behave, targets within reach, and a reward that a robot can compute too."""

from pathlib import Path

import mujoco
import numpy as np
import pytest
from scipy.optimize import least_squares
from scipy.spatial import cKDTree

import sim
from dpg_robot.contract import Contract
from sim.tasks.so101 import COMMANDS, JOINT_LIMITS_RAD, MAX_SPEED_RAD_PER_S, SUCCESS_DISTANCE_M, forward_kinematics

CONFIGS = Path(__file__).resolve().parents[2] / "configs"
RANDOMIZATION, DISTURBANCE = (str(CONFIGS / kind / "so101.yaml") for kind in ("randomization", "disturbance"))
JOINTS = 5


def make(num_envs=16, seed=0, **settings):
    return sim.make("so101-reach", num_envs=num_envs, seed=seed, num_threads=1, **settings)


def load_model():
    return make(1).physics.model


def hold(env, steps):
    """Let the goals stand still for some steps; returns the last step."""
    for _ in range(steps):
        step = env.step(np.zeros((env.num_envs, JOINTS)))
    return step


def inverse_kinematics(targets):
    """Return angles (N, 5) within the joints' limits that bring the tip to ``targets`` (N, 3): the nearest of many, improved."""
    limits = np.array(list(JOINT_LIMITS_RAD.values())).T
    postures = np.random.default_rng(4).uniform(*(0.9 * limits), (50_000, JOINTS))
    _, nearest = cKDTree(forward_kinematics(postures)).query(targets)
    return np.array(
        [
            least_squares(lambda posture, target=target: forward_kinematics(posture) - target, start, bounds=limits).x
            for target, start in zip(targets, postures[nearest], strict=True)
        ]
    )


# ---- the model ----


def test_the_arm_weighs_and_reaches_what_is_published():
    model = load_model()
    assert model.body_subtreemass[model.body("base").id] == pytest.approx(0.632, abs=0.005)
    # the gripper's frame in TheRobotStudio's model with all joints at 0
    np.testing.assert_allclose(forward_kinematics(np.zeros(JOINTS)), [0.39136, 0.0, 0.22647], atol=5e-4)
    low, high = np.array(list(JOINT_LIMITS_RAD.values())).T
    tips = forward_kinematics(np.random.default_rng(0).uniform(low, high, (100_000, JOINTS)))
    reach = np.linalg.norm(tips - [0.0388 + 0.0304, 0.0, 0.0624 + 0.0542], axis=1)[np.abs(tips[:, 1]) < 0.01].max()
    assert 0.38 < reach < 0.42, "vendors say 0.4 m from the shoulder"


def test_joint_limits_are_the_published_ones():
    published = {
        "shoulder_pan": (-1.91986, 1.91986),
        "shoulder_lift": (-1.74533, 1.74533),
        "elbow_flex": (-1.69, 1.69),
        "wrist_flex": (-1.65806, 1.65806),
        "wrist_roll": (-2.74385, 2.84121),
        "gripper": (-0.17453, 1.74533),
    }
    model = load_model()
    assert [model.joint(index).name for index in range(model.njnt)] == list(published)
    np.testing.assert_allclose(model.jnt_range, list(published.values()), atol=1e-4)


def test_positive_angles_bend_the_arm_down_and_turn_it_to_the_right():
    straight = forward_kinematics(np.zeros(JOINTS))
    for joint in (1, 2, 3):
        assert forward_kinematics(0.2 * np.eye(JOINTS)[joint])[2] < straight[2] - 0.02
    assert forward_kinematics([0.2, 0.0, 0.0, 0.0, 0.0])[1] < -0.05


def test_forward_kinematics_are_those_of_the_model():
    model = load_model()
    data = mujoco.MjData(model)
    low, high = model.jnt_range[:JOINTS].T
    postures = np.random.default_rng(1).uniform(low, high, (300, JOINTS))
    postures = np.concatenate([postures, np.diag(low), np.diag(high), [low, high]])
    for posture, tip in zip(postures, forward_kinematics(postures), strict=True):
        data.qpos[:JOINTS] = posture
        mujoco.mj_kinematics(model, data)
        np.testing.assert_allclose(tip, data.site("tip").xpos, atol=1e-9)


def test_contract_and_model_agree():
    env = make(2)
    contract, model = env.contract(), env.physics.model
    assert contract.commands == COMMANDS
    assert contract.rate_hz == pytest.approx(50.0)
    np.testing.assert_allclose(
        np.stack([contract.command_low, contract.command_high], axis=1), model.actuator_ctrlrange, atol=1e-12
    )
    assert [model.actuator(index).name for index in range(model.nu)] == list(JOINT_LIMITS_RAD)
    assert contract.measurement_names == env.observation_names
    assert [channel.unit for channel in contract.measurements] == ["rad"] * 5 + ["rad/s"] * 5 + ["m"] * 6
    assert Contract.from_dict(contract.to_dict()) == contract


# ---- the servos ----


def test_servos_hold_the_arm_with_a_little_sag():
    env = make(64)
    env.reset()
    start = env.qpos[:, :JOINTS]
    hold(env, 100)
    sag = np.degrees(np.abs(env.qpos[:, :JOINTS] - start))
    assert sag.max() < 3.5
    assert sag[:, 1].mean() > 0.3, "a servo without integral gain cannot hold a weight without an error"
    assert np.abs(env.qvel).max() < 0.05


def test_no_posture_weighs_more_than_half_of_what_a_servo_can_lift():
    model = load_model()
    data = mujoco.MjData(model)
    low, high = model.jnt_range.T
    for posture in np.random.default_rng(2).uniform(low, high, (2000, model.nq)):
        data.qpos[:] = posture
        mujoco.mj_fwdPosition(model, data)
        mujoco.mj_fwdVelocity(model, data)
        assert np.abs(data.qfrc_bias[:JOINTS]).max() < 0.5 * model.actuator_forcerange[0, 1]


def test_commands_are_the_speeds_at_which_goals_move_and_joints_follow():
    env = make(1)
    env.reset()
    start = np.array([[-1.5, -0.5, 0.2, 0.0, 0.0, 0.0]])
    env.set_state(start, np.zeros((1, 6)))
    np.testing.assert_array_equal(env.physics.act, start[:, :JOINTS])
    action = np.zeros((1, JOINTS))
    action[0, 0] = 0.5
    path = []
    for _ in range(100):
        env.step(action)
        path.append((env.qpos[0, 0], env.qvel[0, 0]))
    angle, velocity = np.array(path).T
    speed = 0.5 * MAX_SPEED_RAD_PER_S
    assert env.physics.act[0, 0] == pytest.approx(-1.5 + 2.0 * speed, abs=1e-9)
    assert angle[-1] == pytest.approx(-1.5 + 2.0 * speed, abs=0.1), "behind its goal by what friction takes"
    assert velocity[50:].mean() == pytest.approx(speed, rel=0.05)
    assert velocity.max() < 1.5 * speed
    assert np.abs(env.qpos[0, 1:JOINTS] - start[0, 1:JOINTS]).max() < 0.06


def test_goals_stop_at_the_limits_of_the_joints():
    env = make(2)
    env.reset()
    for _ in range(150):
        env.step(np.array([[1.0] * JOINTS, [-1.0] * JOINTS]))
    limits = np.array(list(JOINT_LIMITS_RAD.values()))
    np.testing.assert_allclose(env.physics.act, limits.T[::-1], atol=1e-9)


def test_a_new_episode_begins_with_servos_that_hold_its_posture():
    env = make(32)
    for _ in range(2):
        env.reset()
        np.testing.assert_array_equal(env.physics.act, env.qpos[:, :JOINTS])
        hold(env, 30)


def test_half_the_gain_sags_twice_as_much(tmp_path):
    sags = []
    for factor in (1.0, 0.5):
        settings = tmp_path / f"{factor}.yaml"
        settings.write_text(f"servo_gain: [{factor}, {factor}]\n")
        env = make(4, randomization=str(settings))
        env.reset()
        start = np.tile([0.0, 0.0, 0.0, 0.0, 0.0, 0.0], (4, 1))
        env.set_state(start, np.zeros((4, 6)))
        hold(env, 150)
        sags.append(env.qpos[:, 1])
    np.testing.assert_allclose(sags[1], 2 * sags[0], rtol=0.15)


@pytest.mark.parametrize("disturbance", ["none", DISTURBANCE])
@pytest.mark.parametrize("randomization", ["default", "hard", RANDOMIZATION])
def test_random_actions_break_nothing(randomization, disturbance):
    env = make(40, randomization=randomization, disturbance=disturbance)
    env.reset()
    assert len(env.dynamics_names) > 0
    random = np.random.default_rng(3)
    fastest = 0.0
    for _ in range(250):
        actions = random.uniform(-1, 1, (40, JOINTS))
        step = env.step(np.where(random.random((40, 1)) < 0.2, np.sign(actions), actions))
        assert np.isfinite(step.obs).all()
        assert (step.reward >= 0).all()
        assert (step.reward <= 1).all()
        fastest = max(fastest, np.abs(env.qvel).max())
    assert env.fault_count == 0
    assert fastest < 20.0, "a servo turns at 5 rad/s; what is faster was thrown"


# ---- the task ----


def targets_of(env):
    """Return the targets (N, 3), which the environments keep as places of a site."""
    return np.array(env.physics.parameter("site_pos")[:, env.physics.model.site("target").id])


def test_targets_are_above_the_table_within_reach_and_differ_from_episode_to_episode():
    env = make(24)
    obs = env.reset()
    targets = targets_of(env)
    np.testing.assert_allclose(obs[:, -6:-3] + obs[:, -3:], targets, atol=1e-6)
    np.testing.assert_allclose(obs[:, -6:-3], forward_kinematics(env.qpos[:, :JOINTS]), atol=1e-6)
    np.testing.assert_allclose(forward_kinematics(inverse_kinematics(targets)), targets, atol=1e-3)
    assert targets[:, 2].min() > 0.03 - 1e-6
    assert (env.physics.data("ncon") == 0).all()
    assert len(np.unique(targets, axis=0)) == 24
    for _ in range(199):
        env.step(np.zeros((24, JOINTS)))
        np.testing.assert_array_equal(targets_of(env), targets)
    assert env.step(np.zeros((24, JOINTS))).timeout.all()
    assert (targets_of(env) != targets).all()


@pytest.mark.parametrize("randomization", ["none", RANDOMIZATION])
def test_whoever_knows_the_way_is_at_the_target_for_the_last_second(randomization):
    """A controller with inverse kinematics, which makes up for the sag as well: the task can be solved on every arm."""
    env = make(16, seed=5, randomization=randomization)
    env.reset()
    targets = targets_of(env)
    postures = inverse_kinematics(targets)
    distances, rewards = [], []
    for _ in range(199):
        error = postures - env.qpos[:, :JOINTS]
        rewards.append(env.step(np.clip(2.5 * error / MAX_SPEED_RAD_PER_S, -1, 1)).reward)
        distances.append(np.linalg.norm(forward_kinematics(env.qpos[:, :JOINTS]) - targets, axis=1))
    there = (np.array(distances[-50:]) < SUCCESS_DISTANCE_M).all(axis=0)
    assert there.mean() >= 15 / 16, "one may be blocked by the table on its way"
    assert np.array(rewards[-50:])[:, there].min() > 0.8


def test_the_reward_is_one_at_rest_on_the_target_and_falls_with_distance_and_speeds():
    env = make(1)
    posture = np.array([0.3, -0.2, 0.4, 0.5, 0.0])
    target = forward_kinematics(posture)

    def reward(distance, velocity=0.0, command=0.0):
        measurement = np.concatenate([posture, np.full(JOINTS, velocity), target, [0.0, distance, 0.0]])
        action = env.contract().unscale_command(np.full(JOINTS, command))
        return float(env.task.measured_reward(measurement[None], action[None])[0])

    assert reward(0.0) == pytest.approx(1.0, abs=1e-12)
    rewards = [reward(distance) for distance in (0.0, 0.01, 0.02, 0.05, 0.1, 0.2, 0.4, 0.8)]
    assert (np.diff(rewards) < 0).all()
    assert rewards[2] > 0.75
    assert rewards[-1] > 0
    assert reward(0.0, velocity=3.0) < reward(0.0, velocity=1.0) < 0.99
    assert reward(0.0, command=2.0) < reward(0.0, command=1.0) < 0.99


def test_the_reward_of_a_log_is_that_of_the_simulation():
    env = make(32)
    env.reset()
    random = np.random.default_rng(6)
    for _ in range(30):
        action = random.uniform(-1, 1, (32, JOINTS))
        step = env.step(action)
        # float32 measurements: 1e-7 of 0.5 m, on a slope of at most 40 per metre
        np.testing.assert_allclose(env.task.measured_reward(step.final_obs, action), step.reward, atol=1e-5)


def test_a_saved_state_goes_on_bit_for_bit():
    settings = {"randomization": RANDOMIZATION, "disturbance": DISTURBANCE}
    env, other = (make(4, seed=seed, **settings) for seed in (0, 1))
    env.reset()
    actions = np.random.default_rng(7).uniform(-1, 1, (250, 4, JOINTS))
    for action in actions[:30]:
        env.step(action)
    other.load_state_dict(env.state_dict())
    for action in actions[30:]:
        step, again = env.step(action), other.step(action)
        np.testing.assert_array_equal(step.obs, again.obs)
        np.testing.assert_array_equal(step.reward, again.reward)
