"""Protocol 2.0: the manual's example packets, round trips, and the decoders' behaviour on damaged input."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dpg_robot.errors import ContractError
from hw_drivers.dynamixel.packets import (
    BROADCAST_ID,
    MAX_LENGTH,
    Action,
    BulkRead,
    BulkWrite,
    Clear,
    ErrorCode,
    FactoryReset,
    FastBulkRead,
    FastStatus,
    FastSyncRead,
    InstructionDecoder,
    InstructionPacket,
    OtherInstruction,
    Packet,
    Ping,
    Read,
    Reboot,
    RegWrite,
    ResetOption,
    Status,
    StatusDecoder,
    SyncRead,
    SyncWrite,
    Write,
    crc16,
)

# the examples of the manual, https://emanual.robotis.com/docs/en/dxl/protocol2/
INSTRUCTION_EXAMPLES: list[tuple[InstructionPacket, str]] = [
    (Ping(1), "FFFFFD00 01 0300 01 194E"),
    (Ping(BROADCAST_ID), "FFFFFD00 FE 0300 01 3142"),
    (Read(1, 132, 4), "FFFFFD00 01 0700 02 8400 0400 1D15"),
    (Write(1, 116, (512).to_bytes(4, "little")), "FFFFFD00 01 0900 03 7400 00020000 CA89"),
    (RegWrite(1, 104, (200).to_bytes(4, "little")), "FFFFFD00 01 0900 04 6800 C8000000 AE8E"),
    (Action(1), "FFFFFD00 01 0300 05 02CE"),
    (FactoryReset(1, ResetOption.ALL_BUT_ID), "FFFFFD00 01 0400 06 01 A1E6"),
    (Reboot(1), "FFFFFD00 01 0300 08 2F4E"),
    (Clear(1), "FFFFFD00 01 0800 10 01 44584C22 B1DC"),
    (SyncRead.of(132, 4, [1, 2]), "FFFFFD00 FE 0900 82 8400 0400 01 02 CEFA"),
    (FastSyncRead.of(132, 4, [3, 7, 4]), "FFFFFD00 FE 0A00 8A 8400 0400 03 07 04 20F2"),
    (
        SyncWrite.of(116, [(1, (150).to_bytes(4, "little")), (2, (170).to_bytes(4, "little"))]),
        "FFFFFD00 FE 1100 83 7400 0400 01 96000000 02 AA000000 8287",
    ),
    (BulkRead.of([(1, 144, 2), (2, 146, 1)]), "FFFFFD00 FE 0D00 92 01 9000 0200 02 9200 0100 1A05"),
    (BulkWrite.of([(1, 32, b"\xa0\x00"), (2, 31, b"\x50")]), "FFFFFD00 FE 1000 93 01 2000 0200 A000 02 1F00 0100 50 B768"),
]
STATUS_EXAMPLES: list[tuple[Packet, str]] = [
    (Status(1, data=bytes.fromhex("060426")), "FFFFFD00 01 0700 55 00 060426 655D"),
    (Status(2, data=bytes.fromhex("1F080000")), "FFFFFD00 02 0800 55 00 1F080000 BABE"),
    (Status(1), "FFFFFD00 01 0400 55 00 A10C"),
    (
        FastStatus.of([Status(3, data=b"\xa6\0\0\0"), Status(7, data=b"\x1f\x08\0\0"), Status(4, data=b"\xff\x03\0\0")]),
        "FFFFFD00 FE 1900 55 00 03 A6000000 8408 00 07 1F080000 16CA 00 04 FF030000 D19E",
    ),
]

ids = st.integers(0, 252)
words = st.integers(0, 0xFFFF)
header_like = st.sampled_from([b"\xff", b"\xff\xff\xfd", b"\xff\xff\xfd\x00", b"\xfd", b"\xff\xff\xfd\xfd", b"\x00"])
tricky = st.lists(header_like | st.binary(max_size=4), max_size=12).map(b"".join)
noise = st.binary(max_size=60) | tricky


@st.composite
def sync_writes(draw: st.DrawFn) -> SyncWrite:
    length = draw(st.integers(0, 12))
    data = st.binary(min_size=length, max_size=length)
    return SyncWrite.of(draw(words), draw(st.lists(st.tuples(ids, data), min_size=1, max_size=8)))


instructions = st.one_of(
    st.builds(Ping, ids),
    st.builds(Read, ids, words, words),
    st.builds(Write, ids, words, tricky),
    st.builds(RegWrite, ids, words, tricky),
    st.builds(Action, ids),
    st.builds(FactoryReset, ids, st.integers(0, 255)),
    st.builds(Reboot, ids),
    st.builds(Clear, ids, tricky),
    st.builds(SyncRead.of, words, words, st.lists(ids, max_size=30)),
    st.builds(FastSyncRead.of, words, words, st.lists(ids, max_size=30)),
    sync_writes(),
    st.builds(BulkRead.of, st.lists(st.tuples(ids, words, words), max_size=20)),
    st.builds(FastBulkRead.of, st.lists(st.tuples(ids, words, words), max_size=20)),
    st.builds(BulkWrite.of, st.lists(st.tuples(ids, words, tricky), max_size=8)),
    st.builds(OtherInstruction, ids, st.sampled_from([0x07, 0x20, 0x77]), tricky),
)
statuses = st.builds(Status, ids, st.integers(0, 127), st.booleans(), tricky)


def bitwise_crc(data: bytes) -> int:
    crc = 0
    for byte in data:
        crc ^= byte << 8
        for _ in range(8):
            crc = crc << 1 ^ (0x18005 if crc & 0x8000 else 0)
    return crc


@given(st.binary(max_size=300), st.integers(0, 300))
def test_the_crc_is_that_of_the_polynomial_and_can_be_continued(data: bytes, cut: int) -> None:
    assert crc16(data) == bitwise_crc(data)
    assert crc16(data[cut:], crc16(data[:cut])) == bitwise_crc(data)


@pytest.mark.parametrize(("packet", "example"), INSTRUCTION_EXAMPLES, ids=lambda value: type(value).__name__)
def test_instruction_packets_are_those_of_the_manual(packet: InstructionPacket, example: str) -> None:
    assert packet.to_bytes() == bytes.fromhex(example)
    assert InstructionDecoder().feed(bytes.fromhex(example)) == [packet]


@pytest.mark.parametrize(("packet", "example"), STATUS_EXAMPLES, ids=lambda value: type(value).__name__)
def test_status_packets_are_those_of_the_manual(packet: Packet, example: str) -> None:
    assert packet.to_bytes() == bytes.fromhex(example)
    assert StatusDecoder().feed(bytes.fromhex(example)) == [packet]


@given(st.lists(instructions, max_size=4), st.integers(1, 40))
def test_instruction_packets_survive_the_wire_in_pieces_of_any_size(sent: list[InstructionPacket], size: int) -> None:
    stream = b"".join(packet.to_bytes() for packet in sent)
    decoder = InstructionDecoder()
    received = [packet for at in range(0, len(stream), size) for packet in decoder.feed(stream[at : at + size])]
    assert received == sent
    assert (decoder.packets, decoder.crc_errors, decoder.resyncs) == (len(sent), 0, 0)


@given(st.lists(statuses, max_size=4), st.integers(1, 40))
def test_status_packets_survive_the_wire_in_pieces_of_any_size(sent: list[Status], size: int) -> None:
    stream = b"".join(packet.to_bytes() for packet in sent)
    decoder = StatusDecoder()
    assert [packet for at in range(0, len(stream), size) for packet in decoder.feed(stream[at : at + size])] == sent
    assert (decoder.crc_errors, decoder.resyncs) == (0, 0)


@given(instructions | statuses)
def test_no_header_shows_up_inside_a_packet(packet: Packet) -> None:
    assert packet.to_bytes().find(b"\xff\xff\xfd\x00", 1) == -1


def test_the_alert_bit_and_the_error_code_are_told_apart() -> None:
    (status,) = StatusDecoder().feed(Status(4, ErrorCode.ACCESS, alert=True).to_bytes())
    assert status == Status(4, ErrorCode.ACCESS, True)
    assert isinstance(status, Status)
    assert status.error_byte == 0x87


@given(st.lists(statuses, min_size=1, max_size=5), st.integers(1, 40))
def test_a_fast_status_is_split_into_the_parts_of_its_servos(parts: list[Status], size: int) -> None:
    pieces = FastStatus.pieces(parts)
    stream = b"".join(pieces)
    assert len(pieces) == len(parts)
    decoder = StatusDecoder()
    (packet,) = [packet for at in range(0, len(stream), size) for packet in decoder.feed(stream[at : at + size])]
    assert isinstance(packet, FastStatus)
    assert packet.split([len(part.data) for part in parts]) == parts
    assert packet.to_bytes() == stream


def test_a_fast_status_of_another_size_than_asked_for_is_refused() -> None:
    packet = FastStatus.of([Status(1, data=b"1234"), Status(2, data=b"1234")])
    with pytest.raises(ContractError, match="14 bytes, expected 22 for 3 servos"):
        FastStatus(packet.body).split([4, 4, 4])


@given(noise, statuses, noise)
def test_the_decoder_never_raises_and_finds_the_packet_behind_garbage(before: bytes, sent: Status, after: bytes) -> None:
    decoder = StatusDecoder()
    received = decoder.feed(before + sent.to_bytes() + after)
    if not received:  # the garbage began a packet that still goes on
        received = decoder.feed(bytes(MAX_LENGTH))
    assert sent in received


@given(noise, instructions)
def test_so_does_the_decoder_of_the_servos(before: bytes, sent: InstructionPacket) -> None:
    decoder = InstructionDecoder()
    received = decoder.feed(before + sent.to_bytes())
    if not received:
        received = decoder.feed(bytes(MAX_LENGTH))
    assert sent in received


@given(statuses, st.data())
def test_a_packet_with_a_flipped_bit_is_not_accepted(sent: Status, data: st.DataObject) -> None:
    packet = bytearray(sent.to_bytes())
    bit = data.draw(st.integers(0, 8 * len(packet) - 1))
    packet[bit // 8] ^= 1 << bit % 8
    decoder = StatusDecoder()
    assert decoder.feed(bytes(packet)) == []
    decoder.reset()
    assert decoder.feed(sent.to_bytes()) == [sent]


@given(st.lists(noise, max_size=30))
def test_the_decoder_holds_at_most_one_longest_packet(pieces: list[bytes]) -> None:
    decoder = StatusDecoder()
    for piece in pieces:
        decoder.feed(piece)
        assert len(decoder._buffer) <= 7 + MAX_LENGTH


def test_the_counters_say_what_was_skipped() -> None:
    decoder = StatusDecoder()
    wrong_crc = bytes.fromhex("FFFFFD00010400550000FF")
    assert decoder.feed(b"noise" + Status(1).to_bytes() + wrong_crc + b"more noise" + Status(2).to_bytes()) == [
        Status(1),
        Status(2),
    ]
    assert (decoder.packets, decoder.crc_errors, decoder.resyncs) == (2, 1, 2)
    decoder.feed(Status(3).to_bytes()[:6])
    decoder.reset()
    assert decoder.resyncs == 3
    assert decoder.feed(b"noise" + Status(4).to_bytes()) == [Status(4)]
    assert decoder.resyncs == 4


@pytest.mark.parametrize("length", [0, 3, 61, MAX_LENGTH + 1, 0xFFFF])
def test_a_length_that_no_answer_has_does_not_hold_the_decoder_up(length: int) -> None:
    decoder = StatusDecoder(max_length=60)
    liar = b"\xff\xff\xfd\x00\x01" + length.to_bytes(2, "little") + b"\x55"
    assert decoder.feed(liar + Status(2).to_bytes()) == [Status(2)]


def test_an_echo_of_the_request_is_skipped_and_so_are_answers_of_other_servos() -> None:
    request, answer = SyncRead.of(132, 4, [1, 2]), Status(1, data=b"1234")
    assert StatusDecoder().feed(request.to_bytes() + answer.to_bytes()) == [answer]
    assert InstructionDecoder().feed(answer.to_bytes() + request.to_bytes()) == [request]


def test_an_instruction_whose_parameters_do_not_fit_keeps_its_code() -> None:
    short = OtherInstruction(1, 0x02, b"\x84\x00\x04")
    assert InstructionDecoder().feed(short.to_bytes()) == [short]


@pytest.mark.parametrize(
    ("packet", "said"),
    [
        (Ping(253), "got ID 253"),
        (Read(1, 70_000, 4), "cannot be sent"),
        (SyncRead.of(132, 4, [300]), "cannot be sent"),
        (SyncWrite.of(116, [(1, b"1234"), (2, b"12")]), "bytes, expected one length for all servos"),
        (Write(1, 0, bytes(MAX_LENGTH)), "at most 1024 fit"),
    ],
)
def test_a_packet_that_cannot_be_sent_is_refused(packet: InstructionPacket, said: str) -> None:
    with pytest.raises(ContractError, match=said):
        packet.to_bytes()
