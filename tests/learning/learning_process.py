"""A process of those that learn together in the tests: ``learning_process.py TASK FOLDER``, started once for each rank."""

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path

import torch
from safetensors.torch import save_file

from dpg_robot.contract import CommandChannel, Contract, Feature, MeasurementChannel
from dpg_robot.learning.distributed import ONE_PROCESS, PeerError, Processes, process_group_from_environment
from dpg_robot.learning.learner import Learner, LearnerConfig
from dpg_robot.learning.offline import BehaviourConfig, OfflineLearner
from dpg_robot.learning.replay import Batch

UPDATES = 20
FEW_UPDATES = 4  # enough to show that something is left out
SIZE = 32
NAMES = ("here", "there", "speed")
CONTRACT = Contract(
    task="shared",
    measurements=tuple(MeasurementChannel(name, "m") for name in NAMES),
    features=tuple(Feature("identity", name) for name in NAMES),
    commands=(CommandChannel("push", "N", -1.0, 1.0), CommandChannel("turn", "N", -1.0, 1.0)),
    rate_hz=10.0,
    history=1,
)
# every kind of gradient, where it is learned, and each way to learn offline; "offline" names what pulls there
VARIANTS: dict[str, dict[str, object]] = {
    "default": {},
    "head": {"amortization": "head"},
    "control_variate": {"control_variate": True},
    "next_state": {"gradient": "next_state"},
    "target": {"gradient": "target"},
    "features": {"gradient": "features", "learned_features": 2, "control_variate": True},
    "plain": {"gradient": "plain"},
    "plain_control_variate": {"gradient": "plain", "control_variate": True},
    "critic": {"gradient": "critic"},
    "offline_denoiser": {"offline": "denoiser"},
    "offline_actions": {"offline": "actions"},
    "offline_critic": {"offline": "actions", "gradient": "critic"},
}
IN_SINGLE_PRECISION = ("default", "features", "offline_denoiser")


def make_learner(variant: str) -> Learner:
    """Return a new learner, the same in every process."""
    settings = dict(VARIANTS[variant])
    pull = settings.pop("offline", None)
    config = LearnerConfig(hidden_sizes=(16, 16), batch_size=SIZE, target_update=0.05, **settings)
    if pull is None:
        return Learner(CONTRACT, config, seed=3)
    return OfflineLearner(CONTRACT, config, BehaviourConfig(pull=pull), seed=3)


def make_batch(seed: int, count: int = SIZE) -> Batch:
    """Return random transitions of one to three control steps; their spread differs from row to row."""
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator) * torch.linspace(0.5, 2.0, count).view(-1, *[1] * (len(shape) - 1))

    observation, action = normal(count, CONTRACT.observation_size), torch.tanh(normal(count, 2))
    next_observation = observation + 0.3 * normal(count, CONTRACT.observation_size)
    reward = next_observation[:, 0] - action.square().sum(-1) + normal(count)
    terminal = (torch.rand(count, generator=generator) < 0.1).to(reward)
    steps = torch.randint(1, 4, (count,), generator=generator).to(reward)
    return Batch(observation, action, reward, next_observation, terminal, steps)


def learn(variant: str, processes: Processes = ONE_PROCESS, updates: int = UPDATES) -> dict[str, torch.Tensor]:
    """Return all weights, statistics and the last metrics after some updates."""
    learner = make_learner(variant)
    learner.observe(make_batch(1000, 100))
    learner.share_updates(processes)
    metrics: dict[str, torch.Tensor] = {}
    for update in range(updates):
        metrics |= learner.update(make_batch(update))
    if learner.config.gradient != "critic":
        metrics |= {f"pretraining/{name}": value for name, value in learner.update_denoiser(make_batch(1001)).items()}
    acted = learner.act(torch.ones(3, CONTRACT.observation_size))
    return {**learner.state_dict(), **{f"metric.{name}": value for name, value in metrics.items()}, "acted": acted}


def learn_all(processes: Processes, folder: Path) -> None:
    """Learn with every variant in both precisions; each process saves what it ended with."""
    for dtype, variants in ((torch.float32, IN_SINGLE_PRECISION), (torch.float64, VARIANTS)):
        torch.set_default_dtype(dtype)
        for variant in variants:
            result = {name: value.contiguous() for name, value in learn(variant, processes).items()}
            save_file(result, folder / f"{variant}-{str(dtype).removeprefix('torch.')}-{processes.rank}.safetensors")


def learn_without(processes: Processes, folder: Path) -> None:
    """Learn with one of the exchanges left out; the first process saves what it ended with."""
    torch.set_default_dtype(torch.float64)
    whole = Processes.means

    def leave_out_gradients(self: Processes, parameters: object) -> None:
        del self, parameters

    def leave_out_statistics(self: Processes, values: list[torch.Tensor]) -> list[torch.Tensor]:
        few = sum(value.numel() for value in values) <= 2  # gradients are many numbers
        return list(values) if few else whole(self, values)

    for name, method, substitute, variant in (
        ("gradients", "average_gradients", leave_out_gradients, "default"),
        ("statistics", "means", leave_out_statistics, "default"),
        ("statistics_of_features", "means", leave_out_statistics, "features"),
        ("statistics_offline", "means", leave_out_statistics, "offline_denoiser"),
        ("noise", "share", lambda self, rows: rows[: len(rows) // self.count], "default"),
    ):
        original = getattr(Processes, method)
        setattr(Processes, method, substitute)
        result = learn(variant, processes, FEW_UPDATES)
        setattr(Processes, method, original)
        if processes.first:
            save_file({key: value.contiguous() for key, value in result.items()}, folder / f"without_{name}.safetensors")


def say_different_things(processes: Processes, folder: Path) -> None:
    """Try what has to be refused in all processes, and the exchange of bytes; each process writes down what happened."""
    messages = {}
    learner = make_learner("default")
    with torch.no_grad():
        learner.log_temperature += 0.1 * processes.rank
    try:
        learner.share_updates(processes)
    except PeerError as error:
        messages["weights"] = str(error)
    learner = make_learner("default")
    learner.generator.manual_seed(processes.rank)
    try:
        learner.share_updates(processes)
    except PeerError as error:
        messages["generator"] = str(error)
    messages["bytes"] = processes.bytes_from_first(lambda: f"from {processes.rank}".encode()).decode()
    messages["nothing"] = processes.bytes_from_first(lambda: b"").decode()
    rows = torch.arange(6.0)
    gathered = processes.gather([processes.share(rows), processes.share(rows.view(6, 1, 1).expand(6, 2, 3))])
    messages["gathered"] = [each.tolist() for each in gathered]
    processes.wait_for_all()
    (folder / f"said-{processes.rank}.json").write_text(json.dumps(messages))


def end_early(processes: Processes, folder: Path) -> None:
    """The second process ends in the middle of learning, without a word."""
    learner = make_learner("default")
    learner.share_updates(processes)
    for update in range(1000):
        if update == 3 and not processes.first:
            os._exit(9)
        learner.update(make_batch(update))


def hang(processes: Processes, folder: Path) -> None:
    """The second process does not take part until the first one has given up, and written down why."""
    given_up = folder / "given_up"
    if processes.first:
        try:
            processes.wait_for_all()
        except PeerError as error:
            given_up.write_text(str(error))
    deadline_s = time.monotonic() + 60
    while not given_up.exists() and time.monotonic() < deadline_s:
        time.sleep(0.05)


def main() -> None:
    """Do what the command line names; a lost peer is told on stderr and ends with status 3."""
    torch.set_num_threads(1)
    tasks = {task.__name__: task for task in (learn_all, learn_without, say_different_things, end_early, hang)}
    folder, names = Path(sys.argv[1]), sys.argv[2:]
    try:
        with process_group_from_environment("cpu", timeout_s=10.0 if "hang" in names else 60.0) as processes:
            for name in names:
                tasks[name](processes, folder)
    except PeerError as error:
        print(error, file=sys.stderr, flush=True)
        os._exit(3)
    sys.stdout.flush()
    os._exit(0)  # torch may abort while the interpreter takes gloo's threads down, when all that is tested is over


if __name__ == "__main__":
    main()
