"""The rules that an emulated Dynamixel servo follows, with time given by hand."""

import itertools
import math
import struct
from typing import Any

import pytest

from hw_drivers.dynamixel.models import BAUD_RATES, HardwareError, OperatingMode, find_model
from hw_drivers.dynamixel.packets import (
    BROADCAST_ID,
    Action,
    BulkRead,
    BulkWrite,
    Clear,
    ErrorCode,
    FactoryReset,
    FastBulkRead,
    FastStatus,
    FastSyncRead,
    InstructionPacket,
    OtherInstruction,
    Ping,
    Read,
    Reboot,
    RegWrite,
    ResetOption,
    Status,
    StatusDecoder,
    SyncRead,
    SyncWrite,
    Write,
)
from hw_drivers.emulators.dynamixel import BOOT_S, OVERLOAD_S, DynamixelBus
from hw_drivers.emulators.joints import Answer, FirstOrderJoints

MS = 1_000_000
MODEL = find_model("XL330-M288")
BYTE_NS = 10 * 1_000_000_000 // 57_600


class Host:
    """Sends packets to a bus of three servos, whose joints are at 0, 0.5 and -1 rad."""

    def __init__(self, model: str = "XL330-M288", count: int = 3) -> None:
        self.joints = FirstOrderJoints([0.0, 0.5, -1.0][:count], max_velocity=4.0, time_constant_s=0.02)
        self.bus = DynamixelBus(self.joints, [find_model(model)] * count)
        self.now_ns = 0

    def wait(self, milliseconds: float) -> None:
        """Let time pass in steps, as a server does."""
        end_ns = self.now_ns + round(milliseconds * MS)
        while self.now_ns < end_ns:
            self.now_ns = min(self.now_ns + 10 * MS, end_ns)
            self.bus.advance(self.now_ns)

    def send(self, packet: InstructionPacket) -> list[Answer]:
        """Send at the present time; returns the raw answers."""
        return self.bus.receive(packet.to_bytes(), self.now_ns)

    def ask(self, packet: InstructionPacket) -> list[Any]:
        """Return the decoded answers, after the last of them has come."""
        answers = self.send(packet)
        self.wait(2)
        return StatusDecoder().feed(b"".join(answer.data for answer in answers))

    def write(self, name: str, raw: int, servo_id: int = 1) -> ErrorCode:
        register = MODEL.register(name)
        (status,) = self.ask(Write(servo_id, register.address, register.encode(raw)))
        assert status.id == servo_id
        return ErrorCode(status.error)

    def read(self, name: str, servo_id: int = 1) -> int:
        register = MODEL.register(name)
        (status,) = self.ask(Read(servo_id, register.address, register.size))
        assert status.error == ErrorCode.NONE
        return register.decode(status.data)


@pytest.fixture
def host() -> Host:
    return Host()


def test_a_ping_tells_the_model_and_comes_after_the_return_delay(host: Host) -> None:
    (answer,) = host.send(Ping(2))
    assert answer.due_ns == 500_000
    assert StatusDecoder().feed(answer.data) == [Status(2, data=struct.pack("<HB", 1200, 46))]
    assert host.write("return_delay_time", 10, servo_id=2) == ErrorCode.NONE
    (answer,) = host.send(Ping(2))
    assert answer.due_ns == host.now_ns + 20_000


def test_all_servos_answer_a_broadcast_ping_without_meeting(host: Host) -> None:
    host.write("return_delay_time", 0, servo_id=2)
    answers = host.send(Ping(BROADCAST_ID))
    assert [status.id for status in StatusDecoder().feed(b"".join(answer.data for answer in answers))] == [1, 2, 3]
    for answer, following in itertools.pairwise(answers):
        assert answer.due_ns + len(answer.data) * BYTE_NS < following.due_ns


@pytest.mark.parametrize(
    ("address", "data", "error"),
    [
        (132, b"\0\0\0\0", ErrorCode.ACCESS),  # read only
        (7, b"\x09", ErrorCode.ACCESS),  # EEPROM while the torque is on
        (66, b"\x01", ErrorCode.ACCESS),  # no register
        (228, b"\x01", ErrorCode.ACCESS),  # behind the control table
        (168, b"\x74\0", ErrorCode.ACCESS),  # indirect address while the torque is on
        (116, b"\0\x08", ErrorCode.DATA_LENGTH),
        (118, b"\0\0", ErrorCode.DATA_LENGTH),
        (116, b"", ErrorCode.DATA_LENGTH),
        (64, b"\x02", ErrorCode.DATA_RANGE),
        (84, b"\0\x40", ErrorCode.DATA_RANGE),
        (116, struct.pack("<i", 4096), ErrorCode.DATA_LIMIT),
        (104, struct.pack("<i", -446), ErrorCode.DATA_LIMIT),
        (112, struct.pack("<ii", 50, -1), ErrorCode.DATA_LIMIT),  # one of two is wrong
        (112, struct.pack("<ii", 50, 2050), ErrorCode.NONE),
    ],
)
def test_a_write_is_checked_and_refused_as_a_whole(host: Host, address: int, data: bytes, error: ErrorCode) -> None:
    host.write("torque_enable", 1)
    before = host.read("profile_velocity"), host.read("goal_position")
    assert host.ask(Write(1, address, data)) == [Status(1, error)]
    after = host.read("profile_velocity"), host.read("goal_position")
    assert after == (before if error else (50, 2050))


@pytest.mark.parametrize(
    ("packet", "error"),
    [
        (OtherInstruction(1, 0x77, b""), ErrorCode.INSTRUCTION),
        (Action(1), ErrorCode.INSTRUCTION),  # without a registered write
        (OtherInstruction(1, 0x02, b"\x84"), ErrorCode.DATA_LENGTH),
        (Read(1, 220, 20), ErrorCode.ACCESS),
        (Clear(1, b"\x01DXL!"), ErrorCode.DATA_RANGE),
        (FactoryReset(1, 3), ErrorCode.DATA_RANGE),
        (Write(1, 11, b"\0"), ErrorCode.DATA_RANGE),  # current mode is not emulated
    ],
)
def test_instructions_that_cannot_be_carried_out_get_their_error(host: Host, packet: InstructionPacket, error: ErrorCode) -> None:
    assert host.ask(packet) == [Status(1, error)]


def test_a_packet_for_another_servo_or_with_a_wrong_crc_is_not_answered(host: Host) -> None:
    assert host.ask(Ping(9)) == []
    damaged = bytearray(Ping(1).to_bytes())
    damaged[-1] ^= 1
    assert host.bus.receive(bytes(damaged), host.now_ns) == []


@pytest.mark.parametrize(("level", "reads", "writes"), [(0, 0, 0), (1, 1, 0), (2, 1, 1)])
def test_the_status_return_level_says_what_is_answered(host: Host, level: int, reads: int, writes: int) -> None:
    host.write("status_return_level", level)
    assert len(host.ask(Ping(1))) == 1
    assert len(host.ask(Read(1, 132, 4))) == reads
    assert len(host.ask(Write(1, 65, b"\x01"))) == writes
    assert len(host.ask(Write(1, 65, b"\x09"))) == writes
    assert len(host.ask(SyncRead.of(132, 4, [1]))) == reads


def test_a_goal_is_followed_with_the_profile_velocity_once_the_torque_is_on(host: Host) -> None:
    host.write("goal_position", 3072)
    host.wait(500)
    assert host.read("present_position") == 2048
    host.write("profile_velocity", 40)
    host.write("torque_enable", 1)
    host.wait(500)
    assert host.read("present_position") == 2048, "the goal from before the torque must not count"
    assert host.read("goal_position") == 2048
    host.write("goal_position", 3072)
    host.wait(100)
    assert host.read("present_velocity") == 40
    assert host.read("moving") == 1
    host.wait(2000)
    assert host.joints.position(0) == pytest.approx(math.pi / 2, abs=1e-6)
    assert (host.read("present_position"), host.read("moving"), host.read("moving_status")) == (3072, 0, 1)
    host.write("torque_enable", 0)
    host.write("goal_position", 2048)
    host.wait(500)
    assert host.read("present_position") == 3072


def test_velocity_mode_turns_without_end_and_counts_turns(host: Host) -> None:
    host.write("operating_mode", OperatingMode.VELOCITY)
    host.write("torque_enable", 1)
    host.write("goal_velocity", -100)
    host.wait(10_000)
    assert host.joints.velocity(0) == pytest.approx(-100 * 0.229 * 2 * math.pi / 60)
    assert host.read("present_position") < -4096
    host.write("goal_velocity", 0)
    host.wait(100)
    assert host.read("present_velocity") == 0
    at_rest = host.read("present_position")
    assert host.ask(Clear(1)) == [Status(1)]
    assert host.read("present_position") == at_rest % 4096


def test_clear_is_refused_in_motion(host: Host) -> None:
    host.write("operating_mode", OperatingMode.VELOCITY)
    host.write("torque_enable", 1)
    host.write("goal_velocity", 100)
    host.wait(10)
    assert host.ask(Clear(1)) == [Status(1, ErrorCode.RESULT_FAIL)]


def test_extended_position_mode_goes_over_several_turns(host: Host) -> None:
    host.write("operating_mode", OperatingMode.EXTENDED_POSITION)
    host.write("torque_enable", 1)
    assert host.write("goal_position", 2048 + 3 * 4096) == ErrorCode.NONE
    host.wait(8000)
    assert host.read("present_position") == 2048 + 3 * 4096
    assert host.write("goal_position", 1_048_576) == ErrorCode.DATA_RANGE


def test_reverse_mode_and_homing_offset_change_what_position_means(host: Host) -> None:
    host.write("drive_mode", 1, servo_id=2)  # its joint is at 0.5 rad
    assert host.read("present_position", servo_id=2) == 2048 - 326
    host.write("homing_offset", 100, servo_id=2)
    assert host.read("present_position", servo_id=2) == 2048 - 326 + 100
    host.write("torque_enable", 1, servo_id=2)
    host.write("goal_position", 2148, servo_id=2)
    host.wait(1000)
    assert host.joints.position(1) == pytest.approx(0.0, abs=1e-6)
    assert host.read("present_position", servo_id=2) == 2148


def test_a_time_based_profile_takes_the_time_that_it_says(host: Host) -> None:
    host.write("drive_mode", 4)
    host.write("torque_enable", 1)
    host.write("profile_velocity", 2000)
    host.write("goal_position", 3072)
    host.wait(1000)
    assert host.joints.position(0) == pytest.approx(math.pi / 4, rel=0.02)


def test_torque_on_by_goal_needs_no_torque_enable(host: Host) -> None:
    host.write("drive_mode", 8)
    host.write("goal_position", 2100)
    host.wait(500)
    assert (host.read("torque_enable"), host.read("present_position")) == (1, 2100)


@pytest.mark.parametrize("name", ["XL330-M288", "XM430-W350", "XL430-W250"])
def test_a_jammed_joint_draws_the_stall_current(name: str) -> None:
    host = Host(name)
    host.joints.jammed.add(0)
    host.write("torque_enable", 1)
    host.write("goal_position", 1048)
    (status,) = host.ask(Read(1, 126, 2))
    expected = {"XL330-M288": -1470, "XM430-W350": -855, "XL430-W250": -1000}[name]
    assert struct.unpack("<h", status.data)[0] == expected


def test_a_registered_write_waits_for_the_action(host: Host) -> None:
    assert host.ask(RegWrite(1, 65, b"\x01")) == [Status(1)]
    assert host.ask(RegWrite(2, 65, b"\x01")) == [Status(2)]
    assert host.ask(RegWrite(1, 65, b"\x07")) == [Status(1, ErrorCode.DATA_RANGE)]
    assert (host.read("led"), host.read("registered_instruction")) == (0, 1)
    assert host.ask(Action(BROADCAST_ID)) == []
    assert (host.read("led"), host.read("led", servo_id=2), host.read("registered_instruction")) == (1, 1, 0)
    assert host.ask(Action(1)) == [Status(1, ErrorCode.INSTRUCTION)]


def test_indirect_addresses_bring_registers_together(host: Host) -> None:
    for offset, target in enumerate([116, 117, 118, 119, 65]):
        assert host.ask(Write(1, 168 + 2 * offset, target.to_bytes(2, "little"))) == [Status(1)]
    host.write("torque_enable", 1)
    assert host.ask(Write(1, 208, struct.pack("<iB", 2222, 1))) == [Status(1)]
    assert (host.read("goal_position"), host.read("led")) == (2222, 1)
    (status,) = host.ask(Read(1, 208, 5))
    assert struct.unpack("<iB", status.data) == (2222, 1)
    assert host.ask(Write(1, 208, b"\0\0")) == [Status(1, ErrorCode.DATA_LENGTH)]


def test_the_answers_to_a_sync_read_follow_each_other_in_the_order_asked(host: Host) -> None:
    answers = host.send(SyncRead.of(132, 4, [3, 1, 2]))
    statuses = StatusDecoder().feed(b"".join(answer.data for answer in answers))
    assert [status.id for status in statuses] == [3, 1, 2]
    assert [struct.unpack("<i", status.data)[0] for status in statuses] == [2048 - 652, 2048, 2048 + 326]
    due_ns = host.now_ns
    for answer in answers:
        due_ns += 500_000
        assert answer.due_ns == pytest.approx(due_ns, abs=10)
        due_ns += 15 * BYTE_NS


def test_behind_a_silent_servo_nobody_answers_a_sync_read(host: Host) -> None:
    host.bus.silence(1)
    assert [status.id for status in host.ask(SyncRead.of(132, 4, [1, 2, 3]))] == [1]
    assert [status.id for status in host.ask(SyncRead.of(132, 4, [1, 3]))] == [1, 3]
    answers = host.send(FastSyncRead.of(132, 4, [1, 2, 3]))
    assert len(answers) == 1
    assert StatusDecoder().feed(answers[0].data) == []


def test_a_fast_sync_read_is_answered_by_one_packet_without_gaps(host: Host) -> None:
    answers = host.send(FastSyncRead.of(132, 4, [2, 1]))
    (packet,) = StatusDecoder().feed(b"".join(answer.data for answer in answers))
    assert isinstance(packet, FastStatus)
    parts = packet.split([4, 4])
    assert [(part.id, struct.unpack("<i", part.data)[0]) for part in parts] == [(2, 2048 + 326), (1, 2048)]
    assert answers[1].due_ns == answers[0].due_ns + len(answers[0].data) * 10 * 1_000_000_000 // 57_600


def test_a_servo_that_refuses_a_fast_read_keeps_its_place(host: Host) -> None:
    (packet,) = host.ask(FastBulkRead.of([(1, 132, 4), (2, 250, 3), (3, 146, 1)]))
    first, second, third = packet.split([4, 3, 1])
    assert second == Status(2, ErrorCode.ACCESS, data=b"\0\0\0")
    assert (first.id, third) == (1, Status(3, data=bytes([30])))


def test_bulk_and_sync_writes_reach_each_servo_and_are_not_answered(host: Host) -> None:
    assert host.ask(SyncWrite.of(112, [(1, struct.pack("<I", 11)), (3, struct.pack("<I", 33))])) == []
    assert [host.read("profile_velocity", servo_id=servo_id) for servo_id in (1, 2, 3)] == [11, 0, 33]
    assert host.ask(BulkWrite.of([(2, 65, b"\x01"), (1, 64, b"\x01")])) == []
    assert (host.read("led", servo_id=2), host.read("torque_enable")) == (1, 1)
    first, second = host.ask(BulkRead.of([(3, 112, 4), (2, 65, 1)]))
    assert (first, second) == (Status(3, data=struct.pack("<I", 33)), Status(2, data=b"\x01"))


def test_the_bus_watchdog_stops_the_joint_and_refuses_goals_until_it_is_cleared(host: Host) -> None:
    host.write("operating_mode", OperatingMode.VELOCITY)
    host.write("torque_enable", 1)
    host.write("goal_velocity", 100)
    host.write("bus_watchdog", 5)
    sent_ns = host.now_ns - 2 * MS
    host.bus.advance(sent_ns + 99 * MS)
    assert host.joints.velocity(0) > 0
    moved = host.joints.position(0)
    host.bus.advance(sent_ns + 5000 * MS)  # it trips at 100 ms although nobody looked then
    assert host.joints.position(0) - moved == pytest.approx(1e-3 * 100 * 0.229 * 2 * math.pi / 60)
    host.now_ns = sent_ns + 5000 * MS
    assert (host.read("bus_watchdog"), host.read("present_velocity"), host.read("torque_enable")) == (-1, 0, 1)
    assert host.write("goal_velocity", 50) == ErrorCode.DATA_RANGE
    assert host.write("goal_position", 2048) == ErrorCode.DATA_RANGE
    assert host.write("bus_watchdog", 5) == ErrorCode.DATA_RANGE
    assert host.write("bus_watchdog", 0) == ErrorCode.NONE
    host.wait(500)
    assert host.read("present_velocity") == 0
    assert host.write("goal_velocity", 50) == ErrorCode.NONE
    host.wait(100)
    assert host.read("present_velocity") == 50


def test_any_packet_feeds_the_bus_watchdog_also_one_for_another_servo(host: Host) -> None:
    host.write("torque_enable", 1)
    host.write("bus_watchdog", 2)
    for _ in range(10):
        host.wait(35)
        host.ask(Ping(9))
    assert host.read("bus_watchdog") == 2
    host.wait(41)
    assert host.read("bus_watchdog") == -1


def test_an_overload_shuts_down_and_only_a_reboot_brings_the_torque_back(host: Host) -> None:
    host.write("torque_enable", 1)
    host.joints.jammed.add(0)
    host.write("goal_position", 3000)
    host.wait(OVERLOAD_S * 1000 - 100)
    assert host.read("torque_enable") == 1
    host.wait(200)
    (status,) = host.ask(Ping(1))
    assert (status.alert, status.error) == (True, ErrorCode.NONE)
    assert host.read("hardware_error_status") == HardwareError.OVERLOAD
    assert (host.read("torque_enable"), host.joints.effort(0)) == (0, 0.0)
    assert host.write("torque_enable", 1) == ErrorCode.RESULT_FAIL
    assert host.write("torque_enable", 0) == ErrorCode.NONE
    assert not host.ask(Ping(2))[0].alert
    host.joints.jammed.clear()
    assert host.ask(Reboot(1)) == [Status(1, alert=True)]
    host.wait(BOOT_S * 1000)
    assert host.write("torque_enable", 1) == ErrorCode.NONE
    assert not host.ask(Ping(1))[0].alert


def test_an_error_outside_of_the_shutdown_mask_only_raises_the_alert_bit(host: Host) -> None:
    host.write("shutdown", 0)
    host.write("torque_enable", 1)
    host.bus.servos[0].input_voltage = 2.9
    host.bus.servos[0].temperature = 90.0
    host.wait(10)
    (status,) = host.ask(Read(1, 64, 1))
    assert status == Status(1, alert=True, data=b"\x01")
    assert host.ask(Write(1, 64, b"\x05")) == [Status(1, ErrorCode.DATA_RANGE, alert=True)]
    assert host.read("hardware_error_status") == HardwareError.INPUT_VOLTAGE | HardwareError.OVERHEATING
    assert (host.read("present_input_voltage"), host.read("present_temperature")) == (29, 90)


def test_a_reboot_loses_torque_and_ram_but_not_the_eeprom_and_takes_a_while(host: Host) -> None:
    host.write("return_delay_time", 50)
    host.write("torque_enable", 1)
    host.write("led", 1)
    host.write("goal_position", 3072)
    host.wait(50)
    assert host.ask(Reboot(1)) == [Status(1)]
    assert not host.bus.servos[0].torque_on
    assert host.joints.velocity(0) == 0
    assert host.ask(Ping(1)) == []
    host.wait(BOOT_S * 1000)
    assert (host.read("led"), host.read("torque_enable"), host.read("return_delay_time")) == (0, 0, 50)
    assert host.read("realtime_tick") < 50


@pytest.mark.parametrize(
    ("option", "found"),
    [
        (ResetOption.ALL, (1, 57_600)),
        (ResetOption.ALL_BUT_ID, (7, 57_600)),
        (ResetOption.ALL_BUT_ID_AND_BAUD_RATE, (7, 1_000_000)),
    ],
)
def test_a_factory_reset_covers_what_its_option_says(option: ResetOption, found: tuple[int, int]) -> None:
    host = Host(count=1)
    assert host.write("return_delay_time", 0) == ErrorCode.NONE
    host.ask(Write(1, 7, b"\x07"))
    host.ask(Write(7, 8, b"\x03"))
    host.bus.baud_rate = 1_000_000
    assert host.ask(FactoryReset(BROADCAST_ID, ResetOption.ALL)) == []
    assert host.ask(FactoryReset(7, option)) == [Status(7)]
    host.wait(BOOT_S * 1000)
    servo = host.bus.servos[0]
    assert (servo.servo_id, servo.baud_rate, servo.return_delay_ns) == (*found, 500_000)


def test_a_new_id_counts_after_the_answer(host: Host) -> None:
    assert host.write("id", 77) == ErrorCode.NONE
    assert host.ask(Ping(1)) == []
    assert [status.id for status in host.ask(Ping(77))] == [77]


def test_a_servo_on_another_baud_rate_hears_nothing(host: Host) -> None:
    assert host.write("baud_rate", BAUD_RATES.index(1_000_000), servo_id=2) == ErrorCode.NONE
    assert host.ask(Ping(2)) == []
    assert len(host.ask(Ping(1))) == 1
    host.bus.baud_rate = 1_000_000
    assert len(host.ask(Ping(2))) == 1
    assert host.ask(Ping(1)) == []


def test_two_servos_with_one_id_both_answer_at_the_same_time(host: Host) -> None:
    host.write("id", 1, servo_id=2)
    first, second = host.send(Ping(1))
    assert first.due_ns == second.due_ns


def test_the_realtime_tick_counts_milliseconds_and_wraps(host: Host) -> None:
    host.wait(33_000 - host.now_ns // MS)
    assert host.read("realtime_tick") == 33_000 - 32_768


def test_an_answer_with_another_id_is_valid(host: Host) -> None:
    (answer,) = host.send(Read(1, 132, 4))
    (status,) = StatusDecoder().feed(host.bus.with_other_id(answer.data))
    assert status == Status(2, data=struct.pack("<i", 2048))


@pytest.mark.parametrize(("ids", "baud_rate"), [([1, 2], 57_600), ([253], 57_600), ([1], 4_500_000), ([1], 1234)])
def test_a_bus_that_cannot_be_is_refused(ids: list[int], baud_rate: int) -> None:
    with pytest.raises(ValueError, match=r"IDs|baud rate"):
        DynamixelBus(FirstOrderJoints([0.0]), [MODEL], ids, baud_rate=baud_rate)


class TestFirstOrderJoints:
    def test_the_way_does_not_depend_on_the_steps_of_time(self) -> None:
        fine, coarse = (FirstOrderJoints([0.0], max_velocity=4.0, time_constant_s=0.05) for _ in range(2))
        for joints, step_ns in ((fine, MS), (coarse, 100 * MS)):
            joints.advance(0)
            joints.set_goal(0, 1.0, 2.0)
            for at_ns in range(step_ns, 600 * MS + 1, step_ns):
                joints.advance(at_ns)
        assert fine.position(0) == pytest.approx(coarse.position(0), abs=1e-9)
        # at 2 rad/s to 0.1 rad before the goal, then as exp(-t / 0.05 s)
        assert fine.position(0) == pytest.approx(1.0 - 0.1 * math.exp(-(0.6 - 0.45) / 0.05))
        assert fine.velocity(0) == pytest.approx((1.0 - fine.position(0)) / 0.05)
        assert fine.effort(0) == pytest.approx(0.2 * fine.velocity(0) / 4.0)

    def test_a_released_or_jammed_joint_stays_where_it_is(self) -> None:
        joints = FirstOrderJoints([0.5, 0.5])
        joints.advance(0)
        for index in range(2):
            joints.set_goal(index, -math.inf, 1.0)
        joints.advance(100 * MS)
        assert joints.velocity(0) == -1.0
        joints.release(0)
        joints.jammed.add(1)
        joints.advance(1000 * MS)
        assert [joints.position(index) for index in range(2)] == pytest.approx([0.4, 0.4])
        assert [joints.velocity(index) for index in range(2)] == [0.0, 0.0]
        assert [joints.effort(index) for index in range(2)] == [0.0, -1.0]

    def test_no_joint_is_faster_than_its_largest_velocity(self) -> None:
        joints = FirstOrderJoints([0.0], max_velocity=4.0)
        joints.advance(0)
        joints.set_goal(0, math.inf, math.inf)
        joints.advance(1000 * MS)
        assert (joints.position(0), joints.velocity(0)) == (4.0, 4.0)

    def test_nonsense_is_refused(self) -> None:
        joints = FirstOrderJoints([0.0])
        joints.advance(5)
        with pytest.raises(ValueError, match="backwards"):
            joints.advance(4)
        with pytest.raises(ValueError, match="nan"):
            joints.set_goal(0, math.nan, 1.0)
        with pytest.raises(ValueError, match="positive"):
            FirstOrderJoints([0.0], time_constant_s=0.0)
