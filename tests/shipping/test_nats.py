"""Shipping over a real NATS server, which is killed, loses its data, and is visited by people who should not be there."""

import asyncio
import hashlib
import shutil
import signal
import socket
import subprocess
from contextlib import ExitStack, suppress

import nats.errors
import pytest
from nats.aio.client import Client

from dpg_robot.data.log_writer import LogWriter
from dpg_robot.errors import ConfigError
from dpg_robot.shipping.keys import make_key, read_public_keys
from dpg_robot.shipping.nats_link import CONFIRMED_STREAM, LOG_STREAM, Link, connect
from dpg_robot.shipping.nats_server import ServerError, Tls, server_config
from dpg_robot.shipping.piece import Piece, Seal
from dpg_robot.shipping.settings import ReceiveSettings, ServeSettings
from dpg_robot.shipping.status_file import read_status


def test_a_log_arrives_although_server_host_and_robot_are_ended_in_the_middle(site, sample, wait_until, assert_shipped):
    with (
        LogWriter(site.log, "run.1", sample.CONTRACT, segment_bytes=100_000, flush_interval_s=0.0) as writer,
        ExitStack() as stack,
    ):
        written = 0

        def write(count):
            nonlocal written
            for _ in range(count // 10):
                writer.append(sample.make_records(written, 10))
                written += 10

        stack.enter_context(site.serving())
        with site.receiving(), site.sending() as state:
            write(500)
            wait_until(lambda: state.outbox.last_sequence == 499)
            site.server._process.kill()
            write(300)
            wait_until(lambda: state.outbox.last_sequence == 799)
            site.server._process.send_signal(signal.SIGSTOP)  # a link that says nothing
            write(300)
            wait_until(lambda: state.counts.reconnects >= 2 or state.counts.timeouts >= 1)
            site.server._process.send_signal(signal.SIGCONT)
            wait_until(lambda: state.outbox.last_sequence == 1099)
        with site.sending() as state:  # while no host is there
            write(300)
            wait_until(lambda: state.counts.pieces > 0)
        with site.receiving() as receiver, site.sending() as state:
            write(400)
            writer.close()
            wait_until(site.complete)
            assert receiver._store.counts.refused == 0
    assert_shipped(site.log, site.store / "arm", 1800)
    assert read_status(site.store)["robots"]["arm"] == {"run": "run.1", "last_confirmed_sequence": 1799}


def test_a_server_that_lost_its_data_and_a_host_that_lost_its_store_get_what_they_need(
    site, write_run, wait_until, assert_shipped
):
    write_run(site.log, "a", 500)
    with site.serving(), site.receiving(), site.sending():
        wait_until(site.complete)
    shutil.rmtree(site.folder / "server" / "jetstream")
    write_run(site.log, "b", 500)
    with site.serving(), site.receiving(), site.sending():
        wait_until(site.complete)
    assert_shipped(site.log, site.store / "arm", 500)
    shutil.rmtree(site.store)
    (site.log / ".shipping" / "a.run.json").unlink()
    with site.serving(), site.receiving(), site.sending() as state:
        wait_until(lambda: len(list(site.store.glob("arm/a/*.seal.json"))) == len(list(site.log.glob("a/*"))))
        assert state.failure == ""
    assert [path.read_bytes() for path in sorted((site.store / "arm" / "a").glob("*.mcap"))] == [
        path.read_bytes() for path in sorted((site.log / "a").glob("*.mcap"))
    ]


def test_a_host_that_is_away_costs_the_link_next_to_nothing(site, write_run, wait_until, assert_shipped):
    write_run(site.log, count=3000)
    with site.serving():
        with site.receiving() as receiver:
            wait_until(lambda: receiver._status.path.exists() and read_status(site.store)["state"] == "connected")
        with site.sending() as state:
            wait_until(lambda: state.counts.timeouts >= 2)
            assert (state.counts.bytes, state.counts.reconnects) == (0, 0)
            with site.receiving():
                wait_until(site.complete)
            assert state.counts.bytes == sum(path.stat().st_size for path in site.log.glob("run/*"))
    assert_shipped(site.log, site.store / "arm", 3000)


def test_many_robots_share_the_stream_and_a_hostile_one_disturbs_nobody(site, write_run, wait_until, assert_shipped):
    logs = {robot: site.folder / f"log-{robot}" for robot in ("arm", "leg")}
    for log in logs.values():
        write_run(log, count=500)
    data = b"\x89MCAP0\r\n"
    hostile = [
        b"",
        b"garbage" * 1000,
        Piece("leg", "run", 0, 0, data).to_bytes(),
        Piece("arm", "other", 0, 0, data).to_bytes(),
        Piece("arm", "run", 0, 0, data).to_bytes()[:-1] + b"x",
    ]

    async def send_rubbish(client):
        stream = client.jetstream()
        for content in hostile:
            await stream.publish("log.arm.run", content)
        for reply in (
            "log.leg.run",
            "confirmed.leg.run.0",
            f"$JS.API.STREAM.PURGE.{LOG_STREAM}",
            f"$JS.API.STREAM.DELETE.{LOG_STREAM}",
        ):
            await client.publish("log.arm.run", b"x", reply=reply)  # the server's answer goes where it should not
        await stream.publish(
            "log.arm.x", Piece("arm", "x", 5, 77, data, seal=Seal(85, hashlib.sha256(b"").hexdigest())).to_bytes()
        )

    with site.serving(), site.receiving() as receiver:
        wait_until(lambda: receiver._status.path.exists() and read_status(site.store)["state"] == "connected")
        site.ask("arm", send_rubbish)
        with site.sending("arm", logs["arm"]), site.sending("leg", logs["leg"]):
            wait_until(lambda: site.complete("arm", logs["arm"]) and site.complete("leg", logs["leg"]))
        wait_until(lambda: receiver._store.counts.set_aside == len(hostile) + 4 + 1)
    for robot, log in logs.items():
        assert_shipped(log, site.store / robot, 500)
    reasons = [path.read_text() for path in sorted((site.store / ".aside" / "arm").glob("*.txt"))]
    assert "its subject arm/run" in reasons[2]
    assert {path.name for path in site.store.iterdir() if path.is_dir()} == {".aside", "arm", "leg"}


def test_a_host_without_room_takes_nothing_and_loses_nothing(site, write_run, wait_until, assert_shipped):
    write_run(site.log, count=500)
    with site.serving(), site.sending() as state:
        with site.receiving(ReceiveSettings(min_free_bytes=2**60)) as receiver:
            wait_until(lambda: "would be left" in receiver._trouble)
        assert state.outbox.last_sequence is None
        with site.receiving():
            wait_until(site.complete)
    assert_shipped(site.log, site.store / "arm", 500)


def test_a_robots_key_allows_nothing_but_its_own_log_and_its_own_confirmations(site, write_run, wait_until):
    async def try_everything(client):
        denied, heard = [], []

        async def note(error):
            denied.append(str(error).lower())

        async def hear(message):
            heard.append(message.subject)

        client._error_cb = note
        stream = client.jetstream(timeout=1.0)
        allowed = await stream.publish("log.arm.run", b"x")
        assert allowed.stream == LOG_STREAM
        for subject in ("log.leg.run", "news.leg", "confirmed.arm.run.0", "confirmed.leg.run.0", "elsewhere"):
            await client.publish(subject, b"x", reply=client.new_inbox())
        for subject in (
            "log.>",
            "log.arm.>",
            "log.leg.*",
            "confirmed.leg.>",
            "confirmed.>",
            ">",
            "_INBOX_host.>",
            "_INBOX_leg.>",
            "news.*",
        ):
            await client.subscribe(subject, cb=hear)
        await client.flush()
        for subject in (
            f"$JS.API.STREAM.INFO.{LOG_STREAM}",
            f"$JS.API.STREAM.PURGE.{LOG_STREAM}",
            f"$JS.API.STREAM.DELETE.{CONFIRMED_STREAM}",
            f"$JS.API.STREAM.MSG.GET.{LOG_STREAM}",
            f"$JS.API.DIRECT.GET.{CONFIRMED_STREAM}",
            f"$JS.API.DIRECT.GET.{CONFIRMED_STREAM}.confirmed.leg.run.0",
            f"$JS.API.CONSUMER.CREATE.{LOG_STREAM}.spy",
            f"$JS.API.CONSUMER.MSG.NEXT.{LOG_STREAM}.host",
            f"$JS.ACK.{LOG_STREAM}.host.1.1.1.1.1",
        ):
            with pytest.raises(nats.errors.TimeoutError):
                await client.request(subject, b"{}", timeout=0.1)
        await asyncio.sleep(0.2)
        return denied, heard

    write_run(site.folder / "leg-log", count=100)
    with site.serving(), site.receiving() as receiver, site.sending("leg", site.folder / "leg-log"):
        wait_until(lambda: site.complete("leg", site.folder / "leg-log"))
        denied, heard = site.ask("arm", try_everything)
        wait_until(lambda: receiver._store.counts.set_aside == 1)
    assert {path.name for path in site.store.iterdir() if path.is_dir()} == {".aside", "leg"}
    assert len(denied) == 5 + 9 + 9
    assert all("permissions violation" in text for text in denied)
    assert heard == []


def test_the_host_learns_how_much_waits_on_a_robot_and_bad_news_disturb_nobody(site, write_run, wait_until, capfd):
    async def lie(client):
        for content in (b"x", b"y", b'{"backlog_bytes": -1}', b"z" * 100_000):
            await client.publish("news.arm", content)
        await client.flush()

    write_run(site.folder / "leg-log", count=100)
    with site.serving(), site.receiving() as receiver, site.sending("leg", site.folder / "leg-log") as state:
        wait_until(lambda: receiver._senders.get("leg", {}).get("last_confirmed_sequence") == 99)
        wait_until(lambda: receiver._senders["leg"]["backlog_bytes"] == 0)
        site.ask("arm", lie)
        wait_until(lambda: receiver._problems)
        told = receiver._senders["leg"]["time"]
        wait_until(lambda: receiver._senders["leg"]["time"] > told)
        assert state.failure == ""
    assert receiver._problems == ["news at news.arm cannot be read"]
    assert capfd.readouterr().err.count("news at") == 1
    told = read_status(site.store)["senders"]
    assert set(told) == {"leg"}
    assert told["leg"]["state"] == "connected"


def test_the_hosts_key_cannot_send_logs(site, wait_until):
    async def forge(client):
        with pytest.raises(nats.errors.TimeoutError):
            await client.jetstream(timeout=0.3).publish("log.arm.run", b"x")

    with site.serving():
        site.ask("host", forge)


def test_without_a_known_key_nobody_connects(site):
    make_key(site.folder / "foreign", "arm")

    async def visit(**options):
        client = Client()
        with suppress(asyncio.TimeoutError):
            await asyncio.wait_for(
                client.connect(f"nats://127.0.0.1:{site.port}", allow_reconnect=False, connect_timeout=1, **options), 5
            )
        await client.close()

    with site.serving():
        for options in (
            {},
            {"user": "host", "password": "host"},
            {"token": "x"},
            {"nkeys_seed": str(site.folder / "foreign" / "arm.seed")},
        ):
            with pytest.raises((nats.errors.Error, OSError)):
                asyncio.run(visit(**options))


def test_a_new_robots_key_is_taken_while_the_server_runs(site, write_run, wait_until):
    write_run(site.log, count=100)
    with site.serving(), site.receiving():
        before = site.server._process.pid
        make_key(site.keys, "wheel")
        with site.sending("wheel"):
            wait_until(lambda: site.complete("wheel"))
        assert site.server._process.pid == before


def test_with_tls_a_log_arrives_and_a_server_without_the_right_certificate_is_refused(nats_site, tmp_path, write_run, wait_until):
    if not shutil.which("openssl"):
        pytest.skip("there is no openssl to make certificates with")
    for name in ("right", "wrong"):
        make = "openssl req -x509 -newkey rsa:2048 -nodes -days 2 -subj /CN=host -addext subjectAltName=IP:127.0.0.1"
        subprocess.run(
            [*make.split(), "-keyout", f"{name}.key", "-out", f"{name}.pem"], cwd=tmp_path, check=True, capture_output=True
        )
    site = nats_site.Site(tmp_path, wait_until, Tls(tmp_path / "right.pem", tmp_path / "right.key"))
    write_run(site.log, count=100)
    with site.serving(), site.receiving(authority=tmp_path / "right.pem"):
        with site.sending(authority=tmp_path / "wrong.pem") as state:
            wait_until(lambda: state.counts.reconnects >= 2)
            assert state.counts.confirmations == 0
        with site.sending(authority=tmp_path / "right.pem"):
            wait_until(site.complete)


def test_somebody_in_the_middle_who_offers_no_tls_is_told_nothing(tmp_path):
    if not shutil.which("openssl"):
        pytest.skip("there is no openssl to make certificates with")
    make = "openssl req -x509 -newkey rsa:2048 -nodes -days 2 -subj /CN=host -keyout right.key -out right.pem"
    subprocess.run(make.split(), cwd=tmp_path, check=True, capture_output=True)
    make_key(tmp_path, "arm")
    heard = []

    async def pretend(reader, writer):
        writer.write(b'INFO {"server_id":"x","version":"2.15.1","max_payload":1048576,"headers":true,"nonce":"abc"}\r\n')
        heard.append(await reader.read(1000))
        writer.close()

    async def visit():
        server = await asyncio.start_server(pretend, "127.0.0.1", 0)
        port = server.sockets[0].getsockname()[1]
        for url, authority in (("nats", tmp_path / "right.pem"), ("tls", tmp_path / "right.pem"), ("tls", None)):
            with pytest.raises((nats.errors.Error, OSError, asyncio.TimeoutError)):
                await connect(Link(f"{url}://127.0.0.1:{port}", tmp_path / "arm.seed", authority), "arm")
        server.close()

    asyncio.run(visit())
    assert len(heard) == 3
    assert all(content[:1] == b"\x16" for content in heard), "the beginning of TLS, and nothing else"


def test_other_machines_are_not_listened_to_without_tls(tmp_path):
    keys = {"host": "U" + "A" * 55}
    for address in ("127.0.0.1", "::1", "localhost"):
        server_config(ServeSettings(host=address), tmp_path, keys, None, insecure=False)
    for address in ("0.0.0.0", "::", "192.168.0.2", "robot-host"):
        with pytest.raises(ConfigError, match="without TLS"):
            server_config(ServeSettings(host=address), tmp_path, keys, None, insecure=False)
        server_config(ServeSettings(host=address), tmp_path, keys, None, insecure=True)
        server_config(ServeSettings(host=address), tmp_path, keys, Tls(tmp_path / "c", tmp_path / "k"), insecure=False)
    with pytest.raises(ConfigError, match=r"no public key host\.pub"):
        server_config(ServeSettings(), tmp_path, {"arm": keys["host"]}, None, insecure=False)


def test_a_key_file_is_private_is_not_overwritten_and_is_checked(tmp_path):
    public = make_key(tmp_path, "arm")
    seed = tmp_path / "arm.seed"
    assert seed.stat().st_mode & 0o777 == 0o600
    assert read_public_keys(tmp_path) == {"arm": public}
    with pytest.raises(ConfigError, match="exists already"):
        make_key(tmp_path, "arm")
    link = Link("nats://127.0.0.1:1", seed)
    seed.chmod(0o640)
    with pytest.raises(ConfigError, match="chmod 600"):
        asyncio.run(connect(link, "arm"))
    seed.write_text("no seed")
    seed.chmod(0o600)
    with pytest.raises(ConfigError, match="holds no NKEY seed"):
        asyncio.run(connect(link, "arm"))
    (tmp_path / "arm.pub").write_text('x"}]} listen: 0.0.0.0')
    with pytest.raises(ConfigError, match="holds no public key"):
        read_public_keys(tmp_path)


def test_a_server_that_cannot_start_says_why(site):
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", site.port))
        with pytest.raises(ServerError, match="address already in use"):
            site.server.run(lambda: False)
