"""The behaviour that all variants of the gradient benchmark learn from: transitions, frozen policy and values, and states."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from dpg_robot.learning.baseline import Baseline
from dpg_robot.learning.learner import Learner
from dpg_robot.learning.policy import Policy
from dpg_robot.learning.replay import Batch, ReplayBuffer
from dpg_robot.learning.settings import LearnerConfig
from dpg_robot.learning.trainer import Collector
from sim.benchmarks.gradient_protocol import BehaviourRun
from sim.disturbance import Disturbance
from sim.environment import BatchEnvironment, make_native

_CHUNK = 4096
_FINAL_LEARNING_RATE_FACTOR = 0.05
_TRANSITION = ("observation", "action", "reward", "next_observation", "terminal", "steps")
_STATE = ("observation", "qpos", "qvel", "activation")


@dataclass(frozen=True)
class States:
    """K full states of the physics, with what is observed there: float32 (K, O), and float64 (K, .)."""

    observation: Tensor
    qpos: NDArray[np.float64]
    qvel: NDArray[np.float64]
    activation: NDArray[np.float64]

    def __len__(self) -> int:
        return len(self.observation)

    def first(self, count: int) -> States:
        """Return the first ``count`` states."""
        return States(*(getattr(self, name)[:count] for name in _STATE))


@dataclass(frozen=True)
class Behaviour:
    """What a behaviour run left, frozen.

    Attributes:
        policy: the last policy.
        baseline: the last target baseline.
        transitions: the last ones.
        states: spread over episodes of the last policy, in random order.
    """

    policy: Policy
    baseline: Baseline
    transitions: Batch
    states: States

    @property
    def observation_size(self) -> int:
        """Numbers of an observation."""
        return self.transitions.observation.shape[1]

    @property
    def action_size(self) -> int:
        """Numbers of an action."""
        return self.transitions.action.shape[1]

    @torch.no_grad()
    def sample_actions(self, observation: Tensor, largest: float, seed: int) -> Tensor:
        """Return actions (N, A) of the policy, clamped to +- ``largest``."""
        noise = torch.randn(len(observation), self.action_size, generator=torch.Generator().manual_seed(seed))
        action: Tensor = self.policy(observation, noise)[0]
        return action.clamp(-largest, largest)


class Target:
    """y = reward_scale * r + discount * (1 - terminal) * V(s'), a function of reward and next observation alone.

    V(s) is the mean, over several actions of the frozen policy from the same noise in all states, of the frozen baseline.

    Args:
        behaviour: gives policy and baseline.
        learner: gives reward scale and discount.
        policy_draws: how many actions.
    """

    def __init__(self, behaviour: Behaviour, learner: LearnerConfig, policy_draws: int) -> None:
        self._policy, self._baseline, self._learner = behaviour.policy, behaviour.baseline, learner
        self._noise = torch.randn(policy_draws, behaviour.action_size, generator=torch.Generator().manual_seed(7))

    def __call__(self, reward: Tensor, next_observation: Tensor, terminal: Tensor) -> Tensor:
        """Return targets (N,) for rewards per control step (N,), next observations (N, O) and terminals (N,)."""
        return self._learner.reward_scale * reward + self._learner.discount * (1 - terminal) * self.value(next_observation)

    @torch.no_grad()
    def value(self, observation: Tensor) -> Tensor:
        """Return values (N,) of observations (N, O)."""
        return torch.cat([self._value(chunk) for chunk in torch.split(observation, _CHUNK)])

    def _value(self, observation: Tensor) -> Tensor:
        total = torch.zeros(len(observation))
        for noise in self._noise:
            action = self._policy(observation, noise.expand(len(observation), -1))[0]
            total += self._baseline(observation, action, torch.zeros_like(action[:, :1])).mean(0)
        return total / len(self._noise)


def make_environment(run: BehaviourRun, num_envs: int, seed: int) -> BatchEnvironment:
    """Return environments of the world of a run."""
    disturbance = Disturbance(action_noise=run.noise)
    return make_native(run.task, num_envs, seed, num_threads=1, action_repeat=run.action_repeat, disturbance=disturbance)


def train_behaviour(run: BehaviourRun) -> dict[str, Tensor]:
    """Train a learner, and return what :func:`restore_behaviour` takes."""
    config = run.config
    environment = make_environment(run, config.num_envs, config.seed)
    contract = environment.contract()
    learner = Learner(contract, run.learner, config.seed)
    collector = Collector(environment, contract)
    replay = ReplayBuffer(config.decisions, contract.observation_size, contract.num_actions, stride=config.num_envs)
    generator = torch.Generator().manual_seed(config.seed)
    updates, total = 0, int(config.updates_per_decision * max(0, config.decisions - config.warmup_decisions))
    while replay.added < config.decisions:
        if replay.added < config.warmup_decisions:
            action = 2 * torch.rand(config.num_envs, contract.num_actions, generator=generator) - 1
        else:
            action = learner.act(collector.observation)
        batch = collector.step(action)
        replay.add(batch)
        learner.observe_newest(replay, len(batch))
        while updates < min(total, int(config.updates_per_decision * (replay.added - config.warmup_decisions))):
            learner.set_learning_rate_factor(1 - (1 - _FINAL_LEARNING_RATE_FACTOR) * updates / total)
            learner.update(learner.draw(replay, run.learner.batch_size, generator))
            updates += 1
    last = (replay.added - config.transitions + torch.arange(config.transitions)) % replay.capacity
    transitions = replay.all().select(last)
    return (
        {f"policy.{name}": value for name, value in learner.policy.state_dict().items()}
        | {f"baseline.{name}": value for name, value in learner.target_baseline.state_dict().items()}
        | {f"transition.{name}": getattr(transitions, name) for name in _TRANSITION}
        | {f"state.{name}": value for name, value in _visit_states(environment, learner.act, config.states, config.seed).items()}
    )


def _visit_states(environment: BatchEnvironment, act: Callable[[Tensor], Tensor], count: int, seed: int) -> dict[str, Tensor]:
    """Return ``count`` states at evenly spread times of whole episodes, in random order."""
    rounds = -(-count // environment.num_envs)
    visited: dict[str, list[NDArray[Any]]] = {name: [] for name in _STATE}
    observation = environment.reset()
    times = {int((index + 0.5) * environment.steps_per_episode / rounds) for index in range(rounds)}
    for time in range(environment.steps_per_episode - 1):
        if time in times:
            visited["observation"].append(observation)
            visited["qpos"].append(environment.qpos)
            visited["qvel"].append(environment.qvel)
            visited["activation"].append(environment.physics.act.copy())
        observation = environment.step(act(torch.from_numpy(observation)).numpy()).obs
    order = np.random.default_rng(seed).permutation(len(times) * environment.num_envs)[:count]
    return {name: torch.from_numpy(np.concatenate(values)[order]) for name, values in visited.items()}


def restore_behaviour(tensors: dict[str, Tensor], learner: LearnerConfig) -> Behaviour:
    """Put together what :func:`train_behaviour` returned."""

    def part(prefix: str) -> dict[str, Tensor]:
        return {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}

    transitions, states = Batch(**part("transition.")), part("state.")
    observations, actions = transitions.observation.shape[1], transitions.action.shape[1]
    policy = Policy(observations, actions, learner.hidden_sizes)
    baseline = Baseline(observations, actions, learner.hidden_sizes, learner.baseline_members)
    policy.load_state_dict(part("policy."))
    baseline.load_state_dict(part("baseline."))
    return Behaviour(
        policy.requires_grad_(False),
        baseline.requires_grad_(False),
        transitions,
        States(states["observation"], *(states[name].numpy() for name in _STATE[1:])),
    )
