"""How many wrong values a driver takes for valid when answers come late, split, twice, damaged or not at all.

Each servo's registers tell which servo it is and what time it was when they were read (:class:`StampedJoints`). A value is wrong
unless it is of the servo asked, from between the call that read it and its return.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from hw_drivers.benchmarks.families import STAMP_NS, Family
from hw_drivers.benchmarks.readers import Read, Reader
from hw_drivers.benchmarks.scheduled_faults import ScheduledFaults
from hw_drivers.benchmarks.transport import SimulatedTransport, TerminalTransport, Transport

BAUD_RATE = 1_000_000
PERIOD_NS = 10_000_000
"""Time from one read to the next, unless the read itself takes longer."""

_P = 0.05
SCENARIOS = {
    "late": ScheduledFaults(
        late=_P, least_late_s=0.001, late_s=0.09, split=_P, least_gap_s=0.001, split_gap_s=0.03, duplicate=_P, drop=_P
    ),
    "very-late": ScheduledFaults(late=_P, least_late_s=0.1, late_s=0.3),
    "garbled": ScheduledFaults(corrupt=_P, truncate=_P, garbage=_P),
    "other-id": ScheduledFaults(wrong_id=_P),
}
"""Faults by the name of the scenario; probabilities are per answer."""
SCENARIO_TEXTS = {
    "late": "5 % each of the answers late by 1 to 90 ms, split with a gap of 1 to 30 ms, doubled, lost",
    "very-late": "5 % of the answers late by 100 to 300 ms, some longer than the 200 ms that our driver expects unless told",
    "garbled": "5 % each of the answers with a flipped bit, without their end, behind random bytes",
    "other-id": "5 % of the answers name the next servo, with the right check sum",
}

WRONG_KINDS = ("stale", "of another servo", "never had")


@dataclass
class Outcome:
    """What came of a campaign.

    Attributes:
        reads: how often all servos were read.
        asked: values asked for, one of each servo in each read.
        accepted: values that the driver gave out as valid.
        wrong: of these, how many were wrong, by what they were.
        raised: reads that ended in an exception, of which no value counts.
        longest_s: longest time that a read took, s.
        mean_s: mean time, s.
        faults: how often each fault was done to an answer, and the number of answers.
    """

    reads: int = 0
    asked: int = 0
    accepted: int = 0
    wrong: dict[str, int] = field(default_factory=lambda: dict.fromkeys(WRONG_KINDS, 0))
    raised: int = 0
    longest_s: float = 0.0
    mean_s: float = 0.0
    faults: dict[str, int] = field(default_factory=dict)

    @property
    def wrong_accepted(self) -> int:
        """All wrong values that were accepted."""
        return sum(self.wrong.values())

    @property
    def missed(self) -> int:
        """Values that were asked for and not given out."""
        return self.asked - self.accepted

    def to_dict(self) -> dict[str, Any]:
        """Return all of it as plain values."""
        return asdict(self) | {"wrong_accepted": self.wrong_accepted, "missed": self.missed}


def run_simulated(
    reader: Reader, faults: ScheduledFaults, reads: int, servos: int, seed: int, progress: Callable[[int], object]
) -> Outcome:
    """Read in simulated time; ``progress`` is called with the number of reads done since its last call."""
    faults = _scheduled(faults, reader.family, seed)
    return campaign(reader, SimulatedTransport.stamped(reader.family, servos, BAUD_RATE, faults), reads, servos, progress)


def run_on_terminal(
    reader: Reader, faults: ScheduledFaults, reads: int, servos: int, seed: int, progress: Callable[[int], object]
) -> Outcome:
    """Read in real time through a pseudo-terminal that another process serves."""
    with TerminalTransport(reader.family, servos, BAUD_RATE, 0, _scheduled(faults, reader.family, seed)) as transport:
        return campaign(reader, transport, reads, servos, progress)


def campaign(reader: Reader, transport: Transport, reads: int, servos: int, progress: Callable[[int], object]) -> Outcome:
    """Read again and again, judge what is accepted, and return the counts."""
    outcome = Outcome()
    read = reader.open(transport, range(1, servos + 1))
    next_ns = transport.now_ns()
    for _ in range(reads):
        next_ns = max(next_ns + PERIOD_NS, transport.now_ns())
        transport.wait_until(next_ns)
        _read_once(read, reader.family, transport, servos, outcome)
        progress(1)
    outcome.mean_s /= max(reads, 1)
    outcome.faults = transport.faults()
    return outcome


def judge(number: int, index: int, servos: int, begin_ns: int, end_ns: int) -> str:
    """Say what is wrong with a number that was read of servo ``index`` between two times of the servos; empty if nothing."""
    stamp, owner = divmod(number, servos)
    if not 0 <= stamp <= end_ns // STAMP_NS:
        return "never had"
    if owner != index:
        return "of another servo"
    return "" if stamp >= begin_ns // STAMP_NS else "stale"


def _read_once(read: Read, family: Family, transport: Transport, servos: int, outcome: Outcome) -> None:
    begin_ns = transport.now_ns()
    values: Mapping[int, bytes] = {}
    try:
        values = read()
    except Exception:  # whatever a library raises on what it receives
        outcome.raised += 1
    end_ns = transport.now_ns()
    outcome.reads += 1
    outcome.asked += servos
    outcome.accepted += len(values)
    outcome.mean_s += (end_ns - begin_ns) * 1e-9
    outcome.longest_s = max(outcome.longest_s, (end_ns - begin_ns) * 1e-9)
    for servo, data in values.items():
        verdict = judge(family.number(data), servo - 1, servos, begin_ns - transport.start_ns, end_ns - transport.start_ns)
        if verdict:
            outcome.wrong[verdict] += 1


def _scheduled(faults: ScheduledFaults, family: Family, seed: int) -> ScheduledFaults:
    """Return the same faults for a family's answers, with counts of their own."""
    return replace(faults, seed=seed, id_offset=family.id_offset, counts=Counter())
