"""Randomized dynamics: each episode of each environment gets model parameters of its own.

Parameters are drawn as factors on remembered nominal values (as in dm_control's ``composer.variation``), so nothing compounds
from one episode to the next.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import mujoco
import mujoco.batch
import numpy as np
from numpy.typing import NDArray

from dpg_robot.config import setting

Range = tuple[float, float]
UNCHANGED: Range = (1.0, 1.0)


@dataclass(frozen=True)
class Randomization:
    """Ranges of factors on the nominal values; each factor is log-uniform in its range, and (1, 1) leaves the value alone."""

    mass: Range = setting(UNCHANGED, "mass of each body, its inertia by the same factor")
    damping: Range = setting(UNCHANGED, "damping of each joint")
    actuator_gain: Range = setting(UNCHANGED, "gain of each actuator (force per control)")

    def __post_init__(self) -> None:
        for name in ("mass", "damping", "actuator_gain"):
            low, high = getattr(self, name)
            if not 0 < low <= high < math.inf:
                raise ValueError(f"{name} must be a range of positive, finite factors low <= high, got [{low}, {high}]")


RANDOMIZATION_PRESETS = {
    "none": Randomization(),
    "default": Randomization(mass=(0.7, 1.5), damping=(0.3, 10.0), actuator_gain=(0.75, 1.25)),
}


class DynamicsRandomizer:
    """Draws model parameters for the environments of a batch.

    Args:
        batch: the simulations, with nominal parameters.
        ranges: what to vary, and by how much.
    """

    def __init__(self, batch: mujoco.batch.Batch, ranges: Randomization) -> None:
        self._batch = batch
        varied: list[tuple[Range, tuple[str, ...]]] = [
            (ranges.mass, ("body_mass", "body_inertia")),
            (ranges.damping, ("dof_damping",)),
            (ranges.actuator_gain, ("actuator_gainprm",)),
        ]
        self._varied = [(limits, fields) for limits, fields in varied if limits != UNCHANGED]
        self._fields = {name: batch.expand(name) for _, fields in self._varied for name in fields}
        self._nominal = {name: values[0].copy() for name, values in self._fields.items()}

    def draw(self, ids: NDArray[np.int64], random: np.random.Generator) -> None:
        """Give the environments ``ids`` new parameters."""
        if not self._varied:
            return
        for (low, high), fields in self._varied:
            count = self._nominal[fields[0]].shape[0]
            factor = np.exp(random.uniform(np.log(low), np.log(high), (len(ids), count)))
            for name in fields:
                nominal = self._nominal[name]
                self._fields[name][ids] = nominal * factor.reshape(factor.shape + (1,) * (nominal.ndim - 1))
        self._batch.set_const(ids)

    def parameters(self) -> dict[str, NDArray[np.float64]]:
        """Return copies of the varied model fields, (N, ...) each."""
        return {name: values.copy() for name, values in self._fields.items()}

    def set_parameters(self, parameters: dict[str, NDArray[np.float64]]) -> None:
        """Put back what :meth:`parameters` returned."""
        for name, values in parameters.items():
            self._fields[name][:] = values
        if parameters:
            self._batch.set_const()
