"""Checkpoints: everything that training needs to go on exactly where it was, without pickle.

A checkpoint is a folder: one safetensors file per part, and ``state.json``. It appears under its name only when it is whole.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from dpg_robot.config import config_to_dict, load_config
from dpg_robot.errors import CheckpointError, did_you_mean
from dpg_robot.files import new_folder

FORMAT_VERSION = 1
_STATE_FILE = "state.json"


def save_checkpoint(folder: str | Path, tensors: dict[str, dict[str, Tensor]], state: dict[str, Any]) -> None:
    """Write a checkpoint as a new folder.

    Args:
        folder: path that does not exist yet, in an existing folder.
        tensors: named parts, each a flat dictionary of tensors.
        state: everything else, as JSON values.

    Raises:
        CheckpointError: the folder exists, or the disk is full or refuses; nothing is left behind then.
    """
    try:
        with new_folder(folder) as temporary:
            hashes = {}
            for part, values in tensors.items():
                file = temporary / f"{part}.safetensors"
                save_file({name: value.detach().contiguous().cpu() for name, value in values.items()}, file)
                hashes[part] = _hash_file(file)
            text = json.dumps({"format_version": FORMAT_VERSION, "parts": hashes, "state": state}, indent=1)
            (temporary / _STATE_FILE).write_text(text)
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"checkpoint {folder} could not be written: {error}. Earlier checkpoints are untouched.") from error


def load_checkpoint(folder: str | Path) -> tuple[dict[str, dict[str, Tensor]], dict[str, Any]]:
    """Read what :func:`save_checkpoint` wrote: the parts and the state.

    Raises:
        CheckpointError: missing, incomplete, damaged or of another version.
    """
    folder = Path(folder)
    state_file = folder / _STATE_FILE
    if not state_file.is_file():
        siblings = [item.name for item in folder.parent.glob("*")] if folder.parent.is_dir() else []
        raise CheckpointError(f"{folder} is not a checkpoint: it has no {_STATE_FILE}.{did_you_mean(folder.name, siblings)}")
    try:
        content = json.loads(state_file.read_text())
        version = content["format_version"]
        if version != FORMAT_VERSION:
            raise CheckpointError(
                f"checkpoint {folder} has format version {version}; this program reads version {FORMAT_VERSION}. "
                "Use the version of dpg-robot that wrote it."
            )
        files = {part: folder / f"{part}.safetensors" for part in content["parts"]}
        for part, file in files.items():
            if _hash_file(file) != content["parts"][part]:
                raise CheckpointError(f"checkpoint {folder} is damaged: {file.name} is not as it was written")
        return {part: load_file(file) for part, file in files.items()}, content["state"]
    except CheckpointError:
        raise
    except (OSError, SafetensorError, KeyError, TypeError, ValueError) as error:
        raise CheckpointError(f"checkpoint {folder} is incomplete or damaged: {error}") from error


def _hash_file(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def require_run_folder(config: Any, folder: Path, resume: bool) -> None:
    """Refuse a run folder that is in use, or whose run (``config.yaml`` in it) was started with other settings.

    Args:
        config: settings of the run, a configuration dataclass.
        folder: run folder; it need not exist.
        resume: whether a run in the folder is to be continued.

    Raises:
        CheckpointError: as above; the message names the settings that differ.
    """
    resolved = folder / "config.yaml"
    if resume and resolved.exists() and (stored := load_config(type(config), resolved)) != config:
        changed = [name for name, value in config_to_dict(config).items() if config_to_dict(stored)[name] != value]
        raise CheckpointError(
            f"{folder} was started with other settings ({', '.join(changed)} differ); "
            f"resume with --config {resolved}, or start a new run in another --run folder"
        )
    if not resume and folder.exists() and any(folder.iterdir()):
        raise CheckpointError(f"{folder} is not empty; continue it with --resume, or choose another --run folder")


def load_into(module: torch.nn.Module, tensors: dict[str, Tensor], what: str) -> None:
    """Load tensors into a module; raises CheckpointError that names what does not fit."""
    try:
        module.load_state_dict(tensors, strict=True)
    except RuntimeError as error:
        raise CheckpointError(f"{what} does not fit these networks (other sizes or another task?): {error}") from error


def flatten_optimizer(optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """Return an optimizer's per-parameter state as a flat dictionary ``<index>.<name>`` of tensors."""
    state = optimizer.state_dict()["state"]
    return {f"{index}.{name}": torch.as_tensor(value) for index, values in state.items() for name, value in values.items()}


def unflatten_optimizer(optimizer: torch.optim.Optimizer, tensors: dict[str, Tensor]) -> None:
    """Put back what :func:`flatten_optimizer` returned; raises CheckpointError when it does not fit."""
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    state: dict[int, dict[str, Tensor]] = {}
    for key, value in tensors.items():
        index, _, name = key.partition(".")
        # the state of a parameter is either a number (of steps) or has the parameter's shape
        if not (index.isdecimal() and int(index) < len(parameters) and value.shape in ((), parameters[int(index)].shape)):
            raise CheckpointError(f"optimizer state does not fit these networks: {key!r} of shape {tuple(value.shape)}")
        state.setdefault(int(index), {})[name] = value
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})
