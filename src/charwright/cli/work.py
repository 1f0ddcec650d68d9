"""What a training needs before its first step: texts, options and a model; nothing is written while they are found."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from charwright.cli.options import field_names, say
from charwright.config import BUDGETS, CorpusConfig, Recipe, SplitConfig, TrainingConfig, flag
from charwright.errors import UsageError

if TYPE_CHECKING:
    from charwright.cli.planning import Planner
    from charwright.data.sequences import Dataset
    from charwright.data.vocabulary import Vocabulary
    from charwright.model.language_model import LanguageModel
    from charwright.run import Run
    from charwright.run_config import Parent, RunConfig
    from charwright.storage import Arrays

# What a resume may change: how long, and what is kept on the way. The rest belongs to the run.
RESUMABLE = (*BUDGETS, "target_loss", "patience", "log_every", "checkpoint_minutes", "keep_checkpoints")

# What a run that goes on from another takes over as it is: the network, which did not begin by chance.
SHAPE = ("cell", "layers", "units", "embedding", "tied", "embedding_range")

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
    weights: Arrays | None = None  # what a new run begins with, where it is not chance


@dataclass(frozen=True)
class Origin:
    """What a new run begins with: its options and, where it goes on from another, that one and its weights."""

    recipe: Recipe
    recipe_name: str
    run: Run | None = None
    weights: Arrays | None = None
    planner: Planner | None = None  # of a recipe that is made for its text

    def vocabulary(self, text: str) -> Vocabulary:
        """The characters of the text, behind those that are known already."""
        from charwright.data.vocabulary import Vocabulary

        config = self.recipe.vocabulary
        return self.run.vocabulary.grown(text, config) if self.run else Vocabulary.from_text(text, config)

    def grown_weights(self, vocabulary: Vocabulary, text: str) -> Arrays | None:
        """The weights with rows for a vocabulary that has grown, `text` being what will be learned."""
        import numpy as np

        from charwright.model.grow import grow_arrays

        if self.weights is None:
            return None
        counts = np.bincount(vocabulary.encode(text), minlength=len(vocabulary))
        key = np.array([self.recipe.training.seed, 0], dtype=np.uint64)
        return grow_arrays(self.weights, counts, np.random.Generator(np.random.Philox(key=key)))

    def parent(self) -> Parent | None:
        """What the new run remembers of the one that it goes on from."""
        from charwright.run_config import Parent

        if self.run is None:
            return None
        config = self.run.config
        return Parent(str(self.run.folder), self.run.weights_step(), config.characters, config.sha256)


def named_recipe(name: str, planner: Planner) -> Origin:
    """A run that begins with nothing; the planner makes its recipe where that is to be made for the text."""
    from charwright.training.recipe_file import recipe_of
    from charwright.training.recipes import PLANNED, start_of_plan

    if name == PLANNED:
        return Origin(start_of_plan(planner.options), name, planner=planner)
    return Origin(recipe_of(name).with_options(planner.options), name)


def trained_run(folder: Path, options: dict[str, Any], *, replaced: Path | None) -> Origin:
    """A run that goes on from the weights of another; `replaced` is the folder that will be put aside for it."""
    from charwright.run import Run

    for name in options:
        if name in SHAPE:
            raise UsageError(f"{flag(name)} is as in the run that --from names; start a new run to change it")
    run = Run.open(folder)
    if replaced is not None and run.lies_in(replaced):
        raise UsageError(f"--force would take {folder} away, which --from goes on from; choose another --out")
    unit = run.vocabulary.unit
    if options.get("unit", unit) != unit:
        raise UsageError(f"--unit cannot change: one token of {folder} is a {unit}")
    return Origin(_recipe_after(run.config, options | {"unit": unit}), run.config.recipe_name, run, run.weights())


def _recipe_after(config: RunConfig, options: dict[str, Any]) -> Recipe:
    """The options of a run, with the budget of the command, for a run that goes on from it with another text."""
    from charwright.training.recipes import DEFAULT

    defaults: dict[str, Any] = {"target_loss": None}  # That was one for the other text.
    if not any(options.get(name) for name in BUDGETS):
        defaults["minutes"] = DEFAULT.training.minutes
    if config.validation:  # It kept nothing of its corpus, having a text of its own to measure on.
        defaults["val_fraction"] = SplitConfig().val_fraction
    return config.recipe.with_options(defaults | options)


def new_work(
    origin: Origin,
    corpus: tuple[str, ...],
    validation: tuple[str, ...],
    reading: CorpusConfig,
    out: Path | None,
    force: bool,
) -> Work:
    """Read the texts and decide on the options; nothing is written yet."""
    from charwright.cli.corpora import read_texts
    from charwright.data.corpus import split_corpus
    from charwright.run import Run
    from charwright.run_config import RunConfig

    if not corpus:
        raise UsageError("name a text to learn from: a file, a folder, -, an address, shakespeare or python-docs")
    recipe = origin.recipe
    if out is not None:
        Run.check_place(out, force=force)
    text, measured = read_texts(corpus, validation, reading)
    if measured is not None:
        recipe = recipe.with_options({"val_fraction": 0.0})
    training_text, kept = split_corpus(text.text, recipe.split)
    validation_text = kept if measured is None else measured.text
    if not validation_text:
        _check_unmeasured(recipe.training, "raise --val-fraction")
    vocabulary = origin.vocabulary(text.text)
    plan = origin.planner.plan(training_text, vocabulary) if origin.planner else None
    if plan is not None:
        recipe = dataclasses.replace(plan.recipe, split=recipe.split)
    config = RunConfig(
        recipe=recipe,
        recipe_name=origin.recipe_name,
        sources=text.sources,
        corpus=reading,
        characters=len(text.text),
        sha256=text.sha256,
        validation=measured.sources if measured else (),
        versions=_versions(),
        parent=origin.parent(),
        plan=plan.to_json() if plan else None,
    )
    if origin.run is not None:
        say(f"goes on from {origin.run.folder} ({_growth(origin.run.vocabulary, vocabulary)})")
    place = out or _free_folder(Path("runs") / text.name)
    unrepeatable = [read.unrepeatable for read in (text, measured) if read is not None and read.unrepeatable]
    make = partial(_make_run, place, config, vocabulary, unrepeatable, force)
    weights = origin.grown_weights(vocabulary, training_text)
    return Work(recipe, vocabulary, training_text, validation_text, make, resume=False, weights=weights)


def _make_run(place: Path, config: RunConfig, vocabulary: Vocabulary, unrepeatable: list[str], force: bool) -> Run:
    """The folder of a new run, with the text in it that cannot be read again."""
    from charwright.data.corpus import STDIN_PATH
    from charwright.run import Run

    run = Run.create(place, config, vocabulary, force=force)
    for text in unrepeatable:
        run.keep_text(STDIN_PATH, text)
    return run


def _check_unmeasured(asked: TrainingConfig, advice: str) -> None:
    """See that a run without validation text has no aim that is measured on one."""
    if asked.target_loss is not None:
        raise UsageError(f"--target-loss is measured on validation text, and there is none: {advice}")
    if asked.patience is not None:
        say(f"--patience has no effect without validation text: {advice}")


SHOWN = 20
"""New characters that are named, at most."""


def _growth(old: Vocabulary, new: Vocabulary) -> str:
    """How many characters are known, and how many and which are new, in words."""
    if old.unit == "byte":
        return "bytes, as before"
    added = new.characters[len(old.characters) :]
    known = f"{len(old.characters):,} characters known, {len(added) or 'none':{',' if added else ''}} new"
    named = " ".join(c if c.isprintable() and not c.isspace() else repr(c) for c in added[:SHOWN])
    return f"{known}{': ' if added else ''}{named}{' ...' if len(added) > SHOWN else ''}"


def resumed_work(folder: Path, moved: tuple[str, ...], options: dict[str, Any], refused: dict[str, Any]) -> Work:
    """Open the run, find its texts again, and apply what a resume may change."""
    from charwright.cli.corpora import texts_again
    from charwright.run import Run

    for name in (*refused, *options):
        if name not in RESUMABLE:
            shown = "--recipe" if name == "recipe_name" else flag(name)
            raise UsageError(f"{shown} belongs to the run and cannot change on --resume; start a new run for that")
    run = Run.open(folder)
    recipe = run.config.recipe.with_options(options)
    training_text, validation_text = texts_again(run, moved)
    if not validation_text:
        asked = dataclasses.replace(recipe.training, patience=options.get("patience"))  # A plan always has some.
        _check_unmeasured(asked, "start a new run for that")
    if recipe != run.config.recipe:
        run.rewrite_config(dataclasses.replace(run.config, recipe=recipe))
    return Work(recipe, run.vocabulary, training_text, validation_text, lambda: run, resume=True)


def model_and_dataset(work: Work, device_name: str, core: str) -> tuple[LanguageModel, Dataset]:
    """The model on its device, before its first step, and its batches; what may surprise is said on stderr."""
    from charwright import kernels
    from charwright.data.sequences import make_dataset, shrink_to_fit
    from charwright.model.language_model import LanguageModel
    from charwright.model.machine import NO_KERNELS, choose_device, choose_precision
    from charwright.model.recurrent import choose_core

    recipe, vocabulary, device = work.recipe, work.vocabulary, choose_device(device_name)
    ids = vocabulary.encode(work.training_text)
    sequences, word = shrink_to_fit(len(ids), recipe.sequences)
    if word:
        say(word)
    dataset = make_dataset(ids, sequences, recipe.training.seed)
    precision = choose_precision(recipe.training.precision, device)
    choose_core(core, device, precision)  # A core that cannot work is refused before there is a folder.
    training = recipe.training
    model = LanguageModel(
        recipe.model,
        len(vocabulary),
        seed=training.seed,
        embedding_range=training.embedding_range,
        precision=precision,
        core=core,
    )
    if work.weights is not None:
        model.load_arrays(work.weights)
    if device.type == "cpu" and kernels.load() is None:
        say(f"note: {NO_KERNELS}")
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
