"""Randomized dynamics, measured from the outside: what is drawn, what it does to the motion, and what is refused."""

import math
from pathlib import Path

import mujoco
import numpy as np
import pytest
from scipy import stats

from dpg_robot.config import config_from_dict, config_to_dict, dump_config, load_config
from dpg_robot.errors import ConfigError, UnknownNameError
from sim.physics import Physics
from sim.randomization import DynamicsRandomizer, Randomization, prepare_spec, randomization_preset, resolve_randomization
from sim.suite_model import load_suite_spec
from sim.variation import Variation

# a box on a plane, a cart that a motor and a servo drive along a rail, and a free box without contacts
SCENE = """<mujoco><option timestep="0.002"/>
  <default><geom condim="3"/></default>
  <worldbody>
    <geom name="floor" type="plane" size="99 99 .1" friction=".3"/>
    <body name="box" pos="0 0 .1"><joint name="x" type="slide" axis="1 0 0"/><joint name="z" type="slide" axis="0 0 1"/>
      <geom name="box" type="box" size=".1 .1 .1" mass="2" friction=".3"/></body>
    <body name="cart" pos="0 5 3"><joint name="rail" type="slide" axis="1 0 0" damping="1" armature=".5"/>
      <geom name="cart" type="box" size=".1 .1 .1" mass="1.5" contype="0" conaffinity="0"/></body>
    <body name="free" pos="0 0 50"><freejoint name="free"/>
      <geom name="free" type="box" size=".1 .2 .3" mass="3" contype="0" conaffinity="0"/><site name="middle"/></body>
  </worldbody>
  <actuator><motor name="motor" joint="rail" gear="2"/><position name="servo" joint="rail" kp="5"/></actuator>
</mujoco>"""
WITHOUT_SERVO = SCENE.replace('<position name="servo" joint="rail" kp="5"/>', "")
G, STEP = 9.81, 0.002
BOX, CART, FREE = 1, 2, 3
# degrees of freedom
X, RAIL = 0, 2


class Bench:
    """N environments of a model under randomization, stepped by hand."""

    def __init__(self, randomization, num_envs=1, source=SCENE, seed=0):
        spec = load_suite_spec(source) if source.isidentifier() else mujoco.MjSpec.from_string(source)
        prepare_spec(spec, randomization)
        self.physics = Physics(spec.compile(), num_envs, 1)
        self.randomizer = DynamicsRandomizer(self.physics, randomization, "bench-test")
        self.random = np.random.default_rng(seed)
        self.everyone = np.arange(num_envs)
        self.restart()

    def restart(self, ids=None):
        ids = self.everyone if ids is None else np.asarray(ids)
        self.physics.reset(ids)
        self.randomizer.draw(ids, self.random)
        self.physics.forward(ids)

    def column(self, name):
        return self.randomizer.values[:, self.randomizer.names.index(name)]

    def model(self, index=0):
        return self.physics.batch.get_model(index)


def fixed(value, operation=None, *names):
    return Variation("constant", start=value, operation=operation, names=names)


# --- what is drawn ---------------------------------------------------------------------------------------------------


def field_value(bench, name):
    """Return the factors (N,) by which model fields differ from nominal, as the simulations see them."""
    model = bench.physics.model
    field, *index = {
        "mass/box": ("body_mass", BOX),
        "mass/cart": ("body_mass", CART),
        "friction": ("geom_friction", 0, 0),
        "damping/rail": ("dof_damping", RAIL),
        "armature/rail": ("dof_armature", RAIL),
        "actuator_gain/motor": ("actuator_gainprm", 0, 0),
        "actuator_gain/servo": ("actuator_gainprm", 1, 0),
        "actuator_bias/servo": ("actuator_biasprm", 1, 1),
        "gravity": ("opt.gravity", 2),
    }[name]
    nominal = model.opt.gravity if field == "opt.gravity" else getattr(model, field)
    return bench.physics.parameter(field)[(slice(None), *index)] / nominal[tuple(index)]


FACTORS = ("mass", "friction", "damping", "armature", "actuator_gain", "actuator_bias", "gravity")


@pytest.fixture(scope="module")
def varied():
    return Bench(Randomization(**dict.fromkeys(FACTORS, (0.2, 5.0))), num_envs=500)


def test_a_servo_gain_scales_the_whole_force_of_a_servo_and_of_nothing_else():
    bench = Bench(Randomization(servo_gain=(0.5, 2.0)), num_envs=20)
    assert bench.randomizer.names == ("servo_gain/servo",)
    factors = bench.randomizer.values[:, 0]
    assert np.ptp(factors) > 0.5
    np.testing.assert_allclose(field_value(bench, "actuator_gain/servo"), factors)
    np.testing.assert_allclose(field_value(bench, "actuator_bias/servo"), factors)
    np.testing.assert_allclose(field_value(bench, "actuator_gain/motor"), 1.0)
    with pytest.raises(ConfigError, match="it is no position servo"):
        Bench(Randomization(servo_gain=fixed(2.0, "scale", "motor")))


def test_every_drawn_number_has_a_name(varied):
    assert varied.randomizer.names == (
        "mass/box",
        "mass/cart",
        "mass/free",
        "friction",
        "damping/rail",
        "armature/rail",
        "actuator_gain/motor",
        "actuator_gain/servo",
        "actuator_bias/servo",
        "gravity",
    )
    assert varied.randomizer.values.shape == (500, 10)
    assert varied.randomizer.values.dtype == np.float64


@pytest.mark.parametrize(
    "name",
    [
        "mass/box",
        "mass/cart",
        "friction",
        "damping/rail",
        "armature/rail",
        "actuator_gain/motor",
        "actuator_bias/servo",
        "gravity",
    ],
)
def test_factors_reach_the_model_and_are_log_uniform(varied, name):
    drawn = varied.column(name)
    np.testing.assert_allclose(field_value(varied, name), drawn, rtol=1e-12)
    assert stats.kstest(drawn, stats.loguniform(0.2, 5.0).cdf).pvalue > 1e-3  # fixed seed
    assert stats.kstest(drawn, stats.uniform(0.2, 4.8).cdf).pvalue < 1e-6, "uniform factors would be noticed"


def test_all_numbers_and_environments_vary_independently(varied):
    logarithms = np.log(varied.randomizer.values)
    correlation = np.corrcoef(np.vstack([logarithms[1:].T, logarithms[:-1].T]))
    assert np.abs(correlation - np.eye(20)).max() < 4.5 / math.sqrt(499)


def test_each_episode_draws_anew_and_only_for_its_environments():
    bench = Bench(Randomization(mass=(0.5, 2.0), gravity=(0.5, 2.0)), num_envs=4)
    mass, values = bench.physics.parameter("body_mass").copy(), bench.randomizer.values.copy()
    bench.restart([1, 3])
    for before, after in ((mass[:, BOX], bench.physics.parameter("body_mass")[:, BOX]), (values, bench.randomizer.values)):
        same = before == after
        assert same[[0, 2]].all()
        assert not same[[1, 3]].any()


def test_nothing_compounds_over_many_episodes():
    settings = dict.fromkeys(FACTORS, (0.5, 2.0)) | {"center_of_mass": (-0.1, 0.1), "joint_friction": (0.0, 1.0)}
    bench = Bench(Randomization(**settings), num_envs=200)
    for _ in range(50):
        bench.restart()
    for name in ("mass/box", "friction", "damping/rail", "armature/rail", "actuator_bias/servo", "gravity"):
        assert stats.kstest(field_value(bench, name), stats.loguniform(0.5, 2.0).cdf).pvalue > 1e-3
    assert np.abs(bench.physics.parameter("body_ipos")).max() <= 0.1 + 1e-5
    assert bench.physics.parameter("dof_frictionloss").max() <= 1.0


def test_without_randomization_no_field_differs_between_environments():
    bench = Bench(Randomization(), num_envs=3)
    assert bench.randomizer.names == ()
    assert bench.randomizer.values.shape == (3, 0)
    assert not [name for name in bench.physics.state_dict() if name.startswith("model.")]


def test_only_what_varies_is_written():
    bench = Bench(Randomization(mass=fixed(2.0, "scale", "cart")), num_envs=2)
    assert bench.randomizer.names == ("mass/cart",)
    bench.physics.parameter("body_mass")[:, BOX] = 7.0  # somebody else's
    bench.restart()
    assert (bench.physics.parameter("body_mass")[:, [BOX, CART]] == [7.0, 3.0]).all()
    settings = Randomization(mass=(0.5, 2.0), friction=(0.5, 2.0), control_delay_s=(0.0, 0.01))
    expanded = [name for name in Bench(settings).physics.state_dict() if name.startswith("model.")]
    assert sorted(expanded) == ["model.actuator_delay", "model.body_inertia", "model.body_mass", "model.geom_friction"]


def test_objects_are_chosen_by_name_or_pattern_and_may_share_one_value():
    bench = Bench(Randomization(mass=Variation(low=0.5, high=2.0, names=("c*", "box"), shared=True)), num_envs=5)
    assert bench.randomizer.names == ("mass",)
    np.testing.assert_allclose(field_value(bench, "mass/box"), bench.column("mass"))
    np.testing.assert_allclose(field_value(bench, "mass/cart"), bench.column("mass"))
    assert (bench.physics.parameter("body_mass")[:, FREE] == 3.0).all()


def test_evolving_kinds_go_on_from_episode_to_episode_without_compounding():
    bench = Bench(Randomization(mass=Variation("drift_up", 1.0, 3.0, std=0.1, names=("cart",))), num_envs=3)
    seen = [bench.column("mass/cart").copy()]
    for _ in range(100):
        bench.restart()
        seen.append(bench.column("mass/cart").copy())
        np.testing.assert_allclose(bench.physics.parameter("body_mass")[:, CART], 1.5 * seen[-1])
    assert (seen[0] == 1.0).all()
    assert (np.diff(seen, axis=0) >= 0).all()
    assert (seen[-1] == 3.0).all()


def test_a_restored_randomizer_draws_what_the_first_one_would_have_drawn():
    settings = Randomization(mass=Variation("saw_wave", 0.5, 2.0, std=0.3), gravity=(0.5, 2.0), control_delay_s=(0.0, 0.02))
    bench, other = (Bench(settings, num_envs=3, seed=seed) for seed in (0, 1))
    for _ in range(5):
        bench.restart()
    other.randomizer.load_state_dict(bench.randomizer.state_dict())
    other.physics.load_state_dict(bench.physics.state_dict())
    other.random.bit_generator.state = bench.random.bit_generator.state
    for _ in range(5):
        np.testing.assert_array_equal(other.randomizer.values, bench.randomizer.values)
        for field in ("body_mass", "opt.gravity", "actuator_delay"):
            np.testing.assert_array_equal(other.physics.parameter(field), bench.physics.parameter(field))
        bench.restart([0, 2])
        other.restart([0, 2])


# --- what it does ----------------------------------------------------------------------------------------------------


def test_gravity_is_the_acceleration_of_free_fall():
    bench = Bench(Randomization(gravity=(0.5, 2.0)), num_envs=10)
    bench.physics.step(100)
    np.testing.assert_allclose(bench.physics.qvel[:, 5], -G * bench.column("gravity") * 100 * STEP, rtol=1e-9)


def test_friction_decelerates_a_sliding_box():
    bench = Bench(Randomization(friction=Variation(low=0.1, high=0.5, operation="set")), num_envs=10)
    bench.physics.qvel[:, X] = 20.0
    bench.physics.step(1500)
    deceleration = (20.0 - bench.physics.qvel[:, X]) / (1500 * STEP)
    np.testing.assert_allclose(deceleration, bench.column("friction") * G, rtol=0.05)  # it hops a little


def test_friction_of_contact_pairs_varies_too():
    pair = '<contact><pair geom1="floor" geom2="box" friction=".3 .3"/></contact></mujoco>'
    bench = Bench(Randomization(friction=(0.5, 2.0)), num_envs=4, source=SCENE.replace("</mujoco>", pair))
    factors = bench.column("friction")[:, None]
    np.testing.assert_allclose(bench.physics.parameter("pair_friction")[:, 0, :2], 0.3 * np.repeat(factors, 2, axis=1))
    np.testing.assert_allclose(
        bench.physics.parameter("pair_friction")[:, 0, 2:], bench.physics.model.pair_friction[:, 2:].repeat(4, 0)
    )


def pushed(bench, force=10.0, steps=1):
    """Return the velocities (N,) that a force on the cart gives it."""
    bench.physics.data("qfrc_applied")[:, RAIL] = force
    bench.physics.step(steps)
    return bench.physics.qvel[:, RAIL].copy()


def test_mass_and_armature_resist_acceleration():
    bench = Bench(Randomization(mass=(0.5, 2.0), armature=(0.5, 2.0), damping=fixed(0.0, "set", "rail")), num_envs=10)
    inertia = 1.5 * bench.column("mass/cart") + 0.5 * bench.column("armature/rail")
    np.testing.assert_allclose(pushed(bench), 10.0 * STEP / inertia, rtol=1e-9)


def test_inertia_follows_mass():
    bench = Bench(Randomization(mass=(0.5, 2.0)), num_envs=6)
    torque = np.array([0.1, 0.2, 0.3])
    bench.physics.data("qfrc_applied")[:, 6:9] = torque
    bench.physics.step(1)
    inertia = np.array([0.13, 0.10, 0.05])  # m / 3 (b^2 + c^2)
    expected = torque * STEP / (inertia * bench.column("mass/free")[:, None])
    np.testing.assert_allclose(bench.physics.qvel[:, 6:9], expected, rtol=1e-6)


def test_damping_sets_the_terminal_velocity():
    bench = Bench(Randomization(damping=(2.0, 8.0)), num_envs=6, source=WITHOUT_SERVO)
    np.testing.assert_allclose(pushed(bench, steps=10_000), 10.0 / bench.column("damping/rail"), rtol=1e-3)


def test_joint_friction_holds_until_it_is_overcome():
    bench = Bench(Randomization(joint_friction=(1.0, 9.0), damping=fixed(0.0, "set", "rail")), 12, WITHOUT_SERVO)
    assert bench.randomizer.names == ("damping/rail", "joint_friction/rail"), "the free box and the sliding box have no mechanism"
    friction = bench.column("joint_friction/rail")
    accelerations = pushed(bench, force=5.0, steps=500) / (500 * STEP)
    np.testing.assert_allclose(accelerations, np.maximum(5.0 - friction, 0.0) / 2.0, atol=0.02)  # constraints are soft
    assert (friction > 5).any()
    assert (friction < 5).any()


def test_gains_are_forces_per_control_and_bias_is_the_servo_pulling_back():
    bench = Bench(
        Randomization(actuator_gain=(0.5, 2.0), actuator_bias=(0.5, 2.0), damping=fixed(0.0, "set", "rail")), num_envs=6
    )
    bench.physics.qpos[:, RAIL] = 0.1
    bench.physics.ctrl[:] = [1.0, 0.2]
    bench.physics.step(1)
    force = 2.0 * bench.column("actuator_gain/motor") + 5.0 * bench.column("actuator_gain/servo") * 0.2
    force -= 5.0 * bench.column("actuator_bias/servo") * 0.1
    np.testing.assert_allclose(bench.physics.qvel[:, RAIL], force * STEP / 2.0, rtol=1e-9)


def test_a_shifted_center_of_mass_turns_a_pushed_body_and_moves_no_geometry():
    bench = Bench(Randomization(center_of_mass=Variation(low=-0.05, high=0.05, names=("free",))), num_envs=5)
    geoms, sites = bench.physics.data("geom_xpos"), bench.physics.data("site_xpos")
    bench.physics.forward(bench.everyone)
    np.testing.assert_allclose(geoms[:, 3], [[0, 0, 50]] * 5, atol=1e-12)
    np.testing.assert_allclose(sites[:, 0], [[0, 0, 50]] * 5, atol=1e-12)
    offsets = bench.randomizer.values
    assert bench.randomizer.names == tuple(f"center_of_mass/free/{axis}" for axis in "xyz")
    bench.physics.data("qfrc_applied")[:, 5] = 30.0  # upwards at the body's origin
    bench.physics.step(1)
    # the torque of the push about the centre of mass is -offset x force
    torque = np.cross(-offsets, [0, 0, 30.0])
    turning = bench.physics.qvel[:, 6:9]
    np.testing.assert_allclose(turning, torque / [0.13, 0.1, 0.05] * STEP, atol=1e-5)
    assert np.abs(turning).max() > 0.01


def test_a_shifted_center_of_mass_equals_the_model_compiled_with_it():
    bench = Bench(Randomization(center_of_mass=(-0.1, 0.1)), num_envs=2, source="walker")
    offsets = dict(zip(bench.randomizer.names, bench.randomizer.values[1], strict=True))
    nominal, spec = load_suite_spec("walker").compile(), load_suite_spec("walker")
    for body in list(spec.bodies)[1:]:
        number = nominal.body(body.name).id
        body.explicitinertial, body.mass, body.inertia = True, nominal.body_mass[number], nominal.body_inertia[number]
        shift = [offsets[f"center_of_mass/{body.name}/{axis}"] for axis in "xyz"]
        body.ipos, body.iquat = nominal.body_ipos[number] + shift, nominal.body_iquat[number]
    ours, compiled = bench.model(1), spec.compile()
    data, expected = mujoco.MjData(ours), mujoco.MjData(compiled)
    for each, model in ((data, ours), (expected, compiled)):
        each.qpos[:], each.qvel[:] = np.linspace(-0.5, 0.5, 9), np.linspace(-1, 1, 9)
        mujoco.mj_forward(model, each)
    for name in ("xipos", "geom_xpos", "M", "qfrc_bias", "subtree_com"):
        np.testing.assert_allclose(getattr(data, name), getattr(expected, name), atol=1e-9, err_msg=name)
    for name in ("bvh_aabb", "dof_invweight0", "dof_M0"):
        np.testing.assert_allclose(getattr(ours, name), getattr(compiled, name), rtol=1e-8, atol=1e-9, err_msg=name)


def test_derived_constants_follow_the_masses():
    bench = Bench(Randomization(mass=(0.5, 2.0)), num_envs=3, source="cartpole")
    for index in range(3):
        ours, fresh = bench.model(index), load_suite_spec("cartpole").compile()
        fresh.body_mass[:], fresh.body_inertia[:] = ours.body_mass, ours.body_inertia
        mujoco.mj_setConst(fresh, mujoco.MjData(fresh))
        for name in ("body_subtreemass", "dof_invweight0", "body_invweight0", "dof_M0"):
            np.testing.assert_allclose(getattr(ours, name), getattr(fresh, name), rtol=1e-9)
        assert ours.body_subtreemass[0] != pytest.approx(load_suite_spec("cartpole").compile().body_subtreemass[0])


# --- delays ----------------------------------------------------------------------------------------------------------


def responses(bench, controls):
    """Return the forces (T, N) of the motor under controls (T,), one for each physics step."""
    forces, actuator_forces = [], bench.physics.data("actuator_force")
    for control in controls:
        bench.physics.ctrl[:, 0] = control
        bench.physics.step(1)
        forces.append(actuator_forces[:, 0].copy())
    return np.array(forces)


def test_a_control_takes_effect_after_its_delay_at_every_time():
    bench = Bench(Randomization(control_delay_s=Variation(low=0.0, high=0.02, names=("motor",))), num_envs=30)
    steps = np.round(bench.column("control_delay_s") / STEP).astype(int)
    np.testing.assert_allclose(bench.column("control_delay_s"), steps * STEP, atol=1e-12)
    assert set(steps) >= {0, 1, 10} or len(set(steps)) >= 8
    controls = np.random.default_rng(0).uniform(-1, 1, 6000)
    forces = responses(bench, controls)
    for index, delay in enumerate(steps):
        assert (forces[:delay, index] == 0).all()
        np.testing.assert_array_equal(forces[delay:, index], controls[: len(controls) - delay])


def test_one_delay_holds_for_all_actuators_unless_each_has_its_own():
    assert Bench(Randomization(control_delay_s=(0.0, 0.02))).randomizer.names == ("control_delay_s",)
    own = Bench(Randomization(control_delay_s=Variation(low=0.0, high=0.02, shared=False)))
    assert own.randomizer.names == ("control_delay_s/motor", "control_delay_s/servo")


def test_a_new_episode_knows_no_controls_of_the_one_before():
    bench = Bench(Randomization(control_delay_s=fixed(0.02)), num_envs=2)
    responses(bench, np.ones(50))
    bench.restart([0])
    forces = responses(bench, np.zeros(10))
    assert (forces[:, 0] == 0).all()
    assert (forces[:, 1] == 1).all()


def test_controls_on_their_way_are_saved_with_the_state():
    bench = Bench(Randomization(control_delay_s=fixed(0.02)), num_envs=2)
    responses(bench, np.linspace(0, 1, 15))
    state = bench.physics.state_dict()
    expected = responses(bench, np.zeros(20))
    bench.restart()
    bench.physics.load_state_dict(state)
    np.testing.assert_array_equal(responses(bench, np.zeros(20)), expected)
    assert expected[:9].min() > 0


# --- settings, presets, refusals -------------------------------------------------------------------------------------


def test_settings_are_read_from_yaml_short_and_long(tmp_path):
    text = """
mass: [0.7, 1.5]
friction: {kind: truncated_normal, mean: 1.0, std: 0.2, low: 0.5, high: 1.5}
joint_friction: {high: 0.1, low: 0.0, names: ["*_knee"]}
link_length:
  pole_1: [0.7, 1.7]
  pole_2: {kind: drift_up, low: 1.0, high: 2.0, std: 0.1}
link_mass: density
"""
    (tmp_path / "r.yaml").write_text(text)
    loaded = load_config(Randomization, tmp_path / "r.yaml")
    assert loaded == Randomization(
        mass=(0.7, 1.5),
        friction=Variation("truncated_normal", 0.5, 1.5, 1.0, 0.2),
        joint_friction=Variation(low=0.0, high=0.1, names=("*_knee",)),
        link_length={"pole_1": (0.7, 1.7), "pole_2": Variation("drift_up", 1.0, 2.0, std=0.1)},
        link_mass="density",
    )
    dump_config(loaded, tmp_path / "again.yaml")
    assert load_config(Randomization, tmp_path / "again.yaml") == loaded
    assert config_from_dict(Randomization, config_to_dict(loaded), "values") == loaded
    assert resolve_randomization(tmp_path / "r.yaml", "cartpole-swingup") == loaded
    (tmp_path / "bad.yaml").write_text("gravity: [1, 2]\nmass: [0.0, 1.0]\n")
    with pytest.raises(ConfigError, match=r"bad\.yaml:1: mass: log_uniform needs a positive low, got 0"):
        load_config(Randomization, tmp_path / "bad.yaml")


def test_the_default_preset_draws_masses_damping_and_gains_as_it_always_did():
    bench = Bench(randomization_preset("default", "cartpole-swingup"), num_envs=500, source="cartpole")
    assert bench.randomizer.names == ("mass/cart", "mass/pole_1", "damping/slider", "damping/hinge_1", "actuator_gain/slide")
    for name, limits in (("mass/pole_1", (0.7, 1.5)), ("damping/slider", (0.3, 10.0)), ("actuator_gain/slide", (0.75, 1.25))):
        assert stats.kstest(bench.column(name), stats.loguniform(*limits).cdf).pvalue > 1e-3


@pytest.mark.parametrize(
    ("task", "level", "column", "low", "high"),
    [
        ("cartpole-swingup", "easy", "link_length/pole_1", 0.9, 1.1),
        ("cartpole-swingup", "medium", "link_length/pole_1", 0.7, 1.7),
        ("cartpole-swingup", "hard", "link_length/pole_1", 0.5, 2.3),
        ("walker-walk", "hard", "link_length/*_thigh", 2 * 0.225, 2 * 0.55),
        ("humanoid-walk", "easy", "friction", 0.6, 0.8),
        ("humanoid-walk", "medium", "friction", 0.5, 0.9),
        ("humanoid-walk", "hard", "friction", 0.4, 1.0),
    ],
)
def test_challenge_presets_have_the_ranges_of_the_real_world_rl_suite(task, level, column, low, high):
    bench = Bench(randomization_preset(level, task), num_envs=300, source=task.partition("-")[0])
    assert stats.kstest(bench.column(column), stats.uniform(low, high - low).cdf).pvalue > 1e-3


def test_the_quadrupeds_shins_range_over_their_extent_along_two_axes():
    lengths = randomization_preset("hard", "quadruped-walk").link_variations()["knee_*"]
    assert lengths.bounds == pytest.approx((0.25 * math.sqrt(2), 1.4 * math.sqrt(2)))
    assert lengths.shared


@pytest.mark.parametrize("domain", ["cartpole", "walker", "humanoid", "ball_in_cup", "fish", "cheetah", "point_mass", "finger"])
def test_presets_fit_their_models_and_grow_from_easy_to_hard(domain):
    spreads = []
    for level in ("easy", "medium", "hard"):
        with np.errstate(all="raise"):
            bench = Bench(randomization_preset(level, f"{domain}-task"), num_envs=200, source=domain)
        spreads.append(np.ptp(np.log(bench.randomizer.values), axis=0))
    assert len(bench.randomizer.names) >= 2
    assert (np.diff(spreads, axis=0) > 0).all()


def test_presets_are_found_by_name():
    assert resolve_randomization("none", "walker-walk") == Randomization()
    assert resolve_randomization("hard", "walker-walk") == randomization_preset("hard", "walker-walk")
    own = Randomization(mass=(1.0, 2.0))
    assert resolve_randomization(own, "walker-walk") is own
    for find in (randomization_preset, resolve_randomization):
        with pytest.raises(UnknownNameError, match=r"unknown randomization preset .*'defualt'.* Did you mean 'default'"):
            find("defualt", "walker-walk")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"mass": (0.0, 1.0)}, "mass: log_uniform needs a positive low"),
        ({"mass": Variation("uniform", 0.0, 1.0)}, "mass: factors must be positive, got a range from 0 to 1; raise low"),
        ({"mass": (2.0, 1.0)}, "mass: low must not be above high"),
        ({"mass": (1.0, math.inf)}, "mass: high must be finite"),
        ({"mass": (1.0,)}, "mass: a range must be two numbers"),
        ({"damping": Variation("uniform", -1.0, 1.0)}, "damping: factors must be not negative"),
        ({"friction": Variation(low=-0.1, high=1.0, operation="set")}, "friction: values must be not negative"),
        ({"mass": Variation("normal", mean=1.0, std=0.1)}, "mass: kind 'normal' has no limits.* use truncated_normal"),
        ({"actuator_gain": Variation("normal", mean=1.0, std=0.1)}, "actuator_gain: kind 'normal' has no limits"),
        ({"control_delay_s": (-0.01, 0.02)}, "control_delay_s: values must be not negative"),
        ({"control_delay_s": Variation("normal", mean=0.1, std=0.1)}, "control_delay_s: kind 'normal' has no limits"),
        ({"link_length": {"pole_1": (0.0, 1.0)}}, r"link_length\.pole_1: values must be positive"),
        ({"link_length": {"pole_1": Variation(low=1.0, high=2.0, names=("x",))}}, "must have no names of its own"),
        ({"gravity": Variation(low=9.0, high=10.0, operation="set")}, "gravity: operation must be scale, got set"),
        ({"center_of_mass": Variation(low=0.9, high=1.1, operation="scale")}, "center_of_mass: operation must be add"),
    ],
)
def test_settings_that_could_not_be_valid_for_any_model_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        Randomization(**settings)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            {"mass": Variation(low=0.5, high=2.0, names=("crat",))},
            "mass: no body matches 'crat'; there are: .* Did you mean 'cart'",
        ),
        ({"damping": Variation(low=0.5, high=2.0, names=("rali",))}, "damping: no joint matches 'rali'.*'rail'"),
        (
            {"friction": Variation(low=0.5, high=2.0, names=("flor",))},
            "friction: no geom or contact pair matches 'flor'.*'floor'",
        ),
        ({"actuator_gain": Variation(low=0.5, high=2.0, names=("moter",))}, "no actuator matches 'moter'.*'motor'"),
        ({"control_delay_s": Variation(low=0.0, high=0.1, names=("moter",))}, "no actuator matches 'moter'.*'motor'"),
        ({"center_of_mass": Variation(low=0.0, high=0.1, names=("crat",))}, "center_of_mass: no body matches 'crat'"),
        ({"mass": Variation(low=0.5, high=2.0, names=("world",))}, "body 'world' cannot be varied: it has no mass"),
        ({"damping": Variation(low=0.5, high=2.0, names=("x",))}, "joint 'x' cannot be varied: its nominal value is 0"),
        ({"actuator_bias": Variation(low=0.5, high=2.0, names=("motor",))}, "actuator 'motor' cannot be varied"),
        ({"gravity": Variation(low=0.5, high=2.0, names=("moon",))}, "gravity: there is one gravity"),
        (
            {"damping": Variation(low=-1.5, high=1.0, operation="add")},
            "damping: operation 'add' with values from -1.5 to 1 can take rail from 1 to -0.5, but it must not become negative",
        ),
        ({"mass": Variation(low=-1.6, high=1.0, operation="add")}, "can take cart from 1.5 to -0.1, but it must stay positive"),
        ({"joint_friction": (-0.1, 0.1)}, "joint_friction: .* must not become negative; narrow the range"),
        ({"armature": Variation(low=-1, high=0, operation="add", names=("rail",))}, "from 0.5 to -0.5"),
    ],
)
def test_settings_that_do_not_fit_the_model_are_refused(settings, message):
    with pytest.raises(ConfigError, match=message):
        Bench(Randomization(**settings))


@pytest.mark.parametrize("settings", [{"control_delay_s": (0.0, 0.1)}, {"center_of_mass": (-0.1, 0.1)}])
def test_models_that_were_not_prepared_are_refused(settings):
    physics = Physics(mujoco.MjModel.from_xml_string(SCENE), 1, 1)
    with pytest.raises(ConfigError, match=r"bench-test: .*call prepare_spec on the MjSpec before it is compiled"):
        DynamicsRandomizer(physics, Randomization(**settings), "bench-test")


@pytest.mark.parametrize(
    "path", sorted((Path(__file__).parents[2] / "configs" / "randomization").glob("*.yaml")), ids=lambda path: path.stem
)
def test_example_files_can_be_used(path):
    bench = Bench(resolve_randomization(path, "cartpole-swingup"), num_envs=2, source="cartpole")
    first = bench.randomizer.values.copy()
    for _ in range(6):
        bench.restart()
    assert (bench.randomizer.values != first).any()
