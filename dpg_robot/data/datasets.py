"""Data sets of episodes for learning without a simulator or a robot, checked when they are made.

An episode holds what was observed, done and paid, without history; :meth:`Dataset.transitions` puts the history back that a
policy with a memory would have seen. Data sets are stored as :mod:`dpg_robot.data.minari_format` says.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dpg_robot.contract import Contract
from dpg_robot.errors import DpgError

_ACTION_TOLERANCE = 1e-5


class DatasetError(DpgError, ValueError):
    """A data set that is missing, damaged, empty, or does not fit."""


@dataclass(frozen=True)
class Episode:
    """T transitions from a reset to an end.

    Attributes:
        observations: (T + 1, F) float32, features before each action and after the last one.
        actions: (T, A) float32 in [-1, 1].
        rewards: (T,) float32, summed over the action repeat; None where none are known.
        terminations: (T,) bool, true at the last transition where the episode ended without a future.
        truncations: (T,) bool, true at the last transition where the episode was cut.
    """

    observations: NDArray[np.float32]
    actions: NDArray[np.float32]
    rewards: NDArray[np.float32] | None
    terminations: NDArray[np.bool_]
    truncations: NDArray[np.bool_]

    def __len__(self) -> int:
        return len(self.actions)


@dataclass(frozen=True)
class Transitions:
    """N transitions of all episodes, as a policy with some frames of history sees them.

    Attributes:
        observation: (N, O) float32, features, then ``history`` frames of features and action, newest first.
        action: (N, A) float32 in [-1, 1].
        reward: (N,) float32, or None.
        next_observation: (N, O) float32.
        terminal: (N,) bool.
        episode: (N,) int64, number of the episode.
    """

    observation: NDArray[np.float32]
    action: NDArray[np.float32]
    reward: NDArray[np.float32] | None
    next_observation: NDArray[np.float32]
    terminal: NDArray[np.bool_]
    episode: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.action)


@dataclass(frozen=True)
class Dataset:
    """Episodes of one robot and task.

    Attributes:
        name: Minari's id, such as ``cartpole-swingup/medium-v0``.
        contract: what observations and actions are; its history is 0.
        episodes: one or more.
        settings: how the data came about, plain values.

    Raises:
        DatasetError: no episodes, or one that is not as :class:`Episode` says, or does not fit the contract.
    """

    name: str
    contract: Contract
    episodes: tuple[Episode, ...]
    settings: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.contract.history:
            raise DatasetError(f"{self.name}: episodes are kept without history; the contract has {self.contract.history} frames")
        if not self.episodes:
            raise DatasetError(f"{self.name} has no episodes")
        for number, episode in enumerate(self.episodes):
            _check_episode(episode, self.contract, f"{self.name}, episode {number}")
        with_rewards = sum(episode.rewards is not None for episode in self.episodes)
        if with_rewards not in (0, len(self.episodes)):
            raise DatasetError(
                f"{self.name}: {with_rewards} of {len(self.episodes)} episodes have rewards; give rewards to all or to none"
            )

    def __len__(self) -> int:
        return sum(map(len, self.episodes))

    @property
    def has_rewards(self) -> bool:
        """Whether rewards are known."""
        return self.episodes[0].rewards is not None

    @property
    def returns(self) -> NDArray[np.float64]:
        """(K,) undiscounted return of each episode; empty where no rewards are known."""
        return np.array([float(e.rewards.sum(dtype=np.float64)) for e in self.episodes if e.rewards is not None])

    def transitions(self, history: int = 0) -> Transitions:
        """Return all transitions, with ``history`` previous frames in their observations; zeros before an episode's start."""
        before, after = zip(*(_observations(episode, history) for episode in self.episodes), strict=True)
        rewards = [episode.rewards for episode in self.episodes if episode.rewards is not None]
        return Transitions(
            observation=np.concatenate(before),
            action=np.concatenate([episode.actions for episode in self.episodes]),
            reward=np.concatenate(rewards) if rewards else None,
            next_observation=np.concatenate(after),
            terminal=np.concatenate([episode.terminations for episode in self.episodes]),
            episode=np.repeat(np.arange(len(self.episodes)), [len(episode) for episode in self.episodes]),
        )

    def describe(self) -> str:
        """Return a line that says what is in it."""
        text = (
            f"{self.name}: {len(self)} transitions in {len(self.episodes)} episodes of {self.contract.task}, "
            f"{self.contract.num_features} features, {self.contract.num_actions} actions"
        )
        if not self.has_rewards:
            return f"{text}; no rewards"
        returns = self.returns
        return f"{text}; returns {returns.mean():.1f} on average, from {returns.min():.1f} to {returns.max():.1f}"


def first_difference(ours: Dataset, theirs: Dataset) -> str:
    """Return where the episodes of two data sets first differ, bit by bit, in words; empty where they do not."""
    if len(ours.episodes) != len(theirs.episodes):
        return f"{len(ours.episodes)} and {len(theirs.episodes)} episodes"
    for number, (one, other) in enumerate(zip(ours.episodes, theirs.episodes, strict=True)):
        for each in dataclasses.fields(Episode):
            values, wanted = getattr(one, each.name), getattr(other, each.name)
            if values is None and wanted is None:
                continue
            if values is None or wanted is None or values.dtype != wanted.dtype or values.tobytes() != wanted.tobytes():
                return f"{each.name} of episode {number}"
    return ""


def with_history(contract: Contract, history: int) -> Contract:
    """Return the contract of a policy that sees ``history`` previous frames."""
    return dataclasses.replace(contract, history=history)


def _observations(episode: Episode, history: int) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Return observations (T, O) before and after each action."""
    count = len(episode)
    frames = np.concatenate([episode.observations[:-1], episode.actions], axis=1)
    padded = np.concatenate([np.zeros((history, frames.shape[1]), dtype=np.float32), frames])
    aged = [padded[history - age : history - age + count] for age in range(history + 1)]
    before = np.concatenate([episode.observations[:-1], *aged[1:]], axis=1)
    after = np.concatenate([episode.observations[1:], *aged[:history]], axis=1)
    return before, after


def _check_episode(episode: Episode, contract: Contract, where: str) -> None:
    count = len(episode.actions)
    if not count:
        raise DatasetError(f"{where}: no transitions")
    _check_shape(episode.observations, (count + 1, contract.num_features), f"{where}: observations (one more than actions)")
    _check_shape(episode.actions, (count, contract.num_actions), f"{where}: actions")
    _check_shape(episode.terminations, (count,), f"{where}: terminations")
    _check_shape(episode.truncations, (count,), f"{where}: truncations")
    if episode.rewards is not None:
        _check_shape(episode.rewards, (count,), f"{where}: rewards")
        _check_finite(episode.rewards, f"{where}: rewards")
    _check_finite(episode.observations, f"{where}: observations")
    _check_finite(episode.actions, f"{where}: actions")
    largest = float(np.abs(episode.actions).max())
    if largest > 1 + _ACTION_TOLERANCE:
        raise DatasetError(f"{where}: actions must be in [-1, 1], got {largest:g}; scale them by the limits of the commands")
    ends = episode.terminations | episode.truncations
    if not ends[-1]:
        raise DatasetError(
            f"{where}: the last transition is neither terminated nor truncated; say with truncations where episodes were cut"
        )
    if ends[:-1].any():
        first = int(np.flatnonzero(ends)[0])
        raise DatasetError(f"{where}: ends at transition {first}, but goes on to {count - 1}; split it into two episodes")


def _check_shape(values: NDArray[Any], shape: tuple[int, ...], what: str) -> None:
    if np.shape(values) != shape:
        raise DatasetError(f"{what} must have shape {shape}, got {np.shape(values)}")


def _check_finite(values: NDArray[Any], what: str) -> None:
    finite = np.isfinite(values)
    if not finite.all():
        rows = np.unique(np.nonzero(~finite)[0])
        raise DatasetError(f"{what} must be finite; {len(rows)} of {len(values)} rows are not, the first is row {rows[0]}")
