"""What a robot knows of the fate of its closed segments, kept in ``<log folder>/.shipping`` so that it survives everything."""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dpg_robot.errors import LogError
from dpg_robot.files import write_atomically
from dpg_robot.shipping.folder_lock import FolderLock
from dpg_robot.shipping.piece import Confirmation, PieceError, Seal

SHIPPING_FOLDER = ".shipping"
_SUFFIX = ".run.json"


@dataclass(frozen=True)
class Entry:
    """The fate of one segment: confirmed by the host with this seal, or refused by it for this reason."""

    seal: Seal | None
    reason: str = ""


class Ledger:
    """The fate of all closed segments of a log folder. Only one process at a time may have it.

    Attributes:
        trouble: why it could not be written, in words; empty if it could.
    """

    def __init__(self, log_folder: Path, *, forget: bool = False) -> None:
        """Read it; with ``forget`` nothing counts as confirmed, so that everything is offered to the host again.

        Raises:
            LogError: another process ships this folder, or the ledger is damaged.
        """
        self.folder = log_folder / SHIPPING_FOLDER
        self.trouble = ""
        self._lock = FolderLock(self.folder / "lock", f"ships {log_folder}")
        self._runs: dict[str, dict[int, Entry]] = {}
        if not forget:
            self._runs = {path.name.removesuffix(_SUFFIX): _read(path) for path in self.folder.glob(f"*{_SUFFIX}")}

    def entry(self, run: str, segment: int) -> Entry | None:
        """Return the fate of a segment, None while it is open."""
        return self._runs.get(run, {}).get(segment)

    def record(self, confirmation: Confirmation) -> None:
        """Note that a segment was confirmed whole, or refused."""
        entry = Entry(confirmation.seal if confirmation.kind == "stored" else None, confirmation.reason)
        self._runs.setdefault(confirmation.run, {})[confirmation.segment] = entry
        self._write(confirmation.run)

    def remove(self, run: str, segment: int) -> None:
        """Note that the host does not have a segment any more."""
        if self._runs.get(run, {}).pop(segment, None) is not None:
            self._write(run)

    @property
    def refused(self) -> list[str]:
        """All segments that the host refused, with the reason."""
        return [
            f"{run}, segment {segment}: {entry.reason}"
            for run, entries in sorted(self._runs.items())
            for segment, entry in sorted(entries.items())
            if entry.seal is None
        ]

    def close(self) -> None:
        """Let another process have it."""
        self._lock.close()

    def _write(self, run: str) -> None:
        # Without room on the disk the shipping must go on all the same; after a restart the host is asked again.
        values = {str(segment): dataclasses.asdict(entry) for segment, entry in sorted(self._runs[run].items())}
        try:
            write_atomically(self.folder / f"{run}{_SUFFIX}", json.dumps(values).encode())
            self.trouble = ""
        except OSError as error:
            self.trouble = f"what was confirmed cannot be noted: {error}"


def _read(path: Path) -> dict[int, Entry]:
    try:
        values: dict[str, Any] = json.loads(path.read_bytes())
        return {
            int(segment): Entry(Seal(**entry["seal"]) if entry["seal"] else None, str(entry["reason"]))
            for segment, entry in values.items()
        }
    except (ValueError, TypeError, KeyError, AttributeError, PieceError) as error:
        raise LogError(
            f"{path} cannot be read: {error}. Remove it: the robot then asks the host again what it has, and nothing is lost."
        ) from error
