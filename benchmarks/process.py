"""Run a command, and say how long it took, when its first byte came and how much memory it had at its peak.

    python -I -S benchmarks/process.py charwright generate runs/demo

A program of its own, of few imports: what the system reports as a child's peak is never less than what its parent had
when it was started. Prints JSON: `wall_s`, `first_s`, `peak_mb` and `bytes` (of standard output).
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time

KILO = 1 if sys.platform == "darwin" else 1024  # The unit of ru_maxrss.


def measure(command: list[str]) -> dict[str, float]:
    """Run a command to its end, reading its standard output without a buffer."""
    began = time.perf_counter()
    process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, bufsize=0)
    assert process.stdout is not None
    count = len(os.read(process.stdout.fileno(), 1))
    first = time.perf_counter() - began
    while data := os.read(process.stdout.fileno(), 1 << 16):
        count += len(data)
    _, status, usage = os.wait4(process.pid, 0)
    wall = time.perf_counter() - began
    process.returncode = os.waitstatus_to_exitcode(status)  # It was waited for here.
    if process.returncode:
        sys.exit(process.returncode)
    return {"wall_s": wall, "first_s": first, "peak_mb": usage.ru_maxrss * KILO / 1e6, "bytes": count}


if __name__ == "__main__":
    print(json.dumps(measure(sys.argv[1:])))
