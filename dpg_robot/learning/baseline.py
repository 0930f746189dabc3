"""The baseline: the best guess of the target before the outcome is known, and its slope in the action."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from dpg_robot.learning.networks import EnsembleMlp, RunningNormalizer


@dataclass(frozen=True)
class Guess:
    """What the baseline says of N noised actions, by E members.

    Attributes:
        value: (E, N) expected targets.
        slope: (E, N) their derivatives along the direction that was asked for.
        response: (E, N, A) how the target answers to a shift of the denoised action (see :mod:`dpg_robot.learning.gradient`).
        gradient: (E, N, A) the action gradient, as a network output of its own beside the slope.
    """

    value: Tensor
    slope: Tensor
    response: Tensor
    gradient: Tensor


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
        self.members, self.action_size = members, action_size
        self.normalizer = RunningNormalizer(observation_size)
        self.network = EnsembleMlp(members, observation_size + action_size + 1, hidden_sizes, 1 + 2 * action_size)

    def forward(self, observation: Tensor, noised_action: Tensor, sigma: Tensor) -> Tensor:
        """Return values (E, N).

        Args:
            observation: (N, O).
            noised_action: (N, A).
            sigma: (N, 1), zero or positive.
        """
        return self._outputs(observation, noised_action, sigma)[..., 0]

    def gradient_head(self, observation: Tensor, noised_action: Tensor, sigma: Tensor) -> Tensor:
        """Return the action gradients (E, N, A) of the network's own output for them."""
        return self._outputs(observation, noised_action, sigma)[..., 1 + self.action_size :]

    def guess(self, observation: Tensor, noised_action: Tensor, sigma: Tensor, direction: Tensor) -> Guess:
        """Return all outputs, and the slope of the values along ``direction`` (N, A) in the noised action.

        All can be differentiated further.
        """
        tangent = torch.cat([direction, torch.zeros_like(observation), torch.zeros_like(sigma)], dim=-1)
        inputs = self._inputs(observation, noised_action, sigma)
        outputs, slopes = self.network.forward_with_tangent(inputs, tangent.expand_as(inputs))
        value, response, gradient = torch.split(outputs, [1, self.action_size, self.action_size], dim=-1)
        return Guess(value.squeeze(-1), slopes[..., 0], response, gradient)

    def _outputs(self, observation: Tensor, noised_action: Tensor, sigma: Tensor) -> Tensor:
        outputs: Tensor = self.network(self._inputs(observation, noised_action, sigma))
        return outputs

    def _inputs(self, observation: Tensor, noised_action: Tensor, sigma: Tensor) -> Tensor:
        inputs = torch.cat([noised_action, self.normalizer(observation), sigma], dim=-1)
        return inputs.expand(self.members, *inputs.shape)
