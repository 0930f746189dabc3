"""Policies of any size for the loop benchmark: the network that the learner would train, with the weights that it starts from."""

from __future__ import annotations

import dataclasses
import logging
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

import onnx
import torch

from dpg_robot.contract import Contract
from dpg_robot.files import write_atomically
from dpg_robot.learning.export import export_policy
from dpg_robot.learning.policy import Policy
from dpg_robot.policy_file import METADATA_KEY, read_policy_file

_PARITY_SAMPLES = 100
_LAST_LAYER_STD = 0.02  # at first it is 0, which gives the same action always


def write_untrained_policies(contracts: Mapping[Path, Contract], hidden_sizes: Sequence[int]) -> None:
    """Write an untrained policy with these hidden layers to each path; the contracts differ in nothing but their rates."""
    (first, contract), *others = contracts.items()
    with torch.random.fork_rng(), _exporter_kept_quiet():
        torch.manual_seed(0)
        policy = Policy(contract.observation_size, contract.num_actions, tuple(hidden_sizes))
        *_, last_weight, _ = policy.network.parameters()
        torch.nn.init.normal_(last_weight, std=_LAST_LAYER_STD)
        export_policy(policy, contract, first, parity_samples=_PARITY_SAMPLES)
    content, metadata = read_policy_file(first)
    for path, other in others:  # the same graph: the rate is not in it
        model = onnx.load_from_string(content)
        renamed = dataclasses.replace(metadata, contract=dataclasses.replace(contract, rate_hz=other.rate_hz))
        onnx.helper.set_model_props(model, {METADATA_KEY: renamed.to_json()})
        write_atomically(path, model.SerializeToString())


@contextmanager
def _exporter_kept_quiet() -> Iterator[None]:
    """Hold back what torch's exporter says about packages that are not needed, and about itself."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)
            yield
    finally:
        logger.setLevel(level)
