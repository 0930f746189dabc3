"""Control tables: against numbers of the manual, and their consistency."""

import itertools
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dpg_robot.errors import UnknownNameError
from hw_drivers.dynamixel.models import (
    MODELS,
    Area,
    OperatingMode,
    Register,
    ServoModel,
    find_model,
    find_model_number,
)

models = pytest.mark.parametrize("model", MODELS, ids=lambda model: model.name)


@pytest.mark.parametrize(
    ("name", "number"),
    [("XL330-M077", 1190), ("XL330-M288", 1200), ("XL430-W250", 1060), ("XM430-W350", 1020), ("XM430-W210", 1030)],
)
def test_models_are_found_by_name_and_number(name: str, number: int) -> None:
    assert find_model(name).number == number
    assert find_model(name.lower()) is find_model_number(number)
    assert find_model(name).register("model_number").initial == number


def test_unknown_models_and_registers_are_named_with_the_nearest_one() -> None:
    with pytest.raises(UnknownNameError, match="Did you mean 'XL330-M288'"):
        find_model("XL330-M28")
    with pytest.raises(UnknownNameError, match="Did you mean 'goal_position'"):
        find_model("XL330-M288").register("goal_positon")
    with pytest.raises(UnknownNameError, match=r"1200 \(XL330-M288\)"):
        find_model_number(350)


@pytest.mark.parametrize(
    ("name", "address", "size"),
    [
        ("id", 7, 1),
        ("baud_rate", 8, 1),
        ("return_delay_time", 9, 1),
        ("operating_mode", 11, 1),
        ("homing_offset", 20, 4),
        ("max_position_limit", 48, 4),
        ("min_position_limit", 52, 4),
        ("shutdown", 63, 1),
        ("torque_enable", 64, 1),
        ("status_return_level", 68, 1),
        ("hardware_error_status", 70, 1),
        ("position_d_gain", 80, 2),
        ("position_i_gain", 82, 2),
        ("position_p_gain", 84, 2),
        ("bus_watchdog", 98, 1),
        ("goal_velocity", 104, 4),
        ("profile_acceleration", 108, 4),
        ("profile_velocity", 112, 4),
        ("goal_position", 116, 4),
        ("realtime_tick", 120, 2),
        ("present_velocity", 128, 4),
        ("present_position", 132, 4),
        ("present_input_voltage", 144, 2),
        ("present_temperature", 146, 1),
    ],
)
@models
def test_registers_are_where_the_manual_says(model: ServoModel, name: str, address: int, size: int) -> None:
    register = model.register(name)
    assert (register.address, register.size) == (address, size)


def test_only_the_xl430_measures_load_in_place_of_current() -> None:
    for model in MODELS:
        name = "present_load" if model.name == "XL430-W250" else "present_current"
        assert model.register(name).address == 126
        assert ("goal_current" in model.registers) == (name == "present_current")
        assert (OperatingMode.CURRENT in model.operating_modes) == (name == "present_current")


@models
def test_no_two_registers_share_a_byte_and_all_lie_inside_the_table(model: ServoModel) -> None:
    registers = list(model.registers.values())
    for register, following in itertools.pairwise(registers):
        assert register.end <= following.address
    first_indirect = min(block.addresses for block in model.indirect)
    assert registers[-1].end <= first_indirect < model.table_size
    assert all((register.address < 64) == (register.area is Area.EEPROM) for register in registers)


@models
def test_initial_values_may_be_written_and_ranges_fit_into_their_registers(model: ServoModel) -> None:
    for register in model.registers.values():
        assert register.decode(register.encode(register.initial)) == register.initial
        if register.writable:
            assert register.low <= register.initial <= register.high
            assert register.decode(register.encode(register.low)) == register.low
            assert register.decode(register.encode(register.high)) == register.high
        assert all(name in model.registers for name in register.limited_by)


@pytest.mark.parametrize(
    ("model", "register", "raw", "value"),
    [
        ("XL330-M288", "present_position", 2048, 0.0),
        ("XL330-M288", "present_position", 3072, math.pi / 2),
        ("XL330-M288", "goal_position", -2048, -2 * math.pi),
        ("XL330-M288", "present_velocity", -100, -100 * 0.229 * 2 * math.pi / 60),
        ("XL330-M288", "present_current", -250, -0.25),
        ("XM430-W350", "present_current", 100, 0.269),
        ("XL430-W250", "present_load", -500, -0.5),
        ("XL330-M288", "profile_acceleration", 3, 3 * 214.577 * 2 * math.pi / 3600),
        ("XL330-M288", "present_input_voltage", 51, 5.1),
        ("XL330-M288", "present_temperature", 35, 35.0),
        ("XL330-M288", "bus_watchdog", 5, 0.1),
        ("XL330-M288", "return_delay_time", 250, 500e-6),
        ("XL330-M288", "homing_offset", 1024, math.pi / 2),
    ],
)
def test_numbers_mean_what_the_manual_says(model: str, register: str, raw: int, value: float) -> None:
    entry = find_model(model).register(register)
    assert entry.to_si(raw) == pytest.approx(value)
    assert entry.to_raw(value) == raw


@given(st.sampled_from([register for model in MODELS for register in model.registers.values()]), st.data())
def test_raw_numbers_survive_si_units_and_bytes(register: Register, data: st.DataObject) -> None:
    bits = 8 * register.size
    low, high = (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1) if register.signed else (0, 2**bits - 1)
    raw = data.draw(st.integers(low, high))
    assert register.to_raw(register.to_si(raw)) == raw
    assert register.decode(register.encode(raw)) == raw


def test_numbers_that_do_not_fit_are_refused() -> None:
    register = find_model("XL330-M288").register("torque_enable")
    with pytest.raises(ValueError, match="256 does not fit into register 'torque_enable', an unsigned number of 1 bytes"):
        register.encode(256)
    with pytest.raises(ValueError, match="has 1 bytes, got 2"):
        register.decode(b"12")
    with pytest.raises(ValueError, match="needs a finite value, got nan"):
        find_model("XL330-M288").register("goal_position").to_raw(math.nan)
