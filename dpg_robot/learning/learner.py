"""The learner: trains denoiser and baseline on replayed transitions, and the policy along the denoised action gradient.

Off-policy and amortized: the identity of :mod:`dpg_robot.learning.gradient` holds for any behaviour, so each replayed transition
gives a one-sample estimate of the gradient at the action that was taken. The baseline learns the target as its value and these
estimates as its slope, each weighted by its measured precision; the policy then ascends the baseline's slope at its own actions.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from dpg_robot.config import setting
from dpg_robot.contract import Contract
from dpg_robot.errors import ConfigError
from dpg_robot.learning.baseline import Baseline
from dpg_robot.learning.denoiser import ActionDenoiser, action_after_outcome
from dpg_robot.learning.gradient import denoised_action_gradient
from dpg_robot.learning.policy import Policy
from dpg_robot.learning.replay import Batch

OutcomeKind = Literal["next_state", "reward_and_next_state"]


@dataclass(frozen=True)
class LearnerConfig:
    """Settings of the learner."""

    batch_size: int = setting(256, "transitions per update")
    hidden_sizes: tuple[int, ...] = setting((256, 256), "sizes of the hidden layers of all networks")
    baseline_members: int = setting(2, "members of the baseline ensemble")
    learning_rate: float = setting(1e-3, "step size of Adam for denoiser and baseline")
    policy_learning_rate: float = setting(1e-3, "step size of Adam for policy and temperature")
    discount: float = setting(0.99, "discount per control step")
    reward_scale: float = setting(0.1, "factor on rewards before learning")
    target_update: float = setting(0.01, "share by which the target baseline follows the baseline at each update")
    policy_update_interval: int = setting(2, "updates of denoiser and baseline for each update of the policy", unit="updates")
    outcome: OutcomeKind = setting("reward_and_next_state", "what the denoiser is told: next_state or reward_and_next_state")
    sigma_min: float = setting(0.1, "smallest noise on actions", unit="action (-1 to 1)")
    sigma_max: float = setting(0.5, "largest noise on actions", unit="action (-1 to 1)")
    action_std: float = setting(0.5, "typical spread of actions, for the denoiser's preconditioning", unit="action (-1 to 1)")
    slope_weight: float = setting(1.0, "weight of the denoised gradient in the baseline; 0 leaves the baseline's own slope")
    initial_temperature: float = setting(0.05, "weight of the policy's entropy at the start", unit="scaled return per nat")
    target_entropy_per_action: float = setting(-1.0, "entropy per action that the temperature steers to", unit="nat")
    max_gradient_norm: float = setting(10.0, "gradients of each network are clipped to this norm")

    def __post_init__(self) -> None:
        if not 0 < self.sigma_min <= self.sigma_max:
            raise ValueError(f"need 0 < sigma_min <= sigma_max, got {self.sigma_min} and {self.sigma_max}")
        if not 0 <= self.discount < 1:
            raise ValueError(f"discount must be in [0, 1), got {self.discount}")
        for name in ("batch_size", "baseline_members", "policy_update_interval"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be 1 or more, got {getattr(self, name)}")
        if any(size < 1 for size in self.hidden_sizes):
            raise ValueError(f"hidden_sizes must be 1 or more each, got {list(self.hidden_sizes)}")
        for name in ("learning_rate", "policy_learning_rate", "action_std", "initial_temperature", "max_gradient_norm"):
            if not 0 < getattr(self, name) < math.inf:
                raise ValueError(f"{name} must be positive, got {getattr(self, name)}")
        if not 0 < self.target_update <= 1:
            raise ValueError(f"target_update must be in (0, 1], got {self.target_update}")
        if not 0 <= self.slope_weight < math.inf:
            raise ValueError(f"slope_weight must be 0 or more, got {self.slope_weight}")
        if not math.isfinite(self.reward_scale) or not math.isfinite(self.sigma_max):
            raise ValueError(f"reward_scale and sigma_max must be finite, got {self.reward_scale} and {self.sigma_max}")


def usable_device(name: torch.device | str) -> torch.device:
    """Return a device on which torch can compute here.

    Raises:
        ConfigError: no such device, or none that this machine or this build of torch has.
    """
    try:
        device = torch.device(name)
        torch.zeros(1, device=device)
    except (RuntimeError, AssertionError, NotImplementedError) as error:  # torch raises all of them
        reason = str(error).splitlines()[0]
        raise ConfigError(f"device {str(name)!r} cannot be used: {reason}; choose cpu, or one that exists, as cuda:0") from error
    return device


class Learner(nn.Module):
    """The three networks with their optimizers, and one update of them all.

    Args:
        contract: channels and sizes.
        config: settings.
        seed: seed of the initial weights and of all later random numbers.
        device: where to compute.
        privileged_size: number P of things that only a simulator knows, such as drawn masses, at the end of each observation of a
            batch. Denoiser and baseline see them, the policy does not. Both must see the same, or the gradient would be biased.
    """

    second_moments: Tensor
    updates: Tensor

    def __init__(
        self,
        contract: Contract,
        config: LearnerConfig,
        seed: int = 0,
        device: torch.device | str = "cpu",
        privileged_size: int = 0,
    ) -> None:
        super().__init__()
        self.contract, self.config, self.privileged_size = contract, config, privileged_size
        self.device = usable_device(device)
        observations, actions = contract.observation_size, contract.num_actions
        states = observations + privileged_size
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.policy = Policy(observations, actions, config.hidden_sizes)
            self.denoiser = ActionDenoiser(states, actions, self.outcome_size, config.hidden_sizes, config.action_std)
            self.baseline = Baseline(states, actions, config.hidden_sizes, config.baseline_members)
            self.target_baseline = Baseline(states, actions, config.hidden_sizes, config.baseline_members)
        self.target_baseline.load_state_dict(self.baseline.state_dict())
        self.target_baseline.requires_grad_(False)
        self.log_temperature = nn.Parameter(torch.tensor(config.initial_temperature).log())
        # running mean squares of the residuals of value and of slope times sigma
        self.register_buffer("second_moments", torch.ones(2))
        self.register_buffer("updates", torch.zeros((), dtype=torch.int64))
        self.to(self.device)
        self.optimizers = {
            "estimators": torch.optim.Adam(
                [*self.denoiser.parameters(), *self.baseline.parameters()], config.learning_rate, fused=True
            ),
            "policy": torch.optim.Adam(
                [*self.policy.parameters(), self.log_temperature], config.policy_learning_rate, fused=True
            ),
        }
        self.generator = torch.Generator(self.device).manual_seed(seed)

    @property
    def outcome_size(self) -> int:
        """Size U of the outcome that the denoiser is told."""
        return self.contract.num_features + (self.config.outcome == "reward_and_next_state")

    def outcome(self, batch: Batch) -> Tensor:
        """Return outcomes (N, U): the change of the features, and the reward where the denoiser is told it."""
        features = self.contract.num_features
        change = batch.next_observation[:, :features] - batch.observation[:, :features]
        if self.config.outcome == "next_state":
            return change
        return torch.cat([change, batch.reward[:, None]], dim=-1)

    def measurable(self, observation: Tensor) -> Tensor:
        """Return the part (N, O) of observations (N, O + P) that the policy sees."""
        return observation[:, : self.contract.observation_size]

    def set_learning_rate_factor(self, factor: float) -> None:
        """Set the step sizes of all optimizers to ``factor`` times those of the settings."""
        rates = {"estimators": self.config.learning_rate, "policy": self.config.policy_learning_rate}
        for name, optimizer in self.optimizers.items():
            for group in optimizer.param_groups:
                group["lr"] = factor * rates[name]

    def observe(self, batch: Batch) -> None:
        """Take new transitions into the normalizers' statistics."""
        self.policy.normalizer.update(self.measurable(batch.observation))
        for normalizer in (
            self.denoiser.observation_normalizer,
            self.baseline.normalizer,
            self.target_baseline.normalizer,
        ):
            normalizer.update(batch.observation)
        self.denoiser.outcome_normalizer.update(self.outcome(batch))

    @torch.no_grad()
    def act(self, observation: Tensor) -> Tensor:
        """Return exploring actions (N, A) for observations (N, O)."""
        noise = self._normal(len(observation), self.contract.num_actions)
        action: Tensor = self.policy(observation, noise)[0]
        return action

    @torch.no_grad()
    def target(self, batch: Batch, generator: torch.Generator | None = None) -> Tensor:
        """Return targets (N,): y = r + discount * (1 - terminal) * V(s'), with the entropy bonus in V.

        Args:
            batch: N transitions.
            generator: source of the policy's noise, instead of the learner's own.
        """
        next_action_noise = self._normal(*batch.action.shape, generator=generator)
        action, log_probability = self.policy(self.measurable(batch.next_observation), next_action_noise)
        values: Tensor = self.target_baseline(batch.next_observation, action, torch.zeros_like(action[:, :1]))
        next_value: Tensor = values.amin(0) - self.log_temperature.exp() * log_probability
        return self.config.reward_scale * batch.reward + self.config.discount * (1 - batch.terminal) * next_value

    def update(self, batch: Batch, *, improve_policy: bool = True) -> dict[str, Tensor]:
        """Update the networks once on a batch of transitions.

        Args:
            batch: transitions.
            improve_policy: whether the policy follows (at its interval), or only denoiser and baseline are trained.

        Returns:
            Scalars to log, detached and not yet moved to the CPU.
        """
        metrics = self._update_estimators(batch)
        if improve_policy and int(self.updates) % self.config.policy_update_interval == 0:
            metrics |= self._update_policy(batch.observation)
        self.updates += 1
        return metrics

    def _update_estimators(self, batch: Batch) -> dict[str, Tensor]:
        config = self.config
        target = self.target(batch)
        noised_action, sigma = self._noise_actions(batch.action)
        told, untold = action_after_outcome(self.denoiser, noised_action, sigma, batch.observation, self.outcome(batch))
        denoising_loss = self.denoiser.loss(told, batch.action, sigma) + self.denoiser.loss(untold, batch.action, sigma)

        direction = self._random_signs(batch.action)
        values, slopes = self.baseline.value_and_slope(batch.observation, noised_action, sigma, direction)
        clean_values = self.baseline(batch.observation, batch.action, torch.zeros_like(sigma))
        gradient = denoised_action_gradient(target, values.detach().mean(0), told.detach(), untold.detach(), sigma[:, 0])
        value_residual = (values - target).square().mean()
        # Random signs v have E[v v^T] = 1, so E[(v . slope - v . gradient)^2] = |slope - gradient|^2.
        slope_residual = ((slopes - (gradient * direction).sum(-1)) * sigma[:, 0]).square().mean()
        moments = torch.stack([value_residual.detach(), slope_residual.detach()])
        self.second_moments.lerp_(moments, 1.0 if int(self.updates) == 0 else 0.01)
        # Value and slope are two noisy readings of one function: each counts by its precision, the inverse of its mean square.
        precision_ratio = self.second_moments[0] / (self.second_moments[1] + 1e-12)
        baseline_loss = (clean_values - target).square().mean() + value_residual
        if config.slope_weight > 0:
            baseline_loss = baseline_loss + config.slope_weight * precision_ratio * slope_residual

        self.optimizers["estimators"].zero_grad(set_to_none=True)
        (denoising_loss + baseline_loss).backward()
        nn.utils.clip_grad_norm_(self.denoiser.parameters(), config.max_gradient_norm)
        nn.utils.clip_grad_norm_(self.baseline.parameters(), config.max_gradient_norm)
        self.optimizers["estimators"].step()
        self._update_target()
        return {
            "denoiser/loss": denoising_loss.detach(),
            "denoiser/explained": (told - untold).detach().square().mean() / (untold - batch.action).detach().square().mean(),
            "baseline/td_error": value_residual.detach(),
            "baseline/slope_error": slope_residual.detach(),
            "baseline/slope_precision": precision_ratio,
            "baseline/value": values.detach().mean(),
        }

    def _update_policy(self, observation: Tensor) -> dict[str, Tensor]:
        noise = self._normal(len(observation), self.contract.num_actions)
        action, log_probability = self.policy(self.measurable(observation), noise)
        at_action = action.detach().requires_grad_(True)
        values = self.baseline(observation, at_action, torch.zeros_like(at_action[:, :1]))
        (slope,) = torch.autograd.grad(values.amin(0).sum(), at_action)
        temperature = self.log_temperature.exp()
        # chain rule: d value / d theta = (d value / d a) * (d alpha / d theta)
        policy_loss = (temperature.detach() * log_probability - (slope * action).sum(-1)).mean()
        entropy_gap = -log_probability.detach().mean() - self.config.target_entropy_per_action * self.contract.num_actions
        self.optimizers["policy"].zero_grad(set_to_none=True)
        (policy_loss + self.log_temperature * entropy_gap).backward()
        nn.utils.clip_grad_norm_(self.policy.parameters(), self.config.max_gradient_norm)
        self.optimizers["policy"].step()
        return {
            "policy/entropy": -log_probability.detach().mean(),
            "policy/temperature": temperature.detach(),
            "policy/slope": slope.abs().mean(),
        }

    @torch.no_grad()
    def _update_target(self) -> None:
        ours: list[Tensor] = list(self.target_baseline.parameters())
        theirs: list[Tensor] = list(self.baseline.parameters())
        torch._foreach_lerp_(ours, theirs, self.config.target_update)

    def _noise_actions(self, action: Tensor) -> tuple[Tensor, Tensor]:
        low, high = torch.tensor([self.config.sigma_min, self.config.sigma_max]).log().tolist()
        uniform = torch.rand(len(action), 1, generator=self.generator, device=self.device)
        sigma = torch.exp(low + (high - low) * uniform)
        return action + sigma * self._normal(*action.shape), sigma

    def _random_signs(self, like: Tensor) -> Tensor:
        return 2.0 * torch.randint_like(like, 2, generator=self.generator) - 1.0

    def _normal(self, *shape: int, generator: torch.Generator | None = None) -> Tensor:
        return torch.randn(*shape, generator=generator or self.generator, device=self.device)
