"""Carries out runs of the offline benchmark and keeps their results, one small JSON file each."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from dpg_robot.data.datasets import Dataset
from dpg_robot.data.minari_format import read_dataset
from dpg_robot.learning.offline import OfflineLearner, digest, to_batch
from dpg_robot.learning.replay import ordered_replay
from sim.benchmarks import run_store
from sim.benchmarks.learning_evaluation import Act, episode_returns
from sim.benchmarks.offline_data import dataset_folder
from sim.benchmarks.offline_peers import Peer, export_transitions
from sim.benchmarks.offline_protocol import OfflinePeerConfig, OfflineRun, OurOfflineConfig
from sim.benchmarks.processes import Finished, Progress, run_in_processes
from sim.benchmarks.provenance import describe_code, describe_versions, now
from sim.benchmarks.run_store import ResultError
from sim.collect import make_again

_FINAL_LEARNING_RATE_FACTOR = 0.05


@dataclass(frozen=True)
class OfflineResult:
    """What a run gave.

    Attributes:
        curve: ``updates`` and the ``returns`` of all episodes, one entry per evaluation.
        behaviour_return: mean return of the episodes in the data.
        data: digest of the transitions.
        training_s: time of the updates, s.
        versions: of Python and the packages that matter; of d3rlpy's own Python for a peer.
        code: git commit and whether the tree differed from it, and a digest of the learner's source.
        date: when the run ended, UTC.
    """

    curve: list[dict[str, Any]]
    behaviour_return: float
    data: str
    training_s: float
    versions: dict[str, Any]
    code: dict[str, Any]
    date: str

    @property
    def final_return(self) -> float:
        """Mean return of the last evaluation."""
        return float(np.mean(self.curve[-1]["returns"]))


def execute(run: OfflineRun, results: Path, python: Path | None, progress: Progress) -> OfflineResult:
    """Carry out one run in this process.

    Args:
        run: what to run.
        results: folder of all results, which has the data sets.
        python: a Python that has d3rlpy, for a peer.
        progress: called with the updates done since its last call.
    """
    torch.set_num_threads(1)
    code = describe_code()
    dataset = read_dataset(dataset_folder(results, run.task, run.kind))
    judge = _Judge(run, dataset)
    if isinstance(run.settings, OurOfflineConfig):
        curve, training_s = _train_ours(run, run.settings, dataset, judge, progress)
        versions: dict[str, Any] = describe_versions()
    else:
        if python is None:
            raise ResultError(f"{run.title} needs a Python that has d3rlpy; name it with --d3rlpy-python")
        curve, training_s, versions = _train_peer(run, run.settings, dataset, judge, python, progress)
    data = digest(to_batch(dataset.transitions(), dataset.contract))
    return OfflineResult(curve, float(dataset.returns.mean()), data, round(training_s, 3), versions, code, now())


def _train_ours(
    run: OfflineRun, settings: OurOfflineConfig, dataset: Dataset, judge: _Judge, progress: Progress
) -> tuple[list[dict[str, Any]], float]:
    learner = OfflineLearner(dataset.contract, settings.learner, settings.behaviour, run.seed)
    data = ordered_replay(to_batch(dataset.transitions(), dataset.contract))
    learner.observe_newest(data, len(data))
    generator = torch.Generator().manual_seed(run.seed)

    @torch.no_grad()
    def act(observations: NDArray[np.float32]) -> NDArray[Any]:
        action: NDArray[Any] = learner.policy.mean_action(torch.from_numpy(observations)).numpy()
        return action

    def train(updates: int) -> None:
        for _ in range(updates):
            share = int(learner.updates) / run.updates
            learner.set_learning_rate_factor(1 - (1 - _FINAL_LEARNING_RATE_FACTOR) * share)
            learner.update(learner.draw(data, settings.learner.batch_size, generator))

    return _alternate(run, train, act, judge, progress)


def _train_peer(
    run: OfflineRun, settings: OfflinePeerConfig, dataset: Dataset, judge: _Judge, python: Path, progress: Progress
) -> tuple[list[dict[str, Any]], float, dict[str, Any]]:
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "transitions.npz"
        export_transitions(dataset, file)
        log = Path(folder) / "log.txt"
        sizes, discount, batch_size = settings.hidden_sizes, settings.discount, settings.batch_size
        with Peer(python, settings.algorithm, file, run.seed, sizes, discount, batch_size, log) as peer:
            curve, training_s = _alternate(run, peer.train, peer.act, judge, progress)
            return curve, training_s, {name: value for name, value in peer.versions.items() if name != "ready"}


def _alternate(
    run: OfflineRun, train: Callable[[int], None], act: Act, judge: _Judge, progress: Progress
) -> tuple[list[dict[str, Any]], float]:
    """Train and evaluate in turn; returns the curve and the time of training alone."""
    curve, training_s = [], 0.0
    for updates in range(run.evaluate_every, run.updates + 1, run.evaluate_every):
        started = time.perf_counter()
        train(run.evaluate_every)
        training_s += time.perf_counter() - started
        progress(run.evaluate_every)
        curve.append({"updates": updates, "returns": [round(float(value), 3) for value in judge.returns(act)]})
    return curve, training_s


class _Judge:
    """The simulation that the data came from, with the same episodes for every algorithm."""

    def __init__(self, run: OfflineRun, dataset: Dataset) -> None:
        self._environment = make_again(dataset.settings["world"], run.evaluation_episodes, run.evaluation_seed)
        self._start = self._environment.state_dict()

    def returns(self, act: Act) -> NDArray[np.float64]:
        """Return the undiscounted returns (episodes,) of one episode in each environment."""
        self._environment.load_state_dict(self._start)
        return episode_returns(self._environment, act)


def execute_all(
    runs: Sequence[OfflineRun], results: Path, python: Path | None, jobs: int, progress: Progress
) -> Generator[Finished[OfflineRun, OfflineResult], None, None]:
    """Carry out runs in up to ``jobs`` processes at once and yield each as it ends; a failing one does not stop the others.

    Args:
        runs: what to run, in this order.
        results: folder of all results, which has the data sets; each result is written when its run is over.
        python: a Python that has d3rlpy, for the peers.
        jobs: number of processes.
        progress: called with the updates done since its last call, and with a negative number when a run failed.
    """
    return run_in_processes(runs, partial(_execute_and_write, results=results, python=python), jobs, progress)


def _execute_and_write(run: OfflineRun, progress: Progress, results: Path, python: Path | None) -> OfflineResult:
    result = execute(run, results, python, progress)
    run_store.write_result(results, run, result)
    return result
