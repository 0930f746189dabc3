"""What fine-tuning learns from: batches mixed of simulation, of what robots did lately, and of what they did before."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from dpg_robot.config import setting
from dpg_robot.learning.learner import Learner
from dpg_robot.learning.replay import Batch, ReplayBuffer


@dataclass(frozen=True)
class MixtureConfig:
    """Shares of each batch; they are scaled to a sum of 1, and what a source does not have yet goes to the others."""

    simulation: float = setting(1.0, "parts from simulation")
    new: float = setting(1.0, "parts from the newest transitions of robots")
    old: float = setting(1.0, "parts from their earlier ones")
    newest: int = setting(10_000, "transitions of robots that count as new", unit="transitions")

    def __post_init__(self) -> None:
        for name in ("simulation", "new", "old"):
            if not 0 <= getattr(self, name) < float("inf"):
                raise ValueError(f"{name} must be 0 or more, got {getattr(self, name)}")
        if not self.new > 0:
            raise ValueError(f"new must be above 0, or nothing new would be learned, got {self.new}")
        if self.newest < 1:
            raise ValueError(f"newest must be 1 or more, got {self.newest}")


class Mixture:
    """Draws batches from the transitions of simulation and of robots.

    Args:
        simulation: transitions of simulation; may be empty.
        robot: transitions of robots, in order of time, episode by episode.
        config: shares.
    """

    def __init__(self, simulation: ReplayBuffer, robot: ReplayBuffer, config: MixtureConfig) -> None:
        self.simulation, self.robot, self.config = simulation, robot, config

    def counts(self, size: int) -> tuple[int, int, int]:
        """Return how many of ``size`` transitions come from simulation, from new and from old ones of robots.

        Raises:
            ValueError: there are none at all.
        """
        available = (len(self.simulation), len(self.robot), len(self.robot) - self.config.newest)
        shares = (self.config.simulation, self.config.new, self.config.old)
        weights = [share if there > 0 else 0.0 for share, there in zip(shares, available, strict=True)]
        if not sum(weights):
            raise ValueError("there are no transitions to learn from; add some first")
        ends = torch.tensor(weights).double().cumsum(0)
        simulation, robot, _ = (size * ends / ends[-1]).round().int().tolist()
        return simulation, robot - simulation, size - robot

    def draw(self, learner: Learner, generator: torch.Generator) -> Batch:
        """Return a batch of the learner's size, each transition over as many control steps as its settings say."""
        simulation, new, old = self.counts(learner.config.batch_size)
        steps, discount = learner.n_steps, learner.config.discount
        parts = []
        if simulation:
            parts.append(self.simulation.sample(simulation, generator, steps, discount))
        if new:
            parts.append(self.robot.sample_by_age(new, (0, self.config.newest), generator, steps, discount))
        if old:
            parts.append(self.robot.sample_by_age(old, (self.config.newest, self.robot.capacity), generator, steps, discount))
        batch = parts[0]
        for part in parts[1:]:
            batch = batch.concatenate(part)
        return batch.shuffled(generator)
