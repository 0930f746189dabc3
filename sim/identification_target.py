"""What particles follow: tempered likelihoods of pieces of a log, and a cheap stand-in for them that needs no simulation."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from sim.identification_likelihood import WindowLikelihood

StandIn = Callable[[NDArray[np.float64]], NDArray[np.float64]]
"""Takes points (K, F); returns approximate log-likelihoods (K,), -inf where it knows nothing."""

_MARGIN = 0.5  # beyond the points that a stand-in was fitted to, as a share of their extent


@dataclass(frozen=True)
class Term:
    """A likelihood of the first ``count`` pieces, to some power."""

    power: float
    likelihood: WindowLikelihood
    count: int


@dataclass(frozen=True)
class Target:
    """A product of likelihoods; without any, every point is as likely as any other."""

    terms: tuple[Term, ...] = ()

    def __call__(self, differences: NDArray[np.float64]) -> NDArray[np.float64]:
        """Return log-likelihoods (K,) of differences (K, n, T + 1, C) between robot and simulations."""
        total = np.zeros(len(differences))
        for term in self.terms:
            total += term.power * term.likelihood(differences[:, : term.count]).sum(axis=1)
        return total

    def toward(self, other: Target, share: float) -> Target:
        """Return the target at a share of the way from this one to another."""
        mine = tuple(Term((1.0 - share) * term.power, term.likelihood, term.count) for term in self.terms)
        return Target(
            tuple(t for t in mine + tuple(Term(share * t.power, t.likelihood, t.count) for t in other.terms) if t.power)
        )

    def stand_in(self, points: NDArray[np.float64], differences: NDArray[np.float64]) -> StandIn:
        """Return an approximation near points (K, F) whose simulations differ from the robot by ``differences``.

        Differences are smooth in the parameters: a polynomial, of second degree where there are points enough, gives them. What
        it makes of a piece's squared innovations is a form of the polynomial's terms, one matrix for each piece.
        """
        finite = np.isfinite(differences).all(axis=(1, 2, 3))
        points, differences = points[finite], differences[finite]
        low, high = points.min(axis=0), points.max(axis=0)
        margin = _MARGIN * (high - low)
        centre, extent = points.mean(axis=0), np.maximum(points.std(axis=0), 1e-9)
        size = points.shape[1]
        quadratic = 2 * (1 + size + size * (size + 1) // 2) <= len(np.unique(points, axis=0))

        def features(where: NDArray[np.float64]) -> NDArray[np.float64]:
            scaled = (where - centre) / extent
            parts = [np.ones((len(where), 1)), scaled]
            if quadratic:
                first, second = np.triu_indices(size)
                parts.append(scaled[:, first] * scaled[:, second])
            return np.concatenate(parts, axis=1)

        flat = differences.reshape(len(differences), -1)
        solution = np.asarray(np.linalg.lstsq(features(points), flat, rcond=1e-6)[0], dtype=np.float64)
        coefficients = solution.reshape(-1, *differences.shape[1:])
        forms = [(term, term.likelihood.forms(coefficients[:, : term.count])) for term in self.terms]

        def approximate(where: NDArray[np.float64]) -> NDArray[np.float64]:
            inside = ((where >= low - margin) & (where <= high + margin)).all(axis=1)
            values = features(where)
            total = np.where(inside, 0.0, -np.inf)
            for term, matrices in forms:
                squares = np.maximum(((values @ matrices) * values).sum(axis=-1), 0.0)  # (n, K)
                total += term.power * term.likelihood.of_squares(squares.T).sum(axis=1)
            return total

        return approximate
