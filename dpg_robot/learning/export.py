"""Export of a policy to the one artifact that a robot runs, ``policy.onnx``, and the proof that both compute the same."""

from __future__ import annotations

import dataclasses
import json
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from dpg_robot.contract import Contract
from dpg_robot.errors import ContractError, PolicyFileError
from dpg_robot.files import write_atomically
from dpg_robot.learning.policy import Policy
from dpg_robot.policy_file import METADATA_KEY, OPSET, GoldenVectors, PolicyMetadata, hash_graph

PARITY_TOLERANCE = 1e-5
_GOLDEN_CASES = 16
_INPUTS = ("measurement", "history_in")
_OUTPUTS = ("command", "action", "history_out")


class DeployedPolicy(nn.Module):
    """Everything between sensor and actuator: features, history, normalizer, policy, scaling and limits.

    Args:
        policy: the trained policy.
        contract: channels, limits and history.
    """

    low: Tensor
    high: Tensor
    middle: Tensor
    half_range: Tensor

    def __init__(self, policy: Policy, contract: Contract) -> None:
        super().__init__()
        self.policy = policy
        self.contract = contract
        low, high = contract.command_low, contract.command_high
        for name, limit in (("low", low), ("high", high), ("middle", 0.5 * (low + high)), ("half_range", 0.5 * (high - low))):
            self.register_buffer(name, torch.tensor(limit, dtype=torch.float32))

    def forward(self, measurement: Tensor, history_in: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return command (N, C), action (N, A) and the next history (N, H) for measurement (N, M) and history (N, H)."""
        features = self._features(measurement)
        seen = self.contract.history * self.contract.frame_size
        observation = torch.cat([features, history_in[:, :seen]], dim=1) if seen else features
        action = self.policy.mean_action(observation)
        command = torch.clamp(action * self.half_range + self.middle, self.low, self.high)
        kept = self.contract.history_size - self.contract.frame_size
        frames = [features, action, history_in[:, :kept]] if kept else [features, action]
        return command, action, torch.cat(frames, dim=1)

    def _features(self, measurement: Tensor) -> Tensor:
        """Return features (N, F), by as few operations as their kinds and order need: each costs the robot a microsecond."""
        features, columns = self.contract.features, self.contract.feature_columns()
        parts, places = [], []
        for kind, function in (("identity", None), ("cos", torch.cos), ("sin", torch.sin)):
            chosen = [place for place, feature in enumerate(features) if feature.kind == kind]
            if chosen:
                part = _columns(measurement, [columns[place] for place in chosen])
                parts.append(part if function is None else function(part))
                places += chosen
        stacked = parts[0] if len(parts) == 1 else torch.cat(parts, dim=1)
        return _columns(stacked, [places.index(place) for place in range(len(features))])


def _columns(values: Tensor, columns: list[int]) -> Tensor:
    """Return columns of ``values`` (N, M), which is ``values`` itself if these are all, in order."""
    if columns == list(range(values.shape[1])):
        return values
    return torch.index_select(values, 1, torch.tensor(columns))


@dataclass(frozen=True)
class ExportReport:
    """What an export produced and how it was checked.

    Attributes:
        path: the policy file.
        policy_id: its id.
        parity_samples: random measurements on which torch and ONNX were compared.
        max_action_error: largest absolute difference of actions.
        max_command_error: largest absolute difference of commands, as a share of half the command range.
        max_history_error: largest absolute difference of the next history, relative where it is above 1.
        bytes: size of the file.
    """

    path: str
    policy_id: str
    parity_samples: int
    max_action_error: float
    max_command_error: float
    max_history_error: float
    bytes: int


def export_policy(
    policy: Policy,
    contract: Contract,
    path: str | Path,
    *,
    training: dict[str, Any] | None = None,
    parity_samples: int = 10_000,
    seed: int = 0,
) -> ExportReport:
    """Write ``policy.onnx`` and, beside it, ``<name>.export.json`` with the report.

    The file is compared with torch on random measurements before it gets its name.

    Args:
        policy: the trained policy.
        contract: channels, units, limits, rate and history.
        path: where to write.
        training: summary to store in the file, JSON values.
        parity_samples: random measurements to compare on, 1 or more.
        seed: seed of the random measurements and golden vectors.

    Raises:
        PolicyFileError: torch and ONNX differ by ``PARITY_TOLERANCE`` or more, the policy gives values that are not finite, or
            there are no samples to compare on.
        ContractError: the policy was made for another observation or action size.
        OSError: the file could not be written; nothing is left behind.
    """
    path = Path(path)
    if parity_samples < 1:
        raise PolicyFileError(f"{path} was not written: the comparison needs 1 or more samples, got {parity_samples}")
    _check_sizes(policy, contract)
    device = next(policy.parameters()).device
    deployed = DeployedPolicy(policy, contract).cpu().eval()
    try:
        measurement, history = _random_inputs(deployed, parity_samples, np.random.default_rng(seed))
        wanted = _run_torch(deployed, measurement, history)
        if not all(np.isfinite(output).all() for output in wanted):
            raise PolicyFileError(f"{path} was not written: the policy gives values that are not finite; did training diverge?")
        model = _to_onnx(deployed)
        golden = GoldenVectors(
            measurement[:_GOLDEN_CASES], history[:_GOLDEN_CASES], *(output[:_GOLDEN_CASES] for output in wanted)
        )
    finally:
        policy.to(device)
    metadata = PolicyMetadata(contract, hash_graph(model), golden, training or {}, _git_commit())
    onnx.helper.set_model_props(model, {METADATA_KEY: metadata.to_json()})
    content = model.SerializeToString()
    errors = _compare(content, contract, measurement, history, wanted)
    if not np.max(errors) < PARITY_TOLERANCE:  # a NaN fails too
        raise PolicyFileError(
            f"{path} was not written: torch and ONNX differ by {errors[0]:.3g} (action), {errors[1]:.3g} (command, share of half "
            f"its range) and {errors[2]:.3g} (history) on {parity_samples} random measurements; allowed is {PARITY_TOLERANCE:g}"
        )
    write_atomically(path, content)
    report = ExportReport(str(path), metadata.policy_id, parity_samples, *errors, len(content))
    write_atomically(path.with_suffix(".export.json"), json.dumps(dataclasses.asdict(report), indent=1).encode())
    return report


def _to_onnx(deployed: DeployedPolicy) -> onnx.ModelProto:
    contract = deployed.contract
    example = (torch.zeros(1, contract.num_measurements), torch.zeros(1, contract.history_size))
    program = torch.onnx.export(
        deployed, example, input_names=_INPUTS, output_names=_OUTPUTS, opset_version=OPSET, dynamo=True, verbose=False
    )
    assert program is not None, "the dynamo exporter returns a program"
    model: onnx.ModelProto = program.model_proto
    # The exporter notes source files and lines; without them a policy's id depends on nothing but what it computes.
    for item in (model.graph, *model.graph.node, *model.graph.value_info, *model.graph.input, *model.graph.output):
        item.ClearField("metadata_props")
    return model


def _check_sizes(policy: Policy, contract: Contract) -> None:
    got = (policy.observation_size, policy.action_size)
    if got != (contract.observation_size, contract.num_actions):
        raise ContractError(
            f"the policy takes {got[0]} observations and gives {got[1]} actions; the contract (task {contract.task}, history "
            f"{contract.history}) asks for {contract.observation_size} and {contract.num_actions}"
        )


def _random_inputs(
    deployed: DeployedPolicy, count: int, random: np.random.Generator
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Return measurements (K, M) and histories (K, H) spread as widely as those seen in training, and wider."""
    contract, normalizer = deployed.contract, deployed.policy.normalizer
    mean, std = normalizer.mean.numpy(), normalizer.variance.sqrt().numpy()
    measurement = 3.0 * random.standard_normal((count, contract.num_measurements))
    for index, feature in enumerate(contract.features):
        if feature.kind == "identity":
            column = contract.measurement_names.index(feature.channel)
            measurement[:, column] = mean[index] + 2.0 * std[index] * random.standard_normal(count)
    frames = random.standard_normal((count, max(1, contract.history), contract.frame_size))
    features = contract.num_features
    frames[:, :, :features] = mean[:features] + 2.0 * std[:features] * frames[:, :, :features]
    frames[:, :, features:] = np.clip(frames[:, :, features:], -1.0, 1.0)
    return measurement.astype(np.float32), frames.reshape(count, -1).astype(np.float32)


@torch.no_grad()
def _run_torch(
    deployed: DeployedPolicy, measurement: NDArray[np.float32], history: NDArray[np.float32]
) -> tuple[NDArray[np.float32], ...]:
    return tuple(output.numpy() for output in deployed(torch.from_numpy(measurement), torch.from_numpy(history)))


def _compare(
    content: bytes,
    contract: Contract,
    measurement: NDArray[np.float32],
    history: NDArray[np.float32],
    wanted: tuple[NDArray[np.float32], ...],
) -> tuple[float, float, float]:
    """Return the largest errors of action, of command (as a share of half its range) and of the next history."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    session = onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])
    half_range = 0.5 * (contract.command_high - contract.command_low)
    rows = [slice(index, index + 1) for index in range(len(measurement))]
    steps = [session.run(_OUTPUTS, {"measurement": measurement[row], "history_in": history[row]}) for row in rows]
    command, action, history_out = (
        np.concatenate(column) - want for column, want in zip(zip(*steps, strict=True), wanted, strict=True)
    )
    history_scale = np.maximum(1.0, np.abs(wanted[2]))
    return (
        float(np.abs(action).max()),
        float((np.abs(command) / half_range).max()),
        float((np.abs(history_out) / history_scale).max()),
    )


def _git_commit() -> str:
    folder = Path(__file__).parent
    try:
        result = subprocess.run(["git", "rev-parse", "HEAD"], cwd=folder, capture_output=True, text=True, timeout=5, check=True)
    except (OSError, subprocess.SubprocessError):
        return "unknown"
    return result.stdout.strip()
