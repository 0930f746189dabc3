#!/usr/bin/env python
"""Make a data set in simulation, in Minari's format: by random actions, by a policy that explores, or from a run's replay."""

from __future__ import annotations

import argparse
import json
from dataclasses import replace
from pathlib import Path

import torch

from dpg_robot.config import add_config_arguments, config_from_arguments
from dpg_robot.data.minari_format import write_dataset
from dpg_robot.errors import DpgError
from dpg_robot.files import write_atomically
from sim.dataset_kinds import CollectConfig, make_dataset


def main() -> None:
    """Parse the command line and run."""
    parser = argparse.ArgumentParser(description=__doc__)
    add_config_arguments(parser, CollectConfig, None)
    parser.add_argument("--run", type=Path, help="run folder of launch/pretrain.py, whose best checkpoint is taken")
    parser.add_argument("--root", type=Path, default=Path("datasets"), help="folder of all data sets (default: %(default)s)")
    parser.add_argument("--name", help="name of the data set (default: TASK/BEHAVIOUR-v0)")
    parser.add_argument("--without-rewards", action="store_true", help="leave the rewards out, as in a log of mere motion")
    parser.add_argument("--quiet", action="store_true", help="no progress bar")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write what is in the data set to FILE too")
    arguments = parser.parse_intermixed_args()
    torch.set_num_threads(1)  # the simulation is what takes time
    try:
        config = config_from_arguments(CollectConfig, arguments)
        dataset = make_dataset(config, arguments.run, arguments.name, not arguments.quiet)
        if arguments.without_rewards:
            dataset = replace(dataset, episodes=tuple(replace(episode, rewards=None) for episode in dataset.episodes))
        folder = write_dataset(dataset, arguments.root)
        if arguments.json:
            facts = {
                "dataset": str(folder),
                "transitions": len(dataset),
                "episodes": len(dataset.episodes),
                "returns": dataset.returns.tolist(),
            }
            write_atomically(arguments.json, json.dumps(facts | dataset.settings, indent=1).encode())
    except (DpgError, OSError) as error:
        parser.exit(1, f"collect: {error}\n")
    print(dataset.describe())
    print(f"data set: {folder}")


if __name__ == "__main__":
    main()
