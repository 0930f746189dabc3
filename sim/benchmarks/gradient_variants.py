"""One variant of the gradient benchmark: learns from the behaviour's transitions, is compared with the truth, and is followed."""

from __future__ import annotations

import dataclasses
from typing import Any

import torch
from torch import Tensor, nn

from dpg_robot.learning.estimator import GradientEstimator
from dpg_robot.learning.outcome import StateShape
from dpg_robot.learning.settings import LearnerConfig
from sim.benchmarks.gradient_behaviour import Behaviour, Target
from sim.benchmarks.gradient_protocol import VariantRun
from sim.benchmarks.gradient_truth import compare
from sim.benchmarks.gradient_walks import follow_learned, walks_in_simulation


class VariantTraining:
    """A fresh estimator that learns from fixed transitions.

    Args:
        behaviour: gives the transitions.
        target: gives the targets, and the value of the state that is taken off them.
        learner: the variant's settings.
        seed: seed of networks, noise and batches.
    """

    def __init__(self, behaviour: Behaviour, target: Target, learner: LearnerConfig, seed: int) -> None:
        batch = self._transitions = behaviour.transitions
        self._advantage = target(batch.reward, batch.next_observation, batch.terminal) - target.value(batch.observation)
        self._learner = learner
        self._generator = torch.Generator().manual_seed(seed)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            shape = StateShape(behaviour.observation_size, behaviour.observation_size, behaviour.action_size)
            self.estimator = GradientEstimator(shape, dataclasses.replace(learner, n_steps=1))
        self.estimator.observe(batch)
        self._optimizer = torch.optim.Adam(self.estimator.parameters(), learner.learning_rate, fused=True)

    def update(self) -> None:
        """Update the estimator once, as the learner does."""
        index = torch.randint(len(self._advantage), (self._learner.batch_size,), generator=self._generator)
        loss, _ = self.estimator.loss(self._transitions.select(index), self._advantage[index], None, self._generator)
        self._optimizer.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        for network in (self.estimator.denoiser, self.estimator.baseline):
            nn.utils.clip_grad_norm_(network.parameters(), self._learner.max_gradient_norm)
        self._optimizer.step()


def train_and_compare(run: VariantRun, behaviour: Behaviour, truth: dict[str, Tensor]) -> dict[str, Any]:
    """Train a variant; returns how close its gradient is to the truth, and what it gains when followed, as plain values."""
    target = Target(behaviour, run.truth.behaviour.learner, run.truth.config.policy_draws)
    training = VariantTraining(behaviour, target, run.learner, run.seed)
    comparisons, true_gradients = [], truth["halves"].mean(0)
    for update in range(1, max(run.updates) + 1):
        training.update()
        if update in run.updates:
            learned = training.estimator.action_gradient(truth["observation"], truth["action"])
            comparisons.append({"updates": update, **compare(learned, true_gradients)})
    walks = walks_in_simulation(run.truth, run.robustness, behaviour) if run.robustness.states else None
    return {
        "truth": {
            "split_half_cosine": compare(truth["halves"][0], truth["halves"][1])["cosine"],
            "root_mean_square": float(true_gradients.square().mean().sqrt()),
        },
        "comparisons": comparisons,
        "robustness": follow_learned(training.estimator, walks) if walks else [],
    }
