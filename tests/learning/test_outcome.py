"""Outcome encoders: what each kind tells, and that learned features come to tell what matters."""

import pytest
import torch

from dpg_robot.learning.outcome import OutcomeEncoder, StateShape
from dpg_robot.learning.replay import Batch


def make_batch(count=512, seed=0):
    """Observations: two features, then what history and simulators add. The first feature moves with the reward's noise."""
    generator = torch.Generator().manual_seed(seed)
    observation = torch.randn(count, 5, generator=generator)
    next_observation = observation + torch.randn(count, 5, generator=generator)
    reward = torch.randn(count, generator=generator)
    return Batch(
        observation, torch.rand(count, 1, generator=generator), reward, next_observation, torch.zeros(count), torch.ones(count)
    )


def make_encoder(kind):
    torch.manual_seed(0)
    return OutcomeEncoder(kind, StateShape(5, 2, 1, 1), (32,), 3)


def test_each_kind_tells_what_its_name_says():
    batch, surprise = make_batch(8), torch.randn(8)
    change = batch.next_observation[:, :2] - batch.observation[:, :2]
    for kind, expected in [
        ("next_state", change),
        ("reward_and_next_state", torch.cat([change, batch.reward[:, None]], 1)),
        ("target", surprise[:, None]),  # the running variance starts at 1
        ("action", torch.zeros(8, 0)),
    ]:
        encoder = make_encoder(kind)
        torch.testing.assert_close(encoder(batch, surprise), expected)
        assert encoder.size == expected.shape[1]
    features = make_encoder("features")(batch, surprise)
    assert features.shape == (8, 3)
    assert not features.requires_grad


def test_only_measured_outcomes_have_a_normalizer_to_feed():
    batch = make_batch(8)
    assert make_encoder("next_state").measured(batch).shape == (8, 2)
    for kind in ("target", "features", "action"):
        assert make_encoder(kind).measured(batch) is None


def test_the_surprise_is_told_in_units_of_its_own_spread():
    encoder, batch = make_encoder("target"), make_batch(256)
    surprise = 7 * torch.randn(256, generator=torch.Generator().manual_seed(1))
    for _ in range(1500):  # a running average over about 100 batches, from a start at 1
        encoder.loss(batch, surprise)
    assert float(encoder(batch, surprise).square().mean().sqrt()) == pytest.approx(1.0, rel=1e-3)


def test_learned_features_come_to_tell_the_surprise():
    encoder, batch = make_encoder("features"), make_batch()
    encoder.observe(batch)
    surprise = 3 * (batch.next_observation[:, 0] - batch.observation[:, 0]) + batch.reward
    optimizer = torch.optim.Adam(encoder.parameters(), 3e-3)
    for _ in range(400):
        optimizer.zero_grad()
        encoder.loss(batch, surprise).backward()
        optimizer.step()
    held_out = make_batch(seed=5)
    surprise = 3 * (held_out.next_observation[:, 0] - held_out.observation[:, 0]) + held_out.reward
    features = torch.cat([encoder(held_out, surprise), torch.ones(512, 1)], 1)
    left = surprise[:, None] - features @ torch.linalg.lstsq(features, surprise[:, None]).solution
    assert float(left.var() / surprise.var()) < 0.15
    assert float(encoder(held_out, surprise).abs().max()) <= 1


def test_several_steps_tell_what_is_remembered_of_the_time_between_but_not_the_action_itself():
    # features x, y; then two frames of (x, y, action), the newest first; then a privileged number
    encoder = OutcomeEncoder("reward_and_next_state", StateShape(9, 2, 1, 2), (32,), 3, n_steps=3)
    next_observation = torch.arange(9.0).repeat(3, 1) + 10 * torch.arange(1.0, 4.0)[:, None]
    steps = torch.tensor([1.0, 2.0, 3.0])
    batch = Batch(torch.ones(3, 9), torch.zeros(3, 1), torch.tensor([0.1, 0.2, 0.3]), next_observation, torch.zeros(3), steps)
    expected = torch.tensor(
        [
            [9.0, 10.0, 0, 0, 0, 0, 0, 0, 1 / 3, 0.1],  # the newest frame holds the action
            [19.0, 20.0, 22, 23, 24, 0, 0, 0, 2 / 3, 0.2],  # the second frame does
            [29.0, 30.0, 32, 33, 34, 35, 36, 37, 1, 0.3],  # it is older than both
        ]
    )
    torch.testing.assert_close(encoder(batch, torch.zeros(3)), expected)
    assert encoder.size == 10
    assert OutcomeEncoder("next_state", StateShape(9, 2, 1, 2), (32,), 3, n_steps=9).size == 9
    assert OutcomeEncoder("next_state", StateShape(9, 2, 1, 0), (32,), 3, n_steps=3).size == 3


def test_places_of_remembered_actions():
    shape = StateShape(12, 2, 2, 2)  # x, y; x, y, a, b; x, y, a, b; two privileged numbers
    assert shape.remembered_action(torch.tensor([1.0, 2.0])).tolist() == [[4, 5], [8, 9]]
