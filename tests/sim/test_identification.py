"""A robot's parameters are found again in its log; what the log does not tell stays open; what cannot be used is refused."""

import dataclasses

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import sim
from dpg_robot.config import load_config
from dpg_robot.errors import ConfigError, ContractError
from sim.benchmarks.identification_robots import PRIOR, TASK, record
from sim.identification import IdentificationError, IdentificationSettings, identify
from sim.identification_figure import draw_identification
from sim.identification_likelihood import LinearModel, Noise, WindowLikelihood, fit_noise
from sim.identification_prior import Prior
from sim.identification_simulator import WindowSimulator
from sim.randomization import Randomization
from sim.robot_comparison import cut_windows, replay
from sim.variation import Variation

MODEL = sim.make(TASK).physics.model
FEW = IdentificationSettings(window_s=0.2, windows=24, particles=32, final_sweeps=2)
# what is weighed needs no range, and gives the others theirs
NARROW = Randomization(
    actuator_gain=(0.5, 2.0), control_delay_s=(0.0, 0.04), damping=Variation(low=0.3, high=10, names=("slider",))
)


@pytest.fixture(scope="module")
def weak():
    """Log of a robot with a weak motor that acts late."""
    return record({"actuator_gain/slide": 0.7, "control_delay_s": 0.02}, seconds=40, seed=0)


@pytest.fixture(scope="module")
def posterior(weak):
    return identify(weak.transitions, weak.contract, TASK, NARROW, FEW, seed=1)


def run(recording, prior=NARROW, **changes):
    transitions = dataclasses.replace(recording.transitions, **changes)
    return identify(transitions, recording.contract, TASK, prior, FEW)


# --- what is found ---------------------------------------------------------------------------------------------------


def test_gain_and_delay_are_found_and_a_damping_that_does_nothing_is_not(posterior):
    found = {each.name: each for each in posterior.parameters()}
    gain, delay, damping = found["actuator_gain/slide"], found["control_delay_s"], found["damping/slider"]
    assert gain.quantiles[2] == pytest.approx(0.7, abs=0.04)
    assert 0.005 < gain.fitted[1] - gain.fitted[0] < 0.15
    assert delay.fitted[0] < 0.02 < delay.fitted[1]
    assert delay.fitted[1] - delay.fitted[0] < 0.015
    assert gain.known
    assert not damping.known
    assert damping.fitted == (0.3, 10)
    assert any("damping/slider" in line and "not identifiable from this log" in line for line in posterior.report())


def test_noise_of_the_sensors_is_told_from_noise_of_the_motor(posterior):
    assert posterior.noise.sensor[:2] == pytest.approx([0.005, 0.005], rel=0.4)


def test_the_posterior_predicts_better_than_the_nominal_model(posterior):
    errors = {name: each.end_share for name, each in posterior.predictions.items()}
    assert errors["posterior mean"] < 0.5 * errors["nominal"]
    assert errors["draws from the fitted ranges"] < 0.5 * errors["draws from the prior's ranges"]


def test_the_same_seed_gives_the_same_draws_with_any_number_of_threads(weak):
    least = IdentificationSettings(window_s=0.1, windows=16, particles=16, final_sweeps=2)
    prior = Randomization(actuator_gain=(0.5, 2.0))
    first, again, other = (
        identify(weak.transitions, weak.contract, TASK, prior, dataclasses.replace(least, num_threads=threads), seed)
        for seed, threads in ((1, 2), (1, 1), (2, 2))
    )
    np.testing.assert_array_equal(again.points, first.points)
    assert (other.points != first.points).any()


def test_the_fitted_ranges_are_a_randomization_file(posterior, tmp_path):
    posterior.write(tmp_path / "fitted.yaml", "a command")
    text = (tmp_path / "fitted.yaml").read_text()
    assert text.startswith("# Ranges for cartpole-swingup, fitted to 2000 transitions of virtual")
    assert "# Made by: a command" in text
    assert load_config(Randomization, tmp_path / "fitted.yaml") == posterior.to_randomization()
    with sim.make(TASK, num_envs=50, randomization=tmp_path / "fitted.yaml") as env:
        env.reset()
        column = env.dynamics_names.index("actuator_gain/slide")
        assert (np.abs(env.dynamics[:, column] - 0.7) < 0.15).all()
        samples = np.resize(posterior.samples, (50, 3))
        env.set_dynamics(samples[:, [posterior.names.index(name) for name in env.dynamics_names]])
        np.testing.assert_allclose(env.dynamics[:, column], samples[:, posterior.names.index("actuator_gain/slide")])


def test_the_picture_is_drawn(posterior, tmp_path):
    draw_identification(posterior, tmp_path / "found.png")
    assert (tmp_path / "found.png").read_bytes().startswith(b"\x89PNG")


# --- pieces in simulation --------------------------------------------------------------------------------------------


def test_a_delay_of_the_model_is_a_delay_of_the_logged_actions(weak):
    with sim.make(TASK, num_envs=16, randomization=NARROW) as env:
        prior = Prior(env.physics.model, NARROW, TASK, require_all=True)
        simulator = WindowSimulator(env, weak.contract, prior)
        windows = cut_windows(weak.transitions, 6, simulator.previous, 20)
        values = np.tile(prior.nominal, (len(windows), 1))
        found = []
        for late in (0, 1, 2, 3):
            values[:, prior.names.index("control_delay_s")] = 0.01 * late
            ours = simulator.simulate(windows, np.arange(len(windows)), values)
            others = [replay(weak.contract, windows, list(simulator.channels), other, 1) for other in range(5)]
            found.append(np.argmin([np.abs(ours - other).mean() for other in others]))
    assert found == [0, 1, 2, 3]


def test_small_changes_develop_as_the_linear_model_says(weak):
    with sim.make(TASK, num_envs=16, randomization=NARROW) as env:
        prior = Prior(env.physics.model, NARROW, TASK, require_all=True)
        simulator = WindowSimulator(env, weak.contract, prior)
        windows = cut_windows(weak.transitions, 5, simulator.previous, 4)
        which, values = np.arange(len(windows)), np.tile(prior.nominal, (len(windows), 1))
        change = np.array([1e-4, -2e-4, 3e-4, 1e-4])
        moved = dataclasses.replace(windows, measurement=windows.measurement + change)
        difference = simulator.simulate(moved, which, values) - simulator.simulate(windows, which, values)
        transition = simulator.linearize(windows, prior.nominal)
    for step in range(5):
        predicted = np.einsum("wij,wj->wi", transition[:, step], difference[:, step])
        np.testing.assert_allclose(difference[:, step + 1], predicted, atol=2e-6)


# --- likelihood ------------------------------------------------------------------------------------------------------


def oscillators(sensor, process, windows=200, steps=12, seed=0):
    """Return a model, and differences of robots that are the model, with noise."""
    random = np.random.default_rng(seed)
    transition = np.array([[1.0, 0.1], [-0.3, 0.95]])
    forcing = np.array([[0.05], [1.0]])
    model = LinearModel(
        np.broadcast_to(transition, (windows, steps, 2, 2)), np.array([0, 1]), np.array([10.0, 10.0]), np.array([1]), forcing
    )
    first = random.normal(0, sensor, (windows, 2))
    state, differences = -first, [np.zeros((windows, 2))]  # a simulation begins at the noisy measurement
    for _ in range(steps):
        state = state @ transition.T + random.normal(0, process, (windows, 1)) @ forcing.T
        differences.append(state + random.normal(0, sensor, (windows, 2)))
    return model, np.stack(differences, axis=1)


def test_innovations_are_standard_normal_where_noise_is_all_that_differs():
    model, differences = oscillators(sensor=0.02, process=0.05)
    noise = Noise(np.full(2, 0.02), np.full(1, 0.05))
    innovations = WindowLikelihood(model, noise).innovations(differences[None])[0][:, 1:]
    assert innovations.std(axis=(0, 1)) == pytest.approx([1.0, 1.0], abs=0.04)
    assert np.abs(np.corrcoef(innovations.reshape(200, -1).T) - np.eye(24)).max() < 0.35


def test_noise_is_fitted():
    model, differences = oscillators(sensor=0.02, process=0.05)
    noise = fit_noise(model, differences, np.array([0.5, 0.5]), None)
    assert noise.sensor == pytest.approx([0.02, 0.02], rel=0.25)
    assert noise.process == pytest.approx([0.05], rel=0.25)


def test_a_simulation_that_diverged_is_impossible():
    model, differences = oscillators(0.02, 0.05, windows=3)
    differences[1, -1, 0] = np.nan
    values = WindowLikelihood(model, Noise(np.full(2, 0.02), np.full(1, 0.05)))(differences[None])
    assert np.isneginf(values).tolist() == [[False, True, False]]


# --- prior -----------------------------------------------------------------------------------------------------------


@given(st.floats(0, 1), st.floats(0, 1), st.sampled_from(["uniform", "log_uniform", "truncated_normal"]))
@settings(max_examples=60, deadline=None)
def test_a_fitted_range_lies_within_the_prior_and_is_never_empty(first, second, kind):
    normal = {"mean": 1.0, "std": 0.3} if kind == "truncated_normal" else {}
    prior = Prior(MODEL, Randomization(mass=Variation(kind, 0.5, 2.0, **normal)), TASK, require_all=True)
    fitted = prior.columns[0].between(min(first, second), max(first, second))
    low, high = fitted.bounds
    assert 0.5 - 1e-12 <= low < high <= 2.0 + 1e-12


def test_each_object_gets_a_range_of_its_own_unless_they_share_one():
    prior_of = Randomization(mass=(0.5, 2.0), damping=Variation(low=0.5, high=2.0, shared=True))
    with sim.make(TASK) as env:
        prior = Prior(env.physics.model, prior_of, TASK, require_all=True)
    fitted = prior.fitted(np.array([0.5, 0.0, 0.25]), np.array([0.75, 0.5, 0.5]), np.ones(3, dtype=bool))
    assert [each.names for each in fitted.mass] == [("cart",), ("pole_1",)]
    assert fitted.mass[0].bounds == pytest.approx((1.0, 2**0.5))
    assert fitted.mass[1].bounds == pytest.approx((0.5, 1.0))
    assert fitted.damping.shared
    with sim.make(TASK, num_envs=2, randomization=fitted) as env:
        assert env.dynamics_names == ("mass/cart", "mass/pole_1", "damping")


# --- what is refused -------------------------------------------------------------------------------------------------


def test_a_log_of_another_task_is_refused(weak):
    with pytest.raises(ContractError, match=r"the log is of task cartpole-swingup, not of cartpole-balance"):
        identify(weak.transitions, weak.contract, "cartpole-balance", NARROW, FEW)


def test_a_log_of_another_robot_is_refused(weak):
    stronger = tuple(dataclasses.replace(each, high=20.0) for each in weak.contract.commands)
    with pytest.raises(ContractError, match="limits of commands"):
        identify(weak.transitions, dataclasses.replace(weak.contract, commands=stronger), TASK, NARROW, FEW)
    with pytest.raises(ContractError, match="control steps per second"):
        identify(weak.transitions, dataclasses.replace(weak.contract, rate_hz=100.0), TASK, NARROW, FEW)


def test_too_few_transitions_are_refused(weak):
    fields = [field.name for field in dataclasses.fields(weak.transitions) if field.name != "run_ids"]
    short = {name: getattr(weak.transitions, name)[:204] for name in fields}
    with pytest.raises(IdentificationError, match=r"20 pieces of 10 valid steps.*21 are needed at least"):
        run(weak, **short)
    with pytest.raises(IdentificationError, match="no 12 valid steps of the log follow each other"):
        run(weak, valid=np.arange(len(weak.transitions)) % 5 > 0)


def test_pieces_do_not_cross_gaps(weak):
    valid = np.ones(len(weak.transitions), dtype=bool)
    valid[100::100] = False
    broken = weak.transitions.measurement.copy()
    broken[100::100] = 1e6  # would spoil every piece that it is in
    after = weak.transitions.next_measurement.copy()
    after[99::100] = 1e6
    valid[99::100] = False
    posterior = run(weak, valid=valid, measurement=broken, next_measurement=after)
    assert posterior.predictions["posterior mean"].end.max() < 1.0


def test_values_that_are_not_finite_are_refused(weak):
    measurement = weak.transitions.measurement.copy()
    measurement[7, 1] = np.nan
    with pytest.raises(IdentificationError, match="measurement 'pole_angle' is not finite in 1 transitions"):
        run(weak, measurement=measurement)


def test_constant_actions_are_refused(weak):
    with pytest.raises(IdentificationError, match=r"actions in the log are constant.*let the robot move"):
        run(weak, action=np.full_like(weak.transitions.action, 0.3))


@pytest.mark.parametrize(
    ("prior", "message"),
    [
        (Randomization(servo_gain=(0.5, 1.3), mass=(0.5, 2.0)), "varies servo_gain, but the model .* has nothing"),
        (Randomization(mass=Variation(low=0.5, high=2.0, names=("torso",))), "no body matches 'torso'"),
        (Randomization(damping=Variation("drift_up", 1.0, 3.0, std=0.1)), "kind 'drift_up' cannot be fitted"),
        (Randomization(mass=Variation("constant", start=1.5)), "the prior varies nothing"),
        (Randomization(), "the prior varies nothing"),
    ],
)
def test_priors_that_do_not_fit_the_model_are_refused(weak, prior, message):
    with pytest.raises(ConfigError, match=message):
        run(weak, prior)


def test_a_task_whose_state_is_not_measured_is_refused(weak):
    with pytest.raises(IdentificationError, match="measured_state"):
        identify(weak.transitions, dataclasses.replace(weak.contract, task="walker-walk"), "walker-walk", "default", FEW)


def test_the_benchmark_prior_holds_all_of_its_robots():
    with sim.make(TASK, randomization=PRIOR) as env:
        assert env.dynamics_names[4:6] == ("joint_friction/slider", "joint_friction/hinge_1")


# --- what identification needs of environments -----------------------------------------------------------------------


def test_environments_take_given_dynamics_until_their_episodes_end():
    with sim.make(TASK, num_envs=3, randomization=Randomization(mass=(0.5, 2.0), control_delay_s=(0.0, 0.04))) as env:
        given_values = np.array([[1.5, 0.7, 0.02], [1.0, 1.0, 0.0], [0.5, 2.0, 0.011]])
        env.set_dynamics(given_values)
        np.testing.assert_allclose(env.dynamics, [[1.5, 0.7, 0.02], [1.0, 1.0, 0.0], [0.5, 2.0, 0.01]])
        nominal = env.physics.model.body_mass
        np.testing.assert_allclose(env.physics.parameter("body_mass")[:, 1], nominal[1] * given_values[:, 0])
        env.reset()
        assert (env.dynamics != given_values).any()
        with pytest.raises(ValueError, match=r"dynamics must be finite and of shape \(3, 3\)"):
            env.set_dynamics(given_values[:2])


def test_several_variations_of_a_setting_name_their_objects():
    mine = Randomization(mass=(Variation(low=1.5, high=1.6, names=("cart",)), Variation(low=0.5, high=0.6, names=("pole_1",))))
    with sim.make(TASK, num_envs=20, randomization=mine) as env:
        env.reset()
        assert env.dynamics_names == ("mass/cart", "mass/pole_1")
        assert ((env.dynamics >= [1.5, 0.5]) & (env.dynamics <= [1.6, 0.6])).all()
    twice = Randomization(
        mass=(Variation(low=1.5, high=1.6, names=("cart",)), Variation(low=0.5, high=0.6, names=("car*", "pole_1")))
    )
    with pytest.raises(ConfigError, match="two of its variations name the same object"):
        sim.make(TASK, randomization=twice)
    with pytest.raises(ValueError, match="needs the names of its objects"):
        Randomization(mass=(Variation(low=1.5, high=1.6), Variation(low=0.5, high=0.6)))


@pytest.mark.parametrize("steps", [1, 2, 3, 4])
def test_a_delay_is_a_delay_where_the_integrator_is_runge_kutta(steps):
    """MuJoCo's fourth stage alone looks at the control that comes next, with a sixth of the weight."""

    def velocities(delay, late):
        actions = np.repeat(np.random.default_rng(0).uniform(-1, 1, 12), 4)
        with sim.make(TASK, randomization=Randomization(control_delay_s=(0.0, 0.04))) as env:
            env.set_dynamics(np.array([[delay]]))
            env.set_state(np.array([[0.0, np.pi]]), np.zeros((1, 2)))
            found = []
            for step in range(40):
                env.step(np.array([[actions[step - late] if step >= late else 0.0]]))
                found.append(env.qvel[0, 0])
        return np.array(found)

    late, exact, early = velocities(0.01 * steps, 0), velocities(0.0, steps), velocities(0.0, steps - 1)
    assert np.abs(late - exact).max() < 0.21 * np.abs(early - exact).max()
