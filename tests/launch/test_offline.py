"""The programs for data sets: make one in simulation, learn from it alone, and go on online."""

import importlib.util
import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from dpg_robot.data.datasets import DatasetError
from dpg_robot.data.minari_format import read_dataset
from dpg_robot.learning.trainer import best_checkpoint, load_learner
from sim.collect import World, make_again
from sim.replay_episodes import episodes_from_replay

pytest.importorskip("minari")
pytest.importorskip("h5py")

LAUNCH = Path(__file__).parents[2] / "launch"
TINY = (
    "num_threads=1",
    "torch_threads=1",
    "history=1",
    "evaluation_episodes=2",
    "learner.hidden_sizes=[16]",
    "learner.batch_size=16",
    "trainer.updates=6",
    "trainer.checkpoint_every=4",
    "online.num_envs=2",
    "online.trainer.updates=4",
    "online.trainer.evaluate_every=2",
    "online.trainer.updates_per_step=1",
    "online.trainer.warmup_transitions=2",
    "behaviour.decay_updates=8",
)
WORLD = ("world.action_repeat=50", "world.disturbance=easy", "num_envs=3", "num_threads=1")
PRETRAIN = (
    "num_envs=2",
    "num_threads=1",
    "torch_threads=1",
    "action_repeat=50",
    "history=1",
    "randomization=default",
    "disturbance=none",
    "evaluation_episodes=2",
    "learner.hidden_sizes=[16]",
    "learner.batch_size=16",
    "trainer.updates=30",
    "trainer.updates_per_step=1",
    "trainer.evaluate_every=30",
    "trainer.warmup_transitions=40",
    "trainer.replay_capacity=50",
)


@pytest.fixture(autouse=True)
def one_thread():
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def load(name):
    spec = importlib.util.spec_from_file_location(f"launch_{name}", LAUNCH / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def call(monkeypatch, capsys):
    """Return a function that runs a program in this process and returns exit code, output and errors."""

    def run(program, *arguments):
        monkeypatch.setattr(sys, "argv", [f"{program}.py", *map(str, arguments)])
        code = 0
        try:
            load(program).main()
        except SystemExit as left:
            code = left.code or 0
        shown = capsys.readouterr()
        return code, shown.out, shown.err

    return run


@pytest.fixture
def random_data(call, tmp_path):
    code, out, err = call("collect", *WORLD, "transitions=65", "--root", tmp_path / "sets", "--quiet")
    assert code == 0, err
    assert out.startswith("cartpole-swingup/random-v0: 65 transitions in 6 episodes")
    return tmp_path / "sets" / "cartpole-swingup" / "random-v0"


def test_a_data_set_says_which_world_it_comes_from_and_that_can_be_made_again(random_data):
    dataset = read_dataset(random_data)
    assert dataset.settings["world"]["disturbance"] == "easy"
    assert dataset.contract.action_repeat == 50
    again = make_again(dataset.settings["world"], num_envs=2, seed=0)
    assert again._made_of == World("cartpole-swingup", 50, "none", "easy").make(2, 0)._made_of
    # the seed gives the same data
    first = World("cartpole-swingup", 50, "none", "easy").make(3, 0).reset()
    assert any(np.array_equal(episode.observations[0], first[0]) for episode in dataset.episodes)


def test_learning_from_data_alone_then_online(call, random_data, tmp_path):
    offline, online = tmp_path / "offline", tmp_path / "online"
    code, out, err = call("offline", f"data={random_data}", *TINY, "--run", offline, "--json", tmp_path / "a.json", "--quiet")
    assert code == 0, err
    result = json.loads((tmp_path / "a.json").read_text())
    assert [item["updates"] for item in result["evaluations"]] == [4, 6]
    assert out.startswith(f"return {result['return']['mean']:.1f} +- ")
    learner, _, _ = load_learner(best_checkpoint(offline))
    assert learner.contract.history == 1
    assert int(learner.updates) == 6

    code, out, err = call("offline", "--online", offline, "--run", online, "--json", tmp_path / "b.json", "--quiet")
    assert code == 0, err
    later = json.loads((tmp_path / "b.json").read_text())
    assert [item["updates"] for item in later["evaluations"]] == [0, 2, 4]
    assert later["evaluations"][0]["returns"] == result["evaluations"][-1]["returns"], "it starts as the offline policy"
    assert "largest drop below the offline policy's" in out
    newest = load_learner(sorted((online / "checkpoints").iterdir())[-1])[0]
    assert int(newest.updates) == 6 + 4

    # nothing is trained into a folder in use, and a finished run resumes to the same
    assert call("offline", f"data={random_data}", *TINY, "--run", offline)[0] == 1
    code, _, err = call("offline", "--online", offline, "--run", online, "--resume", "--quiet", "--json", tmp_path / "c.json")
    assert (code, "resumed" in err) == (0, True)
    assert json.loads((tmp_path / "c.json").read_text())["return"] == later["return"]
    code, _, err = call("offline", f"data={random_data}", *TINY, "seed=1", "--run", offline, "--resume")
    assert code == 1
    assert "was started with other settings (seed differ)" in err


def test_a_data_set_above_the_memory_limit_is_streamed_and_resumes_to_the_same(call, random_data, tmp_path):
    def train(run, *settings):
        code, _, err = call("offline", f"data={random_data}", *TINY, *settings, "--run", tmp_path / run, "--quiet")
        assert code == 0, err
        return best_checkpoint(tmp_path / run), err

    held, said = train("held", "memory_limit=65")
    assert "read from disk" not in said
    streamed, said = train("streamed", "memory_limit=64")
    assert "read from disk while learning" in said
    assert "65 transitions in 6 episodes" in said
    networks = "networks.safetensors"
    assert (streamed / networks).read_bytes() != (held / networks).read_bytes()
    before = (streamed / networks).read_bytes()
    again, said = train("streamed", "memory_limit=64", "--resume")
    assert "resumed" in said
    assert (again / networks).read_bytes() == before

    code, _, err = call("offline", "--online", tmp_path / "streamed", "--run", tmp_path / "online", "--quiet")
    assert code == 1
    assert "set memory_limit to its 65 transitions or more" in err
    several = ("memory_limit=64", "learner.n_steps=2")
    code, _, err = call("offline", f"data={random_data}", *TINY, *several, "--run", tmp_path / "new")
    assert code == 1
    assert "choose learner.n_steps=1, not 2" in err
    assert not (tmp_path / "new").exists()


def test_data_without_rewards_train_the_denoiser_and_it_says_so(call, tmp_path):
    assert call("collect", *WORLD, "transitions=30", "--root", tmp_path, "--without-rewards", "--quiet")[0] == 0
    data = f"data={tmp_path / 'cartpole-swingup' / 'random-v0'}"
    code, _, err = call("offline", data, *TINY, "--run", tmp_path / "a", "--quiet")
    assert code == 1
    assert "choose learner.gradient=next_state" in err
    code, _, err = call("offline", data, *TINY, "learner.gradient=next_state", "--run", tmp_path / "b", "--quiet")
    assert code == 0, err
    assert "without rewards only the denoiser is trained" in err
    code, _, err = call("offline", "--online", tmp_path / "b", "--run", tmp_path / "c", "--quiet")
    assert code == 1
    assert "has no rewards" in err


def test_pretraining_begins_with_a_denoiser_that_knows_motion_without_rewards(call, tmp_path):
    settings = ("world.action_repeat=50", "num_envs=3", "num_threads=1", "transitions=30", "--without-rewards", "--quiet")
    assert call("collect", *settings, "--root", tmp_path)[0] == 0
    data = f"data={tmp_path / 'cartpole-swingup' / 'random-v0'}"
    motion = tmp_path / "motion"
    code, _, err = call("offline", data, *TINY, "learner.gradient=next_state", "--run", motion, "--quiet")
    assert code == 0, err
    few = (
        "trainer.updates=1",
        "trainer.evaluate_every=1",
        "learner.learning_rate=1e-9",
        "learner.n_steps=1",
        f"denoiser={motion}",
    )
    code, _, err = call("pretrain", *PRETRAIN, "learner.gradient=next_state", *few, "--run", tmp_path / "run", "--quiet")
    assert code == 0, err
    known, begun = (load_learner(best_checkpoint(folder))[0].denoiser for folder in (motion, tmp_path / "run"))
    for ours, theirs in zip(begun.network.parameters(), known.network.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-7)
    code, _, err = call("pretrain", *PRETRAIN, *few, "--run", tmp_path / "other", "--quiet")
    assert code == 1
    assert "its learner.gradient is 'next_state' and must be 'reward_and_next_state'" in err


def test_medium_data_come_from_a_training_run(call, tmp_path):
    run = tmp_path / "run"
    assert call("pretrain", *PRETRAIN, "--run", run, "--quiet")[0] == 0
    sets = ("--run", run, "--root", tmp_path / "sets", "--quiet", "num_threads=1")
    code, _, err = call("collect", "behaviour=medium", "transitions=25", "num_envs=2", *sets)
    assert code == 0, err
    medium = read_dataset(tmp_path / "sets/cartpole-swingup/medium-v0")
    assert (len(medium), medium.settings["history"]) == (25, 1)
    assert medium.settings["world"]["randomization"] == "default", "the run's own world"
    code, _, err = call("collect", "behaviour=medium-replay", "transitions=0", *sets)
    assert code == 0, err
    replay = read_dataset(tmp_path / "sets/cartpole-swingup/medium-replay-v0")
    # 49 steps of 2 environments, whose episodes have 20; the buffer holds the last 25 of them
    assert len(replay) == 50
    assert sorted(len(episode) for episode in replay.episodes) == [9, 9, 16, 16]
    kept = load_learner(best_checkpoint(run))[1]["replay"]
    np.testing.assert_allclose(np.sort(replay.transitions().reward), np.sort(kept["reward"].numpy() * 50), rtol=1e-6)
    code, _, err = call("collect", "behaviour=medium-replay", "transitions=51", *sets, "--name", "x/y-v0")
    assert code == 1
    assert "holds 50 transitions, 51 were asked for" in err


def test_episodes_of_a_replay_buffer_are_told_apart_by_where_they_lead():
    contract = World("cartpole-swingup", 50).make(1, 0).contract()
    features = np.arange(7, dtype=np.float32)[:, None] * np.ones(5, np.float32)
    replay = {
        "observation": features[[0, 1, 4, 5]],
        "next_observation": features[[1, 2, 5, 6]],
        "action": np.zeros((4, 1), np.float32),
        "reward": np.ones(4, np.float32),
        "terminal": np.array([0, 0, 1, 0], np.float32),
        "added": np.array(4),
    }
    episodes = episodes_from_replay(replay, contract, capacity=10, num_envs=1, transitions=None)
    assert [len(episode) for episode in episodes] == [2, 1, 1], "a jump ends an episode, and so does a terminal"
    assert [bool(episode.terminations[-1]) for episode in episodes] == [False, True, False]
    with pytest.raises(DatasetError, match="holds 4 transitions"):
        episodes_from_replay(replay, contract, capacity=10, num_envs=1, transitions=5)


@pytest.mark.parametrize(
    ("program", "arguments", "expected"),
    [
        ("collect", ["behaviour=medium"], "needs the run folder of a training run"),
        ("collect", ["behaviour=medum"], "Did you mean 'medium'?"),
        ("collect", ["world.task=cartpole-swingpu"], "Did you mean 'cartpole-swingup'?"),
        ("collect", ["transitions=0"], "transitions must be 1 or more"),
        ("collect", ["behaviour=medium", "--run", "nowhere"], "nowhere"),
        ("offline", ["data=nowhere"], "is no Minari data set"),
        ("offline", ["evaluation_episodes=1"], "must be 0, or 2 or more"),
        ("offline", ["behaviour.weight=-1"], "weight must be 0 or more"),
        ("offline", ["--online", "nowhere"], "does not exist"),
    ],
)
def test_the_programs_say_what_is_wrong_in_one_line(call, tmp_path, monkeypatch, program, arguments, expected):
    monkeypatch.chdir(tmp_path)
    code, out, err = call(program, *arguments)
    assert (code, out) == (1, "")
    assert err.startswith(f"{program}: ")
    assert expected in err
    assert list(tmp_path.iterdir()) == [], "a refused run leaves nothing behind"
