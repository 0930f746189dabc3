"""Carries out runs of the benchmark of offline starts: log a robot, learn its motion from the log, then learn with rewards."""

from __future__ import annotations

import time
from collections.abc import Generator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch

from dpg_robot.data.datasets import Dataset, with_history
from dpg_robot.learning.learner import Learner
from dpg_robot.learning.offline import BehaviourConfig, OfflineLearner, to_batch
from dpg_robot.learning.offline_trainer import OfflineTrainer
from dpg_robot.learning.replay import ordered_replay
from sim.benchmarks import run_store
from sim.benchmarks.learning_evaluation import Evaluator, make_environment
from sim.benchmarks.learning_ours import train_ours
from sim.benchmarks.learning_results import Result
from sim.benchmarks.offline_start_log import to_dataset, write_log
from sim.benchmarks.offline_start_protocol import OfflineStartRun
from sim.benchmarks.processes import Finished, Progress, run_in_processes
from sim.benchmarks.provenance import describe_code, describe_versions, now

_LOG_SEED = 2_000_003  # the log has other episodes than the run
_HELD_OUT_SHARE = 0.1
_JUDGED_TRANSITIONS = 4_096


@dataclass(frozen=True)
class OfflineStartResult(Result):
    """What a run gave: that of learning with rewards, and what came before.

    Attributes:
        before: None for a start from scratch; else ``transitions`` and ``episodes`` of the log, ``training_s`` of the
            pretraining, and ``explained``: of the uncertainty about the actions of episodes that were held out, the share which
            the denoiser loses when it is told what came next.
    """

    before: dict[str, Any] | None


def execute(run: OfflineStartRun, progress: Progress) -> OfflineStartResult:
    """Carry out one run in this process.

    Args:
        run: what to run.
        progress: called with the frames used since its last call.
    """
    torch.set_num_threads(1)
    code = describe_code()
    start, before = pretrain(run) if run.before.minutes else (None, None)
    learning = run.learning
    evaluator = Evaluator(learning)
    started = time.perf_counter()
    updates = train_ours(learning, run.protocol.training, evaluator, progress, start)
    training_s = time.perf_counter() - started - evaluator.elapsed_s
    return OfflineStartResult(evaluator.curve, round(training_s, 3), updates, describe_versions(), code, now(), before)


def pretrain(run: OfflineStartRun) -> tuple[OfflineLearner, dict[str, Any]]:
    """Let the robot move, make a data set of its log, and learn from that what needs no rewards.

    Returns:
        The learner, and what there is to know about data and pretraining.
    """
    seed, history = run.seed + _LOG_SEED, run.protocol.history
    with TemporaryDirectory() as name:
        folder = Path(name)
        write_log(make_environment(run.learning, 1, seed), folder / "log", run.log_steps, run.before.hold, seed)
        dataset = to_dataset(folder / "log", folder / "datasets", f"{run.task}/robot-v0")
        data, held_out = _split(dataset)
        contract = with_history(dataset.contract, history)
        learner = OfflineLearner(
            contract, run.protocol.training.learner, BehaviourConfig(), seed, has_rewards=dataset.has_rewards
        )
        batch = to_batch(data.transitions(history), dataset.contract)
        started = time.perf_counter()
        OfflineTrainer(learner, run.before.trainer, batch, folder / "run", seed=seed).run(show_progress=False)
    facts = {
        "transitions": len(dataset),
        "episodes": len(dataset.episodes),
        "training_s": round(time.perf_counter() - started, 3),
        "explained": round(explained_share(learner, held_out, history, seed), 4),
    }
    return learner, facts


@torch.no_grad()
def explained_share(learner: Learner, dataset: Dataset, history: int, seed: int) -> float:
    """Return 1 minus the squared error of actions that were denoised knowing what came next over that without knowing it."""
    generator = torch.Generator().manual_seed(seed)
    replay = ordered_replay(to_batch(dataset.transitions(history), dataset.contract))
    batch = learner.draw(replay, _JUDGED_TRANSITIONS, generator)
    noised_action, sigma = learner.estimator.noise_actions(batch.action, generator)
    told, untold = learner.estimator.denoise(batch, noised_action, sigma, torch.zeros_like(batch.reward))
    errors = [((denoised - batch.action) / sigma).square().mean() for denoised in (told, untold)]
    return float(1 - errors[0] / errors[1])


def execute_all(
    runs: Sequence[OfflineStartRun], folder: Path, jobs: int, progress: Progress
) -> Generator[Finished[OfflineStartRun, OfflineStartResult], None, None]:
    """Carry out runs in up to ``jobs`` processes at once and yield each as it ends; a failing one does not stop the others.

    Args:
        runs: what to run, in this order.
        folder: folder of all results; each result is written when its run is over.
        jobs: number of processes.
        progress: called with the frames used since its last call, and with a negative number when a run failed.
    """
    return run_in_processes(runs, partial(_execute_and_write, folder=folder), jobs, progress)


def _execute_and_write(run: OfflineStartRun, progress: Progress, folder: Path) -> OfflineStartResult:
    result = execute(run, progress)
    run_store.write_result(folder, run, result)
    return result


def _split(dataset: Dataset) -> tuple[Dataset, Dataset]:
    """Return what is learned from, and the last episodes, which are held out; a single episode is both."""
    count = len(dataset.episodes)
    first = max(1, count - max(1, round(_HELD_OUT_SHARE * count)))
    learned, held_out = dataset.episodes[:first], dataset.episodes[first:] or dataset.episodes
    return replace(dataset, episodes=learned), replace(dataset, episodes=held_out)
