"""Numbers of a model that vary: what a drawn value does to the elements of the model's fields."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from sim.link_length import Fields, LinkStretcher, vector_elements
from sim.variation import Operation, Variation


@dataclass(frozen=True)
class Slot:
    """Elements of one field of the model, and which column of the drawn values each of them takes.

    Attributes:
        field: name of the field, as :meth:`sim.physics.Physics.parameter` knows it.
        elements: (E,) flat numbers in the field of one model.
        columns: (E,) columns.
    """

    field: str
    elements: NDArray[np.int64]
    columns: NDArray[np.int64]


class ModelParameter(ABC):
    """A setting of the randomization, applied to one model.

    Attributes:
        setting: name of the setting.
        variation: completed; how its values are drawn.
        names: one per column of drawn values.
        nominal: (C,) what stands for 'not varied' in the columns.
    """

    def __init__(self, setting: str, variation: Variation, labels: Sequence[str], nominal: NDArray[np.float64]) -> None:
        self.setting = setting
        self.variation = variation
        self.names = tuple(f"{setting}/{label}" if label else setting for label in labels)
        neutral = {"scale": 1.0, "add": 0.0}
        self.nominal = nominal if variation.operation == "set" else np.full(len(labels), neutral[str(variation.operation)])

    @property
    @abstractmethod
    def elements(self) -> dict[str, NDArray[np.int64]]:
        """Flat numbers of the elements that :meth:`apply` may write, by field."""

    @abstractmethod
    def apply(self, fields: Fields, drawn: NDArray[np.float64]) -> None:
        """Change ``fields``, each (n, size), by ``drawn`` (n, C); what parameters before this one did is the ground."""

    def quantize(self, drawn: NDArray[np.float64]) -> NDArray[np.float64]:
        """Return what the physics can resolve of ``drawn`` (n, C)."""
        return drawn


class ElementParameter(ModelParameter):
    """Numbers of the model that are scaled, added to or set."""

    def __init__(self, setting: str, variation: Variation, labels: Sequence[str], slots: Sequence[Slot], nominal: Fields) -> None:
        first = np.zeros(len(labels))
        for slot in reversed(slots):  # backwards, so that the first element of each column stays
            first[slot.columns[::-1]] = nominal[slot.field][slot.elements[::-1]]
        super().__init__(setting, variation, labels, first)
        self.slots = tuple(slot for slot in slots if len(slot.elements))

    @property
    def elements(self) -> dict[str, NDArray[np.int64]]:
        """See the base class."""
        return {slot.field: slot.elements for slot in self.slots}

    def apply(self, fields: Fields, drawn: NDArray[np.float64]) -> None:
        """See the base class."""
        for slot in self.slots:
            values = fields[slot.field]
            values[:, slot.elements] = operate(self.variation.operation, values[:, slot.elements], drawn[:, slot.columns])


class MassParameter(ElementParameter):
    """Masses of bodies; their inertia changes by the same factor."""

    @property
    def elements(self) -> dict[str, NDArray[np.int64]]:
        """See the base class."""
        bodies = self.slots[0].elements
        return {"body_mass": bodies, "body_inertia": vector_elements(bodies)}

    def apply(self, fields: Fields, drawn: NDArray[np.float64]) -> None:
        """See the base class."""
        bodies = self.slots[0].elements
        before = fields["body_mass"][:, bodies]
        super().apply(fields, drawn)
        factor = fields["body_mass"][:, bodies] / before
        fields["body_inertia"].reshape(len(drawn), -1, 3)[:, bodies] *= factor[..., None]


class DelayParameter(ElementParameter):
    """Delays of actuators, in whole physics steps."""

    def __init__(
        self, setting: str, variation: Variation, labels: Sequence[str], slots: Sequence[Slot], nominal: Fields, timestep_s: float
    ) -> None:
        super().__init__(setting, variation, labels, slots, nominal)
        self._timestep_s = timestep_s

    def quantize(self, drawn: NDArray[np.float64]) -> NDArray[np.float64]:
        """Round to whole physics steps."""
        return np.round(drawn / self._timestep_s) * self._timestep_s

    def apply(self, fields: Fields, drawn: NDArray[np.float64]) -> None:
        """See the base class."""
        super().apply(fields, drawn)
        delays, elements = fields["actuator_delay"], self.slots[0].elements
        # MuJoCo takes the newest sample that is at least as old as the delay, and its times are sums of rounded steps: a quarter
        # of a step less makes the choice the same at all times, and also half a step later, where Runge-Kutta looks too
        delays[:, elements] = np.maximum(delays[:, elements] - 0.25 * self._timestep_s, 0.0)


class LinkParameter(ModelParameter):
    """Lengths of links."""

    def __init__(
        self,
        setting: str,
        variation: Variation,
        labels: Sequence[str],
        stretchers: Sequence[LinkStretcher],
    ) -> None:
        self.stretchers = tuple(stretchers)
        self.lengths = np.array([stretcher.length for stretcher in stretchers])
        super().__init__(setting, variation, labels, self.lengths[: len(labels)])

    @property
    def elements(self) -> dict[str, NDArray[np.int64]]:
        """See the base class."""
        merged: dict[str, NDArray[np.int64]] = {}
        for stretcher in self.stretchers:
            for field, elements in stretcher.elements.items():
                merged[field] = np.union1d(merged[field], elements) if field in merged else elements
        return merged

    def apply(self, fields: Fields, drawn: NDArray[np.float64]) -> None:
        """See the base class."""
        for index, stretcher in enumerate(self.stretchers):
            column = index if drawn.shape[1] > 1 else 0
            stretcher.stretch(fields, operate(self.variation.operation, self.lengths[index], drawn[:, column]))


def operate(
    operation: Operation | None, nominal: NDArray[np.float64] | float, value: NDArray[np.float64] | float
) -> NDArray[np.float64]:
    """Return what a drawn value makes of a nominal one."""
    if operation == "scale":
        return np.asarray(nominal * value)
    if operation == "add":
        return np.asarray(nominal + value)
    return np.broadcast_to(np.asarray(value, dtype=np.float64), np.broadcast_shapes(np.shape(nominal), np.shape(value)))
