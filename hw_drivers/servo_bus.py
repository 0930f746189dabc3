"""Reads and writes all servos of one bus, within a deadline, and never takes a late answer for another.

An answer of a servo does not say which request it answers. What protects from stale values:

- a servo that was asked and did not answer, or that answered unasked, is **suspect**: no value of it is read again before it has
  told its own ID, in an answer of one byte, which no other is. Servos and adapters keep the order of what they send, so whatever
  came late lies before that answer, and is dropped;
- an answer counts only if the servo was asked, once in this exchange, in the order asked, and with the very length asked for;
- nor does an answer count right behind one that is missing, as it may be that one's under a wrong ID;
- reads that follow each other ask for different lengths, and none for a length of which an answer may still be on its way, so
  that neither a copy nor an answer that was overtaken fits a later request.

All suspects are asked for their IDs at once. One that is silent costs at most one bounded wait per read; the others stay valid.
Servos of one read that come after a silent one may be kept from answering by it, so they are suspects too; they are
asked again without it in the same call, if there is time.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

from dpg_robot.errors import LinkTimeoutError

_BITS_PER_BYTE = 10  # with start and stop bit
_DIFFERENT_LENGTHS = 4  # of reads that follow each other
_MOST_LONGER = 16  # bytes
_ID_BYTES = 1  # of the register with a servo's own ID; no other read asks for so few


@dataclass(frozen=True, slots=True)
class BusAnswer:
    """What a servo answered.

    Attributes:
        id: the servo.
        data: what was asked for.
        error: the error byte as the protocol has it, 0 for none.
    """

    id: int
    data: bytes
    error: int


class BusLink(Protocol):
    """What carries bytes; :class:`hw_drivers.serial_link.SerialLink` is one."""

    baud_rate: int

    def read(self, deadline_ns: int) -> bytes:
        """Return bytes as soon as there are any; empty when none came before the deadline."""
        ...

    def write(self, data: bytes, deadline_ns: int) -> None:
        """Send bytes. Raises LinkTimeoutError when they were not taken in time."""
        ...


class BusLanguage(Protocol):
    """What differs between families of servos.

    Attributes:
        id_address: of the register with the servo's own ID, one byte.
        overhead_bytes: length of an answer beyond its data.
        return_delay_ns: longest time between a request and a servo's answer to it.
        crc_errors: answers dropped because of their check sum.
    """

    id_address: int
    overhead_bytes: int
    return_delay_ns: int

    @property
    def crc_errors(self) -> int: ...  # noqa: D102

    def read(self, address: int, length: int, ids: Sequence[int]) -> bytes:
        """Return one request that all these servos answer, in this order."""
        ...

    def write(self, address: int, data: dict[int, bytes]) -> bytes:
        """Return one request that nobody answers; all data have the same length."""
        ...

    def feed(self, data: bytes) -> list[BusAnswer]:
        """Take received bytes and return the answers that they complete."""
        ...

    def reset(self) -> None:
        """Forget an answer that has begun."""
        ...


@dataclass
class BusCounters:
    """What went wrong on a bus.

    Attributes:
        missed: answers that did not come in time.
        unasked: answers that nobody had asked for: late, copied, or from another servo; they were dropped.
        retries: reads of servos that another, silent one may have kept from answering, in the same call.
        barriers: requests for the IDs of suspect servos, which tell their late answers from new ones.
        silent_barriers: those that not all of them answered in time.
        alarms: answers with an error set.
    """

    missed: int = 0
    unasked: int = 0
    retries: int = 0
    barriers: int = 0
    silent_barriers: int = 0
    alarms: int = 0


class ServoBus:
    """The servos of one bus.

    Args:
        link: carries the bytes; already open.
        language: the servos' protocol.
        ids: the servos.
        slack_s: how much longer than the wire needs an answer may take, for adapter and scheduler, s.
        longest_delay_s: how late an answer may still come, s.
        clock: monotonic time, ns; the one that the link's deadlines are on.

    Attributes:
        counters: what went wrong so far.
        errors: error byte of each servo's last answer.
    """

    def __init__(
        self,
        link: BusLink,
        language: BusLanguage,
        ids: Sequence[int],
        *,
        slack_s: float = 0.002,
        longest_delay_s: float = 0.2,
        clock: Callable[[], int] = time.monotonic_ns,
    ) -> None:
        if not ids or len(set(ids)) != len(ids):
            raise ValueError(f"a bus needs at least one servo and no ID twice, got {list(ids)}")
        if not slack_s > 0:
            raise ValueError(f"slack_s must be positive, got {slack_s}")
        self.counters = BusCounters()
        self.errors = dict.fromkeys(ids, 0)
        self._link, self._language, self._ids, self._clock = link, language, tuple(ids), clock
        self._slack_ns, self._longest_delay_ns = round(slack_s * 1e9), round(longest_delay_s * 1e9)
        self._suspects = dict.fromkeys(ids)  # nothing is known of what was asked before us; in the order to be asked
        self._lengths: deque[int] = deque(maxlen=_DIFFERENT_LENGTHS - 1)  # asked for in the last reads
        self._owed: list[tuple[int, int]] = []  # when an answer was missed, and its length

    @property
    def suspects(self) -> tuple[int, ...]:
        """Servos of which no value is read before they have told their IDs."""
        return tuple(self._suspects)

    def read(
        self, address: int, length: int, deadline_ns: int, *, ids: Sequence[int] | None = None, spare: int = _MOST_LONGER
    ) -> dict[int, bytes]:
        """Return ``length`` bytes from ``address`` of each servo that answered in time.

        A few bytes more are asked for, up to 4 while nothing is missed, so the registers behind must be readable too.

        Args:
            address: of the first byte.
            length: number of bytes.
            deadline_ns: when to return at the latest, on the bus's clock.
            ids: the servos to read, in this order; None for all.
            spare: most bytes more that may be asked for. With less than 4 there may be no length left for a read.

        Raises:
            LinkError: the link is gone.
        """
        wanted = list(self._ids if ids is None else ids)
        asked, answers = self._read_once(address, length, wanted, deadline_ns, spare, leave=None)
        missing = [servo for servo in asked if servo not in answers]
        if len(missing) > 1 and missing == asked[-len(missing) :] and self._clock() < deadline_ns:
            # the first that was missing seems to have kept all behind it from answering; they are asked again without it
            self.counters.retries += 1
            answers |= self._read_once(address, length, missing[1:], deadline_ns, spare, leave=missing[0])[1]
        return {servo: answer.data[:length] for servo, answer in answers.items()}

    def write(self, address: int, data: dict[int, bytes], deadline_ns: int) -> None:
        """Write the same registers of several servos; no answer is waited for.

        Raises:
            LinkTimeoutError: the adapter did not take the request before the deadline.
            LinkError: the link is gone.
        """
        if data:
            self._link.write(self._language.write(address, data), deadline_ns)

    def _read_once(
        self, address: int, length: int, ids: Sequence[int], deadline_ns: int, spare: int, *, leave: int | None
    ) -> tuple[list[int], dict[int, BusAnswer]]:
        """Clear suspects, all but ``leave``, and read those that are none then; returns whom it asked, and their answers."""
        self._clear_suspects(deadline_ns, leave)
        asked = [servo for servo in ids if servo not in self._suspects]
        longer = self._free_length(length, spare)
        if not asked or longer is None:
            return [], {}
        self._lengths.append(longer)
        return asked, self._exchange(self._language.read(address, longer, asked), asked, longer, deadline_ns)

    def _free_length(self, length: int, spare: int) -> int | None:
        """Return a length from ``length`` on that no answer under way can have; None if there is none that is short enough."""
        now_ns = self._clock()
        self._owed = [(missed_ns, owed) for missed_ns, owed in self._owed if now_ns - missed_ns < self._longest_delay_ns]
        taken = {*self._lengths, _ID_BYTES, *(owed for _, owed in self._owed)}
        return next((count for count in range(length, length + spare + 1) if count not in taken), None)

    def _clear_suspects(self, deadline_ns: int, leave: int | None) -> None:
        """Ask suspects, all but ``leave``, for their IDs; what they sent late comes before their answers."""
        suspects = [servo for servo in self._suspects if servo != leave]
        if not suspects or self._clock() >= deadline_ns:
            return
        self._language.reset()
        self.counters.barriers += 1
        heard = self._ask_ids(suspects, deadline_ns)
        for servo in heard:
            del self._suspects[servo]
        silent = [servo for servo in suspects if servo not in heard]
        if silent:
            self.counters.silent_barriers += 1
            self._suspects[silent[0]] = self._suspects.pop(silent[0])  # to the end of the row, as it may hold up the others

    def _ask_ids(self, suspects: Sequence[int], deadline_ns: int) -> list[int]:
        """Return which of these servos have told their own ID, in this order."""
        request = self._language.read(self._language.id_address, _ID_BYTES, suspects)
        due_ns = min(deadline_ns, self._due_ns(len(request), len(suspects), _ID_BYTES))
        heard: list[int] = []
        if not self._send(request, due_ns):
            return heard
        left = list(suspects)
        for answer in self._answers_until(due_ns):
            if answer.id not in left or not _tells_id(answer):
                self.counters.unasked += 1
                continue
            left.remove(answer.id)  # in any order, as each tells its own ID; it may be a late answer to an earlier request
            heard.append(answer.id)
            self._note(answer)
            if not left:
                break
        return heard

    def _exchange(self, request: bytes, asked: Sequence[int], length: int, deadline_ns: int) -> dict[int, BusAnswer]:
        """Send a request and return the answers to it by servo; servos without one become suspects."""
        due_ns = min(deadline_ns, self._due_ns(len(request), len(asked), length))
        answers: dict[int, BusAnswer] = {}
        spoilt: set[int] = set()
        if self._send(request, due_ns):
            last = -1
            for answer in self._answers_until(due_ns):
                if _tells_id(answer):
                    self.counters.unasked += 1  # a late answer to an earlier request for it was taken for that to the last one
                    continue
                place = asked.index(answer.id) if answer.id in asked else -1
                if place <= last or len(answer.data) != length:
                    self.counters.unasked += 1
                    spoilt.add(answer.id)
                else:
                    answers[answer.id] = answer
                    if place > last + 1:
                        spoilt.add(answer.id)  # it may be the missing one's, and its own be missing too
                last = max(last, place)
                if len(answers) == len(asked):
                    break
        missing = [servo for servo in asked if servo not in answers]
        self.counters.missed += len(missing)
        if missing:
            self._owed.append((self._clock(), length))
        # who was missing first may keep the others from answering, so it is asked last
        for servo in [*spoilt, *missing[1:], *missing[:1]]:
            answers.pop(servo, None)
            if servo in self._ids:
                self._suspects[servo] = None
        for answer in answers.values():
            self._note(answer)
        return answers

    def _send(self, request: bytes, deadline_ns: int) -> bool:
        try:
            self._link.write(request, deadline_ns)
        except LinkTimeoutError:
            return False  # the servos may have heard a part of it; whoever was asked becomes a suspect
        return True

    def _answers_until(self, deadline_ns: int) -> Iterator[BusAnswer]:
        """Yield answers as they come, up to the deadline."""
        while True:
            data = self._link.read(deadline_ns)
            yield from self._language.feed(data)
            if not data and self._clock() >= deadline_ns:
                return

    def _due_ns(self, request_bytes: int, answers: int, length: int) -> int:
        """Return when all answers will have come, if they come."""
        wire_bytes = request_bytes + answers * (length + self._language.overhead_bytes)
        wire_ns = round(wire_bytes * _BITS_PER_BYTE * 1e9 / self._link.baud_rate)
        return self._clock() + wire_ns + answers * self._language.return_delay_ns + self._slack_ns

    def _note(self, answer: BusAnswer) -> None:
        self.errors[answer.id] = answer.error
        self.counters.alarms += answer.error != 0


def _tells_id(answer: BusAnswer) -> bool:
    return len(answer.data) == _ID_BYTES and answer.data[0] == answer.id
