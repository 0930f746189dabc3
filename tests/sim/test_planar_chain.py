"""The forward velocity of a planar robot is MuJoCo's own, computed from the state alone."""

import mujoco
import numpy as np
import pytest

from sim.physics import Physics
from sim.tasks import cheetah, hopper, walker
from sim.tasks.planar_chain import PlanarChain

STATES = 200
LENGTHS = ("body_ipos", "body_pos", "jnt_pos")

# a slide that comes second, a hinge with a reference angle, a body without a joint, and another robot that does not count
ODD_ROBOT = """
<mujoco>
  <worldbody>
    <body name="root" pos=".3 0 1">
      <joint type="slide" axis="0 0 1"/>
      <joint type="slide" axis="-.6 0 .8"/>
      <joint type="hinge" axis="0 -1 0" pos=".1 0 .2" ref="30"/>
      <geom size=".1" pos=".2 0 0"/>
      <body pos=".4 .1 -.1">
        <geom size=".1" pos="0 0 -.3"/>
        <body pos="-.2 0 -.5">
          <joint type="hinge" axis="0 1 0" pos=".1 0 .1" ref="-50"/>
          <geom size=".2" pos=".1 0 -.2"/>
        </body>
      </body>
    </body>
    <body name="other"><joint type="slide" axis="1 0 0"/><geom size=".3" pos=".1 0 0"/></body>
  </worldbody>
  <sensor><subtreelinvel name="torso_subtreelinvel" body="root"/></sensor>
</mujoco>
"""
MODELS = {
    "cheetah": (lambda: cheetah.run().load_spec(), "torso"),
    "hopper": (lambda: hopper.hop().load_spec(), "torso"),
    "walker": (lambda: walker.run().load_spec(), "torso"),
    "odd": (lambda: mujoco.MjSpec.from_string(ODD_ROBOT), "root"),
}


def robot_with_one_joint(joint: str, body: str = "") -> str:
    return f"<mujoco><worldbody><body name='root' {body}>{joint}<geom size='.1'/></body></worldbody></mujoco>"


def randomize_masses_and_lengths(physics, ids, random):
    mass = physics.parameter("body_mass")
    mass[ids] *= random.uniform(0.3, 3.0, (len(ids), mass.shape[1]))
    for field in LENGTHS:
        lengths = physics.parameter(field)
        lengths[ids] += random.normal(0, 0.1, (len(ids), *lengths.shape[1:]))
    physics.update_constants(ids)


def randomize_states(physics, random):
    physics.qpos[:] = random.normal(0, 3.0, physics.qpos.shape)
    physics.qvel[:] = random.normal(0, 5.0, physics.qvel.shape)
    physics.forward(np.arange(physics.num_envs))


@pytest.mark.parametrize("robot", MODELS)
def test_forward_velocity_is_mujocos_for_any_masses_and_lengths(robot):
    load_spec, root = MODELS[robot]
    physics = Physics(load_spec().compile(), STATES, num_threads=2)
    everyone, random = np.arange(STATES), np.random.default_rng(0)
    physics.reset(everyone)
    randomize_masses_and_lengths(physics, everyone, random)
    expected = physics.sensor("torso_subtreelinvel")[:, 0]
    chain = PlanarChain(physics, root)
    for _ in range(3):
        randomize_states(physics, random)
        assert np.std(expected) > 1.0
        np.testing.assert_allclose(chain.forward_velocity(), expected, rtol=0, atol=1e-10)


def test_update_follows_changed_masses_of_the_given_environments_only():
    physics = Physics(cheetah.run().load_spec().compile(), STATES, num_threads=2)
    everyone, random = np.arange(STATES), np.random.default_rng(1)
    changed = np.arange(0, STATES, 3)
    physics.reset(everyone)
    expected = physics.sensor("torso_subtreelinvel")[:, 0]
    chain = PlanarChain(physics, "torso")
    randomize_masses_and_lengths(physics, changed, random)
    randomize_states(physics, random)
    before = chain.forward_velocity()
    assert np.abs(before - expected)[changed].max() > 0.1
    chain.update(changed)
    after = chain.forward_velocity()
    np.testing.assert_allclose(after, expected, rtol=0, atol=1e-10)
    others = np.setdiff1d(everyone, changed)
    np.testing.assert_array_equal(after[others], before[others])


@pytest.mark.parametrize(
    ("xml", "complaint"),
    [
        (robot_with_one_joint("<joint name='roll' axis='1 0 0'/>"), "joint 'roll' does not keep the robot planar"),
        (robot_with_one_joint("<joint name='side' type='slide' axis='0 1 0'/>"), "joint 'side' does not keep the robot planar"),
        (robot_with_one_joint("<freejoint name='free'/>"), "joint 'free' does not keep the robot planar"),
        (
            robot_with_one_joint("<joint name='a' axis='0 1 0'/><joint name='b' axis='0 1 0'/>"),
            "joint 'b' does not keep the robot planar",
        ),
        (
            robot_with_one_joint("<joint name='turn' axis='0 1 0'/><joint name='late' type='slide' axis='1 0 0'/>"),
            "joint 'late' does not keep the robot planar",
        ),
        (robot_with_one_joint("<joint axis='0 1 0'/>", "euler='0 20 0'"), "body 'root' is turned against its parent"),
    ],
)
def test_a_robot_that_is_not_planar_is_refused(xml, complaint):
    physics = Physics(mujoco.MjModel.from_xml_string(xml), 1, num_threads=1)
    with pytest.raises(ValueError, match=complaint):
        PlanarChain(physics, "root")
