"""Values that arrive some steps later than they were sent, with a delay of its own for each environment."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray


class DelayLine:
    """A ring buffer of the last values of N environments.

    What is passed to :meth:`apply` comes back ``delay`` calls later; until then comes back what the line was filled with.

    Attributes:
        delay: (N,) int64, the present delay of each environment, in steps; live, drawn anew by :meth:`restart`.

    Args:
        limits: smallest and largest delay, in steps; a delay is drawn uniformly from them, both included.
        shape: (N, D), the shape of the values of one step.
        dtype: type of the values.
    """

    def __init__(self, limits: tuple[int, int], shape: tuple[int, int], dtype: type[np.floating[Any]]) -> None:
        self._low, high = limits
        self._length = high + 1
        self._buffer: NDArray[Any] = np.zeros((self._length, *shape), dtype)
        self._rows = self._buffer.reshape(-1, shape[1])
        self._row_in_slot = np.arange(shape[0])
        self._newest = np.zeros(1, dtype=np.int64)
        self.delay: NDArray[np.int64] = np.full(shape[0], self._low, dtype=np.int64)
        self.memory: dict[str, NDArray[Any]] = {"buffer": self._buffer, "newest": self._newest, "delay": self.delay}

    def apply(self, values: NDArray[Any], random: np.random.Generator | None = None) -> NDArray[Any]:
        """Send ``values`` (N, D) and return those that arrive now, as a new array; nothing random happens here."""
        self._newest[0] = (self._newest[0] + 1) % self._length
        self._buffer[self._newest[0]] = values
        slots = (self._newest[0] - self.delay) % self._length
        arriving: NDArray[Any] = np.take(self._rows, slots * len(self.delay) + self._row_in_slot, axis=0)
        return arriving

    def restart(self, ids: NDArray[np.int64], values: NDArray[Any], random: np.random.Generator) -> NDArray[Any]:
        """Draw new delays for environments ``ids``, fill their lines with ``values`` (n, D), and return ``values``."""
        if self._length - 1 > self._low:
            self.delay[ids] = random.integers(self._low, self._length, len(ids))
        self._buffer[:, ids] = values
        return values

    def take_under_way(self, ids: NDArray[np.int64]) -> NDArray[Any]:
        """Return the sums (n, D) of what was sent in environments ``ids`` and has not arrived yet; none of it arrives later."""
        age = (self._newest[0] - np.arange(self._length)) % self._length
        under_way = age[:, None] < self.delay[ids]
        total: NDArray[Any] = np.where(under_way[:, :, None], self._buffer[:, ids], 0.0).sum(axis=0)
        self._buffer[:, ids] = 0.0
        return total
