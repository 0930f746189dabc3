"""A three-dimensional view of what robots measured, in the browser: the poses of a log instead of a simulation."""

from __future__ import annotations

import contextlib
import io
import threading
import time
from collections.abc import Callable, Mapping

import numpy as np
from viser import GuiTextHandle

from dpg_robot.errors import ConfigError
from dpg_robot.host.dashboard.robots import Pose
from sim.browser_scene import BrowserScene
from sim.environment import BatchEnvironment
from sim.factory import make
from sim.viewer import serve_page

_FRAME_PERIOD_S = 0.1
_BEHIND_S = 1.5  # logs come in pieces; so far behind, the next one is there before it is needed
_STALE_S = 5.0


class PoseView:
    """Serves a page with the model of a task in the pose of a robot.

    Only what was measured is shown: the rest of the model's state is 0, and its sites (such as targets) are hidden.

    Args:
        task: name of a task whose measurements tell the pose.
        poses: returns what each robot measured in the last seconds, by name.
        host: address to serve at.
        port: to serve at; 0 for any free one.

    Attributes:
        port: of the page.

    Raises:
        ConfigError: measurements do not tell the pose of this task.
        ViewError: the port is in use, or the address is not this machine's.
    """

    def __init__(self, task: str, poses: Callable[[], Mapping[str, Pose]], host: str, port: int) -> None:
        environment = make(task, num_envs=1)
        if not isinstance(environment, BatchEnvironment) or not environment.task.measured_state:
            environment.close()
            raise ConfigError(
                f"the measurements of task {task} do not tell its pose; give one whose do, such as cartpole-swingup"
            )
        self._poses, self._physics, self._channels = poses, environment.physics, environment.task.measured_state
        environment.reset()
        self._physics.reset(np.arange(1))
        if environment.physics.model.nsite:
            environment.physics.parameter("site_rgba")[..., 3] = 0.0
        self._server = serve_page(host, port, task)
        self.port = self._server.get_port()
        self._scene = BrowserScene(self._server, environment)
        self._robot = self._server.gui.add_dropdown("Robot", ("none",), initial_value="none")
        # fields, not markdown: that would carry out what is written in a name
        self._shown_run = self._server.gui.add_text("Run", "", disabled=True)
        self._shown_age = self._server.gui.add_text("Age", "waiting for a robot", disabled=True)
        self._run, self._ahead_ns, self._seen_ns, self._seen_s = "", 0, 0, 0.0
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._play, name="view", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Stop serving."""
        self._stop.set()
        self._thread.join(timeout=10.0)
        with contextlib.redirect_stdout(io.StringIO()):  # viser reports it on stdout
            self._server.stop()

    def _play(self) -> None:
        while not self._stop.wait(_FRAME_PERIOD_S):
            poses = {name: pose for name, pose in self._poses().items() if self._fits(pose)}
            names = tuple(sorted(poses)) or ("none",)
            if names != self._robot.options:
                self._robot.options = names
            pose = poses.get(self._robot.value)
            if pose is not None:
                self._show(self._robot.value, pose)

    def _fits(self, pose: Pose) -> bool:
        return self._channels.keys() <= set(pose.contract.measurement_names) and len(pose.time_ns) > 0

    def _show(self, robot: str, pose: Pose) -> None:
        """Show what was measured a little while ago, at the pace at which it was measured."""
        now_s, newest_ns = time.monotonic(), int(pose.time_ns[-1])
        if (robot + pose.run) != self._run:
            self._run, self._ahead_ns, self._seen_ns = robot + pose.run, -(2**62), 0
        if newest_ns != self._seen_ns:
            self._seen_ns, self._seen_s = newest_ns, now_s
            self._ahead_ns = max(self._ahead_ns, newest_ns - int(now_s * 1e9))  # from the piece that came quickest
        wanted_ns = int(now_s * 1e9) + self._ahead_ns - int(_BEHIND_S * 1e9)
        index = min(int(np.searchsorted(pose.time_ns, wanted_ns)), len(pose.time_ns) - 1)
        values = dict(zip(pose.contract.measurement_names, pose.measurement[index].tolist(), strict=True))
        state = {"qpos": self._physics.qpos, "qvel": self._physics.qvel}
        for channel, (kind, column) in self._channels.items():
            if np.isfinite(values[channel]):
                state[kind][0, column] = values[channel]
        self._scene.update()
        silent_s = now_s - self._seen_s
        age = f"nothing new for {silent_s:.0f} s" if silent_s > _STALE_S else f"{_BEHIND_S:g} s behind its log"
        _write(self._shown_run, pose.run)
        _write(self._shown_age, age)


def _write(field: GuiTextHandle, content: str) -> None:
    if field.value != content:
        field.value = content  # type: ignore[misc]  # viser declares it read-only, and takes it
