import json
import subprocess
import sys

from dpg_robot.shipping.segment_check import check_segment, last_before


def test_a_whole_run_has_no_problems(tmp_path, write_run):
    segments = sorted(write_run(tmp_path).iterdir())
    command = [sys.executable, "-m", "dpg_robot.shipping.segment_check", *map(str, segments[1:])]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    checks = [json.loads(line) for line in done.stdout.splitlines()]
    assert [check["path"] for check in checks] == [str(path) for path in segments[1:]]
    assert all(check["problems"] == [] for check in checks)
    assert checks[0]["first"] == last_before(segments[1]) + 1
    assert checks[-1]["last"] == 999


def test_damage_is_found(tmp_path, write_run):
    path = write_run(tmp_path) / "segment-000001.mcap"
    content = bytearray(path.read_bytes())
    content[5000] ^= 1
    path.write_bytes(bytes(content))
    assert any("does not fit" in problem for problem in check_segment(path, last_before(path)).problems)


def test_missing_records_and_a_foreign_run_are_found(tmp_path, write_run):
    run = write_run(tmp_path)
    (run / "segment-000001.mcap").unlink()
    path = run / "segment-000002.mcap"
    assert "begins with sequence" in check_segment(path, last_before(path)).problems[0]
    run = run.rename(tmp_path / "other")
    assert "belongs to run 'run'" in check_segment(run / "segment-000000.mcap", None).problems[0]


def test_an_empty_segment_is_no_problem(tmp_path):
    path = tmp_path / "segment-000000.mcap"
    path.touch()
    check = check_segment(path, 7)
    assert (check.records, check.first, check.problems) == (0, None, ())
