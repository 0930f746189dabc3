"""Ranges of a randomization as a prior: model parameters as points of the unit cube, and ranges made of such points."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass

import mujoco
import numpy as np
from numpy.typing import NDArray
from scipy.special import ndtr, ndtri

from dpg_robot.errors import ConfigError
from sim.model_parameter import ModelParameter
from sim.parameter_builders import build_parameters
from sim.randomization import Randomization
from sim.variation import EVOLVING, Variation

_NARROWEST = 0.02  # of a fitted range, as a share of the prior


@dataclass(frozen=True)
class Column:
    """One number that the prior varies.

    Attributes:
        name: as in ``BatchEnvironment.dynamics_names``.
        setting: setting of the randomization.
        target: the object that it belongs to, by name; empty for a value that all objects share.
        variation: completed; how the prior draws it.
        nominal: the value that changes nothing.
    """

    name: str
    setting: str
    target: str
    variation: Variation
    nominal: float

    @property
    def varies(self) -> bool:
        """Whether the prior leaves open what it is."""
        return self.variation.bounds[0] < self.variation.bounds[1]

    def quantile(self, share: NDArray[np.float64]) -> NDArray[np.float64]:
        """Return the prior's quantiles of shares in [0, 1]."""
        variation, (low, high) = self.variation, self.variation.bounds
        if variation.kind == "log_uniform":
            return np.asarray(low * (high / low) ** share)
        if variation.kind == "truncated_normal":
            assert variation.mean is not None, "checked by the variation"
            assert variation.std is not None, "checked by the variation"
            below, above = ndtr((low - variation.mean) / variation.std), ndtr((high - variation.mean) / variation.std)
            drawn = variation.mean + variation.std * ndtri(below + share * (above - below))
            return np.asarray(np.clip(drawn, low, high))
        return np.asarray(low + share * (high - low))

    def between(self, low: float, high: float) -> Variation:
        """Return the variation between two shares of the prior, widened where they are (nearly) the same."""
        short = max(0.0, _NARROWEST - (high - low))
        low = min(max(low - 0.5 * short, 0.0), 1.0 - _NARROWEST)
        high = min(max(high + 0.5 * short, low + _NARROWEST), 1.0)
        ends = self.quantile(np.array([low, high])).tolist()
        kind = self.variation.kind if self.variation.kind == "log_uniform" else "uniform"
        return dataclasses.replace(self.variation, kind=kind, low=ends[0], high=ends[1], mean=None, std=None)


class Prior:
    """What a randomization says of a model's parameters before a robot was seen.

    Attributes:
        randomization: the settings.
        columns: one for each of the P numbers, those included that are fixed.
        free: (F,) numbers of the columns that vary.
    """

    def __init__(self, model: mujoco.MjModel, randomization: Randomization, task_name: str, *, require_all: bool) -> None:
        """Read the ranges.

        Args:
            model: compiled after :func:`sim.randomization.prepare_spec`.
            randomization: the settings.
            task_name: for messages.
            require_all: whether every setting must find something to vary in the model.

        Raises:
            ConfigError: ranges that cannot be fitted, or parameters that the model does not have.
        """
        parameters = build_parameters(model, randomization.variations(), randomization.link_variations(), randomization.link_mass)
        absent = {name for name, _ in randomization.variations()} - {each.setting for each in parameters}
        if require_all and absent:
            raise ConfigError(
                f"the prior varies {', '.join(sorted(absent))}, but the model of {task_name} has nothing that this applies to; "
                "take it out of the prior"
            )
        self.randomization = randomization
        self.columns = tuple(column for parameter in parameters for column in _columns(parameter))
        self.free = np.flatnonzero([column.varies for column in self.columns])
        if not len(self.free):
            raise ConfigError(f"the prior varies nothing of the model of {task_name}; give it ranges, low below high")

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the F numbers that vary."""
        return tuple(self.columns[index].name for index in self.free)

    @property
    def nominal(self) -> NDArray[np.float64]:
        """(P,) the values that change nothing."""
        return np.array([column.nominal for column in self.columns])

    def values(self, points: NDArray[np.float64]) -> NDArray[np.float64]:
        """Return the values (K, P) of points (K, F) of the unit cube, which the prior fills evenly."""
        result = np.empty((len(points), len(self.columns)))
        result[:] = [column.quantile(np.array(0.5)) for column in self.columns]
        for place, index in enumerate(self.free):
            result[:, index] = self.columns[index].quantile(points[:, place])
        return result

    def fitted(self, low: NDArray[np.float64], high: NDArray[np.float64], known: NDArray[np.bool_]) -> Randomization:
        """Return the randomization between points ``low`` and ``high`` (F,); ranges that are not ``known`` (F,) stay."""
        place = {int(index): number for number, index in enumerate(self.free)}
        found: dict[str, dict[str, list[tuple[int, float, float]]]] = {}
        for index, column in enumerate(self.columns):
            number = place.get(index)
            if number is not None:
                ends = (low[number], high[number]) if known[number] else (0.0, 1.0)
                found.setdefault(column.setting, {}).setdefault(column.target, []).append((index, *ends))
        changes: dict[str, object] = {}
        for setting, targets in found.items():
            fitted = {target: self._merge(ends) for target, ends in targets.items()}
            if setting == "link_length":
                links = {target: dataclasses.replace(each, names=()) for target, each in fitted.items()}
                changes[setting] = self.randomization.link_length | links
                continue
            several = tuple(dataclasses.replace(each, names=(target,)) if target else each for target, each in fitted.items())
            changes[setting] = several[0] if len(several) == 1 else several
        return dataclasses.replace(self.randomization, **changes)  # type: ignore[arg-type]

    def _merge(self, ends: list[tuple[int, float, float]]) -> Variation:
        """Return the variation of one object, whose numbers (the axes of a centre of mass) share one range."""
        lowest, highest = min(low for _, low, _ in ends), max(high for _, _, high in ends)
        column = self.columns[ends[0][0]]
        if (lowest, highest) == (0.0, 1.0):
            return column.variation
        return column.between(lowest, highest)


def _columns(parameter: ModelParameter) -> list[Column]:
    variation = parameter.variation
    if variation.kind in EVOLVING or math.inf in variation.bounds:
        raise ConfigError(
            f"{parameter.setting}: kind {variation.kind!r} cannot be fitted, only uniform, log_uniform, truncated_normal and "
            "constant; give the prior a low and a high"
        )
    columns = []
    for name, nominal in zip(parameter.names, parameter.nominal, strict=True):
        target = name.removeprefix(parameter.setting).removeprefix("/")
        if parameter.setting == "center_of_mass":
            target = target.rpartition("/")[0]
        columns.append(Column(name, parameter.setting, target, variation, float(nominal)))
    return columns
