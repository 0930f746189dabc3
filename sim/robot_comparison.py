"""How a robot moves beside its simulation: the same states and actions, channel by channel, and by how much the robot is late.

Pieces of a robot's log are replayed: each begins in the simulation where the robot was measured, and goes through the actions
that the robot carried out. What the simulation then does differently is what a policy trained there does not know.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from dpg_robot.contract import Contract
from dpg_robot.data.transition_arrays import TransitionArrays
from dpg_robot.errors import ContractError, DpgError
from sim.environment import BatchEnvironment
from sim.factory import make
from sim.tasks import make_task
from sim.tasks.task import Task

MAX_WINDOWS = 256
MAX_DELAY_PERIODS = 3


class ComparisonError(DpgError, ValueError):
    """A log that cannot be compared with a simulation."""


@dataclass(frozen=True)
class Windows:
    """Pieces of a log, all of the same length.

    Attributes:
        measurement: (W, T + 1, M) SI units.
        action: (W, T, A) as carried out.
        previous: (W, B, A) actions before the first, the last of them just before it.
        before: (W, M) measurements when the first of the previous actions was taken, SI units.
    """

    measurement: NDArray[np.float64]
    action: NDArray[np.float64]
    previous: NDArray[np.float64]
    before: NDArray[np.float64]

    def __len__(self) -> int:
        return len(self.action)


@dataclass(frozen=True)
class Comparison:
    """A robot beside its simulation.

    Attributes:
        task: name of the task.
        windows: number of pieces that were replayed.
        window_s: their length, s.
        channels: names of the C channels that are compared.
        units: their units.
        time_s: (T,) times since the beginning of a piece, s.
        error: (T, C) root mean square difference between robot and simulation, with the best delay, SI units.
        drift: (T, C) root mean square change of the robot since the beginning: the error of saying that nothing moves.
        bias: (C,) mean difference robot minus simulation over the pieces' ends, SI units.
        delays_s: (D,) delays of the actions that were tried, s.
        delay_error: (D,) squared differences with each, in shares of the drift, averaged over channels and times.
        delay_s: delay with the least of it, by a parabola through the three best, s.
        robot: (T + 1, C) the piece whose error is the median one, as measured.
        simulated: (T + 1, C) the same, as simulated.
    """

    task: str
    windows: int
    window_s: float
    channels: tuple[str, ...]
    units: tuple[str, ...]
    time_s: NDArray[np.float64]
    error: NDArray[np.float64]
    drift: NDArray[np.float64]
    bias: NDArray[np.float64]
    delays_s: NDArray[np.float64]
    delay_error: NDArray[np.float64]
    delay_s: float
    robot: NDArray[np.float64]
    simulated: NDArray[np.float64]

    @property
    def explained(self) -> NDArray[np.float64]:
        """(C,) share of each channel's motion that the simulation explains: 1 is all, 0 no better than standing still."""
        error, drift = (self.error**2).mean(axis=0), (self.drift**2).mean(axis=0)
        return np.where(drift > 0, 1.0 - error / np.where(drift > 0, drift, 1.0), np.nan)

    def to_dict(self) -> dict[str, object]:
        """Return plain values for JSON."""
        values = dataclasses.asdict(self) | {"explained": self.explained}
        return {name: value.tolist() if isinstance(value, np.ndarray) else value for name, value in values.items()}


def compare_with_simulation(
    transitions: TransitionArrays, contract: Contract, *, window_s: float = 0.5, num_threads: int = 2
) -> Comparison:
    """Replay a run of a robot in the simulation of its task, with nominal dynamics and no disturbances.

    Args:
        transitions: what the robot did, from its log.
        contract: of the policy that ran.
        window_s: length of the pieces, s; shorter ones tell more of delays and forces, longer ones of what adds up.
        num_threads: threads that step the simulation.

    Raises:
        ComparisonError: the task's state cannot be told from measurements, or the log has no whole piece.
        ContractError: the task in the simulation has other channels or actions.
    """
    task = make_task(contract.task)
    if not task.measured_state:
        raise ComparisonError(f"task {task.name} does not say where its state is among the measurements (measured_state)")
    steps = max(1, round(window_s * contract.rate_hz))
    windows = cut_windows(transitions, steps)
    channels = [name for name in contract.measurement_names if name in task.measured_state]
    columns = [contract.measurement_names.index(name) for name in channels]
    repeat = contract.action_repeat
    tries = np.arange(MAX_DELAY_PERIODS * repeat + 1)
    simulated = np.stack([replay(contract, windows, channels, int(late), num_threads) for late in tries])
    robot = windows.measurement[..., columns]
    drift = _rms(robot[:, 1:] - robot[:, :1])
    scale = np.where(drift.mean(axis=0) > 0, np.sqrt((drift**2).mean(axis=0)), 1.0)
    errors = (((simulated - robot)[:, :, 1:] / scale) ** 2).mean(axis=(1, 2, 3))
    best = int(errors.argmin())
    step_s = 1.0 / (contract.rate_hz * repeat)
    difference = robot - simulated[best]
    typical = _median_window(difference[:, 1:] / scale)
    units = {channel.name: channel.unit for channel in contract.measurements}
    return Comparison(
        task=task.name,
        windows=len(windows),
        window_s=steps / contract.rate_hz,
        channels=tuple(channels),
        units=tuple(units[name] for name in channels),
        time_s=np.arange(1, steps + 1) / contract.rate_hz,
        error=_rms(difference[:, 1:]),
        drift=drift,
        bias=difference[:, -1].mean(axis=0),
        delays_s=np.asarray(tries * step_s, dtype=np.float64),
        delay_error=errors,
        delay_s=_refined(errors, best) * step_s,
        robot=robot[typical],
        simulated=simulated[best, typical],
    )


def cut_windows(transitions: TransitionArrays, steps: int, previous: int = MAX_DELAY_PERIODS, most: int = MAX_WINDOWS) -> Windows:
    """Cut a run into pieces of valid transitions that follow each other, with some before them that may act late.

    Args:
        transitions: what the robot did.
        steps: transitions T of each piece.
        previous: transitions B before them.
        most: number of pieces; where there are more, evenly spread ones are taken.

    Raises:
        ComparisonError: there is no such piece.
    """
    starts = []
    follows = np.zeros(len(transitions), dtype=np.bool_)
    follows[1:] = (
        transitions.valid[1:]
        & transitions.valid[:-1]
        & (transitions.run[1:] == transitions.run[:-1])
        & (transitions.episode[1:] == transitions.episode[:-1])
        & (transitions.step[1:] == transitions.step[:-1] + 1)
    )
    start = previous
    while start + steps <= len(transitions):
        broken = np.flatnonzero(~follows[start - previous + 1 : start + steps])
        if len(broken):
            start += int(broken[-1]) + 1
        else:
            starts.append(start)
            start += steps
    if not starts:
        raise ComparisonError(
            f"no {steps + previous} valid steps of the log follow each other; take shorter pieces or another run"
        )
    chosen = np.array(starts)[np.unique(np.linspace(0, len(starts) - 1, most).round().astype(int))]
    rows = chosen[:, None] + np.arange(steps)
    measurement = np.concatenate([transitions.measurement[rows], transitions.next_measurement[rows[:, -1:]]], axis=1)
    before = chosen[:, None] + np.arange(-previous, 0)
    return Windows(measurement, transitions.action[rows], transitions.action[before], transitions.measurement[chosen - previous])


def replay(contract: Contract, windows: Windows, channels: list[str], late: int, num_threads: int) -> NDArray[np.float64]:
    """Return (W, T + 1, C) what the simulation does in each piece.

    Args:
        contract: of the policy that ran.
        windows: the pieces.
        channels: measurement channels to return.
        late: reward steps by which the actions act later than they were measured for.
        num_threads: threads that step the simulation.
    """
    with make(contract.task, num_envs=len(windows), seed=0, num_threads=num_threads) as env:
        if not isinstance(env, BatchEnvironment):
            raise ComparisonError(f"task {contract.task} does not step natively, so its state cannot be set from measurements")
        task, repeat = env.task, contract.action_repeat
        require_same_channels(env, contract)
        qpos, qvel = measured_state(task, contract, windows.measurement[:, 0], env.qpos.shape[1], env.qvel.shape[1])
        env.set_state(qpos, qvel)
        steps = windows.action.shape[1]
        result = np.empty((len(windows), steps + 1, len(channels)))
        result[:, 0] = measure_channels(task, channels, env.qpos, env.qvel)
        actions = np.clip(np.concatenate([windows.previous, windows.action], axis=1), -1.0, 1.0)
        for step in range(steps * repeat):
            env.step(actions[:, windows.previous.shape[1] + (step - late) // repeat])
            if (step + 1) % repeat == 0:
                result[:, (step + 1) // repeat] = measure_channels(task, channels, env.qpos, env.qvel)
        return result


def require_same_channels(env: BatchEnvironment, contract: Contract) -> None:
    """Raise ContractError unless measurements and commands of a log's contract are those of the simulation."""
    ours = env.task.contract(env.physics.model, contract.action_repeat, contract.history)
    if (ours.measurement_names, ours.command_names) != (contract.measurement_names, contract.command_names):
        raise ContractError(
            f"the simulation of {env.task.name} has the measurements {', '.join(ours.measurement_names)} and the commands "
            f"{', '.join(ours.command_names)}; the log has {', '.join(contract.measurement_names)} and "
            f"{', '.join(contract.command_names)}"
        )


def measured_state(
    task: Task, contract: Contract, measurement: NDArray[np.float64], num_positions: int, num_velocities: int
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return positions (W, nq) and velocities (W, nv) that belong to measurements (W, M); 0 where nothing is measured."""
    state = {"qpos": np.zeros((len(measurement), num_positions)), "qvel": np.zeros((len(measurement), num_velocities))}
    for column, name in enumerate(contract.measurement_names):
        if name in task.measured_state:
            part, index = task.measured_state[name]
            state[part][:, index] = measurement[:, column]
    return state["qpos"], state["qvel"]


def measure_channels(
    task: Task, channels: Sequence[str], qpos: NDArray[np.float64], qvel: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Return (N, C) what the named measurement channels tell of states (N, nq) and (N, nv)."""
    state = {"qpos": qpos, "qvel": qvel}
    return np.stack([state[part][:, index] for part, index in (task.measured_state[name] for name in channels)], axis=1)


def _rms(difference: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return (T, C) root mean squares over pieces (W, T, C)."""
    return np.asarray(np.sqrt((difference**2).mean(axis=0)))


def _median_window(difference: NDArray[np.float64]) -> int:
    """Return the piece whose error is the median of all."""
    order = (difference**2).mean(axis=(1, 2)).argsort()
    return int(order[len(order) // 2])


def _refined(errors: NDArray[np.float64], best: int) -> float:
    """Return the place of the least error, by a parabola through the least and its neighbours."""
    if not 0 < best < len(errors) - 1:
        return float(best)
    before, least, after = errors[best - 1 : best + 2]
    curvature = before - 2 * least + after
    return best + 0.5 * float((before - after) / curvature) if curvature > 0 else float(best)
