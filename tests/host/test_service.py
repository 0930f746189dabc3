from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

import sim
from dpg_robot.contract import Contract
from dpg_robot.data.log_following import LogFollower
from dpg_robot.errors import CheckpointError
from dpg_robot.host.gate import GateConfig
from dpg_robot.host.mixture import MixtureConfig
from dpg_robot.host.model_store import ModelStore
from dpg_robot.host.service import FinetuneService, ServiceConfig
from dpg_robot.learning.checkpoint import save_checkpoint
from dpg_robot.learning.learner import Learner, LearnerConfig
from dpg_robot.learning.policy import Policy
from dpg_robot.learning.replay import Batch, ReplayBuffer
from dpg_robot.learning.trainer import Collector, Evaluation, learner_state
from sim.tasks import make_task

REWARD = make_task("cartpole-swingup").measured_reward
SMALL = LearnerConfig(hidden_sizes=(16, 16), batch_size=32)
OPEN = GateConfig(
    max_error_growth=10.0, max_td_error_growth=10.0, max_action_distance=2.0, max_jitter_growth=100.0
)  # only the returns decide
CONFIG = ServiceConfig(
    updates_per_round=30,
    first_updates_after=40,
    improve_policy_after=10,
    candidate_every=60,
    held_out_every=3,
    mixture=MixtureConfig(newest=100),
)


def constant_returns(_: Policy) -> Evaluation:
    return Evaluation(np.arange(4.0))


@pytest.fixture(scope="session")
def simulation(contract: Contract) -> ReplayBuffer:
    collector = Collector(sim.make("cartpole-swingup", num_envs=4, action_repeat=2), contract)
    replay = ReplayBuffer(200, contract.observation_size, contract.num_actions, stride=4)
    generator = torch.Generator().manual_seed(0)
    for _ in range(50):
        replay.add(collector.step(2 * torch.rand(4, 1, generator=generator) - 1))
    return replay


@pytest.fixture
def make_service(contract: Contract, simulation: ReplayBuffer, tmp_path: Path) -> Callable[..., FinetuneService]:
    def make(
        name: str = "run",
        config: ServiceConfig = CONFIG,
        gate: GateConfig = OPEN,
        returns: Callable[[Policy], Evaluation] = constant_returns,
    ) -> FinetuneService:
        learner = Learner(contract, SMALL, seed=0)
        learner.observe(simulation.all())
        store = ModelStore(tmp_path / name / "store")
        return FinetuneService(learner, simulation, REWARD, returns, config, gate, store, tmp_path / name)

    return make


def weights(service: FinetuneService) -> torch.Tensor:
    return torch.cat([parameter.detach().flatten() for parameter in service.learner.parameters()])


def episodes(contract: Contract, count: int, seed: int = 0) -> list[Batch]:
    """Episodes of 20 transitions under random actions."""
    collector = Collector(sim.make("cartpole-swingup", num_envs=1, seed=seed, action_repeat=2), contract)
    generator = torch.Generator().manual_seed(seed)
    found = []
    for _ in range(count):
        steps = [collector.step(2 * torch.rand(1, 1, generator=generator) - 1) for _ in range(20)]
        batch = steps[0]
        for step in steps[1:]:
            batch = batch.concatenate(step)
        found.append(batch)
    return found


def feed(service: FinetuneService, batches: list[Batch]) -> None:
    for batch in batches:
        service.add(batch, np.zeros(len(batch), np.int64))
        service.round([])


def test_logged_episodes_become_updates_candidates_and_a_status(
    make_service: Callable, make_records: Callable, write_log: Callable, tmp_path: Path
) -> None:
    service = make_service(returns=lambda policy: Evaluation(np.arange(4.0)))
    follower = LogFollower(write_log(make_records(episodes=6, steps=20)))
    for _ in range(10):
        service.round(follower.poll())
    assert service.counts.received == service.counts.used == 120
    assert service.counts.updates == 120
    assert service.counts.candidates == 1  # as all of it was there at once
    folder = tmp_path / "run"
    status = json.loads((folder / "status.json").read_text())
    assert status["state"] == "waiting"
    assert status["transitions"] == {"robot": 120, "used": 120, "excluded": 0, "refused": 0, "held_out": 40}
    assert status["robots"] == {"robot": 120}
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert [line["update"] for line in lines if "denoiser/loss" in line] == [30, 60, 90, 120]
    assert any("judge/td_error" in line for line in lines)
    verdict = json.loads((folder / "store" / "versions" / "000001" / "verdict.json").read_text())
    assert verdict["transitions"]["used"] == 120


def test_held_out_episodes_are_not_learned_from(make_service: Callable, contract: Contract) -> None:
    service = make_service()
    feed(service, episodes(contract, 7))
    assert len(service._held_out) == 40
    learned = {tuple(row) for row in service._mixture.robot.all().observation.tolist()}
    assert not learned & {tuple(row) for row in service._held_out.all().observation.tolist()}


def test_a_candidate_that_passes_is_current_and_one_that_does_not_changes_nothing(
    make_service: Callable, contract: Contract
) -> None:
    better = iter([0.0, 10.0, -50.0, -50.0, -50.0])
    service = make_service(returns=lambda _: Evaluation(np.arange(4.0) + next(better)))
    start = [p.clone() for p in service.current_policy.parameters()]
    feed(service, episodes(contract, 3))
    assert service.counts.candidates == 1
    accepted = [p.clone() for p in service.current_policy.parameters()]
    assert not all(map(torch.equal, start, accepted))
    assert all(map(torch.equal, accepted, service.learner.policy.parameters()))
    content = service._store.current.read_bytes()
    feed(service, episodes(contract, 3, seed=1))
    assert service.counts.candidates == 2
    assert all(map(torch.equal, accepted, service.current_policy.parameters()))
    assert service._store.current.read_bytes() == content
    assert service._store.verdict(2)["passed"] is False


def test_losses_of_return_that_pass_one_by_one_do_not_add_up(make_service: Callable, contract: Contract) -> None:
    measured = iter([100.0, 98.5, 97.0, 99.0])  # at the beginning, and of three candidates
    gate = dataclasses.replace(OPEN, max_return_loss=0.02)
    service = make_service(gate=gate, returns=lambda _: Evaluation(np.full(4, next(measured))))
    for number in range(3):
        feed(service, episodes(contract, 3, seed=number))
    verdicts = [service._store.verdict(number) for number in (1, 2, 3)]
    assert [verdict["passed"] for verdict in verdicts] == [True, False, True], verdicts


def test_with_another_simulation_the_best_policy_is_measured_anew_also_after_a_restart(
    make_service: Callable, contract: Contract
) -> None:
    asked: list[torch.Tensor] = []

    def returns(policy: Policy) -> Evaluation:
        asked.append(torch.cat([parameter.detach().flatten() for parameter in policy.parameters()]))
        return Evaluation(np.full(4, 100.0 - len(asked)))  # each is worse than the one before

    service = make_service(gate=dataclasses.replace(OPEN, max_return_loss=0.5), returns=returns)
    feed(service, episodes(contract, 3))
    best, passed = asked
    service.save({})
    again = make_service(gate=dataclasses.replace(OPEN, max_return_loss=0.5), returns=returns)
    again.resume()
    feed(again, episodes(contract, 3, seed=1))
    assert len(asked) == 3  # the candidate alone
    again.simulation_changed()
    feed(again, episodes(contract, 3, seed=2))
    assert len(asked) == 5
    assert torch.equal(asked[3], best)
    assert not torch.equal(asked[4], best)
    assert not torch.equal(passed, best)


def test_after_rejections_in_a_row_learning_begins_anew_from_what_robots_run(make_service: Callable, contract: Contract) -> None:
    calls = iter([0.0, -50.0, -50.0])
    config = ServiceConfig(**(vars(CONFIG) | {"return_after_rejections": 2}))
    service = make_service(config=config, returns=lambda _: Evaluation(np.arange(4.0) + next(calls)))
    start = weights(service)
    feed(service, episodes(contract, 5))
    assert service.counts.rejections_in_row == 1
    assert not torch.equal(weights(service), start)
    while service.counts.candidates < 2:
        feed(service, episodes(contract, 1, seed=service.counts.episodes))
    assert torch.equal(weights(service), start)
    assert service.counts.rejections_in_row == 0


def test_a_poisoned_candidate_is_stopped_by_the_gate(make_service: Callable, contract: Contract) -> None:
    service = make_service(gate=GateConfig())
    feed(service, episodes(contract, 4))
    with torch.no_grad():
        for parameter in service.learner.policy.parameters():
            parameter.add_(torch.linspace(-2, 2, parameter.numel()).reshape(parameter.shape))
    verdict = service.propose()
    assert not verdict.passed
    assert any(reason.startswith("FAILED: actions at states") for reason in verdict.reasons)


def test_a_service_that_was_killed_goes_on_bit_by_bit_as_if_it_had_not_been(make_service: Callable, contract: Contract) -> None:
    batches = episodes(contract, 12)
    whole = make_service("whole")
    feed(whole, batches)

    first = make_service("cut")
    feed(first, batches[:7])
    first.save({"run-a": 17})
    feed(first, batches[7:9])  # lost with the process
    second = make_service("cut")
    assert second.resume() == {"run-a": 17}
    assert second.counts.episodes == 7
    feed(second, batches[7:])
    assert second.counts == whole.counts
    assert torch.equal(weights(second), weights(whole))
    assert all(map(torch.equal, second.current_policy.parameters(), whole.current_policy.parameters()))


def test_without_a_checkpoint_there_is_nothing_to_go_on_from_and_another_kind_of_checkpoint_is_refused(
    make_service: Callable, contract: Contract, tmp_path: Path
) -> None:
    service = make_service()
    assert service.resume() is None
    save_checkpoint(tmp_path / "run" / "checkpoints" / "000000001", *learner_state(Learner(contract, SMALL)))
    with pytest.raises(CheckpointError, match="not a checkpoint of fine-tuning as a service"):
        service.resume()


def test_a_log_of_another_robot_is_counted_named_and_left_out(
    make_service: Callable, make_records: Callable, write_log: Callable, tmp_path: Path
) -> None:
    other = sim.make("cartpole-swingup", action_repeat=1).contract(history=2)
    service = make_service()
    service.round(LogFollower(write_log(make_records(episodes=2), contract=other)).poll())
    assert (service.counts.received, service.counts.refused, service.counts.used) == (40, 40, 0)
    assert "run-a" in json.loads((tmp_path / "run" / "status.json").read_text())["error"]


def test_transitions_with_numbers_that_are_not_finite_are_left_out(
    make_service: Callable, make_records: Callable, write_log: Callable
) -> None:
    records = make_records(episodes=2, steps=20)
    records["measurement"][5, 0] = np.nan
    service = make_service()
    service.round(LogFollower(write_log(records)).poll())
    assert service.counts.excluded == 4  # the two transitions at that record, and two more whose history holds it
    assert service.counts.used == 36


@pytest.mark.parametrize(
    "wrong", [{"held_out_every": 1}, {"updates_per_transition": 0.0}, {"candidate_every": 0}, {"poll_interval_s": float("inf")}]
)
def test_settings_that_make_no_sense_are_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=next(iter(wrong))):
        ServiceConfig(**wrong)  # type: ignore[arg-type]


def test_a_candidate_that_cannot_be_exported_is_stopped_and_the_service_goes_on(
    make_service: Callable, contract: Contract, tmp_path: Path
) -> None:
    service = make_service()
    feed(service, episodes(contract, 4))
    versions = service._store.versions()
    with torch.no_grad():
        for parameter in service.learner.policy.parameters():
            parameter.fill_(float("nan"))
    verdict = service.propose()
    assert not verdict.passed
    assert service._store.versions() == versions
    service.round([])
    assert "candidate 2" in json.loads((tmp_path / "run" / "status.json").read_text())["error"]
