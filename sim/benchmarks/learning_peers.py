"""Peers: algorithms of Stable-Baselines3 and sb3-contrib with their libraries' own defaults."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterable
from importlib.util import find_spec
from typing import Any

import gymnasium
import numpy as np

from dpg_robot.errors import DpgError
from sim.benchmarks.learning_evaluation import Evaluator
from sim.benchmarks.learning_protocol import PeerConfig, Run
from sim.gym_env import register_environments

_LIBRARIES = {
    "SAC": ("stable_baselines3", "stable-baselines3"),
    "TD3": ("stable_baselines3", "stable-baselines3"),
    "PPO": ("stable_baselines3", "stable-baselines3"),
    "TQC": ("sb3_contrib", "sb3-contrib"),
    "CrossQ": ("sb3_contrib", "sb3-contrib"),
}

_DEFAULT_CAPACITY = 1_000_000  # transitions, of all off-policy algorithms in both libraries


class MissingPeerError(DpgError, ImportError):
    """The library of a peer is not installed."""


def require_peers(peers: Iterable[PeerConfig]) -> None:
    """Raise MissingPeerError unless the libraries of all peers are installed."""
    for algorithm in dict.fromkeys(peer.algorithm for peer in peers):
        module, package = _LIBRARIES[algorithm]
        if find_spec(module) is None:
            raise MissingPeerError(
                f"{algorithm} is of {package}, which is not installed; run 'pip install {package}', or leave out this peer"
            )


def make_model(run: Run, settings: PeerConfig) -> Any:
    """Return a peer's model on one environment of the run, seeded; the library wraps the environment as it always does."""
    require_peers([settings])
    register_environments()
    environment = gymnasium.make(
        f"dpg/{run.task}-v0",
        disable_env_checker=True,  # it only costs time
        action_repeat=run.action_repeat,
        disturbance=run.disturbance,
        history=run.history,
    )
    arguments: dict[str, Any] = {}
    if settings.algorithm != "PPO":
        # all that this run can fill of the default; the results are the same, without gigabytes set aside
        arguments["buffer_size"] = min(_DEFAULT_CAPACITY, run.decisions)
    if settings.action_noise:
        noise = importlib.import_module("stable_baselines3.common.noise")
        shape = environment.action_space.shape or ()
        arguments["action_noise"] = noise.NormalActionNoise(np.zeros(shape), np.full(shape, settings.action_noise))
    algorithm = getattr(importlib.import_module(_LIBRARIES[settings.algorithm][0]), settings.algorithm)
    return algorithm("MlpPolicy", environment, seed=run.seed, device="cpu", **arguments)


def train_peer(run: Run, settings: PeerConfig, evaluator: Evaluator, progress: Callable[[int], object]) -> int:
    """Train a peer for the frames of a run.

    Args:
        run: what to run.
        settings: which peer.
        evaluator: evaluates as frames go by.
        progress: called with the frames used since its last call.

    Returns:
        The number of updates as the library counts them: gradient updates, for PPO passes over a rollout.
    """
    model = make_model(run, settings)

    def act(observations: Any) -> Any:
        return model.predict(observations, deterministic=True)[0]

    def after_step(_local: dict[str, Any], _global: dict[str, Any]) -> bool:
        evaluator.after(model.num_timesteps, act)
        progress(run.action_repeat)
        # PPO would finish its rollout, beyond the frames that everyone gets
        return bool(model.num_timesteps < run.decisions)

    model.learn(run.decisions, callback=after_step)
    model.env.close()
    return int(model._n_updates)
