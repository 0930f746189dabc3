"""The denoised action gradient: which way to change an action, in a world that cannot be differentiated.

Let ``a`` be an action, ``noised_action = a + sigma * noise`` its copy with Gaussian noise, ``outcome`` what happened after
``a``, and ``target`` what we want more of. There are two best guesses of the action: ``D(noised_action, outcome)``, the mean of
``a`` given both, and ``D(noised_action)``, its mean given the noised action alone. For any behaviour that ``a`` came from, any
``sigma`` and any baseline that depends on the noised action only,

    d E[target | noised_action] / d noised_action
        = E[ (target - baseline) * (D(noised_action, outcome) - D(noised_action)) / sigma^2 | noised_action ].

It follows from Tweedie's formula, sigma^2 * score(noised_action) = D(noised_action) - noised_action, applied with and without
the outcome, and Bayes' rule. It needs the target to depend on the action through the outcome only. A baseline that sees the
clean action makes it biased.
"""

from __future__ import annotations

import torch
from torch import Tensor


def denoised_action_gradient(
    target: Tensor, baseline: Tensor, denoised_given_outcome: Tensor, denoised: Tensor, sigma: float | Tensor
) -> Tensor:
    """Return one-sample estimates of the gradient of the expected target at the noised actions.

    Args:
        target: (N,) what was obtained.
        baseline: (N,) what was expected from the state and the noised action (not the clean one).
        denoised_given_outcome: (N, d) best guess of the actions from their noised copies and the outcomes.
        denoised: (N, d) best guess of the actions from their noised copies alone.
        sigma: standard deviation of the noise that was added to the actions; a number or (N,), positive.

    Returns:
        (N, d) gradient estimates, in units of target per action.

    Raises:
        ValueError: shapes that do not fit, or a sigma that is not positive.
    """
    batch = target.shape
    if target.ndim != 1 or baseline.shape != batch:
        raise ValueError(f"target and baseline must both have shape (N,), got {tuple(target.shape)} and {tuple(baseline.shape)}")
    if denoised.ndim != 2 or denoised.shape[:1] != batch or denoised_given_outcome.shape != denoised.shape:
        raise ValueError(
            f"denoised actions must both have shape ({len(target)}, d), "
            f"got {tuple(denoised_given_outcome.shape)} and {tuple(denoised.shape)}"
        )
    sigma = torch.as_tensor(sigma, dtype=target.dtype, device=target.device)
    if sigma.ndim > 1 or (sigma.ndim == 1 and sigma.shape != batch):
        raise ValueError(f"sigma must be a number or have shape ({len(target)},), got {tuple(sigma.shape)}")
    if not bool((sigma > 0).all()):
        raise ValueError("sigma must be positive")
    # (target - baseline) * (D(noised_action, outcome) - D(noised_action)) / sigma^2
    advantage = (target - baseline) / sigma**2
    return advantage[:, None] * (denoised_given_outcome - denoised)
