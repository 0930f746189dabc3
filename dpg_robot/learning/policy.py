"""The policy: a = alpha(s, eps), a differentiable function of the observation and of standard normal noise."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dpg_robot.learning.networks import RunningNormalizer, mlp

_LOG_STD_MIN, _LOG_STD_MAX = -5.0, 1.0


class Policy(nn.Module):
    """alpha(s, eps) = tanh(mean(s) + std(s) * eps): actions in (-1, 1), a Gaussian squashed by tanh.

    Args:
        observation_size: size O of the observation (features and history, not yet normalized).
        action_size: number A of actions.
        hidden_sizes: sizes of the hidden layers.
    """

    def __init__(self, observation_size: int, action_size: int, hidden_sizes: tuple[int, ...]) -> None:
        super().__init__()
        self.observation_size, self.action_size = observation_size, action_size
        self.normalizer = RunningNormalizer(observation_size)
        self.network = mlp(observation_size, hidden_sizes, 2 * action_size)

    def forward(self, observation: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
        """Return actions (N, A) and their log probabilities (N,) for observations (N, O) and standard normal noise (N, A)."""
        mean, log_std = self._mean_and_log_std(observation)
        before_squashing = mean + log_std.exp() * noise
        action = torch.tanh(before_squashing)
        # log p(a) = log N(u; mean, std) - log |d tanh(u) / du|, the last term in a form that keeps its precision at large |u|
        log_gaussian = -0.5 * noise**2 - log_std - 0.5 * math.log(2 * math.pi)
        log_slope = 2.0 * (math.log(2.0) - before_squashing - F.softplus(-2.0 * before_squashing))
        return action, (log_gaussian - log_slope).sum(-1)

    def mean_action(self, observation: Tensor) -> Tensor:
        """Return the action (N, A) without noise, as it is used on a robot."""
        mean, _ = self._mean_and_log_std(observation)
        return torch.tanh(mean)

    def _mean_and_log_std(self, observation: Tensor) -> tuple[Tensor, Tensor]:
        mean, raw = self.network(self.normalizer(observation)).chunk(2, dim=-1)
        # raw = 0, where training starts, gives a standard deviation of 1 before squashing
        return mean, _LOG_STD_MIN + (_LOG_STD_MAX - _LOG_STD_MIN) * torch.sigmoid(raw + math.log(5.0))
