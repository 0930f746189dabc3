import dataclasses
import shutil

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from dpg_robot.data.log_format import encode_ticks
from dpg_robot.data.log_writer import LogWriter
from dpg_robot.data.robot_log import (
    check_log,
    load_newest_transitions,
    load_transitions,
    read_records,
    read_transitions,
    require_contiguous,
)
from dpg_robot.errors import LogError

BATCH = 20
RECORDS = 300


def write_run(sample, folder, run_id="run", *, sequences=range(RECORDS), close=True):
    """Write records in chunks of BATCH and segments of five chunks."""
    writer = LogWriter(folder, run_id, sample.CONTRACT, flush_interval_s=0.0, segment_bytes=30_000 if close else 10**9)
    every = sample.make_records(0, max(sequences) + 1)
    for first in range(0, len(sequences), BATCH):
        writer.append(every[list(sequences[first : first + BATCH])])
    if close:
        writer.close()
    return folder / run_id


def read_all(path, on_damage="raise"):
    parts = list(read_records(path, on_damage=on_damage))
    return np.concatenate(parts) if parts else np.zeros(0, [("sequence", "<u8")])


def assert_first(sample, records):
    """The records are the first of the run."""
    assert records.tobytes() == sample.make_records(0, len(records)).tobytes()


@pytest.fixture
def run(sample, tmp_path):
    """A run of several completed segments."""
    folder = write_run(sample, tmp_path)
    assert len(list(folder.iterdir())) == 3
    return folder


@pytest.fixture(scope="module")
def completed(sample, tmp_path_factory):
    """The bytes of each segment of a completed run."""
    folder = write_run(sample, tmp_path_factory.mktemp("log"))
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


@pytest.fixture(scope="module")
def unfinished(sample, tmp_path_factory):
    """The bytes of a segment whose writer never closed it."""
    folder = write_run(sample, tmp_path_factory.mktemp("log"), sequences=range(100), close=False)
    return (folder / "segment-000000.mcap").read_bytes()


def test_a_completed_log_is_contiguous(sample, run):
    report = require_contiguous(run)
    (found,) = report.runs
    assert (found.run_id, found.folder, found.segments, found.records) == ("run", run, 3, RECORDS)
    assert (found.episodes, found.transitions, found.invalid_transitions) == (6, 5 * 50 + 44, 0)
    assert (found.missing, found.problems, found.duplicates, found.truncated_tail) == ((), (), 0, "")
    assert found.seconds == pytest.approx(2.99)
    assert "run run: 300 records in 3 segments, 3.0 s" in str(report)


def test_transitions_cross_from_one_segment_to_the_next(sample, run):
    steps = [transition.sequence for transition in read_transitions(run)]
    assert steps == [sequence for sequence in range(RECORDS - 1) if sequence % 51 != 50]
    arrays = load_transitions(run)
    assert arrays.sequence.tolist() == steps
    assert (arrays.measurement == sample.make_records(0, RECORDS)["measurement"][steps]).all()
    assert (arrays.next_measurement == sample.make_records(0, RECORDS)["measurement"][np.array(steps) + 1]).all()


def test_a_log_folder_gives_its_runs_in_order_of_their_names(sample, tmp_path):
    for run_id in ("b", "c", "a"):
        write_run(sample, tmp_path, run_id, sequences=range(5))
    assert [transition.run_id for transition in read_transitions(tmp_path)] == ["a"] * 4 + ["b"] * 4 + ["c"] * 4
    assert [report.run_id for report in check_log(tmp_path).runs] == ["a", "b", "c"]
    assert load_transitions(tmp_path).run_ids == ("a", "b", "c")


@pytest.mark.parametrize("name", ["empty", "missing"])
def test_a_folder_without_a_log_is_named(tmp_path, name):
    (tmp_path / "empty").mkdir()
    with pytest.raises(LogError, match=f"{name} holds no robot log; expected a run folder"):
        next(read_transitions(tmp_path / name))


def test_a_log_can_be_read_while_it_is_written(sample, tmp_path):
    with LogWriter(tmp_path, "run", sample.CONTRACT, flush_interval_s=0.0) as writer:
        assert list(read_transitions(tmp_path)) == []
        for first in range(0, 40, 10):
            writer.append(sample.make_records(first, 10))
            assert len(list(read_transitions(tmp_path))) == first + 9


def test_a_truncated_segment_is_read_up_to_its_last_whole_record(sample, unfinished, tmp_path):
    messages = [message for _, _, message in encode_ticks(sample.make_records(0, 100), "run")]
    ends = np.array([unfinished.index(message) + len(message) for message in messages])
    last_chunk = ends[79]
    segment = tmp_path / "segment-000000.mcap"
    for size in [*range(last_chunk, len(unfinished), 23), len(unfinished), 0, 5, 100, ends[0] - 1]:
        segment.write_bytes(unfinished[:size])
        records = read_all(tmp_path)
        assert len(records) == np.count_nonzero(ends <= size), f"cut at {size}"
        assert_first(sample, records)
        report = require_contiguous(tmp_path).runs[0]
        assert report.records == len(records)
        assert "segment-000000.mcap is cut off" in report.truncated_tail


def test_a_completed_segment_that_lost_its_end_is_read_too(sample, completed, tmp_path):
    *whole, last = completed
    for name in whole:
        (tmp_path / name).write_bytes(completed[name])
    for size in range(len(completed[last]) - 1, 0, -149):
        (tmp_path / last).write_bytes(completed[last][:size])
        records = read_all(tmp_path)
        assert_first(sample, records)
        assert require_contiguous(tmp_path).runs[0].truncated_tail != ""


def test_the_zeros_that_a_loss_of_power_may_leave_at_the_end_are_a_cut_off_end(sample, unfinished, tmp_path):
    for lost in (2000, 6000, len(unfinished) // 2):
        (tmp_path / "segment-000000.mcap").write_bytes(unfinished[:-lost] + bytes(lost))
        records = read_all(tmp_path)
        assert 0 < len(records) < 100
        assert_first(sample, records)
        assert require_contiguous(tmp_path).runs[0].truncated_tail != ""


def assert_no_wrong_record(sample, folder, count):
    """Whatever is read is right, and whatever is not read is reported."""
    records = read_all(folder, on_damage="skip")
    assert (np.diff(records["sequence"].astype(np.int64)) > 0).all()
    assert records.tobytes() == sample.make_records(0, count)[records["sequence"].astype(np.int64)].tobytes()
    (report,) = check_log(folder).runs
    assert report.records == len(records)
    if len(records) < count:
        assert report.problems or report.truncated_tail
    return report


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None, max_examples=60)
@given(data=st.data())
def test_a_flipped_bit_in_a_completed_run_is_reported_and_never_read_as_another_value(sample, completed, tmp_path, data):
    damaged = data.draw(st.sampled_from(list(completed)))
    byte, bit = data.draw(st.integers(0, len(completed[damaged]) - 1)), data.draw(st.integers(0, 7))
    for name, content in completed.items():
        changed = bytearray(content)
        changed[byte if name == damaged else 0] ^= (1 << bit) if name == damaged else 0
        (tmp_path / name).write_bytes(changed)
    report = assert_no_wrong_record(sample, tmp_path, RECORDS)
    data_end = completed[damaged].rindex(bytes([15]) + (4).to_bytes(8, "little"))
    if byte < data_end:  # behind it there are only indices for other tools
        assert any(damaged in problem for problem in report.problems)
        with pytest.raises(LogError, match=damaged):
            require_contiguous(tmp_path)
    assert report.records >= RECORDS - BATCH  # no more than one chunk is lost


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None, max_examples=60)
@given(byte=st.integers(0, 2**20), bit=st.integers(0, 7))
def test_a_flipped_bit_in_an_unfinished_segment_is_never_read_as_another_value(sample, unfinished, tmp_path, byte, bit):
    changed = bytearray(unfinished)
    changed[byte % len(changed)] ^= 1 << bit
    (tmp_path / "segment-000000.mcap").write_bytes(changed)
    assert_no_wrong_record(sample, tmp_path, 100)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None, max_examples=60)
@given(data=st.data())
def test_an_overwritten_stretch_is_never_read_as_another_value(sample, unfinished, tmp_path, data):
    begin = data.draw(st.integers(0, len(unfinished)))
    stretch = data.draw(st.binary(max_size=3000))
    changed = unfinished[:begin] + stretch + unfinished[begin + data.draw(st.integers(0, 3000)) :]
    (tmp_path / "segment-000000.mcap").write_bytes(changed)
    assert_no_wrong_record(sample, tmp_path, 100)


def test_damage_in_the_middle_costs_only_the_damaged_record(sample, run):
    segment = run / "segment-000001.mcap"
    ((_, _, message),) = encode_ticks(sample.make_records(170, 1), "run")
    content = bytearray(segment.read_bytes())
    content[content.index(message) + 100] ^= 1
    segment.write_bytes(content)
    with pytest.raises(
        LogError, match=r"segment-000001.mcap: the checksum of the chunk at byte \d+ does not fit; 19 of its records"
    ):
        list(read_transitions(run))
    (report,) = check_log(run).runs
    assert report.missing == ((170, 170),)
    assert [record["sequence"] for record in read_all(run, "skip")] == [*range(170), *range(171, RECORDS)]
    skipped = {169, 170} | {sequence for sequence in range(RECORDS) if sequence % 51 == 50} | {RECORDS - 1}
    assert {transition.sequence for transition in read_transitions(run, on_damage="skip")} == set(range(RECORDS)) - skipped


def test_a_damaged_length_does_not_hide_the_chunks_behind_it(sample, unfinished, tmp_path):
    ((_, _, message),) = encode_ticks(sample.make_records(20, 1), "run")
    chunk = unfinished.index(message) - (9 + 40) - (9 + 22)  # prefix and header of the chunk, then those of the message
    assert unfinished[chunk] == 6
    changed = bytearray(unfinished)
    changed[chunk + 3] ^= 1  # 64 KiB longer
    changed[chunk + 500] ^= 1  # and one record of it
    (tmp_path / "segment-000000.mcap").write_bytes(changed)
    (report,) = check_log(tmp_path).runs
    assert report.records == 99
    assert "are damaged; 19 records of them are intact" in report.problems[0]


def test_records_before_the_damage_come_before_the_error(run):
    content = (run / "segment-000001.mcap").read_bytes()
    (run / "segment-000001.mcap").write_bytes(content[: len(content) // 2])
    transitions = read_transitions(run)
    assert next(transitions).sequence == 0
    with pytest.raises(LogError, match=r"segment-000001.mcap is cut off.*although segments follow"):
        list(transitions)


def test_a_missing_segment_is_named_with_its_records(sample, tmp_path):
    run = write_run(sample, tmp_path, run_id="run-5")
    first = [record["sequence"] for record in read_all(run)]
    sizes = [len(records) for records in read_records(run)]
    (run / "segment-000001.mcap").unlink()
    last = sizes[0] + sizes[1] - 1
    expected = rf"run run-5: segment-000001.mcap is missing\n.*sequences {sizes[0]} to {last} are missing.*segment-000002.mcap"
    with pytest.raises(LogError, match=expected):
        require_contiguous(tmp_path)
    assert check_log(run).runs[0].missing == ((sizes[0], last),)
    assert [record["sequence"] for record in read_all(run, "skip")] == first[: sizes[0]] + first[last + 1 :]


def test_a_missing_first_segment_is_noticed(run):
    (run / "segment-000000.mcap").unlink()
    with pytest.raises(LogError, match=r"segment-000000.mcap is missing"):
        require_contiguous(run)
    assert check_log(run).runs[0].missing[0][0] == 0


def test_a_sequence_that_the_ring_refused_is_a_gap(sample, tmp_path):
    write_run(sample, tmp_path, sequences=[*range(30), *range(33, 60), *range(61, 70)])
    (report,) = check_log(tmp_path).runs
    assert report.missing == ((30, 32), (60, 60))
    assert report.skipped_periods == 0
    with pytest.raises(LogError, match=r"run run: sequences 30 to 32 are missing \(3 records\)"):
        require_contiguous(tmp_path)
    assert {29, 32, 59, 60} & {transition.sequence for transition in read_transitions(tmp_path, on_damage="skip")} == set()


def test_records_that_are_there_twice_are_read_once(sample, run):
    shutil.copy(run / "segment-000001.mcap", run / "segment-000003.mcap")
    assert [record["sequence"] for record in read_all(run)] == list(range(RECORDS))
    (report,) = require_contiguous(run).runs
    assert report.duplicates == [len(records) for records in read_records(run)][1] > 0
    assert report.records == RECORDS


def test_skipped_periods_and_stale_measurements_are_counted(sample, tmp_path):
    records = sample.make_records(0, 40)
    records["period"][10:] += 3
    records["valid"][20, 0] = False
    with LogWriter(tmp_path, "run", sample.CONTRACT) as writer:
        writer.append(records)
    (report,) = require_contiguous(tmp_path).runs
    assert (report.skipped_periods, report.transitions, report.invalid_transitions) == (3, 39, 3)


def test_a_segment_of_another_run_is_not_mixed_in(sample, run, tmp_path):
    other = write_run(sample, tmp_path / "elsewhere", "other", sequences=range(10))
    shutil.copy(other / "segment-000000.mcap", run / "segment-000003.mcap")
    with pytest.raises(LogError, match=r"segment-000003.mcap belongs to run other, not to run run"):
        require_contiguous(run)
    assert len(read_all(run, "skip")) == RECORDS


def test_a_file_that_is_no_log_is_named(tmp_path):
    (tmp_path / "segment-000000.mcap").write_bytes(b"something else entirely" * 10)
    (tmp_path / "segment-000001.mcap").write_bytes(b"")
    with pytest.raises(LogError, match=r"segment-000000\.mcap"):
        require_contiguous(tmp_path)


def test_another_version_of_the_format_is_refused(sample, tmp_path, monkeypatch):
    monkeypatch.setattr("dpg_robot.data.log_writer.FORMAT_VERSION", 2)
    write_run(sample, tmp_path, sequences=range(3))
    with pytest.raises(LogError, match="log format version 2; this program reads version 1"):
        check_log(tmp_path)


def test_a_log_without_transitions_cannot_be_loaded(sample, tmp_path):
    write_run(sample, tmp_path, sequences=range(1))
    assert list(read_transitions(tmp_path)) == []
    with pytest.raises(LogError, match="holds no transitions"):
        load_transitions(tmp_path)


def test_the_newest_transitions_come_from_as_many_runs_as_are_needed(sample, tmp_path):
    for name in ("run-1", "run-2", "run-3"):
        write_run(sample, tmp_path, name, sequences=range(100))
    each = len(load_transitions(tmp_path / "run-1"))
    newest, contract = load_newest_transitions(tmp_path, each + 1)
    assert contract == sample.CONTRACT
    assert newest.run_ids == ("run-2", "run-3")
    assert len(newest) == each + 1
    assert np.array_equal(newest.sequence[1:], load_transitions(tmp_path / "run-3").sequence)
    assert newest.sequence[0] == load_transitions(tmp_path / "run-2").sequence[-1]
    everything, _ = load_newest_transitions(tmp_path, 10_000)
    assert len(everything) == 3 * each


def test_transitions_before_the_robot_became_another_one_do_not_count_as_its_newest(sample, tmp_path):
    write_run(sample, tmp_path, "run-1", sequences=range(100))
    faster = dataclasses.replace(sample.CONTRACT, rate_hz=2 * sample.CONTRACT.rate_hz)
    writer = LogWriter(tmp_path, "run-2", faster)
    writer.append(sample.make_records(0, 100))
    writer.close()
    newest, contract = load_newest_transitions(tmp_path, 10_000)
    assert (newest.run_ids, contract) == (("run-2",), faster)


def test_there_are_no_newest_transitions_in_a_log_without_any(sample, tmp_path):
    LogWriter(tmp_path, "run", sample.CONTRACT).close()
    with pytest.raises(LogError, match=r"holds no (transitions|robot log)"):
        load_newest_transitions(tmp_path, 10)
