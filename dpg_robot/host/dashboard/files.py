"""Reading files for the dashboard: bounded, never waiting, and taking nothing in them for granted."""

from __future__ import annotations

import json
import math
import os
import stat
from pathlib import Path
from typing import Any

MAX_JSON_BYTES = 1024**2
MAX_TEXT = 400


def open_for_reading(path: Path) -> int:
    """Return a descriptor of an ordinary file; a pipe or device in its place is refused instead of waited for.

    Raises:
        OSError: as the file system reports it.
        ValueError: it is no ordinary file.
    """
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise ValueError(f"{path.name} is not an ordinary file")
    return descriptor


def read_bounded(path: Path) -> bytes:
    """Return the content of an ordinary file of at most :data:`MAX_JSON_BYTES`; raises OSError, or ValueError for others."""
    with os.fdopen(open_for_reading(path), "rb") as file:
        content = file.read(MAX_JSON_BYTES + 1)
    if len(content) > MAX_JSON_BYTES:
        raise ValueError(f"{path.name} has more than {MAX_JSON_BYTES} bytes")
    return content


def read_json(path: Path) -> dict[str, Any]:
    """Return the JSON object in a file; raises as :func:`read_bounded`, and ValueError if it holds something else."""
    return parse_object(read_bounded(path), path.name)


def parse_object(content: bytes | str, name: str) -> dict[str, Any]:
    """Return a JSON object; raises ValueError, naming ``name``, for anything else."""
    try:
        values = json.loads(content)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{name} is not JSON: {error}") from error
    if not isinstance(values, dict):
        raise ValueError(f"{name} holds no JSON object")
    return values


def text(value: Any, limit: int = MAX_TEXT) -> str:
    """Return a value as a text that can be shown: of at most ``limit`` characters, without what cannot be encoded."""
    shown = "" if value is None else str(value)[: limit + 1].encode("utf-8", "replace").decode()
    return shown if len(shown) <= limit else shown[: limit - 1] + "…"


def number(value: Any) -> float | None:
    """Return a finite number as it is, None for anything else."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    return value if abs(value) < 2**53 and math.isfinite(value) else None


def whole(value: Any) -> int | None:
    """Return a whole number as it is, None for anything else."""
    return value if isinstance(value, int) and number(value) is not None else None


def wall_s(nanoseconds: Any) -> float | None:
    """Return a Unix time in nanoseconds as seconds, None for anything else."""
    if isinstance(nanoseconds, bool) or not isinstance(nanoseconds, int) or not 0 < nanoseconds < 2**63:
        return None
    return nanoseconds / 1e9
