"""What a servo robot is: its servos, their limits and how it stops; the part ``device`` of the robot's YAML file."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Literal

from dpg_robot.config import setting
from dpg_robot.errors import ConfigError, ContractError, UnknownNameError
from dpg_robot.kinematics import Link
from hw_drivers.servo_family import ServoFamily, ServoModel, ServoSettings, find_family


@dataclass(frozen=True)
class ServoConfig:
    """One servo and the joint that it moves. Angles are the joint's, except ``zero``."""

    id: int = field(metadata={"help": "ID of the servo"})
    model: str = field(metadata={"help": "model of the servo, for example STS3215 or XL330-M288"})
    low: float = field(metadata={"help": "least angle that the joint may go to", "unit": "rad"})
    high: float = field(metadata={"help": "largest angle that the joint may go to", "unit": "rad"})
    gear: float = setting(1.0, "turns of the servo for a turn of the joint; negative where they turn against each other")
    zero: float = setting(0.0, "angle of the servo where the joint is at 0", unit="rad")
    max_velocity: float = setting(2.0, "largest velocity on the way to a goal; the servo keeps to it", unit="rad/s")
    max_acceleration: float = setting(0.0, "largest acceleration; the servo keeps to it; 0: unlimited", unit="rad/s^2")
    max_torque: float = setting(1.0, "largest torque", unit="share of the servo's own")
    max_temperature: float = setting(65.0, "above it the robot is stopped", unit="deg C")
    min_voltage: float = setting(0.0, "supply below which the robot is stopped; 0: three quarters of the model's", unit="V")
    max_lead: float = setting(0.35, "largest distance of a moving goal from the joint", unit="rad")
    stuck_s: float = setting(
        1.0, "time without movement, with the goal that far away, after which the robot is stopped", unit="s"
    )
    p_gain: int | None = setting(None, "gain of the servo's own position control, raw; null leaves it as it is")
    i_gain: int | None = setting(None, "likewise")
    d_gain: int | None = setting(None, "likewise")
    home: float = setting(0.0, "where an episode begins", unit="rad")
    park: float | None = setting(None, "where the joint goes before the torque is taken away; null: it stays", unit="rad")
    hold: float | None = setting(None, "angle to be held by a joint that no policy commands", unit="rad")

    def __post_init__(self) -> None:
        _require_finite(
            self, "low", "high", "gear", "zero", "max_velocity", "max_acceleration", "max_torque", "max_lead", "stuck_s"
        )
        if not (self.max_lead > 0 and self.stuck_s > 0):
            raise ConfigError(f"max_lead and stuck_s must be positive, got {self.max_lead} rad and {self.stuck_s} s")
        if not self.low < self.high:
            raise ConfigError(f"limits must be ordered low < high, got {self.low} and {self.high} rad")
        if self.gear == 0:
            raise ConfigError("gear must not be 0")
        if not self.max_velocity > 0 or self.max_acceleration < 0:
            raise ConfigError(
                f"max_velocity must be positive and max_acceleration at least 0, got {self.max_velocity} rad/s and "
                f"{self.max_acceleration} rad/s^2"
            )
        if not 0 < self.max_torque <= 1:
            raise ConfigError(f"max_torque is a share of the servo's own, above 0 and at most 1; got {self.max_torque}")
        if not 0 < self.max_temperature <= 100:
            raise ConfigError(f"max_temperature must be above 0 and at most 100 deg C, got {self.max_temperature}")
        for name in ("home", "park", "hold"):
            angle = getattr(self, name)
            if angle is not None and not self.low <= angle <= self.high:
                raise ConfigError(f"{name} must be within low and high ({self.low} to {self.high} rad), got {angle}")

    def to_servo(self, angle: float) -> float:
        """Return the servo's angle at an angle of the joint, rad."""
        return angle * self.gear + self.zero

    def to_joint(self, angle: float) -> float:
        """Return the joint's angle at an angle of the servo, rad."""
        return (angle - self.zero) / self.gear

    def settings(self) -> ServoSettings:
        """Return how the servo shall behave, in its own terms."""
        low, high = sorted((self.to_servo(self.low), self.to_servo(self.high)))
        return ServoSettings(
            low=low,
            high=high,
            max_velocity=self.max_velocity * abs(self.gear),
            max_acceleration=self.max_acceleration * abs(self.gear),
            p_gain=self.p_gain,
            i_gain=self.i_gain,
            d_gain=self.d_gain,
        )


@dataclass(frozen=True)
class GoalConfig:
    """Measurement channels that no sensor gives but the task: where to reach, for example. Each episode has the next values."""

    channels: tuple[str, ...] = setting((), "names of the measurement channels")
    from_tip: bool = setting(False, "whether the channels tell the way from the tip to the values, not the values themselves")
    values: tuple[tuple[float, ...], ...] = setting((), "a list of values for each episode; after the last comes the first")

    def __post_init__(self) -> None:
        if self.channels and not self.values:
            raise ConfigError(f"there must be values for {', '.join(self.channels)}, got none")
        for values in self.values:
            if len(values) != len(self.channels) or not all(math.isfinite(value) for value in values):
                raise ConfigError(f"expected {len(self.channels)} finite values ({', '.join(self.channels)}), got {list(values)}")


@dataclass(frozen=True)
class TipConfig:
    """Measurement channels with the place of an arm's tip, computed from its joints' angles."""

    channels: tuple[str, ...] = setting((), "names of the measurement channels for x, y and z; none: there is no tip")
    joints: dict[str, Link] = setting(dict, "the joints from the base to the tip, in order, and where they are")
    offset: tuple[float, float, float] = setting((0.0, 0.0, 0.0), "way from the last joint to the tip, all at 0", unit="m")

    def __post_init__(self) -> None:
        if self.channels and len(self.channels) != len("xyz"):
            raise ConfigError(f"a tip has 3 channels, for x, y and z; got {len(self.channels)}")
        if bool(self.channels) != bool(self.joints):
            raise ConfigError("a tip needs both channels and joints")


@dataclass(frozen=True)
class ServoRobotConfig:
    """The servos of one bus and how they are treated together."""

    family: Literal["dynamixel", "feetech"] = field(metadata={"help": "family of the servos"})
    servos: dict[str, ServoConfig] = field(metadata={"help": "name of each joint and its servo"})
    tip: TipConfig = setting(TipConfig, "measurement channels with the place of the tip")
    goals: GoalConfig = setting(GoalConfig, "measurement channels that the task gives")
    soft_start_s: float = setting(0.5, "time in which the torque grows to its limit", unit="s")
    stop: Literal["release", "hold"] = setting(
        "release", "end of a safe stop: release lowers the torque to nothing; hold keeps the joints where they are"
    )
    stop_ramp_s: float = setting(0.5, "time in which the torque is lowered", unit="s")
    watchdog_s: float = setting(0.1, "time without a request after which servos that can stop by themselves", unit="s")
    silence_s: float = setting(
        0.3, "time without a valid answer after which a servo has failed, also one that is not measured", unit="s"
    )
    health_interval_s: float = setting(0.2, "time between looks at what is not read in every tick", unit="s")
    connect_timeout_s: float = setting(1.0, "longest time in which all servos must have answered", unit="s")

    def __post_init__(self) -> None:
        if not self.servos:
            raise ConfigError("a robot needs at least one servo")
        times = ("watchdog_s", "silence_s", "health_interval_s", "connect_timeout_s")
        _require_finite(self, "soft_start_s", "stop_ramp_s", *times)
        for name in ("soft_start_s", "stop_ramp_s"):
            if not 0 <= getattr(self, name) <= 5:
                raise ConfigError(f"{name} must be 0 to 5 s, got {getattr(self, name)}")
        for name in times:
            if not getattr(self, name) > 0:
                raise ConfigError(f"{name} must be positive, got {getattr(self, name)} s")
        if self.goals.from_tip and len(self.goals.channels) != len(self.tip.channels):
            raise ConfigError(f"goals.from_tip needs a tip, and 3 channels; got {len(self.goals.channels)}")
        for name in self.tip.joints:
            if name not in self.servos:
                raise ConfigError(f"tip.joints.{name}: there is no servo of that name; known: {', '.join(self.servos)}")
        family = find_family(self.family)
        by_id: dict[int, str] = {}
        for name, servo in self.servos.items():
            _check_servo(name, servo, family)
            if servo.id in by_id:
                raise ConfigError(f"servos.{by_id[servo.id]} and servos.{name} have the same ID {servo.id}; IDs must be distinct")
            by_id[servo.id] = name

    def find_family(self) -> ServoFamily:
        """Return what is common to the servos."""
        return find_family(self.family)

    def models(self) -> dict[str, ServoModel]:
        """Return the model of each joint's servo."""
        family = self.find_family()
        return {name: family.find_model(servo.model) for name, servo in self.servos.items()}


@dataclass(frozen=True)
class Channel:
    """Where a measurement comes from, or a command goes to.

    Attributes:
        joint: name of the joint; empty for the tip and for what the task gives.
        quantity: what of it, or the name of the channel.
    """

    joint: str
    quantity: str


QUANTITIES = {"position": "rad", "velocity": "rad/s", "current": "A", "load": "1", "voltage": "V", "temperature": "deg C"}
"""What a servo measures, and its unit; channels are called ``<joint>_<quantity>``."""
COMMANDS = {"goal": "rad", "speed": "rad/s"}
"""What a joint can be told, and its unit; channels are called ``<joint>_<command>``."""


def resolve_measurement(name: str, config: ServoRobotConfig) -> Channel:
    """Return where a measurement channel comes from. Raises ContractError if this robot has no such channel."""
    if name in config.goals.channels or name in config.tip.channels:
        return Channel("", name)
    joint, _, quantity = name.rpartition("_")
    if joint in config.servos and quantity in QUANTITIES:
        return Channel(joint, quantity)
    raise ContractError(
        f"no measurement {name!r} on this robot; it has <joint>_<quantity> with the joints {', '.join(config.servos)} and the "
        f"quantities {', '.join(QUANTITIES)}, and {', '.join([*config.tip.channels, *config.goals.channels]) or 'nothing else'}"
    )


def resolve_command(name: str, config: ServoRobotConfig) -> Channel:
    """Return the joint that a command channel moves, and how. Raises ContractError if there is none, or it is held."""
    joint, _, command = name.rpartition("_")
    if joint not in config.servos or command not in COMMANDS:
        raise ContractError(
            f"no command {name!r} on this robot; it has <joint>_<command> with the joints {', '.join(config.servos)} and the "
            f"commands {', '.join(COMMANDS)}"
        )
    if config.servos[joint].hold is not None:
        raise ContractError(f"command {name!r}: joint {joint} is held at {config.servos[joint].hold} rad; remove its 'hold'")
    return Channel(joint, command)


def _check_servo(name: str, servo: ServoConfig, family: ServoFamily) -> None:
    where = f"servos.{name}"
    if not 0 <= servo.id <= family.max_id:
        raise ConfigError(f"{where}.id must be 0 to {family.max_id}, got {servo.id}")
    try:
        model = family.find_model(servo.model)
    except UnknownNameError as error:
        raise ConfigError(f"{where}.model: {error}") from error
    settings = servo.settings()
    if settings.max_velocity > model.max_velocity:
        most = model.max_velocity / abs(servo.gear)
        raise ConfigError(
            f"{where}.max_velocity must be at most {most:.3g} rad/s, what a {model.name} reaches without load; got "
            f"{servo.max_velocity:g}. Is it in rad/s?"
        )
    position = model.register("goal_position")
    least, most = max(position.to_si(position.low), -math.pi), min(position.to_si(position.high), math.pi)
    if not (least - 1e-9 <= settings.low and settings.high <= most + 1e-9):
        raise ConfigError(
            f"{where}: low {servo.low:g} and high {servo.high:g} rad are the servo's {settings.low:.4g} to "
            f"{settings.high:.4g} rad, but a {model.name} has {least:.4g} to {most:.4g}. Are they in rad? Check zero and gear."
        )
    for gain in ("p_gain", "i_gain", "d_gain"):
        value = getattr(servo, gain)
        if value is not None and value < 0:
            raise ConfigError(f"{where}.{gain} must be 0 or more, got {value}")


def _require_finite(config: object, *names: str) -> None:
    for name in names:
        if not math.isfinite(getattr(config, name)):
            raise ConfigError(f"{name} must be finite, got {getattr(config, name)}")
