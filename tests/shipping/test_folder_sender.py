"""The folder transport: outbox, ledger, disk policy and store together, without any network."""

import dataclasses
import json
import os
import threading
from contextlib import closing, contextmanager

import pytest

from dpg_robot.data.log_writer import LogWriter
from dpg_robot.errors import LogError
from dpg_robot.shipping.disk_policy import apply_disk_policy
from dpg_robot.shipping.folder_sender import send_to_folder
from dpg_robot.shipping.ledger import Ledger
from dpg_robot.shipping.outbox import Outbox
from dpg_robot.shipping.piece import Confirmation, Seal
from dpg_robot.shipping.sender_state import SenderState
from dpg_robot.shipping.settings import DiskSettings, SendSettings
from dpg_robot.shipping.status_file import read_status
from dpg_robot.shipping.store import Store

SETTINGS = SendSettings(piece_bytes=20_000, window_bytes=100_000)


@pytest.fixture
def folders(tmp_path):
    log, store = tmp_path / "log", tmp_path / "store"
    log.mkdir()
    store.mkdir()
    return log, store


def ship_once(log, store, settings=SETTINGS, **options):
    state = SenderState(log, "arm", settings, **options)
    try:
        send_to_folder(state, store, "arm", once=True, stop=lambda: False)
    finally:
        state.close("stopped")
    return state


def begin(outbox):
    """Let the host answer the question with which each run begins."""
    outbox.resume("run", None)
    question = outbox.next_piece()
    assert (question.data, question.seal) == (b"", None)
    assert outbox.next_piece() is None, "nothing is sent before the answer"
    outbox.confirm(Confirmation("arm", "run", question.segment, 0, generation=question.generation))


@contextmanager
def shipping(log, store):
    """Ship in the background."""
    stop, state = threading.Event(), SenderState(log, "arm", SETTINGS)
    thread = threading.Thread(target=send_to_folder, args=(state, store, "arm"), kwargs={"once": False, "stop": stop.is_set})
    thread.start()
    try:
        yield state
    finally:
        stop.set()
        thread.join()
        state.close("stopped")


def test_all_runs_are_shipped_and_a_second_time_nothing_is(folders, write_run, assert_shipped):
    log, store = folders
    for run in ("20250101T000000Z-a", "20250102T000000Z.b"):
        write_run(log, run)
    state = ship_once(log, store)
    assert_shipped(log, store / "arm", 1000)
    assert state.counts.transitions == 2000
    assert state.outbox.last_sequence == 999
    assert ship_once(log, store).counts.pieces == 0, "it was confirmed"
    assert read_status(log)["backlog_bytes"] == 0


def test_a_log_is_shipped_while_it_is_written(folders, sample, wait_until, assert_shipped):
    log, store = folders
    with shipping(log, store) as state:
        with LogWriter(log, "run", sample.CONTRACT, segment_bytes=60_000, flush_interval_s=0.0) as writer:
            for first in range(0, 1000, 10):
                writer.append(sample.make_records(first, 10))
                if first % 200 == 0:
                    wait_until(lambda last=first: (state.outbox.last_sequence or 0) >= last)
        wait_until(lambda: len(list(store.glob("*/run/*.seal.json"))) == len(list(log.glob("run/*"))))
    assert_shipped(log, store / "arm", 1000)


def test_a_killed_writers_last_records_are_shipped(folders, sample, tmp_path, assert_shipped):
    log, store = folders
    write = LogWriter(log, "run", sample.CONTRACT, flush_interval_s=0.0)
    write.append(sample.make_records(0, 300))
    write._segment._file._descriptor = -1
    os.close(write._segment._descriptor)  # the file as a killed writer leaves it
    path = log / "run" / "segment-000000.mcap"
    with path.open("ab") as file:
        file.write(path.read_bytes()[:500])  # and the half of a write
    (log / "run" / "segment-000001.mcap").touch()
    ship_once(log, store)
    assert_shipped(log, store / "arm")


def test_the_sender_goes_on_where_the_store_is(folders, write_run, assert_shipped):
    log, store = folders
    write_run(log, count=2000)
    with closing(Ledger(log)) as ledger, closing(Store(store)) as first:
        outbox = Outbox(log, "arm", ledger, piece_bytes=20_000, window_bytes=300_000)
        begin(outbox)
        while (piece := outbox.next_piece()) is not None:
            first.write(piece)
        first.synchronize()
        outbox.close()  # as if killed before any confirmation
    state = ship_once(log, store)
    total = sum(path.stat().st_size for path in log.glob("run/*"))
    assert 0 < state.counts.bytes < total - 60_000
    assert_shipped(log, store / "arm", 2000)


def test_a_store_that_lost_everything_gets_what_the_robot_still_has(folders, write_run, assert_shipped):
    log, store = folders
    write_run(log)
    ship_once(log, store)
    other = store.parent / "other"
    other.mkdir()
    assert ship_once(log, other).counts.pieces == 0, "it was confirmed"
    ship_once(log, other, offer_all=True)
    assert_shipped(log, other / "arm", 1000)


def test_a_store_that_lost_a_segment_asks_for_it_again(folders, write_run, assert_shipped):
    log, store = folders
    write_run(log, count=500)
    ship_once(log, store)
    newest = sorted((store / "arm" / "run").glob("segment-*.mcap"))[-1]
    newest.unlink()
    newest.with_suffix(".seal.json").unlink()
    (log / "run" / "segment-000099.mcap").write_bytes(b"")  # something new in the run
    ship_once(log, store)
    assert_shipped(log, store / "arm")


def test_a_window_bounds_what_is_on_its_way(folders, write_run):
    log, _ = folders
    write_run(log, count=3000)
    with closing(Ledger(log)) as ledger:
        outbox = Outbox(log, "arm", ledger, piece_bytes=20_000, window_bytes=60_000 + 3 * 32_768)
        begin(outbox)
        pieces = list(iter(outbox.next_piece, None))
        assert sum(len(piece.data) for piece in pieces) <= 80_000
        outbox.confirm(Confirmation("arm", "run", 0, pieces[1].end))
        assert outbox.next_piece().offset == pieces[-1].end
        outbox.close()


def test_going_back_happens_once_for_all_pieces_that_were_on_their_way(folders, write_run):
    log, _ = folders
    write_run(log)
    with closing(Ledger(log)) as ledger:
        outbox = Outbox(log, "arm", ledger, piece_bytes=10_000, window_bytes=250_000)
        begin(outbox)
        sent = list(iter(outbox.next_piece, None))
        for piece in sent[1:]:
            outbox.confirm(Confirmation("arm", "run", 0, 0, "wanted", generation=piece.generation))
        again = list(iter(outbox.next_piece, None))
        assert [piece.offset for piece in again] == [piece.offset for piece in sent]
        assert {piece.generation for piece in again} == {sent[0].generation + 1}
        outbox.close()


def test_a_refused_segment_is_said_and_the_rest_is_shipped(folders, write_run, capsys):
    log, store = folders
    write_run(log)
    (store / "arm" / "run").mkdir(parents=True)
    other = bytearray((log / "run" / "segment-000001.mcap").read_bytes()[:5000])
    other[60] ^= 1  # in the header of the file, which has no checksum
    (store / "arm" / "run" / "segment-000001.mcap").write_bytes(other)
    state = ship_once(log, store)
    assert "1 segments were refused by the host: run, segment 1:" in state.failure
    assert "refused run run, segment 1" in capsys.readouterr().err
    assert len(list((store / "arm" / "run").glob("*.seal.json"))) == len(list((log / "run").iterdir())) - 1
    report = apply_disk_policy(log, Ledger(log), "release", 1)
    assert [path.name for path in log.glob("run/*")] == ["segment-000001.mcap"], "what was refused is never deleted"
    assert report.unconfirmed_bytes == report.bytes


def test_the_policy_keep_deletes_nothing_and_says_when_the_limit_is_reached(folders, write_run, capsys):
    log, store = folders
    write_run(log)
    before = sorted(log.glob("run/*"))
    state = ship_once(log, store, dataclasses.replace(SETTINGS, disk=DiskSettings("keep", 1000)))
    assert sorted(log.glob("run/*")) == before
    assert "more than the limit of 1000" in state.failure
    assert "more than the limit" in capsys.readouterr().err


def test_the_policy_release_deletes_the_oldest_confirmed_segments_down_to_the_limit(folders, write_run):
    log, store = folders
    for run in ("a", "b"):
        write_run(log, run)
    sizes = {path: path.stat().st_size for path in sorted(log.glob("?/segment-*.mcap"))}
    limit = sum(list(sizes.values())[-3:])
    state = ship_once(log, store, dataclasses.replace(SETTINGS, disk=DiskSettings("release", limit)))
    assert sorted(log.glob("?/segment-*.mcap")) == list(sizes)[-3:]
    assert not (log / "a").exists()
    assert state.failure == ""
    assert len(list((store / "arm").glob("?/segment-*.mcap"))) == len(sizes)


def test_nothing_unconfirmed_is_deleted_whatever_the_limit(folders, write_run):
    log, _ = folders
    write_run(log)
    before = sorted(log.glob("run/*"))
    with closing(Ledger(log)) as ledger:
        report = apply_disk_policy(log, ledger, "release", 1)
        assert "Nothing unconfirmed is deleted" in report.warning
        ledger.record(Confirmation("arm", "run", 0, 10, seal=Seal(before[0].stat().st_size, "0" * 64)))
        apply_disk_policy(log, ledger, "release", 1)
    assert sorted(log.glob("run/*")) == before, "the digest is not that of the file"


def test_a_store_that_does_not_exist_is_not_made(folders, write_run):
    log, store = folders
    write_run(log)
    with pytest.raises(OSError, match="mount the disk"):
        ship_once(log, store / "not_mounted")


def test_a_store_that_comes_back_is_used_again(folders, write_run, wait_until, assert_shipped):
    log, store = folders
    write_run(log)
    store.rmdir()
    with shipping(log, store) as state:
        wait_until(lambda: state.counts.reconnects >= 2)
        store.mkdir()
        wait_until(lambda: state.outbox.backlog_bytes() == 0)
    assert_shipped(log, store / "arm", 1000)


def test_two_senders_cannot_ship_one_log(folders):
    log, _ = folders
    with closing(Ledger(log)), pytest.raises(LogError, match="another process ships"):
        Ledger(log)


def test_a_damaged_ledger_is_named_with_what_to_do(folders):
    log, _ = folders
    (log / ".shipping").mkdir()
    (log / ".shipping" / "run.run.json").write_text("{")
    with pytest.raises(LogError, match=r"run\.run\.json cannot be read.*Remove it"):
        Ledger(log)


def test_the_status_has_all_counters(folders, write_run):
    log, store = folders
    write_run(log)
    ship_once(log, store)
    status = read_status(log)
    assert status["transitions"] == 1000
    assert status["last_confirmed_sequence"] == 999
    assert status["age_s"] < 60
    assert json.dumps(status)
    with pytest.raises(LogError, match=r"no status\.json"):
        read_status(store)


def test_a_log_folder_with_foreign_things_in_it_is_shipped_all_the_same(folders, write_run, assert_shipped):
    log, store = folders
    write_run(log)
    (log / "notes.txt").write_text("hello")
    (log / ".git").mkdir()
    (log / "run" / "plot.png").write_bytes(b"")
    ship_once(log, store)
    assert_shipped(log, store / "arm", 1000)
    assert not list(store.glob("**/*.png"))
