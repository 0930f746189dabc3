"""Known records and programs that push or write them, for the tests of ring and robot log."""

import importlib.util
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
Start = Callable[..., "subprocess.Popen[str]"]


@pytest.fixture(scope="session")
def sample() -> ModuleType:
    """The module with the contract, the dtype and make_records."""
    spec = importlib.util.spec_from_file_location("sample_records", Path(__file__).with_name("sample_records.py"))
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def start_python() -> Iterator[Start]:
    """Start Python with a program of this folder (or ``-c``, ``-m``); what still runs at the end of the test is killed."""
    processes: list[subprocess.Popen[str]] = []

    def start(program: str, *arguments: object, **options: Any) -> subprocess.Popen[str]:
        first = str(Path(__file__).with_name(program)) if program.endswith(".py") else program
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), str(Path(__file__).parent)])}
        command = [sys.executable, first, *map(str, arguments)]
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE} | options
        processes.append(subprocess.Popen(command, env=environment, text=True, **pipes))
        return processes[-1]

    yield start
    for process in processes:
        process.kill()
        process.communicate()
