"""Cart-pole, dm_control's ``cartpole`` domain (Tassa et al., 2018, arXiv 1801.00690).

The cart slides on a rail, driven by a force of up to 10 N. The pole has to be held upright near the middle, with little force and
little motion; in the swing-up tasks it starts hanging.
"""

from __future__ import annotations

from typing import Any

import mujoco
import numpy as np
from numpy.typing import NDArray

from dpg_robot.contract import CommandChannel, Contract, Feature, MeasurementChannel
from sim.physics import Physics
from sim.suite_model import load_suite_spec
from sim.tasks.rewards import tolerance
from sim.tasks.task import MeasuredState, Task

MAX_FORCE_N = 10.0
# where the sparse tasks give their reward
CART_RANGE_M = (-0.25, 0.25)
POLE_COSINE_RANGE = (0.995, 1.0)

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


def balance() -> Cartpole:
    """Hold up a pole that starts nearly upright."""
    return Cartpole(swing_up=False, sparse=False)


def balance_sparse() -> Cartpole:
    """Hold up a pole that starts nearly upright; rewarded only while it stands near the middle."""
    return Cartpole(swing_up=False, sparse=True)


def swingup() -> Cartpole:
    """Swing up a hanging pole and hold it."""
    return Cartpole(swing_up=True, sparse=False)


def swingup_sparse() -> Cartpole:
    """Swing up a hanging pole and hold it; rewarded only while it stands near the middle."""
    return Cartpole(swing_up=True, sparse=True)


_MEASURED_STATE: MeasuredState = {
    "cart_position": ("qpos", 0),
    "pole_angle": ("qpos", 1),
    "cart_velocity": ("qvel", 0),
    "pole_velocity": ("qvel", 1),
}


class Cartpole(Task):
    """Balancing and swing-up.

    Args:
        swing_up: the pole starts hanging instead of nearly upright.
        sparse: reward 1 near the goal and 0 elsewhere, instead of a smooth one.
    """

    time_limit_s = 10.0
    control_timestep_s = 0.01
    stage = mujoco.mjtStage.mjSTAGE_NONE
    measured_state = _MEASURED_STATE

    def __init__(self, swing_up: bool, sparse: bool) -> None:
        self.name = f"cartpole-{'swingup' if swing_up else 'balance'}{'_sparse' if sparse else ''}"
        self._swing_up = swing_up
        self._sparse = sparse

    def load_spec(self) -> mujoco.MjSpec:
        """Return dm_control's cart-pole model."""
        return load_suite_spec("cartpole")

    def observation_names(self, model: mujoco.MjModel) -> tuple[str, ...]:
        """Return a name for each number of the observation, in order."""
        return "cart_position", "pole_angle_cosine", "pole_angle_sine", "cart_velocity", "pole_velocity"

    def bind(self, physics: Physics) -> None:
        """Keep the live arrays that the task reads."""
        self._qpos, self._qvel = physics.qpos, physics.qvel

    def initialize(self, ids: NDArray[np.int64], random: np.random.Generator) -> None:
        """Put the pole nearly at rest, hanging or upright, and the cart near the middle."""
        if self._swing_up:
            self._qpos[ids] = [0.0, np.pi] + 0.01 * random.standard_normal((len(ids), 2))
        else:
            self._qpos[ids] = random.uniform(-1.0, 1.0, (len(ids), 2)) * [0.1, 0.034]
        self._qvel[ids] = 0.01 * random.standard_normal((len(ids), 2))

    def observe(self, out: NDArray[np.float32]) -> None:
        """Write (N, 5): cart position, cosine and sine of the pole angle, and both velocities."""
        out[:, 0] = self._qpos[:, 0]
        np.cos(self._qpos[:, 1], out=out[:, 1])
        np.sin(self._qpos[:, 1], out=out[:, 2])
        out[:, 3:] = self._qvel

    def reward(self, control: NDArray[np.float64]) -> NDArray[np.float64]:
        """Return the rewards (N,) of the present states under the ``control`` (N, 1) in [-1, 1]."""
        return self._reward(self._qpos[:, 0], np.cos(self._qpos[:, 1]), self._qvel[:, 1], control[:, 0])

    def contract(self, model: mujoco.MjModel, action_repeat: int, history: int) -> Contract:
        """Return the contract of a policy that measures positions and velocities, and commands a force."""
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
        return self._reward(cart_position, np.cos(pole_angle), pole_velocity, np.asarray(action, dtype=np.float64)[..., 0])

    def _reward(
        self,
        cart_position: NDArray[np.float64],
        pole_cosine: NDArray[np.float64],
        pole_velocity: NDArray[np.float64],
        control: NDArray[np.float64],
    ) -> NDArray[np.float64]:
        if self._sparse:
            return tolerance(cart_position, bounds=CART_RANGE_M) * tolerance(pole_cosine, bounds=POLE_COSINE_RANGE)
        upright = (pole_cosine + 1) / 2
        centered = (1 + tolerance(cart_position, margin=2.0)) / 2
        small_control = (4 + tolerance(control, margin=1.0, value_at_margin=0.0, sigmoid="quadratic")) / 5
        small_velocity = (1 + tolerance(pole_velocity, margin=5.0)) / 2
        return upright * small_control * small_velocity * centered
