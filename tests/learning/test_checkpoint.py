"""Checkpoints: whole, exact, without pickle; damaged ones are refused."""

import json
import math
import shutil
import subprocess
import sys

import pytest
import torch

from dpg_robot.errors import CheckpointError
from dpg_robot.learning.checkpoint import (
    flatten_optimizer,
    load_checkpoint,
    load_into,
    save_checkpoint,
    unflatten_optimizer,
)

TENSORS = {
    "networks": {
        "weight": torch.randn(4, 3),
        "double": torch.randn(2).double(),
        "count": torch.tensor(7),
        "empty": torch.zeros(5, 0),
    },
    "random": {"state": torch.Generator().manual_seed(3).get_state()},
    "nothing": {},
}
STATE = {"updates": 12, "share": 0.1 + 0.2, "name": "größe", "list": [1, None, True], "tiny": math.ulp(0.0)}


@pytest.fixture
def saved(tmp_path):
    folder = tmp_path / "000000012"
    save_checkpoint(folder, TENSORS, STATE)
    return folder


def refusal(folder):
    with pytest.raises(CheckpointError) as caught:
        load_checkpoint(folder)
    assert folder.name in str(caught.value)
    return str(caught.value)


def test_tensors_and_state_come_back_exactly(saved):
    tensors, state = load_checkpoint(saved)
    assert state == STATE
    assert {part: set(values) for part, values in tensors.items()} == {part: set(values) for part, values in TENSORS.items()}
    for part, values in TENSORS.items():
        for name, value in values.items():
            assert tensors[part][name].dtype == value.dtype
            assert torch.equal(tensors[part][name], value)


def test_views_and_transposed_tensors_are_saved_as_they_are_seen(tmp_path):
    base = torch.arange(12.0).reshape(3, 4)
    save_checkpoint(tmp_path / "c", {"p": {"transposed": base.T, "row": base[1]}}, {})
    tensors, _ = load_checkpoint(tmp_path / "c")
    assert torch.equal(tensors["p"]["transposed"], base.T)
    assert torch.equal(tensors["p"]["row"], base[1])


def test_there_is_no_pickle_in_a_checkpoint(saved):
    assert sorted(item.name for item in saved.iterdir()) == [
        "networks.safetensors", "nothing.safetensors", "random.safetensors", "state.json",
    ]  # fmt: skip


def test_an_existing_checkpoint_is_not_overwritten(saved):
    with pytest.raises(CheckpointError, match="exists already"):
        save_checkpoint(saved, {}, {})
    assert load_checkpoint(saved)[1] == STATE


def test_a_missing_checkpoint_is_refused_with_a_suggestion(saved):
    assert "Did you mean '000000012'?" in refusal(saved.with_name("00000012"))
    refusal(saved.parent / "nowhere" / "1")


@pytest.mark.parametrize("name", ["networks.safetensors", "random.safetensors"])
def test_a_missing_part_is_refused(saved, name):
    (saved / name).unlink()
    assert "is incomplete or damaged" in refusal(saved)
    (saved / "state.json").unlink()
    assert "is not a checkpoint" in refusal(saved)


def test_a_truncated_part_is_refused(saved):
    part = saved / "networks.safetensors"
    content = part.read_bytes()
    for length in range(0, len(content), 7):
        part.write_bytes(content[:length])
        refusal(saved)


def test_a_flipped_bit_in_a_part_is_refused(saved):
    part = saved / "networks.safetensors"
    content = part.read_bytes()
    for position in range(0, len(content), 3):
        damaged = bytearray(content)
        damaged[position] ^= 1 << (position % 8)
        part.write_bytes(damaged)
        refusal(saved)


def test_a_part_of_another_checkpoint_is_refused(saved, tmp_path):
    save_checkpoint(tmp_path / "other", {"networks": {"weight": torch.zeros(4, 3)}}, {})
    shutil.copy(tmp_path / "other" / "networks.safetensors", saved)
    assert "networks.safetensors is not as it was written" in refusal(saved)


@pytest.mark.parametrize(
    "content",
    [b"", b"{", b"[]", b"5", b"null", b"\xff\xfe", b"{}", b'{"format_version": 1}', b'{"format_version": 1, "parts": 3}'],
)
def test_a_damaged_state_is_refused(saved, content):
    (saved / "state.json").write_bytes(content)
    assert "is incomplete or damaged" in refusal(saved)


def test_another_version_is_refused(saved):
    state = json.loads((saved / "state.json").read_text())
    (saved / "state.json").write_text(json.dumps(state | {"format_version": 2}))
    assert "has format version 2; this program reads version 1" in refusal(saved)


# A child whose files may not grow beyond 4096 bytes sees what a full disk gives: a write that fails half-way.
SAVE_WITH_LITTLE_ROOM = """
import resource, sys
import torch
from dpg_robot.errors import CheckpointError
from dpg_robot.learning.checkpoint import save_checkpoint
resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))  # Python ignores the signal and gets an error instead
try:
    save_checkpoint(sys.argv[1], {"small": {"a": torch.zeros(2)}, "large": {"a": torch.zeros(10_000)}}, {})
except CheckpointError as error:
    print(error)
    sys.exit(3)
"""


def test_a_full_disk_leaves_earlier_checkpoints_and_nothing_else(saved):
    command = [sys.executable, "-c", SAVE_WITH_LITTLE_ROOM, str(saved.with_name("000000013"))]
    child = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert child.returncode == 3, child.stderr
    assert "could not be written: " in child.stdout
    assert "Earlier checkpoints are untouched" in child.stdout
    assert [item.name for item in saved.parent.iterdir()] == [saved.name]
    assert load_checkpoint(saved)[1] == STATE


def make_optimizer(sizes, seed):
    generator = torch.Generator().manual_seed(seed)
    parameters = [torch.nn.Parameter(torch.randn(size, generator=generator)) for size in sizes]
    return parameters, torch.optim.Adam(parameters, 1e-2, fused=True)


def step(parameters, optimizer, count):
    for index in range(count):
        optimizer.zero_grad()
        sum((parameter - index).square().sum() for parameter in parameters).backward()
        optimizer.step()


def test_an_optimizer_goes_on_exactly_where_it_was(tmp_path):
    sizes = [(3, 2), (4,), ()]
    ours, optimizer = make_optimizer(sizes, 0)
    step(ours, optimizer, 3)
    save_checkpoint(tmp_path / "c", {"optimizer": flatten_optimizer(optimizer)}, {})
    others, restored = make_optimizer(sizes, 1)
    for other, parameter in zip(others, ours, strict=True):
        other.data.copy_(parameter.data)
    unflatten_optimizer(restored, load_checkpoint(tmp_path / "c")[0]["optimizer"])
    step(ours, optimizer, 3)
    step(others, restored, 3)
    assert all(torch.equal(one, other) for one, other in zip(ours, others, strict=True))


@pytest.mark.parametrize("sizes", [[(3, 3), (4,)], [(3, 2)], [(4,), (3, 2)]])
def test_the_state_of_another_optimizer_is_refused(sizes):
    ours, optimizer = make_optimizer([(3, 2), (4,)], 0)
    step(ours, optimizer, 1)
    with pytest.raises(CheckpointError, match="optimizer state does not fit"):
        unflatten_optimizer(make_optimizer(sizes, 1)[1], flatten_optimizer(optimizer))


def test_an_optimizer_state_with_strange_names_is_refused():
    with pytest.raises(CheckpointError, match="optimizer state does not fit"):
        unflatten_optimizer(make_optimizer([(2,)], 0)[1], {"first": torch.zeros(2)})


def test_tensors_that_do_not_fit_a_network_are_refused_by_name():
    with pytest.raises(CheckpointError, match=r"the checkpoint does not fit these networks(.|\n)*weight"):
        load_into(torch.nn.Linear(2, 3), {"weight": torch.zeros(3, 4), "bias": torch.zeros(3)}, "the checkpoint")
