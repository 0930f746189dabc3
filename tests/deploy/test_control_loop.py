import dataclasses
import gc
import os
import time

import numpy as np
import pytest

from dpg_robot.data.ring import LogState, LogStatus, Ring
from dpg_robot.data.transition import EpisodeEnd, LoopState, tick_dtype
from dpg_robot.data.transition_arrays import pair_records
from dpg_robot.deploy.control_block import ControlBlock, StopRequest
from dpg_robot.deploy.control_loop import ControlLoop
from dpg_robot.deploy.homing import NoHoming
from dpg_robot.deploy.policy_session import PolicySession
from dpg_robot.deploy.policy_updates import PolicyUpdates
from dpg_robot.deploy.robot import DeviceFlag
from dpg_robot.deploy.run_config import RobotConfig, RunSettings
from dpg_robot.deploy.safety import PositionLimit, Safety, SafetyConfig, SafetyFlag
from dpg_robot.errors import ConfigError, LinkError

STEPS = 20
HOMING_TICKS = 5


class CountingHoming:
    """Pushes a little for some ticks."""

    def __init__(self, ticks=HOMING_TICKS, fail=None):
        self.done = False
        self._ticks, self._left, self._fail = ticks, 0, fail

    def start(self):
        self.done, self._left = False, self._ticks

    def command(self, measurement, time_s):
        if self._fail is not None:
            raise self._fail
        self._left -= 1
        self.done = self._left == 0
        return np.array([1.0])


class Bench:
    """A control loop with a robot in this process; ``run()`` returns its report and leaves the records in ``records``."""

    def __init__(self, tiny_policy, fake_robot, folder, *, gains=None, capacity=4096, safety=None, homing=None, **settings):
        # Faster than a real one, so that the tests are short, and without patience for real time.
        self.contract = dataclasses.replace(tiny_policy.CONTRACT, rate_hz=200.0)
        policy = tiny_policy.write_policy(folder / "policy.onnx", self.contract, gains or {"bias": 0.3})
        self.robot = fake_robot.FakeRobot()
        self.homing = homing or CountingHoming()
        self.session = PolicySession.load(policy)
        config = safety or SafetyConfig(
            positions={"cart_position": PositionLimit(hard_low=-1.75, hard_high=1.75)},
            stale_patience_periods=20,
            max_overruns_in_row=10_000,
        )
        robot = RobotConfig("fake", "none:none", 200.0, self.contract.measurements, self.contract.commands, homing_timeout_s=0.3)
        values = {"episodes": 1, "episode_seconds": STEPS / 200.0} | settings
        self.settings = RunSettings(robot=robot, policy=policy, log_folder=folder, **values)
        self.ring = Ring.create(tick_dtype(4, 1), capacity)
        self.ring.publish_status(LogStatus(state=LogState.WRITING))
        self.block = ControlBlock.create()
        self.safety = Safety(config, self.contract)
        self.parent_pid = None

    def make_loop(self):
        policies = PolicyUpdates(self.session)
        return ControlLoop(
            self.robot, self.homing, policies, self.safety, self.ring, self.block, self.settings, parent_pid=self.parent_pid
        )

    def run(self):
        report = self.make_loop().run()
        self.records = self.ring.drain(100_000)
        return report

    def close(self):
        self.ring.close()
        self.block.close()


@pytest.fixture
def bench(tiny_policy, fake_robot, tmp_path):
    made = []

    def make(**options):
        made.append(Bench(tiny_policy, fake_robot, tmp_path, **options))
        return made[-1]

    yield make
    for item in made:
        item.close()


def assert_stopped_safely(bench, *, link_works=True):
    """The end of every run: no effort, disabled, closed, the log told."""
    calls = bench.robot.calls
    if "enable" in calls:
        after = calls[len(calls) - 1 - calls[::-1].index("read") :]
        assert after[-2:] == ["disable", "close"]
        if link_works:
            assert bench.robot.written[-1] == 0.0
            assert after[-3] == "write"
    assert not bench.robot.enabled
    assert bench.ring.finished


def test_a_run_homes_runs_and_closes_each_episode_and_records_every_tick(bench):
    it = bench(episodes=2)
    report = it.run()
    assert (report.reason, report.fault) == ("finished", False)
    assert_stopped_safely(it)
    assert [episode.steps for episode in report.episodes] == [STEPS, STEPS]
    assert {episode.end for episode in report.episodes} == {EpisodeEnd.TIMEOUT}
    records = it.records
    np.testing.assert_array_equal(records["sequence"], np.arange(len(records)))
    assert (np.diff(records["period"]) >= 1).all()
    changes = records["state"][np.flatnonzero(np.diff(records["state"], prepend=99))]
    names = [LoopState(state).name for state in changes]
    assert names == ["IDLE", "HOMING", "RUNNING", "HOMING", "RUNNING", "STOPPING"]
    assert np.count_nonzero(records["state"] == LoopState.HOMING) == 2 * HOMING_TICKS
    for episode in range(2):
        inside = records[records["episode"] == episode]
        np.testing.assert_array_equal(inside["step"], np.arange(STEPS + 1))
        assert [EpisodeEnd(end) for end in inside["episode_end"]] == [EpisodeEnd.NOT_ENDED] * STEPS + [EpisodeEnd.TIMEOUT]
        assert {f"{policy:016x}" for policy in inside["policy"]} == {it.session.policy_id}
    assert len(pair_records("run", records)) == 2 * STEPS


def test_each_tick_reads_before_it_writes_and_enable_follows_a_first_reading(bench):
    it = bench()
    it.run()
    calls = it.robot.calls
    enable = calls.index("enable")
    assert calls[0] == "connect"
    assert set(calls[1:enable]) == {"read"}
    assert calls[enable + 1] == "write"
    ticks = calls[enable + 2 : -3]
    assert ticks == ["read", "write"] * (len(ticks) // 2)
    assert len(ticks) // 2 == HOMING_TICKS + STEPS + 1
    assert it.robot.written[0] == 0.0


def test_records_hold_what_was_measured_and_sent(bench):
    it = bench()
    it.run()
    running = it.records[(it.records["state"] == LoopState.RUNNING) & (it.records["episode_end"] == 0)]
    sent = it.robot.written[1 + HOMING_TICKS : 1 + HOMING_TICKS + STEPS]
    np.testing.assert_allclose(running["command"][:, 0], sent)
    np.testing.assert_allclose(running["action"], running["intended_action"])
    np.testing.assert_allclose(running["command"], it.contract.scale_action(running["action"]), rtol=1e-6)
    assert (np.diff(running["measurement"][:, 0]) > 0).all()
    assert running["valid"].all()
    assert (running["compute_ns"] > 0).all()
    assert (running["time_ns"] >= running["measurement_time_ns"].max(axis=1)).all()
    assert (running["device_flags"] == DeviceFlag.ENABLED).all()


def test_exploration_is_seeded_recorded_and_enters_the_history(bench, monkeypatch):
    runs = []
    for seed in (1, 1, 2):
        it = bench(exploration=0.2, seed=seed)
        seen = []
        monkeypatch.setattr(it.session, "record_executed", lambda action, seen=seen: seen.append(float(action[0])))
        it.run()
        steps = it.records[(it.records["episode"] == 0) & (it.records["episode_end"] == 0)]
        np.testing.assert_allclose(seen, steps["action"][:, 0])
        np.testing.assert_allclose(steps["command"], it.contract.scale_action(steps["action"]))
        runs.append((steps["action"] - steps["intended_action"])[:, 0])
    np.testing.assert_allclose(runs[0], runs[1])
    assert not np.allclose(runs[0], runs[2])
    assert 0.1 < np.std(np.concatenate(runs)) < 0.3


def test_what_safety_changes_is_recorded_counted_and_enters_the_history(bench):
    it = bench(gains={"bias": 3.0}, safety=SafetyConfig(max_command_rate={"cart_force": 200.0}, max_overruns_in_row=10_000))
    report = it.run()
    steps = it.records[(it.records["episode"] == 0) & (it.records["episode_end"] == 0)]
    limited = (steps["safety"] & SafetyFlag.RATE_LIMITED) != 0
    assert 5 < np.count_nonzero(limited) < STEPS
    assert (np.abs(np.diff(steps["command"][:, 0])) <= 1.0 + 1e-9).all()
    assert (steps["action"][limited] < steps["intended_action"][limited]).all()
    np.testing.assert_allclose(it.contract.scale_action(steps["action"]), steps["command"])
    assert report.episodes[0].interventions["rate_limited"] == np.count_nonzero(limited)


def raise_at(count, error):
    def check(number):
        if number >= count:
            raise error

    return check


def stop_by(bench, way):
    """Arrange that the run ends by ``way`` in the middle of an episode."""
    robot, tick = bench.robot, 15

    def at_tick(action):
        robot._change_state = lambda state, number, fake: action(state) if number >= tick else None

    if way == "read raises":
        robot._fail["read"] = raise_at(tick, LinkError("unplugged"))
    elif way == "write raises":
        robot._fail["write"] = raise_at(tick, LinkError("unplugged"))
    elif way in ("bug", "SystemExit", "KeyboardInterrupt"):
        error = {"bug": ZeroDivisionError("oops"), "SystemExit": SystemExit(3), "KeyboardInterrupt": KeyboardInterrupt()}[way]
        robot._fail["read"] = lambda number: raise_at(tick, error)(number) if number == tick else None
    elif way == "policy raises":
        step = bench.session.step
        bench.session.step = lambda measurement: step(measurement) if len(robot.written) < tick else 1 / 0
    elif way == "policy gives nan":
        step = bench.session.step
        bench.session.step = lambda measurement: step(measurement) * (1.0 if len(robot.written) < tick else np.nan)
    elif way == "hard limit":
        at_tick(lambda state: state.values.__setitem__(0, 1.8))
    elif way == "stale":
        at_tick(lambda state: (state.valid.fill(False), state.time_ns.fill(1)))
    elif way == "not finite":
        at_tick(lambda state: state.values.__setitem__(3, np.nan))
    elif way == "device fault":
        at_tick(lambda state: setattr(state, "flags", DeviceFlag.ENABLED | DeviceFlag.HARDWARE_FAULT))
    elif way == "device watchdog":
        at_tick(lambda state: setattr(state, "flags", DeviceFlag.WATCHDOG_TRIPPED))
    elif way == "log process died":
        at_tick(lambda state: bench.block.request_stop(StopRequest.LOG_PROCESS_DIED))
    elif way == "log failed":
        at_tick(lambda state: bench.ring.publish_status(LogStatus(state=LogState.FAILED, error=28)))
    elif way == "log closed":
        at_tick(lambda state: bench.ring.publish_status(LogStatus(state=LogState.CLOSED)))
    else:
        raise AssertionError(way)


@pytest.mark.parametrize(
    ("way", "said", "end"),
    [
        ("read raises", "unplugged", EpisodeEnd.ABORTED),
        ("write raises", "unplugged", EpisodeEnd.ABORTED),
        ("bug", "ZeroDivisionError: oops", EpisodeEnd.ABORTED),
        ("SystemExit", "SystemExit: 3", EpisodeEnd.ABORTED),
        ("KeyboardInterrupt", "KeyboardInterrupt", EpisodeEnd.ABORTED),
        ("policy raises", "ZeroDivisionError", EpisodeEnd.ABORTED),
        ("policy gives nan", "not finite", EpisodeEnd.ABORTED),
        ("hard limit", "cart_position = 1.8 is outside its hard limits", EpisodeEnd.TERMINAL),
        ("stale", "no fresh measurement", EpisodeEnd.ABORTED),
        ("not finite", "pole_velocity", EpisodeEnd.ABORTED),
        ("device fault", "hardware fault", EpisodeEnd.ABORTED),
        ("device watchdog", "watchdog", EpisodeEnd.ABORTED),
        ("log process died", "log process died", EpisodeEnd.ABORTED),
        ("log failed", "No space left on device", EpisodeEnd.ABORTED),
        ("log closed", "log process ended", EpisodeEnd.ABORTED),
    ],
)
def test_every_way_out_of_an_episode_is_a_safe_stop_with_a_closing_record(bench, way, said, end):
    it = bench()
    stop_by(it, way)
    report = it.run()
    assert said in report.reason
    assert report.fault
    assert_stopped_safely(it, link_works=way != "write raises")
    episode = it.records[it.records["episode"] == 0]
    assert [EpisodeEnd(value) for value in episode["episode_end"]] == [EpisodeEnd.NOT_ENDED] * (len(episode) - 1) + [end]
    np.testing.assert_array_equal(episode["step"], np.arange(len(episode)))
    assert 0 < report.episodes[0].steps == len(episode) - 1 < STEPS
    assert report.episodes[0].end == end
    closing = it.records[-1]
    assert LoopState(closing["state"]) == LoopState.FAULT
    assert closing["command"][0] == 0.0
    assert closing["valid"].all() == (
        way
        in ("hard limit", "policy raises", "policy gives nan", "write raises", "device fault", "device watchdog", "not finite")
    )
    assert (report.error is not None) == (way in ("bug", "SystemExit", "KeyboardInterrupt", "policy raises"))


def test_a_stop_by_signal_is_no_fault(bench):
    it = bench(episode_seconds=60.0)
    loop = it.make_loop()
    it.robot._change_state = lambda state, number, fake: loop.stop("stopped by SIGINT") if number == 15 else None
    report = loop.run()
    it.records = it.ring.drain(1000)
    assert (report.reason, report.fault) == ("stopped by SIGINT", False)
    assert_stopped_safely(it)
    assert LoopState(it.records[-1]["state"]) == LoopState.STOPPING
    assert EpisodeEnd(it.records[-1]["episode_end"]) == EpisodeEnd.ABORTED


def test_a_full_ring_stops_the_robot_before_a_record_is_lost(bench):
    it = bench(capacity=16)
    report = it.run()
    assert "lags behind" in report.reason
    assert it.ring.overruns == 0
    assert_stopped_safely(it)


def test_a_robot_whose_supervisor_is_gone_does_not_move(bench):
    it = bench()
    it.parent_pid = os.getpid()  # which is not the parent of this process
    report = it.run()
    assert "supervisor died" in report.reason
    assert "enable" not in it.robot.calls
    assert_stopped_safely(it)


def test_a_robot_beyond_its_hard_limit_is_not_enabled(bench):
    it = bench()
    it.robot.position = -1.9
    report = it.run()
    assert "hard limits" in report.reason
    assert "enable" not in it.robot.calls
    assert not report.episodes


class PullingHoming:
    """Pulls the cart back from the upper end."""

    done = False

    def start(self):
        self.done = False

    def command(self, measurement, time_s):
        self.done = measurement[0] < 1.5
        return np.array([-10.0])


def test_a_robot_that_coasted_beyond_its_hard_limit_is_homed_from_there(bench):
    limit = PositionLimit(-1.6, 1.6, -1.75, 1.75, "cart_velocity", "cart_force", 10.0, 4.0)
    safety = SafetyConfig(positions={"cart_position": limit}, stale_patience_periods=20, max_overruns_in_row=10_000)
    it = bench(homing=PullingHoming(), safety=safety)
    it.robot.position = 1.8
    it.settings = dataclasses.replace(it.settings, robot=dataclasses.replace(it.settings.robot, homing_timeout_s=10.0))
    assert it.run().reason == "finished"
    homing = it.records[it.records["state"] == LoopState.HOMING]
    assert (homing["command"] <= 0.0).all()


def test_without_a_log_process_the_robot_is_not_enabled(bench, monkeypatch):
    monkeypatch.setattr("dpg_robot.deploy.control_loop._START_TIMEOUT_S", 0.2)
    it = bench()
    it.ring.publish_status(LogStatus(state=LogState.STARTING))
    report = it.run()
    assert "log process: starting" in report.reason
    assert "enable" not in it.robot.calls


def test_a_sensor_that_never_answers_is_named_and_the_robot_not_enabled(bench, monkeypatch):
    monkeypatch.setattr("dpg_robot.deploy.control_loop._START_TIMEOUT_S", 0.2)
    it = bench()
    it.robot._change_state = lambda state, number, fake: state.valid.__setitem__(1, False)
    report = it.run()
    assert "pole_angle" in report.reason
    assert "enable" not in it.robot.calls


def test_a_shadow_records_what_the_policy_would_do_and_touches_nothing(bench):
    it = bench(shadow=True, episodes=2, gains={"bias": 0.7})
    report = it.run()
    assert (report.reason, report.fault) == ("finished", False)
    assert not {"enable", "write", "disable"} & set(it.robot.calls)
    assert it.robot.calls[-1] == "close"
    states = it.records["state"].tolist()
    assert states.count(LoopState.SHADOW) == 2 * (STEPS + 1)
    assert LoopState.RUNNING not in states
    assert LoopState.HOMING not in states
    shadow = it.records[it.records["state"] == LoopState.SHADOW]
    acting = shadow[shadow["episode_end"] == EpisodeEnd.NOT_ENDED]
    assert (np.abs(acting["command"]) > 1).all(), "the policy's own commands"
    assert len(list(pair_records("run", it.records))) == 0, "nothing that a learner could take for what was done"


def test_a_shadow_cannot_explore(bench):
    with pytest.raises(ConfigError, match="shadow"):
        bench(shadow=True, exploration=0.1)


class ParkingHoming(CountingHoming):
    """Parks by the same number of ticks as it homes."""

    parks = True
    parked = 0

    def start_parking(self):
        self.parked += 1
        self.start()


@pytest.mark.parametrize("parks", [True, False])
def test_a_robot_that_parks_does_so_after_the_last_episode_and_before_it_is_disabled(bench, parks):
    homing = ParkingHoming()
    homing.parks = parks
    it = bench(homing=homing)
    report = it.run()
    assert (report.reason, report.fault) == ("finished", False)
    assert homing.parked == parks
    states = [int(record["state"]) for record in it.records]
    last_running = len(states) - 1 - states[::-1].index(LoopState.RUNNING)
    assert states[last_running + 1 :].count(LoopState.HOMING) == (HOMING_TICKS if parks else 0)
    assert it.robot.calls[-2:] == ["disable", "close"]


def test_a_robot_that_is_stopped_does_not_park_first(bench):
    it = bench(homing=ParkingHoming(fail=LinkError("gone")))
    assert it.run().fault
    assert it.homing.parked == 0
    assert_stopped_safely(it)


@pytest.mark.parametrize("error", [LinkError("nobody there"), RuntimeError("oops")])
def test_a_failure_to_connect_or_enable_is_reported_and_cleaned_up(bench, error):
    for name in ("connect", "enable"):
        it = bench()
        it.robot._fail[name] = raise_at(1, error)
        report = it.run()
        assert str(error) in report.reason
        assert it.robot.calls[-2:] == ["disable", "close"]
        assert it.ring.finished


def test_homing_that_fails_or_takes_too_long_stops_the_robot(bench):
    it = bench(homing=CountingHoming(ticks=10**9))
    report = it.run()
    assert "homing did not finish within 0.3 s" in report.reason
    assert "cart_position" in report.reason
    assert_stopped_safely(it)
    it = bench(homing=CountingHoming(fail=ValueError("lost")))
    assert "lost" in it.run().reason
    assert_stopped_safely(it)


def test_a_robot_without_homing_starts_where_it_is(bench):
    it = bench(homing=NoHoming())
    assert not it.run().fault
    assert LoopState.HOMING not in it.records["state"]


def test_a_disable_that_raises_does_not_keep_the_link_open(bench):
    it = bench()
    it.robot._fail["disable"] = raise_at(1, RuntimeError("must not"))
    report = it.run()
    assert report.reason == "finished"
    assert it.robot.calls[-1] == "close"


def test_a_slow_tick_keeps_the_grid_and_many_in_a_row_stop_the_robot(bench):
    # more in a row than a busy machine has before the slow ones
    safety = SafetyConfig(max_overruns_in_row=12, stale_patience_periods=40)
    it = bench(safety=safety, episode_seconds=60.0)
    it.robot._change_state = lambda state, number, fake: time.sleep(0.012) if number >= 15 else None
    report = it.run()
    assert "12 ticks in a row missed their deadline" in report.reason
    assert report.missed >= 2 * 6
    slow = it.records[-5:-1]
    assert (np.diff(slow["period"]) >= 3).all()
    assert (slow["safety"] & SafetyFlag.OVERRUN).all()
    assert_stopped_safely(it)


def test_ticks_make_no_garbage_for_the_collector(bench):
    it = bench(episode_seconds=0.5)
    gc.collect()
    gc.disable()
    try:
        assert not it.run().fault
        assert gc.collect() < 200  # of the 130 ticks, not one object each in a reference cycle
    finally:
        gc.enable()
