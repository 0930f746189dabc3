"""Settings of the learner."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from dpg_robot.config import setting
from dpg_robot.learning.precision import Precision

GradientKind = Literal["reward_and_next_state", "next_state", "target", "features", "plain", "critic"]
Amortization = Literal["slope", "head"]


@dataclass(frozen=True)
class LearnerConfig:
    """Settings of the learner."""

    gradient: GradientKind = setting(
        "reward_and_next_state",
        "what drives the policy: the denoised gradient, told reward_and_next_state, next_state, target or learned features; "
        "the plain score-function estimate; or the critic's own derivative",
    )
    amortization: Amortization = setting(
        "slope", "where the gradient is learned: the slope of the baseline (beside its values), or a head of its own"
    )
    control_variate: bool = setting(False, "whether a learned linear response to the denoised shift lowers the variance")
    learned_features: int = setting(8, "features of the outcome that are learned with gradient=features")
    slope_weight: float = setting(1.0, "weight of the gradient estimates beside the values, over that of their precision")
    gradient_share: float = setting(0.5, "share of each batch that teaches denoiser and gradient; all of it teaches the values")
    sigma_min: float = setting(0.1, "smallest noise on actions", unit="action (-1 to 1)")
    sigma_max: float = setting(0.5, "largest noise on actions", unit="action (-1 to 1)")
    action_std: float = setting(0.5, "typical spread of actions, for the denoiser's preconditioning", unit="action (-1 to 1)")
    batch_size: int = setting(256, "transitions per update")
    hidden_sizes: tuple[int, ...] = setting((256, 256), "sizes of the hidden layers of all networks")
    baseline_members: int = setting(2, "members of the baseline ensemble")
    learning_rate: float = setting(1e-3, "step size of Adam for denoiser and baseline")
    policy_learning_rate: float = setting(1e-3, "step size of Adam for policy and temperature")
    discount: float = setting(0.99, "discount per control step")
    n_steps: int = setting(
        0,
        "control steps of rewards in a target before a value stands for the rest; 0 for 3 and one more for each frame "
        "of history, which tells how long effects are delayed",
    )
    reward_scale: float = setting(0.1, "factor on rewards before learning")
    target_update: float = setting(0.01, "share by which the target baseline follows the baseline at each update")
    policy_update_interval: int = setting(2, "updates of denoiser and baseline for each update of the policy", unit="updates")
    initial_temperature: float = setting(0.05, "weight of the policy's entropy at the start", unit="scaled return per nat")
    target_entropy_per_action: float = setting(-1.0, "entropy per action that the temperature steers to", unit="nat")
    max_gradient_norm: float = setting(10.0, "gradients of each network are clipped to this norm")
    precision: Precision = setting(
        "float32", "what updates compute in: float32, or bfloat16 for the wide products of the networks, for GPUs"
    )

    def __post_init__(self) -> None:
        if not 0 < self.sigma_min <= self.sigma_max:
            raise ValueError(f"need 0 < sigma_min <= sigma_max, got {self.sigma_min} and {self.sigma_max}")
        if not 0 <= self.discount < 1:
            raise ValueError(f"discount must be in [0, 1), got {self.discount}")
        for name in ("batch_size", "baseline_members", "policy_update_interval", "learned_features"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be 1 or more, got {getattr(self, name)}")
        if self.n_steps < 0:
            raise ValueError(f"n_steps must be 1 or more, or 0 for what suits the history, got {self.n_steps}")
        if any(size < 1 for size in self.hidden_sizes):
            raise ValueError(f"hidden_sizes must be 1 or more each, got {list(self.hidden_sizes)}")
        for name in ("learning_rate", "policy_learning_rate", "action_std", "initial_temperature", "max_gradient_norm"):
            if not 0 < getattr(self, name) < math.inf:
                raise ValueError(f"{name} must be positive, got {getattr(self, name)}")
        for name in ("target_update", "gradient_share"):
            if not 0 < getattr(self, name) <= 1:
                raise ValueError(f"{name} must be in (0, 1], got {getattr(self, name)}")
        if not 0 <= self.slope_weight < math.inf:
            raise ValueError(f"slope_weight must be 0 or more, got {self.slope_weight}")
        if not math.isfinite(self.reward_scale) or not math.isfinite(self.sigma_max):
            raise ValueError(f"reward_scale and sigma_max must be finite, got {self.reward_scale} and {self.sigma_max}")
        if self.gradient == "critic" and self.amortization == "head":
            raise ValueError("gradient=critic is the slope of the baseline, so amortization must be slope, got head")

    def steps_of_targets(self, history: int) -> int:
        """Return over how many control steps targets go, for observations with ``history`` frames."""
        return self.n_steps or 3 + history
