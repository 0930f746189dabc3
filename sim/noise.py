"""Noise: Gaussian, white or correlated in time; rounding to a grid; readings that mean nothing."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray


class GaussianNoise:
    """Additive Gaussian noise, independent for each number of each environment.

    With a correlation time it is a stationary Ornstein-Uhlenbeck process, stepped exactly: its autocorrelation after k steps is
    exp(-k timestep / time), and its standard deviation is ``std`` from the first step of an episode on.

    Args:
        std: standard deviation.
        time_s: correlation time; 0 for white noise.
        timestep_s: time between two calls of :meth:`apply`.
        shape: (N, D), the shape of the values of one step.
        dtype: type of the values, float32 or float64.
    """

    def __init__(
        self, std: float, time_s: float, timestep_s: float, shape: tuple[int, int], dtype: type[np.floating[Any]]
    ) -> None:
        self._std = std
        self._kept = math.exp(-timestep_s / time_s) if time_s > 0 else 0.0
        self._fresh_std = std * math.sqrt(-math.expm1(-2 * timestep_s / time_s)) if time_s > 0 else std
        self._dtype: Any = dtype
        self._fresh: NDArray[Any] = np.zeros(shape, dtype)
        self._noise: NDArray[Any] = np.zeros(shape, dtype)
        self.memory: dict[str, NDArray[Any]] = {"noise": self._noise} if self._kept > 0 else {}

    def apply(self, values: NDArray[Any], random: np.random.Generator) -> NDArray[Any]:
        """Add the next noise to ``values`` (N, D), in place, and return them."""
        # noise(t + dt) = exp(-dt / tau) noise(t) + std sqrt(1 - exp(-2 dt / tau)) n,  n ~ N(0, 1)
        random.standard_normal(dtype=self._dtype, out=self._fresh)
        self._fresh *= self._fresh_std
        if self._kept > 0:
            self._noise *= self._kept
            self._noise += self._fresh
            values += self._noise
        else:
            values += self._fresh
        return values

    def restart(self, ids: NDArray[np.int64], values: NDArray[Any], random: np.random.Generator) -> NDArray[Any]:
        """Draw the first noise of environments ``ids``, add it to ``values`` (n, D), in place, and return them."""
        noise: NDArray[Any] = random.standard_normal(values.shape, dtype=self._dtype)
        noise *= self._std
        if self._kept > 0:
            self._noise[ids] = noise
        values += noise
        return values


class Quantization:
    """Rounding to the nearest multiple of a step, as a converter of few bits does.

    Args:
        step: distance between two values of the grid.
        limit: values beyond the last grid point within ±limit become that point.
    """

    def __init__(self, step: float, limit: float = math.inf) -> None:
        self._step = step
        # the tolerance keeps 1.0 on a grid of 0.1, whatever the rounding of their quotient
        self._largest = math.floor(limit / step * (1 + 1e-12)) if math.isfinite(limit) else math.inf
        self.memory: dict[str, NDArray[Any]] = {}

    def apply(self, values: NDArray[Any], random: np.random.Generator) -> NDArray[Any]:
        """Round ``values``, in place, and return them."""
        values /= self._step
        np.rint(values, out=values)
        if self._largest < math.inf:
            np.clip(values, -self._largest, self._largest, out=values)
        values *= self._step
        return values

    def restart(self, ids: NDArray[np.int64], values: NDArray[Any], random: np.random.Generator) -> NDArray[Any]:
        """Round ``values``, in place, and return them."""
        return self.apply(values, random)


class DummyReadings:
    """Extra numbers behind the observation: standard normal, new at each step, without any meaning.

    Args:
        count: how many.
    """

    def __init__(self, count: int) -> None:
        self._count = count
        self.memory: dict[str, NDArray[Any]] = {}

    def apply(self, values: NDArray[Any], random: np.random.Generator) -> NDArray[Any]:
        """Return ``values`` (n, D) with the dummies appended, (n, D + count) float32."""
        dummies = random.standard_normal((len(values), self._count), dtype=np.float32)
        return np.concatenate([values, dummies], axis=1)

    def restart(self, ids: NDArray[np.int64], values: NDArray[Any], random: np.random.Generator) -> NDArray[Any]:
        """Return ``values`` (n, D) with the dummies appended, (n, D + count) float32."""
        return self.apply(values, random)
