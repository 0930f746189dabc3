"""A process of those that share a fine-tuning service in the tests: ``service_process.py FOLDER``, started once for each rank."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file

from dpg_robot.contract import CommandChannel, Contract, Feature, MeasurementChannel
from dpg_robot.host.gate import GateConfig, Verdict
from dpg_robot.host.mixture import MixtureConfig
from dpg_robot.host.model_store import ModelStore
from dpg_robot.host.service import ServiceConfig
from dpg_robot.host.service_processes import SharedService
from dpg_robot.learning.distributed import Processes, process_group_from_environment
from dpg_robot.learning.learner import Learner, LearnerConfig
from dpg_robot.learning.policy import Policy
from dpg_robot.learning.replay import Batch, ReplayBuffer
from dpg_robot.learning.trainer import Evaluation

NAMES = ("here", "there", "speed")
CONTRACT = Contract(
    task="shared",
    measurements=tuple(MeasurementChannel(name, "m") for name in NAMES),
    features=tuple(Feature("identity", name) for name in NAMES),
    commands=(CommandChannel("push", "N", -1.0, 1.0), CommandChannel("turn", "N", -1.0, 1.0)),
    rate_hz=10.0,
    history=1,
)
LEARNER = LearnerConfig(hidden_sizes=(16, 16), batch_size=32)
# only the returns decide
GATE = GateConfig(max_error_growth=1e3, max_td_error_growth=1e3, max_action_distance=2.0, max_jitter_growth=1e3)
CONFIG = ServiceConfig(
    updates_per_transition=0.25,
    updates_per_round=4,
    first_updates_after=20,
    improve_policy_after=5,
    candidate_every=40,
    held_out_every=3,
    return_after_rejections=2,
    mixture=MixtureConfig(newest=50),
)
EPISODES, LENGTH, STOPPED_AFTER = 10, 20, 8
# of the policy at the beginning, of the candidates: one is accepted, after two that are not learning begins anew
RETURNS = (0.0, 100.0, -100.0, -100.0, -100.0)


class VerdictStore(ModelStore):
    """Keeps verdicts alone; to export each policy would take most of the test's time."""

    def add(self, write_policy: object, verdict: Verdict, facts: dict[str, object]) -> Path:
        """Add a line to ``verdicts``."""
        del write_policy, facts
        with (self.folder / "verdicts").open("a") as file:
            file.write("passed\n" if verdict.passed else "failed\n")
        return self.folder


def transitions(seed: int, count: int = LENGTH) -> Batch:
    """Return random transitions that follow each other."""
    generator = torch.Generator().manual_seed(seed)
    states = torch.randn(count + 1, CONTRACT.observation_size, generator=generator)
    action = torch.tanh(torch.randn(count, 2, generator=generator))
    reward = states[1:, 0] - action.square().sum(-1)
    return Batch(states[:-1], action, reward, states[1:], torch.zeros(count), torch.ones(count))


def make_service(processes: Processes, folder: Path, returns: list[float]) -> SharedService:
    """Return a service that finds what an earlier one left in the folder."""
    learner = Learner(CONTRACT, LEARNER, seed=3, device=processes.device)
    simulation = ReplayBuffer(100, CONTRACT.observation_size, CONTRACT.num_actions)
    simulation.add(transitions(1000, 100))
    learner.observe(simulation.all())
    learner.share_updates(processes)

    def next_returns(_: Policy) -> Evaluation:
        return Evaluation(np.full(4, returns.pop(0)))

    def no_rewards(*_: object) -> np.ndarray:
        raise AssertionError("episodes come with rewards here")

    return SharedService(learner, simulation, no_rewards, next_returns, CONFIG, GATE, VerdictStore(folder), folder)


def live(processes: Processes, folder: Path, episodes: range, returns: list[float]) -> SharedService:
    """Let a service learn from some episodes and close it."""
    service = make_service(processes, folder, returns)
    if not processes.first:
        service.follow()
        return service
    service.resume()
    for number in episodes:
        service.add(transitions(number), np.full(LENGTH, number))
        while service.round([]):
            pass
    service.close({"episodes": episodes.stop})
    return service


def learn(processes: Processes, folder: Path) -> tuple[SharedService, dict[str, torch.Tensor]]:
    """Return a service that was stopped once and went on, and all that it holds."""
    returns = list(RETURNS)
    live(processes, folder, range(STOPPED_AFTER), returns)
    service = live(processes, folder, range(STOPPED_AFTER, EPISODES), returns)
    held = {f"learner.{name}": value for name, value in service.learner.state_dict().items()}
    held |= {f"current.{name}": value for name, value in service._current.state_dict().items()}
    held |= {f"robot.{name}": value for name, value in service._mixture.robot.state_dict().items()}
    held["counts"] = torch.tensor([service.counts.episodes, service.counts.used, service.counts.updates])
    held["sampling"] = service._generator.get_state()
    return service, held


def main() -> None:
    """Learn as one of the processes that torchrun started, and save what came of it."""
    torch.set_num_threads(1)
    folder = Path(sys.argv[1])
    with process_group_from_environment("cpu", timeout_s=60.0) as processes:
        _, held = learn(processes, folder / "run")
        save_file({name: value.contiguous() for name, value in held.items()}, folder / f"{processes.rank}.safetensors")
    sys.stdout.flush()
    os._exit(0)  # torch may abort while the interpreter takes gloo's threads down, when all that is tested is over


if __name__ == "__main__":
    main()
