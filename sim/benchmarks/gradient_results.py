"""Results of the gradient benchmark on disk: a small JSON file for each run that is reported, safetensors for what these need.

The name of a file carries a digest of all settings of its run (see :mod:`sim.benchmarks.gradient_protocol`).
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from dpg_robot.config import config_to_dict
from dpg_robot.files import write_atomically
from sim.benchmarks.gradient_protocol import LinearRun, ReportedRun, Run
from sim.benchmarks.provenance import describe_versions, now
from sim.benchmarks.run_store import ResultError

Results = dict[ReportedRun, dict[str, Any]]


def write_result(folder: Path, run: ReportedRun, code: dict[str, Any], result: dict[str, Any]) -> None:
    """Write the result of a run to its place in the folder of all results.

    Args:
        folder: folder of all results.
        run: what was run.
        code: what ``describe_code`` said before the run.
        result: plain values.
    """
    path = folder / run.place
    path.parent.mkdir(parents=True, exist_ok=True)
    whole = {"specification": config_to_dict(run), "code": code, "versions": describe_versions(), "date": now(), **result}
    write_atomically(path, json.dumps(whole, indent=1).encode())


def read_results(folder: Path, runs: Iterable[ReportedRun]) -> Results:
    """Read the results that are there.

    Raises:
        ResultError: a file that cannot be read.
    """
    results: Results = {}
    for run in runs:
        path = folder / run.place
        if not path.exists():
            continue
        try:
            results[run] = json.loads(path.read_text(encoding="utf-8"))
            results[run]["linear" if isinstance(run, LinearRun) else "robustness"]
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise ResultError(f"{path} is not the result of a run ({error!r}); remove it") from error
    return results


def write_tensors(folder: Path, run: Run, code: dict[str, Any], tensors: dict[str, Tensor], **facts: str) -> None:
    """Write tensors with facts about them to the place of a run in the folder of all results."""
    path = folder / run.place
    path.parent.mkdir(parents=True, exist_ok=True)
    facts |= {"specification": json.dumps(config_to_dict(run)), "code": json.dumps(code), "date": now()}
    write_atomically(path, save({name: tensor.detach().contiguous() for name, tensor in tensors.items()}, facts))


def read_tensors(folder: Path, run: Run) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Read the tensors of a run, and the facts about them.

    Raises:
        ResultError: a file that is not there or cannot be read.
    """
    path = folder / run.place
    if not path.exists():
        raise ResultError(f"{path} is not there, as its run failed or was removed; run it again")
    try:
        with safe_open(path, "pt") as file:
            return {name: file.get_tensor(name) for name in file.keys()}, dict(file.metadata() or {})  # noqa: SIM118
    except (OSError, SafetensorError) as error:
        raise ResultError(f"{path} is damaged ({error}); remove it") from error
