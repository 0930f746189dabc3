"""Signed releases over a real NATS server: from the host's store into the robots' folders, and nothing else into them."""

import asyncio
import hashlib
import importlib.util
import json
import shutil
from contextlib import contextmanager, suppress
from pathlib import Path

import nats.errors
import pytest

from dpg_robot.errors import PolicyFileError
from dpg_robot.policy_file import read_policy_file
from dpg_robot.release import (
    RELEASE_FILE,
    Release,
    SigningKey,
    policy_path,
    read_release,
    read_released_policy,
    write_release,
)
from dpg_robot.shipping.nats_link import RELEASE_BUCKET, release_meta_subject
from dpg_robot.shipping.nats_releases import ReleaseFetcher, ReleasePublisher

KEY = SigningKey.generate()
TRUSTED = [KEY.public]


@pytest.fixture(scope="module")
def policies(tmp_path_factory):
    """Two policies, the second of which needs several messages."""
    spec = importlib.util.spec_from_file_location("tiny_policy", Path(__file__).parents[1] / "deploy" / "tiny_policy.py")
    tiny_policy = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(tiny_policy)
    folder = tmp_path_factory.mktemp("policies")
    large = tiny_policy.write_policy(folder / "large.onnx", change=lambda model: setattr(model, "doc_string", 400_000 * "x"))
    return [tiny_policy.write_policy(folder / "small.onnx"), large]


def make_release(store, policy, number, key=KEY):
    content, metadata = read_policy_file(policy)
    release = Release(number, hashlib.sha256(content).hexdigest(), metadata.policy_id)
    write_release(store, content, release, key)
    return release


class Places:
    """A host's store and robots' folders on one server."""

    def __init__(self, site, nats_site):
        self.site, self.nats_site = site, nats_site
        self.store, self.arm, self.leg = (site.folder / name for name in ("models", "arm-releases", "leg-releases"))
        self.store.mkdir()

    @contextmanager
    def offering(self):
        with self._running(ReleasePublisher(self.store, self.site.link("host"))):
            yield

    @contextmanager
    def fetching(self, folder=None, robot="arm", trusted=TRUSTED):
        with self._running(ReleaseFetcher(folder or self.arm, trusted, robot, self.site.link(robot))):
            yield

    @contextmanager
    def _running(self, part):
        background = self.nats_site.Background(lambda stop: asyncio.run(part.run(stop)))
        try:
            yield
        finally:
            background.end()

    def number(self, folder):
        """Number of the release in a robot's folder, 0 if there is none."""
        with suppress(PolicyFileError):
            return read_release(folder, TRUSTED).number
        return 0


@pytest.fixture
def places(site, nats_site):
    return Places(site, nats_site)


def test_each_release_reaches_every_robot_and_the_server_keeps_only_the_present_one(places, policies, wait_until):
    with places.site.serving(), places.fetching(), places.fetching(places.leg, "leg"), places.offering():
        first = make_release(places.store, policies[0], 1)
        wait_until(lambda: places.number(places.arm) == places.number(places.leg) == 1)
        second = make_release(places.store, policies[1], 2)
        wait_until(lambda: places.number(places.arm) == places.number(places.leg) == 2)
        for folder in (places.arm, places.leg):
            assert read_released_policy(folder, second)[0] == policies[1].read_bytes()

        async def names(client):
            bucket = await client.jetstream().object_store(RELEASE_BUCKET)
            found = []
            for name in (RELEASE_FILE, first.policy_sha256, second.policy_sha256):
                with suppress(nats.js.errors.NotFoundError):
                    found.append((await bucket.get_info(name)).name)
            return found

        wait_until(lambda: places.site.ask("host", names) == [RELEASE_FILE, second.policy_sha256])
        third = make_release(places.store, policies[0], 3)  # back to the first policy
        wait_until(lambda: places.number(places.arm) == places.number(places.leg) == 3)
        assert read_released_policy(places.arm, third)[0] == policies[0].read_bytes()


def test_a_release_arrives_after_the_server_was_killed_and_lost_its_data(places, policies, wait_until):
    make_release(places.store, policies[0], 1)
    with places.site.serving(), places.offering(), places.fetching():
        wait_until(lambda: places.number(places.arm) == 1)
    shutil.rmtree(places.site.folder / "server" / "jetstream")
    make_release(places.store, policies[1], 2)
    with places.fetching(), places.site.serving(), places.offering():
        wait_until(lambda: places.number(places.arm) == 2)
        places.site.server._process.kill()
        make_release(places.store, policies[0], 3)
        wait_until(lambda: places.number(places.arm) == 3)


def test_a_release_that_nobody_trusted_has_signed_is_not_written(places, policies, wait_until, capsys):
    make_release(places.store, policies[0], 1, SigningKey.generate())
    said = []
    with places.site.serving(), places.offering(), places.fetching():
        wait_until(lambda: said.append(capsys.readouterr().err) or "signed by key" in "".join(said))
        assert list(places.arm.iterdir()) == []
        make_release(places.store, policies[0], 2)
        wait_until(lambda: places.number(places.arm) == 2)


def test_an_older_release_in_its_place_is_not_taken(places, policies, wait_until, capsys):
    make_release(places.store, policies[0], 5)
    with places.site.serving(), places.offering(), places.fetching():
        wait_until(lambda: places.number(places.arm) == 5)
        make_release(places.store, policies[1], 4)
        said = []
        wait_until(lambda: said.append(capsys.readouterr().err) or "offering release 4" in "".join(said))
        with places.fetching(places.leg, "leg"):  # a new robot sees that the older one is what the server has
            wait_until(lambda: places.number(places.leg) == 4)
        assert places.number(places.arm) == 5


@pytest.mark.parametrize(
    ("wrong", "word"),
    [
        ({"size": 2**40, "chunks": 1}, "more than a robot takes"),
        ({"size": 100, "chunks": 2**40}, "more than a robot takes"),
        ({"size": 100, "chunks": 0}, "not whole"),
        ({"size": "many"}, "cannot be read"),
        ([], "cannot be read"),
    ],
)
def test_a_description_that_lies_costs_the_robot_nothing(places, policies, wait_until, capsys, wrong, word):
    """Even the host's key, in wrong hands, cannot make robots fetch what has no end."""
    make_release(places.store, policies[0], 1)
    said = []
    with places.site.serving():
        with places.offering():

            async def is_there(client):
                with suppress(nats.errors.Error, nats.js.errors.Error):
                    await (await client.jetstream().object_store(RELEASE_BUCKET)).get_info(RELEASE_FILE)
                    return True
                return False

            wait_until(lambda: places.site.ask("host", is_there))

        async def lie(client):
            content = json.dumps({"nuid": "x", "size": 1, "chunks": 1} | wrong if isinstance(wrong, dict) else wrong)
            await client.jetstream().publish(release_meta_subject(RELEASE_FILE), content.encode())

        places.site.ask("host", lie)
        with places.fetching():
            wait_until(lambda: said.append(capsys.readouterr().err) or word in "".join(said))
        assert list(places.arm.iterdir()) == []


def test_a_robots_key_can_neither_offer_releases_nor_let_the_server_speak_for_it(places, policies, wait_until):
    make_release(places.store, policies[0], 1)
    with places.site.serving(), places.offering(), places.fetching():
        wait_until(lambda: places.number(places.arm) == 1)

        async def try_all(client):
            stream = client.jetstream(timeout=0.5)
            refused = []
            for attempt in (
                lambda: stream.publish(release_meta_subject(RELEASE_FILE), b"{}"),
                lambda: stream.purge_stream(f"OBJ_{RELEASE_BUCKET}"),
                lambda: stream.delete_stream(f"OBJ_{RELEASE_BUCKET}"),
                lambda: stream.subscribe(f"$O.{RELEASE_BUCKET}.>", ordered_consumer=True),
                lambda: stream.add_consumer(f"OBJ_{RELEASE_BUCKET}", deliver_subject="log.leg.run"),
            ):
                try:
                    await attempt()
                    refused.append(False)
                except (nats.errors.Error, nats.js.errors.Error):
                    refused.append(True)
            return refused

        assert places.site.ask("arm", try_all) == [True] * 5
        make_release(places.store, policies[1], 2)
        wait_until(lambda: places.number(places.arm) == 2)


def test_policies_of_long_ago_do_not_fill_the_robots_disk(places, policies, wait_until):
    with places.site.serving(), places.offering(), places.fetching():
        for number in range(1, 5):
            make_release(places.store, policies[number % 2], number)
            wait_until(lambda number=number: places.number(places.arm) == number)
    stale = policy_path(places.arm, "ab" * 32)
    stale.write_bytes(b"of a release long ago")
    make_release(places.store, policies[1], 5)
    with places.site.serving(), places.offering(), places.fetching():
        wait_until(lambda: places.number(places.arm) == 5)
        wait_until(lambda: not stale.exists())
    assert len(list(stale.parent.iterdir())) == 2
