"""Randomized dynamics: drawn anew for each episode from the nominal values, log-uniformly, mass and inertia together."""

import math

import mujoco
import numpy as np
import pytest

import sim
from sim.randomization import RANDOMIZATION_PRESETS, Randomization

ENVS = 800
CART, POLE = 1, 2  # bodies; 0 is the world


def make(num_envs=ENVS, **ranges):
    env = sim.make("cartpole-swingup", num_envs, seed=0, action_repeat=1000, randomization=Randomization(**ranges))
    env.reset()
    return env


def nominal():
    return sim.make("cartpole-swingup").task.load_model()


def factors(env, field):
    """Return the fields of all environments as factors on the nominal values, (N, ...)."""
    with np.errstate(invalid="ignore"):
        return env.state_dict()[f"model.{field}"] / getattr(nominal(), field)


def uniform_distance(values, low, high):
    """Kolmogorov-Smirnov distance of values from the uniform distribution, times the root of their number."""
    ordered = np.sort((np.asarray(values) - low) / (high - low))
    steps = np.arange(len(ordered) + 1) / len(ordered)
    return math.sqrt(len(ordered)) * max(np.abs(ordered - steps[1:]).max(), np.abs(ordered - steps[:-1]).max())


@pytest.mark.parametrize(
    ("name", "field", "column"),
    [
        ("mass", "body_mass", CART),
        ("mass", "body_mass", POLE),
        ("damping", "dof_damping", 0),
        ("damping", "dof_damping", 1),
        ("actuator_gain", "actuator_gainprm", 0),
    ],
)
def test_factors_are_log_uniform_in_their_range(name, field, column):
    drawn = factors(make(**{name: (0.2, 5.0)}), field)
    drawn = drawn[:, 0, 0] if field == "actuator_gainprm" else drawn[:, column]
    assert 0.2 <= drawn.min() < 0.22
    assert 4.6 < drawn.max() <= 5.0
    assert uniform_distance(np.log(drawn), math.log(0.2), math.log(5.0)) < 1.63  # exceeded in 1% of all seeds
    assert uniform_distance(drawn, 0.2, 5.0) > 5, "uniform factors would be noticed"


def test_parts_vary_independently():
    env = make(mass=(0.5, 2.0), damping=(0.5, 2.0))
    columns = [factors(env, "body_mass")[:, CART], factors(env, "body_mass")[:, POLE], *factors(env, "dof_damping").T]
    correlation = np.corrcoef(np.log(columns))
    assert np.abs(correlation - np.eye(4)).max() < 4 / math.sqrt(ENVS)


def test_inertia_scales_with_mass():
    env = make(mass=(0.5, 2.0))
    mass, inertia = factors(env, "body_mass"), factors(env, "body_inertia")
    for body in (CART, POLE):
        np.testing.assert_allclose(inertia[:, body], np.repeat(mass[:, [body]], 3, axis=1), rtol=1e-12)


def test_constants_that_follow_from_the_masses_are_recomputed():
    env = make(num_envs=3, mass=(0.5, 2.0))
    for index in range(3):
        ours, fresh = env._batch.get_model(index), nominal()
        for name in ("body_mass", "body_inertia"):
            getattr(fresh, name)[:] = env.state_dict()[f"model.{name}"][index]
        mujoco.mj_setConst(fresh, mujoco.MjData(fresh))
        for name in ("body_subtreemass", "dof_invweight0", "body_invweight0", "dof_M0"):
            np.testing.assert_allclose(getattr(ours, name), getattr(fresh, name), rtol=1e-9)
        assert ours.body_subtreemass[0] != pytest.approx(nominal().body_subtreemass[0])


def test_nothing_compounds_over_many_episodes():
    env = make(num_envs=200, mass=(0.5, 2.0), actuator_gain=(0.5, 2.0))
    for _ in range(60):
        env.reset()
    for field in ("body_mass", "actuator_gainprm"):
        drawn = factors(env, field)
        drawn = drawn[:, 0, 0] if field == "actuator_gainprm" else drawn[:, POLE]
        assert drawn.min() >= 0.5
        assert drawn.max() <= 2.0
        assert uniform_distance(np.log(drawn), math.log(0.5), math.log(2.0)) < 1.63


def test_each_episode_draws_anew_and_only_for_its_environment():
    env = make(num_envs=4, mass=(0.5, 2.0))
    first = env.state_dict()["model.body_mass"]
    env.load_state_dict(env.state_dict() | {"steps": np.array([0, 5, 0, 0])})  # only the second one is past its end
    env._steps_per_episode = 2
    step = env.step(np.zeros((4, 1)))
    assert step.timeout.tolist() == [False, True, False, False]
    second = env.state_dict()["model.body_mass"]
    np.testing.assert_array_equal(first[[0, 2, 3]], second[[0, 2, 3]])
    assert not np.isclose(first[1, CART], second[1, CART])


def test_a_heavier_cart_moves_less():
    envs = [sim.make("cartpole-swingup", 1, randomization=Randomization(mass=(factor, factor))) for factor in (0.5, 1.0, 2.0)]
    moved = []
    for env in envs:
        env.reset()
        env.set_state(np.array([[0.0, math.pi]]), np.zeros((1, 2)))
        env.step(np.ones((1, 1)))
        moved.append(env.qvel[0, 0])
    # hanging straight down at rest, force / mass is all that moves the cart in the first step
    assert moved[0] / moved[1] == pytest.approx(2.0, rel=0.01)
    assert moved[1] / moved[2] == pytest.approx(2.0, rel=0.01)


def test_a_stronger_motor_pushes_more():
    pushed = []
    for gain in (1.0, 1.5):
        env = sim.make("cartpole-swingup", 1, randomization=Randomization(actuator_gain=(gain, gain)))
        env.reset()
        env.set_state(np.array([[0.0, math.pi]]), np.zeros((1, 2)))
        env.step(np.full((1, 1), 0.5))
        pushed.append(env.qvel[0, 0])
    assert pushed[1] / pushed[0] == pytest.approx(1.5, rel=0.01)


def test_without_randomization_every_environment_is_nominal():
    env = make(num_envs=3)
    assert not [name for name in env.state_dict() if name.startswith("model.")]
    assert env._batch.get_model(2).body_mass.tolist() == nominal().body_mass.tolist()
    assert RANDOMIZATION_PRESETS["none"] == Randomization()


def test_the_default_preset_varies_everything():
    default = RANDOMIZATION_PRESETS["default"]
    for name in ("mass", "damping", "actuator_gain"):
        low, high = getattr(default, name)
        assert low < 1 < high


@pytest.mark.parametrize("name", ["mass", "damping", "actuator_gain"])
@pytest.mark.parametrize("limits", [(0.0, 1.0), (-1.0, 1.0), (2.0, 1.0), (1.0, math.inf), (math.nan, 1.0), (1.0, math.nan)])
def test_ranges_that_are_none_are_refused(name, limits):
    with pytest.raises(ValueError, match=f"{name} must be a range of positive, finite factors low <= high"):
        Randomization(**{name: limits})
