"""The offline trainer: trains a learner on a data set alone, and saves checkpoints.

Interrupted and resumed training gives the same result as uninterrupted training, bit for bit on the CPU with the same number
of threads.
"""

from __future__ import annotations

import dataclasses
import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch.utils.tensorboard import SummaryWriter
from tqdm import tqdm

from dpg_robot.config import config_to_dict, setting
from dpg_robot.errors import CheckpointError
from dpg_robot.files import write_atomically
from dpg_robot.learning.checkpoint import load_checkpoint, save_checkpoint
from dpg_robot.learning.offline import OfflineLearner
from dpg_robot.learning.offline_data import DataInMemory, OfflineData
from dpg_robot.learning.replay import Batch
from dpg_robot.learning.trainer import Evaluation, checkpoints, learner_state, newest_checkpoint, restore_learner


@dataclass(frozen=True)
class OfflineTrainerConfig:
    """Settings of a training run on a data set."""

    updates: int = setting(20_000, "gradient updates in all")
    final_learning_rate_factor: float = setting(0.05, "factor on the step sizes at the last update, falling linearly from 1")
    checkpoint_every: int = setting(
        2_000, "updates between checkpoints, each after an evaluation where one is possible", unit="updates"
    )
    log_every: int = setting(200, "updates between points in TensorBoard", unit="updates")

    def __post_init__(self) -> None:
        for name, value in dataclasses.asdict(self).items():
            if name != "final_learning_rate_factor" and value < 1:
                raise ValueError(f"{name} must be 1 or more, got {value}")
        if not 0 < self.final_learning_rate_factor <= 1:
            raise ValueError(f"final_learning_rate_factor must be in (0, 1], got {self.final_learning_rate_factor}")


class OfflineTrainer:
    """Trains a learner on a data set, in a run folder like that of :class:`~dpg_robot.learning.trainer.Trainer`.

    The result is the last policy, not the best one by evaluation: choosing by simulation would not be learning from data alone.

    Args:
        learner: what to train.
        config: settings.
        data: all transitions, or what gives batches of them.
        folder: the run folder; made when it does not exist.
        returns: gives the returns of the learner's present policy, always in the same episodes; None where nothing can be
            evaluated.
        seed: seed of sampling.
    """

    def __init__(
        self,
        learner: OfflineLearner,
        config: OfflineTrainerConfig,
        data: Batch | OfflineData,
        folder: str | Path,
        returns: Callable[[], Evaluation] | None = None,
        seed: int = 0,
    ) -> None:
        self.learner, self.config, self.folder = learner, config, Path(folder)
        self.evaluations: list[dict[str, Any]] = []
        self._data: OfflineData = DataInMemory(learner, data) if isinstance(data, Batch) else data
        self._returns = returns
        self._generator = torch.Generator().manual_seed(seed)
        self._updates = 0
        (self.folder / "checkpoints").mkdir(parents=True, exist_ok=True)

    @property
    def updates(self) -> int:
        """Gradient updates done so far."""
        return self._updates

    def run(self, show_progress: bool = True) -> Path:
        """Train up to ``config.updates`` and return the last checkpoint."""
        if self._updates == 0:
            # once and for all, so that the meaning of the networks' inputs never moves
            self._data.observe()
        batches = self._data.batches(self._updates, self._generator)
        first = self.learner.processes.first
        writer = SummaryWriter(str(self.folder / "tensorboard"), purge_step=self._updates) if first else None
        try:
            with tqdm(total=self.config.updates, initial=self._updates, unit="update", disable=not show_progress) as progress:
                while self._updates < self.config.updates:
                    self._learn(next(batches), writer, progress)
        finally:
            if writer is not None:
                writer.close()
        self.learner.processes.wait_for_all()  # for the first one's last checkpoint
        newest = newest_checkpoint(self.folder)
        assert newest is not None, "there is a checkpoint after the last update"
        return newest

    def resume(self) -> bool:
        """Continue from the newest checkpoint of the run folder; returns False when there is none.

        Raises:
            CheckpointError: a checkpoint that cannot be read, or of other settings or another data set.
        """
        if self.learner.processes.first:
            for unfinished in (self.folder / "checkpoints").glob(".*.tmp"):  # of a run that was killed while it saved
                shutil.rmtree(unfinished)
        newest = newest_checkpoint(self.folder)
        if newest is None:
            return False
        tensors, state = load_checkpoint(newest)
        if state.get("data") != self._data.digest:
            raise CheckpointError(f"{newest} was trained on other data; resume with the data set of the run, or start a new one")
        restore_learner(self.learner, tensors, state)
        self._generator.set_state(tensors["random"]["sampling"])
        self._updates = state["updates"]
        self.evaluations = state["evaluations"]
        if self.learner.processes.first:
            self._write_results(newest.name)
        return True

    def _learn(self, batch: Batch, writer: SummaryWriter | None, progress: Any) -> None:
        share = self._updates / self.config.updates
        self.learner.set_learning_rate_factor(1 - (1 - self.config.final_learning_rate_factor) * share)
        metrics = self.learner.update(batch)
        self._updates += 1
        progress.update()
        if writer is not None and self._updates % self.config.log_every == 0:
            for name, value in metrics.items():
                writer.add_scalar(name, float(value), self._updates)
        if self._updates % self.config.checkpoint_every == 0 or self._updates == self.config.updates:
            if self._returns is not None:
                evaluation = self._returns()
                self.evaluations.append({"updates": self._updates} | evaluation.to_dict())
                if writer is not None:
                    writer.add_scalar("evaluation/return", evaluation.mean, self._updates)
                progress.set_postfix_str(f"return {evaluation.mean:.0f} +- {evaluation.standard_error:.0f}")
            if self.learner.processes.first:
                self._save()

    def _save(self) -> None:
        name = f"{self._updates:09d}"
        target = self.folder / "checkpoints" / name
        tensors, state = learner_state(self.learner)
        tensors |= {"random": {"sampling": self._generator.get_state()}}
        state |= {"updates": self._updates, "evaluations": self.evaluations, "trainer": config_to_dict(self.config)}
        state |= {"data": self._data.digest, "behaviour": config_to_dict(self.learner.behaviour)}
        if target.exists():  # left by a run that went on after this point and was then rolled back by hand
            shutil.rmtree(target)
        save_checkpoint(target, tensors, state)
        self._write_results(name)
        for old in checkpoints(self.folder):
            if old.name != name:
                shutil.rmtree(old)

    def _write_results(self, name: str) -> None:
        # best.json is where programs look for a run's result
        newest = self.evaluations[-1] if self.evaluations else {"updates": self._updates}
        write_atomically(self.folder / "best.json", json.dumps({"checkpoint": name, **newest}).encode())
        write_atomically(self.folder / "evaluations.json", json.dumps(self.evaluations, indent=1).encode())
