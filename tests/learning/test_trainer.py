"""Training runs: what is collected, how it is evaluated, and that a resumed run is the uninterrupted one."""

import dataclasses
import json
from dataclasses import dataclass

import numpy as np
import pytest
import torch

import sim
from dpg_robot.contract import CommandChannel, Contract, Feature, MeasurementChannel
from dpg_robot.errors import CheckpointError, ContractError
from dpg_robot.learning.learner import Learner, LearnerConfig
from dpg_robot.learning.policy import Policy
from dpg_robot.learning.trainer import (
    Collector,
    Evaluation,
    Trainer,
    TrainerConfig,
    best_checkpoint,
    checkpoints,
    evaluate,
    load_learner,
    newest_checkpoint,
    restore_learner,
)

CONTRACT = Contract(
    task="counter",
    measurements=(MeasurementChannel("count", "steps"),),
    features=(Feature("identity", "count"),),
    commands=(CommandChannel("push", "N", -1.0, 1.0),),
    rate_hz=10.0,
    history=1,
    action_repeat=2,
)


@dataclass
class Step:
    obs: np.ndarray
    reward: np.ndarray
    terminal: np.ndarray
    timeout: np.ndarray
    final_obs: np.ndarray


class Counters:
    """Two environments that count their steps: the first ends for good after 2 steps, the second is cut after 3."""

    num_envs = 2

    def __init__(self):
        self.count = np.zeros(2)

    def reset(self):
        self.count[:] = 0
        return self._observe()

    def step(self, actions):
        self.count += 1
        final_obs, reward = self._observe(), (self.count + actions[:, 0]).astype(np.float32)
        terminal = np.array([self.count[0] == 2, False])
        timeout = np.array([False, self.count[1] == 3])
        self.count[terminal | timeout] = 0
        return Step(self._observe(), reward, terminal, timeout, final_obs)

    def state_dict(self):
        return {"count": self.count.copy()}

    def load_state_dict(self, state):
        self.count[:] = state["count"]

    def _observe(self):
        return self.count[:, None].astype(np.float32)


def test_transitions_tell_the_end_of_an_episode_from_its_cut():
    collector = Collector(Counters(), CONTRACT)
    actions = [torch.tensor([[0.1 * step], [-0.1 * step]]) for step in range(1, 4)]
    first, second, third = (collector.step(action) for action in actions)
    assert first.observation.tolist() == [[0, 0, 0], [0, 0, 0]]
    torch.testing.assert_close(first.next_observation, torch.tensor([[1, 0, 0.1], [1, 0, -0.1]]))
    assert torch.equal(second.observation, first.next_observation)
    assert second.terminal.tolist() == [1, 0]
    # the observation that the action led to, not the first one of the next episode
    torch.testing.assert_close(second.next_observation, torch.tensor([[2, 1, 0.2], [2, 1, -0.2]]))
    torch.testing.assert_close(third.observation, torch.tensor([[0, 0, 0], [2, 1, -0.2]]))
    assert third.terminal.tolist() == [0, 0], "an episode cut by its time limit has a future"
    torch.testing.assert_close(third.next_observation, torch.tensor([[1, 0, 0.3], [3, 2, -0.3]]))
    assert collector.observation[1].tolist() == [0, 0, 0]


def test_privileged_transitions_end_with_the_dynamics_of_their_own_episode():
    environment = make_environment(0)
    collector = Collector(environment, environment.contract(1), privileged=True)
    count = environment.dynamics.shape[1]
    assert count > 0
    for index in range(1, 14):  # episodes last 6 steps
        dynamics = torch.from_numpy(environment.dynamics).float()
        batch = collector.step(torch.zeros(3, 1))
        assert torch.equal(batch.observation[:, -count:], dynamics)
        assert torch.equal(batch.next_observation[:, -count:], dynamics)
        assert (index % 6 == 0) == (not np.array_equal(dynamics, environment.dynamics.astype(np.float32)))
        assert collector.observation.shape[1] == batch.observation.shape[1] - count


def test_a_privileged_checkpoint_is_restored_as_such_and_not_taken_for_another(tmp_path):
    def privileged_trainer(folder):
        learner = Learner(make_environment(1).contract(1), LEARNER, seed=1, privileged_size=make_environment(1).dynamics.shape[1])
        return Trainer(learner, TRAINER, make_environment(1), make_environment(2), folder, seed=1)

    best = privileged_trainer(tmp_path / "run").run(show_progress=False)
    learner, tensors, state = load_learner(best)
    assert learner.privileged_size == make_environment(1).dynamics.shape[1] > 0
    assert tensors["replay"]["observation"].shape[1] == learner.contract.observation_size + learner.privileged_size
    with pytest.raises(CheckpointError, match="privileged numbers, those of this run 0"):
        restore_learner(Learner(learner.contract, LEARNER), tensors, state)


def test_rewards_are_per_reward_step():
    batch = Collector(Counters(), CONTRACT).step(torch.tensor([[0.5], [-0.5]]))
    torch.testing.assert_close(batch.reward, torch.tensor([0.75, 0.25]))


def test_an_evaluation_counts_the_first_episode_of_each_environment():
    policy = Policy(CONTRACT.observation_size, 1, (8,))  # gives zero before training
    evaluation = evaluate(policy, CONTRACT, Counters())
    assert evaluation.returns.tolist() == [1 + 2, 1 + 2 + 3]
    assert evaluation.mean == 4.5
    assert evaluation.standard_error == pytest.approx(1.5)
    assert evaluation.to_dict() == {"mean": 4.5, "standard_error": pytest.approx(1.5), "returns": [3.0, 6.0]}


def test_one_episode_has_no_standard_error():
    assert np.isnan(Evaluation(np.array([1.0])).standard_error)


@pytest.mark.parametrize("name", [field.name for field in dataclasses.fields(TrainerConfig)])
def test_settings_below_one_are_refused(name):
    with pytest.raises(ValueError, match=f"{name} must be"):
        TrainerConfig(**{name: 0})


LEARNER = LearnerConfig(hidden_sizes=(8,), batch_size=8)
# 10 is no multiple of 4: a checkpoint falls between two updates of one step
TRAINER = TrainerConfig(updates=30, updates_per_step=4, warmup_transitions=6, replay_capacity=13, evaluate_every=10, log_every=10)


def make_environment(seed):
    environment = sim.make("cartpole-swingup", 3, seed, 1, 10, "default", "default")
    environment._steps_per_episode = 6
    return environment


def make_trainer(folder, history=1, learner=LEARNER, trainer=TRAINER):
    learner = Learner(make_environment(1).contract(history), learner, seed=1)
    return Trainer(learner, trainer, make_environment(1), make_environment(2), folder, seed=1)


class KilledError(Exception):
    pass


@pytest.mark.parametrize("history", [0, 2])
def test_a_run_that_was_killed_anywhere_and_resumed_is_the_same_bit_for_bit(tmp_path, monkeypatch, history):
    straight = make_trainer(tmp_path / "straight", history)
    straight.run(show_progress=False)
    wanted = {item.name: item.read_bytes() for item in newest_checkpoint(tmp_path / "straight").iterdir()}
    for killed_at in (19, 25):
        folder = tmp_path / f"killed-{killed_at}"
        trainer, updates = make_trainer(folder, history), iter(range(killed_at))
        update = trainer.learner.update

        def dying(batch, update=update, updates=updates):
            if next(updates, None) is None:
                raise KilledError
            return update(batch)

        monkeypatch.setattr(trainer.learner, "update", dying)
        with pytest.raises(KilledError):
            trainer.run(show_progress=False)
        resumed = make_trainer(folder, history)
        assert resumed.resume()
        assert resumed.updates == killed_at // 10 * 10
        resumed.run(show_progress=False)
        assert {item.name: item.read_bytes() for item in newest_checkpoint(folder).iterdir()} == wanted
        for name in ("best.json", "evaluations.json"):
            assert (folder / name).read_bytes() == (tmp_path / "straight" / name).read_bytes()


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    folder = tmp_path_factory.mktemp("finished")
    make_trainer(folder).run(show_progress=False)
    return folder


def test_the_newest_and_the_best_checkpoint_are_kept(finished):
    evaluations = json.loads((finished / "evaluations.json").read_text())
    assert [item["updates"] for item in evaluations] == [10, 20, 30]
    best = max(evaluations, key=lambda item: item["mean"])
    assert json.loads((finished / "best.json").read_text()) == {"checkpoint": f"{best['updates']:09d}", **best}
    assert best_checkpoint(finished).name == f"{best['updates']:09d}"
    assert newest_checkpoint(finished).name == "000000030"
    assert {item.name for item in checkpoints(finished)} == {"000000030", f"{best['updates']:09d}"}
    assert list((finished / "tensorboard").iterdir())


def test_evaluations_repeat_the_same_episodes(finished):
    learner, _, _ = load_learner(newest_checkpoint(finished))
    again = evaluate(learner.policy, learner.contract, make_environment(2)).to_dict()
    last = json.loads((finished / "evaluations.json").read_text())[-1]
    assert again == {name: last[name] for name in again}


def test_a_new_run_has_nothing_to_resume(tmp_path):
    trainer = make_trainer(tmp_path)
    assert not trainer.resume()
    assert newest_checkpoint(tmp_path) is None
    with pytest.raises(CheckpointError, match="holds no training run"):
        trainer.best_checkpoint()


def test_what_a_killed_run_left_half_written_is_cleared_away(finished):
    (finished / "checkpoints" / ".000000040.abcd.tmp").mkdir()
    (finished / "checkpoints" / ".000000040.abcd.tmp" / "replay.safetensors").write_bytes(b"half")
    assert make_trainer(finished).resume()
    assert all(item.name[0] != "." for item in (finished / "checkpoints").iterdir())


def test_a_run_killed_right_after_a_checkpoint_knows_its_best_again(finished):
    best = best_checkpoint(finished)
    (finished / "best.json").unlink()
    trainer = make_trainer(finished)
    assert trainer.resume()
    assert trainer.run(show_progress=False) == best == best_checkpoint(finished)


def test_a_learner_made_from_a_checkpoint_is_the_one_that_was_saved(finished):
    learner, tensors, state = load_learner(newest_checkpoint(finished))
    assert learner.config == LEARNER
    assert state["updates"] == int(learner.updates) == 30
    assert all(torch.equal(value, tensors["networks"][name]) for name, value in learner.state_dict().items())
    assert learner.optimizers["policy"].state_dict()["state"][0]["step"] == 15


def test_a_checkpoint_of_other_settings_or_another_task_is_refused(finished):
    learner, tensors, state = load_learner(newest_checkpoint(finished))
    other = Learner(learner.contract, dataclasses.replace(LEARNER, discount=0.9))
    with pytest.raises(CheckpointError, match=r"learner.discount=0.99, this run has 0.9"):
        restore_learner(other, tensors, state)
    other = Learner(dataclasses.replace(learner.contract, task="other"), LEARNER)
    with pytest.raises(ContractError, match="task: this run has 'other', the checkpoint has 'cartpole-swingup'"):
        restore_learner(other, tensors, state)
