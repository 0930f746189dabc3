"""Policies small enough to compute by hand, as real policy files."""

from pathlib import Path

import numpy as np
from onnx import TensorProto, helper, numpy_helper

from dpg_robot.contract import CommandChannel, Contract, Feature, MeasurementChannel
from dpg_robot.policy_file import METADATA_KEY, OPSET, GoldenVectors, PolicyMetadata, hash_graph

CONTRACT = Contract(
    task="cartpole-swingup",
    measurements=(
        MeasurementChannel("cart_position", "m"),
        MeasurementChannel("pole_angle", "rad"),
        MeasurementChannel("cart_velocity", "m/s"),
        MeasurementChannel("pole_velocity", "rad/s"),
    ),
    features=(
        Feature("identity", "cart_position"),
        Feature("cos", "pole_angle"),
        Feature("sin", "pole_angle"),
        Feature("identity", "cart_velocity"),
        Feature("identity", "pole_velocity"),
    ),
    commands=(CommandChannel("cart_force", "N", -10.0, 10.0),),
    rate_hz=50.0,
    history=2,
    action_repeat=2,
)

# Pushes always a little, but not so much that the next homing takes long.
GENTLE = {"cart_position": -0.2, "cart_velocity": -0.15, "bias": 0.02}


def write_policy(path, contract=CONTRACT, gains=GENTLE, *, golden_cases=4, change=None, change_metadata=None):
    """Write a policy whose action is tanh(gains . measurement + bias + 0.1 * previous action).

    ``change`` edits the model before it is hashed; ``change_metadata`` returns other metadata than the right one.
    """
    model = build_model(contract, gains)
    if change is not None:
        change(model)
    golden = compute_golden(contract, gains, golden_cases)
    metadata = PolicyMetadata(contract=contract, graph_hash=hash_graph(model), golden=golden, training={"steps": 0})
    if change_metadata is not None:
        metadata = change_metadata(metadata)
    entry = model.metadata_props.add()
    entry.key, entry.value = METADATA_KEY, metadata.to_json()
    Path(path).write_bytes(model.SerializeToString())
    return Path(path)


def gain_vector(contract, gains):
    return np.array([gains.get(name, 0.0) for name in contract.measurement_names], dtype=np.float32)


def expected_step(contract, gains, measurement, history):
    """What the policy must give, computed with numpy: command, action, next history."""
    features = contract.compute_features(measurement)
    previous = history[contract.num_features : contract.frame_size]
    drive = measurement.astype(np.float32) @ gain_vector(contract, gains) + np.float32(gains.get("bias", 0.0))
    action = np.tanh(np.full(contract.num_actions, drive, dtype=np.float32) + np.float32(0.1) * previous).astype(np.float32)
    command = contract.scale_action(action).astype(np.float32)
    frame = np.concatenate([features, action])
    return command, action, np.concatenate([frame, history])[: contract.history_size].astype(np.float32)


def compute_golden(contract, gains, cases):
    random = np.random.default_rng(0)
    measurement = random.standard_normal((cases, contract.num_measurements)).astype(np.float32)
    history = random.uniform(-1, 1, (cases, contract.history_size)).astype(np.float32)
    outputs = [expected_step(contract, gains, m, h) for m, h in zip(measurement, history, strict=True)]
    empty = [np.zeros((0, size), np.float32) for size in (contract.num_actions, contract.num_actions, contract.history_size)]
    command, action, history_out = (np.stack(column) for column in zip(*outputs, strict=True)) if cases else empty
    return GoldenVectors(measurement, history, command, action, history_out)


def build_model(contract, gains):
    m, f, a, h = contract.num_measurements, contract.num_features, contract.num_actions, contract.history_size
    kept = h - contract.frame_size
    constants = {
        "gains": np.repeat(gain_vector(contract, gains)[:, None], a, axis=1),
        "bias": np.full((1, a), gains.get("bias", 0.0), np.float32),
        "memory": np.full((1, a), 0.1, np.float32),
        "columns": np.array(contract.feature_columns(), np.int64),
        "half": (0.5 * (contract.command_high - contract.command_low)).astype(np.float32)[None],
        "middle": (0.5 * (contract.command_high + contract.command_low)).astype(np.float32)[None],
        "zero": np.array([0], np.int64),
        "first_action": np.array([f], np.int64),
        "after_frame": np.array([contract.frame_size], np.int64),
        "kept": np.array([kept], np.int64),
        "one": np.array([1], np.int64),
    }
    nodes = [
        helper.make_node("MatMul", ["measurement", "gains"], ["weighted"]),
        helper.make_node("Slice", ["history_in", "first_action", "after_frame", "one"], ["previous"]),
        helper.make_node("Mul", ["previous", "memory"], ["remembered"]),
        helper.make_node("Add", ["weighted", "bias"], ["driven"]),
        helper.make_node("Add", ["driven", "remembered"], ["drive"]),
        helper.make_node("Tanh", ["drive"], ["action"]),
        helper.make_node("Mul", ["action", "half"], ["scaled"]),
        helper.make_node("Add", ["scaled", "middle"], ["command"]),
    ]
    parts = []
    for index, (feature, column) in enumerate(zip(contract.features, contract.feature_columns(), strict=True)):
        constants[f"column_{index}"] = np.array([column], np.int64)
        nodes.append(helper.make_node("Gather", ["measurement", f"column_{index}"], [f"raw_{index}"], axis=1))
        kind = {"identity": "Identity", "cos": "Cos", "sin": "Sin"}[feature.kind]
        nodes.append(helper.make_node(kind, [f"raw_{index}"], [f"feature_{index}"]))
        parts.append(f"feature_{index}")
    nodes.append(helper.make_node("Slice", ["history_in", "zero", "kept", "one"], ["older"]))
    nodes.append(helper.make_node("Concat", [*parts, "action", "older"], ["history_out"], axis=1))
    graph = helper.make_graph(
        nodes,
        "tiny_policy",
        [_tensor("measurement", m), _tensor("history_in", h)],
        [_tensor("command", a), _tensor("action", a), _tensor("history_out", h)],
        [numpy_helper.from_array(value, name) for name, value in constants.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=10)


def _tensor(name, size):
    return helper.make_tensor_value_info(name, TensorProto.FLOAT, [1, size])
