"""Kill processes at random instants: `python tests/faults/kill.py --count 1000 [--seed N] [--only NAME ...]`.

Each round runs a command in a process of its own, forked from this one, which has imported everything, and kills it
with SIGKILL: after a random part of the time that the command takes or, half of the time where there is a C compiler,
right before a random one of its operations on files. What completes the work is killed too, in half of the rounds. Then
everything must be whole, the work must be completed, with the weights of an undisturbed run where that is promised, and
nothing must be left behind, neither beside the files nor in the cache nor among temporary files. Of the ranks that
`torchrun` starts one or all are killed. The counts are printed by command.
"""

from __future__ import annotations

import argparse
import random
import shutil
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from forks import KILL, MEMORY, Ended, after, forked, preload

if __name__ == "__main__":  # Before the imports that take seconds: it begins the script anew.
    preload()

from breakable import Command, Examples, commands, load_everything


@dataclass
class Report:
    """How many processes were killed, by command, and what did not hold afterwards."""

    killed: Counter[str] = field(default_factory=Counter)
    ended: Counter[str] = field(default_factory=Counter)
    at_operations: int = 0
    problems: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        counts = ", ".join(f"{name} {count:,}" for name, count in sorted(self.killed.items()))
        total = f"{self.killed.total():,} processes killed ({self.at_operations:,} at operations on files): {counts}"
        return f"{total}; {self.ended.total():,} more had ended before; {len(self.problems)} problems"


@dataclass
class Killer:
    """Kills the processes of one command, which takes `usual_s` seconds and `operations` operations on files."""

    name: str
    command: Command
    report: Report
    usual_s: float = 0.0
    operations: int = 0

    def measure(self, place: Path) -> None:
        """Run the command undisturbed."""
        folder = place / "measured"
        folder.mkdir()
        self.command.prepare(folder)
        began = time.monotonic()
        ended = forked(lambda: self.command.action(folder), folder, keys=self.command.keys)
        assert ended.code == 0, f"{self.name} fails undisturbed: {ended.err[-900:]}"
        self.usual_s, self.operations = time.monotonic() - began, ended.operations
        shutil.rmtree(folder)

    def round(self, place: Path, chance: random.Random, where: str) -> None:
        """Kill the command, and perhaps what completes its work."""
        folder = place / "round"
        folder.mkdir()
        self.command.prepare(folder)
        ended = self._killed(lambda: self.command.action(folder), folder, chance, self.command.keys)
        try:
            # When one of two ranks is killed, torchrun ends with an exit code of its own.
            assert ended.code in {None, 0} or self.command.strike, f"exit code {ended.code}: {ended.err[-600:]}"
            self.command.verify(folder, lambda action: self._again(action, folder, chance))
        except Exception as error:
            self.report.problems.append(f"{self.name}, {where}: {type(error).__name__}: {error}")
        shutil.rmtree(folder)

    def _killed(
        self, action: Callable[[], object], folder: Path, chance: random.Random, keys: bytes | None = None
    ) -> Ended:
        if self.command.strike is not None:
            ended = forked(action, folder, strike=self.command.strike(chance, self.usual_s, folder))
            self.report.killed[self.name] += ended.code != 0
            self.report.ended[self.name] += ended.code == 0
            return ended
        at_operation = self.operations > 0 and chance.random() < 0.5
        if at_operation:
            ended = forked(action, folder, fault=(chance.randrange(self.operations) + 1, KILL), keys=keys)
        else:
            ended = forked(action, folder, strike=after(chance.random() * self.usual_s), keys=keys)
        self.report.killed[self.name] += ended.code is None
        self.report.at_operations += at_operation and ended.code is None
        self.report.ended[self.name] += ended.code is not None
        return ended

    def _again(self, action: Callable[[], object], folder: Path, chance: random.Random) -> Ended:
        if self.command.strike is not None or chance.random() < 0.5:
            return Ended(None, 0, "", "")
        return self._killed(action, folder, chance)


def run(count: int, seed: int, only: Sequence[str] = (), *, quick: bool = False, first: int = 0) -> Report:
    """Kill this many processes; `quick` leaves out what takes seconds."""
    load_everything()
    report = Report()
    with tempfile.TemporaryDirectory(dir=MEMORY) as folder:
        place = Path(folder)
        known = commands(Examples(place))
        chosen = {name: it for name, it in known.items() if (name in only if only else not (quick and it.slow))}
        killers = {name: Killer(name, command, report) for name, command in chosen.items()}
        turn = [name for time in range(2) for name, command in chosen.items() if time < command.times]
        number = first
        while report.killed.total() < count and len(report.problems) < 20:
            name = turn[number % len(turn)]
            if not killers[name].usual_s:
                killers[name].measure(place)
            killers[name].round(place, random.Random(f"{seed} {number} {name}"), f"seed {seed}, round {number}")
            number += 1
    return report


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--first", type=int, default=0, help="the number of the first round")
    parser.add_argument("--only", nargs="*", default=(), help="the commands to kill")
    parser.add_argument("--quick", action="store_true", help="leave out the commands that take seconds")
    arguments = parser.parse_args()
    began = time.monotonic()
    report = run(arguments.count, arguments.seed, arguments.only, quick=arguments.quick, first=arguments.first)
    print(*report.problems, f"{report}; {time.monotonic() - began:.0f} s", sep="\n")
    sys.exit(bool(report.problems))


if __name__ == "__main__":
    main()
