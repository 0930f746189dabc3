"""Outcome encoders: what the denoiser is told about what happened after an action."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn

from dpg_robot.learning.networks import RunningNormalizer, mlp
from dpg_robot.learning.replay import Batch

OutcomeKind = Literal["next_state", "reward_and_next_state", "target", "features", "action"]


class OutcomeEncoder(nn.Module):
    """Maps transitions to outcomes.

    Kinds:
        next_state: change of the features. Needs no reward and does not age when values change.
        reward_and_next_state: the reward beside it, for rewards that depend on the action directly.
        target: the surprise, as one standardized number. Its variance does not grow with the number of actions, but it moves with
            the values.
        features: a few learned numbers that suffice to predict the surprise from state, change of the features and reward.
        action: the action itself, so that the denoised gradient becomes the plain score-function estimate; encodes nothing.

    Args:
        kind: what to tell.
        state_size: size of an observation.
        num_features: how many of its first numbers are the present features; history and privileged numbers follow.
        hidden_sizes: sizes of the hidden layers, where features are learned.
        learned_features: how many features are learned.
    """

    surprise_variance: Tensor

    def __init__(
        self, kind: OutcomeKind, state_size: int, num_features: int, hidden_sizes: tuple[int, ...], learned_features: int
    ) -> None:
        super().__init__()
        self.kind, self.num_features = kind, num_features
        sizes = {"next_state": num_features, "reward_and_next_state": num_features + 1, "target": 1, "features": learned_features}
        self.size = sizes.get(kind, 0)
        self.register_buffer("surprise_variance", torch.ones(()))
        if kind == "features":
            self.normalizer = RunningNormalizer(state_size + num_features + 1)
            self.network = mlp(state_size + num_features + 1, hidden_sizes, learned_features)
            nn.init.orthogonal_(self.network[-1].weight, gain=0.1)  # type: ignore[arg-type]
            self.readout = nn.Linear(learned_features, 1)

    def measured(self, batch: Batch) -> Tensor | None:
        """Return the outcomes (N, U) that are measured and need a normalizer, None for a kind that has none."""
        if self.kind == "next_state":
            return self._change(batch)
        if self.kind == "reward_and_next_state":
            return torch.cat([self._change(batch), batch.reward[:, None]], dim=-1)
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
        return torch.cat([batch.observation, self._change(batch), batch.reward[:, None]], dim=-1)

    def _change(self, batch: Batch) -> Tensor:
        return batch.next_observation[:, : self.num_features] - batch.observation[:, : self.num_features]
