"""`charwright tune`: many short trainings, to find the options for a text; the result is a recipe file."""

from __future__ import annotations

import math
import shlex
import signal
import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from charwright.cli.options import (
    SectionedCommand,
    config_options,
    core_option,
    device_option,
    field_names,
    given,
    threads_option,
)
from charwright.cli.signals import stop_asked
from charwright.config import CorpusConfig, Recipe, SplitConfig, VocabularyConfig, flag
from charwright.errors import MissingExtraError, RunError, UsageError

if TYPE_CHECKING:
    from charwright.data.corpus import Corpus
    from charwright.training.events import Event
    from charwright.training.search import Limits, Search, Tried
    from charwright.training.trial import Hopeless, Outcome, Task

SHOWN = 10
LONGER = 10  # times the minutes of a trial that the last line proposes to train for


@click.command(cls=SectionedCommand, short_help="Search for the options that learn a text best.")
@click.argument("corpus", nargs=-1)
@click.option("--hours", type=float, help="Search for so many hours, those before a stop included.")
@click.option("--trials", type=click.IntRange(min=1), help="Make so many trials, those before a stop included.")
@click.option(
    "--minutes-per-trial", "minutes", type=float, default=2.0, show_default=True, help="Train so long in each trial."
)
@click.option("--out", type=click.Path(path_type=Path), help="The search's folder.  [default: tune/NAME OF THE CORPUS]")
@click.option(
    "--validation", multiple=True, metavar="TEXT", help="Measure on this text instead of a part of the corpus."
)
@click.option(
    "--seed",
    type=click.IntRange(0, 2**63 - 1),
    default=1,
    show_default=True,
    help="Seed of the proposals, and of the weights and the order in every trial.",
)
@device_option
@core_option
@threads_option
@config_options(SplitConfig(), "Validation")
@config_options(VocabularyConfig(), "Vocabulary")
@config_options(CorpusConfig(), "Reading the corpus")
@click.pass_context
def tune(
    ctx: click.Context,
    /,
    corpus: tuple[str, ...],
    hours: float | None,
    trials: int | None,
    minutes: float,
    out: Path | None,
    validation: tuple[str, ...],
    seed: int,
    device: str,
    core: str,
    threads: int | None,
    **_: Any,
) -> int:
    """Search for the options by which CORPUS is learned best, in trials of a few minutes each.

    The same command again goes on with a search that was stopped. The best options so far are always in the file
    best-recipe.json of its folder, for `charwright train --recipe`.
    """
    _check(corpus, hours, trials, minutes)
    _require_optuna()
    import torch

    from charwright.cli.corpora import read_texts
    from charwright.training.search import Limits, check_place, search_in, starting_recipe

    if out is not None:
        check_place(out)
    if threads is not None:
        torch.set_num_threads(threads)
    options = given(ctx, field_names(SplitConfig, VocabularyConfig)) | {"seed": seed}
    reading = CorpusConfig(**given(ctx, field_names(CorpusConfig)))
    text, measured = read_texts(corpus, validation, reading)
    task = _task(text, measured, options, minutes, device, core)
    place = out if out is not None else Path("tune") / text.name
    protocol = _protocol(text, measured, task, seed, Recipe().with_options(options))
    with search_in(place, lambda: starting_recipe(task, options), protocol) as search, _Shown(task) as shown:
        limits = Limits(None if hours is None else 3600 * hours, trials)
        stopped = _search(search, task, limits, shown)
    if stopped:
        click.echo(f"stopped; {place} holds what was found, and the same command goes on", err=True)
    words = [*_words("validation", validation), *_reading_words(reading)]
    _print_result(search, shlex.join(["charwright", "train", *corpus]), minutes, words)
    return 128 + int(signal.Signals[stopped]) if stopped else 0


def _check(corpus: tuple[str, ...], hours: float | None, trials: int | None, minutes: float) -> None:
    """See that the numbers make a search."""
    if not corpus:
        raise UsageError("name a text to search for: a file, a folder, -, an address, shakespeare or python-docs")
    if hours is None and trials is None:
        raise UsageError("a search needs an end: --hours or --trials")
    for name, value in (("--hours", hours), ("--minutes-per-trial", minutes)):
        if value is not None and not (value > 0 and math.isfinite(value)):
            raise UsageError(f"{name} must be a number above 0, not {value:g}")
    if minutes > 525_600:
        raise UsageError(f"--minutes-per-trial must be at most 525600, not {minutes:g}")
    if hours is not None and 60 * hours < minutes:
        raise UsageError(f"--hours {hours:g} is no time for a trial of {minutes:g} minutes: see --minutes-per-trial")


def _require_optuna() -> None:
    try:
        import optuna  # noqa: F401
    except ImportError as error:
        raise MissingExtraError("charwright tune", "tune") from error


def _task(
    text: Corpus, measured: Corpus | None, options: Mapping[str, Any], minutes: float, device: str, core: str
) -> Task:
    """What the trials have in common, found to be possible."""
    from charwright.data.corpus import split_corpus
    from charwright.data.vocabulary import Vocabulary
    from charwright.model.machine import choose_device, choose_precision
    from charwright.model.recurrent import choose_core
    from charwright.training.trial import Task

    recipe = Recipe().with_options(options)
    learned, kept = (text.text, measured.text) if measured else split_corpus(text.text, recipe.split)
    place = choose_device(device)
    choose_core(core, place, choose_precision(recipe.training.precision, place))
    task = Task(Vocabulary.from_text(text.text, recipe.vocabulary), learned, kept, minutes, place, core)
    task.check()
    return task


def _protocol(text: Corpus, measured: Corpus | None, task: Task, seed: int, recipe: Recipe) -> dict[str, Any]:
    """What makes two trials comparable: of all this nothing may change while a search goes on."""
    import torch

    parts = {**recipe.split.to_json(), **recipe.vocabulary.to_json()}
    return {
        "text": text.sha256,
        "--validation": measured.sha256 if measured else None,
        "--minutes-per-trial": task.minutes,
        "--seed": seed,
        "--device": str(task.device),
        "--core": task.core,
        "--threads": torch.get_num_threads(),
        **{flag(name): value for name, value in parts.items()},
    }


def _search(search: Search, task: Task, limits: Limits, shown: _Shown) -> str | None:
    """Make the trials; the name of the signal that stopped them, or None."""
    from charwright.training.trial import run_trial

    made = 0
    with stop_asked(b"\nstopping after this step; once more to stop at once\n") as should_stop:
        shown.begin(search)

        def measure(recipe: Recipe, hopeless: Hopeless) -> Outcome:
            return run_trial(task, recipe, hopeless, should_stop=should_stop, listen=shown.hear)

        for tried in search.run(measure, limits, should_stop=should_stop):
            shown.tell(tried, search)
            made += 1
        stopped = should_stop()
    if not made and not stopped:
        click.echo("its hours or trials were spent already; to search on, raise --hours or --trials", err=True)
    return stopped


class _Shown:
    """What is told of a search on stderr: a line for each trial and, on a terminal, a bar for the one in hand."""

    def __init__(self, task: Task) -> None:
        self.task = task
        self.bar: Any = None
        self.best = ""

    def __enter__(self) -> _Shown:
        if sys.stderr.isatty():
            from rich.console import Console
            from rich.progress import BarColumn, Progress, TextColumn

            columns = (TextColumn("{task.description}"), BarColumn(bar_width=None), TextColumn("{task.fields[note]}"))
            console = Console(stderr=True, highlight=False)
            self.bar = Progress(*columns, console=console, transient=True, expand=True)
            self.bar.add_task("trial", total=1.0, note="")
        return self

    def __exit__(self, *_: object) -> None:
        if self.bar is not None:
            self.bar.stop()

    def begin(self, search: Search) -> None:
        """Say what is searched and where."""
        tried = len(search.tried())
        self._note_best(search)
        done = f", {tried} of them made before" if tried else ""
        self._line(f"searching in {search.folder}: trials of {self.task.minutes:g} minutes{done}")
        if self.bar is not None:
            self.bar.start()

    def hear(self, event: Event) -> None:
        """Move the bar."""
        from charwright.training.events import Step

        if self.bar is not None and isinstance(event, Step):
            note = f"loss {event.loss:.3f}  {event.chars_per_s:,.0f} chars/s{self.best}"
            self.bar.update(self.bar.task_ids[0], completed=event.fraction, note=note)

    def tell(self, tried: Tried, search: Search) -> None:
        """The line of a trial that is over."""
        best = search.best()
        self._note_best(search)
        record = "  best so far" if best is not None and best.number == tried.number else ""
        self._line(f"trial {tried.number}  {_result(tried)}{record}  {_shape(tried)}  {tried.outcome.seconds:.0f} s")

    def _note_best(self, search: Search) -> None:
        best = search.best()
        self.best = f"  best {best.outcome.loss:.4f}" if best is not None else ""

    def _line(self, text: str) -> None:
        if self.bar is not None:
            self.bar.console.print(text, markup=False, soft_wrap=True)
            return
        with suppress(BrokenPipeError):  # The search goes on when nobody listens any more.
            print(text, file=sys.stderr, flush=True)


def _result(tried: Tried) -> str:
    outcome = tried.outcome
    if outcome.kind == "pruned":
        return f"given up at {outcome.fraction:.0%}, others were better there"
    return f"failed: {outcome.why}" if outcome.kind == "failed" else f"{outcome.loss:.4f} nats/char"


def _shape(tried: Tried) -> str:
    row = tried.to_json()
    return (
        f"{row['cell']} {row['units']} x {row['layers']}, embedding {row['embedding']}, batch {row['batch']} x"
        f" {row['seq_length']}, rate {row['learning_rate']:g}, dropout {row['dropout']:g} and"
        f" {row['state_dropout']:g}, decay {row['weight_decay']:g}"
    )


_COLUMNS = {
    "trial": "trial",
    "validation_loss": "nats/char",
    "cell": "cell",
    "units": "units",
    "layers": "layers",
    "embedding": "embedding",
    "batch": "batch",
    "seq_length": "seq",
    "learning_rate": "rate",
    "dropout": "dropout",
    "state_dropout": "state",
    "weight_decay": "decay",
    "chars_per_s": "chars/s",
}


def _print_result(search: Search, train: str, minutes: float, words: Sequence[str]) -> None:
    """The table of the best trials on stdout, and how to train by the best one."""
    from charwright.training.search import by_loss

    tried = search.tried()
    complete = sorted((trial for trial in tried if by_loss(trial) < math.inf), key=by_loss)
    if not complete:
        if tried:
            raise RunError(f"none of {len(tried)} trials came to its end; the last one failed: {tried[-1].outcome.why}")
        return
    rows = [trial.to_json() for trial in complete[:SHOWN]]
    for line in _table([list(_COLUMNS.values()), *([_cell(name, row[name]) for name in _COLUMNS] for row in rows)]):
        click.echo(line)
    first = next((trial for trial in complete if trial.first), None)
    gain = f"; the usual recipe (trial {first.number}): {by_loss(first):.4f}" if first else ""
    click.echo(f"the best of {len(tried)} trials: {by_loss(complete[0]):.4f} nats/char{gain}", err=True)
    file = shlex.quote(str(search.folder / "best-recipe.json"))
    more = f" {shlex.join(words)}" if words else ""
    click.echo(f"train with: {train} --recipe {file} --minutes {LONGER * minutes:g}{more}", err=True)


def _cell(name: str, value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.4f}" if name == "validation_loss" else f"{value:g}"
    return f"{value:,}" if isinstance(value, int) else str(value)


def _table(rows: Sequence[Sequence[str]]) -> list[str]:
    """Rows as lines, the columns flush right."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return ["  ".join(cell.rjust(width) for cell, width in zip(row, widths, strict=True)) for row in rows]


def _reading_words(reading: CorpusConfig) -> list[str]:
    """The options by which the text was read, where they are not the usual ones: no recipe holds them."""
    usual = CorpusConfig().to_json()
    changed = {name: value for name, value in reading.to_json().items() if value != usual[name]}
    return [word for name, value in changed.items() for word in _words(name, [value])]


def _words(name: str, values: Sequence[str]) -> list[str]:
    return [word for value in values for word in (flag(name), value)]
