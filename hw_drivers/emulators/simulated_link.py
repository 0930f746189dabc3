"""A link to emulated servos in simulated time: exact, and free of what the machine does."""

from __future__ import annotations

from dpg_robot.errors import LinkError, LinkTimeoutError
from hw_drivers.emulators.servo_server import ServoWire


class SimulatedLink:
    """Carries bytes over the wire's model; time passes only while the host waits.

    Attributes:
        baud_rate: bits per second.
        low_latency: true, as there is no adapter.
        is_open: whether the host opened it.
        now_ns: the time.
        blocked: whether the host's bytes are not taken, as by an adapter that hangs.
        unplugged: whether the adapter is gone.
    """

    low_latency = True

    def __init__(self, wire: ServoWire) -> None:
        self.baud_rate = wire.bus.baud_rate
        self.is_open = False
        self.now_ns = 0
        self.blocked = self.unplugged = False
        self._wire = wire
        self._received = bytearray()

    @property
    def waiting(self) -> int:
        """Number of bytes that have arrived and were not read."""
        return len(self._received)

    def clock(self) -> int:
        """Return the time, ns."""
        return self.now_ns

    def sleep(self, seconds: float) -> None:
        """Let time pass."""
        self.wait_until(self.now_ns + round(seconds * 1e9))

    def open(self) -> None:
        """Begin to listen. Raises LinkError when unplugged."""
        self._require_plug()
        self.is_open = True
        self._received.clear()

    def close(self) -> None:
        """Stop listening."""
        self.is_open = False

    def read(self, deadline_ns: int) -> bytes:
        """Return bytes as soon as there are any; empty when none came before the deadline. Raises LinkError when unplugged."""
        self._require_plug()
        while not self._received and self.now_ns < deadline_ns:
            self.wait_for_event(deadline_ns)
        return self.take(len(self._received))

    def write(self, data: bytes, deadline_ns: int) -> None:
        """Send bytes. Raises LinkTimeoutError when blocked, LinkError when unplugged."""
        self._require_plug()
        if self.blocked:
            self.wait_until(deadline_ns)
            raise LinkTimeoutError("the simulated link took no bytes before the deadline, as it is blocked")
        self._wire.send(data, self.now_ns)

    def take(self, count: int) -> bytes:
        """Return at most ``count`` of the bytes that have arrived."""
        taken = bytes(self._received[:count])
        del self._received[:count]
        return taken

    def wait_for_event(self, until_ns: int) -> None:
        """Let time pass until something has arrived at either end, or up to ``until_ns``."""
        event_ns = self._wire.next_event_ns
        self.wait_until(until_ns if event_ns is None else min(until_ns, max(event_ns, self.now_ns + 1)))

    def wait_until(self, until_ns: int) -> None:
        """Let time pass up to ``until_ns``."""
        self.now_ns = max(self.now_ns, until_ns)
        self._received += self._wire.advance(self.now_ns)

    def _require_plug(self) -> None:
        if self.unplugged:
            raise LinkError("the simulated link is gone (unplugged)")
