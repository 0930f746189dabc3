"""A serial port, opened exclusively, with every read and write bounded by a deadline.

pyserial opens and configures the port; reading and writing use its file descriptor directly, so that one call is one or two
system calls and a deadline holds to well below a millisecond.
"""

from __future__ import annotations

import errno
import fcntl
import grp
import os
import select
import stat
import termios
import time
from pathlib import Path

import serial
from serial.tools import list_ports

from dpg_robot.errors import LinkError, LinkTimeoutError

_READ_BYTES = 4096
_PTY_MAJORS = range(136, 144)


class SerialLink:
    """One serial port: 8 data bits, no parity, 1 stop bit, no flow control.

    Deadlines are on ``time.monotonic_ns``. A port that has gone raises LinkError from every call but ``close``.

    Attributes:
        port: path of the port.
        baud_rate: bits per second.
        low_latency: whether the driver granted low-latency mode (USB adapters otherwise hold bytes back for up to 16 ms).
    """

    def __init__(self, port: str, baud_rate: int) -> None:
        self.port = port
        self.baud_rate = baud_rate
        self.low_latency = False
        self._serial: serial.Serial | None = None
        self._fd = -1

    @property
    def is_open(self) -> bool:
        """Whether the port is open on our side."""
        return self._serial is not None

    def open(self) -> None:
        """Open the port for us alone and drop whatever was received before. Raises LinkError that says what to do."""
        self.close()
        try:
            port = serial.Serial(self.port, self.baud_rate, timeout=0, exclusive=True)
        except (serial.SerialException, ValueError, OSError) as error:
            raise _open_error(self.port, self.baud_rate, error) from error
        self._serial, self._fd = port, port.fileno()
        self._lock_out_other_programs()
        try:
            port.set_low_latency_mode(True)
            self.low_latency = True
        except (NotImplementedError, ValueError, OSError):
            self.low_latency = False
        self.discard_input()

    def read(self, deadline_ns: int) -> bytes:
        """Return bytes as soon as there are any, at most 4096; empty when none came before the deadline."""
        fd = self._open_fd()
        try:
            remaining_s = max(0, deadline_ns - time.monotonic_ns()) * 1e-9
            if not select.select([fd], [], [], remaining_s)[0]:
                return b""
            data = os.read(fd, _READ_BYTES)
        except OSError as error:
            raise self._gone(str(error)) from error
        if not data:
            raise self._gone("it is ready to read but has no data")
        return data

    def write(self, data: bytes, deadline_ns: int) -> None:
        """Hand all bytes to the driver.

        Raises:
            LinkTimeoutError: the driver did not take all of them before the deadline (nobody drains the port).
            LinkError: the port is gone.
        """
        fd = self._open_fd()
        sent = 0
        while True:
            try:
                sent += os.write(fd, data[sent:])
            except BlockingIOError:
                pass  # the driver's buffer is full
            except OSError as error:
                raise self._gone(str(error)) from error
            if sent == len(data):
                return
            remaining_s = (deadline_ns - time.monotonic_ns()) * 1e-9
            if remaining_s <= 0 or not select.select([], [fd], [], remaining_s)[1]:
                raise LinkTimeoutError(
                    f"serial port {self.port} took {sent} of {len(data)} bytes before the deadline; the device or adapter does "
                    "not drain its input. Check the cable and the device."
                )

    def discard_input(self) -> None:
        """Drop the bytes that were received and not read yet."""
        try:
            termios.tcflush(self._open_fd(), termios.TCIFLUSH)
        except (termios.error, OSError) as error:
            raise self._gone(str(error)) from error

    def close(self) -> None:
        """Give the port back. Never raises; may be called at any time."""
        port, self._serial, self._fd = self._serial, None, -1
        if port is None:
            return
        try:
            fcntl.ioctl(port.fileno(), termios.TIOCNXCL)
        except OSError:
            pass  # the port is gone, and its lock with it
        finally:
            port.close()

    def _open_fd(self) -> int:
        if self._fd < 0:
            raise LinkError(f"serial port {self.port} is not open; call connect() first")
        return self._fd

    def _lock_out_other_programs(self) -> None:
        """Make later opens of the port fail, also those of programs that do not ask for a lock.

        Not on pseudo-terminals: there the kernel keeps this mark after our process was killed, and nobody could connect again.
        """
        try:
            if os.major(os.fstat(self._fd).st_rdev) not in _PTY_MAJORS:
                fcntl.ioctl(self._fd, termios.TIOCEXCL)
        except OSError:
            pass  # a driver without this call; the lock taken at opening remains

    def _gone(self, reason: str) -> LinkError:
        return LinkError(f"serial port {self.port} is gone (unplugged, or its device was switched off): {reason}")


def _open_error(port: str, baud_rate: int, error: Exception) -> LinkError:
    """Say why a port could not be opened and what to do about it."""
    code = getattr(error, "errno", None)
    if not os.path.exists(port):
        return LinkError(
            f"serial port {port} does not exist; ports on this computer: {_existing_ports()}. Is the robot plugged in?"
        )
    if code in (errno.EBUSY, errno.EAGAIN):
        return LinkError(f"serial port {port} is busy: it is held by {_holders(port)}. Stop that program first.")
    if code in (errno.EACCES, errno.EPERM):
        group = _group_name(os.stat(port).st_gid)
        return LinkError(
            f"no permission to open serial port {port}; it belongs to group {group!r}. "
            f"Run 'sudo usermod -aG {group} $USER', then log out and in again."
        )
    if not stat.S_ISCHR(os.stat(port).st_mode):
        return LinkError(f"{port} is not a serial port; ports on this computer: {_existing_ports()}")
    return LinkError(f"serial port {port} could not be opened at {baud_rate} baud, 8N1: {error}")


def _existing_ports() -> str:
    return ", ".join(sorted(info.device for info in list_ports.comports())) or "none"


def _group_name(group_id: int) -> str:
    try:
        return grp.getgrgid(group_id).gr_name
    except KeyError:
        return str(group_id)


def _holders(port: str) -> str:
    """Name the processes that have the port open, as far as /proc lets us see them."""
    target = os.path.realpath(port)
    holders = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            if any(os.readlink(fd) == target for fd in (process / "fd").iterdir()):
                holders.append(f"{(process / 'comm').read_text().strip()} (process {process.name})")
        except OSError:
            continue  # ended meanwhile, or not ours to see
    return ", ".join(holders) or "a process that /proc does not show us (of another user?)"
