"""Learning from a person's hands where a robot's joints begin and end, where they are at 0, and which way is positive."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass

from dpg_robot.errors import SafetyError
from hw_drivers.servo_config import ServoConfig

_LEAST_RANGE = 0.2  # rad of a joint, below which it was not moved
_LEAST_PUSH = 0.05  # rad of a joint


@dataclass
class Range:
    """Angles of a servo that were seen, rad."""

    low: float
    high: float


class RangeRecorder:
    """Follows the servos while a person moves the joints, and keeps the least and the largest angle of each.

    Attributes:
        ranges: by joint; empty before the first reading.
    """

    def __init__(self) -> None:
        self.ranges: dict[str, Range] = {}
        self._last: dict[str, float] = {}

    def add(self, positions: Mapping[str, float]) -> None:
        """Take the servos' angles, rad.

        Raises:
            SafetyError: a servo turned past the end of its scale, where its angle jumps by a turn.
        """
        for joint, position in positions.items():
            if abs(position) > math.pi or abs(position - self._last.get(joint, position)) > math.pi:
                raise SafetyError(
                    f"{joint} turned past the end of its servo's scale, where the angle jumps; bring the joint to the middle of "
                    "its range and begin again. If it happens again, mount the horn so that it is near half a turn there"
                )
            self._last[joint] = position
            seen = self.ranges.setdefault(joint, Range(position, position))
            seen.low, seen.high = min(seen.low, position), max(seen.high, position)


def calibrate_servo(name: str, servo: ServoConfig, seen: Range, zero: float, positive: float, *, margin: float) -> ServoConfig:
    """Return the servo with what was learned.

    Args:
        name: its joint, for messages.
        servo: the servo as it is described now; the size of its ``gear`` stays.
        seen: angles of the servo that its joint can reach, rad.
        zero: angle of the servo where the joint is at 0, rad.
        positive: angle of the servo after the joint was pushed in its positive direction from 0, rad.
        margin: what to stay away from the ends of the range, rad of the joint.

    Raises:
        SafetyError: the joint was hardly moved, or its 0 lies outside its range.
    """
    size = abs(servo.gear)
    if (seen.high - seen.low) / size < _LEAST_RANGE + 2 * margin:
        raise SafetyError(
            f"{name} was moved by {(seen.high - seen.low) / size:.2f} rad only; move it from one end to the other, then try again"
        )
    if abs(positive - zero) / size < _LEAST_PUSH:
        raise SafetyError(
            f"{name} was not pushed; move it by at least {_LEAST_PUSH} rad in its positive direction, then try again"
        )
    if not seen.low - 1e-6 <= zero <= seen.high + 1e-6:
        raise SafetyError(
            f"{name} is at 0 where its servo is at {zero:.2f} rad, outside of the range {seen.low:.2f} to {seen.high:.2f} rad "
            "that was seen; move it through its whole range, then try again"
        )
    gear = math.copysign(size, positive - zero)
    ends = sorted((angle - zero) / gear for angle in (seen.low, seen.high))
    low, high = round(ends[0] + margin, 4), round(ends[1] - margin, 4)

    def within(angle: float | None) -> float | None:
        return None if angle is None else min(max(angle, low), high)

    home = within(servo.home)
    assert home is not None
    return dataclasses.replace(
        servo, gear=gear, zero=round(zero, 5), low=low, high=high, home=home, park=within(servo.park), hold=within(servo.hold)
    )
