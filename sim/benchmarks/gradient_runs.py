"""Carries out the runs of the gradient benchmark, stage by stage, several at once."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Generator, Sequence
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from sim.benchmarks.gradient_behaviour import Behaviour, Target, restore_behaviour, train_behaviour
from sim.benchmarks.gradient_linear import run_linear
from sim.benchmarks.gradient_protocol import BehaviourRun, LinearRun, ReferenceRun, Run, TruthRun, VariantRun
from sim.benchmarks.gradient_results import read_tensors, write_result, write_tensors
from sim.benchmarks.gradient_truth import Consequences, true_gradient
from sim.benchmarks.gradient_variants import train_and_compare
from sim.benchmarks.gradient_walks import follow_reference
from sim.benchmarks.processes import Finished, Progress, run_in_processes
from sim.benchmarks.provenance import describe_code
from sim.benchmarks.run_store import ResultError

_ACTION_SEED = 3


def execute(run: Run, folder: Path) -> None:
    """Carry out one run in this process, and write its result to the folder of all results.

    Raises:
        ResultError: the results of runs that it needs are not there, damaged, or do not belong together.
    """
    torch.set_num_threads(1)
    code = describe_code()  # before the run: files may change while it is on its way
    started = time.perf_counter()

    def elapsed_s() -> float:
        return round(time.perf_counter() - started, 3)

    match run:
        case LinearRun():
            rows = run_linear(run)
            write_result(folder, run, code, {"linear": rows, "elapsed_s": elapsed_s()})
        case BehaviourRun():
            write_tensors(folder, run, code, train_behaviour(run))
        case TruthRun():
            behaviour, behaviour_hash = _read_behaviour(folder, run.behaviour)
            write_tensors(folder, run, code, _measure_truth(run, behaviour), behaviour=behaviour_hash)
        case VariantRun():
            behaviour, behaviour_hash = _read_behaviour(folder, run.truth.behaviour)
            truth, facts = read_tensors(folder, run.truth)
            if facts.get("behaviour") != behaviour_hash:
                raise ResultError(f"{folder / run.truth.place} was measured for another behaviour run; remove it")
            result = train_and_compare(run, behaviour, truth)
            write_result(folder, run, code, result | {"behaviour": behaviour_hash, "elapsed_s": elapsed_s()})
        case ReferenceRun():
            behaviour, behaviour_hash = _read_behaviour(folder, run.truth.behaviour)
            rows = follow_reference(run, behaviour)
            write_result(folder, run, code, {"robustness": rows, "behaviour": behaviour_hash, "elapsed_s": elapsed_s()})


def execute_all(runs: Sequence[Run], folder: Path, jobs: int) -> Generator[Finished[Run, None], None, None]:
    """Carry out runs that do not need each other, each in a process of its own, and yield each as it ends.

    Args:
        runs: what to run, in this order.
        folder: folder of all results; each result is written when its run is over.
        jobs: how many at once.
    """
    return run_in_processes(runs, partial(_execute, folder=folder), jobs)


def _execute(run: Run, progress: Progress, folder: Path) -> None:
    execute(run, folder)
    progress(1)


def _read_behaviour(folder: Path, run: BehaviourRun) -> tuple[Behaviour, str]:
    """Return a behaviour and a hash of its numbers, so that no truth of another one is taken for its own."""
    tensors, _ = read_tensors(folder, run)
    numbers = hashlib.sha256()
    for name in sorted(tensors):
        numbers.update(tensors[name].numpy().tobytes())
    return restore_behaviour(tensors, run.learner), numbers.hexdigest()


def _measure_truth(run: TruthRun, behaviour: Behaviour) -> dict[str, Tensor]:
    """Return observations and actions (S, .) with the true gradient there, from both halves of the draws (2, S, A)."""
    states = behaviour.states.first(run.config.states)
    action = behaviour.sample_actions(states.observation, run.config.largest_action, _ACTION_SEED)
    target = Target(behaviour, run.behaviour.learner, run.config.policy_draws)
    consequences = Consequences(run.behaviour, states, target, run.config.noise_draws)
    halves = true_gradient(consequences, action.double().numpy(), run.config.difference)
    return {"observation": states.observation, "action": action, "halves": torch.from_numpy(halves).float()}
