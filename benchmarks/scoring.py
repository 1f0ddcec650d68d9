"""How long `charwright score` takes, compared with `charwright evaluate` on the same file, and how much memory.

    python benchmarks/scoring.py TEXT                     # a run of random weights, 10 MB made of TEXT
    python benchmarks/scoring.py TEXT --run runs/novel    # another run
    python benchmarks/scoring.py TEXT --quick             # a smoke test; its figures are meaningless

The text is repeated up to the size. Both are whole processes, from their start to their end, which take turns, A B A B,
and write to a pipe; a ratio is the median of the rounds' ratios, with minimum and maximum. Processor time is that of
all threads together, and depends less on what else the machine does. The peak of the memory is for the whole text and
for a quarter of it.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

import charwright as cw
from charwright.run import Run
from machine import describe_machine, ratio_and_spread

HERE = Path(__file__).parent
MODES = {
    "score": [],
    "score --json": ["--json"],
    "score --independent": ["--independent"],
    "score --precision q8": ["--precision", "q8"],
    "score --worst 20": ["--worst", "20"],
}


def measured(command: list[str]) -> dict[str, float]:
    """The wall time and the peak memory of a command."""
    words = [sys.executable, "-I", "-S", str(HERE / "process.py"), sys.executable, "-m", "charwright", *command]
    found: dict[str, float] = json.loads(subprocess.run(words, check=True, capture_output=True).stdout)
    return found


def make_run(folder: Path, text: str, units: int) -> None:
    vocabulary = cw.Vocabulary.from_text(text)
    model = cw.LanguageModel(cw.ModelConfig(units=units, embedding_size=64), len(vocabulary), seed=1)
    Run.save(folder, model.config, model.arrays(), vocabulary)


def fill(path: Path, text: str, size: int) -> None:
    repeated = text * (size // len(text) + 1)
    path.write_text(repeated[:size], encoding="utf-8")


def main() -> None:
    """Parse the command line and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("text", type=Path)
    parser.add_argument("--run", type=Path)
    parser.add_argument("--units", type=int, default=128, help="of the random run")
    parser.add_argument("--megabytes", type=float, default=10)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--modes", nargs="+", choices=list(MODES), default=["score"])
    parser.add_argument("--quick", action="store_true")
    options = parser.parse_args()
    size = int((0.2 if options.quick else options.megabytes) * 1e6)
    rounds = 1 if options.quick else options.rounds
    text = options.text.read_text(encoding="utf-8")
    with tempfile.TemporaryDirectory() as temporary:
        run, whole, part = (Path(temporary) / name for name in ("run", "whole.txt", "part.txt"))
        if options.run is None:
            make_run(run, text, options.units)
        run = options.run or run
        fill(whole, text, size)
        fill(part, text, size // 4)
        model = Run.open(run).model
        print(describe_machine())
        print(f"{model.cell.upper()} {model.units}, {size / 1e6:g} million characters, {rounds} rounds\n")
        evaluate, scores = [], {name: [] for name in options.modes}
        for _ in range(rounds):
            evaluate.append(measured(["evaluate", str(run), str(whole)]))
            for name in options.modes:
                scores[name].append(measured(["score", str(run), str(whole), *MODES[name]]))
        print("| | seconds | of evaluate's time | processor time | of evaluate's | peak MB | of a quarter |")
        print("|---|---|---|---|---|---|---|")
        print(row("evaluate", evaluate, evaluate, ""))
        for name, found in scores.items():
            quarter = measured(["score", str(run), str(part), *MODES[name]])["peak_mb"]
            print(row(name, found, evaluate, f"{quarter:.0f}"))


def row(name: str, ours: list[dict[str, float]], theirs: list[dict[str, float]], quarter: str) -> str:
    cells = [name]
    for key in ("wall_s", "cpu_s"):
        times, others = ([one[key] for one in rounds] for rounds in (ours, theirs))
        ratio, least, most = ratio_and_spread(times, others)
        cells += [f"{statistics.median(times):.1f}", f"{ratio:.2f} ({least:.2f} to {most:.2f})"]
    cells += [f"{ours[0]['peak_mb']:.0f}", quarter]
    return f"| {' | '.join(cells)} |"


if __name__ == "__main__":
    main()
