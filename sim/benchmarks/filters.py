"""Filters of the command line that restrict a benchmark: items such as ``task=cheetah-run,walker-walk``."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import TypeVar

from dpg_robot.errors import ConfigError, unknown_name

R = TypeVar("R")


def parse_filters(filters: Sequence[str], known: Mapping[str, Collection[str]]) -> dict[str, set[str]]:
    """Return the names that are wanted, for each key that an item names.

    Args:
        filters: items ``KEY=NAME`` or ``KEY=NAME,NAME``.
        known: all keys and their names.

    Raises:
        ConfigError: an item that is not of this form.
        UnknownNameError: a key or name that there is not.
    """
    wanted: dict[str, set[str]] = {}
    for item in filters:
        key, separator, text = item.partition("=")
        if not separator or not text:
            raise ConfigError(f"--only {item}: expected KEY=NAME or KEY=NAME,NAME with KEY one of {', '.join(known)}")
        if key not in known:
            raise unknown_name("filter", key, known)
        for name in text.split(","):
            if name not in known[key]:
                raise unknown_name(f"{key} of this protocol", name, known[key])
            wanted.setdefault(key, set()).add(name)
    return wanted


def select_by_attributes(runs: Iterable[R], filters: Sequence[str], known: Mapping[str, Collection[str]]) -> list[R]:
    """Return the runs that all filters name; the keys are names of attributes. Arguments and errors as :func:`parse_filters`."""
    wanted = parse_filters(filters, known)
    return [run for run in runs if all(str(getattr(run, key)) in names for key, names in wanted.items())]
