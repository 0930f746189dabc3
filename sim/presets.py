"""Named settings for randomized dynamics and disturbances, and how to read one's own from a YAML file."""

from __future__ import annotations

from pathlib import Path
from typing import TypeVar

from dpg_robot.config import load_config
from dpg_robot.errors import ConfigError, unknown_name

T = TypeVar("T")


def resolve_preset(what: str, value: str | Path | T, cls: type[T], presets: dict[str, T]) -> T:
    """Return settings from a preset's name, the path of a YAML file, or the settings themselves.

    Raises:
        UnknownNameError: a text that is neither a preset nor the path of a YAML file.
        ConfigError: a YAML file that cannot be used.
    """
    if isinstance(value, cls):
        return value
    if not isinstance(value, str | Path):
        raise ConfigError(
            f"{what} must be the name of a preset, the path of a YAML file, or a {cls.__name__}; got a {type(value).__name__}"
        )
    name = str(value)
    if name in presets:
        return presets[name]
    if name.endswith((".yaml", ".yml")):
        return load_config(cls, name)
    raise unknown_name(f"{what} preset (or path of a .yaml file)", name, presets)
