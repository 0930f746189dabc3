"""The contract between simulation, policy and robot: what is refused, what is compared, and its arithmetic."""

import dataclasses
import json
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dpg_robot.contract import CommandChannel, Contract, Feature, MeasurementChannel
from dpg_robot.errors import ContractError

CONTRACT = Contract(
    task="two-joint-arm",
    measurements=(
        MeasurementChannel("shoulder", "rad"),
        MeasurementChannel("elbow", "rad"),
        MeasurementChannel("speed", "rad/s"),
    ),
    features=(Feature("identity", "speed"), Feature("cos", "elbow"), Feature("sin", "elbow"), Feature("identity", "shoulder")),
    commands=(CommandChannel("shoulder_torque", "N m", -2.0, 2.0), CommandChannel("gripper", "m", 0.0, 0.05)),
    rate_hz=100.0,
    history=3,
    latency_budget_s=0.004,
    action_repeat=2,
)

names = st.text(min_size=1, max_size=8)
finite = st.floats(allow_nan=False, allow_infinity=False, width=32)


distinct_names = st.lists(names, min_size=1, max_size=4, unique=True)


@st.composite
def contracts(draw):
    measurements = tuple(MeasurementChannel(name, draw(names)) for name in draw(distinct_names))
    channels = st.sampled_from([channel.name for channel in measurements])
    features = st.lists(st.builds(Feature, st.sampled_from(["identity", "cos", "sin"]), channels), min_size=1, max_size=5)
    limits = st.tuples(finite, finite).filter(lambda pair: pair[0] < pair[1])
    return Contract(
        task=draw(names),
        measurements=measurements,
        features=tuple(draw(features)),
        commands=tuple(CommandChannel(name, draw(names), *draw(limits)) for name in draw(distinct_names)),
        rate_hz=draw(st.floats(min_value=1e-3, max_value=1e5)),
        history=draw(st.integers(0, 9)),
        latency_budget_s=draw(st.floats(min_value=0, max_value=1)),
        action_repeat=draw(st.integers(1, 9)),
    )


@settings(max_examples=40)
@given(contract=contracts())
def test_a_contract_survives_the_way_through_json(contract):
    again = Contract.from_dict(json.loads(json.dumps(contract.to_dict())))
    assert again == contract
    contract.require_equal(again, ours="a", theirs="b")


def test_sizes_follow_from_channels_and_history():
    assert (CONTRACT.num_measurements, CONTRACT.num_features, CONTRACT.num_actions) == (3, 4, 2)
    assert CONTRACT.frame_size == 6
    assert CONTRACT.observation_size == 4 + 3 * 6
    assert CONTRACT.history_size == 3 * 6
    assert CONTRACT.period_ns == 10_000_000
    without_history = dataclasses.replace(CONTRACT, history=0)
    assert without_history.observation_size == 4
    assert without_history.history_size == 6  # never empty: a graph input needs a size


DIFFERENT = {
    "task": "other",
    "measurements": CONTRACT.measurements[::-1],
    "features": CONTRACT.features[:-1],
    "commands": (dataclasses.replace(CONTRACT.commands[0], high=3.0), CONTRACT.commands[1]),
    "rate_hz": 50.0,
    "history": 2,
    "latency_budget_s": 0.02,
    "action_repeat": 1,
}


@pytest.mark.parametrize("name", DIFFERENT)
def test_a_difference_in_any_field_is_refused_with_both_values(name):
    other = dataclasses.replace(CONTRACT, **{name: DIFFERENT[name]})
    with pytest.raises(ContractError) as caught:
        CONTRACT.require_equal(other, ours="the robot", theirs="policy.onnx")
    message = str(caught.value)
    assert message.startswith("policy.onnx does not fit the robot. ")
    assert f"{name}: the robot has {getattr(CONTRACT, name)!r}, policy.onnx has {DIFFERENT[name]!r}" in message
    assert not [field for field in DIFFERENT if field != name and f" {field}: " in message]


def test_all_differing_fields_are_named_at_once():
    assert {field.name for field in dataclasses.fields(Contract)} == {*DIFFERENT, "version"}
    with pytest.raises(ContractError) as caught:
        CONTRACT.require_equal(dataclasses.replace(CONTRACT, **DIFFERENT), ours="the robot", theirs="policy.onnx")
    for name in DIFFERENT:
        assert f" {name}: the robot has" in str(caught.value)


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"version": 2}, "version 2 is not supported; this program reads version 1"),
        ({"version": "1"}, "version '1' is not supported"),
        ({"rate_hz": 0.0}, "rate_hz must be a positive number"),
        ({"rate_hz": -1.0}, "rate_hz must be a positive number"),
        ({"rate_hz": math.inf}, "rate_hz must be a positive number"),
        ({"rate_hz": math.nan}, "rate_hz must be a positive number"),
        ({"rate_hz": "50"}, "rate_hz must be a positive number"),
        ({"history": -1}, "history must be 0 or more"),
        ({"history": 1.5}, "history must be 0 or more"),
        ({"history": True}, "history must be 0 or more"),
        ({"action_repeat": 0}, "action_repeat must be 1 or more"),
        ({"action_repeat": "2"}, "action_repeat must be 1 or more"),
        ({"latency_budget_s": -0.001}, "latency_budget_s must be 0 or more"),
        ({"latency_budget_s": math.nan}, "latency_budget_s must be 0 or more"),
        ({"task": 5}, "must be texts"),
        ({"measurements": []}, "at least one measurement"),
        ({"features": []}, "at least one measurement, one feature"),
        ({"commands": []}, "at least one measurement, one feature and one command"),
        ({"measurements": [{"name": "a", "unit": "m"}] * 2}, "measurement channels must have distinct names; repeated: a"),
        ({"measurements": [{"name": "a", "unit": 1}]}, "must be texts"),
        ({"measurements": [{"name": "a"}]}, "not a contract of version 1"),
        ({"measurements": 5}, "not a contract of version 1"),
        ({"commands": [{"name": "a", "unit": "N", "low": 0, "high": 1}] * 2}, "command channels must have distinct names"),
        ({"commands": [{"name": "a", "unit": "N", "low": 1.0, "high": 1.0}]}, "command 'a' needs finite limits low < high"),
        ({"commands": [{"name": "a", "unit": "N", "low": 2.0, "high": 1.0}]}, "got 2.0 and 1.0"),
        ({"commands": [{"name": "a", "unit": "N", "low": -math.inf, "high": 1.0}]}, "needs finite limits"),
        ({"commands": [{"name": "a", "unit": "N", "low": math.nan, "high": 1.0}]}, "needs finite limits"),
        ({"commands": [{"name": "a", "unit": "N", "low": None, "high": 1.0}]}, "needs finite limits"),
        ({"features": [{"kind": "tan", "channel": "elbow"}]}, "unknown feature kind 'tan'; known: identity, cos, sin"),
        ({"features": [{"kind": "cos", "channel": "wrist"}]}, "unknown measurement 'wrist'; known: shoulder, elbow, speed"),
        ({"colour": "red"}, "not a contract of version 1"),
    ],
)
def test_a_contract_that_makes_no_sense_is_refused(change, expected):
    with pytest.raises(ContractError) as caught:
        Contract.from_dict(CONTRACT.to_dict() | change)
    assert expected in str(caught.value)


@pytest.mark.parametrize("values", [None, [], {}, "ab", 5, [1], {"task": "x"}])
def test_what_is_no_contract_at_all_is_refused(values):
    with pytest.raises(ContractError, match="not a contract of version 1"):
        Contract.from_dict(values)


@given(measurement=st.lists(finite, min_size=6, max_size=6))
def test_features_are_functions_of_their_channels_in_order(measurement):
    rows = np.array(measurement, dtype=np.float32).reshape(2, 3)
    shoulder, elbow, speed = rows.T
    expected = np.stack([speed, np.cos(elbow), np.sin(elbow), shoulder], axis=1)
    features = CONTRACT.compute_features(rows)
    assert features.dtype == np.float32
    np.testing.assert_array_equal(features, expected)
    np.testing.assert_array_equal(CONTRACT.compute_features(rows[0]), expected[0])


@pytest.mark.parametrize("shape", [(), (2,), (4, 2), (3, 4), (0,)])
def test_a_measurement_of_another_shape_is_refused(shape):
    with pytest.raises(ContractError, match=r"expected \(\.\.\., 3\): shoulder, elbow, speed"):
        CONTRACT.compute_features(np.zeros(shape))


def test_actions_span_the_command_range_and_are_clipped_to_it():
    actions = np.array([[-1.0, -1.0], [0.0, 0.0], [1.0, 1.0], [-9.0, 9.0]])
    expected = [[-2.0, 0.0], [0.0, 0.025], [2.0, 0.05], [-2.0, 0.05]]
    np.testing.assert_allclose(CONTRACT.scale_action(actions), expected, rtol=0, atol=1e-15)


@given(action=st.tuples(st.floats(-1, 1), st.floats(-1, 1)))
def test_commands_map_back_to_their_actions(action):
    command = CONTRACT.scale_action(np.array(action))
    assert (command >= CONTRACT.command_low).all()
    assert (command <= CONTRACT.command_high).all()
    np.testing.assert_allclose(CONTRACT.unscale_command(command), action, rtol=0, atol=1e-12)
