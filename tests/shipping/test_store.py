import dataclasses
import hashlib
import json
import random
from contextlib import closing

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from mcap.reader import make_reader

from dpg_robot.data.log_writer import LogWriter
from dpg_robot.errors import LogError
from dpg_robot.shipping.piece import Piece, Seal
from dpg_robot.shipping.segment_follower import SegmentFollower
from dpg_robot.shipping.store import MAX_ASIDE_PIECES, Store


@pytest.fixture
def store(tmp_path):
    with closing(Store(tmp_path / "store")) as store:
        yield store


@pytest.fixture(scope="module")
def pieces(sample, tmp_path_factory):
    """A run of several segments, and the pieces that make it."""
    folder = tmp_path_factory.mktemp("log")
    with LogWriter(folder, "run", sample.CONTRACT, segment_bytes=40_000, flush_interval_s=0.0) as writer:
        for first in range(0, 500, 10):
            writer.append(sample.make_records(first, 10))
    pieces = []
    for number, path in enumerate(sorted((folder / "run").iterdir())):
        offset, seal, follower = 0, None, SegmentFollower(path)
        while seal is None:
            span = follower.read(offset, 20_000)
            seal = span.seal
            previous = number - 1 if number else None
            ticks = span.ticks
            pieces.append(Piece("arm", "run", number, offset, span.data, previous, seal, ticks.count, ticks.first, ticks.last))
            offset += len(span.data)
        follower.close()
    return folder, pieces


def test_the_store_is_the_robots_log_byte_for_byte_and_every_reader_opens_it(store, pieces, sample, assert_shipped):
    log, all_pieces = pieces
    for piece in all_pieces:
        answer = store.write(piece)
        store.synchronize()
        assert (answer.kind, answer.offset) == ("stored", piece.end)
    assert answer.last_sequence == 499
    assert_shipped(log, store.folder / "arm", 500)
    with (store.folder / "arm" / "run" / "segment-000000.mcap").open("rb") as file:
        assert sum(1 for _ in make_reader(file).iter_messages()) > 50
    assert (store.counts.records, store.counts.duplicates, store.counts.completed_segments) == (
        500,
        0,
        all_pieces[-1].segment + 1,
    )


@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(seed=st.integers(0, 2**32))
def test_whatever_the_order_and_however_often_pieces_come_and_the_store_is_killed_the_files_are_equal(
    pieces, tmp_path_factory, assert_shipped, seed
):
    log, all_pieces = pieces
    folder = tmp_path_factory.mktemp("store")
    rng = random.Random(seed)
    store, places = Store(folder), {}
    for _ in range(60):
        piece = rng.choice(all_pieces)
        answer = store.write(piece)
        assert answer.kind in ("stored", "wanted")
        if rng.random() < 0.3 and answer.kind == "stored":
            store.synchronize()
            places[answer.segment] = max(places.get(answer.segment, 0), answer.offset)
        if rng.random() < 0.1:  # as if killed: nothing is closed in good order
            store._lock.close()
            store = Store(folder)
    for number, offset in places.items():
        assert store.state("arm", "run", number).offset >= offset, "what was confirmed is still there"
    for piece in all_pieces:
        store.write(piece)
    store.close()
    assert_shipped(log, folder / "arm", 500)


def test_a_gap_is_answered_with_what_is_wanted(store, pieces):
    _, all_pieces = pieces
    store.write(all_pieces[0])
    answer = store.write(all_pieces[2])
    assert (answer.kind, answer.segment, answer.offset) == ("wanted", 0, all_pieces[0].end)
    later = next(piece for piece in all_pieces if piece.segment == 2)
    answer = store.write(later)
    assert (answer.kind, answer.segment, answer.offset) == ("wanted", 1, 0), "a segment is begun only after the one before"
    assert not (store.folder / "arm" / "run" / "segment-000002.mcap").exists()


def test_a_question_is_answered_and_leaves_nothing_behind(store, pieces):
    answer = store.write(Piece("arm", "run", 0, 0, b"", generation=7))
    assert (answer.kind, answer.offset, answer.generation) == ("stored", 0, 7)
    assert not list(store.folder.glob("**/*.mcap"))
    store.write(pieces[1][0])
    assert store.write(Piece("arm", "run", 0, 0, b"")).offset == pieces[1][0].end
    assert store.counts.duplicates == 0


def test_a_run_whose_first_segments_the_robot_does_not_have_any_more_is_taken(store, pieces):
    later = next(piece for piece in pieces[1] if piece.segment == 2)
    assert store.write(dataclasses.replace(later, previous=None)).kind == "stored"


def test_a_contradiction_is_refused_kept_aside_and_disturbs_nothing_else(store, pieces):
    _, all_pieces = pieces
    store.write(all_pieces[0])
    changed = bytearray(all_pieces[0].data)
    changed[100] ^= 1
    answer = store.write(dataclasses.replace(all_pieces[0], data=bytes(changed)))
    store.synchronize()
    assert answer.kind == "refused"
    assert "differ" in answer.reason
    aside = store.folder / ".aside" / "arm"
    assert Piece.from_bytes((aside / "000.piece").read_bytes()).data == bytes(changed)
    assert "differ" in (aside / "000.reason.txt").read_text()
    assert (store.folder / "arm" / "run" / "segment-000000.mcap").read_bytes() == all_pieces[0].data
    assert store.write(all_pieces[1]).kind == "refused", "no more of this segment"
    assert store.write(dataclasses.replace(all_pieces[0], robot="leg")).kind == "stored"
    after = next(piece for piece in all_pieces if piece.segment == 1)
    assert store.write(after).kind == "stored", "the run goes on"
    store.synchronize()


def test_a_complete_segment_cannot_be_changed(store, pieces):
    _, all_pieces = pieces
    first = [piece for piece in all_pieces if piece.segment == 0]
    for piece in first:
        store.write(piece)
    store.synchronize()
    path = store.folder / "arm" / "run" / "segment-000000.mcap"
    content = path.read_bytes()
    end = first[-1].end
    for hostile in (
        Piece("arm", "run", 0, end, b"more"),
        Piece("arm", "run", 0, 0, b"else"),
        Piece("arm", "run", 0, end, b"", seal=Seal(end - 1, hashlib.sha256(content[:-1]).hexdigest())),
    ):
        assert store.write(hostile).kind == "refused"
        assert store.write(hostile).seal is None
        store.synchronize()
    assert path.read_bytes() == content
    again = store.write(dataclasses.replace(first[-1], generation=5))
    assert (again.kind, again.seal, again.generation) == ("stored", first[-1].seal, 5)


def test_a_segment_whose_digest_is_not_the_robots_is_refused(store, pieces):
    first = [piece for piece in pieces[1] if piece.segment == 0]
    for piece in first[:-1]:
        store.write(piece)
    answer = store.write(dataclasses.replace(first[-1], seal=Seal(first[-1].end, "0" * 64)))
    assert answer.kind == "refused"
    assert "digest" in answer.reason


def test_a_robot_that_lost_the_end_of_what_it_had_sent_is_confirmed_and_the_store_keeps_more(store, pieces):
    content = pieces[1][0].data
    store.write(pieces[1][0])
    answer = store.write(Piece("arm", "run", 0, 500, b"", seal=Seal(500, hashlib.sha256(content[:500]).hexdigest())))
    store.synchronize()
    assert (answer.kind, answer.seal.size) == ("stored", 500)
    assert (store.folder / "arm" / "run" / "segment-000000.mcap").read_bytes() == content


def test_what_lies_behind_the_last_whole_record_after_a_loss_of_power_is_sent_again(store, pieces, assert_shipped):
    log, all_pieces = pieces
    store.write(all_pieces[0])
    store.close()
    path = store.folder / "arm" / "run" / "segment-000000.mcap"
    with path.open("ab") as file:
        file.write(bytes(3000))
    with closing(Store(store.folder)) as reopened:
        for piece in all_pieces:
            assert reopened.write(piece).kind == "stored"
    assert_shipped(log, store.folder / "arm", 500)


def test_a_chunk_that_was_damaged_on_the_hosts_disk_is_asked_for_again(store, pieces):
    store.write(pieces[1][0])
    store.close()
    path = store.folder / "arm" / "run" / "segment-000000.mcap"
    content = bytearray(path.read_bytes())
    content[-2000] ^= 1
    path.write_bytes(bytes(content))
    with closing(Store(store.folder)) as reopened:
        answer = reopened.write(pieces[1][1])
        assert answer.kind == "wanted"
        assert answer.offset < pieces[1][0].end


def test_a_cut_off_segment_is_stored_to_its_last_byte(store, sample):
    data = b"\x89MCAP0\r\n" + b"half of a record"
    seal = Seal(len(data), hashlib.sha256(data).hexdigest())
    assert store.write(Piece("arm", "run", 0, 0, data, seal=seal)).seal == seal
    empty = Seal(0, hashlib.sha256(b"").hexdigest())
    assert store.write(Piece("arm", "run", 1, 0, b"", previous=0, seal=empty)).seal == empty
    store.close()
    folder = store.folder / "arm" / "run"
    assert [path.read_bytes() for path in sorted(folder.glob("segment-*.mcap"))] == [data, b""]
    with closing(Store(store.folder)) as reopened:
        assert reopened.state("arm", "run", 0).offset == len(data), "a complete segment is not cut back"


def test_a_full_disk_takes_nothing_and_forgets_nothing(tmp_path, pieces):
    with closing(Store(tmp_path / "store", min_free_bytes=2**60)) as store:
        with pytest.raises(OSError, match="would be left"):
            store.write(pieces[1][0])
        store._min_free_bytes = 0
        assert store.write(pieces[1][0]).offset == pieces[1][0].end


def test_after_a_failed_fsync_nothing_counts_as_stored(tmp_path, pieces, monkeypatch):
    with closing(Store(tmp_path / "store")) as store:
        store.write(pieces[1][0])
        store.synchronize()
        store.write(pieces[1][1])

        def fail(descriptor):
            raise OSError(5, "Input/output error")

        with monkeypatch.context() as patch:
            patch.setattr("os.fsync", fail)
            with pytest.raises(OSError, match="Input/output"):
                store.synchronize()
        assert store.state("arm", "run", 0).offset == pieces[1][0].end


def test_what_is_set_aside_is_bounded(store):
    for _ in range(MAX_ASIDE_PIECES + 5):
        store.set_aside("arm", b"x", "no piece")
    assert len(list((store.folder / ".aside" / "arm").glob("*.piece"))) == MAX_ASIDE_PIECES
    assert store.counts.set_aside == MAX_ASIDE_PIECES + 5


def test_two_processes_cannot_have_one_store(store):
    with pytest.raises(LogError, match="another process"):
        Store(store.folder)


def test_the_seal_beside_a_segment_says_what_the_robot_had(store, pieces):
    for piece in pieces[1]:
        store.write(piece)
    store.synchronize()
    path = store.folder / "arm" / "run" / "segment-000001.mcap"
    seal = json.loads(path.with_suffix(".seal.json").read_bytes())
    assert seal == {"size": path.stat().st_size, "sha256": hashlib.sha256(path.read_bytes()).hexdigest()}
