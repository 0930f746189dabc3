"""A report of what looks wrong in a data set or robot log: gaps, jumps, saturation, dead channels, units, ends, rewards."""

from __future__ import annotations

import dataclasses
import hashlib
import math
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from dpg_robot.contract import Contract
from dpg_robot.data.channel_statistics import ChannelFacts, ChannelTable
from dpg_robot.data.episode_source import EpisodeSource, FoundEpisode, iterate_episodes
from dpg_robot.data.log_source import LogSource
from dpg_robot.data.robot_log import LogPath, check_log, find_runs, read_segments
from dpg_robot.data.transition import LoopState

Severity = Literal["error", "warning", "note"]

_JUMP_FACTOR = 10.0  # times the 99th percentile of the steps; far beyond what noise gives
_MANY_AT_LIMIT, _SOME_AT_LIMIT = 0.5, 0.05
_TURN_RAD = 2 * math.pi
_LARGEST_PLAUSIBLE = {"rad": _TURN_RAD, "rad/s": 100.0, "m": 50.0, "m/s": 50.0}
_LIKELY_INSTEAD = {
    "rad": "degrees, or turns that are counted on",
    "rad/s": "degrees/s",
    "m": "millimetres",
    "m/s": "millimetres/s",
}
_ANGLE_NAME = re.compile(r"angle|theta|yaw|pitch|roll|joint|qpos", re.IGNORECASE)
_FEW_STEPS = 10


@dataclass(frozen=True)
class Finding:
    """One thing that looks wrong.

    Attributes:
        severity: error (cannot be learned from, or is lost), warning (probably not meant), note (good to know).
        what: kind of finding, a short fixed text such as ``jump``.
        where: channel, episode or run.
        text: what was found, with numbers and units.
    """

    severity: Severity
    what: str
    where: str
    text: str

    def __str__(self) -> str:
        return f"{self.severity}: {self.what}: {self.where}: {self.text}"


@dataclass(frozen=True)
class ValidityReport:
    """What was found, errors first, and the facts about all channels."""

    name: str
    episodes: int
    transitions: int
    findings: tuple[Finding, ...]
    channels: tuple[ChannelFacts, ...]

    def count(self, severity: Severity) -> int:
        """Return the number of findings of a severity."""
        return sum(finding.severity == severity for finding in self.findings)

    def to_dict(self) -> dict[str, Any]:
        """Return plain values for JSON; numbers that are not finite are None."""
        plain = dataclasses.asdict(self)
        for channel in plain["channels"]:
            channel["largest_steps"] = channel["largest_steps"][:5]
            channel |= {key: None for key, value in channel.items() if isinstance(value, float) and not math.isfinite(value)}
        return plain

    def __str__(self) -> str:
        counts = ", ".join(f"{self.count(severity)} {severity}s" for severity in _SEVERITIES)
        return "\n".join(
            [f"{self.name}: {self.transitions} transitions in {self.episodes} episodes; {counts}", *map(str, self.findings)]
        )


_SEVERITIES: tuple[Severity, ...] = ("error", "warning", "note")


def examine(source: EpisodeSource) -> ValidityReport:
    """Read all of a data set once and report what looks wrong; the data set need not be one that can be learned from."""
    contract = source.contract
    units = {channel.name: channel.unit for channel in contract.measurements}
    names = [each.channel if each.kind == "identity" else f"{each.kind}({each.channel})" for each in contract.features]
    kinds = ["1" if each.kind != "identity" else units[each.channel] for each in contract.features]
    observed = ChannelTable("observation", names, kinds)
    return _examine(source, observed, [])


def examine_log(path: LogPath) -> ValidityReport:
    """As :func:`examine` for a robot log, with its measurements in place of observations, and with what is missing in it."""
    findings = []
    for run in check_log(path).runs:
        findings += [Finding("error", "gap or damage", f"run {run.run_id}", problem) for problem in run.problems]
        if run.truncated_tail:
            findings.append(Finding("note", "cut-off end", f"run {run.run_id}", run.truncated_tail))
        if run.invalid_transitions or run.skipped_periods:
            text = f"{run.invalid_transitions} of {run.transitions} transitions; {run.skipped_periods} periods skipped"
            findings.append(Finding("warning", "stale measurements or skipped periods", f"run {run.run_id}", text))
    source = LogSource(path, on_damage="skip")
    contract = source.run_contract
    measured = ChannelTable("measurement", contract.measurement_names, [channel.unit for channel in contract.measurements])
    for label, rows in _measurements(path):
        measured.add(label, rows)
    return _examine(source, measured, findings)


@dataclass
class _Episodes:
    """Gathers what concerns whole episodes."""

    contract: Contract
    count: int = 0
    transitions: int = 0
    terminations: int = 0
    notes: dict[str, int] = field(default_factory=dict)
    findings: list[Finding] = field(default_factory=list)
    returns: list[float] = field(default_factory=list)
    reward_low: float = math.inf
    reward_high: float = -math.inf
    _digests: dict[bytes, str] = field(default_factory=dict)

    def add(self, found: FoundEpisode) -> None:
        episode, label = found.episode, found.label
        self.count, self.transitions = self.count + 1, self.transitions + len(episode)
        for note in found.notes:
            self.notes[note] = self.notes.get(note, 0) + 1
        digest = hashlib.sha256(np.ascontiguousarray(episode.observations).tobytes() + episode.actions.tobytes()).digest()
        if digest in self._digests:
            self._say("warning", "duplicate", label, f"the same observations and actions as {self._digests[digest]}")
        self._digests.setdefault(digest, label)
        self._check_ends(found)
        self._check_times(found)
        if episode.rewards is not None:
            self._check_rewards(episode.rewards, label)

    def _say(self, severity: Severity, what: str, where: str, text: str) -> None:
        self.findings.append(Finding(severity, what, where, text))

    def _check_ends(self, found: FoundEpisode) -> None:
        ends = found.episode.terminations | found.episode.truncations
        self.terminations += bool(found.episode.terminations.any())
        if len(ends) and not ends[-1]:
            self._say("error", "missing end", found.label, "the last transition is neither terminated nor truncated")
        if ends[:-1].any():
            self._say("error", "end in the middle", found.label, f"ends at row {int(np.argmax(ends))} of {len(ends)}")

    def _check_times(self, found: FoundEpisode) -> None:
        if found.times_s is None or len(found.times_s) < 2:
            return
        periods = np.diff(found.times_s) * self.contract.rate_hz
        wrong = np.abs(periods - 1.0) > 0.5
        if wrong.any():
            worst = int(np.argmax(np.abs(periods - 1.0)))
            text = f"{np.count_nonzero(wrong)} steps are not one period long; step {worst} takes {periods[worst]:.2f} periods"
            self._say("warning", "gap in time", found.label, text)

    def _check_rewards(self, rewards: NDArray[np.float32], label: str) -> None:
        if not np.isfinite(rewards).all():
            self._say("error", "not finite", label, f"{np.count_nonzero(~np.isfinite(rewards))} of {len(rewards)} rewards")
            return
        self.returns.append(float(rewards.sum(dtype=np.float64)))
        self.reward_low, self.reward_high = (
            min(self.reward_low, float(rewards.min())),
            max(self.reward_high, float(rewards.max())),
        )

    def conclude(self) -> None:
        for note, times in self.notes.items():
            self._say("note", "changed in reading", f"{times} episodes", note)
        if not self.count:
            self._say("error", "empty", "data set", "there are no episodes")
        elif not self.terminations:
            self._say("note", "no terminals", "all episodes", "none ends for good; right for tasks that only run out of time")
        if not self.returns:
            self._say("note", "no rewards", "data set", "only motion can be learned from it")
        elif self.reward_low == self.reward_high:
            self._say("warning", "constant reward", "data set", f"each is {self.reward_low:g}; nothing tells good from bad")
        else:
            low, high = min(self.returns), max(self.returns)
            self._say(
                "note", "rewards", "data set", f"from {self.reward_low:g} to {self.reward_high:g}; returns {low:g} to {high:g}"
            )


def _examine(source: EpisodeSource, observed: ChannelTable, findings: list[Finding]) -> ValidityReport:
    contract = source.contract
    actions = ChannelTable("action", contract.command_names, ["1"] * contract.num_actions)
    episodes = _Episodes(contract)
    for found in iterate_episodes(source):
        episodes.add(found)
        actions.add(found.label, found.episode.actions)
        if observed.kind == "observation":
            observed.add(found.label, found.episode.observations)
    episodes.conclude()
    channels = (*observed.facts(), *actions.facts())
    judged = [*findings, *episodes.findings, *(finding for channel in channels for finding in _judge(channel))]
    ordered = sorted(judged, key=lambda finding: _SEVERITIES.index(finding.severity))
    return ValidityReport(source.name, episodes.count, episodes.transitions, tuple(ordered), channels)


def _measurements(path: LogPath) -> Iterator[tuple[str, NDArray[np.float64]]]:
    """Yield label and measurements (n, M) of each stretch of an episode that lies in one segment."""
    for run in find_runs(path):
        for segment, run_id, records in read_segments(run, on_damage="skip"):
            if len(records):
                running = records[(records["state"] == LoopState.RUNNING) & (records["episode"] >= 0)]
                for episode in np.unique(running["episode"]).tolist():
                    yield (
                        f"run {run_id}, {segment.name}, episode {episode}",
                        running["measurement"][running["episode"] == episode],
                    )


def _judge(channel: ChannelFacts) -> Iterator[Finding]:
    where = f"{channel.kind} {channel.name}"
    if channel.not_finite:
        text = f"{channel.not_finite} values are NaN or infinite, the first in {channel.first_not_finite}"
        yield Finding("error", "not finite", where, text)
    if channel.count > 1 and channel.low == channel.high:
        yield Finding("warning", "constant", where, f"always {channel.low:g}")
    yield from _judge_jumps(channel, where)
    if channel.kind == "action":
        yield from _judge_action(channel, where)
    else:
        yield from _judge_unit(channel, where)


def _judge_jumps(channel: ChannelFacts, where: str) -> Iterator[Finding]:
    # a channel that mostly stands still and sometimes switches has no typical step to compare with
    if channel.kind == "action" or channel.count < _FEW_STEPS or channel.typical_step == 0.0:
        return
    beyond = [step for step in channel.largest_steps if step > _JUMP_FACTOR * channel.typical_step]
    if not beyond:
        return
    if channel.unit in ("rad", "unknown") and all(abs(step - _TURN_RAD) < 0.1 * _TURN_RAD for step in beyond):
        text = f"jumps by 2 pi, {_many(beyond)} times, first of them in {channel.largest_step_at}; let the policy see cos and sin"
        yield Finding("warning", "angle wraps around", where, text)
        return
    text = (
        f"{_many(beyond)} steps beyond {_JUMP_FACTOR:g} times the usual {channel.typical_step:.3g} (99 % of steps); "
        f"the largest is {beyond[0]:.3g} in {channel.largest_step_at}"
    )
    yield Finding("warning", "jump", where, text)


def _many(values: list[float]) -> str:
    return f"{len(values)} or more" if len(values) >= 100 else str(len(values))


def _judge_action(channel: ChannelFacts, where: str) -> Iterator[Finding]:
    if channel.count and max(abs(channel.low), abs(channel.high)) > 1 + 1e-5:
        yield Finding("error", "beyond limits", where, f"from {channel.low:g} to {channel.high:g}; actions lie in [-1, 1]")
    if channel.at_limit >= _SOME_AT_LIMIT:
        severity: Severity = "warning" if channel.at_limit >= _MANY_AT_LIMIT else "note"
        yield Finding(severity, "saturated", where, f"{100 * channel.at_limit:.1f} % of actions are at -1 or 1")


def _judge_unit(channel: ChannelFacts, where: str) -> Iterator[Finding]:
    unit = "rad" if channel.unit == "unknown" and _ANGLE_NAME.search(channel.name) else channel.unit
    limit, largest = _LARGEST_PLAUSIBLE.get(unit), max(abs(channel.low), abs(channel.high))
    if limit is not None and largest > 1.05 * limit:
        text = f"up to {largest:.4g} {unit}, beyond {limit:.3g}; perhaps {_LIKELY_INSTEAD[unit]}"
        yield Finding("warning", "unit", where, text)
