"""Data sets of three kinds, as offline learning is usually measured on: random, medium and medium-replay."""

from __future__ import annotations

import re
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from tqdm import tqdm

from dpg_robot.config import setting
from dpg_robot.contract import Contract
from dpg_robot.data.datasets import Dataset, DatasetError, Episode, with_history
from dpg_robot.learning.learner import Learner
from dpg_robot.learning.trainer import best_checkpoint, load_learner
from sim.collect import Act, World, collect_episodes, training_world
from sim.replay_episodes import episodes_from_replay

Behaviour = Literal["random", "medium", "medium-replay"]


@dataclass(frozen=True)
class CollectConfig:
    """Settings of a data set."""

    behaviour: Behaviour = setting(
        "random", "who acts: random (uniform actions), medium (a run's policy with its noise), medium-replay (a run's replay)"
    )
    transitions: int = setting(100_000, "transitions; for medium-replay, 0 takes all that are there")
    seed: int = setting(0, "seed of everything random")
    num_envs: int = setting(16, "environments stepped at once; each episode under way at the end is cut")
    num_threads: int = setting(2, "threads that step the simulation; 0 for all processors")
    world: World = setting(World, "the environments; medium and medium-replay take those that the run learned in")

    def __post_init__(self) -> None:
        least = 0 if self.behaviour == "medium-replay" else 1
        for name, minimum in (("transitions", least), ("num_envs", 1), ("seed", 0), ("num_threads", 0)):
            if getattr(self, name) < minimum:
                raise ValueError(f"{name} must be {minimum} or more, got {getattr(self, name)}")


def make_dataset(config: CollectConfig, run: Path | None, name: str | None, show_progress: bool) -> Dataset:
    """Return a data set.

    Args:
        config: settings.
        run: run folder of launch/pretrain.py, for a behaviour that was learned.
        name: Minari's id; None for task and behaviour.
        show_progress: whether to show a progress bar.
    """
    if config.behaviour == "random":
        world, learner = config.world, None
    else:
        if run is None:
            raise DatasetError(f"behaviour={config.behaviour} needs the run folder of a training run; name it with --run")
        world = training_world(run)
        learner, tensors, state = load_learner(best_checkpoint(run))
    settings: dict[str, Any] = {"behaviour": config.behaviour, "seed": config.seed, "world": world.to_dict()}
    if learner is not None:
        settings |= {"history": learner.contract.history, "policy_updates": int(learner.updates)}
    if config.behaviour == "medium-replay":
        assert learner is not None
        contract = learner.contract
        episodes = episodes_from_replay(
            {key: value.numpy() for key, value in tensors["replay"].items()},
            contract,
            state["trainer"]["replay_capacity"],
            len(tensors["collector"]["collector.features"]),
            config.transitions or None,
            config.seed,
        )
    else:
        contract, episodes = act_in(world, learner, config, show_progress)
    name = name or f"{re.sub(r'[^-A-Za-z0-9_]+', '_', contract.task)}/{config.behaviour}-v0"
    return Dataset(name, with_history(contract, 0), episodes, settings)


def act_in(
    world: World, learner: Learner | None, config: CollectConfig, show_progress: bool
) -> tuple[Contract, tuple[Episode, ...]]:
    """Let random actions, or a learner's policy with its noise, act in a world."""
    with world.make(config.num_envs, config.seed, config.num_threads) as environment:
        contract = environment.contract(learner.contract.history if learner else 0)
        if learner is not None:
            learner.contract.require_equal(contract, ours="the run", theirs="the simulation")
            learner.generator.manual_seed(config.seed)
        act = policy_act(learner) if learner is not None else random_act(contract.num_actions, config.seed)
        with tqdm(total=config.transitions, unit="transition", disable=not show_progress, file=sys.stderr) as bar:
            return contract, collect_episodes(environment, contract, act, config.transitions, bar.update)


def random_act(num_actions: int, seed: int) -> Act:
    """Return an actor that draws uniform actions."""
    random = np.random.default_rng(seed)
    return lambda observation: random.uniform(-1.0, 1.0, (len(observation), num_actions))


def policy_act(learner: Learner) -> Act:
    """Return an actor that explores as the learner does."""

    def act(observation: NDArray[np.float32]) -> NDArray[Any]:
        action: NDArray[Any] = learner.act(torch.from_numpy(observation)).numpy()
        return action

    return act
