import os
import signal
import threading
import time

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dpg_robot.deploy.clock import AbsoluteClock, DurationHistogram, make_sleep_until, request_real_time
from dpg_robot.deploy.loop_report import Periodicity

PERIOD_NS = 5_000_000


def wait_on_grid(clock, ticks):
    """Return the times at which ``ticks`` waits ended, checked to lie at or after their grid points."""
    times = []
    for _ in range(ticks):
        index, latency_ns = clock.wait()
        now_ns = time.monotonic_ns()
        assert 0 <= latency_ns <= now_ns - clock.deadline_ns(index)
        times.append(now_ns)
    return times


def test_ticks_follow_the_grid_without_drift():
    clock = AbsoluteClock(PERIOD_NS)
    wait_on_grid(clock, 40)
    assert clock.index == 40 + clock.missed


def test_an_overrun_skips_whole_periods_and_stays_on_the_grid():
    clock = AbsoluteClock(PERIOD_NS)
    before, _ = clock.wait()
    missed = clock.missed
    time.sleep(3.5 * PERIOD_NS * 1e-9)
    index, _ = clock.wait()
    assert index - before >= 4
    assert clock.missed - missed == index - before - 1
    assert time.monotonic_ns() >= clock.deadline_ns(index)
    assert (clock.deadline_ns(index) - clock.deadline_ns(before)) % PERIOD_NS == 0


def test_planned_work_between_ticks_is_not_counted_as_missed():
    clock = AbsoluteClock(PERIOD_NS)
    before, _ = clock.wait()
    missed = clock.missed
    time.sleep(3.5 * PERIOD_NS * 1e-9)
    clock.resume()
    skipped_by_now = clock.missed
    index, _ = clock.wait()
    assert skipped_by_now == missed
    assert index >= before + 4


def test_a_cancelled_clock_returns_at_once_also_in_the_middle_of_a_wait():
    clock = AbsoluteClock(60_000_000_000)
    previous = signal.signal(signal.SIGUSR1, lambda number, frame: clock.cancel())
    try:
        threading.Timer(0.05, os.kill, (os.getpid(), signal.SIGUSR1)).start()
        begin_s = time.monotonic()
        clock.wait()
        assert time.monotonic() - begin_s < 30.0
    finally:
        signal.signal(signal.SIGUSR1, previous)


def test_without_clock_nanosleep_the_clock_still_keeps_the_grid(monkeypatch):
    monkeypatch.setattr("dpg_robot.deploy.clock.ctypes.CDLL", lambda name: object())
    wait_on_grid(AbsoluteClock(PERIOD_NS, make_sleep_until()), 10)


def test_a_period_that_is_not_positive_is_refused():
    with pytest.raises(ValueError, match="positive"):
        AbsoluteClock(0)


@given(st.lists(st.integers(0, 2**40), min_size=1, max_size=200), st.sampled_from([50.0, 99.0, 99.9, 100.0]))
def test_percentiles_are_at_most_a_128th_above_the_exact_ones(values, percent):
    histogram = DurationHistogram()
    for value in values:
        histogram.add(value)
    exact = int(np.sort(values)[int(np.ceil(percent / 100 * len(values))) - 1])
    assert exact <= histogram.percentile_ns(percent) <= exact * (1 + 1 / 128)
    assert histogram.summary_us()["max"] == round(max(values) * 1e-3, 3)
    assert histogram.mean_ns == pytest.approx(np.mean(values))
    assert histogram.std_ns == pytest.approx(np.std(values), abs=1.0, rel=1e-6)


@pytest.mark.parametrize(
    ("periods_ms", "level", "mean_error_hz", "std_hz"),
    [
        ([10.0] * 100, "ok", 0.0, 0.0),
        ([10.4] * 100, "ok", 3.85, 0.0),
        ([10.6] * 100, "warning", 5.66, 0.0),
        ([9.2, 10.8] * 50, "warning", 0.0, 8.0),
        ([5.0, 15.0] * 50, "error", 0.0, 50.0),
        ([20.0] * 100, "error", 50.0, 0.0),
    ],
)
def test_a_loop_is_judged_by_how_far_its_rate_is_off_and_how_much_it_varies(periods_ms, level, mean_error_hz, std_hz):
    histogram = DurationHistogram()
    for period_ms in periods_ms:
        histogram.add(round(period_ms * 1e6))
    periodicity = Periodicity.judge(histogram, 100.0)
    assert periodicity.level == level
    assert (periodicity.mean_error_hz, periodicity.std_hz) == pytest.approx((mean_error_hz, std_hz), abs=0.01)


def test_a_histogram_without_values_is_all_zero():
    assert set(DurationHistogram().summary_us().values()) == {0}


def ask_in_a_process(body):
    """Run ``body`` in a forked process, which real-time settings then end with; returns what it writes."""
    read, write = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            os.write(write, body().encode())
        finally:
            os._exit(0)
    os.close(write)
    os.waitpid(pid, 0)
    with os.fdopen(read) as pipe:
        return pipe.read()


def test_what_the_system_refuses_is_said_with_the_reason_and_nothing_fails():
    def ask():
        os.setgroups([])
        os.setuid(65534)
        import resource

        resource.setrlimit(resource.RLIMIT_MEMLOCK, (0, 0))
        resource.setrlimit(resource.RLIMIT_RTPRIO, (0, 0))
        return "\n".join(map(str, request_real_time(80)))

    if os.geteuid() != 0:
        pytest.skip("needs root, to give its rights away")
    said = ask_in_a_process(ask)
    assert "scheduler: refused (SCHED_FIFO 80: Operation not permitted)" in said
    assert "memory: refused" in said
    assert "garbage collector: granted" in said


def test_priority_zero_asks_nothing_of_the_system():
    def ask():
        import gc

        names = [grant.name for grant in request_real_time(0)]
        return f"{names} {gc.isenabled()} {os.sched_getscheduler(0)}"

    assert ask_in_a_process(ask) == f"['garbage collector'] False {os.SCHED_OTHER}"
