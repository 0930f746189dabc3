"""Policies that move all joints to and fro around a pose, and may fail at a chosen step; real policy files.

In step k of an episode, the command of each joint is center + amplitude * sin(2 pi k / period + phase). The first number of a
history's frame counts the steps.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import onnx
import onnxruntime
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from dpg_robot.contract import Contract
from dpg_robot.policy_file import METADATA_KEY, OPSET, GoldenVectors, PolicyMetadata, hash_graph

Failure = Literal["", "nan", "infinite", "out_of_range", "exception"]

HISTORY = 2
_GOLDEN_CASES = 3
_OUT_OF_RANGE = 5.0


def write_policy(
    path: Path,
    contract: Contract,
    centers: Sequence[float],
    amplitudes: Sequence[float],
    periods_s: Sequence[float],
    phases: Sequence[float],
    *,
    failure: Failure = "",
    at_step: int = 0,
) -> Path:
    """Write a policy file.

    Args:
        path: file to write.
        contract: with a history of :data:`HISTORY`.
        centers: (A,) commands in the middle of the movement, in units of the commands.
        amplitudes: (A,) its amplitudes, in units of the commands.
        periods_s: (A,) its periods, s.
        phases: (A,) its phases, rad.
        failure: what the policy does wrong from ``at_step`` on; nothing if empty.
        at_step: step of an episode, from 0.
    """
    half = 0.5 * (contract.command_high - contract.command_low)
    middle = 0.5 * (contract.command_high + contract.command_low)
    constants = {
        "center": (np.array(centers) - middle) / half,
        "amplitude": np.array(amplitudes) / half,
        "phase": np.array(phases),
        "turn_per_step": 2 * math.pi / (np.array(periods_s) * contract.rate_hz),
        "half": half,
        "middle": middle,
    }
    if failure:
        constants["at_step"] = np.array([at_step + 0.5])
    model = _build(contract, constants, failure)
    golden = _golden_vectors(model, contract)
    metadata = PolicyMetadata(contract=contract, graph_hash=hash_graph(model), golden=golden)
    entry = model.metadata_props.add()
    entry.key, entry.value = METADATA_KEY, metadata.to_json()
    path.write_bytes(model.SerializeToString())
    return path


def _build(contract: Contract, constants: dict[str, NDArray[np.float64]], failure: Failure) -> onnx.ModelProto:
    f, a, frame, h = contract.num_features, contract.num_actions, contract.frame_size, contract.history_size
    integers = {"zero": 0, "one": 1, "frame": frame}
    tensors = {name: np.asarray(value, np.float32).reshape(1, -1) for name, value in constants.items()}
    tensors["one_step"] = np.ones((1, 1), np.float32)
    tensors["other_features"] = np.zeros((1, f - 1), np.float32)
    tensors["nothing"] = np.zeros((contract.num_measurements, 1), np.float32)
    node = helper.make_node
    nodes = [
        node("Slice", ["history_in", "zero", "one", "one"], ["last_count"]),
        node("Add", ["last_count", "one_step"], ["count"]),
        node("Mul", ["count", "turn_per_step"], ["turned"]),
        node("Add", ["turned", "phase"], ["angle"]),
        node("Sin", ["angle"], ["wave"]),
        node("Mul", ["amplitude", "wave"], ["d"]),
        node("Add", ["center", "d"], ["good"]),
        *_failure_nodes(failure, a),
        node("Mul", ["action", "half"], ["scaled"]),
        node("Add", ["scaled", "middle"], ["command"]),
        node("Slice", ["history_in", "zero", "frame", "one"], ["older"]),
        node("MatMul", ["measurement", "nothing"], ["zero_times_measurement"]),
        node("Add", ["other_features", "zero_times_measurement"], ["columns"]),
        node("Concat", ["count", "columns", "action", "older"], ["history_out"], axis=1),
    ]
    sizes = {"measurement": contract.num_measurements, "history_in": h, "command": a, "action": a, "history_out": h}
    infos = {name: helper.make_tensor_value_info(name, TensorProto.FLOAT, [1, size]) for name, size in sizes.items()}
    initializers = [numpy_helper.from_array(value, name) for name, value in tensors.items()]
    initializers += [numpy_helper.from_array(np.array([value], np.int64), name) for name, value in integers.items()]
    graph = helper.make_graph(nodes, "to_and_fro", list(infos.values())[:2], list(infos.values())[2:], initializers)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=10)


def _failure_nodes(failure: Failure, num_actions: int) -> list[onnx.NodeProto]:
    node = helper.make_node
    if not failure:
        return [node("Identity", ["good"], ["action"])]
    failing = node("Greater", ["count", "at_step"], ["failing"])
    if failure == "exception":  # takes the action from a place that is not there
        return [
            failing,
            _constant("far_away", np.full((1, num_actions), 10**6, np.int64)),
            _constant("places", np.arange(num_actions, dtype=np.int64)[None]),
            node("Where", ["failing", "far_away", "places"], ["place"]),
            node("GatherElements", ["good", "place"], ["action"], axis=1),
        ]
    if failure == "out_of_range":
        return [
            failing,
            _constant("far", np.full((1, num_actions), _OUT_OF_RANGE, np.float32)),
            node("Sin", ["count"], ["fast_wave"]),
            node("Mul", ["far", "fast_wave"], ["wild"]),
            node("Where", ["failing", "wild", "good"], ["action"]),
        ]
    value = {"nan": np.nan, "infinite": np.inf}[failure]
    return [
        failing,
        _constant("bad", np.full((1, num_actions), value, np.float32)),
        node("Where", ["failing", "bad", "good"], ["action"]),
    ]


def _constant(name: str, value: NDArray[Any]) -> onnx.NodeProto:
    return helper.make_node("Constant", [], [name], value=numpy_helper.from_array(value))


def _golden_vectors(model: onnx.ModelProto, contract: Contract) -> GoldenVectors:
    chance = np.random.default_rng(0)
    measurement = chance.standard_normal((_GOLDEN_CASES, contract.num_measurements)).astype(np.float32)
    history = chance.uniform(-1, 1, (_GOLDEN_CASES, contract.history_size)).astype(np.float32)
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    outputs = [
        session.run(["command", "action", "history_out"], {"measurement": m[None], "history_in": h[None]})
        for m, h in zip(measurement, history, strict=True)
    ]
    command, action, history_out = (np.concatenate(parts) for parts in zip(*outputs, strict=True))
    return GoldenVectors(measurement, history, command, action, history_out)
