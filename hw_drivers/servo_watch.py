"""What is known of one servo and its joint, whether what it says is possible, and what it complains about."""

from __future__ import annotations

import math
from collections.abc import Sequence

from hw_drivers.servo_config import ServoConfig
from hw_drivers.servo_family import ServoModel, ServoReading

_CONFIRMATIONS = 2  # readings in a row that must agree before they are believed
_IMPOSSIBLE_SPEED = 2.0  # times the model's largest
_JUMP_RAD = 0.1
_HIGHEST_VOLTAGE, _HIGHEST_TEMPERATURE = 30.0, 125.0
_WEAK_SUPPLY = 0.75
_FOLLOWED = 0.9  # share of the lead at which a joint does not follow
_STANDSTILL_RAD = 0.01


class ServoWatch:
    """Follows one servo from reading to reading.

    Attributes:
        name: the joint that it moves.
        config: the servo as it is described.
        model: its model.
        settings: how it shall behave, in its own terms.
        goal: of the joint, where speeds are commanded, rad.
        reading: the last one that was possible; None before the first.
        read_ns: when that was asked for.
    """

    def __init__(self, name: str, config: ServoConfig, model: ServoModel) -> None:
        self.name, self.config, self.model, self.settings = name, config, model, config.settings()
        self.goal = 0.0
        self.reading: ServoReading | None = None
        self.read_ns = 0
        self._min_voltage = config.min_voltage or _WEAK_SUPPLY * model.voltage
        self._torque_lost = False
        self._times_off = 0  # looks in a row at which the torque was off
        self._stuck_at, self._stuck_since_ns = math.nan, 0
        self._complaint, self._times = "", 0

    @property
    def id(self) -> int:
        """ID of the servo."""
        return self.config.id

    @property
    def label(self) -> str:
        """The joint and the servo's ID, for messages."""
        return f"{self.name} (ID {self.id})"

    @property
    def alarm(self) -> str:
        """What the last readings complained about; empty if nothing, or only one of them: that may be a garbled answer."""
        return f"{self.label}: {self._complaint}" if self._times >= _CONFIRMATIONS else ""

    @property
    def angle(self) -> float:
        """Angle of the joint at the last reading, rad; NaN before the first."""
        return math.nan if self.reading is None else self.config.to_joint(self.reading.position)

    def forget(self) -> None:
        """Begin anew, as after a new connection."""
        self.reading = None
        self._torque_lost, self._times_off = False, 0
        self._complaint, self._times = "", 0

    def start_following(self, goal: float) -> None:
        """Begin to follow a goal of the joint, rad, with the torque on."""
        self.goal = goal
        self._torque_lost, self._times_off = False, 0
        self._stuck_at, self._stuck_since_ns = math.nan, 0

    def take(self, reading: ServoReading, asked_ns: int, *, enabled: bool) -> bool:
        """Keep a reading and return true if it is possible: in range, and no further from the last than the servo can turn.

        With its torque on it keeps to its own limit of velocity; without, a hand may turn it as fast as it can go.
        """
        fastest = _IMPOSSIBLE_SPEED * self.model.max_velocity
        likely = _IMPOSSIBLE_SPEED * self.settings.max_velocity if enabled else fastest
        within = self.settings.low - math.tau <= reading.position <= self.settings.high + math.tau
        supplied = reading.voltage is None or 0 < reading.voltage <= _HIGHEST_VOLTAGE
        sane = reading.temperature is None or 0 <= reading.temperature <= _HIGHEST_TEMPERATURE
        if not (within and supplied and sane and abs(reading.velocity) <= fastest):
            return False
        if self.reading is not None:
            reach = likely * (asked_ns - self.read_ns) * 1e-9 + _JUMP_RAD
            if abs(reading.position - self.reading.position) > reach:
                return False
        self.reading, self.read_ns = reading, asked_ns
        if reading.torque_on is not None:
            self._torque_lost = not reading.torque_on
        return True

    def take_torque(self, *, torque_on: bool) -> bool:
        """Take over whether the torque is on, from a look that was no reading; returns whether to look again at once."""
        self._times_off = 0 if torque_on else self._times_off + 1
        believed = torque_on or self._times_off >= _CONFIRMATIONS
        if believed:
            self._torque_lost = not torque_on
        return not believed

    def judge(self, errors: Sequence[str], now_ns: int, *, enabled: bool, follows: bool) -> None:
        """See what the last reading complains about.

        Args:
            errors: what its answer said in words.
            now_ns: the time.
            enabled: whether its torque should be on.
            follows: whether ``goal`` is where it is sent.
        """
        reading = self.reading
        assert reading is not None, "judged before the first reading"
        complaints = list(errors)
        if reading.temperature is not None and reading.temperature > self.config.max_temperature:
            complaints.append(f"{reading.temperature:.0f} deg C, allowed are {self.config.max_temperature:.0f}")
        if reading.voltage is not None and reading.voltage < self._min_voltage:
            complaints.append(f"supply of {reading.voltage:.1f} V, needed are {self._min_voltage:.1f}")
        if reading.watchdog_tripped:
            complaints.append("its watchdog tripped")
        if enabled and self._torque_lost:
            complaints.append("its torque is off: it restarted, or switched itself off")
        if enabled and follows and self._is_stuck(now_ns):
            complaints.append("it does not follow its goal: jammed, overloaded, or its sensor is stuck")
        self._complaint = "; ".join(complaints)
        self._times = self._times + 1 if complaints else 0

    def _is_stuck(self, now_ns: int) -> bool:
        """Whether the joint has stood still for too long, with its goal as far ahead as it may be."""
        angle = self.angle
        behind = abs(self.goal - angle) >= _FOLLOWED * self.config.max_lead
        if not behind or not abs(angle - self._stuck_at) <= _STANDSTILL_RAD:
            self._stuck_at, self._stuck_since_ns = angle, now_ns
            return False
        return now_ns - self._stuck_since_ns > self.config.stuck_s * 1e9
