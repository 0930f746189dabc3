import errno
import multiprocessing
import os
import resource
import signal
import time

import numpy as np
import pytest

from dpg_robot.data.log_process import log_command, run_log_process
from dpg_robot.data.ring import LogState, Ring
from dpg_robot.data.robot_log import read_records, require_contiguous

DEADLINE_S = 60.0


@pytest.fixture
def ring(sample):
    with Ring.create(sample.DTYPE, 4096) as ring:
        yield ring


@pytest.fixture
def start_log(sample, ring, tmp_path, start_python):
    """Start the log process as a program of its own, writing below tmp_path."""

    def start(*, wait=True, options=None, **settings):
        program, module, arguments = log_command(**log_arguments(sample, ring, tmp_path), **settings)[1:]
        process = start_python(program, module, arguments, **(options or {}))
        if wait:
            wait_until(lambda: ring.status.state == LogState.WRITING)
        return process

    return start


def log_arguments(sample, ring, folder):
    return {
        "ring_name": ring.name,
        "num_measurements": 3,
        "num_actions": 2,
        "folder": str(folder),
        "run_id": "run",
        "contract_dict": sample.CONTRACT.to_dict(),
        "metadata": {"policy_id": "fedcba9876543210"},
    }


def wait_until(condition):
    end_s = time.monotonic() + DEADLINE_S
    while not condition():
        assert time.monotonic() < end_s, "it did not happen in time"
        time.sleep(0.002)


def push(ring, records):
    for record in records:
        assert ring.push(record)


def check_logged(sample, folder, count):
    """Exactly ``count`` records are in the log, in completed segments."""
    (report,) = require_contiguous(folder).runs
    assert report.truncated_tail == ""
    assert np.concatenate(list(read_records(folder))).tobytes() == sample.make_records(0, count).tobytes()


def test_a_finished_producer_is_logged_to_its_last_record(sample, ring, tmp_path):
    spawn = multiprocessing.get_context("spawn")
    process = spawn.Process(target=run_log_process, kwargs=log_arguments(sample, ring, tmp_path))
    process.start()
    push(ring, sample.make_records(0, 1500))
    ring.finish()
    process.join(DEADLINE_S)
    assert process.exitcode == 0
    assert len(ring) == 0
    assert ring.status.state == LogState.CLOSED
    assert (ring.status.acknowledged_sequence, ring.status.durable_sequence, ring.status.error) == (1499, 1499, 0)
    check_logged(sample, tmp_path, 1500)


@pytest.mark.parametrize("reaped", [True, False])
def test_a_killed_producer_is_logged_to_its_last_push(sample, ring, tmp_path, start_log, start_python, reaped):
    log = start_log()
    producer = start_python("push_records.py", ring.name, 8_000, "die")
    if reaped:
        assert producer.wait(DEADLINE_S) == -signal.SIGKILL
    assert log.wait(DEADLINE_S) == 0
    assert ring.status.state == LogState.CLOSED
    assert ring.status.durable_sequence == 7_999
    check_logged(sample, tmp_path, 8_000)


def test_a_producer_killed_in_the_middle_of_a_push_is_logged_up_to_the_push_before(
    sample, ring, tmp_path, start_log, start_python
):
    log = start_log()
    start_python("push_records.py", ring.name, 0, "die-in-push", 700)
    assert log.wait(DEADLINE_S) == 0
    assert ring.status.torn == 0
    check_logged(sample, tmp_path, 700)


def test_records_are_acknowledged_while_the_producer_runs(sample, ring, start_log):
    start_log()
    push(ring, sample.make_records(0, 10))
    wait_until(lambda: ring.status.acknowledged_sequence == 9)
    assert ring.status.durable_sequence == -1


def test_an_interrupt_is_ignored_and_a_termination_drains_the_ring(sample, ring, tmp_path, start_log):
    log = start_log()
    log.send_signal(signal.SIGINT)
    push(ring, sample.make_records(0, 100))
    wait_until(lambda: ring.status.acknowledged_sequence == 99)
    log.send_signal(signal.SIGSTOP)
    push(ring, sample.make_records(100, 3000))
    log.send_signal(signal.SIGTERM)
    log.send_signal(signal.SIGCONT)
    assert log.wait(DEADLINE_S) == 0
    check_logged(sample, tmp_path, 3100)


def test_a_killed_log_process_loses_nothing_that_it_acknowledged(sample, ring, tmp_path, start_log):
    log = start_log()
    push(ring, sample.make_records(0, 100))
    wait_until(lambda: ring.status.acknowledged_sequence == 99)
    push(ring, sample.make_records(100, 100))
    log.kill()
    assert log.wait(DEADLINE_S) == -signal.SIGKILL
    records = np.concatenate(list(read_records(tmp_path)))
    assert len(records) > ring.status.acknowledged_sequence >= 99
    assert records.tobytes() == sample.make_records(0, len(records)).tobytes()


PARENT = "import subprocess, sys; subprocess.Popen(sys.argv[1:]); sys.stdin.read()"


def test_an_orphaned_log_process_takes_the_last_records_of_a_safe_stop_and_ends(sample, ring, tmp_path, start_python):
    parent = start_python("-c", PARENT, *log_command(**log_arguments(sample, ring, tmp_path)), stdin=-1)
    wait_until(lambda: ring.status.state == LogState.WRITING)
    push(ring, sample.make_records(0, 100))
    parent.kill()
    parent.wait(DEADLINE_S)
    push(ring, sample.make_records(100, 100))
    wait_until(lambda: ring.status.state == LogState.CLOSED)
    check_logged(sample, tmp_path, 200)


def test_a_record_that_stays_torn_is_dropped_and_counted_while_the_rest_is_logged(sample, ring, tmp_path, start_log):
    log = start_log()
    log.send_signal(signal.SIGSTOP)
    push(ring, sample.make_records(0, 3))
    ring._slots[1, 100] ^= 1
    log.send_signal(signal.SIGCONT)
    wait_until(lambda: ring.status.acknowledged_sequence == 2)
    assert ring.status.torn == 1
    ring.finish()
    assert log.wait(DEADLINE_S) == 0
    records = np.concatenate(list(read_records(tmp_path, on_damage="skip")))
    assert records.tobytes() == sample.make_records(0, 3)[[0, 2]].tobytes()


def test_a_failed_write_is_published_and_said(sample, ring, tmp_path, start_log):
    def limit_files():
        resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))

    log = start_log(options={"preexec_fn": limit_files})
    push(ring, sample.make_records(0, 300))
    wait_until(lambda: ring.status.acknowledged_sequence == 299)
    push(ring, sample.make_records(300, 1000))
    _, message = log.communicate(timeout=DEADLINE_S)
    assert log.returncode == 1
    status = ring.status
    assert (status.state, status.error) == (LogState.FAILED, errno.EFBIG)
    assert "log process: " in message
    assert os.strerror(errno.EFBIG) in message
    assert f"safe on disk: up to {status.acknowledged_sequence}; not written: {status.acknowledged_sequence + 1} to " in message
    assert "Traceback" not in message
    records = np.concatenate(list(read_records(tmp_path)))
    assert status.acknowledged_sequence >= 299
    assert records.tobytes() == sample.make_records(0, status.acknowledged_sequence + 1).tobytes()


def test_a_log_that_cannot_begin_is_published_and_said(ring, tmp_path, start_log):
    (tmp_path / "run").mkdir()
    log = start_log(wait=False)
    _, message = log.communicate(timeout=DEADLINE_S)
    assert (log.returncode, ring.status.state, ring.status.error) == (1, LogState.FAILED, errno.EEXIST)
    assert "a run is never continued" in message


def test_a_ring_that_is_gone_is_said(sample, ring, tmp_path, start_python):
    arguments = log_arguments(sample, ring, tmp_path) | {"ring_name": "dpg-ring-gone"}
    log = start_python(*log_command(**arguments)[1:])
    _, message = log.communicate(timeout=DEADLINE_S)
    assert log.returncode == 1
    assert message.startswith("log process: there is no ring 'dpg-ring-gone'")
