"""Looking at a robot without moving it: is it the right one, do its sensors make sense, does the policy fit, is the rate kept?"""

from __future__ import annotations

import multiprocessing
import time
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from dpg_robot.deploy.clock import AbsoluteClock, DurationHistogram, request_real_time
from dpg_robot.deploy.policy_session import PolicySession
from dpg_robot.deploy.robot import JointState, Robot
from dpg_robot.deploy.run_config import RobotConfig
from dpg_robot.deploy.safety import Safety, Stop
from dpg_robot.errors import DpgError, LinkTimeoutError, SafetyError

_FIRST_READING_S = 1.0
_RATE_SECONDS = 2.0
_ALLOWED_LATE_SHARE = 0.01


@dataclass(frozen=True)
class CheckResult:
    """The outcome of one check.

    Attributes:
        name: what was checked.
        passed: whether it is as it must be.
        detail: what was found.
    """

    name: str
    passed: bool
    detail: str

    def __str__(self) -> str:
        return f"{'ok  ' if self.passed else 'FAIL'} {self.name}: {self.detail}"


def check_robot(config: RobotConfig, policy: Path) -> list[CheckResult]:
    """Check policy, connection, sensors and rate, in this order, up to the first that fails.

    The actuators are never enabled and no command is sent.
    """
    results: list[CheckResult] = []
    robot: Robot | None = None
    name = "policy"
    try:
        session = PolicySession.load(policy)
        config.require_fit(session.contract, policy)
        results.append(CheckResult(name, True, f"{session.policy_id} fits {config.name}; golden vectors agree"))
        name = "connection"
        robot, _ = config.make(session.contract)
        robot.connect()
        results.append(CheckResult(name, True, _describe_device(robot, config)))
        name = "sensors"
        safety = Safety(config.safety, session.contract)
        safety.returning = True  # homing will bring it back
        state = _first_reading(robot, safety, session.contract.num_measurements)
        _heed(safety.check_measurement(state, time.monotonic_ns()))
        results.append(CheckResult(name, True, safety.describe(state.values)))
        name = "rate"
        results.append(_check_rate(robot, session, safety, state))
        name = "real time"
        results.append(_check_real_time(config.real_time_priority))
    except DpgError as error:
        results.append(CheckResult(name, False, str(error)))
    finally:
        if robot is not None:
            robot.close()
    return results


def _describe_device(robot: Robot, config: RobotConfig) -> str:
    identity = getattr(robot, "identity", None)
    name = getattr(identity, "name", config.name)
    firmware = getattr(identity, "firmware", None)
    latency = (
        ""
        if getattr(robot, "low_latency", True)
        else (
            "; the port's driver has no low-latency mode, so a USB adapter may hold answers back (FTDI: up to 16 ms, "
            "/sys/bus/usb-serial/devices/*/latency_timer)"
        )
    )
    return f"{name} on {getattr(robot, 'port', config.port)}" + (f", firmware {firmware}" if firmware else "") + latency


def _first_reading(robot: Robot, safety: Safety, num_measurements: int) -> JointState:
    """Return a reading in which all channels are valid."""
    state = JointState.empty(num_measurements)
    deadline_s = time.monotonic() + _FIRST_READING_S
    while True:
        robot.read(state)
        if state.valid.all():
            return state
        if time.monotonic() > deadline_s:
            silent = safety.describe_channels(~state.valid)
            raise LinkTimeoutError(f"no measurement of {silent} within {_FIRST_READING_S:g} s; check the sensor and its cable")
        time.sleep(0.01)


def _check_rate(robot: Robot, session: PolicySession, safety: Safety, state: JointState) -> CheckResult:
    """Run the loop without sending its commands, and see how long a tick takes."""
    clock = AbsoluteClock(session.contract.period_ns)
    compute, ticks, late, stale = DurationHistogram(), max(10, round(_RATE_SECONDS * session.contract.rate_hz)), 0, 0
    for _ in range(ticks):
        clock.wait()
        began_ns = time.monotonic_ns()
        robot.read(state)
        session.step(state.values)
        duration_ns = time.monotonic_ns() - began_ns
        compute.add(duration_ns)
        late += duration_ns > safety.deadline_ns
        stale += not state.valid.all()
    detail = (
        f"{ticks} ticks at {session.contract.rate_hz:g} Hz, read and policy {compute.percentile_ns(50) * 1e-6:.2f} ms (p50), "
        f"{compute.percentile_ns(99) * 1e-6:.2f} ms (p99), {late} later than {safety.deadline_ns * 1e-6:.1f} ms, "
        f"{clock.missed} periods missed, {stale} readings stale"
    )
    return CheckResult("rate", max(late, clock.missed, stale) <= _ALLOWED_LATE_SHARE * ticks, detail)


def _check_real_time(priority: int) -> CheckResult:
    """See in a process of its own what the system grants; less than all of it is no failure, but it is said."""
    if priority == 0:
        return CheckResult("real time", True, "not asked for (real_time_priority is 0)")
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        grants = pool.submit(request_real_time, priority).result()
    remedy = (
        ""
        if all(grant.granted for grant in grants)
        else ("; for both, give the user 'rtprio' and 'memlock' in /etc/security/limits.conf, or run as root")
    )
    return CheckResult("real time", True, "; ".join(map(str, grants)) + remedy)


def _heed(verdict: tuple[int, Stop | None]) -> None:
    stop = verdict[1]
    if stop is not None:
        raise SafetyError(stop.message)
