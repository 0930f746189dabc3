"""Looking for a new release while the robot runs, and remembering which were good.

The memory is a small file on the robot. It holds the highest number of a release that was believed, so that an older one, put
back by whoever can write to the store, is refused; the policy that has earned its place, with which the next run begins; and the
policies that have failed.
"""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from dpg_robot.deploy.policy_session import PolicySession
from dpg_robot.deploy.policy_updates import UpdateState
from dpg_robot.deploy.run_config import RobotConfig
from dpg_robot.errors import DpgError, PolicyFileError
from dpg_robot.files import write_atomically
from dpg_robot.policy_file import PolicyMetadata
from dpg_robot.release import (
    RELEASE_FILE,
    Release,
    ReleaseError,
    TrustedKey,
    policy_path,
    read_release,
    read_released_policy,
    read_stored_policy,
)

FORMAT_VERSION = 1


@dataclass(frozen=True)
class Trial:
    """A policy that has begun to earn its place.

    Attributes:
        number: of its release.
        sha256: of its file.
        is_running: whether a run has it at the moment.
        has_acted: whether it has acted in that run.
        watched_s: for how long it has acted in all runs, s.
    """

    number: int
    sha256: str
    is_running: bool = False
    has_acted: bool = False
    watched_s: float = 0.0


@dataclass(frozen=True)
class Memory:
    """What a robot remembers of releases.

    Attributes:
        highest: largest number of a release that was believed.
        highest_sha256: its policy.
        accepted: SHA-256 of the policy that has earned its place; empty: none has.
        trial: the policy that was on trial when this was written.
        refused: SHA-256 of policies that failed, and why.
        format_version: version of the file.
    """

    highest: int = 0
    highest_sha256: str = ""
    accepted: str = ""
    trial: Trial | None = None
    refused: dict[str, str] = field(default_factory=dict)
    format_version: int = FORMAT_VERSION

    @classmethod
    def load(cls, path: Path) -> Memory:
        """Read the file; a robot that has none remembers nothing. Raises ReleaseError if it is damaged."""
        try:
            values = json.loads(path.read_bytes())
            if values["format_version"] != FORMAT_VERSION:
                raise ValueError(f"its format is {values['format_version']}, expected {FORMAT_VERSION}")
            trial = values.pop("trial")
            return cls(**values, trial=None if trial is None else Trial(**trial))
        except FileNotFoundError:
            return cls()
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise ReleaseError(
                f"{path} remembers which releases this robot has seen, and cannot be read: {error}. Restore it: without it, an "
                "old release counts as new"
            ) from error

    def save(self, path: Path) -> None:
        """Write the file; an old one stays whole until the new one is."""
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(path, json.dumps(asdict(self), indent=1).encode())


@dataclass(frozen=True)
class Offer:
    """A release that this robot may try.

    Attributes:
        release: what was signed.
        content: bytes of the policy file.
        metadata: what the policy says about itself.
        watched_s: time for which it acted in earlier runs, s.
    """

    release: Release
    content: bytes
    metadata: PolicyMetadata
    watched_s: float = 0.0


class ReleaseWatch:
    """Looks into a store for the releases of one robot.

    Attributes:
        memory: what is remembered; on disk too.
        problem: why the present release is not tried, empty if there is nothing to say.
    """

    def __init__(self, store: Path, trusted: Sequence[TrustedKey], robot: RobotConfig, memory: Path) -> None:
        """Read the memory. A policy that was on trial when a run died is refused, as it may have been the cause.

        Args:
            store: folder with the releases.
            trusted: keys that are believed.
            robot: the robot.
            memory: the robot's file.

        Raises:
            ReleaseError: the memory is damaged.
        """
        self._store, self._trusted, self._robot, self._path = store, trusted, robot, memory
        self.memory = Memory.load(memory)
        self.problem = ""
        self._seen: tuple[int, int, int] | None = None
        self._next_s = 0.0
        trial = self.memory.trial
        if trial is not None and trial.is_running:
            self._refuse(trial.sha256, f"release {trial.number}: a run died while it was on trial")

    def first_policy(self) -> Path:
        """Return the policy that a run begins with: the one that has earned its place, or the first release there is.

        Raises:
            PolicyFileError: there is none, or it is not trusted or damaged.
        """
        if self.memory.accepted:
            read_stored_policy(self._store, self.memory.accepted)
        else:
            release = self._read().release
            self._update(highest=release.number, highest_sha256=release.policy_sha256, accepted=release.policy_sha256)
        return policy_path(self._store, self.memory.accepted)

    def poll(self) -> Offer | None:
        """Return a release that should be tried, if there is a new one; looks at most every ``poll_s`` seconds."""
        now_s = time.monotonic()
        if now_s < self._next_s:
            return None
        self._next_s = now_s + self._robot.updates.poll_s
        try:
            status = (self._store / RELEASE_FILE).stat()
            seen = (status.st_mtime_ns, status.st_size, status.st_ino)
            if seen == self._seen:
                return None
            offer = self._read()
        except (DpgError, OSError) as error:  # looked at again the next time: a copy may be under way
            self.problem = str(error)
            return None
        self._seen, self.problem = seen, ""
        number, sha256, trial = offer.release.number, offer.release.policy_sha256, self.memory.trial
        is_known = sha256 == self.memory.accepted
        watched_s = trial.watched_s if trial is not None and trial.sha256 == sha256 else 0.0
        new_trial = None if is_known else Trial(number, sha256, is_running=True, watched_s=watched_s)
        self._update(highest=number, highest_sha256=sha256, trial=new_trial)
        return None if is_known else replace(offer, watched_s=watched_s)

    def note(self, state: UpdateState, release: int, watched_s: float, reason: str = "") -> None:
        """Remember where the policy on trial stands, when that has changed."""
        trial = self.memory.trial
        if trial is None or trial.number != release:
            if state == UpdateState.REFUSED and reason:  # what was noted during the run did not say why
                unexplained = _unexplained(release)
                refused = {
                    sha256: text.replace(unexplained, f"release {release}: {reason}")
                    for sha256, text in self.memory.refused.items()
                }
                self._update(refused=refused)
            return
        if state == UpdateState.WATCHED:
            if not trial.has_acted or watched_s >= trial.watched_s + 1.0:
                self._update(trial=replace(trial, has_acted=True, watched_s=watched_s))
        elif state == UpdateState.ACCEPTED:
            self._update(accepted=trial.sha256, trial=None)
        elif state == UpdateState.REFUSED:
            self._refuse(trial.sha256, f"release {release}: {reason}" if reason else _unexplained(release))

    def end_run(self, fault: str) -> None:
        """Say that the run has ended in order, or with a fault, which speaks against a policy that acted on trial."""
        trial = self.memory.trial
        if trial is None:
            return
        if fault and trial.has_acted:
            self._refuse(trial.sha256, f"release {trial.number}: the robot was stopped while it acted: {fault}")
        else:
            self._update(trial=replace(trial, is_running=False, has_acted=False))

    def _read(self) -> Offer:
        """Read and check the present release.

        Raises:
            PolicyFileError: it is not trusted, old, refused, damaged, or for another robot.
            ContractError: its policy does not fit the robot.
        """
        release = read_release(self._store, self._trusted)
        if release.number < self.memory.highest:
            raise ReleaseError(f"release {release.number} is older than {self.memory.highest}, which this robot has seen already")
        if release.number == self.memory.highest and release.policy_sha256 != self.memory.highest_sha256:
            raise ReleaseError(f"there are two releases of number {release.number}; this robot believes the first that it saw")
        if release.robots and self._robot.name not in release.robots:
            raise ReleaseError(f"release {release.number} is for {', '.join(release.robots)}; this robot is {self._robot.name!r}")
        if release.policy_sha256 in self.memory.refused:
            raise ReleaseError(f"its policy was refused before: {self.memory.refused[release.policy_sha256]}")
        content, metadata = read_released_policy(self._store, release)
        path = policy_path(self._store, release.policy_sha256)
        self._robot.require_fit(metadata.contract, path)
        try:
            PolicySession(content, metadata, str(path)).check_golden_vectors()
        except PolicyFileError as error:
            self._refuse(release.policy_sha256, f"release {release.number}: {error}")
            raise
        return Offer(release, content, metadata)

    def _refuse(self, sha256: str, reason: str) -> None:
        self._update(refused=self.memory.refused | {sha256: reason}, trial=None)

    def _update(self, **changes: Any) -> None:
        changed = replace(self.memory, **changes)
        if changed != self.memory:
            changed.save(self._path)
            self.memory = changed


def _unexplained(release: int) -> str:
    return f"release {release}: it failed on trial"
