"""The mapping of somebody else's columns: what becomes of them, and what a wrong mapping is told."""

import numpy as np
import pytest

from dpg_robot.config import load_config
from dpg_robot.data.datasets import DatasetError
from dpg_robot.data.mapping import ActionColumn, DatasetMapping, ObservationColumn, map_episode, mapped_contract
from dpg_robot.errors import ConfigError, UnknownNameError

COLUMNS = {
    "pose": np.arange(12.0).reshape(4, 3),
    "angle": np.array([0.0, 90.0, 180.0, 270.0]),
    "torque": np.array([[-4.0], [0.0], [2.0], [4.0]]),
    "reward": np.array([1, 2, 3, 4]),
    "done": np.array([0, 0, 0, 1]),
    "cut": np.array([False, False, False, True]),
}
MAPPING = """
task: lift
rate_hz: 20
observations:
  - {column: pose, elements: [0, 2], names: [x, y], unit: m}
  - {column: angle, names: [hinge], unit: rad, scale: 0.017453292519943295, features: [cos, sin]}
actions:
  - {column: torque, unit: N m, low: -4, high: 4}
reward: reward
terminal: done
"""


@pytest.fixture
def load(tmp_path):
    def load(text=MAPPING, **changes):
        for key, value in changes.items():
            text += f"{key}: {value}\n"
        path = tmp_path / "mapping.yaml"
        path.write_text(text)
        return load_config(DatasetMapping, path)

    return load


def mapped(mapping, columns=COLUMNS, final=None):
    contract = mapped_contract(mapping, columns, 50.0, "file")
    return contract, map_episode(mapping, contract, columns, final, "file, episode 0")


def test_columns_become_named_channels_scaled_values_and_features(load):
    contract, found = mapped(load(), final={"pose": np.array([[20.0, 21.0, 22.0]]), "angle": np.array([45.0])})
    assert contract.measurement_names == ("x", "y", "hinge")
    assert (contract.command_names, contract.rate_hz) == (("torque",), 20.0)
    episode = found.episode
    np.testing.assert_array_equal(episode.observations[:, :2], [[0, 1], [3, 4], [6, 7], [9, 10], [20, 21]])
    np.testing.assert_allclose(episode.observations[:, 2], np.cos(np.radians([0, 90, 180, 270, 45])), atol=1e-6)
    np.testing.assert_allclose(episode.actions, [[-1.0], [0.0], [0.5], [1.0]], atol=1e-6)
    assert episode.rewards.tolist() == [1, 2, 3, 4]
    assert (episode.terminations.tolist(), episode.truncations.any()) == ([False, False, False, True], False)


def test_without_a_last_observation_the_last_action_goes_and_this_is_noted(load):
    _, found = mapped(load())
    assert len(found.episode) == 3
    assert len(found.episode.observations) == 4
    assert found.episode.truncations.tolist() == [False, False, True]
    assert found.notes == ("last terminal action dropped: the file has no observation after it",)


def test_a_terminal_does_not_count_where_the_episode_was_cut(load):
    _, found = mapped(load(timeout="cut", final_observation="repeat"))
    assert not found.episode.terminations.any()
    assert found.episode.truncations[-1]


def test_an_episode_of_one_row_leaves_nothing(load):
    assert mapped(load(), {name: values[:1] for name, values in COLUMNS.items()})[1] is None


def test_actions_beyond_the_limits_are_cut_only_when_asked_for(load):
    _, found = mapped(load(MAPPING.replace("high: 4", "high: 2")))
    assert found.episode.actions.max() == 1.0, "2 is the limit, and 4 is in the dropped row"
    assert mapped(load(MAPPING.replace("high: 4", "high: 1")))[1].episode.actions.max() > 1.0
    assert mapped(load(MAPPING.replace("high: 4", "high: 1, clip: true")))[1].episode.actions.max() == 1.0


@pytest.mark.parametrize(
    ("old", "new", "error", "expected"),
    [
        ("column: pose", "column: poze", UnknownNameError, r"'poze'; known: .* Did you mean 'pose'\?"),
        ("[0, 2]", "[2, 4]", DatasetError, "has 3 elements; the mapping asks for 2 to 4"),
        ("[x, y]", "[x, y, z]", DatasetError, "has 2 elements, but 3 names"),
        ("high: 4", "high: [4, 4]", DatasetError, "has 1 elements, but 2 limits"),
        ("reward: reward", "reward: pose", DatasetError, "must hold one number per step"),
        ("reward: reward", "rewards: reward", ConfigError, r"unknown key 'rewards'; .* Did you mean 'reward'\?"),
        ("[0, 2]", "[2, 2]", ConfigError, "elements of column 'pose' must be"),
        ("[x, y]", "[x, x]", ConfigError, "must be distinct"),
        ("rate_hz: 20", "rate_hz: 0", ConfigError, "rate_hz must be positive"),
        ("column: torque", "colum: torque", ConfigError, r"Did you mean 'actions\[0\].column'|Did you mean 'column'"),
    ],
)
def test_a_mapping_that_does_not_fit_is_told_why(load, old, new, error, expected):
    with pytest.raises(error, match=expected):
        mapped(load(MAPPING.replace(old, new)))


@pytest.mark.parametrize("values", [np.array([object()] * 4), np.array(["a"] * 4), np.array([b"\x80\x04."] * 4)])
def test_columns_of_anything_but_numbers_are_not_read(load, values):
    with pytest.raises(DatasetError, match="which are no numbers"):
        mapped(load(), COLUMNS | {"pose": values})


def test_names_are_made_from_the_column_where_none_are_given():
    mapping = DatasetMapping(
        "t", (ObservationColumn("pose"), ObservationColumn("angle")), (ActionColumn("torque", low=-4.0, high=4.0),)
    )
    contract, _ = mapped(mapping)
    assert contract.measurement_names == ("pose_0", "pose_1", "pose_2", "angle")
    assert contract.rate_hz == 50.0
