"""Data sets on disk, in the format of Minari (https://minari.farama.org), HDF5 variant.

A data set is the folder ``<root>/<id>``, where ``<root>`` is what Minari calls ``MINARI_DATASETS_PATH`` and ``<id>`` is such as
``cartpole-swingup/medium-v0``. What is written here, Minari's own tools read, and the other way round. All is local: nothing is
looked for on the network. Minari is only imported when a data set is read or written.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from dpg_robot.contract import CommandChannel, Contract, Feature, MeasurementChannel
from dpg_robot.data.datasets import Dataset, DatasetError, Episode
from dpg_robot.data.episode_source import FoundEpisode, read_all
from dpg_robot.errors import ContractError, did_you_mean
from dpg_robot.files import new_folder

_OURS = "dpg_robot"  # key of what we add to Minari's metadata
_FORMAT_VERSION = 1
_ID = re.compile(r"([-\w]+/)*[-\w]+-v\d+")


def write_dataset(dataset: Dataset, root: str | Path) -> Path:
    """Write a data set to ``root/<its name>`` and return that folder; it appears there only when it is whole.

    Rewards that are not known are written as NaN, as Minari's format wants a number there.

    Raises:
        DatasetError: a name that is no id of Minari, a folder that exists already, or Minari is not installed.
    """
    minari = _minari()
    from gymnasium.spaces import Box
    from minari.data_collector import EpisodeBuffer
    from minari.dataset.minari_storage import MinariStorage

    if not _ID.fullmatch(dataset.name):
        raise DatasetError(f"the name of a data set must be such as cartpole-swingup/medium-v0, got {dataset.name!r}")
    folder = Path(root).resolve() / dataset.name  # Minari writes a relative path below itself
    if folder.exists():
        raise DatasetError(f"{folder} exists already; remove it, or choose another name or version")
    folder.parent.mkdir(parents=True, exist_ok=True)
    contract = dataset.contract
    with new_folder(folder) as temporary:
        storage = MinariStorage.new(
            temporary / "data",
            observation_space=Box(-np.inf, np.inf, (contract.num_features,), np.float32),
            action_space=Box(-1.0, 1.0, (contract.num_actions,), np.float32),
            data_format="hdf5",
        )
        ours = {"format_version": _FORMAT_VERSION, "contract": contract.to_dict(), "settings": dataset.settings}
        storage.update_metadata(
            {
                "dataset_id": dataset.name,
                "minari_version": minari.__version__,
                "algorithm_name": str(dataset.settings.get("behaviour", "unknown")),
                "description": dataset.describe(),
                _OURS: ours,
            }
        )
        storage.update_episodes(
            EpisodeBuffer(
                observations=episode.observations,
                actions=episode.actions,
                rewards=(episode.rewards if episode.rewards is not None else np.full(len(episode), np.nan, np.float32)),
                terminations=episode.terminations,
                truncations=episode.truncations,
                infos={},
            )
            for episode in dataset.episodes
        )
    return folder


def read_dataset(folder: str | Path, rate_hz: float = 20.0) -> Dataset:
    """Read a data set from its folder ``root/id``, whoever wrote it.

    A data set of somebody else gets a contract with nameless channels: its actions are scaled to [-1, 1] by the limits of its
    action space. Rewards count as not known where all are NaN.

    Args:
        folder: the data set's folder.
        rate_hz: control steps per second, for a data set that does not say.

    Raises:
        DatasetError: not there, damaged, of spaces that are not plain vectors, or with values that cannot be used.
    """
    return read_all(MinariSource(folder, rate_hz))[0]


class MinariSource:
    """The episodes of a data set of Minari, one at a time.

    Args:
        folder: the data set's folder ``root/id``.
        rate_hz: control steps per second, for a data set that does not say.

    Raises:
        DatasetError: as :func:`read_dataset`.
    """

    def __init__(self, folder: str | Path, rate_hz: float = 20.0) -> None:
        self.folder = Path(folder)
        minari = _minari()
        metadata = _read_metadata(self.folder)
        self.name = str(metadata.get("dataset_id", self.folder.name))
        with self._named_errors():
            self._stored = minari.MinariDataset(self.folder.resolve() / "data")
            self._count = int(self._stored.total_episodes)
        self.contract = _contract(metadata, self._stored, self.name, rate_hz)
        ours = metadata.get(_OURS)
        self.settings: dict[str, Any] = dict(ours["settings"]) if ours else {"source": self.name}
        space = self._stored.action_space
        self._limits: tuple[Any, Any] = (-1.0, 1.0) if ours else (space.low, space.high)
        self._without_rewards: bool | None = None

    def __len__(self) -> int:
        return self._count

    def read_part(self, index: int) -> list[FoundEpisode]:
        """Return episode ``index``; raises DatasetError where it is damaged."""
        if self._without_rewards is None:
            self._without_rewards = all(np.isnan(self._read(each).rewards).all() for each in range(self._count))
        row = self._read(index)
        return [
            FoundEpisode(f"{self.name}, episode {index}", _episode(row, self._limits[0], self._limits[1], self._without_rewards))
        ]

    def _read(self, index: int) -> Any:
        with self._named_errors():
            return next(iter(self._stored.iterate_episodes([index])))

    @contextmanager
    def _named_errors(self) -> Iterator[None]:
        try:
            yield
        except (ImportError, MemoryError):
            raise
        except Exception as error:  # h5py and Minari raise anything, assertions and KeyErrors included, on damaged files
            raise DatasetError(f"{self.folder} cannot be read as a Minari data set: {type(error).__name__}: {error}") from error


def list_datasets(root: str | Path) -> list[str]:
    """Return the ids of all data sets below a root folder, sorted."""
    root = Path(root)
    return sorted(item.parent.parent.relative_to(root).as_posix() for item in root.glob("**/data/metadata.json"))


def _minari() -> Any:
    try:
        import h5py  # noqa: F401
        import minari
    except ImportError as error:
        raise DatasetError(f"data sets need Minari with HDF5 ({error}); install it with: pip install 'minari[hdf5]'") from error
    return minari


def _read_metadata(folder: Path) -> dict[str, Any]:
    file = folder / "data" / "metadata.json"
    if not file.is_file():
        root = next((each for each in (folder, *folder.parents) if each.is_dir()), folder)
        known = list_datasets(root)[:20] if root != Path(root.anchor) else []
        wanted = folder.relative_to(root).as_posix()
        listing = f"; in {root} there are: {', '.join(known)}" if known else ""
        raise DatasetError(f"{folder} is no Minari data set, it has no data/metadata.json{listing}.{did_you_mean(wanted, known)}")
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise DatasetError(f"{file} cannot be read: {error}") from error
    if not isinstance(content, dict):
        raise DatasetError(f"{file} must hold a mapping, got {type(content).__name__}")
    version = (content.get(_OURS) or {}).get("format_version", _FORMAT_VERSION)
    if version != _FORMAT_VERSION:
        raise DatasetError(f"{folder} has format version {version!r}; this program reads version {_FORMAT_VERSION}")
    return content


def _contract(metadata: dict[str, Any], stored: Any, name: str, rate_hz: float) -> Contract:
    """Return the contract that is stored, or one that says what the spaces say."""
    if _OURS in metadata:
        try:
            return Contract.from_dict(metadata[_OURS]["contract"])
        except (ContractError, KeyError, TypeError) as error:
            raise DatasetError(f"{name}: the contract in its metadata cannot be used: {error}") from error
    for what, space in (("observation", stored.observation_space), ("action", stored.action_space)):
        if type(space).__name__ != "Box" or len(space.shape) != 1:
            raise DatasetError(f"{name}: {what}s must be plain vectors (a Box with one axis), got {space}")
    low, high = stored.action_space.low, stored.action_space.high
    if not (np.isfinite(low).all() and np.isfinite(high).all()):
        raise DatasetError(f"{name}: the action space must have finite limits, got {stored.action_space}")
    names = [f"observation_{index}" for index in range(stored.observation_space.shape[0])]
    return Contract(
        task=name,
        measurements=tuple(MeasurementChannel(each, "unknown") for each in names),
        features=tuple(Feature("identity", each) for each in names),
        commands=tuple(
            CommandChannel(f"action_{index}", "unknown", float(low[index]), float(high[index])) for index in range(len(low))
        ),
        rate_hz=rate_hz,
    )


def _episode(row: Any, low: Any, high: Any, without_rewards: bool) -> Episode:
    actions = (np.asarray(row.actions, np.float64) - low) / (0.5 * (np.asarray(high) - low)) - 1.0
    inside = np.clip(actions, -1.0, 1.0)
    # what rounding moved out of the limits comes back; what is far outside is left for the check to refuse
    actions = np.where(np.abs(actions - inside) < 1e-4, inside, actions)
    return Episode(
        observations=np.asarray(row.observations, dtype=np.float32),
        actions=actions.astype(np.float32),
        rewards=None if without_rewards else np.asarray(row.rewards, dtype=np.float32),
        terminations=np.asarray(row.terminations, dtype=np.bool_),
        truncations=np.asarray(row.truncations, dtype=np.bool_),
    )
