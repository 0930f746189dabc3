"""Reaching with the SO-101 in simulation: the same targets from the same pose as on an arm, so that both can be compared."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from dpg_robot.contract import Contract
from dpg_robot.deploy.policy_session import PolicySession
from sim.environment import BatchEnvironment
from sim.factory import make
from sim.tasks.so101 import JOINT_LIMITS_RAD, SUCCESS_DISTANCE_M, forward_kinematics

TASK = "so101-reach"
_LAST_S = 0.5


@dataclass(frozen=True)
class Reaching:
    """How near the tip came to its targets.

    Attributes:
        distance: (E, T) distance of the tip from its target after each control step, m; NaN after the arm was stopped.
        rate_hz: control steps per second.
        stops: how often the arm was stopped, in an episode or on the way to the next.
    """

    distance: NDArray[np.float64]
    rate_hz: float
    stops: int = 0

    @property
    def final(self) -> NDArray[np.float64]:
        """(E,) largest distance in the last half second, m; NaN where the arm was stopped."""
        return np.asarray(self.distance[:, -max(1, round(_LAST_S * self.rate_hz)) :].max(axis=1))

    @property
    def success(self) -> float:
        """Share of episodes in which the tip stayed within 2 cm for the last half second."""
        return float((self.final < SUCCESS_DISTANCE_M).mean())

    @property
    def success_error(self) -> float:
        """Standard error of ``success``."""
        return float(np.sqrt(self.success * (1 - self.success) / len(self.distance)))

    def to_dict(self) -> dict[str, float | list[float | None]]:
        """Return plain values for JSON; distances in m, None where the arm was stopped."""
        return {
            "episodes": len(self.distance),
            "stops": self.stops,
            "success": self.success,
            "standard_error": self.success_error,
            "median_distance": float(np.nanmedian(self.final)),
            "distance": [None if np.isnan(distance) else round(distance, 5) for distance in self.final.tolist()],
        }


def draw_targets(count: int, seed: int) -> NDArray[np.float64]:
    """Return (count, 3) targets as the task draws them, m."""
    with _make(count, 1, seed, "none") as env:
        env.reset()
        return np.array(env.physics.parameter("site_pos")[:, env.physics.model.site("target").id])


def reach_in_simulation(
    policy: Path, targets: NDArray[np.float64], home: NDArray[np.float64], seconds: float, *, randomization: str, seed: int
) -> Reaching:
    """Let a policy reach for targets (E, 3), each once, from rest at ``home`` (5,), and return how near it came.

    Args:
        policy: the policy file.
        targets: m.
        home: joint angles, rad.
        seconds: length of an episode, s.
        randomization: of the dynamics: a preset or a YAML file.
        seed: of the dynamics.
    """
    sessions = [PolicySession.load(policy) for _ in targets]
    contract = sessions[0].contract
    with _make(len(targets), contract.action_repeat, seed, randomization) as env:
        env.reset()
        env.physics.parameter("site_pos")[:, env.physics.model.site("target").id] = targets
        qpos = np.zeros_like(env.qpos)
        qpos[:, : len(home)] = home
        env.set_state(qpos, np.zeros_like(env.qvel))
        obs, distances = env.obs, []
        for _ in range(round(seconds * contract.rate_hz)):
            actions = []
            for session, measurement in zip(sessions, obs.astype(np.float64), strict=True):
                session.step(measurement)
                actions.append(session.action.copy())
            obs = env.step(np.stack(actions)).final_obs
            distances.append(distances_to(targets, np.asarray(obs[:, : len(JOINT_LIMITS_RAD)])))
    return Reaching(np.stack(distances, axis=1), contract.rate_hz)


def distances_to(targets: NDArray[np.float64], joints: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return (...) distances of the tip from targets (..., 3), for joint angles (..., 5)."""
    return np.asarray(np.linalg.norm(forward_kinematics(joints) - targets, axis=-1))


def require_reach(contract: Contract, policy: Path) -> None:
    """Raise ValueError unless a policy was trained for the task."""
    if contract.task != TASK:
        raise ValueError(
            f"{policy} was trained for {contract.task}, expected {TASK}; train one with launch/pretrain.py task={TASK}"
        )


def _make(count: int, repeat: int, seed: int, randomization: str) -> BatchEnvironment:
    env = make(TASK, num_envs=count, seed=seed, num_threads=1, action_repeat=repeat, randomization=randomization)
    assert isinstance(env, BatchEnvironment)
    return env
