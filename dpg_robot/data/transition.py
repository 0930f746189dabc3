"""What is recorded each control tick, and the transitions that learners read from it.

The control loop pushes one fixed-size tick record per period. Two records of one episode that follow each other make one
:class:`Transition`.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum

import numpy as np
from numpy.typing import NDArray


class LoopState(IntEnum):
    """What the control loop is doing; in ``SHADOW`` the policy runs and its commands are recorded, but not sent."""

    IDLE = 0
    HOMING = 1
    RUNNING = 2
    STOPPING = 3
    FAULT = 4
    SHADOW = 5


class EpisodeEnd(IntEnum):
    """Whether a record closes its episode, and why.

    A closing record holds the last measurement of the episode; no action of the policy was taken on it.
    """

    NOT_ENDED = 0
    TIMEOUT = 1
    TERMINAL = 2
    ABORTED = 3


def tick_dtype(num_measurements: int, num_actions: int) -> np.dtype[np.void]:
    """Return the structured dtype of one tick record, little endian, without padding.

    Fields: ``sequence`` counts the records of a run from 0 without gaps; ``period`` is the index of the tick on the loop's
    time grid (a jump of more than 1 means skipped periods); ``episode`` is -1 outside episodes; ``time_ns`` (monotonic) and
    ``wall_ns`` (Unix) are taken when the measurement was read; ``wakeup_latency_ns`` is how late the tick began;
    ``compute_ns`` is the time from the beginning of the tick to the sent command; ``intended_action`` is what the policy
    asked for; ``action`` is what was carried out after exploration, limits and safety, and ``command`` is the same in SI units.
    ``safety`` is a bit set of the safety layers that changed or refused the command; ``device_flags`` are the device's own.
    ``policy`` is the first 8 bytes of the policy's id.
    """
    return np.dtype(
        [
            ("sequence", "<u8"),
            ("period", "<i8"),
            ("episode", "<i4"),
            ("step", "<i4"),
            ("state", "u1"),
            ("episode_end", "u1"),
            ("safety", "<u2"),
            ("device_flags", "<u2"),
            ("policy", "<u8"),
            ("time_ns", "<i8"),
            ("wall_ns", "<i8"),
            ("device_time_ns", "<i8"),
            ("wakeup_latency_ns", "<i8"),
            ("compute_ns", "<i8"),
            ("measurement", "<f8", (num_measurements,)),
            ("measurement_time_ns", "<i8", (num_measurements,)),
            ("valid", "?", (num_measurements,)),
            ("intended_action", "<f8", (num_actions,)),
            ("action", "<f8", (num_actions,)),
            ("command", "<f8", (num_actions,)),
        ]
    )


@dataclass(frozen=True)
class Transition:
    """One step of a robot: what was measured, what was done, and what was measured next.

    Attributes:
        run_id: the run that recorded it; with ``sequence`` it identifies the transition for ever.
        sequence: sequence number of the record that holds ``measurement`` and ``action``.
        episode: episode within the run, from 0.
        step: control step within the episode, from 0.
        measurement: (M,) float64, SI units.
        action: (A,) float64 in [-1, 1], as carried out.
        intended_action: (A,) float64 in [-1, 1], as the policy asked for.
        command: (C,) float64, SI units, as sent.
        next_measurement: (M,) float64, SI units, one control period later.
        reward: reward of the step if the log knows it, else None.
        terminal: whether the episode ended here because the state was terminal (no future reward).
        timeout: whether the episode was cut here for time; the future would have gone on.
        time_ns: monotonic time of ``measurement``, nanoseconds.
        next_time_ns: monotonic time of ``next_measurement``, nanoseconds.
        wall_ns: Unix time of ``measurement``, nanoseconds.
        valid: whether every channel of both measurements was read freshly and no period was skipped between them.
        policy_id: id of the policy that acted (16 hexadecimal digits).
    """

    run_id: str
    sequence: int
    episode: int
    step: int
    measurement: NDArray[np.float64]
    action: NDArray[np.float64]
    intended_action: NDArray[np.float64]
    command: NDArray[np.float64]
    next_measurement: NDArray[np.float64]
    reward: float | None
    terminal: bool
    timeout: bool
    time_ns: int
    next_time_ns: int
    wall_ns: int
    valid: bool
    policy_id: str
