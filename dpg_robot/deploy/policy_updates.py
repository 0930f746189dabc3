"""The policies of a run: the one that acts, and a new one that has to earn its place while the robot moves.

A new policy first runs in the shadow of the acting one: it sees the same measurements, and its actions are compared. Then it
acts, from one tick to the next, and is watched for a while, with the old policy in its shadow. If it fails meanwhile, the old one
acts again, in the same tick.
"""

from __future__ import annotations

import json
import sys
from collections import deque
from collections.abc import Sequence
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
    SafetyFlag.NON_FINITE | SafetyFlag.COMMAND_LIMITED | SafetyFlag.RATE_LIMITED | SafetyFlag.SOFT_LIMIT | SafetyFlag.LEAD_LIMITED
)
_FEWEST_WATCHED = 20  # ticks, before a share of them means anything


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
    """Where a new policy stands."""

    NONE = 0
    SHADOW = 1
    WATCHED = 2
    ACCEPTED = 3
    REFUSED = 4


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

    Attributes:
        acting: the policy that acts.
        state: where the last new policy stands.
        release: number of its release, 0 if there was none.
        watched: ticks for which it has been watched.
        events: what happened so far.
    """

    def __init__(self, session: PolicySession, config: UpdateConfig | None = None) -> None:
        """Begin with a policy that acts and no other."""
        self.acting = session
        self.state, self.release, self.watched = UpdateState.NONE, 0, 0
        self.events: list[UpdateEvent] = []
        self._config = config or UpdateConfig()
        rate_hz = session.contract.rate_hz
        self._shadow_ticks = max(1, round(self._config.shadow_s * rate_hz))
        self._watch_ticks = max(1, round(self._config.watch_s * rate_hz))
        self._offers: deque[Candidate] = deque(maxlen=1)  # filled by another thread
        self._other: PolicySession | None = None  # the new policy in the shadow, then the old one
        self._tick = 0
        self._difference = 0.0
        self._shadowed = self._shadow_interventions = 0
        self._watched_here = self._watch_interventions = 0

    @property
    def contract(self) -> Contract:
        """The contract of the policy that acts."""
        return self.acting.contract

    def offer(self, candidate: Candidate) -> None:
        """Offer a policy; it is taken up between two ticks, unless another is on its way. Any thread may call this."""
        self._offers.append(candidate)

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
        self._tick = tick
        self._move_on()
        if self.state == UpdateState.WATCHED:
            return self._step_watched(measurement)
        command = self.acting.step(measurement)
        if self.state == UpdateState.SHADOW:
            self._step_shadow(measurement)
        return command

    @property
    def action(self) -> NDArray[np.float64]:
        """(A,) action of the acting policy in the last step; a copy."""
        return self.acting.action

    def record_executed(self, action: NDArray[np.float64], *, changed: bool) -> None:
        """Say which action (A,) was carried out after :meth:`step`, and whether it is another than :attr:`action`."""
        if changed:
            self.acting.record_executed(action)
        if self._other is not None:
            self._other.record_executed(action)

    def note(self, safety: int) -> None:
        """Take note of what the safety layers did in a tick, as bits of SafetyFlag."""
        intervened = bool(safety & _INTERVENTIONS)
        if self.state == UpdateState.SHADOW:
            self._shadow_interventions += intervened
        elif self.state == UpdateState.WATCHED:
            self.watched += 1
            self._watched_here += 1
            self._watch_interventions += intervened
            before = self._shadow_interventions / max(1, self._shadowed)
            now = self._watch_interventions / self._watched_here
            if self._watched_here >= _FEWEST_WATCHED and now > before + self._config.max_interventions:
                self._roll_back(f"the safety layers acted in {now:.0%} of {self._watched_here} ticks, {before:.0%} before")

    def _move_on(self) -> None:
        """Take up an offer, let a new policy act, or accept it: what happens between two ticks."""
        if self.state == UpdateState.SHADOW and self._shadowed >= self._shadow_ticks:
            self._judge_shadow()
        elif self.state == UpdateState.WATCHED and self.watched >= self._watch_ticks:
            self._other = None
            self._enter(UpdateState.ACCEPTED, self.acting, f"acted for {self.watched} ticks without a fault")
        elif self._other is None and self._offers:
            candidate = self._offers.popleft()
            self._other, self.release = candidate.session, candidate.release
            self._other.reset()
            self.watched = round(candidate.watched_s * self.contract.rate_hz)
            self._difference, self._shadowed, self._shadow_interventions = 0.0, 0, 0
            self._watched_here = self._watch_interventions = 0
            self._enter(UpdateState.SHADOW, self._other, f"runs beside {self.acting.policy_id} for {self._shadow_ticks} ticks")

    def _judge_shadow(self) -> None:
        assert self._other is not None
        difference = self._difference / self._shadowed
        if difference > self._config.max_difference:
            self._refuse(f"its actions differ by {difference:.3g} in the mean, allowed are {self._config.max_difference:g}")
            return
        self.acting, self._other = self._other, self.acting
        self._enter(
            UpdateState.WATCHED, self.acting, f"acts instead of {self._other.policy_id}; their actions differ by {difference:.3g}"
        )

    def _step_shadow(self, measurement: NDArray[np.float64]) -> None:
        """Let the new policy decide beside the acting one; nothing that it does may disturb that."""
        assert self._other is not None
        try:
            command = self._other.step(measurement)
        except Exception as error:
            self._refuse(f"{type(error).__name__}: {error}")
            return
        self._shadowed += 1
        if not np.isfinite(command).all():
            self._refuse("a command that is not finite")
            return
        self._difference += float(np.abs(self._other.action - self.acting.action).mean())

    def _step_watched(self, measurement: NDArray[np.float64]) -> NDArray[np.float64]:
        """Let the new policy act; if it fails, the old one's command is there."""
        assert self._other is not None
        reliable = self._other.step(measurement)
        try:
            command = self.acting.step(measurement)
            fault = "" if np.isfinite(command).all() else "a command that is not finite"
        except Exception as error:
            fault = f"{type(error).__name__}: {error}"
        if not fault:
            return command
        self._roll_back(fault)
        return reliable

    def _roll_back(self, reason: str) -> None:
        assert self._other is not None
        self.acting, self._other = self._other, self.acting
        self._refuse(f"after {self.watched} ticks: {reason}; {self.acting.policy_id} acts again")

    def _refuse(self, reason: str) -> None:
        refused, self._other = self._other, None
        assert refused is not None
        self._enter(UpdateState.REFUSED, refused, reason)

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


def decode_offer(message: bytes) -> Candidate:
    """Load the policy of a message; its golden vectors were replayed by the sender."""
    text, _, content = message.partition(b"\n")
    header = json.loads(text)
    contract = Contract.from_dict(header["contract"])
    metadata = PolicyMetadata(contract, header["graph_hash"], _no_golden_vectors(contract))
    return Candidate(PolicySession(content, metadata, f"release {header['release']}"), header["release"], header["watched_s"])


def receive_offers(offers: Connection, updates: PolicyUpdates) -> None:
    """Load policies as they come, in a thread of its own: that takes longer than a tick, but hardly holds up the others."""

    def receive() -> None:
        while True:
            try:
                message = offers.recv_bytes()
            except (EOFError, OSError):  # the supervisor is gone, and the robot stops
                return
            try:
                updates.offer(decode_offer(message))
            except Exception as error:  # the sender could load it; the run goes on with what it has
                print(f"robot: a new policy cannot be loaded: {type(error).__name__}: {error}", file=sys.stderr)

    Thread(target=receive, name="policy-loader", daemon=True).start()


def _no_golden_vectors(contract: Contract) -> GoldenVectors:
    sizes: Sequence[int] = (
        contract.num_measurements, contract.history_size, contract.num_actions, contract.num_actions, contract.history_size
    )  # fmt: skip
    return GoldenVectors(*(np.zeros((0, size), np.float32) for size in sizes))
