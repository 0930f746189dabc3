"""The denoised action gradient against closed forms: with exact denoisers it is the gradient, at every noise level."""

import math
from dataclasses import dataclass

import pytest
import torch

from dpg_robot.learning.gradient import controlled_action_gradient, denoised_action_gradient

SAMPLES = 100_000


@dataclass(frozen=True)
class LinearWorld:
    """Next state = gain @ action + noise * n and target = direction . next state, with actions a ~ N(0, policy_std^2)."""

    gain: torch.Tensor
    direction: torch.Tensor
    noise: float
    policy_std: float = 1.0

    def gradient(self, sigma):
        """(d,) exact gradient of E[target | noised action]: that of the target, smoothed by the noise."""
        return self.direction @ self.gain * self.policy_std**2 / (self.policy_std**2 + sigma**2)

    def sample(self, sigma, generator):
        """Return a dictionary of samples, (N, .) each."""
        states, actions = self.gain.shape
        action = self.policy_std * torch.randn(SAMPLES, actions, generator=generator, dtype=torch.float64)
        noised = action + sigma * torch.randn(SAMPLES, actions, generator=generator, dtype=torch.float64)
        next_state = action @ self.gain.T + self.noise * torch.randn(SAMPLES, states, generator=generator, dtype=torch.float64)
        return {"action": action, "noised": noised, "next_state": next_state, "target": (next_state @ self.direction)[:, None]}

    def covariance(self, left, right, sigma):
        """Covariance of two of the sampled quantities."""
        spread = self.policy_std**2 * torch.eye(self.gain.shape[1], dtype=torch.float64)
        maps = {
            "action": torch.eye(self.gain.shape[1], dtype=torch.float64),
            "noised": torch.eye(self.gain.shape[1], dtype=torch.float64),
            "next_state": self.gain,
            "target": (self.direction @ self.gain)[None],
        }
        result = maps[left] @ spread @ maps[right].T
        outward = {"next_state": torch.eye(len(self.gain), dtype=torch.float64), "target": self.direction[None]}
        if left in outward and right in outward:
            result = result + self.noise**2 * outward[left] @ outward[right].T
        if left == right == "noised":
            result = result + sigma**2 * torch.eye(len(result), dtype=torch.float64)
        return result

    def guess(self, what, known, samples, sigma):
        """Mean of one quantity given others, by conditioning the joint Gaussian."""
        across = torch.cat([self.covariance(what, name, sigma) for name in known], dim=1)
        among = torch.cat([torch.cat([self.covariance(a, b, sigma) for b in known], dim=1) for a in known])
        return torch.cat([samples[name] for name in known], dim=1) @ torch.linalg.solve(among, across.T)


def make_world(actions, noise):
    generator = torch.Generator().manual_seed(actions)
    gain = torch.randn(actions, actions, generator=generator, dtype=torch.float64) / math.sqrt(actions)
    return LinearWorld(gain, torch.randn(actions, generator=generator, dtype=torch.float64) / math.sqrt(actions), noise)


def estimate(world, sigma, outcome, baseline_sees="noised"):
    """One-sample estimates (N, d) with exact denoisers; ``outcome`` "action" stands for the plain score."""
    samples = world.sample(sigma, torch.Generator().manual_seed(1))
    baseline = world.guess("target", [baseline_sees], samples, sigma)[:, 0]
    denoised = world.guess("action", ["noised"], samples, sigma)
    told = samples["action"] if outcome == "action" else world.guess("action", ["noised", outcome], samples, sigma)
    return denoised_action_gradient(samples["target"][:, 0], baseline, told, denoised, sigma)


def deviation(estimates, exact):
    """Largest distance of the mean from the exact gradient, in standard errors."""
    error = estimates.mean(0) - exact
    return float((error.abs() / (estimates.std(0) / math.sqrt(len(estimates)))).max())


def relative_variance(estimates, exact):
    return float(estimates.var(0).sum() / exact.square().sum())


@pytest.mark.parametrize("outcome", ["next_state", "target", "action"])
@pytest.mark.parametrize("sigma", [0.1, 0.5, 2.0])
@pytest.mark.parametrize("actions", [1, 8])
def test_the_mean_is_the_exact_gradient_for_every_sigma(actions, sigma, outcome):
    world = make_world(actions, noise=0.5)
    assert deviation(estimate(world, sigma, outcome), world.gradient(sigma)) < 4.5


def test_the_mean_is_distinguishable_from_a_gradient_a_tenth_off():
    world = make_world(1, noise=0.5)
    assert deviation(estimate(world, 0.5, "next_state"), 1.1 * world.gradient(0.5)) > 10


@pytest.mark.parametrize("actions", [1, 8])
def test_a_baseline_that_sees_the_clean_action_makes_it_biased(actions):
    world = make_world(actions, noise=1.0)
    exact = world.gradient(0.5)
    biased = estimate(world, 0.5, "next_state", baseline_sees="action")
    assert deviation(biased, exact) > 10
    assert float((biased.mean(0) - exact).norm() / exact.norm()) > 0.03


@pytest.mark.parametrize("baseline", [0.0, 3.0])
def test_any_baseline_without_the_clean_action_keeps_it_unbiased(baseline):
    # a behaviour far from Gaussian: the action is -1 or 1, so the exact denoisers are hyperbolic tangents
    sigma, noise = 0.8, 0.7
    generator = torch.Generator().manual_seed(2)
    noised = torch.tensor(0.3, dtype=torch.float64)
    share = torch.sigmoid(2 * noised / sigma**2)
    action = torch.where(torch.rand(SAMPLES, generator=generator, dtype=torch.float64) < share, 1.0, -1.0).double()
    next_state = action + noise * torch.randn(SAMPLES, generator=generator, dtype=torch.float64)
    told = torch.tanh(noised / sigma**2 + next_state / noise**2)
    untold = torch.tanh(noised / sigma**2)
    target = next_state**2 + next_state
    estimates = denoised_action_gradient(
        target, torch.full_like(target, baseline), told[:, None], untold.expand(SAMPLES, 1), sigma
    )
    # E[target | noised] = 1 + noise^2 + tanh(noised / sigma^2)
    assert deviation(estimates, (1 - untold**2) / sigma**2) < 4.5


def test_being_told_the_outcome_lowers_the_variance_in_a_noisy_world():
    world = make_world(8, noise=3.0)
    exact = world.gradient(0.5)
    plain, next_state, target = (
        relative_variance(estimate(world, 0.5, outcome), exact) for outcome in ("action", "next_state", "target")
    )
    assert plain > 10 * next_state
    assert next_state > 2 * target


@pytest.mark.parametrize(("actions", "noise", "outcome"), [(1, 1.0, "next_state"), (8, 1.0, "target"), (8, 3.0, "target")])
def test_a_scalar_outcome_that_tells_the_target_has_twice_the_squared_gradient_as_variance(actions, noise, outcome):
    # the estimate is then a chi-squared variable with one degree of freedom times the gradient
    world = make_world(actions, noise)
    assert relative_variance(estimate(world, 0.5, outcome), world.gradient(0.5)) == pytest.approx(2.0, rel=0.05)


def test_the_plain_score_has_the_variance_that_theory_gives():
    # with e = a - D of variance v and y - b = g . e + n: Var = (v |g|^2 + n^2) v d + v^2 |g|^2 in units of sigma^4
    world, sigma = make_world(8, noise=1.0), 0.5
    slope = world.direction @ world.gain
    spread = sigma**2 / (1 + sigma**2)
    noise = float(world.noise**2 * world.direction.square().sum())
    expected = ((spread * slope.square().sum() + noise) * spread * 8 + spread**2 * slope.square().sum()) / sigma**4
    exact = world.gradient(sigma)
    assert relative_variance(estimate(world, sigma, "action"), exact) == pytest.approx(
        float(expected / exact.square().sum()), rel=0.03
    )


def controlled(world, sigma, outcome, response, direct=None):
    """One-sample estimates with exact denoisers and the terms of second order; ``direct`` (d,) is added to the target."""
    samples = world.sample(sigma, torch.Generator().manual_seed(1))
    samples["noised"].requires_grad_(True)
    denoised = world.guess("action", ["noised"], samples, sigma)
    told = samples["action"] if outcome == "action" else world.guess("action", ["noised", outcome], samples, sigma)
    target = samples["target"][:, 0]
    baseline = world.guess("target", ["noised"], samples, sigma)[:, 0].detach()
    if direct is not None:
        target = target + samples["action"] @ direct
        baseline = baseline + denoised.detach() @ direct
        direct = direct.expand(SAMPLES, -1)
    if response == "best":
        shift = (told - denoised).detach()
        response = torch.linalg.lstsq(shift, (target - baseline)[:, None]).solution[:, 0]
    if response is not None:
        response = response.expand(SAMPLES, -1)
    return controlled_action_gradient(
        target, baseline, told, denoised, sigma, samples["noised"], response=response, direct=direct
    )


@pytest.mark.parametrize("outcome", ["next_state", "target", "action"])
@pytest.mark.parametrize("actions", [1, 8])
def test_any_response_keeps_it_unbiased(actions, outcome):
    world = make_world(actions, noise=0.5)
    generator = torch.Generator().manual_seed(3)
    response = torch.randn(actions, generator=generator, dtype=torch.float64)
    assert deviation(controlled(world, 0.5, outcome, response), world.gradient(0.5)) < 4.5


def test_with_the_best_response_nothing_is_left_of_the_variance_where_the_outcome_tells_the_target():
    # linear world, as many states as actions: the target is a linear function of the shift, so every sample is the gradient
    world = make_world(8, noise=1.0)
    exact = world.gradient(0.5)
    without = relative_variance(estimate(world, 0.5, "next_state"), exact)
    assert without > 5
    assert relative_variance(controlled(world, 0.5, "next_state", "best"), exact) < 1e-6 * without


def test_the_control_variate_leaves_the_plain_score_the_noise_of_the_world():
    # (y - b - k . e) is then the world's noise n alone: Var = n^2 v d / sigma^4, v the variance of e = a - D
    world, sigma = make_world(8, noise=1.0), 0.5
    spread = sigma**2 / (1 + sigma**2)
    expected = float(world.noise**2 * world.direction.square().sum()) * spread * 8 / sigma**4
    exact = world.gradient(sigma)
    found = relative_variance(controlled(world, sigma, "action", "best"), exact) * float(exact.square().sum())
    assert found == pytest.approx(expected, rel=0.03)


@pytest.mark.parametrize("response", [None, "best"])
def test_a_target_that_sees_the_action_beside_the_outcome_needs_its_direct_slope(response):
    world, sigma = make_world(8, noise=1.0), 0.5
    direct = torch.linspace(-1, 1, 8, dtype=torch.float64)
    exact = world.gradient(sigma) + direct / (1 + sigma**2)
    assert deviation(controlled(world, sigma, "next_state", response, direct), exact) < 4.5
    samples = world.sample(sigma, torch.Generator().manual_seed(1))
    denoised = world.guess("action", ["noised"], samples, sigma)
    told = world.guess("action", ["noised", "next_state"], samples, sigma)
    target = samples["target"][:, 0] + samples["action"] @ direct
    without = denoised_action_gradient(target, denoised @ (world.direction @ world.gain + direct), told, denoised, sigma)
    assert deviation(without, exact) > 10


def test_without_terms_of_second_order_both_estimates_are_the_same():
    values = [torch.randn(4), torch.randn(4), torch.randn(4, 2), torch.randn(4, 2), 0.3]
    assert torch.equal(controlled_action_gradient(*values, torch.randn(4, 2)), denoised_action_gradient(*values))


def test_the_formula_by_hand():
    gradient = denoised_action_gradient(
        torch.tensor([3.0, 1.0]),
        torch.tensor([1.0, 2.0]),
        torch.tensor([[0.5, 0.0], [0.0, 1.0]]),
        torch.tensor([[0.0, 0.0], [1.0, 0.5]]),
        torch.tensor([0.5, 2.0]),
    )
    assert torch.equal(gradient, torch.tensor([[4.0, 0.0], [0.25, -0.125]]))


def test_one_sigma_for_all_is_the_same_as_one_each():
    values = [torch.randn(4), torch.randn(4), torch.randn(4, 2), torch.randn(4, 2)]
    assert torch.equal(denoised_action_gradient(*values, 0.3), denoised_action_gradient(*values, torch.full((4,), 0.3)))


@pytest.mark.parametrize(
    ("position", "shape", "expected"),
    [
        (0, (4, 1), "target and baseline must both have shape"),
        (1, (3,), "target and baseline must both have shape"),
        (1, (4, 1), "target and baseline must both have shape"),
        (2, (4, 3), r"denoised actions must both have shape \(4, d\)"),
        (2, (4,), "denoised actions must both have shape"),
        (3, (3, 2), "denoised actions must both have shape"),
        (4, (3,), "sigma must be a number or have shape"),
        (4, (4, 1), "sigma must be a number or have shape"),
    ],
)
def test_shapes_that_do_not_fit_are_refused(position, shape, expected):
    values = [torch.ones(4), torch.ones(4), torch.ones(4, 2), torch.ones(4, 2), torch.ones(4)]
    values[position] = torch.ones(shape)
    with pytest.raises(ValueError, match=expected):
        denoised_action_gradient(*values)


@pytest.mark.parametrize("sigma", [0.0, -0.5, math.nan, torch.tensor([0.5, 0.0])])
def test_a_sigma_that_is_not_positive_is_refused(sigma):
    with pytest.raises(ValueError, match="sigma must be positive"):
        denoised_action_gradient(torch.ones(2), torch.ones(2), torch.ones(2, 3), torch.ones(2, 3), sigma)
