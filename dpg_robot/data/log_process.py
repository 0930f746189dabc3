"""The process that takes tick records out of the ring and writes the robot log.

Start it with multiprocessing (``spawn``; the target is :func:`run_log_process`) or as a program of its own (see
:func:`log_command`). It ends by itself when the producer has finished or died, when its parent has died, or on SIGTERM; each time
it first writes what is left in the ring. SIGINT is ignored: whoever started the process decides when it ends.
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import signal
import sys
import time
from collections.abc import Mapping
from typing import Any

from dpg_robot.contract import Contract
from dpg_robot.data.log_writer import FLUSH_INTERVAL_S, SEGMENT_BYTES, SEGMENT_SECONDS, LogWriter
from dpg_robot.data.ring import LogState, LogStatus, Ring
from dpg_robot.data.transition import tick_dtype
from dpg_robot.errors import ContractError, DpgError, LogWriteError

DRAIN_INTERVAL_S = 0.01
_BATCH = 1024
_TORN_AFTER_S = 1.0  # a record that is not whole for so long never will be
_ORPHAN_GRACE_S = 2.0  # time for the producer to finish its safe stop after the parent's death


def log_command(**arguments: Any) -> list[str]:
    """Return the command that runs :func:`run_log_process` as a program of its own; ``arguments`` must fit in JSON."""
    return [sys.executable, "-m", "dpg_robot.data.log_process", json.dumps(arguments, default=os.fspath)]


def run_log_process(
    ring_name: str,
    num_measurements: int,
    num_actions: int,
    folder: str | os.PathLike[str],
    run_id: str,
    contract_dict: Mapping[str, Any],
    metadata: Mapping[str, str] | None = None,
    *,
    segment_seconds: float = SEGMENT_SECONDS,
    segment_bytes: int = SEGMENT_BYTES,
    flush_interval_s: float = FLUSH_INTERVAL_S,
) -> None:
    """Write the records of the ring ``ring_name`` until there will be no more; the status is published in the ring.

    Args:
        ring_name: the ring, made by the owner before.
        num_measurements: M of its records; must be that of the contract.
        num_actions: A of its records; must be that of the contract.
        folder: the log folder.
        run_id: name of the run.
        contract_dict: :meth:`~dpg_robot.contract.Contract.to_dict` of the robot's contract.
        metadata: further facts about the run.
        segment_seconds: as in :class:`LogWriter`.
        segment_bytes: as in :class:`LogWriter`.
        flush_interval_s: as in :class:`LogWriter`.

    Raises:
        SystemExit: with code 1 after a failed write; what is safe and what is not is said on stderr.
    """
    stop = _StopRequest()
    contract = Contract.from_dict(dict(contract_dict))
    if (num_measurements, num_actions) != (contract.num_measurements, contract.num_actions):
        raise ContractError(
            f"the ring has {num_measurements} measurements and {num_actions} actions, "
            f"the contract {contract.num_measurements} and {contract.num_actions}"
        )
    with Ring.attach(ring_name, tick_dtype(num_measurements, num_actions)) as ring:
        writer = None
        try:
            writer = LogWriter(
                folder,
                run_id,
                contract,
                metadata,
                segment_seconds=segment_seconds,
                segment_bytes=segment_bytes,
                flush_interval_s=flush_interval_s,
            )
            _write_until_stopped(ring, writer, stop)
            _write_rest(ring, writer)
            _publish(ring, writer, LogState.CLOSED)
        except LogWriteError as error:
            _publish(ring, writer, LogState.FAILED, error.errno or -1)
            print(f"log process: {error}", file=sys.stderr, flush=True)
            raise SystemExit(1) from error


def _write_until_stopped(ring: Ring, writer: LogWriter, stop: _StopRequest) -> None:
    stuck_since_s: float | None = None
    while not stop.is_due(ring):
        waiting, now_s = len(ring), time.monotonic()
        is_torn = stuck_since_s is not None and now_s - stuck_since_s > _TORN_AFTER_S
        records = ring.drain(_BATCH, skip_torn=is_torn)
        stuck = waiting > 0 and not len(records)
        stuck_since_s = (stuck_since_s or now_s) if stuck and not is_torn else None
        writer.append(records)
        _publish(ring, writer, LogState.WRITING)
        if len(records) < _BATCH:
            time.sleep(DRAIN_INTERVAL_S)


def _write_rest(ring: Ring, writer: LogWriter) -> None:
    time.sleep(DRAIN_INTERVAL_S)  # the last record may become visible after the word that says it was the last
    for _ in range(-(-len(ring) // _BATCH)):  # a producer that still pushes cannot keep this going
        writer.append(ring.drain(_BATCH, skip_torn=True))
    writer.close()


def _publish(ring: Ring, writer: LogWriter | None, state: LogState, error: int = 0) -> None:
    acknowledged, durable = (writer.acknowledged_sequence, writer.durable_sequence) if writer else (-1, -1)
    ring.publish_status(LogStatus(state=state, acknowledged_sequence=acknowledged, durable_sequence=durable, error=error))


class _StopRequest:
    """Knows when the process should end: signals, the producer's end, the parent's death."""

    def __init__(self) -> None:
        self._signalled = False
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        for number in (signal.SIGTERM, signal.SIGHUP):
            signal.signal(number, self._on_signal)
        self._parent_pid = os.getppid()
        self._orphan_since_s: float | None = None
        self._producer: _ProcessWatch | None = None

    def _on_signal(self, number: int, frame: object) -> None:
        self._signalled = True

    def is_due(self, ring: Ring) -> bool:
        if self._signalled or ring.finished:
            return True
        if self._producer is None and ring.producer_pid:
            self._producer = _ProcessWatch(ring.producer_pid)
        if self._producer is not None and self._producer.ended():
            return True
        if os.getppid() == self._parent_pid:
            return False
        now_s = time.monotonic()
        if self._orphan_since_s is None:
            self._orphan_since_s = now_s
        return now_s - self._orphan_since_s > _ORPHAN_GRACE_S


class _ProcessWatch:
    """Notices the end of a process that is not our child."""

    def __init__(self, pid: int) -> None:
        self._pid = pid
        self._descriptor: int | None = None
        # A descriptor also sees a process that has ended but was not waited for, and is not fooled by a reused process id.
        if hasattr(os, "pidfd_open"):
            with contextlib.suppress(OSError):
                self._descriptor = os.pidfd_open(pid)

    def ended(self) -> bool:
        if self._descriptor is not None:
            return bool(select.select([self._descriptor], [], [], 0)[0])
        try:
            os.kill(self._pid, 0)
        except ProcessLookupError:
            return True
        except PermissionError:
            return False
        return False


def main() -> None:
    """Run :func:`run_log_process` with the arguments that :func:`log_command` put on the command line."""
    if len(sys.argv) != 2:
        raise SystemExit("usage: python -m dpg_robot.data.log_process ARGUMENTS_AS_JSON")
    try:
        run_log_process(**json.loads(sys.argv[1]))
    except DpgError as error:
        raise SystemExit(f"log process: {error}") from error


if __name__ == "__main__":
    main()
