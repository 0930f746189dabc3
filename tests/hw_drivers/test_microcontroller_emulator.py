"""The emulated device's rules for effort, limits and the watchdog, with time given by hand."""

import math
from types import ModuleType
from typing import Any

import pytest

from dpg_robot.deploy.robot import DeviceFlag
from hw_drivers.emulators.microcontroller import Microcontroller, ReplyFaults, ReplyQueue
from hw_drivers.microcontroller import (
    Ack,
    Command,
    Disable,
    Enable,
    Frame,
    Hello,
    Identity,
    Nack,
    NackReason,
    ReadState,
    State,
)

MS = 1_000_000


@pytest.fixture
def plant(point_mass: ModuleType) -> Any:
    return point_mass.PointMass()


@pytest.fixture
def device(plant: Any) -> Microcontroller:
    return Microcontroller(plant, 0, watchdog_s=0.06)


def ask(device: Microcontroller, request: Frame, at_ms: float) -> Any:
    device.advance(round(at_ms * MS))
    reply = device.handle(request)
    assert reply is not None
    assert reply.sequence == request.sequence
    assert reply.device_time_us == round(at_ms * 1000)
    return reply


def flags(device: Microcontroller) -> DeviceFlag:
    return ask(device, ReadState(99), device._now_ns / MS).flags


def test_a_command_while_not_enabled_is_refused_and_moves_nothing(device: Microcontroller, plant: Any) -> None:
    assert ask(device, Command(1, (2.0,)), 1).reason == NackReason.NOT_ENABLED
    assert not plant.powered
    assert plant.force == 0


def test_an_enabled_device_applies_commands_from_zero_on_and_says_which_it_accepted_last(
    device: Microcontroller, plant: Any
) -> None:
    assert isinstance(ask(device, Enable(1), 1), Ack)
    assert (plant.powered, plant.force) == (True, 0.0)
    assert isinstance(ask(device, Command(2, (2.0,)), 2), Ack)
    state = ask(device, ReadState(3), 12)
    assert isinstance(state, State)
    assert state.flags == DeviceFlag.ENABLED
    assert state.last_command == 2
    assert state.values == pytest.approx((0.5 * 2.0 * 0.01**2, 2.0 * 0.01))


def test_the_watchdog_takes_the_force_away_at_its_own_time_and_only_enable_brings_it_back(
    device: Microcontroller, plant: Any
) -> None:
    ask(device, Enable(1), 0)
    ask(device, Command(2, (2.0,)), 10)
    device.advance(69 * MS)
    assert plant.force == 2.0
    device.advance(500 * MS)
    assert (plant.powered, plant.force) == (False, 0.0)
    # force from 10 to 70 ms, although nobody looked before 500 ms
    assert plant.state()[1] == pytest.approx(2.0 * 0.06)
    assert flags(device) == DeviceFlag.WATCHDOG_TRIPPED
    assert ask(device, Command(3, (2.0,)), 501).reason == NackReason.WATCHDOG_TRIPPED
    assert plant.force == 0
    ask(device, Enable(4), 502)
    assert flags(device) == DeviceFlag.ENABLED
    assert isinstance(ask(device, Command(5, (1.0,)), 503), Ack)


def test_the_watchdog_also_runs_from_enable_to_the_first_command(device: Microcontroller) -> None:
    ask(device, Enable(1), 0)
    assert ask(device, Command(2, (1.0,)), 61).reason == NackReason.WATCHDOG_TRIPPED


@pytest.mark.parametrize("request_", [ReadState(9), Command(9, (math.nan,)), Command(9, (99.0,))], ids=["read", "nan", "limit"])
def test_only_accepted_commands_feed_the_watchdog(device: Microcontroller, request_: Frame) -> None:
    ask(device, Enable(1), 0)
    ask(device, Command(2, (1.0,)), 0)
    for at_ms in range(5, 60, 5):
        ask(device, request_, at_ms)
    device.advance(61 * MS)
    assert DeviceFlag.WATCHDOG_TRIPPED in device.flags


def test_commands_in_time_keep_the_watchdog_quiet(device: Microcontroller) -> None:
    ask(device, Enable(1), 0)
    for sequence in range(2, 40):
        assert isinstance(ask(device, Command(sequence, (1.0,)), 59 * (sequence - 1)), Ack)


@pytest.mark.parametrize(
    ("values", "reason"),
    [
        ((math.nan,), NackReason.NOT_FINITE),
        ((-math.inf,), NackReason.NOT_FINITE),
        ((5.001,), NackReason.OUT_OF_LIMITS),
        ((-5.001,), NackReason.OUT_OF_LIMITS),
        ((1.0, 1.0), NackReason.WRONG_LENGTH),
        ((), NackReason.WRONG_LENGTH),
    ],
)
def test_a_command_that_cannot_be_meant_is_refused_and_stops_the_force(
    device: Microcontroller, plant: Any, values: tuple[float, ...], reason: NackReason
) -> None:
    ask(device, Enable(1), 0)
    ask(device, Command(2, (5.0,)), 1)
    reply = ask(device, Command(3, values), 2)
    assert isinstance(reply, Nack)
    assert reply.reason == reason
    assert plant.force == 0
    assert ask(device, ReadState(4), 3).last_command == 2


@pytest.mark.parametrize("request_", [Disable(9), Hello(9)], ids=["disable", "hello"])
def test_disable_and_a_new_session_take_the_force_away_at_once(device: Microcontroller, plant: Any, request_: Frame) -> None:
    ask(device, Enable(1), 0)
    ask(device, Command(2, (2.0,)), 1)
    ask(device, request_, 2)
    assert (plant.powered, plant.force) == (False, 0.0)
    assert flags(device) == DeviceFlag(0)
    assert ask(device, Command(3, (2.0,)), 3).reason == NackReason.NOT_ENABLED


def test_the_identity_names_channels_limits_and_watchdog(device: Microcontroller, plant: Any) -> None:
    identity = ask(device, Hello(1), 0)
    assert isinstance(identity, Identity)
    assert (identity.measurements, identity.commands) == (plant.measurements, plant.commands)
    assert (identity.name, identity.watchdog_us) == ("point-mass", 60_000)


def test_replies_are_not_requests_and_get_no_answer(device: Microcontroller) -> None:
    assert device.handle(Ack(1, 0)) is None


def test_seeded_faults_damage_the_expected_share_of_replies_reproducibly() -> None:
    faults = ReplyFaults(seed=3, drop=0.2, duplicate=0.1, corrupt=0.1, delay=0.1, delay_s=0.005)
    outcomes = []
    for _ in range(2):
        queue = ReplyQueue(faults)
        sent = b"".join(bytes([tick % 250]) for tick in range(2000))
        received = []
        for tick, byte in enumerate(sent):
            queue.put(bytes([byte]), tick * MS)
            received.append(queue.take(tick * MS))
        outcomes.append(received)
    assert outcomes[0] == outcomes[1]
    unharmed = sum(piece == bytes([tick % 250]) for tick, piece in enumerate(outcomes[0]))
    total = len(b"".join(outcomes[0]))
    assert total == pytest.approx(2000 * 0.8 * 1.1, rel=0.05)
    assert 0.4 * 2000 < unharmed < 0.7 * 2000
