import errno
import json
import os
import shutil
import subprocess
import time

import numpy as np
import pytest
from mcap.reader import make_reader

from dpg_robot.data.log_writer import LogWriter, new_run_id
from dpg_robot.data.robot_log import read_records, require_contiguous
from dpg_robot.errors import LogWriteError

DEADLINE_S = 60.0


def test_what_was_written_is_read_bit_for_bit(sample, tmp_path):
    records = sample.make_records(0, 500)
    records["measurement"][3] = [np.nan, -np.inf, -0.0]
    records["sequence"][-1] = 2**40  # more than MCAP's own sequence number holds
    with LogWriter(tmp_path, "run", sample.CONTRACT) as writer:
        writer.append(records)
    assert np.concatenate(list(read_records(tmp_path, on_damage="skip"))).tobytes() == records.tobytes()


def test_acknowledged_follows_the_flush_and_durable_the_completed_segment(sample, tmp_path):
    writer = LogWriter(tmp_path, "run", sample.CONTRACT, flush_interval_s=1000.0)
    assert (tmp_path / "run" / "segment-000000.mcap").stat().st_size > 500  # what it says about itself
    writer.append(sample.make_records(0, 10))
    assert (writer.acknowledged_sequence, writer.durable_sequence) == (-1, -1)
    assert list(read_records(tmp_path)) == []
    writer.flush()
    assert (writer.acknowledged_sequence, writer.durable_sequence) == (9, -1)
    assert len(next(read_records(tmp_path))) == 10
    writer.append(sample.make_records(10, 5))
    writer.close()
    assert (writer.acknowledged_sequence, writer.durable_sequence) == (14, 14)
    with pytest.raises(LogWriteError, match="closed"):
        writer.append(sample.make_records(15, 1))


def test_the_last_records_are_flushed_in_time_also_when_no_more_come(sample, tmp_path):
    with LogWriter(tmp_path, "run", sample.CONTRACT, flush_interval_s=0.05) as writer:
        writer.append(sample.make_records(0, 3))
        end_s = time.monotonic() + DEADLINE_S
        while writer.acknowledged_sequence < 2:
            assert time.monotonic() < end_s
            writer.append(sample.make_records(3, 0))


def test_segments_are_rotated_by_size(sample, tmp_path):
    with LogWriter(tmp_path, "run", sample.CONTRACT, segment_bytes=150_000, flush_interval_s=0.0) as writer:
        for first in range(0, 3000, 10):
            writer.append(sample.make_records(first, 10))
    segments = sorted((tmp_path / "run").iterdir())
    assert [segment.name for segment in segments] == [f"segment-{index:06d}.mcap" for index in range(len(segments))]
    assert len(segments) > 3
    assert all(140_000 < segment.stat().st_size < 200_000 for segment in segments[:-1])
    assert require_contiguous(tmp_path).runs[0].records == 3000


def test_segments_are_rotated_by_time(sample, tmp_path):
    end_s = time.monotonic() + DEADLINE_S
    sequence = 0
    with LogWriter(tmp_path, "run", sample.CONTRACT, segment_seconds=0.05, flush_interval_s=0.01) as writer:
        while not (tmp_path / "run" / "segment-000003.mcap").exists():
            assert time.monotonic() < end_s
            writer.append(sample.make_records(sequence, 1))
            sequence += 1
        assert writer.durable_sequence > 0
    assert require_contiguous(tmp_path).runs[0].records == sequence


def test_each_segment_says_which_run_it_belongs_to_and_what_its_channels_are(sample, tmp_path):
    with LogWriter(tmp_path, "run-7", sample.CONTRACT, {"policy_id": "0123456789abcdef"}) as writer:
        writer.append(sample.make_records(0, 3))
    with (tmp_path / "run-7" / "segment-000000.mcap").open("rb") as file:
        metadata = next(make_reader(file).iter_metadata())
    assert metadata.name == "dpg_robot.run"
    values = metadata.metadata
    assert (values["run_id"], values["policy_id"], values["segment"]) == ("run-7", "0123456789abcdef", "0")
    assert json.loads(values["contract"]) == sample.CONTRACT.to_dict()
    assert set(json.loads(values["software"])) == {"dpg-robot", "numpy", "mcap", "protobuf", "python"}


def test_a_run_is_never_continued(sample, tmp_path):
    LogWriter(tmp_path, "run", sample.CONTRACT).close()
    with pytest.raises(LogWriteError, match="the run exists") as caught:
        LogWriter(tmp_path, "run", sample.CONTRACT)
    assert caught.value.errno == errno.EEXIST


@pytest.mark.parametrize("run_id", ["", "../other", "a/b", ".hidden", "new\nline"])
def test_a_run_id_that_is_no_plain_name_is_refused(sample, tmp_path, run_id):
    with pytest.raises(ValueError, match="run id"):
        LogWriter(tmp_path, run_id, sample.CONTRACT)


def test_new_run_ids_are_accepted_and_differ(sample, tmp_path):
    run_ids = {new_run_id() for _ in range(5)}
    assert len(run_ids) == 5
    for run_id in run_ids:
        LogWriter(tmp_path, run_id, sample.CONTRACT).close()


def test_everything_acknowledged_survives_a_killed_writer_and_all_but_the_last_half_second(sample, tmp_path, start_python):
    process = start_python("write_log.py", tmp_path)
    lines = [process.stdout.readline() for _ in range(1200)]
    killed_s = time.monotonic()
    process.kill()
    lines += process.stdout.read().splitlines()
    written = [line.split() for line in lines if len(line.split()) == 3]
    acknowledged = int(written[-1][2])
    old = max(int(sequence) for sequence, time_s, _ in written if float(time_s) < killed_s - 0.5)

    report = require_contiguous(tmp_path).runs[0]
    assert report.segments > 1
    assert "is cut off" in report.truncated_tail
    records = np.concatenate(list(read_records(tmp_path)))
    assert acknowledged > 100
    assert len(records) > max(acknowledged, old)
    assert (records == sample.make_records(0, len(records))).all()


@pytest.fixture
def small_disk(tmp_path):
    """A file system of 1 MiB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = shutil.which("mount")
    if not mount or subprocess.run([mount, "-t", "tmpfs", "-o", "size=1m", "tmpfs", folder], capture_output=True).returncode:
        pytest.skip("mounting a file system is not permitted here")
    yield folder
    subprocess.run(["umount", folder], check=True)


def check_failed_write(sample, folder, outcome, number):
    assert outcome["errno"] == number
    assert os.strerror(number) in outcome["message"]
    acknowledged, durable, given = outcome["acknowledged"], outcome["durable"], outcome["given"]
    assert 100 < durable <= acknowledged < given
    assert f"sequences safe on disk: up to {acknowledged}" in outcome["message"]
    assert f"not written: {acknowledged + 1} to {given}" in outcome["message"]
    records = np.concatenate(list(read_records(folder)))
    assert records.tobytes() == sample.make_records(0, acknowledged + 1).tobytes()


def test_a_full_disk_is_reported_and_what_was_acknowledged_is_read(sample, small_disk, start_python):
    process = start_python("fill_disk.py", small_disk)
    output, errors = process.communicate(timeout=DEADLINE_S)
    assert errors == ""
    check_failed_write(sample, small_disk, json.loads(output), errno.ENOSPC)


def test_a_file_that_may_not_grow_is_reported_and_what_was_acknowledged_is_read(sample, tmp_path, start_python):
    process = start_python("fill_disk.py", tmp_path, 150_000)
    output, errors = process.communicate(timeout=DEADLINE_S)
    assert errors == ""
    check_failed_write(sample, tmp_path, json.loads(output), errno.EFBIG)


def test_a_failed_synchronization_is_never_called_durable(sample, tmp_path, monkeypatch):
    writer = LogWriter(tmp_path, "run", sample.CONTRACT)
    writer.append(sample.make_records(0, 10))
    synchronize, failures = os.fsync, iter([True])

    def fail_once(descriptor):
        if next(failures, False):
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        synchronize(descriptor)

    monkeypatch.setattr(os, "fsync", fail_once)
    with pytest.raises(
        LogWriteError, match=r"Input/output error.*safe on disk: up to 9 \(none after loss of power\); not written: none"
    ):
        writer.close()
    assert (writer.acknowledged_sequence, writer.durable_sequence) == (9, -1)
    assert len(next(read_records(tmp_path))) == 10


def test_a_folder_that_cannot_be_made_is_named(sample, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(LogWriteError, match=r"cannot begin the robot log .*file/run"):
        LogWriter(tmp_path / "file", "run", sample.CONTRACT)
