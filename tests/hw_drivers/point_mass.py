"""A point mass on a line, for tests: as a module the plant, as a program an emulator of it in a process of its own."""

import json
import math
import signal
import sys
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dpg_robot.contract import CommandChannel, MeasurementChannel
from hw_drivers.emulators.microcontroller import MicrocontrollerServer, ReplyFaults

MEASUREMENT_NAMES = ("position", "velocity")
COMMAND_NAMES = ("force",)
LIMIT_N = 5.0


class PointMass:
    """1 kg, frictionless; every ``nan_every``-th reading of the velocity fails, if that is not 0."""

    name = "point-mass"
    measurements: tuple[MeasurementChannel, ...] = (MeasurementChannel("position", "m"), MeasurementChannel("velocity", "m/s"))
    commands: tuple[CommandChannel, ...] = (CommandChannel("force", "N", -LIMIT_N, LIMIT_N),)
    state_names: tuple[str, ...] = ("position", "velocity")

    def __init__(self, nan_every: int = 0) -> None:
        self.force = 0.0
        self.powered = False
        self.time_ns: int | None = None
        self._nan_every = nan_every
        self._readings = 0
        self._state = np.zeros(2)

    def advance(self, until_ns: int) -> None:
        seconds = 0.0 if self.time_ns is None else (until_ns - self.time_ns) * 1e-9
        assert seconds >= 0, "time must not run backwards"
        position, velocity = self._state
        self._state = np.array([position + velocity * seconds + 0.5 * self.force * seconds**2, velocity + self.force * seconds])
        self.time_ns = until_ns

    def measure(self) -> NDArray[np.float64]:
        self._readings += 1
        measurement = self._state.copy()
        if self._nan_every and self._readings % self._nan_every == 0:
            measurement[1] = math.nan
        return measurement

    def state(self) -> NDArray[np.float64]:
        return self._state

    def set_command(self, values: Sequence[float]) -> None:
        self.powered, self.force = True, values[0]

    def release(self) -> None:
        self.powered, self.force = False, 0.0


def serve(options: dict[str, Any]) -> None:
    """Serve a point mass; ``options`` has arguments of PointMass, MicrocontrollerServer and, under ``faults``, ReplyFaults."""
    stopped = False

    def stop(*_: object) -> None:
        nonlocal stopped
        stopped = True

    signal.signal(signal.SIGTERM, stop)

    faults = ReplyFaults(**options.pop("faults", {}))
    plant = PointMass(options.pop("nan_every", 0))
    with MicrocontrollerServer(plant, faults=faults, **options) as server:
        print(server.path, flush=True)
        server.serve(lambda: stopped)


if __name__ == "__main__":
    serve(json.loads(sys.argv[1]))
