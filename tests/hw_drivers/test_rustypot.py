"""rustypot, a driver in Rust by others, against the emulated servos: it reads and writes them as it does real ones."""

import subprocess
import sys
import time
from pathlib import Path

import pytest

try:
    import rustypot
except ImportError:
    pytest.skip("rustypot is not installed: pip install rustypot", allow_module_level=True)

ROOT = Path(__file__).parents[2]
CLASSES = {"feetech": "Sts3215PyController", "dynamixel": "Xl330PyController"}
NUMBERS = {"feetech": 777, "dynamixel": 1200}


@pytest.fixture(params=list(CLASSES))
def family(request):
    return request.param


@pytest.fixture
def controller(family):
    command = [sys.executable, str(ROOT / "launch" / "emulate.py"), family, "--ids", "1", "2", "3"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        path = process.stdout.readline().strip()
        controller = getattr(rustypot, CLASSES[family])(path, 1_000_000, 0.5)
        yield controller
        controller.close()
        process.terminate()


def test_it_finds_the_servos_and_their_models(controller, family):
    assert [controller.ping(servo) for servo in (1, 2, 3)] == [True, True, True]
    assert controller.ping(9) is False
    assert controller.read_model_number(2) == [NUMBERS[family]]


def test_it_moves_the_servos_whose_torque_is_on_and_reads_them_together(controller, family):
    controller.write_torque_enable(2, True)
    controller.sync_write_goal_position([1, 2, 3], [0.1, 0.5, -0.2])
    end_s = time.monotonic() + 10
    while controller.read_present_position(2)[0] < 0.49:
        assert time.monotonic() < end_s, "it does not get there"
    together = controller.sync_read_present_position([1, 2, 3])
    assert together == pytest.approx([0.0, 0.5, 0.0], abs=0.02)
    assert controller.sync_read_torque_enable([1, 2, 3]) == [False, True, False]
    if family == "dynamixel":
        controller.set_fast_sync_read(True)
        assert controller.sync_read_present_position([1, 2, 3]) == pytest.approx(together, abs=0.01)


def test_a_dynamixel_that_it_restarts_has_lost_its_torque():
    command = [sys.executable, str(ROOT / "launch" / "emulate.py"), "dynamixel", "--ids", "4"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        controller = rustypot.Xl330PyController(process.stdout.readline().strip(), 1_000_000, 0.5)
        controller.write_torque_enable(4, True)
        assert controller.read_torque_enable(4) == [True]
        controller.reboot(4)
        end_s = time.monotonic() + 10
        while not controller.ping(4):
            assert time.monotonic() < end_s, "it does not come back"
        assert controller.read_torque_enable(4) == [False]
        controller.close()
        process.terminate()
