"""What a model store holds: versions with the gate's verdicts, signed releases, and which policy robots should run.

Only reads, other than :mod:`dpg_robot.host.model_store`, which makes the folder.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from dpg_robot.host.dashboard.files import parse_object, read_bounded, read_json, text, wall_s, whole
from dpg_robot.policy_file import read_policy_file
from dpg_robot.release import ReleaseError, TrustedKey, verify_release

_SHOWN = 50
_READ_AT_ONCE = 500  # versions that are read in a look; the others in the next ones


@dataclass(frozen=True)
class Version:
    """A candidate.

    Attributes:
        number: of the version.
        policy_id: of its policy.
        passed: whether the gate let it pass; None if its verdict cannot be read.
        reasons: of the gate, one sentence for each condition.
        judged_s: Unix time.
        is_current: whether robots should run it.
    """

    number: int
    policy_id: str
    passed: bool | None
    reasons: tuple[str, ...]
    judged_s: float | None
    is_current: bool = False


@dataclass(frozen=True)
class ReleaseStatus:
    """A signed release.

    Attributes:
        number: of the release.
        policy_id: of its policy.
        reason: why.
        released_s: Unix time.
        robots: names of those that it is for; empty: all.
        signature: ``right``, ``not checked`` without a key, or what is wrong with it.
    """

    number: int
    policy_id: str
    reason: str
    released_s: float | None
    robots: tuple[str, ...]
    signature: str


@dataclass(frozen=True)
class ModelStatus:
    """A model store.

    Attributes:
        current_policy: id of the policy that robots should run; empty if there is none.
        versions: the newest ones, and the current one, newest first.
        passed: number of versions that passed the gate.
        rejected: number of those that did not.
        releases: the newest ones, newest first.
        problem: why something is missing, in words.
    """

    current_policy: str
    versions: tuple[Version, ...]
    passed: int
    rejected: int
    releases: tuple[ReleaseStatus, ...]
    problem: str


class ModelWatch:
    """Looks into a model store again and again; what does not change any more is read once.

    Args:
        folder: the store.
        trusted: keys by which signatures are checked; none leaves them unchecked.
    """

    def __init__(self, folder: Path, trusted: Sequence[TrustedKey] = ()) -> None:
        self._folder = folder
        self._trusted = tuple(trusted)
        self._versions: dict[int, Version] = {}
        self._releases: dict[int, ReleaseStatus] = {}
        self._current: tuple[tuple[int, int, int], str, str] = ((0, 0, 0), "", "")

    def poll(self) -> ModelStatus:
        """Return what is there."""
        problems: list[str] = []
        try:
            found = _numbers(self._folder / "versions", "")
        except OSError as error:
            found = {}
            problems.append(text(error))
        for number in [each for each in sorted(found, reverse=True) if each not in self._versions][:_READ_AT_ONCE]:
            self._versions[number] = _read_version(number, found[number])
        self._versions = {number: version for number, version in self._versions.items() if number in found}
        current, problem = self._current_policy()
        problems += [problem] if problem else []
        versions = sorted(self._versions.values(), key=lambda version: -version.number)
        is_current = [bool(current) and version.policy_id == current for version in versions]
        shown = [
            Version(**{**vars(version), "is_current": running})
            for index, (version, running) in enumerate(zip(versions, is_current, strict=True))
            if index < _SHOWN or running
        ]
        return ModelStatus(
            current_policy=current,
            versions=tuple(shown[: 2 * _SHOWN]),
            passed=sum(version.passed is True for version in versions),
            rejected=sum(version.passed is False for version in versions),
            releases=self._newest_releases(),
            problem="; ".join(problems),
        )

    def _newest_releases(self) -> tuple[ReleaseStatus, ...]:
        try:
            found = _numbers(self._folder / "releases", ".json")
        except OSError:  # without a signing key there are none
            found = {}
        newest = sorted(found, reverse=True)[:_SHOWN]
        self._releases = {
            number: self._releases.get(number) or _read_release(number, found[number], self._trusted) for number in newest
        }
        return tuple(self._releases[number] for number in newest)

    def _current_policy(self) -> tuple[str, str]:
        """Return the id of the current policy, and why there is none, in words."""
        path = self._folder / "policy.onnx"
        try:
            status = path.stat()
            state = status.st_ino, status.st_mtime_ns, status.st_size
            if state != self._current[0]:
                self._current = state, "", ""
                self._current = state, read_policy_file(path)[1].policy_id, ""
        except FileNotFoundError:
            return "", "no policy was published yet"
        except (OSError, ValueError) as error:
            self._current = *self._current[:2], f"policy.onnx cannot be read: {text(error)}"
        return self._current[1:]


def _numbers(folder: Path, suffix: str) -> dict[int, Path]:
    with os.scandir(folder) as entries:
        names = [entry.name for entry in entries]
    stems = [name.removesuffix(suffix) for name in names if name.endswith(suffix)]
    return {int(stem): folder / f"{stem}{suffix}" for stem in stems if stem.isdecimal() and stem.isascii() and len(stem) < 10}


def _read_version(number: int, folder: Path) -> Version:
    path = folder / "verdict.json"
    try:
        values = read_json(path)
        verdict = values.get("verdict")
        if not isinstance(verdict, dict) or not isinstance(verdict.get("passed"), bool):
            raise ValueError("verdict.json holds no verdict")
        reasons = verdict.get("reasons")
        reasons = tuple(text(reason) for reason in reasons[:50]) if isinstance(reasons, list) else ()
        return Version(number, text(values.get("policy_id"), 40), verdict["passed"], reasons, path.stat().st_mtime)
    except (OSError, ValueError) as error:
        return Version(number, "", None, (f"the verdict cannot be read: {text(error)}",), None)


def _read_release(number: int, path: Path, trusted: Sequence[TrustedKey]) -> ReleaseStatus:
    try:
        content = read_bounded(path)
        document = parse_object(content, path.name)
        said = parse_object(str(document.get("release")), "the release")
        signature = "not checked"
        if trusted:
            try:
                verify_release(content, trusted)
                signature = "right"
            except ReleaseError as error:
                signature = f"WRONG: {text(error)}"
        if whole(said.get("number")) != number:
            signature = f"WRONG: the file of release {number} says that it is release {text(said.get('number'), 20)}"
        robots = said.get("robots")
        return ReleaseStatus(
            number=number,
            policy_id=text(said.get("policy_id"), 40),
            reason=text(said.get("reason")),
            released_s=wall_s(said.get("wall_ns")),
            robots=tuple(text(name, 80) for name in robots[:50]) if isinstance(robots, list) else (),
            signature=signature,
        )
    except (OSError, ValueError) as error:
        return ReleaseStatus(number, "", "", None, (), f"cannot be read: {text(error)}")
