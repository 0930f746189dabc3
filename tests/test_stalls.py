"""A failed test is repeated where the computer stood still while it ran, and only there."""

import shutil
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).parent
COUNTED = """
import os, signal, time
from pathlib import Path
import psutil

def attempt():
    file = Path(__file__).with_name("attempts")
    number = int(file.read_text()) + 1 if file.exists() else 1
    file.write_text(str(number))
    return number

def stand_still():
    watcher = next(child for child in psutil.Process().children() if any("stall_watch" in word for word in child.cmdline()))
    time.sleep(0.3)  # it has begun
    watcher.send_signal(signal.SIGSTOP)
    time.sleep(0.3)
    watcher.send_signal(signal.SIGCONT)
"""


def run_tests(folder: Path, body: str, *arguments: str) -> tuple[int, str, int]:
    """Return exit code, output and number of attempts of a test with this body."""
    for name in ("conftest.py", "stall_watch.py"):
        shutil.copy(HERE / name, folder / name)
    (folder / "test_it.py").write_text(COUNTED + f"\ndef test_it():\n    {body}\n")
    command = [sys.executable, "-m", "pytest", "-ra", "-p", "no:cacheprovider", *arguments, str(folder)]
    result = subprocess.run(command, capture_output=True, text=True, timeout=120, cwd=folder)
    return result.returncode, result.stdout + result.stderr, int((folder / "attempts").read_text())


def test_a_failure_in_which_the_computer_stood_still_is_repeated_and_told(tmp_path: Path) -> None:
    body = "if attempt() == 1: stand_still(); assert False"
    code, output, attempts = run_tests(tmp_path, body, "--retry-stalled", "2")
    assert (code, attempts) == (0, 2), output
    assert "1 passed, 1 rerun" in output
    assert "this computer stood still" in output


def test_a_test_that_fails_in_every_attempt_fails(tmp_path: Path) -> None:
    code, output, attempts = run_tests(tmp_path, "attempt(); stand_still(); assert False", "--retry-stalled", "1")
    assert (code, attempts) == (1, 2), output


def test_without_the_option_nothing_is_repeated(tmp_path: Path) -> None:
    body = "attempt(); assert False"
    code, output, attempts = run_tests(tmp_path, body)
    assert (code, attempts) == (1, 1), output
    assert "stood still" not in output


def test_a_failure_on_a_computer_that_kept_time_stands(tmp_path: Path) -> None:
    conftest_that_saw_nothing = "import conftest; conftest.StallWatch.stalled_since = lambda self, start_s: False"
    code, output, attempts = run_tests(tmp_path, f"attempt(); {conftest_that_saw_nothing}; assert False", "--retry-stalled", "3")
    assert (code, attempts) == (1, 1), output
