"""How long a record takes until it is safe on the host, and how much goes through, when nothing fails."""

from __future__ import annotations

import asyncio
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
from nats.aio.msg import Msg
from numpy.typing import NDArray

from dpg_robot.data.benchmarks.synthetic_robot import synthetic_contract, synthetic_records
from dpg_robot.data.log_format import SEGMENT_PATTERN
from dpg_robot.data.log_writer import LogWriter
from dpg_robot.data.robot_log import read_records
from dpg_robot.shipping.benchmarks.site import ROBOT, Site, wait_for
from dpg_robot.shipping.nats_link import HOST_NAME, connect, disconnect, log_subject
from dpg_robot.shipping.nats_receiver import make_streams
from dpg_robot.shipping.nats_sender import NatsSender
from dpg_robot.shipping.piece import PIECE_BYTES, Confirmation
from dpg_robot.shipping.sender_state import SenderState
from dpg_robot.shipping.settings import ReceiveSettings, SendSettings
from dpg_robot.shipping.status_file import read_status

_BATCH = 256
_PENDING = 64  # messages of the bare publisher on their way, 16 MiB
_MODULE = "dpg_robot.data.benchmarks.synthetic_robot"


def measure_latency(folder: Path, program: Path, seconds: float, rate_hz: float, channels: int, seed: int) -> dict[str, Any]:
    """Let a robot record in calm; returns quantiles of the time from a record's own time to its confirmation, seconds."""
    site = Site(folder, program)
    site.serve()
    try:
        site.receive()
        site.send(site.port)
        _wait_connected(site)
        confirmed = asyncio.run(_watch_run(site, seconds, rate_hz, channels, seed))
    finally:
        site.stop()
    wall_ns = np.concatenate([records["wall_ns"] for records in read_records(site.log)])
    times_ns, sequences = np.array(confirmed, dtype=np.int64).reshape(-1, 2).T
    first = np.searchsorted(np.maximum.accumulate(sequences), np.arange(len(wall_ns)))
    latency_s = (times_ns[first[first < len(times_ns)]] - wall_ns[first < len(times_ns)]) / 1e9
    p50, p90, p99 = np.quantile(latency_s, [0.5, 0.9, 0.99])
    unconfirmed = int(len(wall_ns) - len(latency_s))
    return {"records": len(wall_ns), "unconfirmed": unconfirmed, "p50": p50, "p90": p90, "p99": p99, "max": latency_s.max()}


async def _watch_run(site: Site, seconds: float, rate_hz: float, channels: int, seed: int) -> list[tuple[int, int]]:
    """Record a run and return (Unix time in nanoseconds, last sequence number) of each confirmation as it reaches the robot."""
    confirmed: list[tuple[int, int]] = []

    async def note(message: Msg) -> None:
        confirmation = Confirmation.from_bytes(message.data)
        if confirmation.kind == "stored" and confirmation.last_sequence is not None:
            confirmed.append((time.time_ns(), confirmation.last_sequence))

    client = await connect(site.link(ROBOT), ROBOT)
    await client.subscribe(f"confirmed.{ROBOT}.>", cb=note)
    arguments = [str(each) for each in (site.log, "calm", seconds, rate_hz, channels, seed)]
    recorder = await asyncio.create_subprocess_exec(sys.executable, "-m", _MODULE, *arguments, stdout=asyncio.subprocess.DEVNULL)
    await recorder.wait()
    await asyncio.to_thread(wait_for, site.is_complete, "the confirmation of everything")
    await asyncio.sleep(0.5)
    await disconnect(client)
    return confirmed


def measure_throughput(folder: Path, program: Path, records: int, channels: int, seed: int, rounds: int) -> dict[str, Any]:
    """Ship an existing log, and publish the same bytes to a bare stream, in turn; returns transitions/s of each round."""
    folder.mkdir(parents=True)
    log = folder / "log"
    _write_log(log, records, channels, seed)
    ours, bare = [], []
    for index in range(rounds):
        ours.append(records / _ship(folder / f"ours-{index}", program, log))
        bare.append(records / _publish(folder / f"bare-{index}", program, log))
    size = sum(path.stat().st_size for path in log.glob(f"*/{SEGMENT_PATTERN}"))
    return {"records": records, "bytes": size, "ours_per_s": ours, "bare_per_s": bare}


def _write_log(log: Path, records: int, channels: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    with LogWriter(log, "throughput", synthetic_contract(channels, 1000.0)) as writer:
        for first in range(0, records, _BATCH):
            writer.append(synthetic_records(first, min(_BATCH, records - first), channels, rng))


def _ship(folder: Path, program: Path, log: Path) -> float:
    """Return how long it takes until all of the log is confirmed, seconds."""
    site = Site(folder, program)
    site.serve()
    try:
        site.receive()
        wait_for(lambda: _state(site.store) == "connected", "the receiver")
        state = SenderState(log, ROBOT, SendSettings(), offer_all=True)
        try:
            begin_s = time.perf_counter()
            asyncio.run(NatsSender(state, ROBOT, site.link(ROBOT)).run(once=True, stop=lambda: False))
            return time.perf_counter() - begin_s
        finally:
            state.close("stopped")
    finally:
        site.stop()


def _publish(folder: Path, program: Path, log: Path) -> float:
    """Return how long it takes until the server has acknowledged the same bytes, seconds."""
    site = Site(folder, program)
    site.serve()
    content = b"".join(path.read_bytes() for path in sorted(log.glob(f"*/{SEGMENT_PATTERN}")))
    messages = [content[begin : begin + PIECE_BYTES] for begin in range(0, len(content), PIECE_BYTES)]
    try:
        return asyncio.run(_publish_all(site, messages))
    finally:
        site.stop()


async def _publish_all(site: Site, messages: list[bytes]) -> float:
    host = await connect(site.link(HOST_NAME), HOST_NAME)
    await make_streams(host.jetstream(), ReceiveSettings())
    await disconnect(host)
    begin_s = time.perf_counter()  # from here on it does what the sender does
    robot = await connect(site.link(ROBOT), ROBOT)
    stream = robot.jetstream(publish_async_max_pending=_PENDING)
    futures = [await stream.publish_async(log_subject(ROBOT, "bare"), message) for message in messages]
    await asyncio.gather(*futures)
    elapsed_s = time.perf_counter() - begin_s
    await disconnect(robot)
    return elapsed_s


def _wait_connected(site: Site) -> None:
    for folder, what in ((site.store, "the receiver"), (site.log, "the sender")):
        wait_for(lambda folder=folder: _state(folder) == "connected", what)  # type: ignore[misc]


def _state(folder: Path) -> str:
    try:
        return str(read_status(folder)["state"])
    except ValueError:
        return ""


def median(values: NDArray[np.float64] | list[float]) -> float:
    """Return the median."""
    return float(np.median(values))
