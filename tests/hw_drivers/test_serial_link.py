"""The serial port wrapper, on real pseudo-terminals."""

import os
import subprocess
import sys
import time
import tty
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

from dpg_robot.errors import LinkError, LinkTimeoutError
from hw_drivers.serial_link import SerialLink

HOLD_PORT = """
import sys
from hw_drivers.serial_link import SerialLink
link = SerialLink(sys.argv[1], 1_000_000)
link.open()
print("held", flush=True)
sys.stdin.read()
"""


def soon(seconds: float = 5.0) -> int:
    return time.monotonic_ns() + round(seconds * 1e9)


class Pty:
    """A raw pseudo-terminal; the test holds the device's end."""

    def __init__(self) -> None:
        self.master, slave = os.openpty()
        tty.setraw(slave)
        self.path = os.ttyname(slave)
        os.close(slave)

    def unplug(self) -> None:
        if self.master >= 0:
            os.close(self.master)
            self.master = -1


@pytest.fixture
def pty() -> Iterator[Pty]:
    device = Pty()
    yield device
    device.unplug()


@pytest.fixture
def link(pty: Pty) -> Iterator[SerialLink]:
    link = SerialLink(pty.path, 1_000_000)
    link.open()
    yield link
    link.close()


@contextmanager
def without_privileges() -> Iterator[None]:
    """Act as an ordinary user, whoever runs the tests."""
    user = os.geteuid()
    if user == 0:
        os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(user)


def test_bytes_pass_unchanged_in_both_directions(pty: Pty, link: SerialLink) -> None:
    everything = bytes(range(256))
    os.write(pty.master, everything)
    received = b""
    while len(received) < 256:
        piece = link.read(soon())
        assert piece, "nothing came before the deadline"
        received += piece
    assert received == everything
    link.write(everything, soon())
    assert os.read(pty.master, 1000) == everything


def test_a_read_without_input_ends_empty_at_its_deadline(link: SerialLink) -> None:
    deadline_ns = soon(0.02)
    assert link.read(deadline_ns) == b""
    assert time.monotonic_ns() >= deadline_ns


def test_bytes_that_are_there_are_returned_even_when_the_deadline_has_passed(pty: Pty, link: SerialLink) -> None:
    os.write(pty.master, b"late")
    assert link.read(soon(-1.0)) == b"late"


def test_bytes_received_before_opening_are_dropped(pty: Pty) -> None:
    os.write(pty.master, b"stale")
    link = SerialLink(pty.path, 1_000_000)
    link.open()
    os.write(pty.master, b"fresh")
    assert link.read(soon()) == b"fresh"
    link.close()


def test_a_port_that_nobody_drains_is_a_timeout_that_counts_the_bytes_taken(link: SerialLink) -> None:
    with pytest.raises(LinkTimeoutError, match=r"took \d+ of 10000000 bytes"):
        link.write(bytes(10_000_000), soon(0.05))


def test_a_port_that_does_not_exist_is_reported_with_those_that_do(tmp_path: Path) -> None:
    with pytest.raises(LinkError, match=r"ttyNONE does not exist; ports on this computer: "):
        SerialLink(str(tmp_path / "ttyNONE"), 1_000_000).open()


def test_a_file_is_not_taken_for_a_port(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_text("no port")
    with pytest.raises(LinkError, match="is not a serial port"):
        SerialLink(str(file), 1_000_000).open()


def test_a_busy_port_is_refused_naming_its_holder_and_free_again_when_that_is_killed(pty: Pty) -> None:
    command = [sys.executable, "-c", HOLD_PORT, pty.path]
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == b"held\n"
        with pytest.raises(LinkError, match=rf"busy: it is held by .*\(process {holder.pid}\)"):
            SerialLink(pty.path, 1_000_000).open()
        holder.kill()
    os.chmod(pty.path, 0o666)
    with without_privileges():  # root would get past a mark that was left behind
        link = SerialLink(pty.path, 1_000_000)
        link.open()
        link.close()


def test_a_port_without_permission_is_refused_naming_its_group(pty: Pty) -> None:
    os.chmod(pty.path, 0)
    with without_privileges(), pytest.raises(LinkError, match=r"no permission .* belongs to group '.+'.*usermod -aG"):
        SerialLink(pty.path, 1_000_000).open()


def test_an_unplugged_port_is_an_error_on_read_and_on_write(pty: Pty, link: SerialLink) -> None:
    pty.unplug()
    with pytest.raises(LinkError, match="gone"):
        link.read(soon())
    with pytest.raises(LinkError, match="gone"):
        link.write(b"x", soon())
    link.close()


def test_a_closed_link_refuses_to_read_and_closes_any_number_of_times(link: SerialLink) -> None:
    link.close()
    link.close()
    assert not link.is_open
    with pytest.raises(LinkError, match="not open"):
        link.read(soon())


def test_a_pseudo_terminal_has_no_low_latency_mode_and_says_so(link: SerialLink) -> None:
    assert link.low_latency is False


def test_opening_again_after_a_failure_leaks_no_file_descriptor(tmp_path: Path) -> None:
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(5):
        with suppress(LinkError):
            SerialLink(str(tmp_path / "none"), 1_000_000).open()
    assert len(os.listdir("/proc/self/fd")) == before
