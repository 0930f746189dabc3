"""Transitions as stacked arrays, and how tick records are paired to transitions."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from dpg_robot.data.transition import EpisodeEnd, LoopState, Transition
from dpg_robot.errors import ContractError


@dataclass(frozen=True)
class TransitionArrays:
    """N transitions, one array per field of :class:`Transition`.

    Attributes:
        run_ids: the runs that occur.
        run: (N,) int32, index into ``run_ids``.
        policy: (N,) uint64, first 8 bytes of the id of the policy that acted.

    All others are as in :class:`Transition`, with N in front of their shape.
    """

    run_ids: tuple[str, ...]
    run: NDArray[np.int32]
    sequence: NDArray[np.uint64]
    episode: NDArray[np.int32]
    step: NDArray[np.int32]
    measurement: NDArray[np.float64]
    action: NDArray[np.float64]
    intended_action: NDArray[np.float64]
    command: NDArray[np.float64]
    next_measurement: NDArray[np.float64]
    terminal: NDArray[np.bool_]
    timeout: NDArray[np.bool_]
    time_ns: NDArray[np.int64]
    next_time_ns: NDArray[np.int64]
    wall_ns: NDArray[np.int64]
    valid: NDArray[np.bool_]
    policy: NDArray[np.uint64]

    def __len__(self) -> int:
        return len(self.sequence)

    def __iter__(self) -> Iterator[Transition]:
        for index in range(len(self)):
            yield Transition(
                run_id=self.run_ids[self.run[index]],
                sequence=int(self.sequence[index]),
                episode=int(self.episode[index]),
                step=int(self.step[index]),
                measurement=self.measurement[index],
                action=self.action[index],
                intended_action=self.intended_action[index],
                command=self.command[index],
                next_measurement=self.next_measurement[index],
                reward=None,
                terminal=bool(self.terminal[index]),
                timeout=bool(self.timeout[index]),
                time_ns=int(self.time_ns[index]),
                next_time_ns=int(self.next_time_ns[index]),
                wall_ns=int(self.wall_ns[index]),
                valid=bool(self.valid[index]),
                policy_id=f"{int(self.policy[index]):016x}",
            )

    def last(self, count: int) -> TransitionArrays:
        """Return the last ``count`` transitions, or all where there are fewer."""
        start = max(0, len(self) - count)
        columns = {field.name: getattr(self, field.name)[start:] for field in dataclasses.fields(self) if field.name != "run_ids"}
        return TransitionArrays(run_ids=self.run_ids, **columns)

    @classmethod
    def concatenate(cls, parts: Sequence[TransitionArrays]) -> TransitionArrays:
        """Return all transitions of one or more parts, in order; raises ContractError when their sizes differ."""
        if not parts:
            raise ValueError("there are no parts to concatenate")
        sizes = {(part.measurement.shape[1], part.action.shape[1]) for part in parts}
        if len(sizes) > 1:
            raise ContractError(
                f"the runs differ in their numbers of (measurements, actions): {sorted(sizes)}; load them separately"
            )
        run_ids = tuple(dict.fromkeys(run_id for part in parts for run_id in part.run_ids))
        columns = {
            field.name: np.concatenate([getattr(part, field.name) for part in parts])
            for field in dataclasses.fields(cls)
            if field.name not in ("run_ids", "run")
        }
        run = [np.array([run_ids.index(run_id) for run_id in part.run_ids], dtype=np.int32)[part.run] for part in parts]
        return cls(run_ids=run_ids, run=np.concatenate(run), **columns)


def pair_records(run_id: str, records: NDArray[np.void]) -> TransitionArrays:
    """Pair each record with the next of its episode.

    A record makes a transition when it is a running step of an episode that it does not close, and the record with the next
    sequence number belongs to the same episode. An episode that was aborted counts as cut for time: its future would have gone
    on. An episode that has no closing record (the run was killed) just ends.

    Args:
        run_id: the run of the records.
        records: (n,) records of one run, of :func:`~dpg_robot.data.transition.tick_dtype`, in order.

    Returns:
        At most n - 1 transitions.
    """
    before, after = records[:-1], records[1:]
    pairs = (
        (before["state"] == LoopState.RUNNING)
        & (before["episode"] >= 0)
        & (before["episode_end"] == EpisodeEnd.NOT_ENDED)
        & (after["sequence"] == before["sequence"] + np.uint64(1))
        & (after["episode"] == before["episode"])
    )
    before, after = before[pairs], after[pairs]
    fresh = before["valid"].all(axis=1) & after["valid"].all(axis=1)
    names = ("sequence", "episode", "step", "measurement", "action", "intended_action", "command", "time_ns", "wall_ns", "policy")
    return TransitionArrays(
        run_ids=(run_id,),
        run=np.zeros(len(before), dtype=np.int32),
        next_measurement=after["measurement"].copy(),
        next_time_ns=after["time_ns"].copy(),
        terminal=after["episode_end"] == EpisodeEnd.TERMINAL,
        timeout=np.isin(after["episode_end"], (EpisodeEnd.TIMEOUT, EpisodeEnd.ABORTED)),
        valid=fresh & (after["period"] - before["period"] == 1),
        **{name: before[name].copy() for name in names},
    )
