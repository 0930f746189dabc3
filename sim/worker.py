"""Steps `dm_env` environments in processes of their own, with the numbers of each step in shared memory.

Each worker has a slice of the environments. Commands and answers are small messages through a pipe; the actions, observations,
rewards and flags of a step never pass through it. A worker ends when its pipe closes, however the parent came to its end.
"""

from __future__ import annotations

import contextlib
import logging
import multiprocessing
import os
import signal
import traceback
import weakref
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from multiprocessing.shared_memory import SharedMemory
from typing import Any

import mujoco
import numpy as np
from numpy.typing import DTypeLike, NDArray

from dpg_robot.errors import ConfigError, DpgError
from sim.single_environment import Description, Factory, SingleEnvironment

_LOG = logging.getLogger(__name__)


class WorkerError(DpgError, RuntimeError):
    """An environment in a worker process raised an error, or the process ended."""


class SharedArrays:
    """What passes between parent and workers in each step, one row per environment.

    Args:
        sizes: N environments, O numbers of an observation, A numbers of an action.
        name: the shared memory to attach to; None to make one.

    Attributes:
        active: (N,) bool, the environments that a command is for.
        action: (N, A) float64, in the environments' own units.
        obs: (N, O) float32; kept where the physics diverged.
        reward: (N,) float64.
        terminal: (N,) bool.
        timeout: (N,) bool.
        fault: (N,) bool.
    """

    def __init__(self, sizes: tuple[int, int, int], name: str | None = None) -> None:
        num_envs, obs_dim, act_dim = self.sizes = sizes
        shapes = [(num_envs, act_dim), (num_envs,), (num_envs, obs_dim), *[(num_envs,)] * 4]
        # the widest first, so that all are aligned
        dtypes: list[DTypeLike] = [
            np.float64,
            np.float64,
            np.float32,
            *[np.bool_] * 4,
        ]
        lengths = [np.dtype(dtype).itemsize * int(np.prod(shape)) for shape, dtype in zip(shapes, dtypes, strict=True)]
        self._memory = SharedMemory(name, create=name is None, size=sum(lengths))
        starts = np.cumsum([0, *lengths[:-1]]).tolist()
        arrays = [np.ndarray(*item) for item in zip(shapes, dtypes, [self._memory.buf] * len(shapes), starts, strict=True)]
        self.action: NDArray[np.float64]
        self.reward: NDArray[np.float64]
        self.obs: NDArray[np.float32]
        self.active: NDArray[np.bool_]
        self.terminal: NDArray[np.bool_]
        self.timeout: NDArray[np.bool_]
        self.fault: NDArray[np.bool_]
        self.action, self.reward, self.obs, self.active, self.terminal, self.timeout, self.fault = arrays

    @property
    def name(self) -> str:
        """Name of the shared memory."""
        return self._memory.name

    def unlink(self) -> None:
        """Remove the name; the memory goes away with its last user, however that one ends."""
        self._memory.unlink()

    def close(self) -> None:
        """Let go of the arrays and the memory."""
        del self.action, self.reward, self.obs, self.active, self.terminal, self.timeout, self.fault
        self._memory.close()


class WorkerPool:
    """Worker processes, each with a slice of N environments.

    Args:
        factory: makes an environment from a seed.
        seeds: a seed for each environment.
        num_workers: number of processes.

    Attributes:
        description: what each environment takes and gives.

    Raises:
        ConfigError: a factory that cannot be passed to another process, or environments that cannot be used here.
        WorkerError: an environment that raises an error when it is made.
    """

    description: Description

    def __init__(self, factory: Factory, seeds: list[int], num_workers: int) -> None:
        self._processes: list[BaseProcess] = []
        self._connections: list[Connection[Any, Any]] = []
        self._shared: SharedArrays | None = None
        self._slices = np.array_split(np.arange(len(seeds)), num_workers)
        self._end = weakref.finalize(self, _end, self._processes, self._connections)
        context = multiprocessing.get_context("spawn")  # native threads do not survive a fork
        try:
            for ids in self._slices:
                ours, theirs = context.Pipe()
                self._connections.append(ours)
                arguments = (theirs, factory, int(ids[0]), [seeds[index] for index in ids])
                process = context.Process(target=run_worker, args=arguments, daemon=True)
                with theirs, _interrupts_blocked():
                    _start(process, factory)
                self._processes.append(process)
            descriptions = [self._receive(index) for index in range(num_workers)]
            if any(other != descriptions[0] for other in descriptions):
                raise ConfigError(f"the factory must give environments of the same specs, got {descriptions}")
            self.description = descriptions[0]
            self._shared = SharedArrays((len(seeds), len(self.description.observation_names), len(self.description.low)))
            try:
                self.call("attach", (self._shared.name, self._shared.sizes))
            finally:
                self._shared.unlink()
        except BaseException:
            self.close()
            raise

    @property
    def shared(self) -> SharedArrays:
        """The arrays of the steps; RuntimeError after :meth:`close`."""
        if self._shared is None:
            raise RuntimeError("these environments are closed; make new ones")
        return self._shared

    @property
    def pids(self) -> tuple[int, ...]:
        """Ids of the processes."""
        return tuple(process.pid for process in self._processes if process.pid is not None)

    def call(self, command: str, argument: Any = None) -> None:
        """Have all workers carry out a command."""
        self._exchange(command, [argument] * len(self._connections))

    def call_each(self, command: str, arguments: list[Any]) -> list[Any]:
        """Have the workers carry out a command with one argument per environment; returns one answer per environment."""
        answers = self._exchange(command, [[arguments[index] for index in ids] for ids in self._slices])
        return [item for answer in answers for item in answer]

    def close(self) -> None:
        """End the processes; calling it again does nothing."""
        self._end()
        if self._shared is not None:
            self._shared.close()
            self._shared = None

    def _exchange(self, command: str, arguments: list[Any]) -> list[Any]:
        if not self._end.alive:
            raise RuntimeError("these environments are closed; make new ones")
        try:
            for index, argument in enumerate(arguments):
                try:
                    self._connections[index].send((command, argument))
                except OSError as error:
                    raise self._death(index) from error
            return [self._receive(index) for index in range(len(arguments))]
        except BaseException:  # also Ctrl-C: answers are left in the pipes, and the next command would take them for its own
            self.close()
            raise

    def _receive(self, index: int) -> Any:
        try:
            answer = self._connections[index].recv()
        except (EOFError, OSError) as error:
            raise self._death(index) from error
        if isinstance(answer, _Failure):
            raise answer.to_error()
        return answer

    def _death(self, index: int) -> WorkerError:
        ids, process = self._slices[index], self._processes[index]
        process.join(timeout=5)
        code = process.exitcode
        how = f"was ended by signal {-code}" if code is not None and code < 0 else f"ended with exit code {code}"
        hint = "" if hasattr(self, "description") else ". A script must make environments below if __name__ == '__main__':"
        return WorkerError(f"the process of environments {ids[0]} to {ids[-1]} {how}; what it wrote stands above{hint}")


def _start(process: BaseProcess, factory: Factory) -> None:
    try:
        process.start()
    except Exception as error:  # of many types: whatever pickle raises
        raise ConfigError(
            f"the factory {factory!r} cannot be passed to another process ({error}); make it a function at the top level of a "
            "module, or give a reference such as 'my_world.py:make'"
        ) from error


@contextlib.contextmanager
def _interrupts_blocked() -> Iterator[None]:
    """Have processes that are started here never see Ctrl-C, which the terminal sends to them too."""
    if not hasattr(signal, "pthread_sigmask"):
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _end(processes: list[BaseProcess], connections: list[Connection[Any, Any]]) -> None:
    for connection in connections:
        connection.close()
    for process in processes:
        process.join(timeout=2)
        if process.is_alive():  # in the middle of a long step
            process.kill()
            process.join()


@dataclass(frozen=True)
class _Failure:
    """An error in a worker, as text, since not every error can be passed on."""

    environment: int
    refusal: str | None
    trace: str

    def to_error(self) -> DpgError:
        if self.refusal is not None:
            return ConfigError(self.refusal)
        return WorkerError(f"environment {self.environment} raised an error in its worker process:\n{self.trace}")


def run_worker(connection: Connection[Any, Any], factory: Factory, first: int, seeds: list[int]) -> None:
    """Make environments, send their description, and carry out commands until the pipe closes.

    Args:
        connection: the pipe to the parent.
        factory: makes an environment from a seed.
        first: number of the first environment.
        seeds: a seed for each of the environments of this process.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    os.environ.setdefault("MUJOCO_GL", "disable")  # dm_control looks for a display otherwise
    mujoco.set_mju_user_warning(_LOG.debug)  # MuJoCo would write a file into the working directory otherwise
    with contextlib.suppress(EOFError, OSError):  # the parent has closed the pipe, or is no more
        worker = _Worker(factory, first)
        connection.send(worker.carry_out(worker.start, seeds))
        while True:
            command, argument = connection.recv()
            connection.send(worker.carry_out(getattr(worker, command), argument))


class _Worker:
    """The environments from number ``first`` on; each command is a method with one argument."""

    def __init__(self, factory: Factory, first: int) -> None:
        self._factory, self._first, self._at = factory, first, first
        self._environments: list[SingleEnvironment] = []

    def carry_out(self, command: Callable[[Any], Any], argument: Any) -> Any:
        try:
            return command(argument)
        except Exception as error:
            return _Failure(self._at, str(error) if isinstance(error, DpgError) else None, traceback.format_exc())

    def start(self, seeds: list[int]) -> Description:
        self.make(seeds)
        return self._environments[0].description

    def make(self, seeds: list[int]) -> list[None]:
        for _, environment in self._numbered():
            environment.close()
        self._environments = []
        for index, seed in enumerate(seeds, self._first):
            self._at = index
            self._environments.append(SingleEnvironment(self._factory, seed))
        return [None] * len(seeds)

    def attach(self, argument: tuple[str, tuple[int, int, int]]) -> None:
        name, sizes = argument
        self._shared = SharedArrays(sizes, name)

    def step(self, _: None) -> None:
        shared = self._shared
        for index, environment in self._numbered():
            if shared.active[index]:
                outcome = environment.step(shared.action[index], shared.obs[index])
                shared.reward[index], shared.terminal[index], shared.timeout[index], shared.fault[index] = outcome

    def reset(self, _: None) -> None:
        for index, environment in self._numbered():
            if self._shared.active[index]:
                environment.reset(self._shared.obs[index])

    def positions(self, _: list[None]) -> list[tuple[NDArray[np.float64], NDArray[np.float64]]]:
        return [environment.positions() for _, environment in self._numbered()]

    def set_positions(self, arguments: list[tuple[NDArray[np.float64], NDArray[np.float64]]]) -> list[None]:
        for (index, environment), (qpos, qvel) in zip(self._numbered(), arguments, strict=True):
            environment.set_positions(qpos, qvel, self._shared.obs[index])
        return [None] * len(arguments)

    def state(self, _: list[None]) -> list[dict[str, NDArray[Any]]]:
        return [environment.state() for _, environment in self._numbered()]

    def load_state(self, states: list[dict[str, NDArray[Any]]]) -> list[None]:
        for (_, environment), state in zip(self._numbered(), states, strict=True):
            environment.load_state(state)
        return [None] * len(states)

    def _numbered(self) -> Iterator[tuple[int, SingleEnvironment]]:
        """Yield the environments with their numbers, and remember which one is at work."""
        for index, environment in enumerate(self._environments, self._first):
            self._at = index
            yield index, environment
