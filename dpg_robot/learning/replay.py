"""The replay buffer: the last transitions, sampled uniformly, one by one or several control steps at a time."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

_STORED = ("observation", "action", "reward", "next_observation", "terminal")
_FIELDS = (*_STORED, "steps")


@dataclass(frozen=True)
class Batch:
    """N transitions as the learner sees them.

    Attributes:
        observation: (N, O) features and history, not normalized; then what only a simulator knows, where the learner sees that.
        action: (N, A) in [-1, 1].
        reward: (N,) reward per reward step; over several control steps the discounted sum of theirs.
        next_observation: (N, O) after the last of them.
        terminal: (N,) 1 where the episode ended there without a future, else 0. A time-out is not terminal.
        steps: (N,) control steps from observation to next observation, 1 or more.
    """

    observation: Tensor
    action: Tensor
    reward: Tensor
    next_observation: Tensor
    terminal: Tensor
    steps: Tensor

    def __len__(self) -> int:
        return len(self.reward)

    def concatenate(self, other: Batch) -> Batch:
        """Return this batch followed by another one."""
        return Batch(*(torch.cat([getattr(self, name), getattr(other, name)]) for name in _FIELDS))

    def shuffled(self, generator: torch.Generator) -> Batch:
        """Return these transitions in another order, drawn from a generator on the CPU; learners use parts of a batch."""
        return self.select(torch.randperm(len(self), generator=generator).to(self.reward.device))

    def to(self, device: torch.device | str) -> Batch:
        """Return these transitions on a device; no copy is made of what is there already."""
        return Batch(*(getattr(self, name).to(device) for name in _FIELDS))

    def select(self, index: Tensor | slice) -> Batch:
        """Return the transitions at ``index``, a tensor of positions, a mask (N,) or a slice."""
        return Batch(*(getattr(self, name)[index] for name in _FIELDS))


def ordered_replay(batch: Batch) -> ReplayBuffer:
    """Return a buffer that holds just these transitions, which come in order of time, episode by episode."""
    buffer = ReplayBuffer(len(batch), batch.observation.shape[1], batch.action.shape[1], batch.observation.device)
    buffer.add(batch)
    return buffer


class ReplayBuffer:
    """A ring of transitions.

    Transitions that follow each other in one episode are found again: the first led to where the second began. So several control
    steps can be sampled as one transition, from every source that adds in order of time.

    Args:
        capacity: largest number of transitions kept; the oldest go first.
        observation_size: size O.
        action_size: size A.
        device: where the transitions are kept.
        stride: how many transitions after one its successor is added: the number of environments that take turns.
    """

    def __init__(
        self,
        capacity: int,
        observation_size: int,
        action_size: int,
        device: torch.device | str = "cpu",
        stride: int = 1,
    ) -> None:
        for name, value in (("capacity", capacity), ("stride", stride)):
            if value < 1:
                raise ValueError(f"{name} must be 1 or more transitions, got {value}")
        self.capacity, self.stride = capacity, stride
        self.added = 0
        shapes = {"observation": (observation_size,), "action": (action_size,), "next_observation": (observation_size,)}
        self._data = {name: torch.zeros(capacity, *shapes.get(name, ()), device=device) for name in _STORED}
        self._goes_on = torch.zeros(capacity, dtype=torch.bool, device=device)  # whether the successor is here

    def __len__(self) -> int:
        return min(self.added, self.capacity)

    def add(self, batch: Batch) -> None:
        """Append transitions of one control step each; more than ``capacity`` at once keeps the last ones."""
        count = len(batch)
        skipped = max(0, count - self.capacity)
        positions = torch.arange(self.added + skipped, self.added + count) % self.capacity
        for name, data in self._data.items():
            data[positions] = getattr(batch, name)[skipped:].to(data)
        self.added += count
        self._link(self.added - count + skipped)

    def _link(self, first: int) -> None:
        """Find the predecessors of the transitions from the ``first`` added on."""
        added = torch.arange(first, self.added)
        self._goes_on[added % self.capacity] = False
        added = added[added - self.stride >= self.added - len(self)]
        here, before = added % self.capacity, (added - self.stride) % self.capacity
        led_here = (self._data["next_observation"][before] == self._data["observation"][here]).all(dim=1)
        self._goes_on[before] = led_here & (self._data["terminal"][before] == 0)

    def sample(self, count: int, generator: torch.Generator, n_steps: int = 1, discount: float = 1.0) -> Batch:
        """Return ``count`` transitions drawn with replacement.

        Args:
            count: how many.
            generator: source of the draw, on the CPU.
            n_steps: control steps of each; fewer where the episode ends or has not gone on yet.
            discount: discount of rewards per control step.

        Raises:
            ValueError: the buffer is empty.
        """
        if not len(self):
            raise ValueError("cannot sample from an empty replay buffer; add transitions first")
        return self._gather(torch.randint(len(self), (count,), generator=generator), n_steps, discount)

    def sample_by_age(
        self, count: int, ages: tuple[int, int], generator: torch.Generator, n_steps: int = 1, discount: float = 1.0
    ) -> Batch:
        """Return ``count`` transitions, as :meth:`sample`, than which at least ``ages[0]`` and fewer than ``ages[1]`` are newer.

        Raises:
            ValueError: there is none.
        """
        first, end = ages[0], min(ages[1], len(self))
        if first >= end:
            raise ValueError(f"a replay buffer with {len(self)} transitions has none that is older than {first} others")
        age = torch.randint(first, end, (count,), generator=generator)
        return self._gather((self.added - 1 - age) % self.capacity, n_steps, discount)

    def newest(self, count: int, n_steps: int = 1, discount: float = 1.0) -> Batch:
        """Return the ``count`` newest transitions of which all control steps are there, fewer in a young buffer."""
        end = self.added - (n_steps - 1) * self.stride
        start = max(end - count, self.added - len(self))
        return self._gather(torch.arange(start, max(start, end)) % self.capacity, n_steps, discount)

    def _gather(self, index: Tensor, n_steps: int, discount: float) -> Batch:
        observation, action, reward = (self._data[name][index] for name in ("observation", "action", "reward"))
        steps, last, factor = torch.ones_like(reward), index.to(self._goes_on.device), 1.0
        for _ in range(n_steps - 1):
            goes_on = self._goes_on[last]
            last = torch.where(goes_on, (last + self.stride) % self.capacity, last)
            factor *= discount
            reward = reward + factor * goes_on * self._data["reward"][last]
            steps = steps + goes_on
        next_observation, terminal = self._data["next_observation"][last], self._data["terminal"][last]
        return Batch(observation, action, reward, next_observation, terminal, steps)

    def all(self) -> Batch:
        """Return all transitions that are kept, of one control step each, in the order of the ring."""
        return self._gather(torch.arange(len(self)), 1, 1.0)

    def state_dict(self) -> dict[str, Tensor]:
        """Return the kept transitions, the counter and the stride."""
        counters = {"added": torch.tensor(self.added), "stride": torch.tensor(self.stride)}
        return {name: data[: len(self)] for name, data in self._data.items()} | counters

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Put back what :meth:`state_dict` returned; raises ValueError when it does not fit this buffer."""
        kept = len(state["reward"])
        if kept != min(int(state["added"]), self.capacity):
            raise ValueError(f"replay of {kept} transitions does not fit a buffer of capacity {self.capacity}")
        for name, data in self._data.items():
            if state[name].shape != (kept, *data.shape[1:]):
                raise ValueError(f"replay {name} has shape {tuple(state[name].shape)}, expected {(kept, *data.shape[1:])}")
        self.added, self.stride = int(state["added"]), int(state["stride"])
        for name, data in self._data.items():
            data[:kept] = state[name]
        self._goes_on[:] = False
        self._link(self.added - kept)
