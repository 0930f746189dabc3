"""Robots are fitted when it is time, in a process of its own, and faults disturb nothing else."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import pytest

from dpg_robot.config import load_config
from sim.benchmarks.identification_robots import record
from sim.fitted_simulation import FittedDynamics
from sim.identification import IdentificationSettings
from sim.randomization import Randomization
from sim.robot_fitting import FittingConfig, RobotFitting

TASK = "cartpole-swingup"
SMALL = IdentificationSettings(windows=16, particles=16, final_sweeps=2, window_s=0.2, num_threads=1)


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory, write_run: Callable[..., None]) -> Path:
    """Logs of two cart-poles, one with a weak motor, and of one that stood still."""
    folder = tmp_path_factory.mktemp("store")
    for robot, gain in (("arm.weak", 0.6), ("strong", 1.5)):
        recording = record({"actuator_gain/slide": gain}, seconds=12, seed=0)
        write_run(folder / robot, "run", recording.transitions, recording.contract)
    still = recording.transitions.last(300)
    still.action[:] = 0.0
    write_run(folder / "still", "run", still, recording.contract)
    return folder


@pytest.fixture
def prior(tmp_path: Path) -> Path:
    path = tmp_path / "prior.yaml"
    path.write_text("actuator_gain: [0.4, 2.5]\n")
    return path


def config(prior: Path, **changes: int) -> FittingConfig:
    settings = {"every": 500, "first_after": 100, "newest": 400} | changes
    return FittingConfig(prior=str(prior), identification=SMALL, **settings)


def wait(fitting: RobotFitting, robots: Mapping[str, int], count: int) -> dict[str, FittedDynamics]:
    """Poll until so many robots were fitted, or failed to be."""
    found: dict[str, FittedDynamics] = {}
    end_s = time.monotonic() + 90
    while len(found) + len(fitting.faults) < count:
        assert time.monotonic() < end_s, "no fit came"
        found |= fitting.poll(robots)
        time.sleep(0.05)
    return found


def test_each_robot_is_fitted_to_its_own_log_and_a_fault_disturbs_no_other(store: Path, prior: Path, tmp_path: Path) -> None:
    fitting = RobotFitting(store, TASK, config(prior), tmp_path / "fitted")
    assert fitting.poll({"arm.weak": 99}) == {}
    assert fitting.poll({"arm.weak": 99}) == {}  # nothing began: too few transitions
    robots = {"arm.weak": 600, "still": 600, "strong": 600}
    found = wait(fitting, robots, 3)
    assert set(found) == {"arm.weak", "strong"}
    assert 0.5 < np.median(found["arm.weak"].samples) < 0.75
    assert 1.2 < np.median(found["strong"].samples) < 1.8
    assert set(fitting.faults) == {"still"}
    assert "the actions in the log are constant" in fitting.faults["still"]
    low, high = load_config(Randomization, tmp_path / "fitted" / "arm.weak.yaml").actuator_gain.bounds
    assert 0.45 < low < high < 0.8

    assert fitting.poll(robots) == {}  # not due again
    fitting.close()
    # another run of the program takes up what was fitted
    again = RobotFitting(store, TASK, config(prior), tmp_path / "fitted")
    earlier = again.earlier()
    assert set(earlier) == {"arm.weak", "strong"}
    assert np.array_equal(earlier["strong"].samples, found["strong"].samples)
    assert again.poll({"arm.weak": 600, "strong": 600}) == {}
    assert again.poll({"arm.weak": 600, "strong": 600}) == {}
    again.close()


def test_a_fit_within_other_ranges_or_a_damaged_one_is_not_taken_up(store: Path, prior: Path, tmp_path: Path) -> None:
    fitting = RobotFitting(store, TASK, config(prior), tmp_path / "fitted")
    wait(fitting, {"strong": 600}, 1)
    fitting.close()
    path = tmp_path / "fitted" / "strong.json"
    kept = path.read_text()
    for broken, message in ((kept[:-100], "does not hold a fit"), (json.dumps({"task": TASK}), "does not hold a fit")):
        path.write_text(broken)
        other = RobotFitting(store, TASK, config(prior), tmp_path / "fitted")
        assert other.earlier() == {}
        assert message in other.faults["strong"]
    path.write_text(kept)
    prior.write_text("actuator_gain: [0.4, 2.4]\n")
    other = RobotFitting(store, TASK, config(prior), tmp_path / "fitted")
    assert other.earlier() == {}
    assert "is a fit within other ranges than" in other.faults["strong"]


def test_closing_gives_up_a_fit_under_way_which_is_due_again(store: Path, prior: Path, tmp_path: Path) -> None:
    fitting = RobotFitting(store, TASK, config(prior), tmp_path / "fitted")
    fitting.poll({"strong": 600})
    fitting.close()
    assert fitting.poll({}) == {}
    assert not list((tmp_path / "fitted").glob("*.json"))
    assert set(wait(fitting, {"strong": 600}, 1)) == {"strong"}
    fitting.close()


@pytest.mark.parametrize(
    ("every", "transitions", "fitted_at", "due"),
    [(500, 99, None, False), (500, 100, None, True), (500, 599, 100, False), (500, 600, 100, True), (0, 10_000, None, False)],
)
def test_a_fit_is_due_after_enough_new_transitions(
    prior: Path, every: int, transitions: int, fitted_at: int | None, due: bool
) -> None:
    assert config(prior, every=every).due(transitions, fitted_at) is due
