"""Where the tip of an arm is, from the angles of its joints: a chain of turning joints, in pure Python."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from dpg_robot.config import setting
from dpg_robot.errors import ConfigError

_Vector = tuple[float, float, float]


@dataclass(frozen=True)
class Link:
    """A joint of a chain and the way to it from the joint before, all joints being at 0."""

    offset: _Vector = setting((0.0, 0.0, 0.0), "way from the joint before (the base for the first)", unit="m")
    axis: _Vector = setting((0.0, 0.0, 1.0), "axis of the joint; it turns counterclockwise around it")

    def __post_init__(self) -> None:
        if not math.isclose(math.hypot(*self.axis), 1.0, rel_tol=1e-6):
            raise ConfigError(f"axis must have length 1, got {list(self.axis)}")


def tip_position(links: Sequence[Link], tip: _Vector, angles: Sequence[float]) -> _Vector:
    """Return where the tip is, m, in the base's frame.

    Args:
        links: the joints, from the base on.
        tip: way from the last joint to the tip, all joints being at 0, m.
        angles: angles of the joints, rad.
    """
    place = tip
    for link, angle in zip(reversed(links), reversed(angles), strict=True):
        x, y, z = _turned(place, link.axis, angle)
        place = (x + link.offset[0], y + link.offset[1], z + link.offset[2])
    return place


def _turned(vector: _Vector, axis: _Vector, angle: float) -> _Vector:
    """Return a vector turned around an axis through the origin (Rodrigues, 1840)."""
    (x, y, z), (a, b, c) = vector, axis
    cosine, sine = math.cos(angle), math.sin(angle)
    along = (a * x + b * y + c * z) * (1.0 - cosine)
    return (
        x * cosine + (b * z - c * y) * sine + a * along,
        y * cosine + (c * x - a * z) * sine + b * along,
        z * cosine + (a * y - b * x) * sine + c * along,
    )
