"""A pseudo-terminal that an emulated device serves, and a host opens like a serial port."""

from __future__ import annotations

import os
import select
import tty


def open_pseudo_terminal() -> tuple[int, str, select.poll]:
    """Open a pseudo-terminal in raw mode.

    Only the master end stays open here: so the kernel tells when the last host has closed the port, cleanly or by dying.

    Returns:
        The master end, which does not block; the path for hosts to open; and a poll that waits for what they send.
    """
    master, slave = os.openpty()
    tty.setraw(slave)  # stays so for as long as the master is open
    path = os.ttyname(slave)
    os.close(slave)
    os.set_blocking(master, False)
    poll = select.poll()
    poll.register(master, select.POLLIN)
    return master, path, poll
