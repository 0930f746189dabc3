"""What a result was made with: code, versions and time."""

from __future__ import annotations

import hashlib
import subprocess
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from dpg_robot.versions import installed_versions

_PACKAGES = ("dpg-robot", "torch", "numpy", "mujoco", "gymnasium", "stable-baselines3", "sb3-contrib")
_ROOT = Path(__file__).resolve().parents[2]


def describe_code() -> dict[str, Any]:
    """Return which code runs: git commit, whether files differ from it, and a digest of the learner's source."""
    digest = hashlib.sha256()
    for path in sorted((_ROOT / "dpg_robot" / "learning").glob("*.py")):
        digest.update(path.name.encode() + b"\0" + path.read_bytes() + b"\0")
    commit = _git("rev-parse", "HEAD")
    changes = _git("status", "--porcelain", "--untracked-files=no")
    return {"commit": commit, "dirty": None if changes is None else bool(changes), "learner_digest": digest.hexdigest()[:12]}


def describe_versions() -> dict[str, str | None]:
    """Return the versions of Python and of the packages that results depend on; None for what is not installed."""
    return installed_versions(_PACKAGES)


def now() -> str:
    """Return date and time, UTC."""
    return datetime.now(UTC).isoformat(timespec="seconds")


def _git(*arguments: str) -> str | None:
    # without optional locks, as somebody may be at work in this tree
    command = ["git", "--no-optional-locks", "-C", str(_ROOT), *arguments]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=20, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() if done.returncode == 0 else None
