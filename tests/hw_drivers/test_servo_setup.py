"""Scanning, giving IDs, and calibration by hand, on emulated servos."""

import contextlib
import math
from pathlib import Path

import pytest

from dpg_robot.config import config_from_dict, load_config
from dpg_robot.contract import CommandChannel, MeasurementChannel
from dpg_robot.deploy.run_config import RobotConfig
from dpg_robot.errors import ConfigError, LinkError, SafetyError
from hw_drivers.dynamixel.models import find_model
from hw_drivers.emulators.dynamixel import DynamixelBus
from hw_drivers.emulators.feetech import FeetechBus
from hw_drivers.emulators.joints import FirstOrderJoints
from hw_drivers.emulators.servo_server import ServoFaults, ServoWire
from hw_drivers.emulators.simulated_link import SimulatedLink
from hw_drivers.feetech.models import STS3215
from hw_drivers.servo_bus import ServoBus
from hw_drivers.servo_calibration import Range, RangeRecorder, calibrate_servo
from hw_drivers.servo_config import ServoConfig, ServoRobotConfig
from hw_drivers.servo_family import find_family
from hw_drivers.servo_registers import ServoRegisters
from hw_drivers.servo_scan import FoundServo, change_servo, scan_link
from hw_drivers.servo_setup import calibrate_robot, only_servo, write_robot

ROBOTS = Path(__file__).parents[2] / "configs" / "robots"


class Bench:
    def __init__(self, family, ids, baud_rate=1_000_000):
        self.joints = FirstOrderJoints([0.25] * len(ids))
        model = find_model("XL330-M288") if family == "dynamixel" else STS3215
        bus = DynamixelBus if family == "dynamixel" else FeetechBus
        self.servos = bus(self.joints, [model] * len(ids), ids, baud_rate=baud_rate)
        self.wire = ServoWire(self.servos, ServoFaults())
        self.link = SimulatedLink(self.wire)
        self.family = find_family(family)

    @contextlib.contextmanager
    def open_link(self, baud_rate):
        self.wire.set_baud_rate(baud_rate)
        self.link.baud_rate = baud_rate
        self.link.open()
        yield self.link
        self.link.close()

    def scan(self, baud_rate, ids=range(12)):
        with self.open_link(baud_rate) as link:
            return list(scan_link(link, self.family, ids, link.clock))

    def change(self, servo, **new):
        change_servo(self.open_link, self.family, servo, clock=self.link.clock, sleep=self.link.sleep, **new)


@pytest.fixture(params=["dynamixel", "feetech"])
def family(request):
    return request.param


def test_a_scan_finds_the_servos_that_talk_at_that_rate_and_what_they_say(family):
    bench = Bench(family, [3, 7, 11])
    found = bench.scan(1_000_000)
    assert [servo.id for servo in found] == [3, 7, 11]
    assert {servo.model for servo in found} == {"XL330-M288" if family == "dynamixel" else "STS3215"}
    assert found[0].position == pytest.approx(0.25, abs=2e-3)
    assert 4 < found[0].voltage < 9
    assert found[0].torque_on is False
    assert bench.scan(115_200) == []


def test_a_servo_gets_another_id_and_baud_rate_and_answers_there_only(family):
    bench = Bench(family, [1])
    bench.change(bench.scan(1_000_000)[0], new_id=5, new_baud_rate=115_200)
    assert bench.scan(1_000_000) == []
    found = bench.scan(115_200)
    assert [servo.id for servo in found] == [5]
    if family == "feetech":
        assert bench.servos.servos[0].registers["lock"] == 1


def test_an_id_that_is_taken_is_not_given_twice(family):
    bench = Bench(family, [1, 5])
    with pytest.raises(LinkError, match="another servo has the ID 5 already"):
        bench.change(bench.scan(1_000_000)[0], new_id=5, new_baud_rate=1_000_000)
    assert [servo.id for servo in bench.scan(1_000_000)] == [1, 5]


@pytest.mark.parametrize(
    ("new", "message"), [({"new_id": 300}, "ID must be 0 to"), ({"new_baud_rate": 1234}, "no baud rate 1234")]
)
def test_ids_and_rates_that_servos_cannot_have_are_refused(family, new, message):
    bench = Bench(family, [1])
    with pytest.raises(ValueError, match=message):
        bench.change(bench.scan(1_000_000)[0], **({"new_id": 2, "new_baud_rate": 1_000_000} | new))


def test_exactly_one_servo_may_be_connected_for_its_id_to_be_given():
    servo = FoundServo("feetech", 1_000_000, 1, 777, "STS3215")
    assert only_servo([servo], "/dev/x") is servo
    with pytest.raises(LinkError, match="found: none"):
        only_servo([], "/dev/x")
    with pytest.raises(LinkError, match="found: ID 1 at 1000000 baud, ID 1 at 1000000 baud"):
        only_servo([servo, servo], "/dev/x")


def describe(**changes):
    values = {"id": 1, "model": "STS3215", "low": -1.0, "high": 1.0, "home": 0.0} | changes
    return config_from_dict(ServoConfig, values, source="test")


def test_zero_range_and_direction_are_learned_from_hand_motion():
    recorder = RangeRecorder()
    for angle in (0.0, 0.4, 1.1, 0.2, -0.9):
        recorder.add({"elbow": angle})
    servo = calibrate_servo("elbow", describe(home=0.9, park=-0.5), recorder.ranges["elbow"], 0.1, -0.2, margin=0.05)
    assert servo.gear == -1.0, "the servo's angle fell as the joint went in its positive direction"
    assert servo.zero == 0.1
    assert servo.low == pytest.approx((1.1 - 0.1) / -1.0 + 0.05)
    assert servo.high == pytest.approx((-0.9 - 0.1) / -1.0 - 0.05)
    assert (servo.home, servo.park) == (0.9, -0.5)
    assert servo.to_joint(servo.to_servo(0.3)) == pytest.approx(0.3)


def test_home_and_park_move_into_a_shorter_range():
    servo = calibrate_servo("elbow", describe(home=0.9, park=-0.9), Range(-0.5, 0.5), 0.0, 0.2, margin=0.0)
    assert (servo.home, servo.park) == (0.5, -0.5)


def test_a_gear_keeps_its_size():
    servo = calibrate_servo("elbow", describe(gear=2.0), Range(-1.0, 1.0), 0.0, -0.4, margin=0.0)
    assert (servo.gear, servo.low, servo.high) == (-2.0, -0.5, 0.5)


@pytest.mark.parametrize(
    ("seen", "zero", "positive", "message"),
    [
        (Range(0.0, 0.1), 0.05, 0.2, "was moved by 0.10 rad only"),
        (Range(-1.0, 1.0), 0.0, 0.01, "was not pushed"),
        (Range(-1.0, 1.0), 1.2, 1.5, "outside of the range -1.00 to 1.00 rad"),
    ],
)
def test_joints_that_were_not_moved_as_asked_are_refused(seen, zero, positive, message):
    with pytest.raises(SafetyError, match=message):
        calibrate_servo("elbow", describe(), seen, zero, positive, margin=0.0)


def test_a_servo_that_turns_past_the_end_of_its_scale_is_noticed():
    recorder = RangeRecorder()
    recorder.add({"elbow": 3.1, "wrist": 0.0})
    with pytest.raises(SafetyError, match="elbow turned past the end"):
        recorder.add({"elbow": -3.1, "wrist": 0.1})


@pytest.mark.parametrize("position", [0, 100, 2048, 4000, 4095])
def test_a_feetech_homing_offset_makes_the_present_position_the_middle(position):
    bench = Bench("feetech", [1])
    bench.joints._joints[0].position = (position - 2048) * math.tau / 4096
    servo = bench.servos.servos[0]
    offset = bench.family.centering(STS3215, position, 0)
    assert -2047 <= offset <= 2047
    servo.registers["homing_offset"] = offset
    found = bench.scan(1_000_000)[0]
    assert found.position == pytest.approx(0.0, abs=2e-3 if position != 0 else 4e-3)


class Hands:
    """A person who moves the joints of emulated servos as asked; each turns from 0.2 - 1 to 0.2 + 1 rad, and is at 0 at 0.2."""

    def __init__(self, bench, directions):
        self.bench, self.directions, self.said = bench, directions, []
        self.sweep = [angle / 10 - 0.8 for angle in range(21)]

    def put(self, angles):
        for joint, angle in zip(self.bench.joints._joints, angles, strict=True):
            joint.position = angle + self.bench.shift

    def say(self, text):
        self.said.append(text)

    def ask(self, text):
        self.said.append(text)
        angles = [0.2, 0.2]
        if text.startswith("Push"):
            pushed = ["elbow", "wrist"].index(text.split()[1])
            angles[pushed] += 0.3 * self.directions[pushed]
        self.put(angles)

    def show(self, text):
        if not self.sweep:
            return True
        self.put([self.sweep.pop()] * 2)
        return False


@pytest.mark.parametrize("shift", [0.0, 2.9])
def test_a_robot_is_calibrated_by_hand_wherever_its_horns_are_mounted(family, shift):
    """With Feetech servos also where the range crosses the end of the scale; Dynamixels say so."""
    bench = Bench(family, [1, 2])
    bench.shift = shift
    servos = {
        joint: {
            "id": number,
            "model": "XL330-M288" if family == "dynamixel" else "STS3215",
            "low": -1.5,
            "high": 1.5,
            "home": 0.5,
        }
        for number, joint in enumerate(("elbow", "wrist"), start=1)
    }
    channels = (MeasurementChannel("elbow_position", "rad"),)
    commands = (CommandChannel("elbow_goal", "rad", -1.4, 1.4),)
    device = {"family": family, "servos": servos, "stop_ramp_s": 0.3}
    robot = RobotConfig("arm", "hw_drivers.servo_robot:make_servo_robot", 50.0, channels, commands, port="/dev/x", device=device)

    @contextlib.contextmanager
    def connect(robot, config):
        with bench.open_link(1_000_000) as link:
            models = {servo.id: bench.family.find_model(servo.model) for servo in config.servos.values()}
            registers = ServoRegisters(bench.family, clock=link.clock, sleep=link.sleep)
            registers.attach(ServoBus(link, bench.family.language(), list(models), clock=link.clock), models)
            yield registers

    hands = Hands(bench, directions=(1, -1))
    if family == "dynamixel" and shift:
        with pytest.raises(SafetyError, match="turned past the end of its servo's scale"):
            calibrate_robot(robot, hands, margin=0.05, connect=connect)
        return
    calibrated = calibrate_robot(robot, hands, margin=0.05, connect=connect)
    config = config_from_dict(ServoRobotConfig, calibrated.device, source="test")
    assert [config.servos[joint].gear for joint in ("elbow", "wrist")] == [1.0, -1.0]
    for servo in config.servos.values():
        assert (servo.low, servo.high) == pytest.approx((-1.0 + 0.05, 1.0 - 0.05), abs=0.01)
        assert servo.home == 0.5
    assert config.stop_ramp_s == 0.3, "what was not learned stays"
    assert any("elbow_goal ranges from -1.4 to 1.4 rad, but the joint reaches" in text for text in hands.said)
    with connect(robot, config) as registers:  # what was learned is true of the servos as they are now
        hands.put([0.2, 0.2])
        for joint, servo in config.servos.items():
            model = bench.family.find_model(servo.model)
            angle = servo.to_joint(model.register("present_position").to_si(registers.read_one(servo.id, "present_position")))
            assert angle == pytest.approx(0.0, abs=5e-3), joint
    assert [bench.servos.servos[i].registers["torque_enable"] if family == "feetech" else 0 for i in (0, 1)] == [0, 0]


def test_a_robot_file_is_written_and_read_back(tmp_path):
    robot = load_config(RobotConfig, ROBOTS / "so101.yaml")
    write_robot(robot, tmp_path / "mine.yaml")
    assert load_config(RobotConfig, tmp_path / "mine.yaml") == robot
    with pytest.raises(ConfigError, match="is no servo robot"):
        calibrate_robot(load_config(RobotConfig, ROBOTS / "cartpole.yaml"), None, margin=0.0)
