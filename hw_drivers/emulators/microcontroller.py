"""An emulated microcontroller robot: the device side of the protocol, served on a pseudo-terminal.

:class:`Microcontroller` is the firmware's logic and takes the time as an argument; :class:`MicrocontrollerServer` runs it in real
time behind a pseudo-terminal, in a process of its own. What is measured and moved comes from a :class:`Plant`.
"""

from __future__ import annotations

import contextlib
import heapq
import itertools
import math
import os
import random
import select
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import IO, Protocol, Self

import numpy as np
from numpy.typing import NDArray

from dpg_robot.contract import CommandChannel, MeasurementChannel
from dpg_robot.deploy.robot import DeviceFlag
from hw_drivers.emulators.pseudo_terminal import open_pseudo_terminal
from hw_drivers.microcontroller import (
    NO_SEQUENCE,
    Ack,
    Command,
    Decoder,
    Disable,
    Enable,
    Frame,
    Hello,
    Identity,
    Nack,
    NackReason,
    ReadState,
    Reply,
    State,
)

DEFAULT_WATCHDOG_S = 0.06

_STEP_S = 0.002
_TRACE_FLUSH_NS = 200_000_000
_READ_BYTES = 4096


class Plant(Protocol):
    """What the emulated microcontroller is wired to. Times are ``time.monotonic_ns``.

    Attributes:
        name: kind of device, reported to the host.
        measurements: M channels, in the order of :meth:`measure`.
        commands: C channels with their limits, in the order of :meth:`set_command`.
        state_names: S names of the numbers that :meth:`state` returns.
    """

    name: str
    measurements: tuple[MeasurementChannel, ...]
    commands: tuple[CommandChannel, ...]
    state_names: tuple[str, ...]

    def advance(self, until_ns: int) -> None:
        """Let the plant's time pass up to ``until_ns`` under the present command."""
        ...

    def measure(self) -> NDArray[np.float64]:
        """Return what the sensors read now, (M,)."""
        ...

    def state(self) -> NDArray[np.float64]:
        """Return the true state now, (S,); for the trace, never sent to the host."""
        ...

    def set_command(self, values: Sequence[float]) -> None:
        """Apply commands (C,), within limits, from now on."""
        ...

    def release(self) -> None:
        """Switch the actuators off."""
        ...


class Microcontroller:
    """The logic of the device: answers requests, guards limits, and takes the effort away when commands stop coming.

    Attributes:
        plant: what it drives.
        command: (C,) commands that are applied now; zeros while the actuators are off.
        flags: conditions that it reports.
    """

    def __init__(self, plant: Plant, now_ns: int, *, watchdog_s: float = DEFAULT_WATCHDOG_S, firmware: str = "1.0.0") -> None:
        self.plant = plant
        self.command = (0.0,) * len(plant.commands)
        self.flags = DeviceFlag(0)
        self._firmware = firmware
        self._watchdog_ns = round(watchdog_s * 1e9)
        self._start_ns = self._now_ns = self._fed_ns = now_ns
        self._last_command = NO_SEQUENCE
        self._limits = [(float(np.float32(channel.low)), float(np.float32(channel.high))) for channel in plant.commands]
        plant.advance(now_ns)

    @property
    def watchdog_expires_ns(self) -> int | None:
        """When the watchdog trips unless a command comes before; None while the actuators are off."""
        return self._fed_ns + self._watchdog_ns if DeviceFlag.ENABLED in self.flags else None

    def advance(self, now_ns: int) -> None:
        """Let time pass up to ``now_ns``; the watchdog trips on the way, at its own time."""
        expires_ns = self.watchdog_expires_ns
        if expires_ns is not None and expires_ns < now_ns:
            self.plant.advance(expires_ns)
            self.switch_off()
            self.flags |= DeviceFlag.WATCHDOG_TRIPPED
        self.plant.advance(now_ns)
        self._now_ns = now_ns

    def handle(self, request: Frame) -> Reply | None:
        """Carry out a request at the present time and return the answer; None for frames that are no request."""
        time_us = (self._now_ns - self._start_ns) // 1000
        match request:
            case Hello():
                self.switch_off()
                self._last_command = NO_SEQUENCE
                return self._identity(request.sequence, time_us)
            case ReadState():
                values = tuple(self.plant.measure().tolist())
                return State(request.sequence, time_us, self.flags, self._last_command, values)
            case Enable():
                self.flags = DeviceFlag.ENABLED
                self._apply((0.0,) * len(self.command))
            case Disable():
                self.switch_off()
            case Command(values=values):
                reason = self._refusal(values)
                if reason is not None:
                    if DeviceFlag.ENABLED in self.flags:
                        self._apply((0.0,) * len(self.command), feed_watchdog=False)
                    return Nack(request.sequence, time_us, reason)
                self._apply(values)
                self._last_command = request.sequence
            case _:
                return None
        return Ack(request.sequence, time_us)

    def switch_off(self) -> None:
        """Take the effort from the actuators; only Enable brings it back."""
        self.flags &= ~DeviceFlag.ENABLED
        self.command = (0.0,) * len(self.command)
        self.plant.release()

    def _apply(self, values: tuple[float, ...], *, feed_watchdog: bool = True) -> None:
        self.command = values
        self.plant.set_command(values)
        if feed_watchdog:
            self._fed_ns = self._now_ns

    def _refusal(self, values: tuple[float, ...]) -> NackReason | None:
        """Say why a command must not be applied; None if it may."""
        if DeviceFlag.WATCHDOG_TRIPPED in self.flags:
            return NackReason.WATCHDOG_TRIPPED
        if DeviceFlag.ENABLED not in self.flags:
            return NackReason.NOT_ENABLED
        if len(values) != len(self._limits):
            return NackReason.WRONG_LENGTH
        if not all(math.isfinite(value) for value in values):
            return NackReason.NOT_FINITE
        if not all(low <= value <= high for value, (low, high) in zip(values, self._limits, strict=True)):
            return NackReason.OUT_OF_LIMITS
        return None

    def _identity(self, sequence: int, time_us: int) -> Identity:
        plant = self.plant
        return Identity(
            sequence, time_us, self._watchdog_ns // 1000, plant.name, self._firmware, plant.measurements, plant.commands
        )


@dataclass(frozen=True)
class ReplyFaults:
    """Damage done to replies on purpose, each with a probability per reply; for tests.

    Attributes:
        seed: seed of the choices.
        drop: probability that a reply is not sent.
        duplicate: probability that it is sent twice.
        corrupt: probability that one bit of it is flipped.
        delay: probability that it is held back for ``delay_s``, so that later replies overtake it.
        delay_s: how long, seconds.
    """

    seed: int = 0
    drop: float = 0.0
    duplicate: float = 0.0
    corrupt: float = 0.0
    delay: float = 0.0
    delay_s: float = 0.01


class ReplyQueue:
    """Encoded replies waiting to be sent, damaged as :class:`ReplyFaults` says."""

    def __init__(self, faults: ReplyFaults) -> None:
        self._faults = faults
        self._random = random.Random(faults.seed)
        self._waiting: list[tuple[int, int, bytes]] = []
        self._order = itertools.count()

    def put(self, data: bytes, now_ns: int) -> None:
        """Take an encoded reply that is due now."""
        faults, chance = self._faults, self._random.random
        if chance() < faults.drop:
            return
        for _ in range(2 if chance() < faults.duplicate else 1):
            if chance() < faults.corrupt:
                damaged = bytearray(data)
                damaged[self._random.randrange(len(data))] ^= 1 << self._random.randrange(8)
                data = bytes(damaged)
            due_ns = now_ns + (round(faults.delay_s * 1e9) if chance() < faults.delay else 0)
            heapq.heappush(self._waiting, (due_ns, next(self._order), data))

    def take(self, now_ns: int) -> bytes:
        """Return the bytes of all replies that are due, in the order in which they became due."""
        due = []
        while self._waiting and self._waiting[0][0] <= now_ns:
            due.append(heapq.heappop(self._waiting)[2])
        return b"".join(due)

    def clear(self) -> None:
        """Forget the replies that wait."""
        self._waiting.clear()


class Trace:
    """A CSV file of what truly happened: time, whether enabled, applied commands, true state; one row per step and event."""

    def __init__(self, path: str | Path, plant: Plant) -> None:
        names = ["time_ns", "enabled", *(f"command_{channel.name}" for channel in plant.commands), *plant.state_names]
        self._file: IO[str] = open(path, "w", buffering=1 << 16)  # noqa: SIM115 (close() closes it)
        self._file.write(",".join(names) + "\n")
        self._file.flush()
        self._flushed_ns = 0

    def append(self, time_ns: int, device: Microcontroller) -> None:
        """Add a row; rows reach the file within a fifth of a second."""
        enabled = int(DeviceFlag.ENABLED in device.flags)
        numbers = ",".join(f"{value:.9g}" for value in (*device.command, *device.plant.state().tolist()))
        self._file.write(f"{time_ns},{enabled},{numbers}\n")
        if time_ns - self._flushed_ns > _TRACE_FLUSH_NS:
            self._file.flush()
            self._flushed_ns = time_ns

    def close(self) -> None:
        """Write what is buffered and close the file."""
        self._file.close()


class MicrocontrollerServer:
    """Serves one :class:`Microcontroller` in real time on a new pseudo-terminal.

    Hosts may come and go. Only the master end stays open here: so the kernel tells when the last host has closed the port,
    cleanly or by dying, and the actuators are switched off at once.

    Attributes:
        path: path of the pseudo-terminal, for the host to open.
        device: the emulated device.
    """

    def __init__(
        self,
        plant: Plant,
        *,
        watchdog_s: float = DEFAULT_WATCHDOG_S,
        trace: str | Path | None = None,
        faults: ReplyFaults | None = None,
    ) -> None:
        self.device = Microcontroller(plant, time.monotonic_ns(), watchdog_s=watchdog_s)
        self._trace = None if trace is None else Trace(trace, plant)
        self._replies = ReplyQueue(faults or ReplyFaults())
        self._decoder = Decoder()
        self._connected = False
        self._master, self.path, self._poll = open_pseudo_terminal()

    def serve(self, should_stop: Callable[[], bool]) -> None:
        """Step the plant in real time and answer requests until ``should_stop()``, which is asked every 2 ms."""
        while not should_stop():
            received = self._wait()
            self._step(received)
            self._send()

    def close(self) -> None:
        """Switch the actuators off, close the trace and remove the pseudo-terminal."""
        if self._master < 0:
            return
        self.device.switch_off()
        if self._trace is not None:
            self._trace.append(time.monotonic_ns(), self.device)
            self._trace.close()
        os.close(self._master)
        self._master = -1

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def _wait(self) -> bytes:
        """Return received bytes as soon as there are any, at the latest after one step; notice when the host has gone."""
        if not self._connected:
            time.sleep(_STEP_S)  # poll would return at once
        events = self._poll.poll(math.ceil(_STEP_S * 1e3) if self._connected else 0)
        flags = events[0][1] if events else 0
        if flags & select.POLLIN:
            try:
                self._connected = True
                return os.read(self._master, _READ_BYTES)
            except OSError:
                pass  # hung up in between; the next round sees it
        elif flags & select.POLLHUP:
            self._hang_up()
        else:
            self._connected = True
        return b""

    def _hang_up(self) -> None:
        if self._connected:
            self._connected = False
            self._decoder.reset()
            self._replies.clear()
            self.device.switch_off()

    def _step(self, received: bytes) -> None:
        now_ns = time.monotonic_ns()
        requests = self._decoder.feed(received)
        if requests:
            # A command that waited while this process got no CPU time may have come before the watchdog expired.
            self.device.advance(min(now_ns, self.device.watchdog_expires_ns or now_ns))
        for request in requests:
            reply = self.device.handle(request)
            if reply is not None:
                self._replies.put(reply.to_bytes(), now_ns)
        self.device.advance(now_ns)
        if self._trace is not None:
            self._trace.append(now_ns, self.device)

    def _send(self) -> None:
        data = self._replies.take(time.monotonic_ns())
        if data and self._connected:
            # The host does not read, or has gone: a real device loses these bytes too.
            with contextlib.suppress(OSError):
                os.write(self._master, data)
