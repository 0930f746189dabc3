"""The control loop: home the robot, let the policy act, record every tick, and stop safely however it ends.

One tick: wait for the grid point, read, check, decide, limit, write, record. There is no file, socket, lock or log call in it;
what is to be said is kept in a :class:`LoopReport` until the robot has stopped.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import time

import numpy as np

from dpg_robot.data.ring import LogState, Ring
from dpg_robot.data.transition import EpisodeEnd, LoopState
from dpg_robot.deploy.clock import AbsoluteClock
from dpg_robot.deploy.control_block import ControlBlock, StopRequest
from dpg_robot.deploy.homing import Homing, Parking
from dpg_robot.deploy.loop_report import EpisodeReport, LoopReport
from dpg_robot.deploy.policy_updates import PolicyUpdates
from dpg_robot.deploy.robot import DeviceFlag, JointState, Robot
from dpg_robot.deploy.run_config import RunSettings
from dpg_robot.deploy.safety import Safety, SafetyFlag, Stop
from dpg_robot.deploy.tick_recorder import NO_EPISODE, TickRecorder
from dpg_robot.errors import DpgError

_START_TIMEOUT_S = 5.0  # for the first measurement and for the log process
_RING_FILL_LIMIT = 0.75
_COMMAND_CHANGED = (
    SafetyFlag.ACTION_CLIPPED
    | SafetyFlag.COMMAND_LIMITED
    | SafetyFlag.RATE_LIMITED
    | SafetyFlag.SOFT_LIMIT
    | SafetyFlag.LEAD_LIMITED
)


class StopLoop(Exception):  # noqa: N818 - not an error: the way out of the loop, from wherever it is noticed
    """Leave the loop now.

    Attributes:
        fault: whether this should not have happened.
        end: how it closes the episode that is open.
    """

    def __init__(self, message: str, *, fault: bool = True, end: EpisodeEnd = EpisodeEnd.ABORTED) -> None:
        super().__init__(message)
        self.fault = fault
        self.end = end

    @classmethod
    def by_safety(cls, stop: Stop) -> StopLoop:
        """Return the exception for a stop that the safety layers ask for."""
        return cls(stop.message, end=EpisodeEnd.TERMINAL if stop.terminal else EpisodeEnd.ABORTED)


class ControlLoop:
    """One run of a robot; use it once.

    Attributes:
        report: what happened so far.
    """

    def __init__(
        self,
        robot: Robot,
        homing: Homing,
        policies: PolicyUpdates,
        safety: Safety,
        ring: Ring,
        block: ControlBlock,
        settings: RunSettings,
        *,
        parent_pid: int | None = None,
    ) -> None:
        """Allocate all that the ticks need.

        Args:
            robot: the robot; the loop connects, enables, disables and closes it.
            homing: what brings it to the start of an episode.
            policies: the policy, and those that may follow it during the run.
            safety: the safety layers.
            ring: takes one record per tick; the loop is its producer.
            block: where stop requests come from and progress goes to.
            settings: the run.
            parent_pid: process without which the robot must not move; None: there is no such process.
        """
        contract = policies.contract
        self.report = LoopReport(wanted_rate_hz=contract.rate_hz, updates=policies.events)
        self._robot, self._homing, self._policies, self._safety = robot, homing, policies, safety
        self._ring, self._block, self._settings, self._parent_pid = ring, block, settings, parent_pid
        self._ring_limit = max(1, int(_RING_FILL_LIMIT * ring.capacity))
        self._state = JointState.empty(contract.num_measurements)
        self._record = TickRecorder(ring, policies.acting.policy_id)
        self._clock = AbsoluteClock(contract.period_ns)
        self._command, self._action, self._intended, self._noise = (np.zeros(contract.num_actions) for _ in range(4))
        self._random = np.random.default_rng(settings.seed)
        self._half_range = 0.5 * (contract.command_high - contract.command_low)
        self._middle = 0.5 * (contract.command_high + contract.command_low)
        self._enabled = False
        self._stop_reason: str | None = None
        self._period = -1
        self._began_ns = 0
        self._skipped = 0
        self._open = False  # whether a tick has begun whose record was not pushed yet
        self._fresh = False  # whether that record holds a new measurement

    def stop(self, reason: str) -> None:
        """Stop the robot as soon as possible; may be called in a signal handler."""
        self._stop_reason = reason
        self._clock.cancel()

    def run(self) -> LoopReport:
        """Connect, run all episodes and stop. Never raises: what went wrong stands in the report, after the robot was stopped."""
        report, end, error = self.report, EpisodeEnd.ABORTED, None
        try:
            self._start()
            for episode in range(self._settings.episodes):
                self._run_episode(self._home(episode))
            self._park()
            report.reason, report.fault = "finished", False
        except StopLoop as stop:
            report.reason, report.fault, end = str(stop), stop.fault, stop.end
        except DpgError as known:
            report.reason = str(known)
        except BaseException as unknown:  # whatever it is, SystemExit too: the robot must not go on
            report.reason, error = f"{type(unknown).__name__}: {unknown}", unknown
        finally:
            self._safe_stop(end)
        report.error = error
        return report

    def _start(self) -> None:
        """Connect, wait until measurements come and the log is written, check where the robot stands, and enable it."""
        self._robot.connect()
        self._safety.returning = True
        self._clock.resume()
        deadline_ns = time.monotonic_ns() + round(_START_TIMEOUT_S * 1e9)
        while True:
            self._begin_tick()
            ready = bool(self._state.valid.all()) and self._ring.status.state == LogState.WRITING
            if ready:
                self._check_measurement()
            self._push()
            if ready:
                break
            if time.monotonic_ns() > deadline_ns:
                silent = self._safety.describe_channels(~self._state.valid) or "none"
                raise StopLoop(
                    f"not ready within {_START_TIMEOUT_S:g} s: channels without a measurement: {silent}; "
                    f"log process: {self._ring.status.state.name.lower()}"
                )
        self._safety.start_from(self._state.values)
        if self._settings.shadow:
            self._clock.resume()
            return
        self._enabled = True  # also when enable() fails half way, the robot must be disabled
        self._robot.enable()
        self._state.flags, self._state.alarm = DeviceFlag(0), ""  # what was read before does not count any more
        self._robot.write(self._safety.neutral_command())
        self._clock.resume()

    def _home(self, episode: int) -> EpisodeReport:
        """Bring the robot to the start of an episode."""
        self._homing.start()
        homing_s = 0.0 if self._settings.shadow else self._follow_homing("homing")
        report = EpisodeReport(episode, homing_s=homing_s)
        self.report.episodes.append(report)
        return report

    def _park(self) -> None:
        """Bring the robot to where its actuators may be switched off, if there is such a place."""
        if isinstance(self._homing, Parking) and self._homing.parks and not self._settings.shadow:
            self._homing.start_parking()
            self._follow_homing("parking")

    def _follow_homing(self, what: str) -> float:
        """Send the homing's commands until it is done; returns how long that took, s."""
        self._record.state, self._record.episode, self._record.step = LoopState.HOMING, NO_EPISODE, 0
        self._safety.returning = True
        start_ns = now_ns = time.monotonic_ns()
        timeout_s = self._settings.robot.homing_timeout_s
        while not self._homing.done:
            self._begin_tick()
            self._check_measurement()
            now_ns = time.monotonic_ns()
            elapsed_s = (now_ns - start_ns) * 1e-9
            if elapsed_s > timeout_s:
                raise StopLoop(
                    f"{what} did not finish within {timeout_s:g} s; the robot is at {self._safety.describe(self._state.values)}. "
                    "Check that it can move freely, and the homing parameters"
                )
            self._command[:] = self._homing.command(self._state.values, elapsed_s)
            self._send()
        return (now_ns - start_ns) * 1e-9

    def _run_episode(self, report: EpisodeReport) -> None:
        """Let the policy act for the length of an episode; the tick after the last step closes it."""
        self._record.state = LoopState.SHADOW if self._settings.shadow else LoopState.RUNNING
        self._record.episode = report.episode
        self._policies.reset()
        self._safety.returning = False
        for step in range(self._settings.episode_steps + 1):
            self._record.step = report.steps = step
            self._begin_tick()
            self._check_measurement()
            if step < self._settings.episode_steps:
                self._act()
                report.count(self._record.safety)
        self._command[:] = self._safety.neutral_command()
        self._send(end=EpisodeEnd.TIMEOUT)

    def _begin_tick(self) -> None:
        """Wait for the grid point and read; raises StopLoop when the robot may not go on."""
        missed_before = self._clock.missed
        period, latency_ns = self._clock.wait()
        began_ns = time.monotonic_ns()
        self._skipped = self._clock.missed - missed_before
        self.report.wakeup.add(latency_ns)
        if period - self._period == 1 + self._skipped and self._period >= 0:
            self.report.period.add(began_ns - self._began_ns)
        self._period, self._began_ns = period, began_ns
        self._record.set_tick(period, latency_ns)
        self._open, self._fresh = True, False
        self._require_permission()
        self._robot.read(self._state)
        self._record.set_measurement(self._state, time.monotonic_ns(), time.time_ns())
        self._fresh = True

    def _require_permission(self) -> None:
        """Raise StopLoop when anything but the robot itself says that it may not move."""
        if self._stop_reason is not None:
            raise StopLoop(self._stop_reason, fault=False)
        request = self._block.stop_request
        if request == StopRequest.LOG_PROCESS_DIED:
            raise StopLoop("the log process died; a robot whose data cannot be kept does not move")
        if request != StopRequest.NONE:
            raise StopLoop("stop requested", fault=False)
        if self._parent_pid is not None and os.getppid() != self._parent_pid:
            raise StopLoop("the supervisor died")
        status = self._ring.status
        if status.state == LogState.FAILED:
            raise StopLoop(f"the log cannot be written: {os.strerror(status.error) if status.error > 0 else 'unknown error'}")
        if status.state == LogState.CLOSED:
            raise StopLoop("the log process ended before the robot")
        if len(self._ring) > self._ring_limit:
            raise StopLoop(
                f"the log process lags behind: {len(self._ring)} records wait, {self._ring.capacity} fit; is the disk too slow?"
            )

    def _check_measurement(self) -> None:
        if self._enabled:
            self._heed(self._safety.check_device(self._state.flags, self._state.alarm))
        self._heed(self._safety.check_measurement(self._state, time.monotonic_ns()))

    def _act(self) -> None:
        """Ask the policy, add exploration, and send what is safe."""
        policies = self._policies
        self._command[:] = policies.step(self._state.values, self._record.ticks)
        self._intended[:] = self._action[:] = policies.action
        self._record.set_policy(policies.acting.policy_id)
        if self._settings.exploration > 0.0:
            self._random.standard_normal(out=self._noise)
            self._noise *= self._settings.exploration
            self._action += self._noise
        self._record.safety |= self._safety.clip_action(self._action)
        explored = not np.array_equal(self._action, self._intended)
        if explored:
            # command = middle + action * half of the range
            np.multiply(self._action, self._half_range, out=self._command)
            self._command += self._middle
        self._send(by_policy=True, explored=explored)
        self._block.publish_update(policies.state, policies.release, policies.watched)

    def _send(self, *, by_policy: bool = False, explored: bool = False, end: EpisodeEnd = EpisodeEnd.NOT_ENDED) -> None:
        """Limit and send ``self._command``, and push the record of the tick."""
        record = self._record
        self._heed(self._safety.limit_command(self._command, self._state.values))
        if not self._settings.shadow:
            self._robot.write(self._command)
        compute_ns = time.monotonic_ns() - self._began_ns
        flags, stop = self._safety.check_timing(compute_ns, self._skipped)
        record.safety |= flags
        self.report.compute.add(compute_ns)
        self.report.late += compute_ns > self._safety.deadline_ns
        if not by_policy:
            self._intended.fill(0.0)
        if not by_policy or explored or record.safety & _COMMAND_CHANGED:
            np.subtract(self._command, self._middle, out=self._action)
            self._action /= self._half_range
        if by_policy and not self._settings.shadow:
            changed = not np.array_equal(self._action, self._intended)
            self._policies.finish(self._state.values, self._action, record.safety, changed=changed)
        record.set_command(self._intended, self._action, self._command, compute_ns)
        self._push(end)
        if stop is not None:
            raise StopLoop.by_safety(stop)

    def _push(self, end: EpisodeEnd = EpisodeEnd.NOT_ENDED) -> None:
        record = self._record
        self._open = self._fresh = False
        if not record.push(end):
            raise StopLoop("the log ring is full; the record of this tick is lost")
        self._block.publish(record.state, record.episode, record.step, record.ticks, self._clock.missed)
        if end != EpisodeEnd.NOT_ENDED:
            self.report.episodes[-1].end = end
            record.episode = NO_EPISODE

    def _heed(self, verdict: tuple[int, Stop | None]) -> None:
        flags, stop = verdict
        self._record.safety |= flags
        if stop is not None:
            raise StopLoop.by_safety(stop)

    def _safe_stop(self, end: EpisodeEnd) -> None:
        """Take the effort away first, then record how it ended, then let go of the link."""
        if self._enabled and self._safety.config.zero_command_is_safe:
            with contextlib.suppress(BaseException):
                self._robot.write(self._safety.neutral_command())
        if not self._settings.shadow:
            with contextlib.suppress(BaseException):
                self._robot.disable()
        try:
            self._record_stop(end)
        finally:
            with contextlib.suppress(BaseException):
                self._robot.close()
            self._ring.finish()
            self._collect()

    def _record_stop(self, end: EpisodeEnd) -> None:
        """Push the last record, which closes the episode if one is open."""
        record = self._record
        in_episode = record.episode != NO_EPISODE
        if in_episode:
            episode = self.report.episodes[-1]
            episode.end = end
            episode.count(record.safety)
            record.step += not self._open  # the tick of this step was recorded already
            episode.steps = record.step
        if not self._open:
            record.set_tick(max(self._period + 1, self._clock.passed()), 0)
        if not self._fresh:
            self._state.valid[:] = False
            record.set_measurement(self._state, time.monotonic_ns(), time.time_ns())
        record.state = LoopState.FAULT if self.report.fault else LoopState.STOPPING
        neutral = self._safety.neutral_command()
        record.set_command(np.zeros_like(neutral), (neutral - self._middle) / self._half_range, neutral, 0)
        record.push(end if in_episode else EpisodeEnd.NOT_ENDED)
        self._block.publish(record.state, record.episode, record.step, record.ticks, self._clock.missed)

    def _collect(self) -> None:
        report = self.report
        report.ticks, report.missed = self._record.ticks, self._clock.missed
        counters = getattr(self._robot, "counters", None)
        if dataclasses.is_dataclass(counters) and not isinstance(counters, type):
            report.link = dataclasses.asdict(counters)
