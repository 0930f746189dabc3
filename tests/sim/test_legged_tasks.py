"""Cheetah, hopper, walker, quadruped and humanoid: initial states, randomized bodies, names and speed.

That observations, rewards and physics are dm_control's is tested for all tasks together elsewhere.
"""

import mujoco
import numpy as np
import pytest
from dm_control import suite
from dm_control.suite import quadruped as suite_quadruped

import sim
from sim.physics import Physics
from sim.randomization import Randomization
from sim.tasks import cheetah, hopper, humanoid, quadruped, walker
from sim.tasks.initial_states import NoFreeStateError
from sim.variation import Variation

TASKS = (cheetah.run, hopper.hop, walker.run, quadruped.walk, humanoid.stand)


def domain(factory):
    return factory.__module__.rpartition(".")[2]


every_domain = pytest.mark.parametrize("factory", TASKS, ids=domain)


def start(task, num_envs, seed=0, model=None):
    """Make the physics of a task and start an episode in each environment."""
    physics = Physics(model or task.load_spec().compile(), num_envs, 2, task.stage)
    task.bind(physics)
    everyone = np.arange(num_envs)
    physics.reset(everyone)
    task.initialize(everyone, np.random.default_rng(seed))
    physics.forward(everyone)
    return physics


def sensed_speeds(physics):
    """Return what MuJoCo's own sensor gives for the present states (N,), each with the model of its environment."""
    data = mujoco.MjData(physics.model)
    speeds = []
    for env in range(physics.num_envs):
        physics.batch.get_data(env, data)
        mujoco.mj_forward(physics.batch.get_model(env), data)
        speeds.append(data.sensor("torso_subtreelinvel").data[0])
    return np.array(speeds)


@every_domain
def test_initial_states_differ_and_respect_the_joint_limits(factory):
    task = factory()
    physics = start(task, num_envs=64)
    model = physics.model
    limited = np.flatnonzero(model.jnt_limited)
    low, high = model.jnt_range[limited].T
    angles = physics.qpos[:, model.jnt_qposadr[limited]]
    slack = 0.3 if domain(factory) == "cheetah" else 0.0  # it has fallen since, onto soft limits
    assert np.all(angles >= low - slack)
    assert np.all(angles <= high + slack)
    assert len(np.unique(physics.qpos, axis=0)) == 64
    assert np.all(physics.time == 0)


@every_domain
def test_columns_named_after_joints_are_those_of_the_joints(factory):
    task = factory()
    physics = start(task, num_envs=3)
    model = physics.model
    physics.qvel[:] = np.random.default_rng(2).normal(size=physics.qvel.shape)
    physics.forward(np.arange(3))
    obs = np.empty((3, len(task.observation_names(model))), dtype=np.float32)
    task.observe(obs)
    columns = dict(zip(task.observation_names(model), obs.T, strict=True))
    found = 0
    for joint in range(model.njnt):
        name = model.joint(joint).name
        position, velocity = physics.qpos[:, model.jnt_qposadr[joint]], physics.qvel[:, model.jnt_dofadr[joint]]
        expected = {
            f"position/{name}": position,
            f"joint_angles/{name}": position,
            f"egocentric_state/{name}_position": position,
            f"velocity/{name}": velocity,
            f"egocentric_state/{name}_velocity": velocity,
        }
        for column in columns.keys() & expected.keys():
            found += 1
            np.testing.assert_allclose(columns[column], expected[column], rtol=1e-6)
    assert found >= model.njnt


def test_cheetah_starts_settled_on_the_ground():
    task = cheetah.run()
    physics = start(task, num_envs=64)
    # a free fall from the default height would end at 3 m/s
    assert np.median(np.abs(physics.qvel)) < 0.05
    assert np.abs(task.speed()).max() < 0.5
    contacts = physics.data("ncon").reshape(-1)
    physics.forward(np.arange(64))
    assert np.all(contacts > 0)


def test_cheetah_speed_is_mujocos_for_randomized_bodies_in_each_episode_and_when_resumed():
    randomization = Randomization(mass=(0.3, 3.0), center_of_mass=(-0.1, 0.1))
    env, resumed = (sim.make("cheetah-run", num_envs=8, seed=seed, num_threads=2, randomization=randomization) for seed in (0, 1))
    random = np.random.default_rng(3)
    resumed.reset()
    for _ in range(2):
        env.reset()
        for _ in range(20):
            env.step(random.uniform(-1, 1, (8, env.act_dim)))
        expected = sensed_speeds(env.physics)
        assert np.ptp(expected) > 0.1
        np.testing.assert_allclose(env.task.speed(), expected, rtol=0, atol=1e-10)
    resumed.load_state_dict(env.state_dict())
    np.testing.assert_allclose(resumed.task.speed(), expected, rtol=0, atol=1e-10)


@pytest.mark.parametrize("factory", [hopper.stand, walker.walk], ids=domain)
def test_planar_robots_start_in_any_orientation(factory):
    physics = start(factory(), num_envs=256)
    angles = physics.qpos[:, physics.model.joint("rooty").qposadr[0]]
    assert np.all(np.abs(angles) <= np.pi)
    # 256 uniform angles: an eighth of the circle stays empty once in 10^14
    assert np.all(np.histogram(angles, 8, (-np.pi, np.pi))[0] > 0)


def test_quadruped_starts_at_the_height_that_dm_control_finds():
    task = quadruped.run()
    physics = start(task, num_envs=24)
    reference = suite.load("quadruped", "run", task_kwargs={"random": 0}).physics
    for qpos in physics.qpos:
        suite_quadruped._find_non_contacting_height(reference, qpos[3:7])
        np.testing.assert_allclose(qpos, reference.data.qpos, rtol=0, atol=1e-9)
    assert np.ptp(physics.qpos[:, 2]) > 0.1


def test_quadruped_orientations_are_uniform():
    physics = start(quadruped.walk(), num_envs=512)
    quaternions = physics.qpos[:, 3:7]
    np.testing.assert_allclose(np.linalg.norm(quaternions, axis=1), 1.0)
    # a component has mean 0 and standard deviation 1/2; its square has mean 1/4 and standard deviation 1/4, products of two
    # components have mean 0 and less; five standard errors of the means of 512
    assert np.abs(quaternions.mean(axis=0)).max() < 5 * 0.5 / np.sqrt(512)
    products = quaternions.T @ quaternions / 512 - np.eye(4) / 4
    assert np.abs(products).max() < 5 * 0.25 / np.sqrt(512)


def test_quadruped_that_touches_itself_is_reported():
    task = quadruped.walk()
    spec = task.load_spec()
    for leg in ("front_left", "front_right", "back_left", "back_right"):
        spec.geom(f"toe_{leg}").size[0] = 0.7
    with pytest.raises(NoFreeStateError, match="the robot touches itself"):
        start(task, num_envs=2, model=spec.compile())


def test_humanoid_starts_without_contacts():
    physics = start(humanoid.run(), num_envs=128)
    contacts = physics.data("ncon").reshape(-1)
    physics.forward(np.arange(128))
    assert np.all(contacts == 0)
    assert np.all(physics.qpos[:, 2] == physics.model.qpos0[2])


def test_rewards_of_a_standing_and_of_a_lying_humanoid():
    task = humanoid.stand()
    physics = start(task, num_envs=2)
    everyone = np.arange(2)
    physics.reset(everyone)
    physics.qpos[1, 3:7] = np.cos(np.pi / 4), np.sin(np.pi / 4), 0, 0
    physics.qpos[1, 2] = 0.3
    physics.forward(everyone)
    still = task.reward(np.zeros((2, physics.model.nu)))
    assert still[0] == pytest.approx(1.0)
    assert still[1] < 1e-3
    straining = task.reward(np.ones((2, physics.model.nu)))
    assert straining[0] == pytest.approx(0.8)  # full control costs a fifth


def test_walkers_with_longer_legs_begin_that_much_higher():
    heights = {}
    for length in (0.45, 0.9):  # nominal, and 0.45 m longer
        settings = Randomization(link_length={"*_thigh": Variation("constant", start=length)})
        env = sim.make("walker-walk", 50, randomization=settings)
        env.reset()
        heights[length] = env.qpos[:, 0]
    np.testing.assert_allclose(heights[0.45], 0.0, atol=1e-12)
    np.testing.assert_allclose(heights[0.9], 0.45, atol=1e-9)
