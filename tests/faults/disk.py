"""Let a disk break at every n-th operation: `python tests/faults/disk.py --count 200`.

A library that `cc` compiles is preloaded (`broken_disk.c`): from its n-th operation on, the disk of a forked process is
full, has an input/output error, or is read-only. The process must end with exit code 1 and one line, what it wrote
before must be whole, and the same command must complete once the disk works again.
"""

from __future__ import annotations

import argparse
import ctypes
import errno
import os
import shutil
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

SOURCE = Path(__file__).with_name("broken_disk.c")
ERRORS = (errno.ENOSPC, errno.EIO, errno.EROFS)
MEMORY = "/dev/shm" if Path("/dev/shm").is_dir() else None


@dataclass
class Report:
    """What the broken disks led to, by command."""

    injected: Counter[str] = field(default_factory=Counter)
    problems: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        counts = ", ".join(f"{name} {count:,}" for name, count in sorted(self.injected.items()))
        return f"{self.injected.total():,} injections: {counts}; {len(self.problems)} problems"


def broken(action: Callable[[], int], folder: Path, at: int, error: int, err: Path) -> tuple[int, int]:
    """The exit code of an action in a process whose disk breaks at an operation, and the number of its operations."""
    receive, send = os.pipe()
    process = os.fork()
    if not process:
        code = 70
        try:
            os.dup2(os.open(err, os.O_CREAT | os.O_WRONLY | os.O_TRUNC), 2)
            os.dup2(os.open(os.devnull, os.O_RDWR), 1)
            os.environ |= {"FAULT_AT": str(at), "FAULT_ERROR": str(error), "FAULT_UNDER": str(folder)}
            code = action()
            os.write(send, str(ctypes.CDLL(None).fault_calls()).encode())
        finally:
            os._exit(code)
    os.close(send)
    _, status = os.waitpid(process, 0)
    with os.fdopen(receive) as pipe:
        return os.waitstatus_to_exitcode(status), int(pipe.read() or 0)


def run(count: int) -> Report:
    """Break the disk this many times."""
    import torch

    import kill

    torch.set_num_threads(1)
    kill.kernels.load()
    report = Report()
    with tempfile.TemporaryDirectory(dir=MEMORY) as place:
        of = kill.Examples(Path(place))
        run = "run"
        tasks: dict[str, tuple[Callable[[Path], object], Callable[[Path], int]]] = {
            "train": (lambda _: None, lambda p: of.train(p / run)),
            "resume": (lambda p: shutil.copytree(of.half, p / run), lambda p: of.resume(p / run)),
            "force": (lambda p: shutil.copytree(of.whole, p / run), lambda p: of.train(p / run, "--force")),
            "export": (
                lambda _: None,
                lambda p: kill.charwright("export", of.parent, "--to", "numpy", "--out", p / "x.npz", "--force"),
            ),
            "generate": (
                lambda _: None,
                lambda p: kill.charwright("generate", of.parent, "--length", "9", "--state-out", p / "state"),
            ),
        }
        for name, (prepare, action) in tasks.items():
            _break(name, prepare, action, Path(place), count // len(tasks), report)
    return report


def _break(
    name: str,
    prepare: Callable[[Path], object],
    action: Callable[[Path], int],
    place: Path,
    count: int,
    report: Report,
) -> None:
    """Break the disk at operations that are spread over a command."""
    folder, err = place / "round", place / "stderr"
    folder.mkdir()
    prepare(folder)
    code, operations = broken(lambda: action(folder), folder, 1 << 30, 0, err)
    assert code == 0, err.read_text()
    assert operations > 3, "the library counts nothing"
    shutil.rmtree(folder)
    for number in range(count):
        at, error = 1 + number * operations // count, ERRORS[number % len(ERRORS)]
        folder.mkdir()
        prepare(folder)
        code, _ = broken(lambda: action(folder), folder, at, error, err)
        report.injected[name] += 1
        for problem in problems(folder, code, err.read_text("utf-8")):
            report.problems.append(f"{name}, operation {at} of {operations}, {errno.errorcode[error]}: {problem}")
        shutil.rmtree(folder)


def problems(folder: Path, code: int, err: str) -> list[str]:
    """What does not hold after a disk broke."""
    import kill

    found = [] if code == 1 else [f"exit code {code}: {err[-300:]}"]
    complaints = [line for line in err.splitlines() if line.startswith("charwright: ")]
    if "Traceback" in err or len(complaints) != 1:
        found.append(f"not one line: {err[-600:]}")
    try:
        whole = kill.check_readable(folder / "run")
    except Exception as error:
        return [*found, f"{type(error).__name__}: {error}"]
    kept = (
        whole or not (folder / "run").exists() or any(folder.glob(".run.replaced-*")) or (folder / "run/.lock").exists()
    )
    return found if kept else [*found, f"half written: {sorted((folder / 'run').iterdir())}"]


def preloaded(arguments: list[str], library: Path) -> subprocess.CompletedProcess[str]:
    """Compile the library, and run this script with it."""
    subprocess.run(["cc", "-shared", "-fPIC", "-O2", "-o", library, SOURCE, "-ldl"], check=True)
    environment = os.environ | {"LD_PRELOAD": str(library), "FAULT_LOADED": "1"}
    command = [sys.executable, __file__, *arguments]
    return subprocess.run(command, env=environment, check=False, text=True, stdout=subprocess.PIPE)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", type=int, default=200)
    arguments = parser.parse_args()
    if "FAULT_LOADED" not in os.environ:
        with tempfile.TemporaryDirectory() as place:
            done = preloaded(sys.argv[1:], Path(place) / "broken_disk.so")
        print(done.stdout, end="")
        sys.exit(done.returncode)
    del os.environ["LD_PRELOAD"]  # Not for the programs that a command starts.
    report = run(arguments.count)
    print(*report.problems, report, sep="\n")
    sys.exit(bool(report.problems))


if __name__ == "__main__":
    main()
