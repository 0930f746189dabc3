"""The one artifact, ``policy.onnx``: its metadata, and every check of the file that needs no inference.

The exporter writes and the robot reads through this module, so the format has one home. Everything between sensor and actuator is
in the graph: inputs ``measurement`` (1, M) and ``history_in`` (1, H); outputs ``command`` (1, C), ``action`` (1, A) and
``history_out`` (1, H), all float32, where H is ``Contract.history_size``. The history vector holds frames of (features, action),
newest first.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from google.protobuf.message import DecodeError
from numpy.typing import NDArray

from dpg_robot.contract import Contract
from dpg_robot.errors import PolicyFileError

FORMAT_VERSION = 1
METADATA_KEY = "dpg_robot"
OPSET = 18
GOLDEN_TOLERANCE = 1e-5


@dataclass(frozen=True)
class GoldenVectors:
    """Inputs and the outputs that the exporter got for them; K cases.

    Attributes:
        measurement: (K, M) float32.
        history_in: (K, H) float32.
        command: (K, C) float32.
        action: (K, A) float32.
        history_out: (K, H) float32.
    """

    measurement: NDArray[np.float32]
    history_in: NDArray[np.float32]
    command: NDArray[np.float32]
    action: NDArray[np.float32]
    history_out: NDArray[np.float32]

    def to_dict(self) -> dict[str, Any]:
        """Return the vectors as nested lists; float32 values survive the decimal form exactly."""
        return {name: getattr(self, name).astype(np.float64).tolist() for name in _GOLDEN_NAMES}

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> GoldenVectors:
        """Rebuild from :meth:`to_dict`."""
        return cls(**{name: np.array(values[name], dtype=np.float32) for name in _GOLDEN_NAMES})


_GOLDEN_NAMES = tuple(item.name for item in dataclasses.fields(GoldenVectors))


@dataclass(frozen=True)
class PolicyMetadata:
    """What a policy file says about itself.

    Attributes:
        contract: channels, units, limits, rate and history.
        graph_hash: SHA-256 of everything in the file but this metadata, weights included (hexadecimal).
        golden: vectors that a loader replays.
        training: summary of how the policy came about (steps, seed, returns, parent policy); informative.
        git_commit: commit of the exporting program, or "unknown".
        format_version: version of this metadata.
    """

    contract: Contract
    graph_hash: str
    golden: GoldenVectors
    training: dict[str, Any] = field(default_factory=dict)
    git_commit: str = "unknown"
    format_version: int = FORMAT_VERSION

    @property
    def policy_id(self) -> str:
        """First 16 hexadecimal digits of the graph hash: the name under which logs refer to the policy."""
        return self.graph_hash[:16]

    def to_json(self) -> str:
        """Return the metadata as one JSON text, with full precision and a hash of its own that shows later damage.

        Raises:
            PolicyFileError: a number is not finite.
        """
        values = {
            "format_version": self.format_version,
            "contract": self.contract.to_dict(),
            "graph_hash": self.graph_hash,
            "golden": self.golden.to_dict(),
            "training": self.training,
            "git_commit": self.git_commit,
        }
        try:
            return json.dumps(values | {"metadata_hash": _hash_metadata(values)}, sort_keys=True, allow_nan=False)
        except ValueError as error:
            raise PolicyFileError(f"policy metadata holds a number that is not finite: {error}") from error

    @classmethod
    def from_json(cls, text: str) -> PolicyMetadata:
        """Rebuild from :meth:`to_json`; raises PolicyFileError when the version or a field is not as expected."""
        try:
            values = json.loads(text)
            version = values["format_version"]
            if version != FORMAT_VERSION:
                raise PolicyFileError(f"policy format version {version} is not supported; this program reads {FORMAT_VERSION}")
            if values.pop("metadata_hash") != _hash_metadata(values):
                raise PolicyFileError("policy metadata is damaged: its hash does not fit. Export or copy the file again.")
            return cls(
                contract=Contract.from_dict(values["contract"]),
                graph_hash=values["graph_hash"],
                golden=GoldenVectors.from_dict(values["golden"]),
                training=values["training"],
                git_commit=values["git_commit"],
                format_version=version,
            )
        except PolicyFileError:
            raise
        except (KeyError, TypeError) as error:
            raise PolicyFileError(f"policy metadata is incomplete: {error}") from error
        except (ValueError, RecursionError) as error:
            raise PolicyFileError(f"policy metadata is damaged: {error}") from error


def _hash_metadata(values: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(values, sort_keys=True, allow_nan=False).encode()).hexdigest()


def hash_graph(model: onnx.ModelProto) -> str:
    """Return the SHA-256 (hexadecimal) of the model: graph, weights, operator versions; all but the metadata."""
    bare = onnx.ModelProto()
    bare.CopyFrom(model)
    bare.ClearField("metadata_props")
    return hashlib.sha256(bare.SerializeToString(deterministic=True)).hexdigest()


def read_policy_file(path: str | Path) -> tuple[bytes, PolicyMetadata]:
    """Read a policy file and check everything that needs no inference, as :func:`check_policy` does.

    Returns:
        The bytes to hand to the inference session, and the metadata.

    Raises:
        PolicyFileError: with what was got, what was expected and what to do.
    """
    path = Path(path)
    try:
        content = path.read_bytes()
    except OSError as error:
        raise PolicyFileError(f"cannot read policy file {path}: {error.strerror or error}") from error
    return content, check_policy(content, path)


def check_policy(content: bytes, source: str | Path) -> PolicyMetadata:
    """Check everything about a policy that needs no inference, and return what it says about itself.

    Checks: it parses, holds no external data, has our metadata of a known version, the graph's hash, and the names, types and
    shapes of inputs and outputs against the contract.

    Args:
        content: bytes of a policy file.
        source: where it comes from, for messages.

    Raises:
        PolicyFileError: with what was got, what was expected and what to do.
    """
    path = Path(source)
    try:
        model = onnx.load_model_from_string(content)
    except (DecodeError, ValueError) as error:
        raise PolicyFileError(
            f"{path} is not a whole ONNX file ({len(content)} bytes): {error}. It may be truncated; copy or export it again."
        ) from error
    _refuse_external_data(model, path)
    metadata = _read_metadata(model, path)
    got = hash_graph(model)
    if got != metadata.graph_hash:
        raise PolicyFileError(
            f"{path}: the graph's hash is {got[:16]}..., the metadata says {metadata.graph_hash[:16]}...; "
            "the file was changed or damaged after export. Export or copy it again."
        )
    _check_signature(model, metadata.contract, path)
    return metadata


def _read_metadata(model: onnx.ModelProto, path: Path) -> PolicyMetadata:
    texts = [entry.value for entry in model.metadata_props if entry.key == METADATA_KEY]
    if len(texts) != 1:
        raise PolicyFileError(
            f"{path} carries {len(texts)} {METADATA_KEY!r} metadata entries, expected one; "
            "it was not made by dpg-robot's exporter (launch/export.py)."
        )
    try:
        return PolicyMetadata.from_json(texts[0])
    except PolicyFileError as error:
        raise PolicyFileError(f"{path}: {error}") from error


def _refuse_external_data(model: onnx.ModelProto, path: Path) -> None:
    # External data may point anywhere on the disk, so a policy has to carry all its weights itself.
    inside_functions = [tensor for function in model.functions for tensor in _attribute_tensors(function.node)]
    for name, tensor in _all_tensors(model.graph) + inside_functions:
        if tensor.data_location == onnx.TensorProto.EXTERNAL or tensor.external_data:
            raise PolicyFileError(f"{path}: tensor {name!r} refers to data outside the file; policies must be self-contained.")


def _all_tensors(graph: onnx.GraphProto) -> list[tuple[str, onnx.TensorProto]]:
    tensors = [(tensor.name, tensor) for tensor in graph.initializer]
    for sparse in graph.sparse_initializer:
        tensors += [(sparse.values.name, sparse.values), (sparse.values.name, sparse.indices)]
    return tensors + _attribute_tensors(graph.node)


def _attribute_tensors(nodes: Iterable[onnx.NodeProto]) -> list[tuple[str, onnx.TensorProto]]:
    tensors = []
    for node in nodes:
        for attribute in node.attribute:
            tensors += [(f"{node.name}.{attribute.name}", tensor) for tensor in (attribute.t, *attribute.tensors)]
            for subgraph in (attribute.g, *attribute.graphs):
                if subgraph.node or subgraph.initializer:
                    tensors += _all_tensors(subgraph)
    return tensors


def _check_signature(model: onnx.ModelProto, contract: Contract, path: Path) -> None:
    expected = {
        "input": {"measurement": contract.num_measurements, "history_in": contract.history_size},
        "output": {
            "command": contract.num_actions,
            "action": contract.num_actions,
            "history_out": contract.history_size,
        },
    }
    for kind, sizes in expected.items():
        got = {value.name: _describe_type(value) for value in getattr(model.graph, kind)}
        wanted = {name: ("FLOAT", [1, size]) for name, size in sizes.items()}
        if got != wanted:
            raise PolicyFileError(f"{path}: graph {kind}s are {got}, the contract in its metadata asks for {wanted}")


def _describe_type(value: onnx.ValueInfoProto) -> tuple[str, list[int]]:
    tensor = value.type.tensor_type
    return onnx.TensorProto.DataType.Name(tensor.elem_type), [dimension.dim_value for dimension in tensor.shape.dim]
