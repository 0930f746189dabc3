"""The gradient estimator: denoiser and baseline, learned side by side from transitions and their targets.

The identity of :mod:`dpg_robot.learning.gradient` holds for any behaviour, so each transition gives a one-sample estimate of the
gradient at the action that was taken. They are amortized: the baseline learns the target as its value and the estimates as its
slope, each weighted by its measured precision, or as outputs of a head beside it. All variants go through the same code; with
``gradient=critic`` the baseline's slope is left to its values alone.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from dpg_robot.learning.baseline import Baseline, Guess
from dpg_robot.learning.denoiser import ActionDenoiser, action_after_outcome
from dpg_robot.learning.gradient import controlled_action_gradient
from dpg_robot.learning.outcome import OutcomeEncoder, OutcomeKind, StateShape
from dpg_robot.learning.replay import Batch
from dpg_robot.learning.settings import GradientKind, LearnerConfig

_OUTCOMES: dict[GradientKind, OutcomeKind] = {"plain": "action", "critic": "reward_and_next_state"}
_AVERAGING = 0.01  # share of the newest batch in running averages
_SMALLEST_SHIFT = 0.02  # of sigma, so that a denoiser that knows nothing yet does not blow up the response


class GradientEstimator(nn.Module):
    """Denoiser and baseline, what they are trained with, and the action gradient that they give.

    Args:
        shape: what an observation is made of.
        config: settings.
    """

    second_moments: Tensor
    shift_scale: Tensor

    def __init__(self, shape: StateShape, config: LearnerConfig) -> None:
        super().__init__()
        self.config = config
        hidden = config.hidden_sizes
        kind: OutcomeKind = _OUTCOMES.get(config.gradient, config.gradient)  # type: ignore[arg-type]
        self.outcome = OutcomeEncoder(kind, shape, hidden, config.learned_features, config.steps_of_targets(shape.history))
        self.denoiser = ActionDenoiser(shape.size, shape.actions, self.outcome.size, hidden, config.action_std)
        self.baseline = Baseline(shape.size, shape.actions, hidden, config.baseline_members)
        # running mean squares of the residuals of value and of slope times sigma
        self.register_buffer("second_moments", torch.ones(2))
        # running root mean square of the shift of the denoised action by the outcome, in units of sigma
        self.register_buffer("shift_scale", torch.ones(()))

    def observe(self, batch: Batch) -> None:
        """Take new transitions into the normalizers' statistics."""
        for normalizer in (self.denoiser.observation_normalizer, self.baseline.normalizer):
            normalizer.update(batch.observation)
        measured = self.outcome.measured(batch)
        if measured is not None:
            self.denoiser.outcome_normalizer.update(measured)
        self.outcome.observe(batch)

    def action_gradient(self, observation: Tensor, action: Tensor) -> Tensor:
        """Return the learned gradient (N, A) of the expected target at actions (N, A), without a graph."""
        if self.config.amortization == "head":
            with torch.no_grad():
                sigma = torch.full_like(action[:, :1], self.config.sigma_min)
                return self.baseline.gradient_head(observation, action, sigma).mean(0)
        at_action = action.detach().requires_grad_(True)
        values = self.baseline(observation, at_action, torch.zeros_like(at_action[:, :1]))
        (slope,) = torch.autograd.grad(values.amin(0).sum(), at_action)
        return slope

    def denoise(self, batch: Batch, noised_action: Tensor, sigma: Tensor, surprise: Tensor) -> tuple[Tensor, Tensor]:
        """Return the two denoised actions (N, A): told the outcome, and not told.

        Args:
            batch: N transitions.
            noised_action: (N, A) copies of their actions with noise.
            sigma: (N, 1) standard deviation of that noise.
            surprise: (N,) target minus baseline, for the kinds of outcome that tell it.
        """
        if self.config.gradient == "plain":
            nothing = torch.zeros_like(sigma)
            untold = self.denoiser(noised_action, sigma, batch.observation, self.outcome(batch, surprise), nothing)
            return batch.action, untold
        return action_after_outcome(self.denoiser, noised_action, sigma, batch.observation, self.outcome(batch, surprise))

    def loss(
        self, batch: Batch, target: Tensor, direct: Tensor | None, generator: torch.Generator
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Return what to minimize, and scalars to log.

        Args:
            batch: N transitions.
            target: (N,) their targets, without a graph.
            direct: (N, A) derivative of the target in the action at a fixed outcome, or None.
            generator: source of the noise.
        """
        nothing = torch.zeros_like(batch.action[:, :1])
        clean = self.baseline(batch.observation, batch.action, nothing)
        loss = (clean - target).square().mean()
        metrics = {"baseline/td_error": loss.detach(), "baseline/value": clean.detach().mean()}
        part = slice(0, math.ceil(self.config.gradient_share * len(batch)))
        batch, target = batch.select(part), target[part]
        if direct is not None:
            direct = direct[part]
        noised_action, sigma = self.noise_actions(batch.action, generator)
        if self.config.gradient == "critic":
            values = self.baseline(batch.observation, noised_action, sigma)
            return loss + (values - target).square().mean(), metrics
        direction = 2.0 * torch.randint_like(batch.action, 2, generator=generator) - 1.0
        guess = self.baseline.guess(batch.observation, noised_action, sigma, direction)

        expected = guess.value.detach().mean(0)
        attached = noised_action.clone().requires_grad_(self.config.control_variate or direct is not None)
        told, untold = self.denoise(batch, attached, sigma, target - expected)
        denoising_loss = self.denoising_loss(told, untold, batch.action, sigma)
        feature_loss = self.outcome.loss(batch, target - expected)

        shift = (told - untold).detach() / sigma
        self.shift_scale.lerp_(shift.square().mean().sqrt(), _AVERAGING).clamp_(min=_SMALLEST_SHIFT)
        response = None
        explained = torch.zeros_like(guess.value)
        if self.config.control_variate:
            explained = (guess.response * shift).sum(-1) / self.shift_scale
            response = guess.response.detach().mean(0) / (self.shift_scale * sigma)
        gradient = controlled_action_gradient(
            target, expected, told, untold, sigma[:, 0], attached, response=response, direct=direct
        )
        value_loss = (guess.value + explained - target).square().mean()
        slope_loss = self._slope_loss(guess, gradient, direction, sigma)
        # Value and slope are two noisy readings of one function: each counts by its precision, the inverse of its mean square.
        moments = torch.stack([(guess.value.detach() - target).square().mean(), slope_loss.detach()])
        self.second_moments.lerp_(moments, _AVERAGING)
        precision_ratio = self.second_moments[0] / (self.second_moments[1] + 1e-12)
        loss = loss + value_loss + self.config.slope_weight * precision_ratio * slope_loss + denoising_loss
        if feature_loss is not None:
            loss = loss + feature_loss
        metrics |= {"denoiser/loss": denoising_loss.detach(), "gradient/precision_ratio": precision_ratio}
        metrics |= self._diagnose(batch.action, target - expected, told.detach(), untold.detach(), sigma)
        metrics |= _compare(guess, gradient, direction)
        return loss, metrics

    def _slope_loss(self, guess: Guess, gradient: Tensor, direction: Tensor, sigma: Tensor) -> Tensor:
        if self.config.amortization == "head":
            return ((guess.gradient - gradient) * sigma).square().mean()
        # Random signs v have E[v v^T] = 1, so E[(v . slope - v . gradient)^2] = |slope - gradient|^2.
        return ((guess.slope - (gradient * direction).sum(-1)) * sigma[:, 0]).square().mean()

    def denoising_loss(self, told: Tensor, untold: Tensor, action: Tensor, sigma: Tensor) -> Tensor:
        """Return the mean squared error of what :meth:`denoise` gave (N, A); the plain score has only one of them to learn."""
        loss = self.denoiser.loss(untold, action, sigma)
        return loss if self.config.gradient == "plain" else loss + self.denoiser.loss(told, action, sigma)

    def noise_actions(self, action: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Return noised copies (N, A) of actions, and the sigmas (N, 1) of their noise."""
        low, high = math.log(self.config.sigma_min), math.log(self.config.sigma_max)
        uniform = torch.rand(len(action), 1, generator=generator, device=action.device)
        sigma = torch.exp(low + (high - low) * uniform)
        noise = torch.randn(action.shape, generator=generator, device=action.device)
        return action + sigma * noise, sigma

    @staticmethod
    def _diagnose(action: Tensor, surprise: Tensor, told: Tensor, untold: Tensor, sigma: Tensor) -> dict[str, Tensor]:
        shift, error = (told - untold) / sigma, (action - untold) / sigma
        spread = shift.square().mean()
        return {
            # of the uncertainty about the action, the share that the outcome removes
            "denoiser/explained": spread / error.square().mean(),
            # the mean of the shift over outcomes has to be zero (tower property); in units of its own size
            "denoiser/tower_error": shift.mean(0).norm() / (spread * shift.shape[1]).sqrt(),
            "gradient/variance_plain": (surprise[:, None] * error).square().sum(-1).mean(),
            "gradient/variance_told": (surprise[:, None] * shift).square().sum(-1).mean(),
        }


@torch.no_grad()
def _compare(guess: Guess, gradient: Tensor, direction: Tensor) -> dict[str, Tensor]:
    """Agreement of one-sample estimates with the slope that is learned, along random directions."""
    slope, estimate = guess.slope.mean(0), (gradient * direction).sum(-1)
    return {
        # far below 1 even for a perfect slope, as single estimates are noisy
        "gradient/cosine": torch.nn.functional.cosine_similarity(slope, estimate, dim=0),
        # 1 for a slope that is as steep as the estimates say
        "gradient/steepness": (slope * estimate).mean() / (slope.square().mean() + 1e-12),
    }
