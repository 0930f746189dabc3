"""The wire between host and servos, with time given by hand, and the server on a real pseudo-terminal in a process of its own."""

import itertools
import os
import subprocess
import time
from collections.abc import Callable, Iterator
from dataclasses import replace

import pytest

from hw_drivers.dynamixel.models import find_model
from hw_drivers.dynamixel.packets import BROADCAST_ID, FastSyncRead, Ping, Read, Status, StatusDecoder, SyncRead, SyncWrite, Write
from hw_drivers.emulators.dynamixel import DynamixelBus
from hw_drivers.emulators.joints import FirstOrderJoints
from hw_drivers.emulators.servo_server import ServoFaults, ServoServer, ServoWire
from hw_drivers.serial_link import SerialLink

MS = 1_000_000
BAUD_RATE = 1_000_000
BYTE_NS = 10_000
PING_BYTES = len(Ping(1).to_bytes())
ANSWER_BYTES = 14
DELAY_NS = 500_000
GOOD = Status(1, data=bytes.fromhex("b0042e"))


def make_bus(ids: tuple[int, ...] = (1, 2)) -> DynamixelBus:
    return DynamixelBus(FirstOrderJoints([0.0] * len(ids)), [find_model("XL330-M288")] * len(ids), ids, baud_rate=BAUD_RATE)


def make_wire(ids: tuple[int, ...] = (1, 2), **faults: float) -> ServoWire:
    return ServoWire(make_bus(ids), ServoFaults(**faults))  # type: ignore[arg-type]


def listen(wire: ServoWire, until_ns: int, step_ns: int = 10_000, from_ns: int = 0) -> list[tuple[int, bytes]]:
    """Advance in steps; returns when bytes arrived, and which."""
    heard = []
    for now_ns in range(from_ns + step_ns, until_ns + 1, step_ns):
        data = wire.advance(now_ns)
        if data:
            heard.append((now_ns, data))
    return heard


def decode(heard: list[tuple[int, bytes]]) -> list[object]:
    return list(StatusDecoder().feed(b"".join(data for _, data in heard)))


def test_a_request_is_heard_and_an_answer_readable_when_the_last_bit_has_arrived() -> None:
    wire = make_wire()
    wire.send(Ping(1).to_bytes(), 0)
    heard_ns = PING_BYTES * BYTE_NS
    assert wire.next_event_ns == heard_ns
    heard = listen(wire, 2 * MS)
    assert heard[0] == (heard_ns + DELAY_NS + BYTE_NS, b"\xff")
    assert [at_ns for at_ns, _ in heard] == [heard_ns + DELAY_NS + count * BYTE_NS for count in range(1, ANSWER_BYTES + 1)]
    assert [len(data) for _, data in heard] == [1] * ANSWER_BYTES
    assert isinstance(decode(heard)[0], Status)
    assert wire.next_event_ns is None


def test_time_in_larger_steps_gives_the_same_bytes_later() -> None:
    wire = make_wire()
    wire.send(Ping(1).to_bytes(), 0)
    ((at_ns, data),) = listen(wire, 10 * MS, step_ns=MS)
    assert (at_ns, data) == (MS, GOOD.to_bytes())


def test_requests_given_at_once_follow_each_other_on_the_wire() -> None:
    wire = make_wire()
    write, read = SyncWrite.of(112, [(1, b"\x05\0\0\0")]).to_bytes(), Read(1, 112, 4).to_bytes()
    wire.send(write, 0)
    wire.send(read, 0)
    heard = listen(wire, 5 * MS)
    assert decode(heard) == [Status(1, data=b"\x05\0\0\0")]
    assert heard[0][0] == (len(write) + len(read)) * BYTE_NS + DELAY_NS + BYTE_NS


def test_a_host_that_talks_into_an_answer_damages_both() -> None:
    wire = make_wire()
    wire.send(Ping(1).to_bytes(), 0)
    answer_ns = PING_BYTES * BYTE_NS + DELAY_NS
    heard = listen(wire, answer_ns + 20_000)
    wire.send(Ping(2).to_bytes(), answer_ns + 20_000)
    heard += listen(wire, 5 * MS, from_ns=answer_ns + 20_000)
    assert decode(heard) == []
    wire.send(Ping(2).to_bytes(), 5 * MS)
    assert len(decode(listen(wire, 10 * MS, from_ns=5 * MS))) == 1


def test_servos_with_the_same_id_damage_each_others_answers() -> None:
    wire = make_wire(ids=(1, 1))
    wire.send(Ping(1).to_bytes(), 0)
    heard = listen(wire, 5 * MS)
    assert heard
    assert decode(heard) == []


def test_answers_that_follow_each_other_closely_do_not_damage_each_other() -> None:
    for baud_rate in (57_600, BAUD_RATE):
        bus = DynamixelBus(FirstOrderJoints([0.0] * 6), [find_model("XL330-M288")] * 6, baud_rate=baud_rate)
        wire = ServoWire(bus, ServoFaults())
        for request, expected in ((FastSyncRead.of(132, 4, range(1, 7)), 1), (SyncRead.of(132, 4, range(1, 7)), 6)):
            now_ns = round(wire._host_talks_until_ns, -7) + 100 * MS
            wire.advance(now_ns)
            wire.send(request.to_bytes(), now_ns)
            assert len(decode(listen(wire, now_ns + 100 * MS, step_ns=MS, from_ns=now_ns))) == expected


def test_a_host_at_another_baud_rate_is_not_understood() -> None:
    wire = make_wire()
    wire.set_baud_rate(57_600)
    wire.send(Ping(1).to_bytes(), 0)
    assert listen(wire, 10 * MS) == []
    wire.set_baud_rate(BAUD_RATE)
    wire.send(Ping(1).to_bytes(), 10 * MS)
    assert len(decode(listen(wire, 20 * MS, from_ns=10 * MS))) == 1


def test_an_answer_at_another_rate_than_the_host_listens_is_garbage() -> None:
    wire = make_wire()
    wire.send(Ping(1).to_bytes(), 0)
    heard = listen(wire, PING_BYTES * BYTE_NS + 10_000)
    wire.set_baud_rate(57_600)
    heard += listen(wire, 20 * MS, from_ns=PING_BYTES * BYTE_NS + 10_000)
    assert sum(len(data) for _, data in heard) == ANSWER_BYTES
    assert decode(heard) == []


def answers(count: int = 40, period_ms: int = 10, **faults: float) -> list[list[tuple[int, bytes]]]:
    """What the host hears after each of many pings, with times from the ping on."""
    wire = make_wire(seed=3, **faults)
    heard = []
    for start_ns in range(0, count * period_ms * MS, period_ms * MS):
        wire.send(Ping(1).to_bytes(), start_ns)
        later = listen(wire, start_ns + period_ms * MS, step_ns=50_000, from_ns=start_ns)
        heard.append([(at_ns - start_ns, data) for at_ns, data in later])
    return heard


def test_faults_are_drawn_from_their_seed() -> None:
    some = answers(drop=0.5)
    assert some == answers(drop=0.5)
    assert 5 < sum(heard == [] for heard in some) < 35
    assert all(decode(heard) in ([], [GOOD]) for heard in some)


def test_a_dropped_answer_never_comes() -> None:
    assert answers(count=3, drop=1.0) == [[], [], []]


def test_a_late_answer_comes_unharmed_after_the_next_request() -> None:
    wire = make_wire(late=1.0, late_s=0.012)
    wire.send(Ping(1).to_bytes(), 0)
    assert listen(wire, 10 * MS) == []
    wire.send(Read(2, 132, 4).to_bytes(), 10 * MS)
    heard = listen(wire, 20 * MS, from_ns=10 * MS)
    assert decode(heard) == [GOOD]


def test_a_split_answer_has_a_gap_inside() -> None:
    for heard in answers(count=10, split=1.0, split_gap_s=0.003):
        assert decode(heard) == [GOOD]
        times = [at_ns for at_ns, _ in heard]
        gaps = [later - earlier for earlier, later in itertools.pairwise(times)]
        assert sum(gap >= 3 * MS for gap in gaps) == 1


def test_a_duplicated_answer_comes_twice() -> None:
    assert all(decode(heard) == [GOOD, GOOD] for heard in answers(count=5, duplicate=1.0))


@pytest.mark.parametrize("fault", ["corrupt", "truncate"])
def test_a_damaged_answer_is_not_accepted(fault: str) -> None:
    for heard in answers(count=20, **{fault: 1.0}):
        data = b"".join(data for _, data in heard)
        assert data != GOOD.to_bytes()
        assert len(data) == ANSWER_BYTES if fault == "corrupt" else len(data) < ANSWER_BYTES
        assert decode(heard) == []


def test_garbage_comes_before_an_answer_that_is_still_found() -> None:
    for heard in answers(count=20, garbage=1.0):
        data = b"".join(data for _, data in heard)
        assert ANSWER_BYTES < len(data) <= ANSWER_BYTES + 8
        assert data.endswith(GOOD.to_bytes())


def test_bytes_that_come_late_never_come_faster_than_the_wire_allows() -> None:
    wire = make_wire(ids=(1, 2, 3), garbage=1.0)  # so an answer is not over yet when the next one begins
    for servo in wire.bus.servos:  # type: ignore[attr-defined]
        servo.table["return_delay_time"] = 0
    wire.send(SyncRead.of(132, 4, [1, 2, 3]).to_bytes(), 0)
    heard = listen(wire, 5 * MS)
    assert {len(data) for _, data in heard} == {1}
    assert [status.id for status in decode(heard) if isinstance(status, Status)] == [1, 2, 3]


def test_a_wrong_id_is_in_an_answer_that_is_otherwise_right() -> None:
    assert all(decode(heard) == [replace(GOOD, id=2)] for heard in answers(count=3, wrong_id=1.0))


def test_the_echo_of_a_request_comes_before_the_answer() -> None:
    for heard in answers(count=3, echo=1.0):
        assert b"".join(data for _, data in heard) == Ping(1).to_bytes() + GOOD.to_bytes()


@pytest.mark.parametrize("wrong", [{"drop": 1.5}, {"late": -0.1}, {"late_s": -1.0}, {"corrupt": float("nan")}])
def test_faults_that_make_no_sense_are_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=next(iter(wrong))):
        ServoFaults(**wrong)  # type: ignore[arg-type]


SERVER = """
import json, signal, sys, time
from hw_drivers.dynamixel.models import find_model
from hw_drivers.emulators.dynamixel import DynamixelBus
from hw_drivers.emulators.joints import FirstOrderJoints
from hw_drivers.emulators.servo_server import ServoFaults, ServoServer

stopped = []
signal.signal(signal.SIGTERM, lambda *_: stopped.append(True))
bus = DynamixelBus(FirstOrderJoints([0.0] * 3), [find_model("XL330-M288")] * 3, baud_rate=1_000_000, start_ns=time.monotonic_ns())
with ServoServer(bus, faults=ServoFaults(**json.loads(sys.argv[1]))) as server:
    print(server.path, flush=True)
    server.serve(lambda: bool(stopped))
"""


@pytest.fixture
def serve(run_python: Callable[..., subprocess.Popen[str]]) -> Iterator[Callable[[str], str]]:
    """Serve three servos in a process of their own, which must end well; returns the port."""
    processes = []

    def run(faults: str = "{}") -> str:
        processes.append(run_python("-c", SERVER, faults))
        assert processes[-1].stdout is not None
        return str(processes[-1].stdout.readline().strip())

    yield run
    for process in processes:
        process.terminate()
        assert process.wait(timeout=10) == 0


def ask(link: SerialLink, request: bytes, answers: int = 1, timeout_s: float = 5.0) -> tuple[list[object], float]:
    """Return the answers and how long they took, s."""
    decoder = StatusDecoder()
    started_ns = time.monotonic_ns()
    deadline_ns = started_ns + round(timeout_s * 1e9)
    link.write(request, deadline_ns)
    received: list[object] = []
    while len(received) < answers and time.monotonic_ns() < deadline_ns:
        received += decoder.feed(link.read(deadline_ns))
    return received, (time.monotonic_ns() - started_ns) * 1e-9


def test_a_host_on_the_pseudo_terminal_gets_answers_and_not_before_the_wire_allows(serve: Callable[..., str]) -> None:
    link = SerialLink(serve(), BAUD_RATE)
    link.open()
    received, seconds = ask(link, SyncRead.of(132, 4, [1, 2, 3]).to_bytes(), answers=3)
    assert [status.id for status in received if isinstance(status, Status)] == [1, 2, 3]
    assert seconds >= (17 * BYTE_NS + 3 * (DELAY_NS + 15 * BYTE_NS)) * 1e-9
    link.close()


def test_hosts_come_and_go_and_find_the_servos_as_they_were(serve: Callable[..., str]) -> None:
    port = serve()
    for _ in range(2):
        link = SerialLink(port, BAUD_RATE)
        link.open()
        ask(link, Ping(1).to_bytes())
        link.close()
    link.open()
    assert ask(link, Write(1, 65, b"\x01").to_bytes())[0] == [Status(1)]
    link.close()
    link.open()
    assert ask(link, Read(1, 65, 1).to_bytes())[0] == [Status(1, data=b"\x01")]
    link.close()


def test_the_rate_of_the_pseudo_terminal_is_the_hosts_baud_rate(serve: Callable[..., str]) -> None:
    port = serve()
    for baud_rate, understood in ((57_600, False), (BAUD_RATE, True), (250_000, False)):
        link = SerialLink(port, baud_rate)
        link.open()
        received, _ = ask(link, Ping(2).to_bytes(), timeout_s=5.0 if understood else 0.1)
        assert bool(received) == understood
        link.close()


def test_a_servo_falls_silent_when_its_time_has_come(serve: Callable[..., str]) -> None:
    link = SerialLink(serve('{"silent_servo": 1, "silent_after_s": 0.5}'), BAUD_RATE)
    link.open()
    assert ask(link, Ping(2).to_bytes())[0]
    deadline = time.monotonic() + 10
    while ask(link, Ping(2).to_bytes(), timeout_s=0.1)[0]:
        assert time.monotonic() < deadline
    assert ask(link, Ping(1).to_bytes())[0]
    received, _ = ask(link, Ping(BROADCAST_ID).to_bytes(), answers=2)
    assert [status.id for status in received if isinstance(status, Status)] == [1, 3]
    link.close()


def test_a_closed_server_hangs_up_on_its_host() -> None:
    with ServoServer(make_bus()) as server:
        host = os.open(server.path, os.O_RDWR | os.O_NOCTTY)
        server.serve(lambda: True)
    server.close()
    assert os.read(host, 1) == b""
    os.close(host)
