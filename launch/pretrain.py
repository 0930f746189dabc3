#!/usr/bin/env python
"""Pretrain policy, denoiser and baseline in simulation with randomized dynamics and disturbances."""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

import sim
from dpg_robot.config import add_config_arguments, config_from_arguments, dump_config, setting
from dpg_robot.errors import ConfigError, DpgError
from dpg_robot.files import write_atomically
from dpg_robot.learning.checkpoint import require_run_folder
from dpg_robot.learning.learner import Learner, LearnerConfig
from dpg_robot.learning.trainer import Trainer, TrainerConfig, best_checkpoint, evaluate, load_learner

CONFIGS = Path(__file__).resolve().parent.parent / "configs"


@dataclass(frozen=True)
class PretrainConfig:
    """Settings of a pretraining run."""

    task: str = setting("cartpole-swingup", "task to learn")
    seed: int = setting(0, "seed of everything random")
    num_envs: int = setting(32, "environments stepped at once")
    num_threads: int = setting(2, "threads that step the simulation; 0 for all processors")
    torch_threads: int = setting(2, "threads that compute the networks; results are the same for the same number")
    device: str = setting("cpu", "where the networks are computed: cpu, cuda, cuda:1, ...")
    action_repeat: int = setting(2, "reward steps per control step")
    history: int = setting(0, "previous (features, action) frames that the policy sees")
    randomization: str = setting("default", "randomized dynamics: a preset's name or a YAML file")
    disturbance: str = setting("default", "noise and pushes: a preset's name or a YAML file")
    privileged: bool = setting(False, "whether denoiser and baseline see the drawn dynamics; not for fine-tuning from logs")
    denoiser: str = setting(
        "", "run folder of launch/offline.py whose denoiser to begin with, learned from motion without rewards"
    )
    evaluation_episodes: int = setting(20, "episodes per evaluation, each with dynamics of its own")
    learner: LearnerConfig = setting(LearnerConfig, "the learner")
    trainer: TrainerConfig = setting(TrainerConfig, "the training run")

    def __post_init__(self) -> None:
        for name, least in (("num_envs", 1), ("torch_threads", 1), ("action_repeat", 1), ("evaluation_episodes", 2)):
            if getattr(self, name) < least:
                raise ValueError(f"{name} must be {least} or more, got {getattr(self, name)}")
        for name in ("seed", "num_threads", "history"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name} must be 0 or more, got {getattr(self, name)}")


def make_environment(config: PretrainConfig, num_envs: int, seed: int) -> sim.BatchEnvironment | sim.DmControlEnvironment:
    """Return environments as the run's settings ask for."""
    return sim.make(
        config.task,
        num_envs=num_envs,
        seed=seed,
        num_threads=config.num_threads,
        action_repeat=config.action_repeat,
        randomization=config.randomization,
        disturbance=config.disturbance,
    )


def pretrain(config: PretrainConfig, folder: Path, resume: bool, show_progress: bool) -> dict[str, Any]:
    """Train, then measure the best policy in environments that were used neither for training nor for choosing it."""
    torch.set_num_threads(config.torch_threads)
    environment = make_environment(config, config.num_envs, config.seed)
    privileged_size = len(environment.dynamics_names) if config.privileged else 0
    if config.privileged and not privileged_size:
        raise ConfigError("privileged=true needs randomized dynamics to show; choose a randomization, or set privileged=false")
    learner = Learner(environment.contract(config.history), config.learner, config.seed, config.device, privileged_size)
    if config.denoiser:
        learner.adopt_denoiser(load_learner(best_checkpoint(config.denoiser))[0])
    evaluation_environment = make_environment(config, config.evaluation_episodes, config.seed + 1_000_003)
    require_run_folder(config, folder, resume)
    trainer = Trainer(learner, config.trainer, environment, evaluation_environment, folder, config.seed)
    if resume and trainer.resume():
        print(f"resumed {folder} after {trainer.updates} updates", file=sys.stderr)
    dump_config(config, folder / "config.yaml")
    best = trainer.run(show_progress)
    policy = load_learner(best)[0].policy
    fresh = make_environment(config, config.evaluation_episodes, config.seed + 2_000_003)
    return {
        "checkpoint": str(best),
        "evaluations": trainer.evaluations,
        "return": evaluate(policy, learner.contract, fresh).to_dict(),
    }


def main() -> None:
    """Parse the command line and run."""
    parser = argparse.ArgumentParser(description=__doc__)
    add_config_arguments(parser, PretrainConfig, CONFIGS / "pretrain.yaml")
    parser.add_argument("--run", type=Path, default=Path("runs/pretrain"), help="run folder (default: %(default)s)")
    parser.add_argument("--resume", action="store_true", help="continue the run in --run where its newest checkpoint left it")
    parser.add_argument("--quiet", action="store_true", help="no progress bar")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the results to FILE too")
    arguments = parser.parse_intermixed_args()
    try:
        result = pretrain(config_from_arguments(PretrainConfig, arguments), arguments.run, arguments.resume, not arguments.quiet)
        if arguments.json:
            write_atomically(arguments.json, json.dumps(result, indent=1).encode())
    except (DpgError, OSError) as error:
        parser.exit(1, f"pretrain: {error}\n")
    score = result["return"]
    print(
        f"return {score['mean']:.1f} +- {score['standard_error']:.1f} over {len(score['returns'])} episodes under randomization"
    )
    print(f"best checkpoint: {result['checkpoint']}")


if __name__ == "__main__":
    main()
