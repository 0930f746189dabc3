"""MJCF files and their compilation, with errors that say where."""

from __future__ import annotations

import warnings
from pathlib import Path

import mujoco

from dpg_robot.errors import DpgError


class ModelError(DpgError, ValueError):
    """A model that MuJoCo cannot compile or cannot simulate."""


def load_mjcf(path: str | Path) -> mujoco.MjSpec:
    """Return the model of an MJCF file, not yet compiled.

    Raises:
        FileNotFoundError: no such file.
        ModelError: a file that MuJoCo cannot read or compile; has its message, with the line.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"there is no MJCF file {path}")
    try:
        compile_spec(mujoco.MjSpec.from_file(str(path)), str(path))  # only here is the file known that an error is in
        return mujoco.MjSpec.from_file(str(path))
    except ValueError as error:
        raise error if isinstance(error, ModelError) else ModelError(f"{path}: {error}") from error


def compile_spec(spec: mujoco.MjSpec, source: str) -> mujoco.MjModel:
    """Return the compiled model; ``source`` names it in errors.

    Raises:
        ModelError: a model that does not compile; has MuJoCo's message, with the line where the model was read from a file.
    """
    try:
        with warnings.catch_warnings():  # of an attribute that dm_control's cheetah uses, and that works
            warnings.filterwarnings("ignore", "compiler attribute 'settotalmass'")
            return spec.compile()
    except ValueError as error:
        raise ModelError(f"{source}: the model does not compile: {error}") from error
