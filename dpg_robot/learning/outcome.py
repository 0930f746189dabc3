"""Outcome encoders: what the denoiser is told about what happened after an action."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from dpg_robot.learning.networks import RunningNormalizer, mlp
from dpg_robot.learning.replay import Batch

OutcomeKind = Literal["next_state", "reward_and_next_state", "target", "features", "action"]


@dataclass(frozen=True)
class StateShape:
    """What an observation is made of: features, remembered frames, and what only a simulator knows.

    Attributes:
        size: how many numbers in all.
        features: how many of the first are the present features.
        actions: how many actions there are.
        history: how many frames (features, action) follow the present features, the newest first.
    """

    size: int
    features: int
    actions: int
    history: int = 0

    @property
    def frame(self) -> int:
        """Numbers in a frame."""
        return self.features + self.actions

    def remembered_action(self, steps: Tensor) -> Tensor:
        """Return where (N, A) an observation remembers the action of ``steps`` (N,) control steps before; 1 is the last one."""
        first = self.features + (steps.long() - 1) * self.frame + self.features
        return first[:, None] + torch.arange(self.actions, device=steps.device)


class OutcomeEncoder(nn.Module):
    """Maps transitions to outcomes.

    Kinds:
        next_state: change of the features. Over several control steps also what a policy with a history remembers of the time
            between, and how many steps they were. Needs no reward and does not age when values change.
        reward_and_next_state: the reward beside it, for rewards that depend on the action directly.
        target: the surprise, as one standardized number. Its variance does not grow with the number of actions, but it moves with
            the values.
        features: a few learned numbers that suffice to predict the surprise from state, change of the features and reward.
        action: the action itself, so that the denoised gradient becomes the plain score-function estimate; encodes nothing.

    Args:
        kind: what to tell.
        shape: what an observation is made of.
        hidden_sizes: sizes of the hidden layers, where features are learned.
        learned_features: how many features are learned.
    """

    surprise_variance: Tensor

    def __init__(
        self,
        kind: OutcomeKind,
        shape: StateShape,
        hidden_sizes: tuple[int, ...],
        learned_features: int,
        n_steps: int = 1,
    ) -> None:
        super().__init__()
        self.kind, self.shape, self.n_steps = kind, shape, n_steps
        self._between = min(n_steps - 1, shape.history)  # frames newer than the action's own
        motion = shape.features + self._between * shape.frame + (n_steps > 1)
        sizes = {"next_state": motion, "reward_and_next_state": motion + 1, "target": 1, "features": learned_features}
        self.size = sizes.get(kind, 0)
        self.register_buffer("surprise_variance", torch.ones(()))
        if kind == "features":
            self.normalizer = RunningNormalizer(shape.size + motion + 1)
            self.network = mlp(shape.size + motion + 1, hidden_sizes, learned_features)
            nn.init.orthogonal_(self.network[-1].weight, gain=0.1)  # type: ignore[arg-type]
            self.readout = nn.Linear(learned_features, 1)

    def measured(self, batch: Batch) -> Tensor | None:
        """Return the outcomes (N, U) that are measured and need a normalizer, None for a kind that has none."""
        if self.kind == "next_state":
            return self._motion(batch)
        if self.kind == "reward_and_next_state":
            return torch.cat([self._motion(batch), batch.reward[:, None]], dim=-1)
        return None

    def observe(self, batch: Batch) -> None:
        """Take new transitions into the statistics."""
        if self.kind == "features":
            self.normalizer.update(self._inputs(batch))

    def forward(self, batch: Batch, surprise: Tensor) -> Tensor:
        """Return outcomes (N, U), without a graph.

        Args:
            batch: N transitions.
            surprise: (N,) target minus baseline at the noised action.
        """
        measured = self.measured(batch)
        if measured is not None:
            return measured
        if self.kind == "target":
            return surprise[:, None] * torch.rsqrt(self.surprise_variance + 1e-12)
        if self.kind == "features":
            with torch.no_grad():
                return self._features(batch)
        return surprise.new_zeros(len(surprise), 0)

    def loss(self, batch: Batch, surprise: Tensor) -> Tensor | None:
        """Return what to minimize so that the features predict the surprise, None where nothing is learned."""
        with torch.no_grad():
            self.surprise_variance.lerp_(surprise.square().mean(), 0.01)
        if self.kind != "features":
            return None
        guess: Tensor = self.readout(self._features(batch)).squeeze(-1)
        standardized = surprise * torch.rsqrt(self.surprise_variance + 1e-12)
        return (guess - standardized).square().mean()

    def _features(self, batch: Batch) -> Tensor:
        features: Tensor = torch.tanh(self.network(self.normalizer(self._inputs(batch))))
        return features

    def _inputs(self, batch: Batch) -> Tensor:
        return torch.cat([batch.observation, self._motion(batch), batch.reward[:, None]], dim=-1)

    def _motion(self, batch: Batch) -> Tensor:
        features = self.shape.features
        change = batch.next_observation[:, :features] - batch.observation[:, :features]
        if self.n_steps == 1:
            return change
        parts, after = [change], batch.next_observation[:, features:]
        for frame in range(self._between):  # the newest first; where it is not newer than the action, it would tell the action
            remembered = after[:, frame * self.shape.frame : (frame + 1) * self.shape.frame]
            parts.append(torch.where((frame < batch.steps - 1)[:, None], remembered, 0.0))
        return torch.cat([*parts, batch.steps[:, None] / self.n_steps], dim=-1)
