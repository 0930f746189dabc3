"""Write known records until the disk is full: FOLDER [largest file, bytes]. Prints what is safe, and the error."""

import json
import resource
import sys

from sample_records import CONTRACT, make_records

from dpg_robot.data.log_writer import LogWriter
from dpg_robot.errors import LogWriteError

if len(sys.argv) > 2:
    limit = int(sys.argv[2])
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
writer = LogWriter(sys.argv[1], "run", CONTRACT, segment_bytes=200_000, flush_interval_s=0.0)
sequence = 0
try:
    while True:
        writer.append(make_records(sequence, 10))
        sequence += 10
except LogWriteError as error:
    outcome = {"acknowledged": writer.acknowledged_sequence, "durable": writer.durable_sequence, "given": sequence + 9}
    print(json.dumps({**outcome, "errno": error.errno, "message": str(error)}))
