"""One variant of the gradient benchmark: learns from the behaviour's transitions, is compared with the truth, and is followed."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from dpg_robot.learning.estimator import GradientEstimator
from dpg_robot.learning.outcome import StateShape
from dpg_robot.learning.settings import LearnerConfig
from sim.benchmarks.gradient_behaviour import Behaviour, Target
from sim.benchmarks.gradient_protocol import RobustnessConfig, TruthRun, VariantRun
from sim.benchmarks.gradient_truth import Consequences, compare
from sim.benchmarks.learning_statistics import standard_error

_WALK_SEED = 5


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
    """Train a variant; returns how close its gradient is to the truth, and how far it leads, as plain values."""
    target = Target(behaviour, run.truth.behaviour.learner, run.truth.config.policy_draws)
    training = VariantTraining(behaviour, target, run.learner, run.seed)
    comparisons, true_gradients = [], truth["halves"].mean(0)
    for update in range(1, max(run.updates) + 1):
        training.update()
        if update in run.updates:
            learned = training.estimator.action_gradient(truth["observation"], truth["action"])
            comparisons.append({"updates": update, **compare(learned, true_gradients)})
    walk = follow(training.estimator, run.truth, run.robustness, behaviour, target) if run.robustness.states else []
    return {
        "truth": {
            "split_half_cosine": compare(truth["halves"][0], truth["halves"][1])["cosine"],
            "root_mean_square": float(true_gradients.square().mean().sqrt()),
        },
        "comparisons": comparisons,
        "robustness": walk,
    }


def follow(
    estimator: GradientEstimator, truth: TruthRun, config: RobustnessConfig, behaviour: Behaviour, target: Target
) -> list[dict[str, float]]:
    """Follow a learned gradient from the policy's actions, and return the true gains of the mean target on the way.

    Returns:
        For each number of steps: mean ``gain`` over states, its ``standard_error``, and the share of states ``improved``.
    """
    states = behaviour.states.first(config.states)
    consequences = Consequences(truth.behaviour, states, target, config.noise_draws)
    action = behaviour.sample_actions(states.observation, truth.config.largest_action, _WALK_SEED)

    def mean_targets() -> NDArray[np.float64]:
        mean: NDArray[np.float64] = consequences.mean_targets(action.double().numpy()).mean(0)
        return mean

    start, gains = mean_targets(), []
    length = config.step_size * math.sqrt(behaviour.action_size)
    for step in range(1, max(config.steps) + 1):
        gradient = estimator.action_gradient(states.observation, action)
        action = (action + length * nn.functional.normalize(gradient, dim=1, eps=1e-30)).clamp(-1, 1)
        if step in config.steps:
            gain = mean_targets() - start
            improved = float((gain > 0).mean())
            gains.append(
                {"steps": step, "gain": float(gain.mean()), "standard_error": standard_error(gain), "improved": improved}
            )
    return gains
