"""Stochastic MuJoCo: batched tasks, randomized dynamics, disturbances, the virtual robot."""

from sim.environment import BatchEnvironment, make
from sim.step_result import StepResult

__all__ = ["BatchEnvironment", "StepResult", "make"]
