#!/usr/bin/env python
"""The host: take in robot logs, fine-tune denoiser, baseline and policy, and release a policy that has earned it."""

from __future__ import annotations

import argparse
import json
import signal
import threading
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from dpg_robot.config import add_config_arguments, config_from_arguments, dump_config, setting
from dpg_robot.contract import Contract
from dpg_robot.data.log_following import LogFollower
from dpg_robot.errors import CheckpointError, ConfigError, DpgError, PolicyFileError
from dpg_robot.files import write_atomically
from dpg_robot.host.finetune import FinetuneConfig, finetune
from dpg_robot.host.gate import GateConfig, Verdict, decide
from dpg_robot.host.intake import take_in
from dpg_robot.host.judgement import judge
from dpg_robot.host.model_store import ModelStore
from dpg_robot.host.service import ServiceConfig
from dpg_robot.host.service_processes import SharedService
from dpg_robot.learning.checkpoint import save_checkpoint
from dpg_robot.learning.distributed import Processes, process_group_from_environment
from dpg_robot.learning.export import export_policy
from dpg_robot.learning.learner import Learner
from dpg_robot.learning.replay import Batch, ReplayBuffer
from dpg_robot.learning.trainer import Evaluation, learner_state, load_learner
from dpg_robot.policy_file import read_policy_file
from dpg_robot.release import SigningKey
from sim.fitted_simulation import FittedSimulation
from sim.robot_fitting import FittingConfig, RobotFitting
from sim.tasks import make_task

CONFIGS = Path(__file__).resolve().parent.parent / "configs"


@dataclass(frozen=True)
class HostConfig:
    """Settings of the host."""

    task: str = setting("", "task that gives rewards and evaluation; a reference for one's own, empty for the checkpoint's name")
    evaluation_episodes: int = setting(20, "simulated episodes in which candidate and current policy are compared")
    evaluation_seed: int = setting(3_000_003, "seed of these episodes")
    randomization: str = setting(
        "default", "randomized dynamics of these episodes, before the robots were fitted: a preset's name or a YAML file"
    )
    disturbance: str = setting("default", "noise and pushes in these episodes: a preset's name or a YAML file")
    torch_threads: int = setting(2, "threads that compute the networks")
    device: str = setting("cpu", "where the networks are computed: cpu, cuda, cuda:1, ...")
    service: ServiceConfig = setting(ServiceConfig, "fine-tuning as a service")
    finetune: FinetuneConfig = setting(FinetuneConfig, "fine-tuning with --once")
    gate: GateConfig = setting(GateConfig, "what a candidate must show")
    fitting: FittingConfig = setting(FittingConfig, "fitting the gate's simulation to the robots, by the service")


def simulation_of(config: HostConfig, contract: Contract, seed: int) -> FittedSimulation:
    """Return the simulated episodes of a seed, in which policies are compared."""
    return FittedSimulation(
        contract, config.task or contract.task, config.evaluation_episodes, seed, config.randomization, config.disturbance
    )


def load(config: HostConfig, checkpoint: Path, processes: Processes) -> tuple[Learner, ReplayBuffer, dict[str, Any]]:
    """Return the learner of a checkpoint, its transitions of simulation, and the settings of its training."""
    torch.set_num_threads(config.torch_threads)
    learner, tensors, state = load_learner(checkpoint, processes.device)
    if learner.privileged_size:
        raise CheckpointError(
            f"denoiser and baseline of {checkpoint} see {learner.privileged_size} drawn dynamics, which no robot log holds; "
            "pretrain with privileged=false to fine-tune"
        )
    contract, kept = learner.contract, len(tensors["replay"]["reward"])
    simulation = ReplayBuffer(kept, contract.observation_size, contract.num_actions, processes.device)
    simulation.load_state_dict(tensors["replay"] | {"added": torch.tensor(kept)})
    learner.share_updates(processes)
    return learner, simulation, state


def finetune_once(
    config: HostConfig, log: Path, checkpoint: Path, store: ModelStore, folder: Path, progress: bool, processes: Processes
) -> dict[str, Any] | None:
    """Take in, fine-tune, judge, and hand the candidate to the store; returns everything that was measured.

    Of several processes the first one does all of that; the others only learn, and return None.
    """
    if (folder / "checkpoint").exists():
        raise CheckpointError(f"{folder} holds the result of an earlier fine-tuning; choose another --run folder")
    processes.wait_for_all()  # all have looked before the first one writes
    learner, simulation, state = load(config, checkpoint, processes)
    contract, seed = learner.contract, config.evaluation_seed

    def returns(seed: int) -> Evaluation:
        return simulation_of(config, contract, seed).returns(learner.policy)

    def learn(training: Batch | None) -> dict[str, float]:
        shared = processes.batch_from_first(training).to(learner.device)
        events = folder / "tensorboard" if processes.first else None
        # the gate's episodes are others than those in which the policy is chosen
        return finetune(learner, shared, simulation, config.finetune, lambda: returns(seed + 1), events, progress)

    if not processes.first:
        learn(None)
        return None
    logged = take_in(log, contract, make_task(config.task or contract.task).measured_reward)
    training, held_out = (part.to(learner.device) for part in logged.split(config.finetune.held_out_every))

    folder.mkdir(parents=True, exist_ok=True)
    dump_config(config, folder / "config.yaml")

    before, return_before = judge(learner, held_out), returns(seed)
    metrics = learn(training)
    after, return_after = judge(learner, held_out), returns(seed)
    verdict = decide(before, after, return_before, return_after, config.gate)

    learner_tensors, learner_values = learner_state(learner)
    learner_tensors["replay"] = simulation.state_dict()
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


def serve(
    config: HostConfig,
    log: Path,
    checkpoint: Path,
    store: ModelStore,
    folder: Path,
    stop: threading.Event,
    processes: Processes,
) -> None:
    """Fine-tune on what comes until ``stop``; goes on where the folder's last checkpoint was."""
    learner, simulation, _ = load(config, checkpoint, processes)
    contract = learner.contract
    if processes.first:
        folder.mkdir(parents=True, exist_ok=True)
        dump_config(config, folder / "config.yaml")
    judged_in = simulation_of(config, contract, config.evaluation_seed)
    service = SharedService(
        learner,
        simulation,
        make_task(config.task or contract.task).measured_reward,
        judged_in.returns,
        config.service,
        config.gate,
        store,
        folder,
    )
    if not processes.first:
        service.follow()  # until the first one has heard of ``stop``
        return
    follower, fitting = LogFollower(log), RobotFitting(log, config.task or contract.task, config.fitting, folder / "fitted")
    for robot, dynamics in fitting.earlier().items():
        judged_in.use(robot, dynamics)
    resumed = service.resume()
    if resumed is not None:
        follower.load_state_dict(resumed)
        print(f"going on after {service.counts.updates} updates and {service.counts.used} transitions", flush=True)
    if not store.versions():  # robots need one to begin with
        first = Verdict(True, ("ok: the pretrained policy, without comparison",))
        store.add(lambda path: export_policy(learner.policy, contract, path), first, {"parent_checkpoint": str(checkpoint)})
    print(f"following {log}; candidates go to {store.folder}", flush=True)
    while not stop.is_set():
        proposed = service.counts.candidates
        found = follower.poll()
        for run, fault in follower.faults.items():
            service.report.complain(run, fault)
        for robot, dynamics in fitting.poll(service.robots).items():
            judged_in.use(robot, dynamics)
            service.simulation_changed()
        for robot, fault in fitting.faults.items():
            service.report.complain(f"fit of {robot}", fault)
        updates = service.round(found)
        if service.counts.candidates > proposed:
            print(describe(store), flush=True)
        if service.checkpoint_due:
            service.save(follower.state_dict())
        if not updates and not found:
            stop.wait(config.service.poll_interval_s)
    fitting.close()
    service.close(follower.state_dict())


def describe(store: ModelStore) -> str:
    """Return the newest version of a store and its verdict in words."""
    number = store.versions()[-1]
    verdict = store.verdict(number)
    title = "passed the gate and is the current one" if verdict["passed"] else "was stopped by the gate"
    return "\n".join([f"version {number} {title}", *(f"  {reason}" for reason in verdict["reasons"])])


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


def build_parser() -> argparse.ArgumentParser:
    """Return the parser with all commands."""
    parser = argparse.ArgumentParser(description=__doc__)
    subparsers = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    tune = subparsers.add_parser(
        "finetune",
        help="fine-tune on what robots log, for as long as it runs, and release what passes the gate",
        description="Follows a log folder, or the store of several robots' logs, learns from each finished episode and lets the "
        "gate judge a candidate now and then, until it is stopped by Ctrl-C or SIGTERM. Called again with the same --run it goes "
        "on where it was.",
    )
    tune.set_defaults(act=_finetune)
    add_config_arguments(tune, HostConfig, CONFIGS / "host.yaml")
    tune.add_argument("--once", action="store_true", help="fine-tune once on the log as it is, and end (settings: finetune.*)")
    tune.add_argument("--log", type=Path, required=True, help="log folder of a robot, or store of several (<robot>/<run>)")
    tune.add_argument("--checkpoint", type=Path, required=True, help="checkpoint to start from")
    tune.add_argument("--run", type=Path, default=Path("runs/finetune"), help="run folder (default: %(default)s)")
    tune.add_argument("--quiet", action="store_true", help="no progress bar")
    tune.add_argument("--json", type=Path, metavar="FILE", help="with --once: write the results to FILE too")
    publish = subparsers.add_parser("publish", help="put a policy into the store by hand, as the first one or to replace one")
    publish.set_defaults(act=_publish)
    publish.add_argument("--policy", type=Path, required=True, help="policy.onnx to publish")
    rollback = subparsers.add_parser("rollback", help="make an earlier version the current one again")
    rollback.set_defaults(act=_roll_back)
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
    key.set_defaults(act=lambda arguments: make_keys(arguments.path))
    key.add_argument("path", type=Path, metavar="KEY", help="file of the private key; the public one gets .pub behind its name")
    return parser


def main() -> None:
    """Parse the command line and run."""
    parser = build_parser()
    arguments = parser.parse_args()
    try:
        arguments.act(arguments)
    except (DpgError, OSError) as error:
        parser.exit(1, f"host: {error}\n")


def _store(arguments: argparse.Namespace) -> ModelStore:
    return ModelStore(arguments.store, SigningKey.load(arguments.sign) if arguments.sign else None, arguments.robots)


def _finetune(arguments: argparse.Namespace) -> None:
    config = config_from_arguments(HostConfig, arguments)
    places = (config, arguments.log, arguments.checkpoint, _store(arguments), arguments.run)
    if not arguments.once:
        if arguments.json:
            raise ConfigError("--json needs --once; a service tells what it does in status.json and metrics.jsonl of its --run")
        stop = threading.Event()
        for number in (signal.SIGINT, signal.SIGTERM):
            # in a thread, as the signal may come while this one holds the lock of the event
            signal.signal(number, lambda *_: threading.Thread(target=stop.set).start())
        with process_group_from_environment(config.device) as processes:
            serve(*places, stop, processes)
        return
    with process_group_from_environment(config.device) as processes:
        result = finetune_once(*places, processes.first and not arguments.quiet, processes)
    if result is None:
        return
    if arguments.json:
        write_atomically(arguments.json, json.dumps(result, indent=1).encode())
    counts = result["transitions"]
    print(f"transitions: {counts['received']} received, {counts['used']} used, {counts['excluded']} excluded")
    print("\n".join(result["verdict"]["reasons"]))
    changed = result["metrics"]["policy/changed"]
    print("the policy was improved" if changed else "the policy was kept: none met in fine-tuning was better beyond noise")
    print(f"published {result['policy']}" if result["verdict"]["passed"] else f"not published; kept as {result['version']}")


def _publish(arguments: argparse.Namespace) -> None:
    print(f"published {publish_by_hand(_store(arguments), arguments.policy)}")


def _roll_back(arguments: argparse.Namespace) -> None:
    store = _store(arguments)
    verdict = store.verdict(arguments.to)
    if not verdict["passed"] and not arguments.rejected:
        reasons = "; ".join(verdict["reasons"])
        raise PolicyFileError(f"version {arguments.to} did not pass the gate ({reasons}); --rejected takes it nevertheless")
    store.publish(arguments.to, arguments.reason)
    print(f"version {arguments.to} is the current one again")


if __name__ == "__main__":
    main()
