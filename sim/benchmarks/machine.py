"""What measured numbers depend on: processor, memory, system and versions."""

from __future__ import annotations

import platform
from pathlib import Path
from typing import Any

import psutil

from dpg_robot.versions import installed_versions
from sim.benchmark import usable_cores

_PACKAGES = ("dpg-robot", "mujoco", "dm-control", "gymnasium", "numpy")


def machine_facts() -> dict[str, Any]:
    """Return what the numbers depend on: processor, memory, system and versions."""
    return {
        "cpu": cpu_model(),
        "logical_cores": psutil.cpu_count(),
        "usable_cores": usable_cores(),
        "memory_bytes": psutil.virtual_memory().total,
        "load_average": list(psutil.getloadavg()),
        "system": platform.platform(),
        "versions": installed_versions(_PACKAGES),
    }


def cpu_model() -> str:
    """Return the name of the processor."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()
