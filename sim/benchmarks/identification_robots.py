"""Virtual cart-poles whose parameters are known, and what they log while they explore."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from dpg_robot.contract import Contract
from dpg_robot.data.transition_arrays import TransitionArrays
from sim.disturbance import DISTURBANCE_PRESETS
from sim.environment import BatchEnvironment, make_native
from sim.randomization import Randomization
from sim.variation import Variation

TASK = "cartpole-swingup"
REPEAT = 2  # 50 control steps per second
_EPISODE_S = 9.0  # shorter than the task's, so that no episode ends by itself
_HOLD = 4  # control steps
_DISTURBANCE = DISTURBANCE_PRESETS["default"]

PRIOR = Randomization(
    mass=(0.5, 2.0),
    damping=(0.3, 10.0),
    joint_friction=(
        Variation(low=0.0, high=0.5, names=("slider",)),
        Variation(low=0.0, high=0.02, names=("hinge_1",)),
    ),
    actuator_gain=(0.5, 2.0),
    control_delay_s=(0.0, 0.05),
)
"""Wide ranges, in which all of :data:`ROBOTS` lie."""

ROBOTS: dict[str, dict[str, float]] = {
    "nominal": {},
    "mass + 50 %": {"mass/cart": 1.5, "mass/pole_1": 1.5},
    "gain - 30 %": {"actuator_gain/slide": 0.7},
    "joint friction": {"joint_friction/slider": 0.3, "joint_friction/hinge_1": 0.01},
    "20 ms late": {"control_delay_s": 0.02},
}
"""What differs from the nominal model, by names of dynamics."""


@dataclass(frozen=True)
class Recording:
    """What one robot did.

    Attributes:
        transitions: its log.
        contract: of the policy that ran.
        truth: (P,) its parameters, columns as ``names``.
        names: of the parameters.
    """

    transitions: TransitionArrays
    contract: Contract
    truth: NDArray[np.float64]
    names: tuple[str, ...]


def record(robot: dict[str, float], seconds: float, seed: int, prior: Randomization = PRIOR) -> Recording:
    """Let a cart-pole explore with random forces that lead it back to the middle, and log it.

    Actuator noise, pushes and sensor noise are those of the default disturbance; the log has the actions that were commanded.

    Args:
        robot: what differs from the nominal model.
        seconds: length of the log, s.
        seed: of forces and noise.
        prior: varies the parameters that ``robot`` may have.
    """
    random = np.random.default_rng([seed, 7])
    with make_native(TASK, 1, seed, 1, 1, prior, _DISTURBANCE) as env:
        contract = env.task.contract(env.physics.model, REPEAT, 0)
        truth = _nominal(env)
        for name, value in robot.items():
            truth[env.dynamics_names.index(name)] = value
        steps = round(_EPISODE_S * contract.rate_hz)
        episodes = [
            _episode(env, truth, random, min(steps, left)) for left in range(round(seconds * contract.rate_hz), 0, -steps)
        ]
        names = env.dynamics_names
    measured = [each[0] + _DISTURBANCE.observation_noise * random.standard_normal(each[0].shape) for each in episodes]
    return Recording(_transitions(measured, [each[1] for each in episodes], contract), contract, truth, names)


def _nominal(env: BatchEnvironment) -> NDArray[np.float64]:
    """Return the values (P,) that change nothing, which stand there before the first episode."""
    return np.asarray(env.dynamics[0])


def _episode(
    env: BatchEnvironment, truth: NDArray[np.float64], random: np.random.Generator, steps: int
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return true states (T + 1, 4) and actions (T, 1) of one episode."""
    env.reset()
    env.set_dynamics(truth[None])
    states = [np.concatenate([env.qpos[0], env.qvel[0]])]
    actions = []
    force = 0.0
    for step in range(steps):
        if step % _HOLD == 0:
            force = 0.5 * random.standard_normal()
        position, _, velocity, _ = states[-1]
        action = np.clip([force - 0.3 * position - 0.2 * velocity], -1.0, 1.0)
        for _ in range(REPEAT):
            env.step(action[None])
        actions.append(action)
        states.append(np.concatenate([env.qpos[0], env.qvel[0]]))
    return np.array(states), np.array(actions)


def _transitions(measured: list[NDArray[np.float64]], actions: list[NDArray[np.float64]], contract: Contract) -> TransitionArrays:
    lengths = [len(each) for each in actions]
    count = sum(lengths)
    action = np.concatenate(actions)
    low, high = contract.command_low, contract.command_high
    time_ns = np.arange(count, dtype=np.int64) * contract.period_ns
    none = np.zeros(count, dtype=np.bool_)
    return TransitionArrays(
        run_ids=("virtual",),
        run=np.zeros(count, dtype=np.int32),
        sequence=np.arange(count, dtype=np.uint64),
        episode=np.repeat(np.arange(len(lengths), dtype=np.int32), lengths),
        step=np.concatenate([np.arange(length, dtype=np.int32) for length in lengths]),
        measurement=np.concatenate([each[:-1] for each in measured]),
        action=action,
        intended_action=action,
        command=low + 0.5 * (action + 1.0) * (high - low),
        next_measurement=np.concatenate([each[1:] for each in measured]),
        terminal=none,
        timeout=none,
        time_ns=time_ns,
        next_time_ns=time_ns + contract.period_ns,
        wall_ns=time_ns,
        valid=~none,
        policy=np.zeros(count, dtype=np.uint64),
    )
