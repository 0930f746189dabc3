"""Results of learning runs on disk: one small JSON file for each run, with everything that it depends on."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import platform
import subprocess
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from dpg_robot.errors import DpgError
from dpg_robot.files import write_atomically
from sim.benchmarks.learning_protocol import Run

_PACKAGES = ("dpg-robot", "torch", "numpy", "mujoco", "gymnasium", "stable-baselines3", "sb3-contrib")
_ROOT = Path(__file__).resolve().parents[2]


class ResultError(DpgError, ValueError):
    """A stored result that cannot be read, or is of a run with other settings."""


@dataclass(frozen=True)
class Result:
    """What a training run gave.

    Attributes:
        curve: ``frames`` and the ``returns`` of all episodes, one entry per evaluation.
        training_s: time of the run without its evaluations, s.
        updates: updates done, as the algorithm counts them.
        versions: of Python and the packages that matter.
        code: git commit and whether the tree differed from it, where git can tell, and a digest of the learner's source.
        date: when the run ended, UTC.
    """

    curve: list[dict[str, Any]]
    training_s: float
    updates: int
    versions: dict[str, str | None]
    code: dict[str, Any]
    date: str


@dataclass(frozen=True)
class Stored:
    """What lies in the folder of results for a list of runs.

    Attributes:
        results: of runs that are there with the same specification.
        other: for each run whose file has another specification, what differs.
    """

    results: dict[Run, Result]
    other: dict[Run, list[str]]


def write_result(folder: Path, run: Run, result: Result) -> None:
    """Write the result of a run to its place in the folder of all results."""
    path = folder / run.place
    path.parent.mkdir(parents=True, exist_ok=True)
    content = {"specification": run.specification(), **dataclasses.asdict(result)}
    write_atomically(path, json.dumps(content, indent=1).encode())


def read_results(folder: Path, runs: Iterable[Run]) -> Stored:
    """Look for the results of runs.

    Raises:
        ResultError: a file that cannot be read.
    """
    results: dict[Run, Result] = {}
    other: dict[Run, list[str]] = {}
    for run in runs:
        path = folder / run.place
        if not path.exists():
            continue
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
            stored = content.pop("specification")
            result = Result(**content)
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise ResultError(f"{path} is not the result of a run ({error}); remove it") from error
        if differing := _differences(stored, json.loads(json.dumps(run.specification()))):
            other[run] = differing
        else:
            results[run] = result
    return Stored(results, other)


def describe_code() -> dict[str, Any]:
    """Return which code runs: git commit, whether files differ from it, and a digest of the learner's source."""
    digest = hashlib.sha256()
    for path in sorted((_ROOT / "dpg_robot" / "learning").glob("*.py")):
        digest.update(path.name.encode() + b"\0" + path.read_bytes() + b"\0")
    commit = _git("rev-parse", "HEAD")
    changes = _git("status", "--porcelain", "--untracked-files=no")
    return {"commit": commit, "dirty": None if changes is None else bool(changes), "learner_digest": digest.hexdigest()[:12]}


def describe_versions() -> dict[str, str | None]:
    """Return the versions of Python and of the packages that results depend on; None for what is not installed."""
    versions: dict[str, str | None] = {"python": platform.python_version()}
    for package in _PACKAGES:
        try:
            versions[package] = version(package)
        except PackageNotFoundError:
            versions[package] = None
    return versions


def now() -> str:
    """Return date and time, UTC."""
    return datetime.now(UTC).isoformat(timespec="seconds")


def _git(*arguments: str) -> str | None:
    # without optional locks, as somebody may be at work in this tree
    command = ["git", "--no-optional-locks", "-C", str(_ROOT), *arguments]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=20, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() if done.returncode == 0 else None


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
