"""The learning benchmark: runs count frames exactly and alike, results are kept and told apart, failures stay alone."""

import dataclasses
import json
import multiprocessing
from collections.abc import Iterator

import numpy as np
import pytest
import torch

from dpg_robot.config import load_config
from dpg_robot.errors import ConfigError, UnknownNameError
from dpg_robot.learning.learner import LearnerConfig
from sim.benchmarks import learning_peers, provenance
from sim.benchmarks.learning_evaluation import Evaluator
from sim.benchmarks.learning_ours import OurTraining
from sim.benchmarks.learning_peers import MissingPeerError, make_model, require_peers
from sim.benchmarks.learning_protocol import LearningProtocol, MotionConfig, OurConfig, PeerConfig, Run, plan_runs, restrict
from sim.benchmarks.learning_report import frames_to_reach
from sim.benchmarks.learning_results import Result
from sim.benchmarks.learning_runs import execute, execute_all
from sim.benchmarks.run_store import ResultError, read_results, write_result

TINY = OurConfig(num_envs=2, warmup_decisions=80, learner=LearnerConfig(batch_size=8, hidden_sizes=(8,)))
RUN = Run(
    task="cartpole-swingup",
    action_repeat=10,  # 100 decisions an episode
    disturbance="none",
    history=0,
    algorithm="dpg",
    settings=TINY,
    seed=3,
    frames=1040,
    evaluate_every=520,
    evaluation_episodes=2,
    evaluation_seed=100,
)
RESULT = Result([{"frames": 520, "returns": [1.0]}, {"frames": 1040, "returns": [2.0, 4.0]}], 1.5, 7, {}, {}, "today")


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize("algorithm", ["SAC", "TD3", "PPO", "TQC", "CrossQ"])
def test_peers_use_exactly_the_frames_and_bootstrap_at_time_outs(algorithm, monkeypatch):
    models, frames = [], []

    def make_and_keep(*arguments):
        models.append(make_model(*arguments))
        return models[-1]

    monkeypatch.setattr(learning_peers, "make_model", make_and_keep)
    result = execute(dataclasses.replace(RUN, settings=PeerConfig(algorithm=algorithm)), frames.append)
    (model,) = models
    assert sum(frames) == RUN.frames
    assert model.num_timesteps == RUN.decisions == 104
    assert [entry["frames"] for entry in result.curve] == [520, 1040]
    assert [len(entry["returns"]) for entry in result.curve] == [2, 2]
    if algorithm == "PPO":
        return
    assert result.updates == 3, "one for each decision after the 100 of its warm-up, but for the last"
    replay = model.replay_buffer
    assert np.flatnonzero(replay.dones).tolist() == [99], "the episode ended by its time limit"
    assert replay.timeouts[99]
    transitions = replay._get_samples(np.arange(103))
    assert not transitions.dones.any(), "a time-out is no terminal state"
    assert not np.array_equal(replay.next_observations[99], replay.observations[100]), "not the next episode's first one"


def test_ours_uses_exactly_the_frames_and_one_update_a_decision_after_the_warm_up():
    frames, training = [], OurTraining(RUN, TINY)
    evaluator = Evaluator(RUN)
    training.train(evaluator, frames.append)
    assert sum(frames) == RUN.frames
    assert training.replay.added == RUN.decisions == 104
    assert training.updates == int(training.learner.updates) == 104 - 80
    assert [entry["frames"] for entry in evaluator.curve] == [520, 1040]


def test_updates_per_decision_may_be_a_fraction():
    config = dataclasses.replace(TINY, updates_per_decision=0.25, num_envs=1)
    assert execute(dataclasses.replace(RUN, settings=config), lambda frames: None).updates == 6


def test_the_learning_rate_falls_linearly_to_its_end():
    training, factors = OurTraining(RUN, TINY), []
    training.learner.set_learning_rate_factor = factors.append
    training.train(Evaluator(RUN), lambda frames: None)
    assert factors[0] == 1
    assert factors[12] == pytest.approx(1 - 0.95 * 0.5)
    assert 0.05 < factors[-1] < 0.1


def test_motion_is_learned_before_the_run_and_costs_no_frames():
    learner = dataclasses.replace(TINY.learner, gradient="next_state")
    scratch = dataclasses.replace(TINY, learner=learner)
    pretrained = dataclasses.replace(scratch, motion=MotionConfig(transitions=50, updates=4))
    first, second = OurTraining(RUN, scratch), OurTraining(RUN, pretrained)
    assert second.replay.added == second.updates == int(second.learner.updates) == 0
    changed = {
        name for name, value in second.learner.state_dict().items() if not torch.equal(value, first.learner.state_dict()[name])
    }
    assert changed
    assert all(name.startswith("estimator.denoiser.") for name in changed)
    assert first.learner.estimator.denoiser.outcome_normalizer.count == 0
    with pytest.raises(ValueError, match=r"learner.gradient must be next_state, got reward_and_next_state"):
        dataclasses.replace(TINY, motion=MotionConfig(transitions=50))


def test_frames_to_a_return_lie_between_evaluations():
    assert frames_to_reach(RESULT, 2.0) == 780, "half-way from 1 to 3"
    assert frames_to_reach(RESULT, 3.0) == 1040
    assert frames_to_reach(RESULT, 0.5) == 520, "nothing is known before the first evaluation"
    assert frames_to_reach(RESULT, 3.1) is None


def test_the_same_run_gives_the_same_result():
    first, second = (execute(RUN, lambda frames: None) for _ in range(2))
    assert first.curve == second.curve
    other = execute(dataclasses.replace(RUN, seed=4), lambda frames: None)
    assert first.curve != other.curve


def test_all_sides_learn_from_the_same_observations():
    run = dataclasses.replace(RUN, disturbance="hard", history=5)
    ours = OurTraining(run, dataclasses.replace(TINY, num_envs=1))._collector
    theirs = make_model(run, PeerConfig()).env
    observation = theirs.reset()
    random = np.random.default_rng(0)
    for step in range(1, 206):  # over the ends of two episodes
        np.testing.assert_array_equal(ours.observation.numpy(), observation)
        action = random.uniform(-1, 1, (1, 1)).astype(np.float32)
        batch = ours.step(torch.from_numpy(action))
        observation, rewards, (ended,), (info,) = theirs.step(action)
        next_observation = info["terminal_observation"] if ended else observation[0]
        np.testing.assert_array_equal(batch.next_observation[0].numpy(), next_observation)
        assert batch.reward.numpy() * run.action_repeat == pytest.approx(rewards)
        assert ended == info["TimeLimit.truncated"] == (step % 100 == 0)


def test_every_evaluation_of_every_algorithm_runs_the_same_episodes():
    run = dataclasses.replace(RUN, disturbance="hard", history=5)
    peer = dataclasses.replace(run, algorithm="sac", settings=PeerConfig())
    seen = []

    def act(observations):
        seen[-1].append(observations)
        return np.tanh(observations[:, :1])

    evaluators = [Evaluator(run), Evaluator(run), Evaluator(peer), Evaluator(dataclasses.replace(run, seed=4))]
    evaluators[1] = evaluators[0]
    returns = []
    for evaluator in evaluators:
        seen.append([])
        returns.append(evaluator.returns(act))
    np.testing.assert_array_equal(seen[0], seen[1])
    np.testing.assert_array_equal(seen[0], seen[2])
    np.testing.assert_array_equal(returns[0], returns[2])
    assert not np.array_equal(seen[0], seen[3]), "another seed has episodes of its own"


def test_results_are_found_again_and_those_of_other_settings_are_told_apart(tmp_path):
    assert read_results(tmp_path, [RUN], Result).results == {}
    write_result(tmp_path, RUN, RESULT)
    assert (tmp_path / "cartpole-swingup" / "none" / "dpg" / "3.json").is_file()
    longer = dataclasses.replace(RUN, frames=2080)
    larger = dataclasses.replace(RUN, settings=dataclasses.replace(TINY, learner=LearnerConfig(batch_size=9)))
    stored = read_results(tmp_path, [RUN, longer, larger, dataclasses.replace(RUN, seed=9)], Result)
    assert stored.results == {RUN: RESULT}
    assert stored.other[longer] == ["frames: stored 1040, wanted 2080"]
    assert "settings.learner.batch_size: stored 8, wanted 9" in stored.other[larger]


def test_a_disturbance_that_changed_is_another_setting(tmp_path):
    path = tmp_path / "windy.yaml"
    path.write_text("action_noise: 0.1")
    run = dataclasses.replace(RUN, disturbance=str(path))
    write_result(tmp_path, run, RESULT)
    assert read_results(tmp_path, [run], Result).results
    path.write_text("action_noise: 0.2")
    assert read_results(tmp_path, [run], Result).other[run] == ["disturbance_settings.action_noise: stored 0.1, wanted 0.2"]


@pytest.mark.parametrize("content", ["", "{", "[]", '{"specification": {}}'])
def test_a_file_that_is_no_result_is_named(content, tmp_path):
    write_result(tmp_path, RUN, RESULT)
    (tmp_path / RUN.place).write_text(content)
    with pytest.raises(ResultError, match=r"3\.json is not the result of a run"):
        read_results(tmp_path, [RUN], Result)


def test_a_killed_run_leaves_no_file_and_does_not_stop_the_others(tmp_path):
    endless = dataclasses.replace(RUN, frames=10**9, evaluate_every=10**9, seed=4)

    def kill(frames):
        if frames > 0:
            for process in multiprocessing.active_children():
                if process.name == endless.title:
                    process.kill()

    endings = {finished.run: finished for finished in execute_all([endless, RUN], tmp_path, 2, kill)}
    assert "exit code -9" in endings[endless].error
    assert endings[RUN].error == ""
    assert [path.name for path in tmp_path.rglob("*") if path.is_file()] == ["3.json"]
    content = json.loads((tmp_path / RUN.place).read_text())
    assert content["specification"] == json.loads(json.dumps(RUN.specification()))
    assert content["curve"] == endings[RUN].value.curve
    assert content["versions"]["torch"] == torch.__version__
    assert set(content["code"]) == {"commit", "dirty", "learner_digest"}


def test_a_failing_run_does_not_stop_the_others_but_the_end_does(tmp_path):
    endless = dataclasses.replace(RUN, frames=10**9, evaluate_every=10**9)
    failing = dataclasses.replace(RUN, task="cartpole-swing")
    iteration = execute_all([endless, failing], tmp_path, 2, lambda frames: None)
    finished = next(iteration)
    assert finished.run == failing
    assert "Did you mean 'cartpole-swingup'?" in finished.error
    assert [process.name for process in multiprocessing.active_children()] == [endless.title]
    iteration.close()
    assert multiprocessing.active_children() == []
    assert list(tmp_path.iterdir()) == []


def test_where_git_cannot_tell_the_code_is_still_described(monkeypatch, tmp_path):
    monkeypatch.setattr(provenance, "_ROOT", tmp_path)
    assert provenance.describe_code()["commit"] is None
    monkeypatch.setenv("PATH", "")
    assert provenance.describe_code()["dirty"] is None


def test_the_first_seed_of_all_cells_comes_before_the_second():
    protocol = LearningProtocol(ours={"dpg": TINY}, peers={"sac": PeerConfig()}, seeds=(0, 1))
    runs = plan_runs(protocol)
    assert [run.seed for run in runs] == [0] * 24 + [1] * 24
    assert [run.title for run in runs[:3]] == [
        "cartpole-swingup none dpg seed 0",
        "cartpole-swingup none sac seed 0",
        "cartpole-swingup medium dpg seed 0",
    ]
    assert {(run.disturbance, run.history) for run in runs} == {("none", 0), ("medium", 3), ("hard", 5)}
    assert len({run.place for run in runs}) == 48


def test_filters_keep_what_they_name():
    protocol = LearningProtocol(ours={"dpg": TINY}, peers={"sac": PeerConfig()})
    kept = restrict(protocol, ["task=reacher-hard,cheetah-run", "algorithm=sac", "seed=2", "disturbance=hard"])
    assert [run.title for run in plan_runs(kept)] == ["reacher-hard hard sac seed 2", "cheetah-run hard sac seed 2"]
    assert restrict(protocol, []) == protocol
    with pytest.raises(UnknownNameError, match="Did you mean 'sac'"):
        restrict(protocol, ["algorithm=sax"])
    with pytest.raises(UnknownNameError, match="Did you mean 'task'"):
        restrict(protocol, ["tasks=cheetah-run"])
    with pytest.raises(ConfigError, match="expected KEY=NAME"):
        restrict(protocol, ["sac"])


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("tasks={cheetah-rum: 4}", "Did you mean 'cheetah-run'"),
        ("tasks={cheetah-run: 3}", "multiple of the action repeat of cheetah-run, 3"),
        ("disturbances={strong: 3}", "unknown disturbance preset"),
        ("disturbances={hard: -1}", "history of disturbance hard must be 0 or more"),
        ("disturbances={a/none.yaml: 0, none: 0}", "different names"),
        ("frames=15_000", "multiple of evaluate_every=10000"),
        ("seeds=[1, 1]", "each once"),
        ("peers={sac: {algorithm: SAK}}", "Did you mean 'SAC'"),
        ("peers={ppo: {algorithm: PPO, action_noise: 0.1}}", "PPO takes none"),
        ("peers={dpg: {algorithm: SAC}}", "different names"),
        ("ours={a/b: {}}", "names a folder"),
        ("ours={dpg: {num_envs: 7}}", "multiple of num_envs of dpg, 7"),
        ("ours.dpg.learner.batch_siz=1", "Did you mean 'batch_size'"),
    ],
)
def test_settings_that_cannot_be_used_are_refused(override, message):
    with pytest.raises((ConfigError, UnknownNameError), match=message):
        load_config(LearningProtocol, None, ["ours={dpg: {}}", override])


def test_a_library_that_is_not_installed_is_named_with_its_remedy(monkeypatch):
    monkeypatch.setattr(learning_peers, "find_spec", lambda name: None)
    with pytest.raises(MissingPeerError, match="pip install sb3-contrib"):
        require_peers([PeerConfig(algorithm="TQC")])
    require_peers([])
