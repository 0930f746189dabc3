"""The gate: a new policy reaches the robot only when it has earned it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from dpg_robot.config import setting
from dpg_robot.host.finetune import Judgement
from dpg_robot.learning.trainer import Evaluation


@dataclass(frozen=True)
class GateConfig:
    """What a candidate must show."""

    max_return_loss: float = setting(0.02, "share of the return in simulation that a candidate may lose, beyond noise")
    standard_errors: float = setting(2.0, "standard errors of the paired difference that count as noise")

    def __post_init__(self) -> None:
        for name in ("max_return_loss", "standard_errors"):
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


def decide(
    current: Judgement, candidate: Judgement, current_return: Evaluation, candidate_return: Evaluation, config: GateConfig
) -> Verdict:
    """Compare a candidate with the current policy.

    Both errors on held-out robot episodes must have fallen. The return in simulation, measured in the same episodes for both,
    must not be lower by more than the allowed share beyond the noise of the paired difference.

    Args:
        current: errors of the current networks on held-out robot episodes.
        candidate: errors of the candidate on the same episodes.
        current_return: returns of the current policy, episode by episode.
        candidate_return: returns of the candidate in the same environments.
        config: thresholds.
    """
    conditions = [
        (
            bool(getattr(candidate, name) < getattr(current, name)),
            f"{label} on {current.transitions} held-out robot transitions: {getattr(current, name):.4g} before, "
            f"{getattr(candidate, name):.4g} after",
        )
        for name, label in (
            ("denoising_error", "denoising error"),
            ("denoising_error_without_outcome", "denoising error without the outcome"),
            ("td_error", "TD error"),
        )
    ]
    # A paired comparison: both ran the same episodes, so the noise that counts is that of the differences.
    gain, error = candidate_return.paired_difference(current_return)
    allowed = config.max_return_loss * abs(current_return.mean)
    not_worse = gain >= -(allowed + config.standard_errors * error)
    conditions.append(
        (
            not_worse,
            f"return in simulation over {len(current_return.returns)} episodes: {current_return.mean:.1f} before, "
            f"{candidate_return.mean:.1f} after "
            f"(paired difference {gain:+.1f} +- {error:.1f}; allowed loss {allowed:.1f} beyond noise)",
        )
    )
    reasons = tuple(f"{'ok' if passed else 'FAILED'}: {sentence}" for passed, sentence in conditions)
    return Verdict(all(passed for passed, _ in conditions), reasons)
