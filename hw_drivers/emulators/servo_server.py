"""Serves emulated servos in real time on a pseudo-terminal, as they would answer on a wire, with faults on demand.

On the wire a byte takes ten bit times, and either the host talks or a servo. A request is heard when its last bit would have
arrived; an answer's bytes become readable when theirs would have, in slices of a millisecond, as USB adapters pass them on.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import random
import select
import struct
import time
from bisect import insort
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, fields
from types import TracebackType
from typing import Self

from hw_drivers.emulators.joints import Answer, EmulatedBus
from hw_drivers.emulators.pseudo_terminal import open_pseudo_terminal

_STEP_NS = 1_000_000
_READ_BYTES = 4096
_BITS_PER_BYTE = 10  # with start and stop bit
_MAX_GARBAGE_BYTES = 8
_TCGETS2 = 0x802C542A  # unlike tcgetattr it tells any rate, not only the customary ones
_TERMIOS2_BYTES = 44


@dataclass(frozen=True)
class ServoFaults:
    """Damage done on purpose; numbers without a unit are probabilities per answer.

    Attributes:
        seed: seed of the choices.
        drop: the answer is not sent.
        late: it comes ``late_s`` late.
        late_s: how late, seconds.
        split: it comes in two pieces with ``split_gap_s`` between them.
        split_gap_s: how long the gap is, seconds.
        duplicate: it is sent twice.
        corrupt: one bit of it is flipped.
        garbage: one to eight random bytes come before it.
        truncate: its end is missing.
        wrong_id: it names another servo, with the right check sum.
        echo: probability per request that the host receives its own bytes.
        silent_servo: number of a servo, from 0, that stops hearing and answering; None for none.
        silent_after_s: when it does, seconds after the server was made.
    """

    seed: int = 0
    drop: float = 0.0
    late: float = 0.0
    late_s: float = 0.02
    split: float = 0.0
    split_gap_s: float = 0.003
    duplicate: float = 0.0
    corrupt: float = 0.0
    garbage: float = 0.0
    truncate: float = 0.0
    wrong_id: float = 0.0
    echo: float = 0.0
    silent_servo: int | None = None
    silent_after_s: float = 0.0

    def __post_init__(self) -> None:
        for entry in fields(self):
            value = getattr(self, entry.name)
            if entry.type == "float" and not (value >= 0 and (entry.name.endswith("_s") or value <= 1)):
                expected = "a time of at least 0 s" if entry.name.endswith("_s") else "a probability"
                raise ValueError(f"{entry.name} must be {expected}, got {value}")

    def apply(
        self, answer: Answer, chance: random.Random, byte_ns: float, with_other_id: Callable[[bytes], bytes]
    ) -> list[Answer]:
        """Return what the host gets of an answer, whose bytes take ``byte_ns`` each; ``chance`` makes the choices."""
        due_ns, data = answer.due_ns, answer.data
        if chance.random() < self.drop:
            return []
        if chance.random() < self.wrong_id:
            data = with_other_id(data)
        if chance.random() < self.corrupt:
            bit = chance.randrange(8 * len(data))
            data = data[: bit // 8] + bytes([data[bit // 8] ^ 1 << bit % 8]) + data[bit // 8 + 1 :]
        if chance.random() < self.truncate:
            data = data[: chance.randrange(len(data))]
        if chance.random() < self.garbage:
            data = chance.randbytes(chance.randint(1, _MAX_GARBAGE_BYTES)) + data
        if chance.random() < self.late:
            due_ns += round(self.late_s * 1e9)
        pieces = [Answer(due_ns, data)]
        if chance.random() < self.split and len(data) > 1:
            cut = chance.randrange(1, len(data))
            rest_ns = due_ns + round(cut * byte_ns + self.split_gap_s * 1e9)
            pieces = [Answer(due_ns, data[:cut]), Answer(rest_ns, data[cut:])]
        if chance.random() < self.duplicate:
            pieces.append(Answer(pieces[-1].due_ns + round(len(pieces[-1].data) * byte_ns), data))
        return pieces


@dataclass(slots=True)
class _Transfer:
    """Bytes on their way to the host, sent without pauses."""

    begin_ns: int
    data: bytes


class ServoWire:
    """The half-duplex wire between the host and a bus: when which bytes arrive. Pure logic, time is an argument.

    When two talk at once, whether servos or a servo and the host, the bytes of both turn into garbage.
    """

    def __init__(self, bus: EmulatedBus, faults: ServoFaults) -> None:
        self.bus = bus
        self._faults = faults
        self._chance = random.Random(faults.seed)
        self._byte_ns = _BITS_PER_BYTE * 1e9 / bus.baud_rate
        self._to_bus: deque[tuple[int, int]] = deque()  # when the byte has arrived, the byte
        self._to_host: list[_Transfer] = []  # in the order of their times; the first may have begun to arrive
        self._answers: list[tuple[int, int]] = []  # when servos talk: begin, end
        self._host_talks_until_ns = 0

    @property
    def next_event_ns(self) -> int | None:
        """When a request or an answer will have arrived; None if nothing is on the way."""
        times = [self._to_bus[-1][0]] if self._to_bus else []
        if self._to_host:
            times.append(self._end_ns(self._to_host[0].begin_ns, self._to_host[0].data))
        return min(times, default=None)

    def set_baud_rate(self, baud_rate: int) -> None:
        """Let the host talk and listen at this rate from now on; what is still on the way to it turns into garbage."""
        if baud_rate != self.bus.baud_rate:
            self.bus.baud_rate = baud_rate
            self._byte_ns = _BITS_PER_BYTE * 1e9 / baud_rate
            self._garble(0, None)

    def send(self, data: bytes, now_ns: int) -> None:
        """Let the host send bytes, beginning at ``now_ns`` or when it has sent what it gave before."""
        begin_ns = max(now_ns, self._host_talks_until_ns)
        end_ns = self._host_talks_until_ns = self._end_ns(begin_ns, data)
        self._answers = [(begin, end) for begin, end in self._answers if end > now_ns]
        if any(self._overlap(begin_ns, end_ns, begin, end) for begin, end in self._answers):
            data = self._chance.randbytes(len(data))
            self._garble(begin_ns, end_ns)
        for count, byte in enumerate(data, start=1):
            self._to_bus.append((begin_ns + round(count * self._byte_ns), byte))
        if self._chance.random() < self._faults.echo:
            self._put(begin_ns, data)

    def advance(self, now_ns: int) -> bytes:
        """Let time pass up to ``now_ns`` and return the bytes that have arrived at the host since the last call."""
        arrived = bytearray()
        heard_ns = 0
        while self._to_bus and self._to_bus[0][0] <= now_ns:
            heard_ns, byte = self._to_bus.popleft()
            arrived.append(byte)
        if arrived:
            self._answer(self.bus.receive(bytes(arrived), heard_ns))
        self.bus.advance(now_ns)
        return self._take(now_ns)

    def hang_up(self) -> None:
        """Forget what is on the way, as the host has gone."""
        self._to_bus.clear()
        self._to_host.clear()
        self._answers.clear()
        self._host_talks_until_ns = 0

    def _answer(self, answers: list[Answer]) -> None:
        """Put answers on the wire, and what the faults make of them on the way to the host."""
        spans = [(answer.due_ns, self._end_ns(answer.due_ns, answer.data)) for answer in answers]
        host = (0, self._host_talks_until_ns)
        for number, answer in enumerate(answers):
            others = [host, *spans[:number], *spans[number + 1 :]]
            if any(self._overlap(*spans[number], *other) for other in others):
                answer = Answer(answer.due_ns, self._chance.randbytes(len(answer.data)))
            for piece in self._faults.apply(answer, self._chance, self._byte_ns, self.bus.with_other_id):
                self._put(piece.due_ns, piece.data)
        self._answers += spans

    def _put(self, begin_ns: int, data: bytes) -> None:
        if data:
            insort(self._to_host, _Transfer(begin_ns, data), key=lambda transfer: transfer.begin_ns)

    def _take(self, now_ns: int) -> bytes:
        """Return the bytes whose last bit has arrived at the host. Of what comes at once the later waits for the earlier."""
        taken = bytearray()
        free_ns = 0
        while self._to_host:
            transfer = self._to_host[0]
            transfer.begin_ns = max(transfer.begin_ns, free_ns)
            count = min(max(0, int((now_ns - transfer.begin_ns) / self._byte_ns)), len(transfer.data))
            taken += transfer.data[:count]
            free_ns = transfer.begin_ns = transfer.begin_ns + round(count * self._byte_ns)
            transfer.data = transfer.data[count:]
            if transfer.data:
                break
            self._to_host.pop(0)
        return bytes(taken)

    def _garble(self, begin_ns: int, end_ns: int | None) -> None:
        """Replace bytes that are on the way to the host in this span of time."""
        for transfer in self._to_host:
            if end_ns is None or self._overlap(
                begin_ns, end_ns, transfer.begin_ns, self._end_ns(transfer.begin_ns, transfer.data)
            ):
                transfer.data = self._chance.randbytes(len(transfer.data))

    def _end_ns(self, begin_ns: int, data: bytes) -> int:
        return begin_ns + round(len(data) * self._byte_ns)

    def _overlap(self, begin_ns: int, end_ns: int, other_begin_ns: int, other_end_ns: int) -> bool:
        """Whether two spans of time share more than half a bit, as they follow each other without a gap."""
        return min(end_ns, other_end_ns) - max(begin_ns, other_begin_ns) > self._byte_ns / (2 * _BITS_PER_BYTE)


class ServoServer:
    """Serves a bus of emulated servos in real time on a new pseudo-terminal.

    Hosts may come and go; the servos go on meanwhile, as their own power supply does. The host's baud rate is the one that it set
    on the pseudo-terminal.

    Attributes:
        path: path of the pseudo-terminal, for the host to open.
        bus: the emulated servos.
    """

    def __init__(self, bus: EmulatedBus, *, faults: ServoFaults | None = None) -> None:
        self.bus = bus
        self._faults = faults or ServoFaults()
        self._wire = ServoWire(bus, self._faults)
        self._silent_at_ns = time.monotonic_ns() + round(self._faults.silent_after_s * 1e9)
        self._connected = False
        self._master, self.path, self._poll = open_pseudo_terminal()

    def serve(self, should_stop: Callable[[], bool]) -> None:
        """Answer requests until ``should_stop()``, which is asked every millisecond."""
        while not should_stop():
            received = self._wait()
            now_ns = time.monotonic_ns()
            if self._faults.silent_servo is not None and now_ns >= self._silent_at_ns:
                self.bus.silence(self._faults.silent_servo)
            if self._connected:
                self._wire.set_baud_rate(self._baud_rate())
            if received:
                self._wire.send(received, now_ns)
            answered = self._wire.advance(now_ns)
            if answered and self._connected:
                # The host does not read, or has gone: a real adapter loses these bytes too.
                with contextlib.suppress(OSError):
                    os.write(self._master, answered)

    def close(self) -> None:
        """Remove the pseudo-terminal."""
        if self._master >= 0:
            os.close(self._master)
            self._master = -1

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def _wait(self) -> bytes:
        """Return received bytes as soon as there are any, at the latest when an answer is due; notice when the host has gone."""
        now_ns = time.monotonic_ns()
        event_ns = self._wire.next_event_ns
        wait_s = (_STEP_NS if event_ns is None else min(max(event_ns - now_ns, 0), _STEP_NS)) * 1e-9
        if not self._connected:
            time.sleep(wait_s)  # select would return at once
        else:
            select.select([self._master], [], [], wait_s)  # finer than the milliseconds of poll
        events = self._poll.poll(0)
        flags = events[0][1] if events else 0
        if flags & select.POLLIN:
            with contextlib.suppress(OSError):  # hung up in between; the next round sees it
                self._connected = True
                return os.read(self._master, _READ_BYTES)
        elif flags & select.POLLHUP:
            if self._connected:
                self._wire.hang_up()
            self._connected = False
        else:
            self._connected = True
        return b""

    def _baud_rate(self) -> int:
        """Return the rate that the host has set, bits per second."""
        termios2 = bytearray(_TERMIOS2_BYTES)
        fcntl.ioctl(self._master, _TCGETS2, termios2)
        output_rate: int = struct.unpack_from("=I", termios2, _TERMIOS2_BYTES - 4)[0]
        return max(output_rate, 1)
