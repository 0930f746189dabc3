"""Data sets as comma-separated values, for spreadsheets and the like; only written, as the text has no place for a contract."""

from __future__ import annotations

import csv
import io
from pathlib import Path

from dpg_robot.data.datasets import Dataset, DatasetError
from dpg_robot.files import write_atomically


def write_csv(dataset: Dataset, path: str | Path) -> Path:
    """Write one row per observation, with the action that followed it.

    The last observation of an episode has a row of its own with empty action. Numbers have as many digits as it takes to read the
    same float32 back.

    Raises:
        DatasetError: the file exists.
    """
    path = Path(path)
    if path.exists():
        raise DatasetError(f"{path} exists already; remove it, or choose another name")
    contract = dataset.contract
    observed = [each.channel if each.kind == "identity" else f"{each.kind}({each.channel})" for each in contract.features]
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    actions = [f"action:{name}" for name in contract.command_names]
    writer.writerow(
        ["episode", "step", *(f"observation:{name}" for name in observed), *actions, "reward", "terminated", "truncated"]
    )
    for number, episode in enumerate(dataset.episodes):
        for step, (observation, action) in enumerate(zip(episode.observations, episode.actions, strict=False)):
            reward = "" if episode.rewards is None else str(episode.rewards[step])
            flags = [int(episode.terminations[step]), int(episode.truncations[step])]
            writer.writerow([number, step, *map(str, observation), *map(str, action), reward, *flags])
        writer.writerow([number, len(episode), *map(str, episode.observations[-1]), *[""] * (contract.num_actions + 3)])
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, text.getvalue().encode())
    return path
