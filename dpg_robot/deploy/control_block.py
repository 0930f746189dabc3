"""A few integers in shared memory, through which the supervisor stops the control process and sees how far it is.

No locks: each cell has one writer, except the stop request, where any request is as good as another.
"""

from __future__ import annotations

import contextlib
import os
import secrets
from dataclasses import dataclass
from enum import IntEnum
from multiprocessing.shared_memory import SharedMemory

from dpg_robot.data.transition import LoopState
from dpg_robot.deploy.policy_updates import UpdateState


class StopRequest(IntEnum):
    """Why the supervisor wants the robot stopped."""

    NONE = 0
    USER = 1
    LOG_PROCESS_DIED = 2


@dataclass(frozen=True)
class Progress:
    """How far the control loop is.

    Attributes:
        state: what it is doing.
        episode: index of the episode, -1 before the first.
        step: control step within it.
        ticks: ticks since the start.
        missed: periods that were skipped.
    """

    state: LoopState
    episode: int
    step: int
    ticks: int
    missed: int


class _Cell(IntEnum):
    STOP = 0
    STATE = 1
    EPISODE = 2
    STEP = 3
    TICKS = 4
    MISSED = 5
    UPDATE = 6
    WATCHED = 7


_UPDATE_STATES = 16


class ControlBlock:
    """The shared integers. The supervisor creates and removes them, the control process attaches."""

    def __init__(self, memory: SharedMemory, owner: bool) -> None:
        self._memory = memory
        self._owner = owner
        assert memory.buf is not None, "it is open"
        self._cells = memory.buf.cast("q")

    @classmethod
    def create(cls) -> ControlBlock:
        """Make a new block under a name of its own, in which nothing is requested."""
        name = f"dpg-block-{os.getpid()}-{secrets.token_hex(4)}"
        block = cls(SharedMemory(name, create=True, size=8 * len(_Cell)), owner=True)
        block.publish(LoopState.IDLE, episode=-1, step=0, ticks=0, missed=0)
        return block

    @classmethod
    def attach(cls, name: str) -> ControlBlock:
        """Open the block that another process made."""
        return cls(SharedMemory(name=name), owner=False)

    @property
    def name(self) -> str:
        """Name to attach by."""
        return self._memory.name

    @property
    def stop_request(self) -> StopRequest:
        """What the supervisor asks for."""
        return StopRequest(self._cells[_Cell.STOP])

    def request_stop(self, request: StopRequest) -> None:
        """Ask the control process to stop the robot."""
        self._cells[_Cell.STOP] = request

    def publish(self, state: LoopState, episode: int, step: int, ticks: int, missed: int) -> None:
        """Say how far the control loop is (by the control process only)."""
        cells = self._cells
        cells[_Cell.STATE], cells[_Cell.EPISODE], cells[_Cell.STEP] = state, episode, step
        cells[_Cell.TICKS], cells[_Cell.MISSED] = ticks, missed

    def publish_update(self, state: UpdateState, release: int, watched: int) -> None:
        """Say where the policy of a release stands, and for how many ticks it was watched (by the control process only)."""
        self._cells[_Cell.WATCHED] = watched
        self._cells[_Cell.UPDATE] = release * _UPDATE_STATES + state  # in one, so that nobody sees half of it

    @property
    def update(self) -> tuple[UpdateState, int, int]:
        """Where the last new policy stands, the number of its release, and for how many ticks it was watched."""
        release, state = divmod(self._cells[_Cell.UPDATE], _UPDATE_STATES)
        return UpdateState(state), release, self._cells[_Cell.WATCHED]

    @property
    def progress(self) -> Progress:
        """How far the control loop is."""
        cells = self._cells
        return Progress(
            LoopState(cells[_Cell.STATE]), cells[_Cell.EPISODE], cells[_Cell.STEP], cells[_Cell.TICKS], cells[_Cell.MISSED]
        )

    def close(self) -> None:
        """Let go of the memory, and remove it if this process made it."""
        self._cells.release()
        self._memory.close()
        if self._owner:
            with contextlib.suppress(FileNotFoundError):
                self._memory.unlink()
