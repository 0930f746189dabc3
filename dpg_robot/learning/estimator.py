"""The gradient estimator: denoiser and baseline, learned side by side from transitions and their targets.

The identity of :mod:`dpg_robot.learning.gradient` holds for any behaviour, so each transition gives a one-sample estimate of the
gradient at the action that was taken. They are amortized: the baseline learns the target as its value and the estimates as its
slope, each weighted by its measured precision, or as outputs of a head beside it. All variants go through the same code; with
``gradient=critic`` the baseline's slope is left to its values alone.
"""

from __future__ import annotations

import math
from functools import partial

import torch
from torch import Tensor, nn

from dpg_robot.learning.baseline import Baseline, Guess
from dpg_robot.learning.denoiser import ActionDenoiser, action_after_outcome
from dpg_robot.learning.distributed import ONE_PROCESS, Processes
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
        self.processes = ONE_PROCESS

    def share_updates(self, processes: Processes) -> None:
        """Take batches from now on as the share of one of several processes; raises ConfigError for unequal shares."""
        processes.require_equal_shares(self._part(self.config.batch_size), "the shares of batches that teach the gradient")
        self.processes = processes

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
        part = slice(0, self._part(len(batch) * self.processes.count) // self.processes.count)
        batch, target = batch.select(part), target[part]
        if direct is not None:
            direct = direct[part]
        noised_action, sigma = self.noise_actions(batch.action, generator)
        if self.config.gradient == "critic":
            values = self.baseline(batch.observation, noised_action, sigma)
            return loss + (values - target).square().mean(), metrics
        signs = self.processes.draw(partial(_zero_or_one, batch.action, generator), *batch.action.shape)
        direction = 2.0 * signs - 1.0
        guess = self.baseline.guess(batch.observation, noised_action, sigma, direction)

        expected = guess.value.detach().mean(0)
        attached = noised_action.clone().requires_grad_(self.config.control_variate or direct is not None)
        told, untold = self.denoise(batch, attached, sigma, target - expected)
        denoising_loss = self.denoising_loss(told, untold, batch.action, sigma)
        shift = (told - untold).detach() / sigma
        means = self.processes.means([shift.square().mean(), (target - expected).square().mean()])
        feature_loss = self._feature_loss(batch, target - expected, means[1])
        self.shift_scale.lerp_(means[0].sqrt(), _AVERAGING).clamp_(min=_SMALLEST_SHIFT)
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
        self.second_moments.lerp_(self.processes.mean(moments), _AVERAGING)
        precision_ratio = self.second_moments[0] / (self.second_moments[1] + 1e-12)
        loss = loss + value_loss + self.config.slope_weight * precision_ratio * slope_loss + denoising_loss
        if feature_loss is not None:
            loss = loss + feature_loss
        metrics |= {"denoiser/loss": denoising_loss.detach(), "gradient/precision_ratio": precision_ratio}
        slope, estimate = guess.slope.detach().mean(0), (gradient * direction).sum(-1)
        rows = self.processes.gather([batch.action, target - expected, told.detach(), untold.detach(), sigma, slope, estimate])
        metrics |= _diagnose(*rows[:5]) | _compare(*rows[5:])
        return loss, metrics

    def _part(self, count: int) -> int:
        """Return how many of the transitions of a whole batch teach denoiser and gradient."""
        return math.ceil(self.config.gradient_share * count)

    def _feature_loss(self, batch: Batch, surprise: Tensor, mean_square: Tensor) -> Tensor | None:
        """Return the outcome's loss, with its running variance that of all processes, of which ``mean_square`` is the newest."""
        if self.processes.count == 1:
            return self.outcome.loss(batch, surprise)
        variance = self.outcome.surprise_variance
        everywhere = variance.lerp(mean_square, _AVERAGING)
        # It will become (1 - share) * variance + share * ours, and has to become (1 - share) * variance + share * mean_square.
        variance.add_(_AVERAGING / (1 - _AVERAGING) * (mean_square - surprise.square().mean()))
        loss = self.outcome.loss(batch, surprise)
        variance.copy_(everywhere)  # the same in all processes, bit by bit
        return loss

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
        drawn = {"generator": generator, "device": action.device}
        uniform = self.processes.draw(partial(torch.rand, **drawn), len(action), 1)
        sigma = torch.exp(low + (high - low) * uniform)
        noise = self.processes.draw(partial(torch.randn, **drawn), *action.shape)
        return action + sigma * noise, sigma


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


def _compare(slope: Tensor, estimate: Tensor) -> dict[str, Tensor]:
    """Agreement of one-sample estimates (N,) with the slope (N,) that is learned, along random directions."""
    return {
        # far below 1 even for a perfect slope, as single estimates are noisy
        "gradient/cosine": torch.nn.functional.cosine_similarity(slope, estimate, dim=0),
        # 1 for a slope that is as steep as the estimates say
        "gradient/steepness": (slope * estimate).mean() / (slope.square().mean() + 1e-12),
    }


def _zero_or_one(like: Tensor, generator: torch.Generator, *shape: int) -> Tensor:
    return torch.randint_like(like.new_empty(shape), 2, generator=generator)
