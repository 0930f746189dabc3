"""Recovery, summary and picture of a robot log."""

import numpy as np
import pytest

from dpg_robot.data.log_figure import draw_log
from dpg_robot.data.log_recovery import recover_log
from dpg_robot.data.log_summary import summarize_log
from dpg_robot.data.log_writer import LogWriter
from dpg_robot.data.robot_log import check_log, read_records, require_contiguous
from dpg_robot.data.transition import LoopState
from dpg_robot.errors import LogError


@pytest.fixture
def log(tmp_path, sample):
    records = sample.make_records(0, 300)
    with LogWriter(tmp_path / "log", "run-a", sample.CONTRACT, {"policy_id": "p7"}, segment_bytes=40_000) as writer:
        for part in np.array_split(records, 30):
            writer.append(part)
            writer.flush()
    return tmp_path / "log"


def files(folder):
    return {path.relative_to(folder): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def damage(log, segment=1):
    path = sorted(log.glob("*/*.mcap"))[segment]
    content = bytearray(path.read_bytes())
    content[len(content) // 2 : len(content) // 2 + 200] = bytes(200)
    path.write_bytes(content)
    return path


def test_a_damaged_log_is_copied_as_far_as_it_can_be_read_and_itself_not_changed(log, tmp_path):
    damage(log)
    before = files(log)
    readable = np.concatenate(list(read_records(log, on_damage="skip")))
    recovery = recover_log(log, tmp_path / "copy")
    assert files(log) == before
    copied = np.concatenate(list(read_records(tmp_path / "copy", on_damage="skip")))
    assert copied.tobytes() == readable.tobytes()
    assert 200 < len(copied) < 300
    assert not recovery.complete
    assert f"{len(copied)} records" in str(recovery)
    assert "lost: segment-000001.mcap" in str(recovery)
    (run,) = check_log(tmp_path / "copy").runs
    assert run.missing, "a hole stays visible"
    assert not any("damaged" in problem or "checksum" in problem for problem in run.problems)


def test_a_copy_says_what_it_is_and_where_it_comes_from(log, tmp_path):
    damage(log)
    original = summarize_log(log)[0].metadata
    recover_log(log, tmp_path / "copy")
    copy = summarize_log(tmp_path / "copy")[0].metadata
    assert "segment-000001.mcap" in copy["recovered"]
    assert (copy["policy_id"], copy["run_id"]) == ("p7", "run-a")
    assert copy["original_begin_wall_ns"] == original["begin_wall_ns"]


def test_a_cut_off_end_is_mended_for_the_official_tools(log, tmp_path):
    from mcap.reader import make_reader

    last = sorted(log.glob("*/*.mcap"))[-1]
    last.write_bytes(last.read_bytes()[:-3000])
    recovery = recover_log(log, tmp_path / "copy")
    require_contiguous(tmp_path / "copy")
    count = 0
    for path in sorted((tmp_path / "copy").glob("*/*.mcap")):
        with path.open("rb") as file:
            count += make_reader(file).get_summary().statistics.message_count
    assert count == recovery.after.runs[0].records > 250


def test_a_whole_log_loses_nothing(log, tmp_path):
    recovery = recover_log(log, tmp_path / "copy")
    assert recovery.complete
    assert require_contiguous(tmp_path / "copy").runs[0].records == 300


def test_a_run_of_which_nothing_is_known_is_named_and_the_others_are_recovered(log, tmp_path, sample):
    (log / "run-b").mkdir()
    (log / "run-b" / "segment-000000.mcap").write_bytes(b"\x89MCAP0\r\n" + bytes(500))
    recovery = recover_log(log, tmp_path / "copy")
    assert (recovery.without_contract, recovery.complete) == (("run-b",), False)
    assert "run run-b: nothing recovered" in str(recovery)
    with pytest.raises(LogError, match=r"nothing of .* can be recovered"):
        recover_log(log / "run-b", tmp_path / "other")
    assert not (tmp_path / "other").exists()


def test_what_exists_is_not_overwritten(log, tmp_path):
    (tmp_path / "copy").mkdir()
    with pytest.raises(LogError, match="exists already"):
        recover_log(log, tmp_path / "copy")
    (tmp_path / "a.png").write_bytes(b"mine")
    with pytest.raises(LogError, match="exists already"):
        draw_log(log, tmp_path / "a.png", {})
    assert (tmp_path / "a.png").read_bytes() == b"mine"


def test_a_summary_counts_what_is_in_a_run(log, sample):
    (summary,) = summarize_log(log)
    records = sample.make_records(0, 300)
    assert (summary.run_id, summary.records, summary.contract) == ("run-a", 300, sample.CONTRACT)
    assert summary.seconds == pytest.approx(2.99)
    assert summary.begin_wall_ns == records["wall_ns"][0]
    assert summary.policies == {"fedcba9876543210": 300}
    assert summary.states == {"running": 300}
    assert summary.episode_ends == {"timeout": 2, "terminal": 2, "aborted": 1}
    assert summary.safety[4] == np.count_nonzero(records["safety"] & 4)
    assert "two-joints at 100 Hz, 3.0 s from 2023-11-14T22:13:20" in str(summary)


def test_a_picture_of_a_run_is_drawn(log, tmp_path, sample):
    pytest.importorskip("matplotlib")
    path = draw_log(log, tmp_path / "run.png", {1: "NON_FINITE", 2: "ACTION_CLIPPED", 4: "COMMAND_LIMITED"})
    assert path.read_bytes().startswith(b"\x89PNG")
    records = sample.make_records(0, 10)
    records["state"], records["safety"] = LoopState.IDLE, 0
    with LogWriter(log, "run-b", sample.CONTRACT) as writer:
        writer.append(records)
    draw_log(log / "run-b", tmp_path / "idle.png", {})
    with pytest.raises(LogError, match="has 2 runs; name one of them: run-a, run-b"):
        draw_log(log, tmp_path / "both.png", {})
