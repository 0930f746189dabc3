"""Running normalizers and ensembles."""

import itertools

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from torch import nn

from dpg_robot.learning.networks import EnsembleMlp, RunningNormalizer, mlp


@given(
    samples=hnp.arrays(np.float32, st.tuples(st.integers(1, 40), st.just(3)), elements=st.floats(-100, 100, width=32)),
    cuts=st.lists(st.integers(0, 40), max_size=6),
)
def test_the_statistics_are_those_of_all_samples_in_any_chunking(samples, cuts):
    normalizer = RunningNormalizer(3)
    edges = sorted({0, len(samples), *(min(cut, len(samples)) for cut in cuts)})
    for start, end in itertools.pairwise(edges):
        normalizer.update(torch.from_numpy(samples[start:end]))
        normalizer.update(torch.zeros(0, 3))
    size = 1e-3 + np.abs(samples).max()
    np.testing.assert_allclose(normalizer.mean.numpy(), samples.astype(np.float64).mean(0), atol=1e-6 * size)
    np.testing.assert_allclose(normalizer.variance.numpy(), samples.astype(np.float64).var(0), atol=1e-6 * size**2)
    assert int(normalizer.count) == len(samples)


def test_many_small_updates_do_not_drift():
    generator, normalizer = torch.Generator().manual_seed(0), RunningNormalizer(2)
    samples = torch.randn(40_000, 2, generator=generator) * torch.tensor([0.01, 30.0]) + torch.tensor([5.0, -2.0])
    for chunk in samples.split(8):
        normalizer.update(chunk)
    np.testing.assert_allclose(normalizer.mean, samples.double().mean(0), rtol=1e-5)
    np.testing.assert_allclose(normalizer.variance, samples.double().var(0, unbiased=False), rtol=1e-2)
    normalized = normalizer(samples)
    np.testing.assert_allclose(normalized.mean(0), 0.0, atol=0.01)
    np.testing.assert_allclose(normalized.std(0), 1.0, atol=0.02)


def test_normalized_values_are_clipped():
    normalizer = RunningNormalizer(1)
    normalizer.update(torch.tensor([[-1.0], [1.0]]))
    torch.testing.assert_close(normalizer(torch.tensor([[0.5], [1e6], [-1e6]])), torch.tensor([[0.5], [10.0], [-10.0]]))


def test_statistics_take_samples_of_another_type():
    normalizer = RunningNormalizer(2).double()
    normalizer.update(torch.ones(4, 2))
    assert normalizer.mean.dtype == torch.float64
    torch.testing.assert_close(normalizer.mean, torch.ones(2, dtype=torch.float64))


def test_a_network_gives_zero_before_training():
    assert torch.equal(mlp(3, (8, 8), 2)(torch.randn(5, 3)), torch.zeros(5, 2))


@pytest.mark.parametrize("hidden", [(), (6,), (6, 4)])
def test_each_ensemble_member_is_a_plain_network_of_its_own(hidden):
    ensemble, sizes = EnsembleMlp(3, 5, hidden, 2), (5, *hidden, 2)
    with torch.no_grad():
        for parameter in (*ensemble.scales, *ensemble.shifts):
            parameter.normal_()
    inputs = torch.randn(3, 7, 5)
    outputs = ensemble(inputs)
    for member in range(3):
        layers = []
        for index, (size, next_size) in enumerate(itertools.pairwise(sizes)):
            linear = nn.Linear(size, next_size)
            linear.weight.data, linear.bias.data = ensemble.weights[index][member].T, ensemble.biases[index][member, 0]
            layers.append(linear)
            if index < len(hidden):
                norm = nn.LayerNorm(next_size)
                norm.weight.data, norm.bias.data = ensemble.scales[index][member, 0], ensemble.shifts[index][member, 0]
                layers += [norm, nn.SiLU()]
        torch.testing.assert_close(outputs[member], nn.Sequential(*layers)(inputs[member]))
    assert not torch.allclose(outputs[0], ensemble(inputs[[0, 0, 0]])[1])
