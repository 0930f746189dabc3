"""What all readers of data sets have in common: episodes, read part by part, so that a data set need not fit into memory."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from dpg_robot.contract import Contract
from dpg_robot.data.datasets import Dataset, DatasetError, Episode


@dataclass(frozen=True)
class FoundEpisode:
    """An episode as it was found, not yet checked.

    Attributes:
        label: what the file calls it, for messages.
        episode: its values.
        times_s: (T + 1,) or (T,) times of the observations, seconds; None where the file has none.
        notes: what was changed or left out to make an episode of it, in words.
    """

    label: str
    episode: Episode
    times_s: NDArray[np.float64] | None = None
    notes: tuple[str, ...] = ()


class EpisodeSource(Protocol):
    """A data set or log on disk whose episodes are read when they are asked for.

    Attributes:
        name: the data set's id, such as ``cartpole-swingup/medium-v0``.
        contract: what observations and actions are; its history is 0.
        settings: how the data came about, plain values.
    """

    name: str
    contract: Contract
    settings: dict[str, Any]

    def __len__(self) -> int:
        """Return the number of parts that are read at once: an episode, or the episodes that lie together in a file."""
        ...

    def read_part(self, index: int) -> list[FoundEpisode]:
        """Return the episodes of part ``index``; raises DatasetError or LogError where it is damaged."""
        ...


def iterate_episodes(source: EpisodeSource) -> Iterator[FoundEpisode]:
    """Yield all episodes in the order of the file, with one part in memory at a time."""
    for index in range(len(source)):
        yield from source.read_part(index)


@dataclass(frozen=True)
class Survey:
    """What a data set holds.

    Attributes:
        name: its id.
        contract: what observations and actions are.
        settings: how it came about.
        episodes: number of episodes.
        transitions: number of transitions.
        returns: undiscounted return of each episode; empty where no rewards are known.
        notes: what was changed or left out in reading, in words, with how often.
        digest: of all values, to know the same data again.
    """

    name: str
    contract: Contract
    settings: dict[str, Any]
    episodes: int
    transitions: int
    returns: tuple[float, ...]
    notes: dict[str, int]
    digest: str

    @property
    def has_rewards(self) -> bool:
        """Whether rewards are known."""
        return bool(self.returns)

    def describe(self) -> str:
        """Return a line that says what is in it."""
        return str(self)

    def __str__(self) -> str:
        contract = self.contract
        text = (
            f"{self.name}: {self.transitions} transitions in {self.episodes} episodes of {contract.task} "
            f"({self.transitions / contract.rate_hz:.1f} s at {contract.rate_hz:g} Hz)"
        )
        if not self.returns:
            return f"{text}; no rewards"
        mean = sum(self.returns) / len(self.returns)
        return f"{text}; returns {mean:.1f} on average, from {min(self.returns):.1f} to {max(self.returns):.1f}"


def survey(source: EpisodeSource) -> Survey:
    """Read and check everything, with one part in memory at a time.

    Raises:
        DatasetError: as :func:`read_all`.
    """
    episodes = transitions = 0
    returns: list[float] = []
    notes: Counter[str] = Counter()
    digest = hashlib.sha256()
    for index in range(len(source)):
        found = source.read_part(index)
        if not found:
            continue
        part = Dataset(source.name, source.contract, tuple(each.episode for each in found))
        episodes, transitions = episodes + len(found), transitions + len(part)
        returns += part.returns.tolist()
        notes.update(note for each in found for note in each.notes)
        for each in found:
            digest.update(_bytes_of(each.episode))
        if len(returns) not in (0, episodes):
            raise DatasetError(f"{source.name}: only some episodes have rewards; give rewards to all or to none")
    if not episodes:
        raise DatasetError(f"{source.name} has no episodes")
    facts = (source.name, source.contract, source.settings, episodes, transitions)
    return Survey(*facts, tuple(returns), dict(notes), digest.hexdigest()[:16])


def read_if_small(source: EpisodeSource, most: int) -> Dataset | None:
    """Return everything as :func:`read_all` does, or None where there are more than ``most`` transitions, which are not kept."""
    found, count = [], 0
    for each in iterate_episodes(source):
        found.append(each)
        count += len(each.episode)
        if count > most:
            return None
    return _checked(found, source, source.name)


def read_all(source: EpisodeSource, name: str | None = None) -> tuple[Dataset, dict[str, int]]:
    """Read everything into memory and check it.

    Args:
        source: what to read.
        name: id of the data set; None for the source's own.

    Returns:
        The data set, and what was changed or left out, in words, with how often.

    Raises:
        DatasetError: no episodes, or values that cannot be learned from.
    """
    found = list(iterate_episodes(source))
    return _checked(found, source, name or source.name), dict(Counter(note for each in found for note in each.notes))


def _checked(found: list[FoundEpisode], source: EpisodeSource, name: str) -> Dataset:
    if not found:
        raise DatasetError(f"{source.name} has no episodes")
    return Dataset(name, source.contract, tuple(each.episode for each in found), source.settings)


def _bytes_of(episode: Episode) -> bytes:
    values = (episode.observations, episode.actions, episode.rewards, episode.terminations, episode.truncations)
    return b"".join([np.int64(len(episode)).tobytes(), *(each.tobytes() for each in values if each is not None)])
