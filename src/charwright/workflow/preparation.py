"""Prepares a training run: its texts, options, vocabulary and weights. Nothing is written yet."""

from __future__ import annotations

import dataclasses
import os
import platform
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from charwright import __version__
from charwright.arrays import Arrays
from charwright.config import BUDGETS, CorpusConfig, Recipe, SplitConfig, TrainingConfig, VocabularyConfig
from charwright.data.labels import listed_labels
from charwright.data.large_texts import AnyCorpus
from charwright.data.parts import STDIN_PATH, Places
from charwright.data.texts import Text, label_names, plain
from charwright.data.vocabularies import vocabulary_to_train
from charwright.data.vocabulary import Vocabulary
from charwright.errors import CorpusError, UsageError
from charwright.model.compute import Wanted
from charwright.planning.calibration import choose_here, plan_here
from charwright.planning.choice import Choice
from charwright.planning.plan import BY_HAND, REPLANNED, Plan, option_values, starting_recipe
from charwright.planning.profile import TextProfile
from charwright.planning.recipe_file import recipe_of
from charwright.planning.recipes import DEFAULT, PLANNED
from charwright.run import Run
from charwright.run_config import Parent, RunConfig
from charwright.run_place import numbered, teachers_folder
from charwright.schema import field_names, flag
from charwright.training.ranks import ALONE, Ranks
from charwright.training.snapshot import Snapshot
from charwright.workflow.assembly import grow_weights
from charwright.workflow.checkpoints import load_checkpoint
from charwright.workflow.computing import choice_for_resume, choice_here, record_of
from charwright.workflow.distillation import Teachers, written_tokens
from charwright.workflow.texts import Notify, Specs, Texts, listed, read_texts, texts_of_run

RESUMABLE = (*BUDGETS, "target_loss", "patience", "log_every", "checkpoint_minutes", "keep_checkpoints", "precision")
"""The options that a resume may change."""

INHERITED = (
    *("cell", "layers", "units", "embedding_size", "multiplicative", "tied"),
    *("ngram_bits", "ngram_order", "embedding_range"),
)
"""The options that a run takes unchanged from the run it continues from."""

NAMED_CHARACTERS = 20
"""New characters listed in a notice, at most."""


@dataclass(frozen=True)
class Prepared:
    """A run that is ready to train; `open_run` creates or opens its folder, when nothing can fail any more."""

    recipe: Recipe
    vocabulary: Vocabulary
    training_text: Text
    validation_text: Text
    choice: Choice
    open_run: Callable[[], Run]
    resume: bool = False
    weights: Arrays | None = None
    """The initial weights, if they come from another run."""
    teachers: Teachers | None = None
    snapshot: Snapshot | None = None
    """Where a resume continues; None if the run was stopped before its first checkpoint."""


@dataclass(frozen=True)
class Origin:
    """What a new run starts from: its options and, if it continues from a parent run, that run and its weights."""

    recipe: Recipe
    recipe_name: str
    options: Mapping[str, Any]
    parent: Run | None = None
    weights: Arrays | None = None
    inherited: Mapping[str, Any] = field(default_factory=dict)
    """The options that a plan takes unchanged from the parent."""
    teachers: Teachers | None = None
    teaches: bool = False
    """Whether the new run will be one of several teachers."""

    @property
    def planned(self) -> bool:
        """Whether the recipe is planned for the text; that of a parent run, if it was planned for its own text."""
        return self.recipe_name == PLANNED and (self.parent is None or self.parent.config.plan is not None)

    @property
    def detects_records(self) -> bool:
        """Whether a text that plainly is a list is to be taken as one."""
        fresh = self.parent is None and self.teachers is None
        return self.planned and fresh and not {"records", "order"} & self.options.keys()

    def plan(self, texts: Texts, vocabulary: Vocabulary, wanted: Wanted) -> tuple[Plan, Choice]:
        """Plan the recipe and choose how to compute, measuring the machine if the budget is in minutes."""
        text = dataclasses.replace(TextProfile.of(texts.training, vocabulary), teaches=self.teaches)
        if self.teachers is not None:
            text = self.teachers.profile(text, self.recipe.training)
        plan, choice = plan_here(text, {**self.inherited, **self.options}, wanted)
        if self.parent is not None:
            return plan.continuing(self.recipe, self.inherited), choice
        return (plan if texts.records == self.recipe.records else plan.with_records(texts.records)), choice

    def vocabulary(self, texts: Texts, options: VocabularyConfig) -> Vocabulary:
        """The vocabulary of the texts; that of the parent with new characters behind it, or that of the teachers."""
        if self.teachers is not None:
            self.teachers.check(texts)
            return self.teachers.vocabulary
        if self.parent is None:
            return vocabulary_to_train(texts.whole, options)
        grown = self.parent.vocabulary.grown(plain(texts.whole), options)
        if new := set(label_names(texts.whole)).difference(grown.labels):
            raise UsageError(
                f"the text has the label {min(new)!r}, and {self.parent.folder} has {listed_labels(grown)}; a run "
                "that continues from another has its labels and no others"
            )
        return grown

    def parent_entry(self) -> Parent | None:
        """The record of the parent in config.json."""
        if self.parent is None:
            return None
        config = self.parent.config
        return Parent(str(self.parent.folder), self.parent.weights_step(), config.characters, config.sha256)


def origin_of_recipe(name: str, options: Mapping[str, Any], teachers: Teachers | None = None) -> Origin:
    """A run from initial weights, by a named recipe or a recipe file.

    Raises:
        UsageError: when there is no such recipe.
        ConfigError: when an option is out of bounds.
    """
    if teachers is not None:
        given = dataclasses.asdict(teachers.vocabulary_options)
        for option, value in given.items():
            if options.get(option, value) != value:
                raise UsageError(f"{flag(option)} is that of the teachers, {value}; leave it out")
        options = {**options, **given}
    if name == PLANNED:
        return Origin(starting_recipe(options), name, options, teachers=teachers)
    return Origin(recipe_of(name).with_options(options), name, options, teachers=teachers)


def origin_of_run(folder: Path, options: Mapping[str, Any], *, replaced: Path | None = None) -> Origin:
    """A run that continues from the weights of another; `replaced` is the folder that will be replaced by it."""
    for name in options:
        if name in INHERITED:
            raise UsageError(f"{flag(name)} is as in the run that --from names; start a new run to change it")
    run = Run.open(folder)
    if replaced is not None and run.lies_in(replaced):
        raise UsageError(f"--force would remove {folder}, which --from continues from; choose another --out")
    level = run.vocabulary.level
    if options.get("level", level) != level:
        raise UsageError(f"--level cannot change: the tokens of {folder} are {level}s")
    options = {**options, "level": level}
    recipe = _recipe_after(run.config, options)
    inherited = _inherited(run.config, recipe, options)
    return Origin(recipe, run.config.recipe_name, options, run, run.weights(), inherited)


def _recipe_after(config: RunConfig, options: Mapping[str, Any]) -> Recipe:
    """The options of a run that continues from another: those of its parent, with a budget of its own."""
    defaults: dict[str, Any] = {"target_loss": None}  # The parent's target was for another text.
    if not any(options.get(name) for name in BUDGETS):
        defaults["minutes"] = DEFAULT.training.minutes
    if config.validation:  # The parent held nothing out, since it had a separate validation text.
        defaults["val_fraction"] = SplitConfig().val_fraction
    return config.recipe.with_options({**defaults, **options})


def _inherited(config: RunConfig, recipe: Recipe, options: Mapping[str, Any]) -> dict[str, Any]:
    """What a plan for the new text does not change: the parent's options but those of `REPLANNED`."""
    reasons = (config.plan or {}).get("reasons", {})
    free = {name for name in REPLANNED if reasons.get(name) != BY_HAND}
    kept = {*reasons, *INHERITED, *(name for name in BUDGETS if getattr(recipe.training, name))} - free - options.keys()
    return {name: value for name, value in option_values(recipe).items() if name in kept}


def prepare_new(
    origin: Origin,
    corpus: Specs,
    validation: Specs,
    reading: CorpusConfig,
    wanted: Wanted,
    *,
    out: Path | None,
    force: bool,
    places: Places,
    notify: Notify,
    ranks: Ranks = ALONE,
) -> Prepared:
    """Read the texts and settle the options of a new run. Rank 0 plans and measures for all ranks."""
    check_corpus_given(corpus)
    _check_readable_by_all((*listed(corpus), *listed(validation)), ranks)
    recipe = origin.recipe
    if out is not None:
        ranks.first(partial(Run.check_place, out, force=force))
    texts = ranks.prepare(
        lambda: read_texts(
            corpus, validation, reading, recipe.split, places, notify, recipe.records, detect=origin.detects_records
        )
    )
    _check_same(texts, ranks)
    recipe = dataclasses.replace(recipe, records=texts.records)
    if texts.validation_corpus is not None:
        recipe = recipe.with_options({"val_fraction": 0.0})
    if not texts.validation:
        _check_unvalidated(recipe.training, "raise --val-fraction", notify)
    text = texts.corpus
    corpora = [text, *([texts.validation_corpus] if texts.validation_corpus else [])]
    if force and out is not None:
        _check_kept(out, corpora)
    vocabulary = origin.vocabulary(texts, recipe.vocabulary)
    plan: Plan | None = None
    if origin.planned:
        plan, choice = ranks.first(lambda: origin.plan(texts, vocabulary, wanted))
        recipe = dataclasses.replace(plan.recipe, split=recipe.split)
        for line in plan.summary():
            notify(line)
    else:
        choice = ranks.first(lambda: choose_here(recipe, len(vocabulary), wanted))
    if origin.teachers is not None:  # A resume with another budget reads the same text.
        recipe = recipe.with_options({"written": written_tokens(recipe.training)})
    if origin.parent is not None:
        growth = _describe_growth(origin.parent.vocabulary, vocabulary)
        notify(f"continues from {origin.parent.folder} ({growth})")
    config = RunConfig(
        recipe=recipe,
        recipe_name=origin.recipe_name,
        sources=text.sources,
        corpus=reading,
        characters=len(text.text),
        sha256=text.sha256,
        validation=texts.validation_corpus.sources if texts.validation_corpus else (),
        versions=_versions(),
        parent=origin.parent_entry(),
        teachers=origin.teachers.entries if origin.teachers else (),
        plan=plan.to_json() if plan else None,
        compute=record_of(choice),
        records=texts.run_records,
    )
    if origin.teachers is not None:
        for note in origin.teachers.notes(texts):
            notify(note)
    place = out or _free_folder(Path("runs") / text.name)
    typed = next((corpus.unrepeatable for corpus in corpora if corpus.unrepeatable), None)
    texts_to_keep = {STDIN_PATH: typed} if typed else {}
    create = partial(Run.create, place, config, vocabulary, texts=texts_to_keep, force=force)
    weights = origin.weights
    if weights is not None:
        weights = grow_weights(weights, vocabulary, texts.training, recipe.training.seed)
    choice = choice_here(choice, ranks)
    return Prepared(
        recipe, vocabulary, texts.training, texts.validation, choice, create, weights=weights, teachers=origin.teachers
    )


def check_resume_options(options: Mapping[str, Any]) -> None:
    """Check that a resume changes nothing that belongs to the run.

    Raises:
        UsageError: naming the option.
    """
    for name in options:
        if name not in RESUMABLE:
            shown = "--recipe" if name == "recipe_name" else flag(name)
            raise UsageError(f"{shown} belongs to the run and cannot change on --resume; start a new run for that")


def prepare_resume(
    run: Run,
    moved: Specs,
    options: Mapping[str, Any],
    wanted: Wanted,
    *,
    places: Places,
    notify: Notify,
    ranks: Ranks = ALONE,
) -> Prepared:
    """Find the texts of a run again, and apply the options that a resume may change.

    `wanted` is what the user asks for now; otherwise the run computes as it did.
    """
    run.check_resumable()
    recipe = run.config.recipe.with_options(options)
    training_text, validation_text = ranks.prepare(lambda: texts_of_run(run, moved, places))
    if not validation_text:
        asked = dataclasses.replace(recipe.training, patience=options.get("patience"))  # Plans always set a patience.
        _check_unvalidated(asked, "start a new run for that", notify)
    choice, record = ranks.first(
        lambda: choice_for_resume(run.config.compute, recipe, len(run.vocabulary), wanted, notify)
    )
    config = dataclasses.replace(run.config, recipe=recipe, compute=record)

    def open_run() -> Run:
        if config != run.config:
            run.rewrite_config(config)
        return run

    return Prepared(
        recipe, run.vocabulary, training_text, validation_text, choice_here(choice, ranks), open_run, resume=True,
        teachers=Teachers.reopen(run), snapshot=ranks.first(lambda: load_checkpoint(run, notify)),
    )  # fmt: skip


def check_split_options(validation: Specs, options: Mapping[str, Any]) -> None:
    """Check that no option says how to hold out a part of the text if there is a text to validate on.

    Raises:
        UsageError: naming the option.
    """
    if listed(validation) and (stray := [name for name in field_names(SplitConfig) if options.get(name)]):
        raise UsageError(f"--validation is a text of its own, and {flag(stray[0])} holds out a part: choose one")


def check_corpus_given(corpus: Specs) -> None:
    """Check that a corpus is named.

    Raises:
        UsageError: when it is not.
    """
    if not corpus:
        raise UsageError(
            "name a text to learn from: a file, a folder, -, an address, shakespeare, python-docs or python-code"
        )


def _check_readable_by_all(specs: Sequence[str | os.PathLike[str]], ranks: Ranks) -> None:
    """Check that several ranks do not share one standard input."""
    if ranks.size > 1 and "-" in map(str, specs):
        raise UsageError("several ranks cannot read one standard input; keep the text in a file")


def _check_same(texts: Texts, ranks: Ranks) -> None:
    """Check that all ranks have read the same texts."""
    separate = texts.validation_corpus
    if len(set(ranks.gather((texts.corpus.sha256, separate.sha256 if separate else None)))) > 1:
        raise CorpusError("the ranks have read different texts (SHA-256 differs); every machine needs the same files")


def _check_kept(place: Path, corpora: Iterable[AnyCorpus]) -> None:
    """Check that replacing a run does not remove a text of the new one."""
    files = (source.location for corpus in corpora for source in corpus.sources if source.kind == "file")
    for file in files:
        if Path(file).resolve().is_relative_to(place.resolve()):
            raise UsageError(f"--force would remove {file}, the text to learn from; choose another --out")


def _check_unvalidated(asked: TrainingConfig, advice: str, notify: Notify) -> None:
    """Check that a run without validation text has no option that needs one."""
    if asked.target_loss is not None:
        raise UsageError(f"--target-loss needs validation text, and there is none: {advice}")
    if asked.patience is not None:
        notify(f"--patience has no effect without validation text: {advice}")


def _describe_growth(old: Vocabulary, new: Vocabulary) -> str:
    """How many characters are known, and how many and which are new."""
    if old.level == "byte":
        return "bytes, as before"
    added = new.characters[len(old.characters) :]
    counts = f"{len(old.characters):,} known characters, {len(added) or 'none'} new"
    names = " ".join(c if c.isprintable() and not c.isspace() else repr(c) for c in added[:NAMED_CHARACTERS])
    return f"{counts}{': ' if added else ''}{names}{' ...' if len(added) > NAMED_CHARACTERS else ''}"


def _free_folder(folder: Path) -> Path:
    """The folder, or the first of folder-2, folder-3, ... that does not exist, and has no teachers waiting for it."""
    return next(place for place in numbered(folder) if not place.exists() and not teachers_folder(place).exists())


def _versions() -> dict[str, str]:
    return {
        "charwright": __version__,
        "torch": torch.__version__,
        "numpy": np.__version__,
        "python": platform.python_version(),
    }
