"""How likely a robot's measurements are, given how a simulation differs from them.

A simulated piece of a log begins at a noisy measurement, and the robot is pushed about on its way. Both make simulation and robot
differ even with true parameters, in a way that the dynamics amplify or damp. So the differences are filtered: an extended Kalman
filter, linearized along one simulation, explains what noise explains, and what it cannot predict (the innovations) counts.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import minimize

_DEGREES_OF_FREEDOM = 10.0  # of a whole piece: one that was disturbed more than others counts less
_LEAST, _MOST = 1e-3, 3.0  # limits of the noise, as shares of the motion
_NOISE_WINDOWS = 48
_STEP = 1e-3  # of logarithms, for slopes


@dataclass(frozen=True)
class Noise:
    """Standard deviations of noise.

    Attributes:
        sensor: (C,) of each measurement, in the channels' units.
        process: (V,) of the change of each velocity in one control period that no force of the model explains.
    """

    sensor: NDArray[np.float64]
    process: NDArray[np.float64]


@dataclass(frozen=True)
class LinearModel:
    """How small differences between robot and simulation develop.

    Attributes:
        transition: (W, T, n, n) of each piece and control period.
        index: (C,) what of the state is measured.
        start: (n,) standard deviation of the state at the beginning of a piece, before its first measurement counts.
        velocities: (V,) where the velocities stand in the state.
        forcing: (n, V) what a change of each velocity during a period does to the state at its end.
    """

    transition: NDArray[np.float64]
    index: NDArray[np.int64]
    start: NDArray[np.float64]
    velocities: NDArray[np.int64]
    forcing: NDArray[np.float64]

    def select(self, windows: NDArray[np.int64]) -> LinearModel:
        """Return the model of some pieces."""
        return LinearModel(self.transition[windows], self.index, self.start, self.velocities, self.forcing)


class WindowLikelihood:
    """Log-likelihood of the differences between a robot's measurements and simulations of them.

    Args:
        model: how differences develop.
        noise: of sensors and of the robot's motion.
    """

    def __init__(self, model: LinearModel, noise: Noise) -> None:
        self.noise = noise
        self._model = model
        gains, whitenings, determinants = _filter(model, noise.sensor[None] ** 2, noise.process[None] ** 2)
        self._gains, self._whitenings, self._determinants = gains[:, 0], whitenings[:, 0], determinants[0]

    def __call__(self, difference: NDArray[np.float64]) -> NDArray[np.float64]:
        """Return (K, W) log-likelihoods of differences (K, W, T + 1, C); -inf where they are not finite."""
        finite = np.isfinite(difference).all(axis=(2, 3))
        innovations = self.innovations(np.nan_to_num(difference, posinf=0.0, neginf=0.0))
        return np.where(finite, self.of_squares((innovations**2).sum(axis=(2, 3))), -np.inf)

    def of_squares(self, squares: NDArray[np.float64]) -> NDArray[np.float64]:
        """Return (K, W) log-likelihoods of pieces whose squared innovations sum to ``squares`` (K, W)."""
        steps, sensors = self._whitenings.shape[0] - 1, len(self._model.index)
        size = steps * sensors  # the first measurement does not count: it is where the simulation begins
        # multivariate t: one scale for a whole piece
        nu = _DEGREES_OF_FREEDOM
        return np.asarray(-0.5 * self._determinants - 0.5 * (nu + size) * np.log1p(squares / nu))

    def forms(self, coefficients: NDArray[np.float64]) -> NDArray[np.float64]:
        """Return (W, G, G) what products of weights make of the squared innovations of a weighted sum of G differences."""
        innovations = self.innovations(coefficients)
        flat = innovations.reshape(*innovations.shape[:2], -1).swapaxes(0, 1)
        return np.asarray(flat @ flat.swapaxes(1, 2))

    def innovations(self, difference: NDArray[np.float64]) -> NDArray[np.float64]:
        """Return the whitened innovations (K, W, T + 1, C) of differences: standard normal if noise is all that differs."""
        states = np.zeros((*difference.shape[:2], len(self._model.start)))
        result = np.empty_like(difference)
        for step in range(difference.shape[2]):
            surprise = difference[:, :, step] - states[..., self._model.index]
            result[:, :, step] = np.einsum("wij,kwj->kwi", self._whitenings[step], surprise)
            states += np.einsum("wij,kwj->kwi", self._gains[step], surprise)
            if step < self._model.transition.shape[1]:
                states = np.einsum("wij,kwj->kwi", self._model.transition[:, step], states)
        return result


def estimate_starts(model: LinearModel, noise: Noise, difference: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return (W, n) by how much the robot's state was another at the beginning of each piece than the simulation's.

    Args:
        model: how differences develop.
        noise: of sensors and of the robot's motion.
        difference: (W, T + 1, C) between the robot and one simulation.
    """
    windows, steps, states, _ = model.transition.shape
    # a filter that carries the first state along knows it best at the end
    transition = np.zeros((windows, steps, 2 * states, 2 * states))
    transition[..., :states, :states] = model.transition
    transition[..., states:, states:] = np.eye(states)
    forcing = np.concatenate([model.forcing, np.zeros_like(model.forcing)])
    both = LinearModel(transition, model.index, np.tile(model.start, 2), model.velocities, forcing)
    covariance = np.tile(np.diag(model.start**2), (2, 2))
    gains, _, _ = _filter(both, noise.sensor[None] ** 2, noise.process[None] ** 2, covariance)
    state = np.zeros((windows, 2 * states))
    for step in range(steps + 1):
        surprise = difference[:, step] - state[:, model.index]
        state += np.einsum("wij,wj->wi", gains[step, 0], surprise)
        if step < steps:
            state = np.einsum("wij,wj->wi", transition[:, step], state)
    return state[:, states:]


def fit_noise(model: LinearModel, difference: NDArray[np.float64], motion: NDArray[np.float64], start: Noise | None) -> Noise:
    """Return the noise that makes differences (W, T + 1, C) most likely.

    Args:
        model: how differences develop.
        difference: between the robot and the best simulation; errors of the model count as noise.
        motion: (C,) root mean squares of the robot's motion in a piece, as the scale of all.
        start: where the search begins.
    """
    windows = np.unique(np.linspace(0, len(difference) - 1, _NOISE_WINDOWS).round().astype(np.int64))
    model, difference = model.select(windows), difference[windows]
    sensors = len(model.index)
    # the scale of a velocity is that of its channel, or the mean one where it is not measured
    channel = {int(index): number for number, index in enumerate(model.index)}
    process = [motion[channel[index]] if index in channel else motion.mean() for index in model.velocities.tolist()]
    scale = np.concatenate([motion, process])

    def misfit(logs: NDArray[np.float64]) -> tuple[float, NDArray[np.float64]]:
        tried = np.concatenate([logs[None], logs + _STEP * np.eye(len(logs))])
        variances = (np.exp(tried) * scale) ** 2
        values = _misfit(model, difference, variances[:, :sensors], variances[:, sensors:])
        return float(values[0]), (values[1:] - values[0]) / _STEP

    begin = np.full(len(scale), np.log(0.05)) if start is None else np.log(np.concatenate([start.sensor, start.process]) / scale)
    limits = [(np.log(_LEAST), np.log(_MOST))] * len(scale)
    best = minimize(misfit, begin, jac=True, method="L-BFGS-B", bounds=limits, options={"maxiter": 40})
    noise = np.exp(best.x) * scale
    return Noise(noise[:sensors], noise[sensors:])


def _misfit(
    model: LinearModel, difference: NDArray[np.float64], sensor: NDArray[np.float64], process: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Return (S,) negative log-likelihoods per piece with variances (S, C) and (S, V)."""
    gains, whitenings, determinants = _filter(model, sensor, process)
    states = np.zeros((len(sensor), len(difference), len(model.start)))
    squares = np.zeros((len(sensor), len(difference)))
    for step in range(difference.shape[1]):
        surprise = difference[None, :, step] - states[..., model.index]
        squares += (np.einsum("swij,swj->swi", whitenings[step], surprise) ** 2).sum(axis=-1)
        states += np.einsum("swij,swj->swi", gains[step], surprise)
        if step < model.transition.shape[1]:
            states = np.einsum("wij,swj->swi", model.transition[:, step], states)
    size = difference[0].size - difference.shape[2]
    nu = _DEGREES_OF_FREEDOM
    return np.asarray((0.5 * determinants + 0.5 * (nu + size) * np.log1p(squares / nu)).mean(axis=1))


def _filter(
    model: LinearModel,
    sensor: NDArray[np.float64],
    process: NDArray[np.float64],
    start: NDArray[np.float64] | None = None,
) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
    """Return gains (T + 1, S, W, n, C), whitenings (T + 1, S, W, C, C) and log-determinants (S, W) of Kalman filters.

    Args:
        model: how differences develop.
        sensor: (S, C) variances of the measurements, for S filters.
        process: (S, V) variances of the changes of velocities.
        start: (n, n) covariance of the first state, instead of the model's.
    """
    filters, (windows, steps, states, _) = len(sensor), model.transition.shape
    index, sensors = model.index, len(model.index)
    first = np.diag(model.start**2) if start is None else start
    covariance = np.broadcast_to(first, (filters, windows, states, states)).copy()
    forced = np.einsum("iv,sv,jv->sij", model.forcing, process, model.forcing)[:, None]
    noise = np.einsum("sc,cd->scd", sensor, np.eye(sensors))[:, None]
    measuring = np.eye(states)[index]  # M
    gains = np.empty((steps + 1, filters, windows, states, sensors))
    whitenings = np.empty((steps + 1, filters, windows, sensors, sensors))
    determinants = np.zeros((filters, windows))
    for step in range(steps + 1):
        shared = covariance[..., index]  # (S, W, n, C): P M^T
        predicted = shared[..., index, :] + noise  # M P M^T + R
        lower = np.linalg.cholesky(predicted)
        whitening = np.linalg.inv(lower)
        inverse = whitening.swapaxes(-1, -2) @ whitening
        gain = shared @ inverse
        # Joseph's form: it stays positive where what is measured was far less certain before
        kept = np.eye(states) - gain @ measuring
        covariance = kept @ covariance @ kept.swapaxes(-1, -2) + gain @ noise @ gain.swapaxes(-1, -2)
        gains[step], whitenings[step] = gain, whitening
        if step:  # the first measurement is where the simulation begins: it tells nothing of the parameters
            determinants += 2 * np.log(np.diagonal(lower, axis1=-2, axis2=-1)).sum(axis=-1)
        if step < steps:
            transition = model.transition[:, step]
            covariance = transition @ covariance @ transition.swapaxes(-1, -2) + forced
            covariance = 0.5 * (covariance + covariance.swapaxes(-1, -2))
    return gains, whitenings, determinants
