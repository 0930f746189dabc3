"""Taking in robot logs: nothing is learned from a log with a gap, nothing is taken in twice, everything is counted."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from dpg_robot.contract import Contract
from dpg_robot.data.robot_log import LogReport, find_runs, load_transitions, read_contract, require_contiguous
from dpg_robot.data.transition_arrays import TransitionArrays
from dpg_robot.errors import LogError
from dpg_robot.learning.replay import Batch

RewardFunction = Callable[[NDArray[Any], NDArray[Any]], NDArray[np.float64]]


@dataclass(frozen=True)
class LoggedEpisodes:
    """Transitions of a robot, ready for the learner.

    Attributes:
        batch: the N transitions that can be used.
        episode: (N,) int64, number of the episode over all runs, in order of recording.
        received: transitions in the log.
        excluded: transitions that are not used, because a measurement was stale or a control period was skipped.
        report: what the check of the log found.
    """

    batch: Batch
    episode: NDArray[np.int64]
    received: int
    excluded: int
    report: LogReport

    @property
    def used(self) -> int:
        """Transitions handed to the learner."""
        return len(self.batch)

    def split(self, held_out_every: int) -> tuple[Batch, Batch]:
        """Return the transitions to learn from, and those of every ``held_out_every``-th episode, which are kept for judging.

        Raises:
            LogError: fewer episodes than it takes to keep one of them out.
        """
        episodes = np.unique(self.episode)
        if len(episodes) < held_out_every:
            raise LogError(
                f"the log has {len(episodes)} episode(s); keeping every {held_out_every}. episode for judging needs at least "
                f"{held_out_every}. Record more episodes, or lower finetune.held_out_every."
            )
        held_out = torch.from_numpy(np.isin(self.episode, episodes[held_out_every - 1 :: held_out_every]))
        return self.batch.select(~held_out), self.batch.select(held_out)


def take_in(log: str | Path, contract: Contract, reward_function: RewardFunction) -> LoggedEpisodes:
    """Read a robot log for learning.

    Args:
        log: a run folder, or a folder of run folders.
        contract: contract of the learner; the log's must be the same.
        reward_function: rewards (N,) per reward step from the measurements (N, M) after the actions (N, A).

    Raises:
        LogError: a gap, a broken segment, or no transitions.
        ContractError: the log is of another robot or task.
    """
    report = require_contiguous(log)
    for run in find_runs(log):
        contract.require_equal(read_contract(run), ours="the learner", theirs=f"the log {run}")
    transitions = load_transitions(log)
    batch, usable, episode = prepare(transitions, contract, reward_function)
    return LoggedEpisodes(
        batch=batch,
        episode=episode[usable],
        received=len(transitions),
        excluded=int(np.count_nonzero(~usable)),
        report=report,
    )


def prepare(
    transitions: TransitionArrays, contract: Contract, reward_function: RewardFunction
) -> tuple[Batch, NDArray[np.bool_], NDArray[np.int64]]:
    """Make transitions ready for the learner.

    Args:
        transitions: N of them, of whole episodes in order.
        contract: of the learner and of the robot.
        reward_function: as for :func:`take_in`.

    Returns:
        The transitions that can be used, which of the N those are, and the number of the episode of each of the N, from 0.
        A transition cannot be used when a measurement was stale, a control period was skipped or a number is not finite.
    """
    episode = _number_episodes(transitions)
    observation, next_observation = _observations(transitions, episode, contract)
    reward = reward_function(transitions.next_measurement, transitions.action)
    batch = Batch(
        observation=torch.from_numpy(observation),
        action=torch.from_numpy(transitions.action.astype(np.float32)),
        reward=torch.from_numpy(reward.astype(np.float32)),
        next_observation=torch.from_numpy(next_observation),
        terminal=torch.from_numpy(transitions.terminal.astype(np.float32)),
        steps=torch.ones(len(transitions)),
    )
    finite = np.isfinite(observation).all(1) & np.isfinite(next_observation).all(1) & np.isfinite(reward)
    usable = transitions.valid & finite & np.isfinite(transitions.action).all(1)
    return batch.select(torch.from_numpy(usable)), usable, episode


def _number_episodes(transitions: TransitionArrays) -> NDArray[np.int64]:
    """Number the episodes of all runs from 0 in the order in which they come."""
    keys = np.stack([transitions.run.astype(np.int64), transitions.episode.astype(np.int64)], axis=1)
    starts = np.any(keys[1:] != keys[:-1], axis=1)
    return np.concatenate([[0], np.cumsum(starts)]).astype(np.int64)


def _observations(
    transitions: TransitionArrays, episode: NDArray[np.int64], contract: Contract
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Return observations (N, O) before and after each transition, with the history that the policy saw."""
    features = contract.compute_features(transitions.measurement)
    frames = np.concatenate([features, transitions.action.astype(np.float32)], axis=1)
    before, after = [features], [contract.compute_features(transitions.next_measurement)]
    for age in range(contract.history + 1):
        shifted = _shift(frames, episode, age)
        if age < contract.history:
            after.append(shifted)
        if age > 0:
            before.append(shifted)
    return np.concatenate(before, axis=1), np.concatenate(after, axis=1)


def _shift(frames: NDArray[np.float32], episode: NDArray[np.int64], age: int) -> NDArray[np.float32]:
    """Return the frame ``age`` steps earlier in the same episode, or zeros where there is none."""
    if age == 0:
        return frames
    shifted = np.zeros_like(frames)
    shifted[age:] = frames[:-age] * (episode[age:] == episode[:-age])[:, None]
    return shifted
