import dataclasses
import math
from pathlib import Path

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from dpg_robot.config import load_config
from dpg_robot.contract import Contract, Feature
from dpg_robot.deploy.run_config import RobotConfig
from dpg_robot.deploy.safety import Safety, SafetyFlag
from dpg_robot.errors import ConfigError, ContractError, UnknownNameError
from hw_drivers.cartpole import CartpoleHoming, make_cartpole

CONFIG = load_config(RobotConfig, Path(__file__).parents[2] / "configs" / "robots" / "cartpole.yaml", ["port=/dev/null"])
CONTRACT = Contract(
    task="cartpole-swingup",
    measurements=CONFIG.measurements,
    features=(Feature("identity", "cart_position"),),
    commands=CONFIG.commands,
    rate_hz=CONFIG.rate_hz,
)
GRAVITY, LENGTH = 9.81, 1.0
STEP_S, STEPS_PER_PERIOD = 0.002, 10


@dataclasses.dataclass
class Plant:
    """Cart and uniform pole hinged at its end, by the equations of Lagrange; angle 0 upright; no friction at the hinge."""

    cart_mass: float
    pole_mass: float
    gain: float
    state: np.ndarray  # cart position, pole angle, cart velocity, pole velocity

    def derivative(self, state, force):
        _, angle, velocity, spin = state
        inertia, lever = self.pole_mass * LENGTH**2 / 3.0, self.pole_mass * LENGTH / 2.0
        mass = np.array([[self.cart_mass + self.pole_mass, lever * math.cos(angle)], [lever * math.cos(angle), inertia]])
        right = np.array([self.gain * force + lever * spin**2 * math.sin(angle), lever * GRAVITY * math.sin(angle)])
        return np.concatenate([[velocity, spin], np.linalg.solve(mass, right)])

    def step(self, force):
        k1 = self.derivative(self.state, force)
        k2 = self.derivative(self.state + 0.5 * STEP_S * k1, force)
        k3 = self.derivative(self.state + 0.5 * STEP_S * k2, force)
        k4 = self.derivative(self.state + STEP_S * k3, force)
        self.state = self.state + STEP_S / 6.0 * (k1 + 2.0 * k2 + 2.0 * k3 + k4)


def home(plant, limit_s):
    """Home through the safety layers, with commands that act 2 ms late; returns the time and the farthest cart position."""
    homing, safety = CartpoleHoming(), Safety(CONFIG.safety, CONTRACT)
    homing.start()
    time_s, farthest, applied = 0.0, 0.0, 0.0
    while not homing.done:
        assert time_s < limit_s, f"not home after {limit_s} s: {plant.state}"
        command = homing.command(plant.state.copy(), time_s).copy()
        _, stop = safety.limit_command(command, plant.state)
        assert stop is None
        for step in range(STEPS_PER_PERIOD):
            plant.step(applied if step == 0 else float(command[0]))
            farthest = max(farthest, abs(plant.state[0]))
        applied = float(command[0])
        time_s += STEP_S * STEPS_PER_PERIOD
    return time_s, farthest


def assert_home(plant):
    position, angle, velocity, spin = plant.state
    assert abs(position) < 0.08
    assert abs(math.remainder(angle - math.pi, 2 * math.pi)) < 0.1
    assert max(abs(velocity), abs(spin)) < 0.3


@settings(max_examples=12, deadline=None)
@given(
    st.floats(-1.2, 1.2),
    st.floats(-10, 10),
    st.floats(-0.5, 0.5),
    st.floats(-20, 20),
    st.floats(1.0, 1.4),
    st.floats(0.1, 0.14),
    st.floats(0.8, 1.0),
)
@example(0.0, 0.0, 0.0, 0.0, 1.2, 0.12, 0.9)  # balanced upright
@example(0.3, 3.0, 0.0, 20.0, 1.4, 0.14, 0.8)  # spinning, heavy and weak
def test_homing_ends_at_rest_from_any_start_without_leaving_the_soft_limits(x, angle, velocity, spin, cart, pole, gain):
    plant = Plant(cart, pole, gain, np.array([x, angle, velocity, spin]))
    time_s, farthest = home(plant, limit_s=12.0)
    assert_home(plant)
    assert farthest <= 1.6
    assert time_s < CONFIG.homing_timeout_s


def test_a_robot_that_is_at_home_is_home_at_once():
    plant = Plant(1.2, 0.12, 0.9, np.array([0.0, 7 * math.pi, 0.0, 0.0]))
    time_s, _ = home(plant, limit_s=1.0)
    assert time_s < 0.5
    assert_home(plant)


def test_homing_starts_anew_for_each_episode():
    homing = CartpoleHoming()
    homing.start()
    for tick in range(20):
        homing.command(np.array([0.0, math.pi, 0.0, 0.0]), tick * 0.02)
    assert homing.done
    homing.start()
    homing.command(np.array([0.5, 0.0, 0.0, 3.0]), 0.0)
    assert not homing.done


def test_the_robots_file_gives_a_robot_with_its_channels_and_limits():
    robot, homing = make_cartpole(CONFIG, CONTRACT)
    assert robot.measurement_names == CONTRACT.measurement_names
    assert robot.command_names == ("cart_force",)
    assert np.abs(homing.command(np.array([1.5, 1.0, 3.0, 20.0]), 0.0)).max() <= 10.0
    safety = Safety(CONFIG.safety, CONTRACT)
    command = np.array([10.0])
    assert safety.limit_command(command, np.array([1.65, math.pi, 0.0, 0.0]))[0] == SafetyFlag.SOFT_LIMIT
    assert command[0] == -10.0


@pytest.mark.parametrize(
    ("override", "error", "said"),
    [
        ({"port": ""}, ConfigError, "--port"),
        ({"homing": {"stifness": 1.0}}, UnknownNameError, "'stiffness'"),
        ({"driver": "hw_drivers.cartpole:make_cart"}, ConfigError, "make_cart"),
        ({"driver": "hw_drivers.nothing:make"}, ConfigError, "nothing"),
        ({"driver": "cartpole"}, ConfigError, "module:function"),
    ],
)
def test_a_configuration_that_makes_no_robot_is_refused(override, error, said):
    with pytest.raises(error, match=said):
        dataclasses.replace(CONFIG, **override).make(CONTRACT)


def test_another_robots_channels_are_refused():
    contract = dataclasses.replace(CONTRACT, measurements=CONTRACT.measurements[:3])
    with pytest.raises(ContractError, match="pole_velocity"):
        CONFIG.make(contract)
