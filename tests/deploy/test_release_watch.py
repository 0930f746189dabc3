"""What a robot believes of a store: signed, newer than all before, made for it, and not what failed already."""

import dataclasses
import hashlib
import importlib.util
import json
import os
import time
from pathlib import Path

import pytest

from dpg_robot.deploy.policy_updates import UpdateConfig, UpdateState, decode_message
from dpg_robot.deploy.release_watch import Memory, ReleaseThread, ReleaseWatch
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

    def begin(self):
        """Begin a run as the robot's program does."""
        watch = self.watch()
        watch.begin_run()
        watch.first_policy()
        return watch

    def end(self, watch, fault=""):
        watch.end_run(fault)

    def remembered(self):
        return Memory.load(self.memory)


def sha256_of(path):
    return hashlib.sha256(path.read_bytes()).hexdigest()


def offered(message):
    """What a message offers: number of the release and time that it was watched, or what it takes back."""
    if message is None:
        return None
    found = decode_message(message)
    return -found if isinstance(found, int) else (found.release, found.watched_s)


@pytest.fixture
def store(tmp_path):
    store = Store(tmp_path)
    store.release(1)
    return store


def test_the_first_release_begins_and_is_accepted_when_it_has_acted(store):
    watch = store.begin()
    assert sha256_of(watch.policy_file) == store.sha[1]
    assert watch.poll() is None
    assert store.remembered().accepted == ""
    store.end(watch)
    assert store.remembered().accepted == store.sha[1]


def test_a_first_release_with_which_the_robot_was_stopped_is_not_accepted(store):
    watch = store.begin()
    store.end(watch, "too fast")
    assert store.remembered().accepted == ""
    store.release(2)
    assert sha256_of(store.begin().policy_file) == store.sha[2]


def test_the_next_release_is_offered_once(store):
    watch = store.begin()
    store.release(2)
    assert offered(watch.poll()) == (2, 0.0)
    for _ in range(3):
        (store.folder / RELEASE_FILE).touch()
        assert watch.poll() is None
    assert watch.problem == ""


def test_a_run_needs_the_store_only_for_new_releases(store):
    store.end(store.begin())
    for path in sorted(store.folder.rglob("*"), reverse=True):
        path.rmdir() if path.is_dir() else path.unlink()
    watch = store.begin()
    assert sha256_of(watch.policy_file) == store.sha[1]
    assert watch.poll() is None
    assert "cannot read the release" in watch.problem


def test_acceptance_is_remembered_with_the_policy(store):
    watch = store.begin()
    store.release(2)
    watch.poll()
    watch.note(UpdateState.WATCHED, 2, 1.0)
    assert store.remembered().accepted == "", "not before it has earned its place"
    watch.note(UpdateState.ACCEPTED, 2, 30.0)
    store.end(watch)
    again = store.begin()
    assert sha256_of(again.policy_file) == store.sha[2] == store.remembered().accepted
    assert again.poll() is None


def test_a_trial_that_was_not_over_goes_on_in_the_next_run(store):
    watch = store.begin()
    store.release(2)
    watch.poll()
    watch.note(UpdateState.WATCHED, 2, 12.0)
    store.end(watch)
    again = store.begin()
    assert sha256_of(again.policy_file) == store.sha[1]
    assert offered(again.poll()) == (2, 12.0)


@pytest.mark.parametrize("how", ["refused", "fault", "died"])
def test_a_policy_that_failed_is_not_tried_again(how, store):
    store.end(store.begin())
    watch = store.begin()
    store.release(2)
    watch.poll()
    if how == "refused":
        watch.note(UpdateState.REFUSED, 2, 0.0)
        watch.explain(2, "it was bad")
        store.end(watch)
    elif how == "fault":
        watch.note(UpdateState.WATCHED, 2, 1.0)
        store.end(watch, "too fast")
    else:
        watch._lock.close()
    again = store.begin()
    assert again.poll() is None
    reason = {"refused": "it was bad", "fault": "stopped while it acted: too fast", "died": "a run died"}[how]
    assert reason in again.problem
    assert sha256_of(again.policy_file) == store.sha[1]


def test_a_later_release_of_a_policy_that_failed_is_the_word_of_the_operator(store):
    watch = store.begin()
    store.release(2)
    watch.poll()
    watch.note(UpdateState.REFUSED, 2, 0.0)
    store.release(3, bias=0.02)  # the same policy
    assert offered(watch.poll()) == (3, 0.0)


def test_a_stop_before_it_acted_does_not_speak_against_it(store):
    store.end(store.begin())
    watch = store.begin()
    store.release(2)
    watch.poll()
    store.end(watch, "the cable came off")
    assert offered(store.begin().poll()) == (2, 0.0)


def test_a_newer_release_takes_the_place_of_the_one_on_trial(store):
    watch = store.begin()
    store.release(2)
    watch.poll()
    watch.note(UpdateState.WATCHED, 2, 3.0)
    store.release(3)
    assert offered(watch.poll()) == -2
    assert offered(watch.poll()) == -2, "until the control process has heard it"
    watch.note(UpdateState.RECALLED, 2, 3.0)
    assert offered(watch.poll()) == (3, 0.0)
    assert store.remembered().refused == {}


def test_going_back_to_the_accepted_policy_takes_the_one_on_trial_back(store):
    store.end(store.begin())
    watch = store.begin()
    store.release(2)
    watch.poll()
    watch.note(UpdateState.WATCHED, 2, 3.0)
    store.release(3, bias=0.01)  # the first policy again
    assert offered(watch.poll()) == -2
    watch.note(UpdateState.RECALLED, 2, 3.0)
    assert watch.poll() is None
    assert (watch.problem, store.remembered().trial) == ("", None)


def test_an_old_release_put_back_is_refused_and_a_rollback_under_a_new_number_is_not(store):
    watch = store.begin()
    old = (store.folder / RELEASE_FILE).read_bytes()
    store.release(2)
    watch.poll()
    watch.note(UpdateState.ACCEPTED, 2, 30.0)
    (store.folder / RELEASE_FILE).write_bytes(old)
    assert watch.poll() is None
    assert "release 1 is older than 2" in watch.problem
    store.release(3, bias=0.01)
    watch._first = None  # of another run
    assert offered(watch.poll()) == (3, 0.0)


def test_a_release_that_was_seen_counts_also_if_it_could_not_be_used(store):
    watch = store.begin()
    store.release(2)
    second = (store.folder / RELEASE_FILE).read_bytes()
    store.release(3, robots=["other"])
    assert watch.poll() is None
    (store.folder / RELEASE_FILE).write_bytes(second)
    assert watch.poll() is None
    assert "release 2 is older than 3" in watch.problem


def test_two_releases_of_one_number_are_not_both_believed(store):
    watch = store.begin()
    store.release(1, bias=0.5)
    assert watch.poll() is None
    assert "two releases of number 1" in watch.problem


def test_what_another_key_signed_is_refused_and_not_remembered(store):
    watch = store.begin()
    before = store.memory.read_bytes()
    store.release(9, key=SigningKey.generate())
    assert watch.poll() is None
    assert "trusted are" in watch.problem
    assert store.memory.read_bytes() == before


def test_releases_for_other_robots_and_policies_that_do_not_fit_are_refused(store):
    watch = store.begin()
    store.release(2, robots=["other"])
    assert watch.poll() is None
    assert "is for other; this robot is 'cart'" in watch.problem
    store.release(3, robots=["other", "cart"], contract=dataclasses.replace(CONTRACT, rate_hz=100.0))
    assert watch.poll() is None
    assert "rate_hz" in watch.problem


@pytest.mark.parametrize("change", [{"task": "walker-walk"}, {"action_repeat": 1}, {"latency_budget_s": 0.001}])
def test_a_policy_that_a_run_cannot_change_to_is_refused(change, store):
    watch = store.begin()
    store.release(2, contract=dataclasses.replace(CONTRACT, **change))
    assert watch.poll() is None
    assert next(iter(change)) in watch.problem


def test_a_policy_that_computes_something_else_here_is_refused_and_looked_at_again(store):
    def change(model):
        bias = next(tensor for tensor in model.graph.initializer if tensor.name == "bias")
        bias.CopyFrom(tiny_policy.numpy_helper.from_array(tiny_policy.numpy_helper.to_array(bias) + 0.5, "bias"))

    watch = store.begin()
    store.release(2, change=change)
    assert watch.poll() is None
    assert "golden" in watch.problem
    assert store.remembered().refused == {}


def test_a_release_whose_policy_is_still_being_copied_is_tried_later(store):
    watch = store.begin()
    store.release(2)
    path = policy_path(store.folder, store.sha[2])
    content = path.read_bytes()
    path.write_bytes(content[:100])
    assert watch.poll() is None
    assert "not the policy that was released" in watch.problem
    path.write_bytes(content)
    assert offered(watch.poll()) == (2, 0.0)


@pytest.mark.parametrize("where", ["release.json", "policies"])
def test_a_pipe_in_the_store_does_not_hold_anybody_up(where, store):
    watch = store.begin()
    store.release(2)
    path = store.folder / RELEASE_FILE if where == "release.json" else policy_path(store.folder, store.sha[2])
    path.unlink()
    os.mkfifo(path)
    assert watch.poll() is None
    assert "no ordinary file" in watch.problem


def test_an_accepted_policy_that_was_exchanged_is_not_started(store):
    store.end(store.begin())
    watch = store.watch()
    watch.policy_file.write_bytes(b"something else")
    with pytest.raises(PolicyFileError, match="not the policy that was released"):
        watch.first_policy()


def test_two_runs_cannot_have_one_memory_and_a_mere_look_changes_nothing(store):
    watch = store.begin()
    store.release(2)
    watch.poll()
    with pytest.raises(ReleaseError, match="another run of this robot"):
        store.begin()
    before = store.memory.read_bytes()
    look = store.watch()
    look.first_policy()
    assert store.memory.read_bytes() == before
    store.end(watch)
    store.end(store.begin())


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"{}",
        b"[1]",
        b"[" * 100_000,
        json.dumps({"format_version": 7}).encode(),
        json.dumps(dataclasses.asdict(Memory()) | {"highest": None}).encode(),
        json.dumps(dataclasses.asdict(Memory()) | {"refused": None}).encode(),
        json.dumps(dataclasses.asdict(Memory()) | {"trial": {"number": "1", "sha256": ""}}).encode(),
        json.dumps(dataclasses.asdict(Memory()) | {"unknown": 1}).encode(),
    ],
)
def test_a_damaged_memory_is_an_error_and_not_a_fresh_start(content, store):
    store.memory.parent.mkdir()
    store.memory.write_bytes(content)
    with pytest.raises(ReleaseError, match="remembers which releases"):
        store.watch()


def test_a_store_without_a_release_cannot_begin_a_run(tmp_path):
    with pytest.raises(DpgError, match="cannot read the release"):
        Store(tmp_path).begin()


class Run:
    """A run with its thread: what the control process would say is set, what it would be sent is kept."""

    def __init__(self, store):
        self.watch, self.sent, self.state = store.begin(), [], (UpdateState.NONE, 0, 0.0)
        self.thread = ReleaseThread(self.watch, lambda: self.state, self.sent.append, 0.01)

    def wait(self, condition):
        end_s = time.monotonic() + 20.0
        while not condition():
            assert time.monotonic() < end_s
            time.sleep(0.01)


def test_the_thread_offers_takes_back_and_remembers(store, capsys):
    store.end(store.begin())
    run = Run(store)
    store.release(2)
    run.wait(lambda: len(run.sent) == 1)
    run.state = (UpdateState.WATCHED, 2, 3.0)
    run.wait(lambda: run.watch.memory.trial.has_acted)
    store.release(3, bias=0.01)
    run.wait(lambda: len(run.sent) == 2)
    assert offered(run.sent[1]) == -2
    run.state = (UpdateState.RECALLED, 2, 3.0)
    run.wait(lambda: run.watch.memory.trial is None)
    run.thread.end("", has_acted=True, reasons={})
    assert (len(run.sent), store.remembered().accepted) == (2, store.sha[1])
    assert "release 2: recalled" in capsys.readouterr().err


def test_an_offer_that_was_not_taken_up_yet_is_replaced_by_a_newer_one(store):
    run = Run(store)
    store.release(2)
    run.wait(lambda: len(run.sent) == 1)
    store.release(3)
    run.wait(lambda: len(run.sent) == 3)
    assert [offered(message) for message in run.sent] == [(2, 0.0), -2, (3, 0.0)]
    run.thread.end("", has_acted=False, reasons={})


def test_nothing_that_happens_to_the_thread_ends_the_run(store, monkeypatch, capsys):
    run = Run(store)

    def fail(*arguments):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Memory, "save", fail)
    store.release(2)
    run.wait(lambda: "No space left" in capsys.readouterr().err)
    monkeypatch.undo()
    run.wait(lambda: len(run.sent) == 1)
    run.thread.end("", has_acted=True, reasons={})
    assert store.remembered().accepted == store.sha[1]
