"""What a control loop reports when it has ended; counted in fixed memory while it runs."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from dpg_robot.data.transition import EpisodeEnd
from dpg_robot.deploy.clock import DurationHistogram, Grant
from dpg_robot.deploy.policy_updates import UpdateEvent
from dpg_robot.deploy.safety import SafetyFlag

_WARNING_HZ, _ERROR_HZ = 5.0, 10.0
_FLAGS = [(flag.value, (flag.name or "").lower()) for flag in SafetyFlag]


@dataclass
class EpisodeReport:
    """One episode.

    Attributes:
        episode: index within the run.
        homing_s: time that homing took before it, seconds.
        steps: control steps in which the policy acted.
        end: why it ended.
        interventions: for each safety layer that acted, the number of steps in which it did.
    """

    episode: int
    homing_s: float
    steps: int = 0
    end: EpisodeEnd = EpisodeEnd.NOT_ENDED
    interventions: dict[str, int] = field(default_factory=dict)

    def count(self, flags: int) -> None:
        """Count the safety flags of one step."""
        for value, name in _FLAGS:
            if flags & value:
                self.interventions[name] = self.interventions.get(name, 0) + 1

    def to_dict(self) -> dict[str, Any]:
        """Return plain values for JSON."""
        return {**vars(self), "homing_s": round(self.homing_s, 3), "end": self.end.name.lower()}


@dataclass(frozen=True)
class Periodicity:
    """How regular a loop was, judged by the default thresholds of ros2_control's controller manager.

    Attributes:
        mean_error_hz: distance of the mean rate from the wanted one, Hz.
        std_hz: standard deviation of the rate, Hz.
        level: ``ok``, ``warning`` (5 Hz of either), or ``error`` (10 Hz).
    """

    mean_error_hz: float
    std_hz: float
    level: str

    @classmethod
    def judge(cls, period: DurationHistogram, rate_hz: float) -> Periodicity:
        """Judge measured periods by the rate that was wanted."""
        mean_error_hz = abs(1e9 / period.mean_ns - rate_hz) if period.count else 0.0
        std_hz = rate_hz * period.std_ns / period.mean_ns if period.count else 0.0
        worst = max(mean_error_hz, std_hz)
        level = "error" if worst > _ERROR_HZ else "warning" if worst > _WARNING_HZ else "ok"
        return cls(round(mean_error_hz, 3), round(std_hz, 3), level)


@dataclass
class LoopReport:
    """The whole of a control loop's life.

    Attributes:
        wanted_rate_hz: ticks per second that were wanted.
        reason: why it ended, one line.
        fault: whether it ended by something that should not have happened.
        ticks: periods in which the loop ran.
        missed: periods that were skipped because a tick took too long.
        late: ticks whose command was sent after its deadline.
        episodes: one report for each episode that was begun.
        wakeup: how late ticks began.
        period: time between the beginnings of ticks that follow each other.
        compute: time from the beginning of a tick to its command.
        grants: what the system granted for real time.
        link: counters of the driver, if it has any.
        updates: what happened to new policies.
        error: an exception that nobody expected, for its traceback.
    """

    wanted_rate_hz: float = 0.0
    reason: str = "did not start"
    fault: bool = True
    ticks: int = 0
    missed: int = 0
    late: int = 0
    episodes: list[EpisodeReport] = field(default_factory=list)
    wakeup: DurationHistogram = field(default_factory=DurationHistogram)
    period: DurationHistogram = field(default_factory=DurationHistogram)
    compute: DurationHistogram = field(default_factory=DurationHistogram)
    grants: list[Grant] = field(default_factory=list)
    link: dict[str, int] = field(default_factory=dict)
    updates: list[UpdateEvent] = field(default_factory=list)
    error: BaseException | None = None

    def to_dict(self) -> dict[str, Any]:
        """Return plain values for JSON; times in microseconds where the name says so."""
        return {
            "reason": self.reason,
            "fault": self.fault,
            "ticks": self.ticks,
            "missed_periods": self.missed,
            "late_commands": self.late,
            "rate_hz": round(1e9 / self.period.mean_ns, 3) if self.period.count else 0.0,
            "periodicity": vars(Periodicity.judge(self.period, self.wanted_rate_hz)),
            "wakeup_latency_us": self.wakeup.summary_us(),
            "period_us": self.period.summary_us(),
            "compute_us": self.compute.summary_us(),
            "real_time": [vars(grant) for grant in self.grants],
            "link": self.link,
            "updates": [event.to_dict() for event in self.updates],
            "episodes": [episode.to_dict() for episode in self.episodes],
        }
