"""NKEY pairs: a seed that never leaves the computer that uses it, and a public key for the server."""

from __future__ import annotations

import os
import re
import stat
from pathlib import Path

import nkeys

from dpg_robot.errors import ConfigError
from dpg_robot.files import write_atomically, write_new

SEED_SUFFIX, PUBLIC_SUFFIX = ".seed", ".pub"
_PUBLIC = re.compile(r"U[A-Z2-7]{55}")
_SEED_BYTES = 32


def make_key(folder: Path, name: str) -> str:
    """Write ``<name>.seed`` (readable by its owner alone) and ``<name>.pub``; returns the public key.

    Raises:
        ConfigError: when the seed exists already.
    """
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    seed = nkeys.encode_seed(os.urandom(_SEED_BYTES), nkeys.PREFIX_BYTE_USER)
    public: str = nkeys.from_seed(seed).public_key.decode()
    path = folder / f"{name}{SEED_SUFFIX}"
    try:
        write_new(path, bytes(seed) + b"\n", 0o600)
    except FileExistsError:
        raise ConfigError(f"{path} exists already; a new key needs another name, or the old one removed by hand") from None
    write_atomically(folder / f"{name}{PUBLIC_SUFFIX}", f"{public}\n".encode())
    return public


def read_public_keys(folder: Path) -> dict[str, str]:
    """Return the public keys in a folder by name. Raises ConfigError for a file that holds something else."""
    keys = {}
    for path in sorted(folder.glob(f"*{PUBLIC_SUFFIX}")):
        public = path.read_text(errors="replace").strip()
        if not _PUBLIC.fullmatch(public):
            raise ConfigError(f"{path} holds no public key of a user (U and 55 letters and digits), got {public[:60]!r}")
        keys[path.stem] = public
    return keys


def require_private(seed: Path) -> None:
    """Raise ConfigError unless the seed is there and only its owner can read it."""
    try:
        mode = seed.stat().st_mode
    except OSError as error:
        raise ConfigError(f"cannot read the key {seed}: {error.strerror}; make it with 'ship.py keys'") from error
    if stat.S_IMODE(mode) & 0o077:
        raise ConfigError(f"others can read the key {seed} (mode {stat.S_IMODE(mode):03o}); run: chmod 600 {seed}")
    try:
        nkeys.from_seed(bytearray(seed.read_bytes().strip())).public_key  # noqa: B018
    except (OSError, nkeys.NkeysError, ValueError) as error:
        raise ConfigError(f"{seed} holds no NKEY seed: {error}") from error
