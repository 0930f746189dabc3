"""The replay buffer: what it keeps, what it samples, what it restores."""

import pytest
import torch

from dpg_robot.learning.replay import Batch, ReplayBuffer


def batch(start, count, observation_size=2):
    values = torch.arange(start, start + count).float()
    return Batch(
        values[:, None].repeat(1, observation_size),
        values[:, None] / 100,
        values,
        values[:, None].repeat(1, observation_size) + 1,
        values % 2,
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
