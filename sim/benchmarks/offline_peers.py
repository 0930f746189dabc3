"""Published offline algorithms of d3rlpy beside ours: trained under a Python of their own, evaluated in our simulation.

d3rlpy pins other versions of what we use, so it lives in a virtual environment of its own (``pip install d3rlpy``) and gets the
very same transitions as an npz file; observations and actions of evaluations go through a pipe.
"""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path
from types import TracebackType
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from dpg_robot.data.datasets import Dataset
from dpg_robot.errors import DpgError

PeerName = Literal["TD3PlusBC", "IQL"]
_PROGRAM = Path(__file__).with_name("benchmark_d3rlpy.py")


class PeerError(DpgError, RuntimeError):
    """d3rlpy is not there, or its process failed."""


def export_transitions(dataset: Dataset, file: Path) -> None:
    """Write a data set as the flat arrays that d3rlpy takes; its own convention drops the last observation of an episode."""
    transitions = dataset.transitions()
    if transitions.reward is None:
        raise PeerError(f"{dataset.name} has no rewards, which d3rlpy's algorithms need")
    ends = np.flatnonzero(np.diff(transitions.episode, append=-1))
    cut = np.zeros(len(transitions), dtype=np.float32)
    cut[ends] = 1.0
    terminal = transitions.terminal.astype(np.float32)
    np.savez(
        file,
        observations=transitions.observation,
        actions=transitions.action,
        rewards=transitions.reward,
        terminals=terminal,
        timeouts=cut * (1 - terminal),
    )


class Peer:
    """An algorithm of d3rlpy, in a process of its own.

    Args:
        python: a Python that has d3rlpy.
        algorithm: its class.
        file: transitions, as :func:`export_transitions` writes them.
        seed: seed of everything random.
        hidden_sizes: sizes of the hidden layers of all networks.
        discount: discount per control step.
        batch_size: transitions per update.
        log: what it prints goes here.

    Raises:
        PeerError: it cannot be started.
    """

    def __init__(
        self,
        python: Path,
        algorithm: PeerName,
        file: Path,
        seed: int,
        hidden_sizes: tuple[int, ...],
        discount: float,
        batch_size: int,
        log: Path,
    ) -> None:
        self._log, self._python = log, python
        settings = [str(seed), json.dumps(list(hidden_sizes)), str(discount), str(batch_size)]
        # one thread, as ours has; and none of our packages
        environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"} | {"OMP_NUM_THREADS": "1"}
        try:
            with log.open("wb") as errors:
                self._process = subprocess.Popen(
                    [str(python), str(_PROGRAM), algorithm, str(file), *settings],
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    stderr=errors,
                    env=environment,
                    cwd=log.parent,
                )
        except OSError as error:
            raise PeerError(f"cannot start {python}: {error}; name a Python that has d3rlpy") from error
        self.versions = self._answer()

    def __enter__(self) -> Peer:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        """End the process."""
        self._process.kill()
        self._process.wait()
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe is not None:
                pipe.close()

    def train(self, updates: int) -> None:
        """Do so many updates."""
        self._say({"train": updates})
        self._answer()

    def act(self, observations: NDArray[np.float32]) -> NDArray[np.float32]:
        """Return actions (N, A) without exploration for observations (N, O)."""
        self._say({"act": len(observations)}, np.ascontiguousarray(observations, dtype=np.float32).tobytes())
        count = self._answer()["bytes"]
        assert self._process.stdout is not None
        content = self._process.stdout.read(count)
        return np.frombuffer(content, dtype=np.float32).reshape(len(observations), -1)

    def _say(self, message: dict[str, Any], content: bytes = b"") -> None:
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(json.dumps(message).encode() + b"\n" + content)
            self._process.stdin.flush()
        except BrokenPipeError:
            raise self._failure() from None

    def _answer(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise self._failure()
        answer: dict[str, Any] = json.loads(line)
        if "error" in answer:
            self.close()
            raise PeerError(f"{self._python}: d3rlpy is {answer['error']}")
        return answer

    def _failure(self) -> PeerError:
        self._process.wait()
        ending = self._log.read_text(errors="replace").strip().splitlines()[-3:]
        self.close()
        return PeerError(f"d3rlpy's process ended with exit code {self._process.returncode}: {' '.join(ending)}")
