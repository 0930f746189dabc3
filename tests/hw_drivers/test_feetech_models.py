"""Feetech control tables: addresses that drivers rely on, storage of numbers, and SI units."""

import math
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dpg_robot.errors import UnknownNameError
from hw_drivers.feetech.models import MODELS, SCS0009, STS3215, Register, ServoModel, find_model, find_model_number

ALL_REGISTERS = [register for model in MODELS for register in model.registers.values()]
registers_and_numbers = st.sampled_from(ALL_REGISTERS).flatmap(
    lambda register: st.tuples(st.just(register), st.integers(register.low, register.high))
)


@given(registers_and_numbers)
def test_every_number_of_every_register_survives_storage_and_si_units(case: tuple[Register, int]) -> None:
    register, number = case
    stored = register.encode(number)
    assert len(stored) == register.size
    assert register.decode(stored) == number
    assert register.to_raw(register.to_si(number)) == number


@pytest.mark.parametrize("model", MODELS, ids=lambda model: model.name)
def test_registers_do_not_overlap_and_begin_within_their_ranges(model: ServoModel) -> None:
    registers = list(model.registers.values())
    for register, following in pairwise(registers):
        assert register.end <= following.address
    for name, register in model.registers.items():
        assert register.name == name
        assert register.low <= register.initial <= register.high
        assert register.byte_order == model.byte_order
    assert model.register("model_number").initial == model.number
    assert model.register("lock").initial == 1


def test_the_sts3215_has_its_registers_where_the_memory_table_says() -> None:
    addresses = {
        "model_number": 3, "id": 5, "baud_rate": 6, "return_delay_time": 7, "min_position_limit": 9, "max_position_limit": 11,
        "max_torque_limit": 16, "phase": 18, "p_coefficient": 21, "d_coefficient": 22, "i_coefficient": 23, "homing_offset": 31,
        "operating_mode": 33, "torque_enable": 40, "acceleration": 41, "goal_position": 42, "goal_time": 44, "goal_velocity": 46,
        "torque_limit": 48, "lock": 55, "present_position": 56, "present_velocity": 58, "present_load": 60,
        "present_input_voltage": 62, "present_temperature": 63, "status": 65, "moving": 66, "present_current": 69,
    }  # fmt: skip
    assert {name: STS3215.register(name).address for name in addresses} == addresses
    assert {register.area for register in STS3215.registers.values() if register.address < 40} == {"eeprom"}
    assert {register.area for register in STS3215.registers.values() if register.address >= 40} == {"ram"}


def test_an_scs_has_its_lock_elsewhere_its_high_byte_first_and_no_registers_of_the_sts() -> None:
    assert SCS0009.register("lock").address == 48
    assert SCS0009.register("goal_position").encode(0x0123) == b"\x01\x23"
    assert STS3215.register("goal_position").encode(0x0123) == b"\x23\x01"
    for name in ("homing_offset", "operating_mode", "acceleration", "torque_limit", "present_current"):
        assert name not in SCS0009.registers
    assert (STS3215.supports_sync_read, SCS0009.supports_sync_read) == (True, False)


@pytest.mark.parametrize(
    ("name", "number", "stored"),
    [
        ("goal_position", -1, 0x8001),
        ("goal_velocity", -1000, 0x83E8),
        ("homing_offset", -2047, 0x0FFF),
        ("homing_offset", 2047, 0x07FF),
        ("present_load", -500, 0x05F4),
        ("present_load", 500, 0x01F4),
        ("present_current", -3, 0x8003),
    ],
)
def test_negative_numbers_have_their_sign_bit_and_a_magnitude(name: str, number: int, stored: int) -> None:
    register = STS3215.register(name)
    assert register.encode(number) == stored.to_bytes(2, "little")
    assert register.decode(stored.to_bytes(2, "little")) == number


def test_a_negative_zero_is_zero() -> None:
    assert STS3215.register("present_velocity").decode(b"\x00\x80") == 0


@pytest.mark.parametrize(
    ("model", "name", "number", "value"),
    [
        (STS3215, "present_position", 2048, 0.0),
        (STS3215, "present_position", 3072, math.pi / 2),
        (STS3215, "goal_position", 0, -math.pi),
        (STS3215, "homing_offset", 1024, math.pi / 2),
        (STS3215, "present_velocity", -4096, -math.tau),
        (STS3215, "acceleration", 1, math.radians(8.7890625)),
        (STS3215, "present_input_voltage", 74, 7.4),
        (STS3215, "present_temperature", 31, 31.0),
        (STS3215, "present_load", -250, -0.25),
        (STS3215, "present_current", 100, 0.65),
        (STS3215, "protection_time", 200, 2.0),
        (STS3215, "return_delay_time", 250, 500e-6),
        (SCS0009, "present_position", 512, 0.0),
        (SCS0009, "present_position", 0, math.radians(-150)),
        (SCS0009, "protection_time", 50, 2.0),
    ],
)
def test_raw_numbers_have_the_published_units(model: ServoModel, name: str, number: int, value: float) -> None:
    assert model.register(name).to_si(number) == pytest.approx(value)
    assert model.register(name).to_raw(value) == number


@pytest.mark.parametrize(("value", "shown"), [(3.2, "got 3.2"), (math.nan, "got nan"), (-math.inf, "got -inf")])
def test_a_value_that_a_register_cannot_take_is_refused(value: float, shown: str) -> None:
    with pytest.raises(ValueError, match=rf"max_position_limit: expected -3.14159 to 3.14006 rad, {shown}"):
        STS3215.register("max_position_limit").to_raw(value)


def test_a_raw_number_out_of_range_and_a_wrong_number_of_bytes_are_refused() -> None:
    with pytest.raises(ValueError, match="torque_limit: raw number must be 0 to 1000, got 1001"):
        STS3215.register("torque_limit").encode(1001)
    with pytest.raises(ValueError, match="goal_position: expected 2 bytes, got 1"):
        STS3215.register("goal_position").decode(b"\x00")


def test_models_are_found_by_name_and_number_and_wrong_ones_get_a_hint() -> None:
    assert find_model("sts3215") is find_model_number(777) is STS3215
    with pytest.raises(UnknownNameError, match="Did you mean 'STS3215'"):
        find_model("STS3251")
    with pytest.raises(UnknownNameError, match=r"778; known: 777 \(STS3215\)"):
        find_model_number(778)
    with pytest.raises(UnknownNameError, match="Did you mean 'goal_position'"):
        STS3215.register("goal_positon")


def test_only_baud_rates_on_which_all_sources_agree_have_an_index() -> None:
    for model in MODELS:
        assert model.baud_rates == (1_000_000, 500_000, 250_000, 128_000, 115_200)
        assert model.register("baud_rate").high == 4
