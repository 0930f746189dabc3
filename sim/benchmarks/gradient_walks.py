"""Walks through the actions along a gradient, and what they truly gain: is a learned gradient still right where it leads?

All walks start at the same actions of the behaviour's policy, take steps of one length, and are measured with the same random
numbers. Two gains are measured in simulation, neither with a network of the variant that is followed:

* of the mean target E[r + discount V(s')], with the behaviour's frozen V that all variants' targets are made of: what they learn;
* of the return of some decisions, the first of them the action, all later ones the behaviour's policy: without any learned value.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import normalize

from dpg_robot.learning.estimator import GradientEstimator
from sim.benchmarks.gradient_behaviour import Behaviour, Target
from sim.benchmarks.gradient_protocol import ReferenceRun, TruthRun
from sim.benchmarks.gradient_settings import RobustnessConfig
from sim.benchmarks.gradient_truth import Consequences, true_gradient
from sim.benchmarks.learning_statistics import standard_error

Function = Callable[[Tensor], Tensor]
Row = dict[str, float | None]

_START_SEED = 5
_GRADIENT_SEED = 1_000_000  # far from the seeds of what is measured: a walk must not climb the noise that it is judged by


def walk(gradient: Function, start: Tensor, length: float, steps: Sequence[int]) -> Iterator[tuple[int, Tensor]]:
    """Follow a gradient by steps of one length, within the box of actions.

    Args:
        gradient: gives (N, A) at actions (N, A); where it is zero, an action stays.
        start: (N, A) first actions.
        length: Euclidean length of each step, before actions are clamped to [-1, 1].
        steps: numbers of steps, in any order.

    Yields:
        For each of them, from the smallest, the number and the actions (N, A) after it.
    """
    action = start
    for step in range(1, max(steps) + 1):
        action = (action + length * normalize(gradient(action), dim=1, eps=1e-30)).clamp(-1, 1)
        if step in steps:
            yield step, action


@dataclass(frozen=True)
class Walks:
    """Walks in one world, all from the same states and actions.

    Attributes:
        config: settings.
        observation: (S, O) of the states.
        start: (S, A) first actions.
        measure: gives true mean targets and returns (2, S) of actions (S, A), in units of one reward.
        reward_scale: factor on rewards in what networks learn.
    """

    config: RobustnessConfig
    observation: Tensor
    start: Tensor
    measure: Callable[[Tensor], NDArray[np.float64]]
    reward_scale: float

    @cached_property
    def at_start(self) -> NDArray[np.float64]:
        """What is measured (2, S) at the start."""
        return self.measure(self.start)

    def gains(self, gradient: Function, predict: Function | None = None, sigma: float | None = None) -> list[Row]:
        """Follow a gradient, and measure what it gains on the way, all in units of one reward.

        Args:
            gradient: gives (S, A) at actions (S, A) in all states.
            predict: gives targets (S,) that a network expects of actions.
            sigma: noise on the actions at which the gradient is taken, for the record.

        Returns:
            For each number of steps, means over states: the true ``gain`` of the target and ``return_gain``, with their standard
            errors; the share of states whose target ``improved``, the ``predicted_gain`` of the target, and the ``distance`` from
            the start (root mean square over states and actions).
        """
        length, rows = self.config.step_size * math.sqrt(self.start.shape[1]), []
        for steps, action in walk(gradient, self.start, length, self.config.steps):
            gain, return_gain = self.measure(action) - self.at_start
            predicted = None if predict is None else float((predict(action) - predict(self.start)).mean()) / self.reward_scale
            rows.append(
                Row(
                    sigma=sigma,
                    steps=steps,
                    gain=float(gain.mean()),
                    gain_standard_error=standard_error(gain),
                    return_gain=float(return_gain.mean()),
                    return_gain_standard_error=standard_error(return_gain),
                    improved=float((gain > 0).mean()),
                    predicted_gain=predicted,
                    distance=float((action - self.start).square().mean().sqrt()),
                )
            )
        return rows


def walks_in_simulation(truth: TruthRun, config: RobustnessConfig, behaviour: Behaviour) -> Walks:
    """Return walks from states of the behaviour and its policy's actions there, measured in simulation."""
    learner, states = truth.behaviour.learner, behaviour.states.first(config.states)
    target = Target(behaviour, learner, truth.config.policy_draws)
    for_target = Consequences(truth.behaviour, states, target, config.noise_draws)
    for_return = Consequences(truth.behaviour, states, target, config.return_draws)

    def measure(action: Tensor) -> NDArray[np.float64]:
        actions = action.double().numpy()
        targets = for_target.mean_targets(actions).mean(0) / learner.reward_scale
        returns = for_return.mean_returns(actions, behaviour.policy, config.return_steps, learner.discount).mean(0)
        return np.stack([targets, returns])

    start = behaviour.sample_actions(states.observation, truth.config.largest_action, _START_SEED)
    return Walks(config, states.observation, start, measure, learner.reward_scale)


def follow_learned(estimator: GradientEstimator, walks: Walks) -> list[Row]:
    """Follow a learned gradient, once for each sigma of the settings; returns the rows of :meth:`Walks.gains`."""
    draws, actions = walks.config.gradient_draws, walks.start.shape[1]
    noise = torch.randn(draws, actions, generator=torch.Generator().manual_seed(_START_SEED))

    @torch.no_grad()
    def predict(action: Tensor) -> Tensor:
        values: Tensor = estimator.baseline(walks.observation, action, torch.zeros_like(action[:, :1])).amin(0)
        return values

    rows = []
    for sigma in walks.config.sigmas:

        def gradient(action: Tensor, sigma: float = sigma) -> Tensor:
            return learned_gradient(estimator, walks.observation, action, sigma, noise)

        rows += walks.gains(gradient, predict, sigma)
    return rows


def learned_gradient(estimator: GradientEstimator, observation: Tensor, action: Tensor, sigma: float, noise: Tensor) -> Tensor:
    """Return the learned gradient (N, A) around actions (N, A), averaged over noised copies of them.

    Args:
        estimator: has learned it.
        observation: (N, O).
        action: (N, A).
        sigma: noise on the actions; 0 for the gradient at the actions themselves, which drives the policy.
        noise: (M, A) standard normal draws, the same for all actions.
    """
    if sigma == 0:
        return estimator.action_gradient(observation, action)
    noised = (action + sigma * noise[:, None]).flatten(0, 1).requires_grad_(True)
    repeated, sigmas = observation.repeat(len(noise), 1), torch.full_like(noised[:, :1], sigma, requires_grad=False)
    if estimator.config.amortization == "head":
        with torch.no_grad():
            slope = estimator.baseline.gradient_head(repeated, noised, sigmas).mean(0)
    else:
        (slope,) = torch.autograd.grad(estimator.baseline(repeated, noised, sigmas).amin(0).sum(), noised)
    return slope.view(len(noise), *action.shape).mean(0)


def follow_reference(run: ReferenceRun, behaviour: Behaviour) -> list[Row]:
    """Follow what a learned gradient is held against; returns the rows of :meth:`Walks.gains`."""
    walks = walks_in_simulation(run.truth, run.robustness, behaviour)
    if run.reference == "true gradient":
        return walks.gains(_true_gradient(run, behaviour))
    direction = torch.randn(walks.start.shape, generator=torch.Generator().manual_seed(run.seed))
    return walks.gains(lambda action: direction)


def _true_gradient(run: ReferenceRun, behaviour: Behaviour) -> Function:
    """Return the gradient of the mean target in simulation, from draws of the noise that no gain is measured with."""
    truth, draws = run.truth, run.robustness.true_gradient_draws
    target = Target(behaviour, truth.behaviour.learner, truth.config.policy_draws)
    states = behaviour.states.first(run.robustness.states)
    consequences = Consequences(truth.behaviour, states, target, draws, _GRADIENT_SEED * (1 + run.seed))

    def gradient(action: Tensor) -> Tensor:
        return torch.from_numpy(true_gradient(consequences, action.double().numpy(), truth.config.difference).mean(0)).float()

    return gradient
