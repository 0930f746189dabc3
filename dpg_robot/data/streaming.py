"""Batches of transitions from data sets that are larger than memory, shuffled, each transition once per pass."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dpg_robot.data.datasets import Dataset, DatasetError, Transitions
from dpg_robot.data.episode_source import EpisodeSource


class TransitionStream:
    """Reads a data set part by part in an order of its own, and mixes the transitions of many parts in a pool.

    In memory are at most the pool and one part: one episode (Minari, HDF5), the episodes of one row group (LeRobot), or those
    that begin in one segment (robot log). The order of a pass depends on the seed and the number of the pass alone.

    Args:
        source: what to read.
        batch_size: transitions per batch; the last batch of a pass may be smaller.
        pool_size: transitions among which batches are drawn; more mixes better and takes more memory.
        history: previous frames in the observations, as :meth:`Dataset.transitions` puts them.
        seed: seed of the order.
    """

    def __init__(
        self, source: EpisodeSource, batch_size: int = 256, pool_size: int = 100_000, history: int = 0, seed: int = 0
    ) -> None:
        if batch_size < 1 or pool_size < batch_size:
            raise ValueError(f"need 1 <= batch_size <= pool_size, got batch_size {batch_size} and pool_size {pool_size}")
        if history < 0 or seed < 0:
            raise ValueError(f"history and seed must be 0 or more, got {history} and {seed}")
        self._source, self._batch_size, self._pool_size = source, batch_size, pool_size
        self._history, self._seed = history, seed

    def batches(self, epoch: int = 0) -> Iterator[Transitions]:
        """Yield all transitions once, in batches; ``episode`` numbers the episodes in the order in which they are read.

        Raises:
            DatasetError: the data set is empty, or an episode cannot be learned from.
        """
        random = np.random.default_rng([self._seed, epoch])
        waiting: list[Transitions] = []
        count = episodes = 0
        for index in random.permutation(len(self._source)):
            part = self._read(int(index), episodes)
            if part is None:
                continue
            waiting.append(part)
            count, episodes = count + len(part), int(part.episode[-1]) + 1
            if count >= self._pool_size:
                pool = _shuffled(waiting, random)
                # half of the pool stays, to be mixed with what comes
                given = max(self._batch_size, (len(pool) - self._pool_size // 2) // self._batch_size * self._batch_size)
                yield from self._split(_rows(pool, slice(0, given)))
                waiting = [_rows(pool, slice(given, None), copy=True)]
                count = len(waiting[0])
        if not episodes:
            raise DatasetError(f"{self._source.name} has no episodes")
        if count:
            yield from self._split(_shuffled(waiting, random))

    def _read(self, index: int, first_episode: int) -> Transitions | None:
        found = self._source.read_part(index)
        if not found:
            return None
        dataset = Dataset(self._source.name, self._source.contract, tuple(each.episode for each in found))
        part = dataset.transitions(self._history)
        return dataclasses.replace(part, episode=part.episode + first_episode)

    def _split(self, transitions: Transitions) -> Iterator[Transitions]:
        for first in range(0, len(transitions), self._batch_size):
            yield _rows(transitions, slice(first, first + self._batch_size), copy=True)


def _shuffled(parts: list[Transitions], random: np.random.Generator) -> Transitions:
    """Return all rows of some parts in random order; empties the list, so that parts and result are not in memory for long."""
    order = random.permutation(sum(map(len, parts)))
    columns: dict[str, Any] = {}
    for field in dataclasses.fields(Transitions):
        values = [getattr(part, field.name) for part in parts]
        columns[field.name] = None if any(each is None for each in values) else np.concatenate(values)[order]
    parts.clear()
    return Transitions(**columns)


def _rows(transitions: Transitions, rows: slice, copy: bool = False) -> Transitions:
    def pick(values: NDArray[Any] | None) -> Any:
        if values is None:
            return None
        return values[rows].copy() if copy else values[rows]

    return Transitions(**{field.name: pick(getattr(transitions, field.name)) for field in dataclasses.fields(Transitions)})
