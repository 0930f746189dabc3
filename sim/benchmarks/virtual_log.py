"""The log of a virtual robot: what its sensors measured, from true states and the noise of the observations."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from dpg_robot.contract import Contract
from dpg_robot.data.transition_arrays import TransitionArrays
from sim.environment import BatchEnvironment
from sim.robot_comparison import measure_channels


class VirtualLog:
    """Writes down what one simulated robot does.

    Sensors have noise of their own, as strong as that of the policy's observations, but drawn anew: a policy's features are
    computed from measurements and cannot always be computed back. What the last step of an episode led to is not known, as the
    environment has begun the next one; that step is not in the log.

    Args:
        environment: one environment, from its reset on.
        contract: of the policy that runs; all measurement channels must tell of the state.
        seed: of the noise.
        noise: standard deviation of the sensors' noise, in the channels' units.
    """

    def __init__(self, environment: BatchEnvironment, contract: Contract, seed: int, noise: float) -> None:
        self._environment, self._contract, self._noise = environment, contract, noise
        self._random = np.random.default_rng([seed, 11])
        self._measured: list[NDArray[np.float64]] = [self._measure()]
        self._actions: list[NDArray[Any]] = []
        self._rows: list[tuple[int, int, int]] = []  # episode, step, where its measurement is
        self._episode = self._step = 0

    def __len__(self) -> int:
        return len(self._rows)

    def add(self, action: NDArray[Any], *, ended: bool) -> None:
        """Write down a control step that was carried out.

        Args:
            action: (A,) as commanded.
            ended: whether it ended an episode.
        """
        if not ended:
            self._rows.append((self._episode, self._step, len(self._measured) - 1))
            self._actions.append(np.array(action, dtype=np.float64))
        self._measured.append(self._measure())
        self._episode, self._step = (self._episode + 1, 0) if ended else (self._episode, self._step + 1)

    def transitions(self) -> TransitionArrays:
        """Return everything that was written down."""
        episode, step, place = np.array(self._rows, dtype=np.int64).reshape(-1, 3).T
        measured = np.array(self._measured)
        actions = np.array(self._actions).reshape(len(place), self._contract.num_actions)
        return virtual_transitions(self._contract, episode, step, measured[place], actions, measured[place + 1])

    def _measure(self) -> NDArray[np.float64]:
        task, names = self._environment.task, self._contract.measurement_names
        true = measure_channels(task, names, self._environment.qpos, self._environment.qvel)[0]
        return np.asarray(true + self._noise * self._random.standard_normal(len(names)))


def virtual_transitions(
    contract: Contract,
    episode: NDArray[np.integer[Any]],
    step: NDArray[np.integer[Any]],
    measurement: NDArray[np.float64],
    action: NDArray[np.float64],
    next_measurement: NDArray[np.float64],
) -> TransitionArrays:
    """Return the log of a run that went without a fault and was carried out as intended.

    Args:
        contract: of the policy that ran.
        episode: (N,) number of the episode.
        step: (N,) number of the control step in its episode.
        measurement: (N, M) before each step, SI units.
        action: (N, A).
        next_measurement: (N, M) after it.
    """
    count = len(action)
    low, high = contract.command_low, contract.command_high
    time_ns = np.arange(count, dtype=np.int64) * contract.period_ns
    none = np.zeros(count, dtype=np.bool_)
    return TransitionArrays(
        run_ids=("virtual",),
        run=np.zeros(count, dtype=np.int32),
        sequence=np.arange(count, dtype=np.uint64),
        episode=episode.astype(np.int32),
        step=step.astype(np.int32),
        measurement=measurement,
        action=action,
        intended_action=action,
        command=low + 0.5 * (action + 1.0) * (high - low),
        next_measurement=next_measurement,
        terminal=none,
        timeout=none,
        time_ns=time_ns,
        next_time_ns=time_ns + contract.period_ns,
        wall_ns=time_ns,
        valid=~none,
        policy=np.zeros(count, dtype=np.uint64),
    )
