import dataclasses

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from dpg_robot.deploy.policy_session import PolicySession
from dpg_robot.errors import ContractError, PolicyFileError


def test_steps_agree_with_numpy_over_an_episode(policy_path, tiny_policy):
    session = PolicySession.load(policy_path)
    history = np.zeros(tiny_policy.CONTRACT.history_size, np.float32)
    for measurement in np.random.default_rng(1).standard_normal((20, 4)):
        command, action, history = tiny_policy.expected_step(tiny_policy.CONTRACT, tiny_policy.GENTLE, measurement, history)
        np.testing.assert_allclose(session.step(measurement), command, atol=1e-5)
        np.testing.assert_allclose(session.action, action, atol=1e-6)


def test_a_reset_forgets_the_history(policy_path):
    session = PolicySession.load(policy_path)
    first = session.step(np.ones(4))
    second = session.step(np.ones(4))
    session.reset()
    assert second != first
    assert session.step(np.ones(4)) == first


def test_the_executed_action_takes_the_place_of_the_intended_one_in_the_history(policy_path, tiny_policy):
    session = PolicySession.load(policy_path)
    session.step(np.zeros(4))
    session.record_executed(np.array([-0.75]))
    history = np.zeros(tiny_policy.CONTRACT.history_size, np.float32)
    _, _, history = tiny_policy.expected_step(tiny_policy.CONTRACT, tiny_policy.GENTLE, np.zeros(4), history)
    history[tiny_policy.CONTRACT.num_features] = -0.75
    command, _, _ = tiny_policy.expected_step(tiny_policy.CONTRACT, tiny_policy.GENTLE, np.ones(4), history)
    np.testing.assert_allclose(session.step(np.ones(4)), command, atol=1e-5)


def test_returned_commands_stay_as_they_were(policy_path):
    session = PolicySession.load(policy_path)
    first = session.step(np.zeros(4))
    copy = first.copy()
    session.step(np.full(4, 3.0))
    assert first == copy


@pytest.mark.parametrize("measurement", [np.zeros(3), np.zeros((1, 4)), np.array([0, 0, np.nan, 0]), np.array([0, np.inf, 0, 0])])
def test_a_measurement_of_another_shape_or_not_finite_is_refused_and_changes_nothing(policy_path, measurement):
    session = PolicySession.load(policy_path)
    expected = PolicySession.load(policy_path).step(np.ones(4))
    with pytest.raises(ContractError, match="cart_position"):
        session.step(measurement)
    assert session.step(np.ones(4)) == expected


def test_changed_golden_outputs_are_refused(tiny_policy, tmp_path):
    def change(metadata):
        golden = metadata.golden
        return dataclasses.replace(metadata, golden=dataclasses.replace(golden, command=golden.command + np.float32(2e-3)))

    path = tiny_policy.write_policy(tmp_path / "policy.onnx", change_metadata=change)
    with pytest.raises(PolicyFileError, match=r"golden vector 0 gives command\[0\]"):
        PolicySession.load(path)
    PolicySession.load(path, check_golden=False)


def test_a_policy_without_golden_vectors_is_refused(tiny_policy, tmp_path):
    path = tiny_policy.write_policy(tmp_path / "policy.onnx", golden_cases=0)
    with pytest.raises(PolicyFileError, match="golden"):
        PolicySession.load(path)


def test_a_policy_that_computes_not_a_number_is_refused(tiny_policy, tmp_path):
    def poison(model):
        bias = next(tensor for tensor in model.graph.initializer if tensor.name == "bias")
        bias.CopyFrom(numpy_helper.from_array(np.full((1, 1), np.nan, np.float32), "bias"))

    path = tiny_policy.write_policy(tmp_path / "policy.onnx", change=poison)
    with pytest.raises(PolicyFileError, match="nan"):
        PolicySession.load(path)


def test_a_graph_that_onnxruntime_cannot_load_is_refused(tiny_policy, tmp_path):
    def break_graph(model):
        next(node for node in model.graph.node if node.op_type == "Tanh").op_type = "NoSuchOperator"

    path = tiny_policy.write_policy(tmp_path / "policy.onnx", change=break_graph)
    with pytest.raises(PolicyFileError, match="onnxruntime cannot load"):
        PolicySession.load(path)


@pytest.mark.parametrize("share", [0.0, 0.3, 0.9, 0.999])
def test_a_truncated_file_is_refused(policy_path, share):
    content = policy_path.read_bytes()
    policy_path.write_bytes(content[: int(share * len(content))])
    with pytest.raises(PolicyFileError):
        PolicySession.load(policy_path)


def test_a_file_with_any_flipped_bit_is_refused_or_harmless(policy_path):
    content = policy_path.read_bytes()
    expected = PolicySession.load(policy_path).step(np.ones(4))
    refused = 0
    for position in range(0, len(content), max(1, len(content) // 150)):
        damaged = bytearray(content)
        damaged[position] ^= 0x10
        policy_path.write_bytes(bytes(damaged))
        try:
            session = PolicySession.load(policy_path)
        except (PolicyFileError, ContractError):
            refused += 1
        else:
            assert session.step(np.ones(4)) == expected  # such as a letter of the commit
    assert refused > 100


def test_changed_weights_are_refused_by_their_hash(policy_path):
    model = onnx.load(policy_path)
    next(tensor for tensor in model.graph.initializer if tensor.name == "gains").raw_data = b"\0" * 16
    onnx.save(model, policy_path)
    with pytest.raises(PolicyFileError, match="hash"):
        PolicySession.load(policy_path)


def swapped(contract):
    first, second, *rest = contract.measurements
    return dataclasses.replace(contract, measurements=(second, first, *rest))


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (swapped, "measurements"),
        (lambda contract: dataclasses.replace(contract, rate_hz=100.0), "rate_hz"),
        (lambda contract: dataclasses.replace(contract, history=0), "history"),
        (
            lambda contract: dataclasses.replace(contract, commands=(dataclasses.replace(contract.commands[0], high=9.0),)),
            "commands",
        ),
        (
            lambda contract: dataclasses.replace(contract, commands=(dataclasses.replace(contract.commands[0], unit="kN"),)),
            "commands",
        ),
    ],
)
def test_a_policy_for_another_contract_is_refused_naming_the_difference(policy_path, tiny_policy, change, said):
    PolicySession.load(policy_path, tiny_policy.CONTRACT)
    with pytest.raises(ContractError, match=said):
        PolicySession.load(policy_path, change(tiny_policy.CONTRACT))


def test_a_missing_file_is_refused(tmp_path):
    with pytest.raises(PolicyFileError, match=r"nothing\.onnx"):
        PolicySession.load(tmp_path / "nothing.onnx")
