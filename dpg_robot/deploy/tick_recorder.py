"""Filling in the record of one tick and pushing it into the ring."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from dpg_robot.data.ring import Ring
from dpg_robot.data.transition import EpisodeEnd, LoopState
from dpg_robot.deploy.robot import JointState

NO_EPISODE = -1


class TickRecorder:
    """Holds the record of the present tick, in a buffer that is used again for the next.

    The loop sets the attributes; :meth:`push` adds the rest and sends it.

    Attributes:
        state: what the loop is doing.
        episode: index of the episode, ``NO_EPISODE`` outside of one.
        step: control step within the episode.
        safety: flags of the safety layers.
        ticks: records pushed so far; the sequence number of the next one.
    """

    def __init__(self, ring: Ring, policy_id: str) -> None:
        self.state = LoopState.IDLE
        self.episode = NO_EPISODE
        self.step = 0
        self.safety = 0
        self.ticks = 0
        self._ring = ring
        self._policy_id, self._policy = policy_id, int(policy_id, 16)
        self._record: NDArray[np.void] = np.zeros((), dtype=ring.dtype)
        self._bytes = self._record.reshape(1).view(np.uint8)
        # Views into the record, one per field: setting them neither looks up names nor allocates.
        self._fields: dict[str, NDArray[np.generic]] = {name: self._record[name] for name in ring.dtype.names or ()}

    def set_policy(self, policy_id: str) -> None:
        """Name the policy that acts, 16 hexadecimal digits."""
        if policy_id != self._policy_id:
            self._policy_id, self._policy = policy_id, int(policy_id, 16)

    def set_tick(self, period: int, latency_ns: int) -> None:
        """Begin the record of a tick; nothing was decided or sent in it yet."""
        self._bytes.fill(0)
        self._fields["period"][...] = period
        self._fields["wakeup_latency_ns"][...] = latency_ns
        self.safety = 0

    def set_measurement(self, state: JointState, time_ns: int, wall_ns: int) -> None:
        """Take over what was read, and when on the monotonic and the wall clock."""
        fields = self._fields
        fields["measurement"][...] = state.values
        fields["valid"][...] = state.valid
        fields["measurement_time_ns"][...] = state.time_ns
        fields["device_time_ns"][...] = state.device_time_ns
        fields["device_flags"][...] = int(state.flags)
        fields["time_ns"][...] = time_ns
        fields["wall_ns"][...] = wall_ns

    def set_command(
        self, intended: NDArray[np.float64], action: NDArray[np.float64], command: NDArray[np.float64], compute_ns: int
    ) -> None:
        """Take over what the policy asked for (A,), what was carried out (A,), what was sent (C,), and how long it took."""
        fields = self._fields
        fields["intended_action"][...] = intended
        fields["action"][...] = action
        fields["command"][...] = command
        fields["compute_ns"][...] = compute_ns

    def push(self, end: EpisodeEnd = EpisodeEnd.NOT_ENDED) -> bool:
        """Push the record; returns False when the ring was full and it is lost."""
        fields = self._fields
        fields["sequence"][...] = self.ticks
        fields["state"][...] = self.state
        fields["episode"][...] = self.episode
        fields["step"][...] = self.step
        fields["episode_end"][...] = end
        fields["safety"][...] = self.safety
        fields["policy"][...] = self._policy if self.episode != NO_EPISODE else 0
        pushed = self._ring.push(self._record)
        self.ticks += int(pushed)
        return pushed
