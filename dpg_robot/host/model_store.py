"""The model store: every candidate with its verdict is kept, and the current policy changes in one step.

Layout: ``versions/<number>/`` holds ``policy.onnx``, its export report and ``verdict.json``; ``policy.onnx`` at the top is the
policy that robots should run. It is replaced by a rename, so a robot reads the old file or the new one. With a signing key the
store also makes a signed release of it (see :mod:`dpg_robot.release`), and ``releases/`` keeps all of them.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from dpg_robot.errors import PolicyFileError
from dpg_robot.files import new_folder, write_atomically, write_new
from dpg_robot.host.gate import Verdict
from dpg_robot.policy_file import read_policy_file
from dpg_robot.release import Release, SigningKey, write_release


class ModelStore:
    """A folder of policies.

    Args:
        folder: where; made when it does not exist.
        key: signs releases; without it there are none.
        robots: names of the robots that releases are for; empty: all that a policy fits.
    """

    def __init__(self, folder: str | Path, key: SigningKey | None = None, robots: Sequence[str] = ()) -> None:
        self.folder = Path(folder)
        self._key, self._robots = key, tuple(robots)
        (self.folder / "versions").mkdir(parents=True, exist_ok=True)

    @property
    def current(self) -> Path:
        """Path of the policy that robots should run; it exists once a policy was published."""
        return self.folder / "policy.onnx"

    def versions(self) -> list[int]:
        """Return the numbers of all candidates so far, rejected ones included, in order."""
        return sorted(int(item.name) for item in (self.folder / "versions").iterdir() if item.name.isdigit())

    def add(self, write_policy: Callable[[Path], Any], verdict: Verdict, facts: dict[str, Any]) -> Path:
        """Keep a candidate, and make it the current policy if its verdict allows.

        Args:
            write_policy: writes ``policy.onnx`` to the given path.
            verdict: the gate's verdict.
            facts: JSON values to keep beside it (figures, settings, parent).

        Returns:
            The folder of the new version.
        """
        number = max(self.versions(), default=0) + 1
        folder = self.folder / "versions" / f"{number:06d}"
        with new_folder(folder) as temporary:
            write_policy(temporary / "policy.onnx")
            _, metadata = read_policy_file(temporary / "policy.onnx")
            record = {"version": number, "policy_id": metadata.policy_id, "verdict": verdict.to_dict()} | facts
            (temporary / "verdict.json").write_text(json.dumps(record, indent=1))
        if verdict.passed:
            self.publish(number, "the gate let it pass")
        return folder

    def publish(self, number: int, reason: str) -> None:
        """Make a version the current policy, a new one or an older one again.

        Args:
            number: of the version.
            reason: why, for those who read the release.

        Raises:
            PolicyFileError: there is no version of that number; or robots follow signed releases, and there is no key.
        """
        source = self.folder / "versions" / f"{number:06d}" / "policy.onnx"
        if not source.is_file():
            raise PolicyFileError(f"the store {self.folder} has no version {number}; it has {self.versions()}")
        content, metadata = read_policy_file(source)
        if self._key is None and self.releases():
            raise PolicyFileError(
                f"the store {self.folder} has signed releases, so a policy only reaches robots by another one; give the key "
                "(--sign)"
            )
        if self._key is not None:
            release = Release(
                number=max(self.releases(), default=0) + 1,
                policy_sha256=hashlib.sha256(content).hexdigest(),
                policy_id=metadata.policy_id,
                robots=self._robots,
                reason=f"version {number}: {reason}",
                wall_ns=time.time_ns(),
            )
            self._release(content, release, self._key)
        write_atomically(self.current, content)

    def verdict(self, number: int) -> dict[str, Any]:
        """Return the gate's verdict on a version: ``passed`` and ``reasons``. Raises PolicyFileError if there is none."""
        path = self.folder / "versions" / f"{number:06d}" / "verdict.json"
        try:
            found: dict[str, Any] = json.loads(path.read_text())["verdict"]
        except (OSError, ValueError, KeyError) as error:
            raise PolicyFileError(f"the store {self.folder} has no version {number}; it has {self.versions()}") from error
        return found

    def releases(self) -> list[int]:
        """Return the numbers of all signed releases so far, in order."""
        folder = self.folder / "releases"
        return sorted(int(item.stem) for item in folder.glob("*.json") if item.stem.isdigit()) if folder.is_dir() else []

    def _release(self, content: bytes, release: Release, key: SigningKey) -> None:
        folder = self.folder / "releases"
        folder.mkdir(exist_ok=True)
        # first, as its number must never be given again, whatever happens next, nor to somebody else at the same moment
        write_new(folder / f"{release.number:06d}.json", key.sign(release))
        write_release(self.folder, content, release, key)
