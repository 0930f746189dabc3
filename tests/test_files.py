"""Files and folders that appear whole or not at all, also when the disk refuses."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from dpg_robot.files import new_folder, write_atomically

# A child whose files may not grow beyond 4096 bytes sees what a full disk gives: a write that fails half-way.
WITH_LITTLE_ROOM = """
import resource, signal, sys
from pathlib import Path
from dpg_robot.files import new_folder, write_atomically
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))
target = Path(sys.argv[1])
try:
    {action}
except OSError as error:
    print(type(error).__name__, error)
    sys.exit(3)
"""
WRITE = "write_atomically(target, b'new' * 10_000)"
FILL_FOLDER = """
    with new_folder(target) as folder:
        (folder / "small").write_bytes(b"x")
        (folder / "large").write_bytes(b"x" * 10_000)
"""


def run_with_little_room(action, target):
    return subprocess.run(
        [sys.executable, "-c", WITH_LITTLE_ROOM.format(action=action), str(target)], capture_output=True, text=True, timeout=60
    )


def test_a_write_replaces_the_whole_content(tmp_path):
    path = tmp_path / "file"
    for content in (b"first, and longer", b"second", b""):
        write_atomically(path, content)
        assert path.read_bytes() == content
        assert os.listdir(tmp_path) == ["file"]
    assert path.stat().st_mode & 0o777 == 0o644


def test_a_failed_write_keeps_the_old_content_and_leaves_nothing_behind(tmp_path):
    path = tmp_path / "file"
    path.write_bytes(b"old")
    child = run_with_little_room(WRITE, path)
    assert child.returncode == 3, child.stderr
    assert "File too large" in child.stdout
    assert path.read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["file"]


def test_a_failed_first_write_leaves_no_file(tmp_path):
    assert run_with_little_room(WRITE, tmp_path / "file").returncode == 3
    assert os.listdir(tmp_path) == []


def test_a_missing_folder_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="folder does not exist") as caught:
        write_atomically(tmp_path / "nowhere" / "file", b"x")
    assert str(tmp_path / "nowhere") in str(caught.value)


def test_a_pipe_or_device_is_not_replaced_by_a_file(tmp_path):
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    with pytest.raises(OSError, match="not an ordinary file"):
        write_atomically(pipe, b"x")
    with pytest.raises(OSError, match="not an ordinary file"):
        write_atomically(tmp_path, b"x")
    assert pipe.is_fifo()
    assert os.listdir(tmp_path) == ["pipe"]


def test_a_reader_never_sees_a_half_written_file(tmp_path):
    path = tmp_path / "file"
    contents = [bytes([value]) * 300_000 for value in (65, 66)]
    path.write_bytes(contents[0])
    writer = subprocess.Popen(
        [
            sys.executable,
            "-c",
            "import sys\nfrom dpg_robot.files import write_atomically\nprint('ready', flush=True)\n"
            "for index in range(10**9): write_atomically(sys.argv[1], bytes([65 + index % 2]) * 300_000)",
            str(path),
        ],
        stdout=subprocess.PIPE,
    )
    try:
        assert writer.stdout.readline() == b"ready\n"
        seen, deadline = set(), time.monotonic() + 30
        while len(seen) < 2 or time.monotonic() < deadline - 29.5:
            assert time.monotonic() < deadline, "the writer makes no progress"
            content = path.read_bytes()
            assert content in contents
            seen.add(content[0])
    finally:
        writer.send_signal(signal.SIGKILL)
        writer.wait()
    assert path.read_bytes() in contents


def test_a_new_folder_appears_when_its_block_ends(tmp_path):
    target = tmp_path / "result"
    with new_folder(target) as folder:
        assert folder.parent == tmp_path
        assert not target.exists()
        (folder / "sub").mkdir()
        (folder / "sub" / "file").write_bytes(b"content")
        assert not target.exists()
    assert (target / "sub" / "file").read_bytes() == b"content"
    assert os.listdir(tmp_path) == ["result"]
    assert target.stat().st_mode & 0o777 == 0o755


def interrupted(target):
    with new_folder(target) as folder:
        (folder / "file").write_bytes(b"content")
        raise KeyboardInterrupt


def test_a_new_folder_vanishes_when_its_block_fails(tmp_path):
    with pytest.raises(KeyboardInterrupt):
        interrupted(tmp_path / "result")
    assert os.listdir(tmp_path) == []


def test_a_new_folder_vanishes_when_the_disk_is_full(tmp_path):
    child = run_with_little_room(FILL_FOLDER, tmp_path / "result")
    assert child.returncode == 3, child.stderr
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("make", [Path.mkdir, Path.touch])
def test_a_new_folder_takes_no_name_that_is_in_use(tmp_path, make):
    make(tmp_path / "result")
    with pytest.raises(FileExistsError, match="exists already"), new_folder(tmp_path / "result"):
        raise AssertionError("the block must not run")
    assert os.listdir(tmp_path) == ["result"]
