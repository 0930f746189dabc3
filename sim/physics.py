"""N simulations of one MuJoCo model, with bound arrays, per-environment parameters and the stepping order of dm_control."""

from __future__ import annotations

import logging
from typing import Any

import mujoco
import mujoco.batch
import numpy as np
from numpy.typing import NDArray

_LOG = logging.getLogger(__name__)
_STATE_FIELDS = (
    "time",
    "qpos",
    "qvel",
    "act",
    "history",
    "qacc_warmstart",
    "ctrl",
    "qfrc_applied",
    "xfrc_applied",
    "eq_active",
    "mocap_pos",
    "mocap_quat",
    "userdata",
    "plugin_state",
)
_FAULTS = (mujoco.mjtWarning.mjWARN_BADQPOS, mujoco.mjtWarning.mjWARN_BADQVEL, mujoco.mjtWarning.mjWARN_BADQACC)
_NO_ACTUATION = int(mujoco.mjtDisableBit.mjDSBL_ACTUATION)


class Physics:
    """N simulations of one model on native threads.

    State (``qpos``, ``qvel``, ...) and everything that :meth:`data` and :meth:`sensor` return are live arrays: bound once, they
    follow every step. As in dm_control, position and velocity quantities are those of the present state after a step, while
    quantities of the acceleration stage (contact forces, accelerometers) belong to the last physics step.

    Args:
        model: compiled nominal model; kept and not changed.
        num_envs: number of simulations N.
        num_threads: native threads; 0 for all processors.
        stage: what :meth:`step` computes at the new state. ``mjSTAGE_VEL`` makes positions, velocities and their sensors current;
            ``mjSTAGE_NONE`` is for tasks that read nothing but the state, and is faster.
    """

    def __init__(
        self, model: mujoco.MjModel, num_envs: int, num_threads: int, stage: mujoco.mjtStage = mujoco.mjtStage.mjSTAGE_VEL
    ) -> None:
        mujoco.set_mju_user_warning(_LOG.debug)  # otherwise MuJoCo writes a file into the working directory; see faults()
        self.model = model
        self.num_envs = num_envs
        self.batch = mujoco.batch.Batch(model, num_envs, num_threads)
        self.qpos: NDArray[np.float64] = self.batch.qpos
        self.qvel: NDArray[np.float64] = self.batch.qvel
        self.act: NDArray[np.float64] = self.batch.act
        self.ctrl: NDArray[np.float64] = self.batch.ctrl
        self.time: NDArray[np.float64] = self.batch.time
        self._stage = int(stage)
        self._parameters: dict[str, NDArray[Any]] = {}
        # actuators that push without a control would disturb the accelerations of a first state, so dm_control switches them off
        self._pushes_at_rest = bool(model.na or np.any(model.actuator_biastype != mujoco.mjtBias.mjBIAS_NONE))
        self._flags = self.batch.expand("opt.disableflags") if self._pushes_at_rest else None
        # MuJoCo's own fields of the state, without those that this model does not have
        self._state = {name: self.batch.bind(name) for name in _STATE_FIELDS if self.batch.bind(name).size}
        self._faults = [int(fault) for fault in _FAULTS]

    def data(self, field: str) -> NDArray[Any]:
        """Return a live array (N, ...) of an MjData field such as ``xpos``; read-only unless it is part of the state."""
        return np.asarray(self.batch.bind(field))

    def sensor(self, name: str) -> NDArray[np.float64]:
        """Return a live array (N, dim) of the readings of the sensor ``name``."""
        sensor = self.model.sensor(name)
        start = int(sensor.adr[0])
        return self.data("sensordata")[:, start : start + int(sensor.dim[0])]

    def body(self, name: str) -> int:
        """Return the number of the body ``name``."""
        return int(self.model.body(name).id)

    def parameter(self, field: str) -> NDArray[Any]:
        """Return a live, writable array (N, ...) of an MjModel field, which then may differ between environments.

        Call :meth:`update_constants` after writing a field that MuJoCo derives constants from (masses, inertias, lengths, ...).
        """
        if field not in self._parameters:
            self._parameters[field] = self.batch.expand(field)
        return self._parameters[field]

    def current(self, field: str) -> NDArray[Any]:
        """Return the values (N, ...) of an MjModel field, per environment where they differ; read-only.

        Other than :meth:`parameter`, it does not make the field differ, which would cost time at each step.
        """
        if field in self._parameters:
            values = self._parameters[field].view()
            values.flags.writeable = False
            return values
        nominal = np.asarray(getattr(self.model.opt, field[4:]) if field.startswith("opt.") else getattr(self.model, field))
        return np.broadcast_to(nominal, (self.num_envs, *nominal.shape))

    def update_constants(self, ids: NDArray[np.int64]) -> None:
        """Bring the derived model constants of environments ``ids`` in line with their parameters."""
        self.batch.set_const(ids)

    def reset(self, ids: NDArray[np.int64]) -> None:
        """Put environments ``ids`` into the model's default state; nothing is computed there yet, see :meth:`forward`."""
        self.batch.reset(ids, stage=mujoco.mjtStage.mjSTAGE_NONE)

    def forward(self, ids: NDArray[np.int64]) -> None:
        """Compute all derived quantities of the present states of environments ``ids``, with the actuators off."""
        if self._flags is not None:
            self._flags[ids] |= _NO_ACTUATION
        self.batch.forward(ids)
        if self._flags is not None:
            self._flags[ids] &= ~_NO_ACTUATION

    def step(self, substeps: int, ids: NDArray[np.int64] | None = None) -> None:
        """Advance all environments, or ``ids``, by ``substeps`` physics steps."""
        self.batch.step(ids, substeps, self._stage)

    def faults(self) -> NDArray[np.bool_]:
        """Return (N,), where the physics diverged since the last call. MuJoCo has put those into their default states already."""
        faulty: NDArray[np.bool_] = self.batch.warning[:, self._faults, 1].any(axis=1)
        if faulty.any():
            self.batch.warning[faulty] = 0
        return faulty

    def state_dict(self) -> dict[str, NDArray[Any]]:
        """Return copies of the state and of all per-environment parameters."""
        state = {f"physics.{name}": values.copy() for name, values in self._state.items()}
        return state | {f"model.{name}": values.copy() for name, values in self._parameters.items()}

    def load_state_dict(self, state: dict[str, NDArray[Any]]) -> None:
        """Put back what :meth:`state_dict` returned; further steps are then the same, bit for bit."""
        everyone = np.arange(self.num_envs)
        for name, values in self._parameters.items():
            values[:] = state[f"model.{name}"]
        if self._parameters:
            self.update_constants(everyone)
        for name, live in self._state.items():
            live[:] = state[f"physics.{name}"]
        self.forward(everyone)
        self.batch.warning[:] = 0
        self.batch.bind("qacc_warmstart")[:] = state["physics.qacc_warmstart"]
