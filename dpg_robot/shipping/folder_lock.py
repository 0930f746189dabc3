"""A folder that only one process at a time may have; the kernel gives it free again however the process ends."""

from __future__ import annotations

import fcntl
import os
from pathlib import Path

from dpg_robot.errors import LogError


class FolderLock:
    """Held from its making until :meth:`close`. Raises LogError when another process holds it."""

    def __init__(self, path: Path, what: str) -> None:
        """Take the lock file ``path``, made if it does not exist; ``what`` says in errors what the other process does."""
        path.parent.mkdir(parents=True, exist_ok=True)
        self._descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        try:
            fcntl.flock(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            os.close(self._descriptor)
            raise LogError(f"another process {what} already; end that one first") from None

    def close(self) -> None:
        """Give it free. May be called any number of times."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1
