"""A NATS server of its own with keys, and senders and receivers that use it, for the tests of shipping."""

import asyncio
import socket
import threading
from contextlib import closing, contextmanager

from dpg_robot.shipping.keys import make_key
from dpg_robot.shipping.nats_link import Link, connect
from dpg_robot.shipping.nats_receiver import NatsReceiver
from dpg_robot.shipping.nats_sender import NatsSender
from dpg_robot.shipping.nats_server import Server
from dpg_robot.shipping.sender_state import SenderState
from dpg_robot.shipping.settings import ReceiveSettings, SendSettings, ServeSettings
from dpg_robot.shipping.store import Store

SEND = SendSettings(piece_bytes=20_000, window_bytes=100_000, confirm_s=0.5)
RECEIVE = ReceiveSettings(min_free_bytes=0, stream_bytes=64 * 1024**2)


class Background:
    """Something that runs in a thread until it is told to stop."""

    def __init__(self, run):
        self.stop = threading.Event()
        self.error = None
        self.thread = threading.Thread(target=self._run, args=(run,))
        self.thread.start()

    def _run(self, run):
        try:
            run(self.stop.is_set)
        except Exception as error:
            self.error = error

    def end(self):
        self.stop.set()
        self.thread.join(30)
        assert not self.thread.is_alive()
        if self.error:
            raise self.error


def free_port():
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


class Site:
    """A server with keys, and senders and receivers that use it."""

    def __init__(self, folder, wait_until, tls=None):
        self.folder, self.log, self.store = folder, folder / "log", folder / "store"
        self.keys, self.port, self.wait_until = folder / "keys", free_port(), wait_until
        self.log.mkdir()
        for name in ("host", "arm", "leg"):
            make_key(self.keys, name)
        self.scheme = "tls" if tls else "nats"
        self.server = Server(ServeSettings(port=self.port), folder / "server", self.keys, tls)

    def link(self, name, **options):
        return Link(f"{self.scheme}://127.0.0.1:{self.port}", self.keys / f"{name}.seed", **options)

    @contextmanager
    def serving(self):
        ready = threading.Event()
        background = Background(lambda stop: self.server.run(stop, ready.set))
        try:
            self.wait_until(ready.is_set)
            yield
        finally:
            background.end()

    @contextmanager
    def receiving(self, settings=RECEIVE, **options):
        with closing(Store(self.store, min_free_bytes=settings.min_free_bytes)) as store:
            receiver = NatsReceiver(store, settings, self.link("host", **options))
            background = Background(lambda stop: asyncio.run(receiver.run(stop)))
            try:
                yield receiver
            finally:
                background.end()

    @contextmanager
    def sending(self, robot="arm", log=None, **options):
        state = SenderState(log or self.log, robot, SEND)
        sender = NatsSender(state, robot, self.link(robot, **options))
        background = Background(lambda stop: asyncio.run(sender.run(once=False, stop=stop)))
        try:
            yield state
        finally:
            background.end()
            state.close("stopped")

    def complete(self, robot="arm", log=None):
        return len(list((self.store / robot).glob("*/*.seal.json"))) == len(list((log or self.log).glob("*/segment-*.mcap")))

    def ask(self, name, visit):
        """Let ``visit(client)`` do something with the key of ``name``."""

        async def run():
            client = await connect(self.link(name), name)
            try:
                return await visit(client)
            finally:
                await client.close()

        return asyncio.run(run())
