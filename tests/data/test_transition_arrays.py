import numpy as np
import pytest

from dpg_robot.data.transition import EpisodeEnd, LoopState, tick_dtype
from dpg_robot.data.transition_arrays import TransitionArrays, pair_records
from dpg_robot.errors import ContractError


@pytest.fixture
def episode(sample):
    """Five steps of an episode and its closing record."""
    records = sample.make_records(45, 6)
    assert records["episode_end"].tolist() == [0, 0, 0, 0, 0, EpisodeEnd.TIMEOUT]
    return records


def test_a_transition_takes_what_was_done_from_one_record_and_what_came_of_it_from_the_next(episode):
    transitions = list(pair_records("run", episode))
    assert [transition.step for transition in transitions] == [45, 46, 47, 48, 49]
    first = transitions[0]
    assert (first.run_id, first.sequence, first.episode, first.reward) == ("run", 45, 0, None)
    for name in ("measurement", "action", "intended_action", "command"):
        assert np.array_equal(getattr(first, name), episode[name][0]), name
    assert np.array_equal(first.next_measurement, episode["measurement"][1])
    assert (first.time_ns, first.next_time_ns) == tuple(episode["time_ns"][:2])
    assert first.wall_ns == episode["wall_ns"][0]
    assert first.policy_id == "fedcba9876543210"


@pytest.mark.parametrize(
    ("end", "terminal", "timeout"),
    [
        (EpisodeEnd.TIMEOUT, False, True),
        (EpisodeEnd.TERMINAL, True, False),
        (EpisodeEnd.ABORTED, False, True),
        (EpisodeEnd.NOT_ENDED, False, False),
    ],
)
def test_the_closing_record_says_how_the_last_transition_ends(episode, end, terminal, timeout):
    episode["episode_end"][-1] = end
    arrays = pair_records("run", episode)
    assert arrays.terminal.tolist() == [False] * 4 + [terminal]
    assert arrays.timeout.tolist() == [False] * 4 + [timeout]


def test_an_aborted_episode_closed_in_another_state_keeps_its_last_transition(episode):
    episode["episode_end"][-1] = EpisodeEnd.ABORTED
    episode["state"][-1] = LoopState.FAULT
    assert len(pair_records("run", episode)) == 5


@pytest.mark.parametrize("state", [LoopState.IDLE, LoopState.HOMING, LoopState.STOPPING, LoopState.FAULT])
def test_only_running_steps_make_transitions(episode, state):
    episode["state"][2] = state
    assert pair_records("run", episode).step.tolist() == [45, 46, 48, 49]


def test_no_transition_spans_two_episodes_or_lies_outside_one(sample):
    records = sample.make_records(49, 4)  # the last step, the closing record, two steps of the next episode
    assert pair_records("run", records).sequence.tolist() == [49, 51]
    records["episode"] = -1
    assert len(pair_records("run", records)) == 0


def test_no_transition_spans_missing_records(episode):
    assert pair_records("run", np.delete(episode, 2)).sequence.tolist() == [45, 48, 49]


def test_a_stale_channel_makes_both_transitions_of_its_record_invalid(episode):
    episode["valid"][2, 1] = False
    assert pair_records("run", episode).valid.tolist() == [True, False, False, True, True]


def test_a_skipped_period_makes_the_transition_invalid(episode):
    episode["period"][3:] += 1
    assert pair_records("run", episode).valid.tolist() == [True, True, False, True, True]


@pytest.mark.parametrize("count", [0, 1])
def test_fewer_than_two_records_make_no_transition(sample, count):
    assert len(pair_records("run", sample.make_records(0, count))) == 0


def test_parts_of_several_runs_are_joined(sample):
    parts = [pair_records(run_id, sample.make_records(0, count)) for run_id, count in (("a", 4), ("b", 3), ("a", 2))]
    joined = TransitionArrays.concatenate(parts)
    assert joined.run_ids == ("a", "b")
    assert [transition.run_id for transition in joined] == ["a", "a", "a", "b", "b", "a"]
    assert joined.sequence.tolist() == [0, 1, 2, 0, 1, 0]
    assert joined.measurement.shape == (6, 3)


def test_runs_of_different_robots_are_not_joined(sample):
    small = pair_records("a", sample.make_records(0, 3))
    with pytest.raises(ContractError, match="differ"):
        TransitionArrays.concatenate([small, pair_records("b", np.zeros(3, tick_dtype(5, 2)))])
