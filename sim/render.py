"""Pictures of simulated environments without a display, drawn by MuJoCo through OpenGL.

MuJoCo chooses its OpenGL by the environment variable ``MUJOCO_GL`` when it is imported; here the choice is made when the first
picture is wanted, so a process that was started without OpenGL can still draw.
"""

from __future__ import annotations

import copy
import importlib
import os
import subprocess
import sys
from typing import Any

import mujoco
import numpy as np
from numpy.typing import NDArray

from dpg_robot.errors import DpgError, unknown_name
from sim.environment import BatchEnvironment

_PACKAGES = {
    "egl": "libegl1 libegl-mesa0 (uses a GPU where there is one)",
    "osmesa": "libosmesa6 (draws on the processor)",
    "glfw": "libglfw3, and a display",
}
_DEFAULT_BACKENDS = ("egl", "osmesa") if sys.platform == "linux" else ("glfw",)
_TRIAL = """
import mujoco
from mujoco.{name} import GLContext
context = GLContext(8, 8)
context.make_current()
mujoco.MjrContext(mujoco.MjModel.from_xml_string('<mujoco/>'), 100)
context.free()
"""
_TRIAL_LIMIT_S = 60.0
_SHADOW_PIXELS = 2048  # a processor takes twice as long with MuJoCo's own 4096, for shadows that look the same


class RenderError(DpgError, RuntimeError):
    """Nothing can be drawn here, or a video cannot be written."""


class FrameRenderer:
    """Draws one environment at a time, with the dynamics and shapes that were drawn for it.

    Use it in a ``with`` block, or call :meth:`close`: OpenGL wants its resources back before the process ends.

    Args:
        environment: the environments.
        width: of the pictures, pixels.
        height: of the pictures, pixels.
        camera: name of a camera of the model, or ``free`` for one that sees the whole model; None for the model's first camera,
            ``free`` where it has none.

    Raises:
        UnknownNameError: the model has no such camera.
        RenderError: no OpenGL works here; the message says what to install.
    """

    def __init__(self, environment: BatchEnvironment, width: int = 640, height: int = 480, camera: str | None = None) -> None:
        if width < 1 or height < 1:
            raise ValueError(f"width and height must be 1 or more pixels, got {width} x {height}")
        self._batch = environment.physics.batch
        self._model = copy.copy(environment.physics.model)
        self._model.vis.global_.offwidth, self._model.vis.global_.offheight = width, height
        self._model.vis.quality.shadowsize = min(_SHADOW_PIXELS, self._model.vis.quality.shadowsize)
        self._data = mujoco.MjData(self._model)
        self._camera = _choose_camera(self._model, camera)
        self._rectangle = mujoco.MjrRect(0, 0, width, height)
        self._scene = mujoco.MjvScene(self._model, maxgeom=10_000)
        self._options = mujoco.MjvOption()
        self._pixels: NDArray[np.uint8] = np.zeros((height, width, 3), dtype=np.uint8)
        self._opengl: Any = _load_backend()(width, height)
        self._opengl.make_current()
        self._context = mujoco.MjrContext(self._model, mujoco.mjtFontScale.mjFONTSCALE_100)
        mujoco.mjr_setBuffer(mujoco.mjtFramebuffer.mjFB_OFFSCREEN, self._context)

    def __enter__(self) -> FrameRenderer:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def frame(self, index: int) -> NDArray[np.uint8]:
        """Return a picture (height, width, 3) of the present state of environment ``index``, a new array."""
        self._batch.get_model(index, self._model)
        self._batch.get_data(index, self._data)
        mujoco.mj_fwdPosition(self._model, self._data)  # places of bodies, tendons, cameras and lights
        everything = mujoco.mjtCatBit.mjCAT_ALL
        mujoco.mjv_updateScene(self._model, self._data, self._options, None, self._camera, everything, self._scene)
        self._opengl.make_current()
        mujoco.mjr_render(self._rectangle, self._scene, self._context)
        mujoco.mjr_readPixels(self._pixels, None, self._rectangle, self._context)
        return self._pixels[::-1].copy()  # OpenGL's first row is the lowest

    def close(self) -> None:
        """Give OpenGL its resources back; no more pictures after this."""
        if self._opengl is not None:
            self._context.free()
            self._opengl.free()
            self._opengl = None


def _choose_camera(model: mujoco.MjModel, name: str | None) -> mujoco.MjvCamera:
    names = [model.camera(index).name for index in range(model.ncam)]
    camera = mujoco.MjvCamera()
    if name is None and names:
        camera.type, camera.fixedcamid = mujoco.mjtCamera.mjCAMERA_FIXED, 0
    elif name in (None, "free"):
        mujoco.mjv_defaultFreeCamera(model, camera)
    elif name in names:
        camera.type, camera.fixedcamid = mujoco.mjtCamera.mjCAMERA_FIXED, names.index(name)
    else:
        raise unknown_name("camera", str(name), [*names, "free"])
    return camera


def _load_backend() -> Any:
    """Return the OpenGL context class of the first backend that works, or of the one that ``MUJOCO_GL`` names."""
    asked = os.environ.get("MUJOCO_GL", "").strip().lower()
    failures = []
    for name in (asked,) if asked in _PACKAGES else _DEFAULT_BACKENDS:
        # in a process of its own: a backend that fails leaves PyOpenGL unable to load another one
        trial = subprocess.run(
            [sys.executable, "-c", _TRIAL.format(name=name)], capture_output=True, text=True, timeout=_TRIAL_LIMIT_S, check=False
        )
        if trial.returncode == 0:
            return importlib.import_module(f"mujoco.{name}").GLContext
        reason = trial.stderr.strip().splitlines() or [f"exit code {trial.returncode}"]
        failures.append(f"{name}: {reason[-1]}; needs {_PACKAGES[name]}")
    raise RenderError(
        "no OpenGL works here, so nothing can be drawn. Install the packages of one of these (Debian's names), or name a backend "
        f"in MUJOCO_GL ({', '.join(_PACKAGES)}). Tried:\n  " + "\n  ".join(failures)
    )
