"""Disturbances between agent and world, for all environments at once: delays, losses, noise, faulty sensors, pushes.

All steps are control steps of the task, whatever the agent's action repeat. docs/disturbances.md shows the whole chain.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from numbers import Integral, Real
from typing import Any, Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray

from dpg_robot.config import setting
from dpg_robot.errors import ConfigError
from sim.delay_line import DelayLine
from sim.dropouts import CommandHold, DroppedSensors, StuckSensors
from sim.noise import DummyReadings, GaussianNoise, Quantization
from sim.physics import Physics
from sim.pushes import Pushes

Steps = int | tuple[int, int]
Amount = float | tuple[float, float]
T = TypeVar("T", int, float)


def _check(name: str, value: Any, expected: str, kind: type, low: float, high: float = math.inf) -> None:
    if not isinstance(value, kind) or not low <= value <= high or value == math.inf:  # type: ignore[operator]
        raise ValueError(f"{name} must be {expected}, got {value!r}")


def _check_range(name: str, value: Any, expected: str, kind: type) -> None:
    """Refuse what is neither one value nor a pair low <= high, all finite and not negative."""
    values = value if isinstance(value, tuple) else (value, value)
    fits = len(values) == 2 and all(isinstance(item, kind) for item in values) and 0 <= values[0] <= values[1] < math.inf
    if not fits:
        raise ValueError(f"{name} must be {expected}, or a pair (low, high) of them with low <= high, got {value!r}")


@dataclass(frozen=True)
class Disturbance:
    """What stands between the agent and the world, in the order in which it acts; the defaults change nothing.

    Raises:
        ValueError: a value out of its range.
    """

    action_delay: Steps = setting(0, "delay of the commands; [low, high] draws one per episode", unit="steps")
    action_loss_probability: float = setting(0.0, "probability per step that a command is lost; the one before stays in effect")
    action_repetition: int = setting(0, "each command that takes effect is held for this many further steps", unit="steps")
    action_quantization: float = setting(0.0, "step of the grid of commands; 0 for none", unit="action (-1 to 1)")
    action_noise: float = setting(0.0, "standard deviation of Gaussian actuator noise", unit="action (-1 to 1)")
    action_noise_time_s: float = setting(0.0, "correlation time of the actuator noise; 0 for white noise", unit="s")

    observation_noise: float = setting(0.0, "standard deviation of Gaussian noise on each observation", unit="observation")
    observation_noise_time_s: float = setting(0.0, "correlation time of the observation noise; 0 for white noise", unit="s")
    observation_quantization: float = setting(0.0, "step of the grid of observations; 0 for none", unit="observation")
    stuck_probability: float = setting(0.0, "probability per step and number that a sensor gets stuck at its last value")
    stuck_steps: int = setting(1, "how long a sensor stays stuck", unit="steps")
    dropped_probability: float = setting(0.0, "probability per step and number that a sensor drops out and reads 0")
    dropped_steps: int = setting(1, "how long a sensor stays dropped", unit="steps")
    observation_delay: Steps = setting(0, "delay of the observations; [low, high] draws one per episode", unit="steps")
    dummy_observations: int = setting(0, "extra observations of standard normal noise")

    reward_delay: Steps = setting(0, "delay of the rewards; [low, high] draws one per episode", unit="steps")

    push_rate_hz: float = setting(0.0, "mean number of random pushes per second without one", unit="1/s")
    push_force: Amount = setting(0.0, "size of a push; [low, high] draws one per push", unit="N")
    push_duration_s: Amount = setting(0.05, "how long a push lasts; [low, high] draws one per push", unit="s")

    def __post_init__(self) -> None:
        for name in ("action_delay", "observation_delay", "reward_delay"):
            _check_range(name, getattr(self, name), "a whole number of steps, 0 or more", Integral)
        for name in ("push_force", "push_duration_s"):
            _check_range(name, getattr(self, name), "finite and not negative", Real)
        for name in ("action_loss_probability", "stuck_probability", "dropped_probability"):
            _check(name, getattr(self, name), "a probability from 0 to 1", Real, 0, 1)
        for name in ("action_noise", "action_noise_time_s", "observation_noise", "observation_noise_time_s"):
            _check(name, getattr(self, name), "finite and not negative", Real, 0)
        for name in ("observation_quantization", "push_rate_hz"):
            _check(name, getattr(self, name), "finite and not negative", Real, 0)
        _check("action_quantization", self.action_quantization, "from 0 to 1, which is the largest action", Real, 0, 1)
        for name, needed in (
            ("push_force", "push_rate_hz"),
            ("push_rate_hz", "push_force"),
            ("action_noise_time_s", "action_noise"),
            ("observation_noise_time_s", "observation_noise"),
        ):
            if np.max(getattr(self, name)) > 0 and np.max(getattr(self, needed)) == 0:
                raise ValueError(f"{name} does nothing while {needed} is 0; set both, or none")
        for name, least in (("action_repetition", 0), ("dummy_observations", 0), ("stuck_steps", 1), ("dropped_steps", 1)):
            _check(name, getattr(self, name), f"a whole number of {least} or more", Integral, least)


# easy, medium and hard: the combined challenges of the Real World RL suite, https://arxiv.org/abs/2003.11881
DISTURBANCE_PRESETS = {
    "none": Disturbance(),
    "default": Disturbance(action_noise=0.1, observation_noise=0.005, push_rate_hz=0.5, push_force=0.5, push_duration_s=0.05),
    "easy": Disturbance(
        action_delay=3,
        action_repetition=1,
        action_noise=0.1,
        observation_noise=0.1,
        stuck_probability=0.01,
        stuck_steps=1,
        dropped_probability=0.01,
        dropped_steps=1,
        observation_delay=3,
        dummy_observations=10,
        reward_delay=10,
    ),
    "medium": Disturbance(
        action_delay=6,
        action_repetition=2,
        action_noise=0.3,
        observation_noise=0.3,
        stuck_probability=0.05,
        stuck_steps=5,
        dropped_probability=0.05,
        dropped_steps=5,
        observation_delay=6,
        dummy_observations=20,
        reward_delay=20,
    ),
    "hard": Disturbance(
        action_delay=9,
        action_repetition=3,
        action_noise=1.0,
        observation_noise=1.0,
        stuck_probability=0.1,
        stuck_steps=10,
        dropped_probability=0.1,
        dropped_steps=10,
        observation_delay=9,
        dummy_observations=50,
        reward_delay=40,
    ),
}


class Stage(Protocol):
    """One disturbance in a chain: what goes in comes out disturbed. It may work in place."""

    memory: dict[str, NDArray[Any]]
    """All that the next steps depend on: live arrays by name; empty for a stage without memory."""

    def apply(self, values: NDArray[Any], random: np.random.Generator) -> NDArray[Any]:
        """Advance one step; ``values`` (N, D) of all environments."""

    def restart(self, ids: NDArray[np.int64], values: NDArray[Any], random: np.random.Generator) -> NDArray[Any]:
        """Forget the episodes of environments ``ids``; ``values`` (n, D) are the first ones of their next episodes."""


class Disturbances:
    """The disturbances of N environments.

    :meth:`restart` comes first, for all environments. Then in each control step :meth:`act`, :meth:`push`, the physics,
    :meth:`deliver` and :meth:`sense`. Where an episode ended, :meth:`undelivered` is paid, and :meth:`restart` begins the next.

    Attributes:
        num_observations: numbers of an observation that :meth:`sense` returns, dummies included.
        dummy_names: names of the dummy observations.
        remembers: whether :meth:`sense` must be called in each control step; if not, only where an observation is wanted.

    Args:
        settings: what to disturb, and how much.
        num_envs: number of environments N.
        num_commands: numbers A of a command.
        num_observations: numbers O of an undisturbed observation.
        timestep_s: length of a control step.
        physics: the simulations, of which pushes need the bodies.

    Raises:
        ConfigError: pushes without ``physics``.
    """

    def __init__(
        self,
        settings: Disturbance,
        num_envs: int,
        num_commands: int,
        num_observations: int,
        timestep_s: float,
        physics: Physics | None = None,
    ) -> None:
        self._num_commands = num_commands
        self._commands = _command_stages(settings, (num_envs, num_commands))
        self._actuator_noise: GaussianNoise | None = None
        if settings.action_noise > 0:
            self._actuator_noise = GaussianNoise(
                settings.action_noise, settings.action_noise_time_s, timestep_s, (num_envs, num_commands), np.float64
            )
        self._readings = _reading_stages(settings, (num_envs, num_observations), timestep_s)
        limits = _range(settings.reward_delay)
        self._rewards = DelayLine(limits, (num_envs, 1), np.float64) if limits[1] > 0 else None
        self._pushes: Pushes | None = None
        force = _range(settings.push_force)
        if settings.push_rate_hz > 0 and force[1] > 0:
            if physics is None:
                raise ConfigError(
                    "pushes need a task that steps natively; set push_rate_hz to 0, or choose a preset without pushes"
                )
            self._pushes = Pushes(settings.push_rate_hz, force, _range(settings.push_duration_s), physics, timestep_s)
        self.num_observations = num_observations + settings.dummy_observations
        self.dummy_names = tuple(f"dummy_{index}" for index in range(settings.dummy_observations))
        self.remembers = any(stage.memory for stage in self._readings.values())
        parts: dict[str, Stage | Pushes | None] = {f"action.{name}": stage for name, stage in self._commands.items()}
        parts |= {f"observation.{name}": stage for name, stage in self._readings.items()}
        parts |= {"action.noise": self._actuator_noise, "reward.delay": self._rewards, "push": self._pushes}
        self._memory = {f"{name}.{key}": values for name, part in parts.items() if part for key, values in part.memory.items()}

    def act(self, actions: NDArray[np.float64], random: np.random.Generator) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Return the commands in effect and what the noisy actuators make of them, both (N, A) in [-1, 1].

        Args:
            actions: (N, A) in [-1, 1], what the agent commands now; not changed, but returned itself where nothing disturbs it.
            random: source of all that is random.
        """
        in_effect = actions.copy() if self._commands else actions
        for stage in self._commands.values():
            in_effect = stage.apply(in_effect, random)
        if self._actuator_noise is None:
            return in_effect, in_effect
        noisy = self._actuator_noise.apply(in_effect.copy(), random)
        return in_effect, np.clip(noisy, -1.0, 1.0, out=noisy)

    def push(self, random: np.random.Generator) -> None:
        """Set the forces of the pushes for the next control step."""
        if self._pushes is not None:
            self._pushes.step(random)

    def sense(self, observations: NDArray[np.float32], random: np.random.Generator) -> NDArray[np.float32]:
        """Return what the agent gets (N, O + dummies), a new array, when the world shows ``observations`` (N, O)."""
        values = observations.copy()
        for stage in self._readings.values():
            values = stage.apply(values, random)
        return values

    def deliver(self, reward: NDArray[np.float64]) -> NDArray[np.float64]:
        """Return the rewards (N,) that arrive now, when ``reward`` (N,) is earned."""
        return reward if self._rewards is None else self._rewards.apply(reward[:, None])[:, 0]

    def undelivered(self, ids: NDArray[np.int64]) -> NDArray[np.float64]:
        """Return the rewards (n,) still under way in environments ``ids``, to be paid with the last step; clears them."""
        return np.zeros(len(ids)) if self._rewards is None else self._rewards.take_under_way(ids)[:, 0]

    def restart(
        self, ids: NDArray[np.int64], observations: NDArray[np.float32], random: np.random.Generator
    ) -> NDArray[np.float32]:
        """Begin new episodes in environments ``ids``: nothing of the ones before remains, and delays are drawn anew.

        Commands under way are 0, the middle of the range. ``observations`` (n, O), disturbed, fill the delay of the sensors.

        Returns:
            The first observations (n, O + dummies) that the agent gets, a new array.
        """
        neutral = np.zeros((len(ids), self._num_commands))
        for stage in self._commands.values():
            neutral = stage.restart(ids, neutral, random)
        if self._actuator_noise is not None:
            self._actuator_noise.restart(ids, neutral, random)
        if self._pushes is not None:
            self._pushes.restart(ids)
        if self._rewards is not None:
            self._rewards.restart(ids, np.zeros((len(ids), 1)), random)
        values = observations.copy()
        for reading in self._readings.values():
            values = reading.restart(ids, values, random)
        return values

    def state_dict(self) -> dict[str, NDArray[Any]]:
        """Return copies of all that is remembered; the forces of pushes are part of the state of the physics."""
        return {name: values.copy() for name, values in self._memory.items()}

    def load_state_dict(self, state: dict[str, NDArray[Any]]) -> None:
        """Put back what :meth:`state_dict` returned.

        Raises:
            ValueError: a state of other disturbances, or of another number of environments.
        """
        got, expected = ({name: np.shape(values) for name, values in part.items()} for part in (state, self._memory))
        if got != expected:
            raise ValueError(
                f"the state is not of these disturbances: got {got}, expected {expected}; "
                "load it with the settings and the number of environments that it was saved with"
            )
        for name, values in self._memory.items():
            values[:] = state[name]


def _command_stages(settings: Disturbance, shape: tuple[int, int]) -> dict[str, Stage]:
    stages: dict[str, Stage] = {}
    delay = np.zeros(shape[0], dtype=np.int64)
    limits = _range(settings.action_delay)
    if limits[1] > 0:
        line = DelayLine(limits, shape, np.float64)
        stages["delay"], delay = line, line.delay
    if settings.action_loss_probability > 0 or settings.action_repetition > 0:
        stages["hold"] = CommandHold(settings.action_loss_probability, settings.action_repetition, delay, shape)
    if settings.action_quantization > 0:
        stages["quantization"] = Quantization(settings.action_quantization, limit=1.0)
    return stages


def _reading_stages(settings: Disturbance, shape: tuple[int, int], timestep_s: float) -> dict[str, Stage]:
    stages: dict[str, Stage] = {}
    if settings.observation_noise > 0:
        time_s = settings.observation_noise_time_s
        stages["noise"] = GaussianNoise(settings.observation_noise, time_s, timestep_s, shape, np.float32)
    if settings.observation_quantization > 0:
        stages["quantization"] = Quantization(settings.observation_quantization)
    if settings.stuck_probability > 0:
        stages["stuck"] = StuckSensors(settings.stuck_probability, settings.stuck_steps, shape)
    if settings.dropped_probability > 0:
        stages["dropped"] = DroppedSensors(settings.dropped_probability, settings.dropped_steps, shape)
    limits = _range(settings.observation_delay)
    if limits[1] > 0:
        stages["delay"] = DelayLine(limits, shape, np.float32)
    if settings.dummy_observations > 0:
        stages["dummies"] = DummyReadings(settings.dummy_observations)
    return stages


def _range(value: T | tuple[T, T]) -> tuple[T, T]:
    return value if isinstance(value, tuple) else (value, value)
