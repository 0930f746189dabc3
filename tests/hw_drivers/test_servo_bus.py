"""The servo bus: no late or copied answer is ever taken for another, and one silent servo does not cost the others."""

import random

import pytest

from dpg_robot.errors import LinkTimeoutError
from hw_drivers.dynamixel.language import DynamixelLanguage
from hw_drivers.dynamixel.models import find_model
from hw_drivers.dynamixel.packets import InstructionDecoder, SyncRead
from hw_drivers.emulators.dynamixel import DynamixelBus
from hw_drivers.emulators.feetech import FeetechBus
from hw_drivers.emulators.joints import FirstOrderJoints
from hw_drivers.emulators.servo_server import ServoFaults, ServoWire
from hw_drivers.feetech.language import FeetechLanguage
from hw_drivers.feetech.models import STS3215
from hw_drivers.feetech.packets import ErrorFlag
from hw_drivers.servo_bus import BusAnswer, ServoBus

MODEL = find_model("XL330-M288")
BAUD_RATE = 1_000_000
IDS = (1, 2, 3)
TICK_NS = 10_000_000
PRESENT = MODEL.register("present_position")


class VirtualLink:
    """A link over the wire model, whose time passes only while somebody waits."""

    baud_rate = BAUD_RATE

    def __init__(self, wire):
        self.wire, self.now_ns, self.received = wire, 0, b""
        self.blocked = False

    def read(self, deadline_ns):
        while not self.received and self.now_ns < deadline_ns:
            self.pass_time(min(deadline_ns, self.now_ns + 50_000))
        received, self.received = self.received, b""
        return received

    def write(self, data, deadline_ns):
        if self.blocked:
            self.pass_time(max(deadline_ns, self.now_ns))
            raise LinkTimeoutError("blocked")
        self.wire.send(data, self.now_ns)

    def pass_time(self, until_ns, step_ns=50_000):
        while self.now_ns < until_ns:
            self.now_ns = min(until_ns, self.now_ns + step_ns)
            self.received += self.wire.advance(self.now_ns)


class Numbered(FirstOrderJoints):
    """Joints whose position is another one at every tick, so that a stale value shows."""

    def __init__(self, count, present=PRESENT):
        super().__init__([0.0] * count)
        self.turn, self.present = 0, present

    def position(self, index):
        return self.present.to_si(self.turn + 1_000 * index)


def make_feetech(faults):
    joints = Numbered(len(IDS), STS3215.register("present_position"))
    servos = FeetechBus(joints, [STS3215] * len(IDS), IDS, baud_rate=BAUD_RATE)
    for servo in servos.servos:
        servo.registers["return_delay_time"] = 0
    link = VirtualLink(ServoWire(servos, faults))
    bus = ServoBus(link, FeetechLanguage(return_delay=0), IDS, clock=lambda: link.now_ns)
    return bus, link, joints, servos


def make(faults=None, **options):
    joints = Numbered(len(IDS))
    servos = DynamixelBus(joints, [MODEL] * len(IDS), IDS, baud_rate=BAUD_RATE)
    for servo in servos.servos:
        servo.table["return_delay_time"] = 0
    link = VirtualLink(ServoWire(servos, faults or ServoFaults()))
    bus = ServoBus(link, DynamixelLanguage(return_delay=0), IDS, clock=lambda: link.now_ns, **options)
    return bus, link, joints, servos


def tick(bus, link, joints, number):
    """Move on to the next tick and read; returns the positions as whole numbers, less those of the joints' own offsets."""
    link.pass_time(max(number * TICK_NS, link.now_ns), step_ns=1_000_000)
    joints.turn = number
    present = joints.present
    read = bus.read(present.address, present.size, link.now_ns + TICK_NS // 2)
    return {servo: present.decode(data) - 1_000 * IDS.index(servo) for servo, data in read.items()}


def test_all_servos_are_read_in_one_exchange():
    bus, link, joints, _ = make()
    assert bus.suspects == IDS, "what was asked before we came is not known"
    for number in range(1, 50):
        assert tick(bus, link, joints, number) == dict.fromkeys(IDS, number)
    assert bus.counters.barriers == 1
    assert (bus.counters.missed, bus.counters.unasked) == (0, 0)


@pytest.mark.parametrize(
    "faults",
    [
        {"late": 0.2, "late_s": 0.003},
        {"late": 0.2, "late_s": 0.008},
        {"late": 0.2, "late_s": 0.0105},
        {"late": 0.3, "late_s": 0.04},
        {"late": 0.1, "late_s": 0.12},
        {"late": 0.1, "late_s": 0.19},
        {"duplicate": 0.3},
        {"drop": 0.2},
        {"split": 0.5, "split_gap_s": 0.002},
        {"split": 0.5, "split_gap_s": 0.012},
        {"corrupt": 0.2, "truncate": 0.2, "garbage": 0.2},
        {"late": 0.1, "late_s": 0.0105, "duplicate": 0.1, "drop": 0.1, "split": 0.1, "corrupt": 0.05, "garbage": 0.1},
    ],
    ids=lambda faults: ",".join(faults) + f",{faults.get('late_s', faults.get('split_gap_s', ''))}",
)
@pytest.mark.parametrize("family", [make, make_feetech])
def test_no_stale_value_is_ever_returned(faults, family):
    bus, link, joints, _ = family(ServoFaults(seed=1, **faults))
    returned = garbled = 0
    for number in range(1, 300):
        for value in tick(bus, link, joints, number).values():
            assert value == number or not 0 <= value <= 300, "a value of another tick"
            returned += 1
            garbled += value != number
    assert returned > 100, "and some values do get through"
    weak = family is make_feetech and "garbage" in faults  # a check sum of 8 bits lets one of 256 damaged frames pass
    assert garbled <= (2 if weak else 0)


def test_feetech_servos_are_read_and_written_in_one_exchange():
    bus, link, joints, servos = make_feetech(ServoFaults())
    for number in range(1, 50):
        assert tick(bus, link, joints, number) == dict.fromkeys(IDS, number)
    assert (bus.counters.barriers, bus.counters.missed) == (1, 0)
    goal = STS3215.register("goal_position")
    bus.write(goal.address, {servo: goal.encode(2000 + servo) for servo in IDS}, link.now_ns + TICK_NS)
    link.pass_time(link.now_ns + TICK_NS)
    assert [servo.registers["goal_position"] for servo in servos.servos] == [2001, 2002, 2003]
    servos.servos[2].voltage = 3.0
    link.pass_time(link.now_ns + TICK_NS)
    assert tick(bus, link, joints, 60) == dict.fromkeys(IDS, 60)
    assert bus.errors[3] & ErrorFlag.VOLTAGE
    assert bus.errors[1] == 0


def test_a_silent_servo_costs_a_bounded_time_and_the_others_stay_valid():
    bus, link, joints, servos = make()
    tick(bus, link, joints, 1)
    servos.silence(0)  # the first in the row: it keeps the others from answering, so they are asked again
    assert tick(bus, link, joints, 2) == {2: 2, 3: 2}
    assert bus.counters.retries == 1
    longest_ns = 0
    for number in range(3, 60):
        started_ns = max(number * TICK_NS, link.now_ns)
        found = tick(bus, link, joints, number)
        longest_ns = max(longest_ns, link.now_ns - started_ns)
        assert found == {2: number, 3: number}
    assert bus.suspects == (1,)
    assert bus.counters.retries == 1
    # one request for an ID that is not answered, with its slack of 2 ms, and one read of two servos
    assert longest_ns < 2_000_000 + 1_500_000


def test_reads_end_by_their_deadline():
    bus, link, joints, servos = make(slack_s=1.0)
    tick(bus, link, joints, 1)
    for index in range(3):
        servos.silence(index)
    for number in range(2, 6):
        started_ns = max(number * TICK_NS, link.now_ns)
        assert tick(bus, link, joints, number) == {}
        assert link.now_ns - started_ns <= TICK_NS // 2 + 1_000


def test_a_request_that_could_not_be_sent_makes_suspects_and_no_exception():
    bus, link, joints, _ = make()
    tick(bus, link, joints, 1)
    link.blocked = True
    assert tick(bus, link, joints, 2) == {}
    assert set(bus.suspects) == set(IDS)
    link.blocked = False
    assert tick(bus, link, joints, 3) == dict.fromkeys(IDS, 3)
    link.blocked = True
    with pytest.raises(LinkTimeoutError):
        bus.write(116, {1: bytes(4)}, link.now_ns + 1000)


def test_goals_are_written_to_all_at_once():
    bus, link, _, servos = make()
    goals = {servo: (2048 + 10 * servo).to_bytes(4, "little") for servo in IDS}
    bus.write(MODEL.register("goal_position").address, goals, link.now_ns + TICK_NS)
    link.pass_time(link.now_ns + TICK_NS)
    assert [servo.table["goal_position"] for servo in servos.servos] == [2058, 2068, 2078]
    bus.write(116, {}, 0)


def test_an_alarm_is_told_with_the_values():
    bus, link, joints, servos = make()
    tick(bus, link, joints, 1)
    servos.servos[1].table["hardware_error_status"] = 0x20
    assert tick(bus, link, joints, 2) == dict.fromkeys(IDS, 2)
    assert bus.errors == {1: 0, 2: 0x80, 3: 0}
    assert bus.counters.alarms == 1


@pytest.mark.parametrize(
    ("ids", "options", "message"),
    [((), {}, "at least one servo"), ((1, 1), {}, "no ID twice"), ((1,), {"slack_s": 0.0}, "slack_s must be positive")],
)
def test_what_cannot_be_a_bus_is_refused(ids, options, message):
    with pytest.raises(ValueError, match=message):
        ServoBus(VirtualLink(None), DynamixelLanguage(), ids, **options)


def test_reads_that_follow_each_other_ask_for_different_lengths_and_not_for_that_of_an_id():
    bus, link, _, servos = make()
    asked, receive, decoder = [], servos.receive, InstructionDecoder()

    def listen(data, now_ns):
        reads = [packet for packet in decoder.feed(data) if isinstance(packet, SyncRead)]
        asked.extend(packet.length for packet in reads if packet.address != DynamixelLanguage.id_address)
        return receive(data, now_ns)

    servos.receive = listen
    draw = random.Random(0)
    for _ in range(60):
        length = draw.choice([1, 2, 3, 4])
        link.pass_time(link.now_ns + TICK_NS)
        read = bus.read(PRESENT.address, length, link.now_ns + TICK_NS)
        assert {len(data) for data in read.values()} == {length}
    assert len(asked) == 60
    assert 1 not in asked
    assert all(len(set(asked[start : start + 4])) == 4 for start in range(57))


class Script(DynamixelLanguage):
    """A link and a language in one, whose servos answer what the test says: a list of answers for each request.

    An answer is (ID, number of bytes), its bytes being zeros, or (ID, bytes).
    """

    baud_rate = BAUD_RATE

    def __init__(self, *answers):
        super().__init__(0)
        self.answers, self.now_ns, self.lengths = list(answers), 0, []

    def write(self, *arguments):
        if isinstance(arguments[0], bytes):  # the link's
            answers = self.answers.pop(0) if self.answers else ()
            self.next = [BusAnswer(servo, bytes(data), 0) for servo, data in answers]
            return None
        return super().write(*arguments)

    def read(self, *arguments):
        if len(arguments) > 1:  # the language's
            self.lengths.append(arguments[1])
            return b"read"
        if not self.next:
            self.now_ns = arguments[0]
            return b""
        return b"answers"

    def feed(self, data):
        answers, self.next = (self.next, []) if data else ([], self.next)
        return answers


def exchange(*answers, ids=(1, 2)):
    """Let all servos tell their IDs, then answer one read as scripted; returns the bus and who was read."""
    script = Script([(servo, [servo]) for servo in ids], *answers)
    bus = ServoBus(script, script, ids, clock=lambda: script.now_ns)
    return bus, set(bus.read(PRESENT.address, 4, 10**9)), script


@pytest.mark.parametrize(
    ("answers", "read", "suspects"),
    [
        ([(1, 4), (2, 4)], {1, 2}, ()),
        ([(1, 4)], {1}, (2,)),
        ([(2, 4), (1, 4)], set(), (1, 2)),  # the order is that of the request
        ([(2, 4)], set(), (1, 2)),  # it may be the first one's under a wrong ID, and the second's be lost
        ([(1, 4), (1, 4), (2, 4)], {2}, (1,)),  # which of the two is the answer?
        ([(1, 5), (2, 4)], {2}, (1,)),
        ([(1, 5), (1, 4), (2, 4)], {2}, (1,)),
        ([(7, 4), (1, 4), (2, 4)], {1, 2}, ()),
        ([], set(), (1, 2)),
    ],
)
def test_only_what_was_asked_counts_once_and_in_order(answers, read, suspects):
    bus, found, _ = exchange(answers)
    assert found == read
    assert set(bus.suspects) == set(suspects)


def test_a_suspect_is_cleared_by_its_own_id_alone():
    script = Script([(1, 4), (2, [2]), (1, [2])], [(1, 4), (1, [1])], [(1, 4)])
    bus = ServoBus(script, script, (1,), clock=lambda: script.now_ns)
    assert bus.read(PRESENT.address, 4, 10**9) == {}, "neither another length, nor another servo, nor under a wrong ID"
    assert bus.suspects == (1,)
    assert (bus.counters.barriers, bus.counters.silent_barriers, bus.counters.unasked) == (1, 1, 3)
    assert set(bus.read(PRESENT.address, 4, 2 * 10**9)) == {1}
    assert bus.counters.unasked == 4


def test_all_suspects_are_asked_at_once_and_the_first_silent_one_goes_to_the_end_of_the_row():
    script = Script([(1, [1]), (3, [3])], [(1, 4), (3, 4)], [(2, [2])], [(1, 5), (2, 5), (3, 5)])
    bus = ServoBus(script, script, (1, 2, 3, 4), clock=lambda: script.now_ns)
    assert set(bus.read(PRESENT.address, 4, 10**9)) == {1, 3}
    assert bus.suspects == (4, 2)
    assert set(bus.read(PRESENT.address, 4, 2 * 10**9)) == {1, 2, 3}
    assert bus.suspects == (4,)


def test_ids_that_come_late_do_not_spoil_the_values_behind_them():
    script = Script([], [(1, [1]), (2, [2])], [(1, [1]), (2, [2]), (1, 4), (2, 4)])
    bus = ServoBus(script, script, (1, 2), clock=lambda: script.now_ns)
    assert bus.read(PRESENT.address, 4, 10**9) == {}
    assert set(bus.read(PRESENT.address, 4, 2 * 10**9)) == {1, 2}, (
        "the answers to the first request for IDs, then those to the second"
    )
    assert bus.suspects == ()
    assert bus.counters.unasked == 2


@pytest.mark.parametrize("family", [make, make_feetech])
def test_answers_that_were_late_for_a_moment_cost_no_more_than_that_moment(family):
    bus, link, joints, _ = family(ServoFaults())
    assert tick(bus, link, joints, 1) == dict.fromkeys(IDS, 1)
    link.wire._faults = ServoFaults(late=1.0, late_s=0.0085)
    for number in (2, 3):
        assert tick(bus, link, joints, number) == {}
    link.wire._faults = ServoFaults()
    assert tick(bus, link, joints, 4) == dict.fromkeys(IDS, 4)


def test_ids_are_believed_in_any_order():
    script = Script([(2, [2]), (1, [1])], [(1, 4), (2, 4)])
    bus = ServoBus(script, script, (1, 2), clock=lambda: script.now_ns)
    assert set(bus.read(PRESENT.address, 4, 10**9)) == {1, 2}


def test_a_disturbance_of_one_read_costs_that_read_alone():
    bus, link, joints, _ = make()
    assert tick(bus, link, joints, 1) == dict.fromkeys(IDS, 1)
    link.wire._faults = ServoFaults(corrupt=1.0)
    assert tick(bus, link, joints, 2) == {}
    link.wire._faults = ServoFaults()
    assert tick(bus, link, joints, 3) == dict.fromkeys(IDS, 3)


def test_a_second_answer_under_the_same_id_spoils_the_first_of_feetech_too():
    bus, link, joints, servos = make_feetech(ServoFaults())
    assert tick(bus, link, joints, 1) == dict.fromkeys(IDS, 1)
    original = link.wire.send

    def send(data, now_ns):  # another servo answers under the ID of servo 2, before it
        original(data, now_ns)
        for answer in servos.receive(data, now_ns):
            if answer.data[2] == 2:
                link.received += answer.data

    link.wire.send = send
    read = tick(bus, link, joints, 2)
    assert bus.counters.unasked > 0
    assert 2 not in read, "neither of its two answers is believed"
    assert 2 in bus.suspects
