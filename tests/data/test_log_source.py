"""The robot log as a data set: the same transitions as the log's own reader gives, cut where they are not valid."""

import dataclasses

import numpy as np
import pytest

from dpg_robot.data.datasets import DatasetError
from dpg_robot.data.episode_source import iterate_episodes, read_all
from dpg_robot.data.log_source import LogSource
from dpg_robot.data.log_writer import LogWriter
from dpg_robot.data.robot_log import load_transitions, read_segments
from dpg_robot.data.streaming import TransitionStream
from dpg_robot.data.transition import EpisodeEnd, LoopState
from dpg_robot.errors import LogError


@pytest.fixture
def write(sample, tmp_path):
    """Write records as a run, in segments of about 20 records."""

    def write(records, run_id="run-a", contract=sample.CONTRACT, segment_bytes=8_000):
        with LogWriter(tmp_path / "log", run_id, contract, segment_bytes=segment_bytes) as writer:
            for part in np.array_split(records, max(1, len(records) // 10)):
                writer.append(part)
                writer.flush()
        return tmp_path / "log"

    return write


def reward(next_measurement, action):
    return next_measurement[:, 0] - action[:, 0] ** 2


def test_episodes_hold_the_transitions_of_the_log_across_segments(write, sample):
    log = write(sample.make_records(0, 160))
    assert len(list(log.glob("*/*.mcap"))) > 4, "the episodes span segments"
    dataset, notes = read_all(LogSource(log, reward), "two-joints/robot-v0")
    wanted = load_transitions(log)
    found = dataset.transitions()
    np.testing.assert_array_equal(found.observation, sample.CONTRACT.compute_features(wanted.measurement))
    np.testing.assert_array_equal(found.next_observation, sample.CONTRACT.compute_features(wanted.next_measurement))
    np.testing.assert_array_equal(found.action, wanted.action.astype(np.float32))
    np.testing.assert_array_equal(found.reward, reward(wanted.next_measurement, wanted.action).astype(np.float32))
    np.testing.assert_array_equal(found.terminal, wanted.terminal)
    assert [len(episode) for episode in dataset.episodes] == [50, 50, 50, 6]
    assert [bool(episode.terminations[-1]) for episode in dataset.episodes] == [False, True, False, False]
    assert list(notes.values()) == [1], "the last episode has no closing record"


def test_parts_can_be_read_in_any_order(write, sample):
    source = LogSource(write(sample.make_records(0, 160)))
    assert len(source) > 4
    forward = [found.label for index in range(len(source)) for found in source.read_part(index)]
    backward = [found.label for index in reversed(range(len(source))) for found in reversed(source.read_part(index))]
    assert forward == backward[::-1]
    assert len(forward) == 4


def test_a_part_is_no_more_than_a_segment_and_the_end_of_its_last_episode(write, sample):
    log = write(sample.make_records(0, 2_000))
    source = LogSource(log)
    largest_segment = max(len(records) for _, _, records in read_segments(log / "run-a"))
    parts = [sum(len(found.episode) for found in source.read_part(index)) for index in range(len(source))]
    assert sum(parts) == len(load_transitions(log))
    assert len(parts) > 50
    assert max(parts) <= largest_segment + sample.EPISODE_RECORDS


def test_streaming_gives_the_transitions_of_the_log_once(write, sample):
    log = write(sample.make_records(0, 300))
    batches = list(TransitionStream(LogSource(log, reward), batch_size=16, pool_size=100).batches())
    streamed = np.sort(np.concatenate([batch.action[:, 0] for batch in batches]))
    np.testing.assert_array_equal(streamed, np.sort(load_transitions(log).action[:, 0].astype(np.float32)))


def test_observations_have_no_history_and_rewards_count_for_all_reward_steps(write, sample):
    contract = dataclasses.replace(sample.CONTRACT, history=2, action_repeat=3)
    source = LogSource(write(sample.make_records(0, 51), contract=contract), reward)
    dataset, _ = read_all(source, "a/b-v0")
    assert (source.contract.history, source.run_contract.history) == (0, 2)
    assert dataset.episodes[0].observations.shape == (51, 3)
    steps = load_transitions(write(sample.make_records(0, 51), "run-b", contract))
    np.testing.assert_allclose(dataset.episodes[0].rewards, 3 * reward(steps.next_measurement, steps.action)[:50], atol=1e-6)


def test_an_episode_is_cut_where_a_measurement_is_stale_or_no_number_or_a_period_was_skipped(write, sample):
    records = sample.make_records(0, 51)
    records["valid"][10, 1] = False  # takes the transitions 9 and 10 away
    records["measurement"][20, 0] = np.nan  # 19 and 20
    records["period"][30:] += 1  # 29
    dataset, notes = read_all(LogSource(write(records)), "a/b-v0")
    assert [len(episode) for episode in dataset.episodes] == [9, 8, 8, 20]
    np.testing.assert_array_equal(dataset.episodes[1].actions, records["action"][11:19].astype(np.float32))
    assert list(notes.values()) == [3]


def test_only_running_steps_count(write, sample):
    records = sample.make_records(0, 102)
    records["state"][:51] = LoopState.SHADOW
    assert len(read_all(LogSource(write(records)), "a/b-v0")[0]) == 50
    records["state"] = LoopState.IDLE
    with pytest.raises(DatasetError, match="has no episodes"):
        read_all(LogSource(write(records, "run-b").parent / "log" / "run-b"), "a/b-v0")


def test_a_gap_is_refused_and_cuts_the_episode_when_it_is_skipped(write, sample):
    records = np.delete(sample.make_records(0, 51), 25)
    log = write(records)
    with pytest.raises(LogError, match="not contiguous"):
        LogSource(log)
    found = list(iterate_episodes(LogSource(log, on_damage="skip")))
    assert [len(each.episode) for each in found] == [24, 24]
    assert found[1].times_s is not None
    assert found[1].times_s[0] == records["time_ns"][25] / 1e9


def test_runs_of_different_contracts_are_refused(write, sample):
    write(sample.make_records(0, 60))
    log = write(sample.make_records(0, 60), "run-b", dataclasses.replace(sample.CONTRACT, rate_hz=50.0))
    with pytest.raises(DatasetError, match="run-a and run-b have different contracts"):
        LogSource(log)


def test_episodes_of_several_runs_stay_apart(write, sample):
    records = sample.make_records(0, 30)
    records["episode_end"] = EpisodeEnd.NOT_ENDED
    write(records)
    log = write(sample.make_records(0, 51), "run-b")
    dataset, _ = read_all(LogSource(log), "a/b-v0")
    assert [len(episode) for episode in dataset.episodes] == [29, 50]
