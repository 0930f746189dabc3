"""What an identification found: draws of parameters, fitted ranges, and how well they predict."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from numpy.typing import NDArray

from dpg_robot.config import config_to_dict
from dpg_robot.files import write_atomically
from sim.identification_likelihood import Noise
from sim.identification_prior import Prior
from sim.randomization import Randomization

_UNKNOWN = 0.75  # a range that kept more than this share of its width is that of the prior
_NEAR = 0.05  # an interval this near to an end of the prior, as a share of its width, goes to that end
_TOGETHER = 0.8  # correlation from which on two parameters are known together only


@dataclass(frozen=True)
class Prediction:
    """How far a simulation is from the robot, in pieces that begin where the robot was measured.

    Attributes:
        one_step: (C,) root mean square errors after one control period, in the channels' units.
        end: (C,) the same at the end of a piece.
        one_step_share: the first, in shares of the robot's motion until then, root mean square over the channels.
        end_share: the second likewise.
    """

    one_step: NDArray[np.float64]
    end: NDArray[np.float64]
    one_step_share: float
    end_share: float

    @classmethod
    def of(cls, difference: NDArray[np.float64], drift: NDArray[np.float64]) -> Prediction:
        """Return the errors of differences (K, T + 1, C), beside motion (T + 1, C)."""
        error = np.sqrt((np.nan_to_num(difference, nan=np.inf) ** 2).mean(axis=0))
        share = np.sqrt(((error[1:] / drift[1:]) ** 2).mean(axis=1))
        return cls(error[1], error[-1], float(share[0]), float(share[-1]))


@dataclass(frozen=True)
class Parameter:
    """What is known of one parameter, in the unit of its setting.

    Attributes:
        name: as in ``BatchEnvironment.dynamics_names``.
        nominal: the value that changes nothing.
        prior: the lowest and the highest value that the prior allows.
        quantiles: 5, 25, 50, 75 and 95 % of the posterior lie below these.
        fitted: the range in the fitted randomization.
        share: width of the posterior's central interval beside that of the prior's, by the prior's own measure.
        known: whether the log says anything of it.
    """

    name: str
    nominal: float
    prior: tuple[float, float]
    quantiles: tuple[float, ...]
    fitted: tuple[float, float]
    share: float
    known: bool


@dataclass(frozen=True)
class Posterior:
    """Draws from what is known of a robot's parameters.

    Attributes:
        task: name of the task.
        prior: the ranges to begin with.
        points: (K, F) draws in the unit cube of the prior.
        interval: share of the posterior that a fitted range holds.
        channels: names of the C measurement channels that were compared.
        units: their units.
        noise: of the sensors, and of what moves the robot besides the model.
        temper: power of the likelihood; below 1 where the model is not quite the robot.
        runs: of the log.
        transitions: of the log.
        windows: number of pieces that were fitted.
        held_out: number of pieces that judged the fit.
        window_s: their length, s.
        period_s: control period of the log, s.
        predictions: errors on the held-out pieces, by model.
    """

    task: str
    prior: Prior
    points: NDArray[np.float64]
    interval: float
    channels: tuple[str, ...]
    units: tuple[str, ...]
    noise: Noise
    temper: float
    runs: tuple[str, ...]
    transitions: int
    windows: int
    held_out: int
    window_s: float
    period_s: float
    predictions: dict[str, Prediction]

    def with_predictions(self, predictions: dict[str, Prediction]) -> Posterior:
        """Return the same with other predictions."""
        return dataclasses.replace(self, predictions=predictions)

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the F parameters that vary."""
        return self.prior.names

    @property
    def samples(self) -> NDArray[np.float64]:
        """(K, P) draws of all parameters, for ``BatchEnvironment.set_dynamics``; what goes together does so in them."""
        return self.prior.values(self.points)

    @property
    def known(self) -> NDArray[np.bool_]:
        """(F,) whether the log says anything of each parameter."""
        return self._shares() <= _UNKNOWN

    def range_points(self) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Return the ends (F,) of the fitted ranges in the unit cube; those of the prior for what is not known."""
        low, high = self._interval()
        return np.where(self.known, low, 0.0), np.where(self.known, high, 1.0)

    def parameters(self) -> list[Parameter]:
        """Return what is known, parameter by parameter."""
        found = []
        low, high = self.range_points()
        shares, known = self._shares(), self.known
        for place, index in enumerate(self.prior.free):
            column = self.prior.columns[index]
            shares_of_prior = np.asarray(np.quantile(self.points[:, place], (0.05, 0.25, 0.5, 0.75, 0.95)))
            quantiles = column.quantile(shares_of_prior)
            fitted = column.between(low[place], high[place]).bounds if known[place] else column.variation.bounds
            found.append(
                Parameter(
                    column.name,
                    column.nominal,
                    column.variation.bounds,
                    tuple(quantiles.tolist()),
                    fitted,
                    float(shares[place]),
                    bool(known[place]),
                )
            )
        return found

    def together(self) -> list[tuple[str, str, float]]:
        """Return pairs of parameters of which the log tells a combination rather than each, and their correlations."""
        if len(self.names) < 2:
            return []
        correlation = np.asarray(np.nan_to_num(np.corrcoef(self.points.T)))
        pairs = zip(*np.triu_indices(len(self.names), 1), strict=True)
        return [(self.names[i], self.names[j], float(correlation[i, j])) for i, j in pairs if abs(correlation[i, j]) > _TOGETHER]

    def to_randomization(self) -> Randomization:
        """Return the fitted ranges; settings of which nothing is known keep those of the prior."""
        low, high = self._interval()
        return self.prior.fitted(low, high, self.known)

    def write(self, path: str | Path, origin: str = "") -> None:
        """Write the fitted ranges as a randomization YAML; ``origin`` is the command that made it."""
        lines = [
            f"# Ranges for {self.task}, fitted to {self.transitions} transitions of {', '.join(self.runs)}: the central "
            f"{100 * self.interval:g} %",
            "# of what a robot like that may be. Ranges of which the log says nothing are those before.",
        ]
        if origin:
            lines.append(f"# Made by: {origin}")
        plain = {name: value for name, value in config_to_dict(self.to_randomization()).items() if value}
        text = yaml.safe_dump(_without_defaults(plain), sort_keys=False)
        write_atomically(path, ("\n".join(lines) + "\n" + text).encode())

    def report(self) -> list[str]:
        """Return everything in words, as lines."""
        lines = [
            f"{self.task}: {self.transitions} transitions; {self.windows} pieces of {self.window_s:.3g} s fitted, "
            f"{self.held_out} held out",
            f"{'parameter':32} {'prior':>20} {'5 %':>10} {'50 %':>10} {'95 %':>10}  width",
        ]
        for each in self.parameters():
            prior = f"{each.prior[0]:.4g} to {each.prior[1]:.4g}"
            low, middle, high = each.quantiles[0], each.quantiles[2], each.quantiles[4]
            width = f"{100 * each.share:.0f} % of the prior" if each.known else "not identifiable from this log"
            lines.append(f"{each.name:32} {prior:>20} {low:10.4g} {middle:10.4g} {high:10.4g}  {width}")
        for first, second, correlation in self.together():
            lines.append(f"{first} and {second} are known together rather than each by itself (correlation {correlation:+.2f})")
        noise = ", ".join(
            f"{name} {std:.2g} {unit}" for name, std, unit in zip(self.channels, self.noise.sensor, self.units, strict=True)
        )
        lines.append(f"noise of the sensors: {noise}")
        if self.temper < 0.95:
            lines.append(f"the likelihood counts {self.temper:.2f}-fold: the model does not explain all pieces equally well")
        lines.append(f"{'error on held-out pieces, in shares of the motion':50} {'one step':>10} {'at the end':>10}")
        for name, prediction in self.predictions.items():
            lines.append(f"  {name:48} {prediction.one_step_share:10.3f} {prediction.end_share:10.3f}")
        return lines

    def to_dict(self) -> dict[str, Any]:
        """Return plain values for JSON."""
        return {
            "task": self.task,
            "runs": list(self.runs),
            "transitions": self.transitions,
            "windows": self.windows,
            "held_out": self.held_out,
            "window_s": self.window_s,
            "interval": self.interval,
            "temper": self.temper,
            "channels": list(self.channels),
            "units": list(self.units),
            "sensor_noise": self.noise.sensor.tolist(),
            "process_noise": self.noise.process.tolist(),
            "parameters": [dataclasses.asdict(each) for each in self.parameters()],
            "together": [list(each) for each in self.together()],
            "predictions": {
                name: {
                    "one_step": each.one_step.tolist(),
                    "end": each.end.tolist(),
                    "one_step_share": each.one_step_share,
                    "end_share": each.end_share,
                }
                for name, each in self.predictions.items()
            },
            "sample_names": [column.name for column in self.prior.columns],
            "samples": self.samples.round(6).tolist(),
        }

    def _interval(self) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Return the ends (F,) of the central interval in the unit cube."""
        tail = 0.5 * (1.0 - self.interval)
        low, high = (np.asarray(np.quantile(self.points, share, axis=0)) for share in (tail, 1.0 - tail))
        # draws that crowd at an end of the prior never reach it: friction that is 0, say
        near = _NEAR * (high - low)
        return np.where(low < near, 0.0, low), np.where(1.0 - high < near, 1.0, high)

    def _shares(self) -> NDArray[np.float64]:
        low, high = self._interval()
        return np.asarray((high - low) / self.interval)


def _without_defaults(value: Any) -> Any:
    """Return plain settings without what nobody gave."""
    if isinstance(value, dict):
        return {
            name: _without_defaults(item)
            for name, item in value.items()
            if item is not None and item != [] and (name, item) not in (("every", 1), ("link_mass", "keep"))
        }
    return [_without_defaults(item) for item in value] if isinstance(value, list) else value
