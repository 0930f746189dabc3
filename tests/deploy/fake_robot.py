"""A cart without a pole that lives in this process, notes every call and fails on demand."""

import time

import numpy as np

from dpg_robot.deploy.robot import DeviceFlag


class FakeRobot:
    """Implements Robot. ``fail`` maps a method's name to a function that is called with the number of the call and may raise."""

    measurement_names = ("cart_position", "pole_angle", "cart_velocity", "pole_velocity")
    command_names = ("cart_force",)

    def __init__(self, fail=None, change_state=None):
        self.calls = []
        self.written = []
        self.enabled = False
        self.position, self.velocity = 0.0, 0.0
        self._fail = fail or {}
        self._change_state = change_state
        self._counts = {}

    def connect(self):
        self._note("connect")

    def enable(self):
        self._note("enable")
        self.enabled = True

    def read(self, state):
        self._note("read")
        state.values[:] = self.position, np.pi, self.velocity, 0.0
        state.valid[:] = True
        state.time_ns[:] = time.monotonic_ns()
        state.flags = DeviceFlag.ENABLED if self.enabled else DeviceFlag(0)
        if self._change_state is not None:
            self._change_state(state, self._counts["read"], self)

    def write(self, command):
        self._note("write")
        assert np.isfinite(command).all()
        self.written.append(float(command[0]))
        self.velocity += float(command[0]) / 1.2 * 0.005
        self.position += self.velocity * 0.005

    def disable(self):
        self._note("disable")
        self.enabled = False

    def close(self):
        self._note("close")
        self.enabled = False

    def rescue(self):
        self._note("rescue")
        self.enabled = False

    def _note(self, name):
        self.calls.append(name)
        self._counts[name] = self._counts.get(name, 0) + 1
        if name in self._fail:
            self._fail[name](self._counts[name])
