"""The vendor's SDK, in a process of its own, as an independent peer: of the served emulator, and of our packets."""

import importlib.util
import json
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import pytest

from hw_drivers.dynamixel import packets

if importlib.util.find_spec("dynamixel_sdk") is None:
    pytest.skip("the vendor's SDK is not installed: pip install dynamixel-sdk", allow_module_level=True)

EMULATOR = """
import signal, sys
from hw_drivers.dynamixel.models import find_model
from hw_drivers.emulators.dynamixel import DynamixelBus
from hw_drivers.emulators.joints import FirstOrderJoints
from hw_drivers.emulators.servo_server import ServoServer
import time

stopped = []
signal.signal(signal.SIGTERM, lambda *_: stopped.append(True))
models = [find_model("XL330-M288"), find_model("XM430-W350")]
bus = DynamixelBus(FirstOrderJoints([0.0, 0.5]), models, [1, 2], baud_rate=1_000_000, start_ns=time.monotonic_ns())
with ServoServer(bus) as server:
    print(server.path, flush=True)
    server.serve(lambda: bool(stopped))
"""

CLIENT = """
import json, sys, time
from dynamixel_sdk import *

class Port(PortHandler):
    sent = b""
    def writePort(self, packet):
        Port.sent += bytes(packet)
        return super().writePort(packet)

class Handler(Protocol2PacketHandler):
    def addStuffing(self, packet):  # version 4.1.0 forgets to send what this returns
        packet[:] = super().addStuffing(packet)
        return packet

port, sdk = Port(sys.argv[1]), Handler()
port.baudrate = 1_000_000
port.openPort()
report = {}

def step(name, call, succeeded=lambda result: COMM_SUCCESS in result):
    # the emulator may get no processor time for longer than the 34 ms that the SDK waits
    for _ in range(10):
        Port.sent = b""
        result = call()
        result = result if isinstance(result, tuple) else (result,)
        if succeeded(result):
            break
    report[name] = {"sent": Port.sent.hex(), "result": [list(part) if isinstance(part, bytes) else part for part in result]}

def group(make, add, call, read=lambda group: []):
    group = make()
    for arguments in add:
        assert group.addParam(*arguments)
    result = call(group)
    return (result, read(group))

le = lambda value, size: list(value.to_bytes(size, "little", signed=True))
values = lambda address, size: lambda g: [g.getData(i, address, size) for i in (1, 2)]
step("ping", lambda: sdk.ping(port, 1))
step("broadcast ping", lambda: sdk.broadcastPing(port), lambda result: len(result[0]) == 2)
step("silent", lambda: sdk.ping(port, 9), lambda result: True)
step("read", lambda: sdk.read4ByteTxRx(port, 2, 132))
step("led", lambda: sdk.write1ByteTxRx(port, 1, 65, 1))
step("torque", lambda: sdk.write1ByteTxRx(port, 1, 64, 1))
step("torque 2", lambda: sdk.write1ByteTxRx(port, 2, 64, 1))
step("error access", lambda: sdk.write1ByteTxRx(port, 1, 7, 5))
step("error read only", lambda: sdk.write4ByteTxRx(port, 1, 132, 5))
step("error length", lambda: sdk.write2ByteTxRx(port, 1, 116, 5))
step("error range", lambda: sdk.write1ByteTxRx(port, 1, 64, 2))
step("error limit", lambda: sdk.write4ByteTxRx(port, 1, 116, 5000))
step("stuffing", lambda: sdk.writeTxRx(port, 1, 208, 7, [0xFF, 0xFF, 0xFD, 0xFD, 0xFF, 0xFF, 0xFD]))
step("stuffed read", lambda: sdk.readTxRx(port, 1, 208, 8))
step("sync write", lambda: group(lambda: GroupSyncWrite(port, sdk, 116, 4), [(1, le(2100, 4)), (2, le(1900, 4))],
                                 lambda g: g.txPacket()))
step("sync read", lambda: group(lambda: GroupSyncRead(port, sdk, 116, 4), [(1,), (2,)],
                                lambda g: g.txRxPacket(), values(116, 4)))
step("fast sync read", lambda: group(lambda: GroupSyncRead(port, sdk, 116, 4), [(1,), (2,)],
                                     lambda g: g.fastSyncRead(), values(116, 4)))
step("bulk write", lambda: group(lambda: GroupBulkWrite(port, sdk), [(1, 116, 4, le(2200, 4)), (2, 65, 1, [1])],
                                 lambda g: g.txPacket()))
step("bulk read", lambda: group(lambda: GroupBulkRead(port, sdk), [(1, 116, 4), (2, 65, 1)], lambda g: g.txRxPacket(),
                                lambda g: [g.getData(1, 116, 4), g.getData(2, 65, 1)]))
step("fast bulk read", lambda: group(lambda: GroupBulkRead(port, sdk), [(1, 116, 4), (2, 65, 1)],
                                     lambda g: g.fastBulkRead(),
                                     lambda g: [g.getData(1, 116, 4), g.getData(2, 65, 1)]))
step("reg write", lambda: sdk.regWriteTxRx(port, 1, 65, 1, [0]))
step("registered", lambda: sdk.read1ByteTxRx(port, 1, 69))
step("action", lambda: sdk.action(port, 254))
step("led after action", lambda: sdk.read1ByteTxRx(port, 1, 65))
step("torque off", lambda: sdk.write1ByteTxRx(port, 2, 64, 0))
step("clear", lambda: sdk.clearMultiTurn(port, 2))
step("baud", lambda: sdk.write1ByteTxRx(port, 2, 8, 2))
step("other baud", lambda: sdk.ping(port, 2), lambda result: True)
port.setBaudRate(115200)
step("new baud", lambda: sdk.ping(port, 2))
port.setBaudRate(1_000_000)
step("reboot", lambda: sdk.reboot(port, 1))
step("booting", lambda: sdk.ping(port, 1), lambda result: True)
deadline = time.monotonic() + 5
while time.monotonic() < deadline and sdk.ping(port, 1)[1] != COMM_SUCCESS:
    pass
step("torque after reboot", lambda: sdk.read1ByteTxRx(port, 1, 64))
step("factory reset", lambda: sdk.factoryReset(port, 1, 2))
print(json.dumps(report))
"""


@pytest.fixture(scope="module")
def report() -> dict[str, Any]:
    """What the SDK sent and returned in one session with two servos."""
    with subprocess.Popen([sys.executable, "-c", EMULATOR], stdout=subprocess.PIPE, text=True) as emulator:
        try:
            assert emulator.stdout is not None
            path = emulator.stdout.readline().strip()
            client = subprocess.run([sys.executable, "-c", CLIENT, path], capture_output=True, text=True, timeout=60)
            assert client.returncode == 0, client.stderr
            return dict(json.loads(client.stdout))
        finally:
            emulator.terminate()


SENT: dict[str, Callable[[], packets.InstructionPacket]] = {
    "ping": lambda: packets.Ping(1),
    "broadcast ping": lambda: packets.Ping(packets.BROADCAST_ID),
    "read": lambda: packets.Read(2, 132, 4),
    "led": lambda: packets.Write(1, 65, b"\x01"),
    "error limit": lambda: packets.Write(1, 116, (5000).to_bytes(4, "little")),
    "stuffing": lambda: packets.Write(1, 208, bytes.fromhex("fffffdfdfffffd")),
    "sync write": lambda: packets.SyncWrite.of(116, [(1, (2100).to_bytes(4, "little")), (2, (1900).to_bytes(4, "little"))]),
    "sync read": lambda: packets.SyncRead.of(116, 4, [1, 2]),
    "fast sync read": lambda: packets.FastSyncRead.of(116, 4, [1, 2]),
    "bulk write": lambda: packets.BulkWrite.of([(1, 116, (2200).to_bytes(4, "little")), (2, 65, b"\x01")]),
    "bulk read": lambda: packets.BulkRead.of([(1, 116, 4), (2, 65, 1)]),
    "fast bulk read": lambda: packets.FastBulkRead.of([(1, 116, 4), (2, 65, 1)]),
    "reg write": lambda: packets.RegWrite(1, 65, b"\x00"),
    "action": lambda: packets.Action(packets.BROADCAST_ID),
    "clear": lambda: packets.Clear(2),
    "reboot": lambda: packets.Reboot(1),
    "factory reset": lambda: packets.FactoryReset(1, packets.ResetOption.ALL_BUT_ID_AND_BAUD_RATE),
}


@pytest.mark.parametrize("name", SENT)
def test_our_packets_are_the_bytes_that_the_sdk_sends(report: dict[str, Any], name: str) -> None:
    assert report[name]["sent"] == SENT[name]().to_bytes().hex()


TIMEOUT = -3001
OK = 0


@pytest.mark.parametrize(
    ("name", "result"),
    [
        ("ping", [1200, OK, 0]),
        ("broadcast ping", [{"1": [1200, 46], "2": [1020, 46]}, OK]),
        ("silent", [0, TIMEOUT, 0]),
        ("read", [2048 + 326, OK, 0]),
        ("led", [OK, 0]),
        ("torque", [OK, 0]),
        ("error access", [OK, packets.ErrorCode.ACCESS]),
        ("error read only", [OK, packets.ErrorCode.ACCESS]),
        ("error length", [OK, packets.ErrorCode.DATA_LENGTH]),
        ("error range", [OK, packets.ErrorCode.DATA_RANGE]),
        ("error limit", [OK, packets.ErrorCode.DATA_LIMIT]),
        ("stuffing", [OK, 0]),
        ("stuffed read", [[0xFF, 0xFF, 0xFD, 0xFD, 0xFF, 0xFF, 0xFD, 0], OK, 0]),
        ("sync write", [OK, []]),
        ("sync read", [OK, [2100, 1900]]),
        ("fast sync read", [OK, [2100, 1900]]),
        ("bulk read", [OK, [2200, 1]]),
        ("fast bulk read", [OK, [2200, 1]]),
        ("registered", [1, OK, 0]),
        ("led after action", [0, OK, 0]),
        ("clear", [OK, 0]),
        ("baud", [OK, 0]),
        ("other baud", [0, TIMEOUT, 0]),
        ("new baud", [1020, OK, 0]),
        ("reboot", [OK, 0]),
        ("booting", [0, TIMEOUT, 0]),
        ("torque after reboot", [0, OK, 0]),
        ("factory reset", [OK, 0]),
    ],
)
def test_the_sdk_understands_the_emulator(report: dict[str, Any], name: str, result: list[Any]) -> None:
    assert report[name]["result"] == result
