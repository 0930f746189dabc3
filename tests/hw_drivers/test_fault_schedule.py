"""Faults at chosen times on emulated servos, in simulated time: what they do to the bus, and that they end."""

import json
import os

import pytest

from dpg_robot.errors import UnknownNameError
from hw_drivers.dynamixel.family import DynamixelFamily
from hw_drivers.dynamixel.models import XL330_M288
from hw_drivers.emulators.dynamixel import DynamixelBus
from hw_drivers.emulators.fault_schedule import ALL, BREAKDOWNS, DAMAGES, BusFault, FaultSchedule, FaultyJoints
from hw_drivers.emulators.faulty_server import BusTrace, FaultyServer, TracedBus
from hw_drivers.emulators.feetech import FeetechBus
from hw_drivers.emulators.joints import FirstOrderJoints
from hw_drivers.emulators.servo_server import ServoWire
from hw_drivers.emulators.simulated_link import SimulatedLink
from hw_drivers.feetech.family import FeetechFamily
from hw_drivers.feetech.models import STS3215
from hw_drivers.servo_bus import ServoBus

ANGLES = [0.1 * number for number in range(6)]
TICK_NS = 40_000_000


class Rig:
    """Six servos at 0, 0.1, ... 0.5 rad, a bus that reads them, and faults."""

    def __init__(self, family):
        self.joints = FaultyJoints(FirstOrderJoints(ANGLES))
        make, self.model = (DynamixelBus, XL330_M288) if family == "dynamixel" else (FeetechBus, STS3215)
        self.family = DynamixelFamily() if family == "dynamixel" else FeetechFamily()
        self.servos = make(self.joints, [self.model] * 6, baud_rate=1_000_000)
        self.schedule = FaultSchedule(self.servos, self.joints)
        self.link = SimulatedLink(ServoWire(self.servos, self.schedule))
        self.link.open()
        self.bus = ServoBus(self.link, self.family.language(), range(1, 7), clock=self.link.clock)
        self.position = self.model.register("present_position")

    def add(self, kind, duration_s=10.0, servo=ALL, amount=0.0):
        self.schedule.add(BusFault(kind, 0.0, duration_s, servo, amount), self.link.now_ns)

    def read(self):
        """Let a tick pass; returns who was read, and where, rad."""
        self.link.sleep(TICK_NS * 1e-9)
        self.schedule.advance(self.link.now_ns)
        found = self.bus.read(self.position.address, self.position.size, self.link.now_ns + 12_000_000)
        return {servo: self.position.to_si(self.position.decode(data)) for servo, data in found.items()}

    def read_until_all(self):
        for _ in range(5):
            if len(found := self.read()) == 6:
                return found
        raise AssertionError(f"only {sorted(found)} were read")


@pytest.fixture(params=["dynamixel", "feetech"])
def rig(request):
    made = Rig(request.param)
    made.read_until_all()
    return made


def assert_true(found):
    for servo, angle in found.items():
        assert angle == pytest.approx(ANGLES[servo - 1], abs=0.002), f"servo {servo} is taken for another"


AMOUNTS = {"late": 0.05, "split": 0.01, "header": 0.5, "error": 4}


@pytest.mark.parametrize("kind", DAMAGES)
def test_damaged_answers_never_give_a_wrong_value_and_all_is_well_afterwards(rig, kind):
    rig.add(kind, 0.2, amount=AMOUNTS.get(kind, 0.0))
    for _ in range(8):
        if kind != "wrong_id":  # when all servos lie about their names, nobody can tell
            assert_true(rig.read())
        else:
            rig.read()
    assert_true(rig.read_until_all())


@pytest.mark.parametrize("liar", range(5))
def test_an_answer_under_a_wrong_id_is_not_believed_when_the_right_one_is_lost(rig, liar):
    rig.add("wrong_id", servo=liar)
    rig.add("drop", servo=liar + 1)
    for _ in range(6):
        found = rig.read()
        assert_true(found)
        assert not {liar + 1, liar + 2} & set(found)
    assert len(found) == 4, "the others are read"


@pytest.mark.parametrize("kind", sorted(set(BREAKDOWNS) - {"stuck", "jump", "jam", "refuse", "hot"}))
def test_a_broken_servo_is_missed_and_comes_back(rig, kind):
    rig.add(kind, 0.3, servo=2, amount=3.0)
    first = rig.read()
    assert_true(first)
    if kind != "weak_supply":
        assert (5 if kind == "brown_out" else 3) not in first
    assert_true(rig.read())
    rig.link.sleep(0.3)
    rig.read()
    rig.link.sleep(0.3)  # a servo that was switched on again needs a while
    assert_true(rig.read_until_all())


def test_a_faulty_sensor_shows_something_else_and_the_joint_stays_where_it_is(rig):
    rig.add("jump", 0.1, servo=1, amount=0.5)
    assert rig.read()[2] == pytest.approx(0.6, abs=0.002)
    assert rig.joints.true.position(1) == pytest.approx(0.1)
    rig.link.sleep(0.2)
    assert_true(rig.read())


def test_a_register_that_refuses_keeps_its_number_until_the_fault_ends(rig):
    register = rig.model.register("min_position_limit")

    def write():
        for data in (register.encode(200),):
            rig.bus.write(register.address, {2: data}, rig.link.now_ns + TICK_NS)
        rig.link.sleep(0.01)
        return rig.bus.read(register.address, register.size, rig.link.now_ns + TICK_NS, ids=[2])[2]

    rig.add("refuse", 0.5, servo=1, amount=17)
    rig.read()
    assert register.decode(write()) == 17
    rig.link.sleep(0.6)
    rig.schedule.advance(rig.link.now_ns)
    assert register.decode(write()) == 200


def test_a_repair_ends_what_would_have_lasted(rig):
    rig.add("silent", 3600.0, servo=0)
    assert 1 not in rig.read()
    rig.add("repair", 0.0)
    assert_true(rig.read_until_all())


def test_the_trace_has_the_true_angles_and_the_goals_as_they_were_sent(rig, tmp_path):
    path = tmp_path / "trace.jsonl"
    with path.open("w") as file:
        traced = TracedBus(rig.servos, BusTrace(file, rig.joints, rig.servos.servos))
        link = SimulatedLink(ServoWire(traced, rig.schedule))
        link.now_ns = rig.link.now_ns
        link.open()
        bus = ServoBus(link, rig.family.language(), range(1, 7), clock=link.clock)
        rig.add("jump", servo=1, amount=0.5)
        rig.schedule.advance(link.now_ns)
        bus.read(rig.position.address, rig.position.size, link.now_ns + TICK_NS)
        goal = rig.model.register("goal_position")
        bus.write(goal.address, {2: goal.encode(goal.to_raw(0.25))}, link.now_ns + TICK_NS)
        link.sleep(0.01)
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    reads = [line for line in lines if line["what"] == "read"]
    assert reads[0]["x"] == pytest.approx(ANGLES)
    goals = [line["goals"] for line in lines if line["what"] == "goals"]
    assert goals == [[[2, pytest.approx(0.25, abs=0.002)]]]
    assert next(line["on"] for line in lines if line["what"] == "torque") == [False] * 6


def test_an_unplugged_port_comes_back_under_another_name_and_the_link_follows(rig, tmp_path):
    commands, give = os.pipe()
    link = tmp_path / "port"
    with (
        (tmp_path / "trace.jsonl").open("w") as trace,
        os.fdopen(give, "wb") as command,
        FaultyServer(rig.servos, rig.joints, trace, commands=commands, link=link) as server,
    ):
        link.symlink_to(server.path)
        before = server.path
        command.write(b'{"kind": "unplug", "duration_s": 0.02, "number": 5}\n')
        command.flush()
        rounds = iter(range(200))
        server.serve(lambda: next(rounds) == 199)
        assert server.path != before
        assert os.readlink(link) == server.path
    os.close(commands)
    lines = [json.loads(line) for line in (tmp_path / "trace.jsonl").read_text().splitlines()]
    assert [line["begins"] for line in lines if line["what"] == "fault"] == [True, False]


def test_what_there_is_not_is_refused(rig):
    with pytest.raises(UnknownNameError, match="silent"):
        BusFault("silence")
    with pytest.raises(ValueError, match="servo must be -1 to 5, got 6"):
        rig.schedule.add(BusFault("silent", servo=6), 0)
