from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from dpg_robot.contract import Contract
from dpg_robot.errors import ContractError, LogError
from dpg_robot.host.intake import take_in
from dpg_robot.observation import HistoryStack
from sim.tasks import make_task

REWARD = make_task("cartpole-swingup").measured_reward


def test_every_logged_transition_is_received_and_used(make_records: Callable, write_log: Callable, contract: Contract) -> None:
    logged = take_in(write_log(make_records(episodes=3, steps=20)), contract, REWARD)
    assert (logged.received, logged.used, logged.excluded) == (60, 60, 0)
    assert np.bincount(logged.episode).tolist() == [20, 20, 20]


def test_runs_are_taken_in_together_and_their_episodes_numbered_on(
    make_records: Callable, write_log: Callable, contract: Contract
) -> None:
    write_log(make_records(episodes=2, seed=1), "run-a")
    logged = take_in(write_log(make_records(episodes=2, seed=2), "run-b"), contract, REWARD)
    assert np.unique(logged.episode).tolist() == [0, 1, 2, 3]


def test_observations_are_those_that_the_policy_saw(make_records: Callable, write_log: Callable, contract: Contract) -> None:
    records = make_records(episodes=2, steps=6)
    logged = take_in(write_log(records), contract, REWARD)
    expected = []
    for episode in range(2):
        history = HistoryStack(contract, 1)
        for record in records[(records["episode"] == episode) & (records["episode_end"] == 0)]:
            features = contract.compute_features(record["measurement"][None])
            expected.append(history.observe(features)[0])
            history.push(features, record["action"][None])
    np.testing.assert_array_equal(logged.batch.observation.numpy(), np.array(expected))
    inside = np.flatnonzero(np.diff(logged.episode) == 0)
    np.testing.assert_array_equal(logged.batch.next_observation.numpy()[inside], np.array(expected)[inside + 1])


def test_rewards_are_those_of_the_task_at_the_next_measurement(
    make_records: Callable, write_log: Callable, contract: Contract
) -> None:
    records = make_records(episodes=1, steps=10)
    logged = take_in(write_log(records), contract, REWARD)
    np.testing.assert_allclose(logged.batch.reward.numpy(), REWARD(records["measurement"][1:], records["action"][:-1]), rtol=1e-5)


def test_stale_measurements_and_skipped_periods_are_excluded_and_counted(
    make_records: Callable, write_log: Callable, contract: Contract
) -> None:
    records = make_records(episodes=2, steps=20)
    records["valid"][5, 2] = False  # spoils the transitions into and out of record 5
    records["period"][30:] += 3  # spoils the one from record 29
    logged = take_in(write_log(records), contract, REWARD)
    assert (logged.received, logged.used, logged.excluded) == (40, 37, 3)


def test_a_log_with_a_gap_is_refused_with_the_missing_sequences(
    make_records: Callable, write_log: Callable, contract: Contract
) -> None:
    records = make_records()
    with pytest.raises(LogError, match="sequences 10 to 12 are missing"):
        take_in(write_log(np.delete(records, [10, 11, 12])), contract, REWARD)


def test_a_log_with_a_broken_segment_is_refused(make_records: Callable, write_log: Callable, contract: Contract) -> None:
    log = write_log(make_records())
    (segment,) = (log / "run-a").glob("*.mcap")
    content = bytearray(segment.read_bytes())
    content[len(content) // 2] ^= 0xFF
    segment.write_bytes(content)
    with pytest.raises(LogError, match=segment.name):
        take_in(log, contract, REWARD)


def test_a_log_of_another_robot_is_refused(make_records: Callable, write_log: Callable, contract: Contract) -> None:
    other = dataclasses.replace(contract, rate_hz=100.0)
    with pytest.raises(ContractError, match=r"rate_hz: the learner has 50\.0, the log .* has 100\.0"):
        take_in(write_log(make_records(), contract=other), contract, REWARD)


def test_a_folder_without_a_log_is_refused(tmp_path: Path, contract: Contract) -> None:
    with pytest.raises(LogError, match="holds no robot log"):
        take_in(tmp_path, contract, REWARD)


def test_held_out_episodes_are_whole_and_disjoint_from_training(
    make_records: Callable, write_log: Callable, contract: Contract
) -> None:
    logged = take_in(write_log(make_records(episodes=7, steps=5)), contract, REWARD)
    training, held_out = logged.split(held_out_every=3)
    assert (len(training), len(held_out)) == (25, 10)
    assert not set(map(tuple, training.observation.tolist())) & set(map(tuple, held_out.observation.tolist()))


def test_too_few_episodes_to_keep_one_out_is_an_error(make_records: Callable, write_log: Callable, contract: Contract) -> None:
    logged = take_in(write_log(make_records(episodes=2)), contract, REWARD)
    with pytest.raises(LogError, match=r"has 2 episode.*needs at least 3"):
        logged.split(held_out_every=3)
