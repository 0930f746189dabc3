"""What the commands have in common that do many runs: their options, what is there already, and doing what is missing."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Generator, Sequence
from contextlib import closing
from pathlib import Path
from typing import Protocol, TypeVar

from tqdm import tqdm

from sim.benchmarks.processes import Finished, Progress
from sim.benchmarks.run_store import StorableRun


class TitledRun(StorableRun, Protocol):
    """A run that can be named in a line."""

    @property
    def title(self) -> str:
        """The run as text."""
        ...


R = TypeVar("R", bound=TitledRun)
V = TypeVar("V")


def add_run_arguments(parser: argparse.ArgumentParser, results: str, keys: str, *, holds: str = "all results") -> None:
    """Add the options that choose runs, say where results lie, and how the runs are done.

    Args:
        parser: of the command.
        results: default of ``--results``.
        keys: what ``--only`` can choose by, in words.
        holds: what lies in the folder of results, in words.
    """
    parser.add_argument(
        "--results", type=Path, default=Path(results), metavar="FOLDER", help=f"folder of {holds} (default: %(default)s)"
    )
    parser.add_argument(
        "--only", action="append", default=[], metavar="KEY=NAME,...",
        help=f"run and report only these; KEY is {keys}; may be given several times",
    )  # fmt: skip
    parser.add_argument("--jobs", type=int, default=1, metavar="N", help="runs at once, one process each (default: %(default)s)")
    parser.add_argument("--report", action="store_true", help="run nothing, report on the results that are there")
    parser.add_argument("--quiet", action="store_true", help="no progress bar")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write everything that is reported to FILE too")


def require_jobs(arguments: argparse.Namespace) -> None:
    """Raise ValueError unless ``--jobs`` is a number of processes."""
    if arguments.jobs < 1:
        raise ValueError(f"--jobs must be 1 or more, got {arguments.jobs}")


def say_what_is_missing(runs: Sequence[R], there: dict[R, V]) -> list[R]:
    """Return the runs that have no result, and say how many they are."""
    missing = [run for run in runs if run not in there]
    print(f"{len(missing)} runs to do, {len(there)} are there already", file=sys.stderr)
    return missing


def do_runs(
    execute: Callable[[Progress], Generator[Finished[R, V], None, None]],
    there: dict[R, V],
    describe: Callable[[Finished[R, V], V], str],
    *,
    total: int,
    unit: str,
    quiet: bool,
) -> list[str]:
    """Carry out runs with a progress bar and add their results to ``there``; returns the titles of those that failed.

    Args:
        execute: begins the runs, given what is told of their progress, and yields each as it ends.
        there: gets the results.
        describe: returns a result in a few words.
        total: progress of all runs, in units.
        unit: of the progress, in words.
        quiet: no progress bar.
    """
    failed: list[str] = []
    bar = tqdm(total=total, unit=unit, unit_scale=True, disable=quiet, file=sys.stderr)
    endings = execute(bar.update)
    with bar, closing(endings):
        for finished in endings:
            if finished.value is None:
                failed.append(finished.run.title)
                tqdm.write(f"{finished.run.title}: FAILED\n{finished.error.rstrip()}", file=sys.stderr)
            else:
                there[finished.run] = finished.value
                tqdm.write(f"{finished.run.title}: {describe(finished, finished.value)}", file=sys.stderr)
    return failed
