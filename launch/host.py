#!/usr/bin/env python
"""The host: take in robot logs, fine-tune denoiser, baseline and policy, and release a policy that has earned it."""

from __future__ import annotations

import argparse
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

import sim
from dpg_robot.config import add_config_arguments, config_from_arguments, dump_config, setting
from dpg_robot.errors import CheckpointError, DpgError, PolicyFileError
from dpg_robot.files import write_atomically
from dpg_robot.host.finetune import FinetuneConfig, finetune, judge
from dpg_robot.host.gate import GateConfig, Verdict, decide
from dpg_robot.host.intake import take_in
from dpg_robot.host.model_store import ModelStore
from dpg_robot.learning.checkpoint import save_checkpoint
from dpg_robot.learning.export import export_policy
from dpg_robot.learning.learner import Learner
from dpg_robot.learning.replay import ReplayBuffer
from dpg_robot.learning.trainer import Evaluation, evaluate, learner_state, load_learner
from dpg_robot.policy_file import read_policy_file
from dpg_robot.release import SigningKey
from sim.tasks import make_task

CONFIGS = Path(__file__).resolve().parent.parent / "configs"


@dataclass(frozen=True)
class HostConfig:
    """Settings of the host."""

    task: str = setting("", "task that gives rewards and evaluation; a reference for one's own, empty for the checkpoint's name")
    evaluation_episodes: int = setting(20, "simulated episodes in which candidate and current policy are compared")
    evaluation_seed: int = setting(3_000_003, "seed of these episodes")
    randomization: str = setting("default", "randomized dynamics of these episodes: a preset's name or a YAML file")
    disturbance: str = setting("default", "noise and pushes in these episodes: a preset's name or a YAML file")
    torch_threads: int = setting(2, "threads that compute the networks")
    device: str = setting("cpu", "where the networks are computed: cpu, cuda, cuda:1, ...")
    finetune: FinetuneConfig = setting(FinetuneConfig, "fine-tuning")
    gate: GateConfig = setting(GateConfig, "what a candidate must show")


def evaluate_in_simulation(learner: Learner, config: HostConfig, seed: int) -> Evaluation:
    """Return the policy's returns in the simulated episodes of a seed."""
    contract = learner.contract
    environment = sim.make(
        config.task or contract.task,
        num_envs=config.evaluation_episodes,
        seed=seed,
        action_repeat=contract.action_repeat,
        randomization=config.randomization,
        disturbance=config.disturbance,
    )
    return evaluate(learner.policy, contract, environment)


def run(config: HostConfig, log: Path, checkpoint: Path, store: ModelStore, folder: Path, progress: bool) -> dict[str, Any]:
    """Take in, fine-tune, judge, and hand the candidate to the store; returns everything that was measured."""
    torch.set_num_threads(config.torch_threads)
    if (folder / "checkpoint").exists():
        raise CheckpointError(f"{folder} holds the result of an earlier fine-tuning; choose another --run folder")
    learner, tensors, state = load_learner(checkpoint, config.device)
    if learner.privileged_size:
        raise CheckpointError(
            f"denoiser and baseline of {checkpoint} see {learner.privileged_size} drawn dynamics, which no robot log holds; "
            "pretrain with privileged=false to fine-tune"
        )
    contract = learner.contract
    logged = take_in(log, contract, make_task(config.task or contract.task).measured_reward)
    training, held_out = logged.split(config.finetune.held_out_every)
    simulation = ReplayBuffer(len(tensors["replay"]["reward"]), contract.observation_size, contract.num_actions, config.device)
    simulation.load_state_dict(tensors["replay"] | {"added": torch.tensor(len(tensors["replay"]["reward"]))})

    folder.mkdir(parents=True, exist_ok=True)
    dump_config(config, folder / "config.yaml")
    seed = config.evaluation_seed  # the gate's episodes are others than those in which the policy was chosen
    before, return_before = judge(learner, held_out), evaluate_in_simulation(learner, config, seed)

    def returns() -> Evaluation:
        return evaluate_in_simulation(learner, config, seed + 1)

    metrics = finetune(learner, training, simulation, config.finetune, returns, folder / "tensorboard", progress)
    after, return_after = judge(learner, held_out), evaluate_in_simulation(learner, config, seed)
    verdict = decide(before, after, return_before, return_after, config.gate)

    learner_tensors, learner_values = learner_state(learner)
    learner_tensors["replay"] = tensors["replay"]
    save_checkpoint(
        folder / "checkpoint", learner_tensors, learner_values | {"parent": str(checkpoint), "trainer": state.get("trainer")}
    )
    facts = {
        "transitions": {
            "received": logged.received,
            "used": logged.used,
            "excluded": logged.excluded,
            "trained_on": len(training),
            "held_out": len(held_out),
        },
        "before": before.to_dict() | {"return_in_simulation": return_before.to_dict()},
        "after": after.to_dict() | {"return_in_simulation": return_after.to_dict()},
        "metrics": metrics,
        "parent_checkpoint": str(checkpoint),
    }
    summary = {"finetuned_updates": config.finetune.updates, "transitions": facts["transitions"]}
    version = store.add(lambda path: export_policy(learner.policy, contract, path, training=summary), verdict, facts)
    return facts | {"verdict": verdict.to_dict(), "version": str(version), "policy": str(store.current)}


def publish_by_hand(store: ModelStore, policy: Path) -> Path:
    """Make a policy file the store's current one, on the user's own word; returns its version folder."""
    content, _ = read_policy_file(policy)
    verdict = Verdict(True, ("ok: published by hand, without comparison",))
    return store.add(lambda path: path.write_bytes(content), verdict, {"source": str(policy)})


def make_keys(path: Path) -> None:
    """Write a new pair of keys; neither file may exist."""
    public = path.with_name(f"{path.name}.pub")
    if public.exists():
        raise FileExistsError(f"{public} exists already; choose another name")
    key = SigningKey.generate()
    key.save(path)
    key.public.save(public)
    print(f"key {key.public.id}: {path} signs (keep it on the host, and a copy in a safe place), {public} is for the robots")


def main() -> None:
    """Parse the command line and run."""
    parser = argparse.ArgumentParser(description=__doc__)
    subparsers = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    tune = subparsers.add_parser("finetune", help="fine-tune on a log folder once, and publish if the gate passes")
    add_config_arguments(tune, HostConfig, CONFIGS / "host.yaml")
    tune.add_argument("--log", type=Path, required=True, help="log folder of the robot (all runs in it), or one run folder")
    tune.add_argument("--checkpoint", type=Path, required=True, help="checkpoint to start from")
    tune.add_argument("--run", type=Path, default=Path("runs/finetune"), help="run folder (default: %(default)s)")
    tune.add_argument("--quiet", action="store_true", help="no progress bar")
    tune.add_argument("--json", type=Path, metavar="FILE", help="write the results to FILE too")
    publish = subparsers.add_parser("publish", help="put a policy into the store by hand, as the first one or to replace one")
    publish.add_argument("--policy", type=Path, required=True, help="policy.onnx to publish")
    rollback = subparsers.add_parser("rollback", help="make an earlier version the current one again")
    rollback.add_argument("--to", type=int, required=True, metavar="N", help="number of the version")
    rollback.add_argument("--reason", default="rolled back by hand", help="why, for those who read the release")
    rollback.add_argument("--rejected", action="store_true", help="also a version that did not pass the gate")
    for command in (tune, publish, rollback):
        command.add_argument("--store", type=Path, default=Path("runs/store"), help="model store (default: %(default)s)")
        command.add_argument("--sign", type=Path, metavar="KEY", help="private key that signs releases (default: none is made)")
        command.add_argument(
            "--for",
            action="append",
            default=[],
            dest="robots",
            metavar="NAME",
            help="robot that they are for; several times (default: all)",
        )
    key = subparsers.add_parser("key", help="make a pair of keys: KEY signs releases, KEY.pub is what robots trust")
    key.add_argument("path", type=Path, metavar="KEY", help="file of the private key; the public one gets .pub behind its name")
    arguments = parser.parse_args()
    try:
        if arguments.command == "key":
            make_keys(arguments.path)
            return
        store = ModelStore(arguments.store, SigningKey.load(arguments.sign) if arguments.sign else None, arguments.robots)
        if arguments.command == "publish":
            print(f"published {publish_by_hand(store, arguments.policy)}")
            return
        if arguments.command == "rollback":
            verdict = store.verdict(arguments.to)
            if not verdict["passed"] and not arguments.rejected:
                reasons = "; ".join(verdict["reasons"])
                raise PolicyFileError(
                    f"version {arguments.to} did not pass the gate ({reasons}); --rejected takes it nevertheless"
                )
            store.publish(arguments.to, arguments.reason)
            print(f"version {arguments.to} is the current one again")
            return
        config = config_from_arguments(HostConfig, arguments)
        result = run(config, arguments.log, arguments.checkpoint, store, arguments.run, not arguments.quiet)
        if arguments.json:
            write_atomically(arguments.json, json.dumps(result, indent=1).encode())
    except (DpgError, OSError) as error:
        parser.exit(1, f"host: {error}\n")
    counts = result["transitions"]
    print(f"transitions: {counts['received']} received, {counts['used']} used, {counts['excluded']} excluded")
    print("\n".join(result["verdict"]["reasons"]))
    changed = result["metrics"]["policy/changed"]
    print("the policy was improved" if changed else "the policy was kept: none met in fine-tuning was better beyond noise")
    print(f"published {result['policy']}" if result["verdict"]["passed"] else f"not published; kept as {result['version']}")


if __name__ == "__main__":
    main()
