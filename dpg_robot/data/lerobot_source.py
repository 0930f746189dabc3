"""Reading LeRobotDatasets: v3.0, by us or by others, and v2.1 with one file per episode.

Nothing of a file's own paths is followed: files are looked for where the format has them. PyArrow is only imported when a data
set is read.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dpg_robot.contract import Contract
from dpg_robot.data.datasets import DatasetError, Episode
from dpg_robot.data.episode_source import FoundEpisode
from dpg_robot.data.lerobot_format import (
    ACTION,
    DATA_PATH,
    FINAL_OBSERVATION,
    FORMAT_VERSION,
    INFO,
    OURS,
    REWARD,
    STATE,
    TERMINATED,
    TRUNCATED,
    pyarrow,
)
from dpg_robot.data.mapping import DatasetMapping, map_episode, mapped_contract, require_columns
from dpg_robot.errors import ContractError

_VERSIONS = ("v3.0", "v2.1", "v2.0")
_INDEX = ["data/chunk_index", "data/file_index", "episode_index", "length", "dataset_from_index"]


@dataclass(frozen=True)
class _Place:
    """Where the rows of an episode are."""

    episode: int
    path: Path
    first_row: int
    length: int
    final_observation: NDArray[np.float32] | None = None
    terminated: bool = False


class LeRobotSource:
    """The episodes of a LeRobotDataset; those that share a row group of a file make one part.

    Args:
        folder: the data set's folder, with ``meta/info.json`` in it.
        mapping: what its columns mean; without it the data set must be one that this project wrote.

    Raises:
        DatasetError: not there, damaged, of another version, without episodes, or of others and without a mapping.
        UnknownNameError: the mapping names a column that is not there.
    """

    def __init__(self, folder: str | Path, mapping: DatasetMapping | None = None) -> None:
        self.folder, self.mapping = Path(folder), mapping
        info = _read_json(self.folder / INFO)
        version = info.get("codebase_version")
        if version not in _VERSIONS:
            raise DatasetError(
                f"{folder} is a LeRobot data set of version {version!r}; versions that can be read: {', '.join(_VERSIONS)}"
            )
        self.features: dict[str, Any] = _mapping(info, "features", self.folder)
        places = _places_v3(self.folder) if version == "v3.0" else _places_v2(self.folder)
        if not places:
            raise DatasetError(f"{folder} has no episodes")
        self._parts = _group_by_row_group(places)
        rate_hz = info.get("fps")
        if isinstance(rate_hz, bool) or not isinstance(rate_hz, int | float) or not rate_hz > 0:
            raise DatasetError(f"{self.folder / INFO}: fps must be a positive number, got {rate_hz!r}")
        self.settings: dict[str, Any] = {"source": f"LeRobot {version}"}
        self.name = self.folder.name
        if mapping is None:
            self.contract = self._our_contract()
            self._columns = [STATE, ACTION, TRUNCATED, *([REWARD] if REWARD in self.features else [])]
        else:
            self._columns = list(mapping.columns)
            require_columns(mapping, _column_names(places[0].path), str(folder))
            first = _read_rows(places[0].path, self._columns, places[0].first_row, places[0].length)
            self.contract = mapped_contract(mapping, first, float(rate_hz), str(folder))

    def __len__(self) -> int:
        return len(self._parts)

    def read_part(self, index: int) -> list[FoundEpisode]:
        """Return the episodes of one row group; raises DatasetError where it is damaged."""
        places = self._parts[index]
        first, end = places[0].first_row, places[-1].first_row + places[-1].length
        times = ["timestamp"] if "timestamp" in _column_names(places[0].path) else []
        asked = list(dict.fromkeys([*self._columns, "episode_index", *times]))
        rows = _read_rows(places[0].path, asked, first, end - first)
        found = []
        for place in places:
            start = place.first_row - first
            own = {name: values[start : start + place.length] for name, values in rows.items()}
            label = f"{self.folder}, episode {place.episode}"
            if len(own["episode_index"]) != place.length or (own["episode_index"] != place.episode).any():
                raise DatasetError(f"{label}: rows of other episodes are in its place; the index of the data set is damaged")
            times_s = own["timestamp"].astype(np.float64) if times else None
            episode = self._episode(own, place, label, times_s)
            found += [episode] if episode is not None else []
        return found

    def _episode(
        self, rows: dict[str, NDArray[Any]], place: _Place, label: str, times_s: NDArray[np.float64] | None
    ) -> FoundEpisode | None:
        if self.mapping is not None:
            return map_episode(self.mapping, self.contract, rows, None, label, times_s)
        assert place.final_observation is not None
        states = rows[STATE].reshape(place.length, -1).astype(np.float32)
        if states.shape[1:] != place.final_observation.shape:
            raise DatasetError(
                f"{label}: the last observation has {place.final_observation.size} elements, others {states.shape[1]}"
            )
        terminations = np.zeros(place.length, np.bool_)
        terminations[-1] = place.terminated
        episode = Episode(
            observations=np.concatenate([states, place.final_observation[None]]),
            actions=rows[ACTION].reshape(place.length, -1).astype(np.float32),
            rewards=rows[REWARD].reshape(-1).astype(np.float32) if REWARD in rows else None,
            terminations=terminations,
            truncations=rows[TRUNCATED].reshape(-1).astype(np.bool_),
        )
        return FoundEpisode(label, episode, times_s)

    def _our_contract(self) -> Contract:
        if not (self.folder / OURS).is_file():
            shapes = ", ".join(f"{key} {feature.get('shape')}" for key, feature in self.features.items())
            raise DatasetError(
                f"{self.folder} was not written by this project, so its columns and the limits of its actions are not known; "
                f"give a mapping. It has: {shapes}"
            )
        ours = _read_json(self.folder / OURS)
        if ours.get("format_version") != FORMAT_VERSION:
            raise DatasetError(
                f"{self.folder / OURS} has version {ours.get('format_version')!r}; this program reads {FORMAT_VERSION}"
            )
        for place in (place for part in self._parts for place in part):
            if place.final_observation is None:
                raise DatasetError(
                    f"{self.folder}: the table of episodes lacks {FINAL_OBSERVATION!r}, as after a change by LeRobot's tools; "
                    "give a mapping"
                )
        try:
            self.name, self.settings = str(ours["name"]), dict(ours["settings"])
            return Contract.from_dict(ours["contract"])
        except (ContractError, KeyError, TypeError, ValueError) as error:
            raise DatasetError(f"{self.folder / OURS} cannot be used: {error}") from error


def _places_v3(folder: Path) -> list[_Place]:
    """Read where each episode is from the table of episodes, in the order of the files."""
    tables = [
        _read_columns(path, _INDEX, [FINAL_OBSERVATION, TERMINATED]) for path in sorted(folder.glob("meta/episodes/*/*.parquet"))
    ]
    rows = [row for table in tables for row in zip(*(table[name].astype(np.int64).tolist() for name in _INDEX), strict=True)]
    finals = [each for table in tables for each in table.get(FINAL_OBSERVATION, [None] * len(table["length"]))]
    terminated = [each for table in tables for each in table.get(TERMINATED, [False] * len(table["length"]))]
    first_of_file: dict[tuple[int, int], int] = {}
    for chunk, file, _, _, start in rows:
        first_of_file[chunk, file] = min(start, first_of_file.get((chunk, file), start))
    places = [
        _Place(
            episode=episode,
            path=folder / DATA_PATH.format(chunk_index=chunk, file_index=file),
            first_row=start - first_of_file[chunk, file],
            length=length,
            final_observation=None if final is None else np.atleast_1d(np.asarray(final, np.float32)),
            terminated=bool(end),
        )
        for (chunk, file, episode, length, start), final, end in zip(rows, finals, terminated, strict=True)
    ]
    return sorted((place for place in places if place.length > 0), key=lambda place: (place.path, place.first_row))


def _places_v2(folder: Path) -> list[_Place]:
    path = folder / "meta/episodes.jsonl"
    try:
        rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
        lengths = {int(row["episode_index"]): int(row["length"]) for row in rows}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DatasetError(f"{path} cannot be read: {type(error).__name__}: {error}") from error
    files = {int(file.stem.removeprefix("episode_")): file for file in folder.glob("data/chunk-*/episode_[0-9]*.parquet")}
    missing = sorted(set(lengths) - set(files))
    if missing:
        raise DatasetError(f"{folder}: the files of {len(missing)} episodes are missing, the first is episode {missing[0]}")
    return [_Place(episode, files[episode], 0, length) for episode, length in sorted(lengths.items()) if length > 0]


def _group_by_row_group(places: Sequence[_Place]) -> list[list[_Place]]:
    """Put episodes together that begin in the same row group, so that shuffled reading decodes no row group many times."""
    groups: dict[tuple[Path, int], list[_Place]] = {}
    ends: dict[Path, NDArray[np.int64]] = {}
    for place in places:
        if place.path not in ends:
            ends[place.path] = _row_group_ends(place.path)
        group = int(np.searchsorted(ends[place.path], place.first_row, side="right"))
        groups.setdefault((place.path, group), []).append(place)
    return list(groups.values())


def _open(path: Path) -> Any:
    arrow, parquet = pyarrow()
    try:
        return parquet.ParquetFile(path, page_checksum_verification=True)
    except (arrow.ArrowException, OSError, ValueError) as error:  # names that are no text are ValueErrors
        raise DatasetError(f"{path} cannot be read as parquet: {error}") from error


def _row_group_ends(path: Path) -> NDArray[np.int64]:
    with _open(path) as file:
        metadata = file.metadata
        return np.cumsum([metadata.row_group(index).num_rows for index in range(metadata.num_row_groups)], dtype=np.int64)


def _column_names(path: Path) -> list[str]:
    with _open(path) as file:
        return list(file.schema_arrow.names)


def _read_columns(path: Path, names: Sequence[str], optional: Sequence[str] = ()) -> dict[str, NDArray[Any]]:
    """Read whole columns of a file; ``optional`` ones where they are there."""
    known = _column_names(path)
    return _read_rows(path, [*names, *(name for name in optional if name in known)], 0, None)


def _read_rows(path: Path, names: Sequence[str], first: int, count: int | None) -> dict[str, NDArray[Any]]:
    """Read ``count`` rows from ``first``, decoding only the row groups that hold them."""
    arrow, _ = pyarrow()
    ends = _row_group_ends(path)
    end = int(ends[-1]) if count is None and len(ends) else first + (count or 0)
    if len(ends) and end > ends[-1]:
        raise DatasetError(
            f"{path} has {ends[-1]} rows; rows {first} to {end} are asked for. It is damaged or belongs to another data set"
        )
    groups = [index for index, last in enumerate(ends) if last > first and (index == 0 or ends[index - 1] < end)]
    before = int(ends[groups[0] - 1]) if groups and groups[0] else 0
    with _open(path) as file:
        for name in names:
            if name not in file.schema_arrow.names:
                raise DatasetError(f"{path} has no column {name!r}")
            _require_numbers(file.schema_arrow.field(name).type, name, path, arrow)
        try:
            table = file.read_row_groups(groups, columns=list(names), use_threads=False).slice(first - before, end - first)
            return {name: _to_numpy(table.column(name), name, path, arrow) for name in names}
        except (arrow.ArrowException, OSError) as error:  # also where the checksum of a page does not fit
            raise DatasetError(f"{path} is damaged: {error}") from error


def _require_numbers(kind: Any, name: str, path: Path, arrow: Any) -> None:
    """Refuse columns that hold no plain numbers: text, bytes (pickled objects, images), and types that others registered."""
    types = arrow.types
    while types.is_list(kind) or types.is_large_list(kind) or types.is_fixed_size_list(kind):
        kind = kind.value_type
    if not (types.is_integer(kind) or types.is_floating(kind) or types.is_boolean(kind)):
        raise DatasetError(f"{path}: column {name!r} holds {kind}, which are no numbers; it is not read")


def _to_numpy(column: Any, name: str, path: Path, arrow: Any) -> NDArray[Any]:
    rows, width = len(column), None
    if not rows:
        return np.zeros(0)
    while not (arrow.types.is_primitive(column.type)):
        if column.null_count:
            raise DatasetError(f"{path}: column {name!r} has {column.null_count} rows without a value")
        lengths = np.unique(
            np.concatenate([arrow.compute.list_value_length(chunk).to_numpy(zero_copy_only=False) for chunk in column.chunks])
        )
        if len(lengths) != 1 or width is not None:
            raise DatasetError(f"{path}: column {name!r} must hold vectors of one length, got lengths {lengths[:5].tolist()}")
        width = int(lengths[0])
        column = arrow.chunked_array([chunk.flatten() for chunk in column.chunks])
    if column.null_count:
        raise DatasetError(f"{path}: column {name!r} has {column.null_count} missing values")
    values = column.to_numpy()
    return np.asarray(values if width is None else values.reshape(rows, width))


def _read_json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise DatasetError(f"{path} cannot be read: {error}") from error
    if not isinstance(content, dict):
        raise DatasetError(f"{path} must hold a mapping, got {type(content).__name__}")
    return content


def _mapping(info: dict[str, Any], key: str, folder: Path) -> dict[str, Any]:
    value = info.get(key)
    if not (isinstance(value, dict) and all(isinstance(each, dict) for each in value.values())):
        raise DatasetError(f"{folder / INFO}: {key} must be a mapping of mappings")
    return value
