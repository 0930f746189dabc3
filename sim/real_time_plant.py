"""Plants that are simulated in real time, behind emulated devices."""

from __future__ import annotations

from abc import ABC, abstractmethod

TIMESTEP_S = 0.002
MAX_CATCH_UP_S = 0.1
"""Longest time that is simulated in one go; a process that was stalled for longer loses the rest."""

_TIMESTEP_NS = round(TIMESTEP_S * 1e9)


class RealTimePlant(ABC):
    """Keeps up with a clock in steps of ``TIMESTEP_S``.

    Attributes:
        stalls: how often the process was stalled for longer than ``MAX_CATCH_UP_S``.
        skipped_s: plant time lost in these stalls, s.
    """

    def __init__(self) -> None:
        self.stalls = 0
        self.skipped_s = 0.0
        self._time_ns: int | None = None

    def advance(self, until_ns: int) -> None:
        """Simulate up to ``until_ns`` (``time.monotonic_ns``) in physics steps; the first call only sets the clock."""
        if self._time_ns is None:
            self._time_ns = until_ns
        behind_ns = until_ns - self._time_ns
        if behind_ns > MAX_CATCH_UP_S * 1e9:
            lost_ns = behind_ns - round(MAX_CATCH_UP_S * 1e9)
            self.stalls += 1
            self.skipped_s += lost_ns * 1e-9
            self._time_ns += lost_ns
        while self._time_ns + _TIMESTEP_NS <= until_ns:
            self._step()
            self._time_ns += _TIMESTEP_NS

    @abstractmethod
    def _step(self) -> None:
        """Simulate one step."""
