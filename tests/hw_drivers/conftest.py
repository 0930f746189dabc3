"""Emulators in processes of their own, for the driver tests."""

import importlib.util
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
POINT_MASS = Path(__file__).with_name("point_mass.py")


@dataclass
class Emulator:
    """A running emulator: its process and the port that it serves."""

    process: subprocess.Popen[str]
    port: str


def start(*command: str) -> subprocess.Popen[str]:
    """Start a Python program that can import the project, with its standard output to read from."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    return subprocess.Popen([sys.executable, *command], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment)


@pytest.fixture(scope="session")
def point_mass() -> ModuleType:
    """The module with the plant that the emulators of these tests move."""
    spec = importlib.util.spec_from_file_location("point_mass", POINT_MASS)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def run_python() -> Iterator[Callable[..., subprocess.Popen[str]]]:
    """Start Python programs that do not outlive the test."""
    with ExitStack() as stack:

        def run(*command: str) -> subprocess.Popen[str]:
            process = stack.enter_context(start(*command))
            stack.callback(process.kill)
            return process

        yield run


@pytest.fixture
def emulate(run_python: Callable[..., subprocess.Popen[str]]) -> Iterator[Callable[..., Emulator]]:
    """Start emulated point masses; each must still be there, and end well, when the test is over."""
    emulators = []

    def run(**options: Any) -> Emulator:
        process = run_python(str(POINT_MASS), json.dumps(options))
        assert process.stdout is not None
        emulators.append(Emulator(process, process.stdout.readline().strip()))
        return emulators[-1]

    yield run
    for emulator in emulators:
        emulator.process.terminate()
        assert emulator.process.wait(timeout=10) == 0
