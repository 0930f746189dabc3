"""Environments from a task's name."""

from __future__ import annotations

import inspect
from pathlib import Path

from dpg_robot.errors import ConfigError, unknown_name
from sim.disturbance import Disturbance
from sim.dm_control_env import DmControlEnvironment, make_dm_control, suite_names
from sim.environment import BatchEnvironment, make_native
from sim.randomization import Randomization
from sim.tasks import TASKS, Task, find_attribute


def make(
    task: str | Task,
    num_envs: int = 1,
    seed: int = 0,
    num_threads: int = 0,
    action_repeat: int = 1,
    randomization: str | Path | Randomization = "none",
    disturbance: str | Path | Disturbance = "none",
) -> BatchEnvironment | DmControlEnvironment:
    """Make ``num_envs`` environments of a task.

    Args:
        task: a native task's name such as ``cartpole-swingup``; any other task of dm_control's suite, such as ``fish-swim``; a
            reference ``package.module:name`` or ``path/to/file.py:name`` of a :class:`sim.tasks.Task`, or of a function that
            takes a seed and returns a ``dm_env.Environment``; or a task itself. What is not native steps in worker processes,
            slower and without randomized dynamics and pushes.
        num_envs: number of environments N.
        seed: seed of everything random.
        num_threads: native threads (or worker processes) that step the simulations; 0 for all processors.
        action_repeat: control steps of the task per action; rewards are summed over them.
        randomization: name of a preset, path of a YAML file, or the settings themselves.
        disturbance: likewise.

    Raises:
        UnknownNameError: unknown task or preset, with a 'did you mean'.
        ConfigError: a YAML file or a reference that cannot be used, or a randomization that would make the model invalid.
        ModelError: a model that does not compile.
    """
    if isinstance(task, Task) or _is_native(task):
        return make_native(task, num_envs, seed, num_threads, action_repeat, randomization, disturbance)
    if randomization not in ("none", Randomization()):
        raise ConfigError(
            f"task {task!r} does not step natively, so its dynamics cannot be randomized; set randomization to 'none' "
            "and let the environment vary its own model"
        )
    return make_dm_control(task, num_envs, seed, num_threads, action_repeat, disturbance)


def _is_native(task: str) -> bool:
    if task in TASKS:
        return True
    place, separator, attribute = task.rpartition(":")
    if not separator:
        names = suite_names()
        if task not in names:
            raise unknown_name("task", task, {*TASKS, *names})
        return False
    factory = find_attribute(place, attribute, task)
    if isinstance(factory, type) and issubclass(factory, Task):
        return True
    try:
        parameters = inspect.signature(factory).parameters
    except ValueError:  # something built in, which is neither; the attempt to make a task of it says so
        return True
    variable = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    needed = [each for each in parameters.values() if each.default is each.empty and each.kind not in variable]
    return not needed and "seed" not in parameters  # a task is made of nothing, an environment of a seed
