"""Where the batches of the offline trainer come from: a data set in memory, or one that is read while the learner learns.

Both give a resumed run the batches that it would have got without the stop. A data set in memory is sampled with replacement.
One that is larger than memory is streamed: each pass gives every transition once, in an order that follows from seed and pass
alone, so a resumed run finds its place by the number of its updates.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import Protocol

import torch

from dpg_robot.data.episode_source import EpisodeSource, Survey
from dpg_robot.data.streaming import TransitionStream
from dpg_robot.errors import ConfigError
from dpg_robot.learning.learner import Learner
from dpg_robot.learning.offline import digest, to_batch
from dpg_robot.learning.replay import Batch, ordered_replay

_OBSERVED_AT_ONCE = 10_000  # transitions


class OfflineData(Protocol):
    """What the offline trainer learns from.

    Attributes:
        digest: by which the same data are known again.
    """

    digest: str

    def observe(self) -> None:
        """Take all transitions into the statistics of the learner's normalizers."""
        ...

    def batches(self, updates: int, generator: torch.Generator) -> Iterator[Batch]:
        """Yield batches without end.

        Args:
            updates: batches that were learned from already.
            generator: source of the draw, on the CPU; its state is that after the same number of batches.
        """
        ...


class DataInMemory:
    """Transitions that are in memory as a whole.

    Args:
        learner: learns from them.
        transitions: all of them, in order of time, episode by episode.
    """

    def __init__(self, learner: Learner, transitions: Batch) -> None:
        self.digest = digest(transitions)
        self._learner, self._replay = learner, ordered_replay(transitions)

    def observe(self) -> None:
        """Take all transitions into the statistics of the learner's normalizers."""
        self._learner.observe_newest(self._replay, len(self._replay))

    def batches(self, updates: int, generator: torch.Generator) -> Iterator[Batch]:
        """Yield batches drawn with replacement; where they go on from is in the generator."""
        del updates
        while True:
            yield self._learner.draw(self._replay, self._learner.config.batch_size, generator).to(self._learner.device)


class StreamedData:
    """Transitions that are read from disk in every pass, of which a part is in memory.

    What is left of a pass when it no longer fills a batch is not learned from in that pass.

    Args:
        learner: learns from them.
        source: the data set.
        survey: what it holds.
        memory_limit: transitions in memory, among which batches are drawn; beside them there is the part of the data set that is
            being read.
        seed: seed of the order.

    Raises:
        ConfigError: targets over several control steps, which need the transitions that follow, or batches that are larger than
            the limit.
    """

    def __init__(self, learner: Learner, source: EpisodeSource, survey: Survey, memory_limit: int, seed: int = 0) -> None:
        if learner.n_steps > 1:
            raise ConfigError(
                f"{survey.name} has {survey.transitions} transitions, more than memory_limit={memory_limit}; what is read from "
                f"disk comes in single control steps: choose learner.n_steps=1, not {learner.n_steps}, or a higher memory_limit"
            )
        if not learner.config.batch_size <= memory_limit < survey.transitions:
            raise ConfigError(
                f"memory_limit must lie between learner.batch_size={learner.config.batch_size} and the {survey.transitions} "
                f"transitions of {survey.name}, got {memory_limit}"
            )
        self.digest = survey.digest
        self._learner, self._source, self._transitions = learner, source, survey.transitions
        self._pool, self._seed = memory_limit, seed

    def observe(self) -> None:
        """Take all transitions into the statistics of the learner's normalizers, in a pass of its own."""
        for batch in self._read(min(_OBSERVED_AT_ONCE, self._pool), 0):
            self._learner.observe(batch)

    def batches(self, updates: int, generator: torch.Generator) -> Iterator[Batch]:
        """Yield batches of one pass after the other; nothing is drawn from the generator."""
        del generator
        size = self._learner.config.batch_size
        number, learned_from = divmod(updates, self._transitions // size)  # the pass, and how much of it was had before
        while True:
            whole = (batch for batch in self._read(size, number) if len(batch) == size)
            for batch in itertools.islice(whole, learned_from, None):
                yield batch.to(self._learner.device)
            number, learned_from = number + 1, 0

    def _read(self, batch_size: int, number: int) -> Iterator[Batch]:
        """Yield the batches of a pass."""
        contract = self._learner.contract
        stream = TransitionStream(self._source, batch_size, self._pool, contract.history, self._seed)
        for transitions in stream.batches(number):
            yield to_batch(transitions, contract)
