"""Shipping without a server: the store is a folder that the robot's computer can write, on a mounted disk or its own."""

from __future__ import annotations

import errno
import time
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

from dpg_robot.shipping.pauses import Pauses
from dpg_robot.shipping.sender_state import SenderState, say
from dpg_robot.shipping.store import Store


def send_to_folder(state: SenderState, store_folder: Path, robot: str, *, once: bool, stop: Callable[[], bool]) -> None:
    """Ship a log folder into a store until ``stop`` says so.

    A disk that fails or is full is tried again for ever, with growing pauses.

    Args:
        state: the log folder.
        store_folder: the store; must exist, so that a disk that is not mounted is not mistaken for an empty store.
        robot: name of the robot.
        once: end as soon as everything is confirmed and no segment is open any more.
        stop: asked often whether to end.

    Raises:
        LogError: another process writes the store.
        OSError: with ``once``, when the log cannot be read or the store cannot be written.
    """
    pauses = Pauses()
    while not stop():
        try:
            if not store_folder.is_dir():
                raise FileNotFoundError(
                    errno.ENOENT, "make this folder first, or mount the disk that holds it", str(store_folder)
                )
            with closing(Store(store_folder)) as store:
                if _send(state, store, robot, pauses, once=once, stop=stop):
                    return
        except OSError as error:
            if once:
                raise
            state.counts.reconnects += 1
            state.outbox.forget_connection()
            say(f"{error}; trying again")
            _wait(pauses.next_s(), state, stop)


def _send(state: SenderState, store: Store, robot: str, pauses: Pauses, *, once: bool, stop: Callable[[], bool]) -> bool:
    """Send until asked to stop (False) or, with ``once``, everything is confirmed (True)."""
    while not stop():
        state.look_around("sending")
        if _send_some(state, store, robot):
            pauses.reset()
        elif once and state.outbox.is_empty():
            return True
        else:
            time.sleep(state.settings.poll_s)
    return False


def _wait(pause_s: float, state: SenderState, stop: Callable[[], bool]) -> None:
    end_s = time.monotonic() + pause_s
    while time.monotonic() < end_s and not stop():
        state.look_around("waiting")
        time.sleep(state.settings.poll_s)


def _send_some(state: SenderState, store: Store, robot: str) -> bool:
    """Write what there is, up to a window, and synchronize it; returns whether there was something."""
    while (place := state.outbox.unknown()) is not None:
        state.outbox.resume(place[0], store.state(robot, *place))
    answers = []
    while (piece := state.next_piece()) is not None:
        answers.append(store.write(piece))
    store.synchronize()
    for answer in answers:
        state.confirm(answer)
    return bool(answers)
