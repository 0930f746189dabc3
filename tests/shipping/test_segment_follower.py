"""Following a segment: whatever a reader sees of a growing file, it passes on whole records and in the end every byte."""

import hashlib
import os
import subprocess
import sys

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from dpg_robot.data.log_writer import LogWriter
from dpg_robot.shipping import segment_follower
from dpg_robot.shipping.mcap_walk import whole_chunks
from dpg_robot.shipping.segment_follower import SegmentFollower


@pytest.fixture(scope="module")
def segment(sample, tmp_path_factory):
    """The bytes of a complete segment with many chunks."""
    folder = tmp_path_factory.mktemp("log")
    with LogWriter(folder, "run", sample.CONTRACT, flush_interval_s=0.0) as writer:
        for first in range(0, 200, 5):
            writer.append(sample.make_records(first, 5))
    return (folder / "run" / "segment-000000.mcap").read_bytes()


def read_all(follower, offset, max_bytes, **options):
    spans = []
    while (span := follower.read(offset, max_bytes, **options)) is not None:
        spans.append(span)
        offset += len(span.data)
        if span.seal is not None:
            break
    return spans


def ends_of(content):
    return {8, len(content), *(end for _, end, _ in whole_chunks(content))}


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_however_a_file_grows_the_pieces_are_its_bytes_and_no_record_is_torn(segment, tmp_path_factory, data):
    cuts = sorted(data.draw(st.lists(st.integers(0, len(segment)), max_size=12)))
    max_bytes = data.draw(st.integers(1200, 40_000))
    path = tmp_path_factory.mktemp("grow") / "segment-000000.mcap"
    ends, offset, ticks, got = ends_of(segment), 0, [], b""
    with path.open("wb", buffering=0) as file:
        follower = SegmentFollower(path)
        for cut in [*cuts, len(segment)]:
            file.write(segment[file.tell() : cut])
            for span in read_all(follower, offset, max_bytes):
                assert span.seal is None, "somebody still writes it"
                assert 0 < len(span.data) <= max_bytes
                got += span.data
                offset += len(span.data)
                ticks.append(span.ticks)
            assert cut not in ends or got == segment[:cut], "what ends with a whole record is taken at once"
            assert offset == 0 or offset in ends or max_bytes < 3000
    (last,) = read_all(follower, offset, max_bytes)
    follower.close()
    assert got == segment
    assert last.data == b""
    assert (last.seal.size, last.seal.sha256) == (len(segment), hashlib.sha256(segment).hexdigest())
    if max_bytes > 5000:
        assert sum(each.count for each in ticks) == 200
        known = [each for each in ticks if each.count]
        assert (known[0].first, known[-1].last) == (0, 199)


def test_a_file_that_was_cut_off_is_sent_to_its_last_byte_once_nobody_writes_it(segment, tmp_path):
    path = tmp_path / "segment-000000.mcap"
    cut = segment[: len(segment) // 2 + 7]
    assert len(cut) not in ends_of(segment)
    with path.open("wb", buffering=0) as file:
        file.write(cut)
        follower = SegmentFollower(path)
        assert read_all(follower, 0, 10**6) == [], "the half of a write is not taken"
    spans = read_all(follower, 0, 10**6)
    assert b"".join(span.data for span in spans) == cut
    assert spans[-1].seal.size == len(cut)
    assert sum(span.ticks.count for span in spans) > 90, "whole messages of the cut-off chunk count"


def test_what_a_failed_write_left_behind_is_never_taken(segment, tmp_path):
    path = tmp_path / "segment-000000.mcap"
    end = sorted(ends_of(segment))[10]
    with path.open("wb", buffering=0) as file:
        file.write(segment[:end])
        follower = SegmentFollower(path)
        assert sum(len(span.data) for span in read_all(follower, 0, 10**6)) == end
        file.write(segment[end : end + 30_000])  # the disk is full after whole records and a half
        assert read_all(follower, end, 10**6) == []
        file.truncate(end)
    (span,) = read_all(follower, end, 10**6)
    assert (span.data, span.seal.size) == (b"", end)


def test_a_file_that_lost_what_was_sent_is_sealed_with_what_it_has(segment, tmp_path):
    path = tmp_path / "segment-000000.mcap"
    path.write_bytes(segment[:5000])
    span = SegmentFollower(path).read(9000)
    assert (span.data, span.seal.size) == (b"", 5000)


@pytest.mark.parametrize("content", [b"", b"\x89MCA", b"no MCAP file at all"])
def test_a_file_without_a_whole_record_is_sent_only_when_nobody_writes_it(content, tmp_path):
    path = tmp_path / "segment-000000.mcap"
    with path.open("wb", buffering=0) as file:
        file.write(content)
        follower = SegmentFollower(path)
        assert follower.read(0) is None
    span = follower.read(0)
    assert (span.data, span.seal.size) == (content, len(content))


def test_a_writer_in_another_process_holds_the_file_open_until_it_is_killed(segment, tmp_path):
    path = tmp_path / "segment-000000.mcap"
    program = "import sys; file = open(sys.argv[1], 'wb', 0); file.write(sys.stdin.buffer.read(5000)); print(flush=True); input()"
    writer = subprocess.Popen([sys.executable, "-c", program, path], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    writer.stdin.write(segment[:5000])
    writer.stdin.flush()
    writer.stdout.readline()
    follower = SegmentFollower(path)
    assert follower.read(0) is None or follower.read(0).seal is None
    writer.kill()
    writer.communicate()
    assert follower.read(5000).seal.size == 5000


def test_without_leases_a_file_counts_as_closed_when_it_is_idle_or_has_a_successor(segment, tmp_path, monkeypatch):
    monkeypatch.setattr(segment_follower, "_nobody_writes", lambda descriptor: None)
    clock = [100.0]
    monkeypatch.setattr(segment_follower.time, "monotonic", lambda: clock[0])
    path = tmp_path / "segment-000000.mcap"
    path.write_bytes(segment)
    follower = SegmentFollower(path, idle_s=60.0)
    assert follower.read(len(segment)) is None
    clock[0] += 59.0
    assert follower.read(len(segment)) is None
    assert follower.read(len(segment), has_successor=True).seal is not None
    clock[0] += 2.0
    assert follower.read(len(segment)).seal is not None


def test_this_machine_has_leases(tmp_path):
    path = tmp_path / "file"
    path.touch()
    descriptor = os.open(path, os.O_RDONLY)
    assert segment_follower._nobody_writes(descriptor) is not None
    os.close(descriptor)
