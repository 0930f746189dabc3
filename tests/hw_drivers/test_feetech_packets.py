"""Feetech packets: bytes on the wire, and what the decoders make of damaged, foreign and late input."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hw_drivers.feetech.packets import (
    BROADCAST_ID,
    MAX_FRAME_BYTES,
    Action,
    ErrorFlag,
    Instruction,
    InstructionDecoder,
    OffsetCalibration,
    Ping,
    Read,
    RegWrite,
    Reset,
    Status,
    StatusDecoder,
    SyncRead,
    SyncWrite,
    Write,
    checksum,
)

GOAL = bytes.fromhex("00 08 00 00 E8 03")  # position 2048, time 0, speed 1000
# the worked examples of the vendor's protocol manual
EXAMPLES: list[tuple[Instruction, str]] = [
    (Ping(1), "FF FF 01 02 01 FB"),
    (Read(1, 0x38, 2), "FF FF 01 04 02 38 02 BE"),
    (Write(BROADCAST_ID, 5, b"\x01"), "FF FF FE 04 03 05 01 F4"),
    (Write(1, 0x2A, GOAL), "FF FF 01 09 03 2A 00 08 00 00 E8 03 D5"),
    (RegWrite(1, 0x2A, GOAL), "FF FF 01 09 04 2A 00 08 00 00 E8 03 D4"),
    (Action(BROADCAST_ID), "FF FF FE 02 05 FA"),
    (Reset(1), "FF FF 01 02 0A F2"),
    (SyncRead(0x38, 8, (1, 2)), "FF FF FE 06 82 38 08 01 02 36"),
    (
        SyncWrite(0x2A, tuple((servo_id, GOAL) for servo_id in (1, 2, 3, 4))),
        "FF FF FE 20 83 2A 06 01 00 08 00 00 E8 03 02 00 08 00 00 E8 03 03 00 08 00 00 E8 03 04 00 08 00 00 E8 03 58",
    ),
]

ids = st.integers(0, 253)
any_ids = st.integers(0, BROADCAST_ID)
spans = st.tuples(st.integers(0, 200), st.binary(min_size=1, max_size=40))
id_lists = st.lists(ids, min_size=1, max_size=20, unique=True)
instructions = st.one_of(
    st.builds(Ping, any_ids),
    st.builds(Action, any_ids),
    st.builds(Reset, any_ids),
    st.builds(OffsetCalibration, any_ids, st.sampled_from([b"", b"\x00\x08"])),
    st.builds(Read, ids, st.integers(0, 100), st.integers(1, 100)),
    st.builds(lambda servo_id, span: Write(servo_id, *span), any_ids, spans),
    st.builds(lambda servo_id, span: RegWrite(servo_id, *span), any_ids, spans),
    st.builds(lambda chosen, count: SyncRead(56, count, tuple(chosen)), id_lists, st.integers(1, 100)),
    st.builds(
        lambda chosen, data: SyncWrite(42, tuple((one, data) for one in chosen)), id_lists, st.binary(min_size=1, max_size=8)
    ),
)
errors = st.integers(0, 127).map(ErrorFlag)
statuses = st.builds(Status, ids, errors, st.binary(max_size=40))
quiet_noise = st.binary(max_size=300).map(lambda data: data.replace(b"\xff", b"\xfe"))


def expecting(request: Instruction, *, echo: bool = False) -> StatusDecoder:
    decoder = StatusDecoder(echo=echo)
    decoder.expect(request)
    return decoder


def read_of(status: Status) -> Instruction:
    return Read(status.servo_id, 0, len(status.data)) if status.data else Ping(status.servo_id)


def in_chunks(data: bytes, size: int) -> list[bytes]:
    return [data[start : start + size] for start in range(0, len(data), size)]


@pytest.mark.parametrize(("instruction", "hexadecimal"), EXAMPLES)
def test_the_manuals_examples_hold_in_both_directions(instruction: Instruction, hexadecimal: str) -> None:
    assert instruction.to_bytes() == bytes.fromhex(hexadecimal)
    assert InstructionDecoder().feed(bytes.fromhex(hexadecimal)) == [instruction]


def test_the_manuals_answers_decode_to_their_contents() -> None:
    answers = bytes.fromhex("FF FF 01 0A 00 00 08 00 00 00 00 79 1E 55 FF FF 02 0A 00 FF 07 00 00 00 00 77 23 53")
    assert expecting(SyncRead(0x38, 8, (1, 2))).feed(answers) == [
        Status(1, ErrorFlag(0), bytes.fromhex("00 08 00 00 00 00 79 1E")),
        Status(2, ErrorFlag(0), bytes.fromhex("FF 07 00 00 00 00 77 23")),
    ]


@given(st.lists(instructions, max_size=5), st.integers(1, 300))
def test_instructions_survive_the_wire_in_pieces_of_any_size(sent: list[Instruction], chunk: int) -> None:
    decoder = InstructionDecoder()
    stream = b"".join(instruction.to_bytes() for instruction in sent)
    assert [packet for piece in in_chunks(stream, chunk) for packet in decoder.feed(piece)] == sent
    assert (decoder.checksum_errors, decoder.resyncs) == (0, 0)


@given(statuses)
def test_an_answer_survives_the_wire_one_byte_at_a_time(status: Status) -> None:
    decoder = expecting(read_of(status))
    assert [packet for byte in status.to_bytes() for packet in decoder.feed(bytes([byte]))] == [status]


@given(st.lists(st.tuples(quiet_noise, instructions), min_size=1, max_size=4), st.integers(1, 64))
def test_noise_without_headers_costs_no_instruction_and_one_resynchronization(
    pieces: list[tuple[bytes, Instruction]], chunk: int
) -> None:
    decoder = InstructionDecoder()
    stream = b"".join(noise + instruction.to_bytes() for noise, instruction in pieces)
    received = [packet for piece in in_chunks(stream, chunk) for packet in decoder.feed(piece)]
    assert received == [instruction for _, instruction in pieces]
    assert decoder.resyncs == sum(bool(noise) for noise, _ in pieces)


@given(st.binary(max_size=600), st.integers(1, 300))
def test_any_input_is_survived_in_the_memory_of_one_frame(data: bytes, chunk: int) -> None:
    decoders: list[InstructionDecoder | StatusDecoder] = [InstructionDecoder(), expecting(Read(1, 56, 200)), StatusDecoder()]
    for decoder in decoders:
        for piece in in_chunks(data.replace(b"\x01\x02", b"\xff\xff"), chunk):
            decoder.feed(piece)
            assert len(decoder._buffer) < MAX_FRAME_BYTES


@given(st.binary(max_size=100))
def test_after_any_garbage_instructions_are_understood_again(garbage: bytes) -> None:
    """A header in the garbage may swallow what follows, but never more than one longest frame of it."""
    decoder = InstructionDecoder()
    decoder.feed(garbage)
    repeated = Ping(1).to_bytes() * (MAX_FRAME_BYTES // 6 + 2)
    assert decoder.feed(repeated)[-1] == Ping(1)


def test_a_header_with_a_length_that_the_protocol_does_not_allow_is_passed_over_at_once() -> None:
    decoder = InstructionDecoder()
    for length in (0, 1, 247, 255):
        assert decoder.feed(bytes([0xFF, 0xFF, 1, length]) + Ping(2).to_bytes()) == [Ping(2)]


def test_extra_header_bytes_before_a_frame_do_no_harm() -> None:
    assert InstructionDecoder().feed(b"\xff\xff\xff" + Ping(2).to_bytes()) == [Ping(2)]


@pytest.mark.parametrize(
    "body",
    [
        "01 02 77",
        "01 03 01 00",
        "01 03 02 38",
        "01 04 02 38 00",
        "FE 04 02 38 02",
        "01 02 03",
        "01 06 82 38 08 01 02",
        "FE 05 83 2A 01 01",
    ],
    ids=[
        "unknown",
        "ping-with-parameter",
        "short-read",
        "read-of-nothing",
        "broadcast-read",
        "empty-write",
        "sync-to-one",
        "sync-short",
    ],
)
def test_a_frame_that_is_no_instruction_is_skipped(body: str) -> None:
    content = bytes.fromhex(body)
    frame = b"\xff\xff" + content + bytes([checksum(content)])
    decoder = InstructionDecoder()
    assert decoder.feed(frame + Ping(9).to_bytes()) == [Ping(9)]
    assert decoder.resyncs == 1


def test_no_flipped_bit_of_an_awaited_answer_gives_an_answer_and_the_repeated_one_is_found() -> None:
    status = Status(3, ErrorFlag(0), bytes.fromhex("00 08 10 00 64 80 4A 19"))
    encoded = status.to_bytes()
    for bit in range(8 * len(encoded)):
        damaged = bytearray(encoded)
        damaged[bit // 8] ^= 1 << bit % 8
        decoder = expecting(Read(3, 56, 8))
        assert decoder.feed(bytes(damaged)) == [], f"bit {bit}"
        assert decoder.feed(encoded) == [status], f"bit {bit}"


def test_a_wrong_checksum_is_counted() -> None:
    decoder = expecting(Ping(1))
    assert decoder.feed(bytes.fromhex("FF FF 01 02 00 FD")) == []
    assert decoder.checksum_errors == 1


@given(statuses, statuses)
def test_only_the_awaited_id_and_length_are_accepted(awaited: Status, other: Status) -> None:
    accepted = expecting(read_of(awaited)).feed(other.to_bytes())
    fits = (other.servo_id, len(other.data)) == (awaited.servo_id, len(awaited.data))
    assert accepted == ([other] if fits else [])


def test_an_answer_of_another_id_or_length_before_the_right_one_does_not_take_its_place() -> None:
    right = Status(1, ErrorFlag(0), b"\x00\x08")
    others = [Status(2, ErrorFlag(0), b"\x01\x01"), Status(1, ErrorFlag(0), b"\x05"), Status(1)]
    stream = b"".join(status.to_bytes() for status in [*others, right])
    assert expecting(Read(1, 56, 2)).feed(stream) == [right]


def test_an_answer_is_accepted_only_once_and_nothing_when_nothing_was_asked() -> None:
    status = Status(1, ErrorFlag(0), b"\x00\x08")
    assert StatusDecoder().feed(status.to_bytes()) == []
    assert expecting(Read(1, 56, 2)).feed(2 * status.to_bytes()) == [status]
    assert expecting(Write(BROADCAST_ID, 40, b"\x00")).feed(Status(1).to_bytes()) == []


def test_a_silent_servo_of_a_sync_read_is_passed_over_and_its_late_answer_refused() -> None:
    decoder = expecting(SyncRead(56, 2, (5, 1, 3)))
    answers = {servo_id: Status(servo_id, ErrorFlag(0), bytes([servo_id, 8])) for servo_id in (5, 1, 3)}
    assert decoder.feed(answers[5].to_bytes()) == [answers[5]]
    assert decoder.awaited_ids == (1, 3)
    assert decoder.feed(answers[3].to_bytes() + answers[1].to_bytes()) == [answers[3]]
    assert decoder.awaited_ids == ()


def test_expecting_forgets_the_beginning_of_an_earlier_answer() -> None:
    decoder = expecting(Read(1, 56, 2))
    late = Status(1, ErrorFlag(0), b"\x11\x11").to_bytes()
    decoder.feed(late[:4])
    decoder.expect(Read(1, 56, 2))
    assert decoder.feed(late[4:]) == []


def test_an_error_byte_that_no_servo_sends_is_refused() -> None:
    content = bytes([1, 2, 0x80])
    assert expecting(Ping(1)).feed(b"\xff\xff" + content + bytes([checksum(content)])) == []


@given(instructions.filter(lambda instruction: len(instruction.answering_ids) == 1), errors, st.integers(1, 8))
def test_the_echo_of_a_request_is_dropped_where_the_adapter_echoes(request: Instruction, error: ErrorFlag, chunk: int) -> None:
    decoder = expecting(request, echo=True)
    answer = Status(*request.answering_ids, error, bytes(request.answer_bytes))
    stream = request.to_bytes() + answer.to_bytes()
    assert [packet for piece in in_chunks(stream, chunk) for packet in decoder.feed(piece)] == [answer]


def test_a_ping_and_the_answer_of_a_servo_with_a_voltage_alarm_are_the_same_bytes() -> None:
    assert Ping(1).to_bytes() == Status(1, ErrorFlag.VOLTAGE).to_bytes()
    assert expecting(Ping(1), echo=True).feed(Ping(1).to_bytes()) == []


def test_a_damaged_echo_costs_no_answer() -> None:
    request, answer = Read(1, 56, 2), Status(1, ErrorFlag(0), b"\x00\x08")
    damaged = bytes([0x7F]) + request.to_bytes()[1:-1] + b"\x00"
    assert expecting(request, echo=True).feed(damaged + answer.to_bytes()) == [answer]


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: Ping(255), "0 to 254, got 255"),
        (lambda: Read(BROADCAST_ID, 56, 2), "0 to 253, got 254"),
        (lambda: Read(1, 56, 0), "got 0"),
        (lambda: Read(1, 0, 245), "1 to 244 bytes"),
        (lambda: Read(1, 255, 2), "1 to 1 bytes"),
        (lambda: Write(1, 256, b"x"), "address must be 0 to 255"),
        (lambda: Write(1, 0, bytes(244)).to_bytes(), "at most 250"),
        (lambda: SyncRead(56, 2, (1, 2, 1)), "none twice"),
        (lambda: SyncRead(56, 2, ()), "at least one ID"),
        (lambda: SyncWrite(42, ((1, b"ab"), (2, b"a"))), "equally many"),
        (lambda: SyncWrite(42, tuple((one, bytes(6)) for one in range(40))).to_bytes(), "frame of 288 bytes"),
        (lambda: OffsetCalibration(1, b"x"), "no data or 2 bytes"),
        (lambda: Status(254), "0 to 253"),
        (lambda: Status(1, ErrorFlag(128)), "0 to 127"),
    ],
)
def test_packets_that_cannot_be_are_refused_when_built(build: object, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build()  # type: ignore[operator]
