"""Emulated Feetech servos: their register files, alarms and motion, with time given by hand."""

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hw_drivers.emulators.feetech import FULL_TURN_FEEDBACK, PWM_MODE, STEP_MODE, VELOCITY_MODE, FeetechBus
from hw_drivers.emulators.joints import Answer, FirstOrderJoints
from hw_drivers.feetech.models import SCS0009, STS3215, ServoModel
from hw_drivers.feetech.packets import (
    BROADCAST_ID,
    Action,
    ErrorFlag,
    Instruction,
    OffsetCalibration,
    Ping,
    Read,
    RegWrite,
    Reset,
    Status,
    StatusDecoder,
    SyncRead,
    SyncWrite,
    Write,
)

MS = 1_000_000
STEP = math.tau / 4096


class Bench:
    """A bus, its joints and a clock."""

    def __init__(
        self, ids: Sequence[int] = (1,), model: ServoModel = STS3215, *, positions: Sequence[float] | None = None
    ) -> None:
        self.joints = FirstOrderJoints([0.0] * len(ids) if positions is None else positions)
        self.bus = FeetechBus(self.joints, [model] * len(ids), ids)
        self.model = model
        self.now_ns = 0

    def wait(self, milliseconds: float) -> None:
        self.now_ns += round(milliseconds * MS)
        self.bus.advance(self.now_ns)

    def send(self, instruction: Instruction) -> list[Answer]:
        return self.bus.receive(instruction.to_bytes(), self.now_ns)

    def ask(self, instruction: Instruction) -> list[Status]:
        decoder = StatusDecoder()
        decoder.expect(instruction)
        return [status for answer in self.send(instruction) for status in decoder.feed(answer.data)]

    def read(self, name: str, servo_id: int = 1) -> int:
        register = self.model.register(name)
        (status,) = self.ask(Read(servo_id, register.address, register.size))
        return register.decode(status.data)

    def write(self, name: str, number: int, servo_id: int = 1) -> None:
        register = self.model.register(name)
        stored = number.to_bytes(register.size, self.model.byte_order) if number > register.high else register.encode(number)
        self.ask(Write(servo_id, register.address, stored))

    def errors(self, servo_id: int = 1) -> ErrorFlag:
        (status,) = self.ask(Ping(servo_id))
        return status.error


def test_a_servo_answers_to_its_own_id_and_says_what_it_is() -> None:
    bench = Bench([1, 7])
    assert bench.ask(Ping(7)) == [Status(7)]
    assert bench.ask(Ping(2)) == []
    assert bench.read("model_number", 7) == 777
    assert bench.read("present_position", 7) == 2048
    assert bench.read("present_input_voltage", 7) == 74
    assert bench.read("present_temperature", 7) == 25


def test_broadcast_is_obeyed_by_all_and_answered_by_none() -> None:
    bench = Bench([1, 2])
    assert bench.send(Write(BROADCAST_ID, 41, b"\x05")) == []
    assert [bench.read("acceleration", servo_id) for servo_id in (1, 2)] == [5, 5]


def test_servos_of_the_same_id_answer_at_the_same_time_and_so_do_all_to_a_broadcast_ping() -> None:
    bench = Bench([3, 3, 4])
    assert bench.send(Ping(3)) == 2 * [Answer(0, Status(3).to_bytes())]
    assert [answer.due_ns for answer in bench.send(Ping(BROADCAST_ID))] == [0, 0, 0]


@pytest.mark.parametrize(
    ("models", "options", "message"),
    [
        ([STS3215], {"ids": [254]}, "ID from 0 to 253"),
        ([STS3215, STS3215], {"ids": [1]}, "got 2 models and IDs"),
        ([STS3215], {"baud_rate": 57_600}, "no baud rate 57600; it has 1000000"),
    ],
)
def test_a_bus_that_cannot_be_is_refused(models: list[ServoModel], options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        FeetechBus(FirstOrderJoints([0.0, 0.0]), models, **options)


def test_a_silenced_servo_keeps_its_torque_and_answers_nothing() -> None:
    bench = Bench([1, 2])
    bench.write("torque_enable", 1)
    bench.write("goal_position", 3000)
    bench.bus.silence(0)
    assert bench.send(Ping(1)) == []
    assert bench.ask(Ping(2)) == [Status(2)]
    bench.wait(2000)
    assert bench.joints.position(0) == pytest.approx(952 * STEP, abs=1e-4)


def test_an_answer_under_another_id_has_the_right_checksum() -> None:
    answer = Status(253, ErrorFlag.VOLTAGE, b"\x01\x02")
    assert Bench().bus.with_other_id(answer.to_bytes()) == Status(0, ErrorFlag.VOLTAGE, b"\x01\x02").to_bytes()


def test_a_joint_goes_to_its_goal_only_while_its_torque_is_on() -> None:
    bench = Bench()
    bench.write("goal_position", 3000)
    bench.wait(1000)
    assert bench.read("present_position") == 2048
    bench.write("torque_enable", 1)
    bench.wait(100)
    assert bench.read("moving") == 1
    assert bench.read("present_velocity") > 1000
    bench.wait(2000)
    assert (bench.read("present_position"), bench.read("present_velocity"), bench.read("moving")) == (3000, 0, 0)
    assert bench.joints.position(0) == pytest.approx(952 * STEP, abs=1e-4)
    bench.write("goal_position", 2000)
    bench.wait(50)
    bench.write("torque_enable", 0)
    stopped = bench.read("present_position")
    bench.wait(500)
    assert 2000 < bench.read("present_position") == stopped < 3000


def test_after_power_on_the_goal_is_where_the_joint_is() -> None:
    bench = Bench(positions=[1.0])
    bench.write("torque_enable", 1)
    bench.wait(500)
    assert bench.joints.position(0) == pytest.approx(1.0, abs=STEP)


def test_a_goal_beyond_the_position_limits_leads_to_the_limit() -> None:
    bench = Bench()
    bench.write("min_position_limit", 1000)
    bench.write("max_position_limit", 2500)
    bench.write("torque_enable", 1)
    bench.write("goal_position", 4000)
    bench.wait(2000)
    assert bench.read("present_position") == 2500
    bench.write("goal_position", 0)
    bench.wait(2000)
    assert bench.read("present_position") == 1000


@pytest.mark.parametrize("speed", [100, 500, 2000])
def test_the_goal_velocity_limits_the_velocity(speed: int) -> None:
    bench = Bench()
    bench.write("torque_enable", 1)
    bench.write("goal_velocity", speed)
    bench.write("goal_position", 4095)
    bench.wait(200)
    assert bench.read("present_velocity") == speed
    assert bench.read("present_position") == pytest.approx(2048 + 0.2 * speed, abs=2)


def test_the_acceleration_bounds_how_fast_a_joint_starts_and_stops() -> None:
    bench = Bench()
    bench.write("acceleration", 20)  # 2000 steps/s^2
    bench.write("torque_enable", 1)
    bench.write("goal_position", 4000)
    velocities = []
    for _ in range(120):
        bench.wait(20)
        velocities.append(bench.read("present_velocity"))
    assert velocities[4] == pytest.approx(2000 * 0.1, rel=0.1)
    assert velocities[24] == pytest.approx(2000 * 0.5, rel=0.1)
    changes = [abs(after - before) for before, after in pairwise(velocities)]
    assert max(changes) <= 2.1 * 2000 * 0.02  # near the goal these joints slow down at up to twice the acceleration by themselves
    assert bench.read("present_position") == 4000


def test_turning_round_starts_the_acceleration_anew() -> None:
    bench = Bench()
    bench.write("acceleration", 10)
    bench.write("torque_enable", 1)
    bench.write("goal_position", 4000)
    bench.wait(800)
    bench.write("goal_position", 1000)
    bench.wait(20)
    assert -50 < bench.read("present_velocity") < 0


def test_in_velocity_mode_a_joint_turns_without_end_in_the_direction_of_its_sign() -> None:
    bench = Bench()
    bench.write("operating_mode", VELOCITY_MODE)
    bench.write("goal_velocity", -1500)
    bench.write("torque_enable", 1)
    bench.wait(4000)
    assert bench.read("present_velocity") == -1500
    assert bench.joints.position(0) == pytest.approx(-6000 * STEP, rel=0.01)
    bench.write("goal_velocity", 0)
    bench.wait(100)
    assert bench.read("present_velocity") == 0


def test_in_pwm_mode_the_duty_sets_the_velocity() -> None:
    bench = Bench()
    bench.write("operating_mode", PWM_MODE)
    bench.write("goal_time", 500)
    bench.write("torque_enable", 1)
    bench.wait(100)
    assert bench.read("present_velocity") == 1700


def test_in_step_mode_each_goal_is_a_distance() -> None:
    bench = Bench()
    bench.write("operating_mode", STEP_MODE)
    bench.write("torque_enable", 1)
    for expected in (1748, 1448):
        bench.write("goal_position", -300)
        bench.wait(1000)
        bench.write("torque_enable", 1)  # no new goal, so no new step
        bench.wait(1000)
        assert bench.read("present_position") == expected


def test_a_number_out_of_range_is_not_stored_and_a_read_only_register_not_written() -> None:
    bench = Bench()
    bench.write("torque_limit", 1001)
    bench.write("present_position", 5)
    bench.write("model_number", 1)
    bench.write("id", 254)
    assert bench.read("torque_limit") == 1000
    assert bench.read("present_position") == 2048
    assert bench.read("model_number") == 777
    assert bench.ask(Ping(1)) == [Status(1)]


def test_writes_across_several_registers_and_into_one_byte_of_a_register_work() -> None:
    bench = Bench()
    bench.ask(Write(1, 41, bytes.fromhex("0A 00 08 00 00 E8 03")))
    assert [bench.read(name) for name in ("acceleration", "goal_position", "goal_time", "goal_velocity")] == [10, 2048, 0, 1000]
    bench.ask(Write(1, 43, b"\x09"))
    assert bench.read("goal_position") == 0x0900


@given(st.integers(0, 86), st.binary(min_size=1, max_size=40))
def test_whatever_is_written_registers_stay_in_range_and_the_servo_works_on(address: int, data: bytes) -> None:
    bench = Bench()
    bench.send(Write(1, address, data))
    bench.wait(100)
    registers = bench.bus.servos[0].registers
    for register in STS3215.registers.values():
        assert register.low <= registers[register.name] <= register.high
    bench.bus.baud_rate = bench.bus.servos[0].baud_rate
    assert bench.ask(Ping(registers["id"]))


def test_a_registered_write_waits_for_the_action_of_all() -> None:
    bench = Bench([1, 2])
    for servo_id in (1, 2):
        bench.write("torque_enable", 1, servo_id)
        assert bench.ask(RegWrite(servo_id, 42, (3000 + servo_id).to_bytes(2, "little"))) == [Status(servo_id)]
    bench.wait(500)
    assert [bench.read("goal_position", servo_id) for servo_id in (1, 2)] == [2048, 2048]
    assert bench.read("registered_write") == 1
    assert bench.send(Action(BROADCAST_ID)) == []
    assert [bench.read("goal_position", servo_id) for servo_id in (1, 2)] == [3001, 3002]
    assert bench.read("registered_write") == 0
    bench.write("goal_position", 2048)
    bench.send(Action(BROADCAST_ID))
    assert bench.read("goal_position") == 2048


def test_a_sync_write_gives_each_servo_its_own_bytes() -> None:
    bench = Bench([1, 2, 3])
    assert bench.send(SyncWrite(42, ((1, b"\x01\x00"), (3, b"\x03\x00")))) == []
    assert [bench.read("goal_position", servo_id) for servo_id in (1, 2, 3)] == [1, 2048, 3]


def test_a_sync_read_is_answered_in_the_order_asked_each_after_the_one_before() -> None:
    bench = Bench([1, 2, 3])
    bench.write("return_delay_time", 50, 1)
    bench.wait(5)
    request = SyncRead(56, 8, (3, 1, 2))
    answers = bench.send(request)
    frame_ns = 14 * 10_000
    start = bench.now_ns
    assert [answer.due_ns - start for answer in answers] == [0, frame_ns + 100_000, 2 * frame_ns + 100_000]
    assert [status.servo_id for status in bench.ask(request)] == [3, 1, 2]


def test_a_silent_servo_silences_those_behind_it_in_a_sync_read() -> None:
    bench = Bench([1, 2, 3])
    bench.bus.silence(1)
    assert [status.servo_id for status in bench.ask(SyncRead(56, 2, (1, 2, 3)))] == [1]
    assert [status.servo_id for status in bench.ask(SyncRead(56, 2, (3, 1, 2)))] == [3, 1]


def test_answers_wait_for_the_return_delay() -> None:
    bench = Bench()
    bench.write("return_delay_time", 250)
    assert [answer.due_ns for answer in bench.send(Ping(1))] == [500_000]


def test_with_response_status_level_0_only_questions_are_answered() -> None:
    bench = Bench()
    bench.write("response_status_level", 0)
    assert bench.send(Write(1, 40, b"\x01")) == []
    assert bench.read("torque_enable") == 1
    assert bench.ask(Ping(1)) == [Status(1)]


def test_a_new_id_counts_from_the_next_instruction_on() -> None:
    bench = Bench()
    assert bench.ask(Write(1, 5, b"\x09")) == [Status(1)]
    assert bench.ask(Ping(1)) == []
    assert bench.ask(Ping(9)) == [Status(9)]


def test_a_servo_hears_nothing_at_another_baud_rate() -> None:
    bench = Bench()
    assert bench.ask(Write(1, 6, b"\x01")) == [Status(1)]
    assert bench.ask(Ping(1)) == []
    bench.bus.baud_rate = 500_000
    assert bench.ask(Ping(1)) == [Status(1)]
    bench.write("baud_rate", 7)  # not published without contradiction
    assert bench.ask(Ping(1)) == [Status(1)]


def test_eeprom_keeps_what_was_written_with_the_lock_open_and_ram_keeps_nothing() -> None:
    bench = Bench()
    bench.write("max_torque_limit", 600)
    bench.write("lock", 0)
    bench.write("min_position_limit", 500)
    bench.write("lock", 1)
    bench.write("max_position_limit", 3000)
    bench.write("torque_enable", 1)
    assert bench.read("max_position_limit") == 3000
    servo = bench.bus.servos[0]
    servo.powered = False
    assert bench.send(Ping(1)) == []
    servo.powered = True
    names = ("min_position_limit", "max_position_limit", "max_torque_limit", "torque_enable", "lock")
    assert [bench.read(name) for name in names] == [500, 4095, 1000, 0, 1]


def test_power_on_copies_the_largest_torque_into_the_torque_limit() -> None:
    bench = Bench()
    bench.write("lock", 0)
    bench.write("max_torque_limit", 600)
    assert bench.read("torque_limit") == 1000
    bench.bus.servos[0].powered = False
    bench.bus.servos[0].powered = True
    assert bench.read("torque_limit") == 600


def test_a_servo_without_power_lets_go_of_its_joint() -> None:
    bench = Bench()
    bench.write("torque_enable", 1)
    bench.write("goal_position", 4000)
    bench.wait(50)
    bench.bus.servos[0].powered = False
    stopped = bench.joints.position(0)
    bench.wait(500)
    assert bench.joints.position(0) == stopped > 0


def test_the_homing_offset_shifts_what_is_read_and_where_goals_lie() -> None:
    bench = Bench()
    bench.write("homing_offset", 500)
    assert bench.read("present_position") == 1548
    bench.write("homing_offset", -500)
    assert bench.read("present_position") == 2548
    bench.write("torque_enable", 1)
    bench.write("goal_position", 2548)
    bench.wait(500)
    assert bench.joints.position(0) == pytest.approx(0.0, abs=STEP)
    bench.write("homing_offset", 0)  # while the torque is on: the goal is somewhere else now
    bench.wait(1000)
    assert bench.joints.position(0) == pytest.approx(500 * STEP, abs=STEP)


@pytest.mark.parametrize("calibrate", [Write(1, 40, b"\x80"), OffsetCalibration(1)], ids=["torque-enable-128", "instruction"])
@pytest.mark.parametrize("angle", [-3.0, -0.7, 0.0, 1.2, 3.0, 20.0])
@pytest.mark.parametrize("torque", [0, 1])
def test_calibration_makes_the_present_position_the_middle_and_moves_nothing(
    calibrate: Instruction, angle: float, torque: int
) -> None:
    bench = Bench(positions=[angle])
    bench.write("torque_enable", torque)
    assert bench.ask(calibrate) == [Status(1)]
    bench.wait(200)
    assert bench.read("present_position") == 2048
    assert bench.read("torque_enable") == torque
    assert bench.joints.position(0) == pytest.approx(angle, abs=STEP)
    bench.bus.servos[0].powered = False
    bench.bus.servos[0].powered = True
    assert bench.read("present_position") == 2048


def test_calibration_with_a_number_makes_that_the_present_position() -> None:
    bench = Bench(positions=[1.0])
    assert bench.ask(OffsetCalibration(1, (1000).to_bytes(2, "little"))) == [Status(1)]
    assert bench.read("present_position") == 1000


def test_positions_wrap_within_a_turn_or_count_turns_as_the_phase_register_says() -> None:
    bench = Bench(positions=[5000 * STEP])
    assert bench.read("present_position") == (2048 + 5000) % 4096
    bench.write("phase", bench.read("phase") | FULL_TURN_FEEDBACK)
    assert bench.read("present_position") == 2048 + 5000


def test_reset_forgets_whole_turns_and_moves_nothing() -> None:
    bench = Bench(positions=[-5000 * STEP])
    for name, number in (("phase", FULL_TURN_FEEDBACK), ("min_position_limit", 0), ("max_position_limit", 0)):
        bench.write(name, number)
    bench.write("torque_enable", 1)
    bench.write("goal_position", -2952)
    bench.wait(500)
    assert bench.ask(Reset(1)) == [Status(1)]
    bench.write("torque_enable", 1)
    bench.wait(500)
    assert bench.read("present_position") == -2952 % 4096
    assert bench.joints.position(0) == pytest.approx(-5000 * STEP, abs=STEP)


def jam(bench: Bench) -> None:
    bench.joints.jammed.add(0)
    bench.write("torque_enable", 1)
    bench.write("goal_position", 4000)


def test_sustained_load_switches_the_torque_off_and_says_so_until_it_is_switched_on_again() -> None:
    bench = Bench()
    jam(bench)
    bench.wait(1900)
    assert bench.errors() == 0
    assert bench.read("present_load") == 1000
    assert bench.read("present_current") * 6.5e-3 == pytest.approx(2.5, abs=0.01)
    bench.wait(200)
    assert bench.errors() == ErrorFlag.OVERLOAD
    assert (bench.read("torque_enable"), bench.read("present_load"), bench.read("status")) == (0, 0, 32)
    bench.write("torque_enable", 0)
    bench.joints.jammed.clear()
    bench.wait(1000)
    assert bench.read("present_position") == 2048
    assert bench.errors() == ErrorFlag.OVERLOAD
    bench.write("torque_enable", 1)
    assert bench.errors() == 0
    bench.wait(1000)
    assert bench.read("present_position") == 4000


def test_a_load_that_goes_away_in_time_is_no_overload() -> None:
    bench = Bench()
    jam(bench)
    for _ in range(3):
        bench.wait(1500)
        bench.joints.jammed.clear()
        bench.wait(10)
        bench.joints.jammed.add(0)
    assert bench.errors() == 0


def test_the_torque_limit_bounds_the_load_and_zero_lets_go() -> None:
    bench = Bench()
    bench.write("torque_limit", 500)
    jam(bench)
    bench.wait(3000)
    assert bench.read("present_load") == 500
    assert bench.errors() == 0
    bench.write("torque_limit", 0)
    bench.joints.jammed.clear()
    bench.wait(500)
    assert bench.read("present_position") == 2048


def test_an_overload_that_is_no_unloading_condition_is_only_reported() -> None:
    bench = Bench()
    bench.write("unloading_condition", 0)
    jam(bench)
    bench.wait(2500)
    assert bench.errors() == ErrorFlag.OVERLOAD
    assert bench.read("torque_enable") == 1


def test_a_voltage_out_of_limits_is_an_alarm_while_it_lasts() -> None:
    bench = Bench()
    bench.bus.servos[0].voltage = 3.9
    assert bench.errors() == ErrorFlag.VOLTAGE
    assert bench.read("present_input_voltage") == 39
    bench.bus.servos[0].voltage = 8.1
    assert bench.errors() == ErrorFlag.VOLTAGE
    bench.bus.servos[0].voltage = 7.4
    assert bench.errors() == 0


def test_where_undervoltage_is_an_unloading_condition_the_joint_is_free_while_it_lasts() -> None:
    bench = Bench()
    bench.write("unloading_condition", int(ErrorFlag.VOLTAGE))
    bench.write("torque_enable", 1)
    bench.write("goal_position", 4000)
    bench.bus.servos[0].voltage = 3.0
    bench.wait(8)
    before = bench.joints.position(0)
    bench.wait(300)
    assert bench.joints.position(0) == before
    bench.bus.servos[0].voltage = 7.4
    bench.wait(1000)
    assert bench.read("present_position") == 4000


def test_overheating_switches_the_torque_off_for_good() -> None:
    bench = Bench([1, 2])
    bench.write("torque_enable", 1)
    bench.bus.servos[0].temperature = 71
    bench.wait(10)
    assert (bench.errors(), bench.errors(2)) == (ErrorFlag.OVERHEATING, ErrorFlag(0))
    assert bench.read("torque_enable") == 0
    bench.write("torque_enable", 1)
    bench.wait(10)
    assert bench.read("torque_enable") == 0
    bench.bus.servos[0].temperature = 50
    bench.wait(10)
    assert (bench.errors(), bench.read("torque_enable")) == (ErrorFlag(0), 0)


def test_a_bus_that_was_not_told_the_time_does_not_work_through_the_past() -> None:
    bench = Bench()
    bench.now_ns = 10**18
    assert bench.ask(Ping(1)) == [Status(1)]


def test_a_frame_in_pieces_is_understood_unless_the_host_stops_in_the_middle() -> None:
    bench = Bench()
    frame = Ping(1).to_bytes()
    answers = [bench.bus.receive(bytes([byte]), index * MS) for index, byte in enumerate(frame)]
    assert answers == [[]] * 5 + [[Answer(5 * MS, Status(1).to_bytes())]]
    bench.bus.receive(bytes.fromhex("FF FF 01 F0 03"), 10 * MS)
    bench.now_ns = 50 * MS
    assert bench.ask(Ping(1)) == [Status(1)]


def test_an_scs_speaks_big_endian_stops_at_the_ends_of_its_sensor_and_ignores_what_it_lacks() -> None:
    bench = Bench([1, 2], SCS0009)
    assert bench.ask(Read(1, 3, 2)) == [Status(1, ErrorFlag(0), (1284).to_bytes(2, "big"))]
    assert bench.send(SyncRead(56, 2, (1, 2))) == []
    assert bench.ask(OffsetCalibration(1)) == [Status(1)]
    bench.write("torque_enable", 1)
    bench.write("goal_position", 1023)
    bench.wait(3000)
    assert bench.read("present_position") == 1003
    assert bench.joints.position(0) == pytest.approx((1003 - 512) * math.radians(300) / 1024, abs=1e-4)


def test_an_scs_without_position_limits_is_a_motor() -> None:
    bench = Bench([1], SCS0009)
    bench.write("min_position_limit", 0)
    bench.write("max_position_limit", 0)
    bench.write("goal_time", -300)
    bench.write("torque_enable", 1)
    bench.wait(3000)
    velocity = 0.3 * SCS0009.max_velocity
    assert bench.joints.velocity(0) == pytest.approx(-velocity)
    assert bench.joints.position(0) == pytest.approx(-3 * velocity, rel=0.01)
    assert bench.read("present_position") == 0
