"""Links of another length: a body whose mass is one elongated primitive, stretched about its near end without recompiling.

The straight part of the link has an axis, a near end (where its joint is) and a length. A point of the body at coordinate s
along the axis moves with the stretch: it stays where s < 0, moves to s times the new length over the old one on the straight
part, and moves by the change in length beyond it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import mujoco
import numpy as np
from numpy.typing import NDArray

from dpg_robot.errors import ConfigError

MassRule = Literal["keep", "density"]
Fields = dict[str, NDArray[np.float64]]  # per field of the model (n, size), flat per environment

_GEOM = mujoco.mjtGeom
_SHAPES = {
    int(_GEOM.mjGEOM_CAPSULE): "capsule",
    int(_GEOM.mjGEOM_CYLINDER): "cylinder",
    int(_GEOM.mjGEOM_BOX): "box",
    int(_GEOM.mjGEOM_ELLIPSOID): "ellipsoid",
}
# fields of points, with the field that names the body in whose frame they are
_POINTS = {
    "body_pos": "body_parentid",
    "body_ipos": None,
    "geom_pos": "geom_bodyid",
    "site_pos": "site_bodyid",
    "cam_pos": "cam_bodyid",
    "light_pos": "light_bodyid",
    "jnt_pos": "jnt_bodyid",
}
_MIDDLE = 0.25  # a joint this far along the link, or farther, is at neither end


def uniform_volume(shape: str, size: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the volumes (...) of solids with MuJoCo's ``size`` (..., 3), in m^3."""
    a, b, c = size[..., 0], size[..., 1], size[..., 2]
    if shape == "capsule":
        return np.asarray(np.pi * a**2 * (2 * b + 4 / 3 * a))
    if shape == "cylinder":
        return np.asarray(np.pi * a**2 * 2 * b)
    return np.asarray((8.0 if shape == "box" else 4 / 3 * np.pi) * a * b * c)


def uniform_inertia(shape: str, size: NDArray[np.float64], mass: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the moments of inertia (..., 3) of uniform solids about the axes of their frames, in kg m^2.

    Args:
        shape: capsule, cylinder, box or ellipsoid.
        size: (..., 3) MuJoCo's sizes, m: radius and half-length of the straight part, or half-axes.
        mass: (...) kg.
    """
    if shape in ("box", "ellipsoid"):
        squares = size**2
        # m / 3 (b^2 + c^2) for a box, m / 5 (b^2 + c^2) for an ellipsoid
        others = squares.sum(axis=-1, keepdims=True) - squares
        return np.asarray((mass / (3.0 if shape == "box" else 5.0))[..., None] * others)
    radius, half = size[..., 0], size[..., 1]
    share = 1.0 if shape == "cylinder" else 2 * half / (2 * half + 4 / 3 * radius)
    barrel, caps = mass * share, mass * (1.0 - share)
    along = barrel * radius**2 / 2 + caps * 2 / 5 * radius**2
    # each cap is a hemisphere with its centre of mass 3/8 r beyond the end of the barrel
    across = barrel * (radius**2 / 4 + half**2 / 3) + caps * (2 / 5 * radius**2 + half**2 + 3 / 4 * half * radius)
    return np.stack([across, across, along], axis=-1)


@dataclass(frozen=True)
class Link:
    """A body that can be stretched.

    Attributes:
        body: number of the body.
        geom: number of the geom that has its mass.
        shape: of the geom.
        size_index: component of the geom's size that is half the length.
        origin: (3,) near end of the straight part, in the body's frame, m.
        direction: (3,) unit vector from there to the far end.
        length: nominal length of the straight part, m.
        points: per field, the numbers (K,) of the points that move, and their coordinates s (K,), m.
    """

    body: int
    geom: int
    shape: str
    size_index: int
    origin: NDArray[np.float64]
    direction: NDArray[np.float64]
    length: float
    points: dict[str, tuple[NDArray[np.int64], NDArray[np.float64]]]


def find_link(model: mujoco.MjModel, body: int) -> Link:
    """Describe body number ``body`` as a link.

    Raises:
        ConfigError: its mass is not that of one elongated primitive, or no end of it is at its joint.
    """
    name = model.body(body).name or f"body_{body}"
    geom, shape = _find_massive_geom(model, body, name)
    size = model.geom_size[geom]
    if shape in ("capsule", "cylinder"):
        axis, size_index = 2, 1
    else:
        axis = size_index = int(np.argmax(size))
    half = float(size[size_index])
    direction = _rotation(model.geom_quat[geom])[:, axis]
    joints = np.flatnonzero(model.jnt_bodyid == body)
    anchor = model.jnt_pos[joints].mean(axis=0) if len(joints) else np.zeros(3)
    along = float((anchor - model.geom_pos[geom]) @ direction)
    if along > 0:  # the near end is the one with the joint
        direction, along = -direction, -along
    if along + half >= _MIDDLE * 2 * half:
        raise ConfigError(
            f"link_length: neither end of body {name!r} is at its joint, so it is not clear which end should stay; choose a "
            "link that begins at its joint"
        )
    if model.geom_fluid[geom, 0] > 0:
        raise ConfigError(f"link_length: body {name!r} has an ellipsoid fluid model, which is fixed for its nominal length")
    origin = model.geom_pos[geom] - half * direction
    points = {}
    for field, owner in _POINTS.items():
        numbers = np.array([body]) if owner is None else np.flatnonzero(getattr(model, owner) == body)
        coordinates = (getattr(model, field)[numbers] - origin) @ direction
        moves = coordinates > 1e-9 * half
        if moves.any():
            points[field] = (numbers[moves], coordinates[moves])
    return Link(body, geom, shape, size_index, origin, direction, 2 * half, points)


class LinkStretcher:
    """Gives a link other lengths.

    Args:
        model: the nominal model.
        link: which part of it.
        mass_rule: ``keep`` keeps the mass, ``density`` lets it follow the volume; the inertia is that of the new solid.

    Attributes:
        elements: flat numbers of the elements of each field that :meth:`stretch` writes.
    """

    def __init__(self, model: mujoco.MjModel, link: Link, mass_rule: MassRule) -> None:
        self._link = link
        self._size = model.geom_size[link.geom].copy()
        self._mass = float(model.body_mass[link.body])
        self._follows_density = mass_rule == "density"
        # the diagonal of R I R^T, from the geom's frame to the inertial frame
        turn = _rotation(model.body_iquat[link.body]).T @ _rotation(model.geom_quat[link.geom])
        self._turn = turn**2
        self.elements = {field: vector_elements(numbers) for field, (numbers, _) in link.points.items()} | {
            "geom_size": np.array([3 * link.geom + link.size_index]),
            "body_inertia": vector_elements(np.array([link.body])),
        }
        if self._follows_density:
            self.elements["body_mass"] = np.array([link.body])

    @property
    def length(self) -> float:
        """Nominal length, m."""
        return self._link.length

    def mass(self, lengths: NDArray[np.float64]) -> NDArray[np.float64]:
        """Return the masses (n,) of the link at these lengths (n,), kg."""
        if not self._follows_density:
            return np.full(lengths.shape, self._mass)
        volumes = uniform_volume(self._link.shape, self._sizes(lengths))
        return self._mass * volumes / uniform_volume(self._link.shape, self._size)

    def stretch(self, fields: Fields, lengths: NDArray[np.float64]) -> None:
        """Write ``lengths`` (n,), m, into the nominal ``fields``, each (n, size); bounding volumes are derived constants."""
        link = self._link
        for field, (_, s) in link.points.items():
            stretched = np.where(s < link.length, s * (lengths / link.length)[:, None], s + (lengths - link.length)[:, None])
            shift = (stretched - s)[..., None] * link.direction
            fields[field][:, self.elements[field]] += shift.reshape(len(lengths), -1)
        size, mass = self._sizes(lengths), self.mass(lengths)
        inertia = uniform_inertia(link.shape, size, mass) @ self._turn.T
        written = {
            "geom_size": lengths[:, None] / 2,
            "body_inertia": inertia,
            "body_mass": mass[:, None],
        }
        for field, values in written.items():
            if field in self.elements:
                fields[field][:, self.elements[field]] = values

    def _sizes(self, lengths: NDArray[np.float64]) -> NDArray[np.float64]:
        sizes = np.tile(self._size, (len(lengths), 1))
        sizes[:, self._link.size_index] = lengths / 2
        return sizes


def _find_massive_geom(model: mujoco.MjModel, body: int, name: str) -> tuple[int, str]:
    """Return number and shape of the primitive whose uniform density explains the body's mass, centre and inertia."""
    inertial = _rotation(model.body_iquat[body])
    tensor = inertial @ np.diag(model.body_inertia[body]) @ inertial.T
    for geom in np.flatnonzero(model.geom_bodyid == body):
        shape = _SHAPES.get(int(model.geom_type[geom]))
        if shape is None or model.body_mass[body] <= 0:
            continue
        own = _rotation(model.geom_quat[geom])
        expected = own @ np.diag(uniform_inertia(shape, model.geom_size[geom], model.body_mass[body])) @ own.T
        close = np.abs(expected - tensor).max() < 1e-6 * np.abs(tensor).max()
        centred = np.abs(model.geom_pos[geom] - model.body_ipos[body]).max() < 1e-6 * model.geom_rbound[geom]
        if close and centred:
            return int(geom), shape
    raise ConfigError(
        f"link_length: the mass of body {name!r} is not that of one uniform capsule, cylinder, box or ellipsoid, so its inertia "
        "at another length is not known; choose a body with one such geom, or give its other geoms mass 0"
    )


def _rotation(quat: NDArray[np.float64]) -> NDArray[np.float64]:
    matrix = np.zeros(9)
    mujoco.mju_quat2Mat(matrix, quat)
    return matrix.reshape(3, 3)


def vector_elements(numbers: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return the flat numbers of the three components of each vector."""
    return (3 * numbers[:, None] + np.arange(3)).ravel()
