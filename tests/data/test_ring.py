import multiprocessing
import signal
import sys
import time
from collections import deque
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dpg_robot.data.ring import LogState, LogStatus, Ring
from dpg_robot.data.transition import tick_dtype
from dpg_robot.errors import ContractError, LogError

DEADLINE_S = 60.0
SHARED_MEMORY = Path("/dev/shm")


def drain_until(ring, count):
    """Drain ``count`` records; fails when they do not come in time."""
    parts = []
    end_s = time.monotonic() + DEADLINE_S
    while sum(map(len, parts)) < count:
        assert time.monotonic() < end_s, "the records did not come in time"
        parts.append(ring.drain(500))
    return np.concatenate(parts)


@given(
    capacity=st.integers(1, 8),
    steps=st.lists(st.tuples(st.sampled_from(["push", "drain"]), st.integers(0, 12)), max_size=40),
)
def test_the_ring_behaves_as_a_bounded_queue(sample, capacity, steps):
    queue, pushed, refused = deque(), 0, 0
    with Ring.create(sample.DTYPE, capacity) as producer, Ring.attach(producer.name, sample.DTYPE) as consumer:
        for step, count in steps:
            if step == "push":
                for record in sample.make_records(pushed, count):
                    room = len(queue) < capacity
                    assert producer.push(record) is room
                    queue.append(pushed) if room else None
                    pushed += 1
                    refused += not room
            else:
                expected = [queue.popleft() for _ in range(min(count, len(queue)))]
                drained = consumer.drain(count)
                assert drained["sequence"].tolist() == expected
                for record in drained:
                    assert record == sample.make_records(int(record["sequence"]), 1)[0]
            assert len(consumer) == len(queue)
            assert consumer.overruns == refused


@pytest.mark.parametrize("shape", [(), (1,)])
def test_a_record_may_be_an_array_of_one_or_of_no_dimension(sample, shape):
    with Ring.create(sample.DTYPE, 2) as ring:
        ring.push(sample.make_records(3, 1).reshape(shape))
        assert (ring.drain(9) == sample.make_records(3, 1)).all()


def test_a_drained_record_is_a_copy(sample):
    with Ring.create(sample.DTYPE, 1) as ring:
        ring.push(sample.make_records(0, 1))
        drained = ring.drain(1)
        ring.push(sample.make_records(1, 1))
        assert (drained == sample.make_records(0, 1)).all()


def test_another_record_layout_is_refused(sample):
    with Ring.create(sample.DTYPE, 4) as ring:
        with pytest.raises(ContractError, match=r"bytes per record is 177, expected 211"):
            Ring.attach(ring.name, tick_dtype(5, 2))
        renamed = np.dtype([("number" if name == "sequence" else name, sample.DTYPE[name]) for name in sample.DTYPE.names])
        with pytest.raises(ContractError, match="layout of the record"):
            Ring.attach(ring.name, renamed)
        with pytest.raises(ContractError, match="a push takes one record"):
            ring.push(np.zeros(1, tick_dtype(2, 2)))
        with pytest.raises(ContractError, match="a push takes one record"):
            ring.push(sample.make_records(0, 2))


def test_a_ring_that_does_not_exist_is_named(sample):
    with pytest.raises(LogError, match="no ring 'dpg-ring-none'"):
        Ring.attach("dpg-ring-none", sample.DTYPE)


def test_the_status_of_the_log_is_seen_at_the_other_end(sample):
    with Ring.create(sample.DTYPE, 4) as ring, Ring.attach(ring.name, sample.DTYPE) as other:
        assert ring.status == LogStatus(LogState.STARTING, -1, -1, 0, 0)
        published = LogStatus(LogState.FAILED, acknowledged_sequence=7, durable_sequence=5, error=28)
        other.publish_status(published)
        assert ring.status == published
        assert not other.finished
        ring.finish()
        assert other.finished


def test_a_hundred_thousand_records_pass_between_two_processes_unharmed(sample, start_python):
    count = 100_000
    with Ring.create(sample.DTYPE, 256) as ring:
        process = start_python("push_records.py", ring.name, count, "finish")
        records = drain_until(ring, count)
        assert process.wait(DEADLINE_S) == 0
        assert ring.finished
        assert len(ring) == 0
        assert ring.status.torn == 0
    assert (records == sample.make_records(0, count)).all()


def test_a_producer_killed_in_the_middle_of_a_push_leaves_only_whole_records(sample, start_python):
    with Ring.create(sample.DTYPE, 64) as ring:
        process = start_python("push_records.py", ring.name, 0, "die-in-push", 200)
        records = drain_until(ring, 200)
        assert process.wait(DEADLINE_S) == -signal.SIGKILL
        assert len(ring) == 0
        # The unfinished slot is used again as if nothing had happened.
        assert ring.drain(9, skip_torn=True).size == 0
        assert ring.status.torn == 0
    assert (records == sample.make_records(0, 200)).all()


def test_a_producer_killed_at_any_moment_leaves_only_whole_records(sample, start_python):
    rng = np.random.default_rng(0)
    for _ in range(5):
        with Ring.create(sample.DTYPE, 1024) as ring:
            process = start_python("push_records.py", ring.name, 0, "forever")
            records = [drain_until(ring, int(rng.integers(1, 3000)))]
            process.kill()
            process.wait(DEADLINE_S)
            records.append(ring.drain(2000))
            assert len(ring) == 0
        read = np.concatenate(records)
        assert (read == sample.make_records(0, len(read))).all()


@pytest.mark.parametrize("part", ["payload", "checksum", "position"])
def test_a_torn_record_is_held_back_and_then_dropped_but_never_returned(sample, part):
    """As when another processor sees the counter before the record."""
    with Ring.create(sample.DTYPE, 8) as ring:
        for record in sample.make_records(0, 5):
            ring.push(record)
        byte = {"position": 0, "checksum": 8, "payload": 16 + 100}[part]
        ring._slots[2, byte] ^= 1
        assert ring.drain(9)["sequence"].tolist() == [0, 1]
        assert ring.drain(9).size == 0
        assert len(ring) == 3

        ring._slots[2, byte] ^= 1  # the rest arrives
        assert ring.drain(1)["sequence"].tolist() == [2]

        ring._slots[3, byte] ^= 1
        assert ring.drain(9, skip_torn=True)["sequence"].tolist() == [4]
        assert ring.status.torn == 1


def test_a_slot_of_the_previous_lap_is_no_record(sample):
    with Ring.create(sample.DTYPE, 2) as ring:
        for record in sample.make_records(0, 2):
            ring.push(record)
        before = ring._slots[0].copy()
        assert len(ring.drain(2)) == 2
        ring.push(sample.make_records(2, 1))
        ring._slots[0] = before
        assert ring.drain(1).size == 0


def attach_and_wait(name, dtype, attached):
    ring = Ring.attach(name, dtype)
    attached.set()
    time.sleep(DEADLINE_S)
    ring.close()


def test_only_the_owner_removes_the_ring(sample, start_python):
    with Ring.create(sample.DTYPE, 64) as ring:
        assert (SHARED_MEMORY / ring.name).exists()
        assert start_python("push_records.py", ring.name, 3, "finish").wait(DEADLINE_S) == 0

        spawn = multiprocessing.get_context("spawn")
        attached = spawn.Event()
        child = spawn.Process(target=attach_and_wait, args=(ring.name, sample.DTYPE, attached))
        child.start()
        assert attached.wait(DEADLINE_S)
        child.kill()
        child.join(DEADLINE_S)

        assert (SHARED_MEMORY / ring.name).exists()
        assert len(ring.drain(9)) == 3
    assert not (SHARED_MEMORY / ring.name).exists()
    ring.close()


OWNER = """
import subprocess, sys
from dpg_robot.data.ring import Ring
from sample_records import DTYPE
with Ring.create(DTYPE, 16) as ring:
    print(ring.name, flush=True)
    attach = "from dpg_robot.data.ring import Ring; from sample_records import DTYPE; Ring.attach({!r}, DTYPE).close()"
    subprocess.run([sys.executable, "-c", attach.format(ring.name)], check=True)
    if sys.argv[1] == "wait":
        sys.stdin.read()
"""


def test_owner_and_user_end_without_a_word_from_the_resource_tracker(start_python):
    process = start_python("-c", OWNER, "end")
    output, errors = process.communicate(timeout=DEADLINE_S)
    assert errors == ""
    assert not (SHARED_MEMORY / output.strip()).exists()


@pytest.mark.skipif(sys.platform != "linux", reason="looks into /dev/shm")
def test_the_ring_of_a_killed_owner_does_not_hinder_the_next(sample, start_python):
    process = start_python("-c", OWNER, "wait", stdin=-1)
    name = process.stdout.readline().strip()
    process.kill()
    process.wait(DEADLINE_S)
    with Ring.create(sample.DTYPE, 16) as ring:
        assert ring.name != name
        assert ring.push(sample.make_records(0, 1))
