"""Feed every decoder random and damaged streams, then inputs that a coverage-guided search finds, and count what goes wrong.

    python tests/hw_drivers/fuzz_decoders.py --bytes 10_000_000 --json docs/results/fuzz.json

What must hold for any input is said in ``fuzz_target.py``. The random part needs nothing but this project; it also measures
how many damaged frames pass for whole ones, which chance allows as often as the check sum is short. The guided part needs
``pip install atheris`` (Linux, or macOS with LLVM); see ``fuzz_guided.py``. An input that breaks a rule is shrunk and printed.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import random
import re
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from fuzz_dynamixel import DynamixelDevice, DynamixelHost
from fuzz_feetech import FeetechDevice, FeetechHost
from fuzz_firmware import COMPILER, Firmware
from fuzz_microcontroller import Microcontroller
from fuzz_target import Parsed, Span, Target, ViolationError, demand
from scipy.stats import poisson

TARGETS: dict[str, Target] = {
    target.name: target
    for target in (DynamixelHost(), DynamixelDevice(), FeetechHost(), FeetechDevice(), Microcontroller(), Firmware())
}

CHANCE = 1e-6
"""How seldom a right decoder accepts more damaged frames than ``RandomResult.bound``."""


@dataclass
class RandomResult:
    """What random and damaged streams did to one decoder.

    Attributes:
        bytes: sent.
        streams: they came in so many pieces, each to a new decoder.
        intact: frames that were sent whole.
        returned: of these, frames that the decoder returned; the others were swallowed by damaged ones that it accepted.
        checked: damaged or random frames whose check sum had to be looked at.
        expected: of these, frames that chance lets pass: ``checked`` times 2 to the power of minus the sum's width.
        accepted: of these, frames that passed.
        bound: most that may pass.
        seconds: it took.
    """

    bytes: int = 0
    streams: int = 0
    intact: int = 0
    returned: int = 0
    checked: int = 0
    expected: float = 0.0
    accepted: int = 0
    bound: int = 0
    seconds: float = 0.0


def random_stream(target: Target, draw: random.Random) -> tuple[bytes, list[Span]]:
    """Return an input and where its whole frames are; so many zeros follow that nothing is held any more."""
    variant = draw.randrange(target.variants)
    stream, intact = target.prologue(variant, draw), []
    for frame in target.frames(variant, draw):
        is_after_rubbish = draw.random() < 0.7
        if is_after_rubbish:
            stream += rubbish(target, variant, frame, draw)
        if is_after_rubbish or draw.random() < 0.5:  # two cut pieces in a row could make a whole frame
            intact.append(target.intact(len(stream), len(stream) + len(frame)))
            stream += frame
    return bytes([variant]) + stream + bytes(target.longest), intact


def rubbish(target: Target, variant: int, frame: bytes, draw: random.Random) -> bytes:
    """Return bytes that are no whole frame except by chance."""
    at = draw.randrange(*target.intact(0, len(frame)))
    match draw.randrange(6):
        case 0:
            is_long = draw.random() < 0.01  # longer than the longest frame
            return draw.randbytes(draw.randrange(1, 60)) if not is_long else draw.randbytes(1) * draw.randrange(1000, 1200)
        case 1:  # unless the header of the next frame would complete it
            return b"" if frame.startswith(frame[at:]) else frame[:at]
        case 2:
            return frame[at + 1 :]
        case 3:
            flipped = frame[at] ^ 1 << draw.randrange(8)
            return frame[:at] + bytes([flipped]) + frame[at + 1 :]
        case 4:
            burst = bytes([frame[at] ^ draw.randrange(1, 256)]) + draw.randbytes(draw.randrange(1, 7))
            return frame[:at] + burst + frame[at + len(burst) :]
        case _:
            return b"".join(target.planted(variant, draw) for _ in range(draw.randrange(1, 8)))


def run_random(target: Target, num_bytes: int, seed: int) -> RandomResult:
    """Check a decoder with random and damaged streams. Raises ViolationError, or whatever the decoder raised, with the input."""
    draw, result, begun = random.Random(f"{seed} {target.name}"), RandomResult(), time.monotonic()
    while result.bytes < num_bytes:
        data, intact = random_stream(target, draw)
        parsed = checked(target, data)
        false = sorted(set(parsed.frames) - set(intact))
        returned = len(set(parsed.frames) & set(intact))
        lost = [span for span in set(intact) - set(parsed.frames) if not any(excuses(target, one, span) for one in false)]
        demand(not lost, f"whole frames at {lost} are not returned, although nothing false is in their way: {data.hex()}")
        result.bytes += len(data) - 1 - target.longest
        result.streams += 1
        result.intact += len(intact)
        result.returned += returned
        result.checked += parsed.checked - returned
        result.accepted += len(false)
    result.expected = result.checked / 2**target.sum_bits
    result.bound = int(poisson.isf(CHANCE, result.expected))
    result.seconds = round(time.monotonic() - begun, 1)
    return result


def excuses(target: Target, false: Span, lost: Span) -> bool:
    """Say whether a frame accepted by chance takes a whole one away: it overlaps it, or uses up the request before it."""
    return false[0] < lost[1] and (target.in_order or false[1] > lost[0])


def checked(target: Target, data: bytes) -> Parsed:
    """Check one input; one that fails is shrunk and said in the error."""
    try:
        return target.check(data)
    except Exception as error:
        small = shrunk(data, lambda candidate: fails(target, candidate))
        raise ViolationError(f"{target.name}: {type(error).__name__}: {error}\nreproduce with: --input {small.hex()}") from error


def fails(target: Target, data: bytes) -> bool:
    """Say whether an input breaks a rule."""
    try:
        target.check(data)
    except Exception:
        return True
    return False


def shrunk(data: bytes, is_bad: Callable[[bytes], bool]) -> bytes:
    """Leave out pieces behind the variant byte, ever smaller ones, as long as the input stays bad."""
    size = len(data) // 2
    while size:
        for at in range(len(data) - size, 0, -1):
            if at + size <= len(data) and is_bad(data[:at] + data[at + size :]):
                data = data[:at] + data[at + size :]
        size //= 2
    return data


def run_guided(target: Target, num_bytes: int, seed: int) -> dict[str, Any]:
    """Check a decoder, in a process of its own, with inputs that reach new branches. Raises ViolationError with the input."""
    with tempfile.TemporaryDirectory() as folder:
        program = Path(__file__).with_name("fuzz_guided.py")
        options = [target.name, "--bytes", str(num_bytes), "--seed", str(seed), "--folder", folder]
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "PYTHONHASHSEED": "0", "TMPDIR": folder}
        done = subprocess.run([sys.executable, program, *options], capture_output=True, text=True, check=False, env=environment)
        for bad in Path(folder).glob("crash-*"):
            checked(target, bad.read_bytes())
        demand(done.returncode == 0, f"the guided search has ended with code {done.returncode}:\n{done.stderr[-3000:]}")
        reached = re.findall(r" cov: (\d+) ft: (\d+) corp: (\d+)", done.stderr)[-1]
        found = dict(zip(("edges", "features", "corpus"), map(int, reached), strict=True))
        return {**json.loads((Path(folder) / "result.json").read_text()), **found}


def versions() -> dict[str, str]:
    """Return versions of what was used."""

    def of(package: str) -> str:
        try:
            return version(package)
        except PackageNotFoundError:
            return "none"

    compiler = "none"
    if COMPILER is not None:
        compiler = subprocess.run([COMPILER, "--version"], capture_output=True, text=True, check=True).stdout.splitlines()[0]
    packages = {name: of(name) for name in ("atheris", "cobs", "numpy")}
    return {"python": platform.python_version(), "machine": platform.machine(), "compiler": compiler, **packages}


def parse_arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--decoder", nargs="+", choices=[*TARGETS], default=[*TARGETS], help="default: all")
    parser.add_argument("--bytes", type=int, default=1_000_000, help="random and damaged bytes for each decoder")
    parser.add_argument("--guided-bytes", type=int, help="bytes of the coverage-guided search for each; default: as many")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--json", type=Path, help="where the results go")
    parser.add_argument("--input", type=bytes.fromhex, help="check this one input of the one decoder, and nothing else")
    return parser.parse_args()


def results(arguments: argparse.Namespace) -> Iterator[tuple[str, dict[str, Any]]]:
    """Run what the command line asks for, one decoder after the other."""
    guided_bytes = arguments.bytes if arguments.guided_bytes is None else arguments.guided_bytes
    for name in arguments.decoder:
        random_part = run_random(TARGETS[name], arguments.bytes, arguments.seed)
        demand(random_part.accepted <= random_part.bound, f"{name} accepts more damaged frames than chance allows: {random_part}")
        guided = run_guided(TARGETS[name], guided_bytes, arguments.seed) if guided_bytes else None
        yield name, {"sum_bits": TARGETS[name].sum_bits, "random": asdict(random_part), "guided": guided}


def main() -> int:
    """Run and report; 1 if a decoder breaks a rule."""
    arguments = parse_arguments()
    command = " ".join(["python", *sys.argv])
    report: dict[str, Any] = {
        "command": command,
        "seed": arguments.seed,
        "versions": versions(),
        "chance": CHANCE,
        "decoders": {},
    }
    try:
        if arguments.input is not None:
            print(TARGETS[arguments.decoder[0]].check(arguments.input))
            return 0
        for name, result in results(arguments):
            report["decoders"][name] = result
            print(name, json.dumps(result), flush=True)
    except ViolationError:
        traceback.print_exc()
        return 1
    if arguments.json is not None:
        arguments.json.write_text(json.dumps(report, indent=2) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
