"""Saved states of environments: what they were saved from, and whether they fit."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dpg_robot.errors import CheckpointError

_HEADER = "saved_from"

State = Mapping[str, NDArray[Any]]


def header(facts: dict[str, Any]) -> dict[str, NDArray[Any]]:
    """Return an entry for a saved state that says what it was saved from, as plain values by name."""
    return {_HEADER: np.frombuffer(json.dumps(facts).encode(), dtype=np.uint8).copy()}


def require_fitting(state: State, own: State) -> None:
    """Refuse a state that was saved from an environment of another kind; ``own`` is a state of this one.

    Raises:
        CheckpointError: names what differs.
    """
    if _HEADER not in state:
        raise CheckpointError("this is not the saved state of an environment; pass what state_dict() returned")
    theirs, ours = (json.loads(bytes(each[_HEADER])) for each in (state, own))
    different = [f"{name} {theirs.get(name)!r}, here {value!r}" for name, value in ours.items() if theirs.get(name) != value]
    if different:
        raise CheckpointError(
            f"the state was saved with {'; '.join(different)}; load it into an environment made in the same way"
        )


def require_same_shapes(state: State, own: State) -> None:
    """Refuse a state with other arrays than ``own``, a state of this environment.

    Raises:
        CheckpointError: names the arrays that are missing, surplus or of another shape.
    """
    shapes, expected = ({name: np.shape(values) for name, values in each.items() if name != _HEADER} for each in (state, own))
    wrong = [name for name in {**expected, **shapes} if shapes.get(name) != expected.get(name)]
    random = {"random"}  # its length depends on the numbers in it
    if wrong := sorted(set(wrong) - random):
        got = ", ".join(f"{name} {shapes.get(name, 'missing')}, expected {expected.get(name, 'none')}" for name in wrong[:5])
        raise CheckpointError(f"the saved state does not fit this environment: {got}")
