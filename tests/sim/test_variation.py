"""How one number is drawn: the fresh kinds by their distributions, the evolving ones by their paths."""

import itertools
import math

import numpy as np
import pytest
from scipy import stats

from sim.variation import EVOLVING, Drawer, Variation, complete

EPISODES = 400


def path(variation, num_envs=1, columns=1, episodes=EPISODES, seed=0):
    """Return the values (episodes, N, C) of consecutive episodes."""
    drawer, random = Drawer(variation, num_envs, columns), np.random.default_rng(seed)
    return np.array([drawer.draw(np.arange(num_envs), random) for _ in range(episodes)])


@pytest.mark.parametrize(
    ("variation", "expected"),
    [
        (Variation("uniform", -1, 3), stats.uniform(-1, 4)),
        (Variation("log_uniform", 0.2, 5.0), stats.loguniform(0.2, 5.0)),
        (Variation("normal", mean=2.0, std=0.5), stats.norm(2, 0.5)),
        (Variation("truncated_normal", low=0.5, high=1.2, mean=1.0, std=0.3), stats.truncnorm(-0.5 / 0.3, 0.2 / 0.3, 1, 0.3)),
    ],
)
def test_fresh_kinds_have_their_distributions(variation, expected):
    drawn = path(variation, num_envs=100, columns=2, episodes=20)
    assert stats.kstest(drawn.ravel(), expected.cdf).pvalue > 1e-3  # fixed seed
    low, high = variation.bounds
    assert low <= drawn.min()
    assert drawn.max() <= high


def test_a_constant_never_changes():
    assert np.unique(path(Variation("constant", start=0.7), 3, 2)) == [0.7]


def test_environments_columns_and_episodes_are_independent():
    drawn = path(Variation("normal", mean=0, std=1), num_envs=2, columns=2, episodes=2000)
    series = np.vstack([drawn[1:].reshape(1999, 4).T, drawn[:-1, 0, 0]])
    assert np.abs(np.corrcoef(series) - np.eye(5)).max() < 4 / math.sqrt(2000)


def test_a_random_walk_takes_normal_steps_inside_its_limits():
    values = path(Variation("random_walk", -100, 100, std=0.5), num_envs=50, episodes=100)[..., 0]
    assert (values[0] == 0).all(), "it begins in the middle"
    steps = np.diff(values, axis=0).ravel()
    assert stats.kstest(steps, stats.norm(0, 0.5).cdf).pvalue > 1e-3
    narrow = path(Variation("random_walk", -1, 1, std=0.5, start=0.9), num_envs=50)
    assert (narrow[0] == 0.9).all()
    assert narrow.min() == -1
    assert narrow.max() == 1


@pytest.mark.parametrize(("kind", "sign", "first", "last"), [("drift_up", 1, 0.0, 2.0), ("drift_down", -1, 2.0, 0.0)])
def test_drifts_move_by_half_normal_steps_to_their_limit_and_stay(kind, sign, first, last):
    values = path(Variation(kind, 0.0, 2.0, std=0.01), num_envs=50)[..., 0]
    assert (values[0] == first).all()
    steps = sign * np.diff(values[:100], axis=0).ravel()  # the limit is 250 mean steps away
    assert stats.kstest(steps, stats.halfnorm(scale=0.01).cdf).pvalue > 1e-3
    assert (values[-1] == last).all()


@pytest.mark.parametrize(("kind", "sign", "first"), [("cyclic_up", 1, 0.0), ("cyclic_down", -1, 2.0)])
def test_cycles_start_anew_at_the_other_limit(kind, sign, first):
    values = path(Variation(kind, 0.0, 2.0, std=0.1), num_envs=20)[..., 0]
    steps = sign * np.diff(values, axis=0)
    again = steps < 0
    assert (values[0] == first).all()
    assert (values[1:][again] == first).all()
    # a cycle takes about 2 / (0.1 sqrt(2 / pi)) = 25 moves
    assert 20 < EPISODES / again.sum(axis=0).mean() < 30
    assert 0 <= values.min() < values.max() <= 2


def test_a_saw_wave_goes_up_to_its_limit_and_then_down_and_up_again():
    values = path(Variation("saw_wave", 0.0, 2.0, std=0.1), num_envs=20)[..., 0]
    for series in values.T:
        direction = 1
        for before, after in itertools.pairwise(series):
            direction = -1 if before == 2.0 else 1 if before == 0.0 else direction
            assert (after - before) * direction > 0
        turns = np.isin(series, (0.0, 2.0)).sum()
        assert 10 < turns < 24  # one way takes about 25 moves


@pytest.mark.parametrize("kind", EVOLVING)
def test_evolving_kinds_move_only_every_so_many_episodes(kind):
    values = path(Variation(kind, 0.0, 10.0, std=0.1, every=3, start=5.0), episodes=30)[:, 0, 0]
    moved = np.flatnonzero(np.diff(values)) + 1
    np.testing.assert_array_equal(moved, np.arange(3, 30, 3))


def test_fresh_kinds_are_kept_for_so_many_episodes():
    values = path(Variation("uniform", 0, 1, every=4), episodes=12)[:, 0, 0]
    assert (values.reshape(3, 4) == values.reshape(3, 4)[:, :1]).all()
    assert len(np.unique(values)) == 3


def test_each_environment_counts_its_own_episodes():
    drawer, random = Drawer(Variation("drift_up", 0.0, 100.0, std=1.0), 3, 1), np.random.default_rng(0)
    drawer.draw(np.arange(3), random)
    for _ in range(5):
        drawer.draw(np.array([1]), random)
    values = drawer.state_dict()["values"][:, 0]
    assert values[0] == values[2] == 0.0
    assert values[1] > 1.0


@pytest.mark.parametrize("kind", [*EVOLVING, "uniform"])
def test_a_restored_drawer_continues_as_the_first_one_did(kind):
    variation = Variation(kind, 0.0, 1.0, std=None if kind == "uniform" else 0.3, every=2)
    drawer, random = Drawer(variation, 4, 2), np.random.default_rng(0)
    for _ in range(7):
        drawer.draw(np.arange(4), random)
    state, generator = drawer.state_dict(), random.bit_generator.state
    expected = [drawer.draw(np.array([0, 2]), random) for _ in range(20)]
    other, random = Drawer(variation, 4, 2), np.random.default_rng(1)
    other.load_state_dict(state)
    random.bit_generator.state = generator
    np.testing.assert_array_equal([other.draw(np.array([0, 2]), random) for _ in range(20)], expected)


def test_ranges_of_factors_are_log_uniform_and_others_uniform():
    assert complete((0.5, 2.0), "scale", False) == Variation("log_uniform", 0.5, 2.0, operation="scale", shared=False)
    assert complete((-0.5, 2.0), "add", True) == Variation("uniform", -0.5, 2.0, operation="add", shared=True)
    asked = Variation(low=-1.0, high=1.0, operation="add", shared=True)
    assert complete(asked, "scale", False) == Variation("uniform", -1.0, 1.0, operation="add", shared=True)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"kind": "uniform", "low": 1.0}, "kind 'uniform' needs low and high; missing: high"),
        ({"kind": "normal", "mean": 1.0}, "missing: std"),
        ({"kind": "constant"}, "missing: start"),
        ({"kind": "saw_wave", "low": 0.0, "high": 1.0}, "missing: std"),
        ({"kind": "uniform", "low": 0.0, "high": 1.0, "std": 1.0}, "kind 'uniform' does not use std"),
        ({"mean": 1.0, "low": 0.0, "high": 1.0}, "does not use mean; say which kind is meant"),
        ({"low": 2.0, "high": 1.0}, "low must not be above high, got low 2 and high 1"),
        ({"low": math.nan, "high": 1.0}, "low must be finite"),
        ({"low": 0.0, "high": math.inf}, "high must be finite"),
        ({"kind": "normal", "mean": 0.0, "std": 0.0}, "std must be positive"),
        ({"kind": "log_uniform", "low": 0.0, "high": 1.0}, "log_uniform needs a positive low"),
        (
            {"kind": "truncated_normal", "low": 0.0, "high": 1.0, "mean": 2.0, "std": 1.0},
            "mean must lie between low 0.0 and high 1.0",
        ),
        ({"kind": "drift_up", "low": 0.0, "high": 1.0, "std": 1.0, "start": 2.0}, "start must lie between"),
        ({"low": 0.0, "high": 1.0, "every": 0}, "every must be 1 episode or more, got 0"),
    ],
)
def test_variations_that_make_no_sense_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        Variation(**settings)
