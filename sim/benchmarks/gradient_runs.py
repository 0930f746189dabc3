"""Carries out the runs of the gradient benchmark, stage by stage, several at once."""

from __future__ import annotations

import hashlib
import multiprocessing
import signal
import time
import traceback
from collections import deque
from collections.abc import Generator, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from multiprocessing.context import SpawnProcess
from pathlib import Path

import torch
from torch import Tensor

from sim.benchmarks.gradient_behaviour import Behaviour, Target, restore_behaviour, train_behaviour
from sim.benchmarks.gradient_linear import run_linear
from sim.benchmarks.gradient_protocol import BehaviourRun, LinearRun, Run, TruthRun, VariantRun
from sim.benchmarks.gradient_results import read_tensors, write_result, write_tensors
from sim.benchmarks.gradient_truth import Consequences, true_gradient
from sim.benchmarks.gradient_variants import train_and_compare
from sim.benchmarks.learning_results import ResultError, describe_code

_ACTION_SEED = 3


@dataclass(frozen=True)
class Finished:
    """How a run ended.

    Attributes:
        run: the run.
        elapsed_s: how long it took, the start of its process included, s.
        error: why it failed, a traceback; empty when it did not.
    """

    run: Run
    elapsed_s: float
    error: str = ""


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
            write_result(folder, run, code, result | {"elapsed_s": elapsed_s()})


def execute_all(runs: Sequence[Run], folder: Path, jobs: int) -> Generator[Finished, None, None]:
    """Carry out runs that do not need each other, each in a process of its own, and yield each as it ends.

    One that fails stops no other. When the iteration is left early (as by Ctrl-C), all processes are ended.

    Args:
        runs: what to run, in this order.
        folder: folder of all results; each result is written when its run is over.
        jobs: how many at once.
    """
    waiting, active = deque(runs), dict[Connection, _Active]()
    try:
        while waiting or active:
            while waiting and len(active) < jobs:
                started = _start(waiting.popleft(), folder)
                active[started.connection] = started
            for connection in [each for each in wait(list(active)) if isinstance(each, Connection)]:
                yield _finish(active.pop(connection))
    finally:
        for each in active.values():
            each.process.terminate()
            each.process.join()
            each.connection.close()


@dataclass(frozen=True)
class _Active:
    run: Run
    process: SpawnProcess
    connection: Connection
    started: float


def _start(run: Run, folder: Path) -> _Active:
    context = multiprocessing.get_context("spawn")
    connection, theirs = context.Pipe(duplex=False)
    process = context.Process(target=_work, args=(run, folder, theirs), name=run.title, daemon=True)
    process.start()
    theirs.close()
    return _Active(run, process, connection, time.perf_counter())


def _work(run: Run, folder: Path, connection: Connection) -> None:
    """Carry out a run in this process and send a traceback where it failed, otherwise an empty text."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches everyone; the process that started this one ends it
    try:
        execute(run, folder)
        connection.send("")
    except Exception:
        connection.send(traceback.format_exc())


def _finish(active: _Active) -> Finished:
    try:
        error: str = active.connection.recv()
    except EOFError:
        active.process.join()
        error = f"its process ended with exit code {active.process.exitcode}"
    active.process.join()
    active.connection.close()
    return Finished(active.run, time.perf_counter() - active.started, error)


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
