#!/usr/bin/env python
"""Train policy, denoiser and baseline on a data set alone; or go on online from such a run without losing what it learned."""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from dpg_robot.config import add_config_arguments, config_from_arguments, dump_config, setting
from dpg_robot.data.datasets import Dataset, DatasetError, with_history
from dpg_robot.data.episode_source import Survey, read_if_small, survey
from dpg_robot.data.minari_format import MinariSource
from dpg_robot.errors import DpgError
from dpg_robot.files import write_atomically
from dpg_robot.learning.checkpoint import load_checkpoint, require_run_folder
from dpg_robot.learning.distributed import Processes, process_group_from_environment
from dpg_robot.learning.learner import LearnerConfig
from dpg_robot.learning.offline import BehaviourConfig, OfflineLearner, to_batch
from dpg_robot.learning.offline_data import DataInMemory, OfflineData, StreamedData
from dpg_robot.learning.offline_trainer import OfflineTrainer, OfflineTrainerConfig
from dpg_robot.learning.online import OnlineConfig, OnlineTrainer
from dpg_robot.learning.trainer import Evaluation, best_checkpoint, evaluate, load_learner, restore_learner
from sim.collect import make_again


@dataclass(frozen=True)
class OfflineConfig:
    """Settings of learning from a data set."""

    data: Path = setting(Path("datasets/cartpole-swingup/medium-v0"), "folder of the data set, in Minari's format")
    rate_hz: float = setting(20.0, "control rate of a data set that does not say it", unit="1/s")
    memory_limit: int = setting(
        2_000_000, "transitions that are held in memory; a larger data set is read from disk while learning", unit="transitions"
    )
    history: int = setting(0, "previous (features, action) frames that the policy sees")
    seed: int = setting(0, "seed of everything random")
    torch_threads: int = setting(2, "threads that compute the networks; results are the same for the same number")
    num_threads: int = setting(2, "threads that step the simulation; 0 for all processors")
    device: str = setting("cpu", "where the networks are computed: cpu, cuda, cuda:1, ...")
    evaluation_episodes: int = setting(10, "episodes per evaluation in simulation, where the data came from one; 0 for none")
    learner: LearnerConfig = setting(
        lambda: LearnerConfig(n_steps=1), "the learner; longer steps would learn the value of what the behaviour did next"
    )
    behaviour: BehaviourConfig = setting(BehaviourConfig, "how the policy is held to the data")
    trainer: OfflineTrainerConfig = setting(OfflineTrainerConfig, "the training run")
    online: OnlineConfig = setting(OnlineConfig, "going on online (with --online)")

    def __post_init__(self) -> None:
        least_of = {"torch_threads": 1, "num_threads": 0, "seed": 0, "memory_limit": 1, "history": 0, "evaluation_episodes": 0}
        for name, least in least_of.items():
            if getattr(self, name) < least:
                raise ValueError(f"{name} must be {least} or more, got {getattr(self, name)}")
        if self.evaluation_episodes == 1:
            raise ValueError("evaluation_episodes must be 0, or 2 or more, got 1")
        if not self.rate_hz > 0:
            raise ValueError(f"rate_hz must be positive, got {self.rate_hz}")


def train_offline(config: OfflineConfig, folder: Path, resume: bool, show_progress: bool, processes: Processes) -> dict[str, Any]:
    """Train on the data set, and measure the policy where there is a simulation of its world."""
    dataset, learner = prepare(config, processes.device)
    data = data_for(learner, dataset, config)
    require_run_folder(config, folder, resume)
    processes.wait_for_all()  # all have looked before the first one writes
    judge = Judge(dataset, config, learner)
    trainer = OfflineTrainer(learner, config.trainer, data, folder, judge.evaluate if judge.possible else None, config.seed)
    if resume and trainer.resume():
        print(f"resumed {folder} after {trainer.updates} updates", file=sys.stderr)
    learner.share_updates(processes)
    if processes.first:
        dump_config(config, folder / "config.yaml")
    checkpoint = trainer.run(show_progress)
    final = judge.evaluate_afresh().to_dict() if judge.possible else None
    return {"checkpoint": str(checkpoint), "dataset": dataset.describe(), "evaluations": trainer.evaluations, "return": final}


def train_online(config: OfflineConfig, start: Path, folder: Path, resume: bool, show_progress: bool) -> dict[str, Any]:
    """Go on in simulation from the result of an offline run."""
    dataset, learner = prepare(config, config.device)
    if isinstance(dataset, Survey):
        raise DatasetError(
            f"going on online needs the data set in memory; set memory_limit to its {dataset.transitions} transitions or more"
        )
    if not dataset.has_rewards:
        raise DatasetError(f"{dataset.name} has no rewards, so nothing was learned that online learning could go on from")
    if config.evaluation_episodes == 0:
        raise DatasetError("online learning keeps the best policy by evaluation; set evaluation_episodes to 2 or more")
    tensors, state = load_checkpoint(best_checkpoint(start))
    restore_learner(learner, tensors, state)
    require_run_folder(config, folder, resume)
    world = require_world(dataset)
    environment = make_again(world, config.online.num_envs, config.seed + 3_000_017, config.num_threads)
    judge = Judge(dataset, config, learner)
    data = to_batch(dataset.transitions(config.history), dataset.contract)
    trainer = OnlineTrainer(learner, config.online, data, environment, judge.environment, folder, config.seed)
    if resume and trainer.resume():
        print(f"resumed {folder} after {trainer.updates} updates", file=sys.stderr)
    dump_config(config, folder / "config.yaml")
    best = trainer.run(show_progress)
    drop, drop_error = trainer.largest_drop()
    judge.learner = load_learner(best)[0]
    return {
        "checkpoint": str(best),
        "evaluations": trainer.evaluations,
        "largest_drop": {"mean": drop, "standard_error": drop_error},
        "return": judge.evaluate_afresh().to_dict(),
    }


def prepare(config: OfflineConfig, device: str) -> tuple[Dataset | Survey, OfflineLearner]:
    """Return the data set, or what it holds where that is more than goes into memory, and a new learner for it."""
    torch.set_num_threads(config.torch_threads)
    source = MinariSource(config.data, config.rate_hz)
    dataset = read_if_small(source, config.memory_limit) or survey(source)
    print(dataset.describe(), file=sys.stderr)
    contract = with_history(dataset.contract, config.history)
    learner = OfflineLearner(contract, config.learner, config.behaviour, config.seed, device, dataset.has_rewards)
    if not dataset.has_rewards:
        print(
            "without rewards only the denoiser is trained, and the policy to do what the data did; there is no baseline to trust",
            file=sys.stderr,
        )
    return dataset, learner


def data_for(learner: OfflineLearner, dataset: Dataset | Survey, config: OfflineConfig) -> OfflineData:
    """Return what a learner gets its batches from."""
    if isinstance(dataset, Dataset):
        return DataInMemory(learner, to_batch(dataset.transitions(config.history), dataset.contract))
    print("it is read from disk while learning, as it has more transitions than memory_limit", file=sys.stderr)
    return StreamedData(learner, MinariSource(config.data, config.rate_hz), dataset, config.memory_limit, config.seed)


def require_world(dataset: Dataset) -> dict[str, Any]:
    """Return the description of the simulation that the data came from."""
    world = dataset.settings.get("world")
    if not isinstance(world, dict):
        raise DatasetError(
            f"{dataset.name} does not come from a simulation of launch/collect.py, so there is nowhere to go on online"
        )
    return world


class Judge:
    """Evaluates a learner's policy in the simulation that the data came from.

    Args:
        dataset: the data.
        config: settings.
        learner: its present policy is evaluated.
    """

    def __init__(self, dataset: Dataset | Survey, config: OfflineConfig, learner: OfflineLearner) -> None:
        self.learner: Any = learner
        self._config, self._world = config, dataset.settings.get("world")
        self.possible = isinstance(self._world, dict) and config.evaluation_episodes > 0
        if self.possible:
            self.environment = self._make(config.seed + 1_000_003)
            self._start = self.environment.state_dict()

    def evaluate(self) -> Evaluation:
        """Return the returns of the mean policy, always in the same episodes."""
        self.environment.load_state_dict(self._start)
        return evaluate(self.learner.policy, self.learner.contract, self.environment)

    def evaluate_afresh(self) -> Evaluation:
        """Return the returns in episodes that were never used before."""
        return evaluate(self.learner.policy, self.learner.contract, self._make(self._config.seed + 2_000_003))

    def _make(self, seed: int) -> Any:
        assert isinstance(self._world, dict)
        return make_again(self._world, self._config.evaluation_episodes, seed, self._config.num_threads)


def main() -> None:
    """Parse the command line and run."""
    parser = argparse.ArgumentParser(description=__doc__)
    add_config_arguments(parser, OfflineConfig, None)
    parser.add_argument("--run", type=Path, default=Path("runs/offline"), help="run folder (default: %(default)s)")
    parser.add_argument(
        "--online", type=Path, metavar="OFFLINE_RUN", help="go on in simulation from this run, with its settings; --run is new"
    )
    parser.add_argument("--resume", action="store_true", help="continue the run in --run where its newest checkpoint left it")
    parser.add_argument("--quiet", action="store_true", help="no progress bar")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the results to FILE too")
    arguments = parser.parse_intermixed_args()
    try:
        if arguments.online:
            arguments.config = arguments.config or arguments.online / "config.yaml"
        config = config_from_arguments(OfflineConfig, arguments)
        if arguments.online:
            result = train_online(config, arguments.online, arguments.run, arguments.resume, not arguments.quiet)
        else:
            with process_group_from_environment(config.device) as processes:
                quiet = arguments.quiet or not processes.first
                result = train_offline(config, arguments.run, arguments.resume, not quiet, processes)
                if not processes.first:
                    return
        if arguments.json:
            write_atomically(arguments.json, json.dumps(result, indent=1).encode())
    except (DpgError, OSError) as error:
        parser.exit(1, f"offline: {error}\n")
    print(describe(result))


def describe(result: dict[str, Any]) -> str:
    """Return what came out, in a few lines."""
    lines = []
    if score := result["return"]:
        lines.append(f"return {score['mean']:.1f} +- {score['standard_error']:.1f} over {len(score['returns'])} episodes")
    else:
        lines.append("not evaluated in simulation")
    if drop := result.get("largest_drop"):
        first = result["evaluations"][0]["mean"]
        lines.append(f"largest drop below the offline policy's {first:.1f}: {drop['mean']:.1f} +- {drop['standard_error']:.1f}")
    lines.append(f"checkpoint: {result['checkpoint']}")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
