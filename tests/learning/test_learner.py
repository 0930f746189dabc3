"""The learner: it finds a known optimum, bootstraps where a future exists, and refuses settings that cannot work."""

import dataclasses
import math

import pytest
import torch

from dpg_robot.contract import CommandChannel, Contract, Feature, MeasurementChannel
from dpg_robot.errors import CheckpointError, ConfigError
from dpg_robot.learning import estimator as estimator_module
from dpg_robot.learning.learner import Learner, LearnerConfig
from dpg_robot.learning.replay import Batch, ReplayBuffer, ordered_replay

CONTRACT = Contract(
    task="bandit",
    measurements=(MeasurementChannel("place", "m"),),
    features=(Feature("identity", "place"),),
    commands=(CommandChannel("push", "N", -1.0, 1.0),),
    rate_hz=10.0,
)
BEST = 0.4
SMALL = LearnerConfig(
    hidden_sizes=(32, 32),
    batch_size=64,
    learning_rate=3e-3,
    policy_learning_rate=5e-3,
    policy_update_interval=1,
    reward_scale=1.0,
    initial_temperature=0.01,
    n_steps=1,
)


def pull(action, generator):
    """One step of a bandit: the action moves the place, with noise; nearer to BEST is better."""
    place = torch.zeros_like(action)
    next_place = action + 0.3 * torch.randn(action.shape, generator=generator)
    reward = -((next_place[:, 0] - BEST) ** 2)
    return Batch(place, action, reward, next_place, torch.ones(len(action)), torch.ones(len(action)))


def random_batch(count=16, generator=None):
    generator = generator or torch.Generator().manual_seed(0)
    return pull(2 * torch.rand(count, 1, generator=generator) - 1, generator)


def trained(config, updates, seed=0):
    """Return a learner trained on what random actions gave: it has to improve on its data, not to imitate them."""
    generator = torch.Generator().manual_seed(seed)
    learner, replay = Learner(CONTRACT, config, seed), ReplayBuffer(4000, 1, 1)
    batch = random_batch(4000, generator)
    replay.add(batch)
    learner.observe(batch)
    for _ in range(updates):
        metrics = learner.update(replay.sample(config.batch_size, generator))
    return learner, metrics


def mean_action(learner):
    return learner.policy.mean_action(torch.zeros(1, 1)).item()


VARIANTS = [
    {"gradient": "reward_and_next_state"},
    {"gradient": "reward_and_next_state", "amortization": "head"},
    {"gradient": "reward_and_next_state", "control_variate": True},
    {"gradient": "next_state"},
    {"gradient": "target"},
    {"gradient": "features", "learned_features": 2},
    {"gradient": "plain"},
    {"gradient": "plain", "control_variate": True},
    {"gradient": "critic"},
]


@pytest.mark.parametrize("variant", VARIANTS, ids=lambda variant: "-".join(map(str, variant.values())))
def test_a_noisy_bandit_is_solved_by_every_variant(variant):
    learner, metrics = trained(dataclasses.replace(SMALL, **variant), updates=250)
    slower = "head" in variant.values()  # it does not learn from the values
    assert mean_action(learner) == pytest.approx(BEST, abs=0.25 if slower else 0.15)
    if learner.config.gradient not in ("plain", "critic"):
        assert 0.05 < float(metrics["denoiser/explained"]) < 1, "the outcome must tell the denoiser something"
        assert float(metrics["gradient/variance_told"]) < float(metrics["gradient/variance_plain"])
        assert float(metrics["denoiser/tower_error"]) < 0.5


@pytest.mark.parametrize("amortization", ["slope", "head"])
@pytest.mark.parametrize("direction", [1.0, -1.0])
def test_the_policy_follows_the_denoised_gradient(monkeypatch, direction, amortization):
    # an estimate that points one way everywhere has to drive the action to that end, against what the values say
    monkeypatch.setattr(
        estimator_module,
        "controlled_action_gradient",
        lambda target, baseline, told, *_, **__: torch.full_like(told.detach(), direction),
    )
    learner, _ = trained(dataclasses.replace(SMALL, slope_weight=100.0, amortization=amortization), updates=60)
    assert direction * mean_action(learner) > 0.6


def test_with_the_critics_derivative_no_denoiser_is_trained():
    learner, metrics = trained(dataclasses.replace(SMALL, gradient="critic"), updates=3)
    fresh = Learner(CONTRACT, learner.config, seed=0)
    for ours, theirs in zip(learner.denoiser.parameters(), fresh.denoiser.parameters(), strict=True):
        assert torch.equal(ours, theirs)
    assert not any(name.startswith("denoiser") for name in metrics)


def test_the_gradient_gets_what_the_identity_asks_for(monkeypatch):
    calls = []
    original = estimator_module.controlled_action_gradient

    def spy(*arguments, **named):
        calls.append((arguments, named))
        return original(*arguments, **named)

    monkeypatch.setattr(estimator_module, "controlled_action_gradient", spy)
    learner, batch = Learner(CONTRACT, dataclasses.replace(SMALL, gradient_share=1.0, control_variate=True)), random_batch(2000)
    noised = []
    original_guess = learner.baseline.guess

    def watch(observation, noised_action, sigma, direction):
        noised.append(noised_action)
        return original_guess(observation, noised_action, sigma, direction)

    monkeypatch.setattr(learner.baseline, "guess", watch)
    learner.update(batch)
    (target, baseline, told, untold, sigma, noised_action), named = calls[0]
    assert not target.requires_grad
    assert not baseline.requires_grad
    assert not named["response"].requires_grad
    assert named["direct"] is None  # nothing remembers the action
    torch.testing.assert_close(target, batch.reward)  # all transitions are terminal
    assert float(sigma.min()) >= SMALL.sigma_min * 0.999
    assert float(sigma.max()) <= SMALL.sigma_max * 1.001
    torch.testing.assert_close(noised_action.detach(), noised[0])
    noise = (noised[0] - batch.action)[:, 0] / sigma
    assert abs(float(noise.mean())) < 0.1
    assert float(noise.std()) == pytest.approx(1, abs=0.06)
    assert told.shape == untold.shape == batch.action.shape
    assert baseline.shape == target.shape


def test_a_target_that_remembers_the_action_has_a_slope_in_it():
    contract = dataclasses.replace(CONTRACT, history=2)  # observations: place, place@-1, push@-1, place@-2, push@-2
    learner = Learner(contract, dataclasses.replace(SMALL, n_steps=3), seed=3)
    for parameter in learner.target_baseline.parameters():
        torch.nn.init.normal_(parameter, std=0.5)
    steps = torch.tensor([1.0, 1.0, 2.0, 2.0, 3.0, 1.0])
    terminal = torch.tensor([0.0] * 5 + [1.0])
    batch = Batch(torch.rand(6, 5), torch.rand(6, 1), torch.rand(6), torch.rand(6, 5), terminal, steps)
    state = learner.generator.get_state()

    def targets(place, shift):
        learner.generator.set_state(state)
        moved = batch.next_observation.clone()
        moved[:, place] += shift
        return learner.target(dataclasses.replace(batch, next_observation=moved)).double()

    learner.generator.set_state(state)
    target, slope = learner._target_and_slope(batch)
    assert not target.requires_grad
    torch.testing.assert_close(target.double(), targets(0, 0.0))
    for rows, place in ((slice(0, 2), 2), (slice(2, 4), 4)):  # the action was taken one step before, two steps before
        difference = (targets(place, 0.01) - targets(place, -0.01)) / 0.02
        torch.testing.assert_close(slope[rows, 0].double(), difference[rows], rtol=0.02, atol=1e-3)
        assert float(slope[rows].abs().min()) > 1e-4
    assert slope[4:, 0].tolist() == [0.0, 0.0], "three steps before is not remembered, and a terminal state has no value"
    assert Learner(CONTRACT, SMALL)._target_and_slope(random_batch())[1] is None


def test_targets_go_over_more_steps_where_a_history_tells_of_delays():
    delayed = dataclasses.replace(CONTRACT, history=2)
    default = dataclasses.replace(SMALL, n_steps=0)
    assert [Learner(contract, default).n_steps for contract in (CONTRACT, delayed)] == [3, 5]
    assert Learner(delayed, SMALL).n_steps == 1


def test_a_value_after_several_steps_is_discounted_for_each():
    learner = Learner(CONTRACT, dataclasses.replace(SMALL, discount=0.5, n_steps=3))
    batch = dataclasses.replace(random_batch(4), steps=torch.tensor([1.0, 2.0, 3.0, 3.0]), terminal=torch.tensor([0.0, 0, 0, 1]))
    assert learner.future_weight(batch).tolist() == [0.5, 0.25, 0.125, 0.0]


def test_a_delayed_reward_is_learned_over_several_steps():
    """The reward for a push comes two steps later, and no observation tells of it: only targets over three steps can."""
    generator = torch.Generator().manual_seed(0)
    action = 2 * torch.rand(3000, 1, generator=generator) - 1
    reward = -((torch.roll(action[:, 0], 2) - BEST) ** 2)
    time = torch.arange(3000.0)[:, None]
    still = Batch(time % 7, action, reward, (time + 1) % 7, torch.zeros(3000), torch.ones(3000))
    places, gained = torch.arange(7.0)[:, None], {}
    for n_steps in (1, 3):
        learner = Learner(CONTRACT, dataclasses.replace(SMALL, gradient="critic", n_steps=n_steps, discount=0.9), 0)
        replay = ordered_replay(still)
        learner.observe_newest(replay, len(replay))
        for _ in range(200):
            learner.update(learner.draw(replay, 64, generator), improve_policy=False)
        with torch.no_grad():
            best, poor = (learner.baseline(places, torch.full((7, 1), push), torch.zeros(7, 1)) for push in (BEST, BEST - 1))
        gained[n_steps] = float((best - poor).mean())
    assert gained[3] == pytest.approx(0.9**2, rel=0.3)
    assert abs(gained[1]) < 0.2


def test_a_terminal_state_has_no_future_and_a_time_out_has_one():
    learner = Learner(CONTRACT, dataclasses.replace(SMALL, discount=0.9, reward_scale=0.5, initial_temperature=0.2))
    batch = dataclasses.replace(random_batch(8), terminal=torch.tensor([1.0, 0.0] * 4))
    before = learner.generator.get_state()
    target = learner.target(batch)
    learner.generator.set_state(before)
    with torch.no_grad():
        noise = torch.randn(8, 1, generator=learner.generator)
        action, log_probability = learner.policy(batch.next_observation, noise)
        values = learner.target_baseline(batch.next_observation, action, torch.zeros(8, 1))
    expected = 0.5 * batch.reward + 0.9 * (1 - batch.terminal) * (values.min(0).values - 0.2 * log_probability)
    torch.testing.assert_close(target, expected)
    assert torch.equal(target[::2], 0.5 * batch.reward[::2])
    assert ((target - 0.5 * batch.reward)[1::2].abs() > 1e-3).all()
    assert not target.requires_grad


def test_values_rise_to_the_discounted_sum_of_rewards_without_overshooting():
    # reward 1 for ever
    config = dataclasses.replace(SMALL, gradient="critic", discount=0.95, target_update=0.05, initial_temperature=1e-6)
    learner = Learner(CONTRACT, config)
    generator = torch.Generator().manual_seed(0)
    values = []
    for _ in range(600):
        batch = dataclasses.replace(random_batch(64, generator), reward=torch.ones(64), terminal=torch.zeros(64))
        batch = dataclasses.replace(batch, next_observation=torch.zeros(64, 1))
        learner.update(batch, improve_policy=False)
        with torch.no_grad():
            values.append(float(learner.baseline(batch.observation, batch.action, torch.zeros(64, 1)).mean()))
    assert max(values) < 1.1 * 20
    assert values[-1] > 0.7 * 20


def test_the_target_baseline_follows_the_baseline_slowly():
    learner = Learner(CONTRACT, dataclasses.replace(SMALL, target_update=0.25))
    start = [parameter.clone() for parameter in learner.target_baseline.parameters()]
    learner.update(random_batch())
    for target, ours, before in zip(learner.target_baseline.parameters(), learner.baseline.parameters(), start, strict=True):
        torch.testing.assert_close(target, before + 0.25 * (ours - before))


def test_equal_seeds_give_equal_learners_and_the_global_generator_is_left_alone():
    torch.manual_seed(5)
    expected = torch.rand(1)
    torch.manual_seed(5)
    states = []
    for seed in (1, 1, 2):
        learner = Learner(CONTRACT, SMALL, seed)
        for _ in range(3):
            learner.update(random_batch())
        states.append(learner.state_dict() | {"action": learner.act(torch.zeros(4, 1))})
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])
    assert not torch.equal(states[0]["action"], states[2]["action"])
    assert torch.equal(torch.rand(1), expected)


def test_all_normalizers_see_what_was_observed():
    learner, batch = Learner(CONTRACT, SMALL), random_batch(100)
    batch = dataclasses.replace(batch, observation=torch.rand(100, 1) + 3)
    learner.observe(batch)
    for name, samples in [
        ("policy.normalizer", batch.observation),
        ("estimator.denoiser.observation_normalizer", batch.observation),
        ("estimator.baseline.normalizer", batch.observation),
        ("target_baseline.normalizer", batch.observation),
        ("estimator.denoiser.outcome_normalizer", learner.estimator.outcome.measured(batch)),
    ]:
        torch.testing.assert_close(learner.get_submodule(name).mean, samples.mean(0))


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"batch_size": 0}, "batch_size must be 1 or more"),
        ({"n_steps": -1}, "n_steps must be 1 or more, or 0"),
        ({"baseline_members": 0}, "baseline_members must be 1 or more"),
        ({"policy_update_interval": 0}, "policy_update_interval must be 1 or more"),
        ({"hidden_sizes": (32, 0)}, "hidden_sizes must be 1 or more each"),
        ({"discount": 1.0}, r"discount must be in \[0, 1\)"),
        ({"discount": -0.1}, r"discount must be in \[0, 1\)"),
        ({"sigma_min": 0.0}, "need 0 < sigma_min <= sigma_max"),
        ({"sigma_min": 0.6}, "need 0 < sigma_min <= sigma_max"),
        ({"sigma_max": math.inf}, "sigma_max must be finite"),
        ({"learning_rate": -1e-3}, "learning_rate must be positive"),
        ({"policy_learning_rate": 0.0}, "policy_learning_rate must be positive"),
        ({"initial_temperature": -1.0}, "initial_temperature must be positive"),
        ({"action_std": 0.0}, "action_std must be positive"),
        ({"max_gradient_norm": 0.0}, "max_gradient_norm must be positive"),
        ({"target_update": 1.5}, r"target_update must be in \(0, 1\]"),
        ({"gradient_share": 0.0}, r"gradient_share must be in \(0, 1\]"),
        ({"learned_features": 0}, "learned_features must be 1 or more"),
        ({"gradient": "critic", "amortization": "head"}, "amortization must be slope, got head"),
        ({"slope_weight": -1.0}, "slope_weight must be 0 or more"),
        ({"reward_scale": math.inf}, "reward_scale and sigma_max must be finite"),
    ],
)
def test_settings_that_cannot_work_are_refused(change, expected):
    with pytest.raises(ValueError, match=expected):
        dataclasses.replace(SMALL, **change)


@pytest.mark.parametrize("device", ["cdua", "cpu:x", "cuda:99"])
def test_a_device_that_is_not_there_is_refused(device):
    with pytest.raises(ConfigError, match=f"device '{device}' cannot be used: .*; choose cpu"):
        Learner(CONTRACT, SMALL, device=device)


def test_denoiser_and_baseline_see_privileged_numbers_and_the_policy_does_not():
    learner = Learner(CONTRACT, SMALL, privileged_size=2)
    plain = random_batch(64)
    extra = torch.randn(64, 2)
    batch = dataclasses.replace(
        plain,
        observation=torch.cat([plain.observation, extra], 1),
        next_observation=torch.cat([plain.next_observation, extra], 1),
        terminal=torch.zeros(64),
    )
    learner.observe(batch)
    assert torch.equal(learner.estimator.outcome.measured(batch), learner.estimator.outcome.measured(plain))
    assert learner.policy(learner.measurable(batch.observation), torch.zeros(64, 1))[0].shape == (64, 1)
    before = [parameter.clone() for parameter in learner.policy.parameters()]
    for _ in range(4):
        learner.update(batch)
    assert any(not torch.equal(old, new) for old, new in zip(before, learner.policy.parameters(), strict=True))
    sigma = torch.full((64, 1), 0.3)
    changed = torch.cat([plain.observation, extra + 1], 1)
    for see in (
        lambda observation: learner.baseline(observation, batch.action, sigma),
        lambda observation: learner.estimator.denoise(
            dataclasses.replace(batch, observation=observation), batch.action, sigma, batch.reward
        )[0],
    ):
        assert not torch.allclose(see(batch.observation), see(changed))


def test_a_denoiser_is_taken_over_with_its_normalizers_and_nothing_else():
    config = dataclasses.replace(SMALL, gradient="next_state")
    ours, other = Learner(CONTRACT, config, 0), Learner(CONTRACT, config, 1)
    other.observe(random_batch(64))
    for _ in range(3):
        other.update_denoiser(random_batch(64))
    before = {name: value.clone() for name, value in ours.state_dict().items()}
    ours.adopt_denoiser(other)
    for name, value in ours.state_dict().items():
        same_as = other.state_dict()[name] if name.startswith("estimator.denoiser.") else before[name]
        assert torch.equal(value, same_as), name


def test_learning_motion_changes_the_denoiser_alone_and_needs_no_rewards():
    learner = Learner(CONTRACT, dataclasses.replace(SMALL, gradient="next_state"), 0)
    before = {name: value.clone() for name, value in learner.state_dict().items()}
    batch = random_batch(64)
    first = learner.update_denoiser(dataclasses.replace(batch, reward=torch.full_like(batch.reward, math.nan)))
    for _ in range(200):
        last = learner.update_denoiser(batch)
    assert last["denoiser/loss"] < 0.8 * first["denoiser/loss"]
    changed = {name for name, value in learner.state_dict().items() if not torch.equal(value, before[name])}
    assert changed
    assert all(name.startswith("estimator.denoiser.network.") for name in changed)


@pytest.mark.parametrize(
    ("change", "contract", "expected"),
    [
        ({"hidden_sizes": (16,)}, CONTRACT, r"its learner.hidden_sizes is \[32, 32\] and must be \[16\]"),
        ({}, dataclasses.replace(CONTRACT, rate_hz=20.0), "its contract's rate_hz is 10.0 and must be 20.0"),
        ({"gradient": "plain"}, CONTRACT, "its learner.gradient is 'next_state' and must be 'plain'"),
    ],
)
def test_a_denoiser_of_something_else_is_not_taken_over(change, contract, expected):
    config = dataclasses.replace(SMALL, gradient="next_state")
    with pytest.raises(CheckpointError, match=expected):
        Learner(contract, dataclasses.replace(config, **change), 0).adopt_denoiser(Learner(CONTRACT, config, 1))


def test_a_denoiser_serves_another_task_of_the_same_robot():
    config = dataclasses.replace(SMALL, gradient="next_state")
    Learner(dataclasses.replace(CONTRACT, task="another"), config, 0).adopt_denoiser(Learner(CONTRACT, config, 1))
