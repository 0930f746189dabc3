import json
import struct
import zlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dpg_robot.shipping.piece import MAX_PIECE_BYTES, Confirmation, Piece, PieceError, Seal

DIGEST = "0123456789abcdef" * 4
PIECE = Piece("arm1", "run-1", 3, 8, b"bytes", previous=2, seal=Seal(13, DIGEST), records=1, first_sequence=7, last_sequence=7)


def packed(header, data=b"", magic=b"DPGP", version=1):
    text = json.dumps(header).encode() if not isinstance(header, bytes) else header
    content = struct.pack("<4sBI", magic, version, len(text)) + text + data
    return content + struct.pack("<I", zlib.crc32(content))


def header_of(piece):
    return json.loads(piece.to_bytes()[9:].split(b"bytes")[0])


@given(
    robot=st.from_regex(r"[A-Za-z0-9][A-Za-z0-9_-]{0,63}", fullmatch=True),
    run=st.from_regex(r"[A-Za-z0-9_-][A-Za-z0-9._-]{0,127}", fullmatch=True),
    segment=st.integers(0, 999_999),
    offset=st.integers(0, 2**20),
    data=st.binary(max_size=200),
    sequence=st.integers(0, 2**64 - 1),
    generation=st.integers(0, 2**53),
)
def test_what_was_packed_is_unpacked(robot, run, segment, offset, data, sequence, generation):
    piece = Piece(robot, run, segment, offset, data, None, None, 1, sequence, sequence, generation)
    assert Piece.from_bytes(piece.to_bytes()) == piece
    confirmation = Confirmation(robot, run, segment, offset, "stored", Seal(offset, DIGEST), sequence, generation)
    assert Confirmation.from_bytes(confirmation.to_bytes()) == confirmation


def test_every_flipped_bit_is_noticed():
    content = PIECE.to_bytes()
    for bit in range(8 * len(content)):
        damaged = bytearray(content)
        damaged[bit // 8] ^= 1 << bit % 8
        with pytest.raises(PieceError):
            Piece.from_bytes(bytes(damaged))


@given(st.binary(max_size=300))
def test_any_other_bytes_are_refused(content):
    for kind in (Piece, Confirmation):
        with pytest.raises(PieceError):
            kind.from_bytes(content)


@given(st.recursive(st.none() | st.booleans() | st.integers() | st.floats() | st.text(), st.lists, max_leaves=3), st.data())
def test_a_header_with_any_other_value_is_refused_or_valid(value, data):
    header = header_of(PIECE)
    name = data.draw(st.sampled_from(sorted(header)))
    try:
        piece = Piece.from_bytes(packed(header | {name: value}, b"bytes"))
    except PieceError:
        return
    assert Piece.from_bytes(piece.to_bytes()) == piece


@pytest.mark.parametrize("name", ["", ".", "..", "../x", "a/b", "a.b", "-a", "a\n", "a\0", "a*", "a>", "x" * 65, "ä", None, 3])
def test_a_robot_name_that_could_leave_its_place_is_refused(name):
    with pytest.raises(PieceError, match="robot"):
        Piece.from_bytes(packed(header_of(PIECE) | {"robot": name}, b"bytes"))


@pytest.mark.parametrize("run", ["", ".", "..", "../x", "a/b", ".aside", "a\n", "a\0", "a*", "a>", "x" * 129, None, 3])
def test_a_run_id_that_could_leave_its_place_is_refused(run):
    with pytest.raises(PieceError, match="run"):
        Piece.from_bytes(packed(header_of(PIECE) | {"run": run}, b"bytes"))


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("segment", -1),
        ("segment", 1_000_000),
        ("segment", True),
        ("segment", 1.0),
        ("offset", 2**40),
        ("previous", 3),
        ("first_sequence", 2**64),
        ("generation", -1),
        ("seal", {"size": 13}),
        ("seal", {"size": 12, "sha256": DIGEST}),
        ("seal", {"size": 13, "sha256": "../" * 22}),
    ],
)
def test_a_number_out_of_bounds_is_refused(name, value):
    with pytest.raises(PieceError):
        Piece.from_bytes(packed(header_of(PIECE) | {name: value}, b"bytes"))


def test_an_unknown_key_a_missing_key_and_deep_nesting_are_refused():
    header = header_of(PIECE)
    for other in (header | {"more": 1}, {key: header[key] for key in header if key != "run"}, b"[" * 4000):
        with pytest.raises(PieceError):
            Piece.from_bytes(packed(other, b"bytes"))


def test_an_oversized_piece_and_an_oversized_header_are_refused():
    header = header_of(PIECE) | {"seal": None}
    with pytest.raises(PieceError, match="at most"):
        Piece.from_bytes(packed(header, b"x" * (MAX_PIECE_BYTES + 1)))
    with pytest.raises(PieceError, match="header"):
        Piece.from_bytes(packed(json.dumps(header).encode() + b" " * 5000))


def test_another_version_is_named():
    with pytest.raises(PieceError, match="same version"):
        Piece.from_bytes(packed(header_of(PIECE), b"bytes", version=2))


def test_what_is_sent_again_on_purpose_has_another_message_id():
    again = Piece.from_bytes(packed(header_of(PIECE) | {"generation": 1}, b"bytes"))
    assert again.message_id != PIECE.message_id
    assert Piece.from_bytes(PIECE.to_bytes()).message_id == PIECE.message_id
