"""Judging a learner and its policy by transitions of robots that it has not learned from."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from dpg_robot.learning.learner import Learner
from dpg_robot.learning.policy import Policy
from dpg_robot.learning.replay import Batch

_RESAMPLES = 1_000


@dataclass(frozen=True)
class Judgement:
    """How well a learner explains transitions that it has not learned from.

    Attributes:
        denoising_error: root mean square error of the denoised actions, told the outcome, at a middle sigma.
        denoising_error_without_outcome: the same, not told the outcome.
        td_error: root mean square of target minus baseline, in units of return per reward step.
        transitions: number of transitions judged.
    """

    denoising_error: float
    denoising_error_without_outcome: float
    td_error: float
    transitions: int

    def to_dict(self) -> dict[str, Any]:
        """Return the figures as plain numbers."""
        return asdict(self)


@dataclass(frozen=True)
class PolicyComparison:
    """A candidate policy beside the current one, at states that robots were in.

    Attributes:
        action_distance: root mean square difference of their mean actions, as a share of half the range.
        jitter: root mean square change of the candidate's action from one control step to the next, likewise.
        current_jitter: the same of the current policy.
        advantage: how much better the baseline values the candidate's actions than the current policy's, mean over the states,
            in units of return per reward step. By the performance difference lemma the first-order gain in return of each step.
        advantage_interval: its 95 % interval, by resampling whole episodes and members of the baseline.
        episodes: number of episodes that the states are from.
    """

    action_distance: float
    jitter: float
    current_jitter: float
    advantage: float
    advantage_interval: tuple[float, float]
    episodes: int

    def to_dict(self) -> dict[str, Any]:
        """Return the figures as plain numbers."""
        return asdict(self)


@torch.no_grad()
def judge(learner: Learner, held_out: Batch, *, repeats: int = 16, seed: int = 0) -> Judgement:
    """Measure denoising and TD error on held-out transitions.

    The noise is the same for every learner that is judged with the same seed.

    Args:
        learner: the networks to judge.
        held_out: N transitions.
        repeats: draws of noise for each transition.
        seed: seed of the noise.
    """
    generator = torch.Generator(learner.device).manual_seed(seed)
    sigma_value = (learner.config.sigma_min * learner.config.sigma_max) ** 0.5
    sigma = torch.full((len(held_out), 1), sigma_value, device=learner.device)
    value = learner.baseline(held_out.observation, held_out.action, torch.zeros_like(sigma)).mean(0)
    sums = torch.zeros(3, dtype=torch.float64)
    for _ in range(repeats):
        noise = torch.randn(held_out.action.shape, generator=generator, device=learner.device)
        noised_action = held_out.action + sigma_value * noise
        target = learner.target(held_out, generator)
        told, untold = learner.estimator.denoise(held_out, noised_action, sigma, target - value)
        errors = [(told - held_out.action), (untold - held_out.action), (target - value) / learner.config.reward_scale]
        sums += torch.stack([error.square().mean().double().cpu() for error in errors])
    denoising, denoising_without_outcome, td = (sums / repeats).sqrt().tolist()
    return Judgement(denoising, denoising_without_outcome, td, len(held_out))


@torch.no_grad()
def compare_policies(
    learner: Learner, current: Policy, held_out: Batch, episode: NDArray[np.int64], seed: int = 0
) -> PolicyComparison:
    """Compare the learner's policy with the current one.

    Args:
        learner: its baseline values the actions.
        current: policy that robots run now.
        held_out: N transitions of robots.
        episode: (N,) number of the episode of each.
        seed: seed of the resampling.
    """
    before, after = (learner.measurable(each) for each in (held_out.observation, held_out.next_observation))
    candidate_action, current_action = learner.policy.mean_action(before), current.mean_action(before)
    zero = torch.zeros_like(candidate_action[:, :1])
    values = [learner.baseline(held_out.observation, action, zero) for action in (candidate_action, current_action)]
    advantage = ((values[0] - values[1]) / learner.config.reward_scale).double().cpu().numpy()
    episodes, index = np.unique(episode, return_inverse=True)
    sums = np.stack([np.bincount(index, row, len(episodes)) for row in advantage])
    lengths = np.bincount(index, minlength=len(episodes))
    random = np.random.default_rng(seed)
    drawn = random.integers(len(episodes), size=(_RESAMPLES, len(episodes)))
    member = random.integers(len(advantage), size=_RESAMPLES)
    means = sums[member[:, None], drawn].sum(1) / lengths[drawn].sum(1)
    low, high = np.quantile(means, [0.025, 0.975])
    return PolicyComparison(
        action_distance=_root_mean_square(candidate_action - current_action),
        jitter=_root_mean_square(learner.policy.mean_action(after) - candidate_action),
        current_jitter=_root_mean_square(current.mean_action(after) - current_action),
        advantage=float(advantage.mean()),
        advantage_interval=(float(low), float(high)),
        episodes=len(episodes),
    )


def _root_mean_square(values: torch.Tensor) -> float:
    return float(values.square().mean().sqrt())
