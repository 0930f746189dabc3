import dataclasses
import math
import time

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from dpg_robot.contract import CommandChannel, Contract, Feature, MeasurementChannel
from dpg_robot.deploy.robot import DeviceFlag, JointState
from dpg_robot.deploy.safety import GoalLimit, PositionLimit, Safety, SafetyConfig, SafetyFlag, brake_at_soft_limit, flag_names
from dpg_robot.errors import ConfigError, UnknownNameError

CONTRACT = Contract(
    task="test",
    measurements=tuple(
        MeasurementChannel(name, "") for name in ("cart_position", "pole_angle", "cart_velocity", "pole_velocity")
    ),
    features=(Feature("identity", "cart_position"),),
    commands=(CommandChannel("cart_force", "N", -10.0, 10.0),),
    rate_hz=50.0,
)
LIMIT = PositionLimit(
    soft_low=-1.6,
    soft_high=1.6,
    hard_low=-1.75,
    hard_high=1.75,
    velocity="cart_velocity",
    command="cart_force",
    braking_command=10.0,
    braking_deceleration=4.0,
)
CONFIG = SafetyConfig(positions={"cart_position": LIMIT}, max_speed={"pole_velocity": 40.0})
PERIOD_NS = CONTRACT.period_ns

positions = st.floats(-1.75, 1.75)
velocities = st.floats(-8, 8)
commands = st.floats(allow_nan=True, allow_infinity=True)


def make_safety(**changes):
    return Safety(dataclasses.replace(CONFIG, **changes), CONTRACT)


def reading(position=0.0, velocity=0.0, pole_velocity=0.0, *, age_periods=0.0, valid=True):
    now_ns = time.monotonic_ns()
    state = JointState.empty(4)
    state.values[:] = position, math.pi, velocity, pole_velocity
    state.valid[:] = valid
    state.time_ns[:] = now_ns - round(age_periods * PERIOD_NS)
    return state, now_ns


@given(commands, positions, velocities, st.floats(1.0, 2000.0))
def test_whatever_is_asked_for_only_finite_commands_within_limits_are_sent(command, position, velocity, rate):
    safety = make_safety(max_command_rate={"cart_force": rate})
    sent = np.array([command])
    flags, stop = safety.limit_command(sent, reading(position, velocity)[0].values)
    assert -10.0 <= sent[0] <= 10.0
    assert (stop is not None) == (not math.isfinite(command))
    assert flags != 0 or sent[0] == command


def test_a_command_that_is_not_finite_becomes_no_effort_and_stops_the_robot():
    command = np.array([math.nan])
    flags, stop = make_safety().limit_command(command, reading()[0].values)
    assert command[0] == 0.0
    assert flag_names(flags) == ["non_finite"]
    assert "cart_force" in stop.message
    assert not stop.terminal


def test_actions_are_clipped_and_flagged():
    action = np.array([1.5])
    assert make_safety().clip_action(action) == SafetyFlag.ACTION_CLIPPED
    assert action[0] == 1.0
    assert make_safety().clip_action(action) == 0


def test_rounding_to_float32_at_a_limit_is_no_intervention():
    contract = dataclasses.replace(CONTRACT, commands=(CommandChannel("cart_force", "N", -0.1, 0.1),))
    safety = Safety(SafetyConfig(), contract)
    command = np.array([float(np.float32(0.1))])
    assert command[0] > 0.1
    assert safety.limit_command(command, np.zeros(4)) == (0, None)
    assert command[0] == 0.1


def test_the_rate_of_change_is_limited_from_the_last_command_sent():
    safety = make_safety(max_command_rate={"cart_force": 100.0})
    sent = []
    for _ in range(7):
        command = np.array([10.0])
        flags, _ = safety.limit_command(command, np.zeros(4))
        sent.append((float(command[0]), flags))
    assert sent == [(2.0, 8), (4.0, 8), (6.0, 8), (8.0, 8), (10.0, 0), (10.0, 0), (10.0, 0)]


@given(positions, velocities, st.floats(-10, 10))
def test_beyond_a_soft_limit_nothing_pushes_further_outward(position, velocity, command):
    sent = brake_at_soft_limit(LIMIT, position, velocity, command, 0.02)
    if position > LIMIT.soft_high and velocity > -4.0:  # faster, it must brake before the other end
        assert sent <= 0.0
    if position < LIMIT.soft_low and velocity < 4.0:
        assert sent >= 0.0
    if abs(position) + abs(velocity) * 0.02 + velocity**2 / 8.0 < LIMIT.soft_high:
        assert sent == command


def test_braking_begins_early_enough_for_the_command_to_travel():
    # 1 m + (2.1 m/s)^2 / (2 * 4 m/s^2) = 1.55 m is within the limit of 1.6 m; 0.05 s at 2.1 m/s more is not.
    assert brake_at_soft_limit(LIMIT, 1.0, 2.1, 10.0, lead_s=0.0) == 10.0
    assert brake_at_soft_limit(LIMIT, 1.0, 2.1, 10.0, lead_s=0.05) == -10.0


@given(positions, velocities, st.floats(-10, 10))
def test_both_ends_of_the_rail_are_treated_alike(position, velocity, command):
    assert brake_at_soft_limit(LIMIT, -position, -velocity, -command, 0.02) == -brake_at_soft_limit(
        LIMIT, position, velocity, command, 0.02
    )


@given(st.floats(-1.2, 1.2), st.floats(-2, 2), st.lists(st.sampled_from([-10.0, 0.0, 10.0]), min_size=5, max_size=60), st.data())
def test_no_policy_reaches_the_hard_limit_with_a_weak_motor_and_late_commands(position, velocity, policy, data):
    """A cart that the motor moves with 4 to 8 m/s^2, one period late; each command of the policy holds for 5 periods."""
    safety, acceleration = make_safety(), data.draw(st.floats(4.2, 8.0))
    assume(abs(position + velocity * 0.04 + velocity * abs(velocity) / 8.0) < 1.6)  # it can be stopped from there
    applied = 0.0
    for asked in policy:
        for _ in range(5):
            command = np.array([asked])
            state, now_ns = reading(position, velocity)
            assert safety.check_measurement(state, now_ns)[1] is None
            safety.limit_command(command, state.values)
            for force, share in ((applied, 0.25), (float(command[0]), 0.75)):
                position += velocity * 0.02 * share + 0.5 * force / 10.0 * acceleration * (0.02 * share) ** 2
                velocity += force / 10.0 * acceleration * 0.02 * share
            applied = float(command[0])


@pytest.mark.parametrize("position", [1.76, -1.76, math.inf])
def test_a_hard_position_limit_ends_the_episode_for_good(position):
    if math.isinf(position):
        flags, stop = make_safety().check_measurement(*reading(position))
        assert (flags, stop.terminal) == (SafetyFlag.NON_FINITE, False)
        return
    flags, stop = make_safety().check_measurement(*reading(position))
    assert flags == SafetyFlag.HARD_LIMIT
    assert stop.terminal
    assert "cart_position" in stop.message


def test_a_robot_on_its_way_back_from_beyond_a_hard_limit_is_let_off_until_it_is_inside():
    safety = make_safety()
    safety.returning = True
    assert safety.check_measurement(*reading(1.8)) == (SafetyFlag.HARD_LIMIT, None)
    command = np.array([5.0])
    safety.limit_command(command, reading(1.8)[0].values)
    assert command[0] == -10.0
    assert safety.check_measurement(*reading(1.7)) == (0, None)
    assert safety.check_measurement(*reading(1.8))[1] is not None


def test_a_position_that_nothing_holds_back_is_never_let_off():
    safety = make_safety(positions={"cart_position": PositionLimit(hard_low=-1.75, hard_high=1.75)})
    safety.returning = True
    assert safety.check_measurement(*reading(1.8))[1] is not None


def test_a_speed_limit_ends_the_episode_for_good():
    flags, stop = make_safety().check_measurement(*reading(pole_velocity=-41.0))
    assert flags == SafetyFlag.SPEED_LIMIT
    assert stop.terminal


def test_a_missing_measurement_is_borne_for_some_periods_and_then_stops_the_robot():
    safety = make_safety(stale_patience_periods=3)
    assert safety.check_measurement(*reading()) == (0, None)
    for age in (1.0, 2.0, 2.9):
        assert safety.check_measurement(*reading(age_periods=age, valid=False)) == (SafetyFlag.STALE, None)
    flags, stop = safety.check_measurement(*reading(age_periods=3.1, valid=False))
    assert flags == SafetyFlag.STALE
    assert "pole_velocity" in stop.message
    assert not stop.terminal


def test_one_old_channel_is_named():
    state, now_ns = reading()
    state.time_ns[2] -= 5 * PERIOD_NS
    _, stop = make_safety().check_measurement(state, now_ns)
    assert "cart_velocity" in stop.message
    assert "cart_position" not in stop.message


@pytest.mark.parametrize(
    ("device", "flag"),
    [
        (DeviceFlag.ENABLED | DeviceFlag.HARDWARE_FAULT, SafetyFlag.DEVICE_FAULT),
        (DeviceFlag.WATCHDOG_TRIPPED, SafetyFlag.DEVICE_WATCHDOG),
    ],
)
def test_what_the_device_reports_stops_the_robot(device, flag):
    flags, stop = make_safety().check_device(device)
    assert flags == flag
    assert stop is not None


def test_a_device_that_switches_itself_off_stops_the_robot():
    safety = make_safety()
    assert safety.check_device(DeviceFlag(0)) == (0, None)  # the flag of a device that has none, or not yet
    assert safety.check_device(DeviceFlag.ENABLED) == (0, None)
    flags, stop = safety.check_device(DeviceFlag(0))
    assert flags == SafetyFlag.DEVICE_FAULT
    assert "switched its actuators off" in stop.message


def test_late_commands_are_flagged_and_only_many_in_a_row_stop_the_robot():
    safety = make_safety(max_overruns_in_row=3)
    late = safety.deadline_ns + 1
    for _ in range(5):
        assert safety.check_timing(late, 0) == (SafetyFlag.OVERRUN, None)
        assert safety.check_timing(0, 2) == (SafetyFlag.OVERRUN, None)
        assert safety.check_timing(safety.deadline_ns, 0) == (0, None)
    safety.check_timing(late, 0)
    safety.check_timing(late, 0)
    flags, stop = safety.check_timing(late, 0)
    assert flags == SafetyFlag.OVERRUN
    assert "3 ticks in a row" in stop.message


def test_the_deadline_is_no_later_than_the_latency_that_the_policy_was_trained_for():
    assert Safety(CONFIG, dataclasses.replace(CONTRACT, latency_budget_s=0.004)).deadline_ns == 4_000_000
    assert Safety(CONFIG, dataclasses.replace(CONTRACT, latency_budget_s=0.1)).deadline_ns == PERIOD_NS // 2


def test_where_a_command_of_0_is_an_effort_the_last_command_is_held_instead():
    safety = make_safety(zero_command_is_safe=False)
    safety.limit_command(np.array([4.0]), np.zeros(4))
    broken = np.array([math.nan])
    safety.limit_command(broken, np.zeros(4))
    assert broken[0] == 4.0


def make_goal_safety(**limits):
    goal = GoalLimit(position="cart_position", **limits)
    return Safety(SafetyConfig(goals={"cart_force": goal}, zero_command_is_safe=False), CONTRACT)


def test_a_goal_begins_where_the_position_is_and_leads_it_by_a_bounded_distance():
    safety = make_goal_safety(max_lead=0.5)
    safety.start_from(np.array([2.0, 0, 0, 0]))
    assert safety.neutral_command() == 2.0
    for asked, position, sent in ((5.0, 2.0, 2.5), (-5.0, 2.0, 1.5), (2.2, 2.0, 2.2), (5.0, 9.0, 8.5)):
        command = np.array([asked])
        flags, stop = safety.limit_command(command, np.array([position, 0, 0, 0]))
        assert command[0] == pytest.approx(sent)
        assert flags == (SafetyFlag.LEAD_LIMITED if sent != asked else 0)
        assert stop is None


def test_a_goal_starts_within_the_limits_of_its_command():
    safety = make_goal_safety()
    safety.start_from(np.array([37.0, 0, 0, 0]))
    assert safety.neutral_command() == CONTRACT.command_high[0]


def test_a_joint_that_does_not_follow_its_goal_stops_the_robot():
    safety = make_goal_safety(stuck_error=0.1, stuck_s=0.5)
    safety.check_device(DeviceFlag.ENABLED)
    state, now_ns = reading()

    def tick(position, goal, elapsed_s):
        state.values[0], state.time_ns[:] = position, now_ns + round(elapsed_s * 1e9)
        safety.limit_command(np.array([goal]), state.values)
        return safety.check_measurement(state, now_ns + round(elapsed_s * 1e9))[1]

    assert all(tick(0.02 * step, 1.0, 0.02 * step) is None for step in range(45)), "it moves"
    assert all(tick(0.88, 1.0, 0.9 + 0.02 * step) is None for step in range(24)), "it has not stood for long enough"
    stop = tick(0.88, 1.0, 1.5)
    assert "cart_position stays at 0.88" in stop.message
    assert "0.12 away from its goal cart_force" in stop.message
    assert tick(0.95, 1.0, 2.5) is None, "near its goal it may stand"


def test_goals_whose_zero_is_no_place_to_go_are_asked_for():
    with pytest.raises(ConfigError, match="zero_command_is_safe: false"):
        SafetyConfig(goals={"cart_force": GoalLimit(position="cart_position")})


def test_limits_of_unknown_channels_are_refused_with_a_suggestion():
    with pytest.raises(UnknownNameError, match="'cart_velocity'"):
        Safety(SafetyConfig(max_speed={"cart_velocty": 1.0}), CONTRACT)


def test_limits_in_the_wrong_order_are_refused():
    with pytest.raises(ConfigError, match="ordered"):
        PositionLimit(soft_low=-2.0, hard_low=-1.0)


def test_all_flags_fit_into_the_16_bits_of_a_record():
    assert max(SafetyFlag) < 2**16
