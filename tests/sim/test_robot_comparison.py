"""A robot beside its simulation: an equal one is explained wholly, a late one is found to be late, another one in part."""

import dataclasses

import numpy as np
import pytest

import sim
from dpg_robot.data.transition_arrays import TransitionArrays
from dpg_robot.errors import ContractError
from sim.robot_comparison import ComparisonError, compare_with_simulation, cut_windows
from sim.robot_comparison_figure import draw_comparison

REPEAT = 2
STEPS = 120


def drive(late=0, mass=1.0, seed=0, steps=STEPS):
    """Let a simulated cart-pole play the robot; its actions act ``late`` reward steps late."""
    random = np.random.default_rng(seed)
    actions = np.repeat(np.clip(random.normal(0, 0.5, (steps // 4 + 1, 1)), -1, 1), 4, axis=0)[:steps]
    with sim.make("cartpole-swingup", num_envs=1, seed=seed) as env:
        contract = env.task.contract(env.physics.model, REPEAT, 0)
        env.physics.parameter("body_mass")[:] *= mass
        env.set_state(np.array([[0.0, np.pi]]), np.zeros((1, 2)))
        measurements = [np.concatenate([env.qpos[0], env.qvel[0]])]
        for step in range(steps * REPEAT):
            source = (step - late) // REPEAT
            env.step(actions[max(source, 0)][None] if source >= 0 else np.zeros((1, 1)))
            if (step + 1) % REPEAT == 0:
                measurements.append(np.concatenate([env.qpos[0], env.qvel[0]]))
    measured = np.array(measurements)
    count = np.arange(steps)
    zeros = np.zeros(steps)
    transitions = TransitionArrays(
        run_ids=("run",), run=zeros.astype(np.int32), sequence=count.astype(np.uint64), episode=zeros.astype(np.int32),
        step=count.astype(np.int32), measurement=measured[:-1], action=actions, intended_action=actions, command=10 * actions,
        next_measurement=measured[1:], terminal=zeros.astype(bool), timeout=zeros.astype(bool), time_ns=count * 20_000_000,
        next_time_ns=(count + 1) * 20_000_000, wall_ns=count, valid=~zeros.astype(bool), policy=zeros.astype(np.uint64),
    )  # fmt: skip
    return transitions, contract


def test_a_robot_that_is_its_simulation_is_explained_wholly():
    comparison = compare_with_simulation(*drive(), window_s=0.2)
    assert comparison.windows == (STEPS - 3) // 10
    assert comparison.channels == ("cart_position", "pole_angle", "cart_velocity", "pole_velocity")
    assert np.abs(comparison.error).max() < 1e-6
    assert comparison.explained == pytest.approx(np.ones(4))
    assert comparison.delay_s == 0.0


@pytest.mark.parametrize("late", [1, 2, 3])
def test_a_robot_whose_actions_act_late_is_found_to_be_late(late):
    comparison = compare_with_simulation(*drive(late=late), window_s=0.2)
    assert comparison.delay_s == pytest.approx(late * 0.01, abs=0.003)
    assert np.abs(comparison.error).max() < 1e-6
    assert comparison.delay_error.argmin() == late


def test_a_heavier_robot_is_explained_in_part():
    comparison = compare_with_simulation(*drive(mass=1.5), window_s=0.2)
    velocity = comparison.channels.index("cart_velocity")
    assert 0.3 < comparison.explained[velocity] < 0.95
    assert comparison.error[-1, velocity] > comparison.error[0, velocity]


def test_pieces_have_no_gap_and_no_value_that_was_not_measured():
    transitions, _ = drive(steps=60)
    transitions.valid[20] = False
    transitions.episode[40:] = 1
    transitions.step[40:] = np.arange(20)
    windows = cut_windows(transitions, 9)
    starts = [int(np.flatnonzero((transitions.measurement == first).all(axis=1))[0]) for first in windows.measurement[:, 0]]
    assert starts == [3, 24, 43]
    with pytest.raises(ComparisonError, match="no 43 valid steps"):
        cut_windows(transitions, 40)


def test_pieces_do_not_go_from_one_run_to_the_next():
    transitions, _ = drive(steps=40)
    transitions.run[20:] = 1  # of another run whose steps happen to go on
    windows = cut_windows(transitions, 8)
    starts = [int(np.flatnonzero((transitions.measurement == first).all(axis=1))[0]) for first in windows.measurement[:, 0]]
    assert starts == [3, 11, 23, 31]
    np.testing.assert_array_equal(windows.before[0], transitions.measurement[0])
    np.testing.assert_array_equal(windows.previous[2], transitions.action[20:23])


def test_tasks_whose_state_is_not_measured_and_other_channels_are_refused():
    transitions, contract = drive(steps=20)
    with pytest.raises(ComparisonError, match="measured_state"):
        compare_with_simulation(transitions, dataclasses.replace(contract, task="walker-walk"))
    channels = tuple(reversed(contract.measurements))
    with pytest.raises(ContractError, match="the simulation of cartpole-swingup has the measurements"):
        compare_with_simulation(transitions, dataclasses.replace(contract, measurements=channels), window_s=0.1)


def test_the_picture_is_drawn(tmp_path):
    draw_comparison(compare_with_simulation(*drive(late=1, steps=40), window_s=0.1), tmp_path / "comparison.png")
    assert (tmp_path / "comparison.png").read_bytes().startswith(b"\x89PNG")
