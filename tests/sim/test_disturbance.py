"""Disturbances, each measured from outside against its settings.

Tolerances of statistical tests are four standard errors of what is estimated; seeds are fixed.
"""

import dataclasses
import functools
import math
from pathlib import Path

import mujoco
import numpy as np
import pytest

import sim
from dpg_robot.config import dump_config, load_config
from dpg_robot.errors import ConfigError
from sim.disturbance import DISTURBANCE_PRESETS, Disturbance, Disturbances
from sim.physics import Physics
from sim.suite_model import load_suite_model

DT = 0.02
ACTIONS, OBSERVATIONS = 6, 5
EVERYTHING = Disturbance(
    action_delay=(1, 4),
    action_loss_probability=0.2,
    action_repetition=1,
    action_quantization=0.05,
    action_noise=0.2,
    action_noise_time_s=0.1,
    observation_noise=0.3,
    observation_noise_time_s=0.2,
    observation_quantization=0.01,
    stuck_probability=0.1,
    stuck_steps=2,
    dropped_probability=0.1,
    dropped_steps=3,
    observation_delay=(0, 3),
    dummy_observations=3,
    reward_delay=(2, 5),
    push_rate_hz=20.0,
    push_force=(1.0, 2.0),
    push_duration_s=(0.02, 0.1),
)


@functools.cache
def cheetah() -> mujoco.MjModel:
    return load_suite_model("cheetah")


class World:
    """Disturbances of N cheetahs, and what their agents send and get."""

    def __init__(self, num_envs, seed=0, **settings):
        self.num_envs = num_envs
        self.everyone = np.arange(num_envs)
        self.physics = Physics(cheetah(), num_envs, 1)
        self.disturbances = Disturbances(
            Disturbance(**settings), self.physics.num_envs, self.physics.model.nu, OBSERVATIONS, DT, self.physics
        )
        self.random = np.random.default_rng(seed)
        self.signals = np.random.default_rng(1)
        self.first = self.restart(self.everyone, np.zeros((num_envs, OBSERVATIONS)))

    def restart(self, ids, observations):
        return self.disturbances.restart(ids, observations.astype(np.float32), self.random)

    def act(self, steps):
        """Send uniform noise for ``steps``; returns sent, in effect and noisy, (steps, N, A) each."""
        sent = self.signals.uniform(-1, 1, (steps, self.num_envs, ACTIONS))
        got = [self.disturbances.act(actions, self.random) for actions in sent]
        return sent, np.stack([pair[0] for pair in got]), np.stack([pair[1] for pair in got])

    def sense(self, shown):
        """Show observations (steps, N, O); returns what the agents get, (steps, N, O + dummies)."""
        return np.stack([self.disturbances.sense(values.astype(np.float32), self.random) for values in shown])

    def still(self, steps, value=0.0):
        return self.sense(np.full((steps, self.num_envs, OBSERVATIONS), value))


def lag_of_peak(sent, got, longest=12):
    """Return the lag (steps) at which (steps, M) series correlate most, and the correlation there."""
    length = len(sent) - longest
    correlation = [np.corrcoef(sent[longest - lag :][:length].ravel(), got[longest:].ravel())[0, 1] for lag in range(longest)]
    return int(np.argmax(correlation)), max(correlation)


def runs_of(mask):
    """Return the lengths of the runs of True along the first axis of (steps, M) that neither begin nor end with it."""
    lengths = []
    for column in mask.T:
        edges = np.flatnonzero(np.diff(column.astype(int)))
        starts, ends = edges[~column[edges]], edges[column[edges]]
        ends = ends[ends > starts[0]] if len(starts) else ends[:0]
        lengths += list(ends - starts[: len(ends)])
    return np.array(lengths)


# nothing


def test_no_disturbance_changes_nothing():
    world = World(4)
    actions = np.full((4, ACTIONS), 0.3)
    in_effect, noisy = world.disturbances.act(actions, world.random)
    assert in_effect is actions
    assert noisy is actions
    shown = np.random.default_rng(0).standard_normal((4, OBSERVATIONS)).astype(np.float32)
    sensed = world.disturbances.sense(shown, world.random)
    np.testing.assert_array_equal(sensed, shown)
    assert not np.shares_memory(sensed, shown)
    reward = np.arange(4.0)
    np.testing.assert_array_equal(world.disturbances.deliver(reward), reward)
    np.testing.assert_array_equal(world.disturbances.undelivered(world.everyone), 0.0)
    world.disturbances.push(world.random)
    assert (world.physics.data("xfrc_applied") == 0).all()
    assert world.disturbances.state_dict() == {}
    assert world.random.bit_generator.state == np.random.default_rng(0).bit_generator.state, "nothing was drawn"


def test_what_comes_in_is_neither_changed_nor_kept():
    world = World(8, **dataclasses.asdict(EVERYTHING))
    twin = World(8, **dataclasses.asdict(EVERYTHING))
    for step in range(30):
        actions, shown = np.full((8, ACTIONS), 0.01 * step), np.full((8, OBSERVATIONS), 0.1 * step, dtype=np.float32)
        reward = np.full(8, float(step))
        results = []
        for one in (world, twin):
            given = actions.copy(), shown.copy(), reward.copy()
            out = (*one.disturbances.act(given[0], one.random), one.disturbances.sense(given[1], one.random))
            out = (*out, one.disturbances.deliver(given[2]))
            for before, after in zip((actions, shown, reward), given, strict=True):
                np.testing.assert_array_equal(before, after)
            results.append(tuple(values.copy() for values in out))
            if one is twin:  # a caller may write into all that went in and came out
                for values in (*given, *out):
                    values[:] = 77.0
        for expected, got in zip(*results, strict=True):
            np.testing.assert_array_equal(expected, got)


# the action's side


@pytest.mark.parametrize("delay", [1, 5])
def test_commands_take_effect_after_the_delay_and_are_neutral_before(delay):
    sent, in_effect, noisy = World(20, action_delay=delay).act(100)
    assert lag_of_peak(sent.reshape(100, -1), in_effect.reshape(100, -1)) == (delay, pytest.approx(1.0))
    np.testing.assert_array_equal(in_effect[delay:], sent[:-delay])
    np.testing.assert_array_equal(in_effect[:delay], 0.0)
    np.testing.assert_array_equal(noisy, in_effect)


def test_a_range_of_delays_gives_each_episode_one_of_them():
    world = World(1000, action_delay=(0, 3), observation_delay=(1, 2))
    for _ in range(2):
        world.restart(world.everyone, np.zeros((1000, OBSERVATIONS)))
        _, in_effect, _ = world.act(8)
        waited = (in_effect[:, :, 0] == 0).sum(axis=0)
        seen = (world.still(8, value=1.0)[:, :, 0] == 0).sum(axis=0)
        np.testing.assert_allclose(np.bincount(waited) / 1000, [0.25] * 4, atol=4 * math.sqrt(0.25 * 0.75 / 1000))
        np.testing.assert_allclose(np.bincount(seen) / 1000, [0, 0.5, 0.5], atol=4 * math.sqrt(0.25 / 1000))
        assert abs(np.corrcoef(waited, seen)[0, 1]) < 4 / math.sqrt(1000)


def test_a_lost_command_leaves_the_one_before_in_effect():
    steps, num_envs, probability = 400, 30, 0.3
    sent, in_effect, _ = World(num_envs, action_loss_probability=probability).act(steps)
    before = np.concatenate([np.zeros((1, num_envs, ACTIONS)), in_effect[:-1]])
    arrived = (in_effect == sent).all(axis=2)
    np.testing.assert_array_equal(in_effect, np.where(arrived[:, :, None], sent, before))
    lost = ~arrived
    assert lost.mean() == pytest.approx(probability, abs=4 * math.sqrt(probability * (1 - probability) / lost.size))
    together = (lost[1:] & lost[:-1]).mean()
    assert together == pytest.approx(probability**2, abs=4 * math.sqrt(probability**2 / lost.size)), "losses are independent"


@pytest.mark.parametrize("repetition", [1, 2, 3])
@pytest.mark.parametrize("delay", [0, 3, 4])
def test_a_command_that_takes_effect_is_held_for_so_many_further_steps(repetition, delay):
    sent, in_effect, _ = World(5, action_repetition=repetition, action_delay=delay).act(60)
    for step in range(delay, 60):
        taken = step - (step - delay) % (repetition + 1)
        np.testing.assert_array_equal(in_effect[step], sent[taken - delay])


def test_a_lost_command_does_not_begin_a_hold():
    _, in_effect, _ = World(200, action_repetition=2, action_loss_probability=0.5).act(300)
    changed = np.diff(in_effect[:, :, 0], axis=0) != 0
    held = np.concatenate([np.diff(np.flatnonzero(column)) for column in changed.T])
    assert held.min() == 3
    # once the hold is over, each step brings the next command with probability 1/2
    for extra in range(3):
        share = 0.5 ** (extra + 1)
        assert np.mean(held == 3 + extra) == pytest.approx(share, abs=4 * math.sqrt(share * (1 - share) / len(held)))


@pytest.mark.parametrize("grid", [0.1, 0.25, 0.3, 0.6, 1.0])
def test_commands_lie_on_the_grid_and_within_the_limits(grid):
    world = World(50, action_quantization=grid)
    sent, in_effect, noisy = world.act(50)
    np.testing.assert_allclose(in_effect / grid, np.rint(in_effect / grid), atol=1e-9)
    assert np.abs(in_effect).max() <= 1.0
    inner = np.abs(sent) <= math.floor(1 / grid + 1e-9) * grid
    assert np.abs(in_effect - sent)[inner].max() <= grid / 2 + 1e-9
    np.testing.assert_array_equal(noisy, in_effect)
    np.testing.assert_array_equal(
        world.disturbances.act(np.ones((50, ACTIONS)), world.random)[0].max(), math.floor(1 / grid) * grid
    )


def test_actuator_noise_has_its_spread_and_is_not_in_the_command_in_effect():
    world = World(100, action_noise=0.15)
    actions = np.full((100, ACTIONS), 0.2)
    pairs = [world.disturbances.act(actions, world.random) for _ in range(100)]
    assert all(in_effect is actions for in_effect, _ in pairs)
    error = np.stack([noisy for _, noisy in pairs]) - 0.2
    count = error.size
    assert error.mean() == pytest.approx(0.0, abs=4 * 0.15 / math.sqrt(count))
    assert error.std() == pytest.approx(0.15, rel=4 / math.sqrt(2 * count))
    assert abs(np.mean(error[1:] * error[:-1])) / 0.15**2 < 4 / math.sqrt(count), "white"
    assert np.abs(np.corrcoef(error.reshape(100, -1)[:, :60].T) - np.eye(60)).max() < 5.5 / math.sqrt(100)


def test_a_noisy_actuator_does_not_exceed_its_limits():
    world = World(100, action_noise=0.5)
    _, noisy = world.disturbances.act(np.ones((100, ACTIONS)), world.random)
    assert noisy.max() == 1.0
    assert noisy.min() < 0.5


# the observation's side


@pytest.mark.parametrize("time_s", [0.0, 0.05, 0.4])
@pytest.mark.parametrize("side", ["action", "observation"])
def test_noise_is_stationary_and_correlated_for_its_time(side, time_s):
    num_envs, steps, std = 2000, 60, 0.2
    world = World(num_envs, **{f"{side}_noise": std, f"{side}_noise_time_s": time_s})
    if side == "action":
        neutral = np.zeros((num_envs, ACTIONS))
        noise = np.stack([world.disturbances.act(neutral, world.random)[1][:, 0] for _ in range(steps)])
    else:
        noise = np.concatenate([world.first[None], world.still(steps)])[:, :, 0]
    # one number per environment, so that the samples are independent
    np.testing.assert_allclose(noise.std(axis=1), std, rtol=4.5 / math.sqrt(2 * num_envs))
    np.testing.assert_allclose(noise.mean(axis=1), 0.0, atol=4.5 * std / math.sqrt(num_envs))
    for lag in (1, 2, 10, 40):
        expected = math.exp(-lag * DT / time_s) if time_s > 0 else 0.0
        got = np.mean(noise[3] * noise[3 + lag]) / std**2
        assert got == pytest.approx(expected, abs=4 * math.sqrt((1 + expected**2) / num_envs))


def test_observation_noise_is_independent_between_numbers_and_environments_and_has_the_type_of_observations():
    noise = World(40, observation_noise=0.3, observation_noise_time_s=0.01).still(2000)
    assert noise.dtype == np.float32
    assert np.abs(np.corrcoef(noise.reshape(2000, -1).T) - np.eye(200)).max() < 6 / math.sqrt(2000)


def test_observations_lie_on_the_grid_noise_included():
    world = World(50, observation_noise=1.0, observation_quantization=0.25)
    sensed = np.concatenate([world.first[None], world.still(100)])
    np.testing.assert_array_equal(sensed * 4, np.rint(sensed * 4))
    # rounding adds the variance of a uniform error
    assert sensed.std() == pytest.approx(math.sqrt(1 + 0.25**2 / 12), rel=4 / math.sqrt(2 * sensed.size))


@pytest.mark.parametrize(("probability", "length"), [(0.05, 5), (0.3, 1), (0.02, 10)])
@pytest.mark.parametrize("fault", ["stuck", "dropped"])
def test_faulty_sensors_are_as_frequent_and_as_long_as_said(fault, probability, length):
    steps, num_envs = 400, 200
    world = World(num_envs, **{f"{fault}_probability": probability, f"{fault}_steps": length})
    shown = 1.0 + np.arange(steps)[:, None, None] + np.zeros((steps, num_envs, OBSERVATIONS))
    sensed = world.sense(shown)
    faulty = sensed != shown
    if fault == "dropped":
        np.testing.assert_array_equal(sensed[faulty], 0.0)
    else:
        last = np.concatenate([world.first[None], sensed[:-1]])
        np.testing.assert_array_equal(sensed[faulty], last[faulty])
    faulty = faulty.reshape(steps, -1)
    lengths = runs_of(faulty)
    np.testing.assert_array_equal(lengths % length, 0, "whole runs, of which several may follow each other")
    # when a run is over, another one follows at once with the same probability
    single = np.mean(lengths == length)
    assert single == pytest.approx(1 - probability, abs=4 * math.sqrt(probability * (1 - probability) / len(lengths)))
    share = probability * length / (probability * length + 1 - probability)
    effective = faulty.size / length  # the steps of one run are not independent
    assert faulty.mean() == pytest.approx(share, abs=4 * math.sqrt(share * (1 - share) / effective))
    per_step = faulty.mean(axis=1)
    assert np.abs(per_step[20:] - share).max() < 5 * math.sqrt(share * (1 - share) / faulty.shape[1])


def test_the_first_observation_of_an_episode_may_be_dropped_and_is_never_stuck_at_an_older_one():
    world = World(1000, dropped_probability=0.3, dropped_steps=1, stuck_probability=0.5)
    world.still(5, value=3.0)
    first = world.restart(world.everyone, np.ones((1000, OBSERVATIONS)))
    assert set(np.unique(first)) == {0.0, 1.0}
    assert np.mean(first == 0) == pytest.approx(0.3, abs=4 * math.sqrt(0.3 * 0.7 / first.size))


def test_sensors_fail_each_on_its_own():
    dropped = World(40, dropped_probability=0.2, dropped_steps=1).still(1000, value=1.0) == 0
    correlation = np.corrcoef(dropped.reshape(1000, -1).T)
    assert np.abs(correlation - np.eye(200)).max() < 6 / math.sqrt(1000)


def test_a_dropped_sensor_may_also_be_stuck_at_something_else_but_reads_0():
    sensed = World(20, stuck_probability=1.0, dropped_probability=0.5, dropped_steps=1, observation_noise=1.0).still(50)
    stuck_at = sensed.max(axis=0) + sensed.min(axis=0)  # the one value that is not 0
    assert set(np.unique(sensed == stuck_at)) == {True, False}
    np.testing.assert_array_equal(sensed, np.where(sensed == 0, 0, stuck_at))


@pytest.mark.parametrize("delay", [1, 6])
def test_observations_arrive_after_the_delay_and_the_first_one_until_then(delay):
    world = World(10, observation_delay=delay)
    first = world.restart(world.everyone, np.full((10, OBSERVATIONS), 9.0))
    shown = world.signals.standard_normal((80, 10, OBSERVATIONS)).astype(np.float32)
    sensed = world.sense(shown)
    assert lag_of_peak(shown.reshape(80, -1), sensed.reshape(80, -1)) == (delay, pytest.approx(1.0))
    np.testing.assert_array_equal(sensed[delay:], shown[:-delay])
    np.testing.assert_array_equal(sensed[:delay], 9.0)
    np.testing.assert_array_equal(first, 9.0)


def test_dummies_are_standard_normal_and_independent_of_all_else():
    world = World(50, dummy_observations=4, observation_delay=2, observation_quantization=0.5, dropped_probability=0.5)
    assert world.disturbances.num_observations == OBSERVATIONS + 4
    assert world.disturbances.dummy_names == ("dummy_0", "dummy_1", "dummy_2", "dummy_3")
    assert world.first.shape == (50, OBSERVATIONS + 4)
    sensed = world.sense(world.signals.standard_normal((500, 50, OBSERVATIONS)))
    assert sensed.dtype == np.float32
    dummies, count = sensed[:, :, OBSERVATIONS:], 500 * 50
    assert len(np.unique(dummies)) > 0.99 * dummies.size, "neither quantized nor dropped"
    np.testing.assert_allclose(dummies.reshape(-1, 4).mean(axis=0), 0.0, atol=4 / math.sqrt(count))
    np.testing.assert_allclose(dummies.reshape(-1, 4).std(axis=0), 1.0, rtol=4 / math.sqrt(2 * count))
    np.testing.assert_allclose((dummies**4).mean(), 3.0, atol=4 * math.sqrt(96 / dummies.size))
    correlation = np.corrcoef(sensed.reshape(count, -1).T)[OBSERVATIONS:, :]
    np.testing.assert_allclose(correlation[:, OBSERVATIONS:], np.eye(4), atol=4.5 / math.sqrt(count))
    np.testing.assert_allclose(correlation[:, :OBSERVATIONS], 0.0, atol=4.5 / math.sqrt(count))
    assert abs(np.mean(dummies[1:] * dummies[:-1])) < 4 / math.sqrt(dummies.size)


# rewards


@pytest.mark.parametrize("delay", [0, 10, (3, 7)])
def test_rewards_arrive_late_and_none_is_lost(delay):
    world = World(40, reward_delay=delay)
    earned = world.signals.random((30, 40))
    delivered = np.stack([world.disturbances.deliver(reward) for reward in earned])
    longest = delay[1] if isinstance(delay, tuple) else delay
    late = (delivered == 0).sum(axis=0)
    assert late.max() == longest
    for env in range(40):
        np.testing.assert_array_equal(delivered[late[env] :, env], earned[: 30 - late[env], env])
    ids = np.array([3, 17])
    paid = delivered.sum(axis=0)[ids] + world.disturbances.undelivered(ids)
    np.testing.assert_allclose(paid, earned.sum(axis=0)[ids])
    np.testing.assert_array_equal(world.disturbances.undelivered(ids), 0.0)


# episodes


def test_a_new_episode_knows_nothing_of_the_one_before():
    settings = {"action_delay": 3, "action_repetition": 2, "observation_delay": 4, "stuck_probability": 0.5, "stuck_steps": 3}
    world = World(60, **settings, reward_delay=5, push_rate_hz=500.0, push_force=1.0)
    for _ in range(10):
        world.disturbances.act(np.full((60, ACTIONS), 0.9), world.random)
        world.disturbances.push(world.random)
        world.disturbances.deliver(np.full(60, 0.9))
        world.disturbances.sense(np.full((60, OBSERVATIONS), 0.9, dtype=np.float32), world.random)
    ids, others = np.arange(0, 60, 2), np.arange(1, 60, 2)
    assert (world.restart(ids, np.full((30, OBSERVATIONS), 0.1)) == np.float32(0.1)).all()
    forces = world.physics.data("xfrc_applied")
    assert (forces[ids] == 0).all()
    assert (forces[others] != 0).any(axis=(1, 2)).all()
    for step in range(10):
        in_effect, _ = world.disturbances.act(np.full((60, ACTIONS), 0.1), world.random)
        reward = world.disturbances.deliver(np.full(60, 0.1))
        sensed = world.disturbances.sense(np.full((60, OBSERVATIONS), 0.1, dtype=np.float32), world.random)
        assert set(np.unique(in_effect[ids])) <= {0.0, 0.1}
        assert set(np.unique(reward[ids])) <= {0.0, 0.1}
        assert (sensed[ids] == np.float32(0.1)).all()
        if step == 0:
            np.testing.assert_array_equal(in_effect[others], 0.9)
            np.testing.assert_array_equal(reward[others], 0.9)
            assert (sensed[others] != np.float32(0.1)).all()


def test_correlated_noise_begins_anew_with_each_episode():
    world = World(3000, observation_noise=1.0, observation_noise_time_s=1e6, action_noise=0.1, action_noise_time_s=1e6)
    neutral = np.zeros((3000, ACTIONS))
    before = world.still(1)[0], world.disturbances.act(neutral, world.random)[1]
    ids = np.arange(0, 3000, 2)
    world.restart(ids, np.zeros((1500, OBSERVATIONS)))
    after = world.still(1)[0], world.disturbances.act(neutral, world.random)[1]
    for old, new in zip(before, after, strict=True):
        assert abs(np.corrcoef(old[ids, 0], new[ids, 0])[0, 1]) < 4 / math.sqrt(1500)
        np.testing.assert_allclose(old[1::2], new[1::2], atol=0.01)


# memory and seeds


def course(world, steps):
    """Return all that disturbances give in ``steps`` with fixed inputs, some episodes ending on the way."""
    out, inputs = [], np.random.default_rng(5)
    for step in range(steps):
        actions = inputs.uniform(-1, 1, (world.num_envs, ACTIONS))
        shown = inputs.standard_normal((world.num_envs, OBSERVATIONS)).astype(np.float32)
        out += world.disturbances.act(actions, world.random)
        world.disturbances.push(world.random)
        out.append(world.physics.data("xfrc_applied").copy())
        out.append(world.disturbances.sense(shown, world.random))
        out.append(world.disturbances.deliver(shown[:, 0].astype(np.float64)))
        if step % 5 == 4:
            out.append(world.disturbances.undelivered(np.array([1, 2])))
            out.append(world.restart(np.array([1, 2]), shown[1:3]))
    return np.concatenate([values.ravel() for values in out])


def test_a_saved_state_continues_the_same():
    world, other = (World(10, seed, **dataclasses.asdict(EVERYTHING)) for seed in (0, 9))
    course(world, 23)
    course(other, 7)
    saved = world.disturbances.state_dict() | world.physics.state_dict(), world.random.bit_generator.state
    expected = course(world, 23)
    other.physics.load_state_dict(saved[0])
    other.disturbances.load_state_dict({k: v for k, v in saved[0].items() if not k.startswith(("physics.", "model."))})
    other.random.bit_generator.state = saved[1]
    np.testing.assert_array_equal(course(other, 23), expected)


def test_every_memory_counts():
    world = World(10, **dataclasses.asdict(EVERYTHING))
    course(world, 23)
    physics, random = world.physics.state_dict(), world.random.bit_generator.state
    state = world.disturbances.state_dict()

    def continued(changed):
        world.physics.load_state_dict(physics)
        world.disturbances.load_state_dict(state | changed)
        world.random.bit_generator.state = random
        return course(world, 23)

    expected = continued({})
    for name, values in state.items():
        other = np.zeros_like(values) if values.any() else values + 1
        assert not np.array_equal(continued({name: other}), expected), f"{name} is saved for nothing"


def test_a_state_of_other_disturbances_is_refused():
    world = World(3, action_delay=2)
    for other in (World(3), World(3, action_delay=3), World(4, action_delay=2), World(3, action_delay=2, reward_delay=1)):
        with pytest.raises(ValueError, match=r"the state is not of these disturbances: got .*expected .*saved with"):
            world.disturbances.load_state_dict(other.disturbances.state_dict())


def test_the_seed_decides_everything():
    first, again, other = (course(World(6, seed, **dataclasses.asdict(EVERYTHING)), 15) for seed in (3, 3, 4))
    np.testing.assert_array_equal(first, again)
    assert np.mean(first == other) < 0.9


@pytest.mark.parametrize(
    ("settings", "remembers"),
    [
        ({}, False),
        ({"observation_noise": 0.1, "observation_quantization": 0.1, "dummy_observations": 3}, False),
        ({"action_delay": 3, "action_repetition": 2, "reward_delay": 4, "action_noise_time_s": 1.0, "action_noise": 0.1}, False),
        ({"observation_noise": 0.1, "observation_noise_time_s": 0.1}, True),
        ({"stuck_probability": 0.1}, True),
        ({"dropped_probability": 0.1}, True),
        ({"observation_delay": 1}, True),
        ({"observation_delay": (0, 1)}, True),
    ],
)
def test_sensors_with_a_memory_say_so(settings, remembers):
    assert World(2, **settings).disturbances.remembers is remembers


# settings


def test_the_challenges_are_those_of_the_real_world_rl_suite():
    table = {  # delays of action, observation, reward; noise; probability and steps of dropped and stuck; repetition; dummies
        "easy": (3, 3, 10, 0.1, 0.01, 1, 1, 10),
        "medium": (6, 6, 20, 0.3, 0.05, 5, 2, 20),
        "hard": (9, 9, 40, 1.0, 0.1, 10, 3, 50),
    }
    for name, (action, observation, reward, noise, probability, steps, repetition, dummies) in table.items():
        assert DISTURBANCE_PRESETS[name] == Disturbance(
            action_delay=action,
            observation_delay=observation,
            reward_delay=reward,
            action_noise=noise,
            observation_noise=noise,
            stuck_probability=probability,
            stuck_steps=steps,
            dropped_probability=probability,
            dropped_steps=steps,
            action_repetition=repetition,
            dummy_observations=dummies,
        )


def test_the_presets_are_calm_and_restless():
    assert DISTURBANCE_PRESETS["none"] == Disturbance()
    default = DISTURBANCE_PRESETS["default"]
    assert min(default.action_noise, default.observation_noise, default.push_rate_hz, default.push_force) > 0


WHOLE = ("action_repetition", "stuck_steps", "dropped_steps", "dummy_observations")
DELAYS = ("action_delay", "observation_delay", "reward_delay")


@pytest.mark.parametrize("name", [field.name for field in dataclasses.fields(Disturbance)])
@pytest.mark.parametrize("value", [-1, math.nan, math.inf, "3", None])
def test_values_that_make_no_sense_are_refused_by_name(name, value):
    with pytest.raises(ValueError, match=f"^{name} must be .*got {value!r}"):
        Disturbance(**{name: value})


@pytest.mark.parametrize(
    ("name", "value"),
    [(name, 1.5) for name in (*WHOLE, *DELAYS)]
    + [(name, 0) for name in ("stuck_steps", "dropped_steps")]
    + [(name, 1.01) for name in ("action_loss_probability", "stuck_probability", "dropped_probability", "action_quantization")]
    + [(name, (3, 2)) for name in (*DELAYS, "push_force", "push_duration_s")]
    + [(name, (1, 2, 3)) for name in (*DELAYS, "push_force", "push_duration_s")]
    + [("action_delay", (0.5, 2)), ("push_force", (-1.0, 1.0)), ("push_force", (0.0, math.inf))],
)
def test_values_out_of_their_range_are_refused_by_name(name, value):
    with pytest.raises(ValueError, match=rf"^{name} must be .*got "):
        Disturbance(**{name: value})


def test_settings_survive_a_file(tmp_path):
    dump_config(EVERYTHING, tmp_path / "everything.yaml")
    assert load_config(Disturbance, tmp_path / "everything.yaml") == EVERYTHING


def test_a_file_with_a_wrong_range_is_refused_with_its_line(tmp_path):
    (tmp_path / "d.yaml").write_text("action_noise: 0.1\naction_delay: [3, 1]\n")
    with pytest.raises(ConfigError, match=r"d\.yaml:\d+: .*action_delay must be .*got \(3, 1\)"):
        load_config(Disturbance, tmp_path / "d.yaml")


def test_the_example_file_is_one():
    folder = Path(__file__).parents[2] / "configs" / "disturbance"
    files = sorted(folder.glob("*.yaml"))
    assert files
    for path in files:
        assert load_config(Disturbance, path) != Disturbance()


# in an environment

OBSERVED = {"observation_noise": 0.1, "observation_delay": 2, "stuck_probability": 0.1, "dropped_probability": 0.1}


def make(num_envs, action_repeat=1, **settings):
    return sim.make("cartpole-swingup", num_envs, 0, 1, action_repeat, disturbance=Disturbance(**settings))


def hang_still(env):
    """Put every pole straight down at rest, where force over mass is all that moves the cart."""
    env.set_state(np.tile([0.0, math.pi], (env.num_envs, 1)), np.zeros((env.num_envs, 2)))


def test_noise_is_felt_by_the_cart_anew_at_each_control_step_and_not_paid_by_the_agent():
    single, repeated = make(1500, action_noise=0.15), make(1500, action_repeat=4, action_noise=0.15)
    one = make(1)
    hang_still(one)
    one.step(np.ones((1, 1)))
    velocity_per_action, actions = one.qvel[0, 0], np.full((1500, 1), 0.2)
    for env, controls in ((single, 1), (repeated, 4)):
        hang_still(env)
        env.step(actions)
        felt = env.qvel[:, 0] / (controls * velocity_per_action)
        assert felt.mean() == pytest.approx(0.2, abs=4 * 0.15 / math.sqrt(1500 * controls))
        assert felt.std() == pytest.approx(0.15 / math.sqrt(controls), rel=0.08)  # the mean of independent draws
    hang_still(single)
    reward = single.step(actions).reward
    state = np.concatenate([single.qpos, single.qvel], axis=1)
    np.testing.assert_allclose(reward, single.task.measured_reward(state, actions), atol=1e-6)


def test_disturbed_observations_leave_the_world_alone():
    disturbed, quiet = make(20, **OBSERVED), make(20)
    for env in (disturbed, quiet):
        hang_still(env)
    for step in range(10):
        shown = disturbed.step(np.full((20, 1), 0.1 * step)).obs
        truth = quiet.step(np.full((20, 1), 0.1 * step)).obs
        np.testing.assert_array_equal(disturbed.qpos, quiet.qpos)
        np.testing.assert_array_equal(disturbed.true_obs, truth)
        assert (shown != truth).any(axis=1).all()


@pytest.mark.parametrize("action_repeat", [1, 2, 3])
def test_delays_count_control_steps_whatever_the_action_repeat(action_repeat):
    late, prompt = make(1, action_repeat, action_delay=6), make(1, action_repeat)
    for env in (late, prompt):
        hang_still(env)
    actions = np.random.default_rng(0).uniform(-1, 1, (10, 1, 1))
    moved = [np.abs(late.step(action).obs).ravel() @ [0, 0, 0, 1, 1] for action in actions]
    assert np.flatnonzero(np.array(moved) > 1e-6)[0] == 6 // action_repeat, "it rests until the first command arrives"
    shifted, steps = make(1, 1), 10 * action_repeat
    hang_still(shifted)
    for command in [*np.zeros((6, 1, 1)), *np.repeat(actions, action_repeat, axis=0)][:steps]:
        shifted.step(command)
    np.testing.assert_allclose(late.qpos, shifted.qpos, atol=1e-12)


def test_late_rewards_add_up_to_the_return_of_the_episode_and_none_comes_in_the_next():
    late, prompt = make(3, 100, reward_delay=(5, 30)), make(3, 100)
    actions = np.random.default_rng(0).uniform(-1, 1, (12, 3, 1))
    returns = []
    for env in (late, prompt):
        env.reset()
        env.set_state(np.tile([0.0, 0.3], (3, 1)), np.zeros((3, 2)))
        steps = [env.step(action) for action in actions[:10]]
        assert steps[-1].timeout.all()
        returns.append(np.sum([step.reward for step in steps], axis=0))
    np.testing.assert_allclose(*returns, rtol=1e-5)


def test_the_first_observation_of_an_episode_is_its_own():
    env, truth = make(4, 500, observation_delay=9), []
    env.reset()
    for _ in range(5):
        step = env.step(np.full((4, 1), 0.5))
        if step.timeout.all():
            np.testing.assert_array_equal(step.obs, env.true_obs)
            truth.append(step.obs)
    assert len(truth) == 2
    assert (truth[0] != truth[1]).any()


def test_a_push_moves_the_cart():
    calm, pushed = make(100), make(100, push_rate_hz=100.0, push_force=3.0)
    for env in (calm, pushed):
        hang_still(env)
        env.step(np.zeros((100, 1)))
    assert np.abs(calm.qvel).max() < 1e-9
    moved = np.abs(pushed.qvel[:, 0]) > 1e-6
    assert moved.mean() == pytest.approx(1 - math.exp(-100.0 * 0.01), abs=4 * math.sqrt(0.25 / 100))
