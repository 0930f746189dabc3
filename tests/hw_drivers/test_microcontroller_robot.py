"""The microcontroller robot against emulators in processes of their own, over pseudo-terminals."""

import csv
import os
import random
import signal
import struct
import threading
import time
import tty
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from cobs import cobs

from dpg_robot.contract import Contract, Feature
from dpg_robot.deploy.robot import DeviceFlag, JointState
from dpg_robot.errors import ContractError, LinkError, LinkTimeoutError
from hw_drivers.microcontroller import NackReason
from hw_drivers.microcontroller_robot import MicrocontrollerRobot

DRIVE = """
import sys, time
import numpy as np
from dpg_robot.deploy.robot import JointState
from hw_drivers.microcontroller_robot import MicrocontrollerRobot
robot = MicrocontrollerRobot(
    sys.argv[1], measurement_names=("position", "velocity"), command_names=("force",), command_low=[-5.0], command_high=[5.0]
)
robot.connect()
robot.enable()
state = JointState.empty(2)
for tick in range(10_000):
    robot.read(state)
    robot.write(np.array([3.0]))
    if tick == 10:
        print("driving", flush=True)
    time.sleep(0.01)
"""


def make_robot(port: str, **changes: Any) -> MicrocontrollerRobot:
    arguments: dict[str, Any] = {
        "measurement_names": ("position", "velocity"),
        "measurement_units": ("m", "m/s"),
        "command_names": ("force",),
        "command_units": ("N",),
        "command_low": [-5.0],
        "command_high": [5.0],
        "read_timeout_s": 1.0,
    }
    return MicrocontrollerRobot(port, **{**arguments, **changes})


@contextmanager
def connected(port: str, **changes: Any) -> Iterator[MicrocontrollerRobot]:
    robot = make_robot(port, **changes)
    robot.connect()
    try:
        yield robot
    finally:
        robot.close()


def read_trace(path: Path, until_ns: int) -> list[dict[str, float]]:
    """Wait until the emulator's trace reaches ``until_ns`` and return its whole rows."""
    deadline = time.monotonic() + 20
    while time.monotonic() < deadline:
        lines = path.read_text().splitlines(keepends=True)
        if lines and not lines[-1].endswith("\n"):
            lines.pop()
        rows = [{name: float(value) for name, value in row.items()} for row in csv.DictReader(lines)]
        if rows and rows[-1]["time_ns"] > until_ns:
            return rows
        time.sleep(0.05)
    raise AssertionError(f"the trace {path} did not reach {until_ns} ns")


def test_it_connects_enables_reads_and_moves_the_robot(emulate: Callable[..., Any]) -> None:
    with connected(emulate(watchdog_s=5.0).port) as robot:
        assert robot.identity is not None
        assert robot.identity.name == "point-mass"
        robot.enable()
        state = JointState.empty(2)
        before_ns = time.monotonic_ns()
        robot.read(state)
        assert state.valid.all()
        assert state.flags == DeviceFlag.ENABLED
        assert state.values.tolist() == [0.0, 0.0]
        assert (before_ns <= state.time_ns).all()
        assert (state.time_ns <= time.monotonic_ns()).all()
        first_device_ns = state.device_time_ns
        robot.write(np.array([2.0]))
        deadline = time.monotonic() + 10
        while not state.values[1] > 0.02:
            assert time.monotonic() < deadline, "the commanded force moves nothing"
            robot.read(state)
        assert state.device_time_ns > first_device_ns
        robot.disable()
        robot.disable()
        robot.read(state)
        assert state.flags == DeviceFlag(0)
        assert not any(vars(robot.counters).values())


def test_the_contract_of_a_policy_describes_the_robot_completely(emulate: Callable[..., Any], point_mass: ModuleType) -> None:
    contract = Contract(
        "point-mass-reach",
        point_mass.PointMass.measurements,
        (Feature("identity", "position"),),
        point_mass.PointMass.commands,
        rate_hz=50,
    )
    robot = MicrocontrollerRobot.from_contract(emulate().port, contract)
    robot.connect()
    robot.close()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"measurement_names": ("velocity", "position")},
            r"measurement channels: got position, velocity; expected velocity, pos",
        ),
        ({"measurement_units": ("m", "rad/s")}, r"measurement units: got m, m/s; expected m, rad/s"),
        ({"command_names": ("torque",)}, r"command channels: got force; expected torque"),
        ({"command_units": ("kN",)}, r"command units: got N; expected kN"),
        ({"command_high": [6.0]}, r"limits of force: got -5 to 5; expected at least -5 to 6"),
        ({"command_low": [-5.1]}, r"limits of force: got -5 to 5; expected at least -5.1 to 5"),
    ],
)
def test_a_device_that_is_not_the_expected_robot_is_refused(emulate: Callable[..., Any], changes: Any, message: str) -> None:
    port = emulate().port
    robot = make_robot(port, **changes)
    with pytest.raises(ContractError, match=message):
        robot.connect()
    with connected(port):
        pass  # the refusal gave the port back


def test_narrower_limits_of_ours_are_fine_and_hold(emulate: Callable[..., Any]) -> None:
    with connected(emulate().port, command_low=[-1.0], command_high=[1.0]) as robot:
        robot.enable()
        with pytest.raises(ValueError, match=r"force must be within -1 to 1, got 1\.5"):
            robot.write(np.array([1.5]))


@pytest.mark.parametrize("command", [[np.nan], [np.inf], [-5.0001], [1.0, 1.0]])
def test_a_command_that_must_not_go_out_is_refused_before_it_is_sent(emulate: Callable[..., Any], command: list[float]) -> None:
    with connected(emulate().port) as robot:
        robot.enable()
        with pytest.raises(ValueError, match=r"force|shape"):
            robot.write(np.array(command))
        state = JointState.empty(2)
        robot.read(state)
        assert robot.counters.nacks == 0


def test_a_refused_command_is_counted_by_the_next_read_and_the_flags_tell_why(emulate: Callable[..., Any]) -> None:
    with connected(emulate().port) as robot:
        state = JointState.empty(2)
        robot.write(np.array([1.0]))
        robot.read(state)
        assert DeviceFlag.ENABLED not in state.flags
        assert robot.last_nack == NackReason.NOT_ENABLED
        assert (robot.counters.nacks, robot.counters.lost_commands) == (1, 1)


def test_values_that_are_not_finite_are_invalid_alone_and_keep_value_and_time(emulate: Callable[..., Any]) -> None:
    with connected(emulate(nan_every=2).port) as robot:
        state = JointState.empty(2)
        robot.read(state)
        assert state.valid.tolist() == [True, True]
        first_ns = int(state.time_ns[1])
        robot.read(state)
        assert state.valid.tolist() == [True, False]
        assert state.time_ns[1] == first_ns < state.time_ns[0]
        assert np.isfinite(state.values).all()
        assert robot.counters.nonfinite_values == 1


@pytest.mark.parametrize(
    "faults",
    [
        {"delay": 0.3, "delay_s": 0.03},
        {"duplicate": 0.5},
        {"corrupt": 0.3},
        {"drop": 0.3},
        {"delay": 0.2, "delay_s": 0.03, "duplicate": 0.2, "corrupt": 0.2, "drop": 0.2},
    ],
    ids=["late", "duplicate", "corrupt", "dropped", "all"],
)
def test_no_late_duplicated_or_damaged_answer_is_taken_for_the_present_one(emulate: Callable[..., Any], faults: Any) -> None:
    port = emulate(watchdog_s=30.0, faults={"seed": 1, **faults}).port
    epoch_low, epoch_high = -(2**62), 2**62
    last_ns, valid_reads = -1, 0
    with connected(port, read_timeout_s=0.01) as robot:
        state = JointState.empty(2)
        for _ in range(150):
            kept_values, kept_times = state.values.copy(), state.time_ns.copy()
            asked_ns = time.monotonic_ns()
            robot.read(state)
            done_ns = time.monotonic_ns()
            if not state.valid.all():
                assert not state.valid.any()
                assert (state.values == kept_values).all()
                assert (state.time_ns == kept_times).all()
                continue
            valid_reads += 1
            assert state.device_time_ns > last_ns
            last_ns = state.device_time_ns
            # The device measured between question and answer, so this interval must hold the start of its clock (us resolution).
            epoch_low = max(epoch_low, asked_ns - state.device_time_ns - 1000)
            epoch_high = min(epoch_high, done_ns - state.device_time_ns)
            assert epoch_low <= epoch_high, "an answer to an earlier question was accepted"
        counters = robot.counters
    assert valid_reads >= 20
    assert counters.timeouts == 150 - valid_reads
    if "delay" in faults or "duplicate" in faults:
        assert counters.unmatched_answers > 10
    if "corrupt" in faults:
        assert counters.resyncs >= counters.crc_errors > 10
    if "drop" in faults:
        assert counters.timeouts > 20


def test_the_device_is_enabled_and_disabled_through_lost_answers(emulate: Callable[..., Any]) -> None:
    port = emulate(faults={"seed": 5, "drop": 0.3}).port
    with connected(port) as robot:
        for _ in range(5):
            robot.enable()
            robot.disable()


def test_a_silent_device_makes_reads_invalid_within_their_time_and_enable_an_error(emulate: Callable[..., Any]) -> None:
    emulator = emulate()
    with connected(emulator.port, read_timeout_s=0.004) as robot:
        emulator.process.send_signal(signal.SIGSTOP)
        try:
            state = JointState.empty(2)
            for _ in range(10):
                robot.read(state)
                assert not state.valid.any()
            assert robot.counters.timeouts == 10
            with pytest.raises(LinkTimeoutError, match="did not confirm Enable"):
                robot.enable()
            robot.disable()  # must not raise
        finally:
            emulator.process.send_signal(signal.SIGCONT)


def test_a_vanished_port_is_a_link_error_on_read_and_write_but_not_on_disable(emulate: Callable[..., Any]) -> None:
    emulator = emulate()
    robot = make_robot(emulator.port)
    robot.connect()
    robot.enable()
    emulator.process.terminate()
    assert emulator.process.wait(timeout=10) == 0
    with pytest.raises(LinkError, match="gone"):
        robot.read(JointState.empty(2))
    with pytest.raises(LinkError, match="gone"):
        robot.write(np.zeros(1))
    robot.disable()
    robot.close()
    robot.close()


def test_using_a_robot_that_is_not_connected_is_a_clear_error(tmp_path: Path) -> None:
    robot = make_robot(str(tmp_path / "tty"))
    robot.disable()
    robot.close()
    with pytest.raises(LinkError, match="not open"):
        robot.read(JointState.empty(2))
    with pytest.raises(LinkError, match="does not exist"):
        robot.connect()


@contextmanager
def port_that(answer: Callable[[bytes], bytes]) -> Iterator[str]:
    """Yield a pseudo-terminal on which something else than a device of ours answers."""
    master, slave = os.openpty()
    tty.setraw(slave)
    stopped = threading.Event()
    os.set_blocking(master, False)

    def serve() -> None:
        while not stopped.wait(0.005):
            try:
                received = os.read(master, 4096)
            except BlockingIOError:
                received = b""
            reply = answer(received)
            if reply:
                os.write(master, reply)

    thread = threading.Thread(target=serve)
    thread.start()
    try:
        yield os.ttyname(slave)
    finally:
        stopped.set()
        thread.join()
        os.close(master)
        os.close(slave)


def future_identity(received: bytes) -> bytes:
    content = struct.pack("<BBI", 2, 0x81, 1) + b"of another age"
    return b"\x00" + cobs.encode(content + struct.pack("<I", zlib.crc32(content))) + b"\x00" if received else b""


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        (lambda received: b"", r"0 bytes received.*powered"),
        (lambda received: random.Random(1).randbytes(50), r"[1-9]\d* bytes received, 0 valid frames.*baud rate"),
        (lambda received: received, r"valid frames in them, but no Identity.*echo"),
        (future_identity, r"another version than 1 of the protocol"),
    ],
    ids=["silence", "noise", "echo", "other version"],
)
def test_a_port_without_our_device_is_refused_with_what_came_and_what_to_check(
    answer: Callable[[bytes], bytes], message: str
) -> None:
    with port_that(answer) as port:
        robot = make_robot(port, connect_timeout_s=0.3)
        with pytest.raises(LinkError, match=message):
            robot.connect()


def test_two_hosts_cannot_drive_one_robot(emulate: Callable[..., Any]) -> None:
    port = emulate().port
    with connected(port), pytest.raises(LinkError, match=rf"busy: it is held by .*\(process {os.getpid()}\)"):
        make_robot(port).connect()


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSTOP], ids=["killed", "stopped"])
def test_the_force_is_gone_within_100_ms_after_the_host_is(
    emulate: Callable[..., Any], run_python: Callable[..., Any], tmp_path: Path, number: signal.Signals
) -> None:
    trace = tmp_path / "trace.csv"
    emulator = emulate(trace=str(trace), watchdog_s=0.06)
    host = run_python("-c", DRIVE, emulator.port)
    assert host.stdout.readline() == "driving\n"
    host.send_signal(number)
    ended_ns = time.monotonic_ns()
    rows = read_trace(trace, ended_ns + 300_000_000)
    with_force = [row["time_ns"] for row in rows if row["command_force"] != 0]
    assert len(with_force) > 10
    assert max(with_force) - ended_ns < 100_000_000
    assert rows[-1]["enabled"] == 0
    speeds = [row["velocity"] for row in rows if row["time_ns"] > ended_ns + 100_000_000]
    assert len(set(speeds)) == 1, "the plant itself must feel no force any more"
    if number == signal.SIGKILL:
        with connected(emulator.port) as robot:  # the port is free for the next host, and the device not enabled
            state = JointState.empty(2)
            robot.read(state)
            assert state.valid.all()
            assert state.flags == DeviceFlag(0)


def test_closing_the_port_without_disable_takes_the_force_away_at_once(emulate: Callable[..., Any], tmp_path: Path) -> None:
    trace = tmp_path / "trace.csv"
    emulator = emulate(trace=str(trace), watchdog_s=30.0)
    robot = make_robot(emulator.port)
    robot.connect()
    robot.enable()
    robot.write(np.array([4.0]))
    robot.read(JointState.empty(2))
    robot._link.close()
    closed_ns = time.monotonic_ns()
    rows = read_trace(trace, closed_ns + 200_000_000)
    with_force = [row["time_ns"] for row in rows if row["command_force"] != 0]
    assert with_force
    assert max(with_force) - closed_ns < 100_000_000


def test_a_device_process_that_got_no_cpu_time_counts_commands_that_waited_as_in_time(emulate: Callable[..., Any]) -> None:
    emulator = emulate(watchdog_s=0.4)
    with connected(emulator.port) as robot:
        robot.enable()
        robot.write(np.array([1.0]))
        state = JointState.empty(2)
        robot.read(state)
        emulator.process.send_signal(signal.SIGSTOP)
        until = time.monotonic() + 0.6
        while time.monotonic() < until:
            robot.write(np.array([1.0]))
            time.sleep(0.02)
        emulator.process.send_signal(signal.SIGCONT)
        robot.read(state)
        assert state.valid.all()
        assert state.flags == DeviceFlag.ENABLED


def test_channels_and_limits_of_different_lengths_are_refused_at_once() -> None:
    with pytest.raises(ValueError, match="limits of shapes"):
        make_robot("/dev/null", command_low=[-1.0, -1.0])
