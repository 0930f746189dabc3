"""Disturbances: noise on actuators and sensors, and random pushes."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from dpg_robot.config import setting


@dataclass(frozen=True)
class Disturbance:
    """What the world adds to the commanded actions and to the measured state."""

    action_noise: float = setting(
        0.0, "standard deviation of Gaussian actuator noise, new each reward step", unit="action (-1 to 1)"
    )
    observation_noise: float = setting(0.0, "standard deviation of Gaussian noise on each observation", unit="observation")
    push_rate_hz: float = setting(0.0, "mean number of random pushes", unit="1/s")
    push_force: float = setting(0.0, "standard deviation of the generalized force of a push", unit="N or N m")
    push_duration_s: float = setting(0.05, "how long a push lasts", unit="s")

    def __post_init__(self) -> None:
        for name in ("action_noise", "observation_noise", "push_rate_hz", "push_force", "push_duration_s"):
            if not 0 <= getattr(self, name) < math.inf:
                raise ValueError(f"{name} must be finite and not negative, got {getattr(self, name)}")


DISTURBANCE_PRESETS = {
    "none": Disturbance(),
    "default": Disturbance(action_noise=0.1, observation_noise=0.005, push_rate_hz=0.5, push_force=0.2),
}


class Pushes:
    """Random forces on the joints, each lasting a while.

    Args:
        settings: rate, strength and duration.
        num_envs: number of environments N.
        num_dofs: number of degrees of freedom V.
        timestep_s: time between two calls of :meth:`draw`.
    """

    def __init__(self, settings: Disturbance, num_envs: int, num_dofs: int, timestep_s: float) -> None:
        self.force = np.zeros((num_envs, num_dofs))
        self.remaining = np.zeros(num_envs, dtype=np.int64)
        self._active = settings.push_rate_hz > 0 and settings.push_force > 0
        self._strength = settings.push_force
        self._probability = settings.push_rate_hz * timestep_s
        self._steps = max(1, round(settings.push_duration_s / timestep_s))

    def draw(self, random: np.random.Generator) -> NDArray[np.float64] | None:
        """Advance one step and return the generalized forces (N, V), or None when pushes are switched off."""
        if not self._active:
            return None
        self.remaining = np.maximum(self.remaining - 1, 0)
        starting = (random.random(len(self.remaining)) < self._probability) & (self.remaining == 0)
        drawn = self._strength * random.standard_normal(self.force.shape)
        self.remaining[starting] = self._steps
        self.force = np.where(starting[:, None], drawn, self.force * (self.remaining > 0)[:, None])
        return self.force

    def clear(self, ids: NDArray[np.int64]) -> None:
        """End the pushes of the environments ``ids``."""
        self.force[ids] = 0.0
        self.remaining[ids] = 0
