"""The vendor's SDK, in a process of its own, as an independent peer: of the served emulator, and of our packets."""

import importlib.util
import json
import subprocess
import sys
from collections.abc import Sequence
from typing import Any

import pytest

from hw_drivers.feetech.models import STS3215
from hw_drivers.feetech.packets import (
    BROADCAST_ID,
    Action,
    ErrorFlag,
    Instruction,
    Ping,
    Read,
    RegWrite,
    SyncRead,
    SyncWrite,
    Write,
)

if importlib.util.find_spec("scservo_sdk") is None:
    pytest.skip("the vendor's SDK is not installed: pip install feetech-servo-sdk", allow_module_level=True)

EMULATOR = """
import signal, sys, time
from hw_drivers.emulators.feetech import FeetechBus
from hw_drivers.emulators.joints import FirstOrderJoints
from hw_drivers.emulators.servo_server import ServoServer
from hw_drivers.feetech.models import find_model

stopped = []
signal.signal(signal.SIGTERM, lambda *_: stopped.append(True))
joints = FirstOrderJoints([0.0, 0.5, 0.0])
joints.jammed.add(1)
bus = FeetechBus(joints, [find_model(sys.argv[1])] * 3, start_ns=time.monotonic_ns())
bus.servos[2].voltage, bus.servos[2].temperature = 3.5, 85
with ServoServer(bus) as server:
    print(server.path, flush=True)
    server.serve(lambda: bool(stopped))
"""

CLIENT = """
import json, sys, time
from scservo_sdk import *

class Port(PortHandler):
    sent = b""
    def writePort(self, packet):
        Port.sent += bytes(packet)
        return super().writePort(packet)

END = int(sys.argv[2])  # 0: low byte first (STS), 1: high byte first (SCS)
port, sdk = Port(sys.argv[1]), PacketHandler(END)
assert port.openPort()
report = {}

def pause():
    time.sleep(0.05)
    port.ser.reset_input_buffer()  # else a late answer passes for the next one

def step(name, call, succeeded=lambda result: COMM_SUCCESS in result):
    # the emulator may get no processor time for longer than the 34 ms that the SDK waits
    for _ in range(10):
        Port.sent = b""
        result = call()
        result = result if isinstance(result, tuple) else (result,)
        if succeeded(result):
            break
        pause()
    report[name] = {"sent": Port.sent.hex(), "result": result}

def until(name, call, wanted):
    deadline = time.monotonic() + 10
    while call() != wanted and time.monotonic() < deadline:
        pause()
    step(name, call)

def group(make, add, call, read=lambda group: []):
    group = make()
    for arguments in add:
        assert group.addParam(*arguments)
    return call(group), read(group)

word = lambda value: [SCS_LOBYTE(value), SCS_HIBYTE(value)]
step("ping", lambda: sdk.ping(port, 1))
step("ping with alarms", lambda: sdk.ping(port, 3))
step("silent", lambda: sdk.ping(port, 9), lambda result: True)
step("read 1", lambda: sdk.read1ByteTxRx(port, 1, 13))
step("read 2", lambda: sdk.read2ByteTxRx(port, 2, 56))
step("write 1", lambda: sdk.write1ByteTxRx(port, 1, 13, 60))
step("write 2", lambda: sdk.write2ByteTxRx(port, 1, 42, 700))
step("torque", lambda: sdk.write1ByteTxRx(port, 1, 40, 1))
until("reached", lambda: sdk.read2ByteTxRx(port, 1, 56), (700, COMM_SUCCESS, 0))
step("reg write", lambda: sdk.regWriteTxRx(port, 1, 42, 2, word(900)))
step("registered", lambda: sdk.read1ByteTxRx(port, 1, 64))
step("goal before action", lambda: sdk.read2ByteTxRx(port, 1, 42))
step("action", lambda: sdk.action(port, BROADCAST_ID))
step("goal after action", lambda: sdk.read2ByteTxRx(port, 1, 42))
step("sync write", lambda: group(lambda: GroupSyncWrite(port, sdk, 42, 2), [(1, word(500)), (2, word(600))],
                                 lambda g: g.txPacket()))
step("goal after sync write", lambda: sdk.read2ByteTxRx(port, 2, 42))
step("protection time", lambda: sdk.write1ByteTxRx(port, 2, 35 if END == 0 else 38, 20))
step("torque of a jammed joint", lambda: sdk.write1ByteTxRx(port, 2, 40, 1))
until("overload", lambda: sdk.read1ByteTxRx(port, 2, 40), (0, COMM_SUCCESS, 32))
step("baud", lambda: sdk.write1ByteTxRx(port, 1, 6, 1))
step("other baud", lambda: sdk.ping(port, 1), lambda result: True)
port.setBaudRate(500_000)
step("new baud", lambda: sdk.ping(port, 1))
step("old baud again", lambda: sdk.write1ByteTxRx(port, 1, 6, 0))
port.setBaudRate(1_000_000)
if END == 0:
    step("sync read", lambda: group(lambda: GroupSyncRead(port, sdk, 42, 2), [(2,), (1,)], lambda g: g.txRxPacket(),
                                    lambda g: [g.getData(i, 42, 2) for i in (2, 1)]))
    step("negative", lambda: sdk.write2ByteTxRx(port, 1, 31, SCS_TOSCS(-100, 11)))
    step("negative again", lambda: sdk.read2ByteTxRx(port, 1, 31))
print(json.dumps(report))
"""


def converse(model: str, end: int) -> dict[str, Any]:
    """Return what the SDK sent and returned in one session with three servos, the last too hot and short of voltage."""
    with subprocess.Popen([sys.executable, "-c", EMULATOR, model], stdout=subprocess.PIPE, text=True) as emulator:
        try:
            assert emulator.stdout is not None
            path = emulator.stdout.readline().strip()
            client = subprocess.run([sys.executable, "-c", CLIENT, path, str(end)], capture_output=True, text=True, timeout=60)
            assert client.returncode == 0, client.stderr
            return dict(json.loads(client.stdout))
        finally:
            emulator.terminate()


@pytest.fixture(scope="module")
def sts() -> dict[str, Any]:
    return converse("STS3215", 0)


@pytest.fixture(scope="module")
def scs() -> dict[str, Any]:
    return converse("SCS0009", 1)


def word(value: int) -> bytes:
    return value.to_bytes(2, "little")


SENT: dict[str, Sequence[Instruction]] = {
    "ping": [Ping(1), Read(1, 3, 2)],
    "read 1": [Read(1, 13, 1)],
    "read 2": [Read(2, 56, 2)],
    "write 1": [Write(1, 13, b"\x3c")],
    "write 2": [Write(1, 42, word(700))],
    "reg write": [RegWrite(1, 42, word(900))],
    "action": [Action(BROADCAST_ID)],
    "sync write": [SyncWrite(42, ((1, word(500)), (2, word(600))))],
    "sync read": [SyncRead(42, 2, (2, 1))],
    "negative": [Write(1, 31, STS3215.register("homing_offset").encode(-100))],
}


@pytest.mark.parametrize("name", SENT)
def test_our_packets_are_the_bytes_that_the_sdk_sends(sts: dict[str, Any], name: str) -> None:
    assert sts[name]["sent"] == b"".join(instruction.to_bytes() for instruction in SENT[name]).hex()


def test_our_big_endian_numbers_are_the_bytes_that_the_sdk_sends(scs: dict[str, Any]) -> None:
    assert scs["write 2"]["sent"] == Write(1, 42, (700).to_bytes(2, "big")).to_bytes().hex()


OK, TIMEOUT = 0, -6
ALARMS = ErrorFlag.VOLTAGE | ErrorFlag.OVERHEATING
COMMON = [
    ("silent", [0, TIMEOUT, 0]),
    ("read 1", [70, OK, 0]),
    ("write 1", [OK, 0]),
    ("write 2", [OK, 0]),
    ("torque", [OK, 0]),
    ("reached", [700, OK, 0]),
    ("reg write", [OK, 0]),
    ("registered", [1, OK, 0]),
    ("goal before action", [700, OK, 0]),
    ("action", [OK]),
    ("goal after action", [900, OK, 0]),
    ("sync write", [OK, []]),
    ("goal after sync write", [600, OK, 0]),
    ("torque of a jammed joint", [OK, 0]),
    ("overload", [0, OK, ErrorFlag.OVERLOAD]),
    ("baud", [OK, 0]),
    ("other baud", [0, TIMEOUT, 0]),
    ("old baud again", [OK, 0]),
]


@pytest.mark.parametrize(
    ("name", "result"),
    [
        *COMMON,
        ("ping", [777, OK, 0]),
        ("ping with alarms", [777, OK, ALARMS]),
        ("read 2", [2048 + 326, OK, 0]),
        ("new baud", [777, OK, 0]),
        ("sync read", [OK, [600, 500]]),
        ("negative", [OK, 0]),
        ("negative again", [100 | 1 << 11, OK, 0]),
    ],
)
def test_the_sdk_understands_emulated_sts_servos(sts: dict[str, Any], name: str, result: list[Any]) -> None:
    assert sts[name]["result"] == result


@pytest.mark.parametrize(
    ("name", "result"),
    [
        *COMMON,
        ("ping", [1284, OK, 0]),
        ("ping with alarms", [1284, OK, ALARMS]),
        ("read 2", [512 + 98, OK, 0]),
        ("new baud", [1284, OK, 0]),
    ],
)
def test_the_sdk_understands_emulated_scs_servos(scs: dict[str, Any], name: str, result: list[Any]) -> None:
    assert scs[name]["result"] == result
