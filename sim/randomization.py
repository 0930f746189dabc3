"""Randomized dynamics: each episode of each environment gets model parameters of its own.

Every episode starts from the remembered nominal values (as in dm_control's ``composer.variation``), so nothing compounds from
one episode to the next. ``docs/randomization.md`` has all settings on one page.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeGuard

import mujoco
import numpy as np
from numpy.typing import NDArray

from dpg_robot.config import setting
from dpg_robot.errors import ConfigError, unknown_name
from sim.link_length import MassRule
from sim.model_parameter import operate
from sim.parameter_builders import build_parameters, delay_samples, nominal_values, select
from sim.physics import Physics
from sim.presets import resolve_preset
from sim.variation import Drawer, Operation, Range, Variation, complete

Varied = Variation | Range | tuple[Variation, ...] | None
_Sign = Literal["positive", "not negative", "any"]

_NEEDS_NO_CONSTANTS = {  # fields that MuJoCo derives nothing from
    "geom_friction",
    "pair_friction",
    "dof_damping",
    "dof_frictionloss",
    "actuator_gainprm",
    "actuator_biasprm",
    "actuator_delay",
    "opt.gravity",
}


@dataclass(frozen=True)
class _Rule:
    """Defaults and limits of one setting; ``value`` limits what 'set' gives, ``factor`` what 'scale' multiplies with."""

    operation: Operation = "scale"
    operations: tuple[Operation, ...] = ("scale", "add", "set")
    shared: bool = False
    value: _Sign = "not negative"
    factor: _Sign = "not negative"


_RULES = {
    "mass": _Rule(value="positive", factor="positive"),
    "center_of_mass": _Rule("add", ("add",)),
    "friction": _Rule(shared=True),
    "damping": _Rule(),
    "armature": _Rule(),
    "joint_friction": _Rule("add"),
    "actuator_gain": _Rule(value="any", factor="positive"),
    "actuator_bias": _Rule(value="any", factor="positive"),
    "servo_gain": _Rule(operations=("scale",), factor="positive"),
    "gravity": _Rule(operations=("scale",), factor="any"),
    "control_delay_s": _Rule("set", ("set", "add"), shared=True),
}
_LINK_RULE = _Rule("set", value="positive", factor="positive")


@dataclass(frozen=True)
class Randomization:
    """What varies from episode to episode; None leaves a quantity alone.

    A range [low, high] is short for a :class:`Variation` with the defaults of its setting: factors are drawn log-uniformly,
    offsets and values uniformly. Several variations of one setting name the objects that each of them varies.
    """

    mass: Varied = setting(None, "mass of bodies, their inertia by the same factor; scale, one value for each body", unit="kg")
    center_of_mass: Varied = setting(None, "offset of bodies' centres of mass; add, each axis of each body", unit="m")
    friction: Varied = setting(None, "sliding friction of geoms and contact pairs; scale, one value for all")
    damping: Varied = setting(None, "viscous damping; scale, one value for each joint", unit="N s/m or N m s/rad")
    armature: Varied = setting(None, "inertia of the motor's rotor; scale, one value for each joint", unit="kg or kg m^2")
    joint_friction: Varied = setting(None, "dry friction; add, one value for each joint", unit="N or N m")
    actuator_gain: Varied = setting(None, "force per control; scale, one value for each actuator")
    actuator_bias: Varied = setting(None, "force without control, as of servos; scale, one value for each actuator")
    servo_gain: Varied = setting(None, "stiffness and damping of position servos together; scale, one value for each actuator")
    gravity: Varied = setting(None, "gravity; scale")
    link_length: dict[str, Variation | Range] = setting(
        dict, "length of the straight part of links, by name or pattern of their bodies; set, one value for each body", unit="m"
    )
    link_mass: MassRule = setting("keep", "what link_length does to masses: keep them, or keep their density")
    control_delay_s: Varied = setting(
        None, "time from a control to its effect, in whole physics steps; set, one value for all actuators", unit="s"
    )

    def __post_init__(self) -> None:
        self.variations()
        self.link_variations()

    def variations(self) -> list[tuple[str, Variation]]:
        """Return the completed variations of the settings that vary, besides the links; the same setting may come repeatedly."""
        found = []
        for name, rule in _RULES.items():
            value = getattr(self, name)
            several = value if _are_variations(value) else () if value is None else (value,)
            if len(several) > 1 and not all(each.names for each in several):
                raise ValueError(f"{name}: each of several variations needs the names of its objects")
            found += [(name, _complete(name, each, rule)) for each in several]
        return found

    def link_variations(self) -> dict[str, Variation]:
        """Return the completed variation of the length of each link, by name or pattern."""
        links = {name: _complete(f"link_length.{name}", value, _LINK_RULE) for name, value in self.link_length.items()}
        for name, variation in links.items():
            if variation.names:
                raise ValueError(f"link_length.{name} must have no names of its own; {name!r} says which bodies are meant")
        return links


def _are_variations(value: Varied) -> TypeGuard[tuple[Variation, ...]]:
    return isinstance(value, tuple) and all(isinstance(each, Variation) for each in value)


def _complete(name: str, value: Variation | Range, rule: _Rule) -> Variation:
    try:
        variation = complete(value, rule.operation, rule.shared)
    except ValueError as error:
        raise ValueError(f"{name}: {error}") from None
    operation = variation.operation
    if operation not in rule.operations:
        raise ValueError(f"{name}: operation must be {' or '.join(rule.operations)}, got {operation}")
    sign = {"scale": rule.factor, "set": rule.value, "add": rule.value}[str(operation)]
    low, high = variation.bounds
    if name == "center_of_mass" or sign == "any":
        return variation
    if low == -math.inf:
        raise ValueError(
            f"{name}: kind 'normal' has no limits, and some values would not do, as this must be {sign}; use truncated_normal "
            "with low and high"
        )
    if operation != "add" and (low <= 0 if sign == "positive" else low < 0):
        what = "factors" if operation == "scale" else "values"
        raise ValueError(f"{name}: {what} must be {sign}, got a range from {low:g} to {high:g}; raise low")
    return variation


class DynamicsRandomizer:
    """Draws model parameters for the environments of a batch.

    Args:
        physics: the simulations; their model was compiled after :func:`prepare_spec`.
        randomization: what to vary, and by how much.
        task_name: for messages.

    Attributes:
        names: what was drawn, one name for each number, such as ``mass/pole_1``.
        values: (N, P) float64, the factors, offsets or values of the present episodes; as if nominal before the first draw.

    Raises:
        ConfigError: names that the model does not have, or values that it cannot take.
    """

    def __init__(self, physics: Physics, randomization: Randomization, task_name: str) -> None:
        try:
            self._parameters = build_parameters(
                physics.model, randomization.variations(), randomization.link_variations(), randomization.link_mass
            )
        except ConfigError as error:
            raise ConfigError(f"randomization of {task_name}: {error}") from error
        self._physics = physics
        self.names = tuple(name for parameter in self._parameters for name in parameter.names)
        self.values = np.tile(np.concatenate([np.zeros(0), *(each.nominal for each in self._parameters)]), (physics.num_envs, 1))
        self._drawers = [Drawer(each.variation, physics.num_envs, len(each.names)) for each in self._parameters]
        elements: dict[str, list[NDArray[np.int64]]] = {}
        for parameter in self._parameters:
            for field, numbers in parameter.elements.items():
                elements.setdefault(field, []).append(numbers)
        self._elements = {field: np.unique(np.concatenate(numbers)) for field, numbers in elements.items()}
        self._nominal = {field: nominal_values(physics.model, field) for field in self._elements}
        self._live = {field: physics.parameter(field).reshape(physics.num_envs, -1) for field in self._elements}
        self._needs_constants = not set(self._elements) <= _NEEDS_NO_CONSTANTS

    def draw(self, ids: NDArray[np.int64], random: np.random.Generator) -> None:
        """Begin an episode in the environments ``ids``: give them new parameters."""
        if not self._parameters:
            return
        self.assign(ids, np.concatenate([drawer.draw(ids, random) for drawer in self._drawers], axis=1))

    def assign(self, ids: NDArray[np.int64], values: NDArray[np.float64]) -> None:
        """Give the environments ``ids`` (n,) the ``values`` (n, P), columns as :attr:`names`, instead of drawn ones."""
        if not self._parameters:
            return
        fields = {field: np.tile(nominal, (len(ids), 1)) for field, nominal in self._nominal.items()}
        end = 0
        for parameter in self._parameters:
            start, end = end, end + len(parameter.names)
            self.values[ids, start:end] = parameter.quantize(values[:, start:end])
            parameter.apply(fields, self.values[ids, start:end])
        rows = ids[:, None]
        for field, elements in self._elements.items():
            # only what is varied: tasks write targets into other elements of the same fields
            self._live[field][rows, elements] = fields[field][:, elements]
        if self._needs_constants:
            self._physics.update_constants(ids)

    def restart(self) -> None:
        """Let what evolves from episode to episode begin anew; the present episodes keep what was drawn for them."""
        for drawer in self._drawers:
            drawer.restart()

    def state_dict(self) -> dict[str, NDArray[Any]]:
        """Return copies of what was drawn, and of what later draws depend on; the physics saves the parameters themselves."""
        state: dict[str, NDArray[Any]] = {"values": self.values.copy()}
        for index, drawer in enumerate(self._drawers):
            state |= {f"{index}.{name}": value for name, value in drawer.state_dict().items()}
        return state

    def load_state_dict(self, state: dict[str, NDArray[Any]]) -> None:
        """Put back what :meth:`state_dict` returned."""
        self.values[:] = state["values"]
        for index, drawer in enumerate(self._drawers):
            prefix = f"{index}."
            drawer.load_state_dict({k.removeprefix(prefix): v for k, v in state.items() if k.startswith(prefix)})


def prepare_spec(spec: mujoco.MjSpec, randomization: Randomization) -> None:
    """Edit a model before it is compiled, so that what ``randomization`` varies can be varied afterwards.

    Delays get buffers that are long enough, and bodies whose centre of mass moves do not get the simpler mass matrix that MuJoCo
    compiles for a centre of mass at the origin.

    Raises:
        ConfigError: names that the model does not have.
    """
    for name, variation in randomization.variations():
        if name == "control_delay_s":
            _lengthen_buffers(spec, variation)
        elif name == "center_of_mass":
            _forbid_simple_inertia(spec, name, variation.names)
    if randomization.link_length:
        _forbid_simple_inertia(spec, "link_length", list(randomization.link_length))


def _lengthen_buffers(spec: mujoco.MjSpec, variation: Variation) -> None:
    actuators = list(spec.actuators)
    names = [each.name or f"actuator_{index}" for index, each in enumerate(actuators)]
    everyone = np.ones(len(names), dtype=np.bool_)
    for index in select("control_delay_s", "actuator", names, variation.names, everyone).tolist():
        highest = operate(variation.operation, actuators[index].delay, variation.bounds[1])
        actuators[index].nsample = max(actuators[index].nsample, int(delay_samples(highest, spec.option.timestep)))
        actuators[index].interp = 0  # a control takes effect unchanged


def _forbid_simple_inertia(spec: mujoco.MjSpec, setting: str, patterns: Sequence[str]) -> None:
    bodies = list(spec.bodies)
    names = [body.name or f"body_{index}" for index, body in enumerate(bodies)]
    for index in select(setting, "body", names, patterns, np.ones(len(names), dtype=np.bool_)).tolist():
        bodies[index].simple = 0


# Domains of the Real World RL suite's combined challenges: one quantity each, and its ranges. There, the walker's number is the
# half-length of the thigh, and the quadruped's the shin's extent along both x and z; here, all are lengths in metres.
_CHALLENGES: dict[str, tuple[str, dict[str, Range]]] = {
    "cartpole": ("pole*", {"easy": (0.9, 1.1), "medium": (0.7, 1.7), "hard": (0.5, 2.3)}),
    "walker": ("*_thigh", {"easy": (0.45, 0.5), "medium": (0.45, 0.8), "hard": (0.45, 1.1)}),
    "quadruped": (
        "knee_*",
        {name: (0.25 * math.sqrt(2), high * math.sqrt(2)) for name, high in (("easy", 0.3), ("medium", 0.8), ("hard", 1.4))},
    ),
}
_HUMANOID_FRICTION: dict[str, Range] = {"easy": (0.6, 0.8), "medium": (0.5, 0.9), "hard": (0.4, 1.0)}

_PRESETS = {
    "none": Randomization(),
    "default": Randomization(mass=(0.7, 1.5), damping=(0.5, 2.0), actuator_gain=(0.75, 1.25)),
    "easy": Randomization(mass=(0.9, 1.1), friction=(0.8, 1.25), damping=(0.8, 1.25), actuator_gain=(0.9, 1.1)),
    "medium": Randomization(mass=(0.8, 1.25), friction=(0.6, 1.6), damping=(0.5, 2.0), actuator_gain=(0.8, 1.25)),
    "wide": Randomization(
        mass=(0.4, 2.5), damping=(0.3, 10.0), joint_friction=(0.0, 0.1), actuator_gain=(0.4, 2.5), control_delay_s=(0.0, 0.05)
    ),
    "hard": Randomization(mass=(0.7, 1.5), friction=(0.4, 2.5), damping=(0.3, 4.0), actuator_gain=(0.65, 1.5)),
}


def randomization_preset(name: str, task_name: str) -> Randomization:
    """Return the preset ``name`` for a task: none, default, easy, medium, hard or wide.

    Easy, medium and hard vary masses, friction, damping and gains in all domains, by ranges around those of MuJoCo Playground's
    quadrupeds; besides, cartpole, walker, quadruped and humanoid get the quantity and the ranges of the Real World RL suite's
    combined challenges (Dulac-Arnold et al., 2020, arXiv 2003.11881).

    Wide is what a robot may be of which nothing is known yet: a prior for identification, not for training.

    Raises:
        UnknownNameError: unknown name, with a 'did you mean'.
    """
    if name not in _PRESETS:
        raise unknown_name("randomization preset", name, _PRESETS)
    preset, domain = _PRESETS[name], task_name.partition("-")[0]
    if name == "default" and domain == "cartpole":  # its joints have next to no damping, those of real ones do
        return dataclasses.replace(preset, damping=(0.3, 10.0))
    if name not in _HUMANOID_FRICTION:
        return preset
    if domain == "humanoid":
        low, high = _HUMANOID_FRICTION[name]
        return dataclasses.replace(preset, friction=Variation("uniform", low, high, operation="set"))
    if domain in _CHALLENGES:
        body, ranges = _CHALLENGES[domain]
        return dataclasses.replace(preset, link_length={body: Variation("uniform", *ranges[name], shared=True)})
    return preset


def resolve_randomization(value: str | Path | Randomization, task_name: str) -> Randomization:
    """Return settings from a preset's name, the path of a YAML file, or the settings themselves.

    Raises:
        UnknownNameError: a text that is neither a preset nor the path of a YAML file.
        ConfigError: a YAML file that cannot be used.
    """
    presets = {name: randomization_preset(name, task_name) for name in _PRESETS}
    return resolve_preset("randomization", value, Randomization, presets)
