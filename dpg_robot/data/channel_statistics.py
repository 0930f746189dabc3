"""What the values of channels look like, gathered episode by episode, so that all of a data set need not be in memory."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

_SAMPLE_ROWS = 100_000
_LARGEST_STEPS = 100
_AT_LIMIT = 1.0 - 1e-6


@dataclass(frozen=True)
class ChannelFacts:
    """One channel over all episodes.

    Attributes:
        name: the channel.
        unit: its unit; ``unknown`` where nobody said.
        kind: measurement, observation or action.
        count: finite values.
        not_finite: values that are NaN or infinite.
        first_not_finite: episode and row of the first of them.
        low: smallest finite value.
        high: largest finite value.
        mean: mean of the finite values.
        std: their standard deviation.
        at_limit: share of values at -1 or 1 (meaningful for actions).
        typical_step: 99th percentile of the absolute change from row to row.
        largest_steps: the largest of these changes, falling; at most 100.
        largest_step_at: episode and row of the largest.
    """

    name: str
    unit: str
    kind: str
    count: int
    not_finite: int
    first_not_finite: str
    low: float
    high: float
    mean: float
    std: float
    at_limit: float
    typical_step: float
    largest_steps: tuple[float, ...]
    largest_step_at: str


@dataclass
class ChannelTable:
    """Gathers the facts of D channels.

    Attributes:
        kind: measurement, observation or action.
        names: the D channels.
        units: their units.
    """

    kind: str
    names: Sequence[str]
    units: Sequence[str]
    _rows: int = 0
    _stride: int = 1
    _sample: list[NDArray[np.float64]] = field(default_factory=list)
    _first_bad: dict[int, str] = field(default_factory=dict)
    _largest_at: dict[int, tuple[float, str]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        size = len(self.names)
        self._low, self._high = np.full(size, np.inf), np.full(size, -np.inf)
        self._count, self._at_limit = np.zeros(size, np.int64), np.zeros(size, np.int64)
        self._mean, self._squares = np.zeros(size), np.zeros(size)
        self._largest = np.zeros((0, size))

    def add(self, label: str, values: NDArray[np.floating]) -> None:
        """Take in the rows (T, D) of one episode, in order."""
        values = np.asarray(values, np.float64)
        finite = np.isfinite(values)
        for channel in np.flatnonzero(~finite.all(0)).tolist():
            self._first_bad.setdefault(channel, f"{label}, row {int(np.argmin(finite[:, channel]))}")
        self._low = np.minimum(self._low, np.min(values, axis=0, where=finite, initial=np.inf))
        self._high = np.maximum(self._high, np.max(values, axis=0, where=finite, initial=-np.inf))
        self._at_limit += (finite & (np.abs(values) >= _AT_LIMIT)).sum(0)
        self._rows += len(values)
        self._add_moments(np.where(finite, values, 0.0), finite)
        self._add_steps(label, np.abs(np.diff(np.where(finite, values, np.nan), axis=0)))

    def facts(self) -> list[ChannelFacts]:
        """Return what was found, one entry per channel."""
        sample = np.concatenate([np.zeros((0, len(self.names))), *self._sample])
        return [self._fact(channel, sample[:, channel]) for channel in range(len(self.names))]

    def _add_moments(self, values: NDArray[np.float64], finite: NDArray[np.bool_]) -> None:
        """Merge mean and sum of squared deviations of the new rows (Chan et al.)."""
        added = finite.sum(0)
        mean = values.sum(0) / np.maximum(added, 1)
        squares = (finite * (values - mean) ** 2).sum(0)
        count = self._count + added
        delta, share = mean - self._mean, added / np.maximum(count, 1)
        self._mean = self._mean + delta * share
        self._squares = self._squares + squares + delta**2 * self._count * share
        self._count = count

    def _add_steps(self, label: str, steps: NDArray[np.float64]) -> None:
        if not len(steps):
            return
        known = np.nan_to_num(steps, nan=0.0)
        at = known.argmax(0)
        for channel, row in enumerate(at.tolist()):
            if known[row, channel] > self._largest_at.get(channel, (0.0, ""))[0]:
                self._largest_at[channel] = (float(known[row, channel]), f"{label}, row {row + 1}")
        candidates = np.concatenate([self._largest, known])
        self._largest = np.sort(candidates, axis=0)[::-1][:_LARGEST_STEPS]
        self._sample.append(steps[:: self._stride])
        if sum(map(len, self._sample)) > _SAMPLE_ROWS:  # keep every second, from now on too
            self._sample, self._stride = [np.concatenate(self._sample)[::2]], 2 * self._stride

    def _fact(self, channel: int, sample: NDArray[np.float64]) -> ChannelFacts:
        count = int(self._count[channel])
        steps = sample[np.isfinite(sample)]
        return ChannelFacts(
            name=self.names[channel],
            unit=self.units[channel],
            kind=self.kind,
            count=count,
            not_finite=self._rows - count,
            first_not_finite=self._first_bad.get(channel, ""),
            low=float(self._low[channel]) if count else float("nan"),
            high=float(self._high[channel]) if count else float("nan"),
            mean=float(self._mean[channel]) if count else float("nan"),
            std=float(np.sqrt(self._squares[channel] / count)) if count else float("nan"),
            at_limit=float(self._at_limit[channel] / count) if count else 0.0,
            typical_step=float(np.quantile(steps, 0.99)) if len(steps) else 0.0,
            largest_steps=tuple(self._largest[:, channel].tolist()),
            largest_step_at=self._largest_at.get(channel, (0.0, ""))[1],
        )
