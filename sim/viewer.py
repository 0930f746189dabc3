"""Live view of environments in the browser: the scene, the rewards, and buttons to pause, step, reset and push."""

from __future__ import annotations

import contextlib
import io
import math
import queue
import socket
import time
from collections import deque
from collections.abc import Callable

import mujoco
import numpy as np
import viser
from numpy.typing import NDArray

from dpg_robot.errors import DpgError
from sim.browser_scene import BrowserScene
from sim.environment import BatchEnvironment
from sim.rollout import Rollout

_FRAME_PERIOD_S = 1 / 30
_PANEL_PERIOD_S = 0.2
_LONGEST_LAG_S = 0.25
"""A view that is further behind real time gives that time up, instead of racing to catch up."""
_RATE_WINDOW_S = 2.0
_PLOT_WINDOW_S = 10.0
_PLOT_POINTS = 400
_PUSH_MPS = 0.5


class ViewError(DpgError, OSError):
    """The page cannot be served."""


class Viewer:
    """Serves the page and runs the environments in real time.

    Buttons and sliders only leave a command, which the thread of :meth:`run` carries out between two steps.

    Args:
        rollout: what to show.
        title: of the page.
        host: address to serve at; ``127.0.0.1`` is reachable from this machine alone.
        port: to serve at; 0 for any free one.
        speed: simulated seconds per second, at the start.

    Attributes:
        url: of the page.

    Raises:
        ViewError: the port is in use, or the address is not this machine's.
    """

    def __init__(self, rollout: Rollout, title: str, host: str, port: int, speed: float) -> None:
        self._rollout = rollout
        self._environment = rollout.environment
        self._speed = speed
        self._paused = False
        self._shown = 0
        self._commands: queue.SimpleQueue[Callable[[], None]] = queue.SimpleQueue()
        self._running = True
        self._random = np.random.default_rng()
        self._pace: deque[tuple[float, float]] = deque()
        points = math.ceil(_PLOT_WINDOW_S / self._environment.control_timestep)
        self._history: deque[NDArray[np.float64]] = deque(maxlen=max(2, points))
        self._reward_range = (0.0, 0.05)
        self._server = serve_page(host, port, title)
        self.url = f"http://{host}:{self._server.get_port()}"
        self._scene = BrowserScene(self._server, self._environment)
        self._add_panel()

    def run(self) -> None:
        """Run until :meth:`stop`, in steps on a fixed grid of time."""
        next_step = next_frame = next_panel = time.monotonic()
        while self._running:
            now = time.monotonic()
            due = next_frame if self._paused else min(next_step, next_frame)
            if self._carry_out(max(0.0, due - now)):
                next_frame = now
            now = time.monotonic()
            if self._paused:
                next_step = now
            elif now >= next_step:
                self._step()
                next_step += self._environment.control_timestep / self._speed
                next_step = max(next_step, now - _LONGEST_LAG_S)
            if now >= next_frame:
                self._scene.update()
                next_frame = max(next_frame + _FRAME_PERIOD_S, now)
            if now >= next_panel:
                self._update_panel()
                next_panel = now + _PANEL_PERIOD_S

    def stop(self) -> None:
        """Make :meth:`run` return; may be called from anywhere, a signal handler too."""
        self._commands.put(self._leave)

    def close(self) -> None:
        """Stop serving."""
        with contextlib.redirect_stdout(io.StringIO()):  # viser reports it on stdout
            self._server.stop()

    def _leave(self) -> None:
        self._running = False

    def _carry_out(self, wait_s: float) -> bool:
        """Wait for commands and carry them out; returns whether there was one."""
        try:
            self._commands.get(timeout=wait_s)() if wait_s > 0 else self._commands.get_nowait()()
        except queue.Empty:
            return False
        return True

    def _step(self) -> None:
        self._rollout.step()
        reward = self._rollout.reward
        self._history.append(np.array([self._rollout.time_s, *reward]))
        now = time.monotonic()
        self._pace.append((now, self._rollout.time_s))
        while now - self._pace[0][0] > _RATE_WINDOW_S:
            self._pace.popleft()

    # what the buttons and sliders do

    def _toggle_pause(self) -> None:
        self._paused = not self._paused
        self._pause_button.label = "Continue" if self._paused else "Pause"
        self._pause_button.icon = viser.Icon.PLAYER_PLAY if self._paused else viser.Icon.PLAYER_PAUSE
        self._pace.clear()

    def _single_step(self) -> None:
        if not self._paused:
            self._toggle_pause()
        self._step()

    def _set_speed(self, speed: float) -> None:
        self._speed = speed
        self._pace.clear()

    def _show(self, index: int) -> None:
        self._shown = index
        if self._scene.follow is not None:
            self._scene.follow = index

    def _set_follow(self, follow: bool) -> None:
        self._scene.follow = self._shown if follow else None

    def _push(self) -> None:
        push(self._environment, self._shown, self._random)

    # the panel

    def _add_panel(self) -> None:
        gui = self._server.gui
        self._pause_button = gui.add_button("Pause", icon=viser.Icon.PLAYER_PAUSE)
        actions = {"Step": self._single_step, "Reset": self._rollout.restart, "Push": self._push}
        buttons = gui.add_button_group("", tuple(actions), hint="Step pauses first; Push hits the heaviest body")
        speed = gui.add_slider("Speed", min=0.05, max=4.0, step=0.05, initial_value=min(4.0, max(0.05, self._speed)))
        self._pause_button.on_click(lambda _: self._commands.put(self._toggle_pause))
        buttons.on_click(lambda event: self._commands.put(actions[event.target.value]))
        speed.on_update(lambda event: self._commands.put(lambda: self._set_speed(event.target.value)))
        if self._environment.num_envs > 1:
            shown = gui.add_slider("Environment", min=0, max=self._environment.num_envs - 1, step=1, initial_value=0)
            shown.on_update(lambda event: self._commands.put(lambda: self._show(int(event.target.value))))
        if self._scene.travels:
            follow = gui.add_checkbox("Follow", initial_value=True)
            follow.on_update(lambda event: self._commands.put(lambda: self._set_follow(event.target.value)))
        self._status = gui.add_markdown("")
        series: list[viser.uplot.Series] = [{"label": "time / s"}, {"label": "reward", "stroke": "#1c7ed6", "width": 2}]
        if self._environment.num_envs > 1:
            series.append({"label": "mean of all", "stroke": "#868e96", "width": 1})
        for line in series:
            line["points"] = {"show": False}
        nothing = np.zeros(2)
        self._plot = gui.add_uplot((nothing,) * len(series), tuple(series), scales=self._scales(), aspect=1.6)
        self._dynamics = gui.add_markdown("")
        self._update_panel()

    def _update_panel(self) -> None:
        self._status.content = self._describe()
        if len(self._history) > 1:
            rows = np.array(self._history)[:: -max(1, len(self._history) // _PLOT_POINTS)][::-1]
            lines = [rows[:, 0], rows[:, 1 + self._shown]]
            if self._environment.num_envs > 1:
                lines.append(rows[:, 1:].mean(axis=1))
            low, high = self._reward_range
            seen = min(low, float(rows[:, 1:].min())), max(high, float(rows[:, 1:].max()))
            if seen != self._reward_range:  # the axis grows and never shrinks, so that heights can be compared
                self._reward_range = seen
                self._plot.scales = self._scales()
            self._plot.data = tuple(np.ascontiguousarray(line) for line in lines)
        names, values = self._environment.dynamics_names, self._environment.dynamics[self._shown]
        rows_of_table = "".join(f"\n| {name} | {value:.3g} |" for name, value in zip(names, values, strict=True))
        table = f"\n\n| drawn dynamics | |\n|---|---|{rows_of_table}" if names else ""
        if self._dynamics.content != table:
            self._dynamics.content = table

    def _scales(self) -> dict[str, viser.uplot.Scale]:
        return {"x": {"time": False}, "y": {"range": self._reward_range}}

    def _describe(self) -> str:
        rollout = self._rollout
        lines = [
            f"**{'paused' if self._paused else self._describe_pace()}**",
            f"step {rollout.steps}, {rollout.time_s:.2f} s",
            f"reward {rollout.reward[self._shown]:.3f}, return so far {rollout.returns[self._shown]:.1f}",
            f"episodes finished: {rollout.finished}",
        ]
        if rollout.last_returns:
            lines[-1] += f", mean return of the last {len(rollout.last_returns)}: {np.mean(rollout.last_returns):.1f}"
        if self._environment.fault_count:
            lines.append(f"**faults of the physics: {self._environment.fault_count}**")
        return "  \n".join(lines)

    def _describe_pace(self) -> str:
        if len(self._pace) < 2 or self._pace[-1][0] - self._pace[0][0] < _RATE_WINDOW_S / 4:
            return "running"
        (start, simulated_start), (end, simulated_end) = self._pace[0], self._pace[-1]
        pace = (simulated_end - simulated_start) / (end - start)
        behind = f" - this machine cannot keep up with {self._speed:g} x" if pace < 0.9 * self._speed else ""
        return f"{pace:.2f} x real time{behind}"


def push(environment: BatchEnvironment, index: int, random: np.random.Generator) -> None:
    """Give the heaviest body of environment ``index`` an impulse in a random level direction, worth 0.5 m/s of the whole mass."""
    batch = environment.physics.batch
    model, data = batch.get_model(index), batch.get_data(index)
    mujoco.mj_forward(model, data)
    body = int(np.argmax(model.body_mass))
    angle = random.uniform(0.0, 2 * np.pi)
    impulse = _PUSH_MPS * model.body_mass.sum() * np.array([np.cos(angle), np.sin(angle), 0.0])
    jacobian = np.zeros((3, model.nv))
    mujoco.mj_jacBodyCom(model, data, jacobian, None, body)
    change = np.zeros((1, model.nv))
    mujoco.mj_solveM(model, data, change, (jacobian.T @ impulse)[None])
    environment.physics.qvel[index] += change[0]


def serve_page(host: str, port: int, title: str) -> viser.ViserServer:
    """Start the server at exactly this port; viser by itself would take the next free one."""
    try:
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind((host, port))
    except OSError as error:
        raise ViewError(
            f"cannot serve at {host}:{port}: {error.strerror or error}; choose another --port (0 for any free one)"
        ) from error
    with contextlib.redirect_stdout(io.StringIO()):  # viser prints a table of addresses
        server = viser.ViserServer(host=host, port=port, label=title, verbose=False)
    if port not in (0, server.get_port()):
        server.stop()
        raise ViewError(f"cannot serve at {host}:{port}: another program took the port just now; choose another --port")
    server.gui.configure_theme(show_logo=False, show_share_button=False)  # sharing would publish the page on the Internet
    server.gui.main_panel.dock_right()
    return server
