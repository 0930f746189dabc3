"""Reading logs of others in MCAP: channels in protobuf, ROS 2's CDR or JSON, put onto the grid of a control rate.

A value is named by its topic and the path of its field, as in Foxglove: ``/odom.twist.twist.linear.x``, ``/joints.position[2]``.
The decoders are only imported when a file is read.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from mcap.reader import make_reader
from mcap.records import Schema
from numpy.typing import NDArray

from dpg_robot.data.datasets import DatasetError
from dpg_robot.data.episode_source import FoundEpisode
from dpg_robot.data.mapping import DatasetMapping, map_episode, mapped_contract
from dpg_robot.errors import DpgError, unknown_name

_FIELD = re.compile(r"\.([A-Za-z]\w*)|\[(\d+)\]")


class McapSource:
    """The episodes of a foreign MCAP file: one part, as its messages are read at once.

    At each tick of the grid an observation is the newest message that was there by then, and an action the one in effect
    ``resampling.action_delay_s`` later: nothing comes from the future of its step. Rewards and ends are those at the end of a
    step.

    Args:
        path: the file.
        mapping: topics and fields that are observations and actions, the rate of the grid, and what a gap does.

    Raises:
        DatasetError: damaged, no rate, a topic without messages, a gap, or fields that are no numbers.
        UnknownNameError: a topic or field that is not there.
    """

    def __init__(self, path: str | Path, mapping: DatasetMapping) -> None:
        if mapping.rate_hz is None:
            raise DatasetError(
                f"{path}: messages come at times of their own; say in the mapping with rate_hz which grid to put them on"
            )
        self.path, self.mapping = Path(path), mapping
        self.name = self.path.stem
        self.settings: dict[str, Any] = {"source": "MCAP"}
        self._series = _read_series(self.path, mapping.columns, mapping.resampling.time)
        first = {name: values[:1] for name, (_, values) in self._series.items()}
        self.contract = mapped_contract(mapping, first, mapping.rate_hz, str(path))

    def __len__(self) -> int:
        return 1

    def read_part(self, index: int) -> list[FoundEpisode]:
        """Return all episodes; raises DatasetError at a gap that is to be refused."""
        ticks_ns = self._grid()
        observed = list(dict.fromkeys(each.column for each in self.mapping.observations))
        acted = list(dict.fromkeys(each.column for each in self.mapping.actions))
        paid = [name for name in (self.mapping.reward, self.mapping.terminal, self.mapping.timeout) if name is not None]
        delay_ns = round(self.mapping.resampling.action_delay_s * 1e9)
        before = {name: self._hold(name, ticks_ns) for name in observed}
        action = {name: self._hold(name, ticks_ns + delay_ns) for name in acted}
        after = {name: self._hold(name, ticks_ns[1:]) for name in paid}
        fresh = np.logical_and.reduce([age for _, age in (*before.values(), *action.values())])
        found = []
        for first, last in self._stretches(fresh, {name: values for name, (values, _) in after.items()}):
            columns = {name: values[first:last] for name, (values, _) in (before | action | after).items()}
            final = {name: values[last : last + 1] for name, (values, _) in before.items()}
            times_s = ticks_ns[first : last + 1] / 1e9
            label = f"{self.path}, from {(ticks_ns[first] - ticks_ns[0]) / 1e9:.3f} s"
            episode = map_episode(self.mapping, self.contract, columns, final, label, times_s)
            found += [episode] if episode is not None else []
        return found

    def _grid(self) -> NDArray[np.int64]:
        """Return the ticks, nanoseconds, from when all channels have begun until the first has ended."""
        begin, end = max(times[0] for times, _ in self._series.values()), min(times[-1] for times, _ in self._series.values())
        assert self.mapping.rate_hz is not None
        count = int((end - begin) * self.mapping.rate_hz / 1e9) + 1 if end >= begin else 0
        if count < 2:
            raise DatasetError(
                f"{self.path}: the channels of the mapping have less than two steps of {1 / self.mapping.rate_hz:g} s in common"
            )
        return int(begin) + np.round(np.arange(count) * (1e9 / self.mapping.rate_hz)).astype(np.int64)

    def _hold(self, name: str, ticks_ns: NDArray[np.int64]) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
        """Return the newest value at each tick, and whether it is young enough; raises DatasetError at a gap to be refused."""
        times_ns, values = self._series[name]
        newest = np.searchsorted(times_ns, ticks_ns, side="right") - 1
        age_s = (ticks_ns - times_ns[newest]) / 1e9
        settings = self.mapping.resampling
        fresh = age_s <= settings.max_age_s
        if not fresh.all() and settings.gaps == "refuse":
            at = int(np.argmin(fresh))
            raise DatasetError(
                f"{self.path}: {name} has a gap: no message for {age_s[at]:.3f} s at {(ticks_ns[at] - ticks_ns[0]) / 1e9:.3f} s, "
                f"{settings.max_age_s:g} s is allowed; {np.count_nonzero(~fresh)} of {len(fresh)} ticks are concerned. "
                "Set resampling.gaps: cut to begin a new episode there, or raise resampling.max_age_s"
            )
        return values[newest], fresh

    def _stretches(self, fresh: NDArray[np.bool_], after: dict[str, NDArray[np.float64]]) -> list[tuple[int, int]]:
        """Return (first, last) ticks of the stretches without a gap, which end where an end is said for the first time."""
        ends = np.zeros(len(fresh), np.bool_)  # of the step before the tick
        for name in (self.mapping.terminal, self.mapping.timeout):
            if name is not None:
                flags = np.concatenate([[False], after[name].reshape(len(after[name]), -1).any(axis=1)])
                ends[1:] |= flags[1:] & ~flags[:-1]
        stretches: list[tuple[int, int]] = []
        first: int | None = None
        for tick, good in enumerate(fresh):
            if first is not None and (not good or ends[tick] or tick == len(fresh) - 1):
                stretches.append((first, tick if good else tick - 1))
                first = None
            if first is None and good:
                first = tick
        return [(a, b) for a, b in stretches if b - a >= self.mapping.resampling.min_steps]


class _JsonDecoderFactory:
    """Decodes messages in JSON with the standard library."""

    def decoder_for(self, message_encoding: str, schema: Schema | None) -> Callable[[bytes], Any] | None:
        return json.loads if message_encoding == "json" else None


def _read_series(path: Path, names: Sequence[str], time: str) -> dict[str, tuple[NDArray[np.int64], NDArray[np.float64]]]:
    """Return times (n,) in nanoseconds, rising, and values (n, D) of each named field."""
    found: dict[str, tuple[list[int], list[NDArray[np.float64]]]] = {name: ([], []) for name in names}
    try:
        with path.open("rb") as file:
            reader = make_reader(file, decoder_factories=_decoders())
            summary = reader.get_summary()
            topics = sorted({channel.topic for channel in summary.channels.values()}) if summary else []
            fields = {name: _split(name, topics, path) for name in names}
            wanted = sorted({topic for topic, _ in fields.values()})
            for _, channel, message, decoded in reader.iter_decoded_messages(topics=wanted):
                for name, (topic, steps) in fields.items():
                    if topic == channel.topic:
                        found[name][0].append(message.log_time if time == "log" else message.publish_time)
                        found[name][1].append(_value(decoded, steps, name, path))
    except DpgError:
        raise
    except Exception as error:  # readers and decoders raise anything on damaged files, and ask for absurd amounts of memory
        raise DatasetError(
            f"{path} cannot be read as MCAP: {type(error).__name__} {error}; "
            "a file that is cut off can be mended with 'mcap recover'"
        ) from error
    return {name: _series(name, times, values, path) for name, (times, values) in found.items()}


def _series(
    name: str, times: list[int], values: list[NDArray[np.float64]], path: Path
) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    if not times:
        raise DatasetError(f"{path}: there is no message with {name}")
    widths = {len(value) for value in values}
    if len(widths) > 1:
        raise DatasetError(
            f"{path}: {name} changes its length between messages: {sorted(widths)[:5]}; name single elements, as {name}[0]"
        )
    times_ns = np.array(times, np.int64)
    order = np.argsort(times_ns, kind="stable")
    return times_ns[order], np.array(values)[order]


def _decoders() -> list[Any]:
    try:
        from mcap_protobuf.decoder import DecoderFactory as ProtobufDecoderFactory
        from mcap_ros2.decoder import DecoderFactory as Ros2DecoderFactory
    except ImportError as error:
        raise DatasetError(
            f"foreign MCAP files need their decoders ({error}); "
            "install them with: pip install mcap-protobuf-support mcap-ros2-support"
        ) from error
    return [_JsonDecoderFactory(), ProtobufDecoderFactory(), Ros2DecoderFactory()]


def _split(name: str, topics: Sequence[str], path: Path) -> tuple[str, list[str | int]]:
    """Split ``/topic.field.part[0]`` into the topic and the steps to the field."""
    matching = [topic for topic in topics if name.startswith((f"{topic}.", f"{topic}["))]
    if not matching:
        raise unknown_name(f"topic in the mapping of {path}:", name.split(".")[0], topics)
    topic = max(matching, key=len)
    rest, steps = name.removeprefix(topic), []
    for match in _FIELD.finditer(rest):
        steps.append(match[1] if match[1] is not None else int(match[2]))
    if "".join(f".{step}" if isinstance(step, str) else f"[{step}]" for step in steps) != rest:
        raise DatasetError(f"{name!r} must be a topic and a field, such as /joints.position[2]; {rest!r} cannot be read")
    return topic, steps


def _value(message: Any, steps: Sequence[str | int], name: str, path: Path) -> NDArray[np.float64]:
    """Return the field of a message as numbers (D,)."""
    value = message
    for step in steps:
        known = _field_names(value)
        if isinstance(step, str):
            if step not in known:
                raise unknown_name(f"field of {name} in {path}:", step, known)
            value = value[step] if isinstance(value, dict) else getattr(value, step)
        else:
            if known or not hasattr(value, "__len__") or isinstance(value, str | bytes) or step >= len(value):
                raise DatasetError(f"{path}: {name} has no element [{step}] in one of its messages")
            value = value[step]
    try:
        if isinstance(value, str | bytes) or _field_names(value):
            raise TypeError
        return np.atleast_1d(np.asarray(value, dtype=np.float64)).reshape(-1)
    except (TypeError, ValueError):
        inside = ", ".join(_field_names(value))
        raise DatasetError(f"{path}: {name} is no number{f'; it has the fields {inside}' if inside else ''}") from None


def _field_names(value: Any) -> list[str]:
    """Return the names of the fields of a decoded message; none for a plain value."""
    if isinstance(value, dict):
        return list(value)
    if hasattr(value, "DESCRIPTOR"):
        return [field.name for field in value.DESCRIPTOR.fields]
    return (
        [name for name in getattr(type(value), "__slots__", ()) if not name.startswith("_")]
        if not isinstance(value, np.ndarray)
        else []
    )
