"""Each native task is dm_control's: physics, observations, rewards and ends from the same states, and the first states.

Both step the same MuJoCo in the same order, so even chaotic tasks agree over whole episodes: positions and velocities to the
last bit. The tolerances are for observations and rewards that are computed in another way (the cosine of an angle instead of an
element of a rotation matrix), and for float32.
"""

import functools

import mujoco
import numpy as np
import pytest
from dm_control import suite
from scipy import stats

import sim
from sim.tasks import SUITE_TASKS, make_task

STATES = 1000
EPISODE = 1000
# first states, ours and dm_control's, which starts one episode at a time; the slow ones are let settle, or lifted off the ground
DEFAULT_STARTS = (6000, 2000)
STARTS = {"cheetah": (500, 150), "humanoid": (2000, 600), "quadruped": (500, 60), "walker": (4000, 800)}
# a difference that would come up by chance in one of 100,000 samples fails; there are some 2,000 comparisons, with fixed seeds
SMALLEST_P_VALUE = 1e-5

# standard deviation of the random velocities, m/s and rad/s, where the default reaches no reward or is too fast to be simulated
VELOCITIES = {"finger": 12.0, "swimmer": 0.2}
DEFAULT_VELOCITIES = 3.0

NO_CONTACTS = int(mujoco.mjtDisableBit.mjDSBL_CONTACT | mujoco.mjtDisableBit.mjDSBL_CONSTRAINT)


def domain(name):
    return name.split("-")[0]


@functools.cache
def load_reference(name):
    """Return dm_control's environment, after a reset: some tasks set sizes and damping of their model only then."""
    environment = suite.load(*name.split("-"), task_kwargs={"random": 0})
    environment.reset()
    return environment


def flatten(observation):
    return np.concatenate([np.ravel(value) for value in observation.values()])


def random_states(env, random):
    """Scatter positions around first states: limbs into each other, into the ground and beyond their limits."""
    env.reset()
    model, qpos = env.physics.model, env.qpos
    for joint in range(model.njnt):
        start, is_hinge = model.jnt_qposadr[joint], model.jnt_type[joint] == mujoco.mjtJoint.mjJNT_HINGE
        if model.jnt_type[joint] == mujoco.mjtJoint.mjJNT_FREE:
            qpos[:, start + 2] -= random.uniform(0.0, 0.8, env.num_envs)
            quaternions = qpos[:, start + 3 : start + 7]
            quaternions += random.normal(0.0, 0.3, quaternions.shape)
            quaternions /= np.linalg.norm(quaternions, axis=1, keepdims=True)
        elif is_hinge and not model.jnt_limited[joint]:
            qpos[:, start] += random.uniform(-np.pi, np.pi, env.num_envs)
        else:
            qpos[:, start] += random.normal(0.0, 0.5 if is_hinge else 0.1, env.num_envs)
    return qpos, random.normal(0.0, VELOCITIES.get(domain(env.task.name), DEFAULT_VELOCITIES), env.qvel.shape)


def random_actions(env, random, count):
    """Return (count, act_dim) actions of few binary digits, and the controls that they are mapped to, without rounding."""
    actions = random.integers(-64, 65, (count, env.act_dim)) / 64
    low, high = env.physics.model.actuator_ctrlrange.T
    return actions, low + (actions + 1) / 2 * (high - low)


def places_of_targets(env):
    """Return what differs between the models of our environments: field -> (N, ...)."""
    fields = {key.removeprefix("model."): value for key, value in env.physics.state_dict().items() if key.startswith("model.")}
    return {field: values for field, values in fields.items() if not field.startswith("opt.")}


def put_state(reference, targets, index, qpos, qvel):
    """Give dm_control's environment the state and the targets of our environment ``index``."""
    physics = reference.physics
    for field, values in targets.items():
        getattr(physics.model, field)[:] = values[index]
    mujoco.mj_resetData(physics.model.ptr, physics.data.ptr)
    physics.data.qpos[:], physics.data.qvel[:] = qpos[index], qvel[index]
    physics.after_reset()


def observe_precisely(env):
    """Return the observations before they are rounded to float32."""
    observations = np.full((env.num_envs, env.obs_dim), np.nan)
    env.task.observe(observations)
    return observations


def require_same_distribution(ours, theirs, what):
    p_value = stats.ks_2samp(ours, theirs, method="asymp").pvalue
    assert p_value > SMALLEST_P_VALUE, f"{what}: ours {ours[:5]}, dm_control's {theirs[:5]}"


@pytest.mark.parametrize("name", SUITE_TASKS)
def test_a_thousand_states_and_actions_step_as_in_dm_control(name):
    random = np.random.default_rng(0)
    reference, env = load_reference(name), sim.make(name, num_envs=STATES, num_threads=2)
    contacts = env.physics.data("ncon")
    qpos, qvel = random_states(env, random)
    actions, controls = random_actions(env, random, STATES)

    ours = {}
    obs = env.set_state(qpos, qvel)
    ours["first observation"] = observe_precisely(env)
    targets, share_in_contact = places_of_targets(env), np.mean(contacts > 0)
    result = env.step(actions)
    assert not (result.timeout | result.fault).any()
    going_on = ~result.terminal
    ours |= {"qpos": env.qpos, "qvel": env.qvel, "observation": observe_precisely(env), "reward": env.task.reward(controls)}

    theirs = {what: [] for what in (*ours, "terminal")}
    task, physics = reference.task, reference.physics
    for index in range(STATES):
        put_state(reference, targets, index, qpos, qvel)
        theirs["first observation"].append(flatten(task.get_observation(physics)))
        task.before_step(controls[index], physics)
        physics.step(reference._n_sub_steps)
        task.after_step(physics)
        theirs["qpos"].append(physics.data.qpos.copy())
        theirs["qvel"].append(physics.data.qvel.copy())
        theirs["observation"].append(flatten(task.get_observation(physics)))
        theirs["reward"].append(task.get_reward(physics))
        theirs["terminal"].append(task.get_termination(physics) is not None)
    theirs = {what: np.array(values) for what, values in theirs.items()}

    np.testing.assert_array_equal(result.terminal, theirs["terminal"])
    for what, values in ours.items():
        rows = slice(None) if what == "first observation" else going_on  # where an episode ended, the next one has begun
        np.testing.assert_allclose(values[rows], theirs[what][rows], rtol=1e-9, atol=1e-9, err_msg=what)
    np.testing.assert_allclose(obs, theirs["first observation"], rtol=1e-6, atol=1e-6)
    np.testing.assert_allclose(result.final_obs, theirs["observation"], rtol=1e-6, atol=1e-6)
    np.testing.assert_allclose(result.reward, theirs["reward"], rtol=1e-6, atol=1e-6)
    # the states are worth comparing
    assert np.ptp(theirs["reward"]) > 0.3
    if not env.physics.model.opt.disableflags & NO_CONTACTS:
        assert share_in_contact > 0.02


@pytest.mark.parametrize("name", SUITE_TASKS)
def test_episodes_and_control_steps_are_as_long_as_dm_controls(name):
    task, reference = make_task(name), load_reference(name)
    assert task.control_timestep_s == pytest.approx(reference.control_timestep(), rel=1e-12)
    assert task.time_limit_s / task.control_timestep_s == pytest.approx(reference._step_limit, rel=1e-12)


# the tasks of a domain differ in what they read and reward, which the states above have shown; one moves as the other
@pytest.mark.parametrize("name", {domain(name): name for name in SUITE_TASKS}.values())
def test_a_whole_episode_is_dm_controls_to_the_last_step(name):
    reference, env = load_reference(name), sim.make(name, num_envs=1, seed=1, num_threads=1)
    first = env.reset()
    actions, controls = random_actions(env, np.random.default_rng(1), EPISODE)
    reference.reset()
    put_state(reference, places_of_targets(env), 0, env.qpos, env.qvel)
    np.testing.assert_allclose(first[0], flatten(reference.task.get_observation(reference.physics)), rtol=1e-6, atol=1e-6)
    ours, theirs = [], []
    for action, control in zip(actions, controls, strict=True):
        result, step = env.step(action[None]), reference.step(control)
        ours.append([*result.final_obs[0], result.reward[0]])
        theirs.append([*flatten(step.observation), step.reward])
        assert bool(result.timeout[0] | result.terminal[0]) == step.last(), f"step {len(ours)}"
        if step.last():
            break
    np.testing.assert_allclose(ours, theirs, rtol=1e-6, atol=1e-6)
    assert bool(result.terminal[0]) == (step.discount == 0.0)
    assert len(ours) == EPISODE or result.terminal[0]


@pytest.mark.parametrize("name", SUITE_TASKS)
def test_episodes_start_as_dm_controls_do(name):
    """Each number of state, targets and observation has dm_control's distribution, and so have random sums of them."""
    our_count, their_count = STARTS.get(domain(name), DEFAULT_STARTS)
    env, reference = sim.make(name, num_envs=our_count, seed=2, num_threads=2), load_reference(name)
    env.reset()
    targets = places_of_targets(env)
    ours = np.concatenate(
        [env.qpos, env.qvel, observe_precisely(env), *(values.reshape(our_count, -1) for values in targets.values())], axis=1
    )
    theirs = []
    for _ in range(their_count):
        observation, physics = reference.reset().observation, reference.physics
        places = [np.ravel(getattr(physics.model, field)) for field in targets]
        theirs.append(np.concatenate([physics.data.qpos, physics.data.qvel, flatten(observation), *places]))
    ours, theirs = ours.round(9), np.array(theirs).round(9)  # what is constant should not differ by its rounding
    for column in range(ours.shape[1]):
        require_same_distribution(ours[:, column], theirs[:, column], f"column {column} of {name}'s first states")
    # sums, of squares too, are distributed otherwise where numbers depend on each other in another way
    mean, spread = ours.mean(axis=0), ours.std(axis=0)
    varying = spread > 1e-6
    ours, theirs = ((values[:, varying] - mean[varying]) / spread[varying] for values in (ours, theirs))
    for weights in np.random.default_rng(3).standard_normal((20, varying.sum())):
        require_same_distribution(ours @ weights, theirs @ weights, f"sum {weights}")
        require_same_distribution(ours**2 @ weights, theirs**2 @ weights, f"sum of squares {weights}")
