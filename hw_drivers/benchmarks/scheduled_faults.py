"""Faults that are the same for whoever asks: those of a servo's k-th answer follow from the seed, the servo and k alone.

A late answer may be overtaken by others, but no answer's bytes come between those of another one, as on no wire they do: what
would fall into the gap of a split answer waits for its end.
"""

from __future__ import annotations

import random
from bisect import insort
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field, fields
from typing import Any

from hw_drivers.emulators.joints import Answer
from hw_drivers.emulators.servo_server import ServoFaults

KINDS = ("drop", "late", "split", "duplicate", "corrupt", "truncate", "garbage", "wrong_id")


@dataclass(frozen=True)
class ScheduledFaults(ServoFaults):
    """Faults by a schedule, with delays and gaps of different lengths, drawn evenly on a logarithmic scale.

    Attributes:
        id_offset: place of the ID in an answer.
        least_late_s: shortest delay of a late answer; ``late_s`` is the longest.
        least_gap_s: shortest gap in a split answer; ``split_gap_s`` is the longest.
        counts: how often each fault was done, and "answers".
    """

    id_offset: int = 0
    least_late_s: float = 0.001
    least_gap_s: float = 0.001
    counts: Counter[str] = field(default_factory=Counter, compare=False)
    _answers: Counter[int] = field(default_factory=Counter, compare=False, init=False)
    _spans: list[tuple[int, int]] = field(default_factory=list, compare=False, init=False)

    def settings(self) -> dict[str, Any]:
        """Return all but the counts, as they can be given to make the same."""
        return {entry.name: getattr(self, entry.name) for entry in fields(self) if entry.compare}

    def apply(
        self, answer: Answer, chance: random.Random, byte_ns: float, with_other_id: Callable[[bytes], bytes]
    ) -> list[Answer]:
        """Return what the host gets of an answer, by the schedule; ``chance`` is not used."""
        servo = answer.data[self.id_offset]
        self._answers[servo] += 1
        draw = random.Random(f"{self.seed} {servo} {self._answers[servo]}")
        done = [kind for kind in KINDS if draw.random() < getattr(self, kind)]
        self.counts["answers"] += 1
        self.counts.update(done[:1] if "drop" in done else done)
        pieces = [answer]
        if done:
            pieces = self._damage(answer, done, draw, byte_ns, with_other_id)
        return self._whole(answer.due_ns, pieces, byte_ns) if pieces else []

    def _damage(
        self,
        answer: Answer,
        done: list[str],
        draw: random.Random,
        byte_ns: float,
        with_other_id: Callable[[bytes], bytes],
    ) -> list[Answer]:
        certain: dict[str, Any] = dict.fromkeys(done, 1.0)
        fault = ServoFaults(
            **certain,
            late_s=_between(draw, self.least_late_s, self.late_s),
            split_gap_s=_between(draw, self.least_gap_s, self.split_gap_s),
        )
        return fault.apply(answer, draw, byte_ns, with_other_id)

    def _whole(self, now_ns: int, pieces: list[Answer], byte_ns: float) -> list[Answer]:
        """Put off an answer's pieces until they do not meet what is already on its way."""
        self._spans[:] = [(begin, end) for begin, end in self._spans if end > now_ns]
        begin_ns, end_ns = pieces[0].due_ns, pieces[-1].due_ns + round(len(pieces[-1].data) * byte_ns)
        wait_ns = 0
        for begin, end in self._spans:
            if begin_ns + wait_ns < end and begin < end_ns + wait_ns:
                wait_ns = end - begin_ns
        insort(self._spans, (begin_ns + wait_ns, end_ns + wait_ns))
        return [Answer(piece.due_ns + wait_ns, piece.data) for piece in pieces]


def _between(draw: random.Random, low: float, high: float) -> float:
    return low * float((high / low) ** draw.random())
