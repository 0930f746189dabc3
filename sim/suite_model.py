"""Models of dm_control's suite, compiled with the MuJoCo bindings that we step ourselves."""

from __future__ import annotations

import importlib
import os

import mujoco


def load_suite_model(domain: str) -> mujoco.MjModel:
    """Return the compiled nominal model of a dm_control domain such as ``cartpole``."""
    # dm_control looks for a display when it is imported; we never render through it.
    os.environ.setdefault("MUJOCO_GL", "disable")
    module = importlib.import_module(f"dm_control.suite.{domain}")
    xml, assets = module.get_model_and_assets()
    return mujoco.MjModel.from_xml_string(xml.decode() if isinstance(xml, bytes) else xml, dict(assets))
