"""The trainer: collects transitions from simulated environments, updates the learner, evaluates, and saves checkpoints.

Interrupted and resumed training gives the same result as uninterrupted training, bit for bit on the CPU with the same number
of threads.
"""

from __future__ import annotations

import dataclasses
import json
import shutil
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.tensorboard import SummaryWriter
from tqdm import tqdm

from dpg_robot.config import config_from_dict, config_to_dict, setting
from dpg_robot.contract import Contract
from dpg_robot.errors import CheckpointError
from dpg_robot.files import write_atomically
from dpg_robot.learning.checkpoint import flatten_optimizer, load_checkpoint, load_into, save_checkpoint, unflatten_optimizer
from dpg_robot.learning.learner import Learner, LearnerConfig
from dpg_robot.learning.policy import Policy
from dpg_robot.learning.replay import Batch, ReplayBuffer
from dpg_robot.observation import HistoryStack


class StepLike(Protocol):
    """What a step of an environment gives; see ``sim.StepResult``."""

    @property
    def obs(self) -> NDArray[np.float32]: ...  # noqa: D102
    @property
    def reward(self) -> NDArray[np.float32]: ...  # noqa: D102
    @property
    def terminal(self) -> NDArray[np.bool_]: ...  # noqa: D102
    @property
    def timeout(self) -> NDArray[np.bool_]: ...  # noqa: D102
    @property
    def final_obs(self) -> NDArray[np.float32]: ...  # noqa: D102


class Environment(Protocol):
    """Many environments at once; ``sim.make`` gives one."""

    num_envs: int

    @property
    def dynamics(self) -> NDArray[np.float64]: ...  # noqa: D102
    def reset(self) -> NDArray[np.float32]: ...  # noqa: D102
    def step(self, actions: NDArray[Any]) -> StepLike: ...  # noqa: D102
    def state_dict(self) -> dict[str, NDArray[Any]]: ...  # noqa: D102
    def load_state_dict(self, state: dict[str, NDArray[Any]]) -> None: ...  # noqa: D102


@dataclass(frozen=True)
class TrainerConfig:
    """Settings of a training run."""

    updates: int = setting(24_000, "gradient updates in all")
    updates_per_step: int = setting(4, "gradient updates for each step of all environments")
    warmup_transitions: int = setting(5_000, "transitions collected with uniformly random actions before the first update")
    replay_capacity: int = setting(1_000_000, "transitions kept for replay")
    final_learning_rate_factor: float = setting(0.05, "factor on the step sizes at the last update, falling linearly from 1")
    evaluate_every: int = setting(2_000, "updates between evaluations, each followed by a checkpoint", unit="updates")
    log_every: int = setting(200, "updates between points in TensorBoard", unit="updates")

    def __post_init__(self) -> None:
        for name, value in dataclasses.asdict(self).items():
            if name != "final_learning_rate_factor" and value < 1:
                raise ValueError(f"{name} must be 1 or more, got {value}")
        if not 0 < self.final_learning_rate_factor <= 1:
            raise ValueError(f"final_learning_rate_factor must be in (0, 1], got {self.final_learning_rate_factor}")


@dataclass(frozen=True)
class Evaluation:
    """Returns of the mean policy.

    Attributes:
        returns: (K,) undiscounted return of each episode.
    """

    returns: NDArray[np.float64]

    @property
    def mean(self) -> float:
        """Mean return."""
        return float(self.returns.mean())

    @property
    def standard_error(self) -> float:
        """Standard error of the mean return."""
        return float(self.returns.std(ddof=1) / np.sqrt(len(self.returns))) if len(self.returns) > 1 else float("nan")

    def paired_difference(self, other: Evaluation) -> tuple[float, float]:
        """Return mean and standard error of the gain over ``other``, which ran the same episodes.

        Raises:
            ValueError: another number of episodes.
        """
        if len(self.returns) != len(other.returns):
            raise ValueError(f"both must have run the same episodes, got {len(self.returns)} and {len(other.returns)}")
        gain = Evaluation(self.returns - other.returns)
        return gain.mean, gain.standard_error

    def to_dict(self) -> dict[str, Any]:
        """Return mean, standard error and all returns as plain numbers."""
        return {"mean": self.mean, "standard_error": self.standard_error, "returns": [round(float(r), 3) for r in self.returns]}


@torch.no_grad()
def evaluate(policy: Policy, contract: Contract, environment: Environment) -> Evaluation:
    """Run one episode of the mean policy in each environment, from a reset.

    Args:
        policy: the policy.
        contract: gives the history.
        environment: N environments; each one's first episode counts.
    """
    device = next(policy.parameters()).device
    history = HistoryStack(contract, environment.num_envs)
    features = environment.reset()
    returns = np.zeros(environment.num_envs)
    running = np.ones(environment.num_envs, dtype=np.bool_)
    while running.any():
        action = policy.mean_action(torch.from_numpy(history.observe(features)).to(device)).cpu().numpy()
        step = environment.step(action)
        returns += step.reward * running
        running &= ~(step.terminal | step.timeout)
        history.push(features, action)
        features = step.obs
    return Evaluation(returns)


class Collector:
    """Steps environments and turns what happens into transitions.

    Args:
        environment: N environments.
        contract: gives history and the number of reward steps per control step.
        privileged: whether the transitions' observations end with the dynamics that were drawn for their episode.

    Attributes:
        ended: (N,) whether the last step ended an episode.
    """

    def __init__(self, environment: Environment, contract: Contract, privileged: bool = False) -> None:
        self.environment, self._contract, self._privileged = environment, contract, privileged
        self._history = HistoryStack(contract, environment.num_envs)
        self._features = environment.reset()
        self.ended = np.zeros(environment.num_envs, dtype=np.bool_)

    @property
    def observation(self) -> Tensor:
        """(N, O) observations to act on."""
        return torch.from_numpy(self._history.observe(self._features))

    def step(self, action: Tensor) -> Batch:
        """Carry out actions (N, A) and return the N transitions."""
        observation, actions = self.observation, action.cpu().numpy()
        # before the step, which may begin another episode
        dynamics = torch.from_numpy(self.environment.dynamics).float() if self._privileged else torch.zeros(len(actions), 0)
        step = self.environment.step(actions)
        self._history.push(self._features, actions)
        next_observation = torch.from_numpy(self._history.observe(step.final_obs))
        observation, next_observation = (torch.cat([each, dynamics], dim=1) for each in (observation, next_observation))
        self.ended = step.terminal | step.timeout
        self._history.clear(np.flatnonzero(self.ended))
        self._features = step.obs
        return Batch(
            observation=observation,
            action=torch.from_numpy(actions),
            reward=torch.from_numpy(step.reward) / self._contract.action_repeat,
            next_observation=next_observation,
            terminal=torch.from_numpy(step.terminal).float(),
            steps=torch.ones(len(actions)),
        )

    def state_dict(self) -> dict[str, Tensor]:
        """Return the state of the environments and of the episodes under way."""
        state = {name: torch.from_numpy(np.ascontiguousarray(value)) for name, value in self.environment.state_dict().items()}
        return state | {
            "collector.features": torch.from_numpy(self._features.copy()),
            "collector.history": torch.from_numpy(self._history.frames.copy()),
        }

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Put back what :meth:`state_dict` returned."""
        self._features = state["collector.features"].numpy().copy()
        self._history.frames = state["collector.history"].numpy().copy()
        self.environment.load_state_dict({k: v.numpy() for k, v in state.items() if not k.startswith("collector.")})
        if not getattr(self.environment, "restores_episodes", True):
            self._features = self.environment.reset()
            self._history.clear(np.arange(self.environment.num_envs))


class Trainer:
    """Trains a learner in simulation, in a run folder.

    The folder gets ``checkpoints/<update>`` (the newest, and the best by evaluation), ``best.json``, ``evaluations.json`` and
    TensorBoard event files.

    Args:
        learner: what to train.
        config: settings.
        environment: environments to collect from.
        evaluation_environment: environments of which each runs one evaluation episode.
        folder: the run folder; made when it does not exist.
        seed: seed of replay sampling and warm-up actions.
    """

    def __init__(
        self,
        learner: Learner,
        config: TrainerConfig,
        environment: Environment,
        evaluation_environment: Environment,
        folder: str | Path,
        seed: int = 0,
    ) -> None:
        self.learner, self.config, self.folder = learner, config, Path(folder)
        self.collector = Collector(environment, learner.contract, learner.privileged_size > 0)
        state_size = learner.contract.observation_size + learner.privileged_size
        self.replay = ReplayBuffer(
            config.replay_capacity, state_size, learner.contract.num_actions, learner.device, environment.num_envs
        )
        self.evaluations: list[dict[str, Any]] = []
        self._evaluation_environment = evaluation_environment
        self._evaluation_start = evaluation_environment.state_dict()
        self._generator = torch.Generator().manual_seed(seed)
        self._updates = 0
        (self.folder / "checkpoints").mkdir(parents=True, exist_ok=True)

    def run(self, show_progress: bool = True) -> Path:
        """Train up to ``config.updates`` and return the checkpoint with the best evaluation."""
        writer = SummaryWriter(str(self.folder / "tensorboard"), purge_step=self._updates)
        started, first = time.monotonic(), self._updates
        try:
            with tqdm(total=self.config.updates, initial=self._updates, unit="update", disable=not show_progress) as progress:
                while self._updates < self.config.updates:
                    # A checkpoint may lie between two updates of one step; a resumed run does the rest of them first.
                    if self._updates % self.config.updates_per_step == 0:
                        self._collect()
                    if self.replay.added >= self.config.warmup_transitions:
                        self._learn(writer, progress, started, first)
        finally:
            writer.close()
        return self.best_checkpoint()

    def resume(self) -> bool:
        """Continue from the newest checkpoint of the run folder; returns False when there is none."""
        for unfinished in (self.folder / "checkpoints").glob(".*.tmp"):  # of a run that was killed while it saved
            shutil.rmtree(unfinished)
        newest = newest_checkpoint(self.folder)
        if newest is None:
            return False
        tensors, state = load_checkpoint(newest)
        restore_learner(self.learner, tensors, state)
        self.replay.load_state_dict(tensors["replay"])
        self.collector.load_state_dict(tensors["collector"])
        self._generator.set_state(tensors["random"]["replay"])
        self._updates = state["updates"]
        self.evaluations = state["evaluations"]
        self._write_evaluations()
        return True

    @property
    def updates(self) -> int:
        """Gradient updates done so far."""
        return self._updates

    def best_checkpoint(self) -> Path:
        """Return the checkpoint with the best evaluation so far; raises CheckpointError when there is none."""
        return best_checkpoint(self.folder)

    def _collect(self) -> None:
        batch = self.collector.step(self._choose_actions())
        self.replay.add(batch)
        self.learner.observe_newest(self.replay, len(batch))

    def _choose_actions(self) -> Tensor:
        """Return uniformly random actions (N, A) during the warm-up, then the exploring policy's."""
        if self.replay.added < self.config.warmup_transitions:
            shape = (self.collector.environment.num_envs, self.learner.contract.num_actions)
            return 2 * torch.rand(shape, generator=self._generator) - 1
        return self.learner.act(self.collector.observation.to(self.learner.device))

    def _learn(self, writer: SummaryWriter, progress: Any, started: float, first: int) -> None:
        for _ in range(self.config.updates_per_step - self._updates % self.config.updates_per_step):
            progress_share = self._updates / self.config.updates
            self.learner.set_learning_rate_factor(1 - (1 - self.config.final_learning_rate_factor) * progress_share)
            metrics = self.learner.update(self.learner.draw(self.replay, self.learner.config.batch_size, self._generator))
            self._updates += 1
            progress.update()
            if self._updates % self.config.log_every == 0:
                for name, value in metrics.items():
                    writer.add_scalar(name, float(value), self._updates)
                writer.add_scalar("speed/updates_per_s", (self._updates - first) / (time.monotonic() - started), self._updates)
            if self._updates % self.config.evaluate_every == 0 or self._updates >= self.config.updates:
                evaluation = self._evaluate()
                writer.add_scalar("evaluation/return", evaluation.mean, self._updates)
                progress.set_postfix_str(f"return {evaluation.mean:.0f} +- {evaluation.standard_error:.0f}")
                self._save()
            if self._updates >= self.config.updates:
                return

    def _evaluate(self) -> Evaluation:
        self._evaluation_environment.load_state_dict(self._evaluation_start)
        evaluation = evaluate(self.learner.policy, self.learner.contract, self._evaluation_environment)
        record = {"updates": self._updates, "transitions": self.replay.added} | evaluation.to_dict()
        self.evaluations.append(record)
        return evaluation

    def _save(self) -> None:
        name = f"{self._updates:09d}"
        target = self.folder / "checkpoints" / name
        if target.exists():  # left by a run that went on after this point and was then rolled back by hand
            shutil.rmtree(target)
        tensors, state = learner_state(self.learner)
        tensors |= {
            "replay": self.replay.state_dict(),
            "collector": self.collector.state_dict(),
            "random": {"replay": self._generator.get_state()},
        }
        state |= {"updates": self._updates, "evaluations": self.evaluations, "trainer": config_to_dict(self.config)}
        save_checkpoint(target, tensors, state)
        best = self._write_evaluations()
        for old in checkpoints(self.folder):
            if old.name not in (name, best):
                shutil.rmtree(old)

    def _write_evaluations(self) -> str:
        """Write all evaluations and which checkpoint is the best by them; returns its name."""
        best = max(self.evaluations, key=lambda item: item["mean"])
        name = f"{best['updates']:09d}"
        write_atomically(self.folder / "best.json", json.dumps({"checkpoint": name, **best}).encode())
        write_atomically(self.folder / "evaluations.json", json.dumps(self.evaluations, indent=1).encode())
        return name


def learner_state(learner: Learner) -> tuple[dict[str, dict[str, Tensor]], dict[str, Any]]:
    """Return a learner's tensors, by part, and its other state, for a checkpoint."""
    tensors = {"networks": dict(learner.state_dict()), "learner_random": {"generator": learner.generator.get_state()}}
    for name, optimizer in learner.optimizers.items():
        tensors[f"optimizer_{name}"] = flatten_optimizer(optimizer)
    return tensors, {
        "contract": learner.contract.to_dict(),
        "learner": config_to_dict(learner.config),
        "privileged_size": learner.privileged_size,
    }


def restore_learner(learner: Learner, tensors: dict[str, dict[str, Tensor]], state: dict[str, Any]) -> None:
    """Put a checkpoint's state into a learner; raises CheckpointError when contract or settings differ."""
    stored = Contract.from_dict(state["contract"])
    learner.contract.require_equal(stored, ours="this run", theirs="the checkpoint")
    privileged = state.get("privileged_size", 0)
    if privileged != learner.privileged_size:
        raise CheckpointError(
            f"denoiser and baseline of the checkpoint see {privileged} privileged numbers, those of this run "
            f"{learner.privileged_size}; resume with the settings of the run, or start a new one"
        )
    made_with = config_to_dict(config_from_dict(LearnerConfig, state["learner"], "the checkpoint"))  # with new settings' defaults
    for name, value in config_to_dict(learner.config).items():
        if made_with[name] != value and name != "precision":  # the state is the same in each precision
            raise CheckpointError(
                f"the checkpoint was made with learner.{name}={made_with[name]!r}, this run has {value!r}; "
                "resume with the settings of the run, or start a new one"
            )
    load_into(learner, tensors["networks"], "the checkpoint")
    learner.generator.set_state(tensors["learner_random"]["generator"])
    for name, optimizer in learner.optimizers.items():
        unflatten_optimizer(optimizer, tensors[f"optimizer_{name}"])


def load_learner(checkpoint: str | Path, device: str = "cpu") -> tuple[Learner, dict[str, dict[str, Tensor]], dict[str, Any]]:
    """Make a learner from a checkpoint, with the settings stored in it; also returns the checkpoint's tensors and state."""
    tensors, state = load_checkpoint(checkpoint)
    contract = Contract.from_dict(state["contract"])
    config = config_from_dict(LearnerConfig, state["learner"], str(checkpoint))
    learner = Learner(contract, config, device=device, privileged_size=state.get("privileged_size", 0))
    restore_learner(learner, tensors, state)
    return learner, tensors, state


def checkpoints(folder: str | Path) -> list[Path]:
    """Return the whole checkpoints of a run folder, oldest first."""
    return sorted(item for item in (Path(folder) / "checkpoints").glob("[0-9]*") if item.is_dir())


def newest_checkpoint(folder: str | Path) -> Path | None:
    """Return the newest checkpoint of a run folder, or None."""
    found = checkpoints(folder)
    return found[-1] if found else None


def best_checkpoint(folder: str | Path) -> Path:
    """Return the checkpoint of a run folder with the best evaluation; raises CheckpointError when there is none."""
    pointer = Path(folder) / "best.json"
    if not pointer.is_file():
        raise CheckpointError(f"{folder} holds no training run with a checkpoint (no best.json); run launch/pretrain.py first")
    name: str = json.loads(pointer.read_text())["checkpoint"]
    return Path(folder) / "checkpoints" / name
