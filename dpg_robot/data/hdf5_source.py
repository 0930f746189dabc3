"""Reading HDF5 files of others: D4RL's flat tables, and robomimic's groups of demonstrations.

Only plain numbers that lie in the file itself are read: no objects, no links to other files. h5py is only imported when a file is
read.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dpg_robot.data.datasets import DatasetError
from dpg_robot.data.episode_source import FoundEpisode
from dpg_robot.data.mapping import ActionColumn, DatasetMapping, ObservationColumn, map_episode, mapped_contract, require_columns
from dpg_robot.errors import DpgError

_DEMONSTRATION = re.compile(r"demo_(\d+)")


class Hdf5Source:
    """The episodes of a D4RL or robomimic file, one at a time.

    The observation after the last action is taken from ``next_observations`` or ``next_obs`` where the file has them.

    Args:
        path: the file.
        mapping: what its columns mean; without it only D4RL's own names are known. Columns of robomimic are named as in a
            demonstration's group: ``obs/robot0_eef_pos``, ``actions``.
        rate_hz: control steps per second, where neither mapping nor file say.

    Raises:
        DatasetError: not there, damaged, of neither layout, without episodes, or robomimic without a mapping.
        UnknownNameError: the mapping names a column that is not there.
    """

    def __init__(self, path: str | Path, mapping: DatasetMapping | None = None, rate_hz: float = 20.0) -> None:
        self.path = Path(path)
        self.name = self.path.stem
        with self._open() as file:
            known = _numeric_columns(file)
            demonstrations = sorted({name.split("/")[1] for name in known if name.startswith("data/demo_")}, key=_number)
            if demonstrations:
                self.settings: dict[str, Any] = {"source": "robomimic HDF5"}
                self._episodes = [(f"data/{name}", 0, -1) for name in demonstrations]
                rate_hz = _robomimic_rate(file, rate_hz)
            elif "actions" in known:
                self.settings = {"source": "D4RL HDF5"}
                mapping = mapping or _d4rl_mapping(self.name, known)
                self._episodes = self._flat_episodes(file, mapping)
            else:
                raise DatasetError(
                    f"{path} has neither 'actions' (D4RL) nor 'data/demo_0' (robomimic); it has: {', '.join(known[:20])}"
                )
            group, first, end = self._episodes[0]
            prefix = f"{group}/" if group else ""
            known = [name.removeprefix(prefix) for name in known if name.startswith(prefix)]
            if mapping is None:
                raise DatasetError(f"{path} needs a mapping that says what is observed; it has: {', '.join(known)}")
            self.mapping = mapping
            require_columns(mapping, known, str(path))
            self._next = {name: f"next_{name}" for name in mapping.columns if f"next_{name}" in known}
            columns = {name: _read(file, prefix + name, first, end, str(path)) for name in mapping.columns}
        self.contract = mapped_contract(mapping, columns, rate_hz, str(path))

    def __len__(self) -> int:
        return len(self._episodes)

    def read_part(self, index: int) -> list[FoundEpisode]:
        """Return episode ``index``; raises DatasetError where it is damaged."""
        group, first, end = self._episodes[index]
        label = f"{self.path}, {group.removeprefix('data/') or f'episode {index} (rows {first} to {end})'}"
        prefix = f"{group}/" if group else ""
        with self._open() as file:
            columns = {name: _read(file, prefix + name, first, end, label) for name in self.mapping.columns}
            final = None
            if all(each.column in self._next for each in self.mapping.observations):
                final = {name: _read(file, prefix + after, first, end, label)[-1:] for name, after in self._next.items()}
        lengths = {name: len(values) for name, values in columns.items()}
        if len(set(lengths.values())) != 1:
            raise DatasetError(f"{label}: columns must have the same number of rows, got {lengths}")
        found = map_episode(self.mapping, self.contract, columns, final, label)
        return [] if found is None else [found]

    def _flat_episodes(self, file: Any, mapping: DatasetMapping) -> list[tuple[str, int, int]]:
        """Split D4RL's one long table where an episode ended or was cut."""
        ends = np.zeros(len(_find(file, "actions", str(self.path))), np.bool_)
        for name in (mapping.terminal, mapping.timeout):
            if name is not None:
                flags = _read(file, name, 0, -1, str(self.path)).reshape(-1)
                if len(flags) != len(ends):
                    raise DatasetError(f"{self.path}: {name!r} has {len(flags)} rows, 'actions' {len(ends)}")
                ends |= flags != 0
        if not len(ends):
            raise DatasetError(f"{self.path} has no episodes")
        ends[-1] = True
        stops = (np.flatnonzero(ends) + 1).tolist()
        return [("", first, stop) for first, stop in zip([0, *stops], stops, strict=False)]

    @contextmanager
    def _open(self) -> Iterator[Any]:
        try:
            import h5py
        except ImportError as error:
            raise DatasetError(f"HDF5 files need h5py ({error}); install it with: pip install h5py") from error
        try:
            with h5py.File(self.path, "r") as file:
                yield file
        except DpgError:
            raise
        except Exception as error:  # h5py raises anything on damaged files, ValueErrors and TypeErrors included
            raise DatasetError(f"{self.path} cannot be read as HDF5: {type(error).__name__}: {error}") from error


def _d4rl_mapping(name: str, known: list[str]) -> DatasetMapping:
    return DatasetMapping(
        task=name,
        observations=(ObservationColumn("observations"),),
        actions=(ActionColumn("actions"),),
        reward="rewards" if "rewards" in known else None,
        terminal="terminals" if "terminals" in known else None,
        timeout="timeouts" if "timeouts" in known else None,
    )


def _numeric_columns(file: Any) -> list[str]:
    """Return the names of all tables of numbers in a file; links are not followed."""
    import h5py

    names: list[str] = []

    def visit(name: str, item: Any) -> None:
        if isinstance(item, h5py.Dataset) and item.ndim >= 1:
            names.append(name)

    file.visititems(visit)
    return names


def _find(file: Any, name: str, where: str) -> Any:
    """Return a table of numbers that lies in the file itself."""
    import h5py

    item = file
    for part in name.split("/"):
        if not isinstance(item.get(part, getlink=True), h5py.HardLink):
            raise DatasetError(f"{where}: {name!r} is a link to somewhere else; links are not followed")
        item = item[part]
    if item.external or item.is_virtual:
        raise DatasetError(f"{where}: {name!r} takes its values from other files; these are not read")
    if item.dtype.kind not in "fiub":
        raise DatasetError(f"{where}: column {name!r} holds {item.dtype}, which are no numbers; it is not read")
    return item


def _read(file: Any, name: str, first: int, end: int, where: str) -> NDArray[Any]:
    item = _find(file, name, where)
    return np.asarray(item[first:] if end < 0 else item[first:end])


def _number(name: str) -> tuple[int, str]:
    match = _DEMONSTRATION.fullmatch(name)
    return (int(match[1]) if match else -1, name)


def _robomimic_rate(file: Any, rate_hz: float) -> float:
    """Return the control rate that a robomimic file says, else ``rate_hz``."""
    try:
        found = json.loads(file["data"].attrs["env_args"])["env_kwargs"]["control_freq"]
        return float(found) if float(found) > 0 else rate_hz
    except (KeyError, TypeError, ValueError):
        return rate_hz
