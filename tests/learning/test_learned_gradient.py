"""The denoised action gradient with learned denoisers, in linear-Gaussian worlds where the exact gradient is known."""

import pytest
import torch

from sim.benchmarks.gradient_linear import VARIANTS, LinearVariant, closed_form, compare, make_world, measure, train_denoiser
from sim.benchmarks.gradient_settings import LinearConfig

CONFIG = LinearConfig(hidden_sizes=(64,), updates=700, batch_size=512, final_batch_factor=4, learning_rate=1e-2, samples=100_000)
UNBIASED = [variant for variant in VARIANTS if not variant.clean_baseline]
BIASED = [variant for variant in VARIANTS if variant.clean_baseline]


class ExactDenoiser:
    """The optimal denoiser of a world, called like a learned one."""

    def __init__(self, world, outcome):
        gain, v = world.gain, world.uncertainty
        spread = v * gain @ gain.T + world.noise**2 * torch.eye(len(gain))
        self.world, self.outcome = world, outcome
        if outcome == "next_state":
            self.shift = v * torch.linalg.solve(spread, gain).T
        else:
            self.shift = (v * world.slope / (world.direction @ spread @ world.direction))[:, None]

    def __call__(self, noised_action, sigma, observation, outcome, has_outcome):
        untold = noised_action / (1 + sigma**2)
        expected = untold @ self.world.gain.T if self.outcome == "next_state" else 0.0
        return untold + has_outcome * ((outcome - expected) @ self.shift.T)


@pytest.fixture(scope="module", params=[1, 8])
def learned(request):
    world = make_world(request.param, 1.0, CONFIG)
    denoisers = {outcome: train_denoiser(world, outcome, CONFIG) for outcome in ("next_state", "target")}
    return world, denoisers | {"action": denoisers["next_state"]}


@pytest.mark.parametrize("variant", VARIANTS, ids=lambda variant: variant.name)
@pytest.mark.parametrize(("actions", "noise"), [(1, 1.0), (8, 0.1), (8, 3.0)])
def test_the_closed_form_is_what_exact_denoisers_give(actions, noise, variant):
    world = make_world(actions, noise, CONFIG)
    denoiser = ExactDenoiser(world, "target" if variant.outcome == "target" else "next_state")
    mean, variance = measure(world, variant, denoiser, CONFIG.samples, seed=1)
    exact = closed_form(world, variant)
    # the mean within five standard errors, the variance within five of its own (relative, about 10 / sqrt(samples))
    scale = float(world.gradient.norm())
    assert float((mean - exact.mean).norm()) < 5 * scale * (exact.relative_variance / CONFIG.samples) ** 0.5 + 1e-5 * scale
    assert variance == pytest.approx(exact.relative_variance, rel=0.15, abs=1e-6)


@pytest.mark.parametrize("variant", UNBIASED, ids=lambda variant: variant.name)
def test_closed_forms_without_the_clean_action_are_unbiased(variant):
    world = make_world(8, 1.0, CONFIG)
    torch.testing.assert_close(closed_form(world, variant).mean.float(), world.gradient)


@pytest.mark.parametrize("variant", UNBIASED, ids=lambda variant: variant.name)
def test_learned_denoisers_give_the_exact_gradient(learned, variant):
    world, denoisers = learned
    # standard error of the mean, relative: at most sqrt(variance / samples), 3% for the plain estimate with eight actions
    mean, variance = measure(world, variant, denoisers[variant.outcome], CONFIG.samples, seed=2)
    result = compare(mean, world.gradient.double())
    assert result["cosine"] > 0.99
    assert result["norm_ratio"] == pytest.approx(1, abs=0.05)
    # the tails of the target, where the estimate is chi-squared, are learned last
    assert variance < 1.15 * closed_form(world, variant).relative_variance + 0.1


@pytest.mark.parametrize("variant", BIASED, ids=lambda variant: variant.name)
def test_a_baseline_that_sees_the_clean_action_biases_learned_denoisers_too(learned, variant):
    world, denoisers = learned
    mean, variance = measure(world, variant, denoisers[variant.outcome], CONFIG.samples, seed=2)
    bias = compare(mean, world.gradient.double())["relative_bias"]
    expected = compare(closed_form(world, variant).mean, world.gradient.double())["relative_bias"]
    assert bias > 0.1
    assert bias > 10 * (variance / CONFIG.samples) ** 0.5
    assert bias == pytest.approx(expected, abs=0.1)


def test_control_variate_and_outcome_lower_the_variance_in_closed_form():
    world = make_world(8, 3.0, CONFIG)
    names = {variant.name: closed_form(world, variant).relative_variance for variant in UNBIASED}
    assert names["next_state+control_variate"] < names["next_state"] < names["plain"]
    assert names["plain+control_variate"] < names["plain"]
    assert names["target"] == pytest.approx(2.0)


def test_the_name_says_what_a_variant_is():
    assert LinearVariant("action", control_variate=True).name == "plain+control_variate"
