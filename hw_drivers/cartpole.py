"""The cart-pole robot: a cart on a rail with a free pole, behind a microcontroller, and the controller that brings it home."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from dpg_robot.contract import Contract
from dpg_robot.deploy.run_config import RobotConfig
from dpg_robot.errors import ConfigError, ContractError, unknown_name
from hw_drivers.microcontroller_robot import MicrocontrollerRobot

_CHANNELS = ("cart_position", "pole_angle", "cart_velocity", "pole_velocity")


def make_cartpole(config: RobotConfig, contract: Contract) -> tuple[MicrocontrollerRobot, CartpoleHoming]:
    """Make the robot and its homing from a robot configuration; nothing is opened yet.

    Raises:
        ConfigError: there is no port, or a homing parameter is not known.
        ContractError: the channels are not those of a cart-pole.
    """
    if not config.port:
        raise ConfigError(f"robot {config.name!r} has no port; give it in the configuration or with --port /dev/...")
    if contract.measurement_names != _CHANNELS or contract.num_actions != 1:
        raise ContractError(
            f"a cart-pole measures {', '.join(_CHANNELS)} and takes one force, got {', '.join(contract.measurement_names)} and "
            f"{', '.join(contract.command_names)}"
        )
    known = [field.name for field in dataclasses.fields(HomingParameters)]
    for name in config.homing:
        if name not in known:
            raise unknown_name("homing parameter", name, known)
    robot = MicrocontrollerRobot.from_contract(
        config.port, contract, baud_rate=config.baud_rate, read_timeout_s=config.read_timeout_s
    )
    force_limit = float(min(-contract.command_low[0], contract.command_high[0]))
    return robot, CartpoleHoming(HomingParameters(**config.homing), force_limit)


@dataclass(frozen=True)
class HomingParameters:
    """Parameters of :class:`CartpoleHoming`.

    Attributes:
        mass: mass that the force accelerates, kg.
        pole_damping: cart acceleration per pole velocity, m/s^2 per rad/s.
        pole_stiffness: cart acceleration per angle from hanging, near there, m/s^2 per rad.
        swing_acceleration: largest cart acceleration used to take energy from the pole, m/s^2.
        stiffness: cart acceleration per displacement from the middle, 1/s^2.
        damping: cart acceleration per cart velocity, 1/s.
        lead_s: time from a measurement until its command acts, s.
        position_tolerance: m.
        angle_tolerance: rad.
        velocity_tolerance: m/s for the cart and rad/s for the pole.
        rest_s: time for which the robot must stay within the tolerances, s.
    """

    mass: float = 1.45
    pole_damping: float = 2.0
    pole_stiffness: float = 3.0
    swing_acceleration: float = 6.0
    stiffness: float = 3.0
    damping: float = 3.2
    lead_s: float = 0.02
    position_tolerance: float = 0.05
    angle_tolerance: float = 0.06
    velocity_tolerance: float = 0.15
    rest_s: float = 0.3


class CartpoleHoming:
    """Brings the cart to the middle and the pole to hang at rest, from any start.

    The hinge has nearly no damping, so the energy must leave through the cart. For a pole of mass m whose centre of mass lies at
    distance l from the hinge, with angle theta (0 upright) and cart acceleration a, the pole's energy changes by

        dE/dt = -m l a cos(theta) theta',

    hence a = k cos(theta) theta' takes energy at every angle (Astrom and Furuta, 2000, with the opposite sign of their swing-up).
    Near the hanging position the same law is a linear damper. A weak spring and damper bring the cart to the middle.

    Attributes:
        done: whether cart and pole have been at rest at home for a while.
    """

    def __init__(self, parameters: HomingParameters | None = None, force_limit: float = 10.0) -> None:
        self.done = False
        self._parameters = parameters or HomingParameters()
        self._force_limit = force_limit
        self._rest_since_s: float | None = None
        self._command = np.zeros(1)

    def start(self) -> None:
        """Begin anew."""
        self.done = False
        self._rest_since_s = None

    def command(self, measurement: NDArray[np.float64], time_s: float) -> NDArray[np.float64]:
        """Return the force (1,), N, for measured cart position, pole angle, cart velocity and pole velocity (4,)."""
        position, angle, velocity, pole_velocity = measurement.tolist()
        self._watch_rest(position, angle, velocity, pole_velocity, time_s)
        acceleration = self._swing_damping(position, angle, pole_velocity)
        acceleration -= self._parameters.stiffness * position + self._parameters.damping * velocity
        self._command[0] = min(max(self._parameters.mass * acceleration, -self._force_limit), self._force_limit)
        return self._command

    def _swing_damping(self, position: float, angle: float, pole_velocity: float) -> float:
        parameters, largest = self._parameters, self._parameters.swing_acceleration
        if math.cos(angle) > 0.9 and abs(pole_velocity) < 0.3:
            return math.copysign(0.5 * largest, -position)  # balanced upright there is nothing to damp: tip it over
        # The pole turns on while the command travels.
        angle += pole_velocity * parameters.lead_s
        wanted = parameters.pole_damping * math.cos(angle) * pole_velocity
        wanted += parameters.pole_stiffness * math.sin(angle) * max(0.0, -math.cos(angle))
        return min(max(wanted, -largest), largest)

    def _watch_rest(self, position: float, angle: float, velocity: float, pole_velocity: float, time_s: float) -> None:
        parameters = self._parameters
        # The encoder counts turns; what matters is the distance to the nearest hanging position.
        from_hanging = math.remainder(angle - math.pi, 2.0 * math.pi)
        at_rest = (
            abs(position) < parameters.position_tolerance
            and abs(from_hanging) < parameters.angle_tolerance
            and max(abs(velocity), abs(pole_velocity)) < parameters.velocity_tolerance
        )
        if not at_rest:
            self._rest_since_s = None
        elif self._rest_since_s is None:
            self._rest_since_s = time_s
        else:
            self.done = time_s - self._rest_since_s >= parameters.rest_s
