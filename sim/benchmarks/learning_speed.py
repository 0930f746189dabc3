"""How long learning takes: ours and Stable-Baselines3's SAC with networks, batches, decisions and updates alike.

Both learn online in one environment, one update for each decision. They are measured in turns, round after round, because the
speed of a shared machine drifts; ratios are taken within rounds.
"""

from __future__ import annotations

import dataclasses
import importlib
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

import gymnasium
import torch

from dpg_robot.config import setting
from dpg_robot.errors import unknown_name
from dpg_robot.learning.settings import GradientKind, LearnerConfig
from sim.benchmarks.learning_ours import OurTraining
from sim.benchmarks.learning_peers import require_peers
from sim.benchmarks.learning_protocol import OurConfig, PeerConfig, Run
from sim.gym_env import register_environments
from sim.tasks import TASKS

PEER = "sac"
_ENDLESS = 1_000_000  # decisions; more than any measurement takes


@dataclass(frozen=True)
class SpeedConfig:
    """What to measure, and how long."""

    task: str = setting("cheetah-run", "task to learn")
    action_repeat: int = setting(4, "control steps per decision")
    learner: LearnerConfig = setting(LearnerConfig, "our learner; sizes and batch are SAC's too")
    variants: dict[str, GradientKind] = setting(
        lambda: {"denoised": "reward_and_next_state", "critic": "critic"}, "ours: name and learner.gradient"
    )
    threads: int = setting(1, "threads that compute the networks")
    decisions: int = setting(400, "decisions, each with an update, in one measurement")
    rounds: int = setting(7, "measurements of each")
    warmup_decisions: int = setting(500, "decisions with updates before the first measurement")
    seed: int = setting(0, "seed of all of them")

    def __post_init__(self) -> None:
        if self.task not in TASKS:
            raise unknown_name("task", self.task, TASKS)
        for name in ("action_repeat", "threads", "decisions", "rounds", "warmup_decisions"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be 1 or more, got {getattr(self, name)}")
        if PEER in self.variants:
            raise ValueError(f"a variant of ours must not be named {PEER}, which is the peer")


class Method(Protocol):
    """Something that learns."""

    def learn(self, decisions: int) -> None:
        """Take decisions, with an update after each."""
        ...

    def update(self, updates: int) -> None:
        """Update from what was collected, without a decision."""
        ...


class OurMethod:
    """Our learner with its plain training loop."""

    def __init__(self, config: SpeedConfig, gradient: GradientKind) -> None:
        learner = dataclasses.replace(config.learner, gradient=gradient)
        self._training = OurTraining(_endless_run(config), OurConfig(learner=learner, warmup_decisions=learner.batch_size))

    def learn(self, decisions: int) -> None:
        """Take decisions, with an update after each."""
        for _ in range(decisions):
            self._training.step()

    def update(self, updates: int) -> None:
        """Update from what was collected, without a decision."""
        for _ in range(updates):
            self._training.update()


class Sac:
    """Stable-Baselines3's SAC with its own defaults, but for sizes and batch."""

    def __init__(self, config: SpeedConfig) -> None:
        require_peers([PeerConfig("SAC")])
        register_environments()
        environment = gymnasium.make(f"dpg/{config.task}-v0", disable_env_checker=True, action_repeat=config.action_repeat)
        self._batch_size = config.learner.batch_size
        self._model: Any = importlib.import_module("stable_baselines3").SAC(
            "MlpPolicy",
            environment,
            seed=config.seed,
            device="cpu",
            batch_size=self._batch_size,
            buffer_size=100_000,
            learning_starts=self._batch_size,
            policy_kwargs={"net_arch": list(config.learner.hidden_sizes)},
        )

    def learn(self, decisions: int) -> None:
        """Take decisions, with an update after each."""
        self._model.learn(decisions, reset_num_timesteps=False)

    def update(self, updates: int) -> None:
        """Update from what was collected, without a decision."""
        self._model.train(gradient_steps=updates, batch_size=self._batch_size)


def measure_speed(config: SpeedConfig, progress: Callable[[str], object]) -> dict[str, Any]:
    """Measure all methods in turns.

    Args:
        config: what to measure.
        progress: called with what was measured, :func:`count_work` times.

    Returns:
        Milliseconds for each decision with its update (``decision_ms``) and for an update alone (``update_ms``), by method and
        round, and how many times as long SAC took as each of ours in the same round (``ratio``), each with median and extremes.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(config.threads)
    try:
        methods: dict[str, Method] = {name: OurMethod(config, gradient) for name, gradient in config.variants.items()}
        methods[PEER] = Sac(config)
        for name, method in methods.items():
            method.learn(config.learner.batch_size + config.warmup_decisions)
            progress(f"{name}: warmed up")
        times: dict[str, dict[str, list[float]]] = {kind: {name: [] for name in methods} for kind in ("decision_ms", "update_ms")}
        for number in range(config.rounds):
            for name, method in methods.items():
                times["decision_ms"][name].append(_time_each_ms(method.learn, config.decisions))
                times["update_ms"][name].append(_time_each_ms(method.update, config.decisions))
                progress(f"round {number + 1}, {name}")
    finally:
        torch.set_num_threads(threads)
    return {
        kind: {
            name: _summarize(rounds)
            | {"ratio": _summarize([peer / ours for peer, ours in zip(every[PEER], rounds, strict=True)])}
            for name, rounds in every.items()
        }
        for kind, every in times.items()
    }


def count_work(config: SpeedConfig) -> int:
    """Return how often :func:`measure_speed` reports progress."""
    return (len(config.variants) + 1) * (config.rounds + 1)


def _endless_run(config: SpeedConfig) -> Run:
    return Run(
        task=config.task,
        action_repeat=config.action_repeat,
        disturbance="none",
        history=0,
        algorithm="ours",
        settings=OurConfig(),
        seed=config.seed,
        frames=_ENDLESS * config.action_repeat,
        evaluate_every=_ENDLESS * config.action_repeat,
        evaluation_episodes=1,
        evaluation_seed=0,
    )


def _time_each_ms(work: Callable[[int], None], count: int) -> float:
    started = time.perf_counter()
    work(count)
    return 1e3 * (time.perf_counter() - started) / count


def _summarize(rounds: list[float]) -> dict[str, Any]:
    return {"median": statistics.median(rounds), "low": min(rounds), "high": max(rounds), "rounds": rounds}
