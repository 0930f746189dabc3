"""Feetech STS servos as the family of a :class:`~hw_drivers.servo_robot.ServoRobot`.

They have no watchdog: what stops them when nobody talks to them any more has to live in the host. SCS servos have no sync read,
without which a bus of them cannot be read in time; they are refused.
"""

from __future__ import annotations

from collections.abc import Sequence

from dpg_robot.errors import ConfigError
from hw_drivers.feetech import models
from hw_drivers.feetech.language import FeetechLanguage
from hw_drivers.feetech.packets import ErrorFlag
from hw_drivers.servo_bus import BusLanguage
from hw_drivers.servo_family import Block, ServoModel, ServoReading, ServoRegister, ServoSettings

_FIRST, _LAST, _SPARE = "present_position", "present_current", 12
_ERROR_WORDS = {
    ErrorFlag.VOLTAGE: "voltage out of range",
    ErrorFlag.ANGLE: "angle sensor",
    ErrorFlag.OVERHEATING: "overheating",
    ErrorFlag.OVERCURRENT: "overcurrent",
    ErrorFlag.OVERLOAD: "overload",
}


class FeetechFamily:
    """STS series in position mode."""

    name = "feetech"
    max_id = 253
    torque_limit = "torque_limit"
    torque_limit_full = 1000
    has_watchdog = False

    def language(self) -> BusLanguage:
        """Return a new language for a bus."""
        return FeetechLanguage()

    def models(self) -> Sequence[ServoModel]:
        """Return all models."""
        return [model for model in models.MODELS if model.supports_sync_read]

    def find_model(self, name: str) -> ServoModel:
        """Return a model by its name. Raises UnknownNameError, or ConfigError for models without sync read."""
        return _with_sync_read(models.find_model(name))

    def find_model_number(self, number: int) -> ServoModel:
        """Return a model by its number. Raises UnknownNameError, or ConfigError for models without sync read."""
        return _with_sync_read(models.find_model_number(number))

    def block(self, model: ServoModel) -> Block:
        """Return the present values, from position to current."""
        first, last = model.register(_FIRST), model.register(_LAST)
        return Block(first.address, last.address + last.size - first.address, _SPARE)

    def slow_block(self, model: ServoModel) -> Block:
        """Return the register that tells whether the motor has power."""
        register = model.register("torque_enable")
        return Block(register.address, register.size, _SPARE)

    def decode(self, model: ServoModel, data: bytes) -> ServoReading:
        """Return what the bytes of :meth:`block` mean."""
        begin = model.registers[_FIRST].address

        def value(name: str) -> float:
            register = model.registers[name]
            at = register.address - begin
            return register.to_si(register.decode(data[at : at + register.size]))

        return ServoReading(
            position=value("present_position"),
            velocity=value("present_velocity"),
            current=value("present_current"),
            load=value("present_load"),
            voltage=value("present_input_voltage"),
            temperature=value("present_temperature"),
        )

    def decode_torque(self, model: ServoModel, data: bytes) -> bool:
        """Return from the bytes of :meth:`slow_block` whether the motor has power."""
        return data[0] == 1

    def lasting_settings(self, model: ServoModel, settings: ServoSettings) -> dict[str, int]:
        """Return position mode, the limits of the goal, and the gains."""
        low, high = model.register("min_position_limit"), model.register("max_position_limit")
        gains = {"p_coefficient": settings.p_gain, "d_coefficient": settings.d_gain, "i_coefficient": settings.i_gain}
        limits = {
            "operating_mode": 0,
            "min_position_limit": _clipped(low, settings.low),
            "max_position_limit": _clipped(high, settings.high),
        }
        return limits | {name: gain for name, gain in gains.items() if gain is not None}

    def settings(self, model: ServoModel, settings: ServoSettings) -> dict[str, int]:
        """Return the profile. A velocity of 0 means no limit, so at least 1 is written."""
        acceleration = model.register("acceleration")
        raw = _clipped(acceleration, settings.max_acceleration) if settings.max_acceleration else 0
        velocity = max(1, _clipped(model.register("goal_velocity"), settings.max_velocity))
        return {"acceleration": max(raw, int(settings.max_acceleration > 0)), "goal_velocity": velocity}

    def preparation(self, model: ServoModel) -> list[tuple[int, bytes]]:
        """Return nothing: the block is there as it is."""
        return []

    def unlock(self, *, locked: bool) -> tuple[str, int]:
        """Return the lock of what outlasts the power."""
        return "lock", int(locked)

    def watchdog(self, seconds: float) -> None:
        """Return None: there is none."""

    def motion(self, model: ServoModel, position: int, velocity: float) -> tuple[int, bytes]:
        """Return goal position, time (unused) and velocity, which lie side by side; a velocity of 0 would mean no limit."""
        goal, speed = model.registers["goal_position"], model.registers["goal_velocity"]
        return goal.address, goal.encode(position) + bytes(2) + speed.encode(max(1, _clipped(speed, velocity)))

    def centering(self, model: ServoModel, position: int, offset: int) -> int:
        """Return the homing offset with which a raw position becomes the middle."""
        steps = 2 * (middle := model.register("present_position").to_raw(0.0))
        wanted = (offset + position - middle + middle) % steps - middle
        return max(wanted, model.register("homing_offset").low)

    def error_names(self, error: int) -> list[str]:
        """Return in words what an error byte says."""
        return [word for flag, word in _ERROR_WORDS.items() if error & flag] or ([f"error {error:#04x}"] if error else [])


def _clipped(register: ServoRegister, value: float) -> int:
    """Return the raw number nearest to a value, within the register's range."""
    low, high = register.to_si(register.low), register.to_si(register.high)
    return register.to_raw(min(max(value, low), high))


def _with_sync_read(model: models.ServoModel) -> ServoModel:
    if not model.supports_sync_read:
        raise ConfigError(f"{model.name} has no sync read, which a robot's bus needs; use STS servos")
    return model
