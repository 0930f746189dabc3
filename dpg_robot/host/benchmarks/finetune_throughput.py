"""How many transitions per second fine-tuning learns from, and what share of the machine's limits that is.

Each arrangement of processes and threads runs in processes of its own, all cases in turn, round after round, because the speed of
a shared machine drifts. In each round the limits are measured just before the case, by all processes at once, and shares are
taken within rounds.
"""

from __future__ import annotations

import dataclasses
import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from dpg_robot.config import config_from_dict, config_to_dict, setting
from dpg_robot.contract import CommandChannel, Contract, Feature, MeasurementChannel
from dpg_robot.errors import DpgError
from dpg_robot.host.benchmarks.update_cost import Cost, Peak, count_cost, extrapolate, measure_peak, time_repeated
from dpg_robot.learning.distributed import Processes, process_group_from_environment
from dpg_robot.learning.learner import Learner
from dpg_robot.learning.precision import Precision
from dpg_robot.learning.replay import Batch, ReplayBuffer
from dpg_robot.learning.settings import GradientKind, LearnerConfig

_COUNTED = (64, 128)  # batches small enough to count the cost of
_EPISODE = 250  # transitions


class ThroughputError(DpgError, RuntimeError):
    """A measurement that could not be carried out."""


@dataclass(frozen=True)
class ThroughputConfig:
    """What to measure, and how long."""

    device: str = setting("cpu", "where to compute: cpu or cuda")
    batch_sizes: tuple[int, ...] = setting((256, 1024, 4096, 16384), "transitions per update")
    variants: dict[str, GradientKind] = setting(
        lambda: {"denoised": "reward_and_next_state", "critic": "critic"}, "name and learner.gradient"
    )
    precisions: tuple[Precision, ...] = setting(("float32",), "values of learner.precision")
    threads: tuple[int, ...] = setting((1, 2), "numbers of threads of a single process")
    processes: int = setting(2, "processes of the last arrangement, with one thread each; 1 for none. On CUDA a GPU each")
    features: int = setting(24, "features of the robot")
    actions: int = setting(6, "actions of the robot")
    history: int = setting(2, "previous frames that the policy sees")
    learner: LearnerConfig = setting(LearnerConfig, "the learner; batch_size, gradient and precision are those of the case")
    transitions: int = setting(100_000, "transitions to learn from")
    seconds: float = setting(1.0, "length of one measurement", unit="s")
    rounds: int = setting(3, "measurements of each case")

    def __post_init__(self) -> None:
        for name in ("features", "actions", "processes", "rounds", "transitions"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be 1 or more, got {getattr(self, name)}")
        for name in ("batch_sizes", "threads"):
            if any(value < 1 for value in getattr(self, name)):
                raise ValueError(f"{name} must be 1 or more each, got {list(getattr(self, name))}")
        if uneven := [size for size in self.batch_sizes if size % self.processes]:
            raise ValueError(f"batch_sizes must be multiples of processes={self.processes}, got {uneven}")
        if self.device not in ("cpu", "cuda"):
            raise ValueError(f"device must be cpu or cuda, got {self.device!r}")
        if not self.seconds > 0:
            raise ValueError(f"seconds must be positive, got {self.seconds}")


@dataclass(frozen=True)
class Arrangement:
    """Processes that learn together, and the threads of each."""

    processes: int
    threads: int

    def __str__(self) -> str:
        """Return it in words."""
        threads = f"{self.threads} thread{'s' if self.threads > 1 else ''}"
        return threads if self.processes == 1 else f"{self.processes} processes x {threads}"


def arrangements(config: ThroughputConfig) -> list[Arrangement]:
    """Return what to measure one after the other."""
    several = [Arrangement(config.processes, 1)] if config.processes > 1 else []
    return [*(Arrangement(1, threads) for threads in config.threads), *several]


def cases(config: ThroughputConfig) -> list[dict[str, Any]]:
    """Return the cases of an arrangement."""
    return [
        {"variant": variant, "precision": precision, "batch_size": batch_size}
        for variant in config.variants
        for precision in config.precisions
        for batch_size in config.batch_sizes
    ]


def measure_throughput(config: ThroughputConfig, progress: Callable[[str], object]) -> dict[str, Any]:
    """Measure all cases in all arrangements; returns plain values.

    Raises:
        ThroughputError: a device that is not there, or a measuring process that failed.
    """
    gpus = torch.cuda.device_count() if config.device == "cuda" else config.processes
    if config.device == "cuda" and not torch.cuda.is_available():
        raise ThroughputError("torch finds no CUDA device here; choose device=cpu")
    if config.processes > max(gpus, 1):
        raise ThroughputError(f"{config.processes} processes need a GPU each, and there are {gpus}; choose processes={gpus}")
    results = []
    for arrangement in arrangements(config):
        progress(str(arrangement))
        results += _run(config, arrangement)
    name = torch.cuda.get_device_name() if config.device == "cuda" else None
    return {"device_name": name, "torch": torch.__version__, "results": results}


def _run(config: ThroughputConfig, arrangement: Arrangement) -> list[dict[str, Any]]:
    with tempfile.TemporaryDirectory(prefix="dpg-throughput-") as folder:
        settings, result = Path(folder) / "settings.json", Path(folder) / "result.json"
        settings.write_text(json.dumps(config_to_dict(config)))
        launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(arrangement.processes)]
        module = ["-m", __name__, str(settings), str(result), str(arrangement.threads)]
        command = [sys.executable, *(launcher if arrangement.processes > 1 else []), *module]
        environment = os.environ | {"OMP_NUM_THREADS": str(arrangement.threads)}
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
        if done.returncode or not result.is_file():
            raise ThroughputError(f"measuring with {arrangement} failed: {done.stderr.strip()[-6000:]}")
        measured = json.loads(result.read_text())
    return [{"processes": arrangement.processes, "threads": arrangement.threads, **each} for each in measured]


def measure_arrangement(config: ThroughputConfig, processes: Processes) -> list[dict[str, Any]]:
    """Measure all cases in the present process and those that it learns with."""
    replay = make_replay(config, processes.device)
    works = [Work(config, case, replay, processes) for case in cases(config)]
    for _ in range(config.rounds):
        for work in works:
            work.measure()
    return [work.result() for work in works]


class Work:
    """Fine-tuning in one case.

    Args:
        config: settings.
        case: variant, precision and batch size.
        replay: transitions to learn from.
        processes: this process and those that it learns with.
    """

    def __init__(self, config: ThroughputConfig, case: dict[str, Any], replay: ReplayBuffer, processes: Processes) -> None:
        self._case, self._seconds, self._processes, self._replay = case, config.seconds, processes, replay
        self._learner = make_learner(config, case, processes.device)
        self._learner.observe_newest(replay, len(replay))
        self._learner.share_updates(processes)
        self._generator = torch.Generator().manual_seed(0)
        self._cost = cost_of_update(config, case, case["batch_size"] // processes.count)
        self._rounds: list[dict[str, float]] = []

    def update(self) -> None:
        """Draw a batch and update once, the policy too when it is its turn."""
        config = self._learner.config
        self._learner.update(self._learner.draw(self._replay, config.batch_size, self._generator))

    def measure(self) -> None:
        """Measure the machine's limits, and then the case."""
        device, processes = self._learner.device, self._processes
        dtype = torch.float32 if self._case["precision"] == "float32" else torch.bfloat16
        processes.wait_for_all()
        peak = measure_peak(device, dtype, 0.4 * self._seconds)
        period = self._learner.config.policy_update_interval

        def updates() -> None:
            for _ in range(period):
                self.update()

        time_repeated(updates, device, 1)  # allocates
        once_s = time_repeated(updates, device, 1)
        count = int(processes.from_first(torch.tensor(max(1, round(self._seconds / once_s)))))
        processes.wait_for_all()
        elapsed_s = time_repeated(updates, device, count) / (count * period)
        self._rounds.append(shares(self._case["batch_size"], elapsed_s, self._cost, peak))

    def result(self) -> dict[str, Any]:
        """Return medians over the rounds, and each round's speed."""
        medians = {name: statistics.median(each[name] for each in self._rounds) for name in self._rounds[0]}
        cost = {"flops_per_update_and_process": self._cost.flops, "bytes_per_update_and_process": self._cost.bytes}
        return self._case | medians | cost | {"rounds": [each["transitions_per_s"] for each in self._rounds]}


def shares(batch_size: int, update_s: float, cost: Cost, peak: Peak) -> dict[str, float]:
    """Return the speed of updates, and how near it is to the machine's limits of arithmetic and memory (1 is the limit)."""
    return {
        "transitions_per_s": batch_size / update_s,
        "update_ms": 1e3 * update_s,
        "arithmetic_share": cost.flops / update_s / peak.flops_per_s,
        "memory_share": cost.bytes / update_s / peak.bytes_per_s,
        "peak_gflops_per_s": peak.flops_per_s / 1e9,
        "peak_gbytes_per_s": peak.bytes_per_s / 1e9,
    }


def cost_of_update(config: ThroughputConfig, case: dict[str, Any], batch_size: int) -> Cost:
    """Return the mean cost of an update with ``batch_size`` transitions, those of the policy among them, without the drawing."""

    def count(size: int) -> Cost:
        learner = make_learner(config, case | {"batch_size": size, "precision": "float32"}, "cpu")
        batch, period = make_transitions(config, size), learner.config.policy_update_interval
        learner.update(batch)  # makes the optimizers' state
        learner.updates.zero_()
        costs = [count_cost(lambda: learner.update(batch)) for _ in range(period)]
        return Cost(sum(cost.flops for cost in costs) / period, sum(cost.bytes for cost in costs) / period)

    return extrapolate(count(_COUNTED[0]), count(_COUNTED[1]), *_COUNTED, batch_size)


def make_learner(config: ThroughputConfig, case: dict[str, Any], device: str) -> Learner:
    """Return a new learner for a case."""
    gradient = config.variants[case["variant"]]
    changes = {"gradient": gradient, "batch_size": case["batch_size"], "precision": case["precision"]}
    return Learner(make_contract(config), dataclasses.replace(config.learner, **changes), device=device)


def make_contract(config: ThroughputConfig) -> Contract:
    """Return the contract of a robot of the sizes in the settings."""
    names = [f"measurement{index}" for index in range(config.features)]
    return Contract(
        task="throughput",
        measurements=tuple(MeasurementChannel(name, "rad") for name in names),
        features=tuple(Feature("identity", name) for name in names),
        commands=tuple(CommandChannel(f"command{index}", "Nm", -1.0, 1.0) for index in range(config.actions)),
        rate_hz=50.0,
        history=config.history,
    )


def make_transitions(config: ThroughputConfig, count: int) -> Batch:
    """Return random transitions in episodes, in which each leads to the next; the frames that they remember are random, too."""
    generator = torch.Generator().manual_seed(0)
    path = torch.randn(count + 1, make_contract(config).observation_size, generator=generator)
    terminal = torch.zeros(count)
    terminal[_EPISODE - 1 :: _EPISODE] = 1.0
    action = torch.tanh(torch.randn(count, config.actions, generator=generator))
    return Batch(path[:-1], action, torch.randn(count, generator=generator), path[1:], terminal, torch.ones(count))


def make_replay(config: ThroughputConfig, device: str) -> ReplayBuffer:
    """Return a buffer with transitions on a device."""
    contract = make_contract(config)
    replay = ReplayBuffer(config.transitions, contract.observation_size, contract.num_actions, device)
    replay.add(make_transitions(config, config.transitions))
    return replay


def main() -> None:
    """Measure one arrangement: settings file, result file, threads."""
    settings, result, threads = sys.argv[1:]
    config = config_from_dict(ThroughputConfig, json.loads(Path(settings).read_text()), settings)
    torch.set_num_threads(int(threads))
    with process_group_from_environment(config.device) as processes:
        measured = measure_arrangement(config, processes)
        if processes.first:
            Path(result).write_text(json.dumps(measured))


if __name__ == "__main__":
    main()
