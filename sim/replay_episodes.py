"""Episodes from a replay buffer: what a training run kept, put together again."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dpg_robot.contract import Contract
from dpg_robot.data.datasets import DatasetError, Episode
from sim.collect import ended_episode, first_transitions


def episodes_from_replay(
    replay: dict[str, NDArray[Any]], contract: Contract, capacity: int, num_envs: int, transitions: int | None, seed: int = 0
) -> tuple[Episode, ...]:
    """Put the transitions of a replay buffer together to episodes again.

    The buffer holds a transition of each of N environments in turn. Two transitions of an environment belong to one episode when
    the first led to where the second began and was not terminal.

    Args:
        replay: what :meth:`dpg_robot.learning.replay.ReplayBuffer.state_dict` returned, as arrays.
        contract: of the learner that filled it.
        capacity: of the buffer.
        num_envs: number N of environments that filled it.
        transitions: how many to take, in episodes drawn at random; None for all.
        seed: seed of that draw.

    Raises:
        DatasetError: fewer transitions than wanted.
    """
    count, added = len(replay["reward"]), int(replay["added"])
    if transitions is not None and transitions > count:
        raise DatasetError(f"the replay buffer holds {count} transitions, {transitions} were asked for")
    oldest_first = (np.arange(count) + (added if added > capacity else 0)) % count
    ordered = {name: values[oldest_first] for name, values in replay.items() if values.ndim}
    environments = (np.arange(count) + max(0, added - count)) % num_envs
    episodes = [
        episode
        for number in range(num_envs)
        for episode in _chains({name: values[environments == number] for name, values in ordered.items()}, contract)
    ]
    if transitions is None:
        return tuple(episodes)
    drawn = np.random.default_rng(seed).permutation(len(episodes))
    return first_transitions([episodes[index] for index in drawn], transitions)


def _chains(transitions: dict[str, NDArray[Any]], contract: Contract) -> list[Episode]:
    """Return the episodes in the transitions of one environment, oldest first."""
    features = transitions["observation"][:, : contract.num_features]
    next_features = transitions["next_observation"][:, : contract.num_features]
    terminal = transitions["terminal"] > 0
    goes_on = (next_features[:-1] == features[1:]).all(axis=1) & ~terminal[:-1]
    bounds = [0, *(np.flatnonzero(~goes_on) + 1).tolist(), len(features)]
    return [
        ended_episode(
            np.concatenate([features[first:end], next_features[end - 1 : end]]),
            transitions["action"][first:end],
            # a replay buffer holds rewards per reward step
            (transitions["reward"][first:end] * contract.action_repeat).astype(np.float32),
            bool(terminal[end - 1]),
        )
        for first, end in itertools.pairwise(bounds)
        if end > first
    ]
