"""The firmware's decoder in C under the fuzzers, beside the one in Python."""

from __future__ import annotations

import atexit
import math
import random
import shutil
import subprocess
import sys
import tempfile
import zlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from fuzz_microcontroller import Microcontroller
from fuzz_target import Parsed, demand, in_pieces
from numpy.typing import NDArray

from dpg_robot.contract import CommandChannel, MeasurementChannel
from hw_drivers import microcontroller
from hw_drivers.emulators.microcontroller import Microcontroller as EmulatedMicrocontroller

COMPILER = shutil.which("cc") or shutil.which("gcc") or shutil.which("clang")


class StillPlant:
    """What the firmware's board in ``firmware_host.c`` is wired to, for the emulated microcontroller."""

    name = "test-board"
    measurements: tuple[MeasurementChannel, ...] = tuple(
        MeasurementChannel(name, unit)
        for name, unit in (("cart_position", "m"), ("pole_angle", "rad"), ("pole_velocity", "rad/s"))
    )
    commands: tuple[CommandChannel, ...] = (
        CommandChannel("cart_force", "N", -10.0, 10.0),
        CommandChannel("pole_torque", "N m", -0.5, 1.5),
    )
    state_names: tuple[str, ...] = ()

    def __init__(self) -> None:
        self.applied: list[str] = []

    def advance(self, until_ns: int) -> None:
        """Stand still."""

    def measure(self) -> NDArray[np.float64]:
        """Return three zeros."""
        return np.zeros(3)

    def state(self) -> NDArray[np.float64]:
        """Return nothing."""
        return np.zeros(0)

    def set_command(self, values: Sequence[float]) -> None:
        """Remember the commands as the C program prints them."""
        self.applied.append(" ".join(["A", *(f"{value:.9g}" for value in np.asarray(values, np.float32))]))

    def release(self) -> None:
        """Remember it."""
        self.applied.append("X")


class Firmware(Microcontroller):
    """The C decoder of a board, compiled with the sanitizers, beside the Python decoder and the emulated microcontroller.

    Both get the same pieces at the same times; replies, byte by byte, and what the actuators do must be the same.
    """

    name = "firmware"

    def __init__(self) -> None:
        self._compiled: Path | None = None
        self._program: subprocess.Popen[str] | None = None

    def frames(self, variant: int, draw: random.Random) -> list[bytes]:
        """Return requests, most of which the board accepts."""
        return [self._frame(draw).to_bytes() for _ in range(draw.randrange(1, 12))]

    def check(self, data: bytes) -> Parsed:
        """Run one input, variant byte first. Raises ViolationError, or whatever the decoder raised."""
        if self._program is None:
            self._start()
        try:
            self._compare(data[1:], random.Random(zlib.crc32(data)))
        except Exception:
            self._stop()  # the two do not know the same any more
            raise
        return self.parse(0, data[1:])

    def _compare(self, stream: bytes, draw: random.Random) -> None:
        decoder = microcontroller.Decoder()
        start = b"".join(request.to_bytes() for request in (microcontroller.Enable(1), microcontroller.Hello(2)))
        for piece in (b"\0" + start, *in_pieces(stream, draw), b"\0"):
            self._now_us += draw.choice((0, 0, 1, 30_000, 61_000))
            self._plant.applied.clear()
            self._device.advance(self._now_us * 1000)
            replies = [self._device.handle(frame) for frame in decoder.feed(piece)]
            expected = b"".join(reply.to_bytes() for reply in replies if reply is not None)
            sent, applied = self._receive(piece)
            demand(sent == expected, f"{piece.hex()}: the firmware sends {sent.hex()}, expected {expected.hex()}")
            demand(applied == self._plant.applied, f"{piece.hex()}: does {applied}, expected {self._plant.applied}")

    def _start(self) -> None:
        self._compiled = self._compiled or compile_firmware()
        self._program = subprocess.Popen([self._compiled], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        assert self._program.stdout is not None
        demand(self._program.stdout.readline() == "X\n", "the board does not begin with the actuators released")
        self._now_us, self._plant = 0, StillPlant()
        self._device = EmulatedMicrocontroller(self._plant, 0, firmware="1.2.3")

    def _stop(self) -> None:
        assert self._program is not None
        self._program.kill()
        self._program.communicate()
        self._program = None

    def _frame(self, draw: random.Random) -> microcontroller.Frame:
        sequence, count = draw.randrange(1, 2**32), draw.choice((2, 2, 2, 2, 1, 200))
        values = tuple(draw.choice((0.0, draw.uniform(-0.5, 1.5), 1.6, 10.0, math.nan, -math.inf)) for _ in range(count))
        kinds = (microcontroller.Hello, microcontroller.Enable, microcontroller.Disable, microcontroller.ReadState)
        if draw.random() < 0.5:
            return microcontroller.Command(sequence, values)
        return draw.choices(kinds, (1, 4, 1, 2))[0](sequence)

    def _receive(self, piece: bytes) -> tuple[bytes, list[str]]:
        """Return what the program sends and does."""
        assert self._program is not None
        program = self._program
        assert program.stdin is not None
        assert program.stdout is not None
        sent, applied = b"", []
        program.stdin.write(f"R {self._now_us} {piece.hex()}\n")
        program.stdin.flush()
        while (line := program.stdout.readline()) != ".\n":
            demand(line != "", "the firmware has ended; see its messages above")
            if line.startswith("S "):
                sent = bytes.fromhex(line[2:])
            else:
                applied.append(line.strip())
        return sent, applied


def compile_firmware() -> Path:
    """Compile ``firmware_host.c``, with checks of memory and undefined behaviour where the compiler has them, until we exit."""
    here = Path(__file__).parent
    source = here.parents[1] / "hw_drivers" / "firmware"
    folder = tempfile.mkdtemp(prefix="fuzz-")
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    program = Path(folder) / "host"
    files = [source / "dpg_link.c", here / "firmware_host.c"]
    command: list[str | Path] = [COMPILER or "cc", "-std=c99", "-O1", "-g", "-I", source, *files, "-o", program]
    checks = ["-fsanitize=address,undefined", "-fno-sanitize-recover=all"]
    if subprocess.run([*command, *checks], capture_output=True, check=False).returncode:
        print("compiled without sanitizers, which this compiler lacks", file=sys.stderr)
        subprocess.run(command, check=True)
    return program
