"""What stands between a policy and the motors: layered checks of every measurement and every command.

The functions are pure. :class:`Safety` holds what has to be remembered from one tick to the next (the last command, ticks in a
row). A check either changes the command and says so by a flag, or asks for the robot to be stopped by a :class:`Stop`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from enum import IntFlag

import numpy as np
from numpy.typing import NDArray

from dpg_robot.config import setting
from dpg_robot.contract import Contract
from dpg_robot.deploy.robot import DeviceFlag, JointState
from dpg_robot.errors import ConfigError, unknown_name


class SafetyFlag(IntFlag):
    """The layers that changed or refused something in a tick; 16 bits, recorded with it."""

    NON_FINITE = 1
    ACTION_CLIPPED = 2
    COMMAND_LIMITED = 4
    RATE_LIMITED = 8
    SOFT_LIMIT = 16
    HARD_LIMIT = 32
    SPEED_LIMIT = 64
    STALE = 128
    DEVICE_WATCHDOG = 256
    DEVICE_FAULT = 512
    OVERRUN = 1024
    LEAD_LIMITED = 2048


@dataclass(frozen=True)
class PositionLimit:
    """Limits of one measured position, and the command that moves it."""

    soft_low: float = setting(-math.inf, "below it the command may not push further down", unit="of the position")
    soft_high: float = setting(math.inf, "above it the command may not push further up", unit="of the position")
    hard_low: float = setting(-math.inf, "below it the robot is stopped", unit="of the position")
    hard_high: float = setting(math.inf, "above it the robot is stopped", unit="of the position")
    velocity: str = setting("", "measurement channel with the velocity of this position; empty: there is none")
    command: str = setting("", "effort channel that moves this position, up where positive; empty: hard limits only")
    braking_command: float = setting(0.0, "effort used to brake before and beyond a soft limit", unit="of the command")
    braking_deceleration: float = setting(math.inf, "deceleration that braking surely reaches", unit="of the position / s^2")

    def __post_init__(self) -> None:
        low_ordered = math.isinf(self.soft_low) or self.hard_low <= self.soft_low
        high_ordered = math.isinf(self.soft_high) or self.soft_high <= self.hard_high
        if not (low_ordered and high_ordered and self.soft_low < self.soft_high and self.hard_low < self.hard_high):
            raise ConfigError(
                "limits must be ordered hard_low <= soft_low < soft_high <= hard_high, "
                f"got {self.hard_low}, {self.soft_low}, {self.soft_high}, {self.hard_high}"
            )
        if not self.command and not (math.isinf(self.soft_low) and math.isinf(self.soft_high)):
            raise ConfigError("soft limits need the command that moves the position; name it under 'command'")
        if self.braking_command < 0 or not self.braking_deceleration > 0:
            raise ConfigError("braking_command must be 0 or more and braking_deceleration positive")


@dataclass(frozen=True)
class GoalLimit:
    """Limits of a command that is a goal for a measured position."""

    position: str = field(metadata={"help": "measurement channel of the position that follows the goal"})
    max_lead: float = setting(math.inf, "largest distance of the goal from the position", unit="of the position")
    stuck_error: float = setting(math.inf, "distance from the goal at which the position must move", unit="of the position")
    stuck_movement: float = setting(0.01, "less than this is no movement", unit="of the position")
    stuck_s: float = setting(1.0, "time without movement after which the robot is stopped", unit="s")

    def __post_init__(self) -> None:
        for name in ("max_lead", "stuck_error", "stuck_movement", "stuck_s"):
            if not getattr(self, name) > 0:
                raise ConfigError(f"{name} must be positive, got {getattr(self, name)}")


@dataclass(frozen=True)
class SafetyConfig:
    """Settings of all safety layers."""

    goals: dict[str, GoalLimit] = setting(dict, "command channels that are goals for measured positions, and their limits")
    positions: dict[str, PositionLimit] = setting(dict, "limits for each measured position")
    max_speed: dict[str, float] = setting(dict, "largest absolute value of velocity channels; beyond it the robot is stopped")
    max_command_rate: dict[str, float] = setting(dict, "largest change per second of command channels; without: unlimited")
    zero_command_is_safe: bool = setting(True, "whether commands of 0 mean no effort (false for joints that take positions)")
    stale_patience_periods: int = setting(3, "oldest measurement that is still acted on", unit="periods")
    compute_deadline_fraction: float = setting(0.5, "share of the period within which the command must be sent")
    max_overruns_in_row: int = setting(5, "ticks in a row that may miss their deadline before the robot is stopped")

    def __post_init__(self) -> None:
        if self.stale_patience_periods < 1 or self.max_overruns_in_row < 1:
            raise ConfigError("stale_patience_periods and max_overruns_in_row must be at least 1")
        if self.goals and self.zero_command_is_safe:
            raise ConfigError(f"commands that are goals ({', '.join(self.goals)}) need zero_command_is_safe: false")
        if not 0 < self.compute_deadline_fraction <= 1:
            raise ConfigError(f"compute_deadline_fraction must be above 0 and at most 1, got {self.compute_deadline_fraction}")
        for what, limits in (("max_speed", self.max_speed), ("max_command_rate", self.max_command_rate)):
            for name, value in limits.items():
                if not value > 0:
                    raise ConfigError(f"{what}.{name} must be positive, got {value}")


@dataclass(frozen=True)
class Stop:
    """A reason to stop the robot.

    Attributes:
        message: what happened, with values and limits.
        terminal: whether the robot itself reached a state that ends an episode for good (a hard limit), rather than something
            around it having failed.
    """

    message: str
    terminal: bool = False


def clip(values: NDArray[np.float64], low: NDArray[np.float64], high: NDArray[np.float64]) -> bool:
    """Clip ``values`` in place; returns whether that changed anything."""
    if (values >= low).all() and (values <= high).all():
        return False
    np.clip(values, low, high, out=values)
    return True


def brake_at_soft_limit(limit: PositionLimit, position: float, velocity: float, command: float, lead_s: float) -> float:
    """Return the command to send for one position, which is ``command`` unless that would leave the soft limits.

    The place where braking from now on would stop is compared with the soft limit, so that a fast joint brakes before it.
    Beyond a soft limit, only commands that do not push further outward pass.

    Args:
        limit: the limits.
        position: present position.
        velocity: present velocity; 0 when it is not measured.
        command: the effort asked for.
        lead_s: time that passes before a command takes effect.
    """
    stopping_place = position + velocity * lead_s + velocity * abs(velocity) / (2.0 * limit.braking_deceleration)
    if stopping_place > limit.soft_high and velocity >= 0.0:
        return min(command, -limit.braking_command)
    if stopping_place < limit.soft_low and velocity <= 0.0:
        return max(command, limit.braking_command)
    if position > limit.soft_high:
        return min(command, 0.0)
    if position < limit.soft_low:
        return max(command, 0.0)
    return command


@dataclass(frozen=True)
class _Position:
    name: str
    limit: PositionLimit
    index: int
    velocity_index: int | None
    command_index: int | None


@dataclass
class _Goal:
    name: str
    limit: GoalLimit
    index: int
    command_index: int
    stuck_at: float = math.nan
    stuck_since_ns: int = 0


class Safety:
    """The safety layers of one robot.

    Attributes:
        config: the limits.
        contract: channels, command limits, rate and latency budget.
        deadline_ns: time from the beginning of a tick within which its command must be sent.
        returning: whether a position beyond a hard limit is borne, because the robot is on its way back from there (it may have
            coasted to the end of its rail when the last run ended). Soft limits let it move only inward; once it is inside,
            this is false again. Positions without soft limits are never let off.
    """

    def __init__(self, config: SafetyConfig, contract: Contract) -> None:
        """Look up all channels. Raises UnknownNameError for a limit of a channel that the contract does not have."""
        self.config = config
        self.contract = contract
        measured, commanded = contract.measurement_names, contract.command_names
        self._positions = tuple(_resolve(name, limit, contract) for name, limit in config.positions.items())
        self._speeds = tuple((name, _index(name, measured), value) for name, value in config.max_speed.items())
        self._low, self._high = contract.command_low, contract.command_high
        # A policy computes in float32: a limit such as 0.1 may come out a little beyond itself, which is no intervention.
        rounding = 1e-6 * np.maximum(np.abs(self._low), np.abs(self._high))
        self._low_rounded, self._high_rounded = self._low - rounding, self._high + rounding
        self._action_low, self._action_high = -np.ones(contract.num_actions), np.ones(contract.num_actions)
        self._max_step = np.full(contract.num_actions, np.inf)
        for name, value in config.max_command_rate.items():
            self._max_step[_index(name, commanded)] = value / contract.rate_hz
        self._last_command: NDArray[np.float64] = np.clip(np.zeros(contract.num_actions), self._low, self._high)
        self._step_low, self._step_high = np.empty_like(self._low), np.empty_like(self._high)
        self._period_s = 1.0 / contract.rate_hz
        self._max_age_ns = config.stale_patience_periods * contract.period_ns
        fraction_ns = round(config.compute_deadline_fraction * contract.period_ns)
        self.deadline_ns = min(fraction_ns, round(contract.latency_budget_s * 1e9))
        self._goals = tuple(
            _Goal(name, limit, _index(limit.position, measured), _index(name, commanded)) for name, limit in config.goals.items()
        )
        self._overruns_in_row = 0
        self._was_enabled = False
        self.returning = False

    def start_from(self, measurement: NDArray[np.float64]) -> None:
        """Let the first commands that are goals begin where the positions are, given the measurement (M,)."""
        for goal in self._goals:
            position = float(measurement[goal.index])
            self._last_command[goal.command_index] = min(
                max(position, self._low[goal.command_index]), self._high[goal.command_index]
            )

    def neutral_command(self) -> NDArray[np.float64]:
        """Return (C,) the command to give where there is none: 0 within the limits, or the last one where 0 is an effort."""
        if not self.config.zero_command_is_safe:
            return self._last_command.copy()
        return np.clip(np.zeros(self.contract.num_actions), self._low, self._high)

    def check_device(self, flags: int, alarm: str = "") -> tuple[int, Stop | None]:
        """Check what an enabled device says of itself: its DeviceFlag bits, and an alarm in words."""
        if flags & DeviceFlag.HARDWARE_FAULT.value:
            what = f": {alarm}" if alarm else ""
            stop = Stop(f"the device reports a hardware fault{what}; look at it, then switch it off and on")
            return SafetyFlag.DEVICE_FAULT.value, stop
        if flags & DeviceFlag.WATCHDOG_TRIPPED.value:
            stop = Stop("the device's watchdog tripped: no command reached it in time; check the link and the computer's load")
            return SafetyFlag.DEVICE_WATCHDOG.value, stop
        enabled = bool(flags & DeviceFlag.ENABLED.value)
        if self._was_enabled and not enabled:
            stop = Stop("the device has switched its actuators off by itself; did it restart, or does another program use it?")
            return SafetyFlag.DEVICE_FAULT.value, stop
        self._was_enabled |= enabled
        return 0, None

    def check_measurement(self, state: JointState, now_ns: int) -> tuple[int, Stop | None]:
        """Check what was read: finite, fresh, within hard limits and speeds."""
        finite = np.isfinite(state.values)
        if not finite.all():
            return SafetyFlag.NON_FINITE.value, Stop(f"not finite: the measurement of {self.describe_channels(~finite)}")
        flags = 0 if state.valid.all() else SafetyFlag.STALE.value
        age_ns = now_ns - int(state.time_ns.min())
        if age_ns > self._max_age_ns:
            old = self.describe_channels(now_ns - state.time_ns > self._max_age_ns)
            return flags | SafetyFlag.STALE.value, Stop(
                f"no fresh measurement of {old} for {age_ns * 1e-6:.1f} ms, allowed are {self._max_age_ns * 1e-6:.1f} ms; "
                "check the link and the sensor"
            )
        limit_flags, stop = self._check_limits(state.values)
        return flags | limit_flags, stop or self._check_movement(state, now_ns)

    def clip_action(self, action: NDArray[np.float64]) -> int:
        """Clip actions (A,) to [-1, 1] in place; returns flags. What is not finite is left for :meth:`limit_command`."""
        changed = np.isfinite(action).all() and clip(action, self._action_low, self._action_high)
        return SafetyFlag.ACTION_CLIPPED.value if changed else 0

    def limit_command(self, command: NDArray[np.float64], measurement: NDArray[np.float64]) -> tuple[int, Stop | None]:
        """Make commands (C,) safe to send, in place, given the measurement (M,) that they answer.

        The layers, in order: finite, limits, rate of change, lead of a goal, soft position limits. The last two win over the
        rate of change.
        """
        if not np.isfinite(command).all():
            names = [name for name, value in zip(self.contract.command_names, command, strict=True) if not np.isfinite(value)]
            command[:] = self.neutral_command()
            return SafetyFlag.NON_FINITE.value, Stop(f"the command {', '.join(names)} is not finite; the policy is broken")
        flags = 0
        if clip(command, self._low_rounded, self._high_rounded):
            flags = SafetyFlag.COMMAND_LIMITED.value
        np.clip(command, self._low, self._high, out=command)
        np.subtract(self._last_command, self._max_step, out=self._step_low)
        np.add(self._last_command, self._max_step, out=self._step_high)
        if clip(command, self._step_low, self._step_high):
            flags |= SafetyFlag.RATE_LIMITED.value
        flags |= self._limit_lead(command, measurement)
        flags |= self._brake(command, measurement)
        self._last_command[:] = command
        return flags, None

    def _limit_lead(self, command: NDArray[np.float64], measurement: NDArray[np.float64]) -> int:
        flags = 0
        for goal in self._goals:
            position, asked, index = float(measurement[goal.index]), float(command[goal.command_index]), goal.command_index
            sent = min(max(asked, position - goal.limit.max_lead), position + goal.limit.max_lead)
            if sent != asked:
                command[index] = min(max(sent, float(self._low[index])), float(self._high[index]))
                flags = SafetyFlag.LEAD_LIMITED.value
        return flags

    def _check_movement(self, state: JointState, now_ns: int) -> Stop | None:
        """Check that positions follow their goals: a joint that does not is jammed, or its sensor is stuck."""
        if not self._was_enabled:
            return None
        for goal in self._goals:
            limit, position = goal.limit, float(state.values[goal.index])
            error = abs(float(self._last_command[goal.command_index]) - position)
            if error <= limit.stuck_error or not abs(position - goal.stuck_at) <= limit.stuck_movement:
                goal.stuck_at, goal.stuck_since_ns = position, now_ns
            elif now_ns - goal.stuck_since_ns > limit.stuck_s * 1e9:
                return Stop(
                    f"{limit.position} stays at {position:.4g}, {error:.3g} away from its goal {goal.name}, for "
                    f"{limit.stuck_s:g} s: the joint is jammed, overloaded, or its sensor is stuck"
                )
        return None

    def _brake(self, command: NDArray[np.float64], measurement: NDArray[np.float64]) -> int:
        flags = 0
        for position in self._positions:
            if position.command_index is None:
                continue
            velocity = 0.0 if position.velocity_index is None else float(measurement[position.velocity_index])
            asked = float(command[position.command_index])
            sent = brake_at_soft_limit(position.limit, float(measurement[position.index]), velocity, asked, self._period_s)
            if sent != asked:
                command[position.command_index] = sent
                flags = SafetyFlag.SOFT_LIMIT.value
        if flags:
            clip(command, self._low, self._high)
        return flags

    def check_timing(self, compute_ns: int, skipped_periods: int) -> tuple[int, Stop | None]:
        """Check one tick's time: from its beginning to its command, and how many grid points were skipped before it."""
        if compute_ns <= self.deadline_ns and skipped_periods == 0:
            self._overruns_in_row = 0
            return 0, None
        self._overruns_in_row += 1
        flags = SafetyFlag.OVERRUN.value
        if self._overruns_in_row < self.config.max_overruns_in_row:
            return flags, None
        return flags, Stop(
            f"{self._overruns_in_row} ticks in a row missed their deadline of {self.deadline_ns * 1e-6:.2f} ms, the last with "
            f"{compute_ns * 1e-6:.2f} ms and {skipped_periods} skipped periods; the computer is too slow or too busy"
        )

    def describe(self, measurement: NDArray[np.float64]) -> str:
        """Return names and values of a measurement (M,), for messages."""
        return ", ".join(f"{name} {value:.4g}" for name, value in zip(self.contract.measurement_names, measurement, strict=True))

    def _check_limits(self, values: NDArray[np.float64]) -> tuple[int, Stop | None]:
        flags = 0
        for position in self._positions:
            value, limit = float(values[position.index]), position.limit
            if not limit.hard_low <= value <= limit.hard_high:
                flags = SafetyFlag.HARD_LIMIT.value
                if not (self.returning and position.command_index is not None):
                    message = (
                        f"{position.name} = {value:.4g} is outside its hard limits {limit.hard_low:g} to {limit.hard_high:g}"
                    )
                    return flags, Stop(message, terminal=True)
        self.returning &= flags != 0
        for name, index, largest in self._speeds:
            if abs(float(values[index])) > largest:
                message = f"{name} = {values[index]:.4g} is beyond its limit of {largest:g}"
                return SafetyFlag.SPEED_LIMIT.value, Stop(message, terminal=True)
        return flags, None

    def describe_channels(self, which: NDArray[np.bool_]) -> str:
        """Return the names of the measurement channels for which ``which`` (M,) is true."""
        return ", ".join(name for name, chosen in zip(self.contract.measurement_names, which, strict=True) if chosen)


def flag_names(flags: int) -> list[str]:
    """Return the names of the set bits, in lower case, for reports."""
    return [flag.name.lower() for flag in SafetyFlag if flags & flag.value and flag.name]


def _resolve(name: str, limit: PositionLimit, contract: Contract) -> _Position:
    return _Position(
        name=name,
        limit=limit,
        index=_index(name, contract.measurement_names),
        velocity_index=_index(limit.velocity, contract.measurement_names) if limit.velocity else None,
        command_index=_index(limit.command, contract.command_names) if limit.command else None,
    )


def _index(name: str, names: tuple[str, ...]) -> int:
    if name not in names:
        raise unknown_name("channel in the safety limits", name, names)
    return names.index(name)
