"""The action denoiser: the best guess of an action from its noised copy, told the outcome or not."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from dpg_robot.learning.networks import RunningNormalizer, mlp


class ActionDenoiser(nn.Module):
    """D(noised_action; sigma, s, outcome or nothing), one network for both.

    The network is wrapped in the preconditioning of Karras et al. (2022, arXiv 2206.00364), so that its input and its training
    target have unit variance at every sigma. An absent outcome is an input of zeros with its flag at zero.

    Args:
        observation_size: size O of the observation.
        action_size: number A of actions.
        outcome_size: size U of the outcome.
        hidden_sizes: sizes of the hidden layers.
        action_std: typical standard deviation of the actions to denoise.
    """

    def __init__(
        self, observation_size: int, action_size: int, outcome_size: int, hidden_sizes: tuple[int, ...], action_std: float
    ) -> None:
        super().__init__()
        self.action_std = action_std
        self.observation_normalizer = RunningNormalizer(observation_size)
        self.outcome_normalizer = RunningNormalizer(outcome_size)
        self.network = mlp(action_size + 1 + observation_size + outcome_size + 1, hidden_sizes, action_size)

    def forward(self, noised_action: Tensor, sigma: Tensor, observation: Tensor, outcome: Tensor, has_outcome: Tensor) -> Tensor:
        """Return denoised actions (N, A).

        Args:
            noised_action: (N, A).
            sigma: (N, 1) standard deviation of the noise in each noised action, positive.
            observation: (N, O).
            outcome: (N, U); rows without an outcome are ignored.
            has_outcome: (N, 1), 1 where the outcome is told and 0 where it is not.
        """
        skip, scale_in, scale_out = self._preconditioning(sigma)
        inputs = [
            scale_in * noised_action,
            0.25 * sigma.log(),
            self.observation_normalizer(observation),
            torch.where(has_outcome > 0, self.outcome_normalizer(outcome), 0.0),  # a product would let a NaN through
            has_outcome,
        ]
        residual: Tensor = self.network(torch.cat(inputs, dim=-1))
        return skip * noised_action + scale_out * residual

    def loss(self, denoised: Tensor, action: Tensor, sigma: Tensor) -> Tensor:
        """Return the mean squared denoising error, weighted so that every sigma counts alike; a scalar."""
        _, _, scale_out = self._preconditioning(sigma)
        return ((denoised - action) / scale_out).square().mean()

    def _preconditioning(self, sigma: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        total = sigma.square() + self.action_std**2
        skip = self.action_std**2 / total
        return skip, total.rsqrt(), sigma * self.action_std * total.rsqrt()


def action_after_outcome(
    denoiser: ActionDenoiser, noised_action: Tensor, sigma: Tensor, observation: Tensor, outcome: Tensor
) -> tuple[Tensor, Tensor]:
    """Return the two denoised actions (N, A): told the outcome, and not told; one pass of the network for both."""
    count = len(noised_action)
    told = torch.ones(2 * count, 1, dtype=sigma.dtype, device=sigma.device)
    told[count:] = 0.0
    both = denoiser(noised_action.repeat(2, 1), sigma.repeat(2, 1), observation.repeat(2, 1), outcome.repeat(2, 1), told)
    return both[:count], both[count:]
