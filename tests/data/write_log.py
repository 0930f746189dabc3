"""Write known records, one each millisecond, until killed: FOLDER. Prints a line per record: sequence, time, acknowledged."""

import sys
import time

from sample_records import CONTRACT, make_records

from dpg_robot.data.log_writer import LogWriter

with LogWriter(sys.argv[1], "run", CONTRACT, segment_seconds=0.7) as writer:
    sequence = 0
    while True:
        for record in make_records(sequence, 1000):
            writer.append(record.reshape(1))
            print(sequence, time.monotonic(), writer.acknowledged_sequence, flush=True)
            sequence += 1
            time.sleep(0.001)
