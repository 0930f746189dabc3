"""The policies of a run: the one that acts, and a new one that has to earn its place while the robot moves.

A new policy first runs in the shadow of the acting one: it sees the same measurements, and its actions are compared, after the
command of the tick was sent. Then it acts, from one tick to the next, and is watched for a while, with the old policy in its
shadow. If it fails meanwhile, the old one acts again, in the same tick.
"""

from __future__ import annotations

import json
import sys
import time
from collections import deque
from dataclasses import dataclass
from enum import IntEnum
from multiprocessing.connection import Connection
from threading import Thread
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dpg_robot.config import setting
from dpg_robot.contract import Contract
from dpg_robot.deploy.policy_session import PolicySession
from dpg_robot.deploy.safety import SafetyFlag
from dpg_robot.errors import ConfigError
from dpg_robot.policy_file import GoldenVectors, PolicyMetadata

_INTERVENTIONS = (
    SafetyFlag.NON_FINITE
    | SafetyFlag.COMMAND_LIMITED
    | SafetyFlag.RATE_LIMITED
    | SafetyFlag.SOFT_LIMIT
    | SafetyFlag.LEAD_LIMITED
    | SafetyFlag.OVERRUN
)
_WINDOW = 20  # ticks, of which a share means something
_MOST_OF_PERIOD = 0.5  # that a policy in the shadow may take
_RETIRE_S = 0.5


@dataclass(frozen=True)
class UpdateConfig:
    """How a new policy gets to act."""

    shadow_s: float = setting(5.0, "time for which a new policy runs beside the acting one before it acts", unit="s")
    watch_s: float = setting(30.0, "time for which it is watched then, with the old one ready to act again", unit="s")
    max_difference: float = setting(
        1.0, "largest mean difference of its actions from those of the acting policy in the shadow", unit="of the range -1 to 1"
    )
    max_interventions: float = setting(
        0.1, "share of the watched ticks in which the safety layers may act more often than before", unit="1"
    )
    poll_s: float = setting(1.0, "time between looks for a new release", unit="s")

    def __post_init__(self) -> None:
        for name in ("shadow_s", "watch_s", "poll_s", "max_difference"):
            if not 0 < getattr(self, name) < float("inf"):
                raise ConfigError(f"{name} must be positive and finite, got {getattr(self, name)}")
        if not 0 <= self.max_interventions <= 1:
            raise ConfigError(f"max_interventions must be 0 to 1, got {self.max_interventions}")


class UpdateState(IntEnum):
    """Where a new policy stands; RECALLED is neither good nor bad: another release took its place."""

    NONE = 0
    SHADOW = 1
    WATCHED = 2
    ACCEPTED = 3
    REFUSED = 4
    RECALLED = 5


ON_TRIAL = (UpdateState.SHADOW, UpdateState.WATCHED)


@dataclass(frozen=True)
class UpdateEvent:
    """What happened to a new policy, for the report.

    Attributes:
        tick: number of records before it.
        state: where the policy stands since.
        release: number of its release.
        policy_id: the policy.
        reason: why, with figures.
    """

    tick: int
    state: UpdateState
    release: int
    policy_id: str
    reason: str

    def to_dict(self) -> dict[str, Any]:
        """Return plain values for JSON."""
        return {**vars(self), "state": self.state.name.lower()}


@dataclass(frozen=True)
class Candidate:
    """A policy that may follow the acting one.

    Attributes:
        session: the policy, loaded.
        release: number of its release.
        watched_s: time for which it was watched in earlier runs, s.
    """

    session: PolicySession
    release: int
    watched_s: float = 0.0


class PolicyUpdates:
    """All policies of a run, as one that acts; the control loop asks it as it would ask a session.

    In each tick the loop calls :meth:`step`, sends what is safe, and then calls :meth:`finish`.

    Attributes:
        acting: the policy that acts.
        state: where the last new policy stands.
        release: number of its release, 0 if there was none.
        watched: ticks for which it has been watched.
        events: what happened so far.
        retired: policies that are not needed any more, for another thread to let go of.
    """

    def __init__(self, session: PolicySession, config: UpdateConfig | None = None) -> None:
        """Begin with a policy that acts and no other."""
        self.acting = session
        self.state, self.release, self.watched = UpdateState.NONE, 0, 0
        self.events: list[UpdateEvent] = []
        self.retired: deque[PolicySession] = deque()
        self._config = config or UpdateConfig()
        rate_hz = session.contract.rate_hz
        self._shadow_ticks = max(1, round(self._config.shadow_s * rate_hz))
        self._watch_ticks = max(1, round(self._config.watch_s * rate_hz))
        self._longest_ns = round(_MOST_OF_PERIOD * session.contract.period_ns)
        self._offers: deque[Candidate] = deque(maxlen=1)  # filled by another thread
        self._recalled = 0  # set by another thread: releases up to this number are not to act any more
        self._other: PolicySession | None = None  # the new policy in the shadow, then the old one
        self._tick = 0
        self._other_has_stepped = False
        self._difference = 0.0
        self._shadowed = self._shadow_interventions = 0
        self._window: deque[bool] = deque(maxlen=_WINDOW)

    @property
    def contract(self) -> Contract:
        """The contract of the policy that acts."""
        return self.acting.contract

    def offer(self, candidate: Candidate) -> None:
        """Offer a policy; it is taken up between two ticks, once there is no other on trial. Any thread may call this."""
        self._offers.append(candidate)

    def recall(self, release: int) -> None:
        """Take back releases up to a number, as soon as the next tick. Any thread may call this."""
        self._recalled = max(self._recalled, release)

    def reset(self) -> None:
        """Forget all histories, at the start of an episode."""
        self.acting.reset()
        if self._other is not None:
            self._other.reset()

    def step(self, measurement: NDArray[np.float64], tick: int) -> NDArray[np.float64]:
        """Return the command (C,) for a measurement (M,), SI units.

        Args:
            measurement: what was measured.
            tick: number of records so far, for the report.

        Raises:
            Exception: what the acting policy raises, if there is no other that could act.
        """
        self._tick, self._other_has_stepped = tick, False
        self._move_on()
        if self.state != UpdateState.WATCHED:
            return self.acting.step(measurement)
        try:
            command = self.acting.step(measurement)
            if np.isfinite(command).all() and np.isfinite(self.acting.action).all():
                return command
            fault = "a command that is not finite"
        except Exception as error:
            fault = f"{type(error).__name__}: {error}"
        self._roll_back(fault)
        return self.acting.step(measurement)

    @property
    def action(self) -> NDArray[np.float64]:
        """(A,) action of the acting policy in the last step; a copy."""
        return self.acting.action

    def finish(self, measurement: NDArray[np.float64], executed: NDArray[np.float64], safety: int, *, changed: bool) -> None:
        """End a tick, when its command was sent: let the other policy decide too, and take note of how it went.

        Args:
            measurement: (M,) what :meth:`step` got.
            executed: (A,) action that was carried out.
            safety: what the safety layers did, as bits of SafetyFlag.
            changed: whether ``executed`` is another than :attr:`action`.
        """
        if changed:
            self.acting.record_executed(executed)
        if self._other is not None:
            self._step_other(measurement, executed)
        self._note(bool(safety & _INTERVENTIONS))

    def _step_other(self, measurement: NDArray[np.float64], executed: NDArray[np.float64]) -> None:
        other, in_shadow = self._other, self.state == UpdateState.SHADOW
        assert other is not None
        begin_ns = time.monotonic_ns()
        try:
            command = other.step(measurement)
            fault = "" if np.isfinite(command).all() and np.isfinite(other.action).all() else "a command that is not finite"
        except Exception as error:
            fault = f"{type(error).__name__}: {error}"
        took_ns = time.monotonic_ns() - begin_ns
        if in_shadow and took_ns > self._longest_ns:
            fault = fault or f"its step took {took_ns * 1e-6:.2f} ms, allowed are {self._longest_ns * 1e-6:.2f} ms"
        if fault and in_shadow:
            self._refuse(fault)
        elif fault:  # the old policy cannot act again; the new one has no one behind it any more
            self._let_go()
            self._enter(UpdateState.ACCEPTED, self.acting, f"the policy before it failed: {fault}")
        else:
            if in_shadow:
                self._shadowed += 1
                self._difference += float(np.abs(other.action - self.acting.action).mean())
            other.record_executed(executed)

    def _note(self, intervened: bool) -> None:
        if self.state == UpdateState.SHADOW:
            self._shadow_interventions += intervened
        elif self.state == UpdateState.WATCHED:
            self.watched += 1
            self._window.append(intervened)
            before = self._shadow_interventions / max(1, self._shadowed)
            now = sum(self._window) / _WINDOW
            if now > before + self._config.max_interventions and len(self._window) == _WINDOW:
                self._roll_back(f"the safety layers acted in {now:.0%} of {_WINDOW} ticks, {before:.0%} before")

    def _move_on(self) -> None:
        """Take up an offer, let a new policy act, accept it or take it back: what happens between two ticks."""
        if self.state in ON_TRIAL and self.release <= self._recalled:
            if self.state == UpdateState.WATCHED:
                assert self._other is not None
                self.acting, self._other = self._other, self.acting
            recalled = self._let_go()
            self._enter(UpdateState.RECALLED, recalled, f"taken back; {self.acting.policy_id} acts")
        elif self.state == UpdateState.SHADOW and self._shadowed >= self._shadow_ticks:
            self._judge_shadow()
        elif self.state == UpdateState.WATCHED and self.watched >= self._watch_ticks and len(self._window) == _WINDOW:
            self._let_go()
            self._enter(UpdateState.ACCEPTED, self.acting, f"acted for {self.watched} ticks without a fault")
        elif self.state not in ON_TRIAL and self._offers:
            self._take_up(self._offers.popleft())

    def _take_up(self, candidate: Candidate) -> None:
        if candidate.release <= max(self.release, self._recalled):
            self.retired.append(candidate.session)
            return
        self._other, self.release = candidate.session, candidate.release
        self._other.reset()
        self.watched = round(candidate.watched_s * self.contract.rate_hz)
        self._difference, self._shadowed, self._shadow_interventions = 0.0, 0, 0
        self._window.clear()
        self._enter(UpdateState.SHADOW, self._other, f"runs beside {self.acting.policy_id} for {self._shadow_ticks} ticks")

    def _judge_shadow(self) -> None:
        assert self._other is not None
        difference = self._difference / self._shadowed
        if not difference <= self._config.max_difference:
            self._refuse(f"its actions differ by {difference:.3g} in the mean, allowed are {self._config.max_difference:g}")
            return
        self.acting, self._other = self._other, self.acting
        old = self._other.policy_id
        self._enter(UpdateState.WATCHED, self.acting, f"acts instead of {old}; their actions differ by {difference:.3g}")

    def _roll_back(self, reason: str) -> None:
        assert self._other is not None
        self.acting, self._other = self._other, self.acting
        self._refuse(f"after {self.watched} ticks: {reason}; {self.acting.policy_id} acts again")

    def _refuse(self, reason: str) -> None:
        self._enter(UpdateState.REFUSED, self._let_go(), reason)

    def _let_go(self) -> PolicySession:
        """Have the acting policy alone, and return the other, which is destroyed elsewhere: that takes longer than a tick."""
        other, self._other = self._other, None
        assert other is not None
        self.retired.append(other)
        return other

    def _enter(self, state: UpdateState, session: PolicySession, reason: str) -> None:
        self.state = state
        self.events.append(UpdateEvent(self._tick, state, self.release, session.policy_id, reason))


def encode_offer(content: bytes, metadata: PolicyMetadata, release: int, watched_s: float) -> bytes:
    """Return the message that carries a checked policy to the control process."""
    header = {
        "contract": metadata.contract.to_dict(),
        "graph_hash": metadata.graph_hash,
        "release": release,
        "watched_s": watched_s,
    }
    return json.dumps(header).encode() + b"\n" + content


def encode_recall(release: int) -> bytes:
    """Return the message that takes back all releases up to a number."""
    return json.dumps({"recall": release}).encode() + b"\n"


def decode_message(message: bytes) -> Candidate | int:
    """Load the policy of a message, whose golden vectors were replayed by the sender; or return the number of a recall."""
    text, _, content = message.partition(b"\n")
    header = json.loads(text)
    if "recall" in header:
        return int(header["recall"])
    contract = Contract.from_dict(header["contract"])
    metadata = PolicyMetadata(contract, header["graph_hash"], _no_golden_vectors(contract))
    session = PolicySession(content, metadata, f"release {header['release']}")
    session.step(np.zeros(contract.num_measurements))  # the first step of a session takes many times as long as the others
    session.reset()
    return Candidate(session, header["release"], header["watched_s"])


def receive_offers(offers: Connection, updates: PolicyUpdates) -> None:
    """Load policies as they come, in a thread of its own: that takes longer than a tick, but hardly holds up the others."""

    def receive() -> None:
        while True:
            updates.retired.clear()
            try:
                if not offers.poll(_RETIRE_S):
                    continue
                message = offers.recv_bytes()
            except (EOFError, OSError):  # the supervisor is gone, and the robot stops
                return
            try:
                found = decode_message(message)
            except Exception as error:  # the sender could load it; the run goes on with what it has
                print(f"robot: a new policy cannot be loaded: {type(error).__name__}: {error}", file=sys.stderr)
                continue
            if isinstance(found, int):
                updates.recall(found)
            else:
                updates.offer(found)
            del found, message

    Thread(target=receive, name="policy-loader", daemon=True).start()


def _no_golden_vectors(contract: Contract) -> GoldenVectors:
    m, h, a = contract.num_measurements, contract.history_size, contract.num_actions
    return GoldenVectors(*(np.zeros((0, size), np.float32) for size in (m, h, a, a, h)))
