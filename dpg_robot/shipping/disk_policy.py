"""What happens on the robot when its log grows beyond a limit. Nothing is ever deleted that the host has not confirmed whole."""

from __future__ import annotations

import contextlib
import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from dpg_robot.data.log_format import SEGMENT_PATTERN, segment_number
from dpg_robot.files import sync_folder
from dpg_robot.shipping.ledger import SHIPPING_FOLDER, Ledger

DiskPolicy = Literal["keep", "release"]


@dataclass(frozen=True)
class DiskReport:
    """What a robot's log takes, and what was done about it.

    Attributes:
        bytes: bytes of all segments that are left.
        unconfirmed_bytes: those of them that the host has not confirmed whole.
        released: segments that were deleted.
        warning: what a person should do, empty if nothing.
    """

    bytes: int
    unconfirmed_bytes: int
    released: tuple[Path, ...]
    warning: str


def apply_disk_policy(log_folder: Path, ledger: Ledger, policy: DiskPolicy, limit_bytes: int) -> DiskReport:
    """Delete confirmed segments, oldest first, until the log fits into the limit; with ``keep`` delete nothing.

    A segment is deleted only if the file has, now, the size and digest that the host confirmed.

    Args:
        log_folder: the robot log.
        ledger: that of the folder.
        policy: ``keep`` or ``release``.
        limit_bytes: most bytes that the segments shall take; 0 for no limit.
    """
    segments = sorted(path for path in log_folder.glob(f"*/{SEGMENT_PATTERN}") if path.parent.name != SHIPPING_FOLDER)
    sizes = {path: path.stat().st_size for path in segments}
    total, released = sum(sizes.values()), []
    confirmed = [path for path in segments if _seal(path, ledger) is not None]
    for path in confirmed if policy == "release" and limit_bytes else ():
        if total <= limit_bytes:
            break
        if _is_as_confirmed(path, ledger):
            _delete(path)
            released.append(path)
            total -= sizes[path]
    unconfirmed = sum(sizes[path] for path in segments if path not in confirmed)
    warning = ""
    if limit_bytes and total > limit_bytes:
        warning = f"the robot log takes {total} bytes, more than the limit of {limit_bytes}; {unconfirmed} bytes of it "
        warning += "are not confirmed by the host. Nothing unconfirmed is deleted: "
        warning += "reach the host, or make room" if policy == "release" else "make room, or let disk.policy be 'release'"
    return DiskReport(total, unconfirmed, tuple(released), warning)


def _seal(path: Path, ledger: Ledger) -> tuple[int, str] | None:
    entry = ledger.entry(path.parent.name, segment_number(path))
    return None if entry is None or entry.seal is None else (entry.seal.size, entry.seal.sha256)


def _is_as_confirmed(path: Path, ledger: Ledger) -> bool:
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
        return (file.tell(), digest) == _seal(path, ledger)


def _delete(path: Path) -> None:
    path.unlink()
    sync_folder(path.parent)
    runs = sorted(each for each in path.parent.parent.iterdir() if each.is_dir() and each.name != SHIPPING_FOLDER)
    if path.parent != runs[-1]:  # the newest run may still be written
        with contextlib.suppress(OSError):  # it holds something else
            path.parent.rmdir()
