"""Stream all batches of a data set: PATH. Prints how many transitions came and by how many MiB memory grew at most."""

import sys
from pathlib import Path

from dpg_robot.data.open_source import open_source
from dpg_robot.data.streaming import TransitionStream


def peak_mib():
    """Return the largest resident memory so far; unlike getrusage, without that of the process which started this one."""
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM"))
    return int(line.split()[1]) / 1024


source = open_source(sys.argv[1])
source.read_part(0)  # what is imported and allocated once
before_mib = peak_mib()
count = sum(len(batch) for batch in TransitionStream(source, batch_size=256, pool_size=4_000).batches())
print(count, peak_mib() - before_mib)
