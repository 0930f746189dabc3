"""Tasks, one file a domain."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

import mujoco
import mujoco.batch
import numpy as np
from numpy.typing import NDArray

from dpg_robot.contract import Contract
from dpg_robot.errors import unknown_name
from sim.tasks.cartpole import CartpoleSwingup


class Task(Protocol):
    """What makes a MuJoCo model a task. All methods work on N environments at once."""

    name: str
    control_timestep_s: float
    time_limit_s: float
    observation_names: tuple[str, ...]

    def load_model(self) -> mujoco.MjModel:
        """Return the compiled model with nominal parameters."""
        ...

    def initialize(self, batch: mujoco.batch.Batch, ids: NDArray[np.int64], random: np.random.Generator) -> None:
        """Write the initial states of environments ``ids`` into ``batch``."""
        ...

    def observe(self, batch: mujoco.batch.Batch) -> NDArray[np.float64]:
        """Return the observations (N, obs_dim), laid out as dm_control flattens its own."""
        ...

    def reward(self, batch: mujoco.batch.Batch, control: NDArray[np.float64]) -> NDArray[np.float64]:
        """Return the rewards (N,) of the present states under the commanded ``control`` (N, act_dim)."""
        ...

    def terminal(self, batch: mujoco.batch.Batch) -> NDArray[np.bool_]:
        """Return (N,), whether the present states end their episodes for good."""
        ...

    def contract(self, action_repeat: int, history: int) -> Contract:
        """Return the contract of a policy trained on this task."""
        ...

    def measured_reward(self, next_measurement: NDArray[Any], action: NDArray[Any]) -> NDArray[np.float64]:
        """Return (N,) rewards per reward step, computed from logged measurements (N, M) after actions (N, A)."""
        ...


_TASKS: dict[str, Callable[[], Task]] = {"cartpole-swingup": CartpoleSwingup}


def make_task(name: str) -> Task:
    """Return a new task by its name; raises UnknownNameError with a 'did you mean'."""
    if name not in _TASKS:
        raise unknown_name("task", name, _TASKS)
    return _TASKS[name]()
