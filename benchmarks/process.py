"""Run a command, and report its duration, the time of its first byte and its peak memory.

    python -I -S benchmarks/process.py charwright generate runs/demo

This is a separate program with few imports, because the peak that the system reports for a child is never below the
memory of its parent at the start. Prints JSON: `wall_s`, `cpu_s` (of all threads), `first_s`, `peak_mb` and `bytes` (of
standard output).
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time

KILO = 1 if sys.platform == "darwin" else 1024  # The unit of ru_maxrss.


def measure(command: list[str]) -> dict[str, float]:
    """Run a command to completion, reading its standard output unbuffered."""
    began = time.perf_counter()
    process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, bufsize=0)
    assert process.stdout is not None
    count = len(os.read(process.stdout.fileno(), 1))
    first = time.perf_counter() - began
    while data := os.read(process.stdout.fileno(), 1 << 16):
        count += len(data)
    _, status, usage = os.wait4(process.pid, 0)
    wall = time.perf_counter() - began
    process.returncode = os.waitstatus_to_exitcode(status)  # os.wait4 has reaped it.
    if process.returncode:
        sys.exit(process.returncode)
    cpu = usage.ru_utime + usage.ru_stime
    return {"wall_s": wall, "cpu_s": cpu, "first_s": first, "peak_mb": usage.ru_maxrss * KILO / 1e6, "bytes": count}


if __name__ == "__main__":
    print(json.dumps(measure(sys.argv[1:])))
