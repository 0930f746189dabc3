"""The emulator program: prints its port first, serves servos that any host can talk to, and ends when told."""

import importlib.util
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from hw_drivers.dynamixel.language import DynamixelLanguage
from hw_drivers.feetech.language import FeetechLanguage
from hw_drivers.serial_link import SerialLink
from hw_drivers.servo_bus import ServoBus

PROGRAM = Path(__file__).parents[2] / "launch" / "emulate.py"
CASES = [("dynamixel", DynamixelLanguage, 132, 4), ("feetech", FeetechLanguage, 56, 2)]  # with address and size of the position


@pytest.mark.parametrize(("family", "language", "address", "size"), CASES)
def test_servos_are_served_until_interrupted(tmp_path, family, language, address, size):
    link_path = tmp_path / "port"
    command = [sys.executable, PROGRAM, family, "--ids", "1", "2", "7", "--link", link_path]
    with subprocess.Popen([str(part) for part in command], stdout=subprocess.PIPE, text=True) as process:
        path = process.stdout.readline().strip()
        assert os.readlink(link_path) == path
        link = SerialLink(path, 1_000_000)
        link.open()
        bus = ServoBus(link, language(), [1, 2, 7], slack_s=0.2)
        read = bus.read(address, size, time.monotonic_ns() + 5_000_000_000)
        link.close()
        process.send_signal(signal.SIGTERM)
        assert process.wait(10) == 0
    assert {servo: int.from_bytes(data, "little") for servo, data in read.items()} == {1: 2048, 2: 2048, 7: 2048}
    assert not link_path.is_symlink()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["dynamixel", "--model", "XL330-M289"], "Did you mean 'XL330-M288'?"),
        (["feetech", "--model", "STS3216"], "Did you mean 'STS3215'?"),
        (["dynamixel", "--ids", "300"], "expected an ID from 0 to 252"),
        (["feetech", "--drop", "2"], "drop must be a probability, got 2"),
    ],
)
def test_what_cannot_be_emulated_is_refused_in_one_line(arguments, message, capsys):
    spec = importlib.util.spec_from_file_location("launch_emulate", PROGRAM)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    assert module.main(arguments) == 1
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("emulate: ")
    assert message in err
    assert err.count("\n") == 1
