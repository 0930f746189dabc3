"""Stochastic MuJoCo: batched tasks, randomized dynamics, disturbances, the virtual robot."""

from sim.environment import BatchEnvironment, StepResult, make

__all__ = ["BatchEnvironment", "StepResult", "make"]
