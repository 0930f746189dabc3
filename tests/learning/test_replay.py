"""The replay buffer: what it keeps, what it samples, what it restores."""

import pytest
import torch

from dpg_robot.learning.replay import Batch, ReplayBuffer, ordered_replay


def batch(start, count, observation_size=2):
    values = torch.arange(start, start + count).float()
    return Batch(
        values[:, None].repeat(1, observation_size),
        values[:, None] / 100,
        values,
        values[:, None].repeat(1, observation_size) + 1,
        values % 2,
        torch.ones(count),
    )


def rewards(buffer):
    return sorted(buffer.all().reward.tolist())


@pytest.mark.parametrize("counts", [[3], [5], [3, 4], [5, 5, 2], [7], [2, 13], [1] * 12])
def test_the_last_transitions_are_kept_whole(counts):
    buffer, added = ReplayBuffer(5, 2, 1), 0
    for count in counts:
        buffer.add(batch(added, count))
        added += count
    assert buffer.added == added
    assert len(buffer) == min(added, 5)
    assert rewards(buffer) == [float(value) for value in range(max(0, added - 5), added)]
    kept = buffer.all()
    assert torch.equal(kept.observation[:, 1], kept.reward)
    assert torch.equal(kept.next_observation[:, 0], kept.reward + 1)
    torch.testing.assert_close(kept.action[:, 0] * 100, kept.reward)
    assert torch.equal(kept.terminal, kept.reward % 2)


def test_samples_are_whole_transitions_drawn_evenly():
    buffer = ReplayBuffer(10, 2, 1)
    buffer.add(batch(0, 4))
    sampled = buffer.sample(8000, torch.Generator().manual_seed(0))
    assert torch.equal(sampled.observation[:, 0], sampled.reward)
    counts = torch.bincount(sampled.reward.long(), minlength=4)
    assert len(counts) == 4
    assert (counts - 2000).abs().max() < 160  # 4 standard deviations


def test_the_same_generator_state_gives_the_same_sample():
    buffer = ReplayBuffer(10, 2, 1)
    buffer.add(batch(0, 10))
    samples = [buffer.sample(6, torch.Generator().manual_seed(7)).reward for _ in range(2)]
    assert torch.equal(*samples)


def test_an_empty_buffer_gives_no_sample():
    with pytest.raises(ValueError, match="empty replay buffer"):
        ReplayBuffer(10, 2, 1).sample(1, torch.Generator())
    with pytest.raises(ValueError, match="capacity must be 1 or more"):
        ReplayBuffer(0, 2, 1)


@pytest.mark.parametrize("count", [0, 3, 5, 8])
def test_a_restored_buffer_goes_on_as_the_original(count):
    buffer, restored = ReplayBuffer(5, 2, 1), ReplayBuffer(5, 2, 1)
    buffer.add(batch(0, count))
    restored.load_state_dict({name: value.clone() for name, value in buffer.state_dict().items()})
    for one in (buffer, restored):
        one.add(batch(count, 3))
    assert torch.equal(restored.all().reward, buffer.all().reward)
    assert restored.added == buffer.added == count + 3


def test_a_state_of_another_size_is_refused():
    buffer = ReplayBuffer(5, 2, 1)
    buffer.add(batch(0, 5))
    with pytest.raises(ValueError, match="does not fit a buffer of capacity 4"):
        ReplayBuffer(4, 2, 1).load_state_dict(buffer.state_dict())
    with pytest.raises(ValueError, match="replay observation has shape"):
        ReplayBuffer(5, 3, 1).load_state_dict(buffer.state_dict())


def test_a_refused_state_leaves_the_buffer_as_it_was():
    buffer, other = ReplayBuffer(5, 2, 1), ReplayBuffer(5, 3, 1)
    buffer.add(batch(0, 5))
    other.add(batch(0, 2, observation_size=3))
    with pytest.raises(ValueError, match="replay observation"):
        other.load_state_dict(buffer.state_dict())
    assert rewards(other) == [0.0, 1.0]


def test_batches_are_joined_and_picked_from_row_by_row():
    both = batch(0, 3).concatenate(batch(10, 2))
    assert both.reward.tolist() == [0, 1, 2, 10, 11]
    assert len(both) == 5
    picked = both.select(both.reward > 1)
    assert picked.observation[:, 0].tolist() == [2, 10, 11]
    assert both.select(torch.tensor([4, 0])).reward.tolist() == [11, 0]


def turns(buffer, first, count, terminal_at=(), cut_at=()):
    """Add steps ``first`` to ``first + count`` of two environments that take turns: observations 100 * environment + time."""
    for time in range(first, first + count):
        for_both = torch.tensor([[time], [100.0 + time]])
        jump = 50.0 if time in cut_at else 0.0  # the next episode begins elsewhere
        ends = torch.full((2,), float(time in terminal_at))
        rewards_ = torch.tensor([1.0, 10.0]) * time
        buffer.add(Batch(for_both, for_both / 1000, rewards_, for_both + 1 + jump, ends, torch.ones(2)))


def by_start(sampled):
    rows = zip(
        sampled.observation[:, 0].tolist(),
        sampled.reward.tolist(),
        sampled.next_observation[:, 0].tolist(),
        sampled.terminal.tolist(),
        sampled.steps.tolist(),
        strict=True,
    )
    return {start: rest for start, *rest in rows}


def test_several_steps_of_one_environment_make_one_transition_up_to_the_end_of_the_episode():
    buffer = ReplayBuffer(100, 1, 1, stride=2)
    turns(buffer, 0, 8, terminal_at=(3,), cut_at=(6,))
    sampled = by_start(buffer.sample(500, torch.Generator().manual_seed(0), n_steps=3, discount=0.5))
    assert len(sampled) == 16
    assert sampled[0] == [0 + 0.5 * 1 + 0.25 * 2, 3, 0, 3]
    assert sampled[101] == [10 + 0.5 * 20 + 0.25 * 30, 104, 1, 3], "the last of them is terminal"
    assert sampled[2] == [2 + 0.5 * 3, 4, 1, 2], "nothing after a terminal"
    assert sampled[3] == [3, 4, 1, 1]
    assert sampled[104] == [40 + 0.5 * 50 + 0.25 * 60, 157, 0, 3], "a time-out leaves a future"
    assert sampled[106] == [60, 157, 0, 1], "nothing of the next episode"
    assert sampled[7] == [7, 8, 0, 1], "the episode has not gone on yet"
    turns(buffer, 8, 1)
    assert by_start(buffer.sample(500, torch.Generator().manual_seed(0), 3, 0.5))[7] == [7 + 0.5 * 8, 9, 0, 2]


def test_one_step_is_what_was_added():
    buffer = ReplayBuffer(100, 1, 1, stride=2)
    turns(buffer, 0, 5)
    sampled = by_start(buffer.sample(300, torch.Generator().manual_seed(0), discount=0.5))
    assert sampled[102] == [20, 103, 0, 1]
    assert len(sampled) == 10


@pytest.mark.parametrize("capacity", [8, 9, 10, 11])
def test_steps_are_found_across_the_seam_of_the_ring_and_not_into_what_was_overwritten(capacity):
    buffer = ReplayBuffer(capacity, 1, 1, stride=2)
    turns(buffer, 0, 13)
    sampled = by_start(buffer.sample(2000, torch.Generator().manual_seed(0), n_steps=2))
    assert len(sampled) == capacity
    for start, (reward, end, _, steps) in sampled.items():
        time, scale = start % 100, 10 if start >= 100 else 1
        assert steps == (1 if time == 12 else 2)
        assert (reward, end) == (scale * (time if steps == 1 else 2 * time + 1), start + steps)


def test_the_newest_are_those_that_are_whole_and_each_comes_once():
    buffer, seen = ReplayBuffer(100, 1, 1, stride=2), {}
    for time in range(10):
        turns(buffer, time, 1, terminal_at=(4,))
        newest = buffer.newest(2, n_steps=3)
        for start, steps in zip(newest.observation[:, 0].tolist(), newest.steps.tolist(), strict=True):
            assert start not in seen
            seen[start] = steps
    expected = {time: 5 - time if time in (3, 4) else 3 for time in range(8)}
    assert seen == expected | {100 + time: steps for time, steps in expected.items()}
    assert len(buffer.newest(50)) == 20


def test_a_restored_buffer_knows_what_belongs_together():
    buffer, restored = ReplayBuffer(9, 1, 1, stride=2), ReplayBuffer(9, 1, 1)
    turns(buffer, 0, 11, cut_at=(8,))
    restored.load_state_dict({name: value.clone() for name, value in buffer.state_dict().items()})
    assert restored.stride == 2
    for each in (buffer, restored):
        turns(each, 11, 1)
    first, second = (each.sample(50, torch.Generator().manual_seed(0), 3, 0.9) for each in (buffer, restored))
    assert torch.equal(first.reward, second.reward)
    assert torch.equal(first.steps, second.steps)
    assert set(first.steps.tolist()) == {1, 2, 3}


def test_transitions_in_order_of_time_are_chained():
    sampled = by_start(ordered_replay(batch(0, 6)).sample(100, torch.Generator().manual_seed(0), n_steps=2))
    assert sampled[0.0] == [0 + 1, 2, 1, 2]
    assert sampled[1.0] == [1, 2, 1, 1]  # every second one is terminal
