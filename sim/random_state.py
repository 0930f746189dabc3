"""The state of a random generator as an array, for saving without pickle."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
from numpy.typing import NDArray


def random_state(random: np.random.Generator) -> NDArray[np.uint8]:
    """Return the state of ``random`` as bytes of JSON."""
    text = json.dumps(random.bit_generator.state, default=lambda array: array.tolist())
    return np.frombuffer(text.encode(), dtype=np.uint8).copy()


def set_random_state(random: np.random.Generator, state: NDArray[Any]) -> None:
    """Put back what :func:`random_state` returned, into a generator of the same kind."""
    values = json.loads(bytes(state))
    values["state"]["state"] = np.array(values["state"]["state"], dtype=np.uint64)
    random.bit_generator.state = values
