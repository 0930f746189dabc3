"""Campaigns of faults: what the judge finds in made-up runs, the plans, and one small campaign with real processes."""

import argparse
import importlib.util
import json
import sys
from pathlib import Path

import numpy as np
import pytest

from dpg_robot.data.transition import tick_dtype
from dpg_robot.deploy.policy_session import PolicySession
from hw_drivers.benchmarks.faults_catalogue import all_kinds
from hw_drivers.benchmarks.faults_command import plan_campaign, report
from hw_drivers.benchmarks.faults_stack import dynamixel_stack, so101_stack
from hw_drivers.benchmarks.faults_verdict import (
    Blind,
    check_goals,
    check_values,
    last_blind_ticks,
    stalled_s,
    still_ns,
    torque_off_ns,
    torque_switched_on,
)

ROOT = Path(__file__).parents[2]
STACK = dynamixel_stack()
PERIOD_NS = 40_000_000
SERVOS = 4


def positions(number):
    """Where the servos are in tick ``number``, rad."""
    return [0.1 * joint + 0.02 * number for joint in range(SERVOS)]


def reads(count):
    return [
        {"t": number * PERIOD_NS + 2_000_000, "what": "read", "x": positions(number), "v": [0.5] * SERVOS}
        for number in range(count)
    ]


def log(count):
    """The log of a run that read what was there."""
    records = np.zeros(count, dtype=tick_dtype(2 * SERVOS, SERVOS))
    for number, record in enumerate(records):
        record["sequence"], record["time_ns"] = number, number * PERIOD_NS + 6_000_000
        record["measurement_time_ns"], record["valid"] = number * PERIOD_NS, True
        record["measurement"] = [*positions(number), *[0.5] * SERVOS]
    return records


def test_true_values_are_accepted():
    assert check_values(STACK, log(5), reads(5)) == (40, [])


def test_a_value_of_the_tick_before_is_found():
    records = log(5)
    records["measurement"][3][1] = positions(2)[1]
    checked, wrong = check_values(STACK, records, reads(5))
    assert checked == 40
    assert len(wrong) == 1
    assert "record 3: joint_2_position" in wrong[0]
    records["valid"][3][1] = False
    assert check_values(STACK, records, reads(5)) == (39, [])


def test_the_value_of_another_servo_is_found():
    records = log(5)
    records["measurement"][2][0] = positions(2)[1]
    assert len(check_values(STACK, records, reads(5))[1]) == 1


def test_a_valid_value_that_nobody_asked_for_is_found():
    events = [event for event in reads(5) if event["t"] != 2 * PERIOD_NS + 2_000_000]
    assert len(check_values(STACK, log(5), events)[1]) > 0


def test_a_lying_sensor_is_only_excused_for_its_servo_and_time():
    records = log(5)
    records["measurement"][2][0] += 1.0
    assert check_values(STACK, records, reads(5), [Blind(0, 2 * PERIOD_NS, 3 * PERIOD_NS)])[1] == []
    assert len(check_values(STACK, records, reads(5), [Blind(1, 2 * PERIOD_NS, 3 * PERIOD_NS)])[1]) == 1
    assert len(check_values(STACK, records, reads(5), [Blind(0, 4 * PERIOD_NS, 5 * PERIOD_NS)])[1]) == 1


def goal(number, servo_id, angle):
    return {"t": number * PERIOD_NS, "what": "goals", "goals": [[servo_id, angle]]}


def torque(number, *on, share=1.0):
    return {"t": number * PERIOD_NS, "what": "torque", "on": list(on), "share": [share] * SERVOS}


ON, OFF = (True,) * SERVOS, (False,) * SERVOS


@pytest.mark.parametrize(
    ("events", "said"),
    [
        ([torque(0, *ON), goal(1, 1, 0.0), goal(2, 1, 0.12)], ""),
        ([torque(0, *ON), goal(1, 1, 0.0), goal(2, 1, 0.13)], "0.1300 from the last"),
        ([torque(0, *ON), goal(1, 1, 0.0), goal(3, 1, 0.24)], ""),  # the one between them was lost
        ([torque(0, *OFF), goal(1, 1, 0.0), goal(2, 1, 0.5)], ""),
        ([torque(0, *ON), goal(1, 1, 0.0), goal(2, 2, 0.5)], ""),
        ([torque(0, *OFF), goal(1, 1, 1.51)], "outside"),
        ([torque(0, *ON), goal(1, 9, 0.0)], "ID 9"),
    ],
)
def test_goals_outside_of_limits_and_rates_are_found(events, said):
    checked, wrong = check_goals(STACK, events)
    assert checked == len(events) - 1
    assert (said in wrong[0] and len(wrong) == 1) if said else not wrong


def test_the_torque_counts_as_off_since_it_is_so_to_the_end():
    events = [torque(1, *ON), torque(3, *OFF), torque(4, True, False, False, False), torque(6, *OFF)]
    assert torque_off_ns(events, 2 * PERIOD_NS, range(SERVOS)) == 6 * PERIOD_NS
    assert torque_off_ns(events, 2 * PERIOD_NS, [1, 2, 3]) == 3 * PERIOD_NS
    assert torque_off_ns(events[:-1], 2 * PERIOD_NS, range(SERVOS)) is None


def test_joints_with_torque_count_as_still_when_they_no_longer_move():
    events = [torque(0, True, False, False, False)]
    events += [{"t": n * PERIOD_NS, "what": "state", "v": [v, 9.0, 0.0, 0.0]} for n, v in enumerate((0.5, 0.5, 0.0, 0.0))]
    assert still_ns(events, PERIOD_NS, range(SERVOS)) == 2 * PERIOD_NS
    assert still_ns(events[:3], PERIOD_NS, range(SERVOS)) is None


@pytest.mark.parametrize(
    ("looks", "first", "switched_on"),
    [
        ([[True, True], [True, False], [False, False]], 1, False),  # what an unplugged robot left on is let go
        ([[True, False], [True, True]], 1, True),
        ([[False, False], [False, True], [False, False]], 1, True),
        ([[True, True], [False, False], [False, False]], 1, False),
        ([[True, False]], 0, True),  # nothing is known of before
        ([[False, False]], 0, False),
    ],
)
def test_a_torque_that_was_on_before_was_not_switched_on(looks, first, switched_on):
    events = [{"t": number, "what": "torque", "on": on} for number, on in enumerate(looks)]
    assert torque_switched_on(events, first) is switched_on


def test_a_stall_excuses_only_what_it_overlaps():
    events = [{"t": 10_000_000, "what": "stall", "gap_s": 0.004}]
    assert stalled_s(events, 0, 8_000_000) == pytest.approx(0.002)
    assert stalled_s(events, 10_000_000, 20_000_000) == 0
    records = log(6)
    records["valid"][4:] = False
    assert [end for _, end in last_blind_ticks(records)] == records["time_ns"][3:].tolist()


@pytest.mark.parametrize("failure", ["nan", "infinite", "out_of_range", "exception"])
def test_the_policies_move_the_joints_and_fail_when_they_are_told_to(failure, tmp_path):
    session = PolicySession.load(STACK.write_policy(tmp_path / "policy.onnx", failure, at_step=3))
    assert session.contract == STACK.contract
    measurement = np.zeros(2 * SERVOS)
    good = np.array([session.step(measurement) for _ in range(3)])
    assert (np.diff(good, axis=0) > 0.01).all()
    if failure == "exception":
        with pytest.raises(RuntimeError):
            session.step(measurement)
    else:
        bad = session.step(measurement)
        assert not np.isfinite(bad).all() or (np.abs(bad) > 1.5).all()


def test_joints_that_take_speeds_move_as_far_from_home_as_those_that_take_angles(tmp_path):
    stack = so101_stack(ROOT / "configs")
    session = PolicySession.load(stack.write_policy(tmp_path / "policy.onnx"), stack.contract)
    speeds = np.array([session.step(np.zeros(stack.contract.num_measurements)) for _ in range(500)])
    ways = np.cumsum(speeds, axis=0) / stack.robot.rate_hz
    assert ways.max(axis=0) == pytest.approx([0.2, 0.1, 0.1, 0.1, 0.2], rel=0.2)
    assert ways.min(axis=0) == pytest.approx([-0.2, -0.1, -0.1, -0.1, -0.2], rel=0.3)
    servos = stack.servos.servos
    for name, low, high in zip(list(servos), ways.min(axis=0), ways.max(axis=0), strict=False):
        assert servos[name].low < servos[name].home + low
        assert servos[name].home + high < servos[name].high


def test_goals_of_joints_that_take_speeds_may_move_as_fast_as_those():
    stack = so101_stack(ROOT / "configs")
    on = {"t": 0, "what": "torque", "on": [True] * 6, "share": [1.0] * 6}
    limit = 2.0 / stack.robot.rate_hz
    assert check_goals(stack, [on, goal(1, 1, 0.0), goal(2, 1, limit)])[1] == []
    assert len(check_goals(stack, [on, goal(1, 1, 0.0), goal(2, 1, limit + 0.01)])[1]) == 1


def arguments(**changes):
    return argparse.Namespace(**{"seed": 3, "stack": None, "only": [], "faults": 10, **changes})


def test_plans_follow_from_the_seed_and_come_to_every_fault():
    plans = [plan_campaign(arguments(), number) for number in range(60)]
    assert plans == [plan_campaign(arguments(), number) for number in range(60)]
    assert plans[0] != plan_campaign(arguments(seed=4), 0)
    assert {name for plan in plans for name in plan["plan"]} == set(all_kinds())
    assert all(len(plan["plan"]) == 10 for plan in plans)
    for plan in plans:
        assert all(plan["stack"] in all_kinds()[name].stacks for name in plan["plan"])


def test_the_report_shows_every_violation():
    fault = {"kind": "silent servo", "outcome": "rides", "stop_s": None, "bound_s": 0.3, "violations": ["it was bad"]}
    line = {"campaign": 7, "stack": "so101", "faults": [fault], "general_violations": [], "runs": 1, "values": 2, "goals": 3}
    shown = report([line])
    assert "campaign 7 (so101), silent servo: it was bad" in shown
    assert "1 campaigns, 1 faults, 1 runs, 2 valid values compared, 3 goals checked, 1 violations" in shown


def load_program():
    spec = importlib.util.spec_from_file_location("benchmark", ROOT / "launch" / "benchmark.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def run(monkeypatch, *given):
    monkeypatch.setattr(sys, "argv", ["benchmark.py", "faults", *map(str, given)])
    load_program().main()


@pytest.mark.parametrize(
    ("stack", "outcomes"),
    [
        ("dynamixel", {"bad CRC": "rides", "silent servo, lasting": "stops", "control process killed": "stops"}),
        ("so101", {"stuck encoder": "stops"}),
    ],
)
def test_a_campaign_with_real_processes_is_in_order_and_is_not_done_again(stack, outcomes, monkeypatch, tmp_path, capsys):
    common = ["--campaigns", 1, "--faults", len(outcomes), "--stack", stack, "--results", tmp_path / "r.jsonl"]
    common += ["--json", tmp_path / "f.json"]
    for name in outcomes:
        common += ["--only", name]
    run(monkeypatch, *common)
    out, err = capsys.readouterr()
    assert f"1 of 1: campaign 0 ({stack})" in err
    assert "0 violations" in out
    [line] = [json.loads(text) for text in (tmp_path / "r.jsonl").read_text().splitlines()]
    assert {fault["kind"]: fault["outcome"] for fault in line["faults"]} == outcomes
    assert line["values"] > 100
    assert line["goals"] > 50
    assert json.loads((tmp_path / "f.json").read_text())["campaigns"] == [line]
    run(monkeypatch, *common)
    assert "1 of 1" not in capsys.readouterr().err


@pytest.mark.parametrize(
    ("given", "message"),
    [(["--only", "bad CRV"], "Did you mean 'bad CRC'?"), (["--campaigns", "0"], "campaigns must be 1 or more, got 0")],
)
def test_what_cannot_be_done_is_refused(given, message, monkeypatch, capsys):
    with pytest.raises(SystemExit):
        run(monkeypatch, *given)
    assert message in capsys.readouterr().err
