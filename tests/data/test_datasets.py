"""Data sets: what is refused, what a policy with a memory sees, and that Minari and we read each other's files."""

import dataclasses
import json

import numpy as np
import pytest

from dpg_robot.contract import CommandChannel, Contract, Feature, MeasurementChannel
from dpg_robot.data.datasets import Dataset, DatasetError, Episode
from dpg_robot.data.minari_format import list_datasets, read_dataset, write_dataset
from dpg_robot.observation import HistoryStack

minari = pytest.importorskip("minari")
pytest.importorskip("h5py")

CONTRACT = Contract(
    task="push",
    measurements=(MeasurementChannel("x", "m"), MeasurementChannel("v", "m/s")),
    features=(Feature("identity", "x"), Feature("identity", "v")),
    commands=(CommandChannel("force", "N", -2.0, 2.0),),
    rate_hz=10.0,
)


def make_episode(length, seed=0, terminal=False):
    random = np.random.default_rng(seed)
    last = np.arange(length) == length - 1
    return Episode(
        observations=random.normal(size=(length + 1, 2)).astype(np.float32),
        actions=random.uniform(-1, 1, (length, 1)).astype(np.float32),
        rewards=random.normal(size=length).astype(np.float32),
        terminations=last & terminal,
        truncations=last & (not terminal),
    )


def make_dataset(*episodes, name="push/test-v0"):
    episodes = episodes or (make_episode(4, 0), make_episode(3, 1, terminal=True))
    return Dataset(name, CONTRACT, tuple(episodes), {"behaviour": "noise", "seed": 3})


def broken(**fields):
    return make_dataset(make_episode(2), dataclasses.replace(make_episode(4), **fields))


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({"observations": np.zeros((4, 2), np.float32)}, r"observations \(one more than actions\) must have shape \(5, 2\)"),
        ({"observations": np.zeros((5, 3), np.float32)}, r"must have shape \(5, 2\), got \(5, 3\)"),
        ({"observations": np.full((5, 2), np.nan, np.float32)}, "observations must be finite; 5 of 5 rows are not"),
        ({"actions": np.zeros((4, 2), np.float32)}, r"actions must have shape \(4, 1\), got \(4, 2\)"),
        ({"actions": np.full((4, 1), 1.5, np.float32)}, r"actions must be in \[-1, 1\], got 1.5"),
        ({"actions": np.zeros((0, 1), np.float32)}, "no transitions"),
        ({"rewards": np.array([0, 1, np.nan, 2], np.float32)}, "rewards must be finite; 1 of 4 rows are not, the first is row 2"),
        ({"rewards": np.zeros(3, np.float32)}, r"rewards must have shape \(4,\)"),
        ({"rewards": None}, "1 of 2 episodes have rewards"),
        ({"truncations": np.zeros(4, bool)}, "neither terminated nor truncated"),
        ({"terminations": np.zeros(0, bool)}, r"terminations must have shape \(4,\)"),
        ({"terminations": np.array([False, True, False, False])}, "ends at transition 1, but goes on to 3"),
    ],
)
def test_what_cannot_be_learned_from_is_refused_with_its_place(fields, expected):
    with pytest.raises(DatasetError, match=expected) as caught:
        broken(**fields)
    assert "push/test-v0" in str(caught.value)


def test_a_data_set_without_episodes_is_refused():
    with pytest.raises(DatasetError, match="has no episodes"):
        Dataset("push/test-v0", CONTRACT, ())


def test_transitions_hold_the_history_that_a_policy_would_have_seen():
    dataset = make_dataset()
    contract = dataclasses.replace(CONTRACT, history=2)
    transitions = dataset.transitions(history=2)
    before, after = [], []
    for episode in dataset.episodes:
        stack = HistoryStack(contract, 1)
        for step, action in enumerate(episode.actions):
            before.append(stack.observe(episode.observations[step][None])[0])
            stack.push(episode.observations[step][None], action[None])
            after.append(stack.observe(episode.observations[step + 1][None])[0])
    np.testing.assert_array_equal(transitions.observation, before)
    np.testing.assert_array_equal(transitions.next_observation, after)
    assert transitions.terminal.tolist() == [False] * 6 + [True], "a cut is no end"
    assert transitions.episode.tolist() == [0] * 4 + [1] * 3


def test_a_data_set_comes_back_exactly(tmp_path):
    dataset = make_dataset()
    read = read_dataset(write_dataset(dataset, tmp_path))
    assert (read.name, read.contract, read.settings) == (dataset.name, dataset.contract, dataset.settings)
    for ours, wanted in zip(read.episodes, dataset.episodes, strict=True):
        for field in dataclasses.fields(Episode):
            np.testing.assert_array_equal(getattr(ours, field.name), getattr(wanted, field.name))
    assert list_datasets(tmp_path) == ["push/test-v0"]


def test_rewards_that_are_not_known_stay_unknown(tmp_path):
    episodes = [dataclasses.replace(make_episode(3, seed), rewards=None) for seed in range(2)]
    dataset = read_dataset(write_dataset(make_dataset(*episodes), tmp_path))
    assert not dataset.has_rewards
    assert dataset.transitions().reward is None
    assert dataset.describe().endswith("no rewards")


def test_minari_itself_finds_and_reads_what_is_written(tmp_path, monkeypatch):
    dataset = make_dataset()
    write_dataset(dataset, tmp_path)
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path))
    assert list(minari.list_local_datasets()) == ["push/test-v0"]
    theirs = minari.load_dataset("push/test-v0")
    assert (theirs.total_episodes, theirs.total_steps) == (2, 7)
    np.testing.assert_array_equal(theirs[1].rewards, dataset.episodes[1].rewards)
    assert theirs.action_space.contains(theirs[0].actions[0])


def test_a_relative_folder_serves_too(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_dataset(make_dataset(), "sets")
    assert len(read_dataset("sets/push/test-v0")) == 7


def write_foreign(root, low, high, actions, name="other/set-v2"):
    """Write a data set as others do, with Minari alone."""
    from gymnasium.spaces import Box
    from minari.data_collector import EpisodeBuffer
    from minari.dataset.minari_storage import MinariStorage

    folder = root / name
    (folder / "data").mkdir(parents=True)
    count = len(actions)
    storage = MinariStorage.new(folder / "data", Box(-np.inf, np.inf, (3,), np.float64), Box(low, high, (1,), np.float32))
    storage.update_metadata({"dataset_id": name, "minari_version": minari.__version__})
    ends = [False] * (count - 1) + [True]
    storage.update_episodes(
        [EpisodeBuffer(None, None, None, np.zeros((count + 1, 3)), actions, [1.0] * count, [False] * count, ends, {})]
    )
    return folder


def test_a_data_set_of_others_gets_a_contract_from_its_spaces_and_scaled_actions(tmp_path):
    folder = write_foreign(tmp_path, -2.0, 6.0, np.array([[-2.0], [2.0], [6.0]], np.float32))
    dataset = read_dataset(folder, rate_hz=50.0)
    np.testing.assert_allclose(dataset.episodes[0].actions, [[-1.0], [0.0], [1.0]], atol=1e-6)
    contract = dataset.contract
    assert (contract.task, contract.num_features, contract.rate_hz) == ("other/set-v2", 3, 50.0)
    assert (contract.command_low[0], contract.command_high[0]) == (-2.0, 6.0)


def test_spaces_without_limits_are_refused(tmp_path):
    folder = write_foreign(tmp_path, -np.inf, np.inf, np.zeros((2, 1), np.float32))
    with pytest.raises(DatasetError, match="must have finite limits"):
        read_dataset(folder)


def test_a_missing_data_set_is_named_with_what_is_there(tmp_path):
    write_dataset(make_dataset(), tmp_path)
    with pytest.raises(DatasetError, match=r"Did you mean 'test-v0'\?"):
        read_dataset(tmp_path / "push" / "tst-v0")


def test_an_existing_data_set_is_not_overwritten_and_a_refused_one_leaves_nothing(tmp_path):
    write_dataset(make_dataset(), tmp_path)
    with pytest.raises(DatasetError, match="exists already"):
        write_dataset(make_dataset(make_episode(9)), tmp_path)
    assert len(read_dataset(tmp_path / "push/test-v0")) == 7
    with pytest.raises(DatasetError, match="must be such as"):
        write_dataset(make_dataset(name="../elsewhere"), tmp_path)
    assert [item.name for item in tmp_path.iterdir()] == ["push"]


def test_damage_is_a_clear_error(tmp_path):
    folder = write_dataset(make_dataset(), tmp_path)
    data = folder / "data" / "main_data.hdf5"
    content = data.read_bytes()
    data.write_bytes(content[: len(content) // 2])
    with pytest.raises(DatasetError, match="cannot be read as a Minari data set"):
        read_dataset(folder)
    data.write_bytes(content)
    metadata = folder / "data" / "metadata.json"
    changed = json.loads(metadata.read_text())
    changed["dpg_robot"]["contract"].pop("rate_hz")
    metadata.write_text(json.dumps(changed))
    with pytest.raises(DatasetError, match="contract in its metadata cannot be used"):
        read_dataset(folder)
