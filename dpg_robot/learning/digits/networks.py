"""Image denoiser and image classifiers: one body, so that what they were trained for is all that tells them apart."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dpg_robot.config import setting
from dpg_robot.learning.digits.images import CLASSES, DigitImages

Network = TypeVar("Network", bound=nn.Module)

NOTHING = CLASSES
"""The label that tells the denoiser no class."""

TRAINING_REPORTS = 10
"""How often a training reports its progress."""

_FREQUENCIES = 8


@dataclass(frozen=True)
class NetworkSettings:
    """Size and training of each network."""

    width: int = setting(192, "units of each layer")
    blocks: int = setting(3, "residual blocks of two layers")
    dropout: float = setting(0.1, "share of units dropped in training")
    training_steps: int = setting(2000, "gradient steps of the networks that are trained on noised images")
    plain_training_steps: int = setting(300, "gradient steps of the plain classifier; many more make its derivative worse")
    batch_size: int = setting(128, "images per gradient step")
    learning_rate: float = setting(2e-3, "highest learning rate of the one-cycle schedule")
    nothing_told: float = setting(0.3, "share of training images whose class the denoiser is not told")
    sigma_low: float = setting(0.05, "lowest noise in training", unit="half pixel ranges at 8 by 8 pixels")
    sigma_high: float = setting(5.0, "highest noise in training", unit="half pixel ranges at 8 by 8 pixels")

    def __post_init__(self) -> None:
        for name in ("width", "blocks", "training_steps", "plain_training_steps", "batch_size"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be 1 or more, got {getattr(self, name)}")
        if not 0 <= self.dropout < 1:
            raise ValueError(f"dropout must be in [0, 1), got {self.dropout}")
        if not 0 < self.nothing_told < 1:
            raise ValueError(f"nothing_told must be between 0 and 1, got {self.nothing_told}: the denoiser learns both guesses")
        if not self.learning_rate > 0:
            raise ValueError(f"learning_rate must be positive, got {self.learning_rate}")
        if not 0 < self.sigma_low < self.sigma_high:
            raise ValueError(f"expected 0 < sigma_low < sigma_high, got {self.sigma_low} and {self.sigma_high}")


class ImageNetwork(nn.Module):
    """Residual perceptron over pixels, told the noise level and a class or nothing.

    Args:
        pixels: number P of pixels.
        outputs: number of outputs.
        settings: width, depth and dropout.
    """

    def __init__(self, pixels: int, outputs: int, settings: NetworkSettings) -> None:
        super().__init__()
        width = settings.width
        self.first = nn.Linear(pixels, width)
        self.noise = nn.Linear(1 + 2 * _FREQUENCIES, width)
        self.label = nn.Embedding(CLASSES + 1, width)
        self.blocks = nn.ModuleList(
            nn.Sequential(
                nn.LayerNorm(width), nn.Linear(width, width), nn.SiLU(), nn.Dropout(settings.dropout), nn.Linear(width, width)
            )
            for _ in range(settings.blocks)
        )
        self.last = nn.Linear(width, outputs)
        nn.init.zeros_(self.last.weight)
        nn.init.zeros_(self.last.bias)

    def forward(self, pixels: Tensor, noise_level: Tensor, label: Tensor) -> Tensor:
        """Map pixels (N, P), noise level (N, 1) and label (N,) to outputs."""
        angles = noise_level * torch.arange(1, _FREQUENCIES + 1, device=pixels.device)
        hidden = self.first(pixels) + self.noise(torch.cat([noise_level, angles.sin(), angles.cos()], 1)) + self.label(label)
        for block in self.blocks:
            hidden = hidden + block(hidden)
        outputs: Tensor = self.last(hidden)
        return outputs


class ImageDenoiser(nn.Module):
    """D(noised; sigma, class or nothing): the best guess of an image from its noised copy, one network for both.

    Wrapped in the preconditioning of Karras et al. (2022, arXiv 2206.00364), so that input and training target have about unit
    variance at every sigma.

    Args:
        images: what it will be trained on; gives the number of pixels and their standard deviation.
        settings: width, depth and dropout.
    """

    def __init__(self, images: DigitImages, settings: NetworkSettings) -> None:
        super().__init__()
        self.data_std = float(images.pixels.std())
        pixels = images.pixels.shape[1]
        self.network = ImageNetwork(pixels, pixels, settings)

    def forward(self, noised: Tensor, sigma: Tensor, label: Tensor) -> Tensor:
        """Return denoised images (N, P) from noised ones (N, P), sigma (N, 1) > 0 and classes or :data:`NOTHING` (N,)."""
        total = sigma.square() + self.data_std**2
        residual: Tensor = self.network(noised * total.rsqrt(), 0.25 * sigma.log(), label)
        return self.data_std**2 / total * noised + sigma * self.data_std * total.rsqrt() * residual

    def loss(self, noised: Tensor, sigma: Tensor, label: Tensor, clean: Tensor) -> Tensor:
        """Return the mean squared error, weighted so that every sigma counts alike; a scalar."""
        weight = (sigma.square() + self.data_std**2) / (sigma * self.data_std).square()
        error: Tensor = weight * (self(noised, sigma, label) - clean).square()
        return error.mean()


class ImageClassifier(nn.Module):
    """log p(class | image), told the noise level of the image; zero for clean images.

    Args:
        images: what it will be trained on; gives the number of pixels and their standard deviation.
        settings: width, depth and dropout.
    """

    def __init__(self, images: DigitImages, settings: NetworkSettings) -> None:
        super().__init__()
        self.data_std = float(images.pixels.std())
        self.network = ImageNetwork(images.pixels.shape[1], CLASSES, settings)

    def forward(self, noised: Tensor, sigma: Tensor) -> Tensor:
        """Return log probabilities (N, 10) of the classes from images (N, P) with noise of sigma (N, 1) >= 0."""
        nothing = torch.full((len(noised),), NOTHING, device=noised.device)
        level = 0.25 * sigma.clamp(min=1e-3).log()
        return F.log_softmax(self.network(noised * (sigma.square() + self.data_std**2).rsqrt(), level, nothing), dim=1)


def train_denoiser(images: DigitImages, settings: NetworkSettings, seed: int, progress: Callable[[], None]) -> ImageDenoiser:
    """Train one denoiser for both guesses: told the class, and told nothing."""

    def loss(denoiser: ImageDenoiser, clean: Tensor, label: Tensor) -> Tensor:
        sigma = draw_sigma(len(clean), images.side, settings)
        told = torch.where(torch.rand(len(clean)) < settings.nothing_told, NOTHING, label)
        return denoiser.loss(clean + sigma * torch.randn_like(clean), sigma, told, clean)

    return _train(ImageDenoiser, loss, images, settings, settings.training_steps, seed, progress)


def train_classifier(
    images: DigitImages, settings: NetworkSettings, seed: int, progress: Callable[[], None], noised: bool
) -> ImageClassifier:
    """Train a classifier by cross entropy; on clean images, or on images ``noised`` as the denoiser's are."""

    def loss(classifier: ImageClassifier, clean: Tensor, label: Tensor) -> Tensor:
        sigma = draw_sigma(len(clean), images.side, settings) if noised else torch.zeros(len(clean), 1)
        return F.nll_loss(classifier(clean + sigma * torch.randn_like(clean), sigma), label)

    steps = settings.training_steps if noised else settings.plain_training_steps
    return _train(ImageClassifier, loss, images, settings, steps, seed, progress)


def noise_scale(side: int) -> float:
    """Return by how much sigma grows with resolution: averaged down to 8 by 8 pixels, the noise is that of 8 by 8 pixels."""
    return side / 8


def draw_sigma(count: int, side: int, settings: NetworkSettings) -> Tensor:
    """Draw noise levels (count, 1), log-uniform over the range of training."""
    low, high = math.log(settings.sigma_low), math.log(settings.sigma_high)
    return noise_scale(side) * torch.empty(count, 1).uniform_(low, high).exp()


def _train(
    make: Callable[[DigitImages, NetworkSettings], Network],
    loss: Callable[[Network, Tensor, Tensor], Tensor],
    images: DigitImages,
    settings: NetworkSettings,
    steps: int,
    seed: int,
    progress: Callable[[], None],
) -> Network:
    rate = settings.learning_rate
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        network = make(images, settings)
        optimizer = torch.optim.AdamW(network.parameters(), rate, weight_decay=0.01, fused=True)
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, rate, total_steps=steps + 1, pct_start=0.05)
        for step in range(1, steps + 1):
            batch = torch.randint(len(images), (settings.batch_size,))
            optimizer.zero_grad()
            loss(network, images.pixels[batch], images.label[batch]).backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            schedule.step()
            for _ in range(step * TRAINING_REPORTS // steps - (step - 1) * TRAINING_REPORTS // steps):
                progress()
    return network.eval().requires_grad_(False)
