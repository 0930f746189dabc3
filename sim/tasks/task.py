"""What makes a MuJoCo model a task: the base class of all tasks, for all environments at once."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, ClassVar, Literal

import mujoco
import numpy as np
from numpy.typing import NDArray

from dpg_robot.contract import CommandChannel, Contract, Feature, MeasurementChannel
from dpg_robot.errors import DpgError
from sim.physics import Physics

MeasuredState = Mapping[str, tuple[Literal["qpos", "qvel"], int]]
"""For measurement channels by name: which part of MuJoCo's state they are, and which number of it."""


class NoMeasuredRewardError(DpgError, NotImplementedError):
    """A task whose reward needs more than what the sensors measure."""


class Task(ABC):
    """A model, its initial states, its observations and its reward.

    :meth:`load_spec` is called once, then :meth:`bind` once with the physics of N environments. All other methods work on the
    arrays that ``bind`` has kept, which are live, for all environments at once.

    Attributes:
        name: ``domain-task``.
        time_limit_s: length of an episode.
        control_timestep_s: time between two control steps, to which rewards refer; a whole number of physics steps.
        stage: what the physics has to compute at each new state; see :class:`sim.physics.Physics`.
        measured_state: where measurement channels stand in MuJoCo's state, by name; empty where the state cannot be told from
            them. Numbers of the state that no channel tells are 0.
    """

    name: str
    time_limit_s: float
    control_timestep_s: float
    _physics_of_its_own = False
    stage: ClassVar[mujoco.mjtStage] = mujoco.mjtStage.mjSTAGE_VEL
    measured_state: ClassVar[MeasuredState] = MappingProxyType({})

    @abstractmethod
    def load_spec(self) -> mujoco.MjSpec:
        """Return the model with nominal parameters, not yet compiled (:func:`sim.mjcf.load_mjcf` reads an MJCF file)."""

    @abstractmethod
    def observation_names(self, model: mujoco.MjModel) -> tuple[str, ...]:
        """Return a name for each number of the observation, in order."""

    @abstractmethod
    def bind(self, physics: Physics) -> None:
        """Keep the live arrays of ``physics`` that the other methods read."""

    def model_changed(self, ids: NDArray[np.int64]) -> None:  # noqa: B027
        """Compute anew what this task derived from the model's parameters, which have changed in environments ``ids``.

        Called after dynamics were drawn for new episodes, before :meth:`initialize`, and after a saved state was put back. A task
        whose methods read only live arrays has nothing to do.
        """

    @abstractmethod
    def initialize(self, ids: NDArray[np.int64], random: np.random.Generator) -> None:
        """Write initial states (and targets) of environments ``ids``, which are in the model's default state."""

    def complete_state(self) -> None:  # noqa: B027
        """Write what belongs to positions and velocities that were set from outside, such as goals of servos."""

    @abstractmethod
    def observe(self, out: NDArray[np.float32]) -> None:
        """Write the observations of the present states into ``out`` (N, obs_dim), laid out as dm_control flattens its own."""

    @abstractmethod
    def reward(self, control: NDArray[np.float64]) -> NDArray[np.float64]:
        """Return the rewards (N,) of the present states under the controls (N, nu) that were applied, in actuator units."""

    def terminal(self) -> NDArray[np.bool_] | None:
        """Return (N,), whether the present states end their episodes for good; None for never."""
        return None

    def contract(self, model: mujoco.MjModel, action_repeat: int, history: int) -> Contract:
        """Return the contract of a policy trained on this task; here each observation is a measurement of its own."""
        names = self.observation_names(model)
        commands = []
        for index in range(model.nu):
            low, high = (float(limit) for limit in model.actuator_ctrlrange[index])
            commands.append(CommandChannel(model.actuator(index).name or f"actuator_{index}", "1", low, high))
        return Contract(
            task=self.name,
            measurements=tuple(MeasurementChannel(name, "1") for name in names),
            features=tuple(Feature("identity", name) for name in names),
            commands=tuple(commands),
            rate_hz=1.0 / (self.control_timestep_s * action_repeat),
            history=history,
            action_repeat=action_repeat,
        )

    def measured_reward(self, next_measurement: NDArray[Any], action: NDArray[Any]) -> NDArray[np.float64]:
        """Return (N,) rewards per reward step, computed from logged measurements (N, M) after actions (N, A).

        Raises:
            NoMeasuredRewardError: the task cannot tell its reward from measurements alone.
        """
        raise NoMeasuredRewardError(
            f"task {self.name} cannot compute its reward from logged measurements; log the reward, or override measured_reward"
        )
