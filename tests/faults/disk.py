"""Break the disk of a command: `python tests/faults/disk.py --count 200 [--seed N] [--only NAME ...]`.

In most injections `broken_disk.c` is preloaded: from the n-th operation on files on, the disk of a forked process is
full, has an input/output error, or is read-only; or reads fail from the n-th on. In the others (`mounted`, for root on
Linux) the disk is a real one, a small file system that is full, turns read-only or loses its blocks in the middle of a
training. The process must end with exit code 1 and one line that names what could not be read or written, what it wrote
before must be whole, and the same work must be completed once the disk works again, with the weights of an undisturbed
run.
"""

from __future__ import annotations

import argparse
import errno
import random
import re
import shutil
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from forks import KILL, MEMORY, NEVER, Ended, forked, preload, preloaded

if __name__ == "__main__":  # Before the imports that take seconds: it begins the script anew.
    preload()

from breakable import Command, Examples, commands, load_everything, readings
from mounts import mounted_rounds, why_not

ERRORS = (errno.ENOSPC, errno.EIO, errno.EROFS)
BROKEN = ("train", "resume", "from", "force", "large", "prepare", "import", "tune", "state")
BROKEN += ("export numpy", "export keras", "export html", "export onnx")


@dataclass
class Report:
    """What the broken disks led to, by command."""

    injected: Counter[str] = field(default_factory=Counter)
    unnoticed: int = 0
    problems: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        counts = ", ".join(f"{name} {count:,}" for name, count in sorted(self.injected.items()))
        total = f"{self.injected.total():,} injections: {counts}; {self.unnoticed:,} made no difference"
        return f"{total}; {len(self.problems)} problems"


def complaints(ended: Ended, place: Path) -> list[str]:
    """What is wrong with the end of a command whose disk has broken."""
    lines = [line for line in ended.err.splitlines() if line.startswith("charwright: ")]
    if ended.code != 1 or "Traceback" in ended.err or len(lines) != 1:
        return [f"exit code {ended.code}, and not one line: {ended.err[-900:]}"]
    if str(place) not in lines[0] or re.search(r"\[Errno|None", lines[0]):
        return [f"the line does not say what could not be written: {lines[0]}"]
    return []


def again(_: object) -> Ended:
    """Nothing breaks twice."""
    return Ended(None, 0, "", "")


def counted(command: Command, place: Path, *, reads: bool) -> int:
    """The operations of a command on files."""
    folder = place / "measured"
    folder.mkdir()
    command.prepare(folder)
    ended = forked(lambda: command.action(folder), folder, fault=(NEVER, KILL), keys=command.keys, reads=reads)
    assert ended.code == 0, ended.err
    assert ended.operations, "the library counts nothing"
    shutil.rmtree(folder)
    return ended.operations


def break_one(
    name: str,
    command: Command,
    operations: int,
    place: Path,
    chance: random.Random,
    where: str,
    report: Report,
    *,
    reads: bool,
) -> None:
    """Break the disk of a command at one of its operations."""
    folder, error = place / "round", errno.EIO if reads else chance.choice(ERRORS)
    at = chance.randrange(operations) + 1
    folder.mkdir()
    command.prepare(folder)
    ended = forked(lambda: command.action(folder), folder, fault=(at, error), keys=command.keys, reads=reads)
    report.injected[name] += 1
    where = f"{name}, {where}, operation {at} of {operations}, {errno.errorcode[error]}"
    if ended.code == 0:  # What failed was the removal of something that nobody needs.
        report.unnoticed += 1
    else:
        report.problems += [f"{where}: {what}" for what in complaints(ended, folder)]
    try:
        command.verify(folder, again)
    except Exception as failed:
        report.problems.append(f"{where}: {type(failed).__name__}: {failed}")
    shutil.rmtree(folder)


def run(count: int, seed: int, only: Sequence[str] = (), *, quick: bool = False) -> Report:
    """Break the disk this many times; `quick` leaves out what takes seconds."""
    load_everything()
    report = Report()
    with tempfile.TemporaryDirectory(dir=MEMORY) as folder:
        place = Path(folder)
        of = Examples(place)
        reading = readings(of)
        known = {name: it for name, it in (commands(of) | reading).items() if name in (only or (*BROKEN, *reading))}
        known = {name: command for name, command in known.items() if only or not (quick and command.slow)}
        operations: dict[str, int] = {}
        real = mounted_rounds(of, complaints) if why_not() is None and (not only or "mounted" in only) else {}
        turn = [*real, *(known if preloaded() else ())]
        for number in range(count if turn else 0):
            name, chance = turn[number % len(turn)], random.Random(f"{seed} {number}")
            if name in real:
                noticed, found = real[name](chance)
                report.injected[name] += 1
                report.unnoticed += not noticed
                report.problems += [f"{name}, seed {seed}, {number}: {what}" for what in found]
                continue
            if name not in operations:
                operations[name] = counted(known[name], place, reads=name in reading)
            where, reads = f"seed {seed}, {number}", name in reading
            break_one(name, known[name], operations[name], place, chance, where, report, reads=reads)
    return report


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", type=int, default=200)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--only", nargs="*", default=(), help="the commands whose disk breaks, or `mounted`")
    parser.add_argument("--quick", action="store_true", help="leave out the commands that take seconds")
    arguments = parser.parse_args()
    if (reason := why_not()) is not None:
        print(f"without real file systems: {reason}")
    began = time.monotonic()
    report = run(arguments.count, arguments.seed, arguments.only, quick=arguments.quick)
    print(*report.problems, f"{report}; {time.monotonic() - began:.0f} s", sep="\n")
    sys.exit(bool(report.problems))


if __name__ == "__main__":
    main()
