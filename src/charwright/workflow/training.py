"""Training as one call: `train` a text into a run folder, `resume` a run, or only `plan` the training."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from charwright import kernels
from charwright.config import RECIPE_OPTIONS, RENAMED, CorpusConfig
from charwright.data.parts import Places
from charwright.errors import UsageError
from charwright.evaluation.evaluation import Evaluation
from charwright.generation.generator import Generator
from charwright.locks import alone_in
from charwright.model.compute import Wanted, keeping_threads, why_no_kernels
from charwright.model.language_model import LanguageModel
from charwright.planning.plan import Plan
from charwright.planning.recipes import PLANNED
from charwright.run import Run
from charwright.schema import refuse_unknown
from charwright.signals import STOPPING, interrupted_at_end
from charwright.training.events import End, Event
from charwright.training.loop import fit
from charwright.training.progress import TensorBoard
from charwright.training.ranks import ALONE, Ranks
from charwright.training.sharing import evaluate_together, part_of
from charwright.training.watching import shown
from charwright.workflow.assembly import Assembly, assemble
from charwright.workflow.checkpoints import restore_weights, save_checkpoint, save_initial_checkpoint
from charwright.workflow.distillation import Teachers
from charwright.workflow.launches import record_launch, run_of_launch
from charwright.workflow.preparation import (
    RESUMABLE,
    Origin,
    Prepared,
    check_corpus_given,
    check_resume_options,
    check_split_options,
    origin_of_recipe,
    origin_of_run,
    prepare_new,
    prepare_resume,
)
from charwright.workflow.texts import Notify, Specs, listed, read_texts

SAMPLE_LENGTH = 160
SAMPLE_RECORDS = 8

OnEvent = Callable[[Event], None]


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
        threads: the number of CPU threads; by default all cores. With another number the same seed gives other weights.
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
        return _run(prepared, began, clock, on_event, notify, should_stop, ranks, tensorboard=tensorboard)


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
        return _run(prepared, began, clock, on_event, notify, should_stop, ranks, tensorboard=tensorboard)


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


def _run(
    prepared: Prepared,
    began: float,
    clock: Callable[[], float],
    on_event: OnEvent,
    notify: Notify,
    should_stop: Callable[[], str | None],
    ranks: Ranks,
    *,
    tensorboard: bool,
) -> Run:
    """Assemble the model and the dataset, open the run, and train."""
    compute = prepared.choice.compute
    if prepared.teachers is not None:
        notify(f"learns from {prepared.teachers.summary(prepared.recipe.training)}")
    assembling = clock()
    assembly = assemble(
        prepared.recipe, prepared.vocabulary, prepared.training_text, compute, prepared.weights, prepared.teachers,
        should_stop,
    )  # fmt: skip
    if prepared.resume:  # The budget already has the time of the teachers' predictions.
        began += clock() - assembling
    if assembly.notice:
        notify(assembly.notice)
    if compute.device.type == "cpu" and kernels.load() is None:
        notify(f"note: {why_no_kernels(cost=True)}")
    if (part := part_of(assembly.dataset.batch, ranks)) is not None:
        notify(f"{ranks.size} ranks share each batch of {part.total} rows")
    with ExitStack() as held:
        run = ranks.first(lambda: _open_run(prepared, ranks.launch, held, notify))
        _fit(prepared, assembly, run, began, clock, on_event, notify, should_stop, ranks, tensorboard=tensorboard)
    return run


def _fit(
    prepared: Prepared,
    assembly: Assembly,
    run: Run,
    began: float,
    clock: Callable[[], float],
    on_event: OnEvent,
    notify: Notify,
    should_stop: Callable[[], str | None],
    ranks: Ranks,
    *,
    tensorboard: bool,
) -> None:
    """Train in a run folder whose lock the first rank holds, and write the events to its log."""
    training, first = prepared.recipe.training, ranks.rank == 0
    snapshot = prepared.snapshot
    board = TensorBoard(run.folder / "tensorboard") if tensorboard and first else None
    spent_s = max(0.0, ranks.first(lambda: clock() - began))
    if not prepared.resume and training.minutes is not None and spent_s >= training.minutes * 60:
        notify(f"the start took {spent_s:.1f} s, the whole budget: the model has learned nothing; raise --minutes")
    training_loop = fit if assembly.train_step is None else partial(fit, train_step=assembly.train_step)
    with ExitStack() as ending:
        interrupted = ending.enter_context(interrupted_at_end(STOPPING if first else b""))
        if board is not None:
            ending.callback(board.close)
        for event in training_loop(
            assembly.model,
            assembly.dataset,
            training,
            validate=_validator(prepared, ranks) if prepared.validation_text else None,
            sample=_sampler(prepared, run) if first else None,
            save=(lambda taken: save_checkpoint(run, taken, training.keep_checkpoints)) if first else None,
            resume=snapshot,
            should_stop=lambda: should_stop() or interrupted(),
            clock=clock,
            spent_s=spent_s,
            ranks=ranks,
            pretrained=run.config.parent is not None,
        ):
            if first:
                run.append_log(event.to_json())
            on_event(event)
            if board is not None:
                board.write(event)
            done = isinstance(event, End) and event.reason == "done"
            if done and snapshot is not None and snapshot.position.step == event.step:
                notify("the budget was already spent; to train on, raise it with --epochs, --steps or --minutes")


def _open_run(prepared: Prepared, launch: str | None, held: ExitStack, notify: Notify) -> Run:
    """Create or open the run folder, with the weights of a parent as its first checkpoint; `held` gets its lock."""
    run = prepared.open_run()
    if not prepared.resume:  # A resume has held the lock since before it read the folder.
        held.enter_context(alone_in(run.folder))
    if prepared.snapshot is not None and restore_weights(run, prepared.snapshot):
        notify(f"model.safetensors is written again from the checkpoint of step {prepared.snapshot.position.step:,}")
    if launch is not None:
        record_launch(run, launch)
    if prepared.weights is not None:
        save_initial_checkpoint(run, prepared.weights, prepared.recipe.training.keep_checkpoints)
    return run


def _validator(prepared: Prepared, ranks: Ranks) -> Callable[[LanguageModel], Evaluation]:
    return lambda model: evaluate_together(model, prepared.vocabulary, prepared.validation_text, ranks)


def _sampler(prepared: Prepared, run: Run) -> Callable[[LanguageModel], str]:
    """What the model generates without a prompt, with the same seed each time."""
    vocabulary, records = prepared.vocabulary, run.config.records
    options: dict[str, Any] = {"length": SAMPLE_LENGTH, "temperature": 0.8, "seed": prepared.recipe.training.seed}

    def sample(model: LanguageModel) -> str:
        if records and vocabulary.labels:  # Each record begins with a label.
            generator = Generator(model.config, model.arrays(), vocabulary, "q8", record_end=records.end)
            found = generator.records(SAMPLE_RECORDS, **options)
            return "".join(record.continuation + records.end for record in found)[:SAMPLE_LENGTH]
        [text] = Generator.of(model, vocabulary).generate(**options)
        return text.continuation

    return sample
