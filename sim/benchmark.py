"""How fast environments step: ours, bare MuJoCo, dm_control alone and in processes, and EnvPool, all on the same tasks.

Each method offers ``measure(seconds)``, which returns control steps per second summed over its environments, with the resets of
whole episodes paid in proportion. Methods are measured in turns, round after round, because the speed of a shared machine
drifts; ratios are taken within rounds.
"""

from __future__ import annotations

import functools
import math
import multiprocessing
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import gymnasium
import mujoco.batch
import numpy as np
import psutil
from gymnasium.vector import AsyncVectorEnv, AutoresetMode
from numpy.typing import NDArray

from dpg_robot.config import setting
from dpg_robot.errors import DpgError, unknown_name
from sim.environment import BatchEnvironment, make_native
from sim.suite_model import suite
from sim.tasks import TASKS

_WARM_UP_S = 1.5  # simulated time, after which most bodies have met the ground
_ACTION_SETS = 16  # drawn before the clock starts, then used in turns


class MethodUnavailableError(DpgError, RuntimeError):
    """Something to compare with that is not installed here, or does not have the task."""


@dataclass(frozen=True)
class BenchmarkSettings:
    """What to measure, and how long."""

    tasks: tuple[str, ...] = setting(
        ("cartpole-balance", "cheetah-run", "walker-walk", "quadruped-walk", "humanoid-walk"), "tasks to step"
    )
    methods: tuple[str, ...] = setting(lambda: tuple(METHODS), "what to measure")
    environments: int = setting(1024, "environments of a batch")
    threads: int = setting(2, "threads that step a batch")
    processes: int = setting(lambda: usable_cores(), "dm_control environments, each in a process of its own")
    seconds: float = setting(2.0, "length of one measurement", unit="s")
    rounds: int = setting(5, "measurements of each method")
    memory_environments: int = setting(4096, "environments that memory is measured with; 0 not to measure it")
    envpool_environments: int = setting(64, "environments of EnvPool, which compiles a model for each of them")
    envpool_python: Path = setting(lambda: Path(sys.executable), "Python interpreter that has EnvPool installed")

    def __post_init__(self) -> None:
        for name, known in (("tasks", TASKS), ("methods", METHODS)):
            for value in getattr(self, name):
                if value not in known:
                    raise unknown_name(name.removesuffix("s"), value, known)
        for name in ("environments", "threads", "processes", "rounds", "envpool_environments"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be 1 or more, got {getattr(self, name)}")
        if not self.seconds > 0:
            raise ValueError(f"seconds must be positive, got {self.seconds}")
        if self.memory_environments < 0:
            raise ValueError(f"memory_environments must be 0 or more, got {self.memory_environments}")


class Method(Protocol):
    """Environments of one task that can be timed."""

    def measure(self, seconds: float) -> float:
        """Step for about ``seconds`` and return control steps per second."""
        ...

    def close(self) -> None:
        """End what was started."""
        ...


class OurEnvironments:
    """A :class:`BatchEnvironment` with randomized dynamics and disturbances, as it runs: episodes begin and end together."""

    def __init__(self, task: str, settings: BenchmarkSettings) -> None:
        self._environment = moving_environment(task, settings, preset="medium")
        self._moving = self._environment.state_dict()
        self._actions = draw_actions(settings.environments, self._environment.act_dim)

    def measure(self, seconds: float) -> float:
        """Time a reset of all environments, and steps in the midst of their episodes, and add them up to whole episodes."""
        environment = self._environment
        start = time.perf_counter()
        environment.reset()
        reset_s, steps, stepping_s = time.perf_counter() - start, 0, 0.0
        left = environment.steps_per_episode - int(self._moving["steps"].max())
        while stepping_s < seconds:
            environment.load_state_dict(self._moving)
            done, elapsed = step_for(seconds - stepping_s, self._step, left - 1)
            steps, stepping_s = steps + done, stepping_s + elapsed
        episode_s = reset_s + environment.steps_per_episode * stepping_s / steps
        return environment.num_envs * environment.steps_per_episode / episode_s

    def close(self) -> None:
        """Nothing to end."""

    def _step(self, index: int) -> None:
        self._environment.step(self._actions[index % _ACTION_SETS])


class StaggeredEnvironments:
    """The same, with episodes of all ages: they end and begin one by one, which costs more than all together."""

    def __init__(self, task: str, settings: BenchmarkSettings) -> None:
        self._environment = moving_environment(task, settings, preset="medium")
        self._environment.spread_ages()
        self._actions = draw_actions(settings.environments, self._environment.act_dim)

    def measure(self, seconds: float) -> float:
        """Step, resets included as they come."""
        steps, elapsed = step_for(seconds, lambda index: self._environment.step(self._actions[index % _ACTION_SETS]))
        return steps * self._environment.num_envs / elapsed

    def close(self) -> None:
        """Nothing to end."""


class BareBatch:
    """MuJoCo's own batch with the nominal model, random controls, no outputs and no resets: what physics alone costs."""

    def __init__(self, task: str, settings: BenchmarkSettings) -> None:
        environment = moving_environment(task, settings, preset="none")
        model = environment.physics.model
        self._batch = mujoco.batch.Batch(model, settings.environments, settings.threads)
        self._moving = environment.physics.batch.state.copy()
        self._substeps = round(environment.task.control_timestep_s / model.opt.timestep)
        low, high = model.actuator_ctrlrange.T
        self._controls = low + 0.5 * (draw_actions(settings.environments, model.nu) + 1.0) * (high - low)
        self._ctrl = self._batch.bind("ctrl")

    def measure(self, seconds: float) -> float:
        """Step, with new controls each control step, from the midst of an episode."""
        self._batch.state[:] = self._moving
        steps, elapsed = step_for(seconds, self._step)
        return float(steps * self._batch.nsim / elapsed)

    def close(self) -> None:
        """Nothing to end."""

    def _step(self, index: int) -> None:
        self._ctrl[:] = self._controls[index % _ACTION_SETS]
        self._batch.step(nstep=self._substeps)


class DmControl:
    """dm_control's own environment, in this process."""

    def __init__(self, task: str, settings: BenchmarkSettings) -> None:
        self._environment = load_dm_control(task, seed=0)
        specification = self._environment.action_spec()
        self._actions = scale_actions(specification, draw_actions(_ACTION_SETS, specification.shape[0])[0])

    def measure(self, seconds: float) -> float:
        """Run whole episodes, each from its reset, until ``seconds`` have passed."""
        steps, elapsed = run_episodes(seconds, self._episode)
        return steps / elapsed

    def close(self) -> None:
        """End the environment."""
        self._environment.close()

    def _episode(self) -> int:
        time_step, steps = self._environment.reset(), 0
        while not time_step.last():
            time_step = self._environment.step(self._actions[steps % _ACTION_SETS])
            steps += 1
        return steps


class DmControlGym(gymnasium.Env[NDArray[np.float32], NDArray[np.float32]]):
    """A dm_control environment with Gymnasium's interface, observations in one flat array."""

    def __init__(self, task: str, seed: int) -> None:
        self._environment = load_dm_control(task, seed)
        self._specification = self._environment.action_spec()
        size = sum(int(np.prod(item.shape)) for item in self._environment.observation_spec().values())
        self.observation_space = gymnasium.spaces.Box(-np.inf, np.inf, (size,), np.float32)
        self.action_space = gymnasium.spaces.Box(-1.0, 1.0, self._specification.shape, np.float32)

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[NDArray[np.float32], dict[str, Any]]:
        """Start an episode; the seed was given to the constructor."""
        return self._flatten(self._environment.reset()), {}

    def step(self, action: NDArray[np.float32]) -> tuple[NDArray[np.float32], float, bool, bool, dict[str, Any]]:
        """Apply an action in [-1, 1]."""
        time_step = self._environment.step(scale_actions(self._specification, action))
        ended = time_step.last()
        terminated = ended and time_step.discount == 0.0
        return self._flatten(time_step), float(time_step.reward), terminated, ended and not terminated, {}

    def _flatten(self, time_step: Any) -> NDArray[np.float32]:
        return np.concatenate([np.ravel(item) for item in time_step.observation.values()]).astype(np.float32)


class DmControlProcesses:
    """dm_control environments in worker processes, stepped together by Gymnasium's ``AsyncVectorEnv``."""

    def __init__(self, task: str, settings: BenchmarkSettings) -> None:
        makers = [functools.partial(DmControlGym, task, seed) for seed in range(settings.processes)]
        # fresh processes: a fork would copy this one without the threads that MuJoCo runs in it
        self._environments = AsyncVectorEnv(makers, context="spawn", autoreset_mode=AutoresetMode.DISABLED)
        shape = self._environments.single_action_space.shape or ()
        self._actions = draw_actions(settings.processes, shape[0]).astype(np.float32)

    def measure(self, seconds: float) -> float:
        """Run whole episodes, each from its reset, until ``seconds`` have passed."""
        steps, elapsed = run_episodes(seconds, self._episode)
        return steps * self._environments.num_envs / elapsed

    def close(self) -> None:
        """End the processes."""
        self._environments.close()

    def _episode(self) -> int:
        self._environments.reset()
        steps, ended = 0, False
        while not ended:
            _, _, terminated, truncated, _ = self._environments.step(self._actions[steps % _ACTION_SETS])
            ended = bool((terminated | truncated).any())
            steps += 1
        return steps


class EnvPool:
    """EnvPool's environments of the same name, in a Python of its own, which may have other versions installed."""

    def __init__(self, task: str, settings: BenchmarkSettings) -> None:
        script = Path(__file__).with_name("benchmark_envpool.py")
        command = [settings.envpool_python, script, task, settings.envpool_environments, settings.threads]
        self._process = subprocess.Popen(
            [str(item) for item in command], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        answer = self._read()
        if answer != "ready":
            self.close()
            raise MethodUnavailableError(answer or "EnvPool ended while it was starting")

    def measure(self, seconds: float) -> float:
        """Run whole episodes, each from its reset, until ``seconds`` have passed."""
        assert self._process.stdin is not None
        self._process.stdin.write(f"{seconds}\n")
        self._process.stdin.flush()
        return float(self._read())

    def close(self) -> None:
        """End the process."""
        self._process.communicate()

    def _read(self) -> str:
        assert self._process.stdout is not None
        return self._process.stdout.readline().strip()


METHODS: dict[str, Callable[[str, BenchmarkSettings], Method]] = {
    "ours": OurEnvironments,
    "staggered": StaggeredEnvironments,
    "bare": BareBatch,
    "dm_control": DmControl,
    "processes": DmControlProcesses,
    "envpool": EnvPool,
}
"""Name of each method -> what makes it for a task."""


def usable_cores() -> int:
    """Return the number of processors that this process may run on."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def draw_actions(environments: int, size: int) -> NDArray[np.float64]:
    """Return sets of uniform actions in [-1, 1], (sets, environments, size)."""
    return np.random.default_rng(0).uniform(-1.0, 1.0, (_ACTION_SETS, environments, size))


def scale_actions(specification: Any, actions: NDArray[Any]) -> NDArray[np.float64]:
    """Map actions in [-1, 1] to the range of a dm_control action specification."""
    low, high = specification.minimum, specification.maximum
    return np.asarray(low + 0.5 * (np.asarray(actions, dtype=np.float64) + 1.0) * (high - low))


def load_dm_control(task: str, seed: int) -> Any:
    """Return dm_control's own environment of a task such as ``cheetah-run``."""
    domain, name = task.split("-", 1)
    return suite().load(domain, name, task_kwargs={"random": seed})


def moving_environment(task: str, settings: BenchmarkSettings, preset: str) -> BatchEnvironment:
    """Return environments in the midst of their episodes, under random actions."""
    environment = make_native(
        task, settings.environments, seed=0, num_threads=settings.threads, randomization=preset, disturbance=preset
    )
    environment.reset()
    actions = draw_actions(settings.environments, environment.act_dim)
    for index in range(round(_WARM_UP_S / environment.control_timestep)):
        environment.step(actions[index % _ACTION_SETS])
    return environment


def step_for(seconds: float, step: Callable[[int], Any], most: float = math.inf) -> tuple[int, float]:
    """Call ``step(0)``, ``step(1)``, ... until ``seconds`` have passed, or ``most`` times.

    Returns:
        The number of calls and the time they took, s.
    """
    steps, start = 0, time.perf_counter()
    while True:
        step(steps)
        steps += 1
        elapsed = time.perf_counter() - start
        if elapsed >= seconds or steps >= most:
            return steps, elapsed


def run_episodes(seconds: float, episode: Callable[[], int]) -> tuple[int, float]:
    """Run whole episodes until ``seconds`` have passed; returns their steps, summed, and the time they took, s."""
    steps, start = 0, time.perf_counter()
    while True:
        steps += episode()
        elapsed = time.perf_counter() - start
        if elapsed >= seconds:
            return steps, elapsed


def memory_per_environment(task: str, environments: int, threads: int) -> float:
    """Return by how many bytes per environment the resident memory of a fresh process grows as it makes and steps them."""
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return float(pool.apply(_grow, (task, environments, threads)))


def _grow(task: str, environments: int, threads: int) -> float:
    def make_and_step(count: int) -> BatchEnvironment:
        environment = make_native(task, count, 0, threads, randomization="medium", disturbance="medium")
        environment.reset()
        for actions in draw_actions(count, environment.act_dim)[:4]:
            environment.step(actions)
        return environment

    process = psutil.Process()
    few = make_and_step(1)  # libraries, the compiled model and the threads are there before the count starts
    before = process.memory_info().rss
    many = make_and_step(environments)
    grown = process.memory_info().rss - before
    del few, many
    return grown / environments


def measure_task(task: str, settings: BenchmarkSettings, progress: Callable[[str], None]) -> dict[str, Any]:
    """Measure all methods on one task, in turns.

    Args:
        task: name of the task.
        settings: what to measure, and how long.
        progress: called with a description after each piece of work; there are :func:`count_work` of them per task.

    Returns:
        ``steps_per_s`` (method -> median, low, high and rounds), ``ratio`` (the same of ours over each other method),
        ``unavailable`` (method -> reason) and ``memory_bytes_per_environment`` (None if not measured).
    """
    rates: dict[str, list[float]] = {}
    unavailable: dict[str, str] = {}
    with ExitStack() as stack:
        methods: dict[str, Method] = {}
        for name in settings.methods:
            try:
                methods[name] = METHODS[name](task, settings)
                stack.callback(methods[name].close)
            except MethodUnavailableError as error:
                unavailable[name] = str(error)
            progress(f"{task}: prepared {name}")
        for _ in range(settings.rounds):
            for name in settings.methods:
                if name in methods:
                    rates.setdefault(name, []).append(methods[name].measure(settings.seconds))
                progress(f"{task}: measured {name}")
    memory = None
    if settings.memory_environments:
        memory = memory_per_environment(task, settings.memory_environments, settings.threads)
        progress(f"{task}: measured memory")
    ratios = {
        name: summarize([ours / other for ours, other in zip(rates["ours"], values, strict=True)])
        for name, values in rates.items()
        if "ours" in rates and name != "ours"
    }
    return {
        "steps_per_s": {name: summarize(values) for name, values in rates.items()},
        "ratio": ratios,
        "unavailable": unavailable,
        "memory_bytes_per_environment": memory,
    }


def count_work(settings: BenchmarkSettings) -> int:
    """Return how often :func:`measure_task` reports progress for one task."""
    return len(settings.methods) * (settings.rounds + 1) + bool(settings.memory_environments)


def summarize(values: list[float]) -> dict[str, Any]:
    """Return median, lowest and highest of measurements, and the measurements themselves."""
    return {"median": statistics.median(values), "low": min(values), "high": max(values), "rounds": values}
