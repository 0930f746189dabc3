"""A robot of servos: limits are in them before torque comes on, impossible readings are refused, stops end without torque."""

import dataclasses
import itertools
import math
from pathlib import Path

import numpy as np
import pytest

from dpg_robot.config import config_from_dict, load_config
from dpg_robot.contract import CommandChannel, Contract, Feature, MeasurementChannel
from dpg_robot.deploy.robot import DeviceFlag, JointState
from dpg_robot.deploy.run_config import RobotConfig
from dpg_robot.deploy.safety import Safety
from dpg_robot.errors import ConfigError, ContractError, LinkError
from hw_drivers.dynamixel.models import find_model
from hw_drivers.emulators.dynamixel import DynamixelBus
from hw_drivers.emulators.feetech import FeetechBus
from hw_drivers.emulators.joints import FirstOrderJoints
from hw_drivers.emulators.servo_server import ServoFaults, ServoWire
from hw_drivers.emulators.simulated_link import SimulatedLink
from hw_drivers.feetech.models import STS3215
from hw_drivers.joint_homing import JointHoming
from hw_drivers.servo_config import ServoRobotConfig
from hw_drivers.servo_robot import ServoRobot, make_servo_robot

ROBOTS = Path(__file__).parents[2] / "configs" / "robots"
JOINTS = ("shoulder", "elbow", "wrist")
PERIOD_NS = 20_000_000
MODELS = {"dynamixel": "XL330-M288", "feetech": "STS3215"}
QUANTITIES = {"position": "rad", "velocity": "rad/s", "current": "A", "voltage": "V", "temperature": "deg C"}


def describe(family, joints=JOINTS, goals=None, **changes):
    servos = {
        joint: {"id": number, "model": MODELS[family], "low": -1.5, "high": 1.5, "max_temperature": 60}
        for number, joint in enumerate(joints, start=1)
    }
    for key, value in changes.pop("servos", {}).items():
        servos[key] = servos[key] | value
    device = {"family": family, "servos": servos} | changes
    return device | ({"goals": goals} if goals else {})


def make_contract(joints=JOINTS, extra=(), low=-1.4, high=1.4, kind="goal"):
    measurements = [MeasurementChannel(f"{joint}_{name}", unit) for name, unit in QUANTITIES.items() for joint in joints]
    measurements += [MeasurementChannel(name, "m") for name in extra]
    commands = tuple(CommandChannel(f"{joint}_{kind}", "rad" if kind == "goal" else "rad/s", low, high) for joint in joints)
    return Contract("reach", tuple(measurements), (Feature("identity", measurements[0].name),), commands, 50.0)


class Bench:
    """A robot, the emulated servos behind it, and the time that both share."""

    def __init__(self, family, contract=None, start=None, faults=None, **device):
        self.joints = FirstOrderJoints(start or [0.1, -0.2, 0.3])
        model = find_model("XL330-M288") if family == "dynamixel" else STS3215
        bus = DynamixelBus if family == "dynamixel" else FeetechBus
        count = len(start or JOINTS)
        self.servos = bus(self.joints, [model] * count, range(1, count + 1), baud_rate=1_000_000)
        self.wire = ServoWire(self.servos, faults or ServoFaults())
        self.link = SimulatedLink(self.wire)
        self.contract = contract or make_contract()
        self.config = config_from_dict(ServoRobotConfig, describe(family, **device), source="test")
        self.robot = ServoRobot(
            "/dev/none", self.config, self.contract, read_timeout_s=0.015, link=self.link,
            clock=self.link.clock, sleep=self.link.sleep,
        )  # fmt: skip
        self.state = JointState.empty(self.contract.num_measurements)

    def register(self, index, name):
        servo = self.servos.servos[index]
        return (servo.registers if hasattr(servo, "registers") else servo.table)[name]

    def set_register(self, index, name, value):
        servo = self.servos.servos[index]
        (servo.registers if hasattr(servo, "registers") else servo.table)[name] = value

    def tick(self, command=None):
        """Wait for the next grid point, read, and write a command; returns the valid measurements by name."""
        self.link.wait_until((self.link.now_ns // PERIOD_NS + 1) * PERIOD_NS)
        self.robot.read(self.state)
        if command is not None:
            self.robot.write(np.array(command, dtype=np.float64))
        names = self.contract.measurement_names
        return {name: float(self.state.values[i]) for i, name in enumerate(names) if self.state.valid[i]}


@pytest.fixture(params=["dynamixel", "feetech"])
def family(request):
    return request.param


def test_measurements_are_those_of_the_joints_and_commands_move_them(family):
    bench = Bench(family)
    bench.robot.connect()
    bench.robot.enable()
    for _ in range(100):
        measured = bench.tick([0.5, 0.2, -0.4])
    assert [measured[f"{joint}_position"] for joint in JOINTS] == pytest.approx([0.5, 0.2, -0.4], abs=2e-3)
    assert [bench.joints.position(i) for i in range(3)] == pytest.approx([0.5, 0.2, -0.4], abs=2e-3)
    assert bench.state.valid.all()
    assert (bench.state.flags, bench.state.alarm) == (DeviceFlag.ENABLED, "")
    assert 3 < measured["elbow_voltage"] < 9
    assert bench.robot.counters.missed == 0


def test_gear_and_zero_lie_between_joint_and_servo(family):
    geared = {"gear": -2.0, "zero": 0.1, "low": -0.7, "high": 0.7, "max_velocity": 1.0}
    contract = make_contract(low=-0.6, high=0.6)
    bench = Bench(family, contract, servos=dict.fromkeys(JOINTS, geared))
    bench.robot.connect()
    bench.robot.enable()
    measured = bench.tick()
    assert measured["shoulder_position"] == pytest.approx((0.1 - 0.1) / -2.0, abs=2e-3)
    assert measured["elbow_position"] == pytest.approx((-0.2 - 0.1) / -2.0, abs=2e-3)
    measured = bench.tick([0.5, 0.5, 0.5])
    measured = bench.tick([0.5, 0.5, 0.5])
    assert bench.joints.velocity(0) < 0 < bench.state.values[bench.contract.measurement_names.index("shoulder_velocity")]
    for _ in range(100):
        bench.tick([0.5, 0.5, 0.5])
    assert bench.joints.position(0) == pytest.approx(0.5 * -2.0 + 0.1, abs=2e-3)


def test_nothing_moves_when_torque_comes_on_and_old_goals_do_not_count(family):
    bench = Bench(family)
    for index in range(3):
        bench.set_register(index, "goal_position", 3000)
    bench.robot.connect()
    bench.robot.enable()
    for _ in range(50):
        bench.tick()
    assert [bench.joints.position(i) for i in range(3)] == pytest.approx([0.1, -0.2, 0.3], abs=1e-3)


def test_limits_are_in_the_servos_before_torque_comes_on(family):
    bench = Bench(
        family, servos={"elbow": {"low": -1.0, "high": 0.5, "max_velocity": 1.0}}, contract=make_contract(low=-0.9, high=0.4)
    )
    bench.robot.connect()
    bench.robot.enable()
    model = bench.robot.config.models()["elbow"]
    low, high = (bench.register(1, name) for name in ("min_position_limit", "max_position_limit"))
    assert model.register("min_position_limit").to_si(low) == pytest.approx(-1.0, abs=2e-3)
    assert model.register("max_position_limit").to_si(high) == pytest.approx(0.5, abs=2e-3)
    name = "profile_velocity" if family == "dynamixel" else "goal_velocity"
    assert model.register(name).to_si(bench.register(1, name)) == pytest.approx(1.0, abs=0.03)
    if family == "feetech":
        assert bench.register(1, "lock") == 1, "what outlasts the power is locked again"


def test_the_torque_grows_from_little_to_its_limit(family):
    bench = Bench(family, soft_start_s=0.4, servos={"shoulder": {"max_torque": 0.5}})
    bench.robot.connect()
    bench.robot.enable()
    name, full = ("goal_pwm", 885) if family == "dynamixel" else ("torque_limit", 1000)
    limits = []
    for _ in range(30):
        bench.tick([0.1, -0.2, 0.3])
        limits.append(bench.register(0, name) / full)
    assert limits[0] < 0.2
    assert all(later >= earlier for earlier, later in itertools.pairwise(limits))
    assert limits[-1] == pytest.approx(0.5, abs=0.002)


def test_settings_that_are_there_are_not_written_again(family):
    bench = Bench(family)
    bench.robot.connect()
    bench.robot.enable()
    bench.robot.disable()
    lasting = []
    registers = bench.robot._registers
    original = registers._unlocked
    registers._unlocked = lambda values, name: (lasting.append(name), original(values, name))
    bench.robot.enable()
    assert lasting == []


def test_disable_lowers_the_torque_step_by_step_and_takes_it_away(family):
    bench = Bench(family, stop_ramp_s=0.2)
    bench.robot.connect()
    bench.robot.enable()
    for _ in range(40):
        bench.tick([0.1, -0.2, 0.3])
    name = "goal_pwm" if family == "dynamixel" else "torque_limit"
    seen, began_ns = [], bench.link.now_ns
    original = bench.link.sleep

    def sleep(seconds):
        seen.append(bench.register(0, name))
        original(seconds)

    bench.robot._sleep = sleep
    bench.robot.disable()
    assert len(seen) == 10
    assert seen == sorted(seen, reverse=True)
    assert [bench.register(i, "torque_enable") for i in range(3)] == [0, 0, 0]
    assert (bench.link.now_ns - began_ns) * 1e-9 < 0.5


def test_a_stop_works_on_the_servos_that_still_hear_and_names_the_others(family, caplog):
    bench = Bench(family, stop_ramp_s=0.1)
    bench.robot.connect()
    bench.robot.enable()
    bench.tick([0.1, -0.2, 0.3])
    bench.servos.silence(1)
    began_ns = bench.link.now_ns
    bench.robot.close()
    assert [bench.register(i, "torque_enable") for i in (0, 2)] == [0, 0]
    assert "elbow (ID 2)" in caplog.text
    assert "shoulder" not in caplog.text
    assert (bench.link.now_ns - began_ns) * 1e-9 < 3.0


def test_a_robot_that_holds_keeps_its_torque_at_the_end(family):
    bench = Bench(family, stop="hold")
    bench.robot.connect()
    bench.robot.enable()
    bench.tick([0.1, -0.2, 0.3])
    bench.robot.close()
    bench.link.sleep(1.0)
    assert [bench.register(i, "torque_enable") for i in range(3)] == [1, 1, 1]
    assert [bench.joints.position(i) for i in range(3)] == pytest.approx([0.1, -0.2, 0.3], abs=2e-3)


def test_one_silent_servo_leaves_the_others_valid(family):
    bench = Bench(family)
    bench.robot.connect()
    bench.robot.enable()
    bench.tick([0.1, -0.2, 0.3])
    bench.servos.silence(1)
    for _ in range(3):
        measured = bench.tick([0.1, -0.2, 0.3])
    assert "elbow_position" not in measured
    assert {"shoulder_position", "wrist_position"} <= measured.keys()


def test_a_servo_that_nobody_measures_and_that_falls_silent_is_an_alarm(family):
    full = make_contract()
    measurements = tuple(channel for channel in full.measurements if not channel.name.startswith("wrist"))
    contract = dataclasses.replace(full, measurements=measurements, commands=full.commands[:2])
    bench = Bench(family, contract, servos={"wrist": {"hold": 0.3}}, silence_s=0.25)
    bench.robot.connect()
    bench.robot.enable()
    bench.tick([0.1, -0.2])
    bench.servos.silence(2)
    for _ in range(12):  # of 20 ms
        bench.tick([0.1, -0.2])
        assert bench.state.valid.all()
        assert bench.state.alarm == ""
    for _ in range(2):
        bench.tick([0.1, -0.2])
    assert bench.state.alarm.startswith("wrist (ID 3): no valid answer for 0.2")
    assert bench.state.flags & DeviceFlag.HARDWARE_FAULT


def test_a_watchdog_that_a_lost_request_would_trip_is_refused():
    with pytest.raises(ConfigError, match=r"watchdog_s must be at least 3 periods, which are 0.06 s at 50 Hz.*got 0.05 s"):
        Bench("dynamixel", watchdog_s=0.05)
    Bench("feetech", watchdog_s=0.05)  # has none


def test_an_encoder_that_jumps_is_refused(family):
    bench = Bench(family)
    bench.robot.connect()
    bench.robot.enable()
    for _ in range(5):
        bench.tick([0.1, -0.2, 0.3])
    before = bench.robot.counters.implausible
    bench.joints._joints[1].position += 1.2
    for _ in range(6):  # for longer than a loop bears old measurements
        measured = bench.tick()
        assert "elbow_position" not in measured
    assert bench.robot.counters.implausible == before + 6
    assert measured["shoulder_position"] == pytest.approx(0.1, abs=2e-3)


def test_a_servo_that_restarts_is_noticed_by_name(family):
    bench = Bench(family)
    bench.robot.connect()
    bench.robot.enable()
    bench.tick([0.1, -0.2, 0.3])
    bench.set_register(1, "torque_enable", 0)
    for _ in range(20):
        bench.tick([0.1, -0.2, 0.3])
        if bench.state.flags & DeviceFlag.HARDWARE_FAULT:
            break
    assert bench.state.flags & DeviceFlag.HARDWARE_FAULT
    assert bench.state.alarm.startswith("elbow (ID 2): its torque is off")


@pytest.mark.parametrize("what", ["heat", "supply"])
def test_heat_and_a_weak_supply_are_alarms(family, what):
    bench = Bench(family)
    bench.robot.connect()
    bench.robot.enable()
    bench.tick([0.1, -0.2, 0.3])
    servo = bench.servos.servos[2]
    if what == "heat":
        servo.temperature = 63.0
    else:
        setattr(servo, "input_voltage" if family == "dynamixel" else "voltage", 3.6 if family == "dynamixel" else 5.0)
    for _ in range(3):
        bench.tick([0.1, -0.2, 0.3])
    assert bench.state.flags & DeviceFlag.HARDWARE_FAULT
    assert bench.state.alarm.startswith("wrist (ID 3): ")
    assert ("63 deg C, allowed are 60" if what == "heat" else "supply of") in bench.state.alarm


def test_the_watchdog_of_dynamixels_stops_them_when_nobody_talks_and_is_reported():
    bench = Bench("dynamixel", watchdog_s=0.1)
    bench.robot.connect()
    bench.robot.enable()
    bench.tick([1.0, -0.2, 0.3])
    bench.link.sleep(0.3)
    stopped_at = bench.joints.position(0)
    assert stopped_at < 0.9
    for _ in range(3):
        bench.tick([1.0, -0.2, 0.3])
    assert bench.joints.position(0) == pytest.approx(stopped_at, abs=2e-3)
    assert "its watchdog tripped" in bench.state.alarm


def test_a_robot_that_was_not_enabled_is_left_as_it_was(family):
    bench = Bench(family)
    bench.robot.connect()
    bench.robot.enable()
    other = ServoRobot("/dev/none", bench.config, bench.contract, link=bench.link, clock=bench.link.clock, sleep=bench.link.sleep)
    other.connect()
    other.close()
    assert [bench.register(i, "torque_enable") for i in range(3)] == [1, 1, 1]


def test_a_rescue_releases_servos_that_another_process_left_on(family):
    bench = Bench(family)
    bench.robot.connect()
    bench.robot.enable()
    bench.tick([0.1, -0.2, 0.3])
    other = ServoRobot("/dev/none", bench.config, bench.contract, link=bench.link, clock=bench.link.clock, sleep=bench.link.sleep)
    other.rescue()
    assert [bench.register(i, "torque_enable") for i in range(3)] == [0, 0, 0]
    assert not bench.link.is_open


def test_a_rescue_without_a_port_says_so_and_does_not_raise(family, caplog):
    bench = Bench(family)
    bench.link.unplugged = True
    bench.robot.rescue()
    assert "could not be taken" in caplog.text


def test_missing_servos_and_other_models_are_refused_before_anything_moves(family):
    bench = Bench(family)
    bench.servos.silence(1)
    with pytest.raises(LinkError, match=r"no answer from elbow \(ID 2\).*answers came from the IDs \[1, 3\]"):
        bench.robot.connect()
    assert not bench.link.is_open
    other = {"dynamixel": "XL330-M077"}.get(family)
    if other:
        bench = Bench(family, servos={"wrist": {"model": other}})
        with pytest.raises(ContractError, match=r"wrist \(ID 3\) has the model number 1200, expected 1190"):
            bench.robot.connect()


def test_an_adapter_that_goes_is_a_link_error_and_stopping_does_not_raise(family):
    bench = Bench(family)
    bench.robot.connect()
    bench.robot.enable()
    bench.link.unplugged = True
    with pytest.raises(LinkError):
        bench.tick([0.1, -0.2, 0.3])
    bench.robot.close()


def test_an_adapter_that_blocks_is_a_link_error_within_a_bounded_time(family):
    bench = Bench(family)
    bench.robot.connect()
    bench.robot.enable()
    bench.link.blocked = True
    began_ns = bench.link.now_ns
    with pytest.raises(LinkError):
        bench.robot.write(np.array([0.1, -0.2, 0.3]))
    assert bench.link.now_ns - began_ns < 50_000_000


@pytest.mark.parametrize("command", [[math.nan, 0, 0], [0, 1.45, 0], [0, 0]])
def test_commands_that_are_no_goals_within_the_limits_are_not_sent(family, command):
    bench = Bench(family)
    bench.robot.connect()
    bench.robot.enable()
    goals = [bench.register(i, "goal_position") for i in range(3)]
    with pytest.raises(ValueError, match=r"command"):
        bench.robot.write(np.array(command, dtype=np.float64))
    assert [bench.register(i, "goal_position") for i in range(3)] == goals


def test_speeds_move_the_goals_of_the_joints_and_end_with_their_period(family):
    bench = Bench(family, make_contract(kind="speed", low=-1.0, high=1.0))
    bench.robot.connect()
    bench.robot.enable()
    for _ in range(25):
        bench.tick([1.0, -0.5, 0.0])
    bench.tick()
    moved = [bench.joints.position(i) for i in range(3)]
    assert moved == pytest.approx([0.1 + 0.5, -0.2 - 0.25, 0.3], abs=0.06)
    for _ in range(25):
        bench.tick()  # nobody commands any more
    assert [bench.joints.position(i) for i in range(3)] == pytest.approx([0.6, -0.45, 0.3], abs=0.01)


def test_the_goal_of_a_jammed_joint_does_not_run_away_and_the_joint_is_named(family):
    bench = Bench(family, make_contract(kind="speed", low=-1.0, high=1.0), servos={"elbow": {"max_lead": 0.3, "stuck_s": 0.5}})
    bench.robot.connect()
    bench.robot.enable()
    bench.tick([0.0, 0.0, 0.0])
    bench.joints.jammed.add(1)
    ticks = 0
    while not bench.state.alarm:
        bench.tick([0.0, 1.0, 0.0])
        ticks += 1
        assert ticks < (0.3 + 0.5) / 0.02 + 10
    assert ticks > 0.3 / 0.02
    assert bench.state.alarm.startswith("elbow (ID 2): it does not follow its goal")
    goal = bench.robot.config.models()["elbow"].register("goal_position")
    assert goal.to_si(bench.register(1, "goal_position")) == pytest.approx(-0.2 + 0.3, abs=0.01)


def test_speeds_stop_at_the_limits_of_the_joint(family):
    contract = make_contract(kind="speed", low=-2.0, high=2.0)
    bench = Bench(family, contract, servos={"shoulder": {"high": 0.4}})
    bench.robot.connect()
    bench.robot.enable()
    for _ in range(50):
        bench.tick([2.0, 0.0, 0.0])
    assert bench.joints.position(0) == pytest.approx(0.4, abs=2e-3)


def test_homing_by_speeds_reaches_home_whatever_the_joints_carry(family):
    bench = Bench(family, make_contract(kind="speed", low=-2.0, high=2.0))
    homing = JointHoming([0, 1, 2], [1.0, -0.5, 0.0], [None] * 3, [2.0] * 3)
    bench.robot.connect()
    bench.robot.enable()
    bench.tick()
    began_ns = bench.link.now_ns
    homing.start()
    while not homing.done:
        assert bench.link.now_ns - began_ns < 10e9
        bench.tick(homing.command(bench.state.values, (bench.link.now_ns - began_ns) * 1e-9))
    assert [bench.joints.position(i) for i in range(3)] == pytest.approx([1.0, -0.5, 0.0], abs=0.03)


def test_a_joint_that_no_policy_commands_is_held(family):
    contract = dataclasses.replace(make_contract(), commands=make_contract().commands[:2])
    bench = Bench(family, contract, servos={"wrist": {"hold": -0.5}})
    bench.robot.connect()
    bench.robot.enable()
    for _ in range(100):
        bench.tick([0.1, -0.2])
    assert bench.joints.position(2) == pytest.approx(-0.5, abs=2e-3)
    with pytest.raises(ContractError, match="no command for wrist"):
        Bench(family, contract)


def test_goals_of_the_task_are_measurements_that_change_with_each_episode(family):
    goals = {"channels": ["target_x", "target_y"], "values": [[0.1, 0.2], [0.3, 0.4]]}
    bench = Bench(family, make_contract(extra=("target_x", "target_y")), goals=goals)
    bench.robot.connect()
    seen = []
    for _ in range(4):
        measured = bench.tick()
        seen.append((measured["target_x"], measured["target_y"]))
        bench.robot.next_goals()  # as each episode begins
    assert seen == [(0.1, 0.2), (0.1, 0.2), (0.3, 0.4), (0.1, 0.2)], "those of the first stand before it"


def test_the_way_to_a_goal_begins_at_the_tip(family):
    tip = {"channels": ["tip_x", "tip_y", "tip_z"], "offset": [0.2, 0.0, 0.0]}
    tip["joints"] = {"shoulder": {}, "elbow": {"offset": [0.3, 0.0, 0.0]}}
    goals = {"channels": ["to_x", "to_y", "to_z"], "from_tip": True, "values": [[0.1, 0.2, 0.3]]}
    bench = Bench(family, make_contract(extra=("tip_x", "tip_y", "tip_z", "to_x", "to_y", "to_z")), tip=tip, goals=goals)
    bench.robot.connect()
    measured = bench.tick()
    x, y = (0.3 * f(0.1) + 0.2 * f(0.1 - 0.2) for f in (math.cos, math.sin))
    assert [measured[f"tip_{axis}"] for axis in "xyz"] == pytest.approx([x, y, 0.0], abs=1e-3)
    assert [measured[f"to_{axis}"] for axis in "xyz"] == pytest.approx([0.1 - x, 0.2 - y, 0.3], abs=1e-3)
    bench.servos.silence(1)
    measured = bench.tick()
    assert not {"tip_x", "to_x"} & measured.keys(), "nobody knows where the tip is"
    assert "shoulder_position" in measured


@pytest.mark.parametrize("seed", range(4))
def test_no_impossible_value_is_ever_valid_on_a_bad_wire(family, seed):
    faults = ServoFaults(
        seed=seed, drop=0.05, late=0.1, late_s=0.0205, split=0.1, duplicate=0.1, corrupt=0.1, garbage=0.05, truncate=0.05
    )
    bench = Bench(family, faults=faults)
    for _ in range(20):
        try:
            bench.robot.connect()
            break
        except LinkError:
            continue
    positions = {joint: bench.joints.position(i) for i, joint in enumerate(JOINTS)}
    accepted = 0
    for _ in range(300):
        measured = bench.tick()
        for joint in JOINTS:
            if f"{joint}_position" in measured:
                accepted += 1
                assert measured[f"{joint}_position"] == pytest.approx(positions[joint], abs=2e-3)
    assert accepted > 200


BAD_DEVICES = [
    ({"servos": {"elbow": {"id": 1}}}, "shoulder and servos.elbow have the same ID 1"),
    ({"servos": {"elbow": {"model": "XL330-M299"}}}, "unknown .* model"),
    ({"servos": {"elbow": {"low": 1.0, "high": -1.0}}}, "low < high, got 1.0 and -1.0"),
    ({"servos": {"elbow": {"max_velocity": 120.0}}}, "max_velocity must be at most .* Is it in rad/s"),
    ({"servos": {"elbow": {"low": -90.0, "high": 90.0}}}, "Are they in rad"),
    ({"servos": {"elbow": {"gear": 0.0}}}, "gear must not be 0"),
    ({"servos": {"elbow": {"home": 1.6}}}, "home must be within low and high"),
    ({"servos": {"elbow": {"max_torque": 50}}}, "max_torque is a share"),
    ({"servos": {"elbow": {"id": 254}}}, "id must be 0 to"),
    ({"servos": {"elbow": {"speed": 1}}}, "unknown key 'servos.elbow.speed'"),
    ({"stop": "drop"}, "stop must be one of release, hold"),
    ({"stop_ramp_s": 50}, "stop_ramp_s must be 0 to 5 s"),
    ({"goals": {"channels": ["x"], "values": [[1, 2]]}}, "expected 1 finite values"),
    ({"goals": {"channels": ["x", "y", "z"], "from_tip": True, "values": [[1, 2, 3]]}}, "from_tip needs a tip"),
    ({"tip": {"channels": ["x", "y", "z"], "joints": {"knee": {}}}}, "tip.joints.knee: there is no servo"),
    ({"tip": {"channels": ["x"], "joints": {"elbow": {}}}}, "a tip has 3 channels"),
]


@pytest.mark.parametrize(("change", "message"), BAD_DEVICES)
def test_descriptions_that_make_no_sense_are_refused(family, change, message):
    with pytest.raises(ConfigError, match=message):
        config_from_dict(ServoRobotConfig, describe(family, **change), source="test")


@pytest.mark.parametrize("name", ["so101", "xl330_arm"])
def test_the_robots_that_are_ready_can_be_made(name):
    config = load_config(RobotConfig, ROBOTS / f"{name}.yaml")
    features = (Feature("identity", config.measurements[0].name),)
    contract = Contract("task", config.measurements, features, config.commands, config.rate_hz)
    robot, homing = make_servo_robot(config, contract)
    Safety(config.safety, contract)
    assert robot.measurement_names == contract.measurement_names
    assert not homing.done


def test_servos_without_sync_read_are_refused():
    with pytest.raises(ConfigError, match="no sync read"):
        config_from_dict(ServoRobotConfig, describe("feetech", servos={"elbow": {"model": "SCS0009"}}), source="test")


def test_channels_that_the_robot_does_not_have_are_refused(family):
    good = make_contract()
    config = RobotConfig(
        "arm", "hw_drivers.servo_robot:make_servo_robot", 50.0, good.measurements, good.commands, port="/dev/none",
        device=describe(family),
    )  # fmt: skip
    make_servo_robot(config, good)
    wrong = [
        (dataclasses.replace(good, commands=(CommandChannel("elbow", "rad", -1, 1), *good.commands[1:])), "no command 'elbow'"),
        (make_contract(extra=("tip_x",)), "no measurement 'tip_x'"),
        (make_contract(low=-1.6), "joint shoulder may go from -1.5 to 1.5 rad only"),
        (make_contract(low=-2.5, high=2.5, kind="speed"), "joint shoulder may move at 2 rad/s at most"),
        (
            dataclasses.replace(good, commands=(CommandChannel("elbow_goal", "deg", -1, 1), *good.commands[2:])),
            "elbow_goal is in rad, got the unit 'deg'",
        ),
        (
            dataclasses.replace(good, measurements=(MeasurementChannel("shoulder_position", "deg"), *good.measurements[1:])),
            "measured in rad, got the unit 'deg'",
        ),
    ]
    for contract, message in wrong:
        with pytest.raises(ContractError, match=message):
            make_servo_robot(config, contract)
    with pytest.raises(ConfigError, match="has no port"):
        make_servo_robot(dataclasses.replace(config, port=""), good)
    with pytest.raises(ConfigError, match="baud_rate 12345"):
        make_servo_robot(dataclasses.replace(config, baud_rate=12345), good)
    with pytest.raises(LookupError, match="unknown homing parameter 'sped'"):
        make_servo_robot(dataclasses.replace(config, homing={"sped": 1.0}), good)


def test_homing_brings_all_joints_home_without_a_jump_and_parks(family):
    bench = Bench(family, servos={"shoulder": {"home": 1.0, "park": 0.0}, "elbow": {"home": -0.5}})
    homing = JointHoming([0, 1, 2], [1.0, -0.5, 0.0], [0.0, None, None], [None, None, None])
    bench.robot.connect()
    bench.robot.enable()
    bench.tick()

    def follow():
        began_ns, last, steps = bench.link.now_ns, None, []
        while not homing.done:
            assert bench.link.now_ns - began_ns < 10e9
            command = homing.command(bench.state.values, (bench.link.now_ns - began_ns) * 1e-9)
            steps.append(0.0 if last is None else np.abs(command - last).max())
            last = command.copy()
            bench.tick(command)
        return max(steps)

    homing.start()
    assert follow() < 0.02 * 1.2
    assert [bench.joints.position(i) for i in range(3)] == pytest.approx([1.0, -0.5, 0.0], abs=0.03)
    assert homing.parks
    homing.start_parking()
    assert not homing.done
    follow()
    assert [bench.joints.position(i) for i in range(3)] == pytest.approx([0.0, -0.5, 0.0], abs=0.03)
