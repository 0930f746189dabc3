"""The baseline: the best guess of the target before the outcome is known, and its slope in the action."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from dpg_robot.learning.networks import EnsembleMlp, RunningNormalizer


class Baseline(nn.Module):
    """b(s, noised_action, sigma): expected target of an action of which a copy with noise of size sigma is known.

    At sigma = 0 it is the ordinary action value. An ensemble of E members shares the inputs.

    Args:
        observation_size: size O of the observation.
        action_size: number A of actions.
        hidden_sizes: sizes of the hidden layers.
        members: number E of members.
    """

    def __init__(self, observation_size: int, action_size: int, hidden_sizes: tuple[int, ...], members: int) -> None:
        super().__init__()
        self.members = members
        self.normalizer = RunningNormalizer(observation_size)
        self.network = EnsembleMlp(members, observation_size + action_size + 1, hidden_sizes, 1)

    def forward(self, observation: Tensor, noised_action: Tensor, sigma: Tensor) -> Tensor:
        """Return values (E, N).

        Args:
            observation: (N, O).
            noised_action: (N, A).
            sigma: (N, 1), zero or positive.
        """
        values: Tensor = self.network(self._inputs(observation, noised_action, sigma))
        return values.squeeze(-1)

    def value_and_slope(
        self, observation: Tensor, noised_action: Tensor, sigma: Tensor, direction: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Return values (E, N) and their derivatives (E, N) along ``direction`` (N, A) in the noised action.

        Both can be differentiated further.
        """
        tangent = torch.cat([direction, torch.zeros_like(observation), torch.zeros_like(sigma)], dim=-1)
        inputs = self._inputs(observation, noised_action, sigma)
        values, slopes = self.network.forward_with_tangent(inputs, tangent.expand_as(inputs))
        return values.squeeze(-1), slopes.squeeze(-1)

    def _inputs(self, observation: Tensor, noised_action: Tensor, sigma: Tensor) -> Tensor:
        inputs = torch.cat([noised_action, self.normalizer(observation), sigma], dim=-1)
        return inputs.expand(self.members, *inputs.shape)
