"""The history that the policy sees in simulation: newest frame first, zero before the episode began, one per environment."""

import dataclasses
from collections import deque

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dpg_robot.contract import CommandChannel, Contract, Feature, MeasurementChannel
from dpg_robot.observation import HistoryStack

CONTRACT = Contract(
    task="two-wheels",
    measurements=(MeasurementChannel("tilt", "rad"),),
    features=(Feature("cos", "tilt"), Feature("sin", "tilt"), Feature("identity", "tilt")),
    commands=(CommandChannel("left", "N m", -1.0, 1.0), CommandChannel("right", "N m", -1.0, 1.0)),
    rate_hz=100.0,
)
FEATURES, FRAME = 3, 5


def with_history(frames):
    return dataclasses.replace(CONTRACT, history=frames)


def test_the_newest_frame_comes_first_after_the_present_features():
    history = HistoryStack(with_history(2), 1)
    for step in (1.0, 2.0, 3.0):
        history.push(np.full((1, 3), step), np.full((1, 2), -step))
    np.testing.assert_array_equal(history.observe(np.full((1, 3), 4.0)), [[4, 4, 4, 3, 3, 3, -3, -3, 2, 2, 2, -2, -2]])


def test_without_history_the_observation_is_the_features_alone():
    history = HistoryStack(with_history(0), 2)
    features = np.arange(6.0).reshape(2, 3)
    history.push(features, np.ones((2, 2)))
    np.testing.assert_array_equal(history.observe(features), features)
    history.clear(np.array([0]))


@given(
    frames=st.integers(0, 4),
    steps=st.lists(st.tuples(st.sets(st.integers(0, 2)), st.integers(0, 2**32 - 1)), max_size=12),
)
def test_each_environment_remembers_its_own_episode(frames, steps):
    stack = HistoryStack(with_history(frames), 3)
    expected = [deque([np.zeros(FRAME)] * frames, maxlen=frames) for _ in range(3)]
    for ended, seed in steps:
        random = np.random.default_rng(seed)
        features, action = random.standard_normal((3, FEATURES)), random.uniform(-1, 1, (3, 2))
        observation = stack.observe(features)
        assert observation.dtype == np.float32
        assert observation.shape == (3, with_history(frames).observation_size)
        for index in range(3):
            wanted = np.concatenate([features[index], *expected[index]])
            np.testing.assert_array_equal(observation[index], wanted.astype(np.float32))
            expected[index].appendleft(np.concatenate([features[index], action[index]]))
        stack.push(features, action)
        stack.clear(np.array(sorted(ended), dtype=np.int64))
        for index in ended:
            expected[index] = deque([np.zeros(FRAME)] * frames, maxlen=frames)


@pytest.mark.parametrize("frames", [0, 1, 3])
def test_observations_are_copies_that_later_steps_leave_alone(frames):
    stack = HistoryStack(with_history(frames), 1)
    stack.push(np.ones((1, 3)), np.ones((1, 2)))
    observation = stack.observe(np.ones((1, 3)))
    kept = observation.copy()
    stack.clear(np.array([0]))
    stack.push(np.full((1, 3), 9.0), np.full((1, 2), 9.0))
    np.testing.assert_array_equal(observation, kept)
