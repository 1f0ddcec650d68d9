"""Processes: whether one still runs, what tells it from others of its number, and what it may use of the machine."""

from __future__ import annotations

import hashlib
import os
import platform
import sys
from functools import cache
from pathlib import Path


def is_running(process: int) -> bool:
    """Whether another process of this number is running; always False on Windows, which has no harmless signal."""
    if process == os.getpid() or os.name == "nt":
        return False
    try:
        os.kill(process, 0)
    except PermissionError:
        return True
    except (OSError, OverflowError):
        return False
    return True


def started_at(process: int) -> str:
    """When a process was started, in clock ticks after a boot of the system; empty where the system does not say."""
    try:
        # The name of the program, in brackets, may have spaces and brackets of its own.
        fields = Path(f"/proc/{process}/stat").read_text("utf-8", "replace").rpartition(")")[2].split()
        return f"{_boot()}:{fields[19]}"
    except (OSError, IndexError):
        return ""


@cache
def number_space() -> str:
    """Eight hexadecimal digits of where the numbers of processes are those of this one: a machine, or a container."""
    try:
        namespace = str(Path("/proc/self/ns/pid").readlink())
    except OSError:
        namespace = ""
    return hashlib.sha256(f"{platform.node()}|{_boot()}|{namespace}".encode()).hexdigest()[:8]


def _boot() -> str:
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text("ascii").strip()
    except OSError:
        return ""


def usable_cores() -> int:
    """The number of cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def memory_bytes() -> int | None:
    """The memory of this machine; None where the system does not say."""
    if sys.platform != "win32" and "SC_PHYS_PAGES" in os.sysconf_names:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return None
