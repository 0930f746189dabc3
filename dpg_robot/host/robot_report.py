"""What robot runs amounted to: returns of their episodes and the regularity of their loop, read from log and summary."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from dpg_robot.contract import Contract
from dpg_robot.data.robot_log import load_transitions, read_records
from dpg_robot.data.transition import EpisodeEnd, LoopState
from dpg_robot.errors import LogError
from dpg_robot.host.intake import RewardFunction
from dpg_robot.learning.trainer import Evaluation


@dataclass(frozen=True)
class EpisodeTrace:
    """One episode as it was measured.

    Attributes:
        time_s: (T,) since the start of the episode.
        measurement: (T, M) SI units.
        action: (T, A) as carried out.
    """

    time_s: NDArray[np.float64]
    measurement: NDArray[np.float64]
    action: NDArray[np.float64]


def episode_returns(run: str | Path, contract: Contract, reward_function: RewardFunction) -> Evaluation:
    """Return the undiscounted returns of a run's episodes, computed from the measurements.

    Args:
        run: a run folder.
        contract: gives the reward steps per control step.
        reward_function: rewards (N,) per reward step from measurements (N, M) after actions (N, A).
    """
    transitions = load_transitions(run)
    reward = contract.action_repeat * reward_function(transitions.next_measurement, transitions.action)
    episodes = np.unique(transitions.episode)
    return Evaluation(np.array([reward[transitions.episode == episode].sum() for episode in episodes]))


def episode_trace(run: str | Path, episode: int = 0) -> EpisodeTrace:
    """Return one episode of a run; raises LogError when the run has no such episode."""
    records = np.concatenate(list(read_records(run)))
    records = records[(records["episode"] == episode) & (records["state"] == LoopState.RUNNING)]
    if not len(records):
        raise LogError(f"{run} has no episode {episode}")
    return EpisodeTrace((records["time_ns"] - records["time_ns"][0]) / 1e9, records["measurement"], records["action"])


def wakeup_latencies_us(run: str | Path) -> NDArray[np.float64]:
    """Return how late each running tick of a run began, in microseconds."""
    records = np.concatenate(list(read_records(run)))
    running = (records["state"] == LoopState.RUNNING) & (records["episode_end"] == EpisodeEnd.NOT_ENDED)
    return np.asarray(records["wakeup_latency_ns"][running] / 1e3, dtype=np.float64)
