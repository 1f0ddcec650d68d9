"""Run an action in a process that is forked from this one: it may be killed, or its disk may break.

This process has imported everything, so a forked one starts at once. `broken_disk.c` is preloaded where there is a C
compiler: it counts the operations on files, and fails or kills at any of them.
"""

from __future__ import annotations

import ctypes
import os
import pty
import select
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import traceback
import tty
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

SOURCE = Path(__file__).with_name("broken_disk.c")
MEMORY = "/dev/shm" if Path("/dev/shm").is_dir() else None  # Faster than a disk, and its files mean the same.
NEVER = 1 << 40
KILL = 0  # instead of the number of an error

Strike = Callable[[int], None]
"""Given the number of a running process, waits and kills it."""


@dataclass
class Ended:
    """How a process ended: its exit code, None if it was killed; its operations on files, 0 if unknown; its output."""

    code: int | None
    operations: int
    out: str
    err: str


def preloaded() -> bool:
    """Whether `broken_disk.c` is in this process."""
    return hasattr(ctypes.CDLL(None), "fault_calls")


def preload() -> None:
    """Run this script anew with `broken_disk.c` and exit, unless it is there, or there is no C compiler."""
    if sys.platform != "linux" or shutil.which("cc") is None or preloaded():
        os.environ.pop("LD_PRELOAD", None)  # Not for the programs that a command starts.
        return
    with tempfile.TemporaryDirectory() as place:
        library = Path(place) / "broken_disk.so"
        subprocess.run(["cc", "-shared", "-fPIC", "-O2", "-o", library, SOURCE, "-ldl"], check=True)
        environment = os.environ | {"LD_PRELOAD": str(library)}
        done = subprocess.run([sys.executable, *sys.argv], env=environment, check=False)
    sys.exit(done.returncode)


def forked(
    action: Callable[[], object],
    folder: Path,
    *,
    strike: Strike | None = None,
    fault: tuple[int, int] = (NEVER, KILL),
    keys: bytes | None = None,
    reads: bool = False,
) -> Ended:
    """Run an action in a process whose files lie under a folder, and wait for its end.

    Its cache is `folder`/cache, and its temporary files are in `folder`/tmp. `fault` is the number of the operation
    from which its disk is broken, and the error; with `reads`, it is that of a read. With `keys` the process has a
    terminal, on which they have been typed.
    """
    outputs = [folder.with_name(f"{folder.name}.{name}") for name in ("out", "err")]
    (folder / "tmp").mkdir(parents=True, exist_ok=True)
    receive, send = os.pipe()
    terminal, line = pty.openpty() if keys is not None else (None, None)
    if terminal is not None and line is not None:
        tty.setraw(line)
        os.write(terminal, keys or b"")
    process = os.fork()
    if not process:
        code = 70
        try:
            os.setsid()
            out, err = (os.open(path, os.O_CREAT | os.O_WRONLY | os.O_TRUNC) for path in outputs)
            for descriptor, to in enumerate((os.open(os.devnull, os.O_RDWR), out, err)):
                os.dup2(to if line is None or descriptor == 2 else line, descriptor)
            tempfile.tempdir = None
            os.environ |= {"CHARWRIGHT_CACHE": str(folder / "cache"), "TMPDIR": str(folder / "tmp"), "TERM": "xterm"}
            os.environ |= {"FAULT_AT": str(fault[0]), "FAULT_ERROR": str(fault[1]), "FAULT_UNDER": f"{folder}/"}
            if reads:
                os.environ["FAULT_READS"] = "1"
            done = action()
            code = done if isinstance(done, int) else 0
            if preloaded():
                os.write(send, str(ctypes.CDLL(None).fault_calls()).encode())
        except BaseException:
            os.write(2, traceback.format_exc().encode())
        finally:
            os._exit(code)
    os.close(send)
    if line is not None and terminal is not None:
        os.close(line)
        _watch(terminal, process, strike)
    elif strike is not None:
        strike(process)
    _, status = os.waitpid(process, 0)
    if terminal is not None:
        os.close(terminal)
    with os.fdopen(receive) as pipe:
        operations = int(pipe.read() or 0)
    texts = [path.read_text(encoding="utf-8", errors="replace") for path in outputs if path.exists()]
    for path in outputs:
        path.unlink(missing_ok=True)
    code = None if os.WIFSIGNALED(status) else os.waitstatus_to_exitcode(status)
    return Ended(code, operations, *(texts if len(texts) == 2 else ["", ""]))


def _watch(terminal: int, process: int, strike: Strike | None) -> None:
    """Read what a terminal shows, so that its process never waits, until the process ends."""
    if strike is not None:  # It reads meanwhile.
        reader = os.fork()
        if not reader:
            _read(terminal)
            os._exit(0)
        strike(process)
        os.waitpid(reader, 0)
    else:
        _read(terminal)


def _read(terminal: int) -> None:
    while True:
        try:
            select.select([terminal], [], [])
            if not os.read(terminal, 65_536):
                return
        except OSError:  # Nobody has it open any more.
            return


def after(seconds: float) -> Strike:
    """Kill a process after some seconds."""

    def strike(process: int) -> None:
        time.sleep(seconds)
        os.kill(process, signal.SIGKILL)

    return strike


def children(process: int) -> list[int]:
    """The processes that a process has started, and that still run."""
    found = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            state, parent = path.read_text().rpartition(")")[2].split()[:2]
        except (OSError, ValueError):
            continue
        if int(parent) == process and state != "Z":
            found.append(int(path.parent.name))
    return sorted(found)
