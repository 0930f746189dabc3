"""The benchmarks of servo buses: wrong values are found out, faults are the same for all, and times are those of the wire."""

import random
from collections import Counter
from dataclasses import replace

import pytest

from hw_drivers.benchmarks.bus_cycle import CYCLES_BEFORE, Setup, measure, simulate, simulate_silence
from hw_drivers.benchmarks.families import DYNAMIXEL, FAMILIES, FEETECH, STAMP_NS, StampedJoints
from hw_drivers.benchmarks.late_answers import BAUD_RATE, SCENARIOS, campaign, judge, run_on_terminal, run_simulated
from hw_drivers.benchmarks.readers import READERS, Reader
from hw_drivers.benchmarks.scheduled_faults import ScheduledFaults
from hw_drivers.benchmarks.transport import SimulatedTransport, TerminalTransport
from hw_drivers.dynamixel.packets import Read, Status, StatusDecoder
from hw_drivers.emulators.joints import Answer

SERVOS = 3
NO_FAULTS = ScheduledFaults()
BYTE_NS = 10_000.0


def reader_of(name, family):
    return next(reader for reader in READERS if reader.name == name and reader.family is family)


def run(reader, faults, reads=150):
    return run_simulated(reader, faults, reads, SERVOS, seed=1, progress=lambda count: None)


def naive(transport, ids):
    """Ask one servo after the other and take whatever comes next for its answer."""
    link, decoder = transport.link(), StatusDecoder()
    address, length = DYNAMIXEL.stamp

    def read():
        values = {}
        for servo in ids:
            link.write(Read(servo, address, length).to_bytes(), 0)
            deadline_ns = transport.now_ns() + 3_000_000
            packets = []
            while not packets and transport.now_ns() < deadline_ns:
                packets = [packet for packet in decoder.feed(link.read(deadline_ns)) if isinstance(packet, Status)]
            if packets:
                values[servo] = packets[0].data
        return values

    return read


def test_a_driver_that_takes_whatever_comes_is_found_out():
    outcome = run(Reader("naive", DYNAMIXEL, naive), SCENARIOS["late"])
    assert outcome.wrong["stale"] > 0
    assert outcome.wrong["of another servo"] > 0
    assert outcome.wrong_accepted == sum(outcome.wrong.values()) <= outcome.accepted
    assert run(Reader("naive", DYNAMIXEL, naive), NO_FAULTS).wrong_accepted == 0


@pytest.mark.parametrize("family", FAMILIES.values(), ids=list(FAMILIES))
def test_a_driver_that_returns_what_it_read_before_or_makes_it_up_is_found_out(family):
    def open_repeating(transport, ids):
        read = reader_of("ours", family).open(transport, ids)
        kept = []

        def read_or_repeat():
            kept.append(read())
            return kept[-2] if len(kept) % 2 == 0 else kept[-1]

        return read_or_repeat

    outcome = run(Reader("repeating", family, open_repeating), NO_FAULTS, reads=20)
    assert outcome.wrong == {"stale": 10 * SERVOS, "of another servo": 0, "never had": 0}
    made_up = Reader("made up", family, lambda transport, ids: lambda: dict.fromkeys(ids, b"\xff" * 4))
    assert run(made_up, NO_FAULTS, reads=4).wrong["never had"] == 4 * SERVOS


@pytest.mark.parametrize(
    ("stamp", "owner", "verdict"),
    [(10, 1, ""), (12, 1, ""), (9, 1, "stale"), (11, 2, "of another servo"), (9, 0, "of another servo"), (13, 1, "never had")],
)
def test_a_value_is_right_if_its_servo_had_it_during_the_call(stamp, owner, verdict):
    begin_ns, end_ns = 10 * STAMP_NS + 7, 12 * STAMP_NS + 3
    assert judge(SERVOS * stamp + owner, 1, SERVOS, begin_ns, end_ns) == verdict


def test_a_number_below_zero_is_one_that_no_servo_ever_had():
    assert judge(-1, 2, SERVOS, 0, STAMP_NS) == "never had"


@pytest.mark.parametrize("family", FAMILIES.values(), ids=list(FAMILIES))
def test_registers_tell_servo_and_time_over_hours(family):
    transport = SimulatedTransport.stamped(family, SERVOS, BAUD_RATE, NO_FAULTS)
    read = reader_of("ours", family).open(transport, range(1, SERVOS + 1))
    for hours in (0, 0.001, 0.1, 2):
        transport.wait_until(round(hours * 3600e9))
        begin_ns = transport.now_ns()
        values = read()
        assert set(values) == {1, 2, 3}
        for servo, data in values.items():
            stamp, owner = divmod(family.number(data), SERVOS)
            assert owner == servo - 1
            assert begin_ns // STAMP_NS <= stamp <= transport.now_ns() // STAMP_NS


@pytest.mark.parametrize("scenario", ["late", "garbled"])
@pytest.mark.parametrize("family", FAMILIES.values(), ids=list(FAMILIES))
def test_our_driver_accepts_no_stale_value(family, scenario):
    outcome = run(reader_of("ours", family), SCENARIOS[scenario], reads=300)
    assert outcome.wrong_accepted == 0
    assert outcome.accepted > outcome.asked / 3
    assert outcome.missed == outcome.asked - outcome.accepted > 0
    assert outcome.longest_s <= 0.005 + 1e-9, "its deadline"
    assert min(outcome.faults.values()) > 10


@pytest.mark.parametrize("reader", READERS, ids=lambda reader: f"{reader.family.name}, {reader.name}")
def test_without_faults_every_driver_reads_all(reader):
    if reader.missing:
        pytest.skip(reader.missing)
    outcome = run(reader, NO_FAULTS, reads=10)
    assert outcome.accepted == outcome.asked == 10 * SERVOS
    assert (outcome.wrong_accepted, outcome.raised) == (0, 0)
    pings = SERVOS if reader.name.startswith("ours") else 0
    assert outcome.faults == {"answers": 10 * SERVOS + pings}


def test_an_exception_of_a_library_is_counted_and_gives_no_value():
    def open_failing(transport, ids):
        def read():
            raise IndexError("list index out of range")

        return read

    outcome = run(Reader("failing", DYNAMIXEL, open_failing), NO_FAULTS, reads=3)
    assert (outcome.raised, outcome.accepted, outcome.asked) == (3, 0, 9)


def answers_of(faults, family, servo, count):
    bus = family.make_bus(StampedJoints(family, SERVOS), SERVOS, BAUD_RATE, 0)
    for number in range(count):
        data = Status(servo, data=bytes(4)).to_bytes()
        yield [
            (piece.due_ns - number * 10**9, piece.data)
            for piece in faults.apply(Answer(number * 10**9, data), random.Random(), BYTE_NS, bus.with_other_id)
        ]


def fresh(name="late", **changes):
    return replace(SCENARIOS[name], id_offset=DYNAMIXEL.id_offset, counts=Counter(), **changes)


def test_the_faults_of_an_answer_depend_on_seed_servo_and_count_alone():
    alone = list(answers_of(fresh(), DYNAMIXEL, 2, 100))
    shared = fresh()
    others, among = answers_of(shared, DYNAMIXEL, 1, 100), answers_of(shared, DYNAMIXEL, 2, 100)
    mixed = [(next(others), next(among))[1] for _ in range(100)]
    assert [[data for _, data in pieces] for pieces in alone] == [[data for _, data in pieces] for pieces in mixed]
    assert alone != list(answers_of(fresh(seed=5), DYNAMIXEL, 2, 100))
    assert shared.counts["answers"] == 200


def test_faults_come_as_often_as_asked_for_and_late_ones_within_their_bounds():
    faults = fresh(split=0.0, duplicate=0.0, drop=0.2, late=0.5)
    pieces = list(answers_of(faults, DYNAMIXEL, 1, 2000))
    assert sum(not some for some in pieces) == faults.counts["drop"]
    assert 320 < faults.counts["drop"] < 480
    delays = sorted(some[0][0] for some in pieces if some and some[0][0])
    assert 700 < len(delays) == faults.counts["late"] < 900
    assert 1_000_000 <= delays[0] < delays[-1] <= 90_000_000
    assert 5_000_000 < delays[len(delays) // 2] < 18_000_000, "even on a logarithmic scale"


def test_no_answer_falls_into_the_gap_of_another():
    faults = fresh(split=0.5, late=0.3)
    draw = random.Random(2)
    whole = {}
    sent = []
    for number in range(400):
        due_ns = number * 1_000_000
        data = Status(1 + number % SERVOS, data=draw.randbytes(4)).to_bytes()
        pieces = faults.apply(Answer(due_ns, data), draw, BYTE_NS, lambda data: data)
        if pieces:
            sent += [(piece.due_ns, number, piece.data) for piece in pieces]
            whole[number] = pieces
    order = [number for _, number, _ in sorted(sent)]
    assert len(whole) > 300
    runs = [number for at, number in enumerate(order) if at == 0 or order[at - 1] != number]
    assert len(runs) == len(set(runs)), "the pieces of each answer follow each other"


@pytest.mark.parametrize(
    ("setup", "least_bytes", "delays"),
    [
        (Setup(DYNAMIXEL, 6, 1_000_000, 0), 20 + 6 * 21 + 44, 0),
        (Setup(DYNAMIXEL, 12, 4_000_000, 250), 26 + 12 * 21 + 74, 12),
        (Setup(FEETECH, 6, 1_000_000, 0), 14 + 6 * 21 + 26, 0),
    ],
)
def test_cycles_take_hardly_more_than_their_bytes_need(setup, least_bytes, delays):
    least_s = least_bytes * 10 / setup.baud_rate + delays * 0.0005
    assert setup.least_s() == pytest.approx(least_s)
    times = simulate(setup, 40)
    assert times.valid == times.asked == 40 * setup.servos
    assert least_s <= times.p50_s <= times.p99_s <= times.longest_s <= 1.15 * least_s
    assert least_s < times.mean_s <= 1.06 * least_s


def test_a_fast_sync_read_would_need_one_answer_and_one_delay():
    assert Setup(DYNAMIXEL, 6, 1_000_000, 250).least_fast_s() == pytest.approx((20 + 8 + 6 * 14 + 44) * 10e-6 + 0.0005)
    assert Setup(FEETECH, 6, 1_000_000, 0).least_fast_s() is None


@pytest.mark.parametrize("family", FAMILIES.values(), ids=list(FAMILIES))
@pytest.mark.parametrize("silent", [0, 5])
def test_a_silent_servo_costs_one_time_out_in_each_cycle(family, silent):
    setup = Setup(family, 6, 1_000_000, 0)
    cycles = simulate_silence(setup, silent)
    before, after = cycles[:CYCLES_BEFORE], cycles[CYCLES_BEFORE:]
    assert {cycle.valid for cycle in before} == {6}
    assert {(cycle.valid, cycle.suspects) for cycle in after} == {(5, 1)}, "from the cycle on in which it falls silent"
    # the slack of 2 ms, and a ping instead of the answer
    assert max(cycle.time_s for cycle in after[3:]) < max(cycle.time_s for cycle in before) + 0.0021


@pytest.mark.parametrize(
    "reader", [READERS[0], READERS[2], READERS[-1]], ids=lambda reader: f"{reader.family.name}, {reader.name}"
)
def test_campaigns_run_through_a_real_terminal_too(reader):
    if reader.missing:
        pytest.skip(reader.missing)
    outcome = run_on_terminal(reader, fresh("late", drop=0.3), 15, SERVOS, 0, lambda count: None)
    assert outcome.reads == 15
    assert outcome.wrong["of another servo"] == outcome.wrong["never had"] == 0
    assert outcome.faults["answers"] > 0
    if reader.name == "ours":
        assert outcome.wrong_accepted == 0


def test_cycles_are_measured_through_a_real_terminal():
    setup, counted = Setup(DYNAMIXEL, 2, 4_000_000, 0), []
    times = measure(setup, 20, counted.append)
    assert times.asked == 40
    assert times.valid > 0
    assert sum(counted) == 20
    assert setup.least_s() < times.p50_s <= times.p99_s <= times.longest_s


def test_the_process_behind_a_terminal_ends_with_its_block():
    with TerminalTransport(FEETECH, 2, BAUD_RATE, 0, NO_FAULTS) as transport:
        assert transport._server.poll() is None
        transport.link()
    assert transport._server.poll() is not None


@pytest.mark.skipif(any(reader.missing for reader in READERS), reason="the vendors' libraries are not installed")
def test_the_vendors_libraries_are_judged_by_the_same_rule():
    examples = run(reader_of("feetech-servo-sdk, GroupSyncRead as in its examples", FEETECH), SCENARIOS["late"], reads=60)
    assert examples.wrong["stale"] > 0, "it leaves the values of the last read in place"
    assert examples.longest_s > 0.03, "its time-out"
    ours = run(reader_of("ours", FEETECH), SCENARIOS["late"], reads=60)
    assert ours.wrong_accepted == 0


def test_a_campaign_keeps_its_period_unless_a_read_takes_longer():
    transport = SimulatedTransport.stamped(DYNAMIXEL, SERVOS, BAUD_RATE, NO_FAULTS)
    begun = []

    def open_slow(transport, ids):
        def read():
            begun.append(transport.now_ns())
            transport.wait_until(transport.now_ns() + (25_000_000 if len(begun) == 2 else 1_000_000))
            return {}

        return read

    campaign(Reader("slow", DYNAMIXEL, open_slow), transport, 4, SERVOS, lambda count: None)
    assert begun == [10_000_000, 20_000_000, 45_000_000, 55_000_000]
