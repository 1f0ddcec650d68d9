"""What a training needs before its first step: texts, options and a model; nothing is written while they are found."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from charwright.cli.options import field_names
from charwright.config import BUDGETS, CorpusConfig, Recipe
from charwright.errors import UsageError

if TYPE_CHECKING:
    from charwright.data.sequences import Dataset
    from charwright.data.vocabulary import Vocabulary
    from charwright.model.language_model import LanguageModel
    from charwright.run import Run

# What a resume may change: how long, and what is kept on the way. The rest belongs to the run.
RESUMABLE = (*BUDGETS, "log_every", "checkpoint_minutes", "keep_checkpoints")

READING = tuple(field_names(CorpusConfig))


@dataclass
class Work:
    """A run that is ready to be trained; `open_run` makes or opens its folder, once nothing can go wrong any more."""

    recipe: Recipe
    vocabulary: Vocabulary
    training_text: str
    validation_text: str
    open_run: Callable[[], Run]
    resume: bool


def new_work(
    corpus: tuple[str, ...],
    validation: tuple[str, ...],
    reading: CorpusConfig,
    recipe_name: str,
    options: dict[str, Any],
    out: Path | None,
    force: bool,
) -> Work:
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

    return Work(recipe, vocabulary, training_text, measured.text if measured else validation_text, make, resume=False)


def resumed_work(folder: Path, moved: tuple[str, ...], options: dict[str, Any], refused: dict[str, Any]) -> Work:
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
    return Work(recipe, run.vocabulary, training_text, validation_text, lambda: run, resume=True)


def model_and_dataset(work: Work, device_name: str, core: str) -> tuple[LanguageModel, Dataset]:
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
