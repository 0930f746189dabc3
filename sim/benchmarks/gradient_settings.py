"""Settings of the gradient benchmark: linear worlds with a closed form, simulated worlds, and walks along gradients there."""

from __future__ import annotations

from dataclasses import dataclass

from dpg_robot.config import setting
from dpg_robot.errors import unknown_name
from dpg_robot.learning.settings import Amortization, GradientKind, LearnerConfig
from sim.tasks import TASKS


@dataclass(frozen=True)
class LinearConfig:
    """Settings of the linear-Gaussian worlds and of the denoisers that are trained there."""

    actions: tuple[int, ...] = setting((1, 8, 32), "numbers of actions")
    noises: tuple[float, ...] = setting((0.1, 1.0, 3.0), "standard deviations of the noise of the world")
    states_per_action: int = setting(2, "numbers of the next state for each action")
    sigma: float = setting(0.5, "noise on actions, whose own standard deviation is 1")
    hidden_sizes: tuple[int, ...] = setting((128, 128), "sizes of the hidden layers of the denoisers")
    updates: int = setting(3_000, "updates of each denoiser, each on fresh samples")
    batch_size: int = setting(1_024, "samples per update")
    final_batch_factor: int = setting(8, "factor on the batch size in the last third of the updates")
    learning_rate: float = setting(3e-3, "step size of Adam at the start; it falls to zero along a cosine")
    samples: int = setting(2_000_000, "fresh samples over which the estimates are averaged")
    seed: int = setting(0, "seed of worlds, networks and samples")

    def __post_init__(self) -> None:
        _require_positive(
            self,
            *("actions", "noises", "states_per_action", "sigma", "hidden_sizes", "updates"),
            *("batch_size", "final_batch_factor", "learning_rate", "samples"),
        )


@dataclass(frozen=True)
class BehaviourConfig:
    """Settings of the learning run whose transitions all variants learn from."""

    num_envs: int = setting(16, "environments that collect")
    decisions: int = setting(40_000, "decisions of all environments together")
    warmup_decisions: int = setting(2_000, "decisions with uniformly random actions before the first update")
    updates_per_decision: float = setting(0.5, "gradient updates for each decision after the warm-up")
    transitions: int = setting(20_000, "last transitions, which the variants learn from")
    states: int = setting(400, "full states that are kept, spread over episodes of the last policy")
    seed: int = setting(0, "seed of everything random")

    def __post_init__(self) -> None:
        _require_positive(self, "num_envs", "decisions", "warmup_decisions", "updates_per_decision", "transitions", "states")
        if self.transitions > self.decisions:
            raise ValueError(f"transitions must be at most decisions={self.decisions}, got {self.transitions}")


@dataclass(frozen=True)
class TruthConfig:
    """Settings of the true gradient: central differences with common random numbers."""

    states: int = setting(128, "states at which the gradient is measured")
    noise_draws: int = setting(512, "draws of the world's noise for each difference")
    policy_draws: int = setting(8, "draws of the policy over which the value of a state is averaged")
    difference: float = setting(
        0.1,
        "how far an action is moved to each side, at most to 1; contacts need large differences or many draws",
        unit="action (-1 to 1)",
    )
    largest_action: float = setting(0.95, "actions are clamped to +- this before", unit="action (-1 to 1)")

    def __post_init__(self) -> None:
        _require_positive(self, "states", "noise_draws", "policy_draws", "difference", "largest_action")
        if self.largest_action > 1:
            raise ValueError(f"largest_action must be at most 1, got {self.largest_action}")


@dataclass(frozen=True)
class RobustnessConfig:
    """Settings of the walks along a learned gradient, and along the references beside it."""

    states: int = setting(200, "states from which gradients are followed; 0 leaves this out")
    step_size: float = setting(0.04, "root mean square change of the actions in one step", unit="action (-1 to 1)")
    steps: tuple[int, ...] = setting((1, 2, 5, 10, 20, 30, 50), "steps after which the gain is measured")
    sigmas: tuple[float, ...] = setting(
        (0.0, 0.2),
        "noise on the actions at which a learned gradient is taken, a walk for each; 0 is what drives the policy",
        unit="action (-1 to 1)",
    )
    gradient_draws: int = setting(16, "draws of that noise over which the gradient is averaged, the same for all")
    noise_draws: int = setting(32, "draws of the world's noise over which r + discount V(s') is measured")
    return_draws: int = setting(8, "draws of the world's noise over which the return is measured")
    return_steps: int = setting(20, "decisions of the return: the action, and then the behaviour's policy")
    true_gradient_draws: int = setting(4, "draws of the world's noise for each difference where the true gradient is followed")

    def __post_init__(self) -> None:
        positive = ("step_size", "steps", "gradient_draws", "noise_draws", "return_draws", "return_steps", "true_gradient_draws")
        _require_positive(self, *positive)
        if self.states < 0 or not self.sigmas or min(self.sigmas) < 0:
            raise ValueError(f"states and all sigmas must be 0 or more, got {self.states} and {list(self.sigmas)}")


@dataclass(frozen=True)
class VariantConfig:
    """What one variant changes in the learner's settings."""

    gradient: GradientKind = setting("reward_and_next_state", "see the learner's setting")
    amortization: Amortization = setting("slope", "see the learner's setting")
    control_variate: bool = setting(True, "see the learner's setting")


@dataclass(frozen=True)
class GradientProtocol:
    """Settings of the gradient benchmark."""

    linear: LinearConfig = setting(LinearConfig, "worlds with a closed form")
    tasks: dict[str, int] = setting(
        lambda: {"cartpole-swingup": 2, "cheetah-run": 2, "quadruped-walk": 2}, "simulated tasks and their action repeats"
    )
    noises: tuple[float, ...] = setting(
        (0.1, 0.3, 1.0, 3.0), "standard deviations of the actuators' noise", unit="action (-1 to 1)"
    )
    learner: LearnerConfig = setting(LearnerConfig, "the learner of the behaviour; all variants share the rest of it")
    behaviour: BehaviourConfig = setting(BehaviourConfig, "the run that collects")
    truth: TruthConfig = setting(TruthConfig, "the true gradient")
    variants: dict[str, VariantConfig] = setting(dict, "variants: name and settings (below)")
    updates: tuple[int, ...] = setting((1_000, 3_000, 10_000), "updates after which a variant's gradient is compared")
    seeds: tuple[int, ...] = setting((0, 1, 2), "seeds of the variants, the same for all")
    robustness: RobustnessConfig = setting(RobustnessConfig, "walks along the learned gradient")

    def __post_init__(self) -> None:
        for task, repeat in self.tasks.items():
            if task not in TASKS:
                raise unknown_name("task", task, TASKS)
            if repeat < 1:
                raise ValueError(f"action repeat of {task} must be 1 or more, got {repeat}")
        _require_positive(self, "noises", "updates")
        if len(set(self.seeds)) < len(self.seeds) or min(self.seeds, default=0) < 0:
            raise ValueError(f"seeds must be 0 or more, each once, got {list(self.seeds)}")
        for name in self.variants:
            if not name or not all(letter.isalnum() or letter in "_-+." for letter in name) or name.startswith("."):
                raise ValueError(f"variant {name!r}: a name must be of letters, digits, _, -, + and ., as it names a file")
        most = max(self.truth.states, self.robustness.states)
        if most > self.behaviour.states:
            raise ValueError(
                f"behaviour.states must be at least those of truth and robustness, {most}, got {self.behaviour.states}"
            )


def _require_positive(config: object, *names: str) -> None:
    for name in names:
        value = getattr(config, name)
        if not value or min(value if isinstance(value, tuple) else (value,)) <= 0:
            raise ValueError(f"{name} must be positive, got {list(value) if isinstance(value, tuple) else value}")
