"""Dynamixel X servos as the family of a :class:`~hw_drivers.servo_robot.ServoRobot`.

Present values lie far apart in the control table, so indirect addresses gather them: one short block tells everything.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from typing import cast

from hw_drivers.dynamixel import models
from hw_drivers.dynamixel.language import DynamixelLanguage
from hw_drivers.dynamixel.models import DriveMode, IndirectBlock, OperatingMode
from hw_drivers.servo_bus import BusLanguage
from hw_drivers.servo_family import Block, ServoModel, ServoReading, ServoSettings

_BLOCK_BYTES = (
    ("present_position", 4),
    ("present_velocity", 2),  # its low half: no servo reaches 2^15 units
    ("present_current", 2),  # load where there is no current
    ("torque_enable", 1),
    ("bus_watchdog", 1),
    ("present_input_voltage", 1),  # its low half: up to 25.5 V
    ("present_temperature", 1),
)
_BLOCK = struct.Struct("<ihhBbBB")
_SHORTEST_INDIRECT = 20
_WATCHDOG_UNIT_S, _WATCHDOG_LONGEST = 0.02, 127
_ERROR_BYTE_ALERT = 0x80
_ERRORS = ("", "result", "instruction", "CRC", "data range", "data length", "data limit", "access")


class DynamixelFamily:
    """X series with protocol 2.0, in position mode."""

    name = "dynamixel"
    max_id = 252
    torque_limit = "goal_pwm"
    torque_limit_full = 885
    has_watchdog = True

    def language(self) -> BusLanguage:
        """Return a new language for a bus."""
        return DynamixelLanguage()

    def models(self) -> Sequence[ServoModel]:
        """Return all models."""
        return models.MODELS

    def find_model(self, name: str) -> ServoModel:
        """Return a model by its name. Raises UnknownNameError."""
        return models.find_model(name)

    def find_model_number(self, number: int) -> ServoModel:
        """Return a model by its number. Raises UnknownNameError."""
        return models.find_model_number(number)

    def block(self, model: ServoModel) -> Block:
        """Return the indirect data that :meth:`preparation` fills."""
        return Block(_indirect(model).data, _BLOCK.size, _SHORTEST_INDIRECT - _BLOCK.size)

    def slow_block(self, model: ServoModel) -> None:
        """Return None: one block has it all."""

    def decode(self, model: ServoModel, data: bytes) -> ServoReading:
        """Return what the bytes of :meth:`block` mean."""
        position, velocity, current, torque, watchdog, voltage, temperature = _BLOCK.unpack(data)
        has_current = "present_current" in model.registers
        return ServoReading(
            position=model.registers["present_position"].to_si(position),
            velocity=model.registers["present_velocity"].to_si(velocity),
            current=model.registers["present_current"].to_si(current) if has_current else None,
            load=None if has_current else model.registers["present_load"].to_si(current),
            voltage=model.registers["present_input_voltage"].to_si(voltage),
            temperature=model.registers["present_temperature"].to_si(temperature),
            torque_on=bool(torque),
            watchdog_tripped=watchdog < 0,
        )

    def decode_torque(self, model: ServoModel, data: bytes) -> bool:
        """Never called, as there is no slow block."""
        raise NotImplementedError("a Dynamixel's block tells whether its torque is on")

    def lasting_settings(self, model: ServoModel, settings: ServoSettings) -> dict[str, int]:
        """Return position mode, profiles in velocities, and the limits of the goal."""
        low, high = model.register("min_position_limit"), model.register("max_position_limit")
        return {
            "drive_mode": int(DriveMode(0)),
            "operating_mode": int(OperatingMode.POSITION),
            "min_position_limit": min(max(low.to_raw(settings.low), low.low), low.high),
            "max_position_limit": min(max(high.to_raw(settings.high), high.low), high.high),
        }

    def settings(self, model: ServoModel, settings: ServoSettings) -> dict[str, int]:
        """Return gains and profile. A profile's 0 means no limit, so at least 1 is written where there is one."""
        gains = {"position_p_gain": settings.p_gain, "position_i_gain": settings.i_gain, "position_d_gain": settings.d_gain}
        acceleration = settings.max_acceleration
        raw_acceleration = max(1, model.register("profile_acceleration").to_raw(acceleration)) if acceleration else 0
        profile = {
            "profile_acceleration": raw_acceleration,
            "profile_velocity": max(1, model.register("profile_velocity").to_raw(settings.max_velocity)),
        }
        return {name: gain for name, gain in gains.items() if gain is not None} | profile

    def preparation(self, model: ServoModel) -> list[tuple[int, bytes]]:
        """Return what makes the indirect data stand for the present values; what is left over stands for the last of them."""
        addresses: list[int] = []
        for name, count in _BLOCK_BYTES:
            other = "present_load" if name == "present_current" and name not in model.registers else name
            first = model.register(other).address
            addresses += range(first, first + count)
        addresses += [addresses[-1]] * (_SHORTEST_INDIRECT - len(addresses))
        return [(_indirect(model).addresses, struct.pack(f"<{len(addresses)}H", *addresses))]

    def unlock(self, *, locked: bool) -> None:
        """Return None: the torque locks what outlasts the power."""

    def watchdog(self, seconds: float) -> tuple[str, int]:
        """Return the bus watchdog in its units of 20 ms, rounded up."""
        units = -(-round(seconds * 1e3) // round(_WATCHDOG_UNIT_S * 1e3))
        return "bus_watchdog", min(units, _WATCHDOG_LONGEST)

    def motion(self, model: ServoModel, position: int, velocity: float) -> tuple[int, bytes]:
        """Return profile velocity and goal position, which lie side by side. A velocity of 0 means no limit: at least 1."""
        profile, goal = model.registers["profile_velocity"], model.registers["goal_position"]
        raw = min(max(1, profile.to_raw(velocity)), profile.high)
        return profile.address, profile.encode(raw) + goal.encode(position)

    def centering(self, model: ServoModel, position: int, offset: int) -> None:
        """Return None: in position mode a homing offset moves the middle by a quarter of a turn only."""

    def error_names(self, error: int) -> list[str]:
        """Return in words what an error byte says."""
        names = ["hardware error (overload, heat, voltage or encoder)"] if error & _ERROR_BYTE_ALERT else []
        code = error & ~_ERROR_BYTE_ALERT
        if code:
            names.append(f"{_ERRORS[code] if code < len(_ERRORS) else code} error")
        return names


def _indirect(model: ServoModel) -> IndirectBlock:
    return cast(models.ServoModel, model).indirect[0]
