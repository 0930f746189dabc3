"""Robot logs made in simulation: real episodes of the cart-pole with known actions, written by the real log writer."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

import sim
from dpg_robot.contract import Contract
from dpg_robot.data.log_writer import LogWriter
from dpg_robot.data.transition import EpisodeEnd, LoopState, tick_dtype

PERIOD_NS = 20_000_000
RecordMaker = Callable[..., NDArray[np.void]]


@pytest.fixture(scope="session")
def contract() -> Contract:
    return sim.make("cartpole-swingup", action_repeat=2).contract(history=2)


@pytest.fixture(scope="session")
def make_records(contract: Contract) -> RecordMaker:
    """Return a function that runs episodes with random actions and gives their tick records."""

    def make(episodes: int = 3, steps: int = 20, seed: int = 0, action_scale: float = 1.0) -> NDArray[np.void]:
        random = np.random.default_rng(seed)
        environment = sim.make("cartpole-swingup", num_envs=1, seed=seed, action_repeat=2)
        rows = []
        for episode in range(episodes):
            environment.reset()
            for step in range(steps + 1):
                record = np.zeros((), dtype=tick_dtype(contract.num_measurements, contract.num_actions))
                record["sequence"] = record["period"] = len(rows)
                record["episode"], record["step"], record["state"] = episode, step, LoopState.RUNNING
                record["time_ns"] = record["wall_ns"] = len(rows) * PERIOD_NS
                record["measurement"] = np.concatenate([environment.qpos[0], environment.qvel[0]])
                record["valid"] = True
                if step == steps:
                    record["episode_end"] = EpisodeEnd.TIMEOUT
                else:
                    action = np.clip(action_scale * random.standard_normal(1), -1, 1)
                    record["action"] = record["intended_action"] = action
                    record["command"] = contract.scale_action(action)
                    environment.step(action[None])
                rows.append(record)
        return np.array(rows)

    return make


@pytest.fixture
def write_log(contract: Contract, tmp_path: Path) -> Callable[..., Path]:
    """Return a function that writes records as a run into a log folder, and gives the folder."""

    def write(records: NDArray[np.void], run_id: str = "run-a", contract: Contract = contract) -> Path:
        writer = LogWriter(tmp_path / "log", run_id, contract)
        writer.append(records)
        writer.close()
        return tmp_path / "log"

    return write
