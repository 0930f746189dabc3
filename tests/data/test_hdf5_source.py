"""D4RL and robomimic HDF5 files: what is taken from them, and that nothing but plain numbers of the file itself is."""

import json

import numpy as np
import pytest

from dpg_robot.data.datasets import DatasetError
from dpg_robot.data.episode_source import read_all
from dpg_robot.data.hdf5_source import Hdf5Source
from dpg_robot.data.mapping import ActionColumn, DatasetMapping, ObservationColumn
from dpg_robot.errors import UnknownNameError

h5py = pytest.importorskip("h5py")

ROBOMIMIC = DatasetMapping(
    task="lift",
    observations=(ObservationColumn("obs/eef_pos", unit="m"), ObservationColumn("obs/gripper", elements=(0, 1))),
    actions=(ActionColumn("actions"),),
    reward="rewards",
    terminal="dones",
)


def write_d4rl(path, count=10, **changes):
    random = np.random.default_rng(0)
    columns = {
        "observations": random.normal(size=(count, 3)).astype(np.float32),
        "actions": random.uniform(-1, 1, (count, 2)).astype(np.float32),
        "rewards": random.normal(size=count).astype(np.float32),
        "terminals": np.arange(count) == 3,
        "timeouts": np.arange(count) == 7,
    } | changes
    with h5py.File(path, "w") as file:
        for name, values in columns.items():
            if values is not None:
                file[name] = values
        file["infos/qpos"] = random.normal(size=(count, 2))
    return columns


def write_robomimic(path, lengths=(4, 3), next_obs=True, rate=25):
    random = np.random.default_rng(0)
    with h5py.File(path, "w") as file:
        data = file.create_group("data")
        if rate:
            data.attrs["env_args"] = json.dumps({"env_kwargs": {"control_freq": rate}})
        for number, length in enumerate(lengths):
            states = random.normal(size=(length + 1, 3))
            demo = data.create_group(f"demo_{2 * number + 8}")  # demo_8, demo_10: order by number
            demo["obs/eef_pos"], demo["obs/gripper"] = states[:-1], np.full((length, 2), number)
            if next_obs:
                demo["next_obs/eef_pos"], demo["next_obs/gripper"] = states[1:], np.full((length, 2), number)
            demo["actions"] = random.uniform(-1, 1, (length, 2))
            demo["rewards"] = np.arange(length, dtype=float)
            demo["dones"] = (np.arange(length) == length - 1).astype(int)


def test_d4rls_long_table_is_split_where_episodes_end(tmp_path):
    columns = write_d4rl(tmp_path / "hopper.hdf5")
    dataset, notes = read_all(Hdf5Source(tmp_path / "hopper.hdf5", rate_hz=125.0))
    assert [len(episode) for episode in dataset.episodes] == [3, 3, 1]
    np.testing.assert_array_equal(dataset.episodes[1].observations, columns["observations"][4:8])
    np.testing.assert_allclose(dataset.episodes[1].actions, columns["actions"][4:7], atol=1e-6)
    assert all(episode.truncations[-1] for episode in dataset.episodes)
    assert notes == {
        "last terminal action dropped: the file has no observation after it": 1,
        "last action dropped: the file has no observation after it": 2,
    }
    assert dataset.contract.rate_hz == 125.0


def test_next_observations_keep_the_last_action_and_its_terminal(tmp_path):
    following = np.random.default_rng(1).normal(size=(10, 3)).astype(np.float32)
    write_d4rl(tmp_path / "set.hdf5", next_observations=following)
    dataset, notes = read_all(Hdf5Source(tmp_path / "set.hdf5"))
    assert [len(episode) for episode in dataset.episodes] == [4, 4, 2]
    assert [bool(episode.terminations[-1]) for episode in dataset.episodes] == [True, False, False]
    np.testing.assert_array_equal(dataset.episodes[0].observations[-1], following[3])
    assert notes == {}


def test_without_terminals_timeouts_and_rewards_it_is_one_cut_episode(tmp_path):
    write_d4rl(tmp_path / "set.hdf5", terminals=None, timeouts=None, rewards=None)
    dataset, _ = read_all(Hdf5Source(tmp_path / "set.hdf5"))
    assert (len(dataset.episodes), len(dataset), dataset.has_rewards) == (1, 9, False)


def test_robomimics_demonstrations_are_read_in_the_order_of_their_numbers(tmp_path):
    write_robomimic(tmp_path / "lift.hdf5")
    dataset, notes = read_all(Hdf5Source(tmp_path / "lift.hdf5", ROBOMIMIC))
    assert [len(episode) for episode in dataset.episodes] == [4, 3]
    assert [episode.observations[0, 3] for episode in dataset.episodes] == [0, 1]
    assert all(episode.terminations[-1] for episode in dataset.episodes)
    assert (dataset.contract.rate_hz, notes) == (25.0, {})
    assert dataset.contract.measurement_names == ("obs/eef_pos_0", "obs/eef_pos_1", "obs/eef_pos_2", "obs/gripper")


def test_robomimic_without_next_observations_or_mapping(tmp_path):
    write_robomimic(tmp_path / "lift.hdf5", next_obs=False, rate=None)
    dataset, _ = read_all(Hdf5Source(tmp_path / "lift.hdf5", ROBOMIMIC))
    assert ([len(episode) for episode in dataset.episodes], dataset.contract.rate_hz) == ([3, 2], 20.0)
    with pytest.raises(DatasetError, match=r"needs a mapping .* it has: actions, dones, obs/eef_pos"):
        Hdf5Source(tmp_path / "lift.hdf5")


def test_a_missing_column_is_told_what_is_meant(tmp_path):
    write_robomimic(tmp_path / "lift.hdf5")
    mapping = DatasetMapping("lift", (ObservationColumn("obs/eef_poss"),), (ActionColumn("actions"),))
    with pytest.raises(UnknownNameError, match=r"Did you mean 'obs/eef_pos'\?"):
        Hdf5Source(tmp_path / "lift.hdf5", mapping)


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"observations": np.full((10, 3), np.nan)}, "observations must be finite"),
        ({"observations": np.zeros((8, 3))}, "columns must have the same number of rows"),
        ({"observations": np.zeros((10, 3, 2))}, "must be a number or a vector per step"),
        ({"terminals": np.zeros(4)}, "'terminals' has 4 rows, 'actions' 10"),
        ({"actions": np.full((10, 2), 3.0)}, r"actions must be in \[-1, 1\], got 3"),
        ({"actions": None}, "has neither 'actions'"),
    ],
)
def test_what_cannot_be_used_is_refused(tmp_path, changes, expected):
    write_d4rl(tmp_path / "set.hdf5", **changes)
    with pytest.raises(DatasetError, match=expected):
        read_all(Hdf5Source(tmp_path / "set.hdf5"))


def test_an_empty_table_is_refused(tmp_path):
    write_d4rl(tmp_path / "set.hdf5", count=0)
    with pytest.raises(DatasetError, match="has no episodes"):
        Hdf5Source(tmp_path / "set.hdf5")


def test_objects_and_what_lies_outside_of_the_file_are_not_read(tmp_path):
    bait = b"\x80\x04cos\nsystem\n(S'touch " + str(tmp_path / "run").encode() + b"'\ntR."
    write_d4rl(tmp_path / "opaque.hdf5", observations=np.array([np.void(bait)] * 10))
    write_d4rl(tmp_path / "text.hdf5", observations=[bait.hex()] * 10)
    for name in ("opaque.hdf5", "text.hdf5"):
        with pytest.raises(DatasetError, match="which are no numbers; it is not read"):
            Hdf5Source(tmp_path / name)
    assert not (tmp_path / "run").exists()
    columns = write_d4rl(tmp_path / "secret.hdf5")
    write_d4rl(tmp_path / "raw.hdf5", observations=None)
    (tmp_path / "secret.bin").write_bytes(columns["observations"].tobytes())
    with h5py.File(tmp_path / "raw.hdf5", "a") as file:
        file.create_dataset("observations", (10, 3), "f4", external=[(str(tmp_path / "secret.bin"), 0, 120)])
    with pytest.raises(DatasetError, match="takes its values from other files"):
        Hdf5Source(tmp_path / "raw.hdf5")
    write_d4rl(tmp_path / "link.hdf5", observations=None)
    with h5py.File(tmp_path / "link.hdf5", "a") as file:
        file["observations"] = h5py.ExternalLink("secret.hdf5", "observations")
    with pytest.raises((DatasetError, UnknownNameError), match="observations"):
        Hdf5Source(tmp_path / "link.hdf5")


def test_a_truncated_or_missing_file_is_a_clear_error(tmp_path):
    path = tmp_path / "set.hdf5"
    write_d4rl(path)
    path.write_bytes(path.read_bytes()[:2000])
    with pytest.raises(DatasetError, match="cannot be read as HDF5"):
        Hdf5Source(path)
    with pytest.raises(DatasetError, match="cannot be read as HDF5"):
        Hdf5Source(tmp_path / "none.hdf5")
