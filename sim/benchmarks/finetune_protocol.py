"""What the fine-tuning benchmark runs: virtual robots whose dynamics are others than those of pretraining, variants, seeds."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from dpg_robot.config import config_to_dict, setting
from dpg_robot.host.gate import GateConfig
from dpg_robot.host.service import ServiceConfig
from dpg_robot.learning.learner import LearnerConfig
from dpg_robot.learning.trainer import TrainerConfig
from sim.benchmarks.filters import select_by_attributes
from sim.identification import IdentificationSettings
from sim.randomization import Randomization
from sim.robot_fitting import FittingConfig
from sim.tasks import make_task


def _learner(**changes: Any) -> LearnerConfig:
    return LearnerConfig(hidden_sizes=(128, 128), target_update=0.02, **changes)


@dataclass(frozen=True)
class PretrainingConfig:
    """How the policies that the robots begin with are trained."""

    num_envs: int = setting(64, "environments")
    seed: int = setting(0, "seed")
    randomization: str = setting("default", "randomized dynamics: a preset's name or a YAML file")
    trainer: TrainerConfig = setting(TrainerConfig, "the run")


@dataclass(frozen=True)
class FinetuneProtocol:
    """Settings of the fine-tuning benchmark."""

    task: str = setting("cartpole-swingup", "task")
    action_repeat: int = setting(2, "reward steps per control step")
    disturbance: str = setting("default", "noise and pushes in all simulations: a preset's name or a YAML file")
    variants: dict[str, LearnerConfig] = setting(
        lambda: {"denoised": _learner(), "critic": _learner(gradient="critic")}, "learners, by name"
    )
    pretraining: PretrainingConfig = setting(PretrainingConfig, "pretraining, once for each learner")
    shifts: dict[str, Randomization] = setting(
        lambda: {
            "mass +50 %": Randomization(mass=(1.5, 1.5)),
            "gain -30 %": Randomization(actuator_gain=(0.7, 0.7)),
            "friction": Randomization(joint_friction=(0.05, 0.05)),
            "one more step of delay": Randomization(control_delay_s=(0.02, 0.02)),
        },
        "dynamics of the robots, by name",
    )
    seeds: tuple[int, ...] = setting((0, 1, 2), "seeds of robots and learning")
    minutes: int = setting(10, "time of each robot", unit="min")
    exploration: float = setting(0.2, "standard deviation of the noise on the robots' actions", unit="action (-1 to 1)")
    evaluation_episodes: int = setting(20, "episodes, on the robot and in the gate's simulation")
    gate_randomization: str = setting(
        "default", "randomized dynamics in the gate's simulation, before the robot was fitted: a preset's name or a YAML file"
    )
    fitting: FittingConfig = setting(
        lambda: FittingConfig(every=12_000, identification=IdentificationSettings(windows=32, particles=64)),
        "fitting the gate's simulation to the robot",
    )
    service: ServiceConfig = setting(lambda: ServiceConfig(updates_per_transition=0.5), "fine-tuning")
    gate: GateConfig = setting(GateConfig, "the gate")

    def __post_init__(self) -> None:
        for name in ("action_repeat", "minutes", "evaluation_episodes"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be 1 or more, got {getattr(self, name)}")
        if not 0 < self.exploration < float("inf"):
            raise ValueError(f"exploration must be positive, got {self.exploration}")
        if not (self.variants and self.shifts and self.seeds):
            raise ValueError("need at least one learner, one robot and one seed")


@dataclass(frozen=True)
class FinetuneRun:
    """Fine-tuning on one robot."""

    variant: str
    shift: str
    seed: int
    protocol: FinetuneProtocol = field(compare=False)

    @property
    def place(self) -> Path:
        """Where the result lies in the folder of all results."""
        return Path(self.shift.replace(" ", "_").replace("%", "percent")) / self.variant / f"{self.seed}.json"

    @property
    def title(self) -> str:
        """Learner, robot and seed as text."""
        return f"{self.variant}, {self.shift}, seed {self.seed}"

    @property
    def learner(self) -> LearnerConfig:
        """Settings of the learner."""
        return self.protocol.variants[self.variant]

    @property
    def steps(self) -> int:
        """Control steps of the robot."""
        period_s = make_task(self.protocol.task).control_timestep_s * self.protocol.action_repeat
        return round(60 * self.protocol.minutes / period_s)

    @property
    def dynamics(self) -> Randomization:
        """Dynamics of the robot."""
        return self.protocol.shifts[self.shift]

    def specification(self) -> dict[str, Any]:
        """Return all settings as plain values: what a stored result must agree with."""
        whole = config_to_dict(self.protocol)
        own = {"learner": whole.pop("variants")[self.variant], "dynamics": whole.pop("shifts")[self.shift], "seed": self.seed}
        return own | {name: value for name, value in whole.items() if name != "seeds"}


def select_runs(protocol: FinetuneProtocol, filters: Sequence[str]) -> list[FinetuneRun]:
    """Return the runs that the filters leave.

    Args:
        protocol: what there is.
        filters: items such as ``variant=critic``; keys are variant, shift and seed.

    Raises:
        ConfigError: not of this form.
        UnknownNameError: a key or a name that there is not.
    """
    known = {"variant": list(protocol.variants), "shift": list(protocol.shifts), "seed": [str(seed) for seed in protocol.seeds]}
    runs = [
        FinetuneRun(variant, shift, seed, protocol)
        for seed, shift, variant in itertools.product(protocol.seeds, protocol.shifts, protocol.variants)
    ]
    return select_by_attributes(runs, filters, known)
