"""Samples of a posterior in the unit cube: sequential Monte Carlo over ever more data, moved by differential evolution.

The particles begin as draws from the prior. Pieces of data are added level by level (Chopin, 2002); within a level the likelihood
is tempered, such that no more than half of the particles are lost at once; and between, each particle moves by Metropolis steps
along differences of other particles (ter Braak, 2006), in some of the dimensions (Vrugt et al., 2009), and by long
chains along a polynomial stand-in of the simulations, which cross the ridges where the data tell of a combination only.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.stats import qmc

from sim.identification_target import StandIn, Target

Simulate = Callable[[NDArray[np.float64], NDArray[np.int64]], NDArray[np.float64]]
"""Takes points (K, F) and numbers (n,) of pieces; returns differences (K, n, T + 1, C) between robot and simulation."""

_WANTED_ACCEPTANCE = 0.25
_JUMP = 0.1  # share of the moves that go the whole difference, to another mode
_CROSSOVERS = (0.2, 0.5, 1.0)  # shares of the dimensions in which a move goes
_JITTER = 1e-3  # of moves, as a share of the cube
_LARGEST_STEPS = 30  # of the temperature in one level
_CHAIN = 60  # steps along a stand-in


@dataclass
class Population:
    """N particles.

    Attributes:
        points: (N, F) in the unit cube.
        differences: (N, n, T + 1, C) between the robot and their simulations of the pieces so far.
        scale: factor on the lengths of moves, kept such that a fourth of them is accepted.
        accepted: share of the last moves along differences that was accepted.
        followed: share of the last moves along a stand-in that was accepted.
    """

    points: NDArray[np.float64]
    differences: NDArray[np.float64]
    scale: float = 1.0
    accepted: float = float("nan")
    followed: float = float("nan")

    @property
    def windows(self) -> NDArray[np.int64]:
        """Numbers of the pieces so far, of those in the order in which they are added."""
        return np.arange(self.differences.shape[1])


def first_population(size: int, dimensions: int, simulate: Simulate, windows: int, seed: int) -> Population:
    """Return draws from the prior, evenly spread (a scrambled Sobol sequence); ``size`` should be a power of two."""
    points = qmc.Sobol(dimensions, rng=np.random.default_rng([seed, 0])).random(size)
    return Population(points, simulate(points, np.arange(windows)))


def extend(population: Population, simulate: Simulate, windows: int) -> None:
    """Let the particles simulate more pieces, ``windows`` in all."""
    present = population.differences.shape[1]
    if windows > present:
        more = simulate(population.points, np.arange(present, windows))
        population.differences = np.concatenate([population.differences, more], axis=1)


def anneal(
    population: Population, before: Target, after: Target, simulate: Simulate, random: np.random.Generator, sweeps: int
) -> None:
    """Lead particles that follow one target to the next, in as many steps as keep half of them at a time."""
    reached = 0.0
    for attempt in range(_LARGEST_STEPS):
        old, new = before(population.differences), after(population.differences)
        gain = np.where(np.isfinite(new), new - np.where(np.isfinite(old), old, new), -np.inf)
        # the last step goes all the way, however few particles it leaves: the sweeps spread them again
        step = 1.0 - reached if attempt == _LARGEST_STEPS - 1 else _largest_step(gain, 1.0 - reached)
        chosen = _systematic(_weights(step * gain), random)
        population.points, population.differences = population.points[chosen], population.differences[chosen]
        reached = min(1.0, reached + step)
        for _ in range(sweeps):
            sweep(population, before.toward(after, reached), simulate, random)
        if reached == 1.0:
            return


def sweep(population: Population, target: Target, simulate: Simulate, random: np.random.Generator) -> None:
    """Offer every particle two moves: one along differences of others, and one along a stand-in of the target.

    The second is a chain of many steps that leave the stand-in's density as it is, accepted by what the stand-in gets wrong (Liu,
    2001): it crosses the ridges and plains that the log leaves.
    """
    tried = _move(population, target, simulate, random, None)
    points = np.concatenate([population.points, tried[0]])
    differences = np.concatenate([population.differences, tried[1]])
    _move(population, target, simulate, random, target.stand_in(points, differences))


def _move(
    population: Population,
    target: Target,
    simulate: Simulate,
    random: np.random.Generator,
    stand_in: StandIn | None,
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Offer every particle one Metropolis move; each half goes along differences of the other. Returns what was proposed."""
    halves = np.array_split(random.permutation(len(population.points)), 2)
    tried, accepted = [], 0
    for moving, others in (halves, halves[::-1]):
        start, partners = population.points[moving], population.points[others]
        if stand_in is None:
            proposed, owed = _propose(start, partners, population.scale, random), np.zeros(len(moving))
        else:
            proposed, owed = _follow(start, partners, stand_in, random)
        differences = simulate(proposed, population.windows)
        gain = target(differences) - target(population.differences[moving]) - owed
        accept = np.log(random.random(len(moving))) < gain
        population.points[moving[accept]] = proposed[accept]
        population.differences[moving[accept]] = differences[accept]
        accepted += int(accept.sum())
        tried.append((proposed, differences))
    share = accepted / len(population.points)
    if stand_in is None:
        population.accepted = share
        population.scale = float(np.clip(population.scale * np.exp(share - _WANTED_ACCEPTANCE), 0.05, 2.0))
    else:
        population.followed = share
    return np.concatenate([each[0] for each in tried]), np.concatenate([each[1] for each in tried])


def _follow(
    start: NDArray[np.float64], partners: NDArray[np.float64], stand_in: StandIn, random: np.random.Generator
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return where chains of the stand-in lead from ``start`` (K, F), and the (K,) gains of the stand-in on the way.

    Steps along differences are as likely there and back, so each chain is reversible.
    """
    points, first = start.copy(), stand_in(start)
    present = first.copy()
    for _ in range(_CHAIN):
        proposed = _propose(points, partners, 1.0, random)
        value = stand_in(proposed)
        accept = np.log(random.random(len(points))) < value - present
        points[accept], present[accept] = proposed[accept], value[accept]
    return points, present - first


def _propose(
    points: NDArray[np.float64], others: NDArray[np.float64], scale: float, random: np.random.Generator
) -> NDArray[np.float64]:
    """Return (K, F) moves of ``points``, mirrored at the walls of the cube; as likely as the way back."""
    count, dimensions = points.shape
    pairs = np.array([random.choice(len(others), 2, replace=False) for _ in range(count)])
    crossover = random.choice(_CROSSOVERS, count)[:, None]
    moves = random.random((count, dimensions)) < crossover
    moves[np.arange(count), random.integers(dimensions, size=count)] = True
    length = scale * 2.38 / np.sqrt(2.0 * moves.sum(axis=1, keepdims=True))
    length = np.where(random.random((count, 1)) < _JUMP, 1.0, length)
    step = length * (others[pairs[:, 0]] - others[pairs[:, 1]]) + _JITTER * random.standard_normal((count, dimensions))
    moved = np.mod(points + moves * step, 2.0)
    return np.asarray(np.where(moved > 1.0, 2.0 - moved, moved))


def _largest_step(gain: NDArray[np.float64], most: float) -> float:
    """Return the largest step of the temperature with which half of the particles count."""
    wanted = 0.5 * len(gain)
    if _effective(most * gain) >= wanted:
        return most
    low, high = 0.0, most
    for _ in range(40):
        middle = 0.5 * (low + high)
        low, high = (middle, high) if _effective(middle * gain) >= wanted else (low, middle)
    return max(low, 1e-6)


def _effective(logs: NDArray[np.float64]) -> float:
    weights = _weights(logs)
    return float(1.0 / (weights**2).sum())


def _weights(logs: NDArray[np.float64]) -> NDArray[np.float64]:
    # -inf times 0 is not a number: a particle whose simulation diverged never counts
    logs = np.where(np.isnan(logs), -np.inf, logs)
    highest = logs.max()
    if not np.isfinite(highest):
        return np.full(len(logs), 1.0 / len(logs))
    weights = np.exp(logs - highest)
    return np.asarray(weights / weights.sum())


def _systematic(weights: NDArray[np.float64], random: np.random.Generator) -> NDArray[np.int64]:
    """Return (N,) numbers of particles, each about as often as its weight says."""
    places = (random.random() + np.arange(len(weights))) / len(weights)
    return np.minimum(np.searchsorted(np.cumsum(weights), places), len(weights) - 1).astype(np.int64)
