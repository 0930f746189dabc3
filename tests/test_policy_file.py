"""The policy file: what a damaged, foreign or altered one is refused for, and that a whole one is read exactly."""

import dataclasses
import json

import numpy as np
import onnx
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from onnx import TensorProto, helper

from dpg_robot.contract import CommandChannel, Contract, Feature, MeasurementChannel
from dpg_robot.deploy.policy_session import PolicySession
from dpg_robot.errors import ContractError, PolicyFileError
from dpg_robot.learning.export import export_policy
from dpg_robot.learning.policy import Policy
from dpg_robot.policy_file import METADATA_KEY, OPSET, GoldenVectors, PolicyMetadata, hash_graph, read_policy_file

CONTRACT = Contract(
    task="pendulum",
    measurements=(MeasurementChannel("angle", "rad"), MeasurementChannel("velocity", "rad/s")),
    features=(Feature("cos", "angle"), Feature("sin", "angle"), Feature("identity", "velocity")),
    commands=(CommandChannel("torque", "N m", -2.5, 2.5),),
    rate_hz=50.0,
    history=1,
)


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    """Path of a policy file of a small random policy."""
    torch.manual_seed(0)
    policy = Policy(CONTRACT.observation_size, 1, (8,))
    torch.nn.init.normal_(policy.network[-1].weight)
    path = tmp_path_factory.mktemp("policy") / "policy.onnx"
    export_policy(policy, CONTRACT, path, training={"updates": 7}, parity_samples=20)
    return path


@pytest.fixture
def write(exported, tmp_path):
    """Return a function that writes a changed copy; ``change`` edits the model, ``reseal`` makes its hash fit again."""

    def write_copy(change=None, metadata=None, reseal=True):
        model = onnx.load(exported)
        old = PolicyMetadata.from_json(model.metadata_props[0].value)
        if change is not None:
            change(model)
        if metadata is None:
            metadata = dataclasses.replace(old, graph_hash=hash_graph(model)).to_json() if reseal else old.to_json()
        helper.set_model_props(model, {METADATA_KEY: metadata})
        path = tmp_path / "changed.onnx"
        path.write_bytes(model.SerializeToString())
        return path

    return write_copy


def refusal(path):
    """Return the message with which a file is refused; any other exception fails the test."""
    with pytest.raises(PolicyFileError) as caught:
        read_policy_file(path)
    assert str(path) in str(caught.value)
    return str(caught.value)


def test_a_whole_file_gives_its_bytes_and_metadata(exported):
    content, metadata = read_policy_file(exported)
    assert content == exported.read_bytes()
    assert metadata.contract == CONTRACT
    assert metadata.training == {"updates": 7}
    assert metadata.policy_id == hash_graph(onnx.load_from_string(content))[:16]
    sizes = {"measurement": 2, "history_in": 4, "command": 1, "action": 1, "history_out": 4}
    for name, size in sizes.items():
        values = getattr(metadata.golden, name)
        assert values.dtype == np.float32
        assert values.shape == (16, size)
    assert np.abs(metadata.golden.action).max() > 0.1, "the golden vectors must exercise the policy"


def test_the_file_is_self_contained_and_pinned(exported):
    model = onnx.load(exported)
    assert [(entry.domain, entry.version) for entry in model.opset_import] == [("", OPSET)]
    assert not model.functions
    types = {value.name: helper.tensor_dtype_to_np_dtype(value.type.tensor_type.elem_type) for value in model.graph.input}
    assert types == {"measurement": np.float32, "history_in": np.float32}
    assert b".py" not in exported.read_bytes(), "the file must not name source files of the machine that exported it"


@pytest.mark.parametrize("name", ["nowhere.onnx", "."])
def test_a_file_that_cannot_be_read_is_refused_by_name(tmp_path, name):
    assert "cannot read policy file" in refusal(tmp_path / name)


def test_a_file_truncated_anywhere_is_refused(exported, tmp_path):
    content, path = exported.read_bytes(), tmp_path / "policy.onnx"
    random = np.random.default_rng(0)
    for length in {0, 1, 2, len(content) - 1, *random.integers(3, len(content), 150).tolist()}:
        path.write_bytes(content[:length])
        refusal(path)


def test_a_flipped_bit_is_refused_or_changes_nothing_that_is_used(exported, tmp_path):
    content, path = exported.read_bytes(), tmp_path / "policy.onnx"
    _, metadata = read_policy_file(exported)
    random, harmless = np.random.default_rng(1), 0
    text = content.find(b'{"contract"')
    everywhere = random.integers(0, 8 * len(content), 500)
    in_metadata = random.integers(8 * text, 8 * len(content), 250)
    for bit in [*range(8 * 40), *everywhere.tolist(), *in_metadata.tolist()]:
        damaged = bytearray(content)
        damaged[bit // 8] ^= 1 << (bit % 8)
        path.write_bytes(damaged)
        try:
            _, got = read_policy_file(path)
        except PolicyFileError:
            continue
        # for instance the last digit of a number with more digits than a float holds
        assert got.to_json() == metadata.to_json()
        assert hash_graph(onnx.load_from_string(bytes(damaged))) == metadata.graph_hash
        harmless += 1
    assert harmless < 10


@pytest.mark.parametrize("tail", [b"\x00", b"\n\x00", b"junk" * 10, None])
def test_bytes_after_the_end_are_refused(exported, tmp_path, tail):
    content = exported.read_bytes()
    path = tmp_path / "policy.onnx"
    path.write_bytes(content + (content if tail is None else tail))
    refusal(path)


def test_changed_weights_are_refused(write):
    def change(model):
        weights = bytearray(model.graph.initializer[0].raw_data)
        weights[2] ^= 1
        model.graph.initializer[0].raw_data = bytes(weights)

    assert "changed or damaged after export" in refusal(write(change, reseal=False))
    read_policy_file(write(change))  # with a hash that fits it is a policy like any other


@pytest.mark.parametrize("change", [lambda m: m.opset_import[0].__setattr__("version", 17), lambda m: m.functions.add()])
def test_a_change_around_the_graph_is_refused_too(write, change):
    assert "changed or damaged after export" in refusal(write(change, reseal=False))


def altered(exported, **changes):
    """Return the file's metadata with other values in its JSON, and the old hash of it."""
    return json.dumps(json.loads(onnx.load(exported).metadata_props[0].value) | changes)


def test_another_format_version_is_refused(exported, write):
    assert "version 2 is not supported; this program reads 1" in refusal(write(metadata=altered(exported, format_version=2)))


def test_another_contract_version_is_refused(exported, write):
    old = PolicyMetadata.from_json(onnx.load(exported).metadata_props[0].value)

    class NewerContract:
        def to_dict(self):
            return CONTRACT.to_dict() | {"version": 2}

    newer = dataclasses.replace(old, contract=NewerContract())
    assert "contract version 2 is not supported" in refusal(write(metadata=newer.to_json()))


@pytest.mark.parametrize("field", ["contract", "graph_hash", "golden", "training", "git_commit"])
def test_altered_metadata_are_refused(exported, write, field):
    values = json.loads(altered(exported))
    if field == "contract":
        values["contract"]["commands"][0]["high"] = 25.0
    else:
        values[field] = values["contract"]
    assert "metadata is damaged: its hash does not fit" in refusal(write(metadata=json.dumps(values)))
    del values[field]
    refusal(write(metadata=json.dumps(values)))


@pytest.mark.parametrize("text", ["", "{", "[]", "5", "null", '"text"', "{}", '{"format_version": 1}', "[" * 100_000, "\x00"])
def test_metadata_that_are_none_of_ours_are_refused(write, text):
    refusal(write(metadata=text))


def test_a_model_of_another_origin_is_refused(write, tmp_path):
    def remove(model):
        model.metadata_props[0].key = "other"

    path = write(remove, reseal=False)
    model = onnx.load(path)
    del model.metadata_props[:]
    path.write_bytes(model.SerializeToString())
    assert "carries 0 'dpg_robot' metadata entries" in refusal(path)
    (tmp_path / "text.onnx").write_text("hello, I am no model")
    assert "not a whole ONNX file" in refusal(tmp_path / "text.onnx")


def test_two_metadata_entries_are_refused(write):
    path = write()
    model = onnx.load(path)
    model.metadata_props.append(model.metadata_props[0])
    path.write_bytes(model.SerializeToString())
    assert "carries 2 'dpg_robot' metadata entries" in refusal(path)


def external_tensor():
    tensor = TensorProto(name="outside", data_type=TensorProto.FLOAT, dims=[1], data_location=TensorProto.EXTERNAL)
    tensor.external_data.add(key="location", value="../../etc/passwd")
    return tensor


def in_initializer(model):
    model.graph.initializer.append(external_tensor())


def in_sparse_initializer(model):
    model.graph.sparse_initializer.add().values.CopyFrom(external_tensor())


def in_attribute(model):
    model.graph.node.append(helper.make_node("Constant", [], ["outside"], value=external_tensor()))


def in_subgraph(model):
    inner = helper.make_graph([], "inner", [], [], [external_tensor()])
    model.graph.node.append(helper.make_node("If", ["x"], ["y"], then_branch=inner, else_branch=inner))


def in_function(model):
    model.functions.add(name="f").node.append(helper.make_node("Constant", [], ["outside"], value=external_tensor()))


@pytest.mark.parametrize("change", [in_initializer, in_sparse_initializer, in_attribute, in_subgraph, in_function])
def test_data_outside_the_file_are_refused(write, change):
    assert "refers to data outside the file" in refusal(write(change))


def rename_input(model):
    model.graph.input[0].name = "sensors"


def widen_input(model):
    model.graph.input[0].type.tensor_type.shape.dim[1].dim_value = 3


def free_batch_size(model):
    model.graph.input[0].type.tensor_type.shape.dim[0].dim_param = "N"


def double_output(model):
    model.graph.output[0].type.tensor_type.elem_type = TensorProto.DOUBLE


def drop_output(model):
    del model.graph.output[2]


@pytest.mark.parametrize("change", [rename_input, widen_input, free_batch_size, double_output, drop_output])
def test_inputs_and_outputs_that_do_not_fit_the_contract_are_refused(write, change):
    assert "the contract in its metadata asks for" in refusal(write(change))


@pytest.mark.parametrize(
    ("change", "name"),
    [
        ({"rate_hz": 100.0}, "rate_hz"),
        ({"measurements": CONTRACT.measurements[::-1]}, "measurements"),
        ({"commands": (dataclasses.replace(CONTRACT.commands[0], high=3.0),)}, "commands"),
        ({"task": "cartpole"}, "task"),
    ],
)
def test_a_policy_for_another_robot_is_refused_by_the_differing_field(exported, change, name):
    with pytest.raises(ContractError, match=f" {name}: the robot has"):
        PolicySession.load(exported, dataclasses.replace(CONTRACT, **change))
    assert PolicySession.load(exported, CONTRACT).contract == CONTRACT


floats = hnp.arrays(np.float32, (2, 3), elements=st.floats(width=32, allow_nan=False, allow_infinity=False))


@settings(max_examples=30)
@given(
    vectors=st.builds(GoldenVectors, floats, floats, floats, floats, floats),
    training=st.dictionaries(st.text(), st.floats(-1, 1)),
)
def test_metadata_survive_the_way_through_text_exactly(vectors, training):
    metadata = PolicyMetadata(CONTRACT, "ab" * 32, vectors, training, "1234")
    again = PolicyMetadata.from_json(metadata.to_json())
    for name in ("measurement", "history_in", "command", "action", "history_out"):
        np.testing.assert_array_equal(getattr(again.golden, name), getattr(vectors, name))
    assert dataclasses.replace(again, golden=vectors) == metadata


def test_metadata_with_a_number_that_is_not_finite_are_not_written():
    vectors = GoldenVectors(*(np.zeros((1, 1), np.float32) for _ in range(5)))
    with pytest.raises(PolicyFileError, match="not finite"):
        PolicyMetadata(CONTRACT, "ab", vectors, {"return": float("nan")}).to_json()
