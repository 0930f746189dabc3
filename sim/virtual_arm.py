"""A virtual SO-101 that stands in for a real one: hidden parameters, gravity, servos that sag, and a real-time clock.

It fits behind emulated servos. Its dynamics differ on purpose from those that policies are trained on, so that running on it says
something about running on hardware.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import mujoco
import numpy as np

from sim.real_time_plant import TIMESTEP_S, RealTimePlant
from sim.tasks.so101 import JOINT_LIMITS_RAD, SO101Reach

GRIPPER = "gripper"
JOINT_NAMES = (*JOINT_LIMITS_RAD, GRIPPER)
REST_POSE = (0.0, -1.7, 1.6, 1.0, 0.0, 0.0)
"""Joint angles in which the arm lies folded without torque, rad."""

_PASSIVE_DAMPING = 0.25  # N m s/rad: a gear that is turned from its slow side, with the motor's windings open


@dataclass(frozen=True)
class ArmParameters:
    """What makes one arm differ from another; factors are on the model's values.

    Attributes:
        mass: factor on all masses and inertias.
        damping: factor on the joints' viscous friction.
        friction: dry friction on top of the model's, N m.
        stiffness: factor on the servos' stiffness.
        torque: factor on the servos' largest torque.
        offsets: (6,) errors of the joints' zeros, rad: what a calibration by hand leaves.
    """

    mass: float
    damping: float
    friction: float
    stiffness: float
    torque: float
    offsets: tuple[float, ...]

    @classmethod
    def nominal(cls) -> ArmParameters:
        """Return the parameters of the model."""
        return cls(1.0, 1.0, 0.0, 1.0, 1.0, (0.0,) * len(JOINT_NAMES))

    @classmethod
    def draw(cls, seed: int) -> ArmParameters:
        """Draw one arm: heavier, stiffer to move, on a weaker supply, and calibrated by hand."""
        random = np.random.default_rng(seed)
        return cls(
            mass=random.uniform(1.0, 1.2),
            damping=random.uniform(0.7, 1.8),
            friction=random.uniform(0.0, 0.08),
            stiffness=random.uniform(0.6, 1.1),
            torque=random.uniform(0.8, 1.0),
            offsets=tuple(random.uniform(-0.01, 0.01, len(JOINT_NAMES)).tolist()),
        )


class VirtualArm(RealTimePlant):
    """The arm, in real time; implements ``Joints`` of the emulated servos, one servo for each of :data:`JOINT_NAMES`.

    Angles of the interface are the servos'; ``gears`` and ``zeros`` say how they are mounted. The gripper's servo moves the rest
    position of a stiff spring.

    Attributes:
        parameters: the arm.
    """

    def __init__(
        self,
        seed: int = 0,
        *,
        gears: Sequence[float] | None = None,
        zeros: Sequence[float] | None = None,
        start: Sequence[float] = REST_POSE,
        parameters: ArmParameters | None = None,
    ) -> None:
        """Set up the arm, without torque.

        Args:
            seed: seed of the parameters.
            gears: (6,) servo angle per joint angle; None for 1.
            zeros: (6,) angle of each servo where its joint is at 0, rad; None for 0.
            start: (6,) joint angles, rad.
            parameters: the arm; None draws it from the seed.
        """
        super().__init__()
        self.parameters = parameters or ArmParameters.draw(seed)
        count = len(JOINT_NAMES)
        self._gears = np.array(gears if gears is not None else np.ones(count), dtype=np.float64)
        self._zeros = np.array(zeros if zeros is not None else np.zeros(count), dtype=np.float64) + self.parameters.offsets
        self._model = _build_model(self.parameters)
        self._data = mujoco.MjData(self._model)
        self._data.qpos[:] = start
        self._forces, self._damping = self._model.actuator_forcerange.copy(), self._model.dof_damping.copy()
        self._shares = np.ones(count)
        self._goals, self._aims = np.array(start, dtype=np.float64), np.array(start, dtype=np.float64)
        self._velocity_limits = np.full(count, math.inf)
        self._on = np.zeros(count, dtype=np.bool_)
        for index in range(count):
            self._apply_torque(index)
        mujoco.mj_forward(self._model, self._data)

    def position(self, index: int) -> float:
        """Return a servo's angle, rad."""
        return float(self._data.qpos[index] * self._gears[index] + self._zeros[index])

    def velocity(self, index: int) -> float:
        """Return a servo's angular velocity, rad/s."""
        return float(self._data.qvel[index] * self._gears[index])

    def effort(self, index: int) -> float:
        """Return a servo's torque as a share of its largest, -1 to 1; 0 while released."""
        if not self._on[index] or index >= len(self._forces):
            return 0.0
        return float(self._data.actuator_force[index] / self._forces[index, 1] * np.sign(self._gears[index]))

    def set_goal(self, index: int, position: float, velocity_limit: float) -> None:
        """Switch a servo's torque on and move it to an angle (rad), at most at ``velocity_limit`` (rad/s)."""
        goal = (position - self._zeros[index]) / self._gears[index]
        low, high = self._model.jnt_range[index]
        self._goals[index] = min(max(goal, low), high) if math.isinf(goal) else goal
        self._velocity_limits[index] = velocity_limit / abs(self._gears[index])
        if not self._on[index]:
            self._on[index] = True
            self._aims[index] = self._data.qpos[index]
            self._apply_torque(index)

    def release(self, index: int) -> None:
        """Switch a servo's torque off; its joint falls, slowed down by the gear."""
        if self._on[index]:
            self._on[index] = False
            self._apply_torque(index)

    def limit_torque(self, index: int, share: float) -> None:
        """Bound a servo's torque to a share of its largest, 0 to 1."""
        if share != self._shares[index]:
            self._shares[index] = share
            self._apply_torque(index)

    def _apply_torque(self, index: int) -> None:
        if index >= len(self._forces):
            return
        share = self._shares[index] if self._on[index] else 0.0
        self._model.actuator_forcerange[index] = share * self._forces[index]
        self._model.dof_damping[index] = self._damping[index] + (0.0 if self._on[index] else _PASSIVE_DAMPING)

    def _step(self) -> None:
        limits = self._velocity_limits * TIMESTEP_S
        self._aims += np.clip(self._goals - self._aims, -limits, limits)
        arm = len(self._forces)
        self._data.act[:] = self._aims[:arm]  # the goals themselves; as speeds of them, the controls stay 0
        if self._on[arm]:
            self._model.qpos_spring[arm] = self._aims[arm]
        mujoco.mj_step(self._model, self._data)


def _build_model(parameters: ArmParameters) -> mujoco.MjModel:
    spec = SO101Reach().load_spec()
    spec.option.timestep = TIMESTEP_S
    model = spec.compile()
    model.body_mass *= parameters.mass
    model.body_inertia *= parameters.mass
    model.dof_damping *= parameters.damping
    model.dof_frictionloss += parameters.friction
    model.actuator_gainprm[:, 0] *= parameters.stiffness
    model.actuator_biasprm[:, 1] *= parameters.stiffness
    model.actuator_forcerange *= parameters.torque
    return model
