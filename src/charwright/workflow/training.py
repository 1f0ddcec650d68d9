"""Training as one call: `train` a text into a run folder, `resume` a run, or only `plan` the training."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

from charwright.config import RECIPE_OPTIONS, RENAMED, CorpusConfig
from charwright.data.parts import Places
from charwright.errors import UsageError
from charwright.locks import alone_in
from charwright.model.compute import Wanted, keeping_threads
from charwright.planning.plan import Plan
from charwright.planning.recipes import PLANNED
from charwright.run import Run
from charwright.schema import refuse_unknown
from charwright.training.progress import TensorBoard
from charwright.training.ranks import ALONE, Ranks
from charwright.training.watching import shown
from charwright.workflow.distillation import Teachers
from charwright.workflow.execution import Environment, OnEvent, execute
from charwright.workflow.launches import run_of_launch
from charwright.workflow.preparation import (
    RESUMABLE,
    Origin,
    check_corpus_given,
    check_resume_options,
    check_split_options,
    origin_of_recipe,
    origin_of_run,
    prepare_new,
    prepare_resume,
)
from charwright.workflow.texts import Notify, Specs, listed, read_texts


@keeping_threads()
def train(
    corpus: Specs,
    *,
    out: str | os.PathLike[str] | None = None,
    recipe: str | os.PathLike[str] = PLANNED,
    parent: str | os.PathLike[str] | None = None,
    teachers: Specs = (),
    teaches: bool = False,
    validation: Specs = (),
    reading: CorpusConfig | None = None,
    force: bool = False,
    device: str = "auto",
    core: str = "auto",
    threads: int | None = None,
    tensorboard: bool = False,
    progress: bool | None = None,
    on_event: OnEvent = lambda _: None,
    notify: Notify = lambda _: None,
    should_stop: Callable[[], str | None] = lambda: None,
    places: Places | None = None,
    clock: Callable[[], float] = time.perf_counter,
    spent_s: float = 0.0,
    ranks: Ranks = ALONE,
    **options: Any,
) -> Run:
    """Train a model on a corpus, and keep it in a run folder: `train("novel.txt", minutes=2, out="runs/novel")`.

    Args:
        corpus: files, folders, `-` for standard input, addresses or named corpora; one or several.
        out: the run folder; by default runs/ and the name of the corpus.
        recipe: a named recipe, a recipe file or a run; the default recipe is planned for the text.
        parent: a run whose weights and options the new one continues from, instead of a recipe.
        teachers: runs from whose predictions the new one learns, beside the text.
        teaches: the new run will be one of several teachers; for a short text a plan gives it less weight decay.
        validation: texts to validate on instead of a part of the corpus.
        reading: how files are decoded.
        force: replace the run in `out`.
        device: auto, cpu, cuda or mps.
        core: the recurrent core: auto, native, fused, torch or plain.
        threads: the number of CPU threads; by default all cores. Where the C kernels compute it changes no weight.
        tensorboard: also write TensorBoard files into the run folder.
        progress: show the progress of the training; by default in a notebook only.
        on_event: called with each event of `charwright.training.events`.
        notify: called with each line about something the user may want to know.
        should_stop: called after each step, and while teachers write; returns a reason to stop after saving, or None;
            True is a reason without words.
        places: where corpora are looked up.
        clock: a monotonic clock, in seconds.
        spent_s: seconds of the budget that are already spent.
        ranks: the processes that train together, from `charwright.training.ranks.join`. All call this alike, and rank 0
            alone writes the run folder. A group that torchrun has restarted goes on with the run that it has begun.
        **options: options of the recipe, by the names in `charwright.config`.

    Returns:
        The run, trained; the last event says why training ended.

    Raises:
        StoppedError: when `should_stop` returns a reason while teachers write.
        KeyboardInterrupt: at Ctrl-C, once the step has ended and the run is saved; at the second one at once.
        CharwrightError: (a subclass) when an option, a text or the folder cannot be used, or training diverges.
    """
    began, recipe = clock() - spent_s, os.fspath(recipe)
    corpus, validation = listed(corpus), listed(validation)
    check_split_options(validation, options)
    if tensorboard:
        TensorBoard.require()
    with ExitStack() as held:
        on_event, notify = held.enter_context(shown(progress if ranks.rank == 0 else False, on_event, notify))
        folder = None if out is None else Path(out)
        launch = ranks.launch
        begun = None if launch is None else ranks.first(lambda: run_of_launch(folder, launch))
        if begun is not None:
            notify(f"goes on with {begun.folder}, which this start by torchrun has begun")
            allowed = {name: value for name, value in options.items() if name in RESUMABLE}
            return resume(
                begun, device=device, core=core, threads=threads, tensorboard=tensorboard, progress=False,
                on_event=on_event, notify=notify, should_stop=should_stop, places=places, clock=clock, spent_s=spent_s,
                ranks=ranks, **allowed,
            )  # fmt: skip
        replaced = folder if force else None
        if ranks.size > 1 and teachers:
            raise UsageError("--teacher trains in one process, without torchrun")
        origin = replace(_origin(recipe, parent, teachers, options, replaced, ranks), teaches=teaches)
        wanted = Wanted(device, core, origin.recipe.training.precision, threads)
        wanted.by_rule().start()
        prepared = prepare_new(
            origin,
            corpus,
            validation,
            reading or CorpusConfig(),
            wanted,
            out=folder,
            force=force,
            places=places or Places.of_this_user(),
            notify=notify,
            ranks=ranks,
        )
        return execute(prepared, Environment(began, clock, on_event, notify, should_stop, ranks, tensorboard))


@keeping_threads()
def resume(
    run: Run | str | os.PathLike[str],
    *,
    corpus: Specs = (),
    device: str = "auto",
    core: str = "auto",
    threads: int | None = None,
    tensorboard: bool = False,
    progress: bool | None = None,
    on_event: OnEvent = lambda _: None,
    notify: Notify = lambda _: None,
    should_stop: Callable[[], str | None] = lambda: None,
    places: Places | None = None,
    clock: Callable[[], float] = time.perf_counter,
    spent_s: float = 0.0,
    ranks: Ranks = ALONE,
    **options: Any,
) -> Run:
    """Continue the training of a run from its newest checkpoint, as if it had never stopped.

    `corpus` says where the text is now, if it has moved. The budget and what is kept on the way are the only `options`
    that may change: `resume("runs/novel", minutes=10)`. The other arguments are as for `train`. The run computes as
    before, except for what `device`, `core`, `precision` or `threads` say, or if this machine cannot.

    Raises:
        StoppedError: when `should_stop` returns a reason while teachers write.
        CharwrightError: (a subclass) when the run or its texts cannot be used, or training diverges.
    """
    began = clock() - spent_s
    refuse_unknown(options, RECIPE_OPTIONS, RENAMED)
    check_resume_options(options)
    if tensorboard:
        TensorBoard.require()
    places = places or Places.of_this_user()
    with ExitStack() as held:
        on_event, notify = held.enter_context(shown(progress if ranks.rank == 0 else False, on_event, notify))

        def open_alone() -> Run:
            folder = Run.open(run.folder if isinstance(run, Run) else run, for_writing=True).folder
            held.enter_context(alone_in(folder))
            return Run.open(folder)  # Again: until now another process may have trained it.

        opened = ranks.first(open_alone)
        precision = options.get("precision", opened.config.recipe.training.precision)
        wanted = Wanted(device, core, precision, threads)
        prepared = prepare_resume(opened, listed(corpus), options, wanted, places=places, notify=notify, ranks=ranks)
        prepared.choice.compute.start()
        return execute(prepared, Environment(began, clock, on_event, notify, should_stop, ranks, tensorboard))


@keeping_threads()
def plan(
    corpus: Specs,
    *,
    parent: str | os.PathLike[str] | None = None,
    teachers: Specs = (),
    teaches: bool = False,
    validation: Specs = (),
    reading: CorpusConfig | None = None,
    device: str = "auto",
    core: str = "auto",
    threads: int | None = None,
    notify: Notify = lambda _: None,
    places: Places | None = None,
    **options: Any,
) -> Plan:
    """The plan that `train` would follow for a corpus, and the reasons; these arguments are as for `train`.

    Raises:
        CharwrightError: (a subclass) when an option or a text cannot be used, or the parent run has no plan.
    """
    corpus, validation = listed(corpus), listed(validation)
    check_corpus_given(corpus)
    check_split_options(validation, options)
    origin = replace(_origin(PLANNED, parent, teachers, options), teaches=teaches)
    if origin.parent is not None and not origin.planned:
        folder = origin.parent.folder
        raise UsageError(f"{folder} has no plan: its options were given, and a run that continues from it has them too")
    wanted = Wanted(device, core, origin.recipe.training.precision, threads)
    wanted.by_rule().start()
    recipe, places = origin.recipe, places or Places.of_this_user()
    texts = read_texts(
        corpus, validation, reading or CorpusConfig(), recipe.split, places, notify, recipe.records,
        detect=origin.detects_records,
    )  # fmt: skip
    return origin.plan(texts, origin.vocabulary(texts, recipe.vocabulary), wanted)[0]


def _origin(
    recipe: str,
    parent: str | os.PathLike[str] | None,
    teachers: Specs,
    options: Mapping[str, Any],
    replaced: Path | None = None,
    ranks: Ranks = ALONE,
) -> Origin:
    """What a new run starts from."""
    if parent is not None and teachers:
        raise UsageError("--from continues from weights, and --teacher begins with new ones: choose one")
    teachers = listed(teachers)
    if parent is not None and recipe != PLANNED:
        raise UsageError("--from uses the options of its run instead of a recipe; change single options by name")
    if parent is not None:
        return ranks.first(lambda: origin_of_run(Path(parent), options, replaced=replaced))
    return origin_of_recipe(recipe, options, Teachers.of(teachers, replaced) if teachers else None)
