"""Print every time in which one processor gave an ordinary process no time: ``python stall_watch.py PROCESSOR LEAST_S``.

A line holds the start and the end of the gap, in s of ``time.monotonic``. The program ends with the one that started it.
"""

import os
import sys
import time

STEP_S = 0.004

processor, least_s = int(sys.argv[1]), float(sys.argv[2])
os.sched_setaffinity(0, {processor})
parent = os.getppid()
before_s = time.monotonic()
while os.getppid() == parent:
    time.sleep(STEP_S)
    now_s = time.monotonic()
    if now_s - before_s > STEP_S + least_s:
        print(before_s, now_s, flush=True)
    before_s = now_s
