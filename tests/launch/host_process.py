"""launch/host.py as one of the processes that torchrun starts in the tests: ``host_process.py ARGUMENTS``."""

from __future__ import annotations

import os
import runpy
import sys
from pathlib import Path

if __name__ == "__main__":
    status = 0
    try:
        runpy.run_path(str(Path(__file__).resolve().parents[2] / "launch" / "host.py"), run_name="__main__")
    except SystemExit as left:
        status = int(left.code or 0)
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)  # torch may abort while the interpreter takes gloo's threads down, when all that is tested is over
