"""The faults that happen to a robot in a campaign, how each must end, and in which time.

The bounds follow from the robot's settings: a reading is acted on for at most ``PATIENCE_S``, a stop lowers the torque over
``STOP_RAMP_S`` and then takes it away.
"""

from __future__ import annotations

import signal
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from random import Random
from typing import Literal

from hw_drivers.benchmarks.faults_policy import Failure
from hw_drivers.benchmarks.faults_stack import RATE_HZ, STOP_RAMP_S
from hw_drivers.emulators.fault_schedule import ALL, BusFault

PERIOD_S = 1 / RATE_HZ
READ_TIMEOUT_S = 0.012
PATIENCE_S = 3 * PERIOD_S
STALE_S = PATIENCE_S + PERIOD_S + READ_TIMEOUT_S
"""Longest time after the last good reading until a tick finds it too old."""
RELEASE_S = STOP_RAMP_S * 1.25 + 0.1
"""To lower the torque in steps, each a sleep and a write, and to take it away."""
COLLAPSE_S = 0.5
"""For which a servo that cannot be reached, and keeps its torque, sways when the others have none and the arm falls."""
RETRY_S = 0.35
"""Between the attempts to take the torque from servos that do not answer."""
HEALTH_S = 0.2

Expected = Literal["rides", "stops", "either", "refused"]
Process = Literal["supervisor", "robot-control", "robot-log", "all"]


@dataclass(frozen=True)
class SignalFault:
    """A signal to a process of the run.

    Attributes:
        process: which.
        number: the signal; after SIGSTOP the process goes on ``duration_s`` later.
        duration_s: how long it is stopped, s.
    """

    process: Process
    number: signal.Signals
    duration_s: float = 0.0


@dataclass(frozen=True)
class PolicyFault:
    """A policy that fails at a step of its episode."""

    failure: Failure
    at_step: int


@dataclass(frozen=True)
class DiskFault:
    """The log may not grow by more than ``spare_bytes``."""

    spare_bytes: int


@dataclass(frozen=True)
class WallClockFault:
    """The wall clock of the run's processes jumps."""

    jump_s: float


Injection = BusFault | SignalFault | PolicyFault | DiskFault | WallClockFault


@dataclass(frozen=True)
class FaultKind:
    """A kind of fault.

    Attributes:
        text: what happens.
        expected: whether the run goes on, stops, may do either, or refuses to start.
        draw: makes one, given the number of servos, and which of them follow their goals closely.
        reason: regular expression that a stop's message must match.
        detection_s: longest time from the beginning of the fault to the beginning of the stop, s; with ``per_duration`` times
            the fault's duration on top.
        per_duration: see ``detection_s``.
        stacks: robots that it can happen to.
        still: whether torque may stay on, as it cannot be taken away; the joints must stand still then.
        cut_off: whether the servo that it happens to cannot be reached; it must stand still.
        blind: whether the fault is in the sensor itself, so that its wrong values look right.
        lacks: what the log cannot have after it: the "closing" record, the "summary".
        starts_anywhere: whether it may happen while homing too.
        limits: who stops the robot: ``robot-control`` or ``supervisor``.
    """

    text: str
    expected: Expected
    draw: Callable[[Random, int, Sequence[int]], Injection]
    reason: str = ""
    detection_s: float = 0.0
    per_duration: float = 0.0
    stacks: tuple[str, ...] = ("so101", "dynamixel")
    still: bool = False
    cut_off: bool = False
    blind: bool = False
    lacks: frozenset[str] = field(default_factory=frozenset)
    starts_anywhere: bool = False
    limits: str = "robot-control"

    def bound_s(self, injection: Injection) -> float:
        """Return within which time from its beginning the torque must be off, or the joints still, s."""
        return self.detection_s + self.per_duration * getattr(injection, "duration_s", 0.0) + RELEASE_S


_STALE = r"no fresh measurement|no valid answer"  # the latter of a servo that is not measured
_ALARM = r"hardware fault"
_TRANSIENT_S = (0.042, 0.06)  # one reading or two, of the three that may be missed
_SHORT_S = (0.02, 0.042)
_LASTING_S = (0.5, 0.9)


def _bus(
    kind: str,
    duration_s: tuple[float, float],
    *,
    servo: Literal["one", "follower", "all"] = "all",
    amount: tuple[float, float] = (0.0, 0.0),
    either_sign: bool = False,
) -> Callable[[Random, int, Sequence[int]], BusFault]:
    def draw(random: Random, servos: int, followers: Sequence[int]) -> BusFault:
        number = {"one": random.randrange(servos), "follower": random.choice(followers), "all": ALL}[servo]
        sign = random.choice((-1.0, 1.0)) if either_sign else 1.0
        return BusFault(kind, 0.0, random.uniform(*duration_s), number, sign * random.uniform(*amount))

    return draw


def _errors(duration_s: tuple[float, float]) -> Callable[[Random, int, Sequence[int]], BusFault]:
    def draw(random: Random, servos: int, followers: Sequence[int]) -> BusFault:
        return BusFault("error", 0.0, random.uniform(*duration_s), random.randrange(servos), random.choice((4, 6, 7, 32, 128)))

    return draw


def _signal(process: Process, number: signal.Signals, duration_s: tuple[float, float] = (0.0, 0.0)) -> Callable[..., SignalFault]:
    return lambda random, servos, followers: SignalFault(process, number, random.uniform(*duration_s))


def _policy(failure: Failure) -> Callable[..., PolicyFault]:
    return lambda random, servos, followers: PolicyFault(failure, random.randint(5, 30))


def _damage_kinds() -> dict[str, FaultKind]:
    """Return the kinds that damage answers, each for a moment and for long."""
    late, next_late = (0.016, 0.035), (0.045, 0.095)
    kinds: dict[str, tuple[str, str, tuple[float, float], Expected]] = {
        "lost answers": ("drop", "answers do not come", (0.0, 0.0), "stops"),
        "late answers": ("late", "answers come after the time-out", late, "stops"),
        "answers late by a period": ("late", "answers come after the next request", next_late, "stops"),
        "bad CRC": ("corrupt", "one bit of each answer is flipped", (0.0, 0.0), "stops"),
        "truncated frames": ("truncate", "the ends of answers are missing", (0.0, 0.0), "stops"),
        "split frames": ("split", "answers come in two pieces 1 to 4 ms apart", (0.001, 0.004), "either"),
        "leading garbage": ("garbage", "random bytes come before answers", (0.0, 0.0), "either"),
        "headers in payloads": ("header", "headers of answers stand in the middle of answers", (0.0, 0.99), "either"),
        "oversized length": ("oversized", "length fields say the most that they can", (0.0, 0.0), "stops"),
        "duplicate answers": ("duplicate", "answers come twice", (0.0, 0.0), "either"),
    }
    found = {}
    for name, (kind, text, amount, lasting) in kinds.items():
        # what is held back at the end of the fault comes that much later
        transient = _bus(kind, _SHORT_S if amount == late else _TRANSIENT_S, amount=amount)
        if amount == next_late:  # two answers that are held back hold back those behind them too, which are too many then
            found[name] = FaultKind(f"{text}, for a moment", "either", transient, _STALE, STALE_S, starts_anywhere=True)
        else:
            found[name] = FaultKind(f"{text}, for a moment", "rides", transient, starts_anywhere=True)
        found[f"{name}, lasting"] = FaultKind(
            f"{text}, for 0.5 s and more",
            lasting,
            _bus(kind, _LASTING_S, amount=amount),
            _STALE,
            STALE_S,
            starts_anywhere=True,
        )
    return found


def _bus_kinds() -> dict[str, FaultKind]:
    """Return the kinds that concern single servos, or the way from the host to the bus."""
    wrong = "a servo's answers name the next one"
    return {
        "wrong ID": FaultKind(
            f"{wrong}, for a moment", "rides", _bus("wrong_id", _TRANSIENT_S, servo="one"), starts_anywhere=True
        ),
        "wrong ID, lasting": FaultKind(wrong, "stops", _bus("wrong_id", _LASTING_S, servo="one"), _STALE, STALE_S),
        "silent servo": FaultKind(
            "a servo neither hears nor answers, for a moment",
            "rides",
            _bus("silent", _TRANSIENT_S, servo="one"),
            starts_anywhere=True,
        ),
        "silent servo, lasting": FaultKind(
            "a servo neither hears nor answers", "stops", _bus("silent", _LASTING_S, servo="one"), _STALE, STALE_S, cut_off=True
        ),
        "duplicate ID": FaultKind(
            "a servo takes the ID of another", "stops", _bus("same_id", _LASTING_S, servo="one"), _STALE, STALE_S, cut_off=True
        ),
        "wrong baud": FaultKind(
            "a servo listens at another rate", "stops", _bus("wrong_baud", _LASTING_S, servo="one"), _STALE, STALE_S, cut_off=True
        ),
        "error byte": FaultKind(
            "one answer carries an error (range, limit, access, overload, alert)", "rides", _errors((0.03, 0.035))
        ),
        "error byte, lasting": FaultKind(
            "answers carry an error: limit, access, overload, alert; one that the family does not have makes them invalid",
            "stops",
            _errors(_LASTING_S),
            f"{_ALARM}|{_STALE}",
            STALE_S,
        ),
        "local echo": FaultKind(
            "the host receives its own bytes, for a moment", "rides", _bus("echo", _TRANSIENT_S), starts_anywhere=True
        ),
        "local echo, lasting": FaultKind(
            "the host receives its own bytes", "either", _bus("echo", _LASTING_S), f"{_STALE}|{_ALARM}", STALE_S
        ),
        "lost requests": FaultKind(
            "what the host sends is lost, for a moment", "rides", _bus("deaf", _TRANSIENT_S), starts_anywhere=True
        ),
        "lost requests, lasting": FaultKind(
            "what the host sends is lost", "stops", _bus("deaf", (0.3, 0.6)), f"{_STALE}|{_ALARM}", RETRY_S, 1.0
        ),
        "blocked write, lasting": FaultKind(
            "the port takes no bytes", "stops", _bus("block", (0.2, 0.5)), f"took 0 of|{_STALE}|{_ALARM}", RETRY_S, 1.0
        ),
        "latency timer of 16 ms": FaultKind(
            "answers are passed on every 16 ms",
            "either",
            _bus("latency", (0.5, 1.0), amount=(0.016, 0.016)),
            _STALE,
            1.0 + STALE_S,
        ),
        "unplugged": FaultKind(
            "the port goes, and comes back under another name",
            "stops",
            _bus("unplug", (0.3, 0.8)),
            r"is gone",
            2 * PERIOD_S,
            still=True,
            starts_anywhere=True,
        ),
        "limit register refuses": FaultKind(
            "a servo does not take its limits at the start", "refused", _refuse, r"was not taken", lacks=frozenset({"closing"})
        ),
    }


def _refuse(random: Random, servos: int, followers: Sequence[int]) -> BusFault:
    return BusFault("refuse", 0.0, 3600.0, random.randrange(servos), 17)


def _servo_kinds() -> dict[str, FaultKind]:
    """Return the kinds in which a servo or its sensor fails."""
    lost = f"{_ALARM}.*torque is off|{_STALE}|{_ALARM}"
    return {
        "servo restarts": FaultKind(
            "a servo restarts: torque off, RAM as from the factory",
            "stops",
            _bus("reboot", (0.02, 0.2), servo="one"),
            lost,
            HEALTH_S + STALE_S + 2 * PERIOD_S,
            1.0,
            starts_anywhere=True,
        ),
        "brown-out": FaultKind(
            "half of the bus loses its power for a while",
            "stops",
            _bus("brown_out", (0.02, 0.3)),
            lost,
            HEALTH_S + STALE_S + 2 * PERIOD_S,
            1.0,
            starts_anywhere=True,
        ),
        "overtemperature": FaultKind(
            "a servo has 68 to 90 deg C", "stops", _bus("hot", (1.0, 1.5), servo="one", amount=(68, 90)), _ALARM, 3 * PERIOD_S
        ),
        "undervoltage": FaultKind(
            "the supply is weak", "stops", _bus("weak_supply", (1.0, 1.5), amount=(2.5, 3.5)), _ALARM, 0.12
        ),
        "overload": FaultKind(
            "a servo pushes with all its torque until it protects itself",
            "stops",
            _bus("jam", (3.2, 3.3), servo="follower"),
            f"{_ALARM}|jammed",
            2.3,
            blind=True,
        ),
        "stuck encoder": FaultKind(
            "a joint's sensor stays where it is",
            "stops",
            _bus("stuck", (4.0, 4.1), servo="follower"),
            r"sensor is stuck",
            2.2,
            blind=True,
        ),
        "jumping encoder": FaultKind(
            "one reading is 1.2 to 1.6 rad off",
            "rides",
            _bus("jump", (0.03, 0.035), servo="follower", amount=(1.2, 1.6), either_sign=True),
        ),
        "shifted encoder": FaultKind(
            "a joint's sensor is 1.2 to 1.6 rad off from now on",
            "either",
            _bus("jump", (1.0, 1.5), servo="follower", amount=(1.2, 1.6), either_sign=True),
            "",
            1.5,
            blind=True,
        ),
    }


def _process_kinds() -> dict[str, FaultKind]:
    """Return the kinds on the side of the computer."""
    killed = frozenset({"closing"})
    freeze = "the control process gets no time"
    return {
        "stall": FaultKind(f"{freeze} for 20 to 60 ms", "rides", _signal("robot-control", signal.SIGSTOP, (0.02, 0.06))),
        "stall, lasting": FaultKind(
            f"{freeze} for 0.3 to 0.6 s; the servos have no watchdog",
            "either",
            _signal("robot-control", signal.SIGSTOP, (0.3, 0.6)),
            _STALE,
            2 * PERIOD_S,
            1.0,
            stacks=("so101",),
        ),
        "watchdog trip": FaultKind(
            f"{freeze} for 0.3 to 0.6 s; the servos' watchdogs trip",
            "stops",
            _signal("robot-control", signal.SIGSTOP, (0.3, 0.6)),
            f"watchdog|{_STALE}",
            3 * PERIOD_S,
            1.0,
            stacks=("dynamixel",),
        ),
        "policy gives NaN": FaultKind("the policy gives NaN", "stops", _policy("nan"), "not finite", 2 * PERIOD_S),
        "policy gives infinity": FaultKind("the policy gives infinity", "stops", _policy("infinite"), "not finite", 2 * PERIOD_S),
        "policy out of range": FaultKind("the policy's actions are up to 5 times the range", "rides", _policy("out_of_range")),
        "policy raises": FaultKind("inference raises an exception", "stops", _policy("exception"), "RuntimeError", 2 * PERIOD_S),
        "control process killed": FaultKind(
            "SIGKILL",
            "stops",
            _signal("robot-control", signal.SIGKILL),
            "control process was killed by SIGKILL",
            1.0,
            lacks=killed,
            starts_anywhere=True,
            limits="supervisor",
        ),
        "control process interrupted": FaultKind(
            "SIGINT", "stops", _signal("robot-control", signal.SIGINT), "stopped by SIGINT", 2 * PERIOD_S, starts_anywhere=True
        ),
        "supervisor killed": FaultKind(
            "SIGKILL",
            "stops",
            _signal("supervisor", signal.SIGKILL),
            "",
            2 * PERIOD_S,
            lacks=frozenset({"summary"}),
            starts_anywhere=True,
        ),
        "supervisor interrupted": FaultKind(
            "SIGINT", "stops", _signal("supervisor", signal.SIGINT), "stopped by SIGINT", 2 * PERIOD_S, starts_anywhere=True
        ),
        "log process killed": FaultKind(
            "SIGKILL",
            "stops",
            _signal("robot-log", signal.SIGKILL),
            "log process was killed by SIGKILL",
            2 * PERIOD_S,
            lacks=killed,
            starts_anywhere=True,
        ),
        "computer dies": FaultKind(
            "SIGKILL to all processes at once; nobody is left who could take the torque away",
            "stops",
            _signal("all", signal.SIGKILL),
            "",
            2 * PERIOD_S,
            still=True,
            lacks=frozenset({"closing", "summary"}),
        ),
        "disk full": FaultKind(
            "the log may not grow any more (RLIMIT_FSIZE)",
            "stops",
            lambda random, servos, followers: DiskFault(random.randint(0, 3000)),
            "log cannot be written|log process failed|log process",
            0.7,
            lacks=killed,
        ),
        "wall clock jumps": FaultKind(
            "the wall clock jumps by up to an hour",
            "rides",
            lambda random, servos, followers: WallClockFault(random.uniform(-3600, 3600)),
        ),
    }


def all_kinds() -> dict[str, FaultKind]:
    """Return all kinds of faults by name."""
    return {**_damage_kinds(), **_bus_kinds(), **_servo_kinds(), **_process_kinds()}
