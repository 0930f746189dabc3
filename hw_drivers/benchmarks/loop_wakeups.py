"""When a loop on a grid of absolute times woke up, and what that says about it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

PERCENTILES = ("p50", "p99", "p99.9", "max")
_PER_MILLE = (500, 990, 999, 1000)


@dataclass(frozen=True)
class Wakeups:
    """One stretch of a loop.

    Attributes:
        period_ns: distance of the grid points.
        points: (n,) int64 grid points at which the loop woke up, rising.
        late_ns: (n,) int64 how late it was, from 0.
        due: number of grid points in the stretch; those that are not among ``points`` were missed.
    """

    period_ns: int
    points: NDArray[np.int64]
    late_ns: NDArray[np.int64]
    due: int

    @property
    def periods_ns(self) -> NDArray[np.int64]:
        """Times between wake-ups at grid points that follow each other."""
        periods: NDArray[np.int64] = (self.period_ns + np.diff(self.late_ns))[np.diff(self.points) == 1]
        return periods


def summarize_wakeups(stretches: Sequence[Wakeups]) -> dict[str, Any]:
    """Return counts and percentiles, microseconds, over all stretches together."""
    return {
        "ticks": sum(len(stretch.points) for stretch in stretches),
        "missed": sum(stretch.due - len(stretch.points) for stretch in stretches),
        "latency_us": percentiles_us([stretch.late_ns for stretch in stretches]),
        "period_us": percentiles_us([stretch.periods_ns for stretch in stretches]),
    }


def percentiles_us(pieces_ns: Sequence[NDArray[np.int64]]) -> dict[str, float] | None:
    """Return the :data:`PERCENTILES` of times in ns, in microseconds; each is one of the times. None where there are none."""
    times = np.sort(np.concatenate([*pieces_ns, np.empty(0, np.int64)]))
    if not len(times):
        return None
    ranks = (-(-len(times) * share // 1000) for share in _PER_MILLE)  # so many of the times are not above it
    return {name: round(int(times[rank - 1]) * 1e-3, 3) for name, rank in zip(PERCENTILES, ranks, strict=True)}
