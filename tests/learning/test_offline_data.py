"""Learning from a data set that is larger than memory: little is held, runs resume exactly, and all of it is learned from."""

import tracemalloc

import numpy as np
import pytest
import torch

from dpg_robot.contract import CommandChannel, Contract, Feature, MeasurementChannel
from dpg_robot.data.datasets import Episode
from dpg_robot.data.episode_source import FoundEpisode, read_all, read_if_small, survey
from dpg_robot.errors import CheckpointError, ConfigError
from dpg_robot.learning.offline import BehaviourConfig, OfflineLearner, to_batch
from dpg_robot.learning.offline_data import DataInMemory, StreamedData
from dpg_robot.learning.offline_trainer import OfflineTrainer, OfflineTrainerConfig
from dpg_robot.learning.settings import LearnerConfig

SMALL = LearnerConfig(hidden_sizes=(8,), batch_size=16, n_steps=1)
LIMIT = 60


class Source:
    """Episodes that are made when they are read."""

    name, settings = "reach/big-v0", {}

    def __init__(self, lengths, observed=2, seed=0):
        self.contract = Contract(
            task="reach",
            measurements=tuple(MeasurementChannel(f"x{index}", "m") for index in range(observed)),
            features=tuple(Feature("identity", f"x{index}") for index in range(observed)),
            commands=(CommandChannel("push", "N", -1.0, 1.0),),
            rate_hz=10.0,
        )
        self._lengths, self._observed, self._seed = lengths, observed, seed

    def __len__(self):
        return len(self._lengths)

    def read_part(self, index):
        random, length = np.random.default_rng([self._seed, index]), self._lengths[index]
        last = np.arange(length) == length - 1
        observations = 3.0 + 2.0 * random.standard_normal((length + 1, self._observed), dtype=np.float32)
        actions = np.tanh(random.standard_normal((length, 1), dtype=np.float32))
        return [FoundEpisode(str(index), Episode(observations, actions, observations[1:, 0].copy(), last, np.zeros_like(last)))]


LENGTHS = [20, 7, 1, 33, 12, 25, 20, 40, 15, 9, 28]  # 210 transitions


def make_learner(source, config=SMALL):
    return OfflineLearner(source.contract, config, BehaviourConfig(), seed=4)


def make_trainer(folder, source, updates=30):
    learner = make_learner(source)
    config = OfflineTrainerConfig(updates=updates, checkpoint_every=17)
    return OfflineTrainer(learner, config, StreamedData(learner, source, survey(source), LIMIT, seed=2), folder, seed=2)


def first_batches(data, count, updates=0):
    batches = data.batches(updates, torch.Generator().manual_seed(0))
    return [next(batches) for _ in range(count)]


def rows(batches):
    return sorted(tuple(row) for batch in batches for row in batch.observation.tolist())


def test_each_pass_gives_every_transition_once_in_whole_batches():
    source = Source(LENGTHS)
    learner = make_learner(source)
    data = StreamedData(learner, source, survey(source), LIMIT)
    everything = to_batch(read_all(source)[0].transitions(), source.contract)
    known = {tuple(row) for row in everything.observation.tolist()}
    batches = first_batches(data, 39)  # three passes of 13 batches, without the last two of 210 transitions
    assert [len(batch) for batch in batches] == [16] * 39
    for first in (0, 13, 26):
        met = rows(batches[first : first + 13])
        assert len(set(met)) == 208
        assert set(met) <= known
    assert rows(batches[:1]) != rows(batches[13:14]), "each pass has an order of its own"


def test_the_place_follows_from_the_number_of_updates():
    source = Source(LENGTHS)
    data = StreamedData(make_learner(source), source, survey(source), LIMIT)
    straight = first_batches(data, 35)
    for done in (0, 5, 13, 31):
        for ours, wanted in zip(first_batches(data, 3, done), straight[done:], strict=False):
            assert torch.equal(ours.observation, wanted.observation)
            assert torch.equal(ours.reward, wanted.reward)


def test_the_statistics_are_those_of_all_transitions():
    source = Source(LENGTHS)
    streaming, whole = make_learner(source), make_learner(source)
    StreamedData(streaming, source, survey(source), LIMIT).observe()
    DataInMemory(whole, to_batch(read_all(source)[0].transitions(), source.contract)).observe()
    for name, value in whole.state_dict().items():
        torch.testing.assert_close(streaming.state_dict()[name], value, rtol=1e-4, atol=1e-5, msg=name)
    assert float(streaming.policy.normalizer.count) == 210


def test_a_streamed_run_that_was_stopped_and_resumed_is_the_uninterrupted_one_bit_for_bit(tmp_path):
    straight = make_trainer(tmp_path / "straight", Source(LENGTHS)).run(show_progress=False)
    stopped = make_trainer(tmp_path / "stopped", Source(LENGTHS))
    update = stopped.learner.update

    def failing(batch, **options):
        if int(stopped.learner.updates) == 20:
            raise InterruptedError
        return update(batch, **options)

    stopped.learner.update = failing
    with pytest.raises(InterruptedError):
        stopped.run(show_progress=False)
    resumed = make_trainer(tmp_path / "stopped", Source(LENGTHS))
    assert resumed.resume()
    assert resumed.updates == 17, "in the second pass"
    again = resumed.run(show_progress=False)
    for item in straight.iterdir():
        assert item.read_bytes() == (again / item.name).read_bytes(), item.name


def test_a_streamed_run_is_not_resumed_with_other_data(tmp_path):
    make_trainer(tmp_path, Source(LENGTHS), updates=2).run(show_progress=False)
    with pytest.raises(CheckpointError, match="trained on other data"):
        make_trainer(tmp_path, Source(LENGTHS, seed=1)).resume()


def test_what_is_held_does_not_grow_with_the_data_set(tmp_path):
    def most_held_bytes(episodes):
        source = Source([50] * episodes, observed=100)
        learner = make_learner(source)
        found = survey(source)
        config = OfflineTrainerConfig(updates=found.transitions // 16 + 5, checkpoint_every=10_000)  # into the second pass
        learner.update = lambda batch: {"reward": batch.reward.mean()}  # what it learns is not the question here
        tracemalloc.start()
        try:
            data = StreamedData(learner, source, found, memory_limit=200)
            OfflineTrainer(learner, config, data, tmp_path / str(episodes)).run(show_progress=False)
            return tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()

    few, many = most_held_bytes(20), most_held_bytes(200)
    whole = 200 * 50 * 2 * 100 * 4
    assert many < few + 100_000
    assert many < whole / 4


def test_a_data_set_is_read_into_memory_where_it_fits():
    source = Source(LENGTHS)
    assert read_if_small(source, 209) is None
    dataset = read_if_small(source, 210)
    assert dataset is not None
    assert len(dataset) == survey(source).transitions == 210


@pytest.mark.parametrize(
    ("settings", "limit", "expected"),
    [
        ({"n_steps": 3}, 60, "choose learner.n_steps=1, not 3, or a higher memory_limit"),
        ({}, 15, "between learner.batch_size=16 and the 210 transitions"),
        ({}, 210, "between learner.batch_size=16 and the 210 transitions"),
    ],
)
def test_what_cannot_be_streamed_is_refused(settings, limit, expected):
    source = Source(LENGTHS)
    learner = make_learner(source, LearnerConfig(**(vars(SMALL) | settings)))
    with pytest.raises(ConfigError, match=expected):
        StreamedData(learner, source, survey(source), limit)
