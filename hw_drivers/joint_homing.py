"""Bringing the joints of an arm to where an episode begins, and to where its torque may be taken away."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from dpg_robot.contract import Contract
from dpg_robot.deploy.run_config import RobotConfig
from dpg_robot.errors import ContractError, unknown_name
from hw_drivers.servo_config import ServoRobotConfig, resolve_command

if TYPE_CHECKING:
    from hw_drivers.servo_robot import ServoRobot


@dataclass(frozen=True)
class JointHomingParameters:
    """Parameters of :class:`JointHoming`.

    Attributes:
        speed: largest speed of a goal, rad/s.
        tolerance: distance from home within which a joint counts as there, rad.
        rest_s: time for which all joints must be there, s.
        settle_s: time after the goals arrived in which the joints have to follow; what is left then is the servos' play and
            the weight that they carry, and homing ends if it is within ``droop``, s.
        droop: that distance, rad.
        correction: speed per distance from where a joint should be, for joints that take speeds, 1/s.
    """

    speed: float = 0.8
    tolerance: float = 0.03
    rest_s: float = 0.2
    settle_s: float = 1.0
    droop: float = 0.15
    correction: float = 2.0


class JointHoming:
    """Moves all joints to a pose on a straight line, the joint with the longest way at ``speed``.

    Goals start where the joints are, and ease in and out (minimum jerk). Joints that take speeds get those that follow such
    goals. The same serves for parking.

    Attributes:
        done: whether all joints have been there for a while.
    """

    def __init__(
        self,
        position_indices: Sequence[int],
        home: Sequence[float],
        park: Sequence[float | None],
        max_speeds: Sequence[float | None],
        parameters: JointHomingParameters | None = None,
        robot: ServoRobot | None = None,
    ) -> None:
        """Describe the way.

        Args:
            position_indices: (C,) index of each joint's position in the measurements.
            home: (C,) angles, rad.
            park: (C,) angles before the torque is taken away, rad; None where the joint stays.
            max_speeds: (C,) largest speed of joints that take speeds, rad/s; None for those that take angles.
            parameters: how to go there.
            robot: whose goals change with each homing.
        """
        self.done = False
        self._indices = list(position_indices)
        self._home, self._park = np.array(home, dtype=np.float64), list(park)
        self._takes_speed = np.array([speed is not None for speed in max_speeds])
        self._max_speeds = np.array([math.inf if speed is None else speed for speed in max_speeds])
        self._parameters = parameters or JointHomingParameters()
        self._robot = robot
        self._begin: NDArray[np.float64] | None = None
        self._goal = self._home
        self._duration_s = 0.0
        self._there_since_s: float | None = None

    @classmethod
    def from_config(cls, config: RobotConfig, servos: ServoRobotConfig, contract: Contract, robot: ServoRobot) -> JointHoming:
        """Make the homing of a servo robot.

        Raises:
            UnknownNameError: a parameter that there is not.
            ContractError: the position of a commanded joint is not measured.
        """
        known = [field.name for field in dataclasses.fields(JointHomingParameters)]
        for name in config.homing:
            if name not in known:
                raise unknown_name("homing parameter", name, known)
        commands = [resolve_command(name, servos) for name in contract.command_names]
        joints = [command.joint for command in commands]
        indices = []
        for joint in joints:
            channel = f"{joint}_position"
            if channel not in contract.measurement_names:
                raise ContractError(f"{joint} is commanded, so {channel} must be measured; the measurements lack it")
            indices.append(contract.measurement_names.index(channel))
        home = [servos.servos[joint].home for joint in joints]
        park = [servos.servos[joint].park for joint in joints]
        speeds = [
            min(-channel.low, channel.high) if command.quantity == "speed" else None
            for channel, command in zip(contract.commands, commands, strict=True)
        ]
        return cls(indices, home, park, speeds, JointHomingParameters(**config.homing), robot)

    @property
    def parks(self) -> bool:
        """Whether there is a pose to go to before the torque is taken away."""
        return any(angle is not None for angle in self._park)

    def start(self) -> None:
        """Begin anew; the task's goals are those of the next episode."""
        if self._robot is not None:
            self._robot.next_goals()
        self._go_to(self._home)

    def start_parking(self) -> None:
        """Begin anew, to the pose in which the torque may be taken away."""
        self._go_to(np.array([math.nan if angle is None else angle for angle in self._park]))

    def command(self, measurement: NDArray[np.float64], time_s: float) -> NDArray[np.float64]:
        """Return the commands (C,), rad or rad/s, for measured positions among the measurement (M,)."""
        positions = measurement[self._indices]
        if self._begin is None:
            self._begin = positions.copy()
            self._goal = np.where(np.isnan(self._goal), positions, self._goal)
            longest = float(np.abs(self._goal - positions).max())
            self._duration_s = max(1.875 * longest / self._parameters.speed, 1e-3)  # the peak of minimum jerk is 15/8 of the mean
        share = min(time_s / self._duration_s, 1.0)
        eased = share**3 * (10.0 - 15.0 * share + 6.0 * share**2)
        self._watch(float(np.abs(self._goal - positions).max()), time_s)
        way = self._goal - self._begin
        desired = self._begin + way * eased
        easing = 30.0 * share**2 * (1.0 - share) ** 2 / self._duration_s
        speed = way * easing + self._parameters.correction * (desired - positions)
        return np.where(self._takes_speed, np.clip(speed, -self._max_speeds, self._max_speeds), desired)

    def _go_to(self, goal: NDArray[np.float64]) -> None:
        self.done = False
        self._begin, self._goal, self._there_since_s = None, goal, None

    def _watch(self, distance: float, time_s: float) -> None:
        parameters = self._parameters
        settled = time_s > self._duration_s + parameters.settle_s
        there = time_s >= self._duration_s and distance < (parameters.droop if settled else parameters.tolerance)
        if not there:
            self._there_since_s = None
        elif self._there_since_s is None:
            self._there_since_s = time_s
        else:
            self.done = time_s - self._there_since_s >= parameters.rest_s
