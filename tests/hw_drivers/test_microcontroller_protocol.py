"""The microcontroller protocol: frames, the decoder's behaviour on damaged input, and the document's test vectors."""

import math
import re
import struct
import zlib
from pathlib import Path

import pytest
from cobs import cobs
from hypothesis import given
from hypothesis import strategies as st

from dpg_robot.contract import CommandChannel, MeasurementChannel
from dpg_robot.deploy.robot import DeviceFlag
from dpg_robot.errors import ContractError
from hw_drivers.microcontroller import (
    MAX_FRAME_BYTES,
    Ack,
    Command,
    Decoder,
    Disable,
    Enable,
    Frame,
    FrameError,
    FrameFault,
    Hello,
    Identity,
    Nack,
    NackReason,
    ReadState,
    State,
)

DOCUMENT = Path(__file__).parents[2] / "docs" / "microcontroller-protocol.md"

sequences = st.integers(1, 2**32 - 1)
times_us = st.integers(0, 2**64 - 1)
singles = st.floats(width=32, allow_nan=False)
values = st.lists(singles, max_size=32).map(tuple)
texts = st.text(max_size=8)
measurement_channels = st.lists(st.builds(MeasurementChannel, texts, texts), max_size=6).map(tuple)
command_channels = st.lists(st.builds(CommandChannel, texts, texts, singles, singles), max_size=6).map(tuple)
frames = st.one_of(
    st.builds(Hello, sequences),
    st.builds(Enable, sequences),
    st.builds(Disable, sequences),
    st.builds(ReadState, sequences),
    st.builds(Command, sequences, values),
    st.builds(Ack, sequences, times_us),
    st.builds(Nack, sequences, times_us, st.sampled_from(NackReason)),
    st.builds(State, sequences, times_us, st.integers(0, 2**16 - 1).map(DeviceFlag), sequences, values),
    st.builds(Identity, sequences, times_us, st.integers(0, 2**32 - 1), texts, texts, measurement_channels, command_channels),
)
noise = st.binary(max_size=200)
EXAMPLES: list[Frame] = [
    Hello(7),
    Command(0x00FF00FF, (1.5, -2.0)),
    State(8, 123456, DeviceFlag.ENABLED, 7, (0.1, 0.0, -3.0)),
    Nack(9, 0, NackReason.NOT_FINITE),
]


def body(version: int, message_type: int, payload: bytes = b"") -> bytes:
    content = struct.pack("<BBI", version, message_type, 1) + payload
    return content + struct.pack("<I", zlib.crc32(content))


def on_wire(content: bytes) -> bytes:
    return b"\x00" + cobs.encode(content) + b"\x00"


@given(frames)
def test_every_frame_survives_a_round_trip(frame: Frame) -> None:
    assert type(frame).from_bytes(frame.to_bytes()) == frame


@given(st.lists(frames, max_size=5))
def test_a_stream_fed_one_byte_at_a_time_gives_the_same_frames(sent: list[Frame]) -> None:
    decoder = Decoder()
    stream = b"".join(frame.to_bytes() for frame in sent)
    received = [frame for byte in stream for frame in decoder.feed(bytes([byte]))]
    assert received == sent
    assert decoder.bytes_received == len(stream)
    assert decoder.frames_received == len(sent)


@given(st.lists(st.tuples(noise, frames), min_size=1, max_size=5), st.integers(1, 64))
def test_noise_between_frames_costs_no_frame(pieces: list[tuple[bytes, Frame]], chunk: int) -> None:
    stream = b"".join(garbage + frame.to_bytes() for garbage, frame in pieces)
    decoder = Decoder()
    received = [frame for start in range(0, len(stream), chunk) for frame in decoder.feed(stream[start : start + chunk])]
    assert received == [frame for _, frame in pieces]


@given(noise)
def test_noise_alone_gives_no_frame_and_no_error(garbage: bytes) -> None:
    assert Decoder().feed(garbage + b"\x00") == []


@pytest.mark.parametrize("frame", EXAMPLES, ids=lambda frame: type(frame).__name__)
def test_no_single_bit_flip_gives_another_frame_and_the_next_frame_always_arrives(frame: Frame) -> None:
    following = Ack(77, 1)
    encoded = frame.to_bytes()
    for bit in range(len(encoded) * 8):
        damaged = bytearray(encoded)
        damaged[bit // 8] ^= 1 << bit % 8
        assert Decoder().feed(bytes(damaged) + following.to_bytes()) == [following], f"bit {bit}"


@given(frames, st.data())
def test_a_frame_cut_anywhere_is_dropped_and_the_next_frame_arrives(frame: Frame, data: st.DataObject) -> None:
    encoded = frame.to_bytes()
    cut = data.draw(st.integers(1, len(encoded) - 2))
    following = ReadState(5)
    assert Decoder().feed(encoded[:cut] + following.to_bytes()) == [following]


@pytest.mark.parametrize(
    ("damaged", "fault"),
    [
        (b"\x05\x01\x00", FrameFault.BAD_COBS),
        (on_wire(body(1, 0x01)[:-1] + b"\x55"), FrameFault.BAD_CRC),
        (on_wire(b"\x01\x02\x03"), FrameFault.MALFORMED),
        (on_wire(body(2, 0x01)), FrameFault.BAD_VERSION),
        (on_wire(body(1, 0x60)), FrameFault.UNKNOWN_TYPE),
        (on_wire(body(1, 0x01, b"extra")), FrameFault.MALFORMED),
        (on_wire(body(1, 0x05, b"\x00\x00\x80")), FrameFault.MALFORMED),
        (on_wire(body(1, 0x82, b"\x00" * 13)), FrameFault.MALFORMED),
        (on_wire(body(1, 0x84, b"\x00" * 8 + b"\xee")), FrameFault.MALFORMED),
        (on_wire(body(1, 0x81, b"\x00" * 12 + b"\x02\x00" + b"\x01a\x011\x09short")), FrameFault.MALFORMED),
        (b"\x01" * (2 * MAX_FRAME_BYTES) + b"\x00", FrameFault.OVERSIZED),
    ],
)
def test_each_kind_of_damage_is_counted_once_and_skipped(damaged: bytes, fault: FrameFault) -> None:
    decoder = Decoder()
    following = Hello(3)
    assert decoder.feed(damaged + following.to_bytes()) == [following]
    assert decoder.faults == {fault: 1}


def test_endless_input_without_a_delimiter_takes_no_more_memory_than_one_frame() -> None:
    decoder = Decoder()
    for _ in range(1000):
        decoder.feed(b"\x11" * 999)
        assert len(decoder._buffer) <= MAX_FRAME_BYTES + 5
    assert decoder.feed(Hello(1).to_bytes()) == [Hello(1)]
    assert decoder.faults == {FrameFault.OVERSIZED: 1}


def test_a_frame_of_another_class_than_asked_for_is_refused() -> None:
    with pytest.raises(FrameError, match="got Hello, expected Ack"):
        Ack.from_bytes(Hello(1).to_bytes())


def test_values_that_are_not_finite_are_carried_for_the_receiver_to_judge() -> None:
    (frame,) = Decoder().feed(State(1, 0, DeviceFlag(0), 0, (math.nan, math.inf)).to_bytes())
    assert isinstance(frame, State)
    assert math.isnan(frame.values[0])
    assert frame.values[1] == math.inf


def test_an_identity_that_does_not_fit_a_frame_says_so_when_it_is_built() -> None:
    channels = tuple(MeasurementChannel(f"a_rather_long_channel_name_{index}", "rad/s") for index in range(40))
    with pytest.raises(ContractError, match="at most 1024"):
        Identity(1, 0, 60_000, "robot", "1", channels, ()).to_bytes()


def documented_frames() -> list[tuple[str, str]]:
    block = re.search(r"```frames\n(.*?)```", DOCUMENT.read_text(), re.DOTALL)
    assert block is not None
    return [(lines[0], lines[1]) for lines in (item.splitlines() for item in block[1].strip().split("\n\n"))]


@pytest.mark.parametrize(("text", "hexadecimal"), documented_frames())
def test_the_documents_test_vectors_hold_in_both_directions(text: str, hexadecimal: str) -> None:
    frame = Frame.from_bytes(bytes.fromhex(hexadecimal))
    assert repr(frame) == text
    assert frame.to_bytes() == bytes.fromhex(hexadecimal)


def test_the_document_has_a_vector_for_every_message_type_and_the_crc() -> None:
    documented = {text.split("(")[0] for text, _ in documented_frames()}
    assert documented == {cls.__name__ for cls in (Hello, Enable, Disable, ReadState, Command, Identity, State, Ack, Nack)}
    assert f"`{zlib.crc32(b'123456789'):08X}`" in DOCUMENT.read_text()
