"""Fine-tuning as a service in several processes: the first one follows logs, judges and writes; all of them learn.

Every update is shared (see :mod:`dpg_robot.learning.distributed`), so all processes need the same transitions and must take the
same steps in the same order. The first one says each step before it does it, and the others, which read no log and write no file,
do what they hear. Only tensors are exchanged.
"""

from __future__ import annotations

import enum
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from dpg_robot.host.gate import Verdict
from dpg_robot.host.service import FinetuneService
from dpg_robot.learning.replay import Batch


class _Step(enum.IntEnum):
    """What the first process says that all do next."""

    ADD = enum.auto()
    LEARN = enum.auto()
    COMPARE = enum.auto()
    ACCEPT = enum.auto()
    BEGIN_ANEW = enum.auto()
    STOP = enum.auto()


class SharedService(FinetuneService):
    """The service of one of the processes that ``learner.share_updates`` named; in a single one just a :class:`FinetuneService`.

    The first process calls the methods of :class:`FinetuneService`, from :meth:`resume` to :meth:`close`; the others call
    :meth:`follow`. All processes find the same run folder. A process that is lost is a
    :class:`~dpg_robot.learning.distributed.PeerError` in all others; started again, they go on from the newest checkpoint.
    """

    def resume(self) -> dict[str, Any] | None:
        """Go on from the newest checkpoint of the folder, as all processes do; returns what the first one's service returns."""
        processes = self.learner.processes
        if not processes.first:
            processes.wait_for_all()  # the first one clears away what a killed one left half written
        intake = super().resume()
        if processes.first:
            processes.wait_for_all()
        # none goes on, and so none removes this checkpoint, before all have read it
        self.learner.require_same()
        return intake

    def follow(self) -> None:
        """Do in another process what the first one does, until it closes."""
        self.resume()
        while (heard := self._hear())[0] is not _Step.STOP:
            step, count = heard
            if step is _Step.ADD:
                self.add(*self._exchange(None, np.zeros(count, np.int64)))
            elif step is _Step.LEARN:
                self.learn()
            elif step is _Step.COMPARE:
                self.learner.require_same()
            elif step is _Step.ACCEPT:
                self._accept()
            else:
                self._begin_anew()

    def add(self, batch: Batch, episode: NDArray[np.int64]) -> None:
        """Add transitions of whole episodes in all processes; arguments as for :class:`FinetuneService`."""
        if len(batch) and self._say(_Step.ADD, len(batch)):
            self._exchange(batch, episode)
        super().add(batch, episode)

    def learn(self) -> int:
        """Do the updates that are due in all processes; said when there are none as well, or others would think this one lost."""
        self._say(_Step.LEARN)
        return super().learn()

    def propose(self) -> Verdict:
        """Let the gate judge in the first process alone; the others take over what came of it."""
        self._say(_Step.COMPARE)
        self.learner.require_same()
        verdict = super().propose()
        if verdict.passed:
            self._say(_Step.ACCEPT)
        elif not self.counts.rejections_in_row:
            self._say(_Step.BEGIN_ANEW)
        return verdict

    def close(self, intake: dict[str, Any]) -> None:
        """Let the others stop, then write the last checkpoint."""
        self._say(_Step.STOP)
        super().close(intake)

    def _say(self, step: _Step, count: int = 0) -> bool:
        """Tell the others what comes; returns whether this is a process that tells and there is one to hear it."""
        processes = self.learner.processes
        if processes.count == 1 or not processes.first:
            return False
        processes.from_first(torch.tensor([step, count]))
        return True

    def _hear(self) -> tuple[_Step, int]:
        step, count = self.learner.processes.from_first(torch.zeros(2, dtype=torch.int64)).tolist()
        return _Step(step), count

    def _exchange(self, batch: Batch | None, episode: NDArray[np.int64]) -> tuple[Batch, NDArray[np.int64]]:
        """Return the first process's transitions and numbers of episodes; the others give None and as many numbers."""
        processes = self.learner.processes
        return processes.batch_from_first(batch), processes.from_first(torch.from_numpy(episode)).numpy()
