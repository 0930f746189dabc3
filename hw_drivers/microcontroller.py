"""The framed protocol between a host and a microcontroller that owns a robot's sensors and actuators. Pure code, no I/O.

A frame on the wire is ``00 | COBS(version, type, sequence, payload, CRC-32) | 00``. The host sends requests, the device answers
each with one reply that carries the request's sequence number. ``docs/microcontroller-protocol.md`` specifies every byte.
"""

from __future__ import annotations

import struct
import zlib
from collections import Counter
from dataclasses import dataclass
from enum import Enum, IntEnum
from typing import ClassVar, TypeVar

from cobs import cobs

from dpg_robot.contract import CommandChannel, MeasurementChannel
from dpg_robot.deploy.robot import DeviceFlag
from dpg_robot.errors import ContractError, LinkError

PROTOCOL_VERSION = 1
MAX_FRAME_BYTES = 1024
"""Longest frame before byte stuffing, CRC included."""
NO_SEQUENCE = 0
"""Sequence number that no request uses; in a State it says that no command was accepted yet."""

_MAX_STUFFED_BYTES = MAX_FRAME_BYTES + MAX_FRAME_BYTES // 254 + 1
_DELIMITER = b"\x00"
_HEADER = struct.Struct("<BBI")
_CRC = struct.Struct("<I")
_TIME = struct.Struct("<Q")
_STATE = struct.Struct("<QHI")
_NACK = struct.Struct("<QB")
_IDENTITY = struct.Struct("<QIBB")
_LIMITS = struct.Struct("<ff")

FrameT = TypeVar("FrameT", bound="Frame")


class MessageType(IntEnum):
    """Second byte of a frame; replies have the highest bit set."""

    HELLO = 0x01
    ENABLE = 0x02
    DISABLE = 0x03
    READ_STATE = 0x04
    COMMAND = 0x05
    IDENTITY = 0x81
    STATE = 0x82
    ACK = 0x83
    NACK = 0x84


class NackReason(IntEnum):
    """Why a device refused a request."""

    NOT_ENABLED = 1
    WATCHDOG_TRIPPED = 2
    NOT_FINITE = 3
    OUT_OF_LIMITS = 4
    WRONG_LENGTH = 5
    HARDWARE_FAULT = 6


class FrameFault(Enum):
    """Why received bytes are not a frame."""

    BAD_COBS = "bad byte stuffing"
    BAD_CRC = "bad CRC"
    OVERSIZED = "too long"
    BAD_VERSION = "other protocol version"
    UNKNOWN_TYPE = "unknown message type"
    MALFORMED = "payload does not fit the message type"


class FrameError(LinkError):
    """Bytes between two delimiters that are not a frame of this protocol."""

    def __init__(self, fault: FrameFault, message: str) -> None:
        super().__init__(f"not a frame: {fault.value}; {message}")
        self.fault = fault


@dataclass(frozen=True, slots=True)
class Frame:
    """What all messages have in common.

    Attributes:
        sequence: number of the request, 1 to 2**32 - 1; a reply repeats the number of the request that it answers.
    """

    TYPE: ClassVar[MessageType]

    sequence: int

    def to_bytes(self) -> bytes:
        """Return the frame as sent on the wire, delimiters included. Raises ContractError if it is too long."""
        body = _HEADER.pack(PROTOCOL_VERSION, self.TYPE, self.sequence) + self._payload()
        body += _CRC.pack(zlib.crc32(body))
        if len(body) > MAX_FRAME_BYTES:
            raise ContractError(
                f"{type(self).__name__} frame of {len(body)} bytes; at most {MAX_FRAME_BYTES} fit. "
                "Use fewer channels or shorter names."
            )
        stuffed: bytes = cobs.encode(body)
        return _DELIMITER + stuffed + _DELIMITER

    @classmethod
    def from_bytes(cls: type[FrameT], data: bytes) -> FrameT:
        """Decode one frame, with or without its delimiters.

        Raises:
            FrameError: the bytes are no frame, or a frame of another class than the one asked for.
        """
        frame = decode_frame(data.strip(_DELIMITER))
        if not isinstance(frame, cls):
            raise FrameError(FrameFault.UNKNOWN_TYPE, f"got {type(frame).__name__}, expected {cls.__name__}")
        return frame

    def _payload(self) -> bytes:
        return b""

    @classmethod
    def _from_payload(cls: type[FrameT], sequence: int, payload: bytes) -> FrameT:
        if payload:
            raise ValueError(f"got {len(payload)} payload bytes, expected none")
        return cls(sequence)


@dataclass(frozen=True, slots=True)
class Hello(Frame):
    """Request: say who you are. Starts a session, so the device also takes the effort from its actuators."""

    TYPE = MessageType.HELLO


@dataclass(frozen=True, slots=True)
class Enable(Frame):
    """Request: follow commands from now on, starting from zero effort."""

    TYPE = MessageType.ENABLE


@dataclass(frozen=True, slots=True)
class Disable(Frame):
    """Request: take the effort from the actuators at once."""

    TYPE = MessageType.DISABLE


@dataclass(frozen=True, slots=True)
class ReadState(Frame):
    """Request: answer with a State."""

    TYPE = MessageType.READ_STATE


@dataclass(frozen=True, slots=True)
class Command(Frame):
    """Request: apply these commands; answered by Ack or Nack.

    Attributes:
        values: C commands in the units of the device's command channels, float32 on the wire.
    """

    TYPE = MessageType.COMMAND

    values: tuple[float, ...]

    def _payload(self) -> bytes:
        return struct.pack(f"<{len(self.values)}f", *self.values)

    @classmethod
    def _from_payload(cls, sequence: int, payload: bytes) -> Command:
        return cls(sequence, _unpack_floats(payload))


@dataclass(frozen=True, slots=True)
class Reply(Frame):
    """What all replies have in common.

    Attributes:
        device_time_us: the device's clock when it answered, microseconds since it started.
    """

    device_time_us: int

    def _payload(self) -> bytes:
        return _TIME.pack(self.device_time_us)

    @classmethod
    def _from_payload(cls: type[FrameT], sequence: int, payload: bytes) -> FrameT:
        return cls(sequence, *_TIME.unpack(payload))


@dataclass(frozen=True, slots=True)
class Ack(Reply):
    """Reply: the request was carried out."""

    TYPE = MessageType.ACK


@dataclass(frozen=True, slots=True)
class Nack(Reply):
    """Reply: the request was refused.

    Attributes:
        reason: why.
    """

    TYPE = MessageType.NACK

    reason: NackReason

    def _payload(self) -> bytes:
        return _NACK.pack(self.device_time_us, self.reason)

    @classmethod
    def _from_payload(cls, sequence: int, payload: bytes) -> Nack:
        time_us, reason = _NACK.unpack(payload)
        return cls(sequence, time_us, NackReason(reason))


@dataclass(frozen=True, slots=True)
class State(Reply):
    """Reply to ReadState. ``device_time_us`` is the time of the measurement.

    Attributes:
        flags: conditions that the device reports about itself.
        last_command: sequence number of the last Command that the device accepted, ``NO_SEQUENCE`` before the first.
        values: M measurements in the units of the device's measurement channels, float32 on the wire.
    """

    TYPE = MessageType.STATE

    flags: DeviceFlag
    last_command: int
    values: tuple[float, ...]

    def _payload(self) -> bytes:
        fixed = _STATE.pack(self.device_time_us, self.flags, self.last_command)
        return fixed + struct.pack(f"<{len(self.values)}f", *self.values)

    @classmethod
    def _from_payload(cls, sequence: int, payload: bytes) -> State:
        time_us, flags, last_command = _STATE.unpack_from(payload)
        return cls(sequence, time_us, DeviceFlag(flags), last_command, _unpack_floats(payload[_STATE.size :]))


@dataclass(frozen=True, slots=True)
class Identity(Reply):
    """Reply to Hello: who answers, and what its channels are.

    Attributes:
        watchdog_us: time without an accepted command after which the device takes the effort away, microseconds.
        name: kind of device.
        firmware: version of its program.
        measurements: M channels, in the order of ``State.values``.
        commands: C channels with the limits that the device enforces, in the order of ``Command.values``.
    """

    TYPE = MessageType.IDENTITY

    watchdog_us: int
    name: str
    firmware: str
    measurements: tuple[MeasurementChannel, ...]
    commands: tuple[CommandChannel, ...]

    def _payload(self) -> bytes:
        parts = [_IDENTITY.pack(self.device_time_us, self.watchdog_us, len(self.measurements), len(self.commands))]
        parts += [_pack_text(self.name), _pack_text(self.firmware)]
        for measurement in self.measurements:
            parts += [_pack_text(measurement.name), _pack_text(measurement.unit)]
        for command in self.commands:
            parts += [_pack_text(command.name), _pack_text(command.unit), _LIMITS.pack(command.low, command.high)]
        return b"".join(parts)

    @classmethod
    def _from_payload(cls, sequence: int, payload: bytes) -> Identity:
        time_us, watchdog_us, num_measurements, num_commands = _IDENTITY.unpack_from(payload)
        offset = _IDENTITY.size
        name, offset = _unpack_text(payload, offset)
        firmware, offset = _unpack_text(payload, offset)
        measurements, commands = [], []
        for _ in range(num_measurements):
            channel, offset = _unpack_text(payload, offset)
            unit, offset = _unpack_text(payload, offset)
            measurements.append(MeasurementChannel(channel, unit))
        for _ in range(num_commands):
            channel, offset = _unpack_text(payload, offset)
            unit, offset = _unpack_text(payload, offset)
            commands.append(CommandChannel(channel, unit, *_LIMITS.unpack_from(payload, offset)))
            offset += _LIMITS.size
        if offset != len(payload):
            raise ValueError(f"got {len(payload)} payload bytes, expected {offset}")
        return cls(sequence, time_us, watchdog_us, name, firmware, tuple(measurements), tuple(commands))


_FRAME_CLASSES: dict[int, type[Frame]] = {
    cls.TYPE: cls for cls in (Hello, Enable, Disable, ReadState, Command, Identity, State, Ack, Nack)
}


def decode_frame(stuffed: bytes) -> Frame:
    """Decode the bytes between two delimiters. Raises FrameError if they are not a frame of this protocol."""
    if len(stuffed) > _MAX_STUFFED_BYTES:
        raise FrameError(FrameFault.OVERSIZED, f"got {len(stuffed)} bytes, expected at most {_MAX_STUFFED_BYTES}")
    try:
        body = cobs.decode(stuffed)
    except cobs.DecodeError as error:
        raise FrameError(FrameFault.BAD_COBS, str(error)) from error
    if len(body) < _HEADER.size + _CRC.size:
        raise FrameError(FrameFault.MALFORMED, f"got {len(body)} bytes, expected at least {_HEADER.size + _CRC.size}")
    content = body[: -_CRC.size]
    received, computed = _CRC.unpack(body[-_CRC.size :])[0], zlib.crc32(content)
    if received != computed:
        raise FrameError(FrameFault.BAD_CRC, f"got {received:08x}, expected {computed:08x}")
    version, message_type, sequence = _HEADER.unpack_from(content)
    if version != PROTOCOL_VERSION:
        raise FrameError(FrameFault.BAD_VERSION, f"got version {version}, expected {PROTOCOL_VERSION}")
    frame_class = _FRAME_CLASSES.get(message_type)
    if frame_class is None:
        raise FrameError(FrameFault.UNKNOWN_TYPE, f"got type 0x{message_type:02x}")
    try:
        return frame_class._from_payload(sequence, content[_HEADER.size :])
    except (ValueError, struct.error) as error:
        raise FrameError(FrameFault.MALFORMED, f"{frame_class.__name__}: {error}") from error


class Decoder:
    """Turns a stream of bytes, in pieces of any size, into frames; whatever is not a frame is counted and skipped.

    Attributes:
        bytes_received: bytes fed so far.
        frames_received: frames returned so far.
        faults: how often each kind of damage was skipped.
    """

    def __init__(self) -> None:
        self.bytes_received = 0
        self.frames_received = 0
        self.faults: Counter[FrameFault] = Counter()
        self._buffer = bytearray()
        self._overflowed = False

    def feed(self, data: bytes) -> list[Frame]:
        """Take the next received bytes and return the frames that they complete, in order."""
        self.bytes_received += len(data)
        *ended, begun = data.split(_DELIMITER)
        frames = []
        for segment in ended:
            self._append(segment)
            frame = self._finish()
            if frame is not None:
                frames.append(frame)
        self._append(begun)
        self.frames_received += len(frames)
        return frames

    def reset(self) -> None:
        """Forget a frame that has begun; the counts stay."""
        self._buffer.clear()
        self._overflowed = False

    def _append(self, segment: bytes) -> None:
        if self._overflowed or len(self._buffer) + len(segment) > _MAX_STUFFED_BYTES:
            self._overflowed = True
            self._buffer.clear()
        else:
            self._buffer += segment

    def _finish(self) -> Frame | None:
        stuffed, overflowed = bytes(self._buffer), self._overflowed
        self.reset()
        if overflowed:
            self.faults[FrameFault.OVERSIZED] += 1
            return None
        if not stuffed:
            return None
        try:
            return decode_frame(stuffed)
        except FrameError as error:
            self.faults[error.fault] += 1
            return None


def _unpack_floats(payload: bytes) -> tuple[float, ...]:
    if len(payload) % 4:
        raise ValueError(f"got {len(payload)} bytes of values, expected a multiple of 4")
    return struct.unpack(f"<{len(payload) // 4}f", payload)


def _pack_text(text: str) -> bytes:
    encoded = text.encode()
    if len(encoded) > 255:
        raise ContractError(f"name of {len(encoded)} bytes is too long for an Identity frame, at most 255: {text[:40]!r}...")
    return bytes([len(encoded)]) + encoded


def _unpack_text(payload: bytes, offset: int) -> tuple[str, int]:
    """Return a text and the offset behind it."""
    if offset >= len(payload):
        raise ValueError("a text is missing")
    end = offset + 1 + payload[offset]
    if end > len(payload):
        raise ValueError("a text is cut off")
    return payload[offset + 1 : end].decode(), end
