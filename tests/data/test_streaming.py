"""Streaming: each transition once, in an order that depends on the seed alone, in little memory."""

import numpy as np
import pytest

from dpg_robot.contract import CommandChannel, Contract, Feature, MeasurementChannel
from dpg_robot.data.datasets import Dataset, DatasetError, Episode
from dpg_robot.data.episode_source import FoundEpisode
from dpg_robot.data.streaming import TransitionStream


def make_contract(observed):
    return Contract(
        task="push",
        measurements=tuple(MeasurementChannel(f"x{index}", "m") for index in range(observed)),
        features=tuple(Feature("identity", f"x{index}") for index in range(observed)),
        commands=(CommandChannel("force", "N", -2.0, 2.0),),
        rate_hz=10.0,
    )


def make_episode(length, number, observed=2):
    values = (1000 * number + np.arange(length + 1)).astype(np.float32)
    last = np.arange(length) == length - 1
    return Episode(
        observations=np.repeat(values[:, None], observed, axis=1),
        actions=np.sin(values[:-1, None]),
        rewards=values[:-1],
        terminations=last & bool(number % 2),
        truncations=last & (not number % 2),
    )


class Source:
    """Episodes in memory; counts what is read."""

    name, settings = "push/test-v0", {}

    def __init__(self, lengths):
        self.contract = make_contract(2)
        self.episodes = [make_episode(length, number) for number, length in enumerate(lengths)]
        self.asked = []

    def __len__(self):
        return len(self.episodes)

    def read_part(self, index):
        self.asked.append(index)
        return [FoundEpisode(str(index), self.episodes[index])]


def all_rewards(stream, epoch=0):
    return np.concatenate([batch.reward for batch in stream.batches(epoch)])


@pytest.mark.parametrize(("batch_size", "pool_size"), [(1, 1), (7, 20), (64, 64), (10, 10_000)])
def test_each_transition_comes_once_and_as_the_data_set_has_it(batch_size, pool_size):
    source = Source([5, 40, 1, 17, 90, 3])
    batches = list(TransitionStream(source, batch_size, pool_size, history=2).batches())
    assert all(len(batch) <= batch_size for batch in batches)
    whole = Dataset(source.name, source.contract, tuple(source.episodes)).transitions(history=2)
    for name in ("observation", "action", "reward", "next_observation", "terminal"):
        streamed = np.concatenate([getattr(batch, name) for batch in batches])
        order = np.argsort(np.concatenate([batch.reward for batch in batches]))
        np.testing.assert_array_equal(streamed[order], getattr(whole, name), err_msg=name)
    assert sorted(source.asked) == list(range(6)), "nothing is read twice"
    episodes = {int(number) for batch in batches for number in batch.episode}
    assert episodes == set(range(6))


def test_the_order_depends_on_seed_and_epoch_alone():
    stream = TransitionStream(Source([30] * 8), 16, 60, seed=3)
    first = all_rewards(stream)
    np.testing.assert_array_equal(first, all_rewards(stream))
    np.testing.assert_array_equal(first, all_rewards(TransitionStream(Source([30] * 8), 16, 60, seed=3)))
    assert (first != all_rewards(stream, epoch=1)).any()
    assert (first != all_rewards(TransitionStream(Source([30] * 8), 16, 60, seed=4))).any()


def test_a_batch_mixes_many_episodes():
    batch = next(TransitionStream(Source([30] * 40), 32, 600).batches())
    assert len(np.unique(batch.episode)) > 8


def test_what_cannot_be_streamed_is_refused():
    with pytest.raises(DatasetError, match="has no episodes"):
        list(TransitionStream(Source([])).batches())
    with pytest.raises(ValueError, match="batch_size 10 and pool_size 5"):
        TransitionStream(Source([3]), 10, 5)
    source = Source([3])
    source.episodes[0].observations[1] = np.nan
    with pytest.raises(DatasetError, match="must be finite"):
        list(TransitionStream(source).batches())


OBSERVED, LENGTH, EPISODES = 64, 2_000, 60  # 31 MB of observations, and as much again of next observations


@pytest.mark.parametrize("kind", ["minari", "lerobot"])
def test_memory_does_not_grow_with_the_data_set(kind, tmp_path, start_python):
    episodes = tuple(make_episode(LENGTH, number, OBSERVED) for number in range(EPISODES))
    dataset = Dataset("push/test-v0", make_contract(OBSERVED), episodes)
    if kind == "minari":
        pytest.importorskip("minari")
        from dpg_robot.data.minari_format import write_dataset

        folder = write_dataset(dataset, tmp_path)
    else:
        pytest.importorskip("pyarrow")
        from dpg_robot.data.lerobot_format import write_lerobot

        folder = write_lerobot(dataset, tmp_path / "set")
    said, errors = start_python("stream_in_little_memory.py", folder).communicate(timeout=120)
    count, grown_mib = said.split() or pytest.fail(errors)
    assert int(count) == EPISODES * LENGTH
    whole_mib = EPISODES * LENGTH * 2 * OBSERVED * 4 / 2**20
    assert whole_mib > 55
    assert float(grown_mib) < 25
