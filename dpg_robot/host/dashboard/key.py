"""The operator's key: a text that only the operator has. The dashboard keeps its SHA-256, by which it knows it again."""

from __future__ import annotations

import hashlib
import hmac
import os
import re
import secrets
import stat
from dataclasses import dataclass
from pathlib import Path

from dpg_robot.errors import ConfigError
from dpg_robot.files import write_new

_KEY_BYTES = 32
_MAX_FILE_BYTES = 1000


@dataclass(frozen=True)
class OperatorKey:
    """What knows the key.

    A key has 256 random bits, so nobody finds it by trying, and a plain hash keeps it as well as a slow one.

    Attributes:
        sha256: SHA-256 of the key.
    """

    sha256: bytes

    @classmethod
    def make(cls, path: Path) -> str:
        """Write the hash of a new key into a new file that only its owner may read; returns the key.

        Raises:
            FileExistsError: there is such a file.
        """
        key = secrets.token_urlsafe(_KEY_BYTES)
        write_new(path, f"sha256:{hashlib.sha256(key.encode()).hexdigest()}\n".encode(), 0o600)
        return key

    @classmethod
    def load(cls, path: Path) -> OperatorKey:
        """Read the file. Raises ConfigError if it is none, or others than its owner may read it."""
        try:
            with path.open("rb") as file:
                mode, content = stat.S_IMODE(os.fstat(file.fileno()).st_mode), file.read(_MAX_FILE_BYTES)
        except OSError as error:
            raise ConfigError(f"the operator's key {path} cannot be read: {error.strerror}") from error
        if mode & 0o077:
            raise ConfigError(f"others may read the operator's key {path}; keep it to yourself: chmod 600 {path}")
        found = re.fullmatch(rb"sha256:([0-9a-f]{64})\n?", content)
        if found is None:
            raise ConfigError(f"{path} holds no operator's key; make one: launch/dashboard.py token FILE")
        return cls(bytes.fromhex(found.group(1).decode()))

    def matches(self, key: str) -> bool:
        """Return whether this is the key; takes the same time for every wrong one."""
        return hmac.compare_digest(hashlib.sha256(key.encode("utf-8", "surrogateescape")).digest(), self.sha256)
