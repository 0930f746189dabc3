"""A new policy runs in the shadow, then acts, then is accepted, and the old one is there in the same tick if it fails."""

import importlib.util
import time
from pathlib import Path

import numpy as np
import pytest

from dpg_robot.deploy.policy_session import PolicySession
from dpg_robot.deploy.policy_updates import (
    Candidate,
    PolicyUpdates,
    UpdateConfig,
    UpdateState,
    decode_message,
    encode_offer,
    encode_recall,
)
from dpg_robot.deploy.safety import SafetyFlag
from dpg_robot.errors import ConfigError
from dpg_robot.policy_file import read_policy_file

_spec = importlib.util.spec_from_file_location("tiny_policy", Path(__file__).with_name("tiny_policy.py"))
tiny_policy = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(tiny_policy)

RATE_HZ = tiny_policy.CONTRACT.rate_hz
CONFIG = UpdateConfig(shadow_s=5 / RATE_HZ, watch_s=40 / RATE_HZ, max_difference=0.5)
MEASUREMENT = np.array([0.1, 0.2, -0.1, 0.3])


class Session:
    """A policy that gives a number, and fails when it is told to."""

    contract = tiny_policy.CONTRACT

    def __init__(self, value, policy_id):
        self.value, self.policy_id, self.error, self.takes_s = value, policy_id, None, 0.0
        self.action = np.array([value])
        self.executed = []
        self.resets = 0

    def reset(self):
        self.resets += 1

    def step(self, measurement):
        if self.error is not None:
            raise self.error
        time.sleep(self.takes_s)
        return np.array([self.value])

    def record_executed(self, action):
        self.executed.append(float(action[0]))


class Bench:
    def __init__(self, new=0.2, config=CONFIG):
        self.old, self.new = Session(0.1, "0" * 16), Session(new, "1" * 16)
        self.updates = PolicyUpdates(self.old, config)
        self.ticks = 0

    def offer(self, release=7, watched_s=0.0):
        self.updates.offer(Candidate(self.new, release, watched_s))

    def tick(self, safety=0):
        """One tick; returns the command."""
        command = float(self.updates.step(MEASUREMENT, self.ticks)[0])
        self.updates.finish(MEASUREMENT, np.array([command]), safety, changed=False)
        self.ticks += 1
        return command

    def run(self, count, safety=0):
        return [self.tick(safety) for _ in range(count)]

    @property
    def states(self):
        return [event.state.name for event in self.updates.events]


def test_without_an_offer_there_is_one_policy():
    bench = Bench()
    assert bench.run(20) == [0.1] * 20
    assert bench.updates.state == UpdateState.NONE


def test_a_new_policy_watches_then_acts_and_is_accepted():
    bench = Bench()
    bench.tick()
    bench.offer()
    assert bench.run(60) == [0.1] * 5 + [0.2] * 55
    assert bench.states == ["SHADOW", "WATCHED", "ACCEPTED"]
    assert [event.tick for event in bench.updates.events] == [1, 6, 46]
    assert (bench.updates.release, bench.updates.acting.policy_id) == (7, "1" * 16)
    assert "their actions differ by 0.1" in bench.updates.events[1].reason


def test_the_history_of_a_policy_in_the_shadow_is_of_what_was_done():
    bench = Bench()
    bench.offer()
    bench.run(10)
    assert bench.new.executed == [0.1] * 5, "until it acted itself"
    assert bench.old.executed == [0.2] * 5, "since it is in the shadow"


def test_a_real_policy_goes_on_as_if_it_had_acted_all_along(tmp_path):
    """Its history is the same as that of a session that was told which actions were carried out."""
    old = PolicySession.load(tiny_policy.write_policy(tmp_path / "old.onnx"))
    path = tiny_policy.write_policy(tmp_path / "new.onnx", gains={"pole_angle": 0.4, "bias": -0.3})
    updates, reference = PolicyUpdates(old, CONFIG), PolicySession.load(path)
    updates.offer(Candidate(PolicySession.load(path), 1))
    random = np.random.default_rng(0)
    for tick in range(20):
        measurement = random.uniform(-0.5, 0.5, 4)
        command, expected = updates.step(measurement, tick), reference.step(measurement)
        executed = updates.action
        updates.finish(measurement, executed, 0, changed=False)
        if tick >= 5:
            np.testing.assert_array_equal(command, expected)
        reference.record_executed(executed)


def test_a_policy_that_wants_something_quite_different_does_not_get_to_act():
    bench = Bench(new=0.7)
    bench.offer()
    assert set(bench.run(60)) == {0.1}
    assert bench.states == ["SHADOW", "REFUSED"]
    assert "differ by 0.6 in the mean, allowed are 0.5" in bench.updates.events[-1].reason


@pytest.mark.parametrize("fault", ["raises", "not finite"])
def test_a_policy_that_fails_in_the_shadow_disturbs_nobody(fault):
    bench = Bench(new=np.nan if fault == "not finite" else 0.2)
    bench.new.error = RuntimeError("broken") if fault == "raises" else None
    bench.offer()
    assert bench.run(20) == [0.1] * 20
    assert bench.states == ["SHADOW", "REFUSED"]


@pytest.mark.parametrize("fault", ["raises", "not finite"])
def test_the_old_policy_acts_in_the_very_tick_in_which_the_new_one_fails(fault):
    bench = Bench()
    bench.offer()
    assert bench.run(10)[-1] == 0.2
    if fault == "raises":
        bench.new.error = RuntimeError("broken")
    else:
        bench.new.value = np.inf
    assert bench.run(10) == [0.1] * 10
    assert bench.states == ["SHADOW", "WATCHED", "REFUSED"]
    assert ("RuntimeError: broken" if fault == "raises" else "not finite") in bench.updates.events[-1].reason


def test_without_another_policy_a_failure_reaches_the_loop():
    bench = Bench()
    bench.old.error = RuntimeError("broken")
    with pytest.raises(RuntimeError, match="broken"):
        bench.tick()


def test_a_policy_that_has_to_be_held_back_more_often_is_rolled_back():
    bench = Bench()
    bench.offer()
    bench.run(5)
    commands = bench.run(30, safety=SafetyFlag.SOFT_LIMIT.value)
    assert commands == [0.2] * 20 + [0.1] * 10, "20 ticks are the fewest that are judged"
    assert "acted in 100% of 20 ticks, 0% before" in bench.updates.events[-1].reason


def test_interventions_that_were_there_before_do_not_count_and_clipped_actions_never():
    for flag in (SafetyFlag.SOFT_LIMIT, SafetyFlag.ACTION_CLIPPED):
        bench = Bench()
        bench.offer()
        if flag == SafetyFlag.SOFT_LIMIT:
            bench.run(5, safety=flag.value)
        else:
            bench.run(5)
        bench.run(50, safety=flag.value)
        assert bench.states == ["SHADOW", "WATCHED", "ACCEPTED"]


def test_time_in_which_it_was_watched_in_earlier_runs_counts():
    bench = Bench()
    bench.offer(watched_s=35 / RATE_HZ)
    bench.run(24)
    assert bench.states == ["SHADOW", "WATCHED"], "20 ticks of it are seen in each run"
    bench.run(2)
    assert bench.states == ["SHADOW", "WATCHED", "ACCEPTED"]


def test_a_policy_that_begins_to_be_held_back_late_is_rolled_back_too():
    bench = Bench(config=UpdateConfig(shadow_s=5 / RATE_HZ, watch_s=400 / RATE_HZ))
    bench.offer()
    bench.run(300)
    bench.run(5, safety=SafetyFlag.LEAD_LIMITED.value)
    assert bench.states == ["SHADOW", "WATCHED", "REFUSED"]


def test_a_release_that_is_taken_back_does_not_act_any_more():
    bench = Bench()
    bench.offer(release=7)
    assert bench.run(10)[-1] == 0.2
    bench.updates.recall(7)
    assert bench.run(10) == [0.1] * 10
    assert bench.states == ["SHADOW", "WATCHED", "RECALLED"]
    bench.offer(release=7)
    assert bench.run(60) == [0.1] * 60, "nor when it comes once more"
    bench.updates.offer(Candidate(Session(0.3, "3" * 16), 8))
    assert bench.run(60)[-1] == 0.3


def test_a_release_that_was_tried_is_not_tried_again_in_the_same_run():
    bench = Bench()
    bench.offer()
    bench.run(10)
    bench.updates.offer(Candidate(Session(0.2, "1" * 16), 7))
    bench.new.error = RuntimeError("broken")
    bench.run(60)
    assert bench.states == ["SHADOW", "WATCHED", "REFUSED"]
    assert len(bench.updates.retired) == 2, "both are let go of"


def test_a_policy_that_is_too_slow_is_refused_in_the_shadow():
    bench = Bench()
    bench.new.takes_s = 0.6 / RATE_HZ
    bench.offer()
    assert bench.run(10) == [0.1] * 10
    assert bench.states == ["SHADOW", "REFUSED"]
    assert "its step took" in bench.updates.events[-1].reason


def test_an_action_that_is_not_a_number_is_refused_also_where_the_command_is():
    bench = Bench()
    bench.new.action = np.array([np.nan])
    bench.offer()
    bench.run(20)
    assert bench.states == ["SHADOW", "REFUSED"]


def test_if_the_old_policy_fails_behind_the_new_one_the_new_one_stays():
    bench = Bench()
    bench.offer()
    bench.run(10)
    bench.old.error = RuntimeError("broken")
    assert bench.run(10) == [0.2] * 10
    assert bench.states == ["SHADOW", "WATCHED", "ACCEPTED"]
    assert "the policy before it failed" in bench.updates.events[-1].reason


def test_a_second_offer_waits_for_the_end_of_the_first_and_the_newest_counts():
    bench = Bench()
    bench.offer()
    bench.run(3)
    third = Session(0.3, "3" * 16)
    bench.updates.offer(Candidate(Session(0.25, "2" * 16), 8))
    bench.updates.offer(Candidate(third, 9))
    bench.run(100)
    assert bench.states == ["SHADOW", "WATCHED", "ACCEPTED"] * 2
    assert bench.updates.acting is third


def test_an_episode_begins_anew_for_all_policies():
    bench = Bench()
    bench.offer()
    bench.run(3)
    before = bench.new.resets
    bench.updates.reset()
    assert (bench.old.resets, bench.new.resets) == (1, before + 1)


def test_an_offer_travels_whole(tmp_path):
    path = tiny_policy.write_policy(tmp_path / "policy.onnx")
    content, metadata = read_policy_file(path)
    assert decode_message(encode_recall(5)) == 5
    candidate = decode_message(encode_offer(content, metadata, 12, 3.5))
    assert (candidate.release, candidate.watched_s) == (12, 3.5)
    assert candidate.session.policy_id == metadata.policy_id
    assert candidate.session.contract == metadata.contract
    np.testing.assert_array_equal(candidate.session.step(MEASUREMENT), PolicySession.load(path).step(MEASUREMENT))


@pytest.mark.parametrize("change", [{"shadow_s": 0}, {"watch_s": -1}, {"max_difference": float("nan")}, {"max_interventions": 2}])
def test_settings_that_make_no_sense_are_refused(change):
    with pytest.raises(ConfigError, match=next(iter(change))):
        UpdateConfig(**change)
