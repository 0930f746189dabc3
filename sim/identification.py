"""System identification: what a robot's log says of the parameters of its simulation, as a posterior within a randomization.

Pieces of the log are simulated from where the robot was measured, with thousands of parameter vectors; vectors whose simulations
measure what the robot measured are kept. The result is an ordinary randomization, nearer to the robot and as wide as the log
leaves it. docs/identification.md explains the method and what was measured of it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from dpg_robot.config import setting
from dpg_robot.contract import Contract
from dpg_robot.data.transition_arrays import TransitionArrays
from dpg_robot.errors import DpgError
from sim.environment import BatchEnvironment
from sim.factory import make
from sim.identification_likelihood import LinearModel, Noise, WindowLikelihood, estimate_starts, fit_noise
from sim.identification_posterior import Posterior, Prediction
from sim.identification_prior import Prior
from sim.identification_sampler import Population, anneal, extend, first_population, sweep
from sim.identification_simulator import WindowSimulator
from sim.identification_target import Target, Term
from sim.randomization import Randomization, resolve_randomization
from sim.robot_comparison import ComparisonError, Windows, cut_windows
from sim.tasks.task import Task

_LARGEST_BATCH = 1024  # environments that are stepped at once
_FEWEST_WINDOWS = 16
_HELD_OUT = 4  # every so many pieces one is kept for judging
_BLOCK = 4  # neighbouring pieces that may have the same error
_MEMORY_ROUNDS = 4  # of parameters and what actuators remember, with all pieces
_MEMORY_STEPS = 2  # of estimating what actuators remember
_DRAWS = 32  # of ranges, to judge them
_LEAST_ACTION = 1e-3  # standard deviation of actions that counts as an excitation, as a share of half their range

Progress = Callable[[str], None]


class IdentificationError(DpgError, ValueError):
    """A log that says nothing of the parameters of a simulation."""


@dataclass(frozen=True)
class IdentificationSettings:
    """Settings of an identification."""

    window_s: float = setting(0.3, "length of the pieces of the log that are simulated", unit="s")
    windows: int = setting(64, "pieces that the fit uses; as many more, by a third, judge it")
    particles: int = setting(128, "parameter vectors that are followed at once; a power of two")
    sweeps: int = setting(1, "moves of each vector whenever the data that count grow")
    final_sweeps: int = setting(4, "moves of each vector at last; the latter half of them are the result")
    interval: float = setting(0.9, "share of the posterior that a fitted range holds")
    num_threads: int = setting(2, "threads that step the simulation; 0 for all processors")

    def __post_init__(self) -> None:
        if not self.window_s > 0:
            raise ValueError(f"window_s must be positive, got {self.window_s}")
        if not 0 < self.interval < 1:
            raise ValueError(f"interval must lie between 0 and 1, got {self.interval}")
        for name, least in (("windows", _FEWEST_WINDOWS), ("particles", 16), ("sweeps", 1), ("final_sweeps", 2)):
            if getattr(self, name) < least:
                raise ValueError(f"{name} must be {least} or more, got {getattr(self, name)}")


def identify(
    transitions: TransitionArrays,
    contract: Contract,
    task: str | Task,
    prior: str | Path | Randomization,
    settings: IdentificationSettings | None = None,
    seed: int = 0,
    progress: Progress | None = None,
    also: Mapping[str, NDArray[np.float64]] | None = None,
) -> Posterior:
    """Fit the ranges of a randomization to what a robot did. The same seed gives the same result.

    Args:
        transitions: what the robot did, from its log.
        contract: of the policy that ran.
        task: in whose simulation the robot is to be resembled.
        prior: ranges to begin with: a preset's name, a YAML file, or the settings themselves.
        settings: of the method.
        seed: of everything random.
        progress: told in words what is being done.
        also: further parameters (P,), by name, whose errors on the held-out pieces are wanted too.

    Raises:
        IdentificationError: too few transitions, values that are not finite, or a robot that was not moved.
        ContractError: a log of another task or robot.
        ConfigError: a prior that does not fit the model, or has kinds of variation that cannot be fitted.
    """
    settings = settings or IdentificationSettings()
    _require_finite(transitions, contract)
    name = task if isinstance(task, str) else task.name
    randomization = resolve_randomization(prior, name)
    batch = min(_LARGEST_BATCH, settings.windows * settings.particles)
    environment = make(task, num_envs=batch, seed=seed, num_threads=settings.num_threads, randomization=randomization)
    if not isinstance(environment, BatchEnvironment) or not environment.task.measured_state:
        raise IdentificationError(f"task {name} does not say where its state is among the measurements (measured_state)")
    is_preset = isinstance(prior, str) and not prior.endswith((".yaml", ".yml"))
    ranges = Prior(environment.physics.model, randomization, name, require_all=not is_preset)
    with WindowSimulator(environment, contract, ranges) as simulator:
        windows = _cut(transitions, contract, simulator, settings)
        return _Identification(simulator, ranges, windows, settings, seed, progress or (lambda text: None)).run(
            contract, transitions, also or {}
        )


class _Identification:
    """The state of one identification."""

    def __init__(
        self,
        simulator: WindowSimulator,
        prior: Prior,
        windows: Windows,
        settings: IdentificationSettings,
        seed: int,
        progress: Progress,
    ) -> None:
        self._simulator, self._prior, self._windows, self._settings = simulator, prior, windows, settings
        self._seed, self._progress = seed, progress
        self._random = np.random.default_rng([seed, 1])
        numbers = np.arange(len(windows))
        self._held_out = numbers[numbers % _HELD_OUT == _HELD_OUT - 1]
        self._fit = self._random.permutation(numbers[numbers % _HELD_OUT != _HELD_OUT - 1])  # any first few are a fair sample
        self._measured = simulator.measured(windows)
        self._motion = np.sqrt(((self._measured[:, 1:] - self._measured[:, :1]) ** 2).mean(axis=(0, 1)))
        self._motion = np.maximum(self._motion, 1e-6 * self._motion.max())
        self._noise: Noise | None = None
        self._temper = 1.0
        # what actuators remember at the beginning of each piece, beside what the simulation makes of the actions before it
        self._memory = np.zeros((len(windows), len(simulator.memories)))

    def run(self, contract: Contract, transitions: TransitionArrays, also: Mapping[str, NDArray[np.float64]]) -> Posterior:
        """Return the posterior."""
        population, likelihood = self._sample()
        points = [population.points.copy()]
        sweeps = self._settings.final_sweeps
        for number in range(sweeps):
            self._progress(f"drawing from the posterior, {number + 1} of {sweeps}")
            sweep(population, self._target(likelihood, len(self._fit)), self._simulate, self._random)
            if number >= sweeps // 2:
                points.append(population.points.copy())
        drawn = np.concatenate(points[1:])
        self._progress("judging the result on pieces that were held out")
        posterior = Posterior(
            task=contract.task,
            prior=self._prior,
            points=drawn,
            interval=self._settings.interval,
            channels=self._simulator.channels,
            units=tuple(next(m.unit for m in contract.measurements if m.name == name) for name in self._simulator.channels),
            noise=likelihood.noise,
            temper=self._temper,
            runs=transitions.run_ids,
            transitions=len(transitions),
            windows=len(self._fit),
            held_out=len(self._held_out),
            window_s=self._windows.action.shape[1] / contract.rate_hz,
            period_s=1.0 / contract.rate_hz,
            predictions={},
        )
        return posterior.with_predictions(self._predictions(posterior, also))

    def _sample(self) -> tuple[Population, WindowLikelihood]:
        """Return particles of the posterior, and the likelihood that they follow."""
        total = len(self._fit)
        count = min(_FEWEST_WINDOWS, total)
        self._progress(f"simulating {count} of {total} pieces with draws from the prior")
        population = first_population(self._settings.particles, len(self._prior.free), self._simulate, count, self._seed)
        likelihood = self._likelihood(population, _best_start(population.differences, self._motion))
        before = Target()
        # what actuators remember depends on the parameters, so that both are found in turns
        rounds = _MEMORY_ROUNDS if len(self._simulator.memories) else 1
        while True:
            self._progress(f"learning from {count} of {total} pieces")
            target = self._target(likelihood, count)
            anneal(population, before, target, self._simulate, self._random, self._settings.sweeps)
            before, last = target, count == total
            if count > _FEWEST_WINDOWS or last:
                self._temper = self._find_temper(population, likelihood)
            best = int(target(population.differences).argmax())
            count = min(2 * count, total)
            extend(population, self._simulate, count)
            likelihood = self._likelihood(population, best)  # along a better simulation, with noise that is nearer
            rounds -= int(last)
            if not rounds:
                final = self._target(likelihood, count)
                anneal(population, before, final, self._simulate, self._random, self._settings.sweeps)
                return population, likelihood

    def _simulate(self, points: NDArray[np.float64], pieces: NDArray[np.int64]) -> NDArray[np.float64]:
        """Return (K, n, T + 1, C) what the robot measured in pieces (n,) minus what simulations at points (K, F) would."""
        which = self._fit[pieces]
        values = self._prior.values(points)
        simulated = self._simulator.simulate(
            self._windows, np.tile(which, len(points)), np.repeat(values, len(which), axis=0), self._memory
        ).reshape(len(points), len(which), *self._measured.shape[1:])
        return np.asarray(self._measured[which] - simulated)

    def _likelihood(self, population: Population, best: int) -> WindowLikelihood:
        """Return the likelihood that is linearized along the simulations of particle ``best``, with the noise that is left."""
        pieces = self._fit[population.windows]
        values = self._prior.values(population.points[best : best + 1])[0]
        if len(self._simulator.memories):
            self._remember(pieces, values)
            population.differences = self._simulate(population.points, population.windows)
        model, self._noise = self._linearize(pieces, values)
        return WindowLikelihood(model, self._noise)

    def _linearize(self, pieces: NDArray[np.int64], values: NDArray[np.float64]) -> tuple[LinearModel, Noise]:
        """Return how differences develop along the simulations of pieces, and the noise that is left there."""
        windows = _select(self._windows, pieces)
        model = self._simulator.linear_model(windows, values, self._motion, self._memory[pieces])
        difference = self._differences(pieces, values)
        return model, fit_noise(model, difference, self._motion, self._noise)

    def _remember(self, pieces: NDArray[np.int64], values: NDArray[np.float64]) -> None:
        """Estimate what actuators remembered at the beginning of pieces: far from it, small differences are not small."""
        for _ in range(_MEMORY_STEPS):
            if self._noise is None:
                _, self._noise = self._linearize(pieces, values)
            windows = _select(self._windows, pieces)
            model = self._simulator.linear_model(windows, values, self._motion, self._memory[pieces])
            starts = estimate_starts(model, self._noise, self._differences(pieces, values))
            self._memory[pieces] += starts[:, self._simulator.memories]

    def _differences(self, pieces: NDArray[np.int64], values: NDArray[np.float64]) -> NDArray[np.float64]:
        """Return (n, T + 1, C) what the robot measured in pieces (n,) minus what a model with parameters (P,) would."""
        everyone = np.broadcast_to(values, (len(pieces), len(values)))
        simulated = self._simulator.simulate(self._windows, pieces, everyone, self._memory)
        return np.asarray(np.nan_to_num(self._measured[pieces] - simulated))

    def _target(self, likelihood: WindowLikelihood, count: int) -> Target:
        return Target((Term(self._temper, likelihood, count),))

    def _find_temper(self, population: Population, likelihood: WindowLikelihood) -> float:
        """Return the power of the likelihood that makes the posterior as wide as the pieces' own disagreement says.

        Where the model is right, the pieces' slopes at the posterior's mean vary as much as the likelihood is curved. Where it is
        wrong, or errors of neighbouring pieces go together, they vary more, and the posterior would be too narrow (Ribatet et
        al., 2012).
        """
        points, values = population.points, likelihood(population.differences)
        centred = points - points.mean(axis=0)
        finite = np.isfinite(values).all(axis=1)
        if finite.sum() <= 2 * points.shape[1]:
            return self._temper
        slopes = np.linalg.lstsq(centred[finite], values[finite] - values[finite].mean(axis=0), rcond=1e-6)[0].T  # (n, F)
        in_order = slopes[np.argsort(self._fit[population.windows])]
        blocks = np.add.reduceat(in_order, np.arange(0, len(in_order), _BLOCK), axis=0)
        blocks = blocks - blocks.mean(axis=0)
        spread = np.atleast_2d(np.cov(points.T))
        observed = np.einsum("bi,ij,bj->", blocks, spread, blocks)
        # of each direction, the share that the data and not the prior (of variance 1/12) determine
        expected = np.clip(1.0 - 12.0 * np.linalg.eigvalsh(spread), 0.0, 1.0).sum() / self._temper
        return float(np.clip(expected / max(observed, 1e-12), 0.1, 1.0))

    def _predictions(self, posterior: Posterior, also: Mapping[str, NDArray[np.float64]]) -> dict[str, Prediction]:
        """Return the errors of several models on the held-out pieces."""
        free = len(self._prior.free)
        low, high = posterior.range_points()
        share = np.random.default_rng([self._seed, 2]).random((_DRAWS, free))
        middle = np.full((1, free), 0.5)
        models = {
            "nominal": self._prior.nominal[None],
            "middle of the prior": self._prior.values(middle),
            "posterior mean": self._prior.values(posterior.points.mean(axis=0, keepdims=True)),
            "draws from the prior's ranges": self._prior.values(share),
            "draws from the fitted ranges": self._prior.values(low + share * (high - low)),
        }
        if len(self._simulator.memories):  # the best guess of what actuators remembered, for all models
            self._remember(self._held_out, models["posterior mean"][0])
        models |= {name: values[None] for name, values in also.items()}
        return {name: self.predict(values) for name, values in models.items()}

    def predict(self, values: NDArray[np.float64]) -> Prediction:
        """Return the errors of models (K, P) on the held-out pieces."""
        which = np.tile(self._held_out, len(values))
        simulated = self._simulator.simulate(self._windows, which, np.repeat(values, len(self._held_out), axis=0), self._memory)
        difference = self._measured[which] - simulated
        drift = self._measured[self._held_out] - self._measured[self._held_out, :1]
        return Prediction.of(difference, np.maximum(np.sqrt((drift**2).mean(axis=0)), 1e-12))


def _best_start(differences: NDArray[np.float64], motion: NDArray[np.float64]) -> int:
    """Return the particle whose simulations (N, n, T + 1, C) are nearest to the robot, outliers counting little."""
    squares = ((differences / motion) ** 2).mean(axis=(2, 3))
    return int(np.nan_to_num(np.log1p(squares), nan=np.inf).sum(axis=1).argmin())


def _select(windows: Windows, which: NDArray[np.int64]) -> Windows:
    return Windows(windows.measurement[which], windows.action[which], windows.previous[which], windows.before[which])


def _cut(
    transitions: TransitionArrays, contract: Contract, simulator: WindowSimulator, settings: IdentificationSettings
) -> Windows:
    """Return pieces for fit and judgement.

    Raises:
        IdentificationError: they are too few, or the robot was not moved in them.
    """
    steps = max(2, round(settings.window_s * contract.rate_hz))
    most = settings.windows * _HELD_OUT // (_HELD_OUT - 1)
    try:
        windows = cut_windows(transitions, steps, simulator.previous, most)
    except ComparisonError as error:
        raise IdentificationError(str(error)) from error
    if len(windows) - len(windows) // _HELD_OUT < _FEWEST_WINDOWS:
        raise IdentificationError(
            f"the log has {len(windows)} pieces of {steps} valid steps that follow each other (and {simulator.previous} before); "
            f"{_FEWEST_WINDOWS * _HELD_OUT // (_HELD_OUT - 1)} are needed at least: take a longer log or shorter pieces"
        )
    if np.clip(windows.action, -1, 1).std(axis=(0, 1)).max() < _LEAST_ACTION:
        raise IdentificationError(
            "the actions in the log are constant: nothing was excited, so nothing can be told of forces and delays; let the "
            "robot move, with a policy or with random actions"
        )
    measured = simulator.measured(windows)
    if not (measured[:, 1:] - measured[:, :1]).any():
        raise IdentificationError("no measurement in the log ever changes; the robot stood still, or its sensors did")
    return windows


def _require_finite(transitions: TransitionArrays, contract: Contract) -> None:
    for what, names, values in (
        ("measurement", contract.measurement_names, transitions.measurement),
        ("measurement", contract.measurement_names, transitions.next_measurement),
        ("action", contract.command_names, transitions.action),
    ):
        if values.shape[1] != len(names):
            raise IdentificationError(f"the log has {values.shape[1]} {what} channels, its contract {len(names)}")
        broken = ~np.isfinite(values) & transitions.valid[:, None]
        if broken.any():
            channel = int(broken.any(axis=0).argmax())
            raise IdentificationError(
                f"{what} {names[channel]!r} is not finite in {int(broken[:, channel].sum())} transitions that count as valid; "
                "the log is damaged, or its driver delivers what was not measured"
            )
