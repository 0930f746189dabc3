"""A stretched link equals the model that is compiled with that length: positions, mass matrix, contacts, bounds, energy."""

import mujoco
import numpy as np
import pytest

from dpg_robot.errors import ConfigError
from sim.physics import Physics
from sim.randomization import DynamicsRandomizer, Randomization, prepare_spec
from sim.suite_model import load_suite_spec
from sim.variation import Variation

COMPARED = (
    "xpos",
    "xquat",
    "xipos",
    "ximat",
    "geom_xpos",
    "geom_xmat",
    "site_xpos",
    "cam_xpos",
    "M",
    "qfrc_bias",
    "energy",
    "sensordata",
)
CONSTANTS = ("geom_rbound", "geom_aabb", "bvh_aabb", "body_mass", "body_inertia", "dof_M0", "dof_invweight0", "body_invweight0")


def load_quadruped_spec():
    from dm_control.suite import common, quadruped

    return mujoco.MjSpec.from_string(quadruped.make_model(floor_size=10), common.ASSETS)


def stretched(spec, num_envs=1, **settings):
    """Return the models (one per environment) after a draw, and the randomizer."""
    randomization = Randomization(**settings)
    prepare_spec(spec, randomization)
    physics = Physics(spec.compile(), num_envs, 1)
    randomizer = DynamicsRandomizer(physics, randomization, "test")
    randomizer.draw(np.arange(num_envs), np.random.default_rng(0))
    return [physics.batch.get_model(index) for index in range(num_envs)], randomizer


def fixed(length, **options):
    return Variation("constant", start=length, **options)


def assert_same_physics(ours, compiled, poses=3):
    """Compare all that follows from positions, in random poses, and one second of motion."""
    for name in CONSTANTS:
        np.testing.assert_allclose(getattr(ours, name), getattr(compiled, name), rtol=1e-8, atol=1e-10, err_msg=name)
    random = np.random.default_rng(1)
    data, expected = mujoco.MjData(ours), mujoco.MjData(compiled)
    for model in (ours, compiled):
        model.opt.enableflags |= int(mujoco.mjtEnableBit.mjENBL_ENERGY)
    for pose in range(poses):
        mujoco.mj_resetData(compiled, expected)
        if pose:
            mujoco.mj_integratePos(compiled, expected.qpos, random.normal(0, 0.7, compiled.nv), 1.0)
            expected.qvel[:] = random.normal(0, 1, compiled.nv)
        data.qpos[:], data.qvel[:] = expected.qpos, expected.qvel
        mujoco.mj_forward(ours, data)
        mujoco.mj_forward(compiled, expected)
        for name in COMPARED:
            np.testing.assert_allclose(getattr(data, name), getattr(expected, name), rtol=1e-7, atol=1e-7, err_msg=name)
        assert data.ncon == expected.ncon
        np.testing.assert_allclose(data.contact.dist, expected.contact.dist, atol=1e-9)


def test_a_longer_cartpole_pole_equals_the_model_compiled_with_it():
    spec = load_suite_spec("cartpole")
    spec.geom("pole_1").fromto = [0, 0, 0, 0, 0, 1.7]
    ours, _ = stretched(load_suite_spec("cartpole"), link_length={"pole_1": fixed(1.7)})
    assert_same_physics(ours[0], spec.compile())


def test_walker_thighs_move_the_legs_below_them():
    spec = load_suite_spec("walker")
    for side in ("left", "right"):
        spec.geom(f"{side}_thigh").pos = [0, 0, -0.4]
        spec.geom(f"{side}_thigh").size[1] = 0.4
        spec.geom(f"{side}_thigh").mass = load_suite_spec("walker").compile().body(f"{side}_thigh").mass[0]
        spec.body(f"{side}_leg").pos = [0, 0, -0.8 - 0.25]
    ours, _ = stretched(load_suite_spec("walker"), link_length={"*_thigh": fixed(0.8, shared=True)})
    assert_same_physics(ours[0], spec.compile())


def test_a_link_whose_body_begins_in_its_middle_stretches_from_its_joint():
    spec = load_suite_spec("walker")  # the leg's frame is in its middle, the knee 0.25 m above
    mass = load_suite_spec("walker").compile().body("left_leg").mass[0]
    leg, foot = spec.geom("left_leg"), spec.body("left_foot")
    leg.pos, leg.size[1], leg.mass = [0, 0, 0.25 - 0.35], 0.35, mass
    foot.pos = [0.06, 0, 0.25 - 0.7]
    ours, _ = stretched(load_suite_spec("walker"), link_length={"left_leg": fixed(0.7)})
    assert_same_physics(ours[0], spec.compile())


def test_quadruped_shins_stretch_along_their_slant():
    nominal, extent = load_quadruped_spec(), 0.8
    mass = load_quadruped_spec().compile().body("knee_back_left").mass[0]
    spec = load_quadruped_spec()
    for leg in ("front_left", "front_right", "back_right", "back_left"):
        spec.geom(f"shin_{leg}").fromto = [0, 0, 0, extent, 0, -extent]
        spec.geom(f"shin_{leg}").mass = mass
        spec.body(f"ankle_{leg}").pos = [extent, 0, -extent]
    ours, _ = stretched(nominal, link_length={"knee_*": fixed(extent * np.sqrt(2), shared=True)})
    assert_same_physics(ours[0], spec.compile())


LINK = """<mujoco><worldbody><geom type="plane" size="9 9 .1" pos="0 0 -1.2"/>
  <body name="base" pos="0 0 .3"><joint type="hinge" axis="0 1 0" pos="0 0 .1"/>
    <geom name="link" type="{shape}" {geometry} {mass}/>
    <site name="half" pos=".1 0 {half}"/><camera name="eye" pos="0 .2 {end}"/><site name="behind" pos="0 0 .2"/>
    <geom name="shell" type="sphere" size=".1" pos="0 0 {end}" mass="0"/>
    <body name="tip" pos="0 .1 {end}"><joint type="hinge" axis="0 1 0"/><geom type="box" size=".1 .05 .02" mass=".3"/></body>
  </body></worldbody></mujoco>"""


def link_model(shape, length, mass):
    radius = {"capsule": ".06", "cylinder": ".06", "box": ".04 .06", "ellipsoid": ".04 .06"}[shape]
    geometry = f'size="{radius} {length / 2}" pos="0 0 {-length / 2}"'
    return LINK.format(shape=shape, geometry=geometry, mass=mass, half=-length / 2, end=-length)


@pytest.mark.parametrize("shape", ["capsule", "cylinder", "box", "ellipsoid"])
@pytest.mark.parametrize("rule", ["keep", "density"])
@pytest.mark.parametrize("length", [0.3, 1.3])
def test_every_primitive_equals_its_recompiled_self(shape, rule, length):
    mass = 'density="700"' if rule == "density" else 'mass="2.5"'
    spec = mujoco.MjSpec.from_string(link_model(shape, 0.5, mass))
    ours, _ = stretched(spec, link_length={"base": fixed(length)}, link_mass=rule)
    assert_same_physics(ours[0], mujoco.MjModel.from_xml_string(link_model(shape, length, mass)))


def test_each_environment_has_lengths_of_its_own_and_they_do_not_compound():
    spec = load_suite_spec("cartpole")
    randomization = Randomization(link_length={"pole_1": (0.5, 2.3)})
    physics = Physics(spec.compile(), 50, 1)
    randomizer, random = DynamicsRandomizer(physics, randomization, "cartpole-swingup"), np.random.default_rng(0)
    for _ in range(50):
        randomizer.draw(np.arange(50), random)
    everyone, centers = np.arange(50), physics.data("xipos")
    physics.reset(everyone)
    physics.forward(everyone)
    assert randomizer.names == ("link_length/pole_1",)
    lengths = randomizer.values[:, 0]
    assert 0.5 <= lengths.min() < 0.7
    assert 2.1 < lengths.max() <= 2.3
    # the middle of an upright pole is half its length above the cart, which is at a height of 1 m
    np.testing.assert_allclose(centers[:, physics.body("pole_1"), 2], 1 + lengths / 2, rtol=1e-12)


def test_mass_factors_apply_on_top_of_a_new_length():
    mass = 'density="700"'
    settings = {
        "link_length": {"base": fixed(1.0)},
        "link_mass": "density",
        "mass": fixed(2.0, operation="scale", names=("base",)),
    }
    models, _ = stretched(mujoco.MjSpec.from_string(link_model("capsule", 0.5, mass)), **settings)
    twice = mujoco.MjModel.from_xml_string(link_model("capsule", 1.0, 'density="1400"'))
    assert_same_physics(models[0], twice)


def test_lengths_may_be_factors_and_differ_between_links():
    models, randomizer = stretched(
        load_suite_spec("walker"), 20, link_length={"*_thigh": Variation(low=0.5, high=2.0, operation="scale")}
    )
    assert randomizer.names == ("link_length/right_thigh", "link_length/left_thigh")
    for model, factors in zip(models, randomizer.values, strict=True):
        sizes = [model.geom(name).size[1] for name in ("right_thigh", "left_thigh")]
        np.testing.assert_allclose(sizes, 0.225 * factors, rtol=1e-12)
    assert np.abs(randomizer.values[:, 0] - randomizer.values[:, 1]).min() > 0


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"torso": fixed(1.0)}, "neither end of body 'torso' is at its joint"),
        ({"pole_1": fixed(1.0)}, "no body matches 'pole_1'; there are: world, torso"),
        ({"left_tigh": fixed(1.0)}, "Did you mean 'left_thigh'"),
        ({"*_thigh": fixed(1.0), "left_*": fixed(1.0)}, r"both '\*_thigh' and 'left_\*' match body 'left_thigh'"),
        ({"left_thigh": (-0.5, -0.44, "add")}, "0.45 m to a length that is not positive"),
    ],
)
def test_links_that_cannot_be_stretched_are_refused(settings, message):
    settings = {
        name: Variation(low=v[0], high=v[1], operation=v[2]) if isinstance(v, tuple) else v for name, v in settings.items()
    }
    with pytest.raises(ConfigError, match=f"link_length: .*{message}"):
        stretched(load_suite_spec("walker"), link_length=settings)


def test_a_body_of_several_masses_is_refused():
    geoms = '<geom type="capsule" fromto="0 0 0 0 0 1" size=".1"/><geom size=".2"/>'
    xml = f'<mujoco><worldbody><body name="a"><joint/>{geoms}</body></worldbody></mujoco>'
    with pytest.raises(ConfigError, match="the mass of body 'a' is not that of one uniform capsule"):
        stretched(mujoco.MjSpec.from_string(xml), link_length={"a": fixed(1.0)})
