"""What lies between a host and emulated servos: a wire in simulated time, or a pseudo-terminal served by another process."""

from __future__ import annotations

import importlib
import json
import subprocess
import sys
import threading
import time
from types import TracebackType
from typing import Any, Protocol, Self

from dpg_robot.errors import LinkError
from hw_drivers.benchmarks.families import FAMILIES, Family, StampedJoints
from hw_drivers.benchmarks.scheduled_faults import ScheduledFaults
from hw_drivers.emulators.joints import EmulatedBus
from hw_drivers.emulators.servo_server import ServoServer, ServoWire
from hw_drivers.emulators.simulated_link import SimulatedLink
from hw_drivers.serial_link import SerialLink
from hw_drivers.servo_bus import BusLink

_POLL_NS = 500_000
_BITS_PER_BYTE = 10  # with start and stop bit
_PATIENCE_S = 30.0


class Transport(Protocol):
    """A way to emulated servos, with the clock that goes with it.

    Attributes:
        start_ns: when the servos' time began, on this clock.
    """

    start_ns: int

    def now_ns(self) -> int:
        """Return the time."""
        ...

    def wait_until(self, until_ns: int) -> None:
        """Let time pass."""
        ...

    def link(self) -> BusLink:
        """Return the link for our driver."""
        ...

    def vendor_port(self, family: Family) -> Any:
        """Return an open port of the vendor's library."""
        ...

    def faults(self) -> dict[str, int]:
        """Return how often each fault was done; ends the transport."""
        ...


class SimulatedSerial:
    """What the vendors' libraries use of pyserial's ``Serial`` with a time-out of 0; reading nothing takes up to 0.5 ms."""

    def __init__(self, link: SimulatedLink) -> None:
        self._link = link

    @property
    def in_waiting(self) -> int:
        """Number of bytes that have arrived."""
        return self._link.waiting

    def read(self, size: int = 1) -> bytes:
        """Return at most ``size`` bytes."""
        if not self._link.waiting or size <= 0:
            self._link.wait_for_event(self._link.now_ns + _POLL_NS)
        return self._link.take(max(size, 0))

    def write(self, data: Any) -> int:
        """Send bytes and return their number."""
        self._link.write(bytes(data), 0)
        return len(data)

    def reset_input_buffer(self) -> None:
        """Drop what has arrived."""
        self._link.take(self._link.waiting)

    def flush(self) -> None:
        """Do nothing, as nothing that was written is held back."""


class SimulatedTransport:
    """Emulated servos in this process, on a wire in simulated time."""

    start_ns = 0

    def __init__(self, bus: EmulatedBus, faults: ScheduledFaults) -> None:
        self._faults = faults
        self._link = SimulatedLink(ServoWire(bus, faults))

    @classmethod
    def stamped(cls, family: Family, servos: int, baud_rate: int, faults: ScheduledFaults) -> Self:
        """Return servos whose registers tell the time, without return delay."""
        return cls(family.make_bus(StampedJoints(family, servos), servos, baud_rate, 0), faults)

    def now_ns(self) -> int:
        """Return the simulated time."""
        return self._link.now_ns

    def wait_until(self, until_ns: int) -> None:
        """Let simulated time pass."""
        self._link.wait_until(until_ns)

    def link(self) -> SimulatedLink:
        """Return the link for our driver."""
        return self._link

    def vendor_port(self, family: Family) -> Any:
        """Return a port of the vendor's library, unmodified but for its serial port and its clock."""
        port = importlib.import_module(family.sdk).PortHandler("simulated")
        port.ser, port.is_open = SimulatedSerial(self._link), True
        port.baudrate = self._link.baud_rate
        port.tx_time_per_byte = _BITS_PER_BYTE * 1e3 / self._link.baud_rate  # ms
        port.getCurrentTime = lambda: self._link.now_ns * 1e-6  # ms
        return port

    def faults(self) -> dict[str, int]:
        """Return how often each fault was done."""
        return dict(self._faults.counts)


class TerminalTransport:
    """Emulated servos in a process of their own, behind a pseudo-terminal, in real time. Leave the block to end the process."""

    def __init__(self, family: Family, servos: int, baud_rate: int, return_delay: int, faults: ScheduledFaults) -> None:
        self._baud_rate = baud_rate
        self._link: SerialLink | None = None
        self._port: Any = None
        specification = {
            "family": family.name,
            "servos": servos,
            "baud_rate": baud_rate,
            "return_delay": return_delay,
            "faults": faults.settings(),
        }
        command = [sys.executable, "-m", "hw_drivers.benchmarks.transport", json.dumps(specification)]
        self._server = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        assert self._server.stdout is not None
        line = self._server.stdout.readline()
        if not line:
            self._server.wait()
            raise LinkError(f"the process with the emulated servos ended with exit code {self._server.returncode}")
        self._path, self.start_ns = json.loads(line)

    def now_ns(self) -> int:
        """Return the time."""
        return time.monotonic_ns()

    def wait_until(self, until_ns: int) -> None:
        """Sleep."""
        time.sleep(max(0, until_ns - time.monotonic_ns()) * 1e-9)

    def link(self) -> SerialLink:
        """Return the link for our driver, open."""
        self._link = SerialLink(self._path, self._baud_rate)
        self._link.open()
        return self._link

    def vendor_port(self, family: Family) -> Any:
        """Return a port of the vendor's library, unmodified."""
        self._port = importlib.import_module(family.sdk).PortHandler(self._path)
        if not self._port.setBaudRate(self._baud_rate):
            raise LinkError(f"{family.package} could not open {self._path} at {self._baud_rate} bits per second")
        return self._port

    def faults(self) -> dict[str, int]:
        """End the process and return how often it did each fault."""
        self._hang_up()
        out, _ = self._server.communicate(timeout=_PATIENCE_S)  # closes its input, which ends it
        counts: dict[str, int] = json.loads(out)
        return counts

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._hang_up()
        if self._server.poll() is None:
            self._server.terminate()
        self._server.wait()
        for pipe in (self._server.stdin, self._server.stdout):
            if pipe is not None:
                pipe.close()

    def _hang_up(self) -> None:
        if self._link is not None:
            self._link.close()
        if self._port is not None:
            self._port.closePort()
        self._link = self._port = None


def serve(specification: dict[str, Any]) -> None:
    """Serve emulated servos until the standard input ends; print where and since when, and at the end the faults."""
    ended = threading.Event()

    def wait_for_end() -> None:
        sys.stdin.read()
        ended.set()

    threading.Thread(target=wait_for_end, daemon=True).start()
    family, servos, start_ns = FAMILIES[specification["family"]], specification["servos"], time.monotonic_ns()
    joints = StampedJoints(family, servos, start_ns)
    bus = family.make_bus(joints, servos, specification["baud_rate"], specification["return_delay"], start_ns)
    faults = ScheduledFaults(**specification["faults"])
    with ServoServer(bus, faults=faults) as server:
        print(json.dumps([server.path, start_ns]), flush=True)
        server.serve(ended.is_set)
    print(json.dumps(dict(faults.counts)))


if __name__ == "__main__":
    serve(json.loads(sys.argv[1]))
