"""Shaped reward terms in [0, 1], after dm_control's ``tolerance`` (Tassa et al., 2018, arXiv 1801.00690)."""

from __future__ import annotations

from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

Sigmoid = Literal["gaussian", "linear", "quadratic", "long_tail"]
Bound = float | NDArray[np.float64]


def tolerance(
    x: NDArray[Any],
    *,
    bounds: tuple[Bound, Bound] = (0.0, 0.0),
    margin: float = 0.0,
    value_at_margin: float = 0.1,
    sigmoid: Sigmoid = "gaussian",
) -> NDArray[np.float64]:
    """Return 1 where ``x`` lies within ``bounds``, falling to ``value_at_margin`` at a distance of ``margin`` outside.

    Args:
        x: values of any shape.
        bounds: interval in which the value is 1, bounds included; either may be infinite, or an array that broadcasts with ``x``
            (an interval per environment).
        margin: distance from the bounds at which the value is ``value_at_margin``; with 0 the value is 0 everywhere outside.
        value_at_margin: in (0, 1) for ``gaussian`` and ``long_tail``, in [0, 1) for ``linear`` and ``quadratic``.
        sigmoid: how the value falls outside the bounds.

    Raises:
        ValueError: a lower bound above the upper one, a negative margin, or a ``value_at_margin`` out of its range.
    """
    low, high = bounds
    if np.any(np.greater(low, high)):
        raise ValueError(f"the lower bound must not exceed the upper one, got bounds {bounds}")
    if margin < 0:
        raise ValueError(f"margin must be 0 or more, got {margin}")
    if margin == 0:
        return np.asarray((x >= low) & (x <= high), dtype=np.float64)
    # distance of x from the interval, in margins
    distance = np.maximum(np.maximum(low - x, x - high), 0.0) / margin
    return _falling(distance, value_at_margin, sigmoid)


def _falling(distance: NDArray[np.float64], value: float, sigmoid: Sigmoid) -> NDArray[np.float64]:
    """Return a function of ``distance`` that is 1 at 0 and ``value`` at 1."""
    lowest_allowed = sigmoid in ("linear", "quadratic") and value == 0
    if not (0 < value < 1 or lowest_allowed):
        raise ValueError(f"value_at_margin must be between 0 and 1 for the sigmoid {sigmoid!r}, got {value}")
    if sigmoid == "gaussian":
        # value ** (distance ** 2)
        falling = np.exp(np.log(value) * distance**2)
    elif sigmoid == "linear":
        falling = np.maximum(1.0 - (1.0 - value) * distance, 0.0)
    elif sigmoid == "quadratic":
        falling = np.maximum(1.0 - (1.0 - value) * distance**2, 0.0)
    elif sigmoid == "long_tail":
        falling = 1.0 / (1.0 + (1.0 / value - 1.0) * distance**2)
    else:
        raise ValueError(f"sigmoid must be gaussian, linear, quadratic or long_tail, got {sigmoid!r}")
    return np.asarray(falling, dtype=np.float64)
