"""`charwright score`: bits per character of each line, paragraph, record or character of a text, in order or not."""

from __future__ import annotations

import csv
import heapq
import json
import math
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from charwright.cli.options import (
    NamedPath,
    SectionedCommand,
    config_options,
    engine_threads_option,
    given,
    say,
    unescaped,
)
from charwright.cli.score_table import Places, line_of, room_for
from charwright.cli.score_totals import Figure, Totals
from charwright.config import CorpusConfig
from charwright.errors import CorpusError, UsageError
from charwright.schema import field_names
from charwright.signals import handling

if TYPE_CHECKING:
    from charwright.data.text_pieces import Streamed
    from charwright.generation.record_scores import Score

ALL = 0

FIELDS = ("file", "line", "column", "chars", "unknown_chars", "bits", "bits_per_char", "cold", "text")
LABEL = "label"
"""One more field, for a model with labels."""


def _bits(score: Score) -> float:
    return score.to_json()["bits"] if score.chars else -1.0


def _bits_per_char(score: Score) -> float:
    per_char: float | None = score.to_json()["bits_per_char"]
    return -1.0 if per_char is None else per_char


RANKS: dict[str, Figure] = {"bits-per-char": _bits_per_char, "bits": _bits}
"""The figures that order records, rounded as they are shown; -1 for a record without a predicted character."""

NAMES = {"line": "line", "blank": "paragraph", "file": "file", "character": "character", "record": "record"}


class _Count(click.IntRange):
    """A number from 1 on. As the number may be left out, what follows the option is taken for it."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        if value is ALL:
            return value
        try:
            int(value)
        except ValueError:
            name = param.opts[0] if param is not None else ""
            raise UsageError(f"{name} takes a number; write it after the files, or {name}=20") from None
        return super().convert(value, param, ctx)


@click.command(cls=SectionedCommand, short_help="Score each line of a text.")
@click.argument("run", type=NamedPath())
@click.argument("files", nargs=-1, required=True, metavar="FILE...")
@click.option(
    "--by",
    type=click.Choice(list(NAMES)),
    help="What to score: lines, what blank lines separate, files, characters, or the records of training.  [default: "
    "record if RUN was trained on records, otherwise line]",
)
@click.option(
    "--separator", metavar="TEXT", help=r"Text that ends a record, instead of --by; \n and \t are understood."
)
@click.option(
    "--worst",
    is_flag=False,
    flag_value=ALL,
    type=_Count(min=1),
    metavar="[N]",
    help="Most bits per character first: the first N, or all, which are kept in memory.",
)
@click.option(
    "--best",
    is_flag=False,
    flag_value=ALL,
    type=_Count(min=1),
    metavar="[N]",
    help="Fewest bits per character first: the first N, or all; without records of which nothing is predicted.",
)
@click.option(
    "--rank",
    type=click.Choice(list(RANKS)),
    help="What --worst, --best and --above compare: bits per character, or the bits of the whole record (-log2 of its "
    "probability).  [default: bits-per-char]",
)
@click.option(
    "--above",
    type=float,
    metavar="BITS",
    help="Only records of more bits per character than this; with --rank bits, of more bits in all.",
)
@click.option(
    "--min-chars",
    type=click.IntRange(min=0),
    default=0,
    show_default=True,
    help="Leave out records of fewer characters, whose figures depend on chance.",
)
@click.option(
    "--independent",
    is_flag=True,
    help="Read each record from a zero state, after a newline (or what ended each record in training), and not as the"
    " continuation of the text before it.",
)
@click.option(
    "--warm-up",
    type=click.IntRange(min=0, max=1_000_000),
    default=0,
    show_default=True,
    metavar="N",
    help="Read N ids (tokens) before each of the streams into which the text is cut; 0 is what evaluate does.",
)
@click.option(
    "--label", metavar="NAME", help="Take this for the label of every record.  [default: the one in its column]"
)
@click.option("--json", "as_json", is_flag=True, help="One JSON object a record.")
@click.option("--csv", "as_csv", is_flag=True, help="A table as comma-separated values.")
@click.option(
    "--precision",
    type=click.Choice(["f32", "bf16", "q8"]),
    default="f32",
    show_default=True,
    help="Arithmetic: floating point, or the 8-bit integers of `generate` (q8), which are faster.",
)
@engine_threads_option
@config_options(CorpusConfig(), "Reading the files")
@click.pass_context
def score(
    ctx: click.Context,
    /,
    run: Path,
    files: tuple[str, ...],
    by: str | None,
    separator: str | None,
    worst: int | None,
    best: int | None,
    rank: str | None,
    above: float | None,
    min_chars: int,
    independent: bool,
    warm_up: int,
    label: str | None,
    as_json: bool,
    as_csv: bool,
    precision: str,
    threads: int | None,
    **_: Any,
) -> None:
    """Show how well RUN predicts each line of FILE, in bits per character: more bits, more surprise.

    FILE may be compressed, `-` for standard input, or several files, which are read one after the other. The text is
    read along, so each line is predicted from what precedes it. If RUN was trained on records, each record of FILE is
    read on its own, as in training. In both cases all of a file together cost what `evaluate` gives.
    """
    from charwright.cli.download import user_places
    from charwright.data.corpus import checked_specs
    from charwright.data.text_pieces import Streamed
    from charwright.generation.text_scores import RECORD
    from charwright.workflow.loading import load

    _check_options(ctx)
    figure = RANKS[rank or "bits-per-char"]
    separator = None if separator is None else unescaped(separator)
    reading = CorpusConfig(**given(ctx, field_names(CorpusConfig)))
    streamed = Streamed.find(checked_specs(files), reading, user_places())
    generator = load(run, precision, threads=threads)
    by = by or generator.text_scores.usual(separator)
    totals = Totals("record" if separator is not None else NAMES[by])
    with _progress(streamed) as count, handling(("SIGINT",), totals.interrupt):
        found = generator.text_scores.of_pieces(
            streamed.pieces(count),
            by=by,
            separator=separator,
            independent=independent,
            warm_up=warm_up,
            label=label,
        )
        if by == "file" and separator is None and len(streamed.parts) > 1:
            found = _with_empty_files(found, streamed)
        scores = totals.counted(found)
        listed = totals.listed(scores, figure, min_chars, above)
        in_lines = by != RECORD or generator.text_scores.records_are_lines
        whole_lines = separator is None and by != "character" and in_lines
        labelled = bool(generator.vocabulary.labels)
        printer = _Printer(streamed, whole_lines=whole_lines, labelled=labelled, as_json=as_json, as_csv=as_csv)
        # Whoever watches a growing file sees each line at once.
        watched = (independent or by == RECORD) and "-" in files and worst is best is None
        for one in in_order(listed, figure, worst, best):
            printer.write(one)
            if watched:
                sys.stdout.flush()
    if not totals.records:
        _nothing(by, files, interrupted=totals.interrupted)
    printer.begin()
    sys.stdout.flush()
    for note in (*streamed.notes, *totals.notes()):
        say(note)
    if totals.interrupted:
        raise KeyboardInterrupt


def _check_options(ctx: click.Context) -> None:
    """Check that the options are compatible."""
    values = ctx.params
    ranked, above = [values[name] for name in ("worst", "best") if values[name] is not None], values["above"]
    if values["as_json"] and values["as_csv"]:
        raise UsageError("--json and --csv are two formats; choose one")
    if len(ranked) > 1:
        raise UsageError("--worst and --best are two orders; choose one")
    if values["rank"] is not None and not ranked and above is None:
        raise UsageError("--rank says what --worst, --best and --above compare; add one of them")
    if above is not None and not math.isfinite(above):
        raise UsageError(f"--above must be finite, not {above}")
    if values["separator"] is not None and values["by"] is not None:
        raise UsageError("--separator says where records end, and so does --by; choose one")


def _nothing(by: str, files: Sequence[str], *, interrupted: bool) -> None:
    """End a command that has found no record, unless it may print an empty table."""
    from charwright.data.corpus import check_length
    from charwright.generation.text_scores import RECORD

    if interrupted:
        raise KeyboardInterrupt
    if by == RECORD:
        raise CorpusError(f"there is no record in {', '.join(files)}")
    check_length(0, files)


def in_order(scores: Iterable[Score], figure: Figure, worst: int | None, best: int | None) -> Iterable[Score]:
    """The scores as they come, or those with the highest or the lowest figures first; of equals, the first."""
    if best is not None:
        predicted = (score for score in scores if score.chars)
        return sorted(predicted, key=figure) if best == ALL else heapq.nsmallest(best, predicted, key=figure)
    if worst is not None:
        return sorted(scores, key=figure, reverse=True) if worst == ALL else heapq.nlargest(worst, scores, key=figure)
    return scores


def _with_empty_files(scores: Iterable[Score], streamed: Streamed) -> Iterator[Score]:
    """Yield the scores of files, and in their places those of the files without a character."""
    from charwright.data.text_pieces import is_binary
    from charwright.generation.record_scores import Score

    parts = iter(streamed.parts)
    for score in chain(scores, [None]):
        for part in parts:
            name = "-" if part.kind == "stdin" else part.location
            if score is not None and name == score.file:
                break
            # A folder's files that are no text are left out.
            if part.folder is None or not is_binary(part):
                yield Score("", name, 1, 1, 0, 0, 0.0)
        if score is not None:
            yield score


class _Printer:
    """Writes scores to stdout. A heading comes with the first, so that a file that cannot be read leaves nothing."""

    def __init__(self, streamed: Streamed, *, whole_lines: bool, labelled: bool, as_json: bool, as_csv: bool) -> None:
        self._names, self._labelled = _file_names(streamed), labelled
        self._places = Places(self._names, has_columns=not whole_lines)
        self._room = room_for(self._places)
        # If the output's encoding lacks characters, JSON can escape them.
        unicode = (sys.stdout.encoding or "").lower().startswith("utf")
        self._encode = json.JSONEncoder(ensure_ascii=not unicode).encode if as_json else None
        self._table = csv.writer(sys.stdout, lineterminator="\n") if as_csv else None
        self._begun = False

    def write(self, score: Score) -> None:
        """Write one score."""
        self.begin()
        if self._encode is not None:
            sys.stdout.write(self._encode(self._values(score)) + "\n")
        elif self._table is not None:
            self._table.writerow(self._values(score).values())
        else:
            sys.stdout.write(line_of(score, self._places, self._room))

    def begin(self) -> None:
        """Write the heading, once."""
        if self._begun:
            return
        self._begun = True
        if self._table is not None:
            self._table.writerow([*FIELDS, *[LABEL] * self._labelled])
        elif self._encode is None:
            sys.stdout.write(f"bits/char         bits    chars  {self._places.heading}  text\n")

    def _values(self, score: Score) -> dict[str, Any]:
        """The fields of a score."""
        label = {LABEL: score.label} if self._labelled else {}
        return score.to_json() | {"file": self._names.get(score.file, score.file)} | label


def _file_names(streamed: Streamed) -> dict[str, str]:
    """How the files are shown, by their locations: from the current folder if they are in it."""
    here = Path.cwd()
    names = {}
    for part in streamed.parts:
        location = "-" if part.kind == "stdin" else part.location
        path = Path(location)
        names[location] = str(path.relative_to(here)) if path.is_absolute() and path.is_relative_to(here) else location
    return names


@contextmanager
def _progress(streamed: Streamed) -> Iterator[Callable[[int], None] | None]:
    """A progress bar on a terminal, if the scores go elsewhere."""
    if not sys.stderr.isatty() or sys.stdout.isatty():
        yield None
        return
    from rich.progress import BarColumn, DownloadColumn, TimeRemainingColumn

    from charwright.terminal_bar import terminal_bar

    with terminal_bar(BarColumn(), DownloadColumn(), TimeRemainingColumn()) as bar:
        task = bar.add_task("", total=streamed.size)
        yield lambda size: bar.update(task, advance=size)
