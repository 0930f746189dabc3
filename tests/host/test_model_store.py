from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from dpg_robot.contract import Contract
from dpg_robot.errors import PolicyFileError
from dpg_robot.host.gate import Verdict
from dpg_robot.host.model_store import ModelStore
from dpg_robot.learning.export import export_policy
from dpg_robot.learning.learner import Learner, LearnerConfig
from dpg_robot.policy_file import read_policy_file
from dpg_robot.release import SigningKey, read_release, read_released_policy

PASSED, FAILED = Verdict(True, ("ok: better",)), Verdict(False, ("FAILED: worse",))


@pytest.fixture(scope="module")
def policies(contract: Contract, tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    paths = []
    for seed in range(2):
        path = tmp_path_factory.mktemp("policies") / "policy.onnx"
        policy = Learner(contract, LearnerConfig(hidden_sizes=(8,)), seed=seed).policy
        torch.nn.init.normal_(policy.network[-1].weight, std=0.1)
        export_policy(policy, contract, path, parity_samples=10)
        paths.append(path)
    return paths


def add(store: ModelStore, policy: Path, verdict: Verdict) -> Path:
    return store.add(lambda path: path.write_bytes(policy.read_bytes()), verdict, {"note": "test"})


def test_a_candidate_that_passed_becomes_the_current_policy(tmp_path: Path, policies: list[Path]) -> None:
    store = ModelStore(tmp_path / "store")
    add(store, policies[0], PASSED)
    add(store, policies[1], PASSED)
    assert read_policy_file(store.current)[1].policy_id == read_policy_file(policies[1])[1].policy_id


def test_a_candidate_that_failed_is_kept_with_its_verdict_and_changes_nothing(tmp_path: Path, policies: list[Path]) -> None:
    store = ModelStore(tmp_path / "store")
    add(store, policies[0], PASSED)
    before = store.current.read_bytes()
    folder = add(store, policies[1], FAILED)
    assert store.current.read_bytes() == before
    assert json.loads((folder / "verdict.json").read_text())["verdict"] == {"passed": False, "reasons": ["FAILED: worse"]}
    assert store.versions() == [1, 2]


def test_an_earlier_version_can_be_published_again(tmp_path: Path, policies: list[Path]) -> None:
    store = ModelStore(tmp_path / "store")
    add(store, policies[0], PASSED)
    add(store, policies[1], PASSED)
    store.publish(1, "by hand")
    assert store.current.read_bytes() == policies[0].read_bytes()


def test_publishing_a_version_that_is_not_there_says_which_are(tmp_path: Path, policies: list[Path]) -> None:
    store = ModelStore(tmp_path / "store")
    add(store, policies[0], PASSED)
    with pytest.raises(PolicyFileError, match=r"no version 7; it has \[1\]"):
        store.publish(7, "by hand")


def test_a_damaged_candidate_leaves_no_version_behind(tmp_path: Path, policies: list[Path]) -> None:
    store = ModelStore(tmp_path / "store")
    add(store, policies[0], PASSED)
    before = store.current.read_bytes()
    with pytest.raises(PolicyFileError):
        store.add(lambda path: path.write_bytes(policies[1].read_bytes()[:-100]), PASSED, {})
    assert store.versions() == [1]
    assert list((store.folder / "versions").iterdir()) == [store.folder / "versions" / "000001"]
    assert store.current.read_bytes() == before


def test_with_a_key_each_published_version_is_a_signed_release_of_a_higher_number(tmp_path: Path, policies: list[Path]) -> None:
    key = SigningKey.generate()
    store = ModelStore(tmp_path / "store", key, ["arm-1"])
    numbers = []
    for action in ("first", "second", "back"):
        if action == "back":
            store.publish(1, "the arm trembled")
        else:
            add(store, policies[numbers != []], PASSED)
        release = read_release(store.folder, [key.public])
        numbers.append(release.number)
        expected = policies[action == "second"].read_bytes()
        assert read_released_policy(store.folder, release)[0] == store.current.read_bytes() == expected
        assert release.robots == ("arm-1",)
    assert numbers == store.releases() == [1, 2, 3]
    assert release.reason == "version 1: the arm trembled"


def test_a_candidate_that_failed_is_not_released(tmp_path: Path, policies: list[Path]) -> None:
    store = ModelStore(tmp_path / "store", SigningKey.generate())
    add(store, policies[0], PASSED)
    add(store, policies[1], FAILED)
    assert store.releases() == [1]


def test_the_number_of_a_release_is_never_given_again_even_if_the_store_lost_its_present_one(
    tmp_path: Path, policies: list[Path]
) -> None:
    key = SigningKey.generate()
    add(ModelStore(tmp_path / "store", key), policies[0], PASSED)
    (tmp_path / "store" / "release.json").unlink()
    store = ModelStore(tmp_path / "store", key)
    store.publish(1, "again")
    assert read_release(store.folder, [key.public]).number == 2
