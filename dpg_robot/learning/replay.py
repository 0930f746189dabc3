"""The replay buffer: the last transitions, sampled uniformly."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

_FIELDS = ("observation", "action", "reward", "next_observation", "terminal")


@dataclass(frozen=True)
class Batch:
    """N transitions as the learner sees them.

    Attributes:
        observation: (N, O) features and history, not normalized; then what only a simulator knows, where the learner sees that.
        action: (N, A) in [-1, 1].
        reward: (N,) reward per reward step.
        next_observation: (N, O).
        terminal: (N,) 1 where the episode ended without a future, else 0. A time-out is not terminal.
    """

    observation: Tensor
    action: Tensor
    reward: Tensor
    next_observation: Tensor
    terminal: Tensor

    def __len__(self) -> int:
        return len(self.reward)

    def concatenate(self, other: Batch) -> Batch:
        """Return this batch followed by another one."""
        return Batch(*(torch.cat([getattr(self, name), getattr(other, name)]) for name in _FIELDS))

    def select(self, index: Tensor | slice) -> Batch:
        """Return the transitions at ``index``, a tensor of positions, a mask (N,) or a slice."""
        return Batch(*(getattr(self, name)[index] for name in _FIELDS))


class ReplayBuffer:
    """A ring of transitions.

    Args:
        capacity: largest number of transitions kept; the oldest go first.
        observation_size: size O.
        action_size: size A.
        device: where the transitions are kept.
    """

    def __init__(self, capacity: int, observation_size: int, action_size: int, device: torch.device | str = "cpu") -> None:
        if capacity < 1:
            raise ValueError(f"capacity must be 1 or more transitions, got {capacity}")
        self.capacity = capacity
        self.added = 0
        shapes = {"observation": (observation_size,), "action": (action_size,), "next_observation": (observation_size,)}
        self._data = {name: torch.zeros(capacity, *shapes.get(name, ()), device=device) for name in _FIELDS}

    def __len__(self) -> int:
        return min(self.added, self.capacity)

    def add(self, batch: Batch) -> None:
        """Append transitions; more than ``capacity`` at once keeps the last ones."""
        count = len(batch)
        skipped = max(0, count - self.capacity)
        positions = torch.arange(self.added + skipped, self.added + count) % self.capacity
        for name, data in self._data.items():
            data[positions] = getattr(batch, name)[skipped:].to(data)
        self.added += count

    def sample(self, count: int, generator: torch.Generator) -> Batch:
        """Return ``count`` transitions drawn with replacement; raises ValueError from an empty buffer."""
        if not len(self):
            raise ValueError("cannot sample from an empty replay buffer; add transitions first")
        index = torch.randint(len(self), (count,), generator=generator)
        return Batch(*(self._data[name][index] for name in _FIELDS))

    def all(self) -> Batch:
        """Return all transitions that are kept, in the order of the ring."""
        return Batch(*(self._data[name][: len(self)] for name in _FIELDS))

    def state_dict(self) -> dict[str, Tensor]:
        """Return the kept transitions and the counter."""
        return {name: data[: len(self)] for name, data in self._data.items()} | {"added": torch.tensor(self.added)}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Put back what :meth:`state_dict` returned; raises ValueError when it does not fit this buffer."""
        kept = len(state["reward"])
        if kept != min(int(state["added"]), self.capacity):
            raise ValueError(f"replay of {kept} transitions does not fit a buffer of capacity {self.capacity}")
        for name, data in self._data.items():
            if state[name].shape != (kept, *data.shape[1:]):
                raise ValueError(f"replay {name} has shape {tuple(state[name].shape)}, expected {(kept, *data.shape[1:])}")
        self.added = int(state["added"])
        for name, data in self._data.items():
            data[:kept] = state[name]
