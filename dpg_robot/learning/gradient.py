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

Two more terms come from the second order of Tweedie's formula, Cov[a | noised_action] = sigma^2 * dD / d noised_action. With
``shift = D(noised_action, outcome) - D(noised_action)`` and J the derivatives of the two denoised actions,

    E[shift shift^T | noised_action] / sigma^2 = E[J(noised_action) - J(noised_action, outcome) | noised_action],

so a linear guess ``response . shift`` of the target can be taken out of the product, whose spread grows with the number of
actions, and put back as its expectation: a control variate, unbiased for every response. And where the target also depends on
the action directly, as through the action that a history of frames remembers, with slope ``direct``, the product misses
E[J(noised_action, outcome) direct], which can be added.
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


def controlled_action_gradient(
    target: Tensor,
    baseline: Tensor,
    denoised_given_outcome: Tensor,
    denoised: Tensor,
    sigma: float | Tensor,
    noised_action: Tensor,
    response: Tensor | None = None,
    direct: Tensor | None = None,
) -> Tensor:
    """Return one-sample estimates like :func:`denoised_action_gradient`, with the terms of second order.

    Args:
        target: (N,) what was obtained.
        baseline: (N,) what was expected from the state and the noised action (not the clean one).
        denoised_given_outcome: (N, d) best guess of the actions from their noised copies and the outcomes. Where it does not
            depend on ``noised_action``, as when the outcome is the action itself, its derivative counts as zero.
        denoised: (N, d) best guess of the actions from their noised copies alone, computed from ``noised_action``.
        sigma: standard deviation of the noise that was added to the actions; a number or (N,), positive.
        noised_action: (N, d) that requires a gradient and that the denoised actions were computed from.
        response: (N, d) slope of the target in the shift of the denoised action, a guess that must not depend on the outcome; it
            changes the variance and not the mean. None leaves the control variate out.
        direct: (N, d) derivative of the target in the action at a fixed outcome, None where there is none.

    Returns:
        (N, d) gradient estimates without a graph, in units of target per action.

    Raises:
        ValueError: shapes that do not fit, or a sigma that is not positive.
    """
    told, untold = denoised_given_outcome.detach(), denoised.detach()
    cotangents = torch.zeros_like(untold), torch.zeros_like(told)
    explained = torch.zeros_like(target)
    if response is not None:
        explained = (response * (told - untold)).sum(-1)
        cotangents = response, -response
    if direct is not None:
        cotangents = cotangents[0], cotangents[1] + direct
    gradient = denoised_action_gradient(target - explained, baseline, told, untold, sigma)
    if response is None and direct is None:
        return gradient
    pairs = [
        (output, cotangent)
        for output, cotangent in zip((denoised, denoised_given_outcome), cotangents, strict=True)
        if output.requires_grad
    ]
    # covariances are symmetric, so a product with the transposed derivative serves
    (second_order,) = torch.autograd.grad(
        [output for output, _ in pairs], noised_action, [cotangent for _, cotangent in pairs], retain_graph=True
    )
    return gradient + second_order
