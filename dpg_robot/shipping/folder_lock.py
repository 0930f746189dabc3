"""A folder that only one process at a time may have."""

from __future__ import annotations

from pathlib import Path

from dpg_robot.errors import LogError
from dpg_robot.files import FileLock


class FolderLock(FileLock):
    """Held from its making until :meth:`close`. Raises LogError when another process holds it."""

    def __init__(self, path: Path, what: str) -> None:
        """Take the lock file ``path``, made if it does not exist; ``what`` says in errors what the other process does."""
        try:
            super().__init__(path)
        except BlockingIOError:
            raise LogError(f"another process {what} already; end that one first") from None
