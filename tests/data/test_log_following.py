from __future__ import annotations

from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

from dpg_robot.data.log_following import FollowedEpisodes, LogFollower
from dpg_robot.data.log_writer import LogWriter
from dpg_robot.data.robot_log import load_transitions


def writer(folder: Path, sample: ModuleType, run: str = "run-a", **options: float) -> LogWriter:
    return LogWriter(folder, run, sample.CONTRACT, flush_interval_s=0.0, **options)


def sequences(found: list[FollowedEpisodes]) -> list[int]:
    return [int(sequence) for each in found for sequence in each.transitions.sequence]


def expected(sample: ModuleType, first_episode: int, end_episode: int) -> list[int]:
    """Sequence numbers of the transitions of some episodes: all of their records but the closing ones."""
    size = sample.EPISODE_RECORDS
    return [n for n in range(first_episode * size, end_episode * size) if n % size != size - 1]


def test_an_episode_comes_out_once_when_its_closing_record_is_there(tmp_path: Path, sample: ModuleType) -> None:
    log, follower = writer(tmp_path, sample), LogFollower(tmp_path)
    assert follower.poll() == []
    log.append(sample.make_records(0, 50))
    assert follower.poll() == []
    log.append(sample.make_records(50, 60))
    assert sequences(follower.poll()) == expected(sample, 0, 2)
    assert follower.poll() == []
    log.append(sample.make_records(110, 43))
    log.close()
    assert sequences(follower.poll()) == expected(sample, 2, 3)
    assert follower.faults == {}


@pytest.mark.parametrize("step", [1, 7, 50])
def test_whatever_the_steps_all_transitions_come_out_once_and_in_order_over_many_segments(
    tmp_path: Path, sample: ModuleType, step: int
) -> None:
    log, follower = writer(tmp_path, sample, segment_bytes=8_000), LogFollower(tmp_path)
    found = []
    count = 6 * sample.EPISODE_RECORDS
    for first in range(0, count, step):
        log.append(sample.make_records(first, min(step, count - first)))
        found += follower.poll()
    log.close()
    found += follower.poll()
    assert len(list((tmp_path / "run-a").glob("*.mcap"))) >= 5
    assert sequences(found) == expected(sample, 0, 6)
    whole = load_transitions(tmp_path)
    assert np.array_equal(np.concatenate([each.transitions.measurement for each in found]), whole.measurement)


def test_an_episode_that_was_never_closed_comes_out_when_the_robot_has_begun_another_run(
    tmp_path: Path, sample: ModuleType
) -> None:
    log, follower = writer(tmp_path, sample), LogFollower(tmp_path)
    log.append(sample.make_records(0, 30))
    log.close()
    assert follower.poll() == []
    writer(tmp_path, sample, "run-b").append(sample.make_records(0, 10))
    found = follower.poll()
    assert [each.run.name for each in found] == ["run-a"]
    assert sequences(found) == list(range(29))


def test_several_robots_are_told_apart_and_hidden_folders_left_alone(tmp_path: Path, sample: ModuleType) -> None:
    follower = LogFollower(tmp_path)
    for robot, run in (("left", "run-a"), ("right", "run-b"), (".aside", "run-c")):
        writer(tmp_path / robot, sample, run).append(sample.make_records(0, 51))
    found = {each.robot: each for each in follower.poll()}
    assert set(found) == {"left", "right"}
    assert found["left"].contract == sample.CONTRACT
    assert len(found["right"].transitions) == 50


def test_a_gap_ends_its_run_keeps_what_came_before_and_disturbs_no_other(tmp_path: Path, sample: ModuleType) -> None:
    broken = writer(tmp_path / "left", sample)
    broken.append(sample.make_records(0, 60))
    follower = LogFollower(tmp_path)
    assert sequences(follower.poll()) == expected(sample, 0, 1)
    broken.append(sample.make_records(80, 100))
    writer(tmp_path / "right", sample).append(sample.make_records(0, 51))
    found = follower.poll()
    assert [each.robot for each in found] == ["left", "right"]
    assert len(found[0].transitions) == 8  # of the episode that the gap broke off: records 51 to 59
    assert "sequences 60 to 79 are missing" in follower.faults["left/run-a"]
    broken.append(sample.make_records(180, 100))
    assert follower.poll() == []


def test_damage_in_a_segment_is_a_fault_in_words(tmp_path: Path, sample: ModuleType) -> None:
    log = writer(tmp_path, sample)
    log.append(sample.make_records(0, 204))
    log.close()
    path = tmp_path / "run-a" / "segment-000000.mcap"
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 0xFF
    path.write_bytes(content)
    follower = LogFollower(tmp_path)
    assert follower.poll() == []
    assert "segment-000000.mcap" in follower.faults["run-a"]


def test_a_follower_goes_on_where_another_one_was(tmp_path: Path, sample: ModuleType) -> None:
    log, first = writer(tmp_path, sample, segment_bytes=8_000), LogFollower(tmp_path)
    log.append(sample.make_records(0, 130))
    assert sequences(first.poll()) == expected(sample, 0, 2)
    state = first.state_dict()

    log.append(sample.make_records(130, 74))
    second = LogFollower(tmp_path)
    second.load_state_dict(state)
    assert sequences(second.poll()) == expected(sample, 2, 4)
    assert second.poll() == []
