"""The data sets of the offline benchmark: made when they are first needed, in a folder beside the results."""

from __future__ import annotations

import json
import sys
from pathlib import Path

from dpg_robot.config import config_to_dict, dump_config
from dpg_robot.data.datasets import Dataset, DatasetError
from dpg_robot.data.minari_format import read_dataset, write_dataset
from dpg_robot.files import write_atomically
from dpg_robot.learning.learner import Learner
from dpg_robot.learning.trainer import Trainer
from sim.benchmarks.offline_protocol import OfflineProtocol, OfflineRun, SourceConfig
from sim.collect import World
from sim.dataset_kinds import Behaviour, CollectConfig, make_dataset

_COLLECTING_ENVIRONMENTS = 10


def dataset_folder(results: Path, task: str, kind: Behaviour) -> Path:
    """Return where a data set of the benchmark lies."""
    return results / "datasets" / task / f"{kind}-v0"


def prepare_datasets(protocol: OfflineProtocol, runs: list[OfflineRun], results: Path, show_progress: bool) -> None:
    """Make the data sets that runs need and that are not there yet.

    Raises:
        DatasetError: one that is there was made with other settings.
    """
    for task, action_repeat, kind in dict.fromkeys((run.task, run.action_repeat, run.kind) for run in runs):
        wanted = {"transitions": protocol.transitions, "source": config_to_dict(protocol.source), "action_repeat": action_repeat}
        folder = dataset_folder(results, task, kind)
        if folder.exists():
            made_with = read_dataset(folder).settings.get("benchmark")
            if made_with != json.loads(json.dumps(wanted)):
                raise DatasetError(f"{folder} was made with other settings; remove it, or choose another folder with --results")
            continue
        dataset = _make(task, action_repeat, kind, protocol, results, show_progress)
        dataset.settings["benchmark"] = wanted
        write_dataset(dataset, results / "datasets")
        print(dataset.describe(), file=sys.stderr)


def _make(
    task: str, action_repeat: int, kind: Behaviour, protocol: OfflineProtocol, results: Path, show_progress: bool
) -> Dataset:
    world = World(task, action_repeat)
    run = None if kind == "random" else _source_run(world, protocol.source, results / "sources" / task, show_progress)
    transitions = protocol.transitions
    if kind == "medium-replay":
        assert run is not None
        kept = json.loads((run / "best.json").read_text())["transitions"]
        transitions = min(transitions, kept, protocol.source.trainer.replay_capacity)
    config = CollectConfig(kind, transitions, protocol.source.seed, _COLLECTING_ENVIRONMENTS, 1, world)
    return make_dataset(config, run, f"{task}/{kind}-v0", show_progress)


def _source_run(world: World, source: SourceConfig, folder: Path, show_progress: bool) -> Path:
    """Train the policy of medium data, or go on where that was interrupted; returns the run's folder."""
    settings = {"source": config_to_dict(source), "world": config_to_dict(world)}
    record = folder / "source.json"
    if record.exists() and json.loads(record.read_text()) != json.loads(json.dumps(settings)):
        raise DatasetError(f"{folder} was trained with other settings; remove it, or choose another folder with --results")
    folder.mkdir(parents=True, exist_ok=True)
    dump_config(world, folder / "config.yaml")
    write_atomically(record, json.dumps(settings).encode())
    with world.make(source.num_envs, source.seed) as environment, world.make(10, source.seed + 1) as evaluation:
        learner = Learner(environment.contract(), source.learner, source.seed)
        trainer = Trainer(learner, source.trainer, environment, evaluation, folder, source.seed)
        trainer.resume()
        trainer.run(show_progress)
    return folder
