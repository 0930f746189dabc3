"""Pushes, measured by the forces that the simulations get. Tolerances are four standard errors."""

import functools
import itertools
import math

import mujoco
import numpy as np
import pytest

from sim.physics import Physics
from sim.pushes import Pushes, directions_of_motion, pushable_bodies
from sim.suite_model import load_suite_model, load_suite_spec

DT = 0.01
load_model = functools.cache(load_suite_model)


def push_forces(steps, num_envs=400, rate_hz=4.0, force=(2.0, 2.0), duration_s=(0.05, 0.05), domain="cheetah"):
    """Return the forces and torques (steps, N, nbody, 6) that the bodies got."""
    physics, random = Physics(load_model(domain), num_envs, 1), np.random.default_rng(0)
    pushes = Pushes(rate_hz, force, duration_s, physics, DT)
    forces = np.zeros((steps, *physics.data("xfrc_applied").shape))
    for step in range(steps):
        pushes.step(random)
        forces[step] = physics.data("xfrc_applied")
    return forces


def starts_of(forces):
    """Return (steps, N), where a push starts: one that differs from what acted one step before."""
    changed = (np.diff(forces, axis=0, prepend=0) != 0).any(axis=(2, 3))
    return changed & (forces != 0).any(axis=(2, 3))


def durations_of(forces):
    """Return the durations, in steps, of all pushes that ended."""
    durations = []
    for course in np.moveaxis(forces, 1, 0):
        flat = course.reshape(len(course), -1)
        edges = np.flatnonzero((np.diff(flat, axis=0) != 0).any(axis=1)) + 1
        durations += [end - start for start, end in itertools.pairwise(edges) if flat[start].any()]
    return np.array(durations)


def test_pushes_come_as_often_as_said_and_one_at_a_time():
    forces = push_forces(300)
    pushed = (forces != 0).any(axis=3)
    assert pushed.sum(axis=2).max() == 1, "one body at a time"
    starts = starts_of(forces)
    free = ~pushed.any(axis=2) | starts
    probability = 1 - math.exp(-4.0 * DT)
    assert starts.sum() / free.sum() == pytest.approx(probability, rel=4 / math.sqrt(starts.sum()))
    # the waits are those of a Poisson process: as many are over in the next step, however long they have lasted
    waiting = np.zeros(starts.shape[1], dtype=int)
    early, late = [], []
    for start, is_free in zip(starts, free, strict=True):
        early += list(start[is_free & (waiting < 10)])
        late += list(start[is_free & (waiting >= 10)])
        waiting = np.where(start | ~is_free, 0, waiting + 1)
    for part in (early, late):
        assert np.mean(part) == pytest.approx(probability, abs=4 * math.sqrt(probability / len(part)))


@pytest.mark.parametrize(("duration_s", "steps"), [(0.05, 5), (0.01, 1), (0.001, 1), (0.031, 3)])
def test_a_push_lasts_as_long_as_said(duration_s, steps):
    np.testing.assert_array_equal(durations_of(push_forces(150, duration_s=(duration_s, duration_s))), steps)


def test_durations_are_uniform_in_their_range():
    durations = durations_of(push_forces(400, duration_s=(0.02, 0.06))[:, :200])
    shares = np.bincount(durations, minlength=7)[2:7] / len(durations)
    expected = np.array([0.5, 1, 1, 1, 0.5]) / 4  # rounded to steps, so the ends get half
    np.testing.assert_allclose(shares, expected, atol=4.5 * math.sqrt(0.25 * 0.75 / len(durations)))
    assert durations.max() == 6


def test_sizes_are_uniform_in_their_range():
    forces = push_forces(200, force=(1.0, 3.0))
    sizes = np.linalg.norm(forces[starts_of(forces)], axis=(1, 2))
    assert sizes.min() >= 1.0
    assert sizes.max() <= 3.0
    assert sizes.mean() == pytest.approx(2.0, abs=4 * math.sqrt(4 / 12 / len(sizes)))
    assert sizes.std() == pytest.approx(math.sqrt(4 / 12), rel=4 / math.sqrt(2 * len(sizes)))


def test_one_size_is_exactly_that_size_without_a_torque_and_constant():
    forces = push_forces(200)
    sizes = np.linalg.norm(forces[..., :3], axis=(2, 3))
    np.testing.assert_allclose(sizes[sizes > 0], 2.0)
    assert (forces[..., 3:] == 0).all()


@pytest.mark.parametrize(("domain", "plane"), [("cheetah", [1, 0, 1]), ("reacher", [1, 1, 0]), ("humanoid", [1, 1, 1])])
def test_directions_are_uniform_where_the_model_can_move(domain, plane):
    forces = push_forces(150, domain=domain, rate_hz=50.0, force=(1.0, 1.0), duration_s=(DT, DT))
    directions = forces[starts_of(forces)].sum(axis=1)[:, :3]
    count, dimensions = len(directions), sum(plane)
    assert (directions[:, np.array(plane) == 0] == 0).all()
    np.testing.assert_allclose(directions.mean(axis=0), 0.0, atol=4 / math.sqrt(dimensions * count))
    np.testing.assert_allclose(np.cov(directions.T), np.diag(plane) / dimensions, atol=4 / math.sqrt(2 * count))
    # the fourth moment tells a circle or a sphere from, say, normalized draws in a box: 3/8 and 1/5
    expected = {2: 3 / 8, 3: 1 / 5}[dimensions]
    np.testing.assert_allclose((directions**4).mean(axis=0), expected * np.array(plane), atol=4 * 0.37 / math.sqrt(count))


def test_all_moving_bodies_are_pushed_alike_and_the_world_is_not():
    forces = push_forces(200)
    pushed = (forces[starts_of(forces)] != 0).any(axis=2)
    shares = pushed.mean(axis=0)
    assert shares[0] == 0
    np.testing.assert_allclose(shares[1:], 1 / 7, atol=4 * math.sqrt(1 / 7 / len(pushed)))


def test_a_push_accelerates_the_centre_of_mass_by_force_over_mass():
    model = mujoco.MjModel.from_xml_string(
        '<mujoco><option gravity="0 0 0"/><worldbody><body><freejoint/><geom size=".1 .2 .3" type="box" pos=".5 0 0" mass="4"/>'
        "</body></worldbody></mujoco>"
    )
    physics, random = Physics(model, 50, 1), np.random.default_rng(0)
    physics.forward(np.arange(50))
    pushes = Pushes(1e4, (2.0, 2.0), (0.1, 0.1), physics, DT)
    pushes.step(random)
    physics.step(5)
    moved = physics.qvel[:, :3]
    np.testing.assert_allclose(np.linalg.norm(moved, axis=1), 2.0 / 4 * 5 * model.opt.timestep)
    np.testing.assert_allclose(physics.qvel[:, 3:], 0.0, atol=1e-12)


def test_planes_are_told_from_space_by_the_joints():
    planes = {"cartpole": [1, 0, 1], "walker": [1, 0, 1], "ball_in_cup": [1, 0, 1], "point_mass": [1, 1, 0], "fish": [1, 1, 1]}
    assert {domain: directions_of_motion(load_model(domain)).tolist() for domain in planes} == planes
    spec = load_suite_spec("cartpole")
    spec.joint("hinge_1").axis = [0, 1, 0.1]  # no longer about the normal
    assert directions_of_motion(spec.compile()).tolist() == [1, 1, 1]


def test_bodies_that_cannot_move_or_have_no_mass_are_not_pushed():
    model = mujoco.MjModel.from_xml_string(
        '<mujoco><worldbody><body name="fixed"><geom size=".1"/><body name="moving"><joint/><geom size=".1"/>'
        '<body name="carried"><geom size=".1"/></body><body name="frame"/></body></body>'
        '<body name="target" mocap="true"><geom size=".1"/></body></worldbody></mujoco>'
    )
    assert [model.body(body).name for body in pushable_bodies(model)] == ["moving", "carried"]


def test_a_model_that_cannot_be_pushed_is_refused():
    model = mujoco.MjModel.from_xml_string('<mujoco><worldbody><geom size="1"/></worldbody></mujoco>')
    with pytest.raises(ValueError, match="push_rate_hz must be 0 for this model"):
        Pushes(1.0, (1.0, 1.0), (0.1, 0.1), Physics(model, 1, 1), DT)


def test_a_restart_ends_the_pushes_there_and_nowhere_else():
    physics, random = Physics(load_model("cheetah"), 4, 1), np.random.default_rng(0)
    pushes = Pushes(1e5, (1.0, 1.0), (1.0, 1.0), physics, DT)
    pushes.step(random)
    pushes.restart(np.array([0, 2]))
    assert (physics.data("xfrc_applied") != 0).any(axis=(1, 2)).tolist() == [False, True, False, True]
    held = physics.data("xfrc_applied")[[1, 3]].copy()
    pushes.step(random)
    np.testing.assert_array_equal(physics.data("xfrc_applied")[[1, 3]], held)
    assert (physics.data("xfrc_applied")[[0, 2]] != 0).any(), "the next push may start at once"
