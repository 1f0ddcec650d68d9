"""`charwright compare`: several runs evaluated on one text, in a table."""

from __future__ import annotations

import json
import math
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from charwright.cli.evaluate import TRAINED_ON_IT, difference_shown, evaluator_of, machine_options
from charwright.cli.options import SectionedCommand, config_options, given, say, without_teachers
from charwright.config import CorpusConfig
from charwright.errors import CorpusError, UsageError
from charwright.schema import field_names, flag

if TYPE_CHECKING:
    from charwright.data.texts import Text
    from charwright.evaluation.evaluation import Evaluation
    from charwright.model.compute import Wanted
    from charwright.run import Run

DASH = "-"
NARROWEST = 80  # columns
COLUMNS = ("  run", "nats", "bits", "difference", "in {}s", "parameters", "min", "chars/s")


@dataclass(frozen=True)
class Row:
    """A run, its losses on the text, and its training time and speed.

    `loss` is carried, or record by record if the text is in records. `windows` is None for these, and for a text that
    is too short for a window; `minutes` and `chars_per_s` are None if they are not logged.
    """

    run: Run
    loss: Evaluation
    windows: Evaluation | None
    minutes: float | None
    chars_per_s: float | None

    @property
    def parameters(self) -> int:
        """The number of weights."""
        return sum(map(math.prod, self.run.model.weight_shapes(len(self.run.vocabulary)).values()))


@click.command(cls=SectionedCommand, short_help="Compare several runs on one text.")
@click.argument("words", nargs=-1, required=True, metavar="RUN... [CORPUS...]")
@click.option(
    "--windows",
    type=click.IntRange(1, 999_999_999),
    default=256,
    show_default=True,
    help="Length of the windows that start from a zero state.",
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
    threads: int | None,
    as_json: bool,
    **_: Any,
) -> None:
    """Evaluate each RUN on the same CORPUS, and show the best first.

    The arguments up to the last run are runs; the rest is the corpus. Without a corpus, runs that were trained on the
    same text are evaluated on their validation text. Runs that were all trained with the same --records and
    --label are evaluated record by record.

    Each difference to the best run is followed by its standard error; less than twice that is not significant.
    """
    from charwright.model.compute import Wanted
    from charwright.run import Run

    folders, corpus = split_words(without_teachers(words))
    runs = _trained([Run.open(folder) for folder in folders])
    reading = given(ctx, field_names(CorpusConfig))
    name, text, sha256 = _given_text(runs, corpus, reading) if corpus else _validation_text(runs, reading)
    wanted = Wanted(device, precision=precision, threads=threads)
    rows = sorted((_row(run, text, windows, wanted) for run in runs), key=lambda row: row.loss.nats_per_char)
    if as_json:
        click.echo(json.dumps(_facts(rows, sha256, windows), ensure_ascii=False))
        return
    _print_table(rows, windows)
    click.echo()
    for note in _notes(rows, name, sha256, windows):
        click.echo(note)


def split_words(words: Sequence[str]) -> tuple[list[str], list[str]]:
    """The runs, and the corpus after them. The first word is a run, whether it exists or not.

    Among what a pattern such as runs/* finds, folders that are no runs are left out.

    Raises:
        UsageError: when a run follows a file of the corpus.
    """
    places = [number for number, word in enumerate(words) if _is_run(word)]
    if not places or not Path(words[0]).is_dir():  # Opening it reports what is wrong.
        return list(words[:1]), list(words[1:])
    corpus = []
    for number, word in enumerate(words):
        if number in places:
            continue
        if not Path(word).is_dir() and number < places[-1]:
            raise UsageError(f"runs come before the corpus, but the run {words[places[-1]]} follows {word}")
        if number < places[-1] or any(Path(word).glob("*/config.json")):
            say(f"left out {word}, which is not a run")
        else:
            corpus.append(word)
    return [words[number] for number in places], corpus


def _is_run(word: str) -> bool:
    return (Path(word) / "config.json").is_file()


def _given_text(runs: Sequence[Run], corpus: Sequence[str], reading: dict[str, Any]) -> tuple[str, Text, str]:
    """The name of a corpus, its text, and its SHA-256; the text in records, if all runs were trained on such."""
    from charwright.cli.corpora import read_one
    from charwright.workflow.texts import divided

    name = corpus[0] if len(corpus) == 1 else f"{corpus[0]} and {len(corpus) - 1} more"
    found = read_one(corpus, CorpusConfig(**reading))
    ends = {run.config.record_end for run in runs}
    [records, *others] = {run.config.recipe.records for run in runs}
    if others or len(ends) > 1:
        return name, found.text, found.sha256
    return name, divided(found.text, records, ends.pop()), found.sha256


def _validation_text(runs: Sequence[Run], reading: dict[str, Any]) -> tuple[str, Text, str]:
    """A name for the validation text that the runs share, the text, and its SHA-256 if it is in memory.

    Raises:
        UsageError: when they do not share one, or reading options are given.
        CorpusError: when the text of no run can be found.
    """
    from charwright.cli.corpora import texts_again
    from charwright.data.corpus import sha256_of

    if reading:
        raise UsageError(f"{flag(next(iter(reading)))} applies to a CORPUS; name one after the runs")
    if not all(run.config.sha256 for run in runs) or len(set(map(_origin, runs))) > 1:
        raise UsageError("the runs do not share a validation text; name a CORPUS after them")
    complaint = ""
    for run in runs:
        try:
            _, text = texts_again(run, ())
        except CorpusError as error:
            complaint = complaint or error.for_shell.partition(";")[0]
            continue
        if not text:
            raise UsageError("the runs have no validation text; name a CORPUS after them")
        return "the validation text of the runs", text, sha256_of(text) if isinstance(text, str) else ""
    raise CorpusError(f"{complaint}; name a CORPUS after the runs")


def _trained(runs: Sequence[Run]) -> list[Run]:
    """The runs that have weights; if none has, all of them, whose evaluation says what is missing."""
    trained = [run for run in runs if run.has_weights]
    for run in runs:
        if trained and not run.has_weights:
            say(f"left out {run.folder}, which has no trained weights yet")
    return trained or list(runs)


def _origin(run: Run) -> Any:
    """What determines the validation text."""
    config = run.config
    validation = tuple(source.sha256 for source in config.validation)
    whole = (config.sha256, config.recipe.split)
    return (validation if validation else whole, config.recipe.records)


def _row(run: Run, text: Text, windows: int, wanted: Wanted) -> Row:
    evaluate = evaluator_of(run, wanted)
    loss = evaluate(text, "carried")
    in_windows = None
    if loss.records is None:
        with suppress(CorpusError):  # It may be too short for a window.
            in_windows = evaluate(text, f"windows-{windows}")
    return Row(run, loss, in_windows, _minutes(run), _chars_per_s(run))


def _minutes(run: Run) -> float | None:
    """The training time of the run, from its log."""
    times = [event.get("time_s") for event in run.log() if event.get("event") in ("checkpoint", "end")]
    last = times[-1] if times else None
    return last / 60 if isinstance(last, int | float) else None


def _chars_per_s(run: Run) -> float | None:
    """The training speed of the run: the mean over its epochs."""
    pairs = [(epoch.get("chars_per_s"), epoch.get("elapsed_s")) for epoch in run.epochs()]
    logged = [(rate, time) for rate, time in pairs if isinstance(rate, int | float) and isinstance(time, int | float)]
    time_s = sum(time for _, time in logged)
    return sum(rate * time for rate, time in logged) / time_s if time_s > 0 else None


def _error(row: Row, best: Row) -> float | None:
    """The standard error of a run's difference to the best, if there are enough blocks."""
    from charwright.evaluation.evaluation import standard_error_of_difference

    error = standard_error_of_difference(row.loss, best.loss)
    return error if math.isfinite(error) else None


def _facts(rows: Sequence[Row], sha256: str, windows: int) -> dict[str, Any]:
    best = rows[0]
    return {
        "chars": best.loss.chars,
        "windows": windows,
        "runs": [
            {
                "run": str(row.run.folder),
                "nats_per_char": row.loss.nats_per_char,
                "bits_per_char": row.loss.bits_per_char,
                "unknown_chars": row.loss.unknown_chars,
                "trained_on_text": row.run.config.sha256 == sha256,
                "difference": row.loss.nats_per_char - best.loss.nats_per_char,
                "standard_error": _error(row, best),
                "windows_nats_per_char": row.windows.nats_per_char if row.windows else None,
                "parameters": row.parameters,
                "minutes": row.minutes,
                "chars_per_s": row.chars_per_s,
            }
            for row in rows
        ],
    }


def _print_table(rows: Sequence[Row], windows: int) -> None:
    """Columns that fit 80 characters; a long name is folded on a terminal, and nothing is cut in a pipe."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    for column in COLUMNS:
        is_name = column == COLUMNS[0]
        table.add_column(
            column.format(windows),
            justify="left" if is_name else "right",
            no_wrap=not is_name,
            overflow="fold",
        )
    for row, name in zip(rows, _names(rows), strict=True):
        # A folder name may contain brackets, which are not markup.
        table.add_row(*(Text(cell) for cell in _cells(row, rows[0], name)), style="bold" if row is rows[0] else "")
    # A narrow terminal wraps the lines, which is better than truncated figures.
    width = max(NARROWEST, Console().width) if sys.stdout.isatty() else 10_000
    Console(highlight=False, width=width).print(table)


def _names(rows: Sequence[Row]) -> list[str]:
    """The names of the folders, or their paths if the names are not unique."""
    names = [row.run.folder.resolve().name for row in rows]
    counts = Counter(names)
    return [name if counts[name] == 1 else str(row.run.folder) for name, row in zip(names, rows, strict=True)]


def _cells(row: Row, best: Row, name: str) -> tuple[str, ...]:
    difference = row.loss.nats_per_char - best.loss.nats_per_char
    return (
        f"{'*' if row is best else ' '} {name}",
        f"{row.loss.nats_per_char:.4f}",
        f"{row.loss.bits_per_char:.4f}",
        "best" if row is best else difference_shown(difference, _error(row, best)),
        f"{row.windows.nats_per_char:.4f}" if row.windows else DASH,
        f"{row.parameters:,}",
        DASH if row.minutes is None else f"{row.minutes:.1f}",
        DASH if row.chars_per_s is None else f"{row.chars_per_s:,.0f}",
    )


def _notes(rows: Sequence[Row], name: str, sha256: str, windows: int) -> Iterator[str]:
    """What the figures mean; `sha256` is that of the text, if known."""
    chars = rows[0].loss.chars
    records = rows[0].loss.records
    how = f"carried, and in windows of {windows}" if records is None else f"each of {records:,} records on its own"
    yield f"Per character, on {name} ({chars:,} characters predicted): {how}."
    if records is None and len({row.run.config.recipe.records for row in rows}) > 1:
        yield "The runs differ in --records or --label, so the text is read as running text, without records."
    for row, shown in zip(rows, _names(rows), strict=True):
        if row.loss.unknown_chars:
            yield (
                f"{row.loss.unknown_chars:,} of the characters are not in the vocabulary of {shown}; "
                "each costs what it takes to identify it."
            )
        if row.run.config.sha256 == sha256:
            yield TRAINED_ON_IT.format(shown)
