"""Linear-Gaussian worlds: the denoised action gradient with learned denoisers, beside its closed form.

Actions a ~ N(0, I); noised = a + sigma * noise; next state = gain a + world noise; target = direction . next state. With
``slope`` the derivative of the target in the action and ``uncertainty`` v = sigma^2 / (1 + sigma^2) the variance of the action
given its noised copy, the gradient of E[target | noised] is v / sigma^2 * slope everywhere.

Closed form of the variance. Given the noised action, a one-sample estimate is x c / sigma^2, where x is the scalar (target minus
baseline, and minus response . shift with a control variate) and c is the shift of the denoised action: jointly Gaussian of mean
zero, with Var x = V, Cov c = C and Cov(x, c) = r. So the estimate has mean r / sigma^2 and, by Isserlis' theorem, covariance
(V C + r r^T) / sigma^4. The best response, C^-1 r, makes x independent of the shift: r vanishes, V falls to V - r . C^-1 r, the
residual of the target that the shift does not explain linearly, and the constant C C^-1 r / sigma^2 is put back.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from dpg_robot.learning.denoiser import ActionDenoiser, action_after_outcome
from dpg_robot.learning.gradient import controlled_action_gradient
from sim.benchmarks.gradient_protocol import LinearRun
from sim.benchmarks.gradient_settings import LinearConfig

Outcome = Literal["next_state", "target", "action"]
_CHUNK = 20_000


@dataclass(frozen=True)
class LinearVariant:
    """One way to estimate.

    Attributes:
        outcome: what the denoiser is told; ``action`` is the plain score-function estimate.
        control_variate: whether the best linear response to the shift is taken out.
        clean_baseline: whether the baseline wrongly sees the clean action, which biases the estimate.
    """

    outcome: Outcome
    control_variate: bool = False
    clean_baseline: bool = False

    @property
    def name(self) -> str:
        """The variant as text."""
        outcome = "plain" if self.outcome == "action" else self.outcome
        return outcome + "+control_variate" * self.control_variate + ", baseline of the clean action" * self.clean_baseline


VARIANTS = (
    LinearVariant("next_state"),
    LinearVariant("next_state", control_variate=True),
    LinearVariant("target"),
    LinearVariant("action"),
    LinearVariant("action", control_variate=True),
    LinearVariant("next_state", clean_baseline=True),
    LinearVariant("target", clean_baseline=True),
)


@dataclass(frozen=True)
class Samples:
    """N samples of a linear world: (N, A) actions and noised actions, (N, S) next states, (N,) targets.

    Attributes:
        expected: (N,) mean of the target given the noised action.
        expected_of_clean: (N,) mean of the target given the clean action.
    """

    action: Tensor
    noised_action: Tensor
    next_state: Tensor
    target: Tensor
    expected: Tensor
    expected_of_clean: Tensor

    def outcome(self, kind: Outcome) -> Tensor:
        """Return what a denoiser is told (N, .)."""
        return self.next_state if kind == "next_state" else (self.target - self.expected)[:, None]


@dataclass(frozen=True)
class LinearWorld:
    """A linear-Gaussian world; see the module.

    Attributes:
        gain: (S, A).
        direction: (S,).
        noise: standard deviation of the world's noise.
        sigma: standard deviation of the noise on actions.
    """

    gain: Tensor
    direction: Tensor
    noise: float
    sigma: float

    @property
    def slope(self) -> Tensor:
        """(A,) derivative of the target in the action."""
        return self.direction @ self.gain

    @property
    def uncertainty(self) -> float:
        """Variance of each action given its noised copy."""
        return self.sigma**2 / (1 + self.sigma**2)

    @property
    def gradient(self) -> Tensor:
        """(A,) gradient of E[target | noised action], the same at all noised actions."""
        return self.uncertainty / self.sigma**2 * self.slope

    def sample(self, count: int, generator: torch.Generator) -> Samples:
        """Draw ``count`` samples."""
        states, actions = self.gain.shape
        action = torch.randn(count, actions, generator=generator)
        noised_action = action + self.sigma * torch.randn(count, actions, generator=generator)
        next_state = action @ self.gain.T + self.noise * torch.randn(count, states, generator=generator)
        expected = noised_action @ self.slope / (1 + self.sigma**2)
        return Samples(action, noised_action, next_state, next_state @ self.direction, expected, action @ self.slope)


@dataclass(frozen=True)
class ClosedForm:
    """What a variant gives with exact denoisers.

    Attributes:
        mean: (A,) mean of its estimates.
        relative_variance: trace of their covariance, over the squared norm of the exact gradient.
        response: (A,) best linear response of the target to the shift.
    """

    mean: Tensor
    relative_variance: float
    response: Tensor


def make_world(actions: int, noise: float, config: LinearConfig) -> LinearWorld:
    """Draw a world whose next states have variance 1 from the actions."""
    generator = torch.Generator().manual_seed(config.seed)
    states = config.states_per_action * actions
    gain = torch.randn(states, actions, generator=generator) / math.sqrt(actions)
    return LinearWorld(gain, torch.randn(states, generator=generator) / math.sqrt(states), noise, config.sigma)


def closed_form(world: LinearWorld, variant: LinearVariant) -> ClosedForm:
    """Return mean and variance of a variant with exact denoisers."""
    gain, direction, v = world.gain.double(), world.direction.double(), world.uncertainty
    slope, own_noise = direction @ gain, world.noise**2 * direction
    # of the next state given the noised action
    spread = v * gain @ gain.T + world.noise**2 * torch.eye(len(gain), dtype=torch.float64)
    target_variance = direction @ spread @ direction
    if variant.outcome == "action":
        shift_covariance, with_target, with_noise = v * torch.eye(len(slope)).double(), v * slope, torch.zeros_like(slope)
    else:
        if variant.outcome == "next_state":
            shift_of_state = v * torch.linalg.solve(spread, gain).T  # shift = shift_of_state (next state - its mean)
        else:
            shift_of_state = v * torch.outer(slope, direction) / target_variance
        shift_covariance = shift_of_state @ spread @ shift_of_state.T
        with_target, with_noise = shift_of_state @ spread @ direction, shift_of_state @ own_noise
    response = torch.linalg.pinv(shift_covariance, hermitian=True) @ with_target
    variance, together, put_back = target_variance, with_target, torch.zeros_like(slope)
    if variant.clean_baseline:
        variance, together = own_noise @ direction, with_noise
    elif variant.control_variate:
        variance, together = target_variance - with_target @ response, torch.zeros_like(slope)
        put_back = shift_covariance @ response
    trace = variance * shift_covariance.trace() + together @ together
    squared_norm = (v * slope).square().sum()
    return ClosedForm((together + put_back) / world.sigma**2, float(trace.clamp(min=0) / squared_norm), response)


def train_denoiser(world: LinearWorld, outcome: Outcome, config: LinearConfig) -> ActionDenoiser:
    """Train a denoiser on fresh samples of a world, with and without the outcome.

    The relative precision of a small shift in a noisy world is that of many samples: batches grow and steps fall towards the end.
    """
    generator = torch.Generator().manual_seed(config.seed + 1)
    size = len(world.gain) if outcome == "next_state" else 1
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        denoiser = ActionDenoiser(0, world.gain.shape[1], size, config.hidden_sizes, action_std=1.0)
    denoiser.outcome_normalizer.update(world.sample(_CHUNK, generator).outcome(outcome))
    optimizer = torch.optim.Adam(denoiser.parameters(), config.learning_rate, betas=(0.9, 0.99), fused=True)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, config.updates)
    for update in range(config.updates):
        factor = config.final_batch_factor if 3 * update >= 2 * config.updates else 1
        samples = world.sample(factor * config.batch_size, generator)
        told, untold = _denoise(denoiser, world, samples, outcome, samples.noised_action)
        sigma = torch.full_like(told[:, :1], world.sigma)
        loss = denoiser.loss(told, samples.action, sigma) + denoiser.loss(untold, samples.action, sigma)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        schedule.step()
    return denoiser.requires_grad_(False)


def measure(world: LinearWorld, variant: LinearVariant, denoiser: ActionDenoiser, count: int, seed: int) -> tuple[Tensor, float]:
    """Return mean (A,) and relative variance of a variant's estimates with a learned denoiser, over fresh samples."""
    generator = torch.Generator().manual_seed(seed)
    exact = closed_form(world, variant)
    total, squares, drawn = torch.zeros_like(exact.mean), 0.0, 0
    while drawn < count:
        estimates = _estimate(world, variant, denoiser, world.sample(min(_CHUNK, count - drawn), generator), exact.response)
        total += estimates.sum(0)
        squares += float(estimates.square().sum())
        drawn += len(estimates)
    mean = total / count
    return mean, (squares / count - float(mean.square().sum())) / float(world.gradient.double().square().sum())


def _estimate(world: LinearWorld, variant: LinearVariant, denoiser: ActionDenoiser, samples: Samples, response: Tensor) -> Tensor:
    """Return one-sample estimates (N, A), float64."""
    noised_action = samples.noised_action.clone().requires_grad_(variant.control_variate)
    if variant.outcome == "action":
        told, (_, untold) = samples.action, _denoise(denoiser, world, samples, "next_state", noised_action)
    else:
        told, untold = _denoise(denoiser, world, samples, variant.outcome, noised_action)
    baseline = samples.expected_of_clean if variant.clean_baseline else samples.expected
    responses = response.float().expand_as(told) if variant.control_variate else None
    return controlled_action_gradient(
        samples.target, baseline, told, untold, world.sigma, noised_action, response=responses
    ).double()


def _denoise(
    denoiser: ActionDenoiser, world: LinearWorld, samples: Samples, outcome: Outcome, noised_action: Tensor
) -> tuple[Tensor, Tensor]:
    sigma = torch.full_like(noised_action[:, :1], world.sigma).detach()
    nothing = noised_action.new_zeros(len(noised_action), 0)
    return action_after_outcome(denoiser, noised_action, sigma, nothing, samples.outcome(outcome))


def run_linear(run: LinearRun) -> list[dict[str, Any]]:
    """Train the denoisers of one world and return a row of plain values for each variant.

    ``relative_bias`` is the distance of the mean from the exact gradient over its norm; names with ``exact_`` hold what exact
    denoisers give; ``standard_error`` is that of ``relative_bias``.
    """
    world = make_world(run.actions, run.noise, run.config)
    denoisers: dict[Outcome, ActionDenoiser] = {}
    for outcome in ("next_state", "target"):
        denoisers[outcome] = train_denoiser(world, outcome, run.config)
    denoisers["action"] = denoisers["next_state"]  # only its guess without the outcome is used
    rows = []
    for variant in VARIANTS:
        mean, variance = measure(world, variant, denoisers[variant.outcome], run.config.samples, run.config.seed + 2)
        exact = closed_form(world, variant)
        rows.append(
            {"variant": variant.name, "biased": variant.clean_baseline}
            | compare(mean, world.gradient.double())
            | {
                "standard_error": math.sqrt(variance / run.config.samples),
                "relative_variance": variance,
                "exact_relative_variance": exact.relative_variance,
                "exact_relative_bias": compare(exact.mean, world.gradient.double())["relative_bias"],
            }
        )
    return rows


def compare(mean: Tensor, gradient: Tensor) -> dict[str, float]:
    """Return cosine, ratio of norms and relative distance of a mean (A,) to the gradient (A,)."""
    norm, exact_norm = float(mean.norm()), float(gradient.norm())
    return {
        "cosine": float(mean @ gradient) / max(norm * exact_norm, 1e-300),
        "norm_ratio": norm / exact_norm,
        "relative_bias": float((mean - gradient).norm()) / exact_norm,
    }
