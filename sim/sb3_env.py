"""Native batches as vectorized environments of Stable-Baselines3, which cannot use Gymnasium's."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from stable_baselines3.common.vec_env.base_vec_env import VecEnv, VecEnvIndices

from sim.environment import BatchEnvironment
from sim.gym_env import environment_spaces


class BatchVecEnv(VecEnv):
    """A :class:`sim.BatchEnvironment` for the algorithms of Stable-Baselines3, all environments in one native call.

    ``BatchVecEnv(sim.make("cheetah-run", num_envs=16))``. Wrap it in their ``VecMonitor`` to have returns in their logs.

    Args:
        environment: the environments.
    """

    def __init__(self, environment: BatchEnvironment) -> None:
        self.environment = environment
        self._actions: NDArray[np.float32] | None = None
        super().__init__(environment.num_envs, *environment_spaces(environment))

    def reset(self) -> NDArray[np.float32]:
        """Start an episode in every environment; those of a preceding ``seed(...)`` start from that seed."""
        if self._seeds[0] is not None:
            self.environment.reseed(self._seeds[0])
        self._reset_seeds()
        self._reset_options()
        return self.environment.reset()

    def step_async(self, actions: NDArray[np.float32]) -> None:
        """Keep the actions (N, act_dim) in [-1, 1] for :meth:`step_wait`."""
        self._actions = actions

    def step_wait(self) -> tuple[NDArray[np.float32], NDArray[np.float32], NDArray[np.bool_], list[dict[str, Any]]]:
        """Step; returns observations, rewards, which episodes ended, and one ``info`` per environment.

        Where an episode ended, ``info`` has ``terminal_observation``, ``TimeLimit.truncated`` and, where the physics diverged,
        ``fault``.
        """
        if self._actions is None:
            raise RuntimeError("no actions to step with; call step_async(actions) before step_wait()")
        result = self.environment.step(self._actions)
        self._actions = None
        ended = result.terminal | result.timeout
        infos: list[dict[str, Any]] = [{} for _ in range(self.num_envs)]
        for index in np.flatnonzero(ended):
            infos[index] = {
                "terminal_observation": result.final_obs[index],
                "TimeLimit.truncated": bool(result.timeout[index]),
            }
            if result.fault[index]:
                infos[index]["fault"] = True
        return result.obs, result.reward, ended, infos

    def close(self) -> None:
        """Close the environments."""
        self.environment.close()

    def get_attr(self, attr_name: str, indices: VecEnvIndices = None) -> list[Any]:
        """Return an attribute of the batch, once for each of the environments ``indices``."""
        value = None if attr_name == "render_mode" else getattr(self.environment, attr_name)
        return [value for _ in self._get_indices(indices)]

    def set_attr(self, attr_name: str, value: Any, indices: VecEnvIndices = None) -> None:
        """Refuse: the environments are one object and have no attributes of their own."""
        raise NotImplementedError(f"cannot set {attr_name!r}: a native batch has no separate environments; make a new one")

    def env_method(self, method_name: str, *method_args: Any, indices: VecEnvIndices = None, **method_kwargs: Any) -> list[Any]:
        """Refuse: the environments are one object; call the method of ``environment`` itself."""
        raise NotImplementedError(f"cannot call {method_name!r} in separate environments; call it on .environment")

    def env_is_wrapped(self, wrapper_class: type[Any], indices: VecEnvIndices = None) -> list[bool]:
        """Return False for each: single environments cannot be wrapped here."""
        return [False for _ in self._get_indices(indices)]
