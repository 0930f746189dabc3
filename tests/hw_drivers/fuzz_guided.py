"""The coverage-guided part of ``fuzz_decoders.py``: inputs that reach new branches of a decoder are kept and varied further.

Needs ``pip install atheris``, that is LLVM's libFuzzer with the branches of Python code as its guide. libFuzzer ends the process
by itself, so each decoder gets a process of its own, started by ``fuzz_decoders.py``. One seed gives one sequence of inputs.
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import random
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import atheris

if TYPE_CHECKING:  # imported for good only when atheris watches
    from fuzz_target import Target

MAX_BYTES = 1600
"""Longest input: some longer than the longest frame of all."""
NUM_BEGINNINGS = 100


def parse_arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("decoder")
    parser.add_argument("--bytes", type=int, required=True, help="end after so many")
    parser.add_argument("--seed", type=int, required=True)
    parser.add_argument("--folder", type=Path, required=True, help="for inputs worth keeping, the result and a failing input")
    return parser.parse_args()


def watched_target(name: str) -> Target:
    """Return the target, with the modules that it watches under observation."""
    with atheris.instrument_imports(
        include=[
            "hw_drivers.dynamixel.packets",
            "hw_drivers.emulators.microcontroller",
            "hw_drivers.feetech.packets",
            "hw_drivers.microcontroller",
        ]
    ):
        targets: dict[str, Target] = importlib.import_module("fuzz_decoders").TARGETS
    return targets[name]


def mutator(target: Target) -> Any:
    """Return how inputs are varied: as libFuzzer does, and as it would hardly ever by chance."""

    def mutate(data: bytes, max_size: int, seed: int) -> bytes:
        draw = random.Random(seed)
        if draw.random() < 0.6 or not data:
            data = atheris.Mutate(data, max_size) or b"\0"
        variant, stream = data[0] % target.variants, data[1:]
        at = draw.randrange(len(stream) + 1)
        match draw.randrange(10):
            case 0:
                stream = stream[:at] + b"".join(target.frames(variant, draw)[:3]) + stream[at:]
            case 1:
                stream = stream[:at] + target.planted(variant, draw) + stream[at:]
            case 2:
                stream = stream[:at] + stream[draw.randrange(len(stream) + 1) :]
            case 3 if at < len(stream):
                stream = stream[:at] + bytes([draw.choice((0, 1, 2, 4, 0x7F, 0x80, 0xFD, 0xFE, 0xFF))]) + stream[at + 1 :]
            case 4:
                more = target.resized(draw.choice(target.frames(variant, draw) or [stream]), draw)
                stream = stream[:at] + more + stream[at:]
            case _:
                pass
        if draw.random() < 0.5:
            stream = target.seal(stream)
        return (data[:1] + stream)[:max_size]

    return mutate


def write_beginnings(target: Target, folder: Path, seed: int) -> None:
    """Write streams of whole frames to begin with."""
    draw = random.Random(f"{seed} {target.name}")
    for number in range(NUM_BEGINNINGS):
        variant = draw.randrange(target.variants)
        stream = target.prologue(variant, draw) + b"".join(target.frames(variant, draw)[:2])
        (folder / f"{number:03}").write_bytes(bytes([variant]) + stream[: MAX_BYTES - 1])


def main() -> None:
    """Search until so many bytes are used up."""
    arguments = parse_arguments()
    target = watched_target(arguments.decoder)
    corpus = arguments.folder / "corpus"
    corpus.mkdir()
    write_beginnings(target, corpus, arguments.seed)
    used = inputs = frames = checked = 0
    begun = time.monotonic()

    def test_one(data: bytes) -> None:
        nonlocal used, inputs, frames, checked
        if not data:
            return
        parsed = target.check(data)
        used, inputs = used + len(data) - 1, inputs + 1
        frames, checked = frames + len(parsed.frames), checked + parsed.checked
        if used >= arguments.bytes:
            result = {
                "bytes": used,
                "inputs": inputs,
                "frames": frames,
                "checked": checked,
                "seconds": round(time.monotonic() - begun, 1),
            }
            (arguments.folder / "result.json").write_text(json.dumps(result))
            sys.stderr.flush()
            os._exit(0)  # libFuzzer would go on

    options = [f"-seed={arguments.seed}", f"-max_len={MAX_BYTES}", "-len_control=0", "-reload=0", "-timeout=30"]
    options.append(f"-artifact_prefix={arguments.folder}/")
    atheris.Setup([sys.argv[0], *options, str(corpus)], test_one, custom_mutator=mutator(target))
    atheris.Fuzz()


if __name__ == "__main__":
    main()
