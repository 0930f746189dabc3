"""Cart-pole swing-up: the physics and the reward of dm_control's ``cartpole`` domain, for all environments at once.

The model comes from dm_control (Tassa et al., 2018, arXiv 1801.00690). The cart slides on a rail, driven by a force of up to
10 N; the pole starts hanging and has to be swung up and held upright near the middle, with little force and little motion.
"""

from __future__ import annotations

from typing import Any

import mujoco
import mujoco.batch
import numpy as np
from numpy.typing import NDArray

from dpg_robot.contract import CommandChannel, Contract, Feature, MeasurementChannel
from sim.suite_model import load_suite_model
from sim.tasks.rewards import tolerance

MAX_FORCE_N = 10.0
CONTROL_TIMESTEP_S = 0.01
TIME_LIMIT_S = 10.0

MEASUREMENTS = (
    MeasurementChannel("cart_position", "m"),
    MeasurementChannel("pole_angle", "rad"),
    MeasurementChannel("cart_velocity", "m/s"),
    MeasurementChannel("pole_velocity", "rad/s"),
)
FEATURES = (
    Feature("identity", "cart_position"),
    Feature("cos", "pole_angle"),
    Feature("sin", "pole_angle"),
    Feature("identity", "cart_velocity"),
    Feature("identity", "pole_velocity"),
)
COMMANDS = (CommandChannel("cart_force", "N", -MAX_FORCE_N, MAX_FORCE_N),)


class CartpoleSwingup:
    """The task; see :class:`sim.tasks.Task` for the interface."""

    name = "cartpole-swingup"
    control_timestep_s = CONTROL_TIMESTEP_S
    time_limit_s = TIME_LIMIT_S
    observation_names: tuple[str, ...] = (
        "cart_position",
        "pole_angle_cosine",
        "pole_angle_sine",
        "cart_velocity",
        "pole_velocity",
    )

    def load_model(self) -> mujoco.MjModel:
        """Return dm_control's cart-pole model."""
        return load_suite_model("cartpole")

    def initialize(self, batch: mujoco.batch.Batch, ids: NDArray[np.int64], random: np.random.Generator) -> None:
        """Let the pole hang near rest, with the cart near the middle."""
        batch.qpos[ids, 0] = 0.01 * random.standard_normal(len(ids))
        batch.qpos[ids, 1] = np.pi + 0.01 * random.standard_normal(len(ids))
        batch.qvel[ids] = 0.01 * random.standard_normal((len(ids), batch.qvel.shape[1]))

    def observe(self, batch: mujoco.batch.Batch) -> NDArray[np.float64]:
        """Return (N, 5): cart position, cosine and sine of the pole angle, and both velocities."""
        qpos, qvel = batch.qpos, batch.qvel
        return np.stack([qpos[:, 0], np.cos(qpos[:, 1]), np.sin(qpos[:, 1]), qvel[:, 0], qvel[:, 1]], axis=1)

    def reward(self, batch: mujoco.batch.Batch, control: NDArray[np.float64]) -> NDArray[np.float64]:
        """Return (N,) rewards in [0, 1] of the present state under the commanded ``control`` (N, 1)."""
        return swingup_reward(batch.qpos[:, 0], np.cos(batch.qpos[:, 1]), batch.qvel[:, 1], control[:, 0])

    def terminal(self, batch: mujoco.batch.Batch) -> NDArray[np.bool_]:
        """Return (N,): never; the task ends by its time limit alone."""
        return np.zeros(batch.nsim, dtype=np.bool_)

    def contract(self, action_repeat: int, history: int) -> Contract:
        """Return the contract of a policy trained on this task."""
        return Contract(
            task=self.name,
            measurements=MEASUREMENTS,
            features=FEATURES,
            commands=COMMANDS,
            rate_hz=1.0 / (self.control_timestep_s * action_repeat),
            history=history,
            action_repeat=action_repeat,
        )

    def measured_reward(self, next_measurement: NDArray[Any], action: NDArray[Any]) -> NDArray[np.float64]:
        """Return (N,) rewards per reward step, from logged measurements (N, 4) after the actions (N, 1)."""
        cart_position, pole_angle, _, pole_velocity = np.moveaxis(np.asarray(next_measurement, dtype=np.float64), -1, 0)
        return swingup_reward(cart_position, np.cos(pole_angle), pole_velocity, np.asarray(action, dtype=np.float64)[..., 0])


def swingup_reward(
    cart_position: NDArray[np.float64],
    pole_angle_cosine: NDArray[np.float64],
    pole_velocity: NDArray[np.float64],
    control: NDArray[np.float64],
) -> NDArray[np.float64]:
    """Return rewards in [0, 1], a product of four terms.

    Args:
        cart_position: (N,) metres from the middle of the rail.
        pole_angle_cosine: (N,) 1 upright, -1 hanging.
        pole_velocity: (N,) rad/s.
        control: (N,) commanded force as a share of the largest force, in [-1, 1].
    """
    upright = (pole_angle_cosine + 1) / 2
    centered = (1 + tolerance(cart_position, margin=2.0)) / 2
    small_control = (4 + tolerance(control, margin=1.0, value_at_margin=0.0, sigmoid="quadratic")) / 5
    small_velocity = (1 + tolerance(pole_velocity, margin=5.0)) / 2
    return upright * small_control * small_velocity * centered
