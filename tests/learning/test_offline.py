"""Learning from a data set alone: the policy gains and stays in the data; runs resume exactly; going on online keeps the data."""

import dataclasses
import json

import numpy as np
import pytest
import torch

import sim
from dpg_robot.contract import CommandChannel, Contract, Feature, MeasurementChannel
from dpg_robot.data.datasets import Transitions
from dpg_robot.errors import CheckpointError, ConfigError
from dpg_robot.learning.offline import BehaviourConfig, OfflineLearner, to_batch
from dpg_robot.learning.offline_trainer import OfflineTrainer, OfflineTrainerConfig
from dpg_robot.learning.online import MixedReplay, OnlineConfig, OnlineTrainer
from dpg_robot.learning.replay import Batch
from dpg_robot.learning.settings import LearnerConfig
from dpg_robot.learning.trainer import Evaluation, TrainerConfig, best_checkpoint, load_learner

CONTRACT = Contract(
    task="choose",
    measurements=(MeasurementChannel("x", "m"),),
    features=(Feature("identity", "x"),),
    commands=(CommandChannel("push", "N", -1.0, 1.0),),
    rate_hz=10.0,
    action_repeat=2,
)
TINY = LearnerConfig(
    hidden_sizes=(32,),
    batch_size=64,
    reward_scale=1.0,
    policy_update_interval=1,
    learning_rate=3e-3,
    policy_learning_rate=3e-3,
)
SPREAD = 0.15  # of the actions around what the behaviour does on average


def choices(count=2_000, spread=SPREAD, seed=0):
    """One-step episodes: actions around 0.4 x, of which the reward rises without end."""
    generator = torch.Generator().manual_seed(seed)
    observation = 2 * torch.rand(count, 1, generator=generator) - 1
    action = (0.4 * observation + spread * torch.randn(count, 1, generator=generator)).clamp(-1, 1)
    next_observation = action + 0.1 * torch.randn(count, 1, generator=generator)
    reward = 1.0 + next_observation[:, 0]
    return Batch(observation, action, reward, next_observation, terminal=torch.ones(count), steps=torch.ones(count))


def train(learner, data, updates, seed=0):
    generator = torch.Generator().manual_seed(seed)
    learner.observe(data)
    for _ in range(updates):
        learner.update(data.select(torch.randint(len(data), (learner.config.batch_size,), generator=generator)))


def mean_actions(learner):
    """Mean actions at x = -0.8, 0 and 0.8."""
    with torch.no_grad():
        return learner.policy.mean_action(torch.tensor([[-0.8], [0.0], [0.8]]))[:, 0]


@pytest.mark.parametrize(("pull", "weight"), [("denoiser", 0.2), ("actions", 4.0)])
def test_the_policy_gains_on_the_behaviour_and_stays_where_it_was(pull, weight):
    learner = OfflineLearner(CONTRACT, TINY, BehaviourConfig(pull, weight), seed=1)
    train(learner, choices(), 150)
    beyond_behaviour = mean_actions(learner) - torch.tensor([-0.32, 0.0, 0.32])
    assert (beyond_behaviour > 0.03).all(), "the reward rises with the action"
    assert (beyond_behaviour < 3 * SPREAD).all(), "nearly all actions lie within three standard deviations"


def test_without_a_pull_the_policy_leaves_the_data():
    learner = OfflineLearner(CONTRACT, TINY, BehaviourConfig("denoiser", 0.0), seed=1)
    train(learner, choices(), 300)
    assert (mean_actions(learner) - torch.tensor([-0.32, 0.0, 0.32]) > 3 * SPREAD).all()


def test_the_pull_is_the_score_of_the_smoothed_behaviour(monkeypatch):
    behaviour_std, behaviour_mean, sigma = 0.3, 0.2, 0.25
    config = dataclasses.replace(TINY, sigma_min=sigma, sigma_max=sigma)
    learner = OfflineLearner(CONTRACT, config, BehaviourConfig("denoiser", 1.0))

    def best_guess(observation, noised_action, sigma):
        variance = behaviour_std**2 + sigma**2
        return (behaviour_std**2 * noised_action + sigma**2 * behaviour_mean) / variance

    monkeypatch.setattr(learner, "_denoise_untold", best_guess)
    count = 20_000
    batch = Batch(
        *(torch.zeros(count, 1) for _ in range(2)),
        torch.zeros(count),
        torch.zeros(count, 1),
        torch.zeros(count),
        torch.ones(count),
    )
    pulls = learner._pull(batch, torch.full((count, 1), 0.7))
    # the exact score of a Gaussian at the action, as its mean over the noise; four standard errors
    exact = (behaviour_mean - 0.7) / (behaviour_std**2 + sigma**2)
    assert abs(float(pulls.mean()) - exact) < 4 * float(pulls.std()) / count**0.5


def test_targets_take_the_lowest_member_and_no_entropy_bonus():
    learner = OfflineLearner(CONTRACT, TINY, BehaviourConfig())
    batch = dataclasses.replace(choices(50), terminal=torch.zeros(50))
    target = learner.target(batch, torch.Generator().manual_seed(5))
    with torch.no_grad():
        noise = torch.randn(50, 1, generator=torch.Generator().manual_seed(5))
        action, _ = learner.policy(batch.next_observation, noise)
        values = learner.target_baseline(batch.next_observation, action, torch.zeros(50, 1))
    assert values.std(0).max() > 0.01, "the members must differ"
    torch.testing.assert_close(target, batch.reward + TINY.discount * values.min(0).values)


def test_slopes_do_not_depend_on_the_scale_of_the_values():
    learner = OfflineLearner(CONTRACT, TINY, BehaviourConfig())
    learner.baseline.register_forward_hook(lambda network, inputs, values: 10 + values)  # far from zero
    data = choices(200)
    before = learner._normalized_slope(data.observation, data.action)
    assert before.abs().max() > 0
    learner.baseline.register_forward_hook(lambda network, inputs, values: 50 * values)
    torch.testing.assert_close(learner._normalized_slope(data.observation, data.action), before)


def test_without_rewards_the_policy_does_what_the_data_did_and_no_value_is_learned():
    data = dataclasses.replace(choices(spread=0.05), reward=torch.zeros(2_000))
    config = dataclasses.replace(TINY, gradient="next_state")
    learner = OfflineLearner(CONTRACT, config, BehaviourConfig("denoiser", 0.1), has_rewards=False)
    baseline = {name: value.clone() for name, value in learner.baseline.named_parameters()}
    train(learner, data, 150)
    assert all(torch.equal(value, baseline[name]) for name, value in learner.baseline.named_parameters())
    torch.testing.assert_close(mean_actions(learner), torch.tensor([-0.32, 0.0, 0.32]), atol=0.12, rtol=0)


@pytest.mark.parametrize(
    ("settings", "has_rewards", "expected"),
    [
        ({"gradient": "critic"}, True, "choose behaviour.pull=actions"),
        ({"gradient": "target"}, False, "choose learner.gradient=next_state"),
        ({"gradient": "reward_and_next_state"}, False, "choose learner.gradient=next_state"),
    ],
)
def test_settings_that_do_not_go_together_are_refused(settings, has_rewards, expected):
    with pytest.raises(ConfigError, match=expected):
        OfflineLearner(CONTRACT, dataclasses.replace(TINY, **settings), BehaviourConfig(), has_rewards=has_rewards)


def test_rewards_are_per_reward_step_and_unknown_ones_are_nothing():
    values = np.ones((3, 1), np.float32)
    known = Transitions(values, values, np.array([2, 4, 6], np.float32), values, np.zeros(3, bool), np.zeros(3, np.int64))
    assert to_batch(known, CONTRACT).reward.tolist() == [1.0, 2.0, 3.0]
    assert to_batch(dataclasses.replace(known, reward=None), CONTRACT).reward.tolist() == [0.0, 0.0, 0.0]


OFFLINE = OfflineTrainerConfig(updates=12, checkpoint_every=5, log_every=4)
SMALL = dataclasses.replace(TINY, hidden_sizes=(8,), batch_size=16)


class StoppedError(Exception):
    pass


def make_trainer(folder, data, returns=None):
    return OfflineTrainer(OfflineLearner(CONTRACT, SMALL, BehaviourConfig(), seed=4), OFFLINE, data, folder, returns, seed=2)


def test_a_run_that_was_stopped_and_resumed_is_the_uninterrupted_one_bit_for_bit(tmp_path):
    data = choices(100)
    evaluations = []

    def returns():
        evaluations.append(Evaluation(np.array([1.0, 3.0])))
        if len(evaluations) == 5:  # three of the straight run, and the second of the stopped one, before its checkpoint
            raise StoppedError
        return evaluations[-1]

    straight = make_trainer(tmp_path / "straight", data, returns).run(show_progress=False)
    with pytest.raises(StoppedError):
        make_trainer(tmp_path / "stopped", data, returns).run(show_progress=False)
    resumed = make_trainer(tmp_path / "stopped", data, returns)
    assert resumed.resume()
    assert resumed.updates == 5
    again = resumed.run(show_progress=False)
    assert straight.name == again.name == "000000012"
    for item in straight.iterdir():
        assert item.read_bytes() == (again / item.name).read_bytes(), item.name
    assert [item["updates"] for item in resumed.evaluations] == [5, 10, 12]
    assert json.loads((tmp_path / "stopped" / "best.json").read_text())["checkpoint"] == "000000012"


def test_a_run_is_not_resumed_with_other_data(tmp_path):
    make_trainer(tmp_path, choices(100)).run(show_progress=False)
    with pytest.raises(CheckpointError, match="trained on other data"):
        make_trainer(tmp_path, choices(100, seed=1)).resume()


def test_the_result_is_a_checkpoint_that_every_program_can_load(tmp_path):
    trainer = make_trainer(tmp_path, choices(100))
    trainer.run(show_progress=False)
    learner, _, _ = load_learner(best_checkpoint(tmp_path))
    torch.testing.assert_close(mean_actions(learner), mean_actions(trainer.learner))


def test_samples_are_mixed_with_the_data_set_which_is_not_saved_again():
    offline = choices(40)
    online = dataclasses.replace(choices(30), reward=torch.full((30,), 77.0))
    replay = MixedReplay(100, offline, share=0.25)
    replay.add(online)
    sample = replay.sample(64, torch.Generator().manual_seed(0))
    assert int((sample.reward == 77.0).sum()) == 48
    assert len(sample) == 64
    assert len(replay.state_dict()["reward"]) == 30


@pytest.fixture
def environments():
    def make():
        return sim.make("cartpole-balance", num_envs=4, seed=3, num_threads=1, action_repeat=100)

    return make


def make_online(folder, environments, data, config):
    world = environments()
    behaviour = BehaviourConfig("denoiser", 0.4, decay_updates=10)
    learner = OfflineLearner(world.contract(), SMALL, behaviour, seed=1)
    learner.updates += 100
    return OnlineTrainer(learner, config, data, world, environments(), folder, seed=5)


@pytest.fixture
def swings(environments):
    """Random transitions of the environments."""
    size = environments().contract().observation_size
    generator = torch.Generator().manual_seed(1)
    observation, next_observation = torch.randn(2, 50, size, generator=generator)
    action = 2 * torch.rand(50, 1, generator=generator) - 1
    return Batch(observation, action, torch.rand(50, generator=generator), next_observation, torch.zeros(50), torch.ones(50))


def test_going_on_online_starts_from_the_policy_and_its_score_and_lets_go_slowly(tmp_path, environments, swings):
    config = OnlineConfig(trainer=TrainerConfig(updates=8, updates_per_step=2, warmup_transitions=8, evaluate_every=4))
    trainer = make_online(tmp_path, environments, swings, config)
    learner = trainer.learner
    weights = [learner.pull_weight]
    update = learner.update

    def watched(batch, **options):
        metrics = update(batch, **options)
        weights.append(learner.pull_weight)
        return metrics

    learner.update = watched
    trainer.run(show_progress=False)
    assert [item["updates"] for item in trainer.evaluations] == [0, 4, 8]
    np.testing.assert_allclose(weights, [0.4 * (1 - done / 10) for done in range(9)])
    actions = trainer.replay.state_dict()["action"]
    assert len(actions) == 5 * 4, "two steps of warm-up, then one for each two updates"
    first = [Evaluation(np.array(item["returns"])) for item in trainer.evaluations]
    drop, error = trainer.largest_drop()
    assert (drop, error) == max(first[0].paired_difference(each) for each in first[1:])


def test_online_warm_up_acts_with_the_policy(tmp_path, environments, swings):
    config = OnlineConfig(trainer=TrainerConfig(updates=1, updates_per_step=1, warmup_transitions=4, evaluate_every=1))
    trainer = make_online(tmp_path, environments, swings, config)
    torch.nn.init.constant_(trainer.learner.policy.network[-1].bias[:1], 5.0)  # an action of nearly 1, that chance would not give
    trainer.run(show_progress=False)
    assert trainer.replay.state_dict()["action"].min() > 0.9


def test_online_learning_resumes_exactly(tmp_path, environments, swings):
    config = OnlineConfig(trainer=TrainerConfig(updates=8, updates_per_step=2, warmup_transitions=8, evaluate_every=3))
    straight = make_online(tmp_path / "straight", environments, swings, config)
    straight.run(show_progress=False)
    stopped = make_online(tmp_path / "stopped", environments, swings, config)
    stop_at(stopped, 5)
    with pytest.raises(StoppedError):
        stopped.run(show_progress=False)
    resumed = make_online(tmp_path / "stopped", environments, swings, config)
    assert resumed.resume()
    assert resumed.updates == 3
    resumed.run(show_progress=False)
    wanted, ours = (folder / "checkpoints" / "000000008" for folder in (straight.folder, resumed.folder))
    for item in wanted.iterdir():
        assert item.read_bytes() == (ours / item.name).read_bytes(), item.name


def stop_at(trainer, updates):
    """Let a trainer fail in an update."""
    update, start = trainer.learner.update, int(trainer.learner.updates)

    def failing(batch, **options):
        if int(trainer.learner.updates) - start == updates:
            raise StoppedError
        return update(batch, **options)

    trainer.learner.update = failing
