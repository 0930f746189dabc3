"""Dynamixel protocol 2.0: packets and their decoders. Pure code, no I/O.

A packet on the wire is ``FF FF FD 00 | ID | LEN (2) | instruction | parameters | CRC (2)``, numbers little endian, LEN counted
from the instruction on. Instruction packets go from the host to the servos; a servo answers with a status packet, whose
parameters begin with an error byte. So that no header shows up inside a packet, ``FF FF FD`` there is followed by an extra ``FD``
(stuffing). The answer to a fast read is the exception: several servos write one packet together, without stuffing.

Facts: https://emanual.robotis.com/docs/en/dxl/protocol2/
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from enum import IntEnum
from itertools import pairwise
from typing import ClassVar, Generic, Self, TypeVar

from dpg_robot.errors import ContractError

MAX_ID = 252
BROADCAST_ID = 0xFE
MAX_LENGTH = 1024
"""Largest LEN that we send or accept; the field could say 65535, but control tables are shorter than 700 bytes."""

HEADER = b"\xff\xff\xfd\x00"
_HEADER_END = 7  # ID and LEN included
_STUFFED = b"\xff\xff\xfd"
_CRC_BYTES = 2
_ALERT_BIT = 0x80
_START_LENGTH = struct.Struct("<HH")
_ID_START_LENGTH = struct.Struct("<BHH")


class Instruction(IntEnum):
    """What a packet asks for."""

    PING = 0x01
    READ = 0x02
    WRITE = 0x03
    REG_WRITE = 0x04
    ACTION = 0x05
    FACTORY_RESET = 0x06
    REBOOT = 0x08
    CLEAR = 0x10
    STATUS = 0x55
    SYNC_READ = 0x82
    SYNC_WRITE = 0x83
    FAST_SYNC_READ = 0x8A
    BULK_READ = 0x92
    BULK_WRITE = 0x93
    FAST_BULK_READ = 0x9A


class ErrorCode(IntEnum):
    """Why a servo did not do what an instruction asks for; the low seven bits of a status packet's error byte."""

    NONE = 0
    RESULT_FAIL = 1
    INSTRUCTION = 2
    CRC = 3
    DATA_RANGE = 4
    DATA_LENGTH = 5
    DATA_LIMIT = 6
    ACCESS = 7


class ResetOption(IntEnum):
    """What a factory reset covers."""

    ALL = 0xFF
    ALL_BUT_ID = 0x01
    ALL_BUT_ID_AND_BAUD_RATE = 0x02


def crc16(data: bytes, crc: int = 0) -> int:
    """Return the CRC-16 (polynomial 0x8005, most significant bit first) of ``data`` that follows data whose CRC is ``crc``."""
    for byte in data:
        crc = ((crc & 0xFF) << 8) ^ _CRC_TABLE[(crc >> 8) ^ byte]
    return crc


def _shift_out_a_byte(remainder: int) -> int:
    for _ in range(8):
        remainder = (remainder << 1) ^ (0x18005 if remainder & 0x8000 else 0)
    return remainder


_CRC_TABLE = tuple(_shift_out_a_byte(byte << 8) for byte in range(256))


@dataclass(frozen=True, slots=True)
class Packet:
    """What instruction and status packets have in common."""

    def to_bytes(self) -> bytes:
        """Return the packet as sent on the wire.

        Raises:
            ContractError: it does not fit into a packet, or an ID, address or size is not one that the protocol knows.
        """
        raise NotImplementedError


@dataclass(frozen=True, slots=True)
class InstructionPacket(Packet):
    """What the host sends.

    Attributes:
        id: servo that is addressed, 0 to 252, or ``BROADCAST_ID`` for all.
    """

    INSTRUCTION: ClassVar[Instruction]

    id: int

    def to_bytes(self) -> bytes:
        """Return the packet as sent on the wire. Raises ContractError if it has no valid form."""
        try:
            parameters = self._parameters()
        except (struct.error, ValueError) as error:
            raise ContractError(f"{self} cannot be sent: {error}") from error
        return _stuffed_packet(self.id, bytes([self._code()]) + parameters)

    def _code(self) -> int:
        return self.INSTRUCTION

    def _parameters(self) -> bytes:
        return b""

    @classmethod
    def _from_parameters(cls, servo_id: int, parameters: bytes) -> InstructionPacket:
        """Raises ValueError or struct.error if the parameters are not those of this instruction."""
        if parameters:
            raise ValueError(f"got {len(parameters)} parameter bytes, expected none")
        return cls(servo_id)


@dataclass(frozen=True, slots=True)
class Ping(InstructionPacket):
    """Say who you are: answered with the model number (2 bytes) and the firmware version (1 byte)."""

    INSTRUCTION = Instruction.PING


@dataclass(frozen=True, slots=True)
class Action(InstructionPacket):
    """Carry out the write that was registered."""

    INSTRUCTION = Instruction.ACTION


@dataclass(frozen=True, slots=True)
class Reboot(InstructionPacket):
    """Start anew: the torque is lost, the RAM area of the control table gets its initial values."""

    INSTRUCTION = Instruction.REBOOT


@dataclass(frozen=True, slots=True)
class Read(InstructionPacket):
    """Send ``length`` bytes of the control table from ``address`` on."""

    INSTRUCTION = Instruction.READ

    address: int
    length: int

    def _parameters(self) -> bytes:
        return _START_LENGTH.pack(self.address, self.length)

    @classmethod
    def _from_parameters(cls, servo_id: int, parameters: bytes) -> Self:
        return cls(servo_id, *_START_LENGTH.unpack(parameters))


@dataclass(frozen=True, slots=True)
class Write(InstructionPacket):
    """Put ``data`` into the control table from ``address`` on."""

    INSTRUCTION = Instruction.WRITE

    address: int
    data: bytes

    def _parameters(self) -> bytes:
        return struct.pack("<H", self.address) + self.data

    @classmethod
    def _from_parameters(cls, servo_id: int, parameters: bytes) -> Self:
        (address,) = struct.unpack_from("<H", parameters)
        return cls(servo_id, address, parameters[2:])


@dataclass(frozen=True, slots=True)
class RegWrite(Write):
    """Keep a write until an Action asks for it."""

    INSTRUCTION = Instruction.REG_WRITE


@dataclass(frozen=True, slots=True)
class FactoryReset(InstructionPacket):
    """Give the whole control table its factory values, as far as ``option`` (a ResetOption) says."""

    INSTRUCTION = Instruction.FACTORY_RESET

    option: int

    def _parameters(self) -> bytes:
        return bytes([self.option])

    @classmethod
    def _from_parameters(cls, servo_id: int, parameters: bytes) -> Self:
        (option,) = parameters
        return cls(servo_id, option)


@dataclass(frozen=True, slots=True)
class Clear(InstructionPacket):
    """Reset some information of the servo.

    Attributes:
        parameters: what to reset; ``MULTI_TURN`` brings the present position back into one turn.
    """

    INSTRUCTION = Instruction.CLEAR
    MULTI_TURN: ClassVar[bytes] = b"\x01DXL\x22"

    parameters: bytes = MULTI_TURN

    def _parameters(self) -> bytes:
        return self.parameters

    @classmethod
    def _from_parameters(cls, servo_id: int, parameters: bytes) -> Self:
        return cls(servo_id, parameters)


@dataclass(frozen=True, slots=True)
class SyncRead(InstructionPacket):
    """Several servos send ``length`` bytes from ``address`` on, one after the other in the order of ``ids``."""

    INSTRUCTION = Instruction.SYNC_READ

    address: int
    length: int
    ids: tuple[int, ...]

    @classmethod
    def of(cls, address: int, length: int, ids: Sequence[int]) -> Self:
        """Make the packet; these go to all servos."""
        return cls(BROADCAST_ID, address, length, tuple(ids))

    def _parameters(self) -> bytes:
        return _START_LENGTH.pack(self.address, self.length) + bytes(self.ids)

    @classmethod
    def _from_parameters(cls, servo_id: int, parameters: bytes) -> Self:
        address, length = _START_LENGTH.unpack_from(parameters)
        return cls(servo_id, address, length, tuple(parameters[_START_LENGTH.size :]))


@dataclass(frozen=True, slots=True)
class FastSyncRead(SyncRead):
    """Like SyncRead, but all servos together answer with one packet, a FastStatus."""

    INSTRUCTION = Instruction.FAST_SYNC_READ


@dataclass(frozen=True, slots=True)
class SyncWrite(InstructionPacket):
    """Several servos take their own data to one address; never answered.

    Attributes:
        address: first address.
        data: of each servo its ID and its data, all of one length.
    """

    INSTRUCTION = Instruction.SYNC_WRITE

    address: int
    data: tuple[tuple[int, bytes], ...]

    @classmethod
    def of(cls, address: int, data: Sequence[tuple[int, bytes]]) -> Self:
        """Make the packet; these go to all servos."""
        return cls(BROADCAST_ID, address, tuple(data))

    def _parameters(self) -> bytes:
        lengths = {len(data) for _, data in self.data}
        if len(lengths) != 1:
            raise ValueError(f"got data of {sorted(lengths)} bytes, expected one length for all servos")
        body = b"".join(bytes([servo_id]) + data for servo_id, data in self.data)
        return _START_LENGTH.pack(self.address, lengths.pop()) + body

    @classmethod
    def _from_parameters(cls, servo_id: int, parameters: bytes) -> Self:
        address, length = _START_LENGTH.unpack_from(parameters)
        body, step = parameters[_START_LENGTH.size :], length + 1
        if not body or len(body) % step:
            raise ValueError(f"got {len(body)} bytes for servos, expected a multiple of {step}")
        return cls(servo_id, address, tuple((body[at], body[at + 1 : at + step]) for at in range(0, len(body), step)))


@dataclass(frozen=True, slots=True)
class BulkRead(InstructionPacket):
    """Several servos send each its own piece of the control table, one after the other in the order of ``pieces``.

    Attributes:
        pieces: of each servo its ID, the first address and the number of bytes.
    """

    INSTRUCTION = Instruction.BULK_READ

    pieces: tuple[tuple[int, int, int], ...]

    @classmethod
    def of(cls, pieces: Sequence[tuple[int, int, int]]) -> Self:
        """Make the packet; these go to all servos."""
        return cls(BROADCAST_ID, tuple(pieces))

    def _parameters(self) -> bytes:
        return b"".join(_ID_START_LENGTH.pack(*piece) for piece in self.pieces)

    @classmethod
    def _from_parameters(cls, servo_id: int, parameters: bytes) -> Self:
        return cls(servo_id, tuple(_ID_START_LENGTH.iter_unpack(parameters)))


@dataclass(frozen=True, slots=True)
class FastBulkRead(BulkRead):
    """Like BulkRead, but all servos together answer with one packet, a FastStatus."""

    INSTRUCTION = Instruction.FAST_BULK_READ


@dataclass(frozen=True, slots=True)
class BulkWrite(InstructionPacket):
    """Several servos take each its own data to its own address; never answered.

    Attributes:
        data: of each servo its ID, the first address and its data.
    """

    INSTRUCTION = Instruction.BULK_WRITE

    data: tuple[tuple[int, int, bytes], ...]

    @classmethod
    def of(cls, data: Sequence[tuple[int, int, bytes]]) -> Self:
        """Make the packet; these go to all servos."""
        return cls(BROADCAST_ID, tuple(data))

    def _parameters(self) -> bytes:
        return b"".join(_ID_START_LENGTH.pack(servo_id, address, len(data)) + data for servo_id, address, data in self.data)

    @classmethod
    def _from_parameters(cls, servo_id: int, parameters: bytes) -> Self:
        entries = []
        at = 0
        while at < len(parameters):
            entry_id, address, length = _ID_START_LENGTH.unpack_from(parameters, at)
            at += _ID_START_LENGTH.size + length
            if at > len(parameters):
                raise ValueError(f"the data of servo {entry_id} are cut off")
            entries.append((entry_id, address, parameters[at - length : at]))
        return cls(servo_id, tuple(entries))


@dataclass(frozen=True, slots=True)
class OtherInstruction(InstructionPacket):
    """An instruction that this module does not know, or a known one whose parameters do not fit it.

    Attributes:
        code: the instruction byte.
        parameters: the bytes behind it, without the extra bytes for stuffing.
    """

    code: int
    parameters: bytes

    def _code(self) -> int:
        return self.code

    def _parameters(self) -> bytes:
        return self.parameters


@dataclass(frozen=True, slots=True)
class Status(Packet):
    """What a servo answers.

    Attributes:
        id: servo that answers.
        error: why it did not do what was asked, an ErrorCode or a number that we do not know; ``ErrorCode.NONE`` if it did.
        alert: the servo has a hardware error, whatever the answer; its register ``hardware_error_status`` says which.
        data: what was asked for.
    """

    id: int
    error: int = ErrorCode.NONE
    alert: bool = False
    data: bytes = b""

    def to_bytes(self) -> bytes:
        """Return the packet as sent on the wire. Raises ContractError if it has no valid form."""
        return _stuffed_packet(self.id, bytes([Instruction.STATUS, self.error_byte]) + self.data)

    @property
    def error_byte(self) -> int:
        """Error code and alert bit as they are sent."""
        return self.error | (_ALERT_BIT if self.alert else 0)

    @classmethod
    def from_error_byte(cls, servo_id: int, error_byte: int, data: bytes) -> Self:
        """Make a status from its parts on the wire."""
        return cls(servo_id, _error_code(error_byte & ~_ALERT_BIT), bool(error_byte & _ALERT_BIT), data)


@dataclass(frozen=True, slots=True)
class FastStatus(Packet):
    """The one answer of several servos to a FastSyncRead or FastBulkRead.

    Each servo adds ``error byte | ID | data | CRC``. Each CRC covers the whole packet up to there.

    Attributes:
        body: all parts, without the last CRC.
    """

    body: bytes

    @classmethod
    def of(cls, parts: Sequence[Status]) -> Self:
        """Make the packet of its parts. Raises ContractError if it has no valid form."""
        return cls(b"".join(cls.pieces(parts))[_HEADER_END + 1 : -_CRC_BYTES])

    @classmethod
    def pieces(cls, parts: Sequence[Status]) -> list[bytes]:
        """Return what each servo puts on the wire: the first also the header, each its own CRC."""
        length = 1 + sum(len(part.data) + 4 for part in parts)
        sent = _header(BROADCAST_ID, length) + bytes([Instruction.STATUS])
        begins, pieces = [0], []
        for part in parts:
            sent += bytes([part.error_byte, part.id]) + part.data
            sent += struct.pack("<H", crc16(sent))
            begins.append(len(sent))
        pieces = [sent[begin:end] for begin, end in pairwise(begins)]
        return pieces

    def to_bytes(self) -> bytes:
        """Return the packet as sent on the wire. Raises ContractError if it has no valid form."""
        packet = _header(BROADCAST_ID, len(self.body) + 1 + _CRC_BYTES) + bytes([Instruction.STATUS]) + self.body
        return packet + struct.pack("<H", crc16(packet))

    def split(self, lengths: Sequence[int]) -> list[Status]:
        """Return the part of each servo.

        Args:
            lengths: number of data bytes that each servo was asked for, in the order asked.

        Raises:
            ContractError: the packet has not that many bytes.
        """
        expected = sum(length + 4 for length in lengths) - _CRC_BYTES
        if len(self.body) != expected:
            raise ContractError(
                f"answer to a fast read has {len(self.body)} bytes, expected {expected} for {len(lengths)} servos"
            )
        return list(self._parts(lengths))

    def _parts(self, lengths: Sequence[int]) -> Iterator[Status]:
        at = 0
        for length in lengths:
            yield Status.from_error_byte(self.body[at + 1], self.body[at], self.body[at + 2 : at + 2 + length])
            at += length + 4


_INSTRUCTION_CLASSES: dict[int, type[InstructionPacket]] = {
    cls.INSTRUCTION: cls
    for cls in (
        *(Ping, Read, Write, RegWrite, Action, FactoryReset, Reboot, Clear),
        *(SyncRead, SyncWrite, FastSyncRead, BulkRead, BulkWrite, FastBulkRead),
    )
}

PacketT = TypeVar("PacketT", bound=Packet)


class _Decoder(Generic[PacketT]):
    """Turns a stream of bytes, in pieces of any size, into packets; whatever is none is counted and skipped.

    Attributes:
        packets: packets returned so far.
        crc_errors: pieces that looked like a packet but had a wrong CRC.
        resyncs: pieces of any length that were skipped because they are no packet.
    """

    _MIN_LENGTH: ClassVar[int]

    def __init__(self, max_length: int = MAX_LENGTH) -> None:
        """Skip packets whose LEN is above ``max_length``; the lower, the sooner the decoder is back after garbage."""
        self.packets = 0
        self.crc_errors = 0
        self.resyncs = 0
        self._max_length = min(max_length, MAX_LENGTH)
        self._buffer = bytearray()
        self._skipping = False

    def feed(self, data: bytes) -> list[PacketT]:
        """Take the next received bytes and return the packets that they complete, in order."""
        self._buffer += data
        packets = []
        while (end := self._find_packet()) is not None:
            packet = bytes(self._buffer[:end])
            if crc16(packet[:-_CRC_BYTES]) != int.from_bytes(packet[-_CRC_BYTES:], "little"):
                self.crc_errors += 1
                self._skip(1)
                continue
            del self._buffer[:end]
            self._skipping = False
            packets.append(self._decode(packet[4], packet[_HEADER_END], packet[_HEADER_END + 1 : -_CRC_BYTES]))
        self.packets += len(packets)
        return packets

    def reset(self) -> None:
        """Forget a packet that has begun; the counts stay."""
        if self._buffer:
            self._skip(len(self._buffer))
        self._skipping = False

    def _find_packet(self) -> int | None:
        """Skip to the next packet that may be one; returns where it ends, or None as long as it is not complete."""
        while True:
            start = self._buffer.find(HEADER)
            if start < 0:
                self._skip(len(self._buffer) - _begun_header(self._buffer))
                return None
            self._skip(start)
            if len(self._buffer) <= _HEADER_END:
                return None
            servo_id, length = self._buffer[4], self._buffer[5] | self._buffer[6] << 8
            known_id = servo_id <= MAX_ID or servo_id == BROADCAST_ID
            if known_id and self._MIN_LENGTH <= length <= self._max_length and self._is_ours(self._buffer[_HEADER_END]):
                end = _HEADER_END + length
                return end if len(self._buffer) >= end else None
            self._skip(1)

    def _skip(self, count: int) -> None:
        if count > 0:
            del self._buffer[:count]
            self.resyncs += not self._skipping
            self._skipping = True

    def _is_ours(self, instruction: int) -> bool:
        raise NotImplementedError

    def _decode(self, servo_id: int, instruction: int, body: bytes) -> PacketT:
        raise NotImplementedError


class StatusDecoder(_Decoder[Status | FastStatus]):
    """The host's side: finds status packets. An echo of the host's own instruction packets is skipped."""

    _MIN_LENGTH = 4

    def _is_ours(self, instruction: int) -> bool:
        return instruction == Instruction.STATUS

    def _decode(self, servo_id: int, instruction: int, body: bytes) -> Status | FastStatus:
        if servo_id == BROADCAST_ID:
            return FastStatus(body)
        body = _unstuff(body)
        return Status.from_error_byte(servo_id, body[0], body[1:])


class InstructionDecoder(_Decoder[InstructionPacket]):
    """The servo's side: finds instruction packets. Answers of other servos on the wire are skipped."""

    _MIN_LENGTH = 3

    def _is_ours(self, instruction: int) -> bool:
        return instruction != Instruction.STATUS

    def _decode(self, servo_id: int, instruction: int, body: bytes) -> InstructionPacket:
        parameters = _unstuff(bytes([instruction]) + body)[1:]  # the instruction too may be where a header begins
        packet_class = _INSTRUCTION_CLASSES.get(instruction)
        if packet_class is None:
            return OtherInstruction(servo_id, instruction, parameters)
        try:
            return packet_class._from_parameters(servo_id, parameters)
        except (ValueError, struct.error):
            return OtherInstruction(servo_id, instruction, parameters)


def _error_code(code: int) -> int:
    try:
        return ErrorCode(code)
    except ValueError:
        return code


def _header(servo_id: int, length: int) -> bytes:
    if not (0 <= servo_id <= MAX_ID or servo_id == BROADCAST_ID):
        raise ContractError(f"got ID {servo_id}, expected 0 to {MAX_ID}, or {BROADCAST_ID} for all servos")
    if length > MAX_LENGTH:
        raise ContractError(f"packet with LEN {length}, at most {MAX_LENGTH} fit. Use fewer servos or fewer bytes.")
    return HEADER + struct.pack("<BH", servo_id, length)


def _stuffed_packet(servo_id: int, body: bytes) -> bytes:
    """Return the packet with this ID, and with this instruction and parameters before stuffing."""
    body = body.replace(_STUFFED, _STUFFED + b"\xfd")
    packet = _header(servo_id, len(body) + _CRC_BYTES) + body
    return packet + struct.pack("<H", crc16(packet))


def _unstuff(body: bytes) -> bytes:
    return body.replace(_STUFFED + b"\xfd", _STUFFED)


def _begun_header(buffer: bytearray) -> int:
    """Return how many bytes at the end may be the beginning of a header."""
    return next((count for count in range(len(HEADER) - 1, 0, -1) if buffer.endswith(HEADER[:count])), 0)
