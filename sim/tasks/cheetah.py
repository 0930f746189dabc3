"""Cheetah: dm_control's planar runner (Tassa et al., 2018, arXiv 1801.00690; model after Wawrzynski, 2009)."""

from __future__ import annotations

import math

import mujoco
import numpy as np
from numpy.typing import NDArray

from sim.physics import Physics
from sim.suite_model import load_suite_spec
from sim.tasks.planar_chain import PlanarChain
from sim.tasks.rewards import tolerance
from sim.tasks.task import Task

RUN_SPEED = 10.0  # m/s
SETTLING_STEPS = 200


def run() -> Task:
    """Return the task of running forward at 10 m/s."""
    return Cheetah()


class Cheetah(Task):
    """Run: the reward grows linearly with the forward speed, up to 1 at ``RUN_SPEED``."""

    name = "cheetah-run"
    time_limit_s = 10.0
    control_timestep_s = 0.01
    # one physics step per control step, so computing more at the new state would cost 40% of it; the speed comes from PlanarChain
    stage = mujoco.mjtStage.mjSTAGE_NONE

    def load_spec(self) -> mujoco.MjSpec:
        """Return dm_control's cheetah."""
        return load_suite_spec("cheetah")

    def observation_names(self, model: mujoco.MjModel) -> tuple[str, ...]:
        """Return positions of all joints but the one along the track, then velocities of all joints."""
        joints = [model.joint(index).name for index in range(model.njnt)]
        return (*(f"position/{joint}" for joint in joints[1:]), *(f"velocity/{joint}" for joint in joints))

    def bind(self, physics: Physics) -> None:
        """Keep the state and the chain of bodies."""
        self._physics = physics
        self._chain = PlanarChain(physics, "torso")

    def model_changed(self, ids: NDArray[np.int64]) -> None:
        """Compute anew what the chain needs of masses and lengths."""
        self._chain.update(ids)

    def initialize(self, ids: NDArray[np.int64], random: np.random.Generator) -> None:
        """Draw all limited joints within their limits and let the cheetah fall and settle on the ground."""
        physics, model = self._physics, self._physics.model
        limited = model.jnt_limited.astype(np.bool_)
        low, high = model.jnt_range[limited].T
        physics.qpos[np.ix_(ids, model.jnt_qposadr[limited])] = random.uniform(low, high, (len(ids), len(low)))
        physics.step(SETTLING_STEPS, ids)
        physics.time[ids] = 0.0

    def observe(self, out: NDArray[np.float32]) -> None:
        """Write positions without the one along the track, and velocities (N, 17)."""
        positions = self._physics.model.nq - 1
        out[:, :positions] = self._physics.qpos[:, 1:]
        out[:, positions:] = self._physics.qvel

    def reward(self, control: NDArray[np.float64]) -> NDArray[np.float64]:
        """Return (N,) rewards in [0, 1]."""
        return tolerance(self.speed(), bounds=(RUN_SPEED, math.inf), margin=RUN_SPEED, value_at_margin=0.0, sigmoid="linear")

    def speed(self) -> NDArray[np.float64]:
        """Return (N,) forward velocities of the centre of mass, m/s."""
        return self._chain.forward_velocity()
