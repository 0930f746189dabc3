"""Shaped reward terms in [0, 1], after dm_control's ``tolerance`` (Tassa et al., 2018, arXiv 1801.00690)."""

from __future__ import annotations

from typing import Literal

import numpy as np
from numpy.typing import NDArray


def tolerance(
    x: NDArray[np.float64],
    *,
    margin: float,
    bounds: tuple[float, float] = (0.0, 0.0),
    value_at_margin: float = 0.1,
    sigmoid: Literal["gaussian", "quadratic"] = "gaussian",
) -> NDArray[np.float64]:
    """Return 1 where ``x`` lies within ``bounds``, falling to ``value_at_margin`` at a distance of ``margin`` outside.

    Args:
        x: values of any shape.
        margin: distance from the bounds at which the value is ``value_at_margin``; positive.
        bounds: interval in which the value is 1.
        value_at_margin: in (0, 1) for ``gaussian``, in [0, 1) for ``quadratic``.
        sigmoid: how the value falls outside the bounds.
    """
    low, high = bounds
    distance = np.maximum(np.maximum(low - x, x - high), 0.0) / margin
    if sigmoid == "gaussian":
        falling = np.exp(np.log(value_at_margin) * distance**2)
    else:
        falling = np.maximum(1.0 - (1.0 - value_at_margin) * distance**2, 0.0)
    return np.asarray(falling, dtype=np.float64)
