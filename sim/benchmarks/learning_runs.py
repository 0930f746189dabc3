"""Carries out learning runs."""

from __future__ import annotations

import time
from collections.abc import Generator, Sequence
from functools import partial
from pathlib import Path

import torch

from sim.benchmarks.learning_evaluation import Evaluator
from sim.benchmarks.learning_ours import train_ours
from sim.benchmarks.learning_peers import train_peer
from sim.benchmarks.learning_protocol import OurConfig, Run
from sim.benchmarks.learning_results import Result
from sim.benchmarks.processes import Finished, Progress, run_in_processes
from sim.benchmarks.provenance import describe_code, describe_versions, now
from sim.benchmarks.run_store import write_result


def execute(run: Run, progress: Progress) -> Result:
    """Carry out one run in this process.

    Args:
        run: what to run.
        progress: called with the frames used since its last call.
    """
    torch.set_num_threads(1)
    code = describe_code()  # before the run: files may change while it is on its way
    started = time.perf_counter()
    evaluator = Evaluator(run)
    if isinstance(run.settings, OurConfig):
        updates = train_ours(run, run.settings, evaluator, progress)
    else:
        updates = train_peer(run, run.settings, evaluator, progress)
    training_s = time.perf_counter() - started - evaluator.elapsed_s
    return Result(evaluator.curve, round(training_s, 3), updates, describe_versions(), code, now())


def execute_all(runs: Sequence[Run], folder: Path, jobs: int, progress: Progress) -> Generator[Finished[Run, Result], None, None]:
    """Carry out runs in up to ``jobs`` processes at once and yield each as it ends; a failing one does not stop the others.

    Results are written to ``folder`` when a run is over; what is stopped before leaves nothing.

    Args:
        runs: what to run, in this order.
        folder: folder of all results.
        jobs: number of processes.
        progress: called with the frames used since its last call, and with a negative number when a run failed.
    """
    return run_in_processes(runs, partial(_execute_and_write, folder=folder), jobs, progress)


def _execute_and_write(run: Run, progress: Progress, folder: Path) -> Result:
    result = execute(run, progress)
    write_result(folder, run, result)
    return result
