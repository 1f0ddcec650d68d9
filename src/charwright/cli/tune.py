"""`charwright tune`: search for the best options for a text by many short trainings; the result is a recipe file."""

from __future__ import annotations

import math
import signal
import sys
from collections.abc import Sequence
from contextlib import AbstractContextManager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from charwright.cli.options import (
    NamedPath,
    SectionedCommand,
    config_options,
    core_option,
    device_option,
    given,
    say,
    seed_option,
    threads_option,
)
from charwright.config import CorpusConfig, Recipe, RecordsConfig, SplitConfig, VocabularyConfig
from charwright.errors import MissingExtraError, RunError, UsageError
from charwright.schema import field_names, flag, quoted
from charwright.signals import STOPPING, stop_asked

if TYPE_CHECKING:
    from charwright.model.compute import Compute
    from charwright.training.events import Event
    from charwright.tuning.search import Limits, Search, TrialResult
    from charwright.tuning.trial import Outcome, ShouldPrune, Task
    from charwright.workflow.texts import Texts

SHOWN = 10
LONGER = 10  # the proposed training time, in units of the minutes of a trial


@click.command(cls=SectionedCommand, short_help="Search for the best options for a text.")
@click.argument("corpus", nargs=-1)
@click.option("--hours", type=float, help="Search for this many hours, earlier sessions included.")
@click.option("--trials", type=click.IntRange(min=1), help="Run this many trials, earlier sessions included.")
@click.option(
    "--minutes-per-trial", "minutes", type=float, default=2.0, show_default=True, help="Minutes of training per trial."
)
@click.option("--out", type=NamedPath(), help="Search folder.  [default: tune/NAME OF THE CORPUS]")
@click.option(
    "--validation", multiple=True, metavar="TEXT", help="Validate on this text instead of a part of the corpus."
)
@click.option(
    "--storage",
    metavar="FILE|URL",
    help="Search together with other workers: a journal file that all can reach, or a database such as PostgreSQL.",
)
@click.option("--study", metavar="NAME", help="The study in the storage.  [default: NAME OF THE CORPUS]")
@seed_option(1, "Random seed for the proposals, and for weights and batch order in every trial.")
@device_option
@core_option
@threads_option
@config_options(SplitConfig(), "Validation")
@config_options(VocabularyConfig(), "Vocabulary")
@config_options(RecordsConfig(), "Records", planned=["records"])
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
    storage: str | None,
    study: str | None,
    seed: int,
    device: str,
    core: str,
    threads: int | None,
    **_: Any,
) -> int:
    """Search for the options that train best on CORPUS, in trials of a few minutes each.

    Run the same command again to continue a search that was stopped. The best options so far are in best-recipe.json in
    the search folder, for `charwright train --recipe`.

    With --storage, several workers on one machine or many search together: run the same command for each. Those on one
    machine need an --out each.
    """
    if study is not None and storage is None:
        raise UsageError("--study names a study in a --storage")
    _check(corpus, hours, trials, minutes)
    _require_optuna()
    from charwright.cli.corpora import read_texts
    from charwright.model.compute import Wanted
    from charwright.tuning.search import Limits, search_in
    from charwright.tuning.shared import shared_search
    from charwright.tuning.start import Start
    from charwright.tuning.study import check_place
    from charwright.workflow.preparation import check_split_options

    if out is not None:
        check_place(out, shared=storage is not None)
    options = given(ctx, field_names(SplitConfig, VocabularyConfig, RecordsConfig)) | {"seed": seed}
    check_split_options(validation, options)
    recipe = Recipe().with_options(options)
    reading = CorpusConfig(**given(ctx, field_names(CorpusConfig)))
    wanted = Wanted(device, core, recipe.training.precision, threads)
    compute = wanted.by_rule()
    compute.start()
    texts = read_texts(corpus, validation, reading, recipe.split, recipe.records, detect="records" not in options)
    if texts.records != recipe.records:
        say("the text is a list: every line is a record; --records none takes it as running text")
    options |= texts.records.to_json()
    recipe = recipe.with_options(options)
    task = _task(texts, recipe, minutes, compute)
    place = out if out is not None else Path("tune") / texts.corpus.name
    protocol = _protocol(texts, task, core, seed, recipe)
    start = Start(task, options, wanted)
    opened: AbstractContextManager[Search] = search_in(place, start.recipe, protocol)
    if storage is not None:
        name = study or texts.corpus.name
        opened = shared_search(place, storage, name, start.recipe, protocol, start.compute)
    with opened as search:
        with _Progress(task) as shown:
            task = start.task_of(search)
            limits = Limits(None if hours is None else 3600 * hours, trials)
            stopped = _search(search, task, limits, shown)
        if stopped:
            say(f"stopped; the results so far are in {place}; run the same command to continue")
        words = [*_words("validation", validation), *_reading_words(reading)]
        _print_result(search, " ".join(map(quoted, ["charwright", "train", *corpus])), minutes, words)
    return 128 + int(signal.Signals[stopped]) if stopped else 0


def _check(corpus: tuple[str, ...], hours: float | None, trials: int | None, minutes: float) -> None:
    """Check that the limits allow a search."""
    if not corpus:
        raise UsageError(
            "name a text to search for: a file, a folder, -, an address, shakespeare, python-docs or python-code"
        )
    if hours is None and trials is None:
        raise UsageError("a search needs a limit: --hours or --trials")
    for name, value in (("--hours", hours), ("--minutes-per-trial", minutes)):
        if value is not None and not (value > 0 and math.isfinite(value)):
            raise UsageError(f"{name} must be a number above 0, not {value:g}")
    if minutes > 525_600:
        raise UsageError(f"--minutes-per-trial must be at most 525600, not {minutes:g}")
    if hours is not None and 60 * hours < minutes:
        raise UsageError(f"--hours {hours:g} is too short for a trial of {minutes:g} minutes; see --minutes-per-trial")


def _require_optuna() -> None:
    try:
        import optuna  # noqa: F401
    except ImportError as error:
        raise MissingExtraError("charwright tune", "tune") from error


def _task(texts: Texts, recipe: Recipe, minutes: float, compute: Compute) -> Task:
    """What the trials have in common, checked."""
    from charwright.data.vocabularies import vocabulary_to_train
    from charwright.tuning.trial import Task

    vocabulary = vocabulary_to_train(texts.whole, recipe.vocabulary)
    task = Task(vocabulary, texts.training, texts.validation, minutes, compute)
    task.check()
    return task


def _protocol(texts: Texts, task: Task, core: str, seed: int, recipe: Recipe) -> dict[str, Any]:
    """What makes two trials comparable, and may not change within a search."""
    import torch

    records = recipe.records.to_json() if recipe.records.records != "none" else {}
    parts = {**recipe.split.to_json(), **recipe.vocabulary.to_json(), **records}
    return {
        "text": texts.corpus.sha256,
        "--validation": texts.validation_corpus.sha256 if texts.validation_corpus else None,
        "--minutes-per-trial": task.minutes,
        "--seed": seed,
        "--device": str(task.compute.device),
        "--core": core,
        "--threads": torch.get_num_threads(),
        **{flag(name): value for name, value in parts.items()},
    }


def _search(search: Search, task: Task, limits: Limits, progress: _Progress) -> str | None:
    """Run the trials; the name of the signal that stopped them, or None."""
    from charwright.tuning.trial import run_trial

    finished = 0
    with stop_asked(STOPPING) as should_stop:
        progress.begin(search)

        def run(recipe: Recipe, should_prune: ShouldPrune) -> Outcome:
            return run_trial(task, recipe, should_prune, should_stop=should_stop, on_event=progress.show)

        for result in search.run(run, limits, should_stop=should_stop):
            progress.finish(result, search)
            finished += 1
        stopped = should_stop()
    if not finished and not stopped:
        say("the hours or trials were already spent; to search on, raise --hours or --trials")
    return stopped


class _Progress:
    """A line for each trial on stderr and, on a terminal, a bar for the current one."""

    def __init__(self, task: Task) -> None:
        self.task = task
        self.bar: Any = None
        self.best = ""

    def __enter__(self) -> _Progress:
        if sys.stderr.isatty():
            from rich.progress import BarColumn, TextColumn

            from charwright.terminal_bar import terminal_bar

            columns = (TextColumn("{task.description}"), BarColumn(None), TextColumn("{task.fields[note]}"))
            self.bar = terminal_bar(*columns, expand=True)
            self.bar.add_task("trial", total=1.0, note="")
        return self

    def __exit__(self, *_: object) -> None:
        if self.bar is not None:
            with suppress(OSError):  # The terminal may be closed.
                self.bar.stop()

    def begin(self, search: Search) -> None:
        """Print what is searched, and where."""
        earlier = len(search.results())
        self._note_best(search)
        done = f", {earlier} already run" if earlier else ""
        self._line(f"searching in {search.named}: trials of {self.task.minutes:g} minutes{done}")
        if self.bar is not None:
            self.bar.start()

    def show(self, event: Event) -> None:
        """Advance the bar."""
        from charwright.training.events import Step

        if self.bar is not None and isinstance(event, Step):
            note = f"loss {event.loss:.3f}  {event.chars_per_s:,.0f} chars/s{self.best}"
            with suppress(OSError):
                self.bar.update(self.bar.task_ids[0], completed=event.fraction, note=note)

    def finish(self, result: TrialResult, search: Search) -> None:
        """Print the line of a finished trial."""
        best = search.best()
        self._note_best(search)
        record = "  best so far" if best is not None and best.number == result.number else ""
        seconds = f"{result.outcome.seconds:.0f} s"
        self._line(f"trial {result.number}  {_outcome(result)}{record}  {_options(result)}  {seconds}")

    def _note_best(self, search: Search) -> None:
        best = search.best()
        self.best = f"  best {best.outcome.loss:.4f}" if best is not None else ""

    def _line(self, text: str) -> None:
        with suppress(OSError):  # The search continues when the pipe or the terminal is closed.
            if self.bar is not None:
                self.bar.console.print(text, markup=False, soft_wrap=True)
            else:
                print(text, file=sys.stderr, flush=True)


def _outcome(result: TrialResult) -> str:
    outcome = result.outcome
    if outcome.kind == "pruned":
        return f"pruned at {outcome.fraction:.0%}: others were better there"
    return f"failed: {outcome.why}" if outcome.kind == "failed" else f"{outcome.loss:.4f} nats/char"


def _options(result: TrialResult) -> str:
    row = result.to_json()
    return (
        f"{row['cell']} {row['units']} x {row['layers']}, embedding size {row['embedding_size']}, batch {row['batch']}"
        f" x {row['seq_length']}, learning rate {row['learning_rate']:g}, dropout {row['dropout']:g}, recurrent dropout"
        f" {row['recurrent_dropout']:g}, weight decay {row['weight_decay']:g}"
    )


_COLUMNS = {
    "trial": "trial",
    "validation_loss": "nats/char",
    "cell": "cell",
    "units": "units",
    "layers": "layers",
    "embedding_size": "embedding",
    "batch": "batch",
    "seq_length": "seq",
    "learning_rate": "rate",
    "dropout": "dropout",
    "recurrent_dropout": "recurrent",
    "weight_decay": "decay",
    "chars_per_s": "chars/s",
}


def _print_result(search: Search, train: str, minutes: float, words: Sequence[str]) -> None:
    """The table of the best trials on stdout, and the command that trains with the best one."""
    results = search.results()
    complete = sorted((result for result in results if result.loss < math.inf), key=lambda result: result.loss)
    if not complete:
        if results:
            raise RunError(f"none of {len(results)} trials completed; the last one failed: {results[-1].outcome.why}")
        return
    rows = [result.to_json() for result in complete[:SHOWN]]
    for line in _table([list(_COLUMNS.values()), *([_cell(name, row[name]) for name in _COLUMNS] for row in rows)]):
        click.echo(line)
    first = next((result for result in complete if result.first), None)
    gain = f"; the planned recipe (trial {first.number}): {first.loss:.4f}" if first else ""
    trials = f"{len(results)} trial{'s' * (len(results) > 1)}"
    say(f"the best of {trials}: {complete[0].loss:.4f} nats/char{gain}")
    file = quoted(search.folder / "best-recipe.json")
    more = "".join(f" {quoted(word)}" for word in words)
    say(f"train with: {train} --recipe {file} --minutes {LONGER * minutes:g}{more}")


def _cell(name: str, value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.4f}" if name == "validation_loss" else f"{value:g}"
    return f"{value:,}" if isinstance(value, int) else str(value)


def _table(rows: Sequence[Sequence[str]]) -> list[str]:
    """Rows as lines, with right-aligned columns."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return ["  ".join(cell.rjust(width) for cell, width in zip(row, widths, strict=True)) for row in rows]


def _reading_words(reading: CorpusConfig) -> list[str]:
    """The options for reading the text that differ from the defaults: no recipe has them."""
    values = {name: getattr(reading, name) for name in field_names(CorpusConfig)}
    changed = {name: value for name, value in values.items() if value != getattr(CorpusConfig(), name)}
    return [word for name, value in changed.items() for word in _words(name, [value])]


def _words(name: str, values: Sequence[str]) -> list[str]:
    return [word for value in values for word in (flag(name), value)]
