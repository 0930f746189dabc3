"""What the dashboard gathers, from real logs, a real model store, and folders in which everything that can be broken is."""

from __future__ import annotations

import importlib.util
import json
import os
import time
from pathlib import Path
from typing import Any

import pytest

from dpg_robot.data.transition import LoopState
from dpg_robot.host.dashboard.learning import Curve
from dpg_robot.host.dashboard.log_tail import LOOK_BYTES, RunTail
from dpg_robot.host.dashboard.metrics import to_prometheus
from dpg_robot.host.dashboard.robots import RobotStatus
from dpg_robot.host.dashboard.status import Collector, HostStatus, Places, to_json
from dpg_robot.release import SigningKey


def _load_site() -> Any:
    spec = importlib.util.spec_from_file_location("dashboard_site", Path(__file__).with_name("dashboard_site.py"))
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


SITE = _load_site()
make_ticks, write_run = SITE.make_ticks, SITE.write_run


def look(**places: Path) -> HostStatus:
    return Collector(Places(**places)).collect()


def files_of(folder: Path) -> dict[str, tuple[int, int]]:
    return {str(path): (path.stat().st_mtime_ns, path.stat().st_size) for path in [folder, *folder.rglob("*")]}


def test_rate_jitter_state_and_sequence_of_the_newest_run_are_told(tmp_path: Path) -> None:
    write_run(tmp_path, "arm-1", "2026a", make_ticks(0, 60)).close()
    writer = write_run(tmp_path, "arm-1", "2026b", make_ticks(0, 1000))
    (robot,) = look(logs=tmp_path).robots
    assert (robot.name, robot.run, robot.task, robot.state) == ("arm-1", "2026b", SITE.CONTRACT.task, "running")
    assert (robot.stored_sequence, robot.watched_records, robot.fresh, robot.link) == (999, 1000, True, "data arrives")
    assert robot.timing is not None
    assert robot.timing.rate_hz == pytest.approx(50.0)
    assert robot.timing.p50_us == 10.0
    assert 400.0 < robot.timing.p99_us <= 900.0
    writer.close()


def test_what_is_added_is_read_once_and_moves_every_figure(tmp_path: Path) -> None:
    writer = write_run(tmp_path, "arm-1", "run", make_ticks(0, 100), segment_bytes=30_000)
    collector = Collector(Places(logs=tmp_path))
    before = collector.collect()
    assert before.robots[0].stored_sequence == 99
    late = make_ticks(100, 400)
    late["safety"][:7] = 8
    late["wakeup_latency_ns"] = 5_000_000
    for first in range(0, 400, 50):  # over several segments
        writer.append(late[first : first + 50])
        after = collector.collect()
    robot = after.robots[0]
    assert (robot.stored_sequence, robot.watched_records - before.robots[0].watched_records) == (499, 400)
    assert robot.safety == {"rate_limited": 7}
    assert robot.timing is not None
    assert robot.timing.p99_us == 5000.0
    assert len(list(tmp_path.glob("*/run/*.mcap"))) > 2
    assert collector.collect().robots[0].watched_records == robot.watched_records
    writer.close()


def test_a_fault_is_told_with_the_safety_layers_that_acted_before_it(tmp_path: Path) -> None:
    records = make_ticks(0, 100)
    records["safety"][10], records["safety"][95] = 1, 128
    records["state"][97:] = LoopState.FAULT
    write_run(tmp_path, "arm-1", "run-a", records).close()
    collector = Collector(Places(logs=tmp_path))
    robot = collector.collect().robots[0]
    assert robot.state == "fault"
    assert [(fault.run, fault.flags) for fault in robot.faults] == [("run-a", "stale")]
    assert robot.faults[0].wall_s == pytest.approx(records["wall_ns"][97] / 1e9)
    write_run(tmp_path, "arm-1", "run-b", make_ticks(0, 10)).close()
    robot = collector.collect().robots[0]
    assert (robot.run, robot.state, len(robot.faults)) == ("run-b", "running", 1), "it is not forgotten when the robot goes on"


def test_earlier_segments_give_a_curve_from_the_start(tmp_path: Path) -> None:
    write_run(tmp_path, "arm-1", "run", make_ticks(0, 4000), segment_bytes=150_000).close()
    curve = look(logs=tmp_path).timing_curves["arm-1"]
    assert len(curve) == len(list(tmp_path.glob("*/run/*.mcap"))) > 3
    assert [point[0] for point in curve] == sorted(point[0] for point in curve)


def test_of_a_large_segment_only_the_end_is_decoded(tmp_path: Path) -> None:
    writer = write_run(tmp_path, "arm-1", "run", make_ticks(0, 14_000))
    size = sum(path.stat().st_size for path in tmp_path.glob("*/run/*.mcap"))
    assert size > 2 * LOOK_BYTES
    records = RunTail(tmp_path / "arm-1" / "run").poll()
    assert 0 < len(records) < 14_000 * 1.1 * LOOK_BYTES / size
    assert records["sequence"][-1] == 13_999
    writer.close()


@pytest.mark.parametrize("damage", ["flipped bit", "zeros", "cut off", "no log", "pipe"])
def test_a_damaged_log_is_said_and_does_not_hide_the_other_robots(damage: str, tmp_path: Path) -> None:
    for robot in ("arm-1", "arm-2"):
        write_run(tmp_path, robot, "run", make_ticks(0, 100)).close()
    path = tmp_path / "arm-1" / "run" / "segment-000000.mcap"
    content = bytearray(path.read_bytes())
    if damage == "flipped bit":
        content[len(content) // 4] ^= 16
    elif damage == "zeros":
        content[len(content) // 2 :] = bytes(len(content) // 2)
    elif damage == "cut off":
        del content[len(content) // 2 :]
    elif damage == "no log":
        content = bytearray(b"\x80\x04 this is no log " * 20)
    path.unlink()
    if damage == "pipe":
        os.mkfifo(path)
    else:
        path.write_bytes(content)
    first, second = look(logs=tmp_path).robots
    assert (second.name, second.stored_sequence, second.problem) == ("arm-2", 99, "")
    if damage == "cut off":
        assert first.problem == "", "a log may be cut off while it is written"
    else:
        assert first.problem
    to_json(look(logs=tmp_path).figures())


def test_a_log_that_was_cut_back_is_read_on(tmp_path: Path) -> None:
    write_run(tmp_path, "arm-1", "run", make_ticks(0, 200)).close()
    path = tmp_path / "arm-1" / "run" / "segment-000000.mcap"
    whole = path.read_bytes()
    tail = RunTail(path.parent)
    assert tail.poll()["sequence"][-1] == 199
    path.write_bytes(whole[: len(whole) // 2])
    assert len(tail.poll()) == 0
    path.write_bytes(whole)
    assert (len(tail.poll()), tail.problem) == (0, ""), "nothing comes out twice"


def test_what_sender_and_receiver_say_is_told(tmp_path: Path) -> None:
    store, log = tmp_path / "store", tmp_path / "log"
    write_run(store, "arm-1", "run", make_ticks(0, 100)).close()
    (log / ".shipping").mkdir(parents=True)
    sender = {"state": "connected", "time": time.time(), "backlog_bytes": 4321, "last_confirmed_sequence": 80}
    receiver = {"state": "connected", "time": time.time(), "queue_depth": 3, "problems": ["one"]}
    receiver["robots"] = {"arm-1": {"run": "run", "last_confirmed_sequence": 99}}

    def status() -> HostStatus:
        (log / ".shipping" / "status.json").write_text(json.dumps(sender))
        (store / "status.json").write_text(json.dumps(receiver))
        return Collector(Places(logs=store, senders={"arm-1": log})).collect()

    found = status()
    assert found.receiver is not None
    assert (found.receiver.fresh, found.receiver.queue_depth, found.receiver.problems) == (True, 3, ("one",))
    assert (found.robots[0].queue_bytes, found.robots[0].acknowledged_sequence, found.robots[0].link_ok) == (4321, 99, True)
    sender["state"] = "not connected"
    assert status().robots[0].link == "sender: not connected"
    sender["time"] = time.time() - 60
    assert (status().robots[0].link, status().robots[0].link_ok) == ("the sender is silent", False)
    del sender["time"]
    sender |= {"state": "connected", "time": time.time()}
    receiver["time"] = time.time() - 60
    assert status().robots[0].link == "the receiver does not run"


def test_what_senders_told_the_receiver_is_shown_where_their_folders_cannot_be_read(tmp_path: Path) -> None:
    write_run(tmp_path, "arm-1", "run", make_ticks(0, 100)).close()
    news = {"time": time.time(), "state": "connected", "backlog_bytes": 4321, "last_confirmed_sequence": 80, "warning": "disk"}
    receiver = {"state": "connected", "time": time.time(), "robots": {}}

    def robot(senders: object) -> RobotStatus:
        (tmp_path / "status.json").write_text(json.dumps(receiver | {"senders": senders}))
        return Collector(Places(logs=tmp_path)).collect().robots[0]

    told = robot({"arm-1": news})
    assert (told.queue_bytes, told.acknowledged_sequence, told.link_ok, told.problem) == (4321, 80, True, "disk")
    assert told.queue_told_s == news["time"]
    silent = robot({"arm-1": news | {"time": time.time() - 60}})
    assert (silent.link, silent.link_ok) == ("the sender is silent", False)
    for broken in ([], {"arm-1": 7}, {"arm-2": news}):
        assert robot(broken).queue_bytes is None
    assert robot({"arm-1": news | {"backlog_bytes": "many"}}).queue_bytes is None


def test_nothing_is_ever_written(tmp_path: Path) -> None:
    write_run(tmp_path / "store", "arm-1", "run", make_ticks(0, 100)).close()
    (tmp_path / "models").mkdir()
    (tmp_path / "finetune").mkdir()
    (tmp_path / "finetune" / "metrics.jsonl").write_text('{"update": 1, "wall_ns": 1, "denoiser/loss": 2.0}\n')
    before = files_of(tmp_path)
    collector = Collector(Places(tmp_path / "store", tmp_path / "models", tmp_path / "finetune"))
    for _ in range(3):
        collector.collect()
    assert files_of(tmp_path) == before


def test_folders_that_are_not_there_are_said(tmp_path: Path) -> None:
    status = Collector(Places(tmp_path / "a", tmp_path / "b", tmp_path / "c")).collect()
    assert "No such file" in status.logs_problem
    assert status.models is not None
    assert "No such file" in status.models.problem
    assert status.learning is not None
    assert "no status.json" in status.learning.problem
    to_json(status.figures())


BROKEN = [
    b"",
    b"{",
    b"[]",
    b"null",
    b'{"state": NaN, "time": NaN, "robots": [1], "problems": 7, "wall_ns": Infinity}',
    b"[" * 100_000,
]
BROKEN += [b'{"transitions": {"robot": "many"}, "robots": {"a": {}}, "updates": 1e400, "error": ["x"], "candidate": true}']
BROKEN += [
    b"\xff\xfe",
    b'{"verdict": {"passed": "yes"}}',
    b'{"verdict": {"passed": true, "reasons": 5}, "policy_id": {}}',
    b" " * 3 * 1024**2,
]


@pytest.mark.parametrize("content", BROKEN, ids=[str(content[:20]) for content in BROKEN])
def test_a_broken_file_of_any_kind_breaks_nothing_else(content: bytes, tmp_path: Path) -> None:
    for name in ("store/status.json", "finetune/status.json", "finetune/metrics.jsonl", "models/policy.onnx"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(content)
    for name in ("versions/000001/verdict.json", "releases/000001.json"):
        (tmp_path / "models" / name).parent.mkdir(parents=True)
        (tmp_path / "models" / name).write_bytes(content)
    status = Collector(Places(tmp_path / "store", tmp_path / "models", tmp_path / "finetune")).collect()
    json.loads(to_json(status.figures()))
    json.loads(to_json(status.curves()))
    to_prometheus(status)
    assert status.models is not None
    assert "policy.onnx cannot be read" in status.models.problem
    assert len(status.models.versions) == len(status.models.releases) == 1


def test_status_and_curves_of_the_fine_tuning_service_are_told(tmp_path: Path) -> None:
    values = {"state": "judging", "updates": 300, "candidate": 2, "robots": {"arm-1": 50}, "wall_ns": 1_700_000_000_000_000_000}
    values |= {"transitions": {"robot": 60, "used": 50}, "error": "run x: torn"}
    (tmp_path / "status.json").write_text(json.dumps(values))
    metrics = tmp_path / "metrics.jsonl"
    metrics.write_text(
        '{"update": 1, "wall_ns": 5, "denoiser/loss": 0.5}\nnonsense\n{"update": 2, "denoiser/loss": NaN}\n{"update": 3,'
    )
    collector = Collector(Places(learning=tmp_path))
    status = collector.collect()
    assert status.learning is not None
    assert (status.learning.state, status.learning.updates, status.learning.told_s) == ("judging", 300, 1_700_000_000)
    assert (status.learning.transitions, status.learning.error) == ({"robot": 60, "used": 50}, "run x: torn")
    assert status.learning.problem == "1 lines of metrics.jsonl cannot be read"
    assert status.learning_curves == {"denoiser/loss": [(1, 0.5)]}
    with metrics.open("a") as file:
        file.write(' "denoiser/loss": 0.4, "return/simulation": 700.0}\n')
    assert collector.collect().learning_curves == {"denoiser/loss": [(1, 0.5), (3, 0.4)], "return/simulation": [(3, 700.0)]}
    metrics.write_text('{"update": 1, "denoiser/loss": 0.9}\n')  # the service began anew
    assert collector.collect().learning_curves == {"denoiser/loss": [(1, 0.9)]}


def test_a_curve_stays_small_keeps_its_shape_and_its_newest_point() -> None:
    curve = Curve()
    for update in range(100_001):
        curve.add(update, float(update**2))
    assert 250 < len(curve.points) < 700
    assert curve.points[0] == (0, 0.0)
    assert curve.points[-1] == (100_000, 1e10)
    assert all(value == update**2 for update, value in curve.points)


def test_versions_verdicts_and_signed_releases_are_told(tmp_path: Path) -> None:
    key, other = SigningKey.generate(), SigningKey.generate()
    store = SITE.make_model_store(tmp_path, key, (True, False, True), ["arm-1"])
    store.publish(1, "it trembled")
    models = Collector(Places(models=tmp_path), [key.public]).collect().models
    assert models is not None
    assert [(each.number, each.passed, each.is_current) for each in models.versions] == [
        (3, True, False),
        (2, False, False),
        (1, True, True),
    ]
    assert (models.passed, models.rejected, models.problem) == (2, 1, "")
    assert models.versions[1].reasons == ("FAILED: reason 1",)
    assert [each.number for each in models.releases] == [3, 2, 1]
    newest = models.releases[0]
    assert (newest.reason, newest.robots, newest.signature) == ("version 1: it trembled", ("arm-1",), "right")
    foreign = Collector(Places(models=tmp_path), [other.public]).collect().models
    assert foreign is not None
    assert all(each.signature.startswith("WRONG") for each in foreign.releases)
    unchecked = look(models=tmp_path).models
    assert unchecked is not None
    assert {each.signature for each in unchecked.releases} == {"not checked"}


def test_the_figures_for_prometheus_have_its_form_whatever_a_robot_is_called(tmp_path: Path) -> None:
    name = 'a"b\\c\nd'
    write_run(tmp_path, name, "run", make_ticks(0, 100)).close()
    lines = to_prometheus(look(logs=tmp_path)).decode().splitlines()
    assert r'dpg_robot_robot_stored_sequence{robot="a\"b\\c\nd"} 99' in lines
    assert r'dpg_robot_robot_loop_rate_hz{robot="a\"b\\c\nd"} 50.0' in lines
    assert all(line.startswith(("# HELP dpg_robot_", "# TYPE dpg_robot_", "dpg_robot_")) for line in lines)


def test_a_robots_name_that_is_no_text_is_shown_all_the_same(tmp_path: Path) -> None:
    write_run(tmp_path, os.fsdecode(b"arm-\xff"), "run", make_ticks(0, 10)).close()
    status = look(logs=tmp_path)
    assert json.loads(to_json(status.figures()))["robots"][0]["name"] == "arm-?"
