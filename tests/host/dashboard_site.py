"""The folders of a host for tests of the dashboard: real logs of made-up ticks, and a real model store of tiny policies."""

from __future__ import annotations

import importlib.util
import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dpg_robot.contract import Contract
from dpg_robot.data.log_writer import LogWriter
from dpg_robot.data.transition import LoopState, tick_dtype
from dpg_robot.host.gate import Verdict
from dpg_robot.host.model_store import ModelStore
from dpg_robot.release import SigningKey


def _load_tiny_policy() -> Any:
    spec = importlib.util.spec_from_file_location("tiny_policy", Path(__file__).parents[1] / "deploy" / "tiny_policy.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


TINY_POLICY = _load_tiny_policy()
CONTRACT: Contract = TINY_POLICY.CONTRACT
START_NS = 1_700_000_000_000_000_000


def make_ticks(first: int, count: int, state: LoopState = LoopState.RUNNING) -> NDArray[np.void]:
    """Return records of a loop whose ticks begin 10 us late, and each fiftieth 900 us."""
    records = np.zeros(count, tick_dtype(CONTRACT.num_measurements, CONTRACT.num_actions))
    records["sequence"] = records["period"] = np.arange(first, first + count)
    records["state"] = state
    records["time_ns"] = 5_000_000_000 + CONTRACT.period_ns * records["sequence"].astype(np.int64)
    records["wall_ns"] = START_NS + records["time_ns"]
    records["wakeup_latency_ns"] = np.where(records["sequence"] % 50 == 49, 900_000, 10_000)
    records["measurement"] = 0.1 * np.sin(0.1 * records["sequence"])[:, None]
    records["valid"] = True
    return records


def write_run(store: Path, robot: str, run: str, records: NDArray[np.void], **options: Any) -> LogWriter:
    """Begin a run in a store of logs; returns its writer, which goes on."""
    writer = LogWriter(store / robot, run, CONTRACT, flush_interval_s=0.0, **options)
    append(writer, records)
    return writer


def append(writer: LogWriter, records: NDArray[np.void]) -> None:
    """Write records in pieces, as a robot does."""
    for first in range(0, len(records), 50):
        writer.append(records[first : first + 50])


def make_model_store(
    folder: Path, key: SigningKey | None, verdicts: Sequence[bool], robots: Sequence[str] = (), reason: str = "reason"
) -> ModelStore:
    """Return a store with a version for each verdict."""
    store = ModelStore(folder, key, robots)
    for index, passed in enumerate(verdicts):
        gains = TINY_POLICY.GENTLE | {"bias": 0.01 * (1 + index)}
        verdict = Verdict(passed, (f"{'ok' if passed else 'FAILED'}: {reason} {index}",))
        store.add(lambda path, gains=gains: TINY_POLICY.write_policy(path, gains=gains), verdict, {})  # type: ignore[misc]
    return store


def write_learning(folder: Path, updates: int, state: str = "learning", **others: Any) -> None:
    """Write the status of a fine-tuning service and a point of its metrics."""
    folder.mkdir(exist_ok=True)
    values = {
        "state": state,
        "updates": updates,
        "candidate": 2,
        "robots": {"arm-1": 50},
        "wall_ns": time.time_ns(),
        "error": None,
    }
    values |= {"transitions": {"robot": 60, "used": 50, "held_out": 5}} | others
    (folder / "status.json").write_text(json.dumps(values))
    with (folder / "metrics.jsonl").open("a") as file:
        line = {
            "update": updates,
            "wall_ns": time.time_ns(),
            "denoiser/loss": 100 / (1 + updates),
            "return/simulation": 700 + updates,
        }
        file.write(json.dumps(line) + "\n")
