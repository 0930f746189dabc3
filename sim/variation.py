"""How one number is drawn, per environment and episode: fresh each time, or evolving from one episode to the next.

The evolving kinds are the perturbation schedulers of the Real World RL suite (Dulac-Arnold et al., 2020, arXiv 2003.11881).
"""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from typing import Any, Literal, cast

import numpy as np
from numpy.typing import NDArray
from scipy.special import ndtr, ndtri

from dpg_robot.config import setting

Kind = Literal[
    "constant",
    "uniform",
    "log_uniform",
    "normal",
    "truncated_normal",
    "random_walk",
    "drift_up",
    "drift_down",
    "cyclic_up",
    "cyclic_down",
    "saw_wave",
]
Operation = Literal["scale", "add", "set"]
Range = tuple[float, float]

EVOLVING = ("random_walk", "drift_up", "drift_down", "cyclic_up", "cyclic_down", "saw_wave")
_NUMBERS = ("low", "high", "mean", "std", "start")
_NEEDS: dict[str, tuple[str, ...]] = {
    "constant": ("start",),
    "uniform": ("low", "high"),
    "log_uniform": ("low", "high"),
    "normal": ("mean", "std"),
    "truncated_normal": ("mean", "std", "low", "high"),
} | dict.fromkeys(EVOLVING, ("low", "high", "std"))


@dataclass(frozen=True)
class Variation:
    """How a quantity is drawn. What is None takes the default of the setting in which the variation stands."""

    kind: Kind | None = setting(None, "how values are drawn: one of the fresh kinds, or one of the evolving ones")
    low: float | None = setting(None, "lowest value")
    high: float | None = setting(None, "highest value")
    mean: float | None = setting(None, "mean of the normal kinds, before truncation")
    std: float | None = setting(None, "standard deviation of the normal kinds, or of the moves of the evolving ones")
    start: float | None = setting(None, "the value of 'constant', and the first value of the evolving kinds")
    every: int = setting(1, "number of episodes between changes", unit="episodes")
    operation: Operation | None = setting(None, "what a value does to the nominal one: scale it, add to it, or set it")
    shared: bool | None = setting(None, "one value for all objects of an environment instead of one for each")
    names: tuple[str, ...] = setting((), "objects to vary, by name or pattern such as '*_knee'; empty for all that apply")

    def __post_init__(self) -> None:
        for name in _NUMBERS:
            value = getattr(self, name)
            if value is not None and not math.isfinite(value):
                raise ValueError(f"{name} must be finite, got {value}")
        self._check_presence()
        if self.low is not None and self.high is not None and self.low > self.high:
            raise ValueError(f"low must not be above high, got low {self.low:g} and high {self.high:g}")
        if self.std is not None and self.std <= 0:
            raise ValueError(f"std must be positive, got {self.std:g}; use kind 'constant' for a fixed value")
        if self.kind == "log_uniform" and _given(self.low) <= 0:
            raise ValueError(f"log_uniform needs a positive low, got {_given(self.low):g}; use kind 'uniform' to include 0")
        inside = self.mean if self.kind == "truncated_normal" else self.start if self.kind in EVOLVING else None
        if inside is not None and not _given(self.low) <= inside <= _given(self.high):
            what = "mean" if self.kind == "truncated_normal" else "start"
            raise ValueError(f"{what} must lie between low {self.low} and high {self.high}, got {inside:g}")
        if self.every < 1:
            raise ValueError(f"every must be 1 episode or more, got {self.every}")

    def _check_presence(self) -> None:
        kind = self.kind or "uniform"  # an unnamed kind is a range: uniform or log_uniform, as the setting has it
        needed = _NEEDS[kind]
        missing = [name for name in needed if getattr(self, name) is None]
        if missing:
            raise ValueError(f"kind {kind!r} needs {' and '.join(needed)}; missing: {', '.join(missing)}")
        optional = ("start",) if kind in EVOLVING else ()
        unused = [name for name in _NUMBERS if getattr(self, name) is not None and name not in needed + optional]
        if unused:
            hint = "; say which kind is meant" if self.kind is None else ""
            raise ValueError(f"kind {kind!r} does not use {', '.join(unused)}{hint}")

    @property
    def bounds(self) -> Range:
        """The lowest and the highest value that can be drawn."""
        if self.kind == "constant":
            return _given(self.start), _given(self.start)
        if self.kind == "normal":
            return -math.inf, math.inf
        return _given(self.low), _given(self.high)

    @property
    def first(self) -> float:
        """First value of an evolving kind: ``start``, else where its way begins (a random walk's in the middle)."""
        if self.start is not None:
            return self.start
        low, high = self.bounds
        if self.kind == "random_walk":
            return 0.5 * (low + high)
        return high if self.kind in ("drift_down", "cyclic_down") else low


def complete(value: Range | Variation, operation: Operation, shared: bool) -> Variation:
    """Return a variation without open points, from a range or a variation and the defaults of its setting.

    Unless the kind is given, factors are drawn log-uniformly (a half is as likely as a double), all else uniformly.

    Raises:
        ValueError: the result makes no sense.
    """
    if not isinstance(value, Variation):
        if len(value) != 2:
            raise ValueError(f"a range must be two numbers, low and high, got {value}")
        value = Variation(low=value[0], high=value[1])
    chosen = value.operation or operation
    return dataclasses.replace(
        value,
        kind=value.kind or ("log_uniform" if chosen == "scale" else "uniform"),
        operation=chosen,
        shared=shared if value.shared is None else value.shared,
    )


class Drawer:
    """Draws the values of a completed variation for N environments, C numbers each, and remembers where they are.

    Args:
        variation: how to draw.
        num_envs: number of environments N.
        columns: number of values C per environment; they vary independently.
    """

    def __init__(self, variation: Variation, num_envs: int, columns: int) -> None:
        self.variation = variation
        self._values = np.zeros((num_envs, columns))
        self._direction = np.ones((num_envs, columns))
        self._episodes = np.zeros(num_envs, dtype=np.int64)

    def draw(self, ids: NDArray[np.int64], random: np.random.Generator) -> NDArray[np.float64]:
        """Begin an episode in environments ``ids`` (n,) and return their values (n, C)."""
        episodes, values = self._episodes[ids, None], self._values[ids]
        due = episodes % self.variation.every == 0
        if self.variation.kind in EVOLVING:
            moved = self._move(ids, values, due & (episodes > 0), random)
            values = np.where(episodes == 0, self.variation.first, moved)
        else:
            values = np.where(due, self._fresh(values.shape, random), values)
        self._values[ids] = values
        self._episodes[ids] += 1
        return values

    def restart(self) -> None:
        """Forget all episodes: the next one is the first again."""
        self._values[:], self._direction[:], self._episodes[:] = 0.0, 1.0, 0

    def state_dict(self) -> dict[str, NDArray[Any]]:
        """Return copies of everything that later values depend on, besides the random generator."""
        return {"values": self._values.copy(), "direction": self._direction.copy(), "episodes": self._episodes.copy()}

    def load_state_dict(self, state: dict[str, NDArray[Any]]) -> None:
        """Put back what :meth:`state_dict` returned."""
        self._values[:], self._direction[:], self._episodes[:] = state["values"], state["direction"], state["episodes"]

    def _fresh(self, shape: tuple[int, ...], random: np.random.Generator) -> NDArray[np.float64]:
        v = self.variation
        low, high = v.bounds
        if v.kind == "constant":
            return np.full(shape, low)
        if v.kind == "uniform":
            return random.uniform(low, high, shape)
        if v.kind == "log_uniform":
            return np.exp(random.uniform(math.log(low), math.log(high), shape))
        mean, std = _given(v.mean), _given(v.std)
        if v.kind == "normal":
            return random.normal(mean, std, shape)
        # inverse of the cumulative distribution, between the quantiles of low and high
        quantile = random.uniform(ndtr((low - mean) / std), ndtr((high - mean) / std), shape)
        return cast(NDArray[np.float64], np.clip(mean + std * ndtri(quantile), low, high))

    def _move(
        self, ids: NDArray[np.int64], values: NDArray[np.float64], due: NDArray[np.bool_], random: np.random.Generator
    ) -> NDArray[np.float64]:
        """Return the values after a move of those that are ``due``."""
        kind, (low, high) = self.variation.kind, self.variation.bounds
        move = random.normal(0.0, _given(self.variation.std), values.shape) * due
        if kind == "random_walk":
            return np.clip(values + move, low, high)
        if kind == "saw_wave":
            direction = self._direction[ids]
            moved = values + direction * np.abs(move)
            # turning at a limit; where nothing moves, the direction stays, so a start at high still gets away from it
            direction = np.where(due & (moved >= high), -1.0, np.where(due & (moved <= low), 1.0, direction))
            self._direction[ids] = direction
            return np.clip(moved, low, high)
        moved = values + np.abs(move) if kind in ("drift_up", "cyclic_up") else values - np.abs(move)
        if kind == "cyclic_up":
            return np.where(moved > high, low, moved)
        if kind == "cyclic_down":
            return np.where(moved < low, high, moved)
        return np.clip(moved, low, high)


def _given(value: float | None) -> float:
    assert value is not None, "a variation has been checked to have what its kind needs"
    return value
