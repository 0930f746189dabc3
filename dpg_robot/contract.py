"""The contract between simulation, policy and robot: named channels, units, limits, rate and history.

One :class:`Contract` travels with a policy from the simulator that trained it to the robot that runs it. Both ends compare
it before anything moves, so a wrong channel order, unit, limit or rate is refused instead of acted on.
"""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray

from dpg_robot.errors import ContractError

CONTRACT_VERSION = 1

FeatureKind = Literal["identity", "cos", "sin"]
_FEATURE_FUNCTIONS: dict[str, Callable[[NDArray[Any]], NDArray[Any]]] = {"identity": lambda x: x, "cos": np.cos, "sin": np.sin}


@dataclass(frozen=True)
class MeasurementChannel:
    """One number that the sensors give each tick, in SI units."""

    name: str
    unit: str


@dataclass(frozen=True)
class CommandChannel:
    """One number that an actuator is given each tick, in SI units; action -1 maps to ``low`` and +1 to ``high``."""

    name: str
    unit: str
    low: float
    high: float


@dataclass(frozen=True)
class Feature:
    """One input of the policy network, computed from one measurement channel."""

    kind: FeatureKind
    channel: str


@dataclass(frozen=True)
class Contract:
    """What a policy reads, what it commands, and how often.

    Attributes:
        task: name of the task that the policy was trained for, for example ``cartpole-swingup``.
        measurements: M channels, in the order of the measurement vector.
        features: F functions of the measurement, in the order that the policy network sees them.
        commands: C channels, in the order of the command vector; there is one action per command (A = C).
        rate_hz: control steps per second.
        history: number k of previous (features, action) frames that the policy sees besides the present features.
        latency_budget_s: longest time from measurement to command that the policy was trained to tolerate.
        action_repeat: reward steps of the task per control step; rewards are summed over them.
    """

    task: str
    measurements: tuple[MeasurementChannel, ...]
    features: tuple[Feature, ...]
    commands: tuple[CommandChannel, ...]
    rate_hz: float
    history: int = 0
    latency_budget_s: float = 0.01
    action_repeat: int = 1
    version: int = CONTRACT_VERSION

    def __post_init__(self) -> None:
        if self.version != CONTRACT_VERSION:
            raise ContractError(
                f"contract version {self.version!r} is not supported; this program reads version {CONTRACT_VERSION}. "
                "Export the policy again with this version of dpg-robot."
            )
        if not (_is_number(self.rate_hz) and self.rate_hz > 0):
            raise ContractError(f"rate_hz must be a positive number of control steps per second, got {self.rate_hz!r}")
        if not (_is_integer(self.history) and self.history >= 0):
            raise ContractError(f"history must be 0 or more previous frames, got {self.history!r}")
        if not (_is_integer(self.action_repeat) and self.action_repeat >= 1):
            raise ContractError(f"action_repeat must be 1 or more reward steps, got {self.action_repeat!r}")
        if not (_is_number(self.latency_budget_s) and self.latency_budget_s >= 0):
            raise ContractError(f"latency_budget_s must be 0 or more seconds, got {self.latency_budget_s!r}")
        if not (self.measurements and self.features and self.commands):
            raise ContractError("a contract needs at least one measurement, one feature and one command channel")
        units = [channel.unit for channel in self.measurements] + [channel.unit for channel in self.commands]
        texts = [self.task, *self.measurement_names, *self.command_names, *units]
        if not all(isinstance(text, str) for text in texts):
            raise ContractError(f"task, channel names and units must be texts, got {texts}")
        for what, names in (("measurement", self.measurement_names), ("command", self.command_names)):
            repeated = sorted({name for name in names if names.count(name) > 1})
            if repeated:
                raise ContractError(f"{what} channels must have distinct names; repeated: {', '.join(repeated)}")
        for command in self.commands:
            if not (_is_number(command.low) and _is_number(command.high) and command.low < command.high):
                raise ContractError(
                    f"command {command.name!r} needs finite limits low < high, got {command.low!r} and {command.high!r}"
                )
        for feature in self.features:
            if feature.kind not in get_args(FeatureKind):
                raise ContractError(f"unknown feature kind {feature.kind!r}; known: {', '.join(get_args(FeatureKind))}")
            if feature.channel not in self.measurement_names:
                raise ContractError(
                    f"feature of unknown measurement {feature.channel!r}; known: {', '.join(self.measurement_names)}"
                )

    @property
    def measurement_names(self) -> tuple[str, ...]:
        """Names of the M measurement channels, in order."""
        return tuple(channel.name for channel in self.measurements)

    @property
    def command_names(self) -> tuple[str, ...]:
        """Names of the C command channels, in order."""
        return tuple(channel.name for channel in self.commands)

    @property
    def command_low(self) -> NDArray[np.float64]:
        """(C,) lower command limits, in the channels' units."""
        return np.array([channel.low for channel in self.commands])

    @property
    def command_high(self) -> NDArray[np.float64]:
        """(C,) upper command limits, in the channels' units."""
        return np.array([channel.high for channel in self.commands])

    @property
    def num_measurements(self) -> int:
        """M."""
        return len(self.measurements)

    @property
    def num_features(self) -> int:
        """F."""
        return len(self.features)

    @property
    def num_actions(self) -> int:
        """A, equal to the number of commands C."""
        return len(self.commands)

    @property
    def frame_size(self) -> int:
        """Numbers in one history frame: features and the action taken on them."""
        return self.num_features + self.num_actions

    @property
    def observation_size(self) -> int:
        """Numbers that the policy network sees: present features, then ``history`` frames, newest first."""
        return self.num_features + self.history * self.frame_size

    @property
    def history_size(self) -> int:
        """Length of the policy's history vector; at least one frame, so that it is never empty."""
        return max(1, self.history) * self.frame_size

    @property
    def period_ns(self) -> int:
        """Control period, nanoseconds."""
        return round(1e9 / self.rate_hz)

    def feature_columns(self) -> list[int]:
        """Index into the measurement vector for each of the F features."""
        return [self.measurement_names.index(feature.channel) for feature in self.features]

    def compute_features(self, measurement: NDArray[Any]) -> NDArray[np.float32]:
        """Map measurements (..., M) to features (..., F), float32.

        Computed in float32 from float32 measurements, as the exported graph does.
        """
        measurement = np.asarray(measurement, dtype=np.float32)
        if measurement.shape[-1:] != (self.num_measurements,):
            raise ContractError(
                f"measurement has shape {measurement.shape}; expected (..., {self.num_measurements}): "
                f"{', '.join(self.measurement_names)}"
            )
        features = np.empty((*measurement.shape[:-1], self.num_features), dtype=np.float32)
        for index, (feature, column) in enumerate(zip(self.features, self.feature_columns(), strict=True)):
            features[..., index] = _FEATURE_FUNCTIONS[feature.kind](measurement[..., column])
        return features

    def scale_action(self, action: NDArray[Any]) -> NDArray[np.float64]:
        """Map actions (..., A) in [-1, 1] to commands (..., C) in SI units; values outside are clipped."""
        low, high = self.command_low, self.command_high
        return low + (np.clip(np.asarray(action, dtype=np.float64), -1.0, 1.0) + 1.0) * 0.5 * (high - low)

    def unscale_command(self, command: NDArray[Any]) -> NDArray[np.float64]:
        """Map commands (..., C) in SI units back to actions (..., A); the inverse of :meth:`scale_action` within limits."""
        low, high = self.command_low, self.command_high
        return (np.asarray(command, dtype=np.float64) - low) / (0.5 * (high - low)) - 1.0

    def to_dict(self) -> dict[str, Any]:
        """Return the contract as plain lists and dictionaries (the form stored in files)."""
        plain: dict[str, Any] = json.loads(json.dumps(dataclasses.asdict(self)))
        return plain

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Contract:
        """Rebuild a contract from :meth:`to_dict`; raises ContractError when fields are missing, unknown or of a wrong type."""
        try:
            values = dict(values)
            values["measurements"] = tuple(MeasurementChannel(**item) for item in values["measurements"])
            values["features"] = tuple(Feature(**item) for item in values["features"])
            values["commands"] = tuple(CommandChannel(**item) for item in values["commands"])
            return cls(**values)
        except ContractError:
            raise
        except (KeyError, TypeError, ValueError) as error:
            raise ContractError(f"not a contract of version {CONTRACT_VERSION}: {error}") from error

    def robot_differences(self, other: Contract) -> list[str]:
        """Return the fields of robot and task in which ``other`` differs; how a policy sees the measurements does not count."""
        same = ("task", "measurements", "commands", "rate_hz", "action_repeat")
        return [name for name in same if getattr(self, name) != getattr(other, name)]

    def require_equal(self, other: Contract, *, ours: str, theirs: str) -> None:
        """Raise ContractError naming every field in which ``other`` differs.

        Args:
            other: the contract to compare with.
            ours: what this contract belongs to, for the message (for example ``robot configs/robots/cartpole.yaml``).
            theirs: what the other contract belongs to (for example ``policy.onnx``).
        """
        differences = [
            f"{field.name}: {ours} has {getattr(self, field.name)!r}, {theirs} has {getattr(other, field.name)!r}"
            for field in dataclasses.fields(self)
            if getattr(self, field.name) != getattr(other, field.name)
        ]
        if differences:
            raise ContractError(f"{theirs} does not fit {ours}. " + "; ".join(differences))


def _is_integer(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
