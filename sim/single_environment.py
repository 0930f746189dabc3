"""One `dm_env` environment as flat arrays: actions and observations as vectors, outcomes as flags, its state as arrays."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import mujoco
import numpy as np
from dm_control.rl import control
from numpy.typing import NDArray

from dpg_robot.errors import ConfigError

Factory = Callable[[int], Any]
"""Makes a ``dm_env.Environment`` from a seed."""

Outcome = tuple[float, bool, bool, bool]
"""Reward, terminal, timeout, fault."""

_START_ATTEMPTS = 10
_INTEGRATION = int(mujoco.mjtState.mjSTATE_INTEGRATION)
_ASSETS = ("mesh_", "skin_", "tex_")  # large, and no task changes them


@dataclass(frozen=True)
class Description:
    """What an environment takes and gives.

    Attributes:
        observation_names: a name for each of the O numbers of the observation.
        command_names: a name for each of the A numbers of the action.
        low: (A,) lower bounds of the actions, in the environment's own units.
        high: (A,) upper bounds.
        control_timestep_s: time between two steps.
        has_physics: it has MuJoCo's ``qpos`` and ``qvel``, which can be read.
        has_task: it is a plain ``dm_control.rl.control.Environment``, in which they can be set.
        has_state: an episode under way can be saved and continued, see :meth:`SingleEnvironment.state`.
    """

    observation_names: tuple[str, ...]
    command_names: tuple[str, ...]
    low: tuple[float, ...]
    high: tuple[float, ...]
    control_timestep_s: float
    has_physics: bool
    has_task: bool
    has_state: bool


class SingleEnvironment:
    """A ``dm_env.Environment`` with vectors for actions and observations.

    Args:
        factory: makes the environment.
        seed: passed to the factory.

    Attributes:
        description: what it takes and gives.

    Raises:
        ConfigError: not a ``dm_env.Environment``, or one whose actions are not bounded numbers.
    """

    def __init__(self, factory: Factory, seed: int) -> None:
        environment = factory(seed)
        missing = [n for n in ("reset", "step", "action_spec", "observation_spec") if not callable(getattr(environment, n, None))]
        if missing:
            raise ConfigError(
                f"the factory gave {type(environment).__name__}, expected a dm_env.Environment; it lacks {', '.join(missing)}"
            )
        self._environment = environment
        self._task: Any = environment.task if type(environment) is control.Environment else None
        low, high = _bounds(environment.action_spec())
        self._action_shape, self._action_dtype = environment.action_spec().shape, environment.action_spec().dtype
        names, self._places = _layout(environment.observation_spec())
        self._scratch = np.zeros(len(names), dtype=np.float32)
        random = getattr(self._task, "random", None)
        self._random = random if isinstance(random, np.random.RandomState) else None
        self._own_state = all(callable(getattr(environment, name, None)) for name in ("state_dict", "load_state_dict"))
        physics = getattr(environment, "physics", None)
        self._physics: Any = physics if hasattr(physics, "data") and hasattr(physics, "model") else None
        self._nominal = {name: values.copy() for name, values in self._model_arrays()} if self._random is not None else {}
        self.description = Description(
            observation_names=names,
            command_names=_command_names(self._physics, len(low)),
            low=low,
            high=high,
            control_timestep_s=_control_timestep(environment),
            has_physics=self._physics is not None,
            has_task=self._task is not None,
            has_state=self._own_state or self._random is not None,
        )

    def reset(self, obs: NDArray[np.float32]) -> None:
        """Start a new episode and write its first observation into ``obs`` (O,).

        Raises:
            PhysicsError: the physics diverges at each of several attempts.
            FloatingPointError: the first observation is not finite.
        """
        for attempt in range(_START_ATTEMPTS):
            try:
                timestep = self._environment.reset()
                break
            except control.PhysicsError:
                if attempt == _START_ATTEMPTS - 1:
                    raise
        if not self._flatten(timestep.observation, obs):
            raise FloatingPointError(f"the first observation of an episode is not finite: {timestep.observation}")

    def step(self, action: NDArray[np.float64], obs: NDArray[np.float32]) -> Outcome:
        """Apply ``action`` (A,), in the environment's own units, and write the observation into ``obs`` (O,).

        A physics error, or numbers that are not finite, is a fault: ``obs`` then stays as it is, and the episode is over.
        """
        try:
            timestep = self._environment.step(action.reshape(self._action_shape).astype(self._action_dtype))
        except control.PhysicsError:
            return 0.0, True, False, True
        reward = 0.0 if timestep.reward is None else float(timestep.reward)
        if not math.isfinite(reward) or not self._flatten(timestep.observation, obs):
            return 0.0, True, False, True
        # in dm_env, an episode that is over for good has the discount 0; one that was merely cut keeps another
        terminal = bool(timestep.last() and timestep.discount == 0)
        return reward, terminal, bool(timestep.last() and not terminal), False

    def close(self) -> None:
        """Close the environment."""
        self._environment.close()

    def positions(self) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Return copies of ``qpos`` (nq,) and ``qvel`` (nv,)."""
        data = self._physics.data
        return np.array(data.qpos), np.array(data.qvel)

    def set_positions(self, qpos: NDArray[np.float64], qvel: NDArray[np.float64], obs: NDArray[np.float32]) -> None:
        """Continue the episode from ``qpos`` and ``qvel``, all else at rest, and write the observation into ``obs``."""
        with self._physics.reset_context():
            self._physics.data.qpos[:] = qpos
            self._physics.data.qvel[:] = qvel
        values = self._task.get_observation(self._physics)
        flat = [key for key, _ in self._places] == [control.FLAT_OBSERVATION_KEY]
        self._flatten(control.flatten_observation(values) if flat else values, obs)

    def state(self) -> dict[str, NDArray[Any]]:
        """Return all that the next steps depend on, as arrays of one dimension or more; empty where that is not offered.

        It is the environment's own ``state_dict()`` where it has one. For an environment of dm_control, it is the state of the
        physics, the fields of the model that changed since it was made, the state of ``task.random``, and the attributes of the
        task that are numbers or arrays.
        """
        if self._own_state:
            return {name: np.atleast_1d(value) for name, value in self._environment.state_dict().items()}
        if self._random is None:
            return {}
        changed = {f"model.{n}": v.copy() for n, v in self._model_arrays() if not np.array_equal(v, self._nominal[n])}
        numbers = {f"task.{name}": np.array(np.atleast_1d(value)) for name, value in _numbers(self._task).items()}
        _, keys, *rest = self._random.get_state(legacy=True)
        return {
            "physics": self._physics.get_state(_INTEGRATION),
            "random": np.array([*keys, *rest], dtype=np.float64),
            "steps": np.array([self._environment._step_count]),
            **changed,
            **numbers,
        }

    def load_state(self, state: Mapping[str, NDArray[Any]]) -> None:
        """Put back what :meth:`state` returned, in an environment made with the same seed."""
        if self._own_state:
            self._environment.load_state_dict(dict(state))
            return
        self._environment.reset()  # makes whatever attributes the task has in an episode
        for name, values in self._model_arrays():
            values[:] = np.reshape(state.get(f"model.{name}", self._nominal[name]), values.shape)
        for name, old in _numbers(self._task).items():
            value = state[f"task.{name}"]
            setattr(self._task, name, np.array(value) if isinstance(old, np.ndarray) else type(old)(value.item()))
        *keys, place, has_gauss, gauss = state["random"]
        assert self._random is not None
        self._random.set_state(("MT19937", np.array(keys, dtype=np.uint32), int(place), int(has_gauss), float(gauss)))
        self._environment._step_count = int(state["steps"][0])
        self._physics.set_state(state["physics"], _INTEGRATION)
        mujoco.mj_step1(self._physics.model.ptr, self._physics.data.ptr)  # as dm_control leaves it after a step

    def _flatten(self, values: Any, obs: NDArray[np.float32]) -> bool:
        """Write an observation into ``obs``, if it is finite; returns whether it is."""
        if not isinstance(values, Mapping):
            values = {key: values for key, _ in self._places}
        with np.errstate(over="ignore"):
            for key, place in self._places:
                self._scratch[place] = np.ravel(values[key])
        finite = bool(np.isfinite(self._scratch).all())
        if finite:
            obs[:] = self._scratch
        return finite

    def _model_arrays(self) -> list[tuple[str, NDArray[Any]]]:
        model = self._physics.model.ptr
        names = [name for name in dir(model) if not name.startswith(("_", *_ASSETS))]
        return [(name, value) for name in names if isinstance(value := getattr(model, name), np.ndarray) and value.size]


def _numbers(task: Any) -> dict[str, Any]:
    """Return the attributes of a task that are numbers or arrays of them."""
    kinds = (bool, int, float, np.generic, np.ndarray)
    return {name: v for name, v in vars(task).items() if isinstance(v, kinds) and np.asarray(v).dtype.kind in "biuf"}


def _bounds(spec: Any) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Return the bounds of the actions, (A,) each."""
    fix = "give the environment's action_spec finite bounds, to which actions in [-1, 1] are mapped"
    if not hasattr(spec, "shape") or np.dtype(spec.dtype).kind != "f":
        raise ConfigError(f"the action must be one array of real numbers, got the spec {spec}")
    if not hasattr(spec, "minimum") or not hasattr(spec, "maximum"):
        raise ConfigError(f"the actions have no bounds, got the spec {spec}; {fix}")
    low, high = (np.broadcast_to(bound, spec.shape).ravel() for bound in (spec.minimum, spec.maximum))
    bad = np.flatnonzero(~(np.isfinite(low) & np.isfinite(high) & (low < high)))
    if len(bad):
        raise ConfigError(
            f"action(s) {bad.tolist()} have no usable bounds, got minimum {low[bad].tolist()} and maximum "
            f"{high[bad].tolist()}; {fix}"
        )
    return tuple(low.tolist()), tuple(high.tolist())


def _layout(spec: Any) -> tuple[tuple[str, ...], list[tuple[str, slice]]]:
    """Return a name for each number of the observation, and which of them belong to which key."""
    specs = dict(spec) if isinstance(spec, Mapping) else {getattr(spec, "name", None) or "observation": spec}
    names: list[str] = []
    places = []
    for key, part in specs.items():
        if not hasattr(part, "shape") or np.dtype(part.dtype).kind not in "biuf":
            raise ConfigError(f"observation {key!r} must be an array of numbers, got the spec {part}")
        size = math.prod(part.shape)
        places.append((key, slice(len(names), len(names) + size)))
        names += [str(key)] if part.shape in ((), (1,)) else [f"{key}_{index}" for index in range(size)]
    return tuple(names), places


def _command_names(physics: Any, count: int) -> tuple[str, ...]:
    """Return the names of the actuators where there is one for each action, else ``action_0`` and so on."""
    model = getattr(getattr(physics, "model", None), "ptr", None)
    if model is not None and model.nu == count:
        return tuple(model.actuator(index).name or f"actuator_{index}" for index in range(count))
    return tuple(f"action_{index}" for index in range(count))


def _control_timestep(environment: Any) -> float:
    timestep = getattr(environment, "control_timestep", None)
    if not callable(timestep):
        raise ConfigError(
            f"{type(environment).__name__} has no control_timestep(); give it one that returns the seconds of a step"
        )
    return float(timestep())
