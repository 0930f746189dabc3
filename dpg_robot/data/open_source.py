"""Opening whatever holds episodes: a robot log, a data set of Minari or LeRobot, an HDF5 or MCAP file of others."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from dpg_robot.data.datasets import DatasetError
from dpg_robot.data.episode_source import EpisodeSource
from dpg_robot.data.hdf5_source import Hdf5Source
from dpg_robot.data.lerobot_format import INFO
from dpg_robot.data.lerobot_source import LeRobotSource
from dpg_robot.data.log_format import SEGMENT_PATTERN
from dpg_robot.data.log_source import LogSource, RewardFunction
from dpg_robot.data.mapping import DatasetMapping
from dpg_robot.data.mcap_source import McapSource
from dpg_robot.data.minari_format import MinariSource, list_datasets
from dpg_robot.data.robot_log import OnDamage
from dpg_robot.errors import did_you_mean

Kind = Literal["log", "minari", "lerobot", "hdf5", "mcap"]

_MAGIC: dict[bytes, Kind] = {b"\x89HDF\r\n\x1a\n": "hdf5", b"\x89MCAP0\r\n": "mcap"}


def find_kind(path: str | Path) -> Kind:
    """Return what is at ``path``, by what is in it and not by its name; raises DatasetError where it is nothing known."""
    path = Path(path)
    if path.is_file():
        with path.open("rb") as file:
            start = file.read(8)
        if start in _MAGIC:
            return _MAGIC[start]
        raise DatasetError(f"{path} is neither an HDF5 nor an MCAP file; it begins with {start!r}. It may be damaged")
    if (path / "data" / "metadata.json").is_file():
        return "minari"
    if (path / INFO).is_file():
        return "lerobot"
    if any(path.glob(SEGMENT_PATTERN)) or any(path.glob(f"*/{SEGMENT_PATTERN}")):
        return "log"
    if not path.exists():
        siblings = [each.name for each in path.parent.iterdir()] if path.parent.is_dir() else []
        raise DatasetError(f"{path} does not exist.{did_you_mean(path.name, siblings)}")
    inside = ", ".join(list_datasets(path)[:10])
    raise DatasetError(
        f"{path} holds no robot log, no data set of Minari (data/metadata.json) and none of LeRobot (meta/info.json)"
        + (f"; below it there are: {inside}" if inside else "")
    )


def open_source(
    path: str | Path,
    mapping: DatasetMapping | None = None,
    *,
    reward: RewardFunction | None = None,
    rate_hz: float = 20.0,
    on_damage: OnDamage = "raise",
) -> EpisodeSource:
    """Open what is at ``path`` for reading part by part.

    Args:
        path: a folder or file of any kind that is known.
        mapping: what the columns mean, for files of others; needed for MCAP, robomimic and LeRobot data sets of others.
        reward: rewards of a robot log.
        rate_hz: control steps per second, where neither the file nor the mapping say.
        on_damage: what damage of a robot log does.

    Raises:
        DatasetError: nothing there, damaged, or a mapping where there should be none or the other way round.
        LogError: damage of a robot log.
    """
    kind = find_kind(path)
    if mapping is not None and kind in ("log", "minari"):
        raise DatasetError(f"{path} ({kind}) says itself what its columns mean; leave the mapping out")
    if kind == "log":
        return LogSource(path, reward, on_damage=on_damage)
    if kind == "minari":
        return MinariSource(path, rate_hz)
    if kind == "lerobot":
        return LeRobotSource(path, mapping)
    if kind == "hdf5":
        return Hdf5Source(path, mapping, rate_hz)
    if mapping is None:
        raise DatasetError(f"{path} is an MCAP file of others; give a mapping that says which topics and fields are what")
    return McapSource(path, mapping)
