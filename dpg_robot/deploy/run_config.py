"""What a robot is (its YAML file) and what a run does with it."""

from __future__ import annotations

import dataclasses
import importlib
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

from dpg_robot.config import setting
from dpg_robot.contract import CommandChannel, Contract, MeasurementChannel
from dpg_robot.deploy.homing import Homing
from dpg_robot.deploy.policy_updates import UpdateConfig
from dpg_robot.deploy.robot import Robot
from dpg_robot.deploy.safety import SafetyConfig
from dpg_robot.errors import ConfigError


@dataclass(frozen=True)
class RobotConfig:
    """One robot: its driver, its channels, its limits."""

    name: str = field(metadata={"help": "name of the robot"})
    driver: str = field(metadata={"help": "'module:function' that makes Robot and Homing from this configuration and a contract"})
    rate_hz: float = field(metadata={"help": "control steps per second", "unit": "Hz"})
    measurements: tuple[MeasurementChannel, ...] = field(metadata={"help": "measurement channels (name, unit), in order"})
    commands: tuple[CommandChannel, ...] = field(metadata={"help": "command channels (name, unit, low, high), in order"})
    port: str = setting("", "serial port of the device, for example /dev/ttyACM0")
    baud_rate: int = setting(1_000_000, "speed of the serial port", unit="bit/s")
    device: dict[str, Any] = setting(dict, "settings of the driver, in its own terms")
    read_timeout_s: float = setting(0.004, "longest time that a tick waits for the measurements", unit="s")
    safety: SafetyConfig = setting(SafetyConfig, "limits and patience of the safety layers")
    updates: UpdateConfig = setting(UpdateConfig, "how a new policy gets to act while the robot runs")
    homing: dict[str, float] = setting(dict, "parameters of the driver's homing controller")
    homing_timeout_s: float = setting(20.0, "longest time that homing may take", unit="s")
    episode_seconds: float = setting(10.0, "length of an episode", unit="s")
    real_time_priority: int = setting(80, "priority under SCHED_FIFO; 0 does not ask for real time")

    def __post_init__(self) -> None:
        if not 0 <= self.real_time_priority <= 99:
            raise ConfigError(f"real_time_priority must be 0 to 99, got {self.real_time_priority}")
        for name in ("rate_hz", "read_timeout_s", "homing_timeout_s", "episode_seconds"):
            if not 0 < getattr(self, name) < float("inf"):
                raise ConfigError(f"{name} must be positive and finite, got {getattr(self, name)}")

    def require_fit(self, contract: Contract, policy: Path) -> None:
        """Raise ContractError unless the contract of the file ``policy`` has this robot's channels, units, limits and rate.

        Task, features and history are the policy's own business.
        """
        expected = dataclasses.replace(contract, measurements=self.measurements, commands=self.commands, rate_hz=self.rate_hz)
        expected.require_equal(contract, ours=f"robot {self.name!r}", theirs=str(policy))

    def make(self, contract: Contract) -> tuple[Robot, Homing]:
        """Make robot and homing with the configured driver; nothing is opened yet. Raises ConfigError if it cannot be found."""
        return _find_driver(self.driver)(self, contract)


@dataclass(frozen=True)
class RunSettings:
    """One run: plain data, because it travels to the processes of the run.

    Attributes:
        robot: the robot.
        policy: path of the policy file.
        log_folder: folder in which the run gets its own.
        episodes: number of episodes.
        episode_seconds: length of an episode, seconds.
        exploration: standard deviation of Gaussian noise on the actions, as a share of half their range.
        seed: seed of that noise.
        shadow: whether the policy only watches: actuators stay as they are, commands are recorded but not sent.
    """

    robot: RobotConfig
    policy: Path
    log_folder: Path
    episodes: int = 1
    episode_seconds: float = 10.0
    exploration: float = 0.0
    seed: int = 0
    shadow: bool = False

    def __post_init__(self) -> None:
        if self.shadow and self.exploration > 0:
            raise ConfigError("a policy that only watches cannot explore; leave exploration at 0 in shadow mode")
        if self.episodes < 1:
            raise ConfigError(f"episodes must be at least 1, got {self.episodes}")
        if not 0 < self.episode_seconds < float("inf"):
            raise ConfigError(f"episode_seconds must be positive and finite, got {self.episode_seconds}")
        if not 0 <= self.exploration <= 1:
            raise ConfigError(f"exploration must be 0 to 1 (a share of half the action's range), got {self.exploration}")

    @property
    def episode_steps(self) -> int:
        """Control steps in an episode, at least 1."""
        return max(1, round(self.episode_seconds * self.robot.rate_hz))


def _find_driver(path: str) -> Callable[[RobotConfig, Contract], tuple[Robot, Homing]]:
    module_name, separator, function_name = path.partition(":")
    if not separator:
        raise ConfigError(f"driver must be 'module:function', for example hw_drivers.cartpole:make_cartpole, got {path!r}")
    try:
        driver = getattr(importlib.import_module(module_name), function_name)
    except (ImportError, AttributeError) as error:
        raise ConfigError(f"driver {path!r} cannot be found: {error}") from error
    return cast("Callable[[RobotConfig, Contract], tuple[Robot, Homing]]", driver)
