"""A virtual robot that moves at random, logged as real robots are, and the data set that its log becomes."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dpg_robot.contract import Contract
from dpg_robot.data.datasets import Dataset, Episode
from dpg_robot.data.episode_source import read_all
from dpg_robot.data.log_source import LogSource
from dpg_robot.data.log_writer import LogWriter
from dpg_robot.data.minari_format import read_dataset, write_dataset
from dpg_robot.data.transition import EpisodeEnd, LoopState, tick_dtype
from sim.collect import collect_episodes
from sim.environment import BatchEnvironment

_RUN_ID = "virtual-robot"


def write_log(robot: BatchEnvironment, folder: Path, steps: int, hold: tuple[int, int], seed: int) -> None:
    """Let a robot move at random and write its log, which knows no rewards.

    Args:
        robot: a single environment.
        folder: the log folder.
        steps: control steps of motion.
        hold: each random action is held for between so many control steps, drawn anew each time.
        seed: of the actions.
    """
    contract = robot.contract()
    episodes = collect_episodes(robot, contract, _RandomMotion(contract.num_actions, hold, seed), steps)
    began_ns = time.time_ns()
    ticks = 0
    with LogWriter(folder, _RUN_ID, contract) as writer:
        for number, episode in enumerate(episodes):
            records = _to_records(episode, contract, number, ticks)
            records["wall_ns"] = began_ns + records["time_ns"]
            writer.append(records)
            ticks += len(records)


def to_dataset(log: Path, root: Path, name: str) -> Dataset:
    """Write a robot log as a data set without rewards to ``root/name``, and read that back."""
    dataset, _ = read_all(LogSource(log), name)
    return read_dataset(write_dataset(dataset, root))


def measurements_of(features: NDArray[Any], contract: Contract) -> NDArray[np.float64]:
    """Return what sensors measured (T, M) that gave features (T, F) of one episode; angles go on beyond a turn."""
    columns = {(feature.kind, feature.channel): features[:, index] for index, feature in enumerate(contract.features)}
    measured = [
        columns["identity", name]
        if ("identity", name) in columns
        else np.unwrap(np.arctan2(columns["sin", name], columns["cos", name]))
        for name in contract.measurement_names
    ]
    return np.stack(measured, axis=1).astype(np.float64)


class _RandomMotion:
    """Uniformly random actions, each held for a while."""

    def __init__(self, num_actions: int, hold: tuple[int, int], seed: int) -> None:
        self._random = np.random.default_rng(seed)
        self._hold = hold
        self._action = np.zeros((1, num_actions))
        self._left = 0

    def __call__(self, observations: NDArray[np.float32]) -> NDArray[np.float64]:
        if self._left == 0:
            self._action = self._random.uniform(-1.0, 1.0, self._action.shape)
            self._left = int(self._random.integers(self._hold[0], self._hold[1], endpoint=True))
        self._left -= 1
        return self._action


def _to_records(episode: Episode, contract: Contract, number: int, ticks: int) -> NDArray[np.void]:
    """Return the records of an episode; the last one closes it and has only a measurement."""
    steps = np.arange(len(episode) + 1)
    records = np.zeros(len(steps), tick_dtype(contract.num_measurements, contract.num_actions))
    records["sequence"] = records["period"] = ticks + steps
    records["episode"], records["step"] = number, steps
    records["state"] = LoopState.RUNNING
    records["time_ns"] = records["period"] * contract.period_ns
    records["measurement"] = measurements_of(episode.observations, contract)
    records["measurement_time_ns"] = records["time_ns"][:, None]
    records["valid"] = True
    records["action"][:-1] = records["intended_action"][:-1] = episode.actions
    records["command"][:-1] = contract.scale_action(episode.actions)
    records["episode_end"][-1] = EpisodeEnd.TERMINAL if episode.terminations[-1] else EpisodeEnd.TIMEOUT
    return records
