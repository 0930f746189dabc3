"""Fine-tuning as a service: takes in what robots log, goes on learning, and now and then proposes a policy to the gate.

One round takes in the episodes that were finished since the last one, learns for a while, and proposes a candidate when enough
is new. The service stands between rounds only, so a checkpoint between two of them holds all of it, and a service that was killed
goes on bit by bit as if it had not been (on the CPU).
"""

from __future__ import annotations

import shutil
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from dpg_robot.config import setting
from dpg_robot.data.log_following import FollowedEpisodes
from dpg_robot.errors import CheckpointError, ContractError, PolicyFileError
from dpg_robot.host.gate import GateConfig, Verdict, decide
from dpg_robot.host.intake import RewardFunction, prepare
from dpg_robot.host.judgement import compare_policies, judge
from dpg_robot.host.mixture import Mixture, MixtureConfig
from dpg_robot.host.model_store import ModelStore
from dpg_robot.host.service_report import ServiceReport
from dpg_robot.learning.checkpoint import load_checkpoint, save_checkpoint
from dpg_robot.learning.export import export_policy
from dpg_robot.learning.learner import Learner
from dpg_robot.learning.policy import Policy
from dpg_robot.learning.replay import Batch, ReplayBuffer
from dpg_robot.learning.trainer import Evaluation, learner_state, newest_checkpoint, restore_learner

Returns = Callable[[Policy], Evaluation]


@dataclass(frozen=True)
class ServiceConfig:
    """Settings of the service."""

    mixture: MixtureConfig = setting(MixtureConfig, "what each batch is mixed of")
    updates_per_transition: float = setting(1.0, "updates for each new transition of a robot")
    updates_per_round: int = setting(500, "most updates before it looks for new data again", unit="updates")
    first_updates_after: int = setting(500, "transitions of robots before the first update", unit="transitions")
    improve_policy_after: int = setting(1_000, "updates of denoiser and baseline alone before the policy follows", unit="updates")
    learning_rate_factor: float = setting(0.3, "factor on the step sizes of pretraining")
    candidate_every: int = setting(3_000, "new transitions of robots between candidates", unit="transitions")
    return_after_rejections: int = setting(
        3, "rejected candidates in a row after which learning begins anew from what the robots run"
    )
    held_out_every: int = setting(8, "every so many episodes one is kept for judging", unit="episodes")
    robot_capacity: int = setting(1_000_000, "transitions of robots kept to learn from", unit="transitions")
    held_out_capacity: int = setting(20_000, "transitions of robots kept for judging", unit="transitions")
    checkpoint_every_s: float = setting(300.0, "time between checkpoints", unit="s")
    poll_interval_s: float = setting(1.0, "time between looks for new data when there is nothing to learn", unit="s")
    seed: int = setting(0, "seed of sampling")

    def __post_init__(self) -> None:
        for name in ("updates_per_round", "first_updates_after", "candidate_every", "return_after_rejections"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be 1 or more, got {getattr(self, name)}")
        for name in ("robot_capacity", "held_out_capacity"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be 1 or more transitions, got {getattr(self, name)}")
        if self.held_out_every < 2:
            raise ValueError(f"held_out_every must be 2 or more, got {self.held_out_every}")
        for name in ("updates_per_transition", "learning_rate_factor", "checkpoint_every_s", "poll_interval_s"):
            if not 0 < getattr(self, name) < float("inf"):
                raise ValueError(f"{name} must be positive, got {getattr(self, name)}")


@dataclass
class ServiceCounts:
    """What the service has done so far."""

    received: int = 0
    used: int = 0
    excluded: int = 0
    refused: int = 0
    episodes: int = 0
    updates: int = 0
    candidates: int = 0
    rejections_in_row: int = 0
    used_at_candidate: int = 0


class FinetuneService:
    """Learns from robots' transitions as they come, and proposes policies.

    Args:
        learner: what to fine-tune; its policy is the one that robots run at first.
        simulation: transitions of simulation, for the mixture.
        reward_function: rewards (N,) per reward step from measurements (N, M) after actions (N, A).
        returns: returns of a policy in simulation, in the same episodes at each call.
        config: settings.
        gate: what a candidate must show.
        store: takes the candidates in.
        folder: gets checkpoints, ``metrics.jsonl``, ``status.json`` and TensorBoard's events.
    """

    def __init__(
        self,
        learner: Learner,
        simulation: ReplayBuffer,
        reward_function: RewardFunction,
        returns: Returns,
        config: ServiceConfig,
        gate: GateConfig,
        store: ModelStore,
        folder: str | Path,
    ) -> None:
        self.learner, self.config, self.folder = learner, config, Path(folder)
        contract = learner.contract
        if learner.privileged_size:
            raise CheckpointError(
                f"denoiser and baseline see {learner.privileged_size} drawn dynamics, which no robot log holds; "
                "pretrain with privileged=false to fine-tune"
            )
        self.counts = ServiceCounts()
        self.robots: Counter[str] = Counter()
        self._reward_function, self._returns, self._gate, self._store = reward_function, returns, gate, store
        sizes = (contract.observation_size, contract.num_actions, learner.device)
        self._mixture = Mixture(simulation, ReplayBuffer(config.robot_capacity, *sizes), config.mixture)
        self._held_out = ReplayBuffer(config.held_out_capacity, *sizes)
        self._held_out_episodes = np.zeros(0, np.int64)
        self._generator = torch.Generator().manual_seed(config.seed)
        self._current = Learner(contract, learner.config, device=learner.device)
        self._best = Policy(contract.observation_size, contract.num_actions, learner.config.hidden_sizes).to(learner.device)
        self._best_return: Evaluation | None = None
        self._accept()
        self._remember_best(None)
        self._saved_s = time.monotonic()
        (self.folder / "checkpoints").mkdir(parents=True, exist_ok=True)
        self.report = ServiceReport(self.folder if learner.processes.first else None)  # of several processes one writes

    @property
    def current_policy(self) -> Policy:
        """The policy that passed the gate last, or the first one."""
        return self._current.policy

    def take_in(self, found: FollowedEpisodes) -> None:
        """Take the finished episodes of a robot. What does not fit the learner is counted and left out."""
        transitions = found.transitions
        self.counts.received += len(transitions)
        try:
            self.learner.contract.require_equal(found.contract, ours="the learner", theirs=f"the log {found.run}")
        except ContractError as error:
            self.counts.refused += len(transitions)
            self.report.complain(str(found.run), str(error))
            return
        batch, usable, episode = prepare(transitions, self.learner.contract, self._reward_function)
        self.robots[found.robot or "robot"] += len(transitions)
        self.counts.excluded += len(transitions) - len(batch)
        self.add(batch, episode[usable])

    def add(self, batch: Batch, episode: NDArray[np.int64]) -> None:
        """Add transitions of whole episodes.

        Args:
            batch: N transitions in order of time.
            episode: (N,) numbers that differ from episode to episode.
        """
        for number in dict.fromkeys(episode.tolist()):
            part = batch.select(torch.from_numpy(np.flatnonzero(episode == number)))
            self.counts.episodes += 1
            self.counts.used += len(part)
            if self.counts.episodes % self.config.held_out_every == 0:
                self._held_out.add(part)
                numbers = np.full(len(part), self.counts.episodes)
                self._held_out_episodes = np.concatenate([self._held_out_episodes, numbers])[-self.config.held_out_capacity :]
            else:
                self._mixture.robot.add(part)

    @property
    def updates_due(self) -> int:
        """Updates that the transitions so far are worth and that were not done yet."""
        if self.counts.used < self.config.first_updates_after or not len(self._mixture.robot):
            return 0
        return max(0, int(self.config.updates_per_transition * self.counts.used) - self.counts.updates)

    def learn(self) -> int:
        """Do the updates that are due, at most a round's; returns how many that were."""
        count = min(self.updates_due, self.config.updates_per_round)
        self.learner.set_learning_rate_factor(self.config.learning_rate_factor)
        sums: dict[str, list[Tensor]] = {}
        for _ in range(count):
            improve = self.counts.updates >= self.config.improve_policy_after
            metrics = self.learner.update(self._mixture.draw(self.learner, self._generator), improve_policy=improve)
            for name, value in metrics.items():
                sums.setdefault(name, []).append(value)
            self.counts.updates += 1
        if count:
            means = {name: float(torch.stack(values).mean()) for name, values in sums.items()}
            self.report.metrics(self.counts.updates, means)
        return count

    def simulation_changed(self) -> None:
        """Forget what the best policy returns in simulation: from now on its episodes are others."""
        self._best_return = None

    @property
    def candidate_due(self) -> bool:
        """Whether enough is new for another candidate, and all that is there was learned from."""
        new = self.counts.used - self.counts.used_at_candidate
        return new >= self.config.candidate_every and not self.updates_due and len(self._held_out) > 0

    def propose(self) -> Verdict:
        """Let the gate judge the learner's present policy; if it passes, the store makes it current, and so does the service.

        Its return in simulation stands beside that of the best policy so far, not of the last one: losses that are small enough
        to pass must not add up from candidate to candidate.
        """
        self.report.status("judging", self.counts, self.robots, len(self._held_out))
        self.counts.candidates += 1
        self.counts.used_at_candidate = self.counts.used
        held_out, episodes = self._ordered_held_out()
        before, after = judge(self._current, held_out), judge(self.learner, held_out)
        policies = compare_policies(self.learner, self._current.policy, held_out, episodes)
        if self._best_return is None:
            self._best_return = self._returns(self._best)
        best_return, candidate_return = self._best_return, self._returns(self.learner.policy)
        verdict = decide(before, after, best_return, candidate_return, self._gate, policies)
        facts = {
            "updates": self.counts.updates,
            "transitions": {"received": self.counts.received, "used": self.counts.used, "excluded": self.counts.excluded},
            "before": before.to_dict() | {"return_in_simulation": best_return.to_dict()},
            "after": after.to_dict() | {"return_in_simulation": candidate_return.to_dict()},
            "policies": policies.to_dict(),
        }
        summary = {"finetuned_updates": self.counts.updates, "transitions": facts["transitions"]}
        contract, policy = self.learner.contract, self.learner.policy
        try:
            self._store.add(lambda path: export_policy(policy, contract, path, training=summary), verdict, facts)
        except PolicyFileError as error:
            verdict = Verdict(False, (*verdict.reasons, f"FAILED: {error}"))
            self.report.complain(f"candidate {self.counts.candidates}", str(error))
        self.report.metrics(self.counts.updates, _judged(facts) | {"gate/passed": float(verdict.passed)})
        if verdict.passed:
            self._accept()
            if candidate_return.mean > best_return.mean:
                self._remember_best(candidate_return)
            self.counts.rejections_in_row = 0
        else:
            self.counts.rejections_in_row += 1
            if self.counts.rejections_in_row >= self.config.return_after_rejections:
                self._begin_anew()
        return verdict

    def round(self, found: list[FollowedEpisodes]) -> int:
        """Take in, learn, and propose if it is time; returns the number of updates."""
        for episodes in found:
            self.take_in(episodes)
        updates = self.learn()
        if self.candidate_due:
            self.propose()
        state = "learning" if self.updates_due else "waiting"
        self.report.status(state, self.counts, self.robots, len(self._held_out))
        return updates

    @property
    def checkpoint_due(self) -> bool:
        """Whether the last checkpoint is old enough for another one."""
        return time.monotonic() - self._saved_s >= self.config.checkpoint_every_s

    def save(self, intake: dict[str, Any]) -> Path:
        """Write a checkpoint and remove older ones.

        Args:
            intake: JSON values that say how far the logs were taken in.
        """
        number = 1 + max((int(path.name) for path in (self.folder / "checkpoints").glob("[0-9]*")), default=0)
        target = self.folder / "checkpoints" / f"{number:09d}"
        tensors, state = learner_state(self.learner)
        accepted, _ = learner_state(self._current)
        tensors |= {f"current_{name}": part for name, part in accepted.items()}
        tensors |= {
            "robot": self._mixture.robot.state_dict(),
            "held_out": self._held_out.state_dict() | {"episodes": torch.from_numpy(self._held_out_episodes)},
            "best": dict(self._best.state_dict()),
            "random": {"sampling": self._generator.get_state()},
        }
        service = {
            "counts": vars(self.counts).copy(),
            "robots": dict(self.robots),
            "best_return": None if self._best_return is None else self._best_return.returns.tolist(),
            "intake": intake,
        }
        save_checkpoint(target, tensors, state | {"service": service})
        for old in (self.folder / "checkpoints").glob("[0-9]*"):
            if old.name < target.name:
                shutil.rmtree(old)
        self._saved_s = time.monotonic()
        return target

    def close(self, intake: dict[str, Any]) -> None:
        """Write a last checkpoint and the status; ``intake`` as for :meth:`save`."""
        self.save(intake)
        self.report.status("stopped", self.counts, self.robots, len(self._held_out))
        self.report.close()

    def resume(self) -> dict[str, Any] | None:
        """Go on from the newest checkpoint of the folder; returns what ``intake`` was then, None when there is no checkpoint."""
        for unfinished in (self.folder / "checkpoints").glob(".*.tmp"):
            shutil.rmtree(unfinished)
        newest = newest_checkpoint(self.folder)
        if newest is None:
            return None
        tensors, state = load_checkpoint(newest)
        if "service" not in state:
            raise CheckpointError(f"{newest} is not a checkpoint of fine-tuning as a service; choose another --run folder")
        restore_learner(self.learner, tensors, state)
        accepted = {name.removeprefix("current_"): part for name, part in tensors.items() if name.startswith("current_")}
        restore_learner(self._current, accepted, state)
        episodes = tensors["held_out"].pop("episodes")
        self._mixture.robot.load_state_dict(tensors["robot"])
        self._held_out.load_state_dict(tensors["held_out"])
        self._held_out_episodes = episodes.numpy()
        self._generator.set_state(tensors["random"]["sampling"])
        service = state["service"]
        self.counts = ServiceCounts(**service["counts"])
        self.robots = Counter(service["robots"])
        self._best.load_state_dict(tensors["best"])
        returns = service["best_return"]
        self._best_return = None if returns is None else Evaluation(np.array(returns))
        intake: dict[str, Any] = service["intake"]
        return intake

    def _ordered_held_out(self) -> tuple[Batch, NDArray[np.int64]]:
        """Return the held-out transitions, oldest first, and the numbers of their episodes."""
        batch, kept, added = self._held_out.all(), len(self._held_out), self._held_out.added
        order = (torch.arange(kept) + (added if added > kept else 0)) % kept
        return batch.select(order), self._held_out_episodes

    def _accept(self) -> None:
        """Make the learner's present state the one that robots run."""
        restore_learner(self._current, *_copied(learner_state(self.learner)))

    def _remember_best(self, returns: Evaluation | None) -> None:
        """Keep the policy that robots run as the best one so far, with its returns in simulation where they are known."""
        self._best.load_state_dict(self.current_policy.state_dict())
        self._best_return = returns

    def _begin_anew(self) -> None:
        """Put the learner back to the state that robots run; the transitions stay."""
        restore_learner(self.learner, *_copied(learner_state(self._current)))
        self.counts.rejections_in_row = 0


def _copied(
    state: tuple[dict[str, dict[str, Tensor]], dict[str, Any]],
) -> tuple[dict[str, dict[str, Tensor]], dict[str, Any]]:
    tensors, values = state
    return {part: {name: value.clone() for name, value in each.items()} for part, each in tensors.items()}, values


def _judged(facts: dict[str, Any]) -> dict[str, float]:
    """Return what the gate measured of a candidate, by the names under which it is plotted."""
    names = ("denoising_error", "denoising_error_without_outcome", "td_error")
    return {f"judge/{name}": facts["after"][name] for name in names} | {
        "judge/action_distance": facts["policies"]["action_distance"],
        "judge/advantage": facts["policies"]["advantage"],
        "return/simulation": facts["after"]["return_in_simulation"]["mean"],
    }
