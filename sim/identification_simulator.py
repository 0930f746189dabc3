"""Pieces of a robot's log, simulated with a model of one's own for each: where the robot would have gone, and how errors grow."""

from __future__ import annotations

from types import TracebackType

import numpy as np
from numpy.typing import NDArray

from dpg_robot.contract import Contract
from dpg_robot.errors import ContractError
from sim.environment import BatchEnvironment
from sim.identification_likelihood import LinearModel
from sim.identification_prior import Prior
from sim.robot_comparison import MAX_DELAY_PERIODS, Windows, measure_channels, measured_state, require_same_channels

_PERTURBATION = 1e-5  # of a state, in its SI unit
_VAGUE = 10.0  # times its motion: how far a state may be from where it is, before it was measured


class WindowSimulator:
    """Simulates pieces of a log with given parameters, many at once.

    A piece begins where the robot was measured. The simulation goes through the actions before it too, so that what is on its way
    in a delay, or in the memory of an actuator, is there when the piece begins.

    Args:
        environment: environments with the prior's randomization and no disturbances.
        contract: of the policy that ran.
        prior: of the parameters.

    Attributes:
        channels: the C measurement channels that tell of the state.
        state_size: numbers n of the state: positions, velocities and the memory of actuators.
        state_index: (C,) where the channels stand in the state.
        previous: control periods that a piece needs before it.
        memories: (m,) where what no sensor tells stands in the state: the memory of actuators.

    Raises:
        ContractError: the simulation has other channels, limits or another rate.
    """

    def __init__(self, environment: BatchEnvironment, contract: Contract, prior: Prior) -> None:
        self._env, self._contract = environment, contract
        _require_same_robot(environment, contract)
        task, physics = environment.task, environment.physics
        positions, velocities, memories = physics.qpos.shape[1], physics.qvel.shape[1], physics.act.shape[1]
        self.channels = tuple(name for name in contract.measurement_names if name in task.measured_state)
        offset = {"qpos": 0, "qvel": positions}
        places = [task.measured_state[name] for name in self.channels]
        self.state_index = np.array([offset[part] + index for part, index in places])
        self.state_size = positions + velocities + memories
        self._sizes = (positions, positions + velocities)
        latest_s = max((c.variation.bounds[1] for c in prior.columns if c.setting == "control_delay_s"), default=0.0)
        self.previous = max(int(np.ceil(latest_s * contract.rate_hz - 1e-9)), MAX_DELAY_PERIODS if memories else 0)
        self.memories = np.arange(self._sizes[1], self.state_size)
        self._steps_left = 0

    def __enter__(self) -> WindowSimulator:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._env.close()

    def measured(self, windows: Windows) -> NDArray[np.float64]:
        """Return (W, T + 1, C) what the robot measured."""
        names = self._contract.measurement_names
        return windows.measurement[..., [names.index(channel) for channel in self.channels]]

    def simulate(
        self,
        windows: Windows,
        which: NDArray[np.int64],
        values: NDArray[np.float64],
        memory: NDArray[np.float64] | None = None,
    ) -> NDArray[np.float64]:
        """Return (K, T + 1, C) what would have been measured; not a number from where the physics diverged.

        Args:
            windows: pieces of the log.
            which: (K,) numbers of the pieces.
            values: (K, P) parameters for each of them.
            memory: (W, m) what to add to the memories at the beginning of each piece; nothing if None.
        """
        size, count = self._env.num_envs, len(which)
        result = np.empty((count, windows.action.shape[1] + 1, len(self.channels)))
        for start in range(0, count, size):
            rows = np.minimum(np.arange(start, start + size), count - 1)  # the last one fills up what is left of the batch
            pieces = which[rows]
            self._begin(windows, pieces, values[rows], memory)
            simulated = np.empty((size, *result.shape[1:]))
            simulated[:, 0] = self._measure()
            broken = np.zeros(size, dtype=np.bool_)
            for step in range(windows.action.shape[1]):
                broken |= self._advance(windows.action[pieces, step])
                simulated[:, step + 1] = self._measure()
                simulated[broken, step + 1] = np.nan
            end = min(start + size, count)
            result[start:end] = simulated[: end - start]
        return result

    def linear_model(
        self,
        windows: Windows,
        values: NDArray[np.float64],
        motion: NDArray[np.float64],
        memory: NDArray[np.float64] | None = None,
    ) -> LinearModel:
        """Return how small differences of the state develop in pieces, with parameters (P,).

        Args:
            windows: pieces of the log.
            values: (P,) parameters.
            motion: (C,) root mean squares of the channels' motion: before its first measurement, a state is far less certain.
            memory: (W, m) as in :meth:`simulate`.
        """
        positions, velocities = self._sizes[0], self._sizes[1] - self._sizes[0]
        start = np.zeros(self.state_size)
        start[self.state_index] = _VAGUE * motion
        measured = motion[self.state_index < positions]
        start[self._sizes[1] :] = measured.max() if len(measured) else 1.0  # of what a memory holds nothing is measured
        forcing = np.zeros((self.state_size, velocities))
        forcing[self._sizes[0] : self._sizes[1]] = np.eye(velocities)
        if positions == velocities:
            forcing[:positions] = 0.5 / self._contract.rate_hz * np.eye(velocities)
        where = np.arange(positions, positions + velocities)
        return LinearModel(self.linearize(windows, values, memory), self.state_index, start, where, forcing)

    def linearize(
        self, windows: Windows, values: NDArray[np.float64], memory: NDArray[np.float64] | None = None
    ) -> NDArray[np.float64]:
        """Return (W, T, n, n) what becomes of small changes of the state in each control period, with parameters (P,)."""
        size, states = self._env.num_envs, self.state_size
        at_once, steps = size // (states + 1), windows.action.shape[1]
        if not at_once:
            raise ValueError(f"{states + 1} environments are needed at least, got {size}")
        result = np.empty((len(windows), steps, states, states))
        everyone = np.broadcast_to(values, (size, len(values)))
        changes = np.concatenate([np.zeros((1, states)), _PERTURBATION * np.eye(states)])
        for start in range(0, len(windows), at_once):
            group = np.minimum(np.arange(start, start + at_once), len(windows) - 1)
            pieces = np.full(size, group[-1])
            pieces[: at_once * (states + 1)] = np.repeat(group, states + 1)
            end = min(start + at_once, len(windows))
            self._begin(windows, pieces, everyone, memory)
            for step in range(steps):
                state = self._state[: at_once * (states + 1)].reshape(at_once, states + 1, states)
                state = state[:, :1] + changes
                self._write(state.reshape(-1, states))
                self._advance(windows.action[pieces, step])
                after = self._state[: at_once * (states + 1)].reshape(at_once, states + 1, states)
                moved = (after[:, 1:] - after[:, :1]) / _PERTURBATION  # (windows, changed, state)
                result[start:end, step] = moved.transpose(0, 2, 1)[: end - start]
        return np.nan_to_num(result)

    @property
    def _state(self) -> NDArray[np.float64]:
        """(N, n) positions, velocities and memories, a copy."""
        physics = self._env.physics
        return np.concatenate([physics.qpos, physics.qvel, physics.act], axis=1)

    def _write(self, state: NDArray[np.float64]) -> None:
        """Put the first environments into states (k, n), with all else as it is."""
        physics = self._env.physics
        physics.qpos[: len(state)], physics.qvel[: len(state)], physics.act[: len(state)] = np.split(state, self._sizes, axis=1)
        physics.forward(np.arange(self._env.num_envs))

    def _begin(
        self,
        windows: Windows,
        pieces: NDArray[np.int64],
        values: NDArray[np.float64],
        memory: NDArray[np.float64] | None,
    ) -> None:
        """Bring each environment to the beginning of its piece."""
        env, previous = self._env, windows.previous.shape[1]
        periods = previous + windows.action.shape[1]
        if self._steps_left < periods * self._contract.action_repeat:
            env.reset()  # an episode must not end on the way
            self._steps_left = env.steps_per_episode - 1
        self._steps_left -= periods * self._contract.action_repeat
        env.set_dynamics(values)
        env.set_state(*self._measured_state(windows.before[pieces] if previous else windows.measurement[pieces, 0]))
        if previous:
            for step in range(previous):
                self._advance(windows.previous[pieces, step])
            state = self._state
            qpos, qvel = self._measured_state(windows.measurement[pieces, 0])
            state[:, : self._sizes[1]] = np.concatenate([qpos, qvel], axis=1)
            if memory is not None:
                state[:, self._sizes[1] :] += memory[pieces]
            self._write(state)

    def _measured_state(self, measurement: NDArray[np.float64]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        positions = self._sizes[0]
        return measured_state(self._env.task, self._contract, measurement, positions, self._sizes[1] - positions)

    def _measure(self) -> NDArray[np.float64]:
        return measure_channels(self._env.task, self.channels, self._env.physics.qpos, self._env.physics.qvel)

    def _advance(self, actions: NDArray[np.float64]) -> NDArray[np.bool_]:
        """Go through one control period; returns (N,), where an episode ended."""
        ended = np.zeros(self._env.num_envs, dtype=np.bool_)
        for _ in range(self._contract.action_repeat):
            result = self._env.step(actions)
            ended |= result.terminal | result.timeout
        return ended


def _require_same_robot(environment: BatchEnvironment, contract: Contract) -> None:
    if environment.task.name != contract.task:
        raise ContractError(f"the log is of task {contract.task}, not of {environment.task.name}; give the task of the log")
    require_same_channels(environment, contract)
    ours = environment.task.contract(environment.physics.model, contract.action_repeat, contract.history)
    for what, own, logged in (
        ("limits of commands", ours.commands, contract.commands),
        ("units of measurements", ours.measurements, contract.measurements),
    ):
        if own != logged:
            raise ContractError(f"{what} of the simulation of {contract.task} are {own}; those of the log are {logged}")
    if not np.isclose(ours.rate_hz, contract.rate_hz):
        raise ContractError(
            f"the log has {contract.rate_hz:g} control steps per second with {contract.action_repeat} reward steps in each; the "
            f"simulation of {contract.task} makes {ours.rate_hz:g} of these"
        )
