"""Running a policy file: measurement in, command out, one control step at a time.

All of the mathematics is in the graph (see :mod:`dpg_robot.policy_file`). The session binds its inputs and outputs to buffers
that are allocated once, and carries the history from one step to the next.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
from numpy.typing import NDArray

from dpg_robot.contract import Contract
from dpg_robot.errors import ContractError, PolicyFileError
from dpg_robot.policy_file import GOLDEN_TOLERANCE, GoldenVectors, PolicyMetadata, read_policy_file

_ERRORS_ONLY = 3  # onnxruntime's log level


class PolicySession:
    """A loaded policy and its history.

    Attributes:
        metadata: what the policy file says about itself.
    """

    def __init__(self, content: bytes, metadata: PolicyMetadata, source: str = "policy") -> None:
        self.metadata = metadata
        self._source = source
        contract = metadata.contract
        self._inference = _open_inference(content, source)
        self._measurement: NDArray[np.float32] = np.zeros((1, contract.num_measurements), np.float32)
        self._history: NDArray[np.float32] = np.zeros((1, contract.history_size), np.float32)
        self._next_history: NDArray[np.float32] = np.zeros_like(self._history)
        self._command: NDArray[np.float32] = np.zeros((1, contract.num_actions), np.float32)
        self._action: NDArray[np.float32] = np.zeros_like(self._command)
        self._newest_action = self._history[0, contract.num_features : contract.frame_size]
        self._binding = self._bind()

    @classmethod
    def load(
        cls,
        path: str | Path,
        expected_contract: Contract | None = None,
        check_golden: bool = True,
        *,
        expected_by: str = "the robot",
    ) -> PolicySession:
        """Load a policy file, refusing anything that is not as expected.

        Args:
            path: the ``policy.onnx``.
            expected_contract: the contract of the robot; the policy must have an equal one.
            check_golden: replay the golden vectors and compare with what the exporter got.
            expected_by: whose contract ``expected_contract`` is, for the message.

        Raises:
            PolicyFileError: the file is unreadable, truncated, corrupt, of another version, or computes something else here than
                where it was exported.
            ContractError: channels, order, units, limits, rate or history differ from ``expected_contract``.
        """
        content, metadata = read_policy_file(path)
        if expected_contract is not None:
            expected_contract.require_equal(metadata.contract, ours=expected_by, theirs=str(path))
        session = cls(content, metadata, str(path))
        if check_golden:
            session.check_golden_vectors()
        return session

    @property
    def contract(self) -> Contract:
        """What the policy reads and commands, and how often."""
        return self.metadata.contract

    @property
    def policy_id(self) -> str:
        """16 hexadecimal digits that name the policy in logs."""
        return self.metadata.policy_id

    @property
    def action(self) -> NDArray[np.float64]:
        """(A,) action of the last step, as the network gave it; a copy."""
        action: NDArray[np.float64] = self._action[0].astype(np.float64)
        return action

    def reset(self) -> None:
        """Forget the history; call it at the start of each episode."""
        self._history.fill(0.0)

    def step(self, measurement: NDArray[Any]) -> NDArray[np.float64]:
        """Run one control step and move the history on by one frame.

        Args:
            measurement: (M,) in SI units, in the order of the contract.

        Returns:
            (C,) command in SI units; a new array.

        Raises:
            ContractError: the measurement has another shape or is not finite; the history is left as it was.
        """
        measurement = np.asarray(measurement)
        if measurement.shape != (self.contract.num_measurements,):
            raise ContractError(
                f"measurement has shape {measurement.shape}, expected ({self.contract.num_measurements},): "
                f"{', '.join(self.contract.measurement_names)}"
            )
        self._measurement[0] = measurement
        if not np.isfinite(self._measurement).all():  # after the conversion: 1e300 is finite in float64 only
            raise ContractError(f"measurement is not finite: {self._describe(measurement)}; check the sensors")
        self._inference.run_with_iobinding(self._binding)
        np.copyto(self._history, self._next_history)
        command: NDArray[np.float64] = self._command[0].astype(np.float64)
        return command

    def record_executed(self, action: NDArray[Any]) -> None:
        """Say which action (A,) was carried out after :meth:`step`, where it differs from :attr:`action`.

        The policy was trained on a history of what was done, not of what it had asked for.
        """
        self._newest_action[:] = action

    def check_golden_vectors(self) -> None:
        """Replay the exporter's inputs and compare the outputs; the history is zero afterwards.

        Raises:
            PolicyFileError: there are no vectors, they have wrong shapes, or an output differs by more than
                ``GOLDEN_TOLERANCE`` (of 1 for actions, of the largest limit for commands, of the value for the history).
        """
        golden = self.metadata.golden
        self._check_golden_shapes(golden)
        contract = self.contract
        scales = {
            "command": np.maximum(1.0, np.maximum(np.abs(contract.command_low), np.abs(contract.command_high))),
            "action": np.ones(contract.num_actions),
        }
        try:
            for case in range(len(golden.measurement)):
                self._measurement[0] = golden.measurement[case]
                self._history[0] = golden.history_in[case]
                self._inference.run_with_iobinding(self._binding)
                scales["history_out"] = np.maximum(1.0, np.abs(golden.history_out[case]))
                outputs = {"command": self._command[0], "action": self._action[0], "history_out": self._next_history[0]}
                for name, got in outputs.items():
                    self._compare(case, name, got, getattr(golden, name)[case], GOLDEN_TOLERANCE * scales[name])
        except Exception as error:
            if isinstance(error, PolicyFileError):
                raise
            raise PolicyFileError(f"{self._source}: onnxruntime cannot run the policy: {error}") from error
        self.reset()

    def _compare(
        self, case: int, name: str, got: NDArray[np.float32], expected: NDArray[np.float32], tolerance: NDArray[np.float64]
    ) -> None:
        difference = np.abs(got.astype(np.float64) - expected)
        if not (difference <= tolerance).all():  # written so that a NaN fails too
            worst = int(np.argmax(np.nan_to_num(difference / tolerance, nan=np.inf)))
            raise PolicyFileError(
                f"{self._source}: golden vector {case} gives {name}[{worst}] = {got[worst]:.9g}, the exporter got "
                f"{expected[worst]:.9g} (allowed difference {tolerance[worst]:.3g}). The policy does not compute "
                "the same here as where it was exported; export it again, or check the versions of onnxruntime."
            )

    def _check_golden_shapes(self, golden: GoldenVectors) -> None:
        contract, cases = self.contract, len(golden.measurement)
        sizes = {
            "measurement": contract.num_measurements,
            "history_in": contract.history_size,
            "command": contract.num_actions,
            "action": contract.num_actions,
            "history_out": contract.history_size,
        }
        for name, size in sizes.items():
            got = getattr(golden, name).shape
            if cases == 0 or got != (cases, size):
                raise PolicyFileError(
                    f"{self._source}: golden vectors of {name!r} have shape {got}, expected ({cases or 'at least 1'}, {size}); "
                    "export the policy again."
                )

    def _bind(self) -> Any:
        buffers = {
            "measurement": self._measurement,
            "history_in": self._history,
            "command": self._command,
            "action": self._action,
            "history_out": self._next_history,
        }
        binding = self._inference.io_binding()
        for name, buffer in buffers.items():
            bind = binding.bind_input if name in ("measurement", "history_in") else binding.bind_output
            bind(name, "cpu", 0, np.float32, buffer.shape, buffer.ctypes.data)
        return binding

    def _describe(self, measurement: NDArray[Any]) -> str:
        return ", ".join(f"{name} {value:g}" for name, value in zip(self.contract.measurement_names, measurement, strict=True))


def _open_inference(content: bytes, source: str) -> Any:
    options = onnxruntime.SessionOptions()
    # One thread without spinning: worker threads cost milliseconds in the tail of the latency and gain nothing at batch size 1.
    options.intra_op_num_threads = 1
    options.inter_op_num_threads = 1
    options.execution_mode = onnxruntime.ExecutionMode.ORT_SEQUENTIAL
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    options.add_session_config_entry("session.inter_op.allow_spinning", "0")
    options.log_severity_level = _ERRORS_ONLY
    try:
        return onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])
    except Exception as error:  # onnxruntime's errors share no base class of their own
        raise PolicyFileError(f"{source}: onnxruntime cannot load the policy: {error}. Export it again.") from error
