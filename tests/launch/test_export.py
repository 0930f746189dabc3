"""Export: the file computes what the trained networks compute, step by step, or it is not written."""

import dataclasses
import importlib.util
import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

import sim
from dpg_robot.deploy.policy_session import PolicySession
from dpg_robot.errors import ContractError, PolicyFileError
from dpg_robot.learning import export
from dpg_robot.learning.checkpoint import save_checkpoint
from dpg_robot.learning.export import PARITY_TOLERANCE, export_policy
from dpg_robot.learning.learner import Learner, LearnerConfig
from dpg_robot.learning.policy import Policy
from dpg_robot.learning.trainer import learner_state
from dpg_robot.observation import HistoryStack
from dpg_robot.policy_file import read_policy_file

ROOT = Path(__file__).parents[2]


def contract(history):
    return sim.make("cartpole-swingup", action_repeat=2).contract(history)


def trained_policy(history):
    """Return a policy with weights and normalizer as large as training makes them."""
    torch.manual_seed(history)
    size = contract(history).observation_size
    policy = Policy(size, 1, (64, 64))
    torch.nn.init.normal_(policy.network[-1].weight, std=0.3)
    spread, middle = torch.linspace(0.05, 5.0, size), torch.linspace(-2.0, 2.0, size)
    policy.normalizer.update(middle + spread * torch.randn(1000, size))
    return policy


@pytest.fixture(scope="module", params=[0, 3])
def exported(request, tmp_path_factory):
    """Policy, path and report of an export with and without history."""
    policy = trained_policy(request.param)
    path = tmp_path_factory.mktemp("export") / "policy.onnx"
    return policy, path, export_policy(policy, contract(request.param), path)


def test_torch_and_onnx_agree_on_ten_thousand_samples(exported):
    _, path, report = exported
    assert report.parity_samples == 10_000
    assert 0 < report.max_action_error < PARITY_TOLERANCE
    assert 0 < report.max_command_error < PARITY_TOLERANCE
    assert 0 <= report.max_history_error < PARITY_TOLERANCE
    assert report.bytes == path.stat().st_size
    assert report.policy_id == read_policy_file(path)[1].policy_id


def test_the_report_lies_beside_the_policy(exported):
    _, path, report = exported
    assert json.loads(path.with_name("policy.export.json").read_text()) == dataclasses.asdict(report)
    assert sorted(item.name for item in path.parent.iterdir()) == ["policy.export.json", "policy.onnx"]


def test_the_session_acts_as_the_policy_does_in_simulation_over_two_episodes(exported):
    policy, path, _ = exported
    session = PolicySession.load(path)
    env = sim.make("cartpole-swingup", num_envs=1, seed=5, num_threads=1, action_repeat=2)
    history, features = HistoryStack(session.contract, 1), env.reset()
    worst, actions = 0.0, []
    for step in range(300):
        with torch.no_grad():
            action = policy.mean_action(torch.from_numpy(history.observe(features))).numpy()
        command = session.step(np.concatenate([env.qpos[0], env.qvel[0]]))
        worst = max(worst, float(np.abs(session.action - action[0]).max()))
        actions.append(float(action[0, 0]))
        np.testing.assert_allclose(command, session.contract.scale_action(session.action), rtol=0, atol=1e-5)
        history.push(features, action)
        features = env.step(action).obs
        if step == 150:
            features = env.reset()
            history.clear(np.array([0]))
            session.reset()
    assert worst < 1e-4
    assert np.std(actions) > 0.1, "the policy must react for the comparison to mean something"


@pytest.mark.parametrize("exported", [3], indirect=True)
def test_a_policy_has_one_id_whatever_is_written_beside_it(exported, tmp_path):
    policy, _, report = exported
    again = export_policy(policy, contract(3), tmp_path / "policy.onnx", parity_samples=5, seed=1, training={"a": 1})
    assert again.policy_id == report.policy_id


def test_the_comparison_would_notice_a_frame_too_few():
    policy, short = trained_policy(3), HistoryStack(contract(3), 1)
    features = np.ones((1, 5), dtype=np.float32)
    before = policy.mean_action(torch.from_numpy(short.observe(features)))
    short.push(features, np.ones((1, 1)))
    assert (policy.mean_action(torch.from_numpy(short.observe(features))) - before).abs() > 1e-2


def test_a_graph_that_computes_something_else_is_not_written(monkeypatch, tmp_path):
    policy, to_onnx = trained_policy(0), export._to_onnx

    def export_another(deployed):
        with torch.no_grad():
            deployed.policy.network[-1].bias += 1e-4
        model = to_onnx(deployed)
        with torch.no_grad():
            deployed.policy.network[-1].bias -= 1e-4
        return model

    monkeypatch.setattr(export, "_to_onnx", export_another)
    with pytest.raises(PolicyFileError, match="torch and ONNX differ"):
        export_policy(policy, contract(0), tmp_path / "policy.onnx", parity_samples=50)
    assert not list(tmp_path.iterdir())


def test_a_policy_that_diverged_is_not_written(tmp_path):
    policy = trained_policy(0)
    torch.nn.init.constant_(policy.network[-1].bias, float("nan"))
    with pytest.raises(PolicyFileError, match="not finite; did training diverge"):
        export_policy(policy, contract(0), tmp_path / "policy.onnx", parity_samples=5)
    assert not list(tmp_path.iterdir())


def test_a_policy_of_another_size_is_refused(tmp_path):
    with pytest.raises(ContractError, match=r"takes 5 observations and gives 1 actions; the contract .* asks for 17 and 1"):
        export_policy(trained_policy(0), contract(2), tmp_path / "policy.onnx")


def test_an_export_without_a_comparison_is_refused(tmp_path):
    with pytest.raises(PolicyFileError, match="1 or more samples, got 0"):
        export_policy(trained_policy(0), contract(0), tmp_path / "policy.onnx", parity_samples=0)


@pytest.fixture(scope="module")
def run_folder(tmp_path_factory):
    """A run folder with one checkpoint, as launch/pretrain.py leaves it."""
    folder = tmp_path_factory.mktemp("run")
    (folder / "checkpoints").mkdir()
    learner = Learner(contract(1), LearnerConfig(hidden_sizes=(16,)), seed=3)
    torch.nn.init.normal_(learner.policy.network[-1].weight)
    tensors, state = learner_state(learner)
    save_checkpoint(folder / "checkpoints" / "000000040", tensors, state | {"evaluations": [{"updates": 40, "mean": 12.5}]})
    (folder / "best.json").write_text(json.dumps({"checkpoint": "000000040"}))
    return folder


@pytest.fixture(scope="module")
def program():
    spec = importlib.util.spec_from_file_location("launch_export", ROOT / "launch/export.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_program_exports_the_best_checkpoint_of_a_run(program, run_folder, tmp_path, monkeypatch, capsys):
    arguments = ["--run", run_folder, "--parity-samples", "50", "--json", tmp_path / "r.json"]
    monkeypatch.setattr(sys, "argv", ["export.py", *map(str, arguments)])
    program.main()
    shown = capsys.readouterr().out
    report = json.loads((tmp_path / "r.json").read_text())
    assert report == json.loads((run_folder / "policy.export.json").read_text())
    assert report["policy_id"] in shown
    assert "parity with torch on 50 random measurements" in shown
    session = PolicySession.load(run_folder / "policy.onnx", contract(1))
    assert session.metadata.training == {"updates": 0, "evaluation": {"updates": 40, "mean": 12.5}}


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["--run", "{tmp}/nothing"], "holds no training run"),
        (["--checkpoint", "{tmp}/nothing"], "is not a checkpoint"),
        (["--run", "{run}", "--output", "{tmp}/policy.onnx", "--parity-samples", "0"], "1 or more samples"),
    ],
)
def test_the_program_says_what_is_wrong_in_one_line(program, run_folder, tmp_path, monkeypatch, capsys, arguments, expected):
    filled = [argument.format(tmp=tmp_path, run=run_folder) for argument in arguments]
    monkeypatch.setattr(sys, "argv", ["export.py", *filled])
    with pytest.raises(SystemExit) as left:
        program.main()
    assert left.value.code == 1
    shown = capsys.readouterr().err.strip().splitlines()[-1]
    assert shown.startswith("export: ")
    assert expected in shown
    assert not list(tmp_path.iterdir())
