"""Locks: held by one process, and released by the system when that process ends, however it ends.

A lock file has the process and the host that hold it, for the message of whoever is refused. The system's lock on the
file counts, not its existence, so one that a killed process left behind keeps nobody out.
"""

from __future__ import annotations

import errno
import os
import platform
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

from charwright.errors import RunError, RunLockedError

LOCK = ".lock"
"""The name of the lock file in a folder."""

HELD = {errno.EACCES, errno.EAGAIN, errno.EWOULDBLOCK, errno.EDEADLK}
"""The errors that mean that another holds a lock. With others, a file system has no locks: there, training works
without protection."""

POLL_S = 0.005  # between two attempts at a lock that is held for a moment only
ATTEMPTS = 8
"""More attempts at the lock of a folder: who only asks whether it is free holds it for a moment."""

FAR = 1 << 30  # Windows locks bytes against reading too, so the locked one lies beyond what is written.


@contextmanager
def locked(path: Path) -> Iterator[bool]:
    """Hold a lock file during the block, and leave it there; yields False if another process holds it.

    Raises:
        RunError: when the file cannot be created.
    """
    with _opened(path) as file:
        yield _lock(file)


@contextmanager
def held(path: Path) -> Iterator[BinaryIO]:
    """A file, created if it does not exist and open for appending, locked during the block: waits for others.

    Raises:
        OSError: when the system refuses.
    """
    with path.open("ab+") as file:
        while not _lock(file):
            time.sleep(POLL_S)
        yield file


@contextmanager
def alone_in(folder: Path) -> Iterator[None]:
    """Hold the lock of a run folder during the block, and remove its file at the end.

    Raises:
        RunLockedError: when another process holds it, naming that process.
        RunError: when the system refuses.
    """
    file = _acquired(folder / LOCK)
    if file is None:
        raise RunLockedError(f"another process trains in {folder}: {holder(folder)}; wait for it, or stop it")
    try:
        _write_holder(file)
        yield
    finally:
        _release(file, folder / LOCK)


def check_free(folder: Path) -> None:
    """Check that no process holds the lock of a folder; nothing is written.

    Raises:
        RunLockedError: when one does.
    """
    if not is_free(folder):
        raise RunLockedError(f"another process trains in {folder}: {holder(folder)}; wait for it, or stop it")


def is_free(folder: Path) -> bool:
    """Whether no process holds the lock of a folder; nothing is written."""
    try:
        file = (folder / LOCK).open("rb")
    except OSError:
        return True
    with file:
        return _lock(file, shared=True)


def holder(folder: Path) -> str:
    """The process and host that a folder's lock file names."""
    try:
        process, host = (folder / LOCK).read_bytes()[:300].decode("utf-8", "replace").split(maxsplit=1)
    except (OSError, ValueError):
        return "an unknown one"
    return f"process {process} on {host.strip()}"


def _opened(path: Path) -> BinaryIO:
    try:
        return path.open("ab+")
    except OSError as error:
        raise RunError(f"cannot write {path}: {error.strerror}") from error


def _acquired(path: Path) -> BinaryIO | None:
    """The locked file; None if another process holds it."""
    asked = 0
    while True:
        file = _opened(path)
        if not _lock(file):
            file.close()
            if asked == ATTEMPTS:
                return None
            asked += 1
            time.sleep(POLL_S)
        elif os.name == "nt" or _is_at(file, path):  # An open file cannot be removed there.
            return file
        else:
            file.close()  # Its holder removed it between our opening and locking it.


def _release(file: BinaryIO, path: Path) -> None:
    if os.name == "nt":  # An open file cannot be removed there.
        file.close()
    if os.name == "nt" or _is_at(file, path):  # The folder may have been replaced meanwhile.
        with suppress(OSError):
            path.unlink()
    with suppress(OSError):  # The name of the holder may still be waiting to be written, to a disk that is full.
        file.close()


def _is_at(file: BinaryIO, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(file.fileno()), path.stat())
    except OSError:
        return False


def _write_holder(file: BinaryIO) -> None:
    with suppress(OSError):  # The lock holds without a name too, on a disk that is full.
        file.truncate(0)
        file.write(f"{os.getpid()} {platform.node() or 'this host'}\n".encode())
        file.flush()


def _lock(file: BinaryIO, *, shared: bool = False) -> bool:
    """Whether the file could be locked; `shared` locks it against all but other shared locks, except on Windows."""
    try:
        if sys.platform == "win32":
            import msvcrt

            file.seek(FAR)
            msvcrt.locking(file.fileno(), msvcrt.LK_NBLCK, 1)
        else:
            import fcntl

            fcntl.flock(file, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
    except OSError as error:
        return error.errno not in HELD
    return True
