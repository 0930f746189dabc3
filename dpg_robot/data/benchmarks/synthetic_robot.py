"""A robot that only records: pushes records at a rate into the real ring, from which the real log process writes the log.

Program: ``python -m dpg_robot.data.benchmarks.synthetic_robot LOG RUN SECONDS RATE_HZ CHANNELS SEED [SEGMENT_S]``. Its last
line is JSON.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dpg_robot.contract import CommandChannel, Contract, Feature, MeasurementChannel
from dpg_robot.data.log_process import log_command
from dpg_robot.data.log_writer import SEGMENT_SECONDS
from dpg_robot.data.ring import LogState, Ring
from dpg_robot.data.transition import LoopState, tick_dtype

NUM_ACTIONS = 8
_RING_RECORDS = 16_384
_EPISODE_RECORDS = 1000
_START_S = 30.0


def synthetic_contract(channels: int, rate_hz: float) -> Contract:
    """Return the contract of a robot with so many measurements."""
    names = [f"sensor_{index}" for index in range(channels)]
    return Contract(
        task="synthetic",
        measurements=tuple(MeasurementChannel(name, "rad") for name in names),
        features=tuple(Feature("identity", name) for name in names),
        commands=tuple(CommandChannel(f"joint_{index}", "N m", -1.0, 1.0) for index in range(NUM_ACTIONS)),
        rate_hz=rate_hz,
    )


def synthetic_records(first: int, count: int, channels: int, rng: np.random.Generator) -> NDArray[np.void]:
    """Return (count,) records from sequence number ``first`` on, with random values and the present time."""
    records = np.zeros(count, dtype=tick_dtype(channels, NUM_ACTIONS))
    sequence = np.arange(first, first + count)
    records["sequence"] = records["period"] = sequence
    records["episode"] = sequence // _EPISODE_RECORDS
    records["step"] = sequence % _EPISODE_RECORDS
    records["state"] = LoopState.RUNNING
    records["time_ns"] = time.monotonic_ns()
    records["wall_ns"] = time.time_ns()
    records["measurement"] = rng.standard_normal((count, channels))
    records["measurement_time_ns"] = records["time_ns"][:, None]
    records["valid"] = True
    records["action"] = records["intended_action"] = rng.uniform(-1, 1, (count, NUM_ACTIONS))
    records["command"] = records["action"]
    return records


def record_run(
    log: str, run: str, seconds: float, rate_hz: float, channels: int, seed: int, segment_s: float = SEGMENT_SECONDS
) -> dict[str, int]:
    """Record a run; returns how many records were pushed, and how many were refused because the ring was full."""
    contract, rng = synthetic_contract(channels, rate_hz), np.random.default_rng(seed)
    with Ring.create(tick_dtype(channels, NUM_ACTIONS), _RING_RECORDS) as ring:
        ring.register_producer()
        arguments: dict[str, Any] = {"ring_name": ring.name, "num_measurements": channels, "num_actions": NUM_ACTIONS}
        arguments |= {"folder": log, "run_id": run, "contract_dict": contract.to_dict(), "segment_seconds": segment_s}
        process = subprocess.Popen(log_command(**arguments))
        end_s = time.monotonic() + _START_S
        while ring.status.state != LogState.WRITING and time.monotonic() < end_s:
            time.sleep(0.01)
        begin_s, sequence, total = time.monotonic(), 0, round(seconds * rate_hz)
        while sequence < total:
            due = min(total, int((time.monotonic() - begin_s) * rate_hz) + 1)
            for record in synthetic_records(sequence, due - sequence, channels, rng):
                sequence += ring.push(record)
            time.sleep(max(0.0, begin_s + sequence / rate_hz - time.monotonic()))
        ring.finish()
        code = process.wait()
        return {"pushed": sequence, "overruns": ring.overruns, "log_exit_code": code}


def main() -> None:
    """Record a run as the command line says."""
    log, run, seconds, rate_hz, channels, seed, *segment_s = sys.argv[1:]
    result = record_run(log, run, float(seconds), float(rate_hz), int(channels), int(seed), *map(float, segment_s))
    print(json.dumps(result))


if __name__ == "__main__":
    main()
