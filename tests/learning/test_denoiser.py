"""The action denoiser: after a short training on a Gaussian world it is the mean that conditioning gives."""

import pytest
import torch

from dpg_robot.learning.denoiser import ActionDenoiser, action_after_outcome

SLOPE, SPREAD, NOISE = 0.5, 0.6, 0.5  # action = SLOPE * observation + SPREAD * n, outcome = action + NOISE * n


def sample(count, generator):
    """Return observation, action, outcome, noised action and sigma, (N, 1) each."""
    normal = [torch.randn(count, 1, generator=generator) for _ in range(4)]
    action = SLOPE * normal[0] + SPREAD * normal[1]
    sigma = torch.exp(torch.empty(count, 1).uniform_(-2.0, 0.0, generator=generator))
    return normal[0], action, action + NOISE * normal[2], action + sigma * normal[3], sigma


def posterior_mean(observation, noised, sigma, outcome=None):
    """Precision-weighted mean of prior, noised action and (when told) outcome."""
    precisions, values = [1 / SPREAD**2, sigma**-2], [SLOPE * observation, noised]
    if outcome is not None:
        precisions, values = [*precisions, 1 / NOISE**2], [*values, outcome]
    return sum(p * v for p, v in zip(precisions, values, strict=True)) / sum(precisions)


@pytest.fixture(scope="module")
def trained():
    generator = torch.Generator().manual_seed(0)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        denoiser = ActionDenoiser(1, 1, 1, (64, 64), action_std=SPREAD)
    observation, _, outcome, _, _ = sample(10_000, generator)
    denoiser.observation_normalizer.update(observation)
    denoiser.outcome_normalizer.update(outcome)
    optimizer = torch.optim.Adam(denoiser.parameters(), 3e-3)
    schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.02, 500)
    for _ in range(500):
        observation, action, outcome, noised, sigma = sample(512, generator)
        told, untold = action_after_outcome(denoiser, noised, sigma, observation, outcome)
        loss = denoiser.loss(told, action, sigma) + denoiser.loss(untold, action, sigma)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    return denoiser


@torch.no_grad()
def test_told_and_untold_guesses_are_the_posterior_means(trained):
    observation, action, outcome, noised, sigma = sample(5000, torch.Generator().manual_seed(1))
    told, untold = action_after_outcome(trained, noised, sigma, observation, outcome)
    best_told, best_untold = posterior_mean(observation, noised, sigma, outcome), posterior_mean(observation, noised, sigma)
    for guess, best in ((told, best_told), (untold, best_untold)):
        excess = (guess - best).square().mean()
        assert excess < 0.04 * (best - action).square().mean()
    # the two differ by far more than the error of either
    assert (told - untold).square().mean() > 20 * (told - best_told).square().mean()


@torch.no_grad()
def test_the_mean_over_outcomes_of_the_told_guess_is_the_untold_guess(trained):
    generator = torch.Generator().manual_seed(2)
    for observation, noised, sigma in [(0.0, 0.5, 0.3), (1.0, -0.5, 0.6), (-1.0, 0.0, 0.9)]:
        given = [torch.full((20_000, 1), value) for value in (noised, sigma, observation)]
        spread = (1 / SPREAD**2 + 1 / sigma**2) ** -0.5
        mean = posterior_mean(given[2], given[0], given[1])
        action = mean + spread * torch.randn(20_000, 1, generator=generator)
        outcome = action + NOISE * torch.randn(20_000, 1, generator=generator)
        told, untold = action_after_outcome(trained, *given, outcome)
        assert told.std() > 0.05
        assert abs(float(told.mean() - untold.mean())) < 0.15 * float(told.std())


@pytest.mark.parametrize("outcome", [0.0, 1e9, float("inf"), float("nan")])
@torch.no_grad()
def test_an_outcome_that_is_not_told_is_ignored(trained, outcome):
    observation, _, _, noised, sigma = sample(10, torch.Generator().manual_seed(3))
    nothing = torch.zeros(10, 1)
    guess = trained(noised, sigma, observation, torch.full((10, 1), outcome), nothing)
    assert torch.equal(guess, trained(noised, sigma, observation, nothing, nothing))


@torch.no_grad()
def test_both_guesses_in_one_pass_are_those_of_two_passes(trained):
    observation, _, outcome, noised, sigma = sample(7, torch.Generator().manual_seed(4))
    told, untold = action_after_outcome(trained, noised, sigma, observation, outcome)
    torch.testing.assert_close(told, trained(noised, sigma, observation, outcome, torch.ones(7, 1)))
    torch.testing.assert_close(untold, trained(noised, sigma, observation, outcome, torch.zeros(7, 1)))


@torch.no_grad()
def test_before_training_it_is_the_best_linear_guess_for_its_action_spread():
    denoiser = ActionDenoiser(2, 3, 4, (8,), action_std=0.5)
    noised, sigma = torch.randn(5, 3), torch.rand(5, 1) + 0.1
    guess = denoiser(noised, sigma, torch.randn(5, 2), torch.randn(5, 4), torch.ones(5, 1))
    torch.testing.assert_close(guess, noised * 0.25 / (0.25 + sigma**2))


@torch.no_grad()
def test_the_loss_of_the_first_guess_is_one_at_every_sigma():
    denoiser, generator = ActionDenoiser(1, 1, 1, (8,), action_std=0.5), torch.Generator().manual_seed(5)
    for sigma in (0.05, 0.5, 5.0):
        action = 0.5 * torch.randn(50_000, 1, generator=generator)
        level = torch.full_like(action, sigma)
        noised = action + level * torch.randn(50_000, 1, generator=generator)
        nothing = torch.zeros_like(action)
        assert float(denoiser.loss(denoiser(noised, level, nothing, nothing, nothing), action, level)) == pytest.approx(
            1, rel=0.03
        )
