"""Settings of shipping."""

from __future__ import annotations

from dataclasses import dataclass

from dpg_robot.config import setting
from dpg_robot.shipping.disk_policy import DiskPolicy
from dpg_robot.shipping.outbox import WINDOW_BYTES
from dpg_robot.shipping.piece import MAX_PIECE_BYTES, PIECE_BYTES


@dataclass(frozen=True)
class DiskSettings:
    """What a robot does when its log grows."""

    policy: DiskPolicy = setting("keep", "keep: delete nothing; release: delete the oldest confirmed segments above the limit")
    limit_bytes: int = setting(0, "most bytes of the log on the robot; 0 for no limit", unit="B")
    interval_s: float = setting(10.0, "time between looks at the disk", unit="s")

    def __post_init__(self) -> None:
        if self.limit_bytes < 0:
            raise ValueError(f"limit_bytes must not be negative, got {self.limit_bytes}")
        if self.policy == "release" and not self.limit_bytes:
            raise ValueError("policy 'release' needs a limit: set limit_bytes")


@dataclass(frozen=True)
class SendSettings:
    """The robot's side."""

    piece_bytes: int = setting(PIECE_BYTES, "most bytes in a piece", unit="B")
    window_bytes: int = setting(WINDOW_BYTES, "most bytes on their way to the host without confirmation", unit="B")
    poll_s: float = setting(0.02, "time between looks at a segment that has nothing new", unit="s")
    scan_s: float = setting(0.25, "time between looks for new runs and segments", unit="s")
    confirm_s: float = setting(5.0, "wait for a confirmation before sending again; doubles each time up to a minute", unit="s")
    disk: DiskSettings = setting(DiskSettings, "the robot's disk")

    def __post_init__(self) -> None:
        if not 1024 <= self.piece_bytes <= MAX_PIECE_BYTES:
            raise ValueError(f"piece_bytes must be from 1024 to {MAX_PIECE_BYTES}, got {self.piece_bytes}")
        if self.window_bytes < self.piece_bytes:
            raise ValueError(f"window_bytes must be at least piece_bytes, got {self.window_bytes}")
        if min(self.poll_s, self.scan_s, self.confirm_s) <= 0:
            raise ValueError("poll_s, scan_s and confirm_s must be more than 0")


@dataclass(frozen=True)
class ReceiveSettings:
    """The host's side."""

    min_free_bytes: int = setting(1024**3, "nothing is taken in while the disk has less room than that", unit="B")
    batch: int = setting(8, "most pieces that are synchronized with the disk together")
    max_deliveries: int = setting(20, "a message that could not be handled so often is set aside")
    stream_bytes: int = setting(1024**3, "most bytes that wait in the server, of all robots", unit="B")

    def __post_init__(self) -> None:
        if self.min_free_bytes < 0 or self.batch < 1 or self.max_deliveries < 1 or self.stream_bytes < 1024**2:
            raise ValueError("min_free_bytes must be 0 or more, batch and max_deliveries 1 or more, stream_bytes 1 MiB or more")


@dataclass(frozen=True)
class ServeSettings:
    """The server."""

    host: str = setting("127.0.0.1", "address to listen on; another than this machine's own needs TLS")
    port: int = setting(4222, "port to listen on")
    storage_bytes: int = setting(2 * 1024**3, "most bytes of the server's files", unit="B")

    def __post_init__(self) -> None:
        if not 1 <= self.port <= 65535:
            raise ValueError(f"port must be from 1 to 65535, got {self.port}")


@dataclass(frozen=True)
class ShippingSettings:
    """All of it."""

    send: SendSettings = setting(SendSettings, "the robot's side")
    receive: ReceiveSettings = setting(ReceiveSettings, "the host's side")
    serve: ServeSettings = setting(ServeSettings, "the server")
