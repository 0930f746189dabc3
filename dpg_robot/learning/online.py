"""From offline to online: goes on learning in an environment without losing what a data set taught.

Three things hold what was learned: each batch still holds a share of the data set, the pull to the behaviour falls slowly, and
the policy acts from the first step on, instead of random actions.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from dpg_robot.config import setting
from dpg_robot.learning.offline import OfflineLearner
from dpg_robot.learning.replay import Batch, ReplayBuffer, ordered_replay
from dpg_robot.learning.trainer import Environment, Evaluation, Trainer, TrainerConfig


@dataclass(frozen=True)
class OnlineConfig:
    """Settings of going on online."""

    offline_share: float = setting(0.5, "share of each batch that comes from the data set")
    num_envs: int = setting(16, "environments stepped at once")
    trainer: TrainerConfig = setting(
        lambda: TrainerConfig(updates=12_000, warmup_transitions=1_000), "the run; its warm-up acts with the policy"
    )

    def __post_init__(self) -> None:
        if not 0 <= self.offline_share < 1:
            raise ValueError(f"offline_share must be in [0, 1), got {self.offline_share}")
        if self.num_envs < 1:
            raise ValueError(f"num_envs must be 1 or more, got {self.num_envs}")


class MixedReplay(ReplayBuffer):
    """A replay buffer whose samples are mixed with those of a data set, which is not part of its state.

    Args:
        capacity: largest number of new transitions kept.
        data: the data set's transitions.
        share: share of each sample that comes from the data set.
        stride: number of environments that new transitions come from in turns.
    """

    def __init__(self, capacity: int, data: Batch, share: float, stride: int = 1) -> None:
        super().__init__(capacity, data.observation.shape[1], data.action.shape[1], data.observation.device, stride)
        self._offline, self._share = ordered_replay(data), share

    def sample(self, count: int, generator: torch.Generator, n_steps: int = 1, discount: float = 1.0) -> Batch:
        """Return ``count`` transitions drawn with replacement, as in :class:`ReplayBuffer`."""
        offline = round(self._share * count)
        new = super().sample(count - offline, generator, n_steps, discount)
        return new.concatenate(self._offline.sample(offline, generator, n_steps, discount)).shuffled(generator)


class OnlineTrainer(Trainer):
    """A trainer that begins with a learner that was trained offline, and its data.

    The first evaluation and checkpoint are those of the policy that the data set gave, so the best checkpoint is never worse by
    evaluation.

    Args:
        learner: what to train; it was trained on ``data``.
        config: settings.
        data: the data set's transitions.
        environment: environments to collect from.
        evaluation_environment: environments of which each runs one evaluation episode.
        folder: the run folder; made when it does not exist.
        seed: seed of sampling.
    """

    def __init__(
        self,
        learner: OfflineLearner,
        config: OnlineConfig,
        data: Batch,
        environment: Environment,
        evaluation_environment: Environment,
        folder: str | Path,
        seed: int = 0,
    ) -> None:
        super().__init__(learner, config.trainer, environment, evaluation_environment, folder, seed)
        self.replay = MixedReplay(config.trainer.replay_capacity, data, config.offline_share, environment.num_envs)
        learner.online_since = int(learner.updates)

    def run(self, show_progress: bool = True) -> Path:
        """Train up to ``config.updates`` and return the checkpoint with the best evaluation."""
        if not self.evaluations:
            self._evaluate()
            self._save()
        return super().run(show_progress)

    def largest_drop(self) -> tuple[float, float]:
        """Return by how much the return lay below that of the start where it was lowest, and the standard error of that.

        Negative where the return never was below. Evaluations run the same episodes, so differences are taken episode by
        episode.
        """
        first, *later = (Evaluation(np.array(item["returns"])) for item in self.evaluations)
        drops = [first.paired_difference(each) for each in later] or [(0.0, 0.0)]
        return max(drops)

    def _choose_actions(self) -> Tensor:
        return self.learner.act(self.collector.observation.to(self.learner.device))
