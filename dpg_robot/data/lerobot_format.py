"""Writing data sets as LeRobotDataset v3.0 (https://github.com/huggingface/lerobot): one parquet table of frames, and metadata.

What the format has no place for is kept where LeRobot's own loader accepts or ignores it: the observation after an episode's last
action and whether it terminated as two more columns of the table of episodes, contract and settings in a file of ours. PyArrow is
only imported when a data set is written.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dpg_robot.data.datasets import Dataset, DatasetError, Episode
from dpg_robot.files import new_folder

CODEBASE_VERSION = "v3.0"
FORMAT_VERSION = 1
OURS = "meta/dpg_robot.json"  # LeRobot reads only files whose names it knows
INFO = "meta/info.json"
DATA_PATH = "data/chunk-{chunk_index:03d}/file-{file_index:03d}.parquet"
EPISODES_PATH = "meta/episodes/chunk-{chunk_index:03d}/file-{file_index:03d}.parquet"
STATE, ACTION, REWARD, DONE, TRUNCATED = "observation.state", "action", "next.reward", "next.done", "next.truncated"
FINAL_OBSERVATION, TERMINATED = "dpg_robot.final_observation", "dpg_robot.terminated"

_FILES_PER_CHUNK = 1000
_QUANTILES = (0.01, 0.10, 0.50, 0.90, 0.99)
_DTYPES = {"timestamp": "float32", "frame_index": "int64", "episode_index": "int64", "index": "int64", "task_index": "int64"}


def write_lerobot(dataset: Dataset, folder: str | Path, *, file_megabytes: float = 100.0) -> Path:
    """Write a data set as LeRobotDataset v3.0; the folder appears only when it is whole.

    One episode is one row group, so that each can be read by itself. ``next.done`` is true where an episode ended for any reason,
    ``next.truncated`` where it was cut, as LeRobot's own recorder has it.

    Args:
        dataset: what to write.
        folder: the data set's folder; must not exist.
        file_megabytes: size of a data file, in memory, beyond which the next one is begun.

    Raises:
        DatasetError: the folder exists, or PyArrow is not installed.
    """
    arrow, parquet = pyarrow()
    folder = Path(folder)
    if folder.exists():
        raise DatasetError(f"{folder} exists already; remove it, or choose another name")
    folder.parent.mkdir(parents=True, exist_ok=True)
    features = _features(dataset)
    frames = [_frames(episode, number, dataset) for number, episode in enumerate(dataset.episodes)]
    starts = np.concatenate([[0], np.cumsum([len(episode) for episode in dataset.episodes])])
    for each, start in zip(frames, starts, strict=False):
        each["index"] = np.arange(start, start + len(each["index"]))
    with new_folder(folder) as temporary:
        places = _write_frames(frames, features, temporary, file_megabytes)
        _write_json(temporary / INFO, _info(dataset, features, file_megabytes))
        joined = {key: np.concatenate([each[key] for each in frames]) for key in features}
        _write_json(temporary / "meta/stats.json", {key: _statistics(values) for key, values in joined.items()})
        tasks = arrow.table({"task_index": arrow.array([0], arrow.int64()), "task": [dataset.contract.task]})
        parquet.write_table(tasks.replace_schema_metadata(_PANDAS_INDEX), temporary / "meta/tasks.parquet")
        path = temporary / EPISODES_PATH.format(chunk_index=0, file_index=0)
        path.parent.mkdir(parents=True)
        parquet.write_table(
            arrow.table(_episode_columns(dataset, frames, places, starts.tolist(), arrow)), path, write_page_checksum=True
        )
        ours = {
            "format_version": FORMAT_VERSION,
            "name": dataset.name,
            "contract": dataset.contract.to_dict(),
            "settings": dataset.settings,
        }
        _write_json(temporary / OURS, ours)
    return folder


def pyarrow() -> tuple[Any, Any]:
    """Return the modules pyarrow and pyarrow.parquet; raises DatasetError where they are not installed."""
    try:
        import pyarrow
        import pyarrow.compute
        import pyarrow.parquet
    except ImportError as error:
        raise DatasetError(f"LeRobot data sets need PyArrow ({error}); install it with: pip install 'pyarrow>=18'") from error
    return pyarrow, pyarrow.parquet


def _features(dataset: Dataset) -> dict[str, dict[str, Any]]:
    contract = dataset.contract
    states = [
        feature.channel if feature.kind == "identity" else f"{feature.kind}({feature.channel})" for feature in contract.features
    ]
    features: dict[str, dict[str, Any]] = {
        STATE: {"dtype": "float32", "shape": [contract.num_features], "names": states},
        ACTION: {"dtype": "float32", "shape": [contract.num_actions], "names": list(contract.command_names)},
    }
    if dataset.has_rewards:
        features[REWARD] = {"dtype": "float32", "shape": [1], "names": None}
    features |= {key: {"dtype": "bool", "shape": [1], "names": None} for key in (DONE, TRUNCATED)}
    return features | {key: {"dtype": dtype, "shape": [1], "names": None} for key, dtype in _DTYPES.items()}


def _frames(episode: Episode, number: int, dataset: Dataset) -> dict[str, NDArray[Any]]:
    """Return the columns (T,) or (T, D) of an episode's frames; the index is filled in later."""
    steps = np.arange(len(episode))
    columns: dict[str, NDArray[Any]] = {STATE: episode.observations[:-1], ACTION: episode.actions}
    if episode.rewards is not None:
        columns[REWARD] = episode.rewards
    columns |= {DONE: episode.terminations | episode.truncations, TRUNCATED: episode.truncations}
    columns |= {"timestamp": (steps / dataset.contract.rate_hz).astype(np.float32), "frame_index": steps}
    return columns | {"episode_index": np.full_like(steps, number), "index": steps, "task_index": np.zeros_like(steps)}


def _write_frames(
    frames: Sequence[dict[str, NDArray[Any]]], features: dict[str, Any], folder: Path, file_megabytes: float
) -> list[tuple[int, int]]:
    """Write one row group per episode; return (chunk, file) of each episode."""
    arrow, parquet = pyarrow()
    places: list[tuple[int, int]] = []
    writer, written, count = None, 0.0, 0
    for columns in frames:
        table = arrow.table({key: _to_arrow(columns[key], feature, arrow) for key, feature in features.items()})
        if writer is not None and written + table.nbytes > file_megabytes * 2**20:
            writer.close()
            writer, written = None, 0.0
        if writer is None:
            place = divmod(count, _FILES_PER_CHUNK)
            path = folder / DATA_PATH.format(chunk_index=place[0], file_index=place[1])
            path.parent.mkdir(parents=True, exist_ok=True)
            writer, count = parquet.ParquetWriter(path, table.schema, write_page_checksum=True), count + 1
        writer.write_table(table)
        written += table.nbytes
        places.append(place)
    if writer is not None:
        writer.close()
    return places


def _to_arrow(values: NDArray[Any], feature: dict[str, Any], arrow: Any) -> Any:
    """Return a column; LeRobot wants vectors of one element as plain numbers."""
    flat = arrow.array(np.ascontiguousarray(values.reshape(-1)), arrow.from_numpy_dtype(np.dtype(feature["dtype"])))
    size = feature["shape"][0]
    return flat if size == 1 else arrow.FixedSizeListArray.from_arrays(flat, size)


def _info(dataset: Dataset, features: dict[str, Any], file_megabytes: float) -> dict[str, Any]:
    rate_hz, episodes = dataset.contract.rate_hz, len(dataset.episodes)
    return {
        "codebase_version": CODEBASE_VERSION,
        "robot_type": None,
        "total_episodes": episodes,
        "total_frames": len(dataset),
        "total_tasks": 1,
        "chunks_size": _FILES_PER_CHUNK,
        "data_files_size_in_mb": max(1, round(file_megabytes)),
        "video_files_size_in_mb": 200,
        "fps": int(rate_hz) if float(rate_hz).is_integer() else rate_hz,
        "splits": {"train": f"0:{episodes}"},
        "data_path": DATA_PATH,
        "video_path": None,
        "features": features,
    }


def _statistics(values: NDArray[Any]) -> dict[str, list[float]]:
    table = values.reshape(len(values), -1).astype(np.float64)
    quantiles = {
        f"q{round(100 * q):02d}": row.tolist() for q, row in zip(_QUANTILES, np.quantile(table, _QUANTILES, axis=0), strict=True)
    }
    found = {name: getattr(table, name)(axis=0).tolist() for name in ("min", "max", "mean", "std")}
    return {**found, "count": [len(table)], **quantiles}


def _episode_columns(
    dataset: Dataset, frames: Sequence[dict[str, NDArray[Any]]], places: list[tuple[int, int]], starts: list[int], arrow: Any
) -> dict[str, Any]:
    """Return the columns of the table of episodes: LeRobot's, statistics included, and our two."""
    count = len(dataset.episodes)
    columns: dict[str, Any] = {
        "episode_index": list(range(count)),
        "tasks": [[dataset.contract.task]] * count,
        "length": [len(episode) for episode in dataset.episodes],
        "data/chunk_index": [chunk for chunk, _ in places],
        "data/file_index": [file for _, file in places],
        "dataset_from_index": starts[:-1],
        "dataset_to_index": starts[1:],
        "meta/episodes/chunk_index": [0] * count,
        "meta/episodes/file_index": [0] * count,
    }
    statistics = [{key: _statistics(values) for key, values in each.items()} for each in frames]
    for key in statistics[0]:
        columns |= {f"stats/{key}/{name}": [each[key][name] for each in statistics] for name in statistics[0][key]}
    finals = [episode.observations[-1] for episode in dataset.episodes]
    columns[FINAL_OBSERVATION] = arrow.array([final.tolist() for final in finals], arrow.list_(arrow.float32()))
    columns[TERMINATED] = [bool(episode.terminations[-1]) for episode in dataset.episodes]
    return columns


def _write_json(path: Path, values: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(values, indent=4) + "\n", encoding="utf-8")


# LeRobot reads the tasks with pandas, as an index of texts; pandas learns from this which column is the index.
_PANDAS_INDEX = {
    b"pandas": json.dumps(
        {
            "index_columns": ["task"],
            "column_indexes": [],
            "columns": [
                {
                    "name": "task_index",
                    "field_name": "task_index",
                    "pandas_type": "int64",
                    "numpy_type": "int64",
                    "metadata": None,
                },
                {"name": "task", "field_name": "task", "pandas_type": "unicode", "numpy_type": "object", "metadata": None},
            ],
            "pandas_version": "2.0.0",
        }
    ).encode()
}
