"""What the learning benchmark runs: cells (task and disturbance), algorithms, seeds, and how they are evaluated."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from dpg_robot.config import config_to_dict, setting
from dpg_robot.errors import unknown_name
from dpg_robot.learning.learner import LearnerConfig
from sim.benchmarks.filters import parse_filters
from sim.disturbance import DISTURBANCE_PRESETS, Disturbance
from sim.presets import resolve_preset
from sim.randomization import Randomization
from sim.tasks import TASKS


@dataclass(frozen=True)
class MotionConfig:
    """Motion without rewards, from which the denoiser is learned before the run; it does not count as frames."""

    transitions: int = setting(0, "transitions of uniformly random actions in the same world; 0 for no pretraining")
    updates: int = setting(10_000, "updates of the denoiser, with step sizes that fall as in the run")

    def __post_init__(self) -> None:
        for name, least in (("transitions", 0), ("updates", 1)):
            if getattr(self, name) < least:
                raise ValueError(f"{name} must be {least} or more, got {getattr(self, name)}")


@dataclass(frozen=True)
class OurConfig:
    """Settings of one variant of our learner and of its training loop."""

    num_envs: int = setting(1, "environments that collect")
    updates_per_decision: float = setting(1.0, "gradient updates for each decision after the warm-up")
    warmup_decisions: int = setting(
        1_000, "decisions with uniformly random actions before the first update; they count as frames"
    )
    replay_capacity: int = setting(1_000_000, "transitions kept for replay")
    final_learning_rate_factor: float = setting(0.05, "factor on the step sizes at the last update, falling linearly from 1")
    motion: MotionConfig = setting(MotionConfig, "pretraining of the denoiser without rewards")
    learner: LearnerConfig = setting(LearnerConfig, "the learner")

    def __post_init__(self) -> None:
        for name in ("num_envs", "warmup_decisions", "replay_capacity"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be 1 or more, got {getattr(self, name)}")
        if not 0 < self.updates_per_decision <= 1_000:
            raise ValueError(f"updates_per_decision must be positive and at most 1000, got {self.updates_per_decision}")
        if not 0 < self.final_learning_rate_factor <= 1:
            raise ValueError(f"final_learning_rate_factor must be in (0, 1], got {self.final_learning_rate_factor}")
        if self.motion.transitions and self.learner.gradient not in ("next_state", "plain"):
            raise ValueError(f"motion has no rewards, so learner.gradient must be next_state, got {self.learner.gradient}")


@dataclass(frozen=True)
class PeerConfig:
    """An algorithm of Stable-Baselines3 or sb3-contrib, with its library's own defaults and one environment."""

    algorithm: Literal["SAC", "TD3", "PPO", "TQC", "CrossQ"] = setting("SAC", "the class: SAC, TD3, PPO, TQC or CrossQ")
    action_noise: float = setting(
        0.0,
        "standard deviation of Gaussian noise added to collected actions; 0 is the libraries' default",
        unit="action (-1 to 1)",
    )

    def __post_init__(self) -> None:
        if not 0 <= self.action_noise <= 10:
            raise ValueError(f"action_noise must be from 0 to 10, got {self.action_noise}")
        if self.action_noise and self.algorithm == "PPO":
            raise ValueError("action_noise is for off-policy algorithms; PPO takes none")


@dataclass(frozen=True)
class Run:
    """One training run, with everything that its result depends on.

    Attributes:
        algorithm: name of the algorithm in the protocol.
        settings: its settings.
        disturbance: preset's name or YAML file.
        history: previous frames in each observation.
        frames: control steps of the task, all repeats and the warm-up included.
        randomization: dynamics of the environments, training and evaluation alike: a preset's name or the settings themselves.
    """

    task: str
    action_repeat: int
    disturbance: str
    history: int
    algorithm: str
    settings: OurConfig | PeerConfig
    seed: int
    frames: int
    evaluate_every: int
    evaluation_episodes: int
    evaluation_seed: int
    randomization: str | Randomization = "none"

    @property
    def decisions(self) -> int:
        """Actions that are chosen in all."""
        return self.frames // self.action_repeat

    @property
    def decisions_per_evaluation(self) -> int:
        """Actions between two evaluations."""
        return self.evaluate_every // self.action_repeat

    @property
    def place(self) -> Path:
        """Where the result lies in the folder of all results."""
        return Path(self.task) / disturbance_label(self.disturbance) / self.algorithm / f"{self.seed}.json"

    @property
    def title(self) -> str:
        """Cell, algorithm and seed as text."""
        return f"{self.task} {disturbance_label(self.disturbance)} {self.algorithm} seed {self.seed}"

    def specification(self) -> dict[str, Any]:
        """Return all settings as plain values, the disturbance's own included: what a stored result must agree with."""
        resolved = config_to_dict(resolve_preset("disturbance", self.disturbance, Disturbance, DISTURBANCE_PRESETS))
        side = "ours" if isinstance(self.settings, OurConfig) else "peer"
        return config_to_dict(self) | {"side": side, "disturbance_settings": resolved}


@dataclass(frozen=True)
class LearningProtocol:
    """Settings of the learning benchmark."""

    tasks: dict[str, int] = setting(
        lambda: {"cartpole-swingup": 4, "reacher-hard": 4, "cheetah-run": 4, "walker-walk": 2}, "tasks and their action repeats"
    )
    disturbances: dict[str, int] = setting(
        lambda: {"none": 0, "medium": 3, "hard": 5},
        "disturbances (preset or YAML file) and the previous frames that all sides see",
    )
    ours: dict[str, OurConfig] = setting(dict, "variants of our learner: name and settings (below)")
    peers: dict[str, PeerConfig] = setting(dict, "peers: name and settings (below)")
    seeds: tuple[int, ...] = setting((0, 1, 2), "seeds, the same for all algorithms")
    frames: int = setting(100_000, "control steps of the task in each run, action repeats and warm-up included")
    evaluate_every: int = setting(10_000, "frames between evaluations", unit="frames")
    evaluation_episodes: int = setting(10, "episodes of each evaluation, with the policy's mean or deterministic action")
    evaluation_seed: int = setting(
        1_000_003, "this plus the run's seed seeds the evaluation episodes, the same at every evaluation"
    )

    thresholds: dict[str, float] = setting(
        dict, "tasks and returns for which the report tells after how many frames they were reached"
    )

    def __post_init__(self) -> None:
        for task in [*self.tasks, *self.thresholds]:
            if task not in TASKS:
                raise unknown_name("task", task, TASKS)
        for name, least in (("evaluate_every", 1), ("evaluation_episodes", 1), ("evaluation_seed", 0)):
            if getattr(self, name) < least:
                raise ValueError(f"{name} must be {least} or more, got {getattr(self, name)}")
        if self.frames < 1 or self.frames % self.evaluate_every:
            raise ValueError(f"frames must be a multiple of evaluate_every={self.evaluate_every}, got {self.frames}")
        if len(set(self.seeds)) < len(self.seeds) or min(self.seeds, default=0) < 0:
            raise ValueError(f"seeds must be 0 or more, each once, got {list(self.seeds)}")
        both = sorted(self.ours.keys() & self.peers.keys())
        if both:
            raise ValueError(f"ours and peers must have different names, got {', '.join(both)} in both")
        for name in self.algorithms:
            if not name or not all(letter.isalnum() or letter in "_-+." for letter in name) or name.startswith("."):
                raise ValueError(f"algorithm {name!r}: a name must be of letters, digits, _, -, + and ., as it names a folder")
        self._check_disturbances()
        self._check_repeats()

    @property
    def algorithms(self) -> dict[str, OurConfig | PeerConfig]:
        """Settings of all algorithms by name, ours first."""
        return {**self.ours, **self.peers}

    @property
    def cells(self) -> list[tuple[str, str]]:
        """(task, label of the disturbance) of each cell."""
        return [(task, disturbance_label(disturbance)) for task in self.tasks for disturbance in self.disturbances]

    def _check_disturbances(self) -> None:
        labels = [disturbance_label(disturbance) for disturbance in self.disturbances]
        if len(set(labels)) < len(labels):
            raise ValueError(f"disturbances must have different names, as these name folders; got {', '.join(labels)}")
        for disturbance, history in self.disturbances.items():
            resolve_preset("disturbance", disturbance, Disturbance, DISTURBANCE_PRESETS)
            if history < 0:
                raise ValueError(f"history of disturbance {disturbance} must be 0 or more, got {history}")

    def _check_repeats(self) -> None:
        for task, repeat in self.tasks.items():
            if repeat < 1 or self.evaluate_every % repeat:
                raise ValueError(
                    f"evaluate_every={self.evaluate_every} must be a multiple of the action repeat of {task}, {repeat}"
                )
            for name, ours in self.ours.items():
                if self.evaluate_every // repeat % ours.num_envs:
                    raise ValueError(
                        f"evaluations of {task} come every {self.evaluate_every // repeat} decisions, which must be a multiple "
                        f"of num_envs of {name}, {ours.num_envs}"
                    )


def disturbance_label(disturbance: str) -> str:
    """Return a preset's name, or the name of a YAML file without folder and ending."""
    return disturbance if disturbance in DISTURBANCE_PRESETS else Path(disturbance).stem


def plan_runs(protocol: LearningProtocol) -> list[Run]:
    """Return all runs, seed by seed, so that a benchmark that is stopped early has all cells with fewer seeds."""
    order = itertools.product(protocol.seeds, protocol.tasks.items(), protocol.disturbances.items(), protocol.algorithms.items())
    return [
        Run(
            task=task,
            action_repeat=repeat,
            disturbance=disturbance,
            history=history,
            algorithm=algorithm,
            settings=settings,
            seed=seed,
            frames=protocol.frames,
            evaluate_every=protocol.evaluate_every,
            evaluation_episodes=protocol.evaluation_episodes,
            evaluation_seed=protocol.evaluation_seed,
        )
        for seed, (task, repeat), (disturbance, history), (algorithm, settings) in order
    ]


def restrict(protocol: LearningProtocol, filters: Sequence[str]) -> LearningProtocol:
    """Return the protocol with only what the filters name.

    Args:
        protocol: what to restrict.
        filters: items such as ``algorithm=dpg,sac``; keys are task, disturbance, algorithm and seed.

    Raises:
        ConfigError: not of this form, or nothing is left.
        UnknownNameError: something that the protocol does not have.
    """
    labels = {disturbance_label(disturbance): disturbance for disturbance in protocol.disturbances}
    known: dict[str, list[str]] = {
        "task": list(protocol.tasks),
        "disturbance": list(labels),
        "algorithm": list(protocol.algorithms),
        "seed": [str(seed) for seed in protocol.seeds],
    }
    wanted = parse_filters(filters, known)

    def kept(key: str, values: Mapping[str, Any]) -> dict[str, Any]:
        return {name: value for name, value in values.items() if name in wanted.get(key, known[key])}

    return dataclasses.replace(
        protocol,
        tasks=kept("task", protocol.tasks),
        disturbances={labels[label]: protocol.disturbances[labels[label]] for label in kept("disturbance", labels)},
        ours=kept("algorithm", protocol.ours),
        peers=kept("algorithm", protocol.peers),
        seeds=tuple(seed for seed in protocol.seeds if str(seed) in wanted.get("seed", known["seed"])),
    )
