"""The robot's side over NATS JetStream: pieces go into the server's stream, confirmations come back from the host."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from contextlib import suppress

import nats.errors
from nats.aio.client import Client
from nats.aio.msg import Msg
from nats.js import JetStreamContext
from nats.js.api import PubAck
from nats.js.errors import NotFoundError

from dpg_robot.shipping.nats_link import (
    CONFIRMED_STREAM,
    LINK_ERRORS,
    Link,
    confirmed_subject,
    connect,
    disconnect,
    log_subject,
    news_subject,
)
from dpg_robot.shipping.pauses import Pauses
from dpg_robot.shipping.piece import Confirmation, Piece, PieceError
from dpg_robot.shipping.sender_news import INTERVAL_S, SenderNews
from dpg_robot.shipping.sender_state import SenderState, say

_LONGEST_WAIT_S = 60.0


class NatsSender:
    """Ships one log folder; a lost connection is made again for ever, with growing pauses."""

    def __init__(self, state: SenderState, robot: str, link: Link) -> None:
        self._state = state
        self._robot = robot
        self._link = link
        self._pauses = Pauses()
        self._news = asyncio.Event()
        self._failure: BaseException | None = None
        self._progress_s = 0.0
        self._said = ""
        self._wait_s = state.settings.confirm_s
        self._next_news_s = 0.0

    async def run(self, *, once: bool, stop: Callable[[], bool]) -> None:
        """Ship until ``stop`` says so or, with ``once``, until everything is confirmed and no segment is open any more.

        Raises:
            ConfigError: the key cannot be used.
        """
        while not stop():
            try:
                client = await connect(self._link, self._robot)
                try:
                    if await self._session(client, once, stop):
                        return
                finally:
                    await disconnect(client)
            except LINK_ERRORS as error:
                text = f"{type(error).__name__}: {error}".rstrip(": ")
                if isinstance(error, nats.errors.NoRespondersError):
                    text = "no host has ever received there: start 'ship.py receive'"
                if text != self._said:
                    say(f"shipping to {self._link.url} is interrupted ({text}); trying again, nothing is lost")
                self._said = text
            self._state.counts.reconnects += 1
            self._state.outbox.forget_connection()
            await self._pause(stop)

    async def _pause(self, stop: Callable[[], bool]) -> None:
        end_s = time.monotonic() + self._pauses.next_s()
        while time.monotonic() < end_s and not stop():
            self._state.look_around("not connected")
            await asyncio.sleep(min(0.05, self._state.settings.poll_s))

    async def _session(self, client: Client, once: bool, stop: Callable[[], bool]) -> bool:
        """Ship over one connection until asked to stop (False) or, with ``once``, all is confirmed (True)."""
        self._failure = None
        self._note_progress()
        stream = client.jetstream()
        await client.subscribe(f"confirmed.{self._robot}.>", cb=self._on_confirmation)
        await client.flush(int(self._state.settings.confirm_s) + 1)
        outbox = self._state.outbox
        while not stop():
            self._news.clear()
            self._state.look_around("connected")
            await self._tell_news(client)
            while (place := outbox.unknown()) is not None:
                outbox.resume(place[0], await self._last_confirmation(stream, *place))
            await self._send_all(stream)
            if self._failure is not None:
                raise self._failure
            if not client.is_connected:
                raise nats.errors.ConnectionClosedError
            if outbox.pieces_on_the_way:
                self._go_back_if_forgotten()
            elif once and outbox.is_empty():
                return True
            with suppress(asyncio.TimeoutError):
                await asyncio.wait_for(self._news.wait(), self._state.settings.poll_s)
        return False

    async def _tell_news(self, client: Client) -> None:
        """Tell the host how this sender fares, if it is time; nobody waits for an answer."""
        if time.monotonic() < self._next_news_s:
            return
        self._next_news_s = time.monotonic() + INTERVAL_S
        news = SenderNews.of(self._state.values("connected"), self._state.failure)
        await client.publish(news_subject(self._robot), news.to_bytes())

    async def _send_all(self, stream: JetStreamContext) -> None:
        outbox = self._state.outbox
        if not outbox.pieces_on_the_way:
            self._progress_s = time.monotonic()
        while self._failure is None and (piece := self._state.next_piece()) is not None:
            await self._publish(stream, piece)
            await asyncio.sleep(0)  # let answers in

    async def _publish(self, stream: JetStreamContext, piece: Piece) -> None:
        headers = {"Nats-Msg-Id": piece.message_id}
        subject = log_subject(self._robot, piece.run)
        future = await stream.publish_async(subject, piece.to_bytes(), headers=headers)
        future.add_done_callback(self._on_accepted)

    def _on_accepted(self, future: asyncio.Future[PubAck]) -> None:
        """The server has, or has not, the piece; a full stream ends the session, so that there is a pause."""
        if not future.cancelled() and (error := future.exception()) is not None:
            self._failure = error
            self._news.set()

    async def _on_confirmation(self, message: Msg) -> None:
        try:
            confirmation = Confirmation.from_bytes(message.data)
        except PieceError as error:
            say(f"a confirmation cannot be read and is left out: {error}")
            return
        self._state.confirm(confirmation)
        self._note_progress()
        self._pauses.reset()
        self._said = ""
        self._wait_s = self._state.settings.confirm_s
        self._news.set()

    async def _last_confirmation(self, stream: JetStreamContext, run: str, segment: int) -> Confirmation | None:
        try:
            message = await stream.get_msg(CONFIRMED_STREAM, subject=confirmed_subject(self._robot, run, segment), direct=True)
            return Confirmation.from_bytes(message.data or b"")
        except (NotFoundError, PieceError):
            return None

    def _note_progress(self) -> None:
        self._progress_s = time.monotonic()

    def _go_back_if_forgotten(self) -> None:
        if time.monotonic() - self._progress_s > self._wait_s:
            self._state.counts.timeouts += 1
            self._state.outbox.go_back()
            self._note_progress()
            self._wait_s = min(2 * self._wait_s, _LONGEST_WAIT_S)
