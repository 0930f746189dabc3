"""A short run of the fuzzers over every decoder, and the proof that they notice a broken one."""

import importlib
import json
import os
import random
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hw_drivers.dynamixel import packets as dynamixel
from hw_drivers.feetech import packets as feetech
from hw_drivers.microcontroller import Decoder

HERE = Path(__file__).parent
PYTHON_DECODERS = ("dynamixel-host", "dynamixel-device", "feetech-host", "feetech-device", "microcontroller")
DECODERS = (*PYTHON_DECODERS, "firmware")

begun_headers = st.sampled_from(
    [b"\xff", b"\xff\xff", b"\xff\xff\x01", b"\xff\xff\xfd\x00\x01\x20\x00\x55", b"\xff\xff\x01\xf0", b"\0"]
)
garbage = st.lists(st.binary(max_size=40) | begun_headers, max_size=5).map(b"".join)


@pytest.fixture(scope="module")
def fuzz() -> Iterator[ModuleType]:
    """The program beside the tests."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(HERE)
        yield importlib.import_module("fuzz_decoders")


@pytest.mark.parametrize("name", DECODERS)
def test_damaged_streams_break_no_rule_and_pass_no_more_often_than_chance_allows(fuzz: ModuleType, name: str) -> None:
    if name == "firmware" and fuzz.COMPILER is None:
        pytest.skip("no C compiler on this computer")
    result = fuzz.run_random(fuzz.TARGETS[name], 40_000, seed=5)
    assert result.accepted <= result.bound
    assert min(result.intact, result.checked) > 100
    assert result.returned > 0.9 * result.intact


@pytest.mark.parametrize("name", PYTHON_DECODERS)
@settings(max_examples=60, deadline=None)
@given(before=garbage, seed=st.integers(0, 2**32))
def test_the_frame_behind_garbage_is_there_when_one_longest_frame_has_come(
    fuzz: ModuleType, name: str, before: bytes, seed: int
) -> None:
    """Unless a frame that was accepted by chance overlaps it, or has used up the request."""
    target, draw = fuzz.TARGETS[name], random.Random(seed)
    (frame, *_) = target.frames(0, draw) or [b""]
    filler = bytes(max(0, target.longest - 1 - len(frame)))
    parsed = target.check(b"\0" + before + frame + filler)  # finds what the decoder finds, or raises
    sent = target.intact(len(before), len(before) + len(frame))
    assert not frame or sent in parsed.frames or any(fuzz.excuses(target, false, sent) for false in parsed.frames)


def test_the_frame_behind_garbage_is_there_at_once_where_delimiters_part_them(fuzz: ModuleType) -> None:
    target = fuzz.TARGETS["microcontroller"]
    draw = random.Random(2)
    for frame in (frame for _ in range(100) for frame in target.frames(0, draw)):
        assert [one.to_bytes() for one in Decoder().feed(draw.randbytes(draw.randrange(300)) + frame)] == [frame]


@pytest.mark.parametrize(
    ("name", "owner", "method", "broken"),
    [
        ("dynamixel-host", dynamixel._Decoder, "_skip", lambda self, count: self._buffer.__delitem__(slice(0, 2 * count))),
        ("dynamixel-device", dynamixel, "_unstuff", lambda body: body),
        ("feetech-device", feetech._Decoder, "_skip", lambda self: self._buffer.clear()),
        ("feetech-host", feetech.StatusDecoder, "_without_echo", lambda self, data: data),
        ("microcontroller", Decoder, "_append", lambda self, segment: self._buffer.__iadd__(segment)),
    ],
)
def test_a_broken_decoder_is_noticed_and_the_input_is_shrunk(
    fuzz: ModuleType, monkeypatch: pytest.MonkeyPatch, name: str, owner: object, method: str, broken: object
) -> None:
    monkeypatch.setattr(owner, method, broken)
    with pytest.raises(AssertionError, match="reproduce with: --input") as caught:
        fuzz.run_random(fuzz.TARGETS[name], 500_000, seed=1)
    small = bytes.fromhex(str(caught.value).split()[-1])
    assert fuzz.fails(fuzz.TARGETS[name], small)
    assert len(small) < 1100


def test_an_echo_that_lost_bytes_costs_no_answer_in_whatever_pieces_it_comes() -> None:
    """Found by the fuzzer: the answer's first bytes passed for the rest of the echo when they came in a piece of their own."""
    answer = feetech.Status(1, feetech.ErrorFlag(0))
    for received in (answer.to_bytes(), b"\xff" + answer.to_bytes(), feetech.Ping(1).to_bytes()[:3] + answer.to_bytes()):
        for size in range(1, len(received) + 1):
            decoder = feetech.StatusDecoder(echo=True)
            decoder.expect(feetech.Ping(1))
            pieces = [received[at : at + size] for at in range(0, len(received), size)]
            assert [packet for piece in pieces for packet in decoder.feed(piece)] == [answer]


def test_a_header_that_begins_with_the_instruction_is_stuffed_and_unstuffed() -> None:
    """Found by the fuzzer: the extra byte stayed among the parameters when the instruction itself was ``FF``."""
    packet = dynamixel.OtherInstruction(1, 0xFF, b"\xff\xfd\x00\x07")
    assert packet.to_bytes()[7:12] == b"\xff\xff\xfd\xfd\x00"
    assert dynamixel.InstructionDecoder().feed(packet.to_bytes()) == [packet]


def test_the_guided_search_runs_where_atheris_is_installed(fuzz: ModuleType) -> None:
    pytest.importorskip("atheris")
    result = fuzz.run_guided(fuzz.TARGETS["dynamixel-device"], 50_000, seed=1)
    assert result["bytes"] >= 50_000
    assert min(result["edges"], result["corpus"]) > 30


def test_the_program_writes_what_it_has_done_and_repeats_one_input(tmp_path: Path) -> None:
    report = tmp_path / "fuzz.json"

    def run(*options: object) -> str:
        command = [sys.executable, HERE / "fuzz_decoders.py", "--decoder", "feetech-host", *map(str, options)]
        environment = {**os.environ, "PYTHONPATH": str(HERE.parents[1])}
        return subprocess.run(command, capture_output=True, text=True, check=True, env=environment).stdout

    run("--bytes", 5000, "--guided-bytes", 0, "--json", report)
    content = json.loads(report.read_text())
    assert content["decoders"]["feetech-host"]["random"]["bytes"] >= 5000
    assert content["versions"]["python"]
    assert "frames=[(0, 6)]" in run("--input", "06ffff010200fc")
