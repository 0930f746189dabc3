"""Following the releases of a store while the robot runs, and remembering which were good.

All of it happens in a thread of the supervisor, as a store may be slow or hang. At most one policy is on trial at a time; a newer
release takes its place back first. The memory is a small file on the robot, with the policy that has earned its place beside it,
so that a run begins without the store.
"""

from __future__ import annotations

import json
import sys
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from dpg_robot.deploy.policy_session import PolicySession
from dpg_robot.deploy.policy_updates import ON_TRIAL, UpdateState, encode_offer, encode_recall
from dpg_robot.deploy.run_config import RobotConfig
from dpg_robot.errors import DpgError
from dpg_robot.files import FileLock, write_atomically
from dpg_robot.policy_file import PolicyMetadata
from dpg_robot.release import Release, ReleaseError, TrustedKey, check_stored_policy, read_release, read_released_policy

FORMAT_VERSION = 1
_LOOK_S = 0.1  # at what the control process says
_END_S = 2.0  # for which the end of the thread is waited for, if the store hangs


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
        highest: largest number of a release that was signed by a trusted key.
        highest_sha256: its policy.
        accepted: SHA-256 of the policy that has earned its place; empty: none has.
        trial: the policy that is, or was last, on trial.
        refused: releases whose policies failed, and why.
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
            memory = cls(**values, trial=None if trial is None else Trial(**trial))
            memory._check_types()
        except FileNotFoundError:
            return cls()
        except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            raise ReleaseError(
                f"{path} remembers which releases this robot has seen, and cannot be read: {error}. Restore it: without it, an "
                "old release counts as new"
            ) from error
        return memory

    def save(self, path: Path) -> None:
        """Write the file; an old one stays whole until the new one is."""
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(path, json.dumps(asdict(self), indent=1).encode())

    def _check_types(self) -> None:
        for item in (self, self.trial):
            for name, value in vars(item).items() if item is not None else ():
                expected = {"watched_s": (int, float), "trial": (Trial, type(None))}.get(name, type(getattr(_EXAMPLE, name, "")))
                if name in ("number", "is_running", "has_acted"):
                    expected = int if name == "number" else bool
                if not isinstance(value, expected):
                    raise TypeError(f"{name} is {value!r}")


_EXAMPLE = Memory()


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

    def to_message(self) -> bytes:
        """Return what is sent to the control process."""
        return encode_offer(self.content, self.metadata, self.release.number, self.watched_s)


class ReleaseWatch:
    """Decides, for one robot, which releases are tried; files in, messages out, no threads.

    Attributes:
        memory: what is remembered; on disk too.
        problem: why the present release is not tried, empty if there is nothing to say.
    """

    def __init__(self, store: Path, trusted: Sequence[TrustedKey], robot: RobotConfig, memory: Path) -> None:
        """Read the memory.

        Args:
            store: folder with the releases.
            trusted: keys that are believed.
            robot: the robot.
            memory: the robot's file; the accepted policy lies beside it.

        Raises:
            ReleaseError: the memory is damaged.
        """
        self._store, self._trusted, self._robot, self._path = store, trusted, robot, memory
        self.memory = Memory.load(memory)
        self.problem = ""
        self._lock: FileLock | None = None
        self._metadata: PolicyMetadata | None = None
        self._first: Release | None = None  # of a robot that has none yet; accepted when it has acted
        self._content: dict[str, bytes] = {}

    @property
    def policy_file(self) -> Path:
        """Where the policy lies with which a run begins."""
        return self._path.with_suffix(".onnx")

    def first_policy(self) -> Path:
        """Return the policy that a run begins with: the one that has earned its place, or the present release if none has.

        It is a copy beside the memory, so that nobody can exchange it in the store after it was checked.

        Raises:
            PolicyFileError: there is none, or it is not trusted or damaged.
        """
        if self.memory.accepted:
            _, self._metadata = check_stored_policy(self.policy_file, self.memory.accepted)
            return self.policy_file
        offer = self._read()
        self._first, self._metadata = offer.release, offer.metadata
        self._content = {offer.release.policy_sha256: offer.content}
        self._write_policy(offer.content)
        return self.policy_file

    def begin_run(self) -> None:
        """Take hold of the memory for a run. A policy that was on trial when the last run died is not tried again.

        Raises:
            ReleaseError: another run of this robot has it.
        """
        try:
            self._lock = FileLock(self._path.with_suffix(".lock"))
        except BlockingIOError as error:
            raise ReleaseError(f"another run of this robot uses {self._path}; end it first") from error
        self.memory = Memory.load(self._path)
        trial = self.memory.trial
        if trial is not None and trial.is_running:
            self._refuse(trial.number, "a run died while it was on trial")

    def poll(self) -> bytes | None:
        """Look into the store; return a message for the control process if there is something new: an offer, or a recall.

        Raises:
            OSError: the memory cannot be written.
        """
        try:
            release = self._read_release()
        except DpgError as error:
            self.problem = str(error)
            return None
        trial = self.memory.trial
        if trial is not None and trial.is_running:
            if release.number <= trial.number:
                return None
            # whatever it brings, the one on trial is not what is wanted any more
            return encode_recall(trial.number)
        if str(release.number) in self.memory.refused:
            self.problem = f"release {release.number} was refused before: {self.memory.refused[str(release.number)]}"
            return None
        if self._has_earned_its_place(release.policy_sha256):
            self.problem = ""
            return None
        try:
            offer = self._read()
        except DpgError as error:
            self.problem = str(error)
            return None
        self.problem = ""
        sha256 = release.policy_sha256
        watched_s = trial.watched_s if trial is not None and trial.sha256 == sha256 else 0.0
        self._content[sha256] = offer.content
        self._update(trial=Trial(release.number, sha256, is_running=True, watched_s=watched_s))
        return replace(offer, watched_s=watched_s).to_message()

    def note(self, state: UpdateState, release: int, watched_s: float, reason: str = "") -> None:
        """Remember where the policy on trial stands, when that has changed."""
        trial = self.memory.trial
        if trial is None or trial.number != release or not trial.is_running:
            return
        if state == UpdateState.WATCHED:
            if not trial.has_acted or watched_s >= trial.watched_s + 1.0:
                self._update(trial=replace(trial, has_acted=True, watched_s=watched_s))
        elif state == UpdateState.ACCEPTED:
            self._accept(trial.sha256)
        elif state == UpdateState.REFUSED:
            self._refuse(release, reason or "it failed on trial")
        elif state == UpdateState.RECALLED:
            self._update(trial=None)

    def explain(self, release: int, reason: str) -> None:
        """Add why a release was refused, which is known in detail when the run has ended."""
        if str(release) in self.memory.refused:
            self._update(refused=self.memory.refused | {str(release): reason})

    def end_run(self, fault: str, *, has_acted: bool = True) -> None:
        """Let go of the memory.

        Args:
            fault: why the run was stopped, empty if it ended in order; it speaks against a policy that acted on trial.
            has_acted: whether any policy has acted.
        """
        trial, first = self.memory.trial, self._first
        if first is not None and not self.memory.accepted and has_acted and not fault:
            self._accept(first.policy_sha256)
        if trial is not None and trial.is_running:
            if fault and trial.has_acted:
                self._refuse(trial.number, f"the robot was stopped while it acted: {fault}")
            else:
                self._update(trial=replace(trial, is_running=False, has_acted=False))
        if self._lock is not None:
            self._lock.close()

    def _has_earned_its_place(self, sha256: str) -> bool:
        return sha256 == self.memory.accepted or (self._first is not None and sha256 == self._first.policy_sha256)

    def _read_release(self) -> Release:
        """Read the present release, and remember its number if a trusted key signed it.

        Raises:
            ReleaseError: it is not trusted, or older than one that was seen before.
        """
        release, memory = read_release(self._store, self._trusted), self.memory
        if release.number < memory.highest:
            raise ReleaseError(f"release {release.number} is older than {memory.highest}, which this robot has seen already")
        if release.number == memory.highest and release.policy_sha256 != memory.highest_sha256:
            raise ReleaseError(f"there are two releases of number {release.number}; this robot believes the first that it saw")
        if self._lock is not None:
            self._update(highest=release.number, highest_sha256=release.policy_sha256)
        return release

    def _read(self) -> Offer:
        """Read and check the present release and its policy.

        Raises:
            PolicyFileError: it is not trusted, old, damaged, or for another robot.
            ContractError: its policy does not fit the robot.
        """
        release = self._read_release()
        if release.robots and self._robot.name not in release.robots:
            raise ReleaseError(f"release {release.number} is for {', '.join(release.robots)}; this robot is {self._robot.name!r}")
        content, metadata = read_released_policy(self._store, release)
        source = f"release {release.number}"
        self._robot.require_fit(metadata.contract, Path(source))
        self._require_same_terms(metadata, source)
        PolicySession(content, metadata, source).check_golden_vectors()
        return Offer(release, content, metadata)

    def _require_same_terms(self, metadata: PolicyMetadata, source: str) -> None:
        """Refuse a policy that cannot take over in a run: the loop and its log were set up for the contract of the first one."""
        if self._metadata is None:
            return
        ours, theirs = self._metadata.contract, metadata.contract
        for name in ("task", "action_repeat", "latency_budget_s"):
            if getattr(ours, name) != getattr(theirs, name):
                raise ReleaseError(
                    f"{source} has {name} {getattr(theirs, name)!r}, the policy that acts {getattr(ours, name)!r}; a run cannot "
                    "change it. Start anew with --policy"
                )

    def _write_policy(self, content: bytes) -> None:
        self._path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(self.policy_file, content)

    def _accept(self, sha256: str) -> None:
        self._write_policy(self._content[sha256])
        trial = self.memory.trial
        self._update(accepted=sha256, trial=None if trial is None or trial.sha256 == sha256 else trial)

    def _refuse(self, number: int, reason: str) -> None:
        self._update(refused=self.memory.refused | {str(number): reason}, trial=None)

    def _update(self, **changes: Any) -> None:
        changed = replace(self.memory, **changes)
        if changed != self.memory:
            changed.save(self._path)
            self.memory = changed


class ReleaseThread:
    """Runs a :class:`ReleaseWatch` beside the supervisor; nothing that it does may hold that up or end it."""

    def __init__(
        self,
        watch: ReleaseWatch,
        look: Callable[[], tuple[UpdateState, int, float]],
        send: Callable[[bytes], None],
        poll_s: float,
    ) -> None:
        """Begin.

        Args:
            watch: what decides.
            look: returns where the last new policy stands, the number of its release, and for how long it was watched, s.
            send: takes messages to the control process; may block.
            poll_s: time between looks into the store, s.
        """
        self._watch, self._look, self._send, self._poll_s = watch, look, send, poll_s
        self._stop = threading.Event()
        self._said = ""
        self._last = (UpdateState.NONE, 0)
        self._recalled = 0
        self._thread = threading.Thread(target=self._run, name="releases", daemon=True)
        self._thread.start()

    def end(self, fault: str, *, has_acted: bool, reasons: dict[int, str]) -> None:
        """End the thread and take note of how the run ended, and why releases were refused, by number."""
        self._stop.set()
        self._thread.join(_END_S)
        if self._thread.is_alive():
            self._say("the store does not answer; where its last policy stood is not remembered")
            return
        try:
            self._look_once()
            for release, reason in reasons.items():
                self._watch.explain(release, reason)
            self._watch.end_run(fault, has_acted=has_acted)
        except (DpgError, OSError) as error:
            self._say(f"what became of a release cannot be remembered: {error}")

    def _run(self) -> None:
        next_s = 0.0
        while not self._stop.wait(_LOOK_S):
            try:
                self._look_once()
                if time.monotonic() >= next_s:
                    next_s = time.monotonic() + self._poll_s
                    self._poll_once()
            except Exception as error:  # the robot goes on with what it has
                self._say(f"releases cannot be followed: {type(error).__name__}: {error}")

    def _look_once(self) -> None:
        state, release, watched_s = self._look()
        self._watch.note(state, release, watched_s)
        if (state, release) != self._last:
            self._last = (state, release)
            self._say(f"release {release}: {state.name.lower()}")

    def _poll_once(self) -> None:
        message = self._watch.poll()
        if message is not None and not self._repeats_recall(message):
            self._send(message)
        if self._watch.problem:
            self._say(f"the release is not used: {self._watch.problem}")

    def _repeats_recall(self, message: bytes) -> bool:
        """Whether the control process has been told already, and only has to act on it."""
        trial = self._watch.memory.trial
        if trial is None or message != encode_recall(trial.number):
            return False
        state, release, _ = self._look()
        if state not in ON_TRIAL and release < trial.number:
            self._watch.note(UpdateState.RECALLED, trial.number, 0.0)  # it has not been taken up, and will not be
        repeats, self._recalled = self._recalled == trial.number, trial.number
        return repeats

    def _say(self, text: str) -> None:
        if text != self._said:
            self._said = text
            print(f"robot: {text}", file=sys.stderr)
