"""Fine-tuning of denoiser, baseline and policy on logged transitions, mixed with simulation."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor
from torch.utils.tensorboard import SummaryWriter
from tqdm import tqdm

from dpg_robot.config import setting
from dpg_robot.learning.learner import Learner
from dpg_robot.learning.replay import Batch, ReplayBuffer
from dpg_robot.learning.trainer import Evaluation


@dataclass(frozen=True)
class FinetuneConfig:
    """Settings of fine-tuning."""

    updates: int = setting(3_000, "gradient updates")
    robot_share: float = setting(0.5, "share of each batch that comes from the robot; the rest is simulation")
    held_out_every: int = setting(3, "every so many episodes one is kept for judging", unit="episodes")
    learning_rate_factor: float = setting(0.3, "factor on the step sizes of pretraining at first, falling linearly to 0")
    improve_policy_after: int = setting(1_000, "updates of denoiser and baseline alone before the policy follows", unit="updates")
    compare_policy_every: int = setting(500, "updates between comparisons of the policy with the one before", unit="updates")
    standard_errors: float = setting(2.0, "a changed policy is kept only if it gains more than so many standard errors")
    seed: int = setting(0, "seed of sampling")

    def __post_init__(self) -> None:
        if not 0 < self.robot_share <= 1:
            raise ValueError(f"robot_share must be in (0, 1], got {self.robot_share}")
        if self.held_out_every < 2:
            raise ValueError(f"held_out_every must be 2 or more, got {self.held_out_every}")
        for name in ("updates", "compare_policy_every"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be 1 or more, got {getattr(self, name)}")
        if not self.standard_errors >= 0:
            raise ValueError(f"standard_errors must not be negative, got {self.standard_errors}")
        if not self.learning_rate_factor > 0:
            raise ValueError(f"learning_rate_factor must be positive, got {self.learning_rate_factor}")


class PolicySelection:
    """Keeps the best policy met during fine-tuning; the one it started with stays until another is better beyond noise.

    Args:
        learner: its present policy is the one to beat.
        returns: gives the returns of the learner's present policy, always in the same episodes.
        standard_errors: standard errors of the paired difference by which a policy has to be better.
    """

    def __init__(self, learner: Learner, returns: Callable[[], Evaluation], standard_errors: float) -> None:
        self._learner, self._returns, self._standard_errors = learner, returns, standard_errors
        self._start = self._best = returns()
        self._weights = copy.deepcopy(learner.policy.state_dict())
        self.changed = False

    def consider(self) -> None:
        """Compare the learner's present policy with the best one so far."""
        present = self._returns()
        gain, error = present.paired_difference(self._start)
        if gain > self._standard_errors * error and present.mean > self._best.mean:
            self._best, self._weights, self.changed = present, copy.deepcopy(self._learner.policy.state_dict()), True

    def restore_best(self) -> None:
        """Give the learner the best policy."""
        self._learner.policy.load_state_dict(self._weights)


def finetune(
    learner: Learner,
    robot: Batch,
    simulation: ReplayBuffer,
    config: FinetuneConfig,
    returns: Callable[[], Evaluation],
    folder: str | Path | None = None,
    show_progress: bool = True,
) -> dict[str, float]:
    """Fine-tune a learner in place.

    Denoiser and baseline go first, on batches of which a share comes from the robot; then the policy follows the new slopes. Of
    the policies on this way the best is kept; the first one, unless another is better beyond noise. The normalizers stay as they
    are, so that the meaning of the networks' inputs does not jump.

    Args:
        learner: a pretrained learner.
        robot: transitions of the robot to learn from.
        simulation: transitions of simulation.
        config: settings.
        returns: gives the returns of the learner's present policy, always in the same episodes.
        folder: where TensorBoard events go, or None.
        show_progress: whether to show a progress bar.

    Returns:
        Means of the last hundred updates' metrics, and ``policy/changed``, 1 or 0.
    """
    generator = torch.Generator().manual_seed(config.seed)
    from_robot = max(1, round(config.robot_share * learner.config.batch_size))
    writer = SummaryWriter(str(folder)) if folder is not None else None
    recent: list[dict[str, Tensor]] = []
    selection = PolicySelection(learner, returns, config.standard_errors)
    try:
        for update in tqdm(range(config.updates), unit="update", disable=not show_progress):
            index = torch.randint(len(robot), (from_robot,), generator=generator)
            batch = robot.select(index)
            if from_robot < learner.config.batch_size:
                batch = batch.concatenate(learner.draw(simulation, learner.config.batch_size - from_robot, generator))
            batch = batch.shuffled(generator)
            learner.set_learning_rate_factor(config.learning_rate_factor * (1 - update / config.updates))
            metrics = learner.update(batch, improve_policy=update >= config.improve_policy_after)
            recent = [*recent[-99:], metrics]
            since = update + 1 - config.improve_policy_after
            if since > 0 and (since % config.compare_policy_every == 0 or update + 1 == config.updates):
                selection.consider()
            if writer is not None and update % 100 == 99:
                for name, value in metrics.items():
                    writer.add_scalar(f"finetune/{name}", float(value), update + 1)
        selection.restore_best()
    finally:
        learner.set_learning_rate_factor(1.0)
        if writer is not None:
            writer.close()
    names = {name for metrics in recent for name in metrics}
    means = {name: float(torch.stack([m[name] for m in recent if name in m]).mean()) for name in sorted(names)}
    return means | {"policy/changed": float(selection.changed)}
