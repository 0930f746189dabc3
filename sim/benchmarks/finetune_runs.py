"""Carries out runs of the fine-tuning benchmark: pretrain once, then let the service learn from a robot that differs."""

from __future__ import annotations

from collections.abc import Generator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch

import sim
from dpg_robot.host.model_store import ModelStore
from dpg_robot.host.service import FinetuneService
from dpg_robot.learning.learner import Learner
from dpg_robot.learning.policy import Policy
from dpg_robot.learning.replay import Batch, ReplayBuffer
from dpg_robot.learning.trainer import Collector, Evaluation, Trainer, best_checkpoint, evaluate, load_learner
from sim.benchmarks import run_store
from sim.benchmarks.finetune_protocol import FinetuneProtocol, FinetuneRun
from sim.benchmarks.processes import Finished, Progress, run_in_processes
from sim.benchmarks.provenance import describe_code, describe_versions, now
from sim.randomization import Randomization
from sim.tasks import make_task

_EVALUATION_SEED, _ROBOT_SEED, _GATE_SEED = 1_000_003, 2_000_003, 3_000_003


@dataclass(frozen=True)
class FinetuneResult:
    """What a run gave; returns are of the policies without exploration, episode by episode.

    Attributes:
        simulation: returns of the pretrained policy in the nominal simulation.
        curve: ``minutes`` of robot time and ``returns`` on the robot of the policy that it then runs, one entry per minute.
        candidates: for each candidate ``minutes``, ``passed``, ``reasons``, its ``gate_return`` in the gate's simulation, and
            ``returns`` on the robot, which the gate did not know.
        poisoned: verdict on a candidate whose weights were spoilt, proposed at the end: ``passed`` and ``reasons``.
        updates: done in all.
        versions: of Python and the packages that matter.
        code: git commit and whether the tree differed from it, and a digest of the learner's source.
        date: when the run ended, UTC.
    """

    simulation: list[float]
    curve: list[dict[str, Any]]
    candidates: list[dict[str, Any]]
    poisoned: dict[str, Any]
    updates: int
    versions: dict[str, Any]
    code: dict[str, Any]
    date: str


def pretrain(protocol: FinetuneProtocol, variant: str, results: Path, progress: bool) -> Path:
    """Pretrain a learner unless that was done; returns its best checkpoint."""
    torch.set_num_threads(1)
    config = protocol.pretraining
    folder = results / "pretrained" / variant

    def environments(count: int, seed: int) -> Any:
        return _simulation(protocol, config.randomization, count, seed)

    environment = environments(config.num_envs, config.seed)
    learner = Learner(environment.contract(), protocol.variants[variant], config.seed)
    evaluation = environments(protocol.evaluation_episodes, config.seed + _EVALUATION_SEED)
    trainer = Trainer(learner, config.trainer, environment, evaluation, folder, config.seed)
    trainer.resume()
    if trainer.updates < config.trainer.updates:
        trainer.run(progress)
    return best_checkpoint(folder)


def execute(run: FinetuneRun, results: Path, progress: Progress) -> FinetuneResult:
    """Carry out one run in this process.

    Args:
        run: what to run.
        results: folder of all results, which has the pretrained learners.
        progress: called with the control steps done since its last call.
    """
    torch.set_num_threads(1)
    code = describe_code()
    learner, tensors, _ = load_learner(best_checkpoint(results / "pretrained" / run.variant))
    learner.generator.manual_seed(run.seed)
    with TemporaryDirectory() as folder:
        judges = _Judges(run, learner)
        service = FinetuneService(
            learner,
            _kept(tensors["replay"], learner),
            make_task(run.protocol.task).measured_reward,
            judges.returns_in_gate,
            run.protocol.service,
            run.protocol.gate,
            ModelStore(Path(folder) / "store"),
            Path(folder) / "service",
        )
        curve, candidates = _live(run, service, judges, progress)
        poisoned = _propose_poison(run, service)
        service.report.close()
    return FinetuneResult(
        simulation=_rounded(judges.in_simulation(judges.first)),
        curve=curve,
        candidates=candidates,
        poisoned=poisoned,
        updates=service.counts.updates,
        versions=describe_versions(),
        code=code,
        date=now(),
    )


def execute_all(
    runs: Sequence[FinetuneRun], results: Path, jobs: int, progress: Progress
) -> Generator[Finished[FinetuneRun, FinetuneResult], None, None]:
    """Carry out runs in up to ``jobs`` processes at once and yield each as it ends; a failing one does not stop the others.

    Args:
        runs: what to run, in this order.
        results: folder of all results; each result is written when its run is over.
        jobs: number of processes.
        progress: called with the control steps done since its last call, and with a negative number when a run failed.
    """
    return run_in_processes(runs, partial(_execute_and_write, results=results), jobs, progress)


def _execute_and_write(run: FinetuneRun, progress: Progress, results: Path) -> FinetuneResult:
    result = execute(run, results, progress)
    run_store.write_result(results, run, result)
    return result


def _simulation(protocol: FinetuneProtocol, randomization: str | Randomization, count: int, seed: int) -> Any:
    return sim.make(
        protocol.task,
        num_envs=count,
        seed=seed,
        num_threads=1,
        action_repeat=protocol.action_repeat,
        randomization=randomization,
        disturbance=protocol.disturbance,
    )


def _kept(replay: dict[str, torch.Tensor], learner: Learner) -> ReplayBuffer:
    kept = len(replay["reward"])
    buffer = ReplayBuffer(kept, learner.contract.observation_size, learner.contract.num_actions)
    buffer.load_state_dict(replay | {"added": torch.tensor(kept)})
    return buffer


class _Judges:
    """Measures policies: on the robot, which nobody else may know, in the gate's simulation, and in the nominal one."""

    def __init__(self, run: FinetuneRun, learner: Learner) -> None:
        protocol, count = run.protocol, run.protocol.evaluation_episodes
        self._contract = learner.contract
        self._environments = {
            "robot": _simulation(protocol, run.dynamics, count, _ROBOT_SEED + run.seed),
            "gate": _simulation(protocol, protocol.gate_randomization, count, _GATE_SEED),
            "nominal": _simulation(protocol, "none", count, _ROBOT_SEED + run.seed),
        }
        self._starts = {name: environment.state_dict() for name, environment in self._environments.items()}
        self.first = Policy(learner.policy.observation_size, learner.contract.num_actions, run.learner.hidden_sizes)
        self.first.load_state_dict(learner.policy.state_dict())
        self.judged: list[tuple[Evaluation, Evaluation]] = []  # in the gate's simulation and on the robot, as the gate asked

    def on_robot(self, policy: Policy) -> Evaluation:
        return self._measure("robot", policy)

    def in_simulation(self, policy: Policy) -> Evaluation:
        return self._measure("nominal", policy)

    def returns_in_gate(self, policy: Policy) -> Evaluation:
        found = self._measure("gate", policy)
        self.judged.append((found, self.on_robot(policy)))
        return found

    def _measure(self, name: str, policy: Policy) -> Evaluation:
        environment = self._environments[name]
        environment.load_state_dict(self._starts[name])
        return evaluate(policy, self._contract, environment)


def _live(
    run: FinetuneRun, service: FinetuneService, judges: _Judges, progress: Progress
) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Let the robot run for its minutes and the service learn; returns the curve and the candidates."""
    contract = service.learner.contract
    collector = Collector(_simulation(run.protocol, run.dynamics, 1, run.seed), contract)
    generator = torch.Generator().manual_seed(run.seed)
    steps_per_minute = round(60 * contract.rate_hz)
    curve = [{"minutes": 0, "returns": _rounded(judges.on_robot(service.current_policy))}]
    candidates: list[dict[str, Any]] = []
    episode: list[Batch] = []
    for step in range(1, run.protocol.minutes * steps_per_minute + 1):
        with torch.no_grad():
            action = service.current_policy.mean_action(collector.observation)
        noise = run.protocol.exploration * torch.randn(action.shape, generator=generator)
        episode.append(collector.step((action + noise).clamp(-1, 1)))
        minute_is_over = step % steps_per_minute == 0
        if collector.ended[0] or minute_is_over:
            service.add(_joined(episode), np.zeros(len(episode), np.int64))
            episode = []
            while service.learn():
                pass
            if service.candidate_due:
                verdict = service.propose()
                in_gate, on_robot = judges.judged[-1]
                candidates.append(
                    {
                        "minutes": round(step / steps_per_minute, 3),
                        **verdict.to_dict(),
                        "gate_return": in_gate.mean,
                        "returns": _rounded(on_robot),
                    }
                )
        if minute_is_over:
            returns = _rounded(judges.on_robot(service.current_policy))
            curve.append({"minutes": step // steps_per_minute, "returns": returns})
        progress(1)
    return curve, candidates


def _propose_poison(run: FinetuneRun, service: FinetuneService) -> dict[str, Any]:
    """Propose a candidate whose policy was spoilt by noise as large as its weights."""
    generator = torch.Generator().manual_seed(run.seed)
    with torch.no_grad():
        for parameter in service.learner.policy.network.parameters():
            parameter.add_(parameter.std() * torch.randn(parameter.shape, generator=generator))
    return service.propose().to_dict()


def _joined(steps: list[Batch]) -> Batch:
    batch = steps[0]
    for step in steps[1:]:
        batch = batch.concatenate(step)
    return batch


def _rounded(evaluation: Evaluation) -> list[float]:
    return [round(float(value), 2) for value in evaluation.returns]
