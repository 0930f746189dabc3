"""Bringing a robot to where an episode starts, between enabling it and giving it to the policy."""

from __future__ import annotations

from typing import Any, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray


class Homing(Protocol):
    """A controller that ends. Its commands pass the same safety layers as a policy's.

    Attributes:
        done: whether the robot is where an episode may start.
    """

    done: bool

    def start(self) -> None:
        """Begin anew; ``done`` is false until the robot was seen at home."""
        ...

    def command(self, measurement: NDArray[np.float64], time_s: float) -> NDArray[Any]:
        """Return the next command (C,) in SI units, from the measurement (M,) and the time since :meth:`start`."""
        ...


@runtime_checkable
class Parking(Homing, Protocol):
    """A homing that can also bring the robot to where its actuators may be switched off, at the end of a run.

    Attributes:
        parks: whether there is such a place.
    """

    parks: bool

    def start_parking(self) -> None:
        """Begin anew, on the way there; ``command`` and ``done`` serve as in homing."""
        ...


class NoHoming:
    """For robots whose episodes start wherever they are."""

    done = True

    def start(self) -> None:
        """Do nothing."""

    def command(self, measurement: NDArray[np.float64], time_s: float) -> NDArray[Any]:
        """Never called, since homing is done before it starts."""
        raise NotImplementedError("there is nothing to command")
