"""How near a control cycle on the bus comes to the time that its bytes need on the wire.

A cycle reads position, velocity and current of all servos and writes all goal positions; cycles follow each other at once. The
least time of a cycle is that of the bytes on the wire, at ten bit times each, with nothing asked for beyond what is used, and of
the servos' return delays.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from hw_drivers.benchmarks.families import DYNAMIXEL, Family, StampedJoints
from hw_drivers.benchmarks.scheduled_faults import ScheduledFaults
from hw_drivers.benchmarks.transport import SimulatedTransport, TerminalTransport, Transport
from hw_drivers.dynamixel.packets import FastStatus, FastSyncRead, Status
from hw_drivers.emulators.joints import EmulatedBus
from hw_drivers.servo_bus import ServoBus

DEADLINE_NS = 50_000_000
"""Time that a read is given."""

_BITS_PER_BYTE = 10
_DELAY_UNIT_NS = 2_000
_WARM_UP = 2  # cycles: all servos are suspects at first
CYCLES_BEFORE, CYCLES_AFTER = 4, 7
"""Cycles that are shown around the one in which a servo falls silent."""

Progress = Callable[[int], object]


@dataclass(frozen=True)
class Setup:
    """What is on the bus.

    Attributes:
        family: of the servos.
        servos: how many.
        baud_rate: bits per second.
        return_delay: of each servo, in units of 2 us.
    """

    family: Family
    servos: int
    baud_rate: int
    return_delay: int

    @property
    def ids(self) -> Sequence[int]:
        """The servos' IDs."""
        return range(1, self.servos + 1)

    def goals(self) -> bytes:
        """Return the request that writes all goal positions."""
        address, length = self.family.goal
        return self.family.language(0).write(address, {servo: bytes(length) for servo in self.ids})

    def least_s(self) -> float:
        """Return the least time of a cycle with a sync read, s."""
        address, length = self.family.state
        request = self.family.language(0).read(address, length, self.ids)
        answers = self.servos * self.family.answer_bytes(length)
        return self._seconds(len(request) + answers + len(self.goals()), self.servos)

    def least_fast_s(self) -> float | None:
        """Return the least time of a cycle with a fast sync read, which ends with one answer of all; None if there is none."""
        if self.family is not DYNAMIXEL:
            return None
        address, length = self.family.state
        request = FastSyncRead.of(address, length, self.ids).to_bytes()
        answer = FastStatus.of([Status(servo, data=bytes(length)) for servo in self.ids]).to_bytes()
        return self._seconds(len(request) + len(answer) + len(self.goals()), 1)

    def _seconds(self, wire_bytes: int, delays: int) -> float:
        return wire_bytes * _BITS_PER_BYTE / self.baud_rate + delays * self.return_delay * _DELAY_UNIT_NS * 1e-9


@dataclass(frozen=True)
class Cycle:
    """One cycle: how long it took, s, how many servos were read, and how many are suspects after it."""

    time_s: float
    valid: int
    suspects: int


@dataclass(frozen=True)
class CycleTimes:
    """Times of many cycles, s, and how many of the values asked for were read."""

    mean_s: float
    p50_s: float
    p99_s: float
    longest_s: float
    valid: int
    asked: int

    @classmethod
    def of(cls, cycles: Sequence[Cycle], servos: int) -> CycleTimes:
        """Sum up cycles."""
        times = sorted(cycle.time_s for cycle in cycles)
        p99 = times[min(len(times) - 1, round(0.99 * len(times)))]
        valid = sum(cycle.valid for cycle in cycles)
        return cls(statistics.fmean(times), statistics.median(times), p99, times[-1], valid, servos * len(times))


def simulate(setup: Setup, cycles: int) -> CycleTimes:
    """Return the times on the wire's model in simulated time, which are exact: no processor, adapter or system takes any."""
    transport = SimulatedTransport(_emulated(setup), ScheduledFaults())
    run = run_cycles(setup, transport)
    for _ in range(_WARM_UP):
        next(run)
    return CycleTimes.of([next(run) for _ in range(cycles)], setup.servos)


def simulate_silence(setup: Setup, silent: int) -> list[Cycle]:
    """Return cycles around the one in which servo ``silent``, from 0, falls silent: some before, that one, and some after."""
    emulated = _emulated(setup)
    run = run_cycles(setup, SimulatedTransport(emulated, ScheduledFaults()))
    for _ in range(_WARM_UP):
        next(run)
    before = [next(run) for _ in range(CYCLES_BEFORE)]
    emulated.silence(silent)
    return before + [next(run) for _ in range(1 + CYCLES_AFTER)]


def measure(setup: Setup, cycles: int, progress: Progress) -> CycleTimes:
    """Return the times through a pseudo-terminal that another process serves in real time; they depend on the machine."""
    with TerminalTransport(setup.family, setup.servos, setup.baud_rate, setup.return_delay, ScheduledFaults()) as transport:
        run = run_cycles(setup, transport)
        for _ in range(_WARM_UP):
            next(run)
        done = []
        for _ in range(cycles):
            done.append(next(run))
            progress(1)
        return CycleTimes.of(done, setup.servos)


def run_cycles(setup: Setup, transport: Transport) -> Iterator[Cycle]:
    """Yield cycles without end, each to the time at which its goals have left."""
    link, family = transport.link(), setup.family
    bus = ServoBus(link, family.language(setup.return_delay), setup.ids, clock=transport.now_ns)
    state, (goal, length) = family.state, family.goal
    goals = {servo: bytes(length) for servo in setup.ids}
    goals_ns = round(len(setup.goals()) * _BITS_PER_BYTE * 1e9 / setup.baud_rate)
    while True:
        begin_ns = transport.now_ns()
        read = bus.read(*state, begin_ns + DEADLINE_NS)
        bus.write(goal, goals, transport.now_ns() + DEADLINE_NS)
        transport.wait_until(transport.now_ns() + goals_ns)
        yield Cycle((transport.now_ns() - begin_ns) * 1e-9, len(read), len(bus.suspects))


def _emulated(setup: Setup) -> EmulatedBus:
    joints = StampedJoints(setup.family, setup.servos)
    return setup.family.make_bus(joints, setup.servos, setup.baud_rate, setup.return_delay)
