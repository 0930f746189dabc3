"""Episodes from simulation: the environments of a data set, and what an actor experiences in them."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from numpy.typing import NDArray

from dpg_robot.config import config_from_dict, config_to_dict, setting
from dpg_robot.contract import Contract
from dpg_robot.data.datasets import DatasetError, Episode
from dpg_robot.observation import HistoryStack
from sim.disturbance import DISTURBANCE_PRESETS, Disturbance
from sim.dm_control_env import DmControlEnvironment
from sim.environment import BatchEnvironment
from sim.factory import make
from sim.presets import resolve_preset
from sim.randomization import Randomization, resolve_randomization

Act = Callable[[NDArray[np.float32]], NDArray[Any]]
"""Observations (N, O), with history -> actions (N, A) in [-1, 1]."""


@dataclass(frozen=True)
class World:
    """Which environments a data set comes from; what ``sim.make`` needs to make them again."""

    task: str = setting("cartpole-swingup", "task")
    action_repeat: int = setting(2, "reward steps per control step")
    randomization: str = setting("none", "randomized dynamics: a preset's name or a YAML file")
    disturbance: str = setting("none", "noise and pushes: a preset's name or a YAML file")

    def make(self, num_envs: int, seed: int, num_threads: int = 1) -> BatchEnvironment | DmControlEnvironment:
        """Return ``num_envs`` of these environments."""
        return make(self.task, num_envs, seed, num_threads, self.action_repeat, self.randomization, self.disturbance)

    def to_dict(self) -> dict[str, Any]:
        """Return plain values that hold the settings themselves, not the names of files."""
        randomization = resolve_randomization(self.randomization, self.task)
        disturbance = resolve_preset("disturbance", self.disturbance, Disturbance, DISTURBANCE_PRESETS)
        resolved = {"randomization": config_to_dict(randomization), "disturbance": config_to_dict(disturbance)}
        return config_to_dict(self) | {"resolved": resolved}


def make_again(world: dict[str, Any], num_envs: int, seed: int, num_threads: int = 1) -> BatchEnvironment | DmControlEnvironment:
    """Return ``num_envs`` of the environments that :meth:`World.to_dict` describes.

    Raises:
        DatasetError: it does not describe environments.
    """
    try:
        resolved = world["resolved"]
        randomization = config_from_dict(Randomization, resolved["randomization"], "the data set's randomization")
        disturbance = config_from_dict(Disturbance, resolved["disturbance"], "the data set's disturbance")
        task, action_repeat = world["task"], world["action_repeat"]
    except (KeyError, TypeError) as error:
        raise DatasetError(f"the data set does not say which environments it comes from: {error}") from error
    return make(task, num_envs, seed, num_threads, action_repeat, randomization, disturbance)


def collect_episodes(
    environment: BatchEnvironment | DmControlEnvironment,
    contract: Contract,
    act: Act,
    transitions: int,
    progress: Callable[[int], object] = lambda count: None,
) -> tuple[Episode, ...]:
    """Let an actor act until there are ``transitions`` transitions, and return them in episodes.

    Whole episodes come first, in the order of their ends; those under way at the end are cut to give the exact number.

    Args:
        environment: N environments; they are reset.
        contract: gives the actor's history.
        act: the actor.
        transitions: number of transitions.
        progress: called with the number of new transitions.
    """
    history = HistoryStack(contract, environment.num_envs)
    features = environment.reset()
    under_way = [_Recording(each) for each in features]
    episodes: list[Episode] = []
    for _ in range(-(-transitions // environment.num_envs)):
        actions = np.clip(np.asarray(act(history.observe(features)), dtype=np.float32), -1.0, 1.0)
        step = environment.step(actions)
        history.push(features, actions)
        features = step.obs
        for index, recording in enumerate(under_way):
            recording.add(actions[index], step.final_obs[index], float(step.reward[index]))
            if step.terminal[index] or step.timeout[index]:
                episodes.append(recording.finish(bool(step.terminal[index])))
                under_way[index] = _Recording(features[index])
        history.clear(np.flatnonzero(step.terminal | step.timeout))
        progress(environment.num_envs)
    episodes += [recording.finish(False) for recording in under_way if recording.actions]
    return first_transitions(episodes, transitions)


def training_world(run: str | Path) -> World:
    """Return the environments that a run of ``launch/pretrain.py`` learned in.

    Raises:
        DatasetError: the folder does not say it.
    """
    file = Path(run) / "config.yaml"
    try:
        stored = yaml.safe_load(file.read_text(encoding="utf-8"))
        values = {each.name: stored[each.name] for each in dataclasses.fields(World)}
    except (OSError, yaml.YAMLError, KeyError, TypeError) as error:
        raise DatasetError(f"{run} is no run of launch/pretrain.py, as its config.yaml cannot be used: {error}") from error
    return config_from_dict(World, values, str(file))


class _Recording:
    """An episode under way."""

    def __init__(self, first: NDArray[np.float32]) -> None:
        self.observations = [first.copy()]
        self.actions: list[NDArray[np.float32]] = []
        self.rewards: list[float] = []

    def add(self, action: NDArray[np.float32], observation: NDArray[np.float32], reward: float) -> None:
        self.actions.append(action.copy())
        self.observations.append(observation.copy())
        self.rewards.append(reward)

    def finish(self, terminal: bool) -> Episode:
        return ended_episode(
            np.array(self.observations), np.array(self.actions), np.array(self.rewards, dtype=np.float32), terminal
        )


def ended_episode(
    observations: NDArray[np.float32], actions: NDArray[np.float32], rewards: NDArray[np.float32], terminal: bool
) -> Episode:
    """Return an episode that ends with its last transition, without a future or cut."""
    last = np.arange(len(actions)) == len(actions) - 1
    return Episode(observations, actions, rewards, terminations=last & terminal, truncations=last & (not terminal))


def first_transitions(episodes: Sequence[Episode], transitions: int) -> tuple[Episode, ...]:
    """Return episodes from the front until there are ``transitions`` transitions, the last one cut to fit."""
    taken: list[Episode] = []
    for episode in episodes:
        if not transitions:
            break
        if len(episode) > transitions:
            assert episode.rewards is not None
            end = transitions
            episode = ended_episode(episode.observations[: end + 1], episode.actions[:end], episode.rewards[:end], False)
        taken.append(episode)
        transitions -= len(episode)
    return tuple(taken)
