"""LeRobot data sets: what is written reads back bit by bit, has the published layout, and foreign or damaged ones are handled."""

import dataclasses
import itertools
import json
import tempfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dpg_robot.contract import CommandChannel, Contract, Feature, MeasurementChannel
from dpg_robot.data.datasets import Dataset, DatasetError, Episode, first_difference
from dpg_robot.data.episode_source import read_all
from dpg_robot.data.lerobot_format import write_lerobot
from dpg_robot.data.lerobot_source import LeRobotSource
from dpg_robot.data.mapping import ActionColumn, DatasetMapping, ObservationColumn
from dpg_robot.errors import DpgError, UnknownNameError

arrow = pytest.importorskip("pyarrow")
parquet = pytest.importorskip("pyarrow.parquet")

MAPPING = DatasetMapping(
    task="pick",
    observations=(ObservationColumn("observation.state", unit="rad"),),
    actions=(ActionColumn("action", low=-90.0, high=90.0),),
    reward="next.reward",
    terminal="next.done",
)


def make_dataset(lengths=(4, 3), observed=2, acted=1, rewards=True, ends=("cut", "terminal"), seed=0, rate_hz=10.0):
    random = np.random.default_rng(seed)
    contract = Contract(
        task="push",
        measurements=tuple(MeasurementChannel(f"x{index}", "m") for index in range(observed)),
        features=tuple(Feature("identity", f"x{index}") for index in range(observed)),
        commands=tuple(CommandChannel(f"force{index}", "N", -2.0, 2.0) for index in range(acted)),
        rate_hz=rate_hz,
    )
    episodes = []
    for number, length in enumerate(lengths):
        last, end = np.arange(length) == length - 1, ends[number % len(ends)]
        episodes.append(
            Episode(
                observations=random.normal(size=(length + 1, observed)).astype(np.float32),
                actions=random.uniform(-1, 1, (length, acted)).astype(np.float32),
                rewards=random.normal(size=length).astype(np.float32) if rewards else None,
                terminations=last & (end != "cut"),
                truncations=last & (end != "terminal"),
            )
        )
    return Dataset("push/test-v0", contract, tuple(episodes), {"behaviour": "noise", "seed": 3})


def read(folder, mapping=None):
    return read_all(LeRobotSource(folder, mapping))[0]


@given(
    lengths=st.lists(st.integers(1, 6), min_size=1, max_size=4),
    observed=st.integers(1, 3),
    acted=st.integers(1, 3),
    rewards=st.booleans(),
    ends=st.lists(st.sampled_from(["cut", "terminal", "both"]), min_size=1, max_size=3),
    file_megabytes=st.sampled_from([1e-4, 100.0]),
)
@settings(max_examples=15, deadline=None)
def test_a_data_set_comes_back_bit_by_bit(lengths, observed, acted, rewards, ends, file_megabytes):
    dataset = make_dataset(lengths, observed, acted, rewards, ends)
    with tempfile.TemporaryDirectory() as folder:
        back = read(write_lerobot(dataset, Path(folder) / "set", file_megabytes=file_megabytes))
    assert first_difference(dataset, back) == ""
    assert (back.name, back.contract, back.settings) == (dataset.name, dataset.contract, dataset.settings)


def test_minari_to_lerobot_to_minari_changes_no_bit(tmp_path):
    pytest.importorskip("minari")
    pytest.importorskip("h5py")
    from dpg_robot.data.minari_format import read_dataset, write_dataset

    first = read_dataset(write_dataset(make_dataset(ends=("cut", "terminal", "both"), lengths=(4, 3, 2)), tmp_path / "a"))
    second = read(write_lerobot(first, tmp_path / "lerobot"))
    third = read_dataset(write_dataset(second, tmp_path / "b"))
    assert first_difference(first, third) == ""
    assert (third.name, third.contract, third.settings) == (first.name, first.contract, first.settings)


def test_the_layout_is_that_of_version_3(tmp_path):
    dataset = make_dataset()
    folder = write_lerobot(dataset, tmp_path / "set")
    info = json.loads((folder / "meta/info.json").read_text())
    assert (info["codebase_version"], info["fps"], info["total_episodes"], info["total_frames"]) == ("v3.0", 10, 2, 7)
    assert info["features"]["observation.state"] == {"dtype": "float32", "shape": [2], "names": ["x0", "x1"]}
    table = parquet.read_table(folder / "data/chunk-000/file-000.parquet")
    assert set(table.column_names) == set(info["features"])
    assert table.schema.field("observation.state").type == arrow.list_(arrow.float32(), 2)
    assert table.schema.field("action").type == arrow.float32(), "LeRobot keeps vectors of one element as plain numbers"
    assert table["next.done"].to_pylist() == [False, False, False, True, False, False, True]
    assert table["next.truncated"].to_pylist() == [False, False, False, True, False, False, False]
    assert table["frame_index"].to_pylist() == [0, 1, 2, 3, 0, 1, 2]
    assert table["index"].to_pylist() == list(range(7))
    np.testing.assert_allclose(table["timestamp"].to_numpy(), [0, 0.1, 0.2, 0.3, 0, 0.1, 0.2], atol=1e-6)
    episodes = parquet.read_table(folder / "meta/episodes/chunk-000/file-000.parquet").to_pydict()
    assert (episodes["dataset_from_index"], episodes["dataset_to_index"], episodes["length"]) == ([0, 4], [4, 7], [4, 3])
    statistics = json.loads((folder / "meta/stats.json").read_text())
    np.testing.assert_allclose(statistics["action"]["mean"][0], np.mean(table["action"].to_numpy()), atol=1e-6)
    assert statistics["observation.state"]["count"] == [7]


def test_lerobots_own_loader_opens_it(tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("HF_HOME", str(tmp_path / "cache"))
    lerobot_dataset = pytest.importorskip("lerobot.datasets.lerobot_dataset", reason="LeRobot is not installed")
    dataset = make_dataset()
    theirs = lerobot_dataset.LeRobotDataset("ours/test", root=write_lerobot(dataset, tmp_path / "set"))
    assert (len(theirs), theirs.num_episodes, theirs[0]["task"]) == (7, 2, "push")
    np.testing.assert_array_equal(theirs[5]["observation.state"], dataset.episodes[1].observations[1])


def test_files_are_begun_anew_when_they_grow_large(tmp_path):
    dataset = make_dataset(lengths=(50,) * 6)
    folder = write_lerobot(dataset, tmp_path / "set", file_megabytes=0.006)
    files = sorted(path.name for path in folder.glob("data/chunk-000/*"))
    assert files == [f"file-{index:03d}.parquet" for index in range(len(files))]
    assert 1 < len(files) < 6
    assert first_difference(dataset, read(folder)) == ""


def test_a_rate_that_is_no_integer_stays_what_it_is(tmp_path):
    assert read(write_lerobot(make_dataset(rate_hz=33.3), tmp_path / "set")).contract.rate_hz == 33.3


def test_what_exists_is_not_overwritten_and_what_fails_leaves_nothing(tmp_path):
    write_lerobot(make_dataset(), tmp_path / "set")
    with pytest.raises(DatasetError, match="exists already"):
        write_lerobot(make_dataset(lengths=(9,)), tmp_path / "set")
    assert len(read(tmp_path / "set")) == 7
    broken = dataclasses.replace(make_dataset(), settings={"not JSON": object()})
    with pytest.raises(TypeError):
        write_lerobot(broken, tmp_path / "other")
    assert [each.name for each in tmp_path.iterdir()] == ["set"]


def write_foreign(folder, version="v3.0", lengths=(5, 4), columns=None, row_group_size=1000):
    """Write a data set as others do: no file of ours, all episodes in one row group, actions in degrees."""
    random = np.random.default_rng(1)
    count = sum(lengths)
    episode = np.repeat(np.arange(len(lengths)), lengths)
    step = np.concatenate([np.arange(length) for length in lengths]) if lengths else np.zeros(0, int)
    table = {
        "observation.state": [row.tolist() for row in random.normal(size=(count, 3)).astype(np.float32)],
        "action": [row.tolist() for row in random.uniform(-90, 90, (count, 2)).astype(np.float32)],
        "next.reward": random.normal(size=count).astype(np.float32),
        "next.done": step == np.repeat(lengths, lengths) - 1,
        "timestamp": (step / 30).astype(np.float32),
        "frame_index": step,
        "episode_index": episode,
        **(columns or {}),
    }
    features = {name: {"dtype": "float32", "shape": [1], "names": None} for name in table}
    info = {"codebase_version": version, "fps": 30, "features": features, "total_episodes": len(lengths)}
    (folder / "meta").mkdir(parents=True)
    (folder / "meta/info.json").write_text(json.dumps(info))
    starts = np.concatenate([[0], np.cumsum(lengths)]).astype(int).tolist()
    if version == "v3.0":
        (folder / "data/chunk-000").mkdir(parents=True)
        (folder / "meta/episodes/chunk-000").mkdir(parents=True)
        parquet.write_table(arrow.table(table), folder / "data/chunk-000/file-000.parquet", row_group_size=row_group_size)
        number = arrow.int64()
        index = {
            "episode_index": arrow.array(range(len(lengths)), number),
            "length": arrow.array(lengths, number),
            "dataset_from_index": arrow.array(starts[:-1], number),
            "data/chunk_index": arrow.array([0] * len(lengths), number),
            "data/file_index": arrow.array([0] * len(lengths), number),
        }
        parquet.write_table(arrow.table(index), folder / "meta/episodes/chunk-000/file-000.parquet")
        return table
    rows = [{"episode_index": index, "tasks": ["pick"], "length": length} for index, length in enumerate(lengths)]
    (folder / "meta/episodes.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "data/chunk-000").mkdir(parents=True)
    for index, (first, end) in enumerate(itertools.pairwise(starts)):
        path = folder / f"data/chunk-000/episode_{index:06d}.parquet"
        parquet.write_table(arrow.table({name: values[first:end] for name, values in table.items()}), path)
    return table


@pytest.mark.parametrize(("version", "row_group_size"), [("v3.0", 1000), ("v3.0", 2), ("v2.1", 1000), ("v2.0", 1000)])
def test_a_data_set_of_others_is_read_through_a_mapping(tmp_path, version, row_group_size):
    table = write_foreign(tmp_path / "set", version, row_group_size=row_group_size)
    dataset = read(tmp_path / "set", MAPPING)
    assert [len(episode) for episode in dataset.episodes] == [4, 3], "the last action of each has no observation after it"
    assert (dataset.contract.rate_hz, dataset.contract.task) == (30.0, "pick")
    second = dataset.episodes[1]
    np.testing.assert_array_equal(second.observations, np.array(table["observation.state"], np.float32)[5:9])
    np.testing.assert_allclose(second.actions, np.array(table["action"], np.float32)[5:8] / 90, atol=1e-6)
    np.testing.assert_array_equal(second.rewards, table["next.reward"][5:8])
    assert not second.terminations.any()
    assert second.truncations.tolist() == [False, False, True]


def test_repeating_the_last_observation_keeps_the_terminal_and_its_reward(tmp_path):
    table = write_foreign(tmp_path / "set")
    source = LeRobotSource(tmp_path / "set", dataclasses.replace(MAPPING, final_observation="repeat"))
    dataset, notes = read_all(source)
    first = dataset.episodes[0]
    assert first.terminations.tolist() == [False] * 4 + [True]
    assert first.rewards[-1] == table["next.reward"][4]
    np.testing.assert_array_equal(first.observations[-1], first.observations[-2])
    assert notes == {"last observation repeated: the file has none after the last action": 2}


def test_without_rewards_and_ends_episodes_count_as_cut(tmp_path):
    write_foreign(tmp_path / "set")
    dataset = read(tmp_path / "set", dataclasses.replace(MAPPING, reward=None, terminal=None))
    assert not dataset.has_rewards
    assert all(episode.truncations[-1] and not episode.terminations.any() for episode in dataset.episodes)


def test_a_mapping_that_names_a_missing_column_is_told_what_is_meant(tmp_path):
    write_foreign(tmp_path / "set")
    mapping = dataclasses.replace(MAPPING, reward="next.rewrd")
    with pytest.raises(UnknownNameError, match=r"unknown column .* 'next.rewrd'; .* Did you mean 'next.reward'\?"):
        LeRobotSource(tmp_path / "set", mapping)


def test_a_data_set_of_others_without_a_mapping_is_refused_with_its_columns(tmp_path):
    write_foreign(tmp_path / "set")
    with pytest.raises(DatasetError, match=r"give a mapping. It has: observation.state"):
        LeRobotSource(tmp_path / "set")


def nan_in_second(count=9):
    values = np.zeros((count, 3), np.float32)
    values[6, 1] = np.nan
    return [row.tolist() for row in values]


@pytest.mark.parametrize(
    ("columns", "expected"),
    [
        ({"observation.state": nan_in_second()}, "observations must be finite; 1 of 4 rows are not, the first is row 1"),
        ({"action": [[200.0, 0.0]] * 9}, r"actions must be in \[-1, 1\], got 2.2"),
        ({"action": [[0.0]] * 4 + [[0.0, 0.0]] * 5}, "must hold vectors of one length"),
        ({"action": [None] + [[0.0, 0.0]] * 8}, "rows without a value"),
        ({"next.reward": [None] + [0.0] * 8}, "1 missing values"),
        ({"observation.state": [b"\x80\x04cos\nsystem\n."] * 9}, "holds binary, which are no numbers; it is not read"),
        ({"observation.state": ["text"] * 9}, "holds string, which are no numbers"),
        ({"episode_index": np.zeros(9, int)}, "rows of other episodes are in its place"),
    ],
)
def test_what_cannot_be_used_is_refused(tmp_path, columns, expected):
    write_foreign(tmp_path / "set", columns=columns)
    with pytest.raises(DatasetError, match=expected):
        read(tmp_path / "set", MAPPING)


def test_an_empty_data_set_is_refused(tmp_path):
    write_foreign(tmp_path / "set", lengths=())
    with pytest.raises(DatasetError, match="has no episodes"):
        LeRobotSource(tmp_path / "set", MAPPING)


def test_damage_is_a_clear_error(tmp_path):
    folder = write_lerobot(make_dataset(), tmp_path / "set")
    data = folder / "data/chunk-000/file-000.parquet"
    content = data.read_bytes()
    data.write_bytes(content[: len(content) // 2])
    with pytest.raises(DatasetError, match="cannot be read as parquet"):
        read(folder)
    data.write_bytes(content)
    parquet.write_table(parquet.read_table(data).slice(0, 5), data)
    with pytest.raises(DatasetError, match="has 5 rows"):
        read(folder)
    data.unlink()
    with pytest.raises(DatasetError, match="cannot be read as parquet"):
        read(folder)
    (folder / "meta/info.json").write_text("{")
    with pytest.raises(DatasetError, match=r"info.json cannot be read"):
        read(folder)


@given(table=st.sampled_from(["data", "meta/episodes"]), place=st.floats(0, 1, exclude_max=True), bit=st.integers(0, 7))
@settings(max_examples=40, deadline=None)
def test_a_flipped_bit_is_noticed_or_changes_nothing(whole_set, table, place, bit):
    dataset, folder = whole_set
    path = folder / table / "chunk-000/file-000.parquet"
    whole = path.read_bytes()
    damaged = bytearray(whole)
    damaged[int(place * len(whole))] ^= 1 << bit
    path.write_bytes(damaged)
    try:
        assert first_difference(dataset, read(folder)) == ""
    except DpgError:
        pass
    finally:
        path.write_bytes(whole)


@pytest.fixture(scope="module")
def whole_set(tmp_path_factory):
    dataset = make_dataset(lengths=(40, 30))
    return dataset, write_lerobot(dataset, tmp_path_factory.mktemp("whole") / "set")


def test_other_versions_are_refused(tmp_path):
    write_foreign(tmp_path / "set", version="v1.6")
    with pytest.raises(DatasetError, match=r"version 'v1.6'; versions that can be read: v3.0, v2.1"):
        LeRobotSource(tmp_path / "set", MAPPING)


def test_after_lerobots_tools_dropped_our_columns_a_mapping_is_asked_for(tmp_path):
    folder = write_lerobot(make_dataset(), tmp_path / "set")
    path = folder / "meta/episodes/chunk-000/file-000.parquet"
    parquet.write_table(parquet.read_table(path).drop_columns(["dpg_robot.final_observation"]), path)
    with pytest.raises(DatasetError, match=r"lacks 'dpg_robot.final_observation'"):
        LeRobotSource(folder)
