"""The delay line on its own: what is sent arrives, after its delay, once."""

import numpy as np
import pytest

from sim.delay_line import DelayLine


def send(line, steps, num_envs, start=1):
    """Send the numbers of the steps, from ``start``; returns what arrives, (steps, N)."""
    return np.stack([line.apply(np.full((num_envs, 1), float(start + step)))[:, 0] for step in range(steps)])


@pytest.mark.parametrize("delay", [0, 1, 4])
def test_what_is_sent_arrives_after_the_delay_and_before_it_what_the_line_was_filled_with(delay):
    line, random = DelayLine((delay, delay), (2, 1), np.float64), np.random.default_rng(0)
    line.restart(np.arange(2), np.full((2, 1), -1.0), random)
    expected = [-1.0] * delay + list(range(1, 21 - delay))
    np.testing.assert_array_equal(send(line, 20, 2), np.transpose([expected, expected]))


def test_each_environment_has_a_delay_of_its_own_and_all_delays_of_the_range_are_as_likely():
    count = 3000
    line, random = DelayLine((2, 5), (count, 1), np.float32), np.random.default_rng(0)
    line.restart(np.arange(count), np.zeros((count, 1)), random)
    first = line.delay.copy()
    np.testing.assert_array_equal((send(line, 9, count) == 0).sum(axis=0), first)
    line.restart(np.arange(count), np.zeros((count, 1)), random)
    standard_error = np.sqrt(0.25 * 0.75 / count)
    for delays in (first, line.delay):
        np.testing.assert_allclose([np.mean(delays == steps) for steps in (2, 3, 4, 5)], 0.25, atol=4 * standard_error)
    assert np.mean(first == line.delay) == pytest.approx(0.25, abs=4 * standard_error), "drawn anew in each episode"


def test_a_restart_forgets_what_was_under_way_there_and_nowhere_else():
    line, random = DelayLine((3, 3), (3, 1), np.float64), np.random.default_rng(0)
    line.restart(np.arange(3), np.zeros((3, 1)), random)
    send(line, 10, 3)
    line.restart(np.array([1]), np.array([[-5.0]]), random)
    arrived = send(line, 5, 3, start=11)
    np.testing.assert_array_equal(arrived[:, 1], [-5, -5, -5, 11, 12])
    np.testing.assert_array_equal(arrived[:, 0], [8, 9, 10, 11, 12])


@pytest.mark.parametrize("steps", [2, 4, 30])
def test_what_is_under_way_is_what_was_sent_and_has_not_arrived(steps):
    count = 50
    line, random = DelayLine((0, 6), (count, 1), np.float64), np.random.default_rng(0)
    line.restart(np.arange(count), np.zeros((count, 1)), random)
    arrived, ids = send(line, steps, count).sum(axis=0), np.arange(0, count, 2)
    under_way = line.take_under_way(ids)[:, 0]
    np.testing.assert_allclose(arrived[ids] + under_way, steps * (steps + 1) / 2)
    np.testing.assert_array_equal(line.take_under_way(ids), 0.0)
    later = np.stack([line.apply(np.zeros((count, 1)))[:, 0] for _ in range(8)])
    np.testing.assert_array_equal(later[:, ids], 0.0, "what was taken does not arrive")
    others = np.arange(1, count, 2)
    np.testing.assert_allclose((arrived + later.sum(axis=0))[others], steps * (steps + 1) / 2)


def test_what_is_sent_and_what_arrives_is_not_shared_with_the_caller():
    line = DelayLine((1, 1), (1, 1), np.float64)
    sent = np.ones((1, 1))
    line.apply(sent)
    sent[:] = 7.0
    arrived = line.apply(sent)
    assert arrived == 1.0
    arrived[:] = 9.0
    assert line.apply(sent) == 7.0
