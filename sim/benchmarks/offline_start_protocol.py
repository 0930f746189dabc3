"""What the benchmark of offline starts runs: a robot's log without rewards, then learning with them, from there or scratch."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from dpg_robot.config import config_to_dict, setting
from dpg_robot.errors import unknown_name
from dpg_robot.learning.learner import LearnerConfig
from dpg_robot.learning.offline_trainer import OfflineTrainerConfig
from sim.benchmarks.filters import select_by_attributes
from sim.benchmarks.learning_protocol import OurConfig, Run
from sim.disturbance import DISTURBANCE_PRESETS, Disturbance
from sim.presets import resolve_preset
from sim.randomization import Randomization
from sim.tasks import TASKS, make_task


@dataclass(frozen=True)
class StartConfig:
    """What the robot did, and what was learned from its log, before there were rewards."""

    minutes: float = setting(10.0, "time that the robot moves at random and is logged; 0 for a start from scratch", unit="min")
    hold: tuple[int, int] = setting((1, 8), "a random action is held for between so many control steps", unit="steps")
    trainer: OfflineTrainerConfig = setting(
        lambda: OfflineTrainerConfig(updates=3_000, checkpoint_every=3_000), "pretraining from the log"
    )

    def __post_init__(self) -> None:
        if not 0 <= self.minutes < float("inf"):
            raise ValueError(f"minutes must be 0 or more, got {self.minutes}")
        if not 1 <= self.hold[0] <= self.hold[1]:
            raise ValueError(f"hold must be [low, high] with 1 <= low <= high, got {list(self.hold)}")


@dataclass(frozen=True)
class OfflineStartProtocol:
    """Settings of the benchmark of offline starts."""

    tasks: dict[str, int] = setting(lambda: {"cartpole-swingup": 4}, "tasks and their action repeats")
    thresholds: dict[str, tuple[float, ...]] = setting(
        lambda: {"cartpole-swingup": (100.0, 200.0, 300.0), "cheetah-run": (25.0, 50.0, 100.0)},
        "returns to reach, for each task",
    )
    robot: Randomization = setting(lambda: Randomization(mass=(1.5, 1.5)), "dynamics of the robot")
    disturbance: str = setting("default", "noise and pushes on the robot: a preset's name or a YAML file")
    history: int = setting(0, "previous frames in each observation")
    starts: dict[str, StartConfig] = setting(
        lambda: {"scratch": StartConfig(minutes=0.0), "offline": StartConfig()},
        "starts, by name; the others are compared with the first",
    )
    training: OurConfig = setting(
        lambda: OurConfig(learner=LearnerConfig(hidden_sizes=(128, 128), gradient="next_state")),
        "learning with rewards, the same after each start",
    )
    seeds: tuple[int, ...] = setting((0, 1, 2), "seeds of robots and learning, the same for all starts")
    frames: int = setting(24_000, "reward steps of each run, action repeats and warm-up included; the log does not count")
    evaluate_every: int = setting(2_000, "frames between evaluations", unit="frames")
    evaluation_episodes: int = setting(10, "episodes of each evaluation on the robot, without exploration")
    evaluation_seed: int = setting(1_000_003, "this plus the run's seed seeds the evaluation episodes, the same each time")

    def __post_init__(self) -> None:
        for task in [*self.tasks, *self.thresholds]:
            if task not in TASKS:
                raise unknown_name("task", task, TASKS)
        if not (self.tasks and self.starts and self.seeds):
            raise ValueError("need at least one task, one start and one seed")
        for name, least in (("evaluate_every", 1), ("evaluation_episodes", 1), ("evaluation_seed", 0), ("history", 0)):
            if getattr(self, name) < least:
                raise ValueError(f"{name} must be {least} or more, got {getattr(self, name)}")
        if self.frames < 1 or self.frames % self.evaluate_every:
            raise ValueError(f"frames must be a multiple of evaluate_every={self.evaluate_every}, got {self.frames}")
        for task, repeat in self.tasks.items():
            per_step = repeat * self.training.num_envs
            if repeat < 1 or self.evaluate_every % per_step:
                raise ValueError(
                    f"evaluate_every={self.evaluate_every} must be a multiple of {per_step}, the frames of a step of {task}"
                )
        if self.training.motion.transitions:
            raise ValueError("what is learned before the run is set with starts; leave training.motion out")
        if self.training.learner.gradient not in ("next_state", "plain"):
            raise ValueError(
                f"logs have no rewards, so training.learner.gradient must be next_state, got {self.training.learner.gradient}"
            )
        resolve_preset("disturbance", self.disturbance, Disturbance, DISTURBANCE_PRESETS)


@dataclass(frozen=True)
class OfflineStartRun:
    """Learning on one robot after one start."""

    task: str
    start: str
    seed: int
    protocol: OfflineStartProtocol = field(compare=False)

    @property
    def place(self) -> Path:
        """Where the result lies in the folder of all results."""
        return Path(self.task) / self.start.replace(" ", "_") / f"{self.seed}.json"

    @property
    def title(self) -> str:
        """Task, start and seed as text."""
        return f"{self.task}, {self.start}, seed {self.seed}"

    @property
    def before(self) -> StartConfig:
        """What comes before the rewards."""
        return self.protocol.starts[self.start]

    @property
    def log_steps(self) -> int:
        """Control steps of the robot's log."""
        period_s = make_task(self.task).control_timestep_s * self.protocol.tasks[self.task]
        return round(60 * self.before.minutes / period_s)

    @property
    def learning(self) -> Run:
        """The part of the run that has rewards, as the learning benchmark knows it."""
        protocol = self.protocol
        return Run(
            task=self.task,
            action_repeat=protocol.tasks[self.task],
            disturbance=protocol.disturbance,
            history=protocol.history,
            algorithm=self.start,
            settings=protocol.training,
            seed=self.seed,
            frames=protocol.frames,
            evaluate_every=protocol.evaluate_every,
            evaluation_episodes=protocol.evaluation_episodes,
            evaluation_seed=protocol.evaluation_seed,
            randomization=protocol.robot,
        )

    def specification(self) -> dict[str, Any]:
        """Return all settings as plain values: what a stored result must agree with."""
        before = config_to_dict(self.before) if self.before.minutes else None
        return self.learning.specification() | {"before": before}


def select_runs(protocol: OfflineStartProtocol, filters: Sequence[str]) -> list[OfflineStartRun]:
    """Return the runs that the filters leave, seed by seed.

    Args:
        protocol: what there is.
        filters: items such as ``start=scratch``; keys are task, start and seed.

    Raises:
        ConfigError: not of this form.
        UnknownNameError: a key or a name that there is not.
    """
    known = {"task": list(protocol.tasks), "start": list(protocol.starts), "seed": [str(seed) for seed in protocol.seeds]}
    runs = [
        OfflineStartRun(task, start, seed, protocol)
        for seed, task, start in itertools.product(protocol.seeds, protocol.tasks, protocol.starts)
    ]
    return select_by_attributes(runs, filters, known)
