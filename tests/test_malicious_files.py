"""Files that would run a program if anybody un-pickled them, or let YAML make objects: every reader refuses them."""

import os
import pickle
from pathlib import Path

import pytest

from dpg_robot.config import load_config
from dpg_robot.data.open_source import open_source
from dpg_robot.data.robot_log import load_transitions
from dpg_robot.deploy.release_watch import Memory
from dpg_robot.deploy.run_config import RobotConfig
from dpg_robot.errors import DpgError
from dpg_robot.learning.checkpoint import load_checkpoint, save_checkpoint
from dpg_robot.policy_file import read_policy_file
from dpg_robot.release import SigningKey, TrustedKey, verify_release
from dpg_robot.shipping.piece import Piece


class Trap:
    """What makes a folder when it is un-pickled."""

    def __init__(self, mark):
        self.mark = mark

    def __reduce__(self):
        return os.mkdir, (str(self.mark),)


@pytest.fixture
def mark(tmp_path):
    """The folder that only a trap makes."""
    mark = tmp_path / "trapped"
    pickle.loads(pickle.dumps(Trap(mark)))
    assert mark.exists(), "the trap works"
    mark.rmdir()
    yield mark
    assert not mark.exists(), "something un-pickled the file"


def trap_in(path, mark):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(pickle.dumps(Trap(mark)))
    return path


READERS = {
    "a policy": lambda path: read_policy_file(path),
    "a robot log": lambda path: load_transitions(_renamed(path, "run/segment-000000.mcap").parent),
    "a data set, HDF5": lambda path: open_source(_renamed(path, "data.hdf5")),
    "a data set, Minari": lambda path: open_source(_renamed(path, "set/data/main_data.hdf5").parents[1]),
    "a data set, Parquet": lambda path: open_source(_renamed(path, "set/meta/info.json").parents[1]),
    "a foreign MCAP": lambda path: open_source(_renamed(path, "foreign.mcap")),
    "a configuration": lambda path: load_config(RobotConfig, path),
    "what a robot remembers": Memory.load,
    "a private key": lambda path: SigningKey.load(_private(path)),
    "a public key": TrustedKey.load,
    "a release": lambda path: verify_release(path.read_bytes(), []),
    "a piece of a log": lambda path: Piece.from_bytes(path.read_bytes()),
}


def _renamed(path, name):
    new = path.parent / name
    new.parent.mkdir(parents=True, exist_ok=True)
    return path.rename(new)


def _private(path):
    path.chmod(0o600)
    return path


@pytest.mark.parametrize("reader", READERS)
def test_a_pickle_in_the_place_of_a_file_is_refused_and_does_not_run(reader, tmp_path, mark):
    path = trap_in(tmp_path / "files" / "file", mark)
    with pytest.raises(DpgError):
        READERS[reader](path)


def test_a_pickle_in_the_place_of_a_checkpoints_file_is_refused_and_does_not_run(tmp_path, mark):
    save_checkpoint(tmp_path / "checkpoint", {}, {"step": 1})
    for file in list((tmp_path / "checkpoint").iterdir()):
        content = file.read_bytes()
        trap_in(file, mark)
        with pytest.raises(DpgError):
            load_checkpoint(tmp_path / "checkpoint")
        file.write_bytes(content)
    load_checkpoint(tmp_path / "checkpoint")


@pytest.mark.parametrize("tag", ["!!python/object/apply:os.mkdir", "!!python/object/new:os.mkdir"])
def test_yaml_that_would_make_objects_is_refused_and_makes_none(tag, tmp_path, mark):
    path = tmp_path / "robot.yaml"
    path.write_text(f"name: {tag} ['{mark}']\n")
    with pytest.raises(DpgError):
        load_config(RobotConfig, path)


def test_every_test_that_the_list_of_attacks_names_exists():
    root = Path(__file__).parents[1]
    sources = {path: path.read_text() for path in (root / "tests").rglob("test_*.py")}
    lists = [(root / "docs" / name).read_text() for name in ("security.md", "dashboard.md")]
    rows = [line for text in lists for line in text.splitlines() if "`test_" in line]
    assert len(rows) > 45
    for row in rows:
        for name in [part for part in row.split("`") if part.startswith("test_")]:
            assert any(f"def {name}(" in text for text in sources.values()), f"there is no {name}"
