"""The virtual cart-pole: its physics, its sensors, its hidden parameters, and its emulator as a process."""

import csv
import dataclasses
import itertools
import json
import math
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from sim.real_time_plant import MAX_CATCH_UP_S, TIMESTEP_S
from sim.suite_model import load_suite_model
from sim.virtual_robot import (
    ENCODER_COUNTS_PER_TURN,
    POSITION_QUANTUM_M,
    CartpoleParameters,
    VirtualCartpole,
)

ROOT = Path(__file__).parents[2]
ANGLE_QUANTUM = 2 * math.pi / ENCODER_COUNTS_PER_TURN
GRAVITY = 9.81
POLE_CENTRE_M = 0.5

DRIVE = """
import sys, time
import numpy as np
from dpg_robot.deploy.robot import JointState
from hw_drivers.microcontroller_robot import MicrocontrollerRobot
robot = MicrocontrollerRobot(
    sys.argv[1],
    measurement_names=("cart_position", "pole_angle", "cart_velocity", "pole_velocity"),
    measurement_units=("m", "rad", "m/s", "rad/s"),
    command_names=("cart_force",), command_units=("N",), command_low=[-10.0], command_high=[10.0], read_timeout_s=1.0,
)
robot.connect()
print(robot.identity, flush=True)
robot.enable()
state = JointState.empty(4)
for tick in range(10_000):
    robot.read(state)
    robot.write(np.array([4.0 if tick // 10 % 2 else -4.0]))
    if tick == 5:
        print(*state.values, flush=True)
    time.sleep(0.01)
"""


def undisturbed(seed: int = 0, **changes: float) -> CartpoleParameters:
    """Return hidden parameters without noise, pushes and whatever else is changed."""
    quiet = {"actuator_noise": 0.0, "push_force": (0.0, 0.0)}
    return dataclasses.replace(CartpoleParameters.draw(seed), **{**quiet, **changes})


def frictionless(seed: int = 0) -> CartpoleParameters:
    return undisturbed(seed, slider_friction=0.0, slider_damping=0.0, hinge_damping=0.0)


def run(plant: VirtualCartpole, seconds: float, chunk_s: float = 0.01) -> np.ndarray:
    """Let the plant run and return its true states at each chunk, (chunks, 4)."""
    start_ns = plant._time_ns or 0
    states = []
    plant.advance(start_ns)
    for chunk in range(1, round(seconds / chunk_s) + 1):
        plant.advance(start_ns + round(chunk * chunk_s * 1e9))
        states.append(plant.state())
    return np.array(states)


def pole_inertia(parameters: CartpoleParameters) -> float:
    """Moment of inertia of the pole about its centre, kg m^2, if it is as slim as the nominal one."""
    nominal = load_suite_model("cartpole").body("pole_1")
    return float(nominal.inertia[0] * parameters.pole_mass / nominal.mass[0])


def test_it_starts_hanging_at_rest_near_the_middle() -> None:
    for seed in range(3):
        position, angle, *velocities = VirtualCartpole(seed).measure()
        assert abs(position) <= 0.1
        assert angle == pytest.approx(math.pi, abs=ANGLE_QUANTUM)
        assert velocities == [0.0, 0.0]


def test_hidden_parameters_are_drawn_outside_the_nominal_ones_but_not_far() -> None:
    nominal = CartpoleParameters.nominal()
    assert (nominal.cart_mass, nominal.pole_mass, nominal.slider_friction) == (1.0, 0.1, 0.0)
    drawn = [CartpoleParameters.draw(seed) for seed in range(20)]
    assert len(set(drawn)) == 20
    for robot in drawn:
        assert 1.25 <= robot.cart_mass / nominal.cart_mass <= 1.40
        assert 1.20 <= robot.pole_mass / nominal.pole_mass <= 1.40
        assert 0.80 <= robot.actuator_gain <= 0.90
        assert 3 <= robot.slider_damping / nominal.slider_damping <= 8
        assert 3 <= robot.hinge_damping / nominal.hinge_damping <= 8
        assert 0.02 <= robot.slider_friction <= 0.06


def test_small_swings_have_the_period_of_the_hidden_masses() -> None:
    parameters = frictionless(seed=4)
    plant = VirtualCartpole(0, parameters)
    plant.set_state([0.0, math.pi + 0.05], [0.0, 0.0])
    swing = run(plant, 10.0, TIMESTEP_S)[:, 1] - math.pi
    upward = np.flatnonzero((swing[:-1] < 0) & (swing[1:] >= 0))
    crossings = upward + swing[upward] / (swing[upward] - swing[upward + 1])
    period_s = float(np.diff(crossings).mean()) * TIMESTEP_S
    # Linearized cart-pole about hanging, cart free:
    # omega^2 = m g l (M + m) / ((M + m) (I + m l^2) - m^2 l^2)
    total, first_moment = parameters.cart_mass + parameters.pole_mass, parameters.pole_mass * POLE_CENTRE_M
    inertia = pole_inertia(parameters) + parameters.pole_mass * POLE_CENTRE_M**2
    omega = math.sqrt(first_moment * GRAVITY * total / (total * inertia - first_moment**2))
    assert period_s == pytest.approx(2 * math.pi / omega, rel=2e-3)


def test_a_commanded_force_accelerates_the_hidden_masses_by_the_hidden_gain() -> None:
    parameters = frictionless(seed=2)
    plant = VirtualCartpole(0, parameters)
    plant.set_command([5.0])
    speed = run(plant, 0.01)[-1, 2]
    # At rest and hanging: acceleration = F / (M + m - m^2 l^2 / (I + m l^2))
    total, first_moment = parameters.cart_mass + parameters.pole_mass, parameters.pole_mass * POLE_CENTRE_M
    inertia = pole_inertia(parameters) + parameters.pole_mass * POLE_CENTRE_M**2
    expected = parameters.actuator_gain * 5.0 / (total - first_moment**2 / inertia)
    assert speed / 0.01 == pytest.approx(expected, rel=5e-3)


def test_energy_is_kept_without_friction_and_lost_with_it() -> None:
    for parameters, keeps in ((frictionless(), True), (undisturbed(), False)):
        plant = VirtualCartpole(0, parameters)
        plant.set_state([0.0, 1.0], [0.0, 0.0])
        start = plant.energy()
        energies = []
        for _ in range(20):
            run(plant, 0.1)
            energies.append(plant.energy())
        if keeps:
            assert energies == pytest.approx([start] * 20, abs=1e-3)
        else:
            assert energies[-1] < start - 0.01
            assert all(later < earlier + 1e-6 for earlier, later in itertools.pairwise(energies))


def test_encoders_read_whole_counts_next_to_the_truth_and_count_turns() -> None:
    plant = VirtualCartpole(0, undisturbed())
    plant.set_state([0.0, 0.0], [0.3, 14.0])
    turned = 0.0
    for _ in range(100):
        (truth,) = run(plant, 0.01)
        position, angle = plant.measure()[:2]
        for value, quantum, true_value in ((position, POSITION_QUANTUM_M, truth[0]), (angle, ANGLE_QUANTUM, truth[1])):
            assert value / quantum == pytest.approx(round(value / quantum), abs=1e-6)
            assert abs(value - true_value) <= 0.5001 * quantum
        turned = max(turned, angle)
    assert turned > 2.5 * math.pi


def test_measured_velocities_follow_the_true_ones_with_the_lag_and_grain_of_a_filter() -> None:
    plant = VirtualCartpole(0, undisturbed())
    plant.set_state([0.0, math.pi + 1.0], [0.0, 0.0])
    errors = []
    for _ in range(200):
        (truth,) = run(plant, 0.01)
        errors.append(plant.measure()[2:] - truth[2:])
    spread = np.std(errors, axis=0)
    assert 0 < spread[0] < 0.03
    assert 0 < spread[1] < 0.3


def test_noise_and_pushes_act_as_described() -> None:
    parameters = CartpoleParameters.draw(1)
    at_rest = run(VirtualCartpole(0, dataclasses.replace(parameters, push_force=(0.0, 0.0))), 4.0)
    assert np.ptp(at_rest, axis=0).max() < 1e-9, "a motor that is switched off makes no noise"
    powered = VirtualCartpole(0, dataclasses.replace(parameters, push_force=(0.0, 0.0)))
    powered.set_command([0.0])
    assert np.std(run(powered, 4.0)[:, 2]) > 1e-3
    pushed = run(VirtualCartpole(0, parameters), 4.0)
    assert np.std(pushed[:, 2]) > 1e-4
    assert np.abs(pushed[:, 2]).max() < 0.5 * 0.05 / parameters.cart_mass * 1.1


def test_equal_seeds_and_commands_give_equal_courses_in_any_chunks_of_time() -> None:
    def course(seed: int, chunk_s: float) -> np.ndarray:
        plant = VirtualCartpole(seed)
        plant.set_command([3.0])
        return run(plant, 2.4, chunk_s)[-1]

    assert (course(7, 0.002) == course(7, 0.08)).all()
    assert (course(7, 0.002) != course(8, 0.002)).any()


def test_a_stall_is_caught_up_for_a_tenth_of_a_second_and_the_rest_is_skipped_and_counted() -> None:
    stalled, steady = VirtualCartpole(3), VirtualCartpole(3)
    for plant in (stalled, steady):
        plant.set_command([2.0])
        plant.advance(0)
    stalled.advance(1_500_000_000)
    steady.advance(round(MAX_CATCH_UP_S * 1e9))
    assert (stalled.state() == steady.state()).all()
    assert (stalled.stalls, steady.stalls) == (1, 0)
    assert stalled.skipped_s == pytest.approx(1.5 - MAX_CATCH_UP_S)
    stalled.advance(1_510_000_000)
    steady.advance(round(MAX_CATCH_UP_S * 1e9) + 10_000_000)
    assert (stalled.state() == steady.state()).all()


@pytest.fixture
def start() -> Iterator[Callable[..., subprocess.Popen[str]]]:
    """Start Python programs that do not outlive the test."""
    processes: list[subprocess.Popen[str]] = []

    def run_python(*command: str) -> subprocess.Popen[str]:
        environment = {**os.environ, "PYTHONPATH": str(ROOT), "MUJOCO_GL": "disable"}
        process = subprocess.Popen(
            [sys.executable, *command], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment
        )
        processes.append(process)
        return process

    yield run_python
    for process in processes:
        process.kill()
        process.communicate()


def test_the_emulator_serves_a_robot_whose_force_ends_with_its_host(
    start: Callable[..., subprocess.Popen[str]], tmp_path: Path
) -> None:
    link, trace, truth = tmp_path / "robot", tmp_path / "trace.csv", tmp_path / "truth.json"
    options = ["--seed", "5", "--link", str(link), "--trace", str(trace), "--truth", str(truth)]
    emulator = start(str(ROOT / "launch" / "emulate.py"), "cartpole", *options)
    assert emulator.stdout is not None
    port = emulator.stdout.readline().strip()
    assert os.readlink(link) == port
    assert json.loads(truth.read_text()) == json.loads(json.dumps(dataclasses.asdict(CartpoleParameters.draw(5))))

    host = start("-c", DRIVE, str(link))
    assert host.stdout is not None
    identity = host.stdout.readline()
    assert "cartpole-mcu" in identity
    assert not any(word in identity.lower() for word in ("virtual", "emul", "sim", "mujoco"))
    position, angle, _, _ = map(float, host.stdout.readline().split())
    assert abs(position) < 0.2
    assert abs(angle - math.pi) < 0.5

    host.kill()
    killed_ns = time.monotonic_ns()
    rows = wait_for_trace(trace, killed_ns + 300_000_000)
    with_force = [float(row["time_ns"]) for row in rows if float(row["command_cart_force"]) != 0]
    assert len(with_force) > 10
    assert max(with_force) - killed_ns < 100_000_000
    assert rows[-1]["enabled"] == "0"

    emulator.send_signal(signal.SIGTERM)
    assert emulator.wait(timeout=10) == 0
    assert not link.is_symlink()


def wait_for_trace(path: Path, until_ns: int) -> list[dict[str, str]]:
    deadline = time.monotonic() + 20
    while time.monotonic() < deadline:
        whole_lines = path.read_text().rpartition("\n")[0]
        rows = list(csv.DictReader(whole_lines.splitlines()))
        if rows and float(rows[-1]["time_ns"]) > until_ns:
            return rows
        time.sleep(0.05)
    raise AssertionError(f"the trace {path} did not reach {until_ns} ns")


def test_the_emulator_ends_well_on_ctrl_c_and_does_not_overwrite_a_file_with_its_link(
    start: Callable[..., subprocess.Popen[str]], tmp_path: Path
) -> None:
    emulator = start(str(ROOT / "launch" / "emulate.py"), "cartpole")
    assert emulator.stdout is not None
    assert emulator.stdout.readline().startswith("/dev/")
    emulator.send_signal(signal.SIGINT)
    assert emulator.wait(timeout=10) == 0

    in_the_way = tmp_path / "notes"
    in_the_way.write_text("keep me")
    refused = start(str(ROOT / "launch" / "emulate.py"), "cartpole", "--link", str(in_the_way))
    _, message = refused.communicate(timeout=20)
    assert refused.returncode == 1
    assert str(in_the_way) in message
    assert in_the_way.read_text() == "keep me"
