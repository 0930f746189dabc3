"""Learning from a data set alone: the learner, held to the actions that the data knows.

What the baseline says of actions that nobody tried is made up, and a policy that follows it finds out too late. The denoiser is
what knows the behaviour: by Tweedie's formula

    (D(noised_action) - noised_action) / sigma^2

is the score of the behaviour's density, smoothed by the noise. So the policy ascends the slope of the values plus that score, at
a noised copy of its own action: it goes where values rise, and stays where actions were tried. The pull is strong where the
behaviour was narrow and weak where it was broad, and knows several ways to act. Its mean is the derivative of the divergence
between the two smoothed densities; score regularization of this kind is due to Chen et al. (SRPO, 2024, arXiv 2310.07297).

The other pull is that of TD3+BC (Fujimoto and Gu, 2021, arXiv 2106.06860): to the logged action, by the squared distance. Their
normalization of slopes by the size of the values serves both, so that weights do not depend on the scale of rewards.
"""

from __future__ import annotations

import hashlib
import math
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from dpg_robot.config import setting
from dpg_robot.contract import Contract
from dpg_robot.data.datasets import Transitions
from dpg_robot.errors import ConfigError
from dpg_robot.learning.learner import Learner
from dpg_robot.learning.replay import Batch
from dpg_robot.learning.settings import LearnerConfig

PullKind = Literal["denoiser", "actions"]
_SMALLEST_VALUE = 1e-3
_WITHOUT_REWARD = ("next_state", "plain")  # gradients whose denoiser is told no reward


@dataclass(frozen=True)
class BehaviourConfig:
    """How the policy is held to the behaviour in the data."""

    pull: PullKind = setting(
        "denoiser",
        "what pulls: denoiser (the score of the behaviour, by the denoiser) or actions (the distance to logged actions)",
    )
    weight: float = setting(0.1, "weight of the pull beside slopes that are divided by the mean size of the values")
    decay_updates: int = setting(
        0, "updates over which the weight falls to 0 once learning goes on online; 0 keeps it", unit="updates"
    )

    def __post_init__(self) -> None:
        if not 0 <= self.weight < math.inf:
            raise ValueError(f"weight must be 0 or more, got {self.weight}")
        if self.decay_updates < 0:
            raise ValueError(f"decay_updates must be 0 or more, got {self.decay_updates}")


class OfflineLearner(Learner):
    """A learner whose policy is pulled to the behaviour of the data it learns from.

    Its networks, and so its checkpoints, are those of :class:`Learner`. Targets hold no entropy bonus, as more randomness means
    more unknown actions; they are bootstrapped with the policy's own actions, which are held to the data, and the lowest value of
    the ensemble.

    Args:
        contract: channels and sizes.
        config: settings of the learner.
        behaviour: how the policy is held to the behaviour.
        seed: seed of the initial weights and of all later random numbers.
        device: where to compute.
        has_rewards: whether rewards are known. If not, only the denoiser is trained, and the policy to do what the behaviour did.

    Attributes:
        online_since: updates after which the pull's weight began to fall; None while learning is offline.

    Raises:
        ConfigError: settings that do not go together.
    """

    def __init__(
        self,
        contract: Contract,
        config: LearnerConfig,
        behaviour: BehaviourConfig,
        seed: int = 0,
        device: torch.device | str = "cpu",
        has_rewards: bool = True,
    ) -> None:
        if behaviour.pull == "denoiser" and config.gradient == "critic":
            raise ConfigError("gradient=critic trains no denoiser that could pull; choose behaviour.pull=actions")
        if not has_rewards and config.gradient not in _WITHOUT_REWARD:
            raise ConfigError(
                f"the data has no rewards, but with learner.gradient={config.gradient} the denoiser is told something of them; "
                "choose learner.gradient=next_state"
            )
        super().__init__(contract, config, seed, device)
        self.behaviour, self.has_rewards = behaviour, has_rewards
        self.online_since: int | None = None

    @property
    def pull_weight(self) -> float:
        """Weight of the pull at the present update."""
        if self.online_since is None or not self.behaviour.decay_updates:
            return self.behaviour.weight
        share = (int(self.updates) - self.online_since) / self.behaviour.decay_updates
        return self.behaviour.weight * max(0.0, 1.0 - share)

    def _update_estimators(self, batch: Batch) -> dict[str, Tensor]:
        return super()._update_estimators(batch) if self.has_rewards else self._update_denoiser(batch)

    def _bootstrap(self, batch: Batch, next_observation: Tensor, next_action_noise: Tensor) -> Tensor:
        action, _ = self.policy(self.measurable(next_observation), next_action_noise)
        next_value = self.target_baseline(next_observation, action, torch.zeros_like(action[:, :1])).amin(0)
        # y = r + discount^steps * (1 - terminal) * min over the ensemble of Q(s', alpha(s', eps))
        target: Tensor = self.config.reward_scale * batch.reward + self.future_weight(batch) * next_value
        return target

    def _ascent(self, batch: Batch, action: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the slope of the values and the pull of the behaviour, summed, and scalars to log."""
        slope = self._normalized_slope(batch.observation, action)
        pull = self._pull(batch, action)
        # chain rule: d / d theta of value / size + weight * log density of the behaviour
        return slope + self.pull_weight * pull, {
            "policy/slope": slope.abs().mean(),
            "policy/pull": self.pull_weight * pull.abs().mean(),
            "policy/distance_to_data": self.processes.mean((action - batch.action).square().mean()).sqrt(),
        }

    def _normalized_slope(self, observation: Tensor, action: Tensor) -> Tensor:
        """Return the action gradient (N, A) over the mean size of the values; zeros where no rewards are known."""
        if not self.has_rewards:
            return torch.zeros_like(action)
        slope = self.estimator.action_gradient(observation, action)
        with torch.no_grad():
            values = self.baseline(observation, action, torch.zeros_like(action[:, :1]))
        size = self.processes.mean(values.mean(0).abs().mean())
        normalized: Tensor = slope / size.clamp(min=_SMALLEST_VALUE)
        return normalized

    @torch.no_grad()
    def _pull(self, batch: Batch, action: Tensor) -> Tensor:
        """Return where the behaviour pulls actions (N, A)."""
        if self.behaviour.pull == "actions":
            return batch.action - action
        noised_action, sigma = self.estimator.noise_actions(action, self.generator)
        denoised = self._denoise_untold(batch.observation, noised_action, sigma)
        # The score (D - noised_action) / sigma^2, plus noise / sigma, which has mean zero and takes most of the variance out.
        return (denoised - action) / sigma.square()

    def _denoise_untold(self, observation: Tensor, noised_action: Tensor, sigma: Tensor) -> Tensor:
        nothing = torch.zeros_like(sigma)
        outcome = torch.zeros(len(sigma), self.estimator.outcome.size, device=self.device)
        denoised: Tensor = self.denoiser(noised_action, sigma, observation, outcome, nothing)
        return denoised


def to_batch(transitions: Transitions, contract: Contract) -> Batch:
    """Return a data set's transitions as the learner sees them; rewards that are not known are 0."""
    reward = torch.zeros(len(transitions))
    if transitions.reward is not None:
        reward = torch.from_numpy(transitions.reward) / contract.action_repeat
    return Batch(
        observation=torch.from_numpy(transitions.observation),
        action=torch.from_numpy(transitions.action),
        reward=reward,
        next_observation=torch.from_numpy(transitions.next_observation),
        terminal=torch.from_numpy(transitions.terminal).float(),
        steps=torch.ones(len(transitions)),
    )


def digest(batch: Batch) -> str:
    """Return a digest of all transitions, to know the same data again."""
    whole = hashlib.sha256()
    for values in (batch.observation, batch.action, batch.reward, batch.next_observation, batch.terminal):
        whole.update(values.cpu().contiguous().numpy().tobytes())
    return whole.hexdigest()[:16]
