"""The environments of a learning run, and its evaluations: the same for every algorithm."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sim.benchmarks.learning_protocol import Run
from sim.dm_control_env import DmControlEnvironment
from sim.environment import BatchEnvironment, make_native
from sim.history import HistoryEnvironment

Act = Callable[[NDArray[np.float32]], NDArray[Any]]
"""Observations (N, O) -> actions (N, A) in [-1, 1] without exploration."""


def make_environment(run: Run, num_envs: int, seed: int) -> BatchEnvironment:
    """Return environments of a run, without history."""
    return make_native(run.task, num_envs, seed, 1, run.action_repeat, run.randomization, run.disturbance)


def with_history(environment: BatchEnvironment, frames: int) -> BatchEnvironment | HistoryEnvironment:
    """Return the environment with ``frames`` previous frames in its observations."""
    return HistoryEnvironment(environment, frames) if frames else environment


def episode_returns(environment: BatchEnvironment | HistoryEnvironment | DmControlEnvironment, act: Act) -> NDArray[np.float64]:
    """Return the undiscounted returns (N,) of one episode in each environment, from a reset."""
    observations = environment.reset()
    returns = np.zeros(environment.num_envs)
    running = np.ones(environment.num_envs, dtype=np.bool_)
    while running.any():
        step = environment.step(act(observations))
        returns += step.reward * running
        running &= ~(step.terminal | step.timeout)
        observations = step.obs
    return returns


class Evaluator:
    """Evaluates a policy whenever a run has used another ``evaluate_every`` frames.

    Every evaluation runs the same episodes: one in each environment of a batch that is seeded anew each time.

    Args:
        run: what is run.

    Attributes:
        curve: frames and the returns of all episodes, one entry per evaluation.
        elapsed_s: time that evaluations took so far.
    """

    def __init__(self, run: Run) -> None:
        self._run = run
        self._seed = run.evaluation_seed + run.seed
        environment = make_environment(run, run.evaluation_episodes, self._seed)
        self._environment = with_history(environment, run.history)
        self.curve: list[dict[str, Any]] = []
        self.elapsed_s = 0.0

    def after(self, decisions: int, act: Act) -> None:
        """Evaluate if an evaluation is due after ``decisions`` decisions."""
        if decisions % self._run.decisions_per_evaluation:
            return
        started = time.perf_counter()
        returns = self.returns(act)
        self.curve.append({"frames": decisions * self._run.action_repeat, "returns": [round(float(r), 3) for r in returns]})
        self.elapsed_s += time.perf_counter() - started

    def returns(self, act: Act) -> NDArray[np.float64]:
        """Return the undiscounted returns (episodes,) of one episode in each environment."""
        self._environment.reseed(self._seed)
        return episode_returns(self._environment, act)
