"""Several models of one text and one that learns from them, as one training.

The teachers are runs of their own, beside the run that learns from them. So a stopped training run goes on when
the same call is made again: what is done is not done twice.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from charwright.config import BUDGETS, CorpusConfig
from charwright.data.corpus import Corpus, checked_specs
from charwright.data.large_texts import MappedCorpus, open_corpus
from charwright.data.lists import is_list
from charwright.data.parts import Places, find_parts
from charwright.errors import RunError, RunExistsError, UsageError
from charwright.planning.plan import BY_HAND, option_values
from charwright.planning.recipes import DEFAULT, PLANNED
from charwright.run import Run
from charwright.run_place import is_interrupted_creation, numbered, teachers_folder
from charwright.schema import SEEDS, flag, quoted
from charwright.training.early_stopping import EARLY_STOPPING, TARGET
from charwright.training.events import End, Event
from charwright.training.ranks import ALONE, Ranks
from charwright.workflow.preparation import RESUMABLE, check_corpus_given, origin_of_recipe
from charwright.workflow.texts import Notify, Specs, listed
from charwright.workflow.training import resume, train

DEFAULT_MINUTES = DEFAULT.training.minutes or 5.0
TEACHING = 0.6
"""The share of the minutes that the teachers have together."""
TEACHERS = 4
MOST_TEACHERS = 64
FEWEST_MINUTES = 4.0
"""Of a training run for which an ensemble is planned: in two, one model is as good."""
SHORTEST = 10_000
"""Characters of a text for which an ensemble is planned, at least."""
MOST_BYTES = 4
"""Of a character, in any encoding."""
LASTING = {"device", "core", "threads", "should_stop", "clock", "tensorboard", "progress"}
"""The arguments that a resume has too."""
OPTIONS = set(option_values(DEFAULT))
FREE = {*RESUMABLE, "written", "records", "seed"}
"""The options that a teacher need not share with what learns from it."""
FINISHED = ("done", TARGET, EARLY_STOPPING)


def planned_teachers(
    corpus: Specs,
    options: Mapping[str, Any],
    *,
    recipe: str = PLANNED,
    parent: str | os.PathLike[str] | None = None,
    teachers: Specs = (),
    validation: Specs = (),
    reading: CorpusConfig | None = None,
    places: Places | None = None,
    ranks: Ranks = ALONE,
) -> int:
    """How many teachers a training run should have: `TEACHERS` for a short text and a long time, otherwise none.

    The rule has no clock, only the budget and the text, of `SHORTEST` to `longest_for` characters. Only a planned
    training from initial weights, in one process, of running text that can be read several times, has any.

    Raises:
        CharwrightError: (a subclass) when an option is out of bounds, or the text cannot be read.
    """
    minutes = None if {"steps", "epochs"} & options.keys() else options.get("minutes", DEFAULT_MINUTES)
    longest = longest_for(minutes or 0)
    given = parent is not None or bool(teachers) or recipe != PLANNED or "target_loss" in options
    unvalidated = not validation and options.get("val_fraction") == 0
    unsuitable = not corpus or given or unvalidated or ranks.size > 1 or _reads_stdin(corpus, validation)
    if unsuitable or longest < SHORTEST:
        return 0
    origin_of_recipe(recipe, options)  # Options out of bounds have no plan.
    reading, places = reading or CorpusConfig(), places or Places.of_this_user()
    parts = find_parts(checked_specs(corpus), reading, places, [])
    if sum(part.size for part in parts) > MOST_BYTES * longest:
        return 0
    text = open_corpus(corpus, reading, places)
    records = options.get("records", "line" if is_list(text.text) else "none")
    return TEACHERS if records == "none" and SHORTEST <= len(text.text) <= longest else 0


def longest_for(minutes: float) -> float:
    """The characters of the longest text that several models learn better than one in this time.

    That takes some hundred passes of each. A longer text has a wider model, and its passes take N^1.7 as long.
    """
    return 0 if minutes < FEWEST_MINUTES else 20_000 * (minutes / FEWEST_MINUTES) ** 0.6


def shares(minutes: float | None, count: int) -> tuple[float, float]:
    """The minutes of each of the teachers and those of the model that learns from them."""
    minutes = DEFAULT_MINUTES if minutes is None else minutes
    return minutes * TEACHING / count, minutes * (1 - TEACHING)


def _reads_stdin(*specs: Specs) -> bool:
    """Whether a text is standard input, which can be read only once."""
    return any("-" in map(str, listed(some)) for some in specs)


def train_ensemble(
    corpus: Specs,
    *,
    count: int = TEACHERS,
    out: str | os.PathLike[str] | None = None,
    seed: int = DEFAULT.training.seed,
    force: bool = False,
    reading: CorpusConfig | None = None,
    places: Places | None = None,
    on_event: Callable[[Event], None] = lambda _: None,
    notify: Notify = lambda _: None,
    spent_s: float = 0.0,
    ranks: Ranks = ALONE,
    **arguments: Any,
) -> Run:
    """Train some models, and one that learns what they predict: `train_ensemble("poems.txt", minutes=10)`.

    Of a budget in minutes the teachers have 0.6 together; any other is for each of them, and for the last model too.
    The teachers are the runs 1, 2, ... in a folder beside `out`, whose name ends with `-teachers`. The same call goes
    on with a training run that was stopped; `force` replaces the run in `out`, and teachers of another text or options.

    Args:
        corpus: as for `train`, except that it is read several times, so standard input is refused.
        count: how many teachers there are.
        out: the folder of the run that learns from them; by default runs/ and the name of the corpus, and a number if
            another run is there.
        seed: that of the last model; those of the teachers follow from it.
        force: replace the run in `out`, and teachers that learned another text or with other options.
        reading: how files are decoded.
        places: where corpora are looked up.
        on_event: called with each event of each training.
        notify: called with each line about something the user may want to know.
        spent_s: seconds of the first teacher's budget that are already spent.
        ranks: must be one.
        **arguments: the other arguments and options of `train`.

    Returns:
        The run that has learned from the teachers, or the one in which training was stopped.

    Raises:
        CharwrightError: (a subclass) as for `train`.
    """
    check_corpus_given(corpus)
    corpus, arguments["validation"] = listed(corpus), listed(arguments.get("validation", ()))
    options = {name: arguments[name] for name in OPTIONS & arguments.keys()}
    check_ensemble(corpus, count, arguments, {**options, "seed": seed}, ranks)
    reading, places = reading or CorpusConfig(), places or Places.of_this_user()
    text = open_corpus(corpus, reading, places)
    _check_running_text(text, options)
    validation = arguments["validation"]
    measured_on = [source.sha256 for source in open_corpus(validation, reading, places).sources] if validation else []
    differs = partial(_difference, sha256=text.sha256, options={**options, "seed": seed}, validation=measured_on)
    folder = _given_folder(Path(out)) if out is not None else _default_folder(text.name, count, differs, force=force)
    school = _school(folder, count)
    goes_on = not force and _learns_from(folder, school)
    _check_folder(folder, goes_on=goes_on, force=force)
    to_teach, to_learn = _budgets(options, count)
    options = {name: value for name, value in options.items() if name not in BUDGETS}
    ends: list[End] = []

    def watched(event: Event) -> None:
        ends.extend([event] if isinstance(event, End) else [])
        on_event(event)

    lasting: dict[str, Any] = {name: arguments[name] for name in LASTING & arguments.keys()}
    lasting |= {"places": places, "on_event": watched, "notify": notify}
    lasting |= {name: options[name] for name in set(RESUMABLE) & options.keys()}
    rest = {name: value for name, value in arguments.items() if name not in {*BUDGETS, "parent", "teachers"}}
    rest |= {"reading": reading, "records": "none", **lasting}
    for number, place in enumerate(school, 1):
        begun = _begun(place)
        other = None if begun is None else differs(begun, number)
        if other and not force:
            raise UsageError(other)
        if begun is not None and not other and _finished(begun, to_teach):
            notify(f"teacher {number} of {count}: {place}, trained before")
            continue
        if goes_on:
            missing = "is gone" if begun is None else "was trained for less"
            raise UsageError(
                f"{folder} has begun to learn from {place}, which {missing}; give the budget that it began with, or "
                "train all anew with --force"
            )
        if begun is not None and not other and (larger := _larger_budget(begun, to_teach)):
            raise UsageError(
                f"{place} was begun with {larger}; give the budget that it began with, or train all anew with --force"
            )
        notify(f"teacher {number} of {count}: {place}")
        if begun is not None and not other:
            run = resume(place, **lasting, **to_teach)
        else:
            own = _seed_of(number, seed)
            run = train(
                corpus, out=place, teaches=True, seed=own, force=bool(other), spent_s=spent_s, **rest, **to_teach
            )
        spent_s = 0.0
        if ends[-1].reason not in FINISHED:
            return run
    if goes_on:
        return resume(folder, **lasting, **to_learn)
    return train(corpus, out=folder, teachers=school, seed=seed, force=force, spent_s=spent_s, **rest, **to_learn)


def check_ensemble(
    corpus: Specs, count: int, arguments: Mapping[str, Any], options: Mapping[str, Any], ranks: Ranks = ALONE
) -> None:
    """Check that the arguments are those of an ensemble, and the options valid.

    Raises:
        UsageError: when they are not.
        ConfigError: when an option is out of bounds.
    """
    if count == 0:
        raise UsageError("an ensemble has at least one teacher; for one model, call charwright.train")
    if not isinstance(count, int) or not 1 <= count <= MOST_TEACHERS:
        raise UsageError(f"--ensemble takes a number from 1 to {MOST_TEACHERS}, or 0 for one model, not {count!r}")
    if _reads_stdin(corpus, arguments.get("validation", ())):
        raise UsageError("--ensemble reads the text several times; keep standard input in a file")
    if ranks.size > 1:
        raise UsageError("--ensemble trains in one process, without torchrun")
    if arguments.get("parent") is not None or arguments.get("teachers"):
        raise UsageError("--ensemble trains its own teachers from initial weights; leave out --from and --teacher")
    origin_of_recipe(arguments.get("recipe", PLANNED), options)


def _check_running_text(text: Corpus | MappedCorpus, options: Mapping[str, Any]) -> None:
    """Check that a text is read as running text.

    Raises:
        UsageError: when it is not.
    """
    if options.get("records", "line" if is_list(text.text) else "none") != "none":
        advice = "leave out --records" if "records" in options else "to read it as running text, add --records none"
        raise UsageError(f"{text.name} is a list, and --ensemble needs running text; {advice}")


def _check_folder(folder: Path, *, goes_on: bool, force: bool) -> None:
    """Check that the last model can be trained in a folder.

    Raises:
        RunExistsError: when it has been trained there, or the folder has something else.
    """
    if not goes_on:
        Run.check_place(folder, force=force)
    elif _finished(Run.open(folder)):
        raise RunExistsError(
            f"{folder} has learned from its teachers; train it longer with --resume {quoted(folder)}, or replace it "
            "with --force"
        )


def _budgets(options: Mapping[str, Any], count: int) -> tuple[dict[str, Any], dict[str, Any]]:
    """The budget of each teacher, and that of the model that learns from them, as options."""
    given = {name: options[name] for name in BUDGETS if options.get(name) is not None}
    [(budget, amount)] = given.items() if given else [("minutes", DEFAULT_MINUTES)]
    parts: tuple[Any, Any] = shares(amount, count) if budget == "minutes" else (amount, amount)
    return {budget: parts[0]}, {budget: parts[1]}


def _begun(place: Path) -> Run | None:
    """The teacher in a folder; None if there is nothing."""
    if not place.exists() or (place.is_dir() and (not any(place.iterdir()) or is_interrupted_creation(place))):
        return None
    return Run.open(place, for_writing=True)


def _seed_of(number: int, seed: int) -> int:
    """The seed of a teacher, from that of the last model."""
    return (seed * MOST_TEACHERS + number) % SEEDS


def _difference(
    run: Run, number: int, *, sha256: str, options: Mapping[str, Any], validation: Sequence[str]
) -> str | None:
    """Why a run cannot be the teacher of this number: it learned another text, or with other options."""
    folder, advice = run.folder, "choose another --out, or train it anew with --force"
    if run.config.sha256 != sha256:
        return f"{folder} is a teacher of another text; {advice}"
    if [source.sha256 for source in run.config.validation] != list(validation):
        return f"{folder} was validated on another text; {advice}"
    values = option_values(run.config.recipe)
    if values["seed"] != _seed_of(number, options["seed"]):
        return f"{folder} was trained with another --seed; {advice}"
    reasons = (run.config.plan or {}).get("reasons", {})
    expected = option_values(DEFAULT) if run.config.recipe_name == PLANNED else {}
    expected = {name: value for name, value in expected.items() if name not in {*reasons, *FREE}}
    if validation:
        expected.pop("val_fraction", None)
    for name, value in {**expected, **options}.items():
        if name not in FREE and values[name] != value:
            return f"{folder} was trained with {flag(name)} {values[name]}, not {value}; {advice}"
    for name, reason in reasons.items():
        if reason == BY_HAND and name not in options:
            return f"{folder} was trained with {flag(name)} {values[name]}, which is not given now; {advice}"
    return None


def _finished(run: Run, budget: Mapping[str, float] | None = None) -> bool:
    """Whether the training of a run has come to its end, with at least this budget if one is given."""
    given = run.config.recipe.training
    if any((getattr(given, name) or 0) < amount for name, amount in (budget or {}).items()):
        return False
    last = None
    for event in run.log():
        last = event
    return last is not None and last.get("event") == "end" and last.get("reason") in FINISHED


def _larger_budget(run: Run, budget: Mapping[str, float]) -> str | None:
    """The budget of a run that was begun, if it is larger than this one, or in another unit."""
    for name in BUDGETS:
        amount = getattr(run.config.recipe.training, name)
        if amount is not None and amount > budget.get(name, 0):
            return f"{flag(name)} {amount:g}"
    return None


def _school(folder: Path, count: int) -> list[Path]:
    """The folders of the teachers of a run."""
    return [teachers_folder(folder) / str(number) for number in range(1, count + 1)]


def _given_folder(folder: Path) -> Path:
    """A folder that the user names, with a name beside which that of the teachers can be.

    Raises:
        UsageError: when it is the root of the file system.
    """
    if folder.name in ("", ".."):
        folder = folder.resolve()
    if not folder.name:
        raise UsageError(f"{folder} is no place for a new run; choose another --out")
    return folder


def _learns_from(folder: Path, teachers: Sequence[Path]) -> bool:
    """Whether a folder has a run that learns from these teachers."""
    if not (folder / "config.json").is_file():
        return False
    learned = [Path(teacher.folder) for teacher in Run.open(folder).config.teachers]
    return learned == [place.resolve() for place in teachers]


def _default_folder(name: str, count: int, differs: Callable[[Run, int], str | None], *, force: bool) -> Path:
    """runs/ and the name of the text, or the first of NAME-2, NAME-3, ... that has nothing else in it.

    What is not finished of this ensemble is no reason to choose another, nor, with `force`, is what is finished.
    """
    return next(place for place in numbered(Path("runs") / name) if _is_open(place, count, differs, force=force))


def _is_open(folder: Path, count: int, differs: Callable[[Run, int], str | None], *, force: bool) -> bool:
    """Whether an ensemble can begin or go on in a folder."""
    school = _school(folder, count)
    try:
        if folder.exists() and (not _learns_from(folder, school) or (_finished(Run.open(folder)) and not force)):
            return False
        begun = [(_begun(place), number) for number, place in enumerate(school, 1)]
        return not any(run is not None and differs(run, number) for run, number in begun)
    except RunError:  # One that is damaged, or of a newer version.
        return False
