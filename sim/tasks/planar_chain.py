"""The speed of a planar robot's centre of mass from its state alone, without MuJoCo's position and velocity stages."""

from __future__ import annotations

import mujoco
import numpy as np
from numpy.typing import NDArray

from sim.physics import Physics

_PLANE = (0, 2)  # x and z


class PlanarChain:
    """A tree of bodies in the x-z plane: a root that slides in the plane, and at most one hinge about y on each body.

    Seen from the root, the centre of mass is a sum over the bodies b of fixed vectors r_b that turn with their bodies by
    absolute angles theta_b. Its forward velocity is the derivative::

        v_x = v_root + sum_b theta_dot_b * (z_b * cos(theta_b) - x_b * sin(theta_b)),   r_b = (x_b, z_b)
            = v_root + sum_b theta_dot_b * |r_b| * cos(theta_b + phase_b),   phase_b = atan2(x_b, z_b)

    The vectors depend on masses and lengths, which may differ between environments: call :meth:`update` when these have changed.

    Args:
        physics: the simulations.
        root: name of the root body, a child of the world.

    Raises:
        ValueError: the robot is not planar in the sense above.
    """

    def __init__(self, physics: Physics, root: str) -> None:
        model = physics.model
        self._physics = physics
        self._bodies = np.flatnonzero(model.body_rootid == physics.body(root))
        _check_planar(model, self._bodies)
        moving = np.isin(model.jnt_bodyid, self._bodies)
        self._hinges = np.flatnonzero(moving & (model.jnt_type == mujoco.mjtJoint.mjJNT_HINGE))
        self._hinged = np.searchsorted(self._bodies, model.jnt_bodyid[self._hinges])
        parents = model.body_parentid[self._bodies]
        self._is_child = (parents[:, None] == self._bodies).astype(np.float64)  # [child, parent]
        # in_subtree[b, a] = 1 where b is a or a descendant of a: (I - is_child)^-1
        self._in_subtree = np.linalg.inv(np.eye(len(self._bodies)) - self._is_child).round()

        signs = model.jnt_axis[self._hinges, 1].round()
        turned = signs[:, None] * self._in_subtree[:, self._hinged].T  # absolute angles (B) of hinge angles (H)
        self._angles_of_qpos = np.zeros((model.nq, len(self._bodies)))
        self._angles_of_qpos[model.jnt_qposadr[self._hinges]] = turned
        self._rates_of_qvel = np.zeros((model.nv, len(self._bodies)))
        self._rates_of_qvel[model.jnt_dofadr[self._hinges]] = turned
        slides = np.flatnonzero(moving & (model.jnt_type == mujoco.mjtJoint.mjJNT_SLIDE))
        self._root_of_qvel = np.zeros(model.nv)
        self._root_of_qvel[model.jnt_dofadr[slides]] = model.jnt_axis[slides, 0]

        shape = (physics.num_envs, len(self._bodies))
        self._radius, self._phase, self._terms, self._rates = (np.zeros(shape) for _ in range(4))
        self.update(np.arange(physics.num_envs))

    def update(self, ids: NDArray[np.int64]) -> None:
        """Follow the present masses and lengths of environments ``ids``."""
        current = self._physics.current
        mass = current("body_mass")[ids[:, None], self._bodies]
        center, position = (
            current(field)[ids[:, None, None], self._bodies[:, None], _PLANE] for field in ("body_ipos", "body_pos")
        )
        anchor = np.zeros_like(center)
        anchor[:, self._hinged] = current("jnt_pos")[ids[:, None, None], self._hinges[:, None], _PLANE]
        subtree_mass = (mass @ self._in_subtree)[:, :, None]
        # what turns with body b: its own mass, and, at the hinges of its children, all that they carry
        carried = self._is_child.T @ (subtree_mass * (position + anchor))
        offsets = mass[:, :, None] * center - subtree_mass * anchor + carried
        offsets /= mass.sum(axis=1)[:, None, None]
        x, z = offsets[..., 0], offsets[..., 1]
        self._radius[ids] = np.hypot(x, z)
        self._phase[ids] = np.arctan2(x, z) - self._physics.model.qpos0 @ self._angles_of_qpos

    def forward_velocity(self) -> NDArray[np.float64]:
        """Return the velocity (N,) of the centre of mass along x in the present states, m/s."""
        qvel, terms = self._physics.qvel, self._terms
        np.matmul(self._physics.qpos, self._angles_of_qpos, out=terms)
        terms += self._phase
        np.cos(terms, out=terms)
        terms *= self._radius
        terms *= np.matmul(qvel, self._rates_of_qvel, out=self._rates)
        velocity: NDArray[np.float64] = qvel @ self._root_of_qvel
        velocity += terms.sum(axis=1)
        return velocity


def _check_planar(model: mujoco.MjModel, bodies: NDArray[np.int64]) -> None:
    hinges_of_body = dict.fromkeys(bodies.tolist(), 0)
    for joint in np.flatnonzero(np.isin(model.jnt_bodyid, bodies)):
        name, body, axis = model.joint(joint).name, int(model.jnt_bodyid[joint]), model.jnt_axis[joint]
        if model.jnt_type[joint] == mujoco.mjtJoint.mjJNT_HINGE:
            hinges_of_body[body] += 1
            planar = hinges_of_body[body] == 1 and np.allclose(np.abs(axis), (0, 1, 0))
        elif model.jnt_type[joint] == mujoco.mjtJoint.mjJNT_SLIDE:
            planar = body == bodies[0] and not hinges_of_body[body] and np.isclose(axis[1], 0)
        else:
            planar = False
        if not planar:
            raise ValueError(
                f"joint {name!r} does not keep the robot planar; expected slides in the x-z plane on the root, followed by "
                "its hinge, and at most one hinge about y on each body"
            )
    for body in bodies:
        if not np.allclose(model.body_quat[body], (1, 0, 0, 0)):
            raise ValueError(
                f"body {model.body(body).name!r} is turned against its parent; expected no rotation between bodies at rest"
            )
