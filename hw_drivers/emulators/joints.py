"""What emulated servos have in common: the joints that they move, and the bus that they answer on. Time is an argument.

Dynamixel and Feetech emulators both drive a :class:`Joints` and are an :class:`EmulatedBus`, so that one plant fits under either
and one server serves either.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

_AT_REST_RAD_PER_S = 1e-6
_FRICTION = 0.2


@dataclass(frozen=True, slots=True)
class Answer:
    """Bytes that one servo puts on the wire.

    Attributes:
        due_ns: when the first bit leaves the servo.
        data: what it sends, without pauses.
    """

    due_ns: int
    data: bytes


class EmulatedBus(Protocol):
    """Several servos on one half-duplex wire.

    Attributes:
        baud_rate: bits per second at which the host talks; whoever serves the bus sets it. A servo that is set to another
            rate hears nothing.
    """

    baud_rate: int

    def receive(self, data: bytes, now_ns: int) -> list[Answer]:
        """Hear bytes whose last bit arrives at ``now_ns``; returns the answers that they cause, in the order of their times."""
        ...

    def advance(self, now_ns: int) -> None:
        """Let time pass up to ``now_ns``: joints move, watchdogs run."""
        ...

    def silence(self, index: int) -> None:
        """Let servo ``index``, from 0, hear and answer nothing any more, as if its data line had broken; it keeps its torque."""
        ...

    def with_other_id(self, data: bytes) -> bytes:
        """Return an answer's bytes as another servo would have sent them: the ID one higher, the check sum right."""
        ...


class NamedModel(Protocol):
    """What every model of servo has."""

    @property
    def name(self) -> str: ...  # noqa: D102
    @property
    def baud_rates(self) -> Sequence[int]: ...  # noqa: D102


def checked_ids(models: Sequence[NamedModel], ids: Sequence[int] | None, max_id: int, baud_rate: int) -> Sequence[int]:
    """Return the IDs of a bus's servos, 1, 2, ... if not given. Raises ValueError for what they cannot be set to."""
    ids = range(1, len(models) + 1) if ids is None else ids
    if len(ids) != len(models) or not all(0 <= servo_id <= max_id for servo_id in ids):
        raise ValueError(f"got {len(models)} models and IDs {list(ids)}, expected an ID from 0 to {max_id} for each")
    for model in models:
        if baud_rate not in model.baud_rates:
            raise ValueError(f"{model.name} has no baud rate {baud_rate}; it has {', '.join(map(str, model.baud_rates))}")
    return ids


class Joints(Protocol):
    """What the servos of a bus move; joint ``index`` belongs to the bus's servo number ``index``, from 0."""

    def advance(self, until_ns: int) -> None:
        """Let time pass up to ``until_ns``, which is never less than before. The first call sets the clock."""
        ...

    def position(self, index: int) -> float:
        """Return the angle, rad."""
        ...

    def velocity(self, index: int) -> float:
        """Return the angular velocity, rad/s."""
        ...

    def effort(self, index: int) -> float:
        """Return the servo's torque as a fraction of its largest, -1 to 1; 0 while released."""
        ...

    def set_goal(self, index: int, position: float, velocity_limit: float) -> None:
        """Switch the torque on and move to an angle.

        Args:
            index: number of the joint.
            position: rad; plus or minus infinity to turn at ``velocity_limit`` without end.
            velocity_limit: largest velocity on the way, rad/s, not negative; infinity for as fast as it can.
        """
        ...

    def limit_torque(self, index: int, share: float) -> None:
        """Bound the torque to a share of the servo's largest, 0 to 1; it lasts until it is set anew."""
        ...

    def release(self, index: int) -> None:
        """Switch the torque off."""
        ...


@dataclass(slots=True)
class _Joint:
    position: float
    velocity: float = 0.0
    goal: float | None = None
    velocity_limit: float = 0.0


class FirstOrderJoints:
    """Joints without inertia: each closes in on its goal as exp(-t / time constant), not faster than its limit.

    The only load is viscous friction, which takes a fifth of the torque at the largest velocity. A released joint stays where it
    is.

    Attributes:
        jammed: numbers of the joints that something holds fast; a jammed joint pushes with its whole torque towards its goal.
    """

    def __init__(self, positions: Sequence[float], *, max_velocity: float = 6.0, time_constant_s: float = 0.05) -> None:
        """Start at ``positions`` (rad), released; joints turn at most at ``max_velocity`` (rad/s)."""
        if not (max_velocity > 0 and time_constant_s > 0):
            raise ValueError(
                f"max_velocity and time_constant_s must be positive; got {max_velocity} rad/s and {time_constant_s} s"
            )
        self.jammed: set[int] = set()
        self._joints = [_Joint(float(position)) for position in positions]
        self._max_velocity = max_velocity
        self._time_constant_s = time_constant_s
        self._now_ns: int | None = None

    def advance(self, until_ns: int) -> None:
        """Let time pass up to ``until_ns``. Raises ValueError if that is in the past."""
        seconds = 0.0 if self._now_ns is None else (until_ns - self._now_ns) * 1e-9
        if seconds < 0:
            raise ValueError(f"time runs backwards: got {until_ns} ns, expected at least {self._now_ns} ns")
        self._now_ns = until_ns
        for index, joint in enumerate(self._joints):
            if joint.goal is not None and index not in self.jammed:
                self._move(joint, joint.goal, seconds)
            else:
                joint.velocity = 0.0

    def position(self, index: int) -> float:
        """Return the angle, rad."""
        return self._joints[index].position

    def velocity(self, index: int) -> float:
        """Return the angular velocity, rad/s."""
        return self._joints[index].velocity

    def effort(self, index: int) -> float:
        """Return the torque as a fraction of the largest, -1 to 1."""
        joint = self._joints[index]
        if joint.goal is None:
            return 0.0
        if index in self.jammed:
            error = joint.goal - joint.position
            return math.copysign(1.0, error) if error else 0.0
        return _FRICTION * joint.velocity / self._max_velocity

    def set_goal(self, index: int, position: float, velocity_limit: float) -> None:
        """Switch the torque on and move to ``position`` (rad), at most at ``velocity_limit`` (rad/s)."""
        if math.isnan(position) or not velocity_limit >= 0:
            raise ValueError(f"a goal needs a position and a velocity limit of at least 0; got {position}, {velocity_limit}")
        joint = self._joints[index]
        joint.goal, joint.velocity_limit = position, min(velocity_limit, self._max_velocity)

    def limit_torque(self, index: int, share: float) -> None:
        """Bound the torque to a share of the largest; joints without load need none, so they move as before."""
        if not 0 <= share <= 1:
            raise ValueError(f"a torque limit is a share of the largest, 0 to 1; got {share}")

    def release(self, index: int) -> None:
        """Switch the torque off; the joint stays where it is."""
        joint = self._joints[index]
        joint.goal, joint.velocity = None, 0.0

    def _move(self, joint: _Joint, goal: float, seconds: float) -> None:
        """Move by the exact solution of d(position)/dt = clip((goal - position) / time constant, +-velocity limit)."""
        error = goal - joint.position
        direction, distance = math.copysign(1.0, error), abs(error)
        limit = joint.velocity_limit
        slow_zone = limit * self._time_constant_s  # nearer than this the joint slows down
        if limit == 0.0:
            joint.velocity = 0.0
            return
        if distance > slow_zone:
            cruise_s = min(seconds, (distance - slow_zone) / limit)
            joint.position += direction * limit * cruise_s
            seconds -= cruise_s
            distance = max(distance - limit * cruise_s, slow_zone)
        if distance > slow_zone or math.isinf(distance):
            joint.velocity = direction * limit
            return
        distance *= math.exp(-seconds / self._time_constant_s)
        if seconds > 0:
            joint.position = goal - direction * distance
        speed = distance / self._time_constant_s
        joint.velocity = direction * speed if speed > _AT_REST_RAD_PER_S else 0.0
