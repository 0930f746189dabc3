"""How long a process had to wait for a processor: what a busy computer does to a measurement in real time."""

from __future__ import annotations

from pathlib import Path


def processor_wait_s(pid: int) -> float:
    """Return for how long the main thread of a process could not run because others did, since it began, s.

    Raises:
        OSError: there is no such process, or the system does not tell.
    """
    return int(Path(f"/proc/{pid}/schedstat").read_text().split()[1]) * 1e-9
