"""What an update asks of a machine, arithmetic and memory traffic, and what the machine could give at most."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry

_MATRIX = {"cpu": 1024, "cuda": 8192}  # rows and columns of the product that shows the arithmetic limit
_COPIED_BYTES = {"cpu": 1 << 26, "cuda": 1 << 30}  # far more than a cache holds


@dataclass(frozen=True)
class Cost:
    """What work costs.

    Attributes:
        flops: floating-point operations of the matrix products; a multiplication and an addition count as two.
        bytes: what kernels read and write when each takes its inputs from memory and puts its outputs there. Caches spare a part
            of it, so that a small batch can need less.
    """

    flops: float
    bytes: float


@dataclass(frozen=True)
class Peak:
    """What the machine gives at most, measured by the simplest work of its kind.

    Attributes:
        flops_per_s: in a product of two large square matrices.
        bytes_per_s: in a copy of a large tensor, read and written bytes together.
    """

    flops_per_s: float
    bytes_per_s: float


class CostCounter(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Counts what the operations of torch cost, in both directions of differentiation.

    Arithmetic is counted by torch's own formulas for matrix products. (Its FlopCounterMode, which follows modules as well, does
    not bear ``torch.autograd.grad``.) Views move no bytes.
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.flops = self.bytes = 0

    def __torch_dispatch__(
        self, function: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        """Carry out an operation and count it."""
        named = dict(kwargs or {})
        result = function(*args, **named)
        if formula := flop_registry.get(function._overloadpacket):
            self.flops += formula(*args, **named, out_val=result)
        if not _is_view(function):
            self.bytes += sum(_bytes_of(each) for each in tree_leaves((args, named, result)) if isinstance(each, Tensor))
        return result


def _is_view(function: Any) -> bool:
    returned = [each.alias_info for each in function._schema.returns]
    return any(alias is not None and not alias.is_write for alias in returned)


def _bytes_of(tensor: Tensor) -> int:
    # an expanded tensor has fewer numbers in memory than it shows
    return min(tensor.numel() * tensor.element_size(), tensor.untyped_storage().nbytes())


def count_cost(work: Callable[[], object]) -> Cost:
    """Return the cost of work that is done once for it."""
    with CostCounter() as counter:
        work()
    return Cost(float(counter.flops), float(counter.bytes))


def extrapolate(small: Cost, large: Cost, small_size: int, large_size: int, size: int) -> Cost:
    """Return the cost of a batch of ``size`` from those of two others; costs are a constant plus a part for each transition."""

    def line(at_small: float, at_large: float) -> float:
        return at_small + (at_large - at_small) * (size - small_size) / (large_size - small_size)

    return Cost(line(small.flops, large.flops), line(small.bytes, large.bytes))


def measure_peak(device: torch.device, dtype: torch.dtype, seconds: float) -> Peak:
    """Measure what the device gives at most, with the present number of threads; takes about ``seconds``."""
    size = _MATRIX.get(device.type, _MATRIX["cuda"])
    left = torch.ones(size, size, device=device, dtype=dtype)
    right, product = torch.ones_like(left), torch.empty_like(left)
    product_s = time_each(lambda: torch.mm(left, right, out=product), device, seconds / 2)
    count = _COPIED_BYTES.get(device.type, _COPIED_BYTES["cuda"])
    source = torch.zeros(count, dtype=torch.uint8, device=device)
    copy = torch.zeros_like(source)
    copy_s = time_each(lambda: copy.copy_(source), device, seconds / 2)
    return Peak(2 * size**3 / product_s, 2 * count / copy_s)


def time_each(work: Callable[[], object], device: torch.device, seconds: float) -> float:
    """Return the time that work takes, s; the mean of as many repetitions as fit in ``seconds``, and one at least."""
    time_repeated(work, device, 1)  # allocates
    count = max(1, round(seconds / time_repeated(work, device, 1)))
    return time_repeated(work, device, count) / count


def time_repeated(work: Callable[[], object], device: torch.device, count: int) -> float:
    """Return the time of ``count`` repetitions together, s."""
    wait(device)
    start_s = time.perf_counter()
    for _ in range(count):
        work()
    wait(device)
    return time.perf_counter() - start_s


def wait(device: torch.device) -> None:
    """Wait until the device has done what it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
