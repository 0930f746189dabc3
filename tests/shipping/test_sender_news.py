"""What a sender tells the host beside the log."""

import json

import pytest

from dpg_robot.shipping.nats_link import news_subject, parse_news_subject
from dpg_robot.shipping.piece import PieceError
from dpg_robot.shipping.sender_news import SenderNews

NEWS = SenderNews(
    state="connected",
    backlog_bytes=1234,
    on_the_way_bytes=1000,
    last_confirmed_sequence=None,
    log_bytes=10**12,
    refused_segments=0,
    warning="disk läuft voll",
)


def changed(**values):
    return json.dumps(json.loads(NEWS.to_bytes()) | values).encode()


def test_news_are_read_as_they_were_written():
    assert SenderNews.from_bytes(NEWS.to_bytes()) == NEWS


def test_long_texts_are_cut_before_they_travel():
    values = {"state": "s" * 999, "backlog_bytes": 0, "on_the_way_bytes": 0, "last_confirmed_sequence": 1, "log_bytes": None}
    news = SenderNews.of(values | {"refused_segments": ["a", "b"]}, "w" * 999)
    assert (len(news.state), len(news.warning), news.refused_segments) == (300, 300, 2)
    assert SenderNews.from_bytes(news.to_bytes()) == news


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"[]",
        b"{}",
        b"\xff",
        b"[" * 2000,
        changed(backlog_bytes=-1),
        changed(backlog_bytes=1.5),
        changed(backlog_bytes=None),
        changed(backlog_bytes=True),
        changed(backlog_bytes=2**64),
        changed(state=7),
        changed(state="x" * 301),
        changed(warning=["x"]),
        changed(more=1),
        changed(state="x" * 3000),
    ],
)
def test_anything_else_is_refused(content):
    with pytest.raises(PieceError):
        SenderNews.from_bytes(content)


def test_a_subject_names_its_robot():
    assert parse_news_subject(news_subject("arm-1")) == "arm-1"
    for subject in ("news", "news.", "news.arm.more", "log.arm", "news.*", "news.../etc"):
        with pytest.raises(PieceError):
            parse_news_subject(subject)
