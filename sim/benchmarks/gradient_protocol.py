"""What the gradient benchmark runs: linear worlds with a closed form, and simulated worlds with a measured gradient.

A run is named by all that its result depends on: its file carries a digest of its settings, so that results of other settings lie
beside it and a benchmark can be grown.
"""

from __future__ import annotations

import dataclasses
import hashlib
import itertools
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, TypeAlias, get_args

from dpg_robot.config import config_to_dict
from dpg_robot.learning.settings import LearnerConfig
from sim.benchmarks.filters import parse_filters
from sim.benchmarks.gradient_settings import BehaviourConfig, GradientProtocol, LinearConfig, RobustnessConfig, TruthConfig

Reference = Literal["true gradient", "random direction"]
REFERENCES: tuple[Reference, ...] = get_args(Reference)


@dataclass(frozen=True)
class LinearRun:
    """Denoisers in one linear world."""

    actions: int
    noise: float
    config: LinearConfig

    @property
    def place(self) -> Path:
        """Where the result lies in the folder of all results."""
        return Path("linear") / f"{self.actions}-actions-noise-{self.noise:g}-{digest(self)}.json"

    @property
    def labels(self) -> dict[str, str]:
        """What ``--only`` can choose by."""
        return {"part": "linear", "actions": str(self.actions), "noise": f"{self.noise:g}"}

    @property
    def title(self) -> str:
        """The run as text."""
        return f"linear world, {self.actions} actions, noise {self.noise:g}"


@dataclass(frozen=True)
class BehaviourRun:
    """A learner's run in one simulated world."""

    task: str
    action_repeat: int
    noise: float
    learner: LearnerConfig
    config: BehaviourConfig

    @property
    def place(self) -> Path:
        """Where the result lies in the folder of all results."""
        return Path(self.task) / f"noise-{self.noise:g}" / f"behaviour-{digest(self)}.safetensors"

    @property
    def title(self) -> str:
        """The run as text."""
        return f"{self.task}, noise {self.noise:g}, behaviour"


@dataclass(frozen=True)
class TruthRun:
    """The true gradient in one simulated world."""

    behaviour: BehaviourRun
    config: TruthConfig

    @property
    def place(self) -> Path:
        """Where the result lies in the folder of all results."""
        return self.behaviour.place.with_name(f"truth-{digest(self)}.safetensors")

    @property
    def title(self) -> str:
        """The run as text."""
        return f"{self.behaviour.task}, noise {self.behaviour.noise:g}, true gradient"


class _WorldRun:
    """What runs in one simulated world have in common."""

    truth: TruthRun
    seed: int

    @property
    def task(self) -> str:
        """The task of its world."""
        return self.truth.behaviour.task

    @property
    def noise(self) -> float:
        """The actuators' noise in its world."""
        return self.truth.behaviour.noise

    def _place(self, name: str) -> Path:
        return self.truth.place.with_name(f"{name}-seed-{self.seed}-{digest(self)}.json")

    def _labels(self, variant: str) -> dict[str, str]:
        own = {"part": "simulated", "task": self.task, "noise": f"{self.noise:g}"}
        return own | {"variant": variant, "seed": str(self.seed)}


@dataclass(frozen=True)
class VariantRun(_WorldRun):
    """One variant that learns the gradient in one simulated world.

    Attributes:
        learner: all settings of the learner, the variant's among them.
    """

    truth: TruthRun
    variant: str
    learner: LearnerConfig
    seed: int
    updates: tuple[int, ...]
    robustness: RobustnessConfig

    @property
    def place(self) -> Path:
        """Where the result lies in the folder of all results."""
        return self._place(self.variant)

    @property
    def labels(self) -> dict[str, str]:
        """What ``--only`` can choose by."""
        return self._labels(self.variant)

    @property
    def title(self) -> str:
        """The run as text."""
        return f"{self.task}, noise {self.noise:g}, {self.variant}, seed {self.seed}"


@dataclass(frozen=True)
class ReferenceRun(_WorldRun):
    """A walk in one simulated world along the true gradient, or in a random direction.

    Attributes:
        truth: gives the world, and how the true gradient is measured.
        reference: which of the two.
        seed: of the random directions, or of the world's noise with which the gradient is measured.
        robustness: settings of the walk.
    """

    truth: TruthRun
    reference: Reference
    seed: int
    robustness: RobustnessConfig

    @property
    def place(self) -> Path:
        """Where the result lies in the folder of all results."""
        return self._place(self.reference.replace(" ", "-"))

    @property
    def labels(self) -> dict[str, str]:
        """What ``--only`` can choose by."""
        return self._labels(self.reference)

    @property
    def title(self) -> str:
        """The run as text."""
        return f"{self.task}, noise {self.noise:g}, along {self.reference}, seed {self.seed}"


ReportedRun: TypeAlias = LinearRun | VariantRun | ReferenceRun
Run: TypeAlias = ReportedRun | BehaviourRun | TruthRun


def digest(run: Run | _WorldRun) -> str:
    """Return a short text that differs between runs of different settings."""
    text = json.dumps(config_to_dict(run), sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:10]


def plan_runs(protocol: GradientProtocol) -> list[ReportedRun]:
    """Return the runs that are reported, seed by seed, so that a benchmark that is stopped has all worlds with fewer seeds."""
    runs: list[ReportedRun] = [
        LinearRun(actions, noise, dataclasses.replace(protocol.linear, actions=(actions,), noises=(noise,)))
        for actions, noise in itertools.product(protocol.linear.actions, protocol.linear.noises)
    ]
    for seed, (task, repeat), noise in itertools.product(protocol.seeds, protocol.tasks.items(), protocol.noises):
        truth = TruthRun(BehaviourRun(task, repeat, noise, protocol.learner, protocol.behaviour), protocol.truth)
        for name, variant in protocol.variants.items():
            learner = dataclasses.replace(protocol.learner, **vars(variant))
            runs.append(VariantRun(truth, name, learner, seed, protocol.updates, protocol.robustness))
        if protocol.variants and protocol.robustness.states:
            runs += [ReferenceRun(truth, reference, seed, protocol.robustness) for reference in REFERENCES]
    return runs


def select_runs(runs: Sequence[ReportedRun], filters: Sequence[str]) -> list[ReportedRun]:
    """Return the runs that all filters name.

    Args:
        runs: what to choose from.
        filters: items such as ``variant=critic,plain``; keys are part, actions, task, noise, variant and seed; a reference counts
            as a variant. A key that one part of the benchmark does not have (as linear worlds have no task) leaves that part out.

    Raises:
        ConfigError: not of this form.
        UnknownNameError: something that no run has.
    """
    known: dict[str, set[str]] = {}
    for run in runs:
        for key, value in run.labels.items():
            known.setdefault(key, set()).add(value)
    wanted = parse_filters(filters, known)
    return [run for run in runs if all(run.labels.get(key) in names for key, names in wanted.items())]


def needed_runs(runs: Iterable[ReportedRun]) -> list[list[Run]]:
    """Return what must be done for these runs, in stages: each stage needs only what the stages before it give."""
    behaviours: dict[Run, None] = {}
    truths: dict[Run, None] = {}
    last: list[Run] = []
    for run in runs:
        last.append(run)
        if not isinstance(run, LinearRun):
            behaviours[run.truth.behaviour] = None
        if isinstance(run, VariantRun):
            truths[run.truth] = None
    return [list(behaviours), list(truths), last]
