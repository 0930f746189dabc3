"""Results of benchmark runs on disk: one small JSON file for each run, with everything that it depends on."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, Protocol, TypeVar

from dpg_robot.errors import DpgError
from dpg_robot.files import write_atomically


class ResultError(DpgError, ValueError):
    """A stored result that cannot be read, or is of a run with other settings."""


class StorableRun(Protocol):
    """A run whose result is kept."""

    @property
    def place(self) -> Path:
        """Where the result lies in the folder of all results."""
        ...

    def specification(self) -> dict[str, Any]:
        """Return all settings as plain values: what a stored result must agree with."""
        ...


R = TypeVar("R", bound=StorableRun)
V = TypeVar("V")


@dataclass(frozen=True)
class Stored(Generic[R, V]):
    """What lies in the folder of results for a list of runs.

    Attributes:
        results: of runs that are there with the same specification.
        other: for each run whose file has another specification, what differs.
    """

    results: dict[R, V]
    other: dict[R, list[str]]


def write_result(folder: Path, run: StorableRun, result: Any) -> None:
    """Write the result of a run, a dataclass of plain values, to its place in the folder of all results."""
    path = folder / run.place
    path.parent.mkdir(parents=True, exist_ok=True)
    content = {"specification": run.specification(), **dataclasses.asdict(result)}
    write_atomically(path, json.dumps(content, indent=1).encode())


def read_results(folder: Path, runs: Iterable[R], result_class: type[V]) -> Stored[R, V]:
    """Look for the results of runs.

    Args:
        folder: folder of all results.
        runs: whose results.
        result_class: the dataclass that was written.

    Raises:
        ResultError: a file that cannot be read.
    """
    results: dict[R, V] = {}
    other: dict[R, list[str]] = {}
    for run in runs:
        path = folder / run.place
        if not path.exists():
            continue
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
            stored = content.pop("specification")
            result = result_class(**content)
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise ResultError(f"{path} is not the result of a run ({error}); remove it") from error
        if differing := _differences(stored, json.loads(json.dumps(run.specification()))):
            other[run] = differing
        else:
            results[run] = result
    return Stored(results, other)


def read_same_results(folder: Path, runs: Iterable[R], result_class: type[V]) -> dict[R, V]:
    """Return the results of runs that are there, as :func:`read_results` does.

    Raises:
        ResultError: one is of other settings, or cannot be read.
    """
    stored = read_results(folder, runs, result_class)
    if stored.other:
        run, differing = next(iter(stored.other.items()))
        raise ResultError(
            f"{folder / run.place} is a result of other settings ({'; '.join(differing[:3])}); "
            "remove it, or choose another folder with --results"
        )
    return dict(stored.results)


def _differences(stored: Any, wanted: Any, key: str = "") -> list[str]:
    """Return what differs between two trees of plain values, as texts that name the keys."""
    if isinstance(stored, dict) and isinstance(wanted, dict):
        names = dict.fromkeys([*wanted, *stored])
        return [
            text
            for name in names
            for text in _differences(stored.get(name, "missing"), wanted.get(name, "missing"), f"{key}.{name}".lstrip("."))
        ]
    return [] if stored == wanted else [f"{key}: stored {stored!r}, wanted {wanted!r}"]
