"""The tip of an arm from the angles of its joints: by hand for simple arms, and as the simulation has it for the SO-101."""

import math
from pathlib import Path

import numpy as np
import pytest

from dpg_robot.config import config_from_dict, load_config
from dpg_robot.deploy.run_config import RobotConfig
from dpg_robot.errors import ConfigError
from dpg_robot.kinematics import Link, tip_position
from hw_drivers.servo_config import ServoRobotConfig
from sim.tasks.so101 import JOINT_LIMITS_RAD, forward_kinematics

SO101 = Path(__file__).parents[1] / "configs" / "robots" / "so101.yaml"


def test_a_planar_arm_is_where_sines_and_cosines_say():
    links = [Link(), Link(offset=(0.3, 0.0, 0.0))]
    for first, second in ((0.0, 0.0), (math.pi / 2, 0.0), (0.3, -0.7), (-2.0, 1.1)):
        x = 0.3 * math.cos(first) + 0.2 * math.cos(first + second)
        y = 0.3 * math.sin(first) + 0.2 * math.sin(first + second)
        assert tip_position(links, (0.2, 0.0, 0.0), [first, second]) == pytest.approx((x, y, 0.0), abs=1e-12)


def test_axes_turn_counterclockwise():
    assert tip_position([Link(axis=(0.0, 1.0, 0.0))], (1.0, 0.0, 0.0), [math.pi / 2]) == pytest.approx((0, 0, -1), abs=1e-12)
    assert tip_position([Link(axis=(-1.0, 0.0, 0.0))], (0.0, 1.0, 0.0), [math.pi / 2]) == pytest.approx((0, 0, -1), abs=1e-12)


def test_the_tip_of_the_so101_is_where_the_simulation_has_it():
    device = load_config(RobotConfig, SO101).device
    tip = config_from_dict(ServoRobotConfig, device, source="so101.yaml").tip
    assert tuple(tip.joints) == tuple(JOINT_LIMITS_RAD)
    low, high = np.array(list(JOINT_LIMITS_RAD.values())).T
    for angles in np.random.default_rng(0).uniform(low, high, (200, 5)):
        ours = tip_position(list(tip.joints.values()), tip.offset, angles.tolist())
        np.testing.assert_allclose(ours, forward_kinematics(angles), atol=1e-9)


def test_an_axis_that_is_no_direction_is_refused():
    with pytest.raises(ConfigError, match="length 1"):
        Link(axis=(1.0, 1.0, 0.0))
