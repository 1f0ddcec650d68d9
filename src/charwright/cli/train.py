"""`charwright train`: train a model on a text, in a run folder."""

from __future__ import annotations

import math
import os
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from charwright.cli.options import (
    WEIGHT_DROPOUT_ADVICE,
    NamedPath,
    SectionedCommand,
    config_options,
    core_option,
    device_option,
    given,
    removed_option,
    say,
    threads_option,
)
from charwright.config import (
    CorpusConfig,
    ModelConfig,
    RecordsConfig,
    SequenceConfig,
    SplitConfig,
    TrainingConfig,
    VocabularyConfig,
)
from charwright.errors import CharwrightError, RankError, UsageError, is_out_of_memory
from charwright.schema import field_names, quoted
from charwright.signals import STOPPING, stop_asked

if TYPE_CHECKING:
    from charwright.planning.plan import Plan
    from charwright.run import Run
    from charwright.training.events import Event
    from charwright.training.ranks import Ranks

PLANNED_ENSEMBLE = (
    "plan: {} teachers, and then a model that learns from them, which is better than one model for a text this short; "
    "--ensemble 0 trains one"
)
PLANNED_OPTIONS = (
    *("cell", "units", "dropout", "recurrent_dropout", "multiplicative", "ngram_bits", "ngram_order", "ngram_rate"),
    *("ngram_decay", "optimizer", "learning_rate", "schedule", "weight_decay", "output_bias", "patience"),
    *("order", "batch"),
)
"""The options that a plan derives from the text, the machine and the budget."""

RECIPE_CONFIGS = (VocabularyConfig, RecordsConfig, SplitConfig, SequenceConfig, ModelConfig, TrainingConfig)

BEST_AT_THE_END = 0.8
"""Of the steps: weights that were the best before are worth a line."""
ENDS_EARLY = {
    "target": "the target loss is reached",
    "early_stopping": "early stopping: the validation loss no longer improves; the best weights are kept",
}


@click.command(cls=SectionedCommand, short_help="Train a model on a text.")
@click.argument("corpus", nargs=-1)
@click.option(
    "--recipe",
    "recipe_name",
    default="default",
    show_default=True,
    metavar="NAME|FILE",
    help="Options to start from: default, tutorial, a JSON recipe file, or an earlier run.",
)
@click.option("--explain-plan", is_flag=True, help="Print the plan for this text with its reasons, and exit.")
@click.option(
    "--out",
    type=NamedPath(),
    help="Run folder.  [default: runs/NAME OF THE CORPUS, or the first of NAME-2, NAME-3, ... that is free]",
)
@click.option("--resume", type=NamedPath(), metavar="RUN", help="Resume a run that was stopped.")
@click.option(
    "--from",
    "parent",
    type=NamedPath(),
    metavar="RUN",
    help="Continue from the weights and options of a trained run. New characters are added, and a planned learning"
    " rate, dropout and weight decay are planned anew.",
)
@click.option(
    "--teacher",
    "teachers",
    multiple=True,
    type=NamedPath(),
    metavar="RUN",
    help="Learn from the predictions of a trained run; repeat it for several, which is better.",
)
@click.option(
    "--ensemble",
    type=int,
    metavar="N",
    help="Train N teachers in the folder RUN-teachers, and then a model that learns from them; 0 trains one model. The"
    " teachers share 0.6 of the minutes. After Ctrl-C the same command continues.  [default: 4 for a text that is short"
    " for the time, otherwise 0]",
)
@click.option("--corpus", "corpus_moved", multiple=True, metavar="TEXT", help="With --resume: where the text is now.")
@click.option("--force", is_flag=True, help="Replace the run in the folder, and teachers that do not fit.")
@click.option(
    "--validation", multiple=True, metavar="TEXT", help="Validate on this text instead of a part of the corpus."
)
@device_option
@core_option
@threads_option
@click.option("--tensorboard", is_flag=True, help="Also write TensorBoard files into the run folder.")
@removed_option("--weight-dropout", WEIGHT_DROPOUT_ADVICE)
@config_options(TrainingConfig(minutes=5.0), "Training", planned=PLANNED_OPTIONS)
@config_options(ModelConfig(), "Model", planned=PLANNED_OPTIONS)
@config_options(SequenceConfig(), "Sequences", planned=PLANNED_OPTIONS)
@config_options(SplitConfig(), "Validation")
@config_options(VocabularyConfig(), "Vocabulary")
@config_options(RecordsConfig(), "Records", planned=["records"])
@config_options(CorpusConfig(), "Reading the corpus")
@click.pass_context
def train(
    ctx: click.Context,
    /,
    corpus: tuple[str, ...],
    recipe_name: str,
    out: Path | None,
    resume: Path | None,
    parent: Path | None,
    teachers: tuple[Path, ...],
    ensemble: int | None,
    corpus_moved: tuple[str, ...],
    force: bool,
    validation: tuple[str, ...],
    device: str,
    core: str,
    threads: int | None,
    tensorboard: bool,
    explain_plan: bool,
    **_: Any,
) -> int:
    """Train a model on CORPUS: files, folders, - for standard input, addresses, or names.

    Named corpora are shakespeare, python-docs and python-code.
    """
    began_s = time.perf_counter()  # The budget covers everything that the user waits for.
    _check_combination(ctx)
    options = given(ctx, field_names(*RECIPE_CONFIGS))
    reading = given(ctx, field_names(CorpusConfig))
    from charwright.cli.download import user_places
    from charwright.workflow import training as workflow
    from charwright.workflow.ensemble import check_ensemble, planned_teachers, train_ensemble
    from charwright.workflow.preparation import check_resume_options

    compute: dict[str, Any] = {"device": device, "core": core, "threads": threads}
    origin: dict[str, Any] = {
        "parent": parent,
        "teachers": teachers,
        "validation": validation,
        "reading": CorpusConfig(**reading),
        "places": user_places(),
    }
    if explain_plan:
        if ensemble:
            check_ensemble(corpus, ensemble, origin, options)
        count = planned_teachers(corpus, options, **origin) if ensemble is None else ensemble
        for line in _explained_ensemble(count, options):
            click.echo(line)
        made = workflow.plan(corpus, teaches=bool(count), notify=say, **origin, **compute, **options)
        click.echo(explanation(made))
        return 0
    if resume:
        check_resume_options({**given(ctx, ("recipe_name", "out", "validation")), **reading, **options})
    from charwright.training.ranks import join

    ranks = join(os.environ)
    with _failing_once(ranks) as failure:
        with _Progress(ranks) as progress, stop_asked(STOPPING if ranks.rank == 0 else b"") as should_stop:
            watched: dict[str, Any] = {
                "on_event": progress.show, "should_stop": should_stop, "tensorboard": tensorboard, "ranks": ranks,
                "notify": progress.say, "spent_s": time.perf_counter() - began_s,
            }  # fmt: skip
            if resume:
                run = workflow.resume(
                    resume, corpus=corpus_moved, places=origin["places"], **compute, **watched, **options
                )
            else:
                if ensemble is None:
                    ensemble = planned_teachers(corpus, options, recipe=recipe_name, ranks=ranks, **origin)
                    if ensemble:
                        progress.say(PLANNED_ENSEMBLE.format(ensemble))
                    watched["spent_s"] = time.perf_counter() - began_s
                begin = partial(train_ensemble, count=ensemble) if ensemble else workflow.train
                place: dict[str, Any] = {"out": out, "recipe": recipe_name, "force": force}
                run = begin(corpus, **origin, **place, **compute, **watched, **options)
        ranks.leave()
    if failure.code:
        return failure.code
    if progress.reason in ENDS_EARLY:
        progress.say(ENDS_EARLY[progress.reason])
    elif progress.reason != "done":
        progress.say(f"stopped and saved; {_how_to_go_on(run, ensemble or 0, force=force)}")
        return 128 + int(signal.Signals[progress.reason])
    if note := _worse_than_chance(run) or _earlier_weights(run):
        progress.say(note)
    progress.say(f"saved {run.folder}; generate with: charwright generate {quoted(run.folder)}")
    return 0


def _worse_than_chance(run: Run) -> str | None:
    """A note if the model predicts clearly worse than one for which all characters are equally likely."""
    losses = [event.get("validation_loss") or event.get("train_loss") for event in run.history()]
    best = min((loss for loss in losses if loss is not None), default=0.0)
    chance = math.log(len(run.vocabulary))
    if best < 1.1 * chance:
        return None
    return (
        f"the model is worse than chance: {best:,.4f} nats per character, where equal probabilities have {chance:.4f}; "
        "train longer, or with a lower --learning-rate"
    )


def _earlier_weights(run: Run) -> str | None:
    """A note if the weights that are kept were the best long before the end."""
    validated = [event for event in run.history() if event.get("validation_loss") is not None]
    best = next((event for event in reversed(validated) if event.get("best") is True), None)
    if best is None or best["step"] > BEST_AT_THE_END * validated[-1]["step"]:
        return None
    return (
        f"the weights are those of epoch {best['epoch']:,}, with the lowest validation loss, "
        f"{best['validation_loss']:.4f}; at the end it was {validated[-1]['validation_loss']:.4f}"
    )


def _how_to_go_on(run: Run, teachers: int, *, force: bool) -> str:
    """What continues the stopped training of a run."""
    if not teachers:
        return f"resume with: charwright train --resume {quoted(run.folder)}"
    replaced = force and run.config.teachers  # The run that --force replaces is gone now.
    return f"continue with the same command{', without --force' if replaced else ''}"


def _explained_ensemble(count: int, options: dict[str, Any]) -> Iterator[str]:
    """A line if there are teachers; `options` get the budget of one, whose plan is explained."""
    from charwright.workflow.ensemble import shares

    if count and {"steps", "epochs"} & options.keys():
        yield f"plan: {count} teachers, and a model that learns from them; this is the plan of a teacher"
    elif count:
        options["minutes"], last = shares(options.get("minutes"), count)
        yield (
            f"plan: {count} teachers of {options['minutes']:g} minutes each, and a model that learns from them in "
            f"{last:g} minutes; this is the plan of a teacher"
        )


class _Failure:
    """The exit code of a failure that another rank has reported; 0 if there was none."""

    code = 0


@contextmanager
def _failing_once(ranks: Ranks) -> Iterator[_Failure]:
    """Of several ranks that fail in this block, the first one says so, since the others fail because of it."""
    failure = _Failure()
    try:
        yield failure
    except (CharwrightError, OSError, MemoryError, RuntimeError) as error:
        if ranks.size == 1 or (isinstance(error, RuntimeError) and not is_out_of_memory(error)):
            raise
        failure.code = getattr(error, "exit_code", 1)
        if ranks.speaks():
            raise RankError(ranks.described(error), failure.code) from error


def _check_combination(ctx: click.Context) -> None:
    """Check that the options go together."""
    from charwright.run_place import holds_teachers, teachers_folder

    corpus, resume, parent = (ctx.params[name] for name in ("corpus", "resume", "parent"))
    if corpus and resume:
        raise UsageError("--resume finds the text of the run; if it has moved, name it with --corpus")
    if resume and not resume.exists() and holds_teachers(teachers_folder(resume)):
        raise UsageError(f"{resume} has only teachers so far; to go on, repeat the command that began them")
    if ctx.params["ensemble"] is not None and resume:
        raise UsageError("--ensemble begins a training run, and the same command continues it; leave out --resume")
    taught = ctx.params["teachers"] or ctx.params["ensemble"]
    if not taught and not resume and given(ctx, ("written",)):
        raise UsageError("--written belongs to --teacher and --ensemble; add --ensemble 4")
    if ctx.params["force"] and resume:
        raise UsageError("--force replaces a run and --resume continues one: choose one")
    if parent and resume:
        raise UsageError("--from starts a new run and --resume continues one: choose one")
    if ctx.params["explain_plan"] and resume:
        raise UsageError("--explain-plan is for a new run; `charwright info RUN --json` shows the plan of an old one")
    if ctx.params["corpus_moved"] and not resume:
        raise UsageError("--corpus belongs to --resume; name the text without it")
    if ctx.params["teachers"] and resume:
        raise UsageError("--teacher belongs to the run and cannot change on --resume; start a new run for that")
    if ctx.params["explain_plan"] and ctx.params["recipe_name"] != "default":
        raise UsageError("--explain-plan explains the default recipe; here the options are given")


class _Progress:
    """Shows events on the terminal, and remembers why training ended."""

    def __init__(self, ranks: Ranks) -> None:
        """Only rank 0 shows anything."""
        from charwright.training.progress import terminal_progress

        self.reason = "done"
        self._shown = ranks.rank == 0
        self._writer = terminal_progress()

    def __enter__(self) -> _Progress:
        return self

    def __exit__(self, *_: object) -> None:
        with suppress(OSError):
            self._writer.close()

    def show(self, event: Event) -> None:
        """Show one event; a terminal that was closed does not end the training."""
        if self._shown:
            with suppress(OSError):
                self._writer.write(event)
        self.reason = getattr(event, "reason", self.reason)

    def say(self, line: str) -> None:
        """Print a line for the user."""
        if self._shown:
            say(line)


def explanation(plan: Plan) -> str:
    """A plan for people: its summary, the measured speeds, and each option with its reason."""
    rows = plan.explanation()
    names, values = (max(len(row[column]) for row in rows) for column in (0, 1))
    speeds = "  ".join(f"{units} units {speed:,.0f}" for units, speed in plan.speeds.items())
    measured = [f"measured on this machine, in characters/s: {speeds}"] if speeds else []
    table = [f"  {name:{names}}  {value:>{values}}  {reason}" for name, value, reason in rows]
    return "\n".join([*plan.summary(), *measured, "", *table])
