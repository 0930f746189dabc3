"""Random initial states that several tasks share, for many environments at once."""

from __future__ import annotations

from collections.abc import Callable

import mujoco
import numpy as np
from numpy.typing import NDArray

from dpg_robot.errors import DpgError
from sim.physics import Physics

# dm_control's own tasks never need more than some tens; a loop that cannot end is worse than an error
MAX_DRAWS = 1000


class NoFreeStateError(DpgError, RuntimeError):
    """Every state that was drawn had contacts."""


def random_joint_positions(physics: Physics, ids: NDArray[np.int64], random: np.random.Generator) -> None:
    """Draw the joint positions of environments ``ids`` as dm_control's suite does.

    Limited hinges and slides are uniform within their limits, unlimited hinges uniform in [-pi, pi). Ball joints are uniform on
    the sphere of unit quaternions; limited ones have a uniform axis and a uniform angle up to their limit. Free joints get a
    normalized quaternion of four numbers uniform in [0, 1) (which is not a uniform orientation). Unlimited slides and the
    positions of free joints stay as they are.
    """
    model = physics.model
    limited = model.jnt_limited.astype(np.bool_)
    hinge = model.jnt_type == mujoco.mjtJoint.mjJNT_HINGE
    slide = model.jnt_type == mujoco.mjtJoint.mjJNT_SLIDE
    scalar = hinge | (slide & limited)
    low = np.where(limited, model.jnt_range[:, 0], -np.pi)[scalar]
    high = np.where(limited, model.jnt_range[:, 1], np.pi)[scalar]
    physics.qpos[np.ix_(ids, model.jnt_qposadr[scalar])] = random.uniform(low, high, (len(ids), len(low)))
    for joint in np.flatnonzero(~hinge & ~slide):
        start = int(model.jnt_qposadr[joint])
        if model.jnt_type[joint] == mujoco.mjtJoint.mjJNT_FREE:
            quaternions = _normalized(random.random((len(ids), 4)))
            start += 3
        elif limited[joint]:
            quaternions = _limited_quaternions(len(ids), float(model.jnt_range[joint, 1]), random)
        else:
            quaternions = _normalized(random.standard_normal((len(ids), 4)))
        physics.qpos[ids, start : start + 4] = quaternions


def redraw_until_free(
    physics: Physics,
    ids: NDArray[np.int64],
    random: np.random.Generator,
    draw: Callable[[NDArray[np.int64], np.random.Generator], None],
) -> None:
    """Call ``draw(ids, random)`` until none of the environments ``ids`` has contacts; only those that have are drawn again.

    Raises:
        NoFreeStateError: some still have contacts after ``MAX_DRAWS`` draws.
    """
    contacts = physics.data("ncon").reshape(-1)
    remaining = ids
    for _ in range(MAX_DRAWS):
        draw(remaining, random)
        physics.forward(remaining)
        remaining = remaining[contacts[remaining] > 0]
        if not len(remaining):
            return
    raise NoFreeStateError(
        f"environments {remaining[:10].tolist()} had contacts in each of {MAX_DRAWS} drawn initial states; "
        "check the sizes and joint limits of the model (randomized dynamics may have changed them)"
    )


def _normalized(vectors: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.asarray(vectors / np.linalg.norm(vectors, axis=1, keepdims=True))


def _limited_quaternions(count: int, largest_angle: float, random: np.random.Generator) -> NDArray[np.float64]:
    axes = _normalized(random.standard_normal((count, 3)))
    half_angles = 0.5 * largest_angle * random.random((count, 1))
    return np.concatenate([np.cos(half_angles), np.sin(half_angles) * axes], axis=1)
