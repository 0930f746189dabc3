"""Reward terms have dm_control's values, also with an interval per environment."""

import numpy as np
import pytest
from dm_control.utils import rewards as reference

from sim.tasks.rewards import tolerance

X = np.linspace(-5, 5, 1001)


@pytest.mark.parametrize("bounds", [(0.0, 0.0), (-1.0, 2.0), (-np.inf, 1.0), (0.5, np.inf), (-np.inf, np.inf)])
@pytest.mark.parametrize(
    ("sigmoid", "value"),
    [
        ("gaussian", 0.1),
        ("gaussian", 0.5),
        ("linear", 0.0),
        ("linear", 0.5),
        ("quadratic", 0.0),
        ("quadratic", 0.3),
        ("long_tail", 0.1),
        ("long_tail", 0.7),
    ],
)
def test_tolerances_are_those_of_dm_control(sigmoid, value, bounds):
    ours = tolerance(X, bounds=bounds, margin=1.5, value_at_margin=value, sigmoid=sigmoid)
    theirs = reference.tolerance(X, bounds, 1.5, sigmoid, value)
    np.testing.assert_allclose(ours, theirs, atol=1e-12)


@pytest.mark.parametrize("bounds", [(0.0, 0.0), (-1.0, 2.0), (0.5, np.inf)])
def test_without_a_margin_there_is_nothing_outside_the_bounds(bounds):
    np.testing.assert_array_equal(tolerance(X, bounds=bounds), reference.tolerance(X, bounds))


@pytest.mark.parametrize(("x", "expected"), [(0.0, 1.0), (1.0, 0.1), (-1.0, 0.1), (0.5, 0.1**0.25), (3.0, 1e-9)])
def test_a_gaussian_tolerance_falls_to_its_value_at_the_margin(x, expected):
    assert tolerance(np.array([x]), margin=1.0)[0] == pytest.approx(expected)


@pytest.mark.parametrize("margin", [0.0, 0.5])
def test_each_environment_can_have_an_interval_of_its_own(margin):
    random = np.random.default_rng(0)
    low = random.uniform(-3, 0, X.shape)
    high = low + random.uniform(0, 3, X.shape)
    expected = [tolerance(X[i], bounds=(low[i], high[i]), margin=margin) for i in range(len(X))]
    np.testing.assert_array_equal(tolerance(X, bounds=(low, high), margin=margin), expected)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"bounds": (1.0, 0.0)}, "lower bound"),
        ({"bounds": (np.array([0.0, 2.0]), np.array([1.0, 1.0]))}, "lower bound"),
        ({"margin": -1.0}, "margin"),
        ({"margin": 1.0, "value_at_margin": 0.0}, "value_at_margin"),
        ({"margin": 1.0, "value_at_margin": 1.0, "sigmoid": "linear"}, "value_at_margin"),
        ({"margin": 1.0, "sigmoid": "cosine"}, "sigmoid"),
    ],
)
def test_settings_without_a_meaning_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        tolerance(np.zeros(2), **settings)
