"""Push known records into a ring: RING COUNT finish|die|forever|die-in-push N. With COUNT 0, push until killed."""

import os
import signal
import sys
import time
import zlib
from types import SimpleNamespace

from sample_records import DTYPE, make_records

import dpg_robot.data.ring as ring_module

BATCH = 1000


def die_in_push(at: int) -> None:
    """Let the process be killed in push number ``at``, after the payload is written and before the stamp is."""
    pushes = iter(range(at))

    def crc32(data: object, start: int) -> int:
        if next(pushes, None) is None:
            os.kill(os.getpid(), signal.SIGKILL)
        return zlib.crc32(data, start)

    ring_module.zlib = SimpleNamespace(crc32=crc32)


name, count, how, *at = sys.argv[1:]
ring = ring_module.Ring.attach(name, DTYPE)
ring.register_producer()
if how == "die-in-push":
    die_in_push(int(at[0]))
sequence = 0
while int(count) == 0 or sequence < int(count):
    for record in make_records(sequence, BATCH):
        if int(count) and sequence >= int(count):
            break
        while not ring.push(record):
            time.sleep(0)
        sequence += 1
if how == "finish":
    ring.finish()
if how == "die":
    os.kill(os.getpid(), signal.SIGKILL)
ring.close()
