"""Virtual cart-poles whose parameters are known, and what they log while they explore."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.special import ndtr

from dpg_robot.contract import Contract
from dpg_robot.data.transition_arrays import TransitionArrays
from sim.benchmarks.virtual_log import virtual_transitions
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
        force_share: share of the commanded forces that the motor exerted on average, as the slope of a regression: its noise
            makes commands near its limits weaker, which nothing distinguishes from a smaller gain.
    """

    transitions: TransitionArrays
    contract: Contract
    truth: NDArray[np.float64]
    names: tuple[str, ...]
    force_share: float


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
    transitions = _transitions(measured, [each[1] for each in episodes], contract)
    return Recording(transitions, contract, truth, names, _force_share(transitions.action, _DISTURBANCE.action_noise))


def _force_share(action: NDArray[np.float64], noise: float) -> float:
    """Return the regression slope of clip(action + noise, -1, 1) on action."""
    low, high = (-1.0 - action) / noise, (1.0 - action) / noise
    density = [np.exp(-0.5 * each**2) / np.sqrt(2 * np.pi) for each in (low, high)]
    mean = action * (ndtr(high) - ndtr(low)) + noise * (density[0] - density[1]) + 1.0 - ndtr(high) - ndtr(low)
    return float((action * mean).sum() / (action**2).sum())


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
    return virtual_transitions(
        contract,
        np.repeat(np.arange(len(lengths)), lengths),
        np.concatenate([np.arange(length) for length in lengths]),
        np.concatenate([each[:-1] for each in measured]),
        np.concatenate(actions),
        np.concatenate([each[1:] for each in measured]),
    )
