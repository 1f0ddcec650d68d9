"""`charwright train`: a text in, a run folder out."""

from __future__ import annotations

import dataclasses
import os
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from charwright.cli.options import SectionedCommand, config_options, field_names, given
from charwright.cli.signals import handling
from charwright.config import (
    BUDGETS,
    CorpusConfig,
    ModelConfig,
    Recipe,
    SequenceConfig,
    SplitConfig,
    TrainingConfig,
    VocabularyConfig,
)
from charwright.errors import ConfigError, DamagedRunError, UsageError

if TYPE_CHECKING:
    from charwright.data.sequences import Dataset
    from charwright.data.vocabulary import Vocabulary
    from charwright.evaluate import Evaluation
    from charwright.model.language_model import LanguageModel
    from charwright.run import Run
    from charwright.training.snapshot import Snapshot

SAMPLE_LENGTH = 160

# What a resume may change: how long, and what is kept on the way. The rest belongs to the run.
RESUMABLE = (*BUDGETS, "log_every", "checkpoint_minutes", "keep_checkpoints")


@click.command(cls=SectionedCommand, short_help="Learn to write like a text.")
@click.argument("corpus", nargs=-1)
@click.option(
    "--recipe", "recipe_name", default="default", show_default=True, help="Named set of options to start from."
)
@click.option("--out", type=click.Path(path_type=Path), help="The run's folder.  [default: runs/NAME OF THE CORPUS]")
@click.option("--resume", type=click.Path(path_type=Path), metavar="RUN", help="Go on with a run that was stopped.")
@click.option("--corpus", "corpus_moved", multiple=True, metavar="TEXT", help="With --resume: where the text is now.")
@click.option("--force", is_flag=True, help="Replace the run that is in the folder.")
@click.option(
    "--validation", multiple=True, metavar="TEXT", help="Measure on this text instead of a part of the corpus."
)
@click.option("--device", default="auto", show_default=True, help="auto, cpu, cuda or mps.")
@click.option(
    "--core", default="auto", show_default=True, help="The recurrent core: auto, native, fused, torch or plain."
)
@click.option("--threads", type=click.IntRange(min=1), help="Threads of the CPU to use.  [default: all cores]")
@click.option("--tensorboard", is_flag=True, help="Write TensorBoard files into the run's folder too.")
@config_options(TrainingConfig(minutes=5.0), "Training")
@config_options(ModelConfig(), "Model")
@config_options(SequenceConfig(), "Sequences")
@config_options(SplitConfig(), "Validation")
@config_options(VocabularyConfig(), "Vocabulary")
@config_options(CorpusConfig(), "Reading the corpus")
@click.pass_context
def train(
    ctx: click.Context,
    /,
    corpus: tuple[str, ...],
    recipe_name: str,
    out: Path | None,
    resume: Path | None,
    corpus_moved: tuple[str, ...],
    force: bool,
    validation: tuple[str, ...],
    device: str,
    core: str,
    threads: int | None,
    tensorboard: bool,
    **_: Any,
) -> int:
    """Learn to write like CORPUS: files, folders, - for standard input, addresses, or names.

    Names are shakespeare, python-docs and python-code.
    """
    if corpus and resume:
        raise UsageError("--resume finds the run's own text; if it has moved, name it with --corpus")
    if force and resume:
        raise UsageError("--force replaces a run and --resume goes on with it: choose one")
    if corpus_moved and not resume:
        raise UsageError("--corpus belongs to --resume; name the text without it")
    options = given(ctx, field_names(VocabularyConfig, SplitConfig, SequenceConfig, ModelConfig, TrainingConfig))
    if resume:
        work = _resumed_work(resume, corpus_moved, options, given(ctx, ("recipe_name", "out", "validation", *_READING)))
    else:
        reading = CorpusConfig(**given(ctx, _READING))
        work = _new_work(corpus, validation, reading, recipe_name, options, out, force)
    return _train(work, device, core, threads, tensorboard=tensorboard)


_READING = tuple(field_names(CorpusConfig))


@dataclass
class _Work:
    """A run that is ready to be trained; `open_run` makes or opens its folder, once nothing can go wrong any more."""

    recipe: Recipe
    vocabulary: Vocabulary
    training_text: str
    validation_text: str
    open_run: Callable[[], Run]
    resume: bool


def _new_work(
    corpus: tuple[str, ...],
    validation: tuple[str, ...],
    reading: CorpusConfig,
    recipe_name: str,
    options: dict[str, Any],
    out: Path | None,
    force: bool,
) -> _Work:
    """Read the texts and decide on the options; nothing is written yet."""
    from charwright.cli.download import user_places
    from charwright.data.corpus import STDIN_PATH, read_corpus, split_corpus
    from charwright.data.vocabulary import Vocabulary
    from charwright.run import Run, RunConfig
    from charwright.training.recipes import find_recipe

    if not corpus:
        raise UsageError("name a text to learn from: a file, a folder, -, an address, shakespeare or python-docs")
    recipe = find_recipe(recipe_name).with_options(options)
    places = user_places()
    if out is not None:
        Run.check_place(out, force=force)
    text = read_corpus(corpus, reading, places)
    measured = read_corpus(validation, reading, places) if validation else None
    for note in (*text.notes, *(measured.notes if measured else ())):
        click.echo(note, err=True)
    if out is None:
        out = _free_folder(Path("runs") / text.name)
    if measured is not None:
        recipe = recipe.with_options({"val_fraction": 0.0})
    training_text, validation_text = split_corpus(text.text, recipe.split)
    config = RunConfig(
        recipe=recipe,
        recipe_name=recipe_name,
        sources=text.sources,
        corpus=reading,
        characters=len(text.text),
        sha256=text.sha256,
        validation=measured.sources if measured else (),
        versions=_versions(),
    )
    vocabulary = Vocabulary.from_text(text.text, recipe.vocabulary)

    def make() -> Run:
        run = Run.create(out, config, vocabulary, force=force)
        for read in (text, measured):
            if read is not None and read.unrepeatable:
                run.keep_text(STDIN_PATH, read.unrepeatable)
        return run

    return _Work(recipe, vocabulary, training_text, measured.text if measured else validation_text, make, resume=False)


def _resumed_work(folder: Path, moved: tuple[str, ...], options: dict[str, Any], refused: dict[str, Any]) -> _Work:
    """Open the run, find its texts again, and apply what a resume may change."""
    from charwright.cli.corpora import texts_again
    from charwright.config import flag
    from charwright.run import Run

    for name in (*refused, *options):
        if name not in RESUMABLE:
            shown = "--recipe" if name == "recipe_name" else flag(name)
            raise UsageError(f"{shown} belongs to the run and cannot change on --resume; start a new run for that")
    run = Run.open(folder)
    recipe = run.config.recipe.with_options(options)
    training_text, validation_text = texts_again(run, moved)
    if recipe != run.config.recipe:
        run.rewrite_config(dataclasses.replace(run.config, recipe=recipe))
    return _Work(recipe, run.vocabulary, training_text, validation_text, lambda: run, resume=True)


def _train(work: _Work, device_name: str, core: str, threads: int | None, *, tensorboard: bool) -> int:
    """Make the model and the dataset, open the run, and let `fit` work."""
    import torch

    from charwright.training.loop import fit
    from charwright.training.progress import TensorBoard, Writers, terminal_progress

    if threads is not None:
        torch.set_num_threads(threads)
    training = work.recipe.training
    model, dataset = _model_and_dataset(work, device_name, core)
    if tensorboard:
        TensorBoard.require()  # before there is a folder
    run = work.open_run()
    snapshot = _snapshot_of(run) if work.resume else None
    writers = [_Log(run), terminal_progress()]
    if tensorboard:
        writers.append(TensorBoard(run.folder / "tensorboard"))
    reason, step = "done", -1
    with Writers(*writers) as writer, _signals() as should_stop:
        for event in fit(
            model,
            dataset,
            training,
            validate=_validator(work) if work.validation_text else None,
            sample=_sampler(work),
            save=lambda taken: _save(run, taken, training.keep_checkpoints),
            resume=snapshot,
            should_stop=should_stop,
        ):
            writer.write(event)
            reason, step = getattr(event, "reason", reason), event.step
    if reason != "done":
        click.echo(f"stopped and saved; go on with: charwright train --resume {run.folder}", err=True)
        return 128 + int(signal.Signals[reason])
    if snapshot is not None and snapshot.position.step == step:
        click.echo("its budget was spent already; to train on, raise it with --epochs, --steps or --minutes", err=True)
    click.echo(f"saved {run.folder}; write with: charwright generate {run.folder}", err=True)
    return 0


def _model_and_dataset(work: _Work, device_name: str, core: str) -> tuple[LanguageModel, Dataset]:
    """The untrained model on its device, and its batches; what is not as one might think is said on stderr."""
    from charwright import kernels
    from charwright.data.sequences import make_dataset, shrink_to_fit
    from charwright.model.language_model import LanguageModel
    from charwright.model.machine import NO_KERNELS, choose_device, choose_precision
    from charwright.model.recurrent import choose_core

    recipe, vocabulary, device = work.recipe, work.vocabulary, choose_device(device_name)
    ids = vocabulary.encode(work.training_text)
    sequences, word = shrink_to_fit(len(ids), recipe.sequences)
    if word:
        click.echo(word, err=True)
    dataset = make_dataset(ids, sequences, recipe.training.seed)
    precision = choose_precision(recipe.training.precision, device)
    choose_core(core, device, precision)  # A core that cannot work is refused before there is a folder.
    model = LanguageModel(recipe.model, len(vocabulary), seed=recipe.training.seed, precision=precision, core=core)
    if device.type == "cpu" and kernels.load() is None:
        click.echo(f"note: {NO_KERNELS}", err=True)
    return model.to(device), dataset


class _Log:
    """Events to the run's log.jsonl."""

    def __init__(self, run: Run) -> None:
        self.run = run

    def write(self, event: Any) -> None:
        self.run.append_log(event.to_json())

    def close(self) -> None:
        pass


def _validator(work: _Work) -> Callable[[LanguageModel], Evaluation]:
    from charwright.evaluate import evaluate

    return lambda model: evaluate(model, work.vocabulary, work.validation_text)


def _sampler(work: _Work) -> Callable[[LanguageModel], str]:
    """What the model writes without a prompt, by the same draws each time."""
    from charwright.generation.generator import Generator

    def sample(model: LanguageModel) -> str:
        writer = Generator.of(model, work.vocabulary)
        [text] = writer.generate(length=SAMPLE_LENGTH, temperature=0.8, seed=work.recipe.training.seed)
        return text.continuation

    return sample


def _save(run: Run, snapshot: Snapshot, keep: int | None) -> None:
    groups = {"weights": snapshot.weights, "optimizer": snapshot.optimizer}
    groups |= {"state": snapshot.state} if snapshot.state else {}
    groups |= {"best": snapshot.best} if snapshot.best else {}
    # The checkpoint last: a resume from it takes for granted that the weights to use were written with it.
    run.write_weights(snapshot.to_use)
    run.write_checkpoint(snapshot.position.step, groups, snapshot.position.to_json(), keep)


def _snapshot_of(run: Run) -> Snapshot | None:
    """The newest checkpoint; None where the run was stopped before its first."""
    from charwright.training.snapshot import Position, Snapshot

    found = run.latest_checkpoint()
    if found is None:
        return None
    arrays, position = found
    try:
        read = Position.from_json(position, f"{run.folder}: position.json of step {position.get('step')}")
    except ConfigError as error:
        raise DamagedRunError(str(error)) from error
    return Snapshot(
        position=read,
        weights=arrays["weights"],
        optimizer=arrays["optimizer"],
        state=arrays.get("state", {}),
        best=arrays.get("best", {}),
    )


@contextmanager
def _signals() -> Iterator[Callable[[], str | None]]:
    """Ctrl-C and SIGTERM ask for a stop; a second one does not wait for it."""
    caught: list[str] = []

    def note(number: int, _: Any) -> None:
        if caught:
            raise KeyboardInterrupt
        caught.append(signal.Signals(number).name)
        # Not print: the signal may have come in the middle of one, which allows no second inside it.
        os.write(2, b"\nstopping after this step; once more to stop at once\n")

    with handling(("SIGINT", "SIGTERM"), note):
        yield lambda: caught[0] if caught else None


def _free_folder(folder: Path) -> Path:
    """The folder, or the first of folder-2, folder-3, ... that is free."""
    number, free = 1, folder
    while free.exists():
        number += 1
        free = folder.with_name(f"{folder.name}-{number}")
    return free


def _versions() -> dict[str, str]:
    import platform

    import numpy as np
    import torch

    from charwright import __version__

    return {
        "charwright": __version__,
        "torch": torch.__version__,
        "numpy": np.__version__,
        "python": platform.python_version(),
    }
