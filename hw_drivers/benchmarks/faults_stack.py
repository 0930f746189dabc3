"""The robots that faults happen to: emulated servos in a process of their own, and the robot's program with all its processes."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import math
import os
import re
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import psutil
from numpy.typing import NDArray

from dpg_robot.config import config_from_dict, config_to_dict, dump_config, load_config
from dpg_robot.contract import CommandChannel, Contract, Feature, MeasurementChannel
from dpg_robot.data.benchmarks.processor_time import processor_wait_s
from dpg_robot.data.robot_log import read_records
from dpg_robot.deploy.run_config import RobotConfig
from dpg_robot.deploy.safety import GoalLimit, SafetyConfig
from dpg_robot.errors import DpgError, LinkError
from hw_drivers.benchmarks.faults_policy import HISTORY, Failure, write_policy
from hw_drivers.emulators.fault_schedule import BusFault
from hw_drivers.servo_config import ServoConfig, ServoRobotConfig, resolve_command

RATE_HZ = 25.0
_MAX_GOAL_SPEED = 3.0  # of joints that take angles, rad/s
STOP_RAMP_S = 0.2
STARTED_S = 60.0
"""Longest time that a program may take to start on a busy machine, s."""

_HOMES = {"shoulder_lift": -1.62, "elbow_flex": 1.5, "wrist_flex": 1.0}  # where it falls, it can get up from
_AMPLITUDE, _LOADED_AMPLITUDE, _SHORTEST_PERIOD_S = 0.2, 0.1, 1.4
_FREE_JOINTS = ("shoulder_pan", "wrist_roll")
_STUCK_ERROR, _STUCK_S = 0.08, 0.25  # a joint that stands still so far from its goal, for so long, is stuck
_SILENCE_S = 3.75 / RATE_HZ  # after measurements of a joint that moves count as too old
_ARM_SEED = 1  # an arm that can get up from wherever it falls; that of seed 0 may wedge its wrist
_DYNAMIXELS = 4
_LOOK_NS = 50_000_000  # the next look at a process comes within


@dataclass(frozen=True)
class Stack:
    """One robot.

    Attributes:
        name: of the stack.
        robot: its configuration; the port is the campaign's.
        emulator: arguments of ``launch/emulate.py``.
        followers: numbers of the servos whose joints follow their goals closely, as no weight pulls at them.
    """

    name: str
    robot: RobotConfig
    emulator: tuple[str, ...]
    followers: tuple[int, ...]

    @cached_property
    def servos(self) -> ServoRobotConfig:
        """The servos, in the order of their numbers in the emulator."""
        return config_from_dict(ServoRobotConfig, self.robot.device, source=self.name)

    @cached_property
    def contract(self) -> Contract:
        """What the policies read and command."""
        robot = self.robot
        features = tuple(Feature("identity", channel.name) for channel in robot.measurements)
        return Contract(
            "faults", robot.measurements, features, robot.commands, robot.rate_hz, history=HISTORY, latency_budget_s=0.5 / RATE_HZ
        )

    @cached_property
    def max_goal_speeds(self) -> dict[str, float]:
        """Fastest change of the goal of each joint, rad/s."""
        speeds = {name: servo.max_velocity for name, servo in self.servos.servos.items()}  # of those that are held
        for channel in self.robot.commands:
            command = resolve_command(channel.name, self.servos)
            is_speed = command.quantity == "speed"
            speeds[command.joint] = channel.high if is_speed else self.robot.safety.max_command_rate[channel.name]
        return speeds

    def write_policy(self, path: Path, failure: Failure = "", at_step: int = 0) -> Path:
        """Write a policy that moves every joint around its home."""
        centers, amplitudes, periods, phases = [], [], [], []
        for number, channel in enumerate(self.robot.commands):
            command = resolve_command(channel.name, self.servos)
            period = _SHORTEST_PERIOD_S * (1.0 + 0.1 * number)  # different ones, so that joints are at different places
            amplitude = _AMPLITUDE if number in self.followers else _LOADED_AMPLITUDE
            is_speed = command.quantity == "speed"
            centers.append(0.0 if is_speed else self.servos.servos[command.joint].home)
            amplitudes.append(amplitude * 2 * math.pi / period if is_speed else amplitude)
            phases.append(0.5 * math.pi if is_speed else 0.0)
            periods.append(period)
        return write_policy(path, self.contract, centers, amplitudes, periods, phases, failure=failure, at_step=at_step)


def so101_stack(configs: Path) -> Stack:
    """Return an SO-101 on Feetech servos, with the physics of its arm; it moves near the pose in which it rests."""
    robot = load_config(RobotConfig, configs / "robots" / "so101.yaml")
    config = config_from_dict(ServoRobotConfig, robot.device, source="so101")
    servos = {
        name: dataclasses.replace(servo, home=_HOMES.get(name, servo.home), park=None) for name, servo in config.servos.items()
    }
    for name in _FREE_JOINTS:  # the others hang through by more than they move
        servos[name] = dataclasses.replace(servos[name], max_lead=_STUCK_ERROR, stuck_s=_STUCK_S)
    changed = dataclasses.replace(
        robot,
        rate_hz=RATE_HZ,
        device=config_to_dict(
            dataclasses.replace(config, servos=servos, stop_ramp_s=STOP_RAMP_S, soft_start_s=0.2, silence_s=_SILENCE_S)
        ),
        homing={"speed": 1.5, "tolerance": 0.1, "rest_s": 0.1},
    )
    followers = tuple(list(servos).index(name) for name in _FREE_JOINTS)
    return Stack("so101", changed, ("so101", "--seed", str(_ARM_SEED)), followers)


def dynamixel_stack() -> Stack:
    """Return four XL330-M288 that move joints without inertia."""
    names = [f"joint_{number}" for number in range(1, _DYNAMIXELS + 1)]
    servos = {
        name: ServoConfig(id=number, model="XL330-M288", low=-1.5, high=1.5, max_velocity=3.0)
        for number, name in enumerate(names, start=1)
    }
    device = ServoRobotConfig(
        "dynamixel", servos, stop_ramp_s=STOP_RAMP_S, soft_start_s=0.2, watchdog_s=5 / RATE_HZ, silence_s=_SILENCE_S
    )
    quantities = [(name, quantity, unit) for quantity, unit in (("position", "rad"), ("velocity", "rad/s")) for name in names]
    safety = SafetyConfig(
        zero_command_is_safe=False,
        goals={f"{name}_goal": _closely_following(name) for name in names},
        max_speed={f"{name}_velocity": 8.0 for name in names},
        max_command_rate={f"{name}_goal": _MAX_GOAL_SPEED for name in names},
    )
    robot = RobotConfig(
        name="dynamixel",
        driver="hw_drivers.servo_robot:make_servo_robot",
        rate_hz=RATE_HZ,
        measurements=tuple(MeasurementChannel(f"{name}_{quantity}", unit) for name, quantity, unit in quantities),
        commands=tuple(CommandChannel(f"{name}_goal", "rad", -1.5, 1.5) for name in names),
        baud_rate=1_000_000,
        device=config_to_dict(device),
        read_timeout_s=0.012,
        safety=safety,
        homing={"speed": 1.5, "rest_s": 0.1},
    )
    ids = [str(servo.id) for servo in servos.values()]
    return Stack("dynamixel", robot, ("dynamixel", "--ids", *ids, "--model", "XL330-M288"), tuple(range(_DYNAMIXELS)))


class Emulator:
    """Emulated servos in a process of their own, with their trace.

    Attributes:
        port: symbolic link to the port, which stays when the port's name changes.
        events: what the trace has said so far.
    """

    def __init__(self, stack: Stack, folder: Path, launch: Path, seed: int) -> None:
        """Start it. Raises LinkError if it does not."""
        self.port, self._path = folder / "port", folder / "trace.jsonl"
        self.events: list[dict[str, Any]] = []
        self._position, self._rest = 0, b""
        device, *options = stack.emulator
        command = [sys.executable, str(launch / "emulate.py"), device, "--seed", str(seed), *options]
        command += ["--link", str(self.port), "--trace", str(self._path)]
        with (folder / "emulator.txt").open("w") as said:
            self._process = subprocess.Popen(
                command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=said, env=environment(launch), cwd=folder
            )
        assert self._process.stdout is not None
        if not self._process.stdout.readline().startswith(b"/dev/"):
            raise LinkError(f"the emulator did not start; it said: {(folder / 'emulator.txt').read_text()}")

    def give(self, fault: BusFault) -> None:
        """Let a fault happen."""
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(dataclasses.asdict(fault)).encode() + b"\n")
        self._process.stdin.flush()

    def look(self) -> None:
        """Read what is new in the trace."""
        with self._path.open("rb") as file:
            file.seek(self._position)
            data = file.read()
        self._position += len(data)
        *lines, self._rest = (self._rest + data).split(b"\n")
        self.events += [json.loads(line) for line in lines]
        if self._process.poll() is not None:
            raise LinkError(f"the emulator ended with exit code {self._process.returncode}")

    def close(self) -> None:
        """End it."""
        self._process.terminate()
        self._process.communicate(timeout=STARTED_S)


class RobotRun:
    """A running ``launch/robot.py run``.

    Attributes:
        fault_numbers: the faults that happened to it.
        waiting: by process, for each look, the time (ns), and the time (s) that it could not run because others did.
    """

    def __init__(self, stack: Stack, folder: Path, launch: Path, port: Path, policy: Path, *, extra_path: str = "") -> None:
        """Start it."""
        self.folder = folder
        folder.mkdir()
        robot = folder / "robot.yaml"
        dump_config(dataclasses.replace(stack.robot, port=str(port)), robot)
        self._log, self._said, self._out = folder / "log", folder / "said.txt", folder / "out.txt"
        command = [sys.executable, str(launch / "robot.py"), "run", "--robot", str(robot), "--policy", str(policy)]
        command += ["--log", str(self._log), "--episode-seconds", "3600"]
        with self._said.open("w") as said, self._out.open("w") as out:
            self.process = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=out, stderr=said, env=environment(launch, extra_path), cwd=folder
            )
        self.fault_numbers: list[int] = []
        self.waiting: dict[str, list[tuple[int, float]]] = {}
        self._children: dict[str, psutil.Process] = {}

    @property
    def alive(self) -> bool:
        """Whether its supervisor, or a process that it left behind, still runs."""
        return self.process.poll() is None or any(_runs(child) for child in self._children.values())

    @property
    def is_running(self) -> bool:
        """Whether the policy acts."""
        return "running:" in self.said

    @property
    def stops(self) -> bool:
        """Whether it says that it stops, or has stopped."""
        return bool(re.search("stopping:|fault:|^robot: ", self.said, re.MULTILINE))

    @property
    def homes(self) -> bool:
        """Whether the joints have begun to move to where an episode begins."""
        return "homing:" in self.said

    @property
    def said(self) -> str:
        """What it wrote on stderr."""
        return self._said.read_text()

    @property
    def log_folder(self) -> Path | None:
        """The run's folder in the log, once there is one."""
        folders = sorted(self._log.iterdir()) if self._log.exists() else []
        return folders[-1] if folders else None

    @property
    def summary(self) -> dict[str, Any] | None:
        """What ``summary.json`` says, None if there is none."""
        folder = self.log_folder
        if folder is None or not (folder / "summary.json").exists():
            return None
        summary: dict[str, Any] = json.loads((folder / "summary.json").read_text())
        return summary

    def records(self) -> NDArray[np.void] | None:
        """Return the log's records, None if it cannot be read."""
        folder = self.log_folder
        try:
            return None if folder is None else np.concatenate(list(read_records(folder)))
        except (DpgError, ValueError):
            return None

    def look(self) -> None:
        """Note the processes, and the time for which they had to wait for a processor."""
        processes = {"supervisor": self.process.pid, **{name: child.pid for name, child in self._find_children().items()}}
        for name, pid in processes.items():
            with contextlib.suppress(OSError, IndexError):
                waited_s = processor_wait_s(pid)
                self.waiting.setdefault(name, []).append((time.monotonic_ns(), waited_s))

    def child(self, name: str) -> psutil.Process | None:
        """Return a process of the run: ``robot-control`` or ``robot-log``."""
        self._find_children()
        return self._children.get(name)

    def waited_s(self, process: str, begin_ns: int, end_ns: int) -> float:
        """Return for how long a process of the run had to wait for a processor in a span of time, s."""
        looks = self.waiting.get(process, [])
        before = [waited for at, waited in looks if at <= begin_ns]
        until = [waited for at, waited in looks if at <= end_ns + _LOOK_NS]
        return until[-1] - before[-1] if before and until else 0.0

    def kill(self) -> None:
        """End whatever is left of it."""
        for process in self._children.values():
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
        self.process.kill()
        self.process.wait()

    def _find_children(self) -> dict[str, psutil.Process]:
        if len(self._children) < 2 and self.process.poll() is None:
            with contextlib.suppress(psutil.NoSuchProcess, FileNotFoundError):
                # psutil would look through all processes of the computer
                pids = Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children").read_text().split()
                for child in map(psutil.Process, map(int, pids)):
                    if child.name() in ("robot-control", "robot-log"):
                        self._children[child.name()] = child
        return self._children


def environment(launch: Path, extra_path: str = "") -> dict[str, str]:
    """Return the environment of the programs."""
    paths = [extra_path, str(launch.parent), os.environ.get("PYTHONPATH", "")]
    return {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in paths if path), "MUJOCO_GL": "disable"}


def wait_until(condition: Callable[[], bool], timeout_s: float, poll_s: float = 0.02) -> bool:
    """Poll until ``condition()``; returns whether it came true in time."""
    end_s = time.monotonic() + timeout_s
    while not condition():
        if time.monotonic() > end_s:
            return False
        time.sleep(poll_s)
    return True


def _closely_following(joint: str) -> GoalLimit:
    return GoalLimit(position=f"{joint}_position", stuck_error=_STUCK_ERROR, stuck_s=_STUCK_S)


def _runs(process: psutil.Process) -> bool:
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False
