"""What a sender tells the host beside the log: how it fares, and how much waits on the robot. No I/O here."""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass
from typing import Any

from dpg_robot.shipping.piece import PieceError

INTERVAL_S = 1.0
_MAX_BYTES = 2048
_MAX_TEXT = 300
_HIGHEST = 2**64 - 1


@dataclass(frozen=True)
class SenderNews:
    """How a sender fares. It is never kept: news that get lost are followed by others a second later.

    Attributes:
        state: what it does, in words.
        backlog_bytes: of the log that the host has not confirmed yet.
        on_the_way_bytes: of these, what was sent already.
        last_confirmed_sequence: last sequence number that the host has confirmed, None if unknown.
        log_bytes: size of the robot log, None if unknown.
        refused_segments: number of segments that the host refused.
        warning: what needs a person, in words; empty if nothing.
    """

    state: str
    backlog_bytes: int
    on_the_way_bytes: int
    last_confirmed_sequence: int | None
    log_bytes: int | None
    refused_segments: int
    warning: str

    def __post_init__(self) -> None:
        for name in ("state", "warning"):
            value = getattr(self, name)
            if not isinstance(value, str) or len(value) > _MAX_TEXT:
                raise PieceError(f"{name} must be a text of at most {_MAX_TEXT} characters, got {str(value)[:80]!r}")
        for name in ("backlog_bytes", "on_the_way_bytes", "refused_segments", "last_confirmed_sequence", "log_bytes"):
            value = getattr(self, name)
            if value is None and name in ("last_confirmed_sequence", "log_bytes"):
                continue
            if type(value) is not int or not 0 <= value <= _HIGHEST:
                raise PieceError(f"{name} must be an integer from 0 to {_HIGHEST}, got {value!r}")

    @classmethod
    def of(cls, values: dict[str, Any], warning: str) -> SenderNews:
        """Return the news in the counters of a sender, ``SenderState.values``."""
        return cls(
            state=values["state"][:_MAX_TEXT],
            backlog_bytes=values["backlog_bytes"],
            on_the_way_bytes=values["on_the_way_bytes"],
            last_confirmed_sequence=values["last_confirmed_sequence"],
            log_bytes=values["log_bytes"],
            refused_segments=len(values["refused_segments"]),
            warning=warning[:_MAX_TEXT],
        )

    def to_bytes(self) -> bytes:
        """Return the news as JSON."""
        return json.dumps(dataclasses.asdict(self), ensure_ascii=False).encode("utf-8", "replace")

    @classmethod
    def from_bytes(cls, content: bytes) -> SenderNews:
        """Read :meth:`to_bytes` again. Raises PieceError for anything else."""
        if len(content) > _MAX_BYTES:
            raise PieceError(f"news of a sender have at most {_MAX_BYTES} bytes, got {len(content)}")
        try:
            values = json.loads(content)
        except (ValueError, RecursionError) as error:
            raise PieceError(f"expected news of a sender as JSON, got {content[:80]!r}") from error
        names = {field.name for field in dataclasses.fields(cls)}
        if not isinstance(values, dict) or set(values) != names:
            raise PieceError(f"expected an object with the keys {', '.join(sorted(names))}, got {str(values)[:200]}")
        return cls(**values)
