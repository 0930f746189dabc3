"""What a robot believes of a store: signed, newer than all before, made for it, and not what failed already."""

import dataclasses
import hashlib
import importlib.util
import json
from pathlib import Path

import pytest

from dpg_robot.deploy.policy_updates import UpdateConfig, UpdateState
from dpg_robot.deploy.release_watch import Memory, ReleaseWatch
from dpg_robot.deploy.run_config import RobotConfig
from dpg_robot.errors import DpgError, PolicyFileError
from dpg_robot.policy_file import read_policy_file
from dpg_robot.release import RELEASE_FILE, Release, ReleaseError, SigningKey, policy_path, write_release

_spec = importlib.util.spec_from_file_location("tiny_policy", Path(__file__).with_name("tiny_policy.py"))
tiny_policy = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(tiny_policy)

KEY = SigningKey.generate()
CONTRACT = tiny_policy.CONTRACT
ROBOT = RobotConfig(
    name="cart",
    driver="nobody:none",
    rate_hz=CONTRACT.rate_hz,
    measurements=CONTRACT.measurements,
    commands=CONTRACT.commands,
    updates=UpdateConfig(poll_s=1e-9),
)


class Store:
    """A store with releases of small policies, and a robot that looks into it."""

    def __init__(self, folder):
        self.folder, self.memory = folder / "store", folder / "robot" / "releases.json"
        self.folder.mkdir()
        self.sha = {}

    def release(self, number, *, bias=None, key=KEY, robots=(), contract=CONTRACT, change=None):
        bias = number * 0.01 if bias is None else bias
        path = tiny_policy.write_policy(self.folder.parent / "policy.onnx", contract, {"bias": bias}, change=change)
        content, metadata = read_policy_file(path)
        self.sha[number] = hashlib.sha256(content).hexdigest()
        write_release(self.folder, content, Release(number, self.sha[number], metadata.policy_id, tuple(robots)), key)

    def watch(self, robot=ROBOT):
        return ReleaseWatch(self.folder, [KEY.public], robot, self.memory)


@pytest.fixture
def store(tmp_path):
    store = Store(tmp_path)
    store.release(1)
    return store


def test_the_first_release_begins_and_the_next_is_offered_once(store):
    watch = store.watch()
    assert watch.first_policy() == policy_path(store.folder, store.sha[1])
    assert watch.poll() is None
    store.release(2)
    offer = watch.poll()
    assert (offer.release.number, offer.watched_s) == (2, 0.0)
    assert watch.poll() is None
    assert watch.problem == ""


def test_an_accepted_policy_is_the_one_with_which_the_next_run_begins(store):
    watch = store.watch()
    watch.first_policy()
    store.release(2)
    watch.poll()
    watch.note(UpdateState.WATCHED, 2, 1.0)
    assert store.watch().memory.accepted == store.sha[1], "not before it has earned its place"


def test_acceptance_is_remembered(store):
    watch = store.watch()
    watch.first_policy()
    store.release(2)
    watch.poll()
    watch.note(UpdateState.WATCHED, 2, 1.0)
    watch.note(UpdateState.ACCEPTED, 2, 30.0)
    watch.end_run("")
    again = store.watch()
    assert again.first_policy() == policy_path(store.folder, store.sha[2])
    assert again.poll() is None


def test_a_trial_that_was_not_over_goes_on_in_the_next_run(store):
    watch = store.watch()
    watch.first_policy()
    store.release(2)
    watch.poll()
    watch.note(UpdateState.WATCHED, 2, 12.0)
    watch.end_run("")
    again = store.watch()
    assert again.first_policy() == policy_path(store.folder, store.sha[1])
    assert again.poll().watched_s == 12.0


@pytest.mark.parametrize("how", ["refused", "fault", "died"])
def test_a_policy_that_failed_is_not_tried_again(how, store):
    watch = store.watch()
    watch.first_policy()
    store.release(2)
    watch.poll()
    if how == "refused":
        watch.note(UpdateState.REFUSED, 2, 0.0, "it was bad")
        watch.end_run("")
    elif how == "fault":
        watch.note(UpdateState.WATCHED, 2, 1.0)
        watch.end_run("too fast")
    again = store.watch()
    assert again.poll() is None
    reason = {"refused": "it was bad", "fault": "stopped while it acted: too fast", "died": "a run died"}[how]
    assert reason in again.problem
    assert again.first_policy() == policy_path(store.folder, store.sha[1])


def test_why_a_policy_was_refused_is_added_when_it_is_known(store):
    watch = store.watch()
    watch.first_policy()
    store.release(2)
    watch.poll()
    watch.note(UpdateState.REFUSED, 2, 0.0)
    watch.note(UpdateState.REFUSED, 2, 0.0, "it was bad")
    watch.note(UpdateState.REFUSED, 3, 0.0, "another one")
    assert Memory.load(store.memory).refused == {store.sha[2]: "release 2: it was bad"}


def test_a_stop_before_it_acted_does_not_speak_against_it(store):
    watch = store.watch()
    watch.first_policy()
    store.release(2)
    watch.poll()
    watch.end_run("the cable came off")
    assert store.watch().poll().release.number == 2


def test_an_old_release_put_back_is_refused_and_a_rollback_under_a_new_number_is_not(store):
    watch = store.watch()
    watch.first_policy()
    old = (store.folder / RELEASE_FILE).read_bytes()
    store.release(2)
    watch.poll()
    watch.note(UpdateState.ACCEPTED, 2, 30.0)
    (store.folder / RELEASE_FILE).write_bytes(old)
    assert watch.poll() is None
    assert "release 1 is older than 2" in watch.problem
    store.release(3, bias=0.01)  # the first policy again
    assert watch.poll().release.policy_sha256 == store.sha[1]


def test_two_releases_of_one_number_are_not_both_believed(store):
    watch = store.watch()
    watch.first_policy()
    store.release(1, bias=0.5)
    assert watch.poll() is None
    assert "two releases of number 1" in watch.problem


def test_what_another_key_signed_is_refused_and_not_remembered(store):
    watch = store.watch()
    watch.first_policy()
    before = store.memory.read_bytes()
    store.release(9, key=SigningKey.generate())
    assert watch.poll() is None
    assert "trusted are" in watch.problem
    assert store.memory.read_bytes() == before


def test_releases_for_other_robots_and_policies_that_do_not_fit_are_refused(store):
    watch = store.watch()
    watch.first_policy()
    store.release(2, robots=["other"])
    assert watch.poll() is None
    assert "is for other; this robot is 'cart'" in watch.problem
    store.release(3, robots=["other", "cart"], contract=dataclasses.replace(CONTRACT, rate_hz=100.0))
    assert watch.poll() is None
    assert "rate_hz" in watch.problem


def test_a_policy_that_computes_something_else_here_is_refused_for_good(store):
    def change(model):
        bias = next(tensor for tensor in model.graph.initializer if tensor.name == "bias")
        bias.CopyFrom(tiny_policy.numpy_helper.from_array(tiny_policy.numpy_helper.to_array(bias) + 0.5, "bias"))

    watch = store.watch()
    watch.first_policy()
    store.release(2, change=change)
    assert watch.poll() is None
    assert "golden" in watch.problem
    assert store.sha[2] in Memory.load(store.memory).refused


def test_a_release_whose_policy_is_still_being_copied_is_tried_later(store):
    watch = store.watch()
    watch.first_policy()
    store.release(2)
    path = policy_path(store.folder, store.sha[2])
    content = path.read_bytes()
    path.write_bytes(content[:100])
    assert watch.poll() is None
    assert "not the policy that was released" in watch.problem
    path.write_bytes(content)
    assert watch.poll().release.number == 2


def test_an_accepted_policy_that_was_exchanged_is_not_started(store):
    watch = store.watch()
    policy_path(store.folder, store.sha[1]).write_bytes(b"something else")
    with pytest.raises(PolicyFileError, match="not the policy that was released"):
        watch.first_policy()


@pytest.mark.parametrize("content", [b"", b"{}", b"[1]", json.dumps({"format_version": 7}).encode()])
def test_a_damaged_memory_is_an_error_and_not_a_fresh_start(content, store):
    store.memory.parent.mkdir()
    store.memory.write_bytes(content)
    with pytest.raises(ReleaseError, match="remembers which releases"):
        store.watch()


def test_a_store_without_a_release_cannot_begin_a_run(tmp_path):
    with pytest.raises(DpgError, match="cannot read the release"):
        Store(tmp_path).watch().first_policy()
