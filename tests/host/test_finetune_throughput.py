"""Throughput of fine-tuning: the counted cost is that of the mathematics, and the program measures with several processes."""

import argparse
import dataclasses

import pytest
import torch

from dpg_robot.config import config_from_dict
from dpg_robot.errors import ConfigError
from dpg_robot.host.benchmarks.finetune_throughput import (
    Arrangement,
    ThroughputConfig,
    ThroughputError,
    arrangements,
    cost_of_update,
    make_contract,
    make_replay,
    measure_throughput,
    shares,
)
from dpg_robot.host.benchmarks.throughput_command import add_throughput_arguments
from dpg_robot.host.benchmarks.update_cost import Cost, Peak, count_cost, extrapolate
from dpg_robot.learning.settings import LearnerConfig

SMALL = ThroughputConfig(
    batch_sizes=(16,), threads=(1,), features=5, actions=3, history=1, transitions=1000, seconds=0.01, rounds=1,
    learner=LearnerConfig(hidden_sizes=(16, 24)),
)  # fmt: skip


def test_products_and_traffic_are_counted_in_both_directions():
    left, right = torch.ones(4, 8), torch.ones(8, 16, requires_grad=True)
    product = 2 * 4 * 8 * 16
    assert count_cost(lambda: left @ right) == Cost(product, 4 * (4 * 8 + 8 * 16 + 4 * 16))
    assert count_cost(lambda: (left @ right).sum().backward()).flops == 2 * product  # nobody asks for the slope in `left`


def test_views_move_nothing_and_expanded_tensors_are_as_large_as_their_memory():
    rows = torch.ones(100, 10)
    assert count_cost(lambda: rows[:, 2:].t().view(8, 100)).bytes == 0
    one = torch.ones(1)
    assert count_cost(lambda: one.expand(1000) + 0).bytes == 4 + 4 * 1000


def critic_flops(config: ThroughputConfig, size: int) -> float:
    """The products of an update with the critic's own derivative, by hand; the policy's at every second update."""
    state, actions, members = make_contract(config).observation_size, config.actions, config.learner.baseline_members
    first, second = config.learner.hidden_sizes

    def chain(inputs, outputs):
        """Return the products of a network with one row, forwards; backwards also towards its inputs there are as many again."""
        return 2 * (inputs * first + first * second + second * outputs)

    policy, policy_inputs = chain(state, 2 * actions), 2 * state * first
    inputs = state + actions + 1
    baseline, baseline_inputs = members * chain(inputs, 1 + 2 * actions), members * 2 * inputs * first
    taught = size + size // 2  # all at their actions, half of them at noised ones too
    estimators = size * (policy + baseline) + taught * (3 * baseline - baseline_inputs)
    ascent = size * (3 * policy - policy_inputs) + size * 2 * baseline
    return estimators + ascent / config.learner.policy_update_interval


@pytest.mark.parametrize("size", [64, 16384])
def test_the_counted_arithmetic_of_the_critic_is_that_of_hand_calculation(size):
    case = {"variant": "critic", "precision": "float32", "batch_size": size}
    assert cost_of_update(SMALL, case, size).flops == critic_flops(SMALL, size)


def test_the_denoised_gradient_costs_more_than_the_critic_and_a_batch_twice_as_large_twice_as_much():
    costs = {
        (variant, size): cost_of_update(SMALL, {"variant": variant, "precision": "float32", "batch_size": size}, size)
        for variant in SMALL.variants
        for size in (256, 512)
    }
    assert 1.5 < costs["denoised", 256].flops / costs["critic", 256].flops < 5
    for variant in SMALL.variants:
        small, large = costs[variant, 256], costs[variant, 512]
        assert large.flops == 2 * small.flops
        assert 1 < large.bytes / small.bytes < 2  # weights and the optimizers' state do not grow with the batch


def test_costs_are_extrapolated_along_a_line():
    assert extrapolate(Cost(10, 100), Cost(20, 110), 1, 2, 5) == Cost(50, 140)


def test_shares_are_work_over_time_over_the_limit():
    found = shares(100, 0.5, Cost(flops=1e9, bytes=2e9), Peak(flops_per_s=8e9, bytes_per_s=40e9))
    assert found["transitions_per_s"] == 200
    assert found["arithmetic_share"] == pytest.approx(0.25)
    assert found["memory_share"] == pytest.approx(0.1)


def test_transitions_of_several_steps_are_found_in_the_buffer():
    steps = make_replay(SMALL, "cpu").sample(500, torch.Generator().manual_seed(0), n_steps=4).steps
    assert float(steps.mean()) > 3.9


def test_the_program_measures_one_process_and_two(capsys):
    parser = argparse.ArgumentParser()
    add_throughput_arguments(parser.add_subparsers())
    settings = [
        "batch_sizes=[16]", "threads=[1]", "features=5", "actions=3", "history=1", "transitions=1000", "seconds=0.01", "rounds=1",
        "learner.hidden_sizes=[16,24]", "variants={critic: critic}", "precisions=[float32,bfloat16]",
    ]  # fmt: skip
    arguments = parser.parse_args(["throughput", "--quiet", *settings])
    result = arguments.run(arguments)
    assert [(each["processes"], each["precision"]) for each in result["results"]] == [
        (1, "float32"),
        (1, "bfloat16"),
        (2, "float32"),
        (2, "bfloat16"),
    ]
    for each in result["results"]:
        assert each["transitions_per_s"] == pytest.approx(16e3 / each["update_ms"])
        assert each["rounds"] == [each["transitions_per_s"]]
        assert 0 < each["arithmetic_share"] < 1
        assert each["peak_gbytes_per_s"] > 0
    whole, half = result["results"][0], result["results"][2]
    assert half["flops_per_update_and_process"] == whole["flops_per_update_and_process"] / 2
    table = capsys.readouterr().out
    assert "| 2 processes x 1 thread | critic | bfloat16 | 16 |" in table


def test_what_is_not_there_is_said(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(ThroughputError, match="no CUDA device"):
        measure_throughput(dataclasses.replace(SMALL, device="cuda", processes=1), lambda text: None)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    with pytest.raises(ThroughputError, match="choose processes=1"):
        measure_throughput(dataclasses.replace(SMALL, device="cuda", processes=2), lambda text: None)
    impossible = dataclasses.replace(SMALL.learner, amortization="head")
    with pytest.raises(ThroughputError, match="with 1 thread failed") as failure:
        measure_throughput(dataclasses.replace(SMALL, learner=impossible, processes=1), lambda text: None)
    assert "amortization must be slope, got head" in str(failure.value)


def test_arrangements_are_single_processes_and_then_several():
    assert arrangements(dataclasses.replace(SMALL, threads=(1, 2))) == [Arrangement(1, 1), Arrangement(1, 2), Arrangement(2, 1)]
    assert arrangements(dataclasses.replace(SMALL, processes=1)) == [Arrangement(1, 1)]


@pytest.mark.parametrize(
    "settings", [{"device": "tpu"}, {"rounds": 0}, {"batch_sizes": [0]}, {"batch_sizes": [33]}, {"seconds": 0.0}]
)
def test_settings_that_cannot_be_measured_are_refused(settings):
    with pytest.raises(ConfigError):
        config_from_dict(ThroughputConfig, settings, "a test")
