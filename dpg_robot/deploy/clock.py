"""Time for the control loop: an absolute grid on the monotonic clock, what the system grants for real time, and statistics.

All times are integer nanoseconds of ``CLOCK_MONOTONIC``, which all processes of a computer share.
"""

from __future__ import annotations

import ctypes
import errno
import gc
import math
import os
import resource
import time
from collections.abc import Callable
from dataclasses import dataclass

_CLOCK_MONOTONIC = 1
_TIMER_ABSTIME = 1
_MCL_CURRENT = 1
_MCL_FUTURE = 2


class AbsoluteClock:
    """A time grid: tick ``i`` is due at ``start + i * period``.

    A tick that takes longer than its period skips the grid points that have passed and goes on at the next one, so the grid
    never drifts and no ticks are made up for in a burst.

    Attributes:
        period_ns: distance of the grid points.
        index: grid point of the last tick; 0, the start, before the first.
        missed: grid points that were skipped because the work took too long.
    """

    def __init__(self, period_ns: int, sleep_until: Callable[[int], None] | None = None) -> None:
        """Start the grid now.

        Args:
            period_ns: distance of the grid points.
            sleep_until: sleeps to a monotonic time, or less when a signal came; for tests.
        """
        if period_ns <= 0:
            raise ValueError(f"period_ns must be positive, got {period_ns}")
        self.period_ns = period_ns
        self.index = 0
        self.missed = 0
        self._sleep_until = sleep_until or make_sleep_until()
        self._cancelled = False
        self._start_ns = time.monotonic_ns()

    def wait(self) -> tuple[int, int]:
        """Sleep to the next grid point; returns its index and how late the wake-up was, in nanoseconds."""
        index = self.index + 1
        behind_ns = time.monotonic_ns() - self.deadline_ns(index)
        if behind_ns > 0:
            skipped = -(-behind_ns // self.period_ns)
            index += skipped
            self.missed += skipped
        self.index = index
        deadline_ns = self.deadline_ns(index)
        now_ns = time.monotonic_ns()
        while now_ns < deadline_ns and not self._cancelled:
            self._sleep_until(deadline_ns)
            now_ns = time.monotonic_ns()
        return index, now_ns - deadline_ns

    def deadline_ns(self, index: int) -> int:
        """Monotonic time at which grid point ``index`` is due."""
        return self._start_ns + index * self.period_ns

    def passed(self) -> int:
        """Index of the last grid point that has passed."""
        return (time.monotonic_ns() - self._start_ns) // self.period_ns

    def resume(self) -> None:
        """Go on at the next grid point after planned work between two ticks; the points that passed are not counted as missed."""
        self.index = max(self.index, self.passed())

    def cancel(self) -> None:
        """Let the present and every later :meth:`wait` return at once; may be called in a signal handler."""
        self._cancelled = True


class _Timespec(ctypes.Structure):
    _fields_ = [("tv_sec", ctypes.c_long), ("tv_nsec", ctypes.c_long)]


def make_sleep_until() -> Callable[[int], None]:
    """Return a function that sleeps to an absolute monotonic time (ns), or returns earlier when a signal was handled.

    Uses ``clock_nanosleep``; where the C library lacks it, a relative sleep, which wakes a little later.
    """
    clock_nanosleep = getattr(ctypes.CDLL(None), "clock_nanosleep", None)
    if clock_nanosleep is None:
        # In pieces, because time.sleep goes on sleeping after a signal was handled.
        return lambda deadline_ns: time.sleep(min(0.02, max(0.0, (deadline_ns - time.monotonic_ns()) * 1e-9)))
    target = _Timespec()
    pointer = ctypes.byref(target)

    def sleep_until(deadline_ns: int) -> None:
        target.tv_sec, target.tv_nsec = divmod(deadline_ns, 1_000_000_000)
        code = clock_nanosleep(_CLOCK_MONOTONIC, _TIMER_ABSTIME, pointer, None)
        if code not in (0, errno.EINTR):
            raise OSError(code, f"clock_nanosleep: {os.strerror(code)}")

    return sleep_until


@dataclass(frozen=True)
class Grant:
    """One thing that real time asks of the system, and whether it was granted."""

    name: str
    granted: bool
    detail: str

    def __str__(self) -> str:
        return f"{self.name}: {'granted' if self.granted else 'refused'} ({self.detail})"


def request_real_time(priority: int) -> list[Grant]:
    """Ask for real-time scheduling, locked memory and no garbage collection, for this process; what is refused is left out.

    Args:
        priority: priority under SCHED_FIFO, 1 to 99; 0 only turns the garbage collector off.
    """
    grants = []
    if priority > 0:
        grants.append(_ask("scheduler", f"SCHED_FIFO {priority}", lambda: _set_fifo(priority)))
        grants.append(_ask("memory", "mlockall", _lock_memory))
    gc.collect()
    gc.freeze()
    gc.disable()
    return [*grants, Grant("garbage collector", True, "off")]


def _ask(name: str, what: str, action: Callable[[], None]) -> Grant:
    try:
        action()
    except (OSError, AttributeError, ValueError) as error:
        return Grant(name, False, f"{what}: {getattr(error, 'strerror', None) or error}")
    return Grant(name, True, what)


def _set_fifo(priority: int) -> None:
    os.sched_setscheduler(0, os.SCHED_FIFO | os.SCHED_RESET_ON_FORK, os.sched_param(priority))


def _lock_memory() -> None:
    limit = resource.getrlimit(resource.RLIMIT_MEMLOCK)[0]
    unlimited = os.geteuid() == 0 or limit == resource.RLIM_INFINITY
    # Under a limit, locking future pages too would make a later allocation fail in the middle of the run.
    flags = _MCL_CURRENT | (_MCL_FUTURE if unlimited else 0)
    library = ctypes.CDLL(None, use_errno=True)
    if library.mlockall(flags) != 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))


class DurationHistogram:
    """Counts of durations, in a fixed amount of memory however long a run lasts.

    Bins grow with the value: 128 to each power of two, so a percentile is at most 1/128 above the exact one. Smallest, largest,
    mean and standard deviation are exact. Negative values count as 0.
    """

    _SUB_BITS = 7

    def __init__(self) -> None:
        self._counts = [0] * (64 << self._SUB_BITS)
        self.count = 0
        self._sum_ns = 0
        self._sum_of_squares = 0
        self._min_ns = 0
        self._max_ns = 0

    def add(self, value_ns: int) -> None:
        """Count one duration."""
        value = value_ns if value_ns > 0 else 0
        self._counts[self._bin(value)] += 1
        self._min_ns = value if self.count == 0 or value < self._min_ns else self._min_ns
        self._max_ns = value if value > self._max_ns else self._max_ns
        self._sum_ns += value
        self._sum_of_squares += value * value
        self.count += 1

    @property
    def mean_ns(self) -> float:
        """Mean of all durations, 0 when there are none."""
        return self._sum_ns / self.count if self.count else 0.0

    @property
    def std_ns(self) -> float:
        """Standard deviation of all durations, 0 when there are none."""
        if not self.count:
            return 0.0
        # in whole numbers, where the difference of the two large terms is exact
        return math.sqrt(self._sum_of_squares * self.count - self._sum_ns * self._sum_ns) / self.count

    def percentile_ns(self, percent: float) -> int:
        """Return a value that ``percent`` of the durations do not exceed; 0 when nothing was counted."""
        wanted = percent / 100.0 * self.count
        seen = 0
        for index, count in enumerate(self._counts):
            seen += count
            if count and seen >= wanted:
                return min(self._upper_edge(index), self._max_ns)
        return self._max_ns

    def summary_us(self) -> dict[str, float]:
        """Return count, mean, min, p50, p99, p99.9 and max; the durations in microseconds."""
        percentiles = {f"p{percent:g}": self.percentile_ns(percent) for percent in (50, 99, 99.9)}
        values = {"mean": self.mean_ns, "min": self._min_ns, **percentiles, "max": self._max_ns}
        return {"count": self.count, **{name: round(value * 1e-3, 3) for name, value in values.items()}}

    def _bin(self, value: int) -> int:
        shift = value.bit_length() - self._SUB_BITS - 1
        # Below 256 each value has a bin of its own; above, the eight leading bits choose the bin.
        return value if shift <= 0 else (shift << self._SUB_BITS) + (value >> shift)

    def _upper_edge(self, index: int) -> int:
        shift = (index >> self._SUB_BITS) - 1
        if shift <= 0:
            return index
        return (((index & ((1 << self._SUB_BITS) - 1)) + (1 << self._SUB_BITS) + 1) << shift) - 1
