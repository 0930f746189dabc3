"""A TCP connection between two ports of this machine that can be cut: while it is, nothing passes and nobody is told."""

from __future__ import annotations

import asyncio
import contextlib
import threading

_BLOCK_BYTES = 65536
_POLL_S = 0.02


class CuttableLink:
    """Forwards connections to ``port`` in a thread of its own.

    Attributes:
        port: where to connect to.
        is_cut: set it to cut the link, clear it to mend it.
    """

    def __init__(self, port: int) -> None:
        self.is_cut = threading.Event()
        self.port = 0
        self._target = port
        self._loop = asyncio.new_event_loop()
        self._ready = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()
        self._ready.wait()

    def close(self) -> None:
        """End all connections."""
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()

    def _run(self) -> None:
        asyncio.set_event_loop(self._loop)
        server = self._loop.run_until_complete(asyncio.start_server(self._serve, "127.0.0.1", 0))
        self.port = server.sockets[0].getsockname()[1]
        self._ready.set()
        self._loop.run_forever()
        for task in asyncio.all_tasks(self._loop):
            task.cancel()
        self._loop.run_until_complete(asyncio.sleep(0))
        self._loop.close()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError):
            await self._mended()
            other_reader, other_writer = await asyncio.open_connection("127.0.0.1", self._target)
            await asyncio.gather(self._copy(reader, other_writer), self._copy(other_reader, writer))

    async def _copy(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError):
            while data := await reader.read(_BLOCK_BYTES):
                await self._mended()
                writer.write(data)
                await writer.drain()
        writer.close()

    async def _mended(self) -> None:
        while self.is_cut.is_set():
            await asyncio.sleep(_POLL_S)
