"""Stochastic MuJoCo: batched tasks, randomized dynamics, disturbances, the virtual robot."""

from importlib.util import find_spec

from sim.dm_control_env import DmControlEnvironment
from sim.environment import BatchEnvironment
from sim.factory import make
from sim.step_result import StepResult

__all__ = ["BatchEnvironment", "DmControlEnvironment", "StepResult", "make"]

if find_spec("gymnasium"):  # not everybody has it; those who do expect an imported package to register its environments
    from sim.gym_env import register_environments

    register_environments()
