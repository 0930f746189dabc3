"""Models of dm_control's suite, compiled with the MuJoCo bindings that we step ourselves."""

from __future__ import annotations

import importlib
import os
from typing import Any

import mujoco


def suite() -> Any:
    """Return dm_control's suite."""
    # dm_control looks for a display when it is imported; we never render through it.
    os.environ.setdefault("MUJOCO_GL", "disable")
    return importlib.import_module("dm_control.suite")


def suite_module(domain: str) -> Any:
    """Return the module of a dm_control domain such as ``cartpole``."""
    return importlib.import_module(f"{suite().__name__}.{domain}")


def load_suite_spec(domain: str, **arguments: Any) -> mujoco.MjSpec:
    """Return the nominal model of a dm_control domain such as ``cartpole``, not yet compiled.

    Args:
        domain: name of the domain's module.
        **arguments: what the domain's ``get_model_and_assets`` takes, for example ``n_joints`` of the swimmer.
    """
    xml, assets = suite_module(domain).get_model_and_assets(**arguments)
    return mujoco.MjSpec.from_string(xml.decode() if isinstance(xml, bytes) else xml, dict(assets))


def load_suite_model(domain: str) -> mujoco.MjModel:
    """Return the compiled nominal model of a dm_control domain such as ``cartpole``."""
    return load_suite_spec(domain).compile()
