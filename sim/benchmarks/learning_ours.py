"""Our learner in the benchmark: a plain training loop that counts frames as the peers do."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from dpg_robot.learning.learner import Learner
from dpg_robot.learning.replay import ReplayBuffer
from dpg_robot.learning.trainer import Collector
from sim.benchmarks.learning_evaluation import Evaluator, make_environment
from sim.benchmarks.learning_protocol import OurConfig, Run

_MOTION_ENVIRONMENTS = 10
_MOTION_SEED = 2_000_003


class OurTraining:
    """Collects, updates and evaluates until the frames of a run are used up.

    Args:
        run: what to run.
        config: the variant.
        start: a learner whose denoiser is taken over before the run, instead of one that learns ``config.motion``.
    """

    def __init__(self, run: Run, config: OurConfig, start: Learner | None = None) -> None:
        environment = make_environment(run, config.num_envs, run.seed)
        contract = environment.contract(run.history)
        self.learner = Learner(contract, config.learner, run.seed)
        capacity = min(config.replay_capacity, run.decisions)
        self.replay = ReplayBuffer(capacity, contract.observation_size, contract.num_actions, stride=config.num_envs)
        self.updates = 0
        self._run, self._config = run, config
        self._collector = Collector(environment, contract)
        self._generator = torch.Generator().manual_seed(run.seed)
        if start is None and config.motion.transitions:
            start = self._learn_motion()
        if start is not None:
            self.learner.adopt_denoiser(start)

    def train(self, evaluator: Evaluator, progress: Callable[[int], object]) -> None:
        """Train to the end; ``progress`` is called with the frames used since its last call."""
        while self.replay.added < self._run.decisions:
            self.step()
            evaluator.after(self.replay.added, self.mean_action)
            progress(self._config.num_envs * self._run.action_repeat)

    def step(self) -> None:
        """Take one decision in each environment, and do the updates that are due then."""
        self._collect()
        total = self._updates_due(self._run.decisions)
        for _ in range(self._updates_due(self.replay.added) - self.updates):
            share = self.updates / total
            self.learner.set_learning_rate_factor(1 - (1 - self._config.final_learning_rate_factor) * share)
            self.update()
            self.updates += 1

    def update(self) -> None:
        """Update the learner once from what was collected; it does not count as one that was due."""
        self.learner.update(self.learner.draw(self.replay, self._config.learner.batch_size, self._generator))

    @torch.no_grad()
    def mean_action(self, observations: NDArray[np.float32]) -> NDArray[Any]:
        """Return the policy's actions (N, A) without exploration for observations (N, O)."""
        action: NDArray[Any] = self.learner.policy.mean_action(torch.from_numpy(observations)).numpy()
        return action

    def _learn_motion(self) -> Learner:
        """Return a learner whose denoiser knows the motion of random actions; it has seen no rewards."""
        config = self._config
        environment = make_environment(self._run, _MOTION_ENVIRONMENTS, self._run.seed + _MOTION_SEED)
        collector = Collector(environment, self.learner.contract)
        generator = torch.Generator().manual_seed(self._run.seed + _MOTION_SEED)
        learner = Learner(self.learner.contract, config.learner, self._run.seed + _MOTION_SEED)
        sizes = self.learner.contract.observation_size, self.learner.contract.num_actions
        replay = ReplayBuffer(config.motion.transitions, *sizes, stride=_MOTION_ENVIRONMENTS)
        while replay.added < config.motion.transitions:
            shape = (_MOTION_ENVIRONMENTS, self.learner.contract.num_actions)
            batch = collector.step(2 * torch.rand(shape, generator=generator) - 1)
            replay.add(dataclasses.replace(batch, reward=torch.zeros_like(batch.reward)))
            learner.observe_newest(replay, len(batch))
        for update in range(config.motion.updates):
            learner.set_learning_rate_factor(1 - (1 - config.final_learning_rate_factor) * update / config.motion.updates)
            learner.update_denoiser(learner.draw(replay, config.learner.batch_size, generator))
        return learner

    def _updates_due(self, decisions: int) -> int:
        return int(self._config.updates_per_decision * max(0, decisions - self._config.warmup_decisions))

    def _collect(self) -> None:
        if self.replay.added < self._config.warmup_decisions:
            shape = (self._config.num_envs, self.learner.contract.num_actions)
            action = 2 * torch.rand(shape, generator=self._generator) - 1
        else:
            action = self.learner.act(self._collector.observation)
        batch = self._collector.step(action)
        self.replay.add(batch)
        self.learner.observe_newest(self.replay, len(batch))


def train_ours(
    run: Run, config: OurConfig, evaluator: Evaluator, progress: Callable[[int], object], start: Learner | None = None
) -> int:
    """Train our learner for the frames of a run; returns the number of gradient updates. See :class:`OurTraining`."""
    training = OurTraining(run, config, start)
    training.train(evaluator, progress)
    return training.updates
