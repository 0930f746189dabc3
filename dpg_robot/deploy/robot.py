"""The interface to anything that moves: a real robot, an emulated one, or a simulated one.

The control loop knows only this interface. Values are arrays in SI units, one per channel, with validity and time; nothing
here or above it can tell who is behind it.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntFlag
from typing import Protocol

import numpy as np
from numpy.typing import NDArray


class DeviceFlag(IntFlag):
    """Conditions that a device reports about itself."""

    ENABLED = 1
    WATCHDOG_TRIPPED = 2
    LIMIT_HIT = 4
    HARDWARE_FAULT = 8


NO_FLAGS = DeviceFlag(0)


@dataclass
class JointState:
    """One reading of all measurement channels.

    The control loop allocates one and passes it to :meth:`Robot.read`, which overwrites it in place.

    Attributes:
        values: (M,) float64 measurements in SI units. Where ``valid`` is false the last valid value is kept.
        valid: (M,) bool, whether the value was read freshly in this call.
        time_ns: (M,) int64, time of the reading of each value on this computer's monotonic clock, nanoseconds.
        device_time_ns: the device's own clock at the reading, nanoseconds since it started; -1 if it has none.
        flags: conditions reported by the device.
        alarm: what the device says about a hardware fault, for people; empty without one.
    """

    values: NDArray[np.float64]
    valid: NDArray[np.bool_]
    time_ns: NDArray[np.int64]
    device_time_ns: int = -1
    flags: DeviceFlag = NO_FLAGS
    alarm: str = ""

    @classmethod
    def empty(cls, num_measurements: int) -> JointState:
        """Return a state of ``num_measurements`` channels in which nothing is valid yet."""
        return cls(
            values=np.zeros(num_measurements),
            valid=np.zeros(num_measurements, dtype=np.bool_),
            time_ns=np.zeros(num_measurements, dtype=np.int64),
        )


class Robot(Protocol):
    """Something with sensors and actuators.

    Order of calls: ``connect``, ``enable``, then any number of ``read`` and ``write``, then ``disable`` and ``close``.
    ``disable`` and ``close`` may be called at any time, any number of times, and must not raise. Without ``enable`` before them
    they leave the actuators as they were found.
    """

    measurement_names: tuple[str, ...]
    command_names: tuple[str, ...]

    def connect(self) -> None:
        """Open the link and check who answers. Raises LinkError with what was got and expected."""
        ...

    def enable(self) -> None:
        """Let the actuators follow commands, starting from zero effort (or from holding the present position)."""
        ...

    def read(self, state: JointState) -> None:
        """Overwrite ``state`` with the newest measurements, within a bounded time.

        A missing or late answer is no exception: the channel's ``valid`` is false and its value and time stay as they were.
        Raises LinkError only when the link itself is gone.
        """
        ...

    def write(self, command: NDArray[np.float64]) -> None:
        """Send commands (C,) in SI units. Raises LinkError when the link is gone, ValueError when not finite."""
        ...

    def disable(self) -> None:
        """Take the effort from all actuators that were enabled, as far as the link still allows. Never raises."""
        ...

    def close(self) -> None:
        """Disable and release the link. Never raises."""
        ...

    def rescue(self) -> None:
        """Take the effort from all actuators after the process that controlled them died, in a few seconds at most.

        Called instead of ``connect``, in another process; the link is released again. Never raises.
        """
        ...
