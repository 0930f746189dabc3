"""Numbers of several seeds as a mean with its standard error."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from sim.benchmarks.learning_statistics import standard_error


def summarize(values: Iterable[float]) -> dict[str, Any]:
    """Return mean, standard error (None for one value) and the values themselves."""
    every = list(values)
    error = standard_error(every)
    return {"mean": float(np.mean(every)), "standard_error": error if math.isfinite(error) else None, "values": every}


def summary_text(summary: Mapping[str, Any], factor: float = 1.0) -> str:
    """Return mean and standard error as text, both times ``factor``."""
    error = "" if summary["standard_error"] is None else f" +- {factor * summary['standard_error']:.2g}"
    return f"{factor * summary['mean']:.3g}{error}"
