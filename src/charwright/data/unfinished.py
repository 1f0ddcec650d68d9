"""Unfinished files and folders of the cache of texts: whose they are, and whether they are abandoned.

    .PROCESS-DIGITS.new             a folder in which a text is prepared
    .NAME.PROCESS-DIGITS.tmp        a file that is written; without digits, one of `storage.write_file`

Half of the digits say where PROCESS is a process: on which machine, or in which container. The others are random.
"""

from __future__ import annotations

import os
import re
import secrets
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from charwright.processes import is_running, number_space

FOREIGN_S = 86_400.0
"""What another machine has not changed for this long counts as abandoned: its processes cannot be seen from here."""

_UNFINISHED = re.compile(r"\.(?:.+\.)?(\d+)(-[0-9a-f]+)?\.(?:new|tmp)")
_in_progress: set[str] = set()
"""What this process has not finished: its number may be that of a process that was killed."""


def remove_abandoned(folder: Path) -> None:
    """Remove the unfinished folders and files of processes that no longer run, from a folder."""
    for path in folder.glob(".*"):
        match = _UNFINISHED.fullmatch(path.name)
        if match is not None and not _in_use(path, int(match[1]), match[2]):
            with suppress(OSError):
                shutil.rmtree(path) if path.is_dir() else path.unlink()


@contextmanager
def unfinished_name(before: str, ending: str) -> Iterator[str]:
    """A name that nothing else uses, here or on a machine that shares the cache, and that is in use in the block."""
    name = f"{before}.{os.getpid()}-{number_space()}{secrets.token_hex(4)}.{ending}"
    _in_progress.add(name)
    try:
        yield name
    finally:
        _in_progress.discard(name)


def _in_use(path: Path, process: int, digits: str | None) -> bool:
    """Whether a process still writes an unfinished folder or file."""
    if digits is None:  # This name is that of `write_file`, which another thread may be using.
        return process == os.getpid() or is_running(process)
    if len(digits) > 9 and not digits.startswith(f"-{number_space()}"):
        return _changed_lately(path)
    return path.name in _in_progress or is_running(process)


def _changed_lately(path: Path) -> bool:
    """Whether something in a folder, or a file, was written in the last day."""
    try:
        last = max(found.stat().st_mtime for found in (path, *path.glob("*")))
    except OSError:
        return True  # It is being moved.
    return time.time() - last < FOREIGN_S
