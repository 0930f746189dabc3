"""What the offline benchmark runs: data sets (task and kind), algorithms, seeds, and how they are evaluated."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dpg_robot.config import config_to_dict, setting
from dpg_robot.learning.learner import LearnerConfig
from dpg_robot.learning.offline import BehaviourConfig
from dpg_robot.learning.trainer import TrainerConfig
from sim.benchmarks.filters import select_by_attributes
from sim.benchmarks.offline_peers import PeerName
from sim.dataset_kinds import Behaviour


@dataclass(frozen=True)
class OurOfflineConfig:
    """Settings of one variant of ours."""

    learner: LearnerConfig = setting(
        lambda: LearnerConfig(n_steps=1), "the learner; sizes, batch and discount also go to the peers"
    )
    behaviour: BehaviourConfig = setting(BehaviourConfig, "how the policy is held to the data")


@dataclass(frozen=True)
class OfflinePeerConfig:
    """An algorithm of d3rlpy, with the settings of its own reproductions of the papers."""

    algorithm: PeerName = setting("TD3PlusBC", "the class: TD3PlusBC or IQL")
    hidden_sizes: tuple[int, ...] = setting((256, 256), "sizes of the hidden layers of all networks")
    discount: float = setting(0.99, "discount per control step")
    batch_size: int = setting(256, "transitions per update")


@dataclass(frozen=True)
class SourceConfig:
    """The training run that medium data come from."""

    seed: int = setting(0, "seed of the run and of the data sets")
    num_envs: int = setting(16, "environments")
    learner: LearnerConfig = setting(LearnerConfig, "the learner")
    trainer: TrainerConfig = setting(
        lambda: TrainerConfig(updates=6_000, evaluate_every=1_000), "the run; short, to end half-way"
    )


@dataclass(frozen=True)
class OfflineProtocol:
    """Settings of the offline benchmark."""

    tasks: dict[str, int] = setting(
        lambda: {"cartpole-swingup": 2, "cheetah-run": 4, "walker-walk": 2}, "tasks, each with its control steps per decision"
    )
    kinds: tuple[Behaviour, ...] = setting(("random", "medium", "medium-replay"), "kinds of data sets")
    transitions: int = setting(100_000, "transitions in a data set; medium-replay takes fewer where the run has fewer")
    source: SourceConfig = setting(SourceConfig, "the run that medium and medium-replay come from")
    ours: dict[str, OurOfflineConfig] = setting(lambda: {"dpg": OurOfflineConfig()}, "variants of ours, by name")
    peers: dict[str, OfflinePeerConfig] = setting(
        lambda: {"td3+bc": OfflinePeerConfig("TD3PlusBC"), "iql": OfflinePeerConfig("IQL")}, "peers, by name"
    )
    seeds: tuple[int, ...] = setting((0, 1, 2), "seeds of the algorithms; the data are the same")
    updates: int = setting(20_000, "gradient updates")
    evaluate_every: int = setting(5_000, "updates between evaluations", unit="updates")
    evaluation_episodes: int = setting(10, "episodes per evaluation")
    evaluation_seed: int = setting(1_000_003, "seed of the evaluation's episodes, which are the same for all")

    def __post_init__(self) -> None:
        for name in ("transitions", "updates", "evaluate_every", "evaluation_episodes"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be 1 or more, got {getattr(self, name)}")
        if self.updates % self.evaluate_every:
            raise ValueError(f"updates must be a multiple of evaluate_every, got {self.updates} and {self.evaluate_every}")
        if both := set(self.ours) & set(self.peers):
            raise ValueError(f"names of algorithms must be distinct; twice: {', '.join(sorted(both))}")
        if not (self.tasks and self.kinds and self.seeds and (self.ours or self.peers)):
            raise ValueError("need at least one task, kind of data set, seed and algorithm")


@dataclass(frozen=True)
class OfflineRun:
    """One training run on a data set."""

    task: str
    action_repeat: int
    kind: Behaviour
    algorithm: str
    settings: OurOfflineConfig | OfflinePeerConfig
    seed: int
    updates: int
    evaluate_every: int
    evaluation_episodes: int
    evaluation_seed: int
    transitions: int
    source: SourceConfig

    @property
    def place(self) -> Path:
        """Where the result lies in the folder of all results."""
        return Path(self.task) / self.kind / self.algorithm / f"{self.seed}.json"

    @property
    def title(self) -> str:
        """Data set, algorithm and seed as text."""
        return f"{self.task} {self.kind} {self.algorithm} seed {self.seed}"

    def specification(self) -> dict[str, Any]:
        """Return all settings as plain values: what a stored result must agree with."""
        return config_to_dict(self)


def plan_runs(protocol: OfflineProtocol) -> list[OfflineRun]:
    """Return all runs of a protocol."""
    algorithms: dict[str, OurOfflineConfig | OfflinePeerConfig] = {**protocol.ours, **protocol.peers}
    return [
        OfflineRun(
            task=task,
            action_repeat=action_repeat,
            kind=kind,
            algorithm=name,
            settings=settings,
            seed=seed,
            updates=protocol.updates,
            evaluate_every=protocol.evaluate_every,
            evaluation_episodes=protocol.evaluation_episodes,
            evaluation_seed=protocol.evaluation_seed,
            transitions=protocol.transitions,
            source=protocol.source,
        )
        for seed, (task, action_repeat), kind, (name, settings) in itertools.product(
            protocol.seeds, protocol.tasks.items(), protocol.kinds, algorithms.items()
        )
    ]


def select_runs(protocol: OfflineProtocol, filters: Sequence[str]) -> list[OfflineRun]:
    """Return the runs that the filters leave.

    Args:
        protocol: what there is.
        filters: items such as ``task=cheetah-run,walker-walk``; keys are task, kind, algorithm and seed.

    Raises:
        ConfigError: not of this form.
        UnknownNameError: a key or a name that there is not.
    """
    runs = plan_runs(protocol)
    keys = ("task", "kind", "algorithm", "seed")
    known = {key: list(dict.fromkeys(str(getattr(run, key)) for run in runs)) for key in keys}
    return select_by_attributes(runs, filters, known)
