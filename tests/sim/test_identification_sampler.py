"""Particles follow a known posterior, also along a ridge that the data leave open."""

import numpy as np

from sim.identification_likelihood import LinearModel, Noise, WindowLikelihood
from sim.identification_sampler import anneal, extend, first_population, sweep
from sim.identification_target import Target, Term

WINDOWS, STEPS, NOISE = 24, 2, 0.05


def likelihood(windows):
    """Each measurement tells of a constant, with noise and no dynamics that matter."""
    transition = np.zeros((windows, STEPS, 2, 2))
    model = LinearModel(transition, np.array([0, 1]), np.full(2, 1e-3), np.array([1]), np.array([[0.0], [0.0]]))
    return WindowLikelihood(model, Noise(np.full(2, NOISE), np.full(1, 1e-6)))


def ridge(points, pieces):
    """Differences that depend on the sum of the first two numbers, on the third, and not on the fourth."""
    offset = np.random.default_rng(5).normal(0, NOISE, (WINDOWS, STEPS + 1, 2))[pieces]
    offset = offset - offset.mean(axis=(0, 1)) if len(pieces) == WINDOWS else offset
    told = np.stack([points[:, 0] + points[:, 1] - 0.9, points[:, 2] ** 2 - 0.36], axis=1)
    result = offset + told[:, None, None]
    result[:, :, 0] = 0.0
    return result


def test_a_ridge_is_filled_and_what_is_known_is_sharp():
    random = np.random.default_rng(0)
    population = first_population(128, 4, ridge, WINDOWS // 2, 0)
    half = Target((Term(1.0, likelihood(WINDOWS // 2), WINDOWS // 2),))
    anneal(population, Target(), half, ridge, random, 1)
    extend(population, ridge, WINDOWS)
    whole = Target((Term(1.0, likelihood(WINDOWS), WINDOWS),))
    anneal(population, half, whole, ridge, random, 1)
    drawn = []
    for _ in range(30):
        sweep(population, whole, ridge, random)
        drawn.append(population.points.copy())
    points = np.concatenate(drawn)
    error = NOISE / np.sqrt(WINDOWS * STEPS)
    total = points[:, 0] + points[:, 1]
    assert abs(total.mean() - 0.9) < 4 * error
    assert 0.93 * error < total.std() < 1.13 * error
    assert abs(points[:, 2].mean() - 0.6) < 4 * error
    # along the ridge everything from 0 to 0.9 is as likely as anything else, and so is everything of the last number
    assert abs(points[:, 0].mean() - 0.45) < 0.05
    assert abs(points[:, 0].std() - 0.9 / np.sqrt(12)) < 0.04
    assert abs(points[:, 3].std() - 1 / np.sqrt(12)) < 0.04


def test_a_stand_in_of_second_degree_is_exact_where_differences_are():
    points = np.random.default_rng(1).random((200, 4))
    differences = ridge(points, np.arange(WINDOWS))
    target = Target((Term(0.5, likelihood(WINDOWS), WINDOWS),))
    stand_in = target.stand_in(points, differences)
    np.testing.assert_allclose(stand_in(points[:20]), target(differences[:20]), rtol=1e-6, atol=1e-6)
    assert np.isneginf(stand_in(np.full((1, 4), 5.0)))[0]


def test_a_target_on_the_way_to_another_is_between_them():
    differences = ridge(np.random.default_rng(2).random((5, 4)), np.arange(WINDOWS))
    first, second = (Target((Term(power, likelihood(WINDOWS), WINDOWS),)) for power in (0.2, 1.0))
    np.testing.assert_allclose(first.toward(second, 0.25)(differences), 0.75 * first(differences) + 0.25 * second(differences))
    assert (Target()(differences) == 0).all()
