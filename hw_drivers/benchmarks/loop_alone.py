"""Parts of the control loop measured without waiting: the policy's step, and the memory of a loop over many ticks.

Each runs as a program of its own, ``python -m hw_drivers.benchmarks.loop_alone``, as a control process does: with nothing of the
benchmark in it, and without torch.
"""

from __future__ import annotations

import json
import sys
import time
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import psutil

from dpg_robot.contract import Contract
from dpg_robot.data.ring import LogState, LogStatus, Ring
from dpg_robot.data.transition import tick_dtype
from dpg_robot.deploy.clock import request_real_time
from dpg_robot.deploy.control_block import ControlBlock
from dpg_robot.deploy.control_loop import ControlLoop
from dpg_robot.deploy.homing import NoHoming
from dpg_robot.deploy.policy_session import PolicySession
from dpg_robot.deploy.policy_updates import PolicyUpdates
from dpg_robot.deploy.robot import JointState
from dpg_robot.deploy.run_config import RunSettings
from dpg_robot.deploy.safety import Safety
from hw_drivers.benchmarks.loop_programs import ProgramError, run_program
from hw_drivers.benchmarks.loop_robot import InstantRobot, make_robot_config
from hw_drivers.benchmarks.loop_wakeups import percentiles_us

_WARM_UP = 1000  # steps
_BLOCK, _PAUSE_S = 256, 0.01  # the kernel stops a real-time process that never sleeps
_RING_RECORDS, _DRAIN_EVERY = 4096, 512
_EPISODE_TICKS = 6000  # a minute at 100 Hz
_SAMPLES = 20


def measure_step(policy: Path, steps: int, priority: int) -> dict[str, Any]:
    """Return percentiles of the time of :meth:`PolicySession.step`, microseconds, in a process of its own."""
    return _run(_measure_step_here, policy, steps, priority)


def measure_memory(policy: Path, ticks: int) -> dict[str, Any]:
    """Return the resident memory of a control loop over ``ticks`` ticks at the rate of the policy, in a process of its own.

    The loop is the whole one, with safety layers, policy and records; its robot is at its goals at once, its grid is so fine that
    it never waits, and the same process takes the records out of the ring.
    """
    return _run(_measure_memory_here, policy, ticks)


def _measure_step_here(policy: str, steps: int, priority: int) -> dict[str, Any]:
    session = PolicySession.load(policy)
    grants = request_real_time(priority)
    measurements = np.random.default_rng(0).uniform(-1.0, 1.0, (_BLOCK, session.contract.num_measurements))
    times = np.empty(_WARM_UP + steps, np.int64)
    for index in range(len(times)):
        if index % _BLOCK == 0:
            time.sleep(_PAUSE_S)
        begin_ns = time.perf_counter_ns()
        session.step(measurements[index % _BLOCK])
        times[index] = time.perf_counter_ns() - begin_ns
    return {"steps": steps, "step_us": percentiles_us([times[_WARM_UP:]]), "real_time": [vars(grant) for grant in grants]}


def _measure_memory_here(policy: str, ticks: int) -> dict[str, Any]:
    session = PolicySession.load(policy)
    contract = session.contract
    config = make_robot_config("instant", contract, priority=0)
    episode_ticks = min(ticks, _EPISODE_TICKS)
    settings = RunSettings(
        config, Path(policy), Path(), episodes=-(-ticks // episode_ticks), episode_seconds=(episode_ticks - 1) / contract.rate_hz
    )
    dtype = tick_dtype(contract.num_measurements, contract.num_actions)
    with Ring.create(dtype, _RING_RECORDS) as ring, closing(ControlBlock.create()) as block:
        ring.publish_status(LogStatus(LogState.WRITING))
        robot = _MeteredRobot(contract, ring, ticks)
        loop = ControlLoop(robot, NoHoming(), PolicyUpdates(session), Safety(config.safety, contract), ring, block, settings)
        request_real_time(0)  # as in a control process, without the garbage collector
        begin_s = time.monotonic()
        report = loop.run()
        seconds = time.monotonic() - begin_s
    if report.fault:
        raise ProgramError(f"the loop ended early: {report.reason}")
    return {"ticks": report.ticks, "seconds": seconds, "ticks_per_second": report.ticks / seconds, "rss_bytes": robot.memory}


class _MeteredRobot(InstantRobot):
    """An instant robot that empties the ring, and looks at the memory of its process at times.

    Attributes:
        memory: resident bytes by the number of readings up to then.
    """

    def __init__(self, contract: Contract, ring: Ring, ticks: int) -> None:
        super().__init__(contract)
        self.memory: dict[int, int] = {}
        self._ring, self._readings, self._process = ring, 0, psutil.Process()
        self._marks = {max(1, round(ticks * sample / _SAMPLES)) for sample in range(1, _SAMPLES + 1)}

    def read(self, state: JointState) -> None:
        """Read, and do what has to be done besides."""
        super().read(state)
        self._readings += 1
        if self._readings % _DRAIN_EVERY == 0:
            self._ring.drain(_DRAIN_EVERY)
        if self._readings in self._marks:
            self.memory[self._readings] = self._process.memory_info().rss


_PROGRAMS = {program.__name__: program for program in (_measure_step_here, _measure_memory_here)}


def _run(program: Any, policy: Path, *arguments: int) -> dict[str, Any]:
    command = [sys.executable, "-m", __name__, program.__name__, json.dumps([str(policy), *arguments])]
    result: dict[str, Any] = json.loads(run_program(command))
    return result


if __name__ == "__main__":
    print(json.dumps(_PROGRAMS[sys.argv[1]](*json.loads(sys.argv[2]))))
