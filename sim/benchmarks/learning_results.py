"""What a learning run gave."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Result:
    """What a training run gave.

    Attributes:
        curve: ``frames`` and the ``returns`` of all episodes, one entry per evaluation.
        training_s: time of the run without its evaluations, s.
        updates: updates done, as the algorithm counts them.
        versions: of Python and the packages that matter.
        code: git commit and whether the tree differed from it, where git can tell, and a digest of the learner's source.
        date: when the run ended, UTC.
    """

    curve: list[dict[str, Any]]
    training_s: float
    updates: int
    versions: dict[str, str | None]
    code: dict[str, Any]
    date: str
