"""A virtual cart-pole that stands in for a real one: a disturbed plant with hidden parameters, encoders and a real-time clock.

It fits behind an emulated microcontroller. Its dynamics differ on purpose from those that policies are trained on, so that
running on it says something about running on hardware.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from dataclasses import dataclass

import mujoco
import numpy as np
from numpy.typing import NDArray

from dpg_robot.contract import CommandChannel, MeasurementChannel
from sim.real_time_plant import TIMESTEP_S, RealTimePlant
from sim.suite_model import load_suite_model

FORCE_LIMIT_N = 10.0

ENCODER_COUNTS_PER_TURN = 4096
POSITION_QUANTUM_M = 1e-4

_VELOCITY_FILTER_S = 0.01
_NOISE_HOLD_STEPS = round(0.02 / TIMESTEP_S)


@dataclass(frozen=True)
class CartpoleParameters:
    """What makes one cart-pole differ from another.

    Attributes:
        cart_mass: kg.
        pole_mass: kg; the pole's inertia grows with it.
        actuator_gain: force on the cart per commanded force, 1 for a perfect motor.
        slider_damping: N s/m.
        hinge_damping: N m s/rad.
        slider_friction: dry friction of the slider, N.
        actuator_noise: standard deviation of the force noise while the motor is on, N; a new value every 20 ms.
        push_interval_s: mean time between pushes on the cart, s; pushes come at 0.5 to 1.5 times this.
        push_force: lowest and highest size of a push, N; the direction is random.
        push_duration_s: how long a push lasts, s.
    """

    cart_mass: float
    pole_mass: float
    actuator_gain: float
    slider_damping: float
    hinge_damping: float
    slider_friction: float
    actuator_noise: float
    push_interval_s: float
    push_force: tuple[float, float]
    push_duration_s: float

    @classmethod
    def nominal(cls) -> CartpoleParameters:
        """Return the parameters of dm_control's model, undisturbed."""
        model = load_suite_model("cartpole")
        return cls(
            cart_mass=float(model.body("cart").mass[0]),
            pole_mass=float(model.body("pole_1").mass[0]),
            actuator_gain=1.0,
            slider_damping=float(model.joint("slider").damping[0]),
            hinge_damping=float(model.joint("hinge_1").damping[0]),
            slider_friction=float(model.joint("slider").frictionloss[0]),
            actuator_noise=0.0,
            push_interval_s=2.0,
            push_force=(0.0, 0.0),
            push_duration_s=0.05,
        )

    @classmethod
    def draw(cls, seed: int) -> CartpoleParameters:
        """Draw one robot: heavier, weaker and with more friction than the nominal one, and disturbed."""
        uniform = np.random.default_rng(seed).uniform
        nominal = cls.nominal()
        return dataclasses.replace(
            nominal,
            cart_mass=nominal.cart_mass * uniform(1.25, 1.40),
            pole_mass=nominal.pole_mass * uniform(1.20, 1.40),
            actuator_gain=uniform(0.80, 0.90),
            slider_damping=nominal.slider_damping * uniform(3.0, 8.0),
            hinge_damping=nominal.hinge_damping * uniform(3.0, 8.0),
            slider_friction=uniform(0.02, 0.06),
            actuator_noise=0.03 * FORCE_LIMIT_N,
            push_force=(0.1, 0.5),
        )


class VirtualCartpole(RealTimePlant):
    """Cart-pole hanging at rest near the middle of its rail, in real time. Fits ``Plant`` of the emulated microcontroller.

    The pole angle is 0 upright and pi hanging, and counts turns. The encoders are read at every physics step; velocities are
    low-pass filtered differences of the encoders, as firmware computes them. Given the same seed, parameters and commands at the
    same steps, two runs are equal, whatever the real time did.

    Attributes:
        parameters: the robot.
    """

    name = "cartpole-mcu"
    measurements: tuple[MeasurementChannel, ...] = (
        MeasurementChannel("cart_position", "m"),
        MeasurementChannel("pole_angle", "rad"),
        MeasurementChannel("cart_velocity", "m/s"),
        MeasurementChannel("pole_velocity", "rad/s"),
    )
    commands: tuple[CommandChannel, ...] = (CommandChannel("cart_force", "N", -FORCE_LIMIT_N, FORCE_LIMIT_N),)
    state_names: tuple[str, ...] = ("cart_position", "pole_angle", "cart_velocity", "pole_velocity")

    def __init__(self, seed: int, parameters: CartpoleParameters | None = None) -> None:
        """Set up the plant.

        Args:
            seed: seed of the start, the noise and the pushes.
            parameters: the robot; None draws it from the seed.
        """
        super().__init__()
        self.parameters = parameters or CartpoleParameters.draw(seed)
        start, noise, pushes = (np.random.default_rng([seed, stream]) for stream in (1, 2, 3))
        self._noise_rng, self._push_rng = noise, pushes
        self._model = _build_model(self.parameters)
        self._data = mujoco.MjData(self._model)
        self._data.qpos[:] = start.uniform(-0.1, 0.1), math.pi
        mujoco.mj_forward(self._model, self._data)
        self._steps = 0
        self._force: float | None = None
        self._noise = 0.0
        self._push = 0.0
        self._push_ends = 0
        self._next_push = self._draw_push_start()
        self._encoders = self._read_encoders()
        self._velocities = np.zeros(2)

    def set_command(self, values: Sequence[float]) -> None:
        """Let the motor push the cart with ``values[0]`` newtons from the next physics step on."""
        self._force = float(values[0])

    def release(self) -> None:
        """Switch the motor off: no force and no force noise."""
        self._force = None

    def measure(self) -> NDArray[np.float64]:
        """Return cart position (m), pole angle (rad), cart velocity (m/s), pole velocity (rad/s) as the sensors give them."""
        return np.concatenate([self._encoders, self._velocities])

    def state(self) -> NDArray[np.float64]:
        """Return the same four numbers as they truly are."""
        return np.concatenate([self._data.qpos, self._data.qvel])

    def energy(self) -> float:
        """Return the true potential plus kinetic energy, J."""
        mujoco.mj_energyPos(self._model, self._data)
        mujoco.mj_energyVel(self._model, self._data)
        return float(self._data.energy.sum())

    def set_state(self, qpos: Sequence[float], qvel: Sequence[float]) -> None:
        """Put the plant into a state, (2,) positions and (2,) velocities; the encoders follow as after a restart there."""
        self._data.qpos[:], self._data.qvel[:] = qpos, qvel
        mujoco.mj_forward(self._model, self._data)
        self._encoders = self._read_encoders()
        self._velocities = self._data.qvel.copy()

    def _step(self) -> None:
        self._draw_disturbances()
        force = 0.0 if self._force is None else self.parameters.actuator_gain * self._force + self._noise
        self._data.ctrl[0] = force / FORCE_LIMIT_N  # the model's motor gives 10 N per unit
        self._data.qfrc_applied[0] = self._push
        mujoco.mj_step(self._model, self._data)
        self._steps += 1
        encoders = self._read_encoders()
        difference = (encoders - self._encoders) / TIMESTEP_S
        self._velocities += TIMESTEP_S / (_VELOCITY_FILTER_S + TIMESTEP_S) * (difference - self._velocities)
        self._encoders = encoders

    def _draw_disturbances(self) -> None:
        if self._steps % _NOISE_HOLD_STEPS == 0:
            self._noise = self.parameters.actuator_noise * self._noise_rng.standard_normal()
        if self._steps == self._next_push:
            self._push = self._push_rng.uniform(*self.parameters.push_force) * self._push_rng.choice((-1.0, 1.0))
            self._push_ends = self._steps + round(self.parameters.push_duration_s / TIMESTEP_S)
            self._next_push = self._draw_push_start()
        elif self._steps == self._push_ends:
            self._push = 0.0

    def _draw_push_start(self) -> int:
        wait_s = self.parameters.push_interval_s * self._push_rng.uniform(0.5, 1.5)
        return self._steps + round(wait_s / TIMESTEP_S)

    def _read_encoders(self) -> NDArray[np.float64]:
        """Return cart position (m) and pole angle (rad) in whole encoder counts."""
        quanta = np.array([POSITION_QUANTUM_M, 2 * math.pi / ENCODER_COUNTS_PER_TURN])
        read: NDArray[np.float64] = np.round(self._data.qpos / quanta) * quanta
        return read


def _build_model(parameters: CartpoleParameters) -> mujoco.MjModel:
    model = load_suite_model("cartpole")
    model.opt.timestep = TIMESTEP_S
    for name, mass in (("cart", parameters.cart_mass), ("pole_1", parameters.pole_mass)):
        body = model.body(name)
        body.inertia[:] *= mass / body.mass[0]
        body.mass[:] = mass
    model.joint("slider").damping[:] = parameters.slider_damping
    model.joint("hinge_1").damping[:] = parameters.hinge_damping
    model.joint("slider").frictionloss[:] = parameters.slider_friction
    mujoco.mj_setConst(model, mujoco.MjData(model))  # derived quantities follow the new masses
    return model
