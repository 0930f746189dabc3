"""The host's side over NATS JetStream: takes pieces from the stream into the store and confirms what is on the disk."""

from __future__ import annotations

import asyncio
import json
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import nats.errors
from nats.aio.client import Client
from nats.aio.msg import Msg
from nats.js import JetStreamContext
from nats.js.api import AckPolicy, ConsumerConfig, DiscardPolicy, PubAck, RetentionPolicy, StorageType, StreamConfig
from nats.js.errors import NotFoundError

from dpg_robot.data.log_format import segment_name
from dpg_robot.shipping.nats_link import (
    CONFIRMED_STREAM,
    CONSUMER,
    HOST_NAME,
    LINK_ERRORS,
    LOG_STREAM,
    Link,
    confirmed_subject,
    connect,
    disconnect,
    news_subject,
    parse_log_subject,
    parse_news_subject,
)
from dpg_robot.shipping.pauses import Pauses
from dpg_robot.shipping.piece import Confirmation, Piece, PieceError
from dpg_robot.shipping.sender_news import SenderNews
from dpg_robot.shipping.sender_state import say
from dpg_robot.shipping.settings import ReceiveSettings
from dpg_robot.shipping.status_file import STATUS_NAME, StatusFile
from dpg_robot.shipping.store import Store

_FETCH_S = 0.5
_ACKNOWLEDGE_S = 30.0
_DISK_PAUSE_S = 5.0
_RUN_PIECES = 1000  # most pieces of one run that wait in the server, so that one robot cannot take all of it
_REPETITION_S = 120.0
_UNATTRIBUTED = "unknown"
_CHECKED_TOGETHER = 50
_WAITING_NEWS = 1000  # where a server without keys lets anybody speak, more are dropped
_MOST_SENDERS = 1000


class NatsReceiver:
    """Takes logs into a store; a lost connection is made again for ever, with growing pauses."""

    def __init__(self, store: Store, settings: ReceiveSettings, link: Link) -> None:
        self._store = store
        self._settings = settings
        self._link = link
        self._pauses = Pauses()
        self._status = StatusFile(store.folder / STATUS_NAME)
        self._reconnects = 0
        self._redeliveries = 0
        self._waiting = 0
        self._problems: list[str] = []
        self._robots: dict[str, dict[str, Any]] = {}
        self._senders: dict[str, dict[str, Any]] = {}
        self._complete: asyncio.Queue[Path] = asyncio.Queue()
        self._queued: set[Path] = set()
        self._checked_segments = 0
        self._trouble = ""
        self._said = ""

    async def run(self, stop: Callable[[], bool]) -> None:
        """Take logs in until ``stop`` says so.

        Raises:
            ConfigError: the key cannot be used.
        """
        checks = asyncio.create_task(self._check_segments())
        try:
            while not stop():
                try:
                    client = await connect(self._link, HOST_NAME)
                    try:
                        await self._session(client, stop)
                    finally:
                        await disconnect(client)
                except LINK_ERRORS as error:
                    text = f"{type(error).__name__}: {error}".rstrip(": ")
                    if text != self._said:
                        say(f"receiving from {self._link.url} is interrupted ({text}); trying again")
                    self._said = text
                self._reconnects += 1
                await self._pause(stop)
        finally:
            checks.cancel()
            await asyncio.gather(checks, return_exceptions=True)
            self._status.write(self.values("stopped"))

    def values(self, state: str) -> dict[str, Any]:
        """Return all counters."""
        return {
            "role": "receiver",
            "state": state,
            **vars(self._store.counts),
            "checked_segments": self._checked_segments,
            "redeliveries": self._redeliveries,
            "queue_depth": self._waiting,
            "reconnects": self._reconnects,
            "robots": self._robots,
            "senders": self._senders,
            "problems": self._problems,
            "trouble": self._trouble,
        }

    async def _pause(self, stop: Callable[[], bool]) -> None:
        end_s = time.monotonic() + self._pauses.next_s()
        while time.monotonic() < end_s and not stop():
            self._write_status("not connected")
            await asyncio.sleep(0.05)

    async def _session(self, client: Client, stop: Callable[[], bool]) -> None:
        stream = client.jetstream()
        await make_streams(stream, self._settings)
        self._said = ""
        await client.subscribe(news_subject("*"), cb=self._on_news, pending_msgs_limit=_WAITING_NEWS)
        subscription = await stream.pull_subscribe_bind(consumer=CONSUMER, stream=LOG_STREAM)
        while not stop():
            self._write_status("connected")
            if not client.is_connected:
                raise nats.errors.ConnectionClosedError
            try:
                messages = await subscription.fetch(1, timeout=_FETCH_S)
                # What waits already is synchronized with the disk together; asking for more would wait for it.
                more = min(messages[0].metadata.num_pending, self._settings.batch - 1)
                if more > 0:
                    messages += await subscription.fetch(more, timeout=_FETCH_S)
            except nats.errors.TimeoutError:
                self._waiting = 0
                continue
            self._pauses.reset()
            await self._handle(client, stream, messages)

    async def _on_news(self, message: Msg) -> None:
        """Note how a sender fares; the server has checked that it speaks of itself."""
        try:
            robot, news = parse_news_subject(message.subject), SenderNews.from_bytes(message.data)
        except PieceError:
            self._add_problem(f"news at {message.subject[:80]} cannot be read")  # the same words each time: it is said once
            return
        if robot in self._senders or len(self._senders) < _MOST_SENDERS:
            self._senders[robot] = {"time": time.time(), **vars(news)}

    async def _handle(self, client: Client, stream: JetStreamContext, messages: Sequence[Msg]) -> None:
        """Store messages, confirm what is on the disk, and only then let the server forget them."""
        self._waiting = messages[-1].metadata.num_pending
        self._redeliveries += sum(message.metadata.num_delivered > 1 for message in messages)
        try:
            answers = await asyncio.to_thread(self._take, messages)
        except OSError as error:
            if self._trouble != str(error):
                say(f"the store cannot be written: {error}. Robots keep what they have; trying again")
            self._trouble = str(error)
            for message in messages:
                await message.nak(delay=_DISK_PAUSE_S)
            self._write_status("disk trouble")
            await asyncio.sleep(_DISK_PAUSE_S)
            return
        self._trouble = ""
        futures = [
            await stream.publish_async(confirmed_subject(answer.robot, answer.run, answer.segment), answer.to_bytes())
            for answer in answers
        ]
        await _all_accepted(client, futures)
        for message in messages:
            await message.ack()
        for answer in answers:
            self._note(answer)

    def _take(self, messages: Sequence[Msg]) -> list[Confirmation]:
        """Write pieces into the store and synchronize it; returns the confirmations, those that others make needless left out."""
        answers: dict[tuple[str, str, int, str], Confirmation] = {}
        for message in messages:
            answer = self._take_one(message)
            if answer is not None:
                key = answer.robot, answer.run, answer.segment, answer.kind
                answers.pop(key, None)
                answers[key] = answer
        self._store.synchronize()
        return list(answers.values())

    def _take_one(self, message: Msg) -> Confirmation | None:
        robot = _UNATTRIBUTED
        try:
            # The server has checked that the sender may use this subject; the piece itself could say anything.
            robot, run = parse_log_subject(message.subject)
            piece = Piece.from_bytes(message.data)
            if (piece.robot, piece.run) != (robot, run):
                raise PieceError(f"the piece says {piece.robot}/{piece.run}, its subject {robot}/{run}")
            if message.metadata.num_delivered > self._settings.max_deliveries:
                raise PieceError(f"it could not be handled {message.metadata.num_delivered - 1} times")
        except PieceError as error:
            self._store.set_aside(robot, message.data, str(error))
            return None
        return self._store.write(piece)

    def _note(self, answer: Confirmation) -> None:
        if answer.kind == "refused":
            self._add_problem(f"{answer.robot}/{answer.run}, segment {answer.segment} was refused: {answer.reason}")
        elif answer.kind == "stored":
            robot = self._robots.setdefault(answer.robot, {})
            if answer.last_sequence is not None:
                robot.update(run=answer.run, last_confirmed_sequence=answer.last_sequence)
            if answer.seal is not None:
                path = self._store.folder / answer.robot / answer.run / segment_name(answer.segment)
                if path not in self._queued:
                    self._queued.add(path)
                    self._complete.put_nowait(path)

    async def _check_segments(self) -> None:
        """Check the records of complete segments; their bytes are known to be the robot's already."""
        while True:
            paths = [await self._complete.get()]
            while not self._complete.empty() and len(paths) < _CHECKED_TOGETHER:
                paths.append(self._complete.get_nowait())
            command = [sys.executable, "-m", "dpg_robot.shipping.segment_check", *map(str, paths)]
            process = await asyncio.create_subprocess_exec(*command, stdout=asyncio.subprocess.PIPE)
            try:
                output, _ = await process.communicate()
            except asyncio.CancelledError:
                process.kill()
                await process.communicate()
                raise
            for check in map(json.loads, output.splitlines()):
                self._checked_segments += 1
                for problem in check["problems"]:
                    self._add_problem(f"{check['path']}: {problem}")
            if process.returncode:
                self._add_problem(f"the check of {len(paths)} segments ended with code {process.returncode}")

    def _add_problem(self, text: str) -> None:
        if text not in self._problems:
            say(text)
            self._problems = [*self._problems, text][-20:]

    def _write_status(self, state: str) -> None:
        if self._status.is_due:
            self._status.write(self.values(state))


async def _all_accepted(client: Client, futures: Sequence[asyncio.Future[PubAck]]) -> None:
    """Wait until the server has all confirmations; a lost connection is noticed, because its futures would never be done."""
    waiting: set[asyncio.Future[PubAck]] = set(futures)
    end_s = time.monotonic() + _ACKNOWLEDGE_S
    while waiting:
        done, waiting = await asyncio.wait(waiting, timeout=0.1)
        for future in done:
            future.result()
        if waiting and (not client.is_connected or time.monotonic() > end_s):
            raise nats.errors.ConnectionClosedError


async def make_streams(stream: JetStreamContext, settings: ReceiveSettings) -> None:
    """Make or adjust the streams and the consumer.

    Pieces stay until the host has acknowledged them; a stream that is full takes no more, and drops nothing. Of the
    confirmations the last of each segment stays.
    """
    for config in (
        StreamConfig(
            name=LOG_STREAM,
            subjects=["log.*.*"],
            retention=RetentionPolicy.WORK_QUEUE,
            storage=StorageType.FILE,
            max_bytes=settings.stream_bytes,
            max_msgs_per_subject=_RUN_PIECES,
            discard=DiscardPolicy.NEW,
            discard_new_per_subject=True,
            duplicate_window=_REPETITION_S,
        ),
        StreamConfig(
            name=CONFIRMED_STREAM,
            subjects=["confirmed.*.*.*"],
            storage=StorageType.FILE,
            max_bytes=settings.stream_bytes // 4,
            max_msgs_per_subject=1,
            discard=DiscardPolicy.OLD,
            allow_direct=True,
        ),
    ):
        try:
            await stream.update_stream(config)
        except NotFoundError:
            await stream.add_stream(config)
    # Deliveries are counted here and not limited by the server, which would leave the message where nobody sees it.
    await stream.add_consumer(
        LOG_STREAM,
        ConsumerConfig(
            name=CONSUMER, durable_name=CONSUMER, ack_policy=AckPolicy.EXPLICIT, ack_wait=_ACKNOWLEDGE_S, max_deliver=-1
        ),
    )
