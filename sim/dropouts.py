"""What does not get through: lost and repeated commands, stuck and dropped sensors."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

_LONGEST_WAIT = 2**30  # steps; keeps the countdown of rare runs within int32


class CommandHold:
    """An actuator that keeps its command when the next one is lost, and for some steps after each one that it took.

    While a command is held, what arrives is ignored. A command that is lost does not begin a hold: the next one may be taken.

    Args:
        loss_probability: probability that the command of a step is lost.
        repetition: for how many further steps a command is held once it takes effect.
        delay: (N,) int64, live: after how many steps of an episode the first command arrives; 0 is held until then.
        shape: (N, A), the shape of the commands of one step.
    """

    def __init__(self, loss_probability: float, repetition: int, delay: NDArray[np.int64], shape: tuple[int, int]) -> None:
        self._loss_probability = loss_probability
        self._repetition = repetition
        self._delay = delay
        self._command = np.zeros(shape)
        self._steps_held = np.zeros(shape[0], dtype=np.int64)
        self.memory: dict[str, NDArray[Any]] = {"command": self._command, "steps_held": self._steps_held}

    def apply(self, values: NDArray[Any], random: np.random.Generator) -> NDArray[Any]:
        """Return the commands (N, A) in effect, as a new array, when ``values`` (N, A) arrive."""
        taken = self._steps_held == 0
        self._steps_held -= ~taken
        if self._loss_probability > 0:
            taken &= random.random(len(taken)) >= self._loss_probability
        self._steps_held[taken] = self._repetition
        np.copyto(self._command, values, where=taken[:, None])
        return self._command.copy()

    def restart(self, ids: NDArray[np.int64], values: NDArray[Any], random: np.random.Generator) -> NDArray[Any]:
        """Hold ``values`` (n, A) in environments ``ids`` until their first commands arrive, and return ``values``."""
        self._command[ids] = values
        self._steps_held[ids] = self._delay[ids]
        return values


class RandomRuns:
    """Runs of a fixed number of steps, which start at random, for each of (N, D) numbers on its own.

    While no run is under way, one starts with a fixed probability per step. The steps without one are then geometrically
    distributed, so they are drawn once per run and counted down, which takes far fewer random numbers than one per step.

    Args:
        probability: probability per step that a run starts.
        steps: length of a run, 1 or more.
        shape: (N, D).
    """

    def __init__(self, probability: float, steps: int, shape: tuple[int, int]) -> None:
        self._probability = probability
        self._steps = steps
        # steps until the end of the next run, the present one included
        self.countdown = np.zeros(shape, dtype=np.int32)
        self._running = np.zeros(shape, dtype=np.bool_)

    def step(self, random: np.random.Generator) -> NDArray[np.bool_]:
        """Advance one step; returns (N, D), where a run is under way (an array that the next call overwrites)."""
        self.countdown -= 1
        over = np.flatnonzero(self.countdown <= 0)
        self.countdown.reshape(-1)[over] = self._draw(len(over), random)
        return np.less_equal(self.countdown, self._steps, out=self._running)

    def restart(self, ids: NDArray[np.int64], random: np.random.Generator) -> NDArray[np.bool_]:
        """Forget the runs of environments ``ids``; returns (n, D), where one starts with the first step of the episode."""
        self.countdown[ids] = self._draw((len(ids), self.countdown.shape[1]), random)
        return np.asarray(self.countdown[ids] <= self._steps)

    def _draw(self, size: int | tuple[int, int], random: np.random.Generator) -> NDArray[np.int64]:
        waits = random.geometric(self._probability, size) - 1
        return np.minimum(waits, _LONGEST_WAIT, out=waits) + self._steps


class StuckSensors:
    """Sensors that at times give the value that they gave last.

    Args:
        probability: probability per step and number that it gets stuck.
        steps: for how many steps.
        shape: (N, D), the shape of the values of one step.
    """

    def __init__(self, probability: float, steps: int, shape: tuple[int, int]) -> None:
        self._runs = RandomRuns(probability, steps, shape)
        self._last = np.zeros(shape, dtype=np.float32)
        self.memory: dict[str, NDArray[Any]] = {"countdown": self._runs.countdown, "last": self._last}

    def apply(self, values: NDArray[Any], random: np.random.Generator) -> NDArray[Any]:
        """Put the last values in place of ``values`` (N, D) where they are stuck, in place, and return them."""
        np.copyto(values, self._last, where=self._runs.step(random))
        self._last[:] = values
        return values

    def restart(self, ids: NDArray[np.int64], values: NDArray[Any], random: np.random.Generator) -> NDArray[Any]:
        """Begin with ``values`` (n, D) in environments ``ids``, and return them."""
        self._runs.restart(ids, random)  # a number that is stuck from the first step on is stuck at its first value
        self._last[ids] = values
        return values


class DroppedSensors:
    """Sensors that at times read 0.

    Args:
        probability: probability per step and number that it drops out.
        steps: for how many steps.
        shape: (N, D), the shape of the values of one step.
    """

    def __init__(self, probability: float, steps: int, shape: tuple[int, int]) -> None:
        self._runs = RandomRuns(probability, steps, shape)
        self.memory: dict[str, NDArray[Any]] = {"countdown": self._runs.countdown}

    def apply(self, values: NDArray[Any], random: np.random.Generator) -> NDArray[Any]:
        """Put 0 in place of ``values`` (N, D) that drop out, in place, and return them."""
        np.copyto(values, 0.0, where=self._runs.step(random))
        return values

    def restart(self, ids: NDArray[np.int64], values: NDArray[Any], random: np.random.Generator) -> NDArray[Any]:
        """Put 0 in place of the first ``values`` (n, D) of environments ``ids`` that drop out, in place, and return them."""
        np.copyto(values, 0.0, where=self._runs.restart(ids, random))
        return values
