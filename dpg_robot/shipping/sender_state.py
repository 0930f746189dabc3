"""What all senders have in common: ledger, outbox, disk policy and status of one log folder."""

from __future__ import annotations

import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dpg_robot.shipping.disk_policy import DiskReport, apply_disk_policy
from dpg_robot.shipping.ledger import SHIPPING_FOLDER, Ledger
from dpg_robot.shipping.outbox import Outbox
from dpg_robot.shipping.piece import Confirmation, Piece
from dpg_robot.shipping.settings import SendSettings
from dpg_robot.shipping.status_file import STATUS_NAME, StatusFile

_REMIND_S = 60.0


@dataclass
class SendCounts:
    """What a sender has done since its start."""

    pieces: int = 0
    bytes: int = 0
    transitions: int = 0
    confirmations: int = 0
    wanted: int = 0
    refused: int = 0
    timeouts: int = 0
    reconnects: int = 0
    released_segments: int = 0


class SenderState:
    """One log folder that is shipped.

    Attributes:
        outbox: what is to send.
        counts: what was done.
        disk: what the log takes; None before the first look.
    """

    def __init__(self, log_folder: Path, robot: str, settings: SendSettings, *, offer_all: bool = False) -> None:
        """Open the log folder.

        Args:
            log_folder: the robot log, with a folder for each run.
            robot: name of the robot.
            settings: see there.
            offer_all: do not rely on what was confirmed before, but offer every segment to the host again.

        Raises:
            LogError: another process ships the folder.
        """
        self.log_folder = log_folder
        self.settings = settings
        self.counts = SendCounts()
        self.disk: DiskReport | None = None
        self._robot = robot
        self._ledger = Ledger(log_folder, forget=offer_all)
        self.outbox = Outbox(
            log_folder, robot, self._ledger, piece_bytes=settings.piece_bytes, window_bytes=settings.window_bytes
        )
        self._status = StatusFile(log_folder / SHIPPING_FOLDER / STATUS_NAME)
        self._next_scan_s = self._next_disk_s = self._next_reminder_s = 0.0

    def next_piece(self) -> Piece | None:
        """Return the next piece to send, None if there is nothing now."""
        piece = self.outbox.next_piece()
        if piece is not None:
            self.counts.pieces += 1
            self.counts.bytes += len(piece.data)
            self.counts.transitions += piece.records
        return piece

    def confirm(self, confirmation: Confirmation) -> None:
        """Take notice of what the host says; a refusal is said loudly."""
        self.counts.confirmations += 1
        self.counts.wanted += confirmation.kind == "wanted"
        if confirmation.kind == "refused":
            self.counts.refused += 1
            where = f"run {confirmation.run}, segment {confirmation.segment}"
            say(f"the host refused {where}: {confirmation.reason}. It stays on the robot; nothing else is held up.")
        self.outbox.confirm(confirmation)

    def look_around(self, state: str) -> None:
        """Do what is due: look for new segments, apply the disk policy, write the status. ``state`` is what the sender does."""
        now_s = time.monotonic()
        if now_s >= self._next_scan_s:
            self.outbox.scan()
            self._next_scan_s = now_s + self.settings.scan_s
        if now_s >= self._next_disk_s:
            self._look_at_disk(now_s)
        if self._status.is_due:
            self._status.write(self.values(state))

    def values(self, state: str) -> dict[str, Any]:
        """Return all counters."""
        return {
            "role": "sender",
            "robot": self._robot,
            "state": state,
            **vars(self.counts),
            "on_the_way_pieces": self.outbox.pieces_on_the_way,
            "on_the_way_bytes": self.outbox.bytes_on_the_way,
            "backlog_bytes": self.outbox.backlog_bytes(),
            "last_confirmed_sequence": self.outbox.last_sequence,
            "refused_segments": self._ledger.refused,
            "log_bytes": self.disk.bytes if self.disk else None,
            "ledger_trouble": self._ledger.trouble,
            "disk_warning": self.disk.warning if self.disk else "",
        }

    @property
    def failure(self) -> str:
        """What did not go as it should and needs a person; empty if nothing."""
        refused = self._ledger.refused
        parts = [f"{len(refused)} segments were refused by the host: {refused[0]}"] if refused else []
        return "; ".join([*parts, *([self.disk.warning] if self.disk and self.disk.warning else [])])

    def close(self, state: str) -> None:
        """Write the last status and let another process have the folder."""
        self._look_at_disk(time.monotonic())
        self._status.write(self.values(state))
        self.outbox.close()
        self._ledger.close()

    def _look_at_disk(self, now_s: float) -> None:
        disk = self.settings.disk
        self._next_disk_s = now_s + disk.interval_s
        try:
            self.disk = apply_disk_policy(self.log_folder, self._ledger, disk.policy, disk.limit_bytes)
            self.counts.released_segments += len(self.disk.released)
            warning = self.disk.warning
        except OSError as error:
            warning = f"the robot log cannot be looked at: {error}"
        if warning and now_s >= self._next_reminder_s:
            say(warning)
            self._next_reminder_s = now_s + _REMIND_S


def say(text: str) -> None:
    """Say something to whoever watches the program."""
    print(f"ship: {text}", file=sys.stderr, flush=True)
