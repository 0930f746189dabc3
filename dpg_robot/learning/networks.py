"""Building blocks: multilayer perceptrons, ensembles of them, and running normalizers."""

from __future__ import annotations

import itertools
import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

_EPSILON = 1e-5


def mlp(input_size: int, hidden_sizes: tuple[int, ...], output_size: int) -> nn.Sequential:
    """Return linear layers with layer normalization and SiLU between them, the last one linear and initially zero."""
    layers: list[nn.Module] = []
    for size in hidden_sizes:
        layers += [nn.Linear(input_size, size), nn.LayerNorm(size), nn.SiLU()]
        input_size = size
    last = nn.Linear(input_size, output_size)
    nn.init.zeros_(last.weight)
    nn.init.zeros_(last.bias)
    return nn.Sequential(*layers, last)


class EnsembleMlp(nn.Module):
    """E independent multilayer perceptrons of the form of :func:`mlp`, computed in batched products.

    Args:
        members: number E of members.
        input_size: size I of the input.
        hidden_sizes: sizes of the hidden layers.
        output_size: size of the output.
    """

    def __init__(self, members: int, input_size: int, hidden_sizes: tuple[int, ...], output_size: int) -> None:
        super().__init__()
        sizes = (input_size, *hidden_sizes, output_size)
        self.weights, self.biases = nn.ParameterList(), nn.ParameterList()
        for size, next_size in itertools.pairwise(sizes):
            bound = 1.0 / math.sqrt(size)
            self.weights.append(nn.Parameter(torch.empty(members, size, next_size).uniform_(-bound, bound)))
            self.biases.append(nn.Parameter(torch.empty(members, 1, next_size).uniform_(-bound, bound)))
        self.scales = nn.ParameterList(nn.Parameter(torch.ones(members, 1, size)) for size in hidden_sizes)
        self.shifts = nn.ParameterList(nn.Parameter(torch.zeros(members, 1, size)) for size in hidden_sizes)

    def forward(self, x: Tensor) -> Tensor:
        """Map (E, N, I) to (E, N, output_size), member e on ``x[e]``."""
        *hidden_layers, (last_weight, last_bias) = self._layers()
        for (weight, bias), scale, shift in zip(hidden_layers, self.scales, self.shifts, strict=True):
            hidden = torch.baddbmm(bias, x, weight)
            normalized = F.layer_norm(hidden, hidden.shape[-1:], eps=_EPSILON)
            x = F.silu(torch.addcmul(shift, normalized, scale))
        return torch.baddbmm(last_bias, x, last_weight)

    def forward_with_tangent(self, x: Tensor, tangent: Tensor) -> tuple[Tensor, Tensor]:
        """Return the outputs, and their derivatives when ``x`` moves along ``tangent`` (both (E, N, I)).

        Forward-mode differentiation written out, because it can be differentiated once more at a third of the cost of
        differentiating twice backwards through layer normalization.
        """
        *hidden_layers, (last_weight, last_bias) = self._layers()
        for (weight, bias), scale, shift in zip(hidden_layers, self.scales, self.shifts, strict=True):
            hidden, tangent = torch.baddbmm(bias, x, weight), torch.bmm(tangent, weight)
            centred = hidden - hidden.mean(-1, keepdim=True)
            inverse_std = torch.rsqrt(centred.square().mean(-1, keepdim=True) + _EPSILON)
            normalized = centred * inverse_std
            # d normalized = (t - mean(t) - normalized * mean(normalized * t)) / std
            projection = (normalized * tangent).mean(-1, keepdim=True)
            tangent = (tangent - tangent.mean(-1, keepdim=True) - normalized * projection) * (inverse_std * scale)
            scaled = torch.addcmul(shift, normalized, scale)
            # silu(z) = z * s, so silu'(z) = s + z * s * (1 - s) with s = sigmoid(z)
            gate = torch.sigmoid(scaled)
            x = scaled * gate
            tangent = tangent * (gate + x * (1 - gate))
        return torch.baddbmm(last_bias, x, last_weight), torch.bmm(tangent, last_weight)

    def _layers(self) -> list[tuple[Tensor, Tensor]]:
        return list(zip(self.weights, self.biases, strict=True))


class RunningNormalizer(nn.Module):
    """Shifts and scales inputs to zero mean and unit variance of all samples seen so far.

    The statistics move ever more slowly as samples accumulate, so the meaning of the networks' inputs never jumps.
    """

    mean: Tensor
    variance: Tensor
    count: Tensor

    def __init__(self, size: int, clip: float = 10.0) -> None:
        super().__init__()
        self.clip = clip
        self.register_buffer("mean", torch.zeros(size))
        self.register_buffer("variance", torch.ones(size))
        self.register_buffer("count", torch.zeros((), dtype=torch.float64))

    @torch.no_grad()
    def update(self, samples: Tensor) -> None:
        """Take in samples (N, size), from any device; the parallel form of Welford's algorithm (Chan et al., 1979)."""
        samples = samples.to(self.mean)
        added = samples.shape[0]
        if added == 0:
            return
        total = self.count + added
        share = (added / total).to(self.mean.dtype)
        delta = samples.mean(0) - self.mean
        # Before the first samples mean and variance are placeholders: share is 1 then and replaces them.
        self.mean.lerp_(samples.mean(0), share)
        self.variance.lerp_(samples.var(0, unbiased=False) + delta**2 * (1 - share), share)
        self.count.copy_(total)

    def forward(self, x: Tensor) -> Tensor:
        """Normalize (..., size), clipped to +-``clip`` standard deviations."""
        scaled = (x - self.mean) * torch.rsqrt(self.variance + 1e-6)
        return scaled.clamp(-self.clip, self.clip)
