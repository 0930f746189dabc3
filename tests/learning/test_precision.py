"""Mixed precision: near enough to float32 to learn from, also where values are large; and float32 is left alone."""

import dataclasses
import importlib.util
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from dpg_robot.config import config_from_dict
from dpg_robot.errors import ConfigError
from dpg_robot.learning.learner import Learner, LearnerConfig
from dpg_robot.learning.precision import computing_in
from dpg_robot.learning.replay import Batch

_spec = importlib.util.spec_from_file_location("learning_process", Path(__file__).with_name("learning_process.py"))
_shared = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(_shared)
CONTRACT, make_batch = _shared.CONTRACT, _shared.make_batch

COUNT = 256
VALUE = 50.0


@pytest.fixture(scope="module")
def trained():
    """A learner and transitions in a world whose values are 50 beside errors of 1: the case that coarse values would spoil."""
    learner = Learner(CONTRACT, LearnerConfig(hidden_sizes=(128, 128)), seed=3)
    learner.observe(make_batch(999, COUNT))
    for update in range(20):
        learner.update(make_batch(update, COUNT))
    with torch.no_grad():
        for baseline in (learner.baseline, learner.target_baseline):
            baseline.network.biases[-1][:, :, 0] += VALUE
    batch = make_batch(77, COUNT)
    reward = batch.reward + VALUE * (1 - learner.config.discount**batch.steps) / learner.config.reward_scale
    return learner, dataclasses.replace(batch, terminal=torch.zeros(COUNT), reward=reward)


def loss_and_gradients(learner: Learner, batch: Batch, context) -> tuple[float, dict[str, torch.Tensor]]:
    """Return the estimators' loss and all gradients of one update, which is not made."""
    before = {name: value.clone() for name, value in learner.state_dict().items()}
    learner.zero_grad()
    learner.generator.manual_seed(5)
    with context:
        loss, _ = learner.estimator.loss(batch, *learner._target_and_slope(batch), learner.generator)
        loss.backward()
        action, log_probability = learner.policy(batch.observation, learner._normal(*batch.action.shape))
        ascent, _ = learner._ascent(batch, action.detach())
        (0.05 * log_probability - (ascent * action).sum(-1)).mean().backward()
    gradients = {
        name: torch.cat([parameter.grad.flatten() for parameter in network.parameters()])
        for name, network in (("denoiser", learner.denoiser), ("baseline", learner.baseline), ("policy", learner.policy))
    }
    learner.load_state_dict(before)
    learner.zero_grad()
    return loss.item(), gradients


def test_loss_and_gradients_in_bfloat16_are_near_those_in_float32(trained):
    learner, batch = trained
    loss, gradients = loss_and_gradients(learner, batch, computing_in("float32", learner.device))
    reduced_loss, reduced = loss_and_gradients(learner, batch, computing_in("bfloat16", learner.device))
    assert reduced_loss == pytest.approx(loss, rel=2e-3)
    assert reduced_loss != loss, "nothing was computed in bfloat16"
    for name, gradient in gradients.items():
        assert reduced[name].dtype == torch.float32
        assert float(torch.cosine_similarity(reduced[name], gradient, dim=0)) > 0.999, name
        assert float(reduced[name].norm() / gradient.norm()) == pytest.approx(1, abs=0.02), name


def test_autocast_of_everything_would_spoil_the_gradient_of_large_values(trained):
    learner, batch = trained
    _, gradients = loss_and_gradients(learner, batch, computing_in("float32", learner.device))
    _, coarse = loss_and_gradients(learner, batch, torch.autocast("cpu", torch.bfloat16))
    assert float(torch.cosine_similarity(coarse["baseline"], gradients["baseline"], dim=0)) < 0.99


def test_only_wide_products_are_in_bfloat16():
    wide, narrow = torch.full((8, 64), 1 / 3), torch.full((8, 63), 1 / 3)
    with computing_in("bfloat16", torch.device("cpu")):
        for x, width, exact in ((wide, 64, False), (narrow, 64, True), (wide, 13, True)):
            product = F.linear(x, torch.full((width, x.shape[1]), 1 / 3))
            assert product.dtype == torch.float32
            assert (abs(float(product[0, 0]) - x.shape[1] / 9) < 1e-4) is exact


def test_an_update_in_bfloat16_is_another_one_and_a_decision_is_not():
    learners = [Learner(CONTRACT, LearnerConfig(precision=precision), seed=3) for precision in ("float32", "bfloat16")]
    start = [learner.act(torch.ones(4, CONTRACT.observation_size)) for learner in learners]
    assert torch.equal(*start)
    weights = []
    for learner in learners:
        learner.update(make_batch(0))
        learner.update_denoiser(make_batch(1))
        weights.append(torch.cat([parameter.detach().flatten() for parameter in learner.estimator.parameters()]))
    assert weights[1].dtype == torch.float32
    assert not torch.equal(*weights)
    torch.testing.assert_close(*weights, rtol=0, atol=2 * 2 * learners[0].config.learning_rate)  # two steps of Adam each way


def test_float32_is_the_default_and_other_names_are_refused():
    assert LearnerConfig().precision == "float32"
    with pytest.raises(ConfigError, match="float16"):
        config_from_dict(LearnerConfig, {"precision": "float16"}, "a test")
