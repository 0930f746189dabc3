"""What robot and host agree on in the NATS server: streams, subjects, permissions, and how both connect."""

from __future__ import annotations

import asyncio
import base64
import ssl
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nats
import nats.errors
from nats.aio.client import Client
from nats.js.errors import Error as JetStreamError

from dpg_robot.errors import ConfigError
from dpg_robot.shipping.keys import require_private
from dpg_robot.shipping.piece import PieceError, require_robot_name, require_run_id

LOG_STREAM = "DPG_LOG"
CONFIRMED_STREAM = "DPG_CONFIRMED"
RELEASE_BUCKET = "DPG_RELEASES"
RELEASE_STREAM = f"OBJ_{RELEASE_BUCKET}"  # the stream of a bucket, as JetStream names it
CONSUMER = "host"
HOST_NAME = "host"
LINK_ERRORS = (nats.errors.Error, JetStreamError, OSError, asyncio.TimeoutError)

_CONNECT_S = 5.0
_PING_S = 2.0
_UNANSWERED_PINGS = 2
_DOT = "~"  # stands for the dots of a run id, which would divide a subject; run ids never have it


@dataclass(frozen=True)
class Link:
    """How to reach the server.

    Attributes:
        url: such as ``nats://127.0.0.1:4222``, or ``tls://...`` .
        key: file with the NKEY seed; None only for a server without keys.
        authority: file with the certificate of the authority that signed the server's; with it TLS is used whatever the
            url says. None for the system's authorities.
    """

    url: str
    key: Path | None = None
    authority: Path | None = None


async def connect(link: Link, name: str) -> Client:
    """Connect once; what breaks ends the connection, and whoever uses it connects anew.

    Args:
        link: how to reach the server.
        name: the robot's name, or :data:`HOST_NAME`.

    Raises:
        ConfigError: the key cannot be used.
        nats.errors.Error, OSError, TimeoutError: the server cannot be reached or refuses the key.
    """
    options: dict[str, Any] = {}
    if link.key is not None:
        require_private(link.key)
        options["nkeys_seed"] = str(link.key)
    if link.authority is not None or link.url.startswith("tls://"):
        # Before anything else is said: otherwise somebody in the middle could just not offer TLS.
        options |= {"tls": _tls(link.authority), "tls_handshake_first": True}
    client = Client()
    await asyncio.wait_for(
        client.connect(
            link.url,
            name=name,
            allow_reconnect=False,
            connect_timeout=int(_CONNECT_S),
            ping_interval=int(_PING_S),
            max_outstanding_pings=_UNANSWERED_PINGS,
            inbox_prefix=inbox(name),
            error_cb=_ignore,  # what matters comes as an exception or as a missing answer
            **options,
        ),
        2 * _CONNECT_S,
    )
    return client


async def disconnect(client: Client) -> None:
    """Close a connection whatever state it is in."""
    with suppress(*LINK_ERRORS):
        await asyncio.wait_for(client.close(), _CONNECT_S)


def inbox(name: str) -> str:
    """Return the prefix of the subjects at which a user receives answers; nobody else may listen there."""
    return f"_INBOX_{name}"


def log_subject(robot: str, run: str) -> str:
    """Return the subject of a run's pieces."""
    return f"log.{robot}.{run.replace('.', _DOT)}"


def confirmed_subject(robot: str, run: str, segment: int) -> str:
    """Return the subject of a segment's confirmations."""
    return f"confirmed.{robot}.{run.replace('.', _DOT)}.{segment}"


def news_subject(robot: str) -> str:
    """Return the subject at which a robot's sender tells how it fares; these messages are kept nowhere."""
    return f"news.{robot}"


def release_meta_subject(name: str) -> str:
    """Return the subject at which the bucket of releases describes an object."""
    return f"$O.{RELEASE_BUCKET}.M.{base64.urlsafe_b64encode(name.encode()).decode()}"


def release_chunks_subject(nuid: str) -> str:
    """Return the subject of the parts of an object of that bucket."""
    return f"$O.{RELEASE_BUCKET}.C.{nuid}"


def parse_log_subject(subject: str) -> tuple[str, str]:
    """Return robot and run of :func:`log_subject`. Raises PieceError for any other subject."""
    parts = subject.split(".")
    if len(parts) != 3 or parts[0] != "log":
        raise PieceError(f"expected a subject log.ROBOT.RUN, got {subject!r}")
    return require_robot_name(parts[1]), require_run_id(parts[2].replace(_DOT, "."))


def parse_news_subject(subject: str) -> str:
    """Return the robot of :func:`news_subject`. Raises PieceError for any other subject."""
    kind, _, robot = subject.partition(".")
    if kind != "news":
        raise PieceError(f"expected a subject news.ROBOT, got {subject!r}")
    return require_robot_name(robot)


def robot_permissions(robot: str) -> dict[str, Any]:
    """Return what the key of a robot may do: send its own log and news, learn what the host has of it, read the releases."""
    return {
        "publish": {
            "allow": [
                f"log.{robot}.*",
                news_subject(robot),
                f"$JS.API.DIRECT.GET.{CONFIRMED_STREAM}.confirmed.{robot}.>",
                f"$JS.API.DIRECT.GET.{RELEASE_STREAM}",
                f"$JS.API.DIRECT.GET.{RELEASE_STREAM}.>",
            ]
        },
        "subscribe": {"allow": [f"confirmed.{robot}.>", f"{inbox(robot)}.>"]},
    }


def host_permissions() -> dict[str, Any]:
    """Return what the host's key may do: keep the streams, take in logs and news, confirm, offer releases; not send logs."""
    streams = [
        f"$JS.API.STREAM.{verb}.{stream}"
        for verb in ("INFO", "CREATE", "UPDATE")
        for stream in (LOG_STREAM, CONFIRMED_STREAM, RELEASE_STREAM)
    ]
    releases = [
        f"$O.{RELEASE_BUCKET}.>",
        f"$JS.API.STREAM.PURGE.{RELEASE_STREAM}",
        f"$JS.API.STREAM.MSG.GET.{RELEASE_STREAM}",
        f"$JS.API.DIRECT.GET.{RELEASE_STREAM}",
        f"$JS.API.DIRECT.GET.{RELEASE_STREAM}.>",
    ]
    consumer = [
        f"$JS.API.CONSUMER.INFO.{LOG_STREAM}.{CONSUMER}",
        f"$JS.API.CONSUMER.CREATE.{LOG_STREAM}.{CONSUMER}",
        f"$JS.API.CONSUMER.MSG.NEXT.{LOG_STREAM}.{CONSUMER}",
        f"$JS.ACK.{LOG_STREAM}.{CONSUMER}.>",
    ]
    return {
        "publish": {"allow": ["confirmed.>", *streams, *consumer, *releases]},
        "subscribe": {"allow": [f"{inbox(HOST_NAME)}.>", news_subject("*")]},
    }


def _tls(authority: Path | None) -> ssl.SSLContext:
    try:
        return ssl.create_default_context(cafile=str(authority) if authority else None)
    except (OSError, ssl.SSLError) as error:
        raise ConfigError(f"cannot use the certificate {authority}: {error}; expected a PEM file") from error


async def _ignore(error: Exception) -> None:
    """Take no notice."""
