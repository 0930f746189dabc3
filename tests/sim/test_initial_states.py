"""Random joint positions follow dm_control's distributions; states in contact are drawn again."""

import mujoco
import numpy as np
import pytest
from dm_control import mujoco as reference_mujoco
from dm_control.suite.utils import randomizers
from scipy import stats

from sim.physics import Physics
from sim.tasks import initial_states
from sim.tasks.initial_states import NoFreeStateError, random_joint_positions, redraw_until_free

ALL_JOINTS = """
<mujoco>
  <default><geom size=".1"/></default>
  <worldbody>
    <body><joint name="slide" type="slide"/><geom/>
      <body><joint name="limited_slide" type="slide" range="-.5 2"/><geom/>
        <body><joint name="hinge"/><geom/>
          <body><joint name="limited_hinge" range="-20 70"/><geom/>
            <body><joint name="ball" type="ball"/><geom/>
              <body><joint name="limited_ball" type="ball" range="0 80"/><geom/></body>
            </body>
          </body>
        </body>
      </body>
    </body>
    <body pos="1 2 3"><freejoint name="free"/><geom/></body>
  </worldbody>
</mujoco>
"""
FALLING_BALL = """
<mujoco>
  <worldbody>
    <geom type="plane" size="1 1 1"/>
    <body><joint name="height" type="slide" axis="0 0 1"/><geom size=".1"/></body>
  </worldbody>
</mujoco>
"""


def test_joint_positions_are_distributed_as_in_dm_control():
    count = 4000
    ours = Physics(mujoco.MjModel.from_xml_string(ALL_JOINTS), count, 1)
    random_joint_positions(ours, np.arange(count), np.random.default_rng(0))
    theirs = reference_mujoco.Physics.from_xml_string(ALL_JOINTS)
    random = np.random.RandomState(0)
    positions = np.empty((count, theirs.model.nq))
    for index in range(count):
        randomizers.randomize_limited_and_rotational_joints(theirs, random)
        positions[index] = theirs.data.qpos
    # a difference that would come up by chance in one of a million samples fails
    for column in range(theirs.model.nq):
        assert stats.ks_2samp(ours.qpos[:, column], positions[:, column]).pvalue > 1e-6, f"qpos {column}"
    np.testing.assert_array_equal(ours.qpos[:, 0], 0.0)
    np.testing.assert_array_equal(ours.qpos[:, -7:-4], np.tile([1.0, 2.0, 3.0], (count, 1)))
    for start in (4, 8, 15):
        np.testing.assert_allclose(np.linalg.norm(ours.qpos[:, start : start + 4], axis=1), 1.0)
    angles = 2 * np.arccos(ours.qpos[:, 8])
    assert 1.3 < np.degrees(angles).max() / 60 < 80 / 60 + 1e-9


def test_only_the_given_environments_are_drawn():
    physics = Physics(mujoco.MjModel.from_xml_string(ALL_JOINTS), 5, 1)
    before = physics.qpos.copy()
    random_joint_positions(physics, np.array([1, 3]), np.random.default_rng(0))
    changed = (physics.qpos != before).any(axis=1)
    np.testing.assert_array_equal(changed, [False, True, False, True, False])


def test_only_states_in_contact_are_drawn_again():
    count = 500
    physics = Physics(mujoco.MjModel.from_xml_string(FALLING_BALL), count, 1)
    heights, drawn = physics.qpos[:, 0], []

    def draw(ids, random):
        if drawn:
            assert (heights[ids] < 0.1).all(), "the ball touches the ground below its radius"
        drawn.append(len(ids))
        heights[ids] = random.uniform(0.0, 0.2, len(ids))

    chosen = np.arange(0, count, 2)
    redraw_until_free(physics, chosen, np.random.default_rng(0), draw)
    assert (heights[chosen] >= 0.1).all()
    np.testing.assert_array_equal(heights[1::2], 0.0)
    assert drawn[0] == len(chosen)
    assert drawn == sorted(drawn, reverse=True)
    # half of the states touch: 250, about 125, ...; four standard deviations of a binomial count
    assert drawn[1] == pytest.approx(125, abs=4 * np.sqrt(250) / 2)


def test_states_that_never_become_free_are_an_error_that_says_where(monkeypatch):
    monkeypatch.setattr(initial_states, "MAX_DRAWS", 5)
    physics = Physics(mujoco.MjModel.from_xml_string(FALLING_BALL), 4, 1)
    with pytest.raises(NoFreeStateError, match=r"environments \[2\] had contacts in each of 5"):
        redraw_until_free(
            physics, np.arange(4), np.random.default_rng(0), lambda ids, random: physics.qpos.__setitem__((ids, 0), ids != 2)
        )
