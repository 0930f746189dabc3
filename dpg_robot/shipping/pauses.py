"""Pauses between attempts that grow while nothing works."""

from __future__ import annotations

import random

FIRST_S = 0.1
LONGEST_S = 10.0


class Pauses:
    """The pause doubles with each attempt; a part of it is random, so that many robots do not come back all at once."""

    def __init__(self, first_s: float = FIRST_S, longest_s: float = LONGEST_S) -> None:
        self._first_s = first_s
        self._longest_s = longest_s
        self._pause_s = first_s

    def next_s(self) -> float:
        """Return the next pause, seconds."""
        pause_s = self._pause_s
        self._pause_s = min(2 * pause_s, self._longest_s)
        return pause_s * random.uniform(0.5, 1.0)

    def reset(self) -> None:
        """Begin with the shortest again, because something worked."""
        self._pause_s = self._first_s
