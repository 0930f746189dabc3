"""Walks of images towards a class: along the denoiser's difference, and along classifiers' derivatives.

By Bayes' rule and Tweedie's formula, D(x~, class) - D(x~, nothing) = sigma^2 * grad_x~ log p(class | x~), where x~ is the image
with Gaussian noise of standard deviation sigma. A classifier that is trained on noised images estimates the same by
backpropagation; a plain one estimates the derivative at the clean image.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from dpg_robot.config import setting
from dpg_robot.learning.digits.networks import NOTHING, ImageClassifier, ImageDenoiser, noise_scale

Direction = Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]
"""Maps image (N, P), its noised copy (N, P), sigma (N, 1) and target class (N,) to the direction of a step, (N, P)."""


@dataclass(frozen=True)
class WalkSettings:
    """How images walk."""

    steps: int = setting(50, "steps of each walk")
    sigma_high: float = setting(2.0, "noise of the copy that the first step looks at", unit="half pixel ranges at 8 by 8 pixels")
    sigma_low: float = setting(0.2, "noise of the copy that the last step looks at", unit="half pixel ranges at 8 by 8 pixels")
    clip: bool = setting(True, "whether pixels are kept in their range, for all walks alike")

    def __post_init__(self) -> None:
        if self.steps < 1:
            raise ValueError(f"steps must be 1 or more, got {self.steps}")
        if not 0 < self.sigma_low <= self.sigma_high:
            raise ValueError(f"expected 0 < sigma_low <= sigma_high, got {self.sigma_low} and {self.sigma_high}")

    def sigmas(self, side: int) -> Tensor:
        """Return the noise of each step (steps,), falling by equal factors, for images of ``side`` by ``side`` pixels."""
        return noise_scale(side) * torch.linspace(math.log(self.sigma_high), math.log(self.sigma_low), self.steps).exp()


@dataclass(frozen=True)
class Walk:
    """Where walks came by.

    Attributes:
        snapshots: (S, N, P) images after the steps that were asked for.
        lengths: (T, N) Euclidean length of each step, as moved.
    """

    snapshots: Tensor
    lengths: Tensor

    @property
    def end(self) -> Tensor:
        """The last snapshot, (N, P)."""
        return self.snapshots[-1]


def denoiser_direction(denoiser: ImageDenoiser, with_prior: bool) -> Direction:
    """Return D(x~, class) - D(x~, nothing), and the prior's own pull D(x~, nothing) - x too if asked for."""

    def direction(image: Tensor, noised: Tensor, sigma: Tensor, label: Tensor) -> Tensor:
        told = torch.cat([label, torch.full_like(label, NOTHING)])
        given_class, given_nothing = denoiser(noised.repeat(2, 1), sigma.repeat(2, 1), told).chunk(2)
        # sigma^2 grad log p(class | x~)
        difference: Tensor = given_class - given_nothing
        # D(x~, nothing) - x has the mean of the score D(x~, nothing) - x~ without the noise that was added
        return difference + (given_nothing - image) if with_prior else difference

    return direction


def noised_classifier_direction(classifier: ImageClassifier) -> Direction:
    """Return sigma^2 grad log p(class | x~) by backpropagation through a classifier that knows noise."""

    def direction(_: Tensor, noised: Tensor, sigma: Tensor, label: Tensor) -> Tensor:
        return sigma.square() * _log_probability_gradient(classifier, noised, sigma, label)

    return direction


def clean_classifier_direction(classifier: ImageClassifier) -> Direction:
    """Return grad log p(class | x) of a plain classifier at the clean image."""

    def direction(image: Tensor, _: Tensor, sigma: Tensor, label: Tensor) -> Tensor:
        return _log_probability_gradient(classifier, image, torch.zeros_like(sigma), label)

    return direction


def walk(
    direction: Direction,
    start: Tensor,
    label: Tensor,
    settings: WalkSettings,
    step: float | Tensor,
    seed: int,
    snapshot_steps: Sequence[int] = (),
) -> Walk:
    """Walk images: each step looks at a freshly noised copy and moves the clean image along the direction found there.

    Args:
        direction: where to go.
        start: (N, P) images to start from.
        label: (N,) classes to go to.
        settings: number of steps, noise, and whether pixels are kept in range.
        step: what the direction is multiplied by; or lengths (T, N) of the steps, whatever the size of the direction.
        seed: seed of the noise; equal seeds give equal noise to different directions.
        snapshot_steps: after how many steps images are kept, ascending; the end is always kept, as the last one.
    """
    generator = torch.Generator().manual_seed(seed)
    image, snapshots, lengths = start, [], []
    for index, sigma in enumerate(settings.sigmas(side=math.isqrt(start.shape[1]))):
        noised = image + sigma * torch.randn(image.shape, generator=generator)
        way = direction(image, noised, sigma.expand(len(image), 1), label)
        moved = image + (step[index, :, None] * F.normalize(way, dim=1) if isinstance(step, Tensor) else step * way)
        if settings.clip:
            moved = moved.clamp(-1.0, 1.0)
        lengths.append((moved - image).norm(dim=1))
        image = moved
        if index + 1 in (*snapshot_steps, settings.steps):
            snapshots.append(image)
    return Walk(torch.stack(snapshots), torch.stack(lengths))


def _log_probability_gradient(classifier: ImageClassifier, image: Tensor, sigma: Tensor, label: Tensor) -> Tensor:
    with torch.enable_grad():
        image = image.detach().requires_grad_()
        log_probability = classifier(image, sigma).gather(1, label[:, None]).sum()
        (gradient,) = torch.autograd.grad(log_probability, image)
    return gradient
