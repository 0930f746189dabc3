"""The gate: a new policy reaches the robot only when it has earned it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from dpg_robot.config import setting
from dpg_robot.host.judgement import Judgement, PolicyComparison
from dpg_robot.learning.trainer import Evaluation


@dataclass(frozen=True)
class GateConfig:
    """What a candidate must show."""

    max_return_loss: float = setting(0.02, "share of the return in simulation that a candidate may lose, beyond noise")
    standard_errors: float = setting(2.0, "standard errors of the paired difference that count as noise")
    max_error_growth: float = setting(0.1, "share by which the denoising errors on held-out transitions may grow")
    max_td_error_growth: float = setting(0.5, "share by which the TD error there may grow; it moves with every policy")
    max_action_distance: float = setting(
        0.5, "largest root mean square change of the actions at states that robots were in", unit="share of half the range"
    )
    max_jitter_growth: float = setting(1.0, "share by which the change of the action from step to step may grow there")

    def __post_init__(self) -> None:
        for name in (
            "max_return_loss",
            "standard_errors",
            "max_error_growth",
            "max_td_error_growth",
            "max_action_distance",
            "max_jitter_growth",
        ):
            if not getattr(self, name) >= 0:
                raise ValueError(f"{name} must not be negative, got {getattr(self, name)}")


@dataclass(frozen=True)
class Verdict:
    """Whether a candidate may replace the current policy, and why.

    Attributes:
        passed: whether all conditions hold.
        reasons: one sentence for each condition, with the figures.
    """

    passed: bool
    reasons: tuple[str, ...]

    def to_dict(self) -> dict[str, Any]:
        """Return the verdict as plain values."""
        return {"passed": self.passed, "reasons": list(self.reasons)}


_ERRORS = {
    "denoising_error": "denoising error",
    "denoising_error_without_outcome": "denoising error without the outcome",
    "td_error": "TD error",
}
_Condition = tuple[bool, str]
_LEAST_GAIN = 1e-3  # share by which an error must fall to count as lower
_HARMLESS_JITTER = 0.05  # share of half the range: what any policy may do


def decide(
    current: Judgement,
    candidate: Judgement,
    current_return: Evaluation,
    candidate_return: Evaluation,
    config: GateConfig,
    policies: PolicyComparison | None = None,
) -> Verdict:
    """Compare a candidate with the current policy.

    No error on held-out robot episodes may have grown by more than the allowed share. The return in simulation, measured in the
    same episodes for both, must not be lower by more than the allowed share beyond the noise of the paired difference. Denoising
    or return must have become better. At states
    that robots were in the candidate's actions must be near the current ones, must not chatter more, and must not be worth less
    by the baseline beyond its interval. A figure that is not finite fails.

    Args:
        current: errors of the current networks on held-out robot episodes.
        candidate: errors of the candidate on the same episodes.
        current_return: returns of the current policy, episode by episode.
        candidate_return: returns of the candidate in the same environments.
        config: thresholds.
        policies: both policies at the states of the held-out episodes; None leaves these conditions out.
    """
    conditions = _error_conditions(current, candidate, config)
    conditions.append(_return_condition(current_return, candidate_return, config))
    denoising = ("denoising_error", "denoising_error_without_outcome")  # the TD error also moves with the lagging target
    lower = any(getattr(candidate, name) < (1 - _LEAST_GAIN) * getattr(current, name) for name in denoising)
    gained = lower or candidate_return.mean > current_return.mean
    conditions.append((gained, "denoising or return is better" if gained else "neither denoising nor return is better"))
    if policies is not None:
        conditions += _policy_conditions(policies, config)
    reasons = tuple(f"{'ok' if passed else 'FAILED'}: {sentence}" for passed, sentence in conditions)
    return Verdict(all(passed for passed, _ in conditions), reasons)


def _error_conditions(current: Judgement, candidate: Judgement, config: GateConfig) -> list[_Condition]:
    conditions = []
    for name, label in _ERRORS.items():
        growth = config.max_td_error_growth if name == "td_error" else config.max_error_growth
        before, after = getattr(current, name), getattr(candidate, name)
        allowed = (1 + growth) * before
        sentence = f"{label} on {current.transitions} held-out robot transitions: {before:.4g} before, {after:.4g} after"
        conditions.append((bool(after <= allowed), f"{sentence} (allowed {allowed:.4g})"))
    return conditions


def _return_condition(current: Evaluation, candidate: Evaluation, config: GateConfig) -> _Condition:
    # A paired comparison: both ran the same episodes, so the noise that counts is that of the differences.
    gain, error = candidate.paired_difference(current)
    allowed = config.max_return_loss * abs(current.mean)
    return (
        bool(gain >= -(allowed + config.standard_errors * error)),
        f"return in simulation over {len(current.returns)} episodes: {current.mean:.1f} before, {candidate.mean:.1f} after "
        f"(paired difference {gain:+.1f} +- {error:.1f}; allowed loss {allowed:.1f} beyond noise)",
    )


def _policy_conditions(policies: PolicyComparison, config: GateConfig) -> list[_Condition]:
    low, high = policies.advantage_interval
    most_jitter = max(_HARMLESS_JITTER, (1 + config.max_jitter_growth) * policies.current_jitter)
    return [
        (
            bool(policies.action_distance <= config.max_action_distance),
            f"actions at states of {policies.episodes} held-out robot episodes differ by {policies.action_distance:.3g} of half "
            f"the range (allowed {config.max_action_distance:.3g})",
        ),
        (
            bool(policies.jitter <= most_jitter),
            f"change of the action from step to step there: {policies.current_jitter:.3g} before, {policies.jitter:.3g} after "
            f"(allowed {most_jitter:.3g})",
        ),
        (
            bool(high >= 0),
            f"worth of the new actions over the current ones there, by the baseline: {policies.advantage:+.3g}, "
            f"95 % interval {low:+.3g} to {high:+.3g} (must not lie below 0)",
        ),
    ]
