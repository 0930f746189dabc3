"""The firmware's C code does, byte by byte, what the emulated microcontroller does, and survives whatever it receives."""

import math
import random
import shutil
import struct
import subprocess
from pathlib import Path

import numpy as np
import pytest
from cobs import cobs

from dpg_robot.contract import CommandChannel, MeasurementChannel
from dpg_robot.deploy.robot import DeviceFlag
from hw_drivers.emulators.microcontroller import Microcontroller
from hw_drivers.microcontroller import (
    Ack,
    Command,
    Decoder,
    Disable,
    Enable,
    Hello,
    Identity,
    Nack,
    NackReason,
    ReadState,
    State,
)

HERE = Path(__file__).parent
FIRMWARE = HERE.parents[1] / "hw_drivers" / "firmware"
COMPILER = shutil.which("cc") or shutil.which("gcc") or shutil.which("clang")
STRICT = ("-std=c99", "-Wall", "-Wextra", "-Wpedantic", "-Wconversion", "-Werror")
pytestmark = pytest.mark.skipif(COMPILER is None, reason="no C compiler on this computer")

MEASUREMENTS = (
    MeasurementChannel("cart_position", "m"),
    MeasurementChannel("pole_angle", "rad"),
    MeasurementChannel("pole_velocity", "rad/s"),
)
COMMANDS = (CommandChannel("cart_force", "N", -10.0, 10.0), CommandChannel("pole_torque", "N m", -0.5, 1.5))


class StillPlant:
    """Sensors that read what the test says."""

    name = "test-board"
    measurements, commands, state_names = MEASUREMENTS, COMMANDS, ()

    def __init__(self):
        self.values, self.applied = np.zeros(3), []

    def advance(self, until_ns):
        pass

    def measure(self):
        return self.values

    def set_command(self, values):
        self.applied.append(("A", *(float(np.float32(value)) for value in values)))

    def release(self):
        self.applied.append(("X",))


class Firmware:
    """The compiled program, line by line."""

    def __init__(self, program):
        self.process = subprocess.Popen(
            [program], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        self.decoder = Decoder()
        self.raw = b""

    def do(self, line):
        """Return what was applied, and the replies."""
        try:
            self.process.stdin.write(line + "\n")
            self.process.stdin.flush()
        except BrokenPipeError:
            pytest.fail(f"the program has ended: {self.process.stderr.read()}")
        applied, frames, self.raw = [], [], b""
        while (answer := self.process.stdout.readline().strip()) != ".":
            assert answer, f"the program has ended: {self.process.stderr.read()}"
            kind, *rest = answer.split()
            if kind == "S":
                self.raw = bytes.fromhex(rest[0])
                frames += self.decoder.feed(self.raw)
            else:
                applied.append((kind, *(float(np.float32(value)) for value in rest)))
        return applied, frames

    def receive(self, data, now_us=0):
        return self.do(f"R {now_us} {data.hex()}")


@pytest.fixture(scope="module")
def program(tmp_path_factory):
    """The program with checks of memory and undefined behaviour where the compiler has them."""
    target = tmp_path_factory.mktemp("firmware") / "host"
    command = [COMPILER, *STRICT, "-O1", "-g", "-I", FIRMWARE, FIRMWARE / "dpg_link.c", HERE / "firmware_host.c", "-o", target]
    checks = ["-fsanitize=address,undefined", "-fno-sanitize-recover=all"]
    if subprocess.run([*command, *checks], capture_output=True, check=False).returncode:
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
    return target


@pytest.fixture
def firmware(program):
    device = Firmware(program)
    assert device.process.stdout.readline() == "X\n", "it begins with the actuators released"
    yield device
    device.process.stdin.close()
    assert device.process.wait(10) == 0, device.process.stderr.read()
    device.process.stdout.close()
    device.process.stderr.close()


def test_it_says_who_it_is(firmware):
    applied, (identity,) = firmware.receive(Hello(7).to_bytes(), now_us=1500)
    assert identity == Identity(7, 1500, 60_000, "test-board", "1.2.3", MEASUREMENTS, COMMANDS)
    assert applied == [("X",)]
    assert firmware.raw == identity.to_bytes(), "stuffed as everybody does it"


def test_a_session_as_the_specification_tells_it(firmware):
    assert firmware.receive(Command(1, (1.0, 0.5)).to_bytes())[1] == [Nack(1, 0, NackReason.NOT_ENABLED)]
    assert firmware.receive(Enable(2).to_bytes(), 10) == ([("A", 0, 0)], [Ack(2, 10)])
    assert firmware.receive(Command(3, (1.0, 0.5)).to_bytes(), 20) == ([("A", 1, 0.5)], [Ack(3, 20)])
    firmware.do("M 0.25 -3 nan")
    ((state,),) = firmware.receive(ReadState(4).to_bytes(), 30)[1:]
    assert isinstance(state, State)
    assert (state.flags, state.last_command, state.values[:2]) == (DeviceFlag.ENABLED, 3, (0.25, -3.0))
    assert math.isnan(state.values[2])
    assert firmware.receive(Command(5, (math.inf, 0.5)).to_bytes(), 40) == ([("A", 0, 0)], [Nack(5, 40, NackReason.NOT_FINITE)])
    assert firmware.receive(Command(6, (1.0, 1.6)).to_bytes(), 50)[1] == [Nack(6, 50, NackReason.OUT_OF_LIMITS)]
    assert firmware.receive(Command(7, (1.0,)).to_bytes(), 60)[1] == [Nack(7, 60, NackReason.WRONG_LENGTH)]
    assert firmware.receive(Command(8, (0.0,) * 200).to_bytes(), 70)[1] == [Nack(8, 70, NackReason.WRONG_LENGTH)]
    assert firmware.do("T 60020") == ([], []), "fed by the accepted command at 20 alone"
    assert firmware.do("T 60021") == ([("X",)], [])
    assert firmware.receive(Command(9, (1.0, 0.5)).to_bytes(), 60_030)[1] == [Nack(9, 60_030, NackReason.WATCHDOG_TRIPPED)]
    assert firmware.receive(ReadState(10).to_bytes(), 60_040)[1][0].flags == DeviceFlag.WATCHDOG_TRIPPED
    assert firmware.receive(Enable(11).to_bytes(), 60_050) == ([("A", 0, 0)], [Ack(11, 60_050)])
    assert firmware.do("G") == ([("X",)], []), "nobody is there to command it"
    assert firmware.receive(Disable(12).to_bytes(), 60_060) == ([("X",)], [Ack(12, 60_060)])


def test_a_fault_of_the_hardware_comes_before_every_other_reason(firmware):
    firmware.do("C 12")
    assert firmware.receive(Enable(1).to_bytes())[1] == [Nack(1, 0, NackReason.HARDWARE_FAULT)]
    assert firmware.receive(Command(2, (1.0,)).to_bytes())[1] == [Nack(2, 0, NackReason.HARDWARE_FAULT)]
    assert firmware.receive(ReadState(3).to_bytes())[1][0].flags == DeviceFlag.LIMIT_HIT | DeviceFlag.HARDWARE_FAULT


def random_request(draw, sequence):
    kind = draw.choices([Hello, Enable, Disable, ReadState, Command], [1, 3, 1, 5, 10])[0]
    if kind is not Command:
        return kind(sequence)
    values = [draw.choice([0.0, 1.0, -10.0, 10.0, 10.1, -0.5, 1.5, math.nan, -math.inf, draw.uniform(-12, 12)]) for _ in range(2)]
    return Command(sequence, tuple(values[: draw.choices([2, 1, 0], [20, 1, 1])[0]]))


def test_it_answers_and_moves_as_the_emulated_microcontroller_does(firmware):
    """Both get the same requests at the same times, whole or in pieces, damaged or not."""
    draw, plant, now_us = random.Random(0), StillPlant(), 0
    device, decoder = Microcontroller(plant, 0, firmware="1.2.3"), Decoder()
    refused = 0
    for sequence in range(1, 1500):
        now_us += draw.choice([1, 900, 20_000, 20_000, 70_000])
        data = random_request(draw, sequence).to_bytes()
        match draw.randrange(12):
            case 0:
                damaged = bytearray(data)
                damaged[draw.randrange(len(data))] ^= 1 << draw.randrange(8)
                data = bytes(damaged)
            case 1:
                data = draw.randbytes(draw.randrange(40)) + data
            case 2:
                data = data[: draw.randrange(len(data))]
            case 3:
                data = data + data
        plant.values = np.float32([draw.uniform(-3, 3) for _ in range(3)]).astype(float)
        firmware.do("M " + " ".join(map(repr, plant.values.tolist())))
        plant.applied.clear()
        device.advance(now_us * 1000)
        replies = [reply for frame in decoder.feed(data) if (reply := device.handle(frame)) is not None]
        applied, frames = firmware.receive(data, now_us)
        assert frames == replies
        assert applied == plant.applied
        assert firmware.raw == b"".join(reply.to_bytes() for reply in replies)
        refused += sum(isinstance(reply, Nack) for reply in replies)
    assert refused > 100


def test_noise_is_never_taken_for_a_request_and_the_next_one_is_understood(firmware):
    draw = random.Random(1)
    for sequence in range(1, 300):
        noise = draw.randbytes(draw.choice([1, 10, 300, 3000]))
        applied, frames = firmware.receive(noise)
        assert (applied, frames) == ([], [])
        _, frames = firmware.receive(ReadState(sequence).to_bytes())
        assert [frame.sequence for frame in frames] == [sequence]


def test_frames_with_a_valid_sum_but_senseless_content_are_dropped(firmware):
    import zlib

    def frame(version, kind, payload):
        body = struct.pack("<BBI", version, kind, 9) + payload
        return b"\0" + cobs.encode(body + struct.pack("<I", zlib.crc32(body))) + b"\0"

    for data in (
        frame(2, 1, b""),
        frame(1, 9, b""),
        frame(1, 0x83, b""),
        frame(1, 1, b"x"),
        frame(1, 5, b"abc"),
        frame(1, 5, bytes(1100)),
    ):
        assert firmware.receive(data) == ([], [])
    assert len(firmware.receive(frame(1, 1, b""))[1]) == 1


def test_blocks_of_the_stuffing_that_are_full_end_without_a_zero(firmware):
    """Requests of 254 bytes without a zero and around it."""
    values = (struct.unpack("<f", b"\x11\x22\x33\x44")[0],)
    for count in range(58, 68):
        _, (nack,) = firmware.receive(Command(0x01010101, values * count).to_bytes())
        assert nack.reason == NackReason.NOT_ENABLED


def test_a_board_that_does_not_fit_is_refused(tmp_path):
    source = (HERE / "firmware_host.c").read_text()
    assert COMPILER is not None
    for define in ("-DDPG_MAX_COMMANDS=1", "-DDPG_MAX_MEASUREMENTS=2", "-DDPG_MAX_REPLY=64"):
        target = tmp_path / "host"
        (tmp_path / "host.c").write_text(source)
        command = [COMPILER, *STRICT, define, "-I", FIRMWARE, FIRMWARE / "dpg_link.c", tmp_path / "host.c", "-o", target]
        subprocess.run(command, check=True)
        assert subprocess.run([target], stdin=subprocess.DEVNULL, check=False).returncode == 1


def test_it_is_c_plus_plus_too(tmp_path):
    compiler = shutil.which("c++") or shutil.which("g++")
    if compiler is None:
        pytest.skip("no C++ compiler on this computer")
    (tmp_path / "sketch.cpp").write_text('#include "dpg_link.h"\nint main() { dpg_link link; return sizeof link == 0; }\n')
    subprocess.run(
        [compiler, "-Wall", "-Werror", "-I", FIRMWARE, tmp_path / "sketch.cpp", "-c", "-o", tmp_path / "a.o"], check=True
    )
