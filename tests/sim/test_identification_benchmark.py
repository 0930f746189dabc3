"""The benchmark of identification: what it counts as found."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from sim.benchmarks.identification_command import describe, judge
from sim.benchmarks.identification_robots import ROBOTS, record

NAMES = ["mass/cart", "actuator_gain/slide", "control_delay_s"]


def found(**fitted: tuple[float, float]) -> dict[str, Any]:
    """A result with ranges for cart's mass, gain and delay, and gains that are 0.98 to 1.02 of the mass."""
    ranges = {"mass": (0.8, 1.2), "gain": (0.8, 1.2), "delay": (0.0, 0.004)} | fitted
    parameters = [
        {"name": name, "fitted": list(ends), "known": True, "share": 0.1}
        for name, ends in zip(NAMES, ranges.values(), strict=True)
    ]
    mass = np.linspace(0.8, 1.2, 41)
    samples = np.stack([mass, mass * np.tile([0.98, 1.02], 21)[:41], np.zeros(41)], axis=1)
    return {"parameters": parameters, "samples": samples.tolist(), "sample_names": NAMES}


def judged(result: dict[str, Any], gain: float = 1.0, delay_s: float = 0.0, force_share: float = 1.0) -> dict[str, Any]:
    judge(result, {"mass/cart": 1.0, "actuator_gain/slide": gain, "control_delay_s": delay_s}, force_share)
    return result


def test_a_true_value_is_inside_or_not() -> None:
    assert [each["inside"] for each in judged(found())["parameters"]] == [True, True, True]
    assert [each["inside"] for each in judged(found(), gain=1.3)["parameters"]] == [True, False, True]


@pytest.mark.parametrize(
    ("ends", "delay_s", "inside"),
    [((0.001, 0.004), 0.0, True), ((0.016, 0.024), 0.02, True), ((0.016, 0.024), 0.01, False), ((0.006, 0.014), 0.0, False)],
)
def test_delays_count_in_whole_physics_steps(ends: tuple[float, float], delay_s: float, inside: bool) -> None:
    assert judged(found(delay=ends), delay_s=delay_s)["parameters"][2]["inside"] is inside


@pytest.mark.parametrize(("force_share", "inside"), [(1.0, True), (0.95, False)])
def test_gain_and_mass_are_judged_together_by_the_force_that_the_motor_exerted(force_share: float, inside: bool) -> None:
    ratio = judged(found(), force_share=force_share)["gain_per_mass"]
    assert ratio["truth"] == force_share
    assert ratio["interval"] == pytest.approx([0.98, 1.02])
    assert ratio["inside"] is inside


def test_the_force_of_a_noisy_motor_is_less_than_was_commanded_near_its_limits() -> None:
    recording = record(ROBOTS["nominal"], seconds=60, seed=0)
    action = recording.transitions.action
    exerted = np.clip(action + 0.1 * np.random.default_rng(0).standard_normal((500, *action.shape)), -1, 1).mean(axis=0)
    slope = (action * exerted).sum() / (action**2).sum()
    assert recording.force_share == pytest.approx(slope, abs=5e-4)  # 3 standard errors are 3e-4
    assert 0.97 < recording.force_share < 0.999


def test_the_tables_count_over_robots_and_seeds() -> None:
    models = ("nominal", "draws from the prior's ranges", "draws from the fitted ranges", "posterior mean", "true parameters")
    shares = {model: {"end_share": 0.25} for model in models}
    runs = [
        {"robot": "mine", "seed": seed, "predictions": shares, **judged(found(), gain=gain)}
        for seed, gain in ((0, 1.0), (1, 1.3))
    ]
    text = describe(runs)
    assert "| actuator_gain/slide | 1 of 2            | 2 of 2     | 10 %" in text
    assert "| mine  | 0.250" in text
