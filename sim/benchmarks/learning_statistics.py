"""Statistics of few runs on several tasks: inter-quartile means, probabilities of improvement, and their bootstrap intervals.

These are the statistics of Agarwal et al. 2021, 'Deep Reinforcement Learning at the Edge of the Statistical Precipice'
(https://arxiv.org/abs/2108.13264), which their library rliable offers too. Ours take tasks with different numbers of runs.

Scores come as strata: one array (runs,) for each task.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import stats

Strata = Sequence[NDArray[np.float64]]
Statistic = Callable[..., NDArray[np.float64]]

REPETITIONS = 10_000
_SEED = 0  # the same scores give the same intervals
_PERCENTILES = (2.5, 97.5)


@dataclass(frozen=True)
class Estimate:
    """A statistic with its 95% interval, which is not a number where a task has fewer than two runs."""

    value: float
    low: float
    high: float

    def to_dict(self) -> dict[str, float | None]:
        """Return plain values, None for what is not a finite number."""
        return {name: value if np.isfinite(value) else None for name, value in vars(self).items()}


def interquartile_mean(strata: Strata, repetitions: int = REPETITIONS) -> Estimate:
    """Return the mean of the middle half of all scores, tasks and runs together."""
    return _estimate(_interquartile_mean, [strata], repetitions)


def interquartile_mean_ratio(ours: Strata, theirs: Strata, repetitions: int = REPETITIONS) -> Estimate:
    """Return our inter-quartile mean divided by theirs."""

    def ratio(ours: Strata, theirs: Strata) -> NDArray[np.float64]:
        with np.errstate(divide="ignore", invalid="ignore"):
            return np.divide(_interquartile_mean(ours), _interquartile_mean(theirs))

    return _estimate(ratio, [ours, theirs], repetitions)


def probability_of_improvement(ours: Strata, theirs: Strata, repetitions: int = REPETITIONS) -> Estimate:
    """Return the probability that a run of ours scores higher than one of theirs on a task drawn at random; ties count half."""
    return _estimate(_probability_of_improvement, [ours, theirs], repetitions)


def _interquartile_mean(strata: Strata) -> NDArray[np.float64]:
    """Return the statistic (...,) of scores with leading axes, one array (..., runs) for each task."""
    return np.asarray(stats.trim_mean(np.concatenate(strata, axis=-1), 0.25, axis=-1), dtype=np.float64)


def _probability_of_improvement(ours: Strata, theirs: Strata) -> NDArray[np.float64]:
    wins = []
    for our, their in zip(ours, theirs, strict=True):
        difference = our[..., :, None] - their[..., None, :]
        wins.append(((difference > 0) + 0.5 * (difference == 0)).mean(axis=(-2, -1)))
    return np.asarray(np.mean(wins, axis=0), dtype=np.float64)


def _estimate(statistic: Statistic, groups: Sequence[Strata], repetitions: int) -> Estimate:
    """Return a statistic with its percentile interval under stratified resampling: within each task, each group on its own."""
    if not all(groups) or not all(len(scores) for strata in groups for scores in strata):
        raise ValueError("need at least one task, and at least one run on each")
    value = float(statistic(*groups))
    if any(len(scores) < 2 for strata in groups for scores in strata):
        return Estimate(value, float("nan"), float("nan"))
    random = np.random.default_rng(_SEED)
    samples = [[scores[random.integers(len(scores), size=(repetitions, len(scores)))] for scores in strata] for strata in groups]
    # no interpolation, which would make a number of an infinite ratio and a finite one
    low, high = np.percentile(statistic(*samples), _PERCENTILES, method="inverted_cdf")
    return Estimate(value, float(low), float(high))


def standard_error(values: Any) -> float:
    """Return the standard error of a mean, not a number for a single value."""
    return float(np.std(values, ddof=1) / np.sqrt(len(values))) if len(values) > 1 else float("nan")
