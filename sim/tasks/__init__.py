"""Tasks, one file a domain. A name of the table, or ``module:factory`` or ``file.py:factory`` of one's own, makes a task."""

from __future__ import annotations

import importlib
import importlib.util
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any, cast

from dpg_robot.errors import ConfigError, unknown_name
from sim.tasks.task import Task

__all__ = ["SUITE_TASKS", "TASKS", "Task", "make_task"]


def _names(domain: str, *tasks: str) -> dict[str, str]:
    return {f"{domain}-{task}": f"sim.tasks.{domain}:{task}" for task in tasks}


SUITE_TASKS: dict[str, str] = {
    **_names("acrobot", "swingup", "swingup_sparse"),
    **_names("ball_in_cup", "catch"),
    **_names("cartpole", "balance", "balance_sparse", "swingup", "swingup_sparse"),
    **_names("cheetah", "run"),
    **_names("finger", "spin", "turn_easy", "turn_hard"),
    **_names("hopper", "stand", "hop"),
    **_names("humanoid", "stand", "walk", "run"),
    **_names("pendulum", "swingup"),
    **_names("point_mass", "easy"),
    **_names("quadruped", "walk", "run"),
    **_names("reacher", "easy", "hard"),
    **_names("swimmer", "swimmer6"),
    **_names("walker", "stand", "walk", "run"),
}
"""Name of each task of dm_control's suite that steps natively -> ``module:factory``."""

TASKS: dict[str, str] = {**SUITE_TASKS, **_names("so101", "reach")}
"""Name of each task that steps natively -> ``module:factory``."""


def make_task(name: str) -> Task:
    """Return a new task.

    Args:
        name: a name of :data:`TASKS`; or ``package.module:factory`` or ``path/to/file.py:factory``, where the factory takes no
            arguments and returns a :class:`Task` (a subclass of it will do).

    Raises:
        UnknownNameError: an unknown name, with a 'did you mean'.
        ConfigError: a reference that does not lead to a task.
    """
    reference = TASKS.get(name, name)
    place, separator, attribute = reference.rpartition(":")
    if not separator:
        raise unknown_name("task", name, TASKS)
    factory = find_attribute(place, attribute, name)
    try:
        task = factory()
    except TypeError as error:
        raise ConfigError(f"task {name!r}: {attribute}() cannot be called without arguments: {error}") from error
    if not isinstance(task, Task):
        raise ConfigError(f"task {name!r}: {attribute} gave {type(task).__name__}, expected a sim.tasks.Task")
    return task


def find_attribute(place: str, attribute: str, name: str) -> Callable[..., Any]:
    """Return the class or function ``attribute`` of a module, or of a file that ends in ``.py``.

    Args:
        place: name of the module, or path of the file.
        attribute: name of the class or function.
        name: what the user wrote, for errors.

    Raises:
        ConfigError: a reference that does not lead to a class or function.
    """
    try:
        module = _load_file(Path(place)) if place.endswith(".py") else importlib.import_module(place)
        factory = getattr(module, attribute)
    except Exception as error:  # whatever the user's own module raises
        kind = "" if isinstance(error, ImportError | OSError | AttributeError) else f"{type(error).__name__}: "
        raise ConfigError(f"task {name!r} cannot be loaded: {kind}{error}") from error
    if not callable(factory):
        raise ConfigError(f"task {name!r}: {attribute} is not a class or function")
    return cast(Callable[..., Any], factory)


def _load_file(path: Path) -> ModuleType:
    if not path.is_file():
        raise FileNotFoundError(f"there is no file {path}")
    name = f"_task_file {path.resolve()}"
    if name in sys.modules:
        return sys.modules[name]
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise ImportError(f"{path} is not a Python file")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses look their module up there
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[name]
        raise
    return module
