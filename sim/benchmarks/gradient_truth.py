"""What actions truly lead to in simulation, with common random numbers: mean targets, their action gradient, and returns.

The same states are set and the same noise of the world is drawn for every action that is tried, so that the noise largely cancels
in differences. The gradient is measured by central differences.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from dpg_robot.learning.policy import Policy
from sim.benchmarks.gradient_behaviour import States, Target, make_environment
from sim.benchmarks.gradient_protocol import BehaviourRun

_SIMULATIONS = 2_048  # at once; bounds the memory


class Consequences:
    """What actions in given states lead to, on average over the noise of the world.

    Args:
        run: the world.
        states: (S) states.
        target: what is wanted.
        noise_draws: least number of draws of the noise for each action; rounded up to an even number of rounds.
        seed: seed of the noise.
    """

    def __init__(self, run: BehaviourRun, states: States, target: Target, noise_draws: int, seed: int = 1_000) -> None:
        self._states, self._target, self._seed = states, target, seed
        self._copies = max(1, min(_SIMULATIONS // len(states), -(-noise_draws // 2)))
        self.rounds = 2 * -(-noise_draws // (2 * self._copies))
        self._environment = make_environment(run, len(states) * self._copies, seed=0)
        self._environment.reset()
        self._steps_left = self._environment.steps_per_episode

    def mean_targets(self, actions: NDArray[np.float64]) -> NDArray[np.float64]:
        """Return the mean targets (rounds, S) of actions (S, A); the noise is the same at each call and new in each round."""
        return np.array([self._mean_target(actions, self._seed + index) for index in range(self.rounds)])

    def mean_returns(self, actions: NDArray[np.float64], policy: Policy, steps: int, discount: float) -> NDArray[np.float64]:
        """Return the mean discounted sums (rounds, S) of rewards per control step over some steps; no learned value enters.

        Args:
            actions: (S, A) first actions.
            policy: gives all later ones; its noise too is the same at each call and new in each round.
            steps: how many, at most those of an episode; after a terminal one nothing is earned.
            discount: per step.

        Raises:
            ValueError: more steps than an episode has.
        """
        if not 1 <= steps <= self._environment.steps_per_episode:
            raise ValueError(f"steps must be from 1 to {self._environment.steps_per_episode}, an episode, got {steps}")
        seeds = range(self._seed, self._seed + self.rounds)
        return np.array([self._mean_return(actions, policy, steps, discount, seed) for seed in seeds])

    def _mean_target(self, actions: NDArray[np.float64], seed: int) -> NDArray[np.float64]:
        environment = self._environment
        self._set_states(seed, steps=1)
        step = environment.step(self._repeat(actions))
        reward, terminal = torch.from_numpy(step.reward / environment.action_repeat), torch.from_numpy(step.terminal).float()
        return self._mean(self._target(reward, torch.from_numpy(step.final_obs), terminal).double().numpy())

    @torch.no_grad()
    def _mean_return(
        self, actions: NDArray[np.float64], policy: Policy, steps: int, discount: float, seed: int
    ) -> NDArray[np.float64]:
        environment, generator = self._environment, torch.Generator().manual_seed(seed)
        self._set_states(seed, steps)
        action, weight, total = self._repeat(actions), np.ones(environment.num_envs), np.zeros(environment.num_envs)
        for _ in range(steps):
            step = environment.step(action)
            total += weight * step.reward / environment.action_repeat
            weight *= discount * ~step.terminal
            action = policy(torch.from_numpy(step.obs), torch.randn(action.shape, generator=generator))[0].double().numpy()
        return self._mean(total)

    def _set_states(self, seed: int, steps: int) -> None:
        """Go to the states, with at least ``steps`` steps before the time limit."""
        environment, states = self._environment, self._states
        if self._steps_left < steps:
            environment.reset()
            self._steps_left = environment.steps_per_episode
        self._steps_left -= steps
        environment.reseed(seed)
        environment.set_state(self._repeat(states.qpos), self._repeat(states.qvel))
        if states.activation.shape[1]:
            environment.physics.act[:] = self._repeat(states.activation)
            environment.physics.forward(np.arange(environment.num_envs))

    def _mean(self, values: NDArray[np.float64]) -> NDArray[np.float64]:
        means: NDArray[np.float64] = values.reshape(len(self._states), self._copies).mean(1)
        return means

    def _repeat(self, values: NDArray[np.float64]) -> NDArray[np.float64]:
        return np.repeat(values, self._copies, axis=0)


def true_gradient(consequences: Consequences, actions: NDArray[np.float64], difference: float) -> NDArray[np.float64]:
    """Return the gradient (2, S, A) at actions (S, A) in [-1, 1], from each half of the draws of the noise on its own."""
    halves = np.zeros((2, *actions.shape))
    for index in range(actions.shape[1]):
        step = np.zeros(actions.shape[1])
        step[index] = difference
        higher, lower = np.minimum(actions + step, 1.0), np.maximum(actions - step, -1.0)
        change = consequences.mean_targets(higher) - consequences.mean_targets(lower)
        for half in (0, 1):
            halves[half, :, index] = change[half::2].mean(0) / (higher - lower)[:, index]
    return halves


def compare(estimate: Tensor, truth: Tensor) -> dict[str, float]:
    """Return how close gradients (S, A) are to the true ones (S, A).

    ``cosine`` is that of all states together, ``cosine_per_state`` the mean over states, ``relative_error`` the distance over the
    norm of the truth, and ``norm_ratio`` the ratio of the norms.
    """
    estimate, truth = estimate.double(), truth.double()
    norm, true_norm = float(estimate.norm()), max(float(truth.norm()), 1e-300)
    return {
        "cosine": float((estimate * truth).sum()) / max(norm * true_norm, 1e-300),
        "cosine_per_state": float(torch.nn.functional.cosine_similarity(estimate, truth, dim=1, eps=1e-30).mean()),
        "relative_error": float((estimate - truth).norm()) / true_norm,
        "norm_ratio": norm / true_norm,
    }
