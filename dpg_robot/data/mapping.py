"""Which columns of somebody else's file are observations, actions, rewards and ends: a mapping, read from YAML.

All importers turn what they find into named columns of one episode, and :func:`map_episode` makes an :class:`Episode` of them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from dpg_robot.config import setting
from dpg_robot.contract import CommandChannel, Contract, Feature, FeatureKind, MeasurementChannel
from dpg_robot.data.datasets import DatasetError, Episode
from dpg_robot.data.episode_source import FoundEpisode
from dpg_robot.errors import unknown_name

Columns = Mapping[str, NDArray[Any]]


@dataclass(frozen=True)
class ObservationColumn:
    """A column, or some elements of one, that is observed."""

    column: str
    elements: tuple[int, int] | None = setting(None, "first element and the one after the last; without: all of the column")
    names: tuple[str, ...] = setting((), "names of the channels; without: the column's name with numbers")
    unit: str = setting("unknown", "SI unit of the values, after scaling")
    scale: float = setting(1.0, "factor on the values of the file, for example 0.0174532925 from degrees to rad")
    features: tuple[FeatureKind, ...] = setting(("identity",), "what the policy sees of each channel: identity, cos, sin")

    def __post_init__(self) -> None:
        _check_elements(self.column, self.elements, self.names)
        if not self.features:
            raise ValueError(f"column {self.column!r} needs at least one feature")


@dataclass(frozen=True)
class ActionColumn:
    """A column, or some elements of one, that was done."""

    column: str
    elements: tuple[int, int] | None = setting(None, "first element and the one after the last; without: all of the column")
    names: tuple[str, ...] = setting((), "names of the channels; without: the column's name with numbers")
    unit: str = setting("unknown", "SI unit of the values")
    low: float | tuple[float, ...] = setting(-1.0, "value in the file that is action -1; one, or one for each element")
    high: float | tuple[float, ...] = setting(1.0, "value in the file that is action +1; one, or one for each element")
    clip: bool = setting(False, "whether actions beyond the limits are cut; otherwise they are refused")

    def __post_init__(self) -> None:
        _check_elements(self.column, self.elements, self.names)


@dataclass(frozen=True)
class Resampling:
    """How messages of a log that come at times of their own are put onto the grid of the control rate."""

    max_age_s: float = setting(0.5, "oldest message that still counts as the present value; older ones are a gap", unit="s")
    gaps: Literal["refuse", "cut"] = setting("refuse", "what a gap does: refuse the file, or end the episode and begin another")
    time: Literal["log", "publish"] = setting("log", "which time of the messages counts: when recorded, or when published")
    action_delay_s: float = setting(
        0.0, "how long after the tick the action in effect is taken, for commands that follow their measurement", unit="s"
    )
    min_steps: int = setting(2, "shortest episode between two gaps that is kept", unit="control steps")

    def __post_init__(self) -> None:
        if not self.max_age_s > 0:
            raise ValueError(f"max_age_s must be positive, got {self.max_age_s}")
        if not self.action_delay_s >= 0:
            raise ValueError(f"action_delay_s must be 0 or more, got {self.action_delay_s}")
        if self.min_steps < 1:
            raise ValueError(f"min_steps must be 1 or more, got {self.min_steps}")


@dataclass(frozen=True)
class DatasetMapping:
    """What the columns of a file mean."""

    task: str
    observations: tuple[ObservationColumn, ...]
    actions: tuple[ActionColumn, ...]
    rate_hz: float | None = setting(None, "control steps per second; without: what the file says", unit="1/s")
    reward: str | None = setting(None, "column of the reward of each step; without: rewards are not known")
    terminal: str | None = setting(None, "column that is not 0 where an episode ended without a future (success, fall)")
    timeout: str | None = setting(None, "column that is not 0 where an episode was cut; its terminal does not count there")
    final_observation: Literal["drop", "repeat"] = setting(
        "drop",
        "where a file lacks the observation after the last action: drop that action, or repeat the last observation",
    )
    resampling: Resampling = setting(Resampling, "for logs of messages (MCAP) only")

    def __post_init__(self) -> None:
        if not (self.observations and self.actions):
            raise ValueError("a mapping needs at least one entry in observations and in actions")
        if self.rate_hz is not None and not self.rate_hz > 0:
            raise ValueError(f"rate_hz must be positive, got {self.rate_hz}")

    @property
    def columns(self) -> tuple[str, ...]:
        """The names of all columns that are asked for, each once."""
        asked = [each.column for each in self.observations] + [each.column for each in self.actions]
        return tuple(dict.fromkeys([*asked, *filter(None, (self.reward, self.terminal, self.timeout))]))


def mapped_contract(mapping: DatasetMapping, columns: Columns, rate_hz: float, where: str) -> Contract:
    """Return the contract that a mapping gives to a file.

    Args:
        mapping: what the columns mean.
        columns: columns of any episode, each (T,) or (T, D).
        rate_hz: control steps per second, for a mapping that does not say.
        where: what to call the file in errors.

    Raises:
        DatasetError: limits or names that do not fit the width of their column.
        UnknownNameError: a column that is not there.
    """
    measurements: list[MeasurementChannel] = []
    features: list[Feature] = []
    commands: list[CommandChannel] = []
    for each in mapping.observations:
        for name in _channel_names(each, _select(columns, each, where).shape[1], where):
            measurements.append(MeasurementChannel(name, each.unit))
            features += [Feature(kind, name) for kind in each.features]
    for action in mapping.actions:
        names = _channel_names(action, _select(columns, action, where).shape[1], where)
        low, high = (_per_element(limit, len(names), action.column, where) for limit in (action.low, action.high))
        commands += [CommandChannel(name, action.unit, float(a), float(b)) for name, a, b in zip(names, low, high, strict=True)]
    return Contract(mapping.task, tuple(measurements), tuple(features), tuple(commands), mapping.rate_hz or rate_hz)


def map_episode(
    mapping: DatasetMapping, contract: Contract, columns: Columns, final: Columns | None, label: str, times_s: Any = None
) -> FoundEpisode | None:
    """Make an episode of the columns of a file.

    Args:
        mapping: what the columns mean.
        contract: as :func:`mapped_contract` gave it.
        columns: the T rows of the episode; each column (T,) or (T, D).
        final: the observed columns after the last action, (1,) or (1, D) each; None where the file does not have them.
        label: what to call the episode in errors.
        times_s: (T,) times of the rows, seconds, or None.

    Returns:
        The episode; None where nothing is left of it.
    """
    measured = np.concatenate([_select(columns, each, label) * each.scale for each in mapping.observations], axis=1)
    actions = np.concatenate([_scaled_action(columns, each, label) for each in mapping.actions], axis=1)
    flags = {name: _flags(columns, getattr(mapping, name), len(actions), label) for name in ("terminal", "timeout")}
    rewards = None if mapping.reward is None else _vector(columns, mapping.reward, label).astype(np.float32)
    notes: list[str] = []
    if final is not None:
        last = np.concatenate([_select(final, each, label) * each.scale for each in mapping.observations], axis=1)
        measured = np.concatenate([measured, last])
    elif mapping.final_observation == "repeat":
        measured = np.concatenate([measured, measured[-1:]])
        notes.append("last observation repeated: the file has none after the last action")
    else:
        what = "terminal action" if len(actions) and flags["terminal"][-1] else "action"
        notes.append(f"last {what} dropped: the file has no observation after it")
        actions, rewards = actions[:-1], None if rewards is None else rewards[:-1]
        flags = {name: values[:-1] for name, values in flags.items()}
    if not len(actions):
        return None
    terminations = flags["terminal"] & ~flags["timeout"]
    truncations = flags["timeout"].copy()
    truncations[-1] |= not terminations[-1]  # the file goes on with another episode, or ends
    episode = Episode(contract.compute_features(measured), actions.astype(np.float32), rewards, terminations, truncations)
    return FoundEpisode(label, episode, times_s, tuple(notes))


def require_columns(mapping: DatasetMapping, known: Mapping[str, Any] | list[str], where: str) -> None:
    """Raise UnknownNameError for the first column of the mapping that a file does not have."""
    for name in mapping.columns:
        if name not in known:
            raise unknown_name(f"column in the mapping of {where}:", name, known)


def _select(columns: Columns, spec: ObservationColumn | ActionColumn, where: str) -> NDArray[np.float64]:
    """Return the wanted elements (T, D) of a column."""
    values = _column(columns, spec.column, where)
    table = values.reshape(len(values), -1).astype(np.float64)
    if spec.elements is None:
        return table
    first, end = spec.elements
    if end > table.shape[1]:
        raise DatasetError(
            f"{where}: column {spec.column!r} has {table.shape[1]} elements; the mapping asks for {first} to {end}"
        )
    return table[:, first:end]


def _column(columns: Columns, name: str, where: str) -> NDArray[Any]:
    if name not in columns:
        raise unknown_name(f"column in the mapping of {where}:", name, columns)
    values = columns[name]
    if values.dtype.kind not in "fiub":
        raise DatasetError(f"{where}: column {name!r} holds {values.dtype}, which are no numbers; it is not read")
    if values.ndim not in (1, 2):
        raise DatasetError(f"{where}: column {name!r} must be a number or a vector per step, got shape {values.shape}")
    return values


def _vector(columns: Columns, name: str, where: str) -> NDArray[np.float64]:
    values = _column(columns, name, where)
    if values.size != len(values):
        raise DatasetError(f"{where}: column {name!r} must hold one number per step, got shape {values.shape}")
    return values.reshape(-1).astype(np.float64)


def _flags(columns: Columns, name: str | None, count: int, where: str) -> NDArray[np.bool_]:
    return np.zeros(count, np.bool_) if name is None else _vector(columns, name, where) != 0


def _scaled_action(columns: Columns, spec: ActionColumn, where: str) -> NDArray[np.float64]:
    """Return a column as actions (T, D), -1 at ``low`` and 1 at ``high``."""
    values = _select(columns, spec, where)
    low, high = (_per_element(limit, values.shape[1], spec.column, where) for limit in (spec.low, spec.high))
    scaled = (values - low) / (0.5 * (high - low)) - 1.0
    inside = np.clip(scaled, -1.0, 1.0)
    # what rounding moved out of the limits comes back; what is far outside is left for the check to refuse
    cut = spec.clip | (np.abs(scaled - inside) < 1e-4)
    return np.asarray(np.where(cut, inside, scaled))


def _per_element(limit: float | tuple[float, ...], count: int, column: str, where: str) -> NDArray[np.float64]:
    values = np.atleast_1d(np.asarray(limit, np.float64))
    if len(values) not in (1, count):
        raise DatasetError(f"{where}: column {column!r} has {count} elements, but {len(values)} limits in the mapping")
    return np.broadcast_to(values, (count,))


def _channel_names(spec: ObservationColumn | ActionColumn, count: int, where: str) -> tuple[str, ...]:
    if spec.names and len(spec.names) != count:
        raise DatasetError(f"{where}: column {spec.column!r} has {count} elements, but {len(spec.names)} names in the mapping")
    return spec.names or ((spec.column,) if count == 1 else tuple(f"{spec.column}_{index}" for index in range(count)))


def _check_elements(column: str, elements: tuple[int, int] | None, names: tuple[str, ...]) -> None:
    if elements is not None and not 0 <= elements[0] < elements[1]:
        raise ValueError(f"elements of column {column!r} must be [first, one after the last], got {list(elements)}")
    if len(set(names)) != len(names):
        raise ValueError(f"names of column {column!r} must be distinct, got {', '.join(names)}")
