"""Mixed precision: the wide products of an update in bfloat16, everything else in float32.

Nearly all arithmetic of an update is in products with the weights of hidden layers, which the matrix units of a GPU do many
times faster in bfloat16. Weights, gradients, optimizers, losses and all sums stay in float32. So do narrow products, among them
those of the last layers: they cost little, and a value of 8 bits would drown the differences that the learner lives on.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode

Precision = Literal["float32", "bfloat16"]
_NARROWEST = 64  # products with fewer inputs or outputs stay in float32


def computing_in(precision: Precision, device: torch.device) -> AbstractContextManager[Any]:
    """Return a context in which networks are computed in that precision; with float32 one that changes nothing."""
    return nullcontext() if precision == "float32" else WideProductsInBfloat16(device)


class WideProductsInBfloat16(TorchFunctionMode):
    """Computes wide linear layers by :class:`torch.autocast` in bfloat16, and returns what they give in float32.

    Autocast alone would also round what leaves the last layers, which are values and actions, and the statistics of layer
    normalization.

    Args:
        device: where the networks are.
    """

    def __init__(self, device: torch.device) -> None:
        super().__init__()
        self._device = device.type

    def __torch_function__(
        self, function: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        """Compute a function of torch."""
        place = _WEIGHT.get(function)
        if place is None or len(args) <= place or min(args[place].shape[-2:]) < _NARROWEST:
            return function(*args, **(kwargs or {}))
        with torch.autocast(self._device, torch.bfloat16):
            product: Tensor = function(*args, **(kwargs or {}))
        return product.float()


# functions of which the networks are made, and which of their arguments is the weight
_WEIGHT = {F.linear: 1, torch.bmm: 1, torch.baddbmm: 2}
