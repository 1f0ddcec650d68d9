"""`charwright compare`: several runs measured on one text, in a table."""

from __future__ import annotations

import json
import math
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import takewhile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from charwright.cli.evaluate import difference_shown, machine_options, measure_of
from charwright.cli.options import SectionedCommand, config_options, field_names, given
from charwright.config import CorpusConfig, flag
from charwright.errors import CorpusError, UsageError

if TYPE_CHECKING:
    from charwright.evaluate import Evaluation
    from charwright.run import Run

DASH = "-"
NARROWEST = 80  # columns
COLUMNS = ("  run", "nats", "bits", "difference", "in {}s", "parameters", "min", "chars/s")


@dataclass(frozen=True)
class Measured:
    """A run, its losses on the text, and what its training took.

    `windows` is None where the text is too short for a window; `minutes` and `chars_per_s` where no log tells them.
    """

    run: Run
    carried: Evaluation
    windows: Evaluation | None
    minutes: float | None
    chars_per_s: float | None

    @property
    def parameters(self) -> int:
        """How many numbers the model has."""
        return sum(map(math.prod, self.run.model.weight_shapes(len(self.run.vocabulary)).values()))


@click.command(cls=SectionedCommand, short_help="Measure several runs on one text.")
@click.argument("words", nargs=-1, required=True, metavar="RUN... [CORPUS...]")
@click.option(
    "--windows",
    type=click.IntRange(min=1),
    default=256,
    show_default=True,
    help="Length of the windows that are measured from a zero state each.",
)
@machine_options
@click.option("--json", "as_json", is_flag=True, help="One JSON object on stdout.")
@config_options(CorpusConfig(), "Reading the corpus")
@click.pass_context
def compare(
    ctx: click.Context,
    /,
    words: tuple[str, ...],
    windows: int,
    device: str,
    precision: str,
    as_json: bool,
    **_: Any,
) -> None:
    """Measure each RUN on the same CORPUS, and show them best first.

    The words up to the last run are runs; those behind it are the corpus. Without one, runs that were trained on the
    same text are measured on their validation text.

    The difference to the best run has its standard error behind it: what is less than twice that may be chance.
    """
    from charwright.run import Run

    folders, corpus = split_words(words)
    runs = [Run.open(folder) for folder in folders]
    reading = given(ctx, field_names(CorpusConfig))
    name, text = _given_text(corpus, reading) if corpus else _validation_text(runs, reading)
    rows = sorted(
        (_measured(run, text, windows, device, precision) for run in runs), key=lambda row: row.carried.nats_per_char
    )
    if as_json:
        click.echo(json.dumps(_facts(rows, windows), ensure_ascii=False))
        return
    _print_table(rows, windows)
    click.echo()
    for note in _notes(rows, name, text, windows):
        click.echo(note)


def split_words(words: Sequence[str]) -> tuple[list[str], list[str]]:
    """The runs, and the corpus behind them. What stands first is a run, whether there is one or not.

    Raises:
        UsageError: when a run stands behind the corpus.
    """
    runs = list(takewhile(_is_run, words))
    corpus = list(words[len(runs) :])
    if not runs:  # Opening it says what is wrong with it.
        return corpus[:1], corpus[1:]
    late = [word for word in corpus if _is_run(word)]
    if late:
        raise UsageError(f"the runs come first and then the corpus, but the run {late[0]} stands behind {corpus[0]}")
    return runs, corpus


def _is_run(word: str) -> bool:
    return (Path(word) / "config.json").is_file()


def _given_text(corpus: Sequence[str], reading: dict[str, Any]) -> tuple[str, str]:
    """The words for a corpus, and its text."""
    from charwright.cli.download import user_places
    from charwright.data.corpus import read_corpus

    name = corpus[0] if len(corpus) == 1 else f"{corpus[0]} and {len(corpus) - 1} more"
    return name, read_corpus(corpus, CorpusConfig(**reading), user_places()).text


def _validation_text(runs: Sequence[Run], reading: dict[str, Any]) -> tuple[str, str]:
    """The words for the validation text that all runs have in common, and the text.

    Raises:
        UsageError: when they have none in common, or options say how to read a corpus.
        CorpusError: when no run's text can be found again.
    """
    from charwright.cli.corpora import texts_again

    if reading:
        raise UsageError(f"{flag(next(iter(reading)))} says how to read a CORPUS; name one after the runs")
    if not all(run.config.sha256 for run in runs) or len(set(map(_origin, runs))) > 1:
        raise UsageError("the runs do not have the same validation text; name a CORPUS after them")
    complaint = ""
    for run in runs:
        try:
            _, text = texts_again(run, ())
        except CorpusError as error:
            complaint = complaint or str(error).partition(";")[0]
            continue
        if not text:
            raise UsageError("the runs kept no text for validation; name a CORPUS after them")
        return "the validation text of the runs", text
    raise CorpusError(f"{complaint}; name a CORPUS after the runs")


def _origin(run: Run) -> Any:
    """What the validation text follows from."""
    config = run.config
    validation = tuple(source.sha256 for source in config.validation)
    return (validation,) if validation else (config.sha256, config.recipe.split)


def _measured(run: Run, text: str, windows: int, device: str, precision: str) -> Measured:
    measure = measure_of(run, device, precision)
    carried = measure(text, "carried")
    try:
        in_windows = measure(text, f"windows-{windows}")
    except CorpusError:
        in_windows = None
    return Measured(run, carried, in_windows, _minutes(run), _chars_per_s(run))


def _minutes(run: Run) -> float | None:
    """How long the run was trained, by the last event that tells it."""
    times = [event.get("time_s") for event in run.log() if event.get("event") in ("checkpoint", "end")]
    last = times[-1] if times else None
    return last / 60 if isinstance(last, int | float) else None


def _chars_per_s(run: Run) -> float | None:
    """How fast the run was trained: the mean over the time of its epochs."""
    pairs = [(epoch.get("chars_per_s"), epoch.get("elapsed_s")) for epoch in run.epochs()]
    told = [(rate, time) for rate, time in pairs if isinstance(rate, int | float) and isinstance(time, int | float)]
    time_s = sum(time for _, time in told)
    return sum(rate * time for rate, time in told) / time_s if time_s > 0 else None


def _error(row: Measured, best: Measured) -> float | None:
    """The standard error of a run's difference to the best, where there are blocks enough to tell."""
    from charwright.evaluate import standard_error_of_difference

    error = standard_error_of_difference(row.carried, best.carried)
    return error if math.isfinite(error) else None


def _facts(rows: Sequence[Measured], windows: int) -> dict[str, Any]:
    best = rows[0]
    return {
        "chars": best.carried.chars,
        "windows": windows,
        "runs": [
            {
                "run": str(row.run.folder),
                "nats_per_char": row.carried.nats_per_char,
                "bits_per_char": row.carried.bits_per_char,
                "unknown_chars": row.carried.unknown_chars,
                "difference": row.carried.nats_per_char - best.carried.nats_per_char,
                "standard_error": _error(row, best),
                "windows_nats_per_char": row.windows.nats_per_char if row.windows else None,
                "parameters": row.parameters,
                "minutes": row.minutes,
                "chars_per_s": row.chars_per_s,
            }
            for row in rows
        ],
    }


def _print_table(rows: Sequence[Measured], windows: int) -> None:
    """Columns that fit a usual terminal; a long name is folded there, and nothing is cut in a pipe."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    for column in COLUMNS:
        of_names = column == COLUMNS[0]
        table.add_column(
            column.format(windows),
            justify="left" if of_names else "right",
            no_wrap=not of_names,
            overflow="fold",
        )
    for row, name in zip(rows, _names(rows), strict=True):
        # A folder's name is no markup, whatever brackets it has.
        table.add_row(*(Text(cell) for cell in _cells(row, rows[0], name)), style="bold" if row is rows[0] else "")
    # A terminal that is too narrow for the figures breaks the lines: better than figures with their ends cut off.
    width = max(NARROWEST, Console().width) if sys.stdout.isatty() else 10_000
    Console(highlight=False, width=width).print(table)


def _names(rows: Sequence[Measured]) -> list[str]:
    """The folders' own names where they differ, and else their paths."""
    names = [row.run.folder.resolve().name for row in rows]
    counts = Counter(names)
    return [name if counts[name] == 1 else str(row.run.folder) for name, row in zip(names, rows, strict=True)]


def _cells(row: Measured, best: Measured, name: str) -> tuple[str, ...]:
    difference = row.carried.nats_per_char - best.carried.nats_per_char
    return (
        f"{'*' if row is best else ' '} {name}",
        f"{row.carried.nats_per_char:.4f}",
        f"{row.carried.bits_per_char:.4f}",
        "best" if row is best else difference_shown(difference, _error(row, best)),
        f"{row.windows.nats_per_char:.4f}" if row.windows else DASH,
        f"{row.parameters:,}",
        DASH if row.minutes is None else f"{row.minutes:.1f}",
        DASH if row.chars_per_s is None else f"{row.chars_per_s:,.0f}",
    )


def _notes(rows: Sequence[Measured], name: str, text: str, windows: int) -> Iterator[str]:
    """What the figures are of, and what stands behind them."""
    from charwright.data.corpus import sha256_of

    chars = rows[0].carried.chars
    yield f"Per character, on {name} ({chars:,} characters predicted): carried, and in windows of {windows}."
    sha256 = sha256_of(text)
    for row, shown in zip(rows, _names(rows), strict=True):
        if row.carried.unknown_chars:
            yield (
                f"{row.carried.unknown_chars:,} of the characters are unknown to {shown}; "
                "each costs what it takes to name it."
            )
        if row.run.config.sha256 == sha256:
            yield f"{shown} was trained on this text: the figure says nothing about new ones."
