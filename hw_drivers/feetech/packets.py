"""The protocol of Feetech STS and SCS servos: instruction and status packets, and decoders for both ends. Pure code, no I/O.

A frame on the wire is ``FF FF | ID | length | instruction or error | parameters | checksum``. The length counts the bytes after
itself; the checksum is the complement of the sum of all bytes from the ID on, so 8 bits. The host sends instruction packets, and
a servo answers those to its own ID with one status packet each.

How weak this is:

- Nothing marks a header: ``FF FF`` may stand inside parameters. A decoder that starts in the middle of a frame can take its
  parameters for a frame.
- The checksum catches any one changed byte, but not bytes in another order, and 1 of 256 random frames passes.
- A status packet does not say what it answers: no sequence number, no instruction, no address. A late answer of the same ID and
  length cannot be told from the right one, so the host must discard what arrived before it asks.
- The echo of a request on a two-wire adapter can pass for an answer: that of a ping is, bit for bit, the answer of a servo with
  a voltage alarm.

Therefore :class:`StatusDecoder` accepts nothing but what the host has just asked for: frames of the awaited IDs, in the order
asked, each once, of exactly the awaited length.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import IntEnum, IntFlag
from typing import ClassVar, Generic, TypeVar

BROADCAST_ID = 254
MAX_ID = 253
MAX_FRAME_BYTES = 250
"""Longest frame, from header to checksum, that the vendor's software sends or takes."""

_HEADER = b"\xff\xff"
_OVERHEAD_BYTES = 6
_BYTES_BEFORE_LENGTH = 4
_MIN_LENGTH = 2
_MAX_LENGTH = MAX_FRAME_BYTES - _BYTES_BEFORE_LENGTH
_MAX_ERROR = 0x7F

PacketT = TypeVar("PacketT")


class InstructionCode(IntEnum):
    """Fifth byte of an instruction packet."""

    PING = 0x01
    READ = 0x02
    WRITE = 0x03
    REG_WRITE = 0x04
    ACTION = 0x05
    RESET = 0x0A
    OFFSET_CALIBRATION = 0x0B
    SYNC_READ = 0x82
    SYNC_WRITE = 0x83


class ErrorFlag(IntFlag):
    """Alarms in the fifth byte of a status packet, and in the status register; an answer may carry data all the same."""

    VOLTAGE = 1
    ANGLE = 2
    OVERHEATING = 4
    OVERCURRENT = 8
    OVERLOAD = 32


def checksum(body: bytes) -> int:
    """Return the last byte of a frame whose bytes between header and checksum are ``body``."""
    return ~sum(body) & 0xFF


def _frame(servo_id: int, code: int, parameters: bytes) -> bytes:
    size = _OVERHEAD_BYTES + len(parameters)
    if size > MAX_FRAME_BYTES:
        raise ValueError(f"frame of {size} bytes; at most {MAX_FRAME_BYTES} are allowed. Spread the data over several packets.")
    body = bytes([servo_id, len(parameters) + 2, code]) + parameters
    return _HEADER + body + bytes([checksum(body)])


def _check_id(servo_id: int, *, broadcast: bool) -> None:
    highest = BROADCAST_ID if broadcast else MAX_ID
    if not 0 <= servo_id <= highest:
        raise ValueError(f"ID must be 0 to {highest}, got {servo_id}")


def _check_span(address: int, length: int) -> None:
    if not 0 <= address <= 255:
        raise ValueError(f"address must be 0 to 255, got {address}")
    most = min(256 - address, MAX_FRAME_BYTES - _OVERHEAD_BYTES)
    if not 1 <= length <= most:
        raise ValueError(f"from address {address} on 1 to {most} bytes can be asked for or sent, got {length}")


def _check_broadcast(servo_id: int) -> None:
    if servo_id != BROADCAST_ID:
        raise ValueError(f"a sync instruction is sent to ID {BROADCAST_ID}, got {servo_id}")


def _check_distinct(ids: Sequence[int]) -> None:
    if not ids or len(set(ids)) != len(ids):
        raise ValueError(f"expected at least one ID and none twice, got {ids}")
    for servo_id in ids:
        _check_id(servo_id, broadcast=False)


@dataclass(frozen=True, slots=True)
class Instruction(ABC):
    """What all instruction packets have in common.

    Attributes:
        servo_id: 0 to 253, or ``BROADCAST_ID``, which all servos obey and none answers.
    """

    CODE: ClassVar[InstructionCode]

    servo_id: int

    def __post_init__(self) -> None:
        _check_id(self.servo_id, broadcast=True)

    @property
    def answering_ids(self) -> tuple[int, ...]:
        """IDs that answer, in the order of their answers."""
        return () if self.servo_id == BROADCAST_ID else (self.servo_id,)

    @property
    def answer_bytes(self) -> int:
        """Number of parameters in each answer."""
        return 0

    def parameters(self) -> bytes:
        """Return the parameters as sent."""
        return b""

    def to_bytes(self) -> bytes:
        """Return the frame as sent on the wire. Raises ValueError if it is too long."""
        return _frame(self.servo_id, self.CODE, self.parameters())

    @classmethod
    @abstractmethod
    def _from_parameters(cls, servo_id: int, parameters: bytes) -> Instruction:
        """Decode. Raises ValueError if the parameters do not fit the instruction."""


@dataclass(frozen=True, slots=True)
class _Plain(Instruction):
    """An instruction without parameters."""

    @classmethod
    def _from_parameters(cls, servo_id: int, parameters: bytes) -> Instruction:
        if parameters:
            raise ValueError(f"got {len(parameters)} parameters, expected none")
        return cls(servo_id)


@dataclass(frozen=True, slots=True)
class Ping(_Plain):
    """Answer with an empty status packet."""

    CODE = InstructionCode.PING


@dataclass(frozen=True, slots=True)
class Action(_Plain):
    """Carry out the registered write; usually broadcast, so that all servos start together."""

    CODE = InstructionCode.ACTION


@dataclass(frozen=True, slots=True)
class Reset(_Plain):
    """Forget the number of whole turns.

    Older manuals call another instruction reset: code 6, the factory reset, which may change the ID too. It is not used here.
    """

    CODE = InstructionCode.RESET


@dataclass(frozen=True, slots=True)
class OffsetCalibration(Instruction):
    """Choose the homing offset so that the present position becomes the middle or, with two bytes, the number given.

    Attributes:
        data: empty, or the position that the present one becomes, as the servo stores it; that needs STS firmware 3.10.
    """

    CODE = InstructionCode.OFFSET_CALIBRATION

    data: bytes = b""

    def __post_init__(self) -> None:
        _check_id(self.servo_id, broadcast=True)
        if len(self.data) not in (0, 2):
            raise ValueError(f"expected no data or 2 bytes, got {len(self.data)}")

    def parameters(self) -> bytes:
        """Return the parameters as sent."""
        return self.data

    @classmethod
    def _from_parameters(cls, servo_id: int, parameters: bytes) -> Instruction:
        return cls(servo_id, parameters)


@dataclass(frozen=True, slots=True)
class Read(Instruction):
    """Answer with ``length`` bytes from ``address`` on; to one servo only."""

    CODE = InstructionCode.READ

    address: int
    length: int

    def __post_init__(self) -> None:
        _check_id(self.servo_id, broadcast=False)
        _check_span(self.address, self.length)

    @property
    def answer_bytes(self) -> int:
        """Number of parameters in the answer."""
        return self.length

    def parameters(self) -> bytes:
        """Return the parameters as sent."""
        return bytes([self.address, self.length])

    @classmethod
    def _from_parameters(cls, servo_id: int, parameters: bytes) -> Instruction:
        address, length = parameters  # raises ValueError for another number of them
        return cls(servo_id, address, length)


@dataclass(frozen=True, slots=True)
class Write(Instruction):
    """Store ``data`` from ``address`` on, at once."""

    CODE = InstructionCode.WRITE

    address: int
    data: bytes

    def __post_init__(self) -> None:
        _check_id(self.servo_id, broadcast=True)
        _check_span(self.address, len(self.data))

    def parameters(self) -> bytes:
        """Return the parameters as sent."""
        return bytes([self.address]) + self.data

    @classmethod
    def _from_parameters(cls, servo_id: int, parameters: bytes) -> Instruction:
        if not parameters:
            raise ValueError("got no parameters, expected an address and data")
        return cls(servo_id, parameters[0], parameters[1:])


@dataclass(frozen=True, slots=True)
class RegWrite(Write):
    """Store ``data`` from ``address`` on when an Action comes; replaces an earlier registered write."""

    CODE = InstructionCode.REG_WRITE


@dataclass(frozen=True, slots=True)
class SyncRead(Instruction):
    """Answer, one servo after the other in the order of ``ids``, with ``length`` bytes from ``address`` on. STS only."""

    CODE = InstructionCode.SYNC_READ

    servo_id: int = field(default=BROADCAST_ID, init=False)
    address: int
    length: int
    ids: tuple[int, ...]

    def __post_init__(self) -> None:
        _check_span(self.address, self.length)
        _check_distinct(self.ids)

    @property
    def answering_ids(self) -> tuple[int, ...]:
        """IDs that answer, in the order of their answers."""
        return self.ids

    @property
    def answer_bytes(self) -> int:
        """Number of parameters in each answer."""
        return self.length

    def parameters(self) -> bytes:
        """Return the parameters as sent."""
        return bytes([self.address, self.length, *self.ids])

    @classmethod
    def _from_parameters(cls, servo_id: int, parameters: bytes) -> Instruction:
        _check_broadcast(servo_id)
        address, length, *ids = parameters
        return cls(address, length, tuple(ids))


@dataclass(frozen=True, slots=True)
class SyncWrite(Instruction):
    """Store each servo's bytes from ``address`` on; nobody answers.

    Attributes:
        data: pairs of an ID and that servo's bytes, equally many for all.
    """

    CODE = InstructionCode.SYNC_WRITE

    servo_id: int = field(default=BROADCAST_ID, init=False)
    address: int
    data: tuple[tuple[int, bytes], ...]

    def __post_init__(self) -> None:
        _check_distinct([servo_id for servo_id, _ in self.data])
        sizes = {len(piece) for _, piece in self.data}
        if len(sizes) != 1:
            raise ValueError(f"expected equally many bytes for all servos, got {sorted(sizes)}")
        _check_span(self.address, *sizes)

    def parameters(self) -> bytes:
        """Return the parameters as sent."""
        content = b"".join(bytes([servo_id]) + piece for servo_id, piece in self.data)
        return bytes([self.address, len(self.data[0][1])]) + content

    @classmethod
    def _from_parameters(cls, servo_id: int, parameters: bytes) -> Instruction:
        _check_broadcast(servo_id)
        if len(parameters) < 2 or (len(parameters) - 2) % (parameters[1] + 1):
            raise ValueError("the parameters are not pairs of an ID and as many bytes as announced")
        address, step = parameters[0], parameters[1] + 1
        pieces = [parameters[start : start + step] for start in range(2, len(parameters), step)]
        return cls(address, tuple((piece[0], piece[1:]) for piece in pieces))


@dataclass(frozen=True, slots=True)
class Status:
    """What a servo answers.

    Attributes:
        servo_id: who answers, 0 to 253.
        error: alarms; the answer is valid nevertheless.
        data: the bytes asked for, empty for everything but reads.
    """

    servo_id: int
    error: ErrorFlag = ErrorFlag(0)
    data: bytes = b""

    def __post_init__(self) -> None:
        _check_id(self.servo_id, broadcast=False)
        if not 0 <= self.error <= _MAX_ERROR:
            raise ValueError(f"error must be 0 to {_MAX_ERROR}, got {int(self.error)}")

    def to_bytes(self) -> bytes:
        """Return the frame as sent on the wire. Raises ValueError if it is too long."""
        return _frame(self.servo_id, self.error, self.data)


_INSTRUCTIONS: dict[int, type[Instruction]] = {
    cls.CODE: cls for cls in (Ping, Read, Write, RegWrite, Action, Reset, OffsetCalibration, SyncRead, SyncWrite)
}


class _Decoder(ABC, Generic[PacketT]):
    """Finds frames in a stream of bytes in pieces of any size; never raises and never holds more than one longest frame.

    Attributes:
        checksum_errors: frames dropped because their checksum was wrong; what follows their header is searched again.
        resyncs: pieces of any length that were skipped because they belonged to no acceptable frame.
    """

    def __init__(self) -> None:
        self.checksum_errors = 0
        self.resyncs = 0
        self._buffer = bytearray()
        self._skipping = False

    def feed(self, data: bytes) -> list[PacketT]:
        """Take the next received bytes and return the packets that they complete, in order."""
        packets = []
        for start in range(0, len(data), MAX_FRAME_BYTES):
            self._buffer += data[start : start + MAX_FRAME_BYTES]
            packets += self._scan()
        return packets

    def reset(self) -> None:
        """Forget a frame that has begun; the counts stay."""
        self._buffer.clear()
        self._skipping = False

    @abstractmethod
    def _accepts(self, servo_id: int, length: int | None) -> bool:
        """Say whether a frame may begin so; ``length`` is None while it is not yet received."""

    @abstractmethod
    def _packet(self, servo_id: int, code: int, parameters: bytes) -> PacketT | None:
        """Build the packet from a frame with a right checksum, or return None if it is not a packet of this protocol."""

    def _scan(self) -> list[PacketT]:
        packets = []
        while self._buffer:
            if not self._may_begin_frame():
                self._skip()
                continue
            size = _BYTES_BEFORE_LENGTH + self._buffer[3] if len(self._buffer) >= _BYTES_BEFORE_LENGTH else MAX_FRAME_BYTES
            if len(self._buffer) < size:
                break
            packet = self._decode(bytes(self._buffer[2:size]))
            if packet is None:
                self._skip()
                continue
            packets.append(packet)
            del self._buffer[:size]
            self._skipping = False
        return packets

    def _may_begin_frame(self) -> bool:
        buffer = self._buffer
        if not buffer.startswith(_HEADER[: len(buffer)]):
            return False
        length = buffer[3] if len(buffer) > 3 else None
        return len(buffer) < 3 or self._accepts(buffer[2], length)

    def _decode(self, body: bytes) -> PacketT | None:
        if checksum(body[:-1]) != body[-1]:
            self.checksum_errors += 1
            return None
        return self._packet(body[0], body[2], body[3:-1])

    def _skip(self) -> None:
        """Drop one byte, so that a frame hidden in what looked like another is found."""
        del self._buffer[0]
        if not self._skipping:
            self._skipping = True
            self.resyncs += 1


class InstructionDecoder(_Decoder[Instruction]):
    """The servos' end: turns received bytes into instruction packets."""

    def _accepts(self, servo_id: int, length: int | None) -> bool:
        return servo_id <= BROADCAST_ID and (length is None or _MIN_LENGTH <= length <= _MAX_LENGTH)

    def _packet(self, servo_id: int, code: int, parameters: bytes) -> Instruction | None:
        instruction = _INSTRUCTIONS.get(code)
        if instruction is None:
            return None
        try:
            return instruction._from_parameters(servo_id, parameters)
        except ValueError:
            return None


class StatusDecoder(_Decoder[Status]):
    """The host's end: turns received bytes into the answers to one instruction, and into nothing else.

    Call :meth:`expect` before each instruction is sent, and throw away what the port received before. Each awaited ID answers at
    most once, in the order asked; an ID that stays silent is passed over when a later one answers.

    Args:
        echo: whether the adapter receives what it sends.
        repeats: whether awaited IDs may answer again and in any order, for those who want to know that somebody did.

    Attributes:
        awaited_ids: IDs whose answers are still to come, in order.
    """

    def __init__(self, *, echo: bool = False, repeats: bool = False) -> None:
        super().__init__()
        self._repeats = repeats
        self.awaited_ids: tuple[int, ...] = ()
        self._echo = echo
        self._echo_awaited = b""
        self._echo_begun = b""
        self._awaited_length = _MIN_LENGTH

    def expect(self, instruction: Instruction) -> None:
        """Wait for the answers to ``instruction``, which is about to be sent, and forget everything before."""
        self.reset()
        self.awaited_ids = instruction.answering_ids
        self._awaited_length = instruction.answer_bytes + _MIN_LENGTH
        self._echo_awaited = instruction.to_bytes() if self._echo else b""
        self._echo_begun = b""

    def feed(self, data: bytes) -> list[Status]:
        """Take the next received bytes and return the awaited answers that they complete, in order."""
        return super().feed(self._without_echo(data) if self._echo_awaited else data)

    def _without_echo(self, data: bytes) -> bytes:
        """Take the echo away; a damaged one is searched like other garbage, from its first byte on, however it was cut."""
        received, echo = self._echo_begun + data, self._echo_awaited
        if len(received) < len(echo) and echo.startswith(received):
            self._echo_begun = received
            return b""
        self._echo_awaited = self._echo_begun = b""
        return received.removeprefix(echo)

    def _accepts(self, servo_id: int, length: int | None) -> bool:
        return servo_id in self.awaited_ids and length in (None, self._awaited_length)

    def _packet(self, servo_id: int, code: int, parameters: bytes) -> Status | None:
        if code > _MAX_ERROR:
            return None
        if not self._repeats:
            self.awaited_ids = self.awaited_ids[self.awaited_ids.index(servo_id) + 1 :]
        return Status(servo_id, ErrorFlag(code), parameters)
