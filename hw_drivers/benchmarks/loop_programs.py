"""Programs that the loop benchmark runs: to their end, or beside others until a block is left."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

from dpg_robot.errors import DpgError

_BUSY = "import os, sys\nwhile os.getppid() == int(sys.argv[1]):\n    sum(range(100_000))\n"
_PATIENCE_S = 10.0


class ProgramError(DpgError, RuntimeError):
    """A program that the benchmark needs failed; the message has what it said."""


def run_program(command: Sequence[str], timeout_s: float | None = None) -> bytes:
    """Run a program to its end and return what it printed. Raises ProgramError if it fails or takes longer."""
    name = Path(command[0]).name if command[0] != sys.executable else " ".join(command[1:])
    try:
        done = subprocess.run(command, capture_output=True, timeout=timeout_s, check=False)
    except subprocess.TimeoutExpired as error:
        raise ProgramError(f"{name} did not end within {timeout_s:g} s") from error
    if done.returncode != 0:
        raise ProgramError(f"{name} ended with exit code {done.returncode}:\n{done.stderr.decode().strip()}")
    return done.stdout


@contextmanager
def served(command: Sequence[str]) -> Iterator[None]:
    """Run a program that prints a line once it is ready, until the block is left. Raises ProgramError if it ends before."""
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            if not process.stdout.readline():
                raise ProgramError(f"{' '.join(map(str, command[1:]))} ended with exit code {process.wait(_PATIENCE_S)}")
            yield
        finally:
            process.terminate()


@contextmanager
def busy_processes(count: int) -> Iterator[None]:
    """Keep ``count`` processes busy while the block runs; they end with this process too, however that ends."""
    with ExitStack() as stack:
        for _ in range(count):
            process = stack.enter_context(subprocess.Popen([sys.executable, "-c", _BUSY, str(os.getpid())]))
            stack.callback(process.kill)
        yield
