"""Which objects of a model each setting of the randomization varies, what they are called and where their numbers are."""

from __future__ import annotations

from collections.abc import Sequence
from fnmatch import fnmatchcase
from itertools import chain

import mujoco
import numpy as np
from numpy.typing import NDArray

from dpg_robot.errors import ConfigError, did_you_mean
from sim.link_length import Fields, LinkStretcher, MassRule, find_link, vector_elements
from sim.model_parameter import (
    DelayParameter,
    ElementParameter,
    LinkParameter,
    MassParameter,
    ModelParameter,
    Slot,
    operate,
)
from sim.variation import Variation

Built = tuple[list[str], list[Slot]]  # labels of the drawn values, and where they go

_GAIN_ELEMENTS = {  # elements of gainprm or biasprm that a factor scales; the first one is what an offset adds to
    int(mujoco.mjtGain.mjGAIN_FIXED): (0,),
    int(mujoco.mjtGain.mjGAIN_AFFINE): (0, 1, 2),
    int(mujoco.mjtGain.mjGAIN_MUSCLE): (2, 3),  # force, or the scale that makes it
}
_BIAS_ELEMENTS = {
    int(mujoco.mjtBias.mjBIAS_AFFINE): (0, 1, 2),
    int(mujoco.mjtBias.mjBIAS_MUSCLE): (2, 3),
}


def build_parameters(
    model: mujoco.MjModel, variations: Sequence[tuple[str, Variation]], links: dict[str, Variation], mass_rule: MassRule
) -> list[ModelParameter]:
    """Return what the completed ``variations`` (of settings) and ``links`` (by body name or pattern) vary of a model, in order.

    Settings that apply to nothing in this model are left out, unless they name objects.

    Raises:
        ConfigError: names that match nothing, or values that the model cannot take.
    """
    parameters: list[ModelParameter] = _build_links(model, links, mass_rule)
    lightest = _lightest_masses(model, parameters)
    taken: set[tuple[str, str, int]] = set()
    for setting, variation in variations:
        labels, slots = _BUILDERS[setting](model, setting, variation)
        if not labels:
            continue
        elements = {(setting, slot.field, element) for slot in slots for element in slot.elements.tolist()}
        if taken & elements:
            raise ConfigError(f"{setting}: two of its variations name the same object; {', '.join(labels)} would vary twice")
        taken |= elements
        nominal = {slot.field: nominal_values(model, slot.field) for slot in slots}
        _check_values(setting, variation, labels, slots, nominal | {"body_mass": lightest})
        if setting == "mass":
            parameters.append(MassParameter(setting, variation, labels, slots, nominal))
        elif setting == "control_delay_s":
            parameters.append(DelayParameter(setting, variation, labels, slots, nominal, model.opt.timestep))
        else:
            parameters.append(ElementParameter(setting, variation, labels, slots, nominal))
    return parameters


def nominal_values(model: mujoco.MjModel, field: str) -> NDArray[np.float64]:
    """Return the values (size,) of a field of the model, flat; ``opt.`` as in :meth:`sim.physics.Physics.parameter`."""
    holder = model.opt if field.startswith("opt.") else model
    return np.array(getattr(holder, field.removeprefix("opt.")), dtype=np.float64).ravel()


def select(
    setting: str,
    what: str,
    names: Sequence[str],
    patterns: Sequence[str],
    default: NDArray[np.bool_],
    allowed: NDArray[np.bool_] | None = None,
    otherwise: str = "",
) -> NDArray[np.int64]:
    """Return the numbers of the objects that ``patterns`` name, or of the ``default`` ones without patterns.

    Args:
        setting: for messages.
        what: kind of object, for messages.
        names: of all objects.
        patterns: names or patterns such as ``*_knee``.
        default: mask of the objects that are meant when none is named.
        allowed: mask of the objects that may be named; all when None.
        otherwise: why others may not.

    Raises:
        ConfigError: a pattern matches nothing, or an object that may not be named.
    """
    if not patterns:
        return np.flatnonzero(default)
    chosen: set[int] = set()
    for pattern in patterns:
        matches = [index for index, name in enumerate(names) if fnmatchcase(name, pattern)]
        if not matches:
            listing = ", ".join(names) or "none"
            raise ConfigError(f"{setting}: no {what} matches {pattern!r}; there are: {listing}.{did_you_mean(pattern, names)}")
        chosen.update(matches)
    numbers = np.array(sorted(chosen), dtype=np.int64)
    refused = [names[index] for index in numbers if allowed is not None and not allowed[index]]
    if refused:
        raise ConfigError(f"{setting}: {what} {', '.join(map(repr, refused))} cannot be varied: {otherwise}")
    return numbers


def object_names(model: mujoco.MjModel, kind: mujoco.mjtObj, count: int) -> list[str]:
    """Return the names of all objects of a kind; those without one are called by kind and number, such as ``geom_3``."""
    prefix = mujoco.mju_type2Str(int(kind))
    return [mujoco.mj_id2name(model, int(kind), index) or f"{prefix}_{index}" for index in range(count)]


def _columns(names: list[str], variation: Variation) -> tuple[list[str], NDArray[np.int64]]:
    """Return the labels of the drawn values, and the column of each object."""
    if variation.shared and names:
        return [""], np.zeros(len(names), dtype=np.int64)
    return names, np.arange(len(names))


def _moving_bodies(model: mujoco.MjModel, setting: str, variation: Variation) -> tuple[NDArray[np.int64], list[str]]:
    names = object_names(model, mujoco.mjtObj.mjOBJ_BODY, model.nbody)
    heavy = model.body_mass > 0
    bodies = select(setting, "body", names, variation.names, heavy & (model.body_weldid != 0), heavy, "it has no mass of its own")
    return bodies, [names[body] for body in bodies]


def _refuse_simple(model: mujoco.MjModel, setting: str, bodies: NDArray[np.int64], names: list[str]) -> None:
    simple = [name for body, name in zip(bodies, names, strict=True) if model.body_simple[body]]
    if simple:
        raise ConfigError(
            f"{setting}: the model was compiled for centres of mass at the origin of bodies {', '.join(simple)}; call "
            "prepare_spec on the MjSpec before it is compiled"
        )


def _build_mass(model: mujoco.MjModel, setting: str, variation: Variation) -> Built:
    bodies, names = _moving_bodies(model, setting, variation)
    labels, columns = _columns(names, variation)
    return labels, [Slot("body_mass", bodies, columns)]


def _build_center_of_mass(model: mujoco.MjModel, setting: str, variation: Variation) -> Built:
    bodies, names = _moving_bodies(model, setting, variation)
    _refuse_simple(model, setting, bodies, names)
    owners = [""] if variation.shared and names else [f"{name}/" for name in names]
    labels = [f"{owner}{axis}" for owner in owners for axis in "xyz"]
    columns = np.arange(3 * len(bodies)) % len(labels) if labels else np.zeros(0, dtype=np.int64)
    return labels, [Slot("body_ipos", vector_elements(bodies), columns)]


def _build_friction(model: mujoco.MjModel, setting: str, variation: Variation) -> Built:
    names = object_names(model, mujoco.mjtObj.mjOBJ_GEOM, model.ngeom)
    names += object_names(model, mujoco.mjtObj.mjOBJ_PAIR, model.npair)
    collides = np.concatenate([(model.geom_contype != 0) | (model.geom_conaffinity != 0), np.ones(model.npair, dtype=np.bool_)])
    chosen = select(setting, "geom or contact pair", names, variation.names, collides)
    labels, columns = _columns([names[index] for index in chosen], variation)
    is_geom = chosen < model.ngeom
    pairs = chosen[~is_geom] - model.ngeom
    both_tangents = (5 * pairs[:, None] + np.arange(2)).ravel()
    return labels, [
        Slot("geom_friction", 3 * chosen[is_geom], columns[is_geom]),
        Slot("pair_friction", both_tangents, np.repeat(columns[~is_geom], 2)),
    ]


def _build_joints(field: str, model: mujoco.MjModel, setting: str, variation: Variation) -> Built:
    names = object_names(model, mujoco.mjtObj.mjOBJ_JOINT, model.njnt)
    nonzero = _any_dof(model, getattr(model, field) != 0)
    default, allowed, otherwise = nonzero, nonzero, "its nominal value is 0, which no factor changes; use operation add or set"
    if variation.operation != "scale":
        # a joint of the mechanism, not the free motion of a base: something damps, loads or drives it
        driven = np.isin(np.arange(model.njnt), model.actuator_trnid[model.actuator_trntype == mujoco.mjtTrn.mjTRN_JOINT, 0])
        default = _any_dof(model, model.dof_damping + model.dof_armature + model.dof_frictionloss > 0) | driven
        allowed, otherwise = np.ones(model.njnt, dtype=np.bool_), ""
    joints = select(setting, "joint", names, variation.names, default, allowed, otherwise)
    labels, columns = _columns([names[joint] for joint in joints], variation)
    column = dict(zip(joints.tolist(), columns.tolist(), strict=True))
    dofs = np.flatnonzero(np.isin(model.dof_jntid, joints))
    if variation.operation == "scale":
        dofs = dofs[getattr(model, field)[dofs] != 0]
    return labels, [Slot(field, dofs, np.array([column[int(model.dof_jntid[dof])] for dof in dofs], dtype=np.int64))]


def _any_dof(model: mujoco.MjModel, mask: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Return (njnt,), whether any degree of freedom of each joint is in the mask."""
    return np.isin(np.arange(model.njnt), model.dof_jntid[mask])


def _build_damping(model: mujoco.MjModel, setting: str, variation: Variation) -> Built:
    return _build_joints("dof_damping", model, setting, variation)


def _build_armature(model: mujoco.MjModel, setting: str, variation: Variation) -> Built:
    return _build_joints("dof_armature", model, setting, variation)


def _build_joint_friction(model: mujoco.MjModel, setting: str, variation: Variation) -> Built:
    return _build_joints("dof_frictionloss", model, setting, variation)


def _build_actuators(
    field: str,
    types: NDArray[np.int32],
    known: dict[int, tuple[int, ...]],
    model: mujoco.MjModel,
    setting: str,
    variation: Variation,
) -> Built:
    names = object_names(model, mujoco.mjtObj.mjOBJ_ACTUATOR, model.nu)
    allowed = np.isin(types, list(known))
    chosen = select(
        setting, "actuator", names, variation.names, allowed, allowed, f"its type has no {field} that could be varied"
    )
    labels, columns = _columns([names[actuator] for actuator in chosen], variation)
    width = getattr(model, field).shape[1]
    parts = 3 if variation.operation == "scale" else 1
    elements = [[width * actuator + part for part in known[int(types[actuator])][:parts]] for actuator in chosen]
    return labels, [
        Slot(field, np.array([*chain(*elements)], dtype=np.int64), np.repeat(columns, [len(each) for each in elements]))
    ]


def _build_actuator_gain(model: mujoco.MjModel, setting: str, variation: Variation) -> Built:
    return _build_actuators("actuator_gainprm", model.actuator_gaintype, _GAIN_ELEMENTS, model, setting, variation)


def _build_actuator_bias(model: mujoco.MjModel, setting: str, variation: Variation) -> Built:
    return _build_actuators("actuator_biasprm", model.actuator_biastype, _BIAS_ELEMENTS, model, setting, variation)


def _build_servo_gain(model: mujoco.MjModel, setting: str, variation: Variation) -> Built:
    """Scale the whole force of position servos, gain * (control - position) - damping * velocity."""
    stiffness = model.actuator_gainprm[:, 0]
    servos = (
        (model.actuator_gaintype == mujoco.mjtGain.mjGAIN_FIXED)
        & (model.actuator_biastype == mujoco.mjtBias.mjBIAS_AFFINE)
        & (stiffness != 0)
        & (model.actuator_biasprm[:, 1] == -stiffness)
    )
    names = object_names(model, mujoco.mjtObj.mjOBJ_ACTUATOR, model.nu)
    chosen = select(setting, "actuator", names, variation.names, servos, servos, "it is no position servo")
    labels, columns = _columns([names[actuator] for actuator in chosen], variation)
    gains = model.actuator_gainprm.shape[1] * np.asarray(chosen, dtype=np.int64)
    biases = model.actuator_biasprm.shape[1] * np.asarray(chosen, dtype=np.int64)[:, None] + np.arange(3)
    return labels, [
        Slot("actuator_gainprm", gains, columns),
        Slot("actuator_biasprm", biases.ravel(), np.repeat(columns, 3)),
    ]


def _build_gravity(model: mujoco.MjModel, setting: str, variation: Variation) -> Built:
    if variation.names:
        raise ConfigError(f"{setting}: there is one gravity, it takes no names; got {', '.join(variation.names)}")
    return [""], [Slot("opt.gravity", np.arange(3), np.zeros(3, dtype=np.int64))]


def _build_control_delay(model: mujoco.MjModel, setting: str, variation: Variation) -> Built:
    names = object_names(model, mujoco.mjtObj.mjOBJ_ACTUATOR, model.nu)
    actuators = select(setting, "actuator", names, variation.names, np.ones(model.nu, dtype=np.bool_))
    highest = operate(variation.operation, model.actuator_delay[actuators], variation.bounds[1])
    if np.any(model.actuator_history[actuators, 0] < delay_samples(highest, model.opt.timestep)):
        raise ConfigError(f"{setting}: the model has too short buffers; call prepare_spec on the MjSpec before it is compiled")
    labels, columns = _columns([names[actuator] for actuator in actuators], variation)
    return labels, [Slot("actuator_delay", actuators, columns)]


def delay_samples(delay_s: NDArray[np.float64], timestep_s: float) -> NDArray[np.int64]:
    """Return how many samples an actuator's buffer needs for delays, and one to spare."""
    return np.round(delay_s / timestep_s).astype(np.int64) + 1


_BUILDERS = {
    "mass": _build_mass,
    "center_of_mass": _build_center_of_mass,
    "friction": _build_friction,
    "damping": _build_damping,
    "armature": _build_armature,
    "joint_friction": _build_joint_friction,
    "actuator_gain": _build_actuator_gain,
    "actuator_bias": _build_actuator_bias,
    "servo_gain": _build_servo_gain,
    "gravity": _build_gravity,
    "control_delay_s": _build_control_delay,
}
_UNBOUNDED = ("center_of_mass", "actuator_gain", "actuator_bias", "servo_gain", "gravity")


def _check_values(setting: str, variation: Variation, labels: list[str], slots: list[Slot], nominal: Fields) -> None:
    """Refuse values that would make the model invalid."""
    if setting in _UNBOUNDED:
        return
    low, high = variation.bounds
    for slot in slots:
        values = nominal[slot.field][slot.elements]
        lowest = np.minimum(operate(variation.operation, values, low), operate(variation.operation, values, high))
        wrong = lowest <= 0 if setting == "mass" else lowest < 0
        if wrong.any():
            index = int(np.argmax(wrong))
            raise ConfigError(
                f"{setting}: operation {variation.operation!r} with values from {low:g} to {high:g} can take "
                f"{labels[slot.columns[index]] or 'it'} from {values[index]:g} to {lowest[index]:g}, but it must "
                f"{'stay positive' if setting == 'mass' else 'not become negative'}; narrow the range"
            )


def _build_links(model: mujoco.MjModel, links: dict[str, Variation], mass_rule: MassRule) -> list[ModelParameter]:
    names = object_names(model, mujoco.mjtObj.mjOBJ_BODY, model.nbody)
    owner: dict[int, str] = {}
    parameters: list[ModelParameter] = []
    for pattern, variation in links.items():
        bodies = select("link_length", "body", names, [pattern], np.zeros(model.nbody, dtype=np.bool_))
        for body in bodies.tolist():
            if body in owner:
                raise ConfigError(f"link_length: both {owner[body]!r} and {pattern!r} match body {names[body]!r}")
            owner[body] = pattern
        _refuse_simple(model, "link_length", bodies, [names[body] for body in bodies])
        stretchers = [LinkStretcher(model, find_link(model, body), mass_rule) for body in bodies.tolist()]
        low, shortest = variation.bounds[0], min(stretcher.length for stretcher in stretchers)
        if operate(variation.operation, shortest, low) <= 0:
            raise ConfigError(
                f"link_length: operation {variation.operation!r} with values from {low:g} can take a body that matches "
                f"{pattern!r} from {shortest:g} m to a length that is not positive; narrow the range"
            )
        labels = [pattern] if variation.shared and len(bodies) > 1 else [names[body] for body in bodies]
        parameters.append(LinkParameter("link_length", variation, labels, stretchers))
    return parameters


def _lightest_masses(model: mujoco.MjModel, links: list[ModelParameter]) -> NDArray[np.float64]:
    """Return the lowest masses (nbody,) that links of constant density can have."""
    lightest = np.array(model.body_mass)
    for parameter in links:
        assert isinstance(parameter, LinkParameter)
        low = parameter.variation.bounds[0]
        for length, stretcher in zip(parameter.lengths, parameter.stretchers, strict=True):
            shortest = np.atleast_1d(operate(parameter.variation.operation, float(length), low))
            if "body_mass" in stretcher.elements:
                lightest[stretcher.elements["body_mass"]] = stretcher.mass(shortest)
    return lightest
