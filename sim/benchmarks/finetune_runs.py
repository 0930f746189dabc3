"""Carries out runs of the fine-tuning benchmark: pretrain once, then let the service learn from a robot that differs."""

from __future__ import annotations

import dataclasses
import time
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
from sim.benchmarks.virtual_log import VirtualLog
from sim.disturbance import DISTURBANCE_PRESETS, Disturbance
from sim.fitted_simulation import FittedDynamics, FittedSimulation
from sim.identification import identify
from sim.presets import resolve_preset
from sim.randomization import Randomization
from sim.tasks import make_task

_EVALUATION_SEED, _ROBOT_SEED, _GATE_SEED = 1_000_003, 2_000_003, 3_000_003


@dataclass(frozen=True)
class FinetuneResult:
    """What a run gave; returns are of the policies without exploration, episode by episode.

    Attributes:
        simulation: returns of the pretrained policy in the nominal simulation.
        curve: ``minutes`` of robot time and ``returns`` on the robot of the policy that it then runs, one entry per minute.
        fits: for each fit of the gate's simulation ``minutes``, ``seconds`` that it took, and for each parameter its name and the
            5, 50 and 95 % quantiles.
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
    fits: list[dict[str, Any]]
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
        life = _Life(run, service, judges)
        life.live(progress)
        poisoned = _propose_poison(run, service)
        service.report.close()
    return FinetuneResult(
        simulation=_rounded(judges.in_simulation(judges.first)),
        curve=life.curve,
        fits=life.fits,
        candidates=life.candidates,
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
        self.gate = FittedSimulation(
            learner.contract, protocol.task, count, _GATE_SEED, protocol.gate_randomization, protocol.disturbance, num_threads=1
        )
        self._environments = {
            "robot": _simulation(protocol, run.dynamics, count, _ROBOT_SEED + run.seed),
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
        found = self.gate.returns(policy)
        self.judged.append((found, self.on_robot(policy)))
        return found

    def _measure(self, name: str, policy: Policy) -> Evaluation:
        environment = self._environments[name]
        environment.load_state_dict(self._starts[name])
        return evaluate(policy, self._contract, environment)


class _Life:
    """The minutes of a robot, and what the service makes of them."""

    def __init__(self, run: FinetuneRun, service: FinetuneService, judges: _Judges) -> None:
        self._run, self._service, self._judges = run, service, judges
        contract = service.learner.contract
        environment = _simulation(run.protocol, run.dynamics, 1, run.seed)
        self._collector = Collector(environment, contract)
        self._log = VirtualLog(environment, contract, run.seed, _sensor_noise(run.protocol.disturbance))
        self._generator = torch.Generator().manual_seed(run.seed)
        self._steps_per_minute = round(60 * contract.rate_hz)
        self._fitted_at: int | None = None
        self.curve = [{"minutes": 0.0, "returns": _rounded(judges.on_robot(service.current_policy))}]
        self.fits: list[dict[str, Any]] = []
        self.candidates: list[dict[str, Any]] = []

    def live(self, progress: Progress) -> None:
        """Let the robot run, and the service learn from each episode and minute."""
        episode: list[Batch] = []
        for step in range(1, self._run.protocol.minutes * self._steps_per_minute + 1):
            episode.append(self._act())
            minute_is_over = step % self._steps_per_minute == 0
            if self._collector.ended[0] or minute_is_over:
                self._learn_from(episode, step)
                episode = []
            if minute_is_over:
                returns = _rounded(self._judges.on_robot(self._service.current_policy))
                self.curve.append({"minutes": self._minutes(step), "returns": returns})
            progress(1)

    def _act(self) -> Batch:
        with torch.no_grad():
            action = self._service.current_policy.mean_action(self._collector.observation)
        noise = self._run.protocol.exploration * torch.randn(action.shape, generator=self._generator)
        action = (action + noise).clamp(-1, 1)
        batch = self._collector.step(action)
        self._log.add(action.numpy()[0], ended=bool(self._collector.ended[0]))
        return batch

    def _learn_from(self, episode: list[Batch], step: int) -> None:
        service = self._service
        service.add(_joined(episode), np.zeros(len(episode), np.int64))
        while service.learn():
            pass
        if not service.candidate_due:
            return
        if self._run.protocol.fitting.due(step, self._fitted_at):
            self._fit(step)
        verdict = service.propose()
        in_gate, on_robot = self._judges.judged[-1]
        measured = {"gate_return": in_gate.mean, "returns": _rounded(on_robot)}
        self.candidates.append({"minutes": self._minutes(step), **verdict.to_dict(), **measured})

    def _fit(self, step: int) -> None:
        """Make the gate's simulation like what the robot's log says."""
        protocol, contract = self._run.protocol, self._service.learner.contract
        config, start_s = protocol.fitting, time.perf_counter()
        settings = dataclasses.replace(config.identification, num_threads=1)
        log = self._log.transitions().last(config.newest)
        posterior = identify(log, contract, protocol.task, config.prior, settings, config.seed)
        self._judges.gate.use("robot", FittedDynamics.of(posterior))
        self._service.simulation_changed()
        self._fitted_at = step
        parameters = {each.name: [round(each.quantiles[place], 4) for place in (0, 2, 4)] for each in posterior.parameters()}
        seconds = round(time.perf_counter() - start_s, 1)
        self.fits.append({"minutes": self._minutes(step), "seconds": seconds, "parameters": parameters})

    def _minutes(self, step: int) -> float:
        return round(step / self._steps_per_minute, 3)


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


def _sensor_noise(disturbance: str) -> float:
    return resolve_preset("disturbance", disturbance, Disturbance, DISTURBANCE_PRESETS).observation_noise


def _rounded(evaluation: Evaluation) -> list[float]:
    return [round(float(value), 2) for value in evaluation.returns]
