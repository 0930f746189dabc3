"""The loop that does nothing but wake up, in C: compiled here, run, and read."""

from __future__ import annotations

import os
import shutil
from importlib.resources import as_file, files
from pathlib import Path

import numpy as np

from hw_drivers.benchmarks.loop_programs import ProgramError, run_program
from hw_drivers.benchmarks.loop_wakeups import Wakeups

_COMPILERS = ("cc", "gcc", "clang")
_FLAGS = ("-O2", "-Wall", "-Wextra", "-Werror")
_PATIENCE_S = 30.0


def compile_bare_loop(folder: Path) -> Path:
    """Compile ``bare_loop.c`` into ``folder`` and return the program. Raises ProgramError if that cannot be done."""
    compiler = next((found for name in _COMPILERS if (found := shutil.which(name))), None)
    if compiler is None:
        raise ProgramError(
            f"the bare loop is written in C and needs a compiler, but none of {', '.join(_COMPILERS)} is in PATH; "
            "install one (on Debian and Ubuntu: apt install gcc libc6-dev)"
        )
    program = folder / "bare_loop"
    with as_file(files("hw_drivers.benchmarks") / "bare_loop.c") as source:
        run_program([compiler, *_FLAGS, "-o", str(program), str(source)])
    return program


def run_bare_loop(program: Path, rate_hz: float, seconds: float, priority: int) -> tuple[Wakeups, dict[str, str]]:
    """Run the bare loop.

    Args:
        program: what :func:`compile_bare_loop` returned.
        rate_hz: grid points per second.
        seconds: how long.
        priority: under SCHED_FIFO, 1 to 99; 0 asks for no real time.

    Returns:
        Its wake-ups, and whether SCHED_FIFO and mlockall were granted.

    Raises:
        ProgramError: it failed.
    """
    period_ns, points = round(1e9 / rate_hz), max(1, round(seconds * rate_hz))
    command = [str(program), str(period_ns), str(points), str(priority)]
    line, _, data = run_program(command, 2 * seconds + _PATIENCE_S).partition(b"\n")
    wakeups = np.frombuffer(data, np.int64).reshape(-1, 2)
    grants = {}
    for grant in line.decode().split():
        name, _, error = grant.partition("=")
        grants[name] = {"0": "granted", "-1": "not asked for"}.get(error) or f"refused ({os.strerror(int(error))})"
    return Wakeups(period_ns, wakeups[:, 0], wakeups[:, 1], points), grants
