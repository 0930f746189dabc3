"""Signed releases over NATS: the host puts the present one into JetStream's object store, robots fetch it into a folder.

Robots read the bucket message by message and make no consumer of it: a consumer's messages go to any subject that its maker
names, past all permissions. What a robot fetches is checked before it is written: the signature, and the policy against the hash
that was signed. The folder is then a store as :mod:`dpg_robot.release` describes it, and the robot's program checks all again.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import nats.errors
from nats.aio.client import Client
from nats.js import JetStreamContext
from nats.js.api import ObjectStoreConfig, StorageType
from nats.js.errors import BucketNotFoundError, NotFoundError
from nats.js.object_store import ObjectStore

from dpg_robot.errors import PolicyFileError
from dpg_robot.release import (
    MAX_POLICY_BYTES,
    MAX_RELEASE_BYTES,
    RELEASE_FILE,
    Release,
    ReleaseError,
    TrustedKey,
    policy_path,
    read_release,
    store_release,
    verify_release,
)
from dpg_robot.shipping.nats_link import (
    HOST_NAME,
    LINK_ERRORS,
    RELEASE_BUCKET,
    RELEASE_STREAM,
    Link,
    connect,
    disconnect,
    release_chunks_subject,
    release_meta_subject,
)
from dpg_robot.shipping.pauses import Pauses
from dpg_robot.shipping.sender_state import say

_BUCKET_BYTES = 4 * (MAX_POLICY_BYTES + MAX_RELEASE_BYTES)
_POLL_S = 1.0
_CHUNK_BYTES = 128 * 1024


class _Repeated:
    """Does something over a connection again and again; a lost connection is made again for ever, with growing pauses."""

    def __init__(self, link: Link, name: str, what: str) -> None:
        self._link, self._name, self._what = link, name, what
        self._pauses = Pauses()
        self._said = ""

    async def run(self, stop: Callable[[], bool]) -> None:
        """Go on until ``stop`` says so. Raises ConfigError when the key cannot be used."""
        while not stop():
            try:
                client = await connect(self._link, self._name)
                try:
                    while not stop():
                        await self.look(client.jetstream())
                        self._pauses.reset()
                        await _wait(_POLL_S, stop, client)
                finally:
                    await disconnect(client)
            except (*LINK_ERRORS, PolicyFileError) as error:
                self._say(f"{self._what}: {type(error).__name__}: {error}".rstrip(": ") + "; trying again")
            await _wait(self._pauses.next_s(), stop)

    async def look(self, stream: JetStreamContext) -> None:
        """Do it once."""
        raise NotImplementedError

    def _say(self, text: str) -> None:
        if text != self._said:
            say(text)
        self._said = text


class ReleasePublisher(_Repeated):
    """The host's side: keeps the bucket at the present release of a store, and holds nothing else in it.

    Args:
        store: the model store.
        link: how to reach the server.
    """

    def __init__(self, store: Path, link: Link) -> None:
        super().__init__(link, HOST_NAME, f"offering the releases of {store}")
        self._store = store
        self._offered: bytes | None = None

    async def look(self, stream: JetStreamContext) -> None:
        """Offer the store's release if it is another one than the bucket's. Raises PolicyFileError when it cannot be read."""
        try:
            content = (self._store / RELEASE_FILE).read_bytes()
        except FileNotFoundError:
            return
        if content == self._offered:
            return
        bucket = await _bucket(stream)
        before = await _fetch(stream, RELEASE_FILE, MAX_RELEASE_BYTES)
        if before != content:
            release = _described(content)
            policy = policy_path(self._store, release.policy_sha256).read_bytes()
            if hashlib.sha256(policy).hexdigest() != release.policy_sha256:
                raise ReleaseError(f"the policy of release {release.number} is damaged in {self._store}")
            # the policy is there, whole, before the release names it
            if await _fetch(stream, release.policy_sha256, MAX_POLICY_BYTES) != policy:
                await bucket.put(release.policy_sha256, policy)
            await bucket.put(RELEASE_FILE, content)
            await self._remove_former(bucket, before, release)
            say(f"offering release {release.number}, policy {release.policy_id}")
        self._offered = content

    async def _remove_former(self, bucket: ObjectStore, before: bytes | None, present: Release) -> None:
        former = None if before is None else _described(before).policy_sha256
        if former is not None and former != present.policy_sha256:
            await bucket.delete(former)


class ReleaseFetcher(_Repeated):
    """The robot's side: brings each new release into a folder.

    Args:
        folder: where; made when it does not exist.
        trusted: keys of whom releases are taken.
        robot: the robot's name.
        link: how to reach the server.
    """

    def __init__(self, folder: Path, trusted: Sequence[TrustedKey], robot: str, link: Link) -> None:
        super().__init__(link, robot, "fetching releases")
        self._folder, self._trusted = folder, tuple(trusted)
        self._fetched: bytes | None = None
        folder.mkdir(parents=True, exist_ok=True)

    async def look(self, stream: JetStreamContext) -> None:
        """Fetch the release of the bucket if it is newer than the folder's.

        Raises:
            ReleaseError: it is not signed by a trusted key, or its policy is not the one that was signed.
        """
        content = await _fetch(stream, RELEASE_FILE, MAX_RELEASE_BYTES)
        if content is None or content == self._fetched:
            return
        release = verify_release(content, self._trusted)
        if release.number > self._present_number():
            policy = await _fetch(stream, release.policy_sha256, MAX_POLICY_BYTES)
            if policy is None:
                raise ReleaseError(f"the server has release {release.number}, but not its policy")
            former = self._present()
            store_release(self._folder, policy, release, content)
            if former is not None and former.policy_sha256 != release.policy_sha256:
                self._remove_policies_but(former.policy_sha256, release.policy_sha256)
            say(f"fetched release {release.number}, policy {release.policy_id}")
        self._fetched = content

    def _present(self) -> Release | None:
        try:
            return read_release(self._folder, self._trusted)
        except ReleaseError:
            return None

    def _present_number(self) -> int:
        present = self._present()
        return -1 if present is None else present.number

    def _remove_policies_but(self, *kept: str) -> None:
        """Remove policies of earlier releases; what the robot runs it has copied."""
        wanted = {policy_path(self._folder, sha256) for sha256 in kept}
        for path in policy_path(self._folder, kept[0]).parent.glob("*.onnx"):
            if path not in wanted:
                path.unlink(missing_ok=True)


def _described(content: bytes) -> Release:
    """Return what a release file of our own store says; who signed it is for the robots to judge."""
    try:
        return Release.from_json(str(json.loads(content)["release"]))
    except (ValueError, KeyError, TypeError) as error:
        raise ReleaseError(f"a release file that cannot be read: {error}") from error


async def _bucket(stream: JetStreamContext) -> ObjectStore:
    try:
        return await stream.object_store(RELEASE_BUCKET)
    except BucketNotFoundError:
        config = ObjectStoreConfig(storage=StorageType.FILE, max_bytes=_BUCKET_BYTES)
        return await stream.create_object_store(RELEASE_BUCKET, config)


async def _fetch(stream: JetStreamContext, name: str, most_bytes: int) -> bytes | None:
    """Return an object of the bucket, None if there is none.

    Raises:
        ReleaseError: it is larger than that, or not as its description says.
    """
    try:
        meta = await stream.get_msg(RELEASE_STREAM, subject=release_meta_subject(name), direct=True)
    except (NotFoundError, nats.errors.NoRespondersError):  # no such object; no bucket yet
        return None
    try:
        info = json.loads(meta.data or b"")
        if info.get("deleted"):
            return None
        nuid, size, chunks = str(info["nuid"]), int(info["size"]), int(info["chunks"])
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ReleaseError(f"{name} in the bucket {RELEASE_BUCKET} has a description that cannot be read: {error}") from error
    if not 0 <= size <= most_bytes or not 0 <= chunks <= -(-most_bytes // _CHUNK_BYTES):
        raise ReleaseError(f"{name} in the bucket {RELEASE_BUCKET} has {size} bytes in {chunks} chunks, more than a robot takes")
    content, sequence = b"", 0
    for _ in range(chunks):
        try:
            chunk = await stream.get_msg(
                RELEASE_STREAM, seq=sequence + 1, subject=release_chunks_subject(nuid), direct=True, next=True
            )
        except NotFoundError:  # it was replaced meanwhile
            break
        content, sequence = content + (chunk.data or b""), int(chunk.seq or sequence)
    if len(content) != size:
        raise ReleaseError(f"{name} in the bucket {RELEASE_BUCKET} is not whole: {len(content)} of {size} bytes")
    return content


async def _wait(seconds: float, stop: Callable[[], bool], client: Client | None = None) -> None:
    end_s = time.monotonic() + seconds
    while time.monotonic() < end_s and not stop() and (client is None or client.is_connected):
        await asyncio.sleep(0.05)
